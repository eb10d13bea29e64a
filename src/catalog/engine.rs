//! The engine behind the catalog: fjall keyspaces, one for each [`Table`], sharing one journal.

use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::active::Active;
use super::checkpoint::{self, Tables};
use super::tally::Tally;
use super::{Table, journal, seal};
use crate::format::record;
use crate::{Error, Result};

/// Memory for cached blocks. The catalog of a million small files is a few hundred MiB on disk; this holds
/// its working set without counting against the vectors.
const CACHE_BYTES: u64 = 32 << 20;

/// The same for a copy that is only read.
const COPY_CACHE_BYTES: u64 = 8 << 20;

/// Memory for rows not yet written to a sorted table, per keyspace.
const MEMTABLE_BYTES: u64 = 8 << 20;

/// Under this name in `Table::Meta`: the number of the last commit.
const COMMITS: &[u8] = b"commits";

/// Bytes of a key or value read from the catalog.
pub type Value = fjall::Slice;

/// The catalog. See the [module](super) for its promises.
pub struct Catalog {
    /// `None` only while it is dropped.
    engine: Option<Engine>,
    dir: PathBuf,
    /// The files are to be listed once the engine has ended.
    closed: AtomicBool,
    /// The number of the last commit. Held during a commit, as the engine's own lock is, so that numbers are in the
    /// order of the journal.
    commits: Mutex<u64>,
    /// The number of the last commit that is known to be on disk; 0 before the first sync.
    persisted: AtomicU64,
    active: Active,
    tally: Tally,
    /// What a copy lies in, which goes after the engine.
    scratch: Option<TempDir>,
}

