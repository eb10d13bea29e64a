//! The engine behind the catalog: fjall keyspaces, one for each [`Table`], sharing one journal.

use std::any::Any;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::ops::{Bound, Deref};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use tempfile::TempDir;

use super::active::Active;
use super::batch::{Batch, Item};
use super::checkpoint::{self, Tables};
use super::journal::{Held, Place};
use super::recent::Recent;
use super::revival::{Revivals, is_full};
use super::tail::{Commits, Tail};
use super::tally::{self, Tally};
use super::{COMMITS, Table, journal, log, manifests, seal};
use crate::format::record;
use crate::pool::shallow::aside;
use crate::{Error, Result};

/// Memory for cached blocks. The catalog of a million small files is a few hundred MiB on disk; this holds
/// its working set without counting against the vectors.
const CACHE_BYTES: u64 = 32 << 20;

/// The same for a copy that is only read.
const COPY_CACHE_BYTES: u64 = 8 << 20;

/// Memory for rows not yet written to a sorted table, per keyspace: with more the engine asks its own thread to begin
/// another memtable, with each commit again.
pub(super) const ENGINE_MEMTABLE_BYTES: u64 = 8 << 20;

/// With so many bytes a memtable is given to the engine's thread to be written: before the engine asks, because its
/// requests fill a queue while the thread is busy, and the thread, which is to put one there as well, waits for itself.
pub(super) const MEMTABLE_BYTES: u64 = 6 << 20;

/// So many memtables of one table wait to be written before a commit waits for them, and how often it looks. The engine
/// waits by itself, with no end, when there is one more.
const MEMTABLES: usize = 3;
const FLUSH_POLL: Duration = Duration::from_millis(2);

/// Threads of the engine, which write tables and merge them.
const THREADS: usize = 1;

/// Journals with fewer bytes stay as they are when room is short.
const WORTH_EMPTYING: u64 = 8 << 20;

/// What tables take beside their rows, at most.
pub(super) const TABLE_OVERHEAD: u64 = 1 << 20;

/// A directory of the catalog for a copy that the engine is tried on.
const TRIAL: &str = "trial";

/// So many newest keys a scan copies.
const NEWEST_COPIED: usize = 256;

/// Bytes of a key or value read from the catalog.
pub type Value = fjall::Slice;

/// The catalog. See the [module](super) for its promises.
pub struct Catalog {
    /// `None` while it is dropped, and when it could not be [opened anew](super::revival). Whoever reads holds it, for
    /// as long as a scan takes; it is exchanged when nobody does.
    pub(super) engine: RwLock<Option<Engine>>,
    pub(super) dir: PathBuf,
    cache_bytes: u64,
    /// The files are to be listed once the engine has ended.
    closed: AtomicBool,
    pub(super) commits: Mutex<Commits>,
    /// Written by who holds `commits`.
    pub(super) tail: RwLock<Tail>,
    /// The number of the last commit that is known to be on disk; 0 before the first sync.
    persisted: AtomicU64,
    pub(super) active: Active,
    pub(super) recent: Recent,
    tally: Tally,
    pub(super) revivals: Revivals,
    /// What a copy lies in, which goes after the engine.
    scratch: Option<TempDir>,
}

/// The engine and its tables, in the order of their numbers.
pub(super) struct Engine {
    database: Database,
    tables: Vec<Keyspace>,
}

/// A key without the prefix that was scanned for.
#[derive(Clone, Debug)]
pub struct Suffix {
    key: Value,
    from: usize,
}

impl Deref for Suffix {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.key[self.from..]
    }
}

/// What a scan has still to return. The pairs go before the engine is let go of.
#[derive(Default)]
struct Scan<'a> {
    /// The last that is returned: there is no engine, or it failed.
    refused: Option<Error>,
    /// What the tail has, which is newer.
    newest: VecDeque<(Value, Option<Value>)>,
    /// What the engine has.
    pairs: Option<fjall::Iter>,
    /// The next of them, as the engine gives it.
    met: Option<fjall::Guard>,
    /// The same, read.
    ahead: Option<(Value, Value)>,
    /// Bytes of the prefix, which keys are returned without.
    prefix: usize,
    engine: Option<MappedRwLockReadGuard<'a, Engine>>,
}

