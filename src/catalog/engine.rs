//! The engine behind the catalog: fjall keyspaces, one for each [`Table`], sharing one journal.

use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::Table;
use crate::{Error, Result};

/// Memory for cached blocks. The catalog of a million small files is a few hundred MiB on disk; this holds
/// its working set without counting against the vectors.
const CACHE_BYTES: u64 = 32 << 20;

/// Memory for rows not yet written to a sorted table, per keyspace.
const MEMTABLE_BYTES: u64 = 8 << 20;

/// Bytes of a key or value read from the catalog.
pub type Value = fjall::Slice;

/// The catalog. See the [module](super) for its promises.
pub struct Catalog {
    database: Database,
    tables: Vec<Keyspace>,
}

/// Changes that are applied together or not at all.
pub struct Batch<'a> {
    catalog: &'a Catalog,
    inner: fjall::OwnedWriteBatch,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens the catalog in `dir`, creating it on first use and recovering it after an unclean end.
    ///
    /// # Errors
    ///
    /// [`Error::Catalog`] when the engine cannot open or recover its files.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.try_exists()? {
            make(dir)?;
        }
        Self::open_engine(dir)
    }

    fn open_engine(dir: &Path) -> Result<Self> {
        let database = Database::builder(dir).cache_size(CACHE_BYTES).worker_threads(1).open()?;
        let tables = Table::ALL
            .iter()
            .map(|table| {
                database.keyspace(table.name(), || {
                    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { database, tables })
    }

    fn keyspace(&self, table: Table) -> &Keyspace {
        &self.tables[table as usize]
    }

    /// The value under `key`, as of the last commit.
    ///
    /// # Errors
    ///
    /// [`Error::Catalog`] when the engine cannot read.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Value>> {
        Ok(self.keyspace(table).get(key)?)
    }

    /// The pairs whose key begins with `prefix`, in key order, beginning after `prefix` + `after`.
    ///
    /// Each item has the key without the prefix. The iterator sees the catalog as it was at the call.
    pub fn scan<'a>(
        &'a self,
        table: Table,
        prefix: &'a [u8],
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<(Vec<u8>, Value)>> + 'a {
        let low = match after {
            Some(after) => Bound::Excluded([prefix, after].concat()),
            None => Bound::Included(prefix.to_vec()),
        };
        let high = match successor(prefix) {
            Some(end) => Bound::Excluded(end),
            None => Bound::Unbounded,
        };
        self.keyspace(table).range::<Vec<u8>, _>((low, high)).map(move |guard| {
            let (key, value) = guard.into_inner()?;
            Ok((key[prefix.len()..].to_vec(), value))
        })
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch<'_> {
        // Flushed to the operating system with the commit: that is what process death cannot take back.
        Batch { catalog: self, inner: self.database.batch().durability(Some(PersistMode::Buffer)) }
    }

    /// Makes every commit that has returned survive a power cut.
    ///
    /// # Errors
    ///
    /// [`Error::Catalog`] when the sync fails; the engine then refuses further commits.
    pub fn persist(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    /// Bytes that the catalog takes on disk.
    ///
    /// # Errors
    ///
    /// [`Error::Catalog`] when the engine cannot read its folder.
    pub fn disk_bytes(&self) -> Result<u64> {
        Ok(self.database.disk_space()?)
    }
}

impl Batch<'_> {
    /// Puts `value` under `key`, replacing what is there.
    pub fn put(&mut self, table: Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.inner.insert(self.catalog.keyspace(table), key.as_ref(), value.as_ref());
    }

    /// Removes `key`; a missing key is no error.
    pub fn remove(&mut self, table: Table, key: impl AsRef<[u8]>) {
        self.inner.remove(self.catalog.keyspace(table), key.as_ref());
    }

    /// Whether nothing has been put or removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// Applies the batch. When this returns, process death does not undo it.
    ///
    /// # Errors
    ///
    /// [`Error::Catalog`] when the journal cannot be written; nothing of the batch is then applied.
    pub fn commit(self) -> Result<()> {
        Ok(self.inner.commit()?)
    }
}

impl From<fjall::Error> for Error {
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Io(error) => Error::Io(error),
            other => Error::Catalog(other.to_string()),
        }
    }
}

/// Makes an empty catalog: under another name first and durable, because the engine cannot go on with one whose
/// making a power cut ended, and does not make its own directory durable.
fn make(dir: &Path) -> Result<()> {
    let new = dir.with_extension("tmp");
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    drop(Catalog::open_engine(&new)?);
    nix::unistd::syncfs(File::open(&new)?).map_err(io::Error::from)?;
    fs::rename(&new, dir)?;
    match dir.parent() {
        Some(parent) => Ok(File::open(parent)?.sync_all()?),
        None => Ok(()),
    }
}

/// The smallest key that is greater than every key beginning with `prefix`.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scan_is_bounded_by_its_prefix_and_starts_after_the_given_key() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        let mut batch = catalog.batch();
        for key in [&b"a1"[..], b"b\xff1", b"b\xff2", b"b\xff3", b"c"] {
            batch.put(Table::Dentries, key, b"v");
        }
        batch.commit().unwrap();
        let keys = |after: Option<&[u8]>| -> Vec<Vec<u8>> {
            catalog.scan(Table::Dentries, b"b\xff", after).map(|pair| pair.unwrap().0).collect()
        };
        assert_eq!(keys(None), [b"1", b"2", b"3"]);
        assert_eq!(keys(Some(b"1")), [b"2", b"3"]);
    }

    #[test]
    fn a_batch_survives_reopening_and_one_that_was_dropped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        {
            let catalog = Catalog::open(dir.path()).unwrap();
            let mut batch = catalog.batch();
            batch.put(Table::Meta, b"kept", b"1");
            batch.commit().unwrap();
            let mut dropped = catalog.batch();
            dropped.put(Table::Meta, b"dropped", b"1");
        }
        let catalog = Catalog::open(dir.path()).unwrap();
        assert_eq!(catalog.get(Table::Meta, b"kept").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(catalog.get(Table::Meta, b"dropped").unwrap(), None);
    }

    #[test]
    fn the_successor_of_a_prefix_carries_over_full_bytes() {
        assert_eq!(successor(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(successor(b"\xff"), None);
        assert_eq!(successor(b""), None);
    }
}