/// The engine and its tables, in the order of their numbers.
struct Engine {
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
    /// [`Error::Corrupt`] when files are not those that were [closed](Self::close), commits are gone that were
    /// [persisted](Self::persist), or the engine cannot make sense of what it reads; [`Error::Catalog`] when it cannot
    /// open or recover them.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.try_exists()? {
            make(dir)?;
        }
        seal::check(dir)?;
        Self::open_whole(dir, CACHE_BYTES)
    }

    /// Opens a copy of the catalog in `dir`, which is not changed and must stay as long: nobody has it open. The
    /// copy is made below `scratch` and vanishes with the value. With `may_be_torn` the copy's journal ends
    /// [behind its last whole commit](super::drop_torn_tail).
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); I/O errors.
    pub fn open_copy(dir: &Path, scratch: &Path, may_be_torn: bool) -> Result<Self> {
        seal::check(dir)?;
        let scratch = tempfile::Builder::new().prefix("vexfs-catalog-").tempdir_in(scratch)?;
        let copy = scratch.path().join("catalog");
        checkpoint::copy(dir, &copy, Tables::Pointed)?;
        if may_be_torn {
            journal::drop_torn_tail(&copy)?;
        }
        let mut catalog = Self::open_whole(&copy, COPY_CACHE_BYTES)?;
        catalog.scratch = Some(scratch);
        Ok(catalog)
    }

    /// Opens a catalog that has lost commits, and takes it as it is from now on. For repairs.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), except for the commits that are gone.
    pub fn open_shortened(dir: &Path) -> Result<Self> {
        seal::check(dir)?;
        let (catalog, _) = Self::open_as_it_is(dir, CACHE_BYTES)?;
        let last = *catalog.commits.lock();
        catalog.tally.note(last)?;
        Ok(catalog)
    }

    /// Opens a catalog that has every commit that was durable.
    fn open_whole(dir: &Path, cache_bytes: u64) -> Result<Self> {
        let (catalog, durable) = Self::open_as_it_is(dir, cache_bytes)?;
        let last = *catalog.commits.lock();
        if last < durable {
            let what = format!("the journal ends with commit {last}, and {durable} were durable");
            let (file, offset) = end_of_journal(dir);
            return Err(Error::Corrupt { file, offset, what });
        }
        Ok(catalog)
    }

    /// Opens the catalog. Returns how many commits it should have, too.
    fn open_as_it_is(dir: &Path, cache_bytes: u64) -> Result<(Self, u64)> {
        seal::remove(dir)?;
        let engine = contain(|| {
            let database = Database::builder(dir).cache_size(cache_bytes).worker_threads(1).open()?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            let tables = Table::ALL.iter().map(|table| database.keyspace(table.name(), options));
            let tables = tables.collect::<Result<Vec<_>, _>>()?;
            Ok(Engine { database, tables })
        });
        // Nobody else uses the files: what the engine cannot make sense of is damage.
        let engine = engine.map_err(|error| match error {
            Error::Catalog(what) => Error::Corrupt { file: "catalog".into(), offset: 0, what },
            other => other,
        })?;
        let (tally, durable) = Tally::open(dir)?;
        let (closed, dir) = (AtomicBool::new(false), dir.to_path_buf());
        let catalog = Self {
            engine: Some(engine),
            dir,
            closed,
            commits: Mutex::new(0),
            persisted: AtomicU64::new(0),
            active: Active::default(),
            tally,
            scratch: None,
        };
        // It has blocks ahead from now on. Without a journal to sync, `persist` leaves that to the engine.
        drop(catalog.active.journal(&catalog.dir));
        let last = match catalog.get(Table::Meta, COMMITS)? {
            Some(bytes) => record::decode("meta", &bytes)?,
            None => 0,
        };
        *catalog.commits.lock() = last;
        Ok((catalog, durable))
    }

    /// Makes `to`, which is not there yet, a catalog with everything that is committed now. Nobody commits
    /// meanwhile. It is not whole before [`sync_copy`].
    ///
    /// # Errors
    ///
    /// I/O errors; what was made of `to` stays.
    pub fn checkpoint(&self, to: &Path) -> Result<()> {
        checkpoint::copy(&self.dir, to, Tables::Linked)?;
        Ok(Tally::open(to)?.0.note(*self.commits.lock())?)
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("the engine ends with the catalog")
    }

    fn keyspace(&self, table: Table) -> &Keyspace {
        &self.engine().tables[table as usize]
    }

    /// Nothing is committed any more: what the engine leaves when the catalog is dropped is what the next
    /// [`open`](Self::open) wants to find. Called when everything is persisted.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// The value under `key`, as of the last commit.
    ///
    /// # Errors
    ///
    /// [`Error::Catalog`] when the engine cannot read.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Value>> {
        contain(|| Ok(self.keyspace(table).get(key)?))
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
        let mut pairs = Some(self.keyspace(table).range::<Vec<u8>, _>((low, high)));
        std::iter::from_fn(move || {
            let next =
                contain(|| Ok(pairs.as_mut().and_then(Iterator::next).map(|guard| guard.into_inner())));
            let pair = match next {
                Ok(pair) => pair?.map_err(Error::from),
                Err(error) => Err(error),
            };
            if pair.is_err() {
                // What comes behind is not asked for: an iterator that met damage may be in any state.
                pairs = None;
            }
            Some(pair.map(|(key, value)| (key[prefix.len()..].to_vec(), value)))
        })
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch<'_> {
        // Flushed to the operating system with the commit: that is what process death cannot take back.
        Batch { catalog: self, inner: self.engine().database.batch().durability(Some(PersistMode::Buffer)) }
    }

    /// Makes every commit that has returned survive a power cut: one flush of the journal, or none when all of them
    /// are known to. Commits go on meanwhile.
    ///
    /// # Errors
    ///
    /// I/O errors, [`Error::Catalog`]. What is on disk is then unknown: the caller commits nothing more.
    pub fn persist(&self) -> Result<()> {
        let durable = *self.commits.lock();
        if self.persisted.load(Ordering::Acquire) >= durable {
            return Ok(());
        }
        match self.active.journal(&self.dir) {
            Ok(journal) => journal.sync_data()?,
            // Such as too many open files: the engine has its journal open.
            Err(_) => self.engine().database.persist(PersistMode::SyncData)?,
        }
        self.persisted.fetch_max(durable, Ordering::AcqRel);
        Ok(self.tally.note(durable)?)
    }

    /// Whether every commit that has returned is known to survive a power cut.
    #[must_use]
    pub fn is_persisted(&self) -> bool {
        self.persisted.load(Ordering::Acquire) >= *self.commits.lock()
    }

    /// Bytes that the catalog takes on disk.
    ///
    /// # Errors
    ///
    /// [`Error::Catalog`] when the engine cannot read its folder.
    pub fn disk_bytes(&self) -> Result<u64> {
        Ok(self.engine().database.disk_space()?)
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        // Its threads have ended when this returns.
        drop(self.engine.take());
        if *self.closed.get_mut()
            && self.scratch.is_none()
            && let Err(error) = seal::write(&self.dir, true)
        {
            tracing::warn!(%error, "the next open of the catalog does not check its files");
        }
    }
}

/// Makes `to` a copy of the catalog in `from`, which nobody has open, and makes it durable but for its own entry.
///
/// # Errors
///
/// [`Error::Corrupt`] when files are not those that were closed; I/O errors. What was made of `to` stays.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    seal::check(from)?;
    checkpoint::copy(from, to, Tables::Linked)?;
    sync_copy(to)
}

/// Closes the catalog that [`Catalog::checkpoint`] left in `dir`, and makes it survive a power cut, but for its own
/// entry.
///
/// # Errors
///
/// I/O errors.
pub fn sync_copy(dir: &Path) -> Result<()> {
    seal::write(dir, false)?;
    checkpoint::sync(dir)
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
    pub fn commit(mut self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut commits = self.catalog.commits.lock();
        let number = *commits + 1;
        self.put(Table::Meta, COMMITS, record::encode(&number));
        self.inner.commit()?;
        *commits = number;
        Ok(())
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
    drop(Catalog::open_as_it_is(&new, CACHE_BYTES)?);
    nix::unistd::syncfs(File::open(&new)?).map_err(io::Error::from)?;
    fs::rename(&new, dir)?;
    match dir.parent() {
        Some(parent) => Ok(File::open(parent)?.sync_all()?),
        None => Ok(()),
    }
}

/// Calls the engine, which asserts what damaged files may contradict: that is an error of the catalog, and not the
/// end of the thread that met it.
fn contain<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().map(String::as_str);
        let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
        Err(Error::Corrupt { file: "catalog".into(), offset: 0, what: format!("the engine refuses: {what}") })
    })
}