/// What comes next in a scan.
enum Taken {
    Pair(Suffix, Value),
    /// A key that the newest commits have removed.
    Removed,
    Nothing,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens the catalog in `dir`, creating it on first use and recovering it after an unclean end: its journal is cut
    /// behind the last whole commit when no later one was durable. What is refused stays as it is.
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
        let held = check_files(dir)?;
        if held.has_rest {
            if held.last.is_none() {
                // Only the tables say what there was before.
                on_trial(dir, |copy| Self::open_whole(copy, COPY_CACHE_BYTES))?;
            }
            journal::drop_torn_tail(dir)?;
        }
        Self::open_whole(dir, CACHE_BYTES)
    }

    /// Opens a copy of the catalog in `dir`, which is not changed and must stay as long: nobody has it open. The
    /// copy is made below `scratch` and vanishes with the value.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); I/O errors.
    pub fn open_copy(dir: &Path, scratch: &Path) -> Result<Self> {
        let held = check_files(dir).map_err(missing)?;
        // Before the copy, which reads them: what is wrong with them is damage, and no I/O error.
        manifests::check(dir)?;
        let scratch = tempfile::Builder::new().prefix("vexfs-catalog-").tempdir_in(scratch)?;
        let copy = scratch.path().join("catalog");
        checkpoint::copy(dir, &copy, Tables::Pointed).map_err(missing)?;
        if held.has_rest {
            journal::drop_torn_tail(&copy)?;
        }
        let mut catalog = Self::open_whole(&copy, COPY_CACHE_BYTES)?;
        catalog.scratch = Some(scratch);
        Ok(catalog)
    }

    /// Removes a [copy](Self::open_copy) from the disk before its value goes: the process is about to end, and may do so
    /// while somebody still holds it.
    pub fn remove_copy(&self) {
        if let Some(scratch) = &self.scratch
            && let Err(error) = std::fs::remove_dir_all(scratch.path())
        {
            tracing::warn!(%error, "a copy of the catalog stays in {}", scratch.path().display());
        }
    }

    /// Opens a catalog that has lost commits, for repairs. It is refused by [`open`](Self::open) until it is
    /// [persisted](Self::persist).
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), except for the commits that are gone.
    pub fn open_shortened(dir: &Path) -> Result<Self> {
        seal::check(dir)?;
        // What does not open even so stays as it is.
        on_trial(dir, |copy| Ok(Self::open_as_it_is(copy, COPY_CACHE_BYTES)?.0))?;
        journal::drop_torn_tail(dir)?;
        Ok(Self::open_as_it_is(dir, CACHE_BYTES)?.0)
    }

    /// Opens a catalog that has every commit that was durable.
    fn open_whole(dir: &Path, cache_bytes: u64) -> Result<Self> {
        let (catalog, durable) = Self::open_as_it_is(dir, cache_bytes)?;
        let last = catalog.commits.lock().last;
        if last < durable {
            return Err(lost(end_of_journal(dir), last, durable));
        }
        Ok(catalog)
    }

    /// Opens the catalog. Returns how many commits it should have, too.
    fn open_as_it_is(dir: &Path, cache_bytes: u64) -> Result<(Self, u64)> {
        seal::remove(dir)?;
        let engine = Engine::open(dir, cache_bytes, THREADS)?;
        let (tally, durable) = Tally::open(dir)?;
        let last = engine.commits()?;
        let catalog = Self {
            engine: RwLock::new(Some(engine)),
            dir: dir.to_path_buf(),
            cache_bytes,
            closed: AtomicBool::new(false),
            commits: Mutex::new(Commits::from(last)),
            tail: RwLock::default(),
            persisted: AtomicU64::new(0),
            active: Active::default(),
            recent: Recent::new(),
            tally,
            revivals: Revivals::new(dir)?,
            scratch: None,
        };
        // It has blocks ahead from now on. Without a journal to sync, `persist` leaves that to the engine.
        drop(catalog.active.journals(&catalog.dir));
        catalog.recover_tail()?;
        Ok((catalog, durable))
    }

    /// Opens the engine on the files as they are now.
    pub(super) fn open_engine(&self) -> Result<Engine> {
        Engine::open(&self.dir, self.cache_bytes, THREADS)
    }

    /// Writes what only the journals have to tables and ends the journals, which have what is in tables as well: up to
    /// 64 MB. The engine is closed. False when there is no room for it, or too little to gain; all is as it was then.
    ///
    /// # Errors
    ///
    /// I/O errors; [`Error::Corrupt`].
    pub(super) fn empty_journals(&self, free_bytes: u64) -> Result<bool> {
        if journal::bytes(&self.dir)? < WORTH_EMPTYING {
            return Ok(false);
        }
        // Nobody merges tables meanwhile, for which there may be no room.
        let engine = Engine::open(&self.dir, self.cache_bytes, 0)?;
        if free_bytes < engine.unwritten_bytes() + TABLE_OVERHEAD || !engine.write_tables()? {
            return Ok(false);
        }
        drop(engine);
        journal::empty(&self.dir)?;
        Ok(true)
    }

    /// Makes `to`, which is not there yet, a catalog with everything that is committed now. Nobody commits
    /// meanwhile. It is not whole before [`sync_copy`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`]; I/O errors; what was made of `to` stays.
    pub fn checkpoint(&self, to: &Path) -> Result<()> {
        let last = {
            let mut commits = self.commits.lock();
            self.give(&mut commits)?;
            commits.last
        };
        checkpoint::copy(&self.dir, to, Tables::Linked)?;
        Ok(Tally::open(to)?.0.note(last)?)
    }

    /// The engine. A thread may have it twice: who wants it alone does not wait for long at a time.
    pub(super) fn engine(&self) -> Result<MappedRwLockReadGuard<'_, Engine>> {
        self.engine_if_any().ok_or_else(given_up)
    }

    /// Apart, and without the error that takes more room than the engine: records are read deep in the stack.
    #[inline(never)]
    fn engine_if_any(&self) -> Option<MappedRwLockReadGuard<'_, Engine>> {
        RwLockReadGuard::try_map(self.engine.read(), Option::as_ref).ok()
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
        match table {
            Table::Inodes => self.get_inode(key),
            _ => self.get_stored(table, key),
        }
    }

    #[inline(never)]
    fn get_inode(&self, key: &[u8]) -> Result<Option<Value>> {
        let missed = match self.recent.look(key) {
            Ok(record) => return Ok(Some(record)),
            Err(missed) => missed,
        };
        let found = self.get_stored(Table::Inodes, key);
        if let (Some(missed), Ok(Some(record))) = (missed, &found) {
            self.recent.leave(missed, record);
        }
        found
    }

    #[inline]
    fn get_stored(&self, table: Table, key: &[u8]) -> Result<Option<Value>> {
        if let Some(newest) = self.get_newest(table, key) {
            return Ok(newest);
        }
        let Some(engine) = self.engine_if_any() else { return Err(given_up()) };
        engine.get(table, key)
    }

    /// What the tail says of `key`, if anything.
    #[inline(never)]
    fn get_newest(&self, table: Table, key: &[u8]) -> Option<Option<Value>> {
        self.tail.read().get(table, key).cloned()
    }

    /// The pairs whose key begins with `prefix`, in key order, beginning after `prefix` + `after`.
    ///
    /// Each item has the key without the prefix. The iterator sees the catalog as it was at the call.
    pub fn scan<'a>(
        &'a self,
        table: Table,
        prefix: &'a [u8],
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<(Suffix, Value)>> + 'a {
        let low = match after {
            Some(after) => Bound::Excluded([prefix, after].concat()),
            None => Bound::Included(prefix.to_vec()),
        };
        let high = match successor(prefix) {
            Some(end) => Bound::Excluded(end),
            None => Bound::Unbounded,
        };
        let mut scan = Scan::new(prefix.len());
        self.begin_scan(table, (low, high), &mut scan);
        scan
    }

    /// Has `scan` begin with what tail and engine have of a range at one moment.
    #[inline(never)]
    fn begin_scan<'a>(
        &'a self,
        table: Table,
        (low, high): (Bound<Vec<u8>>, Bound<Vec<u8>>),
        scan: &mut Scan<'a>,
    ) {
        // With much in the tail the engine is given it first, or every page of a long listing would copy what is left.
        let mut may_give = true;
        loop {
            let tail = self.tail.read();
            let range = (low.as_ref().map(Vec::as_slice), high.as_ref().map(Vec::as_slice));
            scan.newest = tail.range(table, range, if may_give { NEWEST_COPIED } else { usize::MAX });
            if scan.newest.len() < NEWEST_COPIED || !may_give {
                // Nothing goes from the tail to the engine between the two.
                scan.engine = self.engine_if_any();
                match &scan.engine {
                    Some(engine) => {
                        scan.pairs = Some(engine.keyspace(table).range::<Vec<u8>, _>((low, high)))
                    }
                    None => scan.refused = Some(given_up()),
                }
                return;
            }
            drop(tail);
            // Without room, or an engine that works, it is copied.
            may_give = self.give_aside(&mut self.commits.lock()).is_ok();
        }
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// Makes every commit that has returned survive a power cut: one flush of the journal, or none when all of them
    /// are known to. Commits go on meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`]: nothing was done. I/O errors, [`Error::Catalog`]: what is on disk is then unknown, and the
    /// caller commits nothing more.
    pub fn persist(&self) -> Result<()> {
        let durable = {
            let mut commits = self.commits.lock();
            if self.has_persisted(commits.last) {
                return Ok(());
            }
            self.give_aside(&mut commits)?;
            commits.last
        };
        match self.active.journals(&self.dir) {
            Ok(journals) => journals.sync()?,
            // Such as too many open files: the engine has its journal open.
            Err(_) => self.engine()?.persist()?,
        }
        self.persisted.fetch_max(durable, Ordering::AcqRel);
        match self.tally.note(durable) {
            // It may lag.
            Err(error) if is_full(&error) => Ok(()),
            other => Ok(other?),
        }
    }

    /// The number of the last commit that has returned.
    #[must_use]
    pub fn last_commit(&self) -> u64 {
        self.commits.lock().last
    }

    /// Whether the commits up to this number are known to survive a power cut.
    #[must_use]
    pub fn has_persisted(&self, number: u64) -> bool {
        self.persisted.load(Ordering::Acquire) >= number
    }

    /// Bytes that the catalog takes on disk.
    ///
    /// # Errors
    ///
    /// [`Error::Catalog`] when the engine cannot read its folder.
    pub fn disk_bytes(&self) -> Result<u64> {
        Ok(self.engine()?.database.disk_space()?)
    }
}