/// The newest journal below the store directory, and its length: where it was cut off.
fn end_of_journal(dir: &Path) -> (String, u64) {
    let end = || {
        let path = journal::newest(dir).ok()??;
        let name = path.file_name()?.to_string_lossy();
        Some((format!("catalog/{name}"), path.metadata().ok()?.len()))
    };
    end().unwrap_or_else(|| ("catalog".into(), 0))
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

    fn put(catalog: &Catalog, key: &str, value: &[u8]) {
        let mut batch = catalog.batch();
        batch.put(Table::Inline, key, value);
        batch.commit().unwrap();
    }

    /// Name of the newest journal.
    fn journal_of(dir: &Path) -> String {
        end_of_journal(dir).0.replace("catalog/", "")
    }

    fn keys(catalog: &Catalog) -> Vec<String> {
        let pairs = catalog.scan(Table::Inline, b"", None);
        pairs.map(|pair| String::from_utf8(pair.unwrap().0).unwrap()).collect()
    }

    #[test]
    fn a_checkpoint_has_what_was_committed_and_a_copy_of_it_leaves_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&dir.path().join("catalog")).unwrap();
        let mut want: Vec<String> = Vec::new();
        for round in 0..6 {
            // More than a memtable holds, so that tables and journals change while copies are made.
            for number in 0..40 {
                let key = format!("{round}-{number:03}");
                put(&catalog, &key, &vec![round; 300 << 10]);
                want.push(key);
            }
            let checkpoint = dir.path().join(format!("checkpoint-{round}"));
            catalog.checkpoint(&checkpoint).unwrap();
            sync_copy(&checkpoint).unwrap();
            for _ in 0..2 {
                let copy = Catalog::open_copy(&checkpoint, dir.path(), false).unwrap();
                assert_eq!(keys(&copy), want, "round {round}");
                put(&copy, "only in the copy", b"x");
            }
        }
        drop(catalog);
        let first = Catalog::open_copy(&dir.path().join("checkpoint-0"), dir.path(), false).unwrap();
        assert_eq!(keys(&first), want[..40]);
        drop(first);
        // What is gone of a copy is missed, as in any catalog.
        let checkpoint = dir.path().join("checkpoint-5");
        let journal = checkpoint.join(journal_of(&checkpoint));
        File::options().write(true).open(journal).unwrap().set_len(0).unwrap();
        let lost = Catalog::open_copy(&checkpoint, dir.path(), false).unwrap_err();
        assert!(matches!(lost, Error::Corrupt { .. }), "{lost}");
        let left = std::fs::read_dir(dir.path()).unwrap();
        let left = left.filter(|entry| entry.as_ref().unwrap().path().to_string_lossy().contains("vexfs-"));
        assert_eq!(left.count(), 0, "copies vanish");
    }

    #[test]
    fn a_catalog_that_lost_what_was_durable_is_refused_until_that_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let commit = |catalog: &Catalog, key: &[u8]| {
            let mut batch = catalog.batch();
            batch.put(Table::Meta, key, [7; 1000]);
            batch.commit().unwrap();
        };
        let catalog = Catalog::open(dir.path()).unwrap();
        for key in [b"a", b"b", b"c"] {
            commit(&catalog, key);
        }
        catalog.persist().unwrap();
        commit(&catalog, b"d");
        drop(catalog);
        let (journal, len) = end_of_journal(dir.path());
        let journal = dir.path().join(Path::new(&journal).file_name().unwrap());
        // What was not persisted may be missing.
        let file = std::fs::OpenOptions::new().write(true).open(&journal).unwrap();
        file.set_len(len - 10).unwrap();
        drop(Catalog::open(dir.path()).unwrap());
        // In the middle of the second.
        file.set_len(1500).unwrap();
        match Catalog::open(dir.path()) {
            Err(Error::Corrupt { file, what, .. }) => {
                assert!(file.ends_with(".jnl") && what.contains("commit 1, and 3 were"), "{file}: {what}");
            }
            other => panic!("{other:?}"),
        }
        let shortened = Catalog::open_shortened(dir.path()).unwrap();
        assert!(shortened.get(Table::Meta, b"a").unwrap().is_some());
        assert_eq!(shortened.get(Table::Meta, b"b").unwrap(), None);
        commit(&shortened, b"b");
        drop(shortened);
        Catalog::open(dir.path()).unwrap();
    }

    #[test]
    fn the_successor_of_a_prefix_carries_over_full_bytes() {
        assert_eq!(successor(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(successor(b"\xff"), None);
        assert_eq!(successor(b""), None);
    }
}