#[cold]
#[inline(never)]
fn given_up() -> Error {
    Error::Catalog("it could not be opened again after the disk was full".into())
}

impl Drop for Catalog {
    fn drop(&mut self) {
        if let Err(error) = self.give(&mut self.commits.lock()) {
            tracing::warn!(%error, "the newest commits stay in the log");
        }
        // Its threads have ended when this returns.
        drop(self.engine.get_mut().take());
        if *self.closed.get_mut()
            && self.scratch.is_none()
            && let Err(error) = log::remove(&self.dir).and_then(|()| seal::write(&self.dir, true))
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

impl Engine {
    fn open(dir: &Path, cache_bytes: u64, threads: usize) -> Result<Self> {
        manifests::check(dir)?;
        let engine = contain(|| {
            let database =
                Database::builder(dir).cache_size(cache_bytes).worker_threads_unchecked(threads).open()?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(ENGINE_MEMTABLE_BYTES);
            let tables = Table::ALL.iter().map(|table| database.keyspace(table.name(), options));
            let tables = tables.collect::<Result<Vec<_>, _>>()?;
            Ok(Engine { database, tables })
        });
        // Nobody else uses the files: what the engine cannot make sense of is damage.
        engine.map_err(|error| match error {
            Error::Catalog(what) => Error::Corrupt { file: "catalog".into(), offset: 0, what },
            other => other,
        })
    }

    fn keyspace(&self, table: Table) -> &Keyspace {
        &self.tables[table as usize]
    }

    /// The value under `key`. The only way to the engine's own, which is so made part of this: as a function of its
    /// own it would be one more frame below every operation.
    #[inline(never)]
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Value>> {
        contain(|| Ok(self.keyspace(table).get(key)?))
    }

    /// The number of the last commit.
    pub(super) fn commits(&self) -> Result<u64> {
        match self.get(Table::Meta, COMMITS)? {
            Some(bytes) => record::decode("meta", &bytes),
            None => Ok(0),
        }
    }

    /// Applies `items` as what makes the commit `number` the last. One at a time.
    #[inline(never)]
    pub(super) fn commit(&self, items: &[Item], number: u64) -> Result<(), fjall::Error> {
        self.tend_memtables()?;
        // Flushed to the operating system with the commit: that is what process death cannot take back.
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        for Item { table, key, value } in items {
            match value {
                Some(value) => batch.insert(self.keyspace(*table), key.clone(), value.clone()),
                None => batch.remove(self.keyspace(*table), key.clone()),
            }
        }
        batch.insert(self.keyspace(Table::Meta), COMMITS, record::encode(&number));
        batch.commit()
    }

    /// Gives memtables that are large to the engine's thread, which writes them. A commit waits, with no end, while
    /// more than [`MEMTABLES`] of one of its tables wait for that: the thread may have ended for want of room. So it is
    /// waited for here, where that is seen.
    #[inline(never)]
    fn tend_memtables(&self) -> Result<(), fjall::Error> {
        while self.tables.iter().any(|table| table.sealed_memtable_count() >= MEMTABLES) {
            // Says that the engine has failed, if it has; commits are in the file already.
            self.database.persist(PersistMode::Buffer)?;
            std::thread::sleep(FLUSH_POLL);
        }
        let is_large = |table: &&Table| self.memtable_bytes(**table) >= MEMTABLE_BYTES;
        let large: Vec<_> = Table::ALL.iter().filter(is_large).map(|&table| self.keyspace(table)).collect();
        if large.is_empty() {
            return Ok(());
        }
        // It is rare, and goes deep.
        let rotated = aside(|| Ok(large.iter().try_for_each(|table| table.rotate_memtable().map(drop))));
        rotated.map_err(io::Error::other)?
    }

    /// Makes every commit survive a power cut, with the engine's own lock held meanwhile.
    pub(super) fn persist(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    /// Bytes of the rows that no table has, at most.
    fn unwritten_bytes(&self) -> u64 {
        let sealed =
            |table: Table| self.keyspace(table).sealed_memtable_count() as u64 * ENGINE_MEMTABLE_BYTES;
        Table::ALL.iter().map(|&table| sealed(table) + self.memtable_bytes(table)).sum()
    }

    /// Writes all rows to tables, durably; false when the disk is full. The engine has no thread that does.
    fn write_tables(&self) -> Result<bool> {
        for table in &self.tables {
            let written = contain(|| {
                let turn = table.tree.get_flush_lock();
                table.tree.rotate_memtable();
                Ok(table.tree.flush(&turn, 0).map(drop))
            });
            match written? {
                Err(fjall::LsmError::Io(error)) if is_full(&error) => return Ok(false),
                other => other.map_err(fjall::Error::from)?,
            }
        }
        Ok(true)
    }

    /// Bytes of the rows of a table in the memtable that takes the next.
    pub(super) fn memtable_bytes(&self, table: Table) -> u64 {
        self.keyspace(table).tree.active_memtable().size()
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<(Suffix, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.look_ahead();
            match self.take() {
                Ok(Taken::Pair(key, value)) => return Some(Ok((key, value))),
                Ok(Taken::Removed) => {}
                Ok(Taken::Nothing) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Scan<'_> {
    /// On the heap, and no chain of iterators: scans are made deep in the stack of operations.
    #[inline(never)]
    fn new(prefix: usize) -> Box<Self> {
        Box::new(Self { prefix, ..Self::default() })
    }

    /// Has the engine's next pair ahead, if there is one. The engine goes deep, so nothing else is done here.
    #[inline(never)]
    fn look_ahead(&mut self) {
        if let Scan { ahead: None, pairs: Some(pairs), met, .. } = self {
            let asked = contain(|| {
                *met = pairs.next();
                Ok(())
            });
            if let Err(error) = asked {
                self.refused = Some(error);
            }
        }
    }

    /// Takes the first of what the tail has and what is ahead. What both have is the tail's.
    ///
    /// # Errors
    ///
    /// Of the engine. Nothing comes behind: an iterator that met damage may be in any state.
    #[inline(never)]
    fn take(&mut self) -> Result<Taken> {
        let met = match self.refused.take() {
            Some(error) => Err(error),
            None => self.met.take().map(|guard| Ok(guard.into_inner()?)).transpose(),
        };
        match met {
            Ok(None) if self.ahead.is_none() => self.pairs = None,
            Ok(met) => self.ahead = self.ahead.take().or(met),
            Err(error) => {
                self.pairs = None;
                self.newest.clear();
                return Err(error);
            }
        }
        let is_newer = match (self.newest.front(), &self.ahead) {
            (None, None) => return Ok(Taken::Nothing),
            (None, Some(_)) => false,
            (Some(_), None) => true,
            (Some((newest, _)), Some((key, _))) => newest <= key,
        };
        let pair = match is_newer {
            false => self.ahead.take().map(|(key, value)| (key, Some(value))),
            true => self.newest.pop_front(),
        };
        let Some((key, value)) = pair else { return Ok(Taken::Nothing) };
        if is_newer {
            self.ahead.take_if(|(stored, _)| *stored == key);
        }
        Ok(match value {
            Some(value) => Taken::Pair(Suffix { key, from: self.prefix }, value),
            None => Taken::Removed,
        })
    }
}

impl From<fjall::Error> for Error {
    #[cold]
    #[inline(never)]
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Io(error) => Error::Io(error),
            // Its tables say it in another way.
            fjall::Error::Storage(fjall::LsmError::Io(error)) if is_full(&error) => Error::Io(error),
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

/// Compares the files of a catalog that nobody has open with what they must be, before the engine reads them: it ends a
/// journal at the first entry that it cannot read, also where that is damage.
///
/// # Errors
///
/// [`Error::Corrupt`]; I/O errors.
fn check_files(dir: &Path) -> Result<Held> {
    let was_closed = seal::check(dir)?;
    let (held, durable) = (journal::held(dir)?, tally::durable(dir)?);
    let corrupt = |Place { file, offset }, what| Err(Error::Corrupt { file, offset, what });
    match held {
        Held { gap: Some(place), .. } => {
            corrupt(place, "what begins here is no commit, and later journals have some".into())
        }
        Held { last: Some(last), end, .. } if last < durable => Err(lost(end, last, durable)),
        // After a close the note has a number, and the journals have nothing but commits.
        Held { has_rest: true, end, last, .. } if was_closed && durable == 0 => {
            let last = last.unwrap_or_default();
            corrupt(
                end,
                format!("the journal ends with commit {last}, and nothing says how many were durable"),
            )
        }
        held => Ok(held),
    }
}

#[cold]
fn lost(Place { file, offset }: Place, last: u64, durable: u64) -> Error {
    let what = format!("the journal ends with commit {last}, and {durable} were durable");
    Error::Corrupt { file, offset, what }
}

/// The error for a catalog that nobody has open and that cannot be copied: what is not there is damage.
fn missing(error: Error) -> Error {
    match error {
        Error::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            let what = format!("the engine's files are not all there: {error}");
            Error::Corrupt { file: "catalog".into(), offset: 0, what }
        }
        other => other,
    }
}

/// Opens a copy of the catalog in `dir` that ends behind its last whole commit, to see whether that can be done.
fn on_trial(dir: &Path, open: impl FnOnce(&Path) -> Result<Catalog>) -> Result<()> {
    let trial = dir.join(TRIAL);
    let remove = || match fs::remove_dir_all(&trial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // One that was cut short.
    remove()?;
    let opened = checkpoint::copy(dir, &trial, Tables::Pointed).map_err(missing).and_then(|()| {
        journal::drop_torn_tail(&trial)?;
        open(&trial).map(drop)
    });
    remove()?;
    opened
}

/// Calls the engine, which asserts what damaged files may contradict: that is an error of the catalog, and not the
/// end of the thread that met it.
#[inline(always)]
fn contain<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result,
        Err(panic) => Err(refusal(panic.as_ref())),
    }
}

#[cold]
#[inline(never)]
fn refusal(panic: &(dyn Any + Send)) -> Error {
    let what = panic.downcast_ref::<String>().map(String::as_str);
    let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
    Error::Corrupt { file: "catalog".into(), offset: 0, what: format!("the engine refuses: {what}") }
}

/// The newest journal, and its length: where it was cut off.
pub(super) fn end_of_journal(dir: &Path) -> Place {
    let end = || {
        let path = journal::newest(dir).ok()??;
        let name = path.file_name()?.to_string_lossy();
        Some(Place { file: format!("catalog/{name}"), offset: path.metadata().ok()?.len() })
    };
    end().unwrap_or_default()
}

/// The smallest key that is greater than every key beginning with `prefix`.
pub(super) fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}
