//! The store: where the bytes of files lie. Slots in mmap segments for small files and vectors, blobs for
//! the rest, and the lock that keeps a second process away.
//!
//! The store knows lengths and checksums, not formats: whether a slot holds a vector is the business of
//! the rooms above. Which slots and blobs are live is in the catalog; the store is told when it opens
//! ([`Store::adopt`]) and never guesses from bytes.
//!
//! **Invariant:** a slot is written once, before anything names it, and its bytes never change while any
//! [`Slot`] for it lives or any durable catalog commit may name it. Freed space goes through a quarantine
//! that [`Store::reclaim`] empties after a durable commit.
//!
//! What callers do for it, in this order:
//!
//! 1. *Open:* [`Store::open`], then open the catalog in [`Store::catalog_dir`], then [`adopt`](Store::adopt)
//!    everything that the catalog names, then [`sweep`](Store::sweep). `open` has made durable what a process
//!    left that died, so the catalog that is adopted cannot fall back to an older state that names more.
//! 2. *Write:* write the slot or blob, then commit the name.
//! 3. *Free:* commit the removal of the name; when that has returned, [`Slot::doom`],
//!    [`free_slot`](Store::free_slot) or [`drop_blob`](Store::drop_blob).
//! 4. *Make durable:* [`freed_mark`](Store::freed_mark); [`sync`](Store::sync) and
//!    [`sync_blob`](Store::sync_blob) for every blob that a commit names and that is not durable yet; persist
//!    the catalog; [`reclaim`](Store::reclaim) with the mark.
//! 5. *End:* the same, then [`close`](Store::close).
//!
//! **Snapshots** name slots and blobs as well. What they name is not reused, removed or written in place, however
//! the newest commit lets go of it: [`Store::share_all`] while nothing changes, when one is taken;
//! [`Store::hold`] between the adoptions and the sweep, when the store opens; [`Store::share_only`] when one is gone.
//! The file `snapshots` has their directories.
//!
//! A store on a filesystem that is **read-only** opens for reading: nothing of it is made, swept or written.

mod blob;
mod check;
mod damage;
mod directory;
mod handles;
mod lock;
mod quarantine;
mod reading;
mod rest;
pub mod rows;
mod segment;
mod shared;
mod slots;
mod snapshots;
mod sums;
mod taken;
mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags};
use parking_lot::Mutex;

pub use self::blob::BlobMap;
pub use self::reading::{BlobReader, BlobSums};
pub use self::rest::{Pages, RestDraft, Rested};
pub use self::shared::Named;
pub use self::slots::Slot;
pub use self::snapshots::Draft;
pub use self::watch::damages;

use self::blob::Blobs;
use self::damage::DamageLog;
use self::directory::Identity;
use self::lock::Lock;
use self::quarantine::Quarantine;
use self::segment::Home;
use self::shared::Shared;
use self::slots::Slots;
use crate::{Error, Result};

/// Where a slot lies and what it must hold. Kept in the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct SlotRef {
    /// Number of the segment file.
    pub segment: u32,
    /// Number of the slot within its segment.
    pub slot: u32,
    /// Length of the content in bytes.
    pub len: u32,
    /// XXH3-64 of the content.
    pub checksum: u64,
}

/// Number of a blob: its file name in the store. Not used again while the store is open, nor while a durable
/// commit may name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct BlobId(pub u64);

/// Largest content that goes into a slot, in bytes: a vector of 16384 f64 with its `.npy` header.
pub const SLOT_MAX: usize = 132 << 10;

/// Where a restored catalog is put together, and where files lie that are worthless when the process ends.
const CATALOG_NEW: &str = "catalog.new";
const SCRATCH: &str = "scratch";

/// The store directory, open and locked. The lock is held until the store and every [`Slot`] of it are gone.
pub struct Store {
    home: Arc<Home>,
    identity: Identity,
    slots: Slots,
    blobs: Blobs,
    /// Held during a sync of slots, so that nobody returns while the sync that covers his is under way.
    syncing: Mutex<()>,
    /// The first failure of a sync: one that succeeds later would say nothing about what was lost.
    failure: OnceLock<String>,
    closed: AtomicBool,
    read_only: bool,
}

impl Store {
    /// Opens the store in `dir`, creating it (mode 0700) and its parents on first use. `holder` is written to
    /// the lock file so that a second process can say who holds it: `pid 4711, mounted at /mnt/v`.
    ///
    /// When the last process to hold the store did not [`close`](Self::close) it, what that process wrote is
    /// made durable first. What was begun and not ended of snapshots, restores and copies is removed.
    ///
    /// On a read-only filesystem none of this happens, and the store must be there.
    ///
    /// # Errors
    ///
    /// [`Error::StoreLocked`]; [`Error::Store`] when the directory belongs to another user, is writable by
    /// others, is a symbolic link, or holds files but no store; [`Error::Version`]; [`Error::Corrupt`] when its
    /// file `VEXFS` is damaged; I/O errors.
    pub fn open(dir: &Path, holder: &str) -> Result<Arc<Self>> {
        let dir = directory::prepare(dir)?;
        let read_only = directory::is_on_read_only_filesystem(&dir).map_err(io)?;
        if read_only {
            if !directory::is_store(&dir) {
                let why = "has no file VEXFS, and its filesystem is read-only".into();
                return Err(Error::Store { path: dir, why });
            }
            let identity = directory::identity(&dir)?;
            let lock = Lock::acquire_for_reading(&dir)?;
            return Self::assemble(dir, lock, identity, read_only);
        }
        let lock = Lock::acquire(&dir, holder)?;
        if lock.last_end_was_unclean() {
            let root = File::open(&dir).map_err(io)?;
            nix::unistd::syncfs(&root).map_err(|errno| io(errno.into()))?;
        }
        let identity = directory::identity(&dir)?;
        let mut any_made = false;
        for name in ["segments", "blobs", "index"] {
            any_made |= directory::make_dir(&dir.join(name)).map_err(io)?;
        }
        if any_made {
            directory::sync_dir(&dir).map_err(io)?;
        }
        snapshots::clean(&dir).map_err(io)?;
        for name in [CATALOG_NEW, SCRATCH] {
            snapshots::remove_dir(&dir.join(name)).map_err(io)?;
        }
        directory::make_dir(&dir.join(SCRATCH)).map_err(io)?;
        Self::assemble(dir, lock, identity, read_only)
    }

    fn assemble(dir: PathBuf, lock: Lock, identity: Identity, read_only: bool) -> Result<Arc<Self>> {
        let damage = Arc::new(DamageLog::default());
        let blobs = Blobs::open(&dir, read_only, Arc::clone(&damage))?;
        let (quarantine, shared) = (Quarantine::default(), Shared::default());
        let home = Arc::new(Home { dir, lock, quarantine, shared, damage });
        let slots = Slots::open(Arc::clone(&home))?;
        Ok(Arc::new(Self {
            home,
            identity,
            slots,
            blobs,
            syncing: Mutex::new(()),
            failure: OnceLock::new(),
            // Refused for the same reasons: nothing new may be written.
            closed: AtomicBool::new(read_only),
            read_only,
        }))
    }

    /// Whether the last process to hold the store ended without [`close`](Self::close), or the power was cut.
    #[must_use]
    pub fn last_end_was_unclean(&self) -> bool {
        self.home.lock.last_end_was_unclean()
    }

    /// The store directory, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.home.dir
    }

    /// The directory that the catalog makes and keeps its files in.
    #[must_use]
    pub fn catalog_dir(&self) -> PathBuf {
        self.home.dir.join("catalog")
    }

    /// Where a catalog is put together that is to take the place of the one in use.
    #[must_use]
    pub fn new_catalog_dir(&self) -> PathBuf {
        self.home.dir.join(CATALOG_NEW)
    }

    /// Puts the catalog in [`new_catalog_dir`](Self::new_catalog_dir), which is durable but for its entry, in the
    /// place of the one in use, and removes that. Whenever the process or the power ends, the store has the one or
    /// the other. Neither is open.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] on a filesystem that cannot exchange two names; I/O errors.
    pub fn exchange_catalogs(&self) -> Result<()> {
        let (new, old) = (self.new_catalog_dir(), self.catalog_dir());
        match nix::fcntl::renameat2(AT_FDCWD, &new, AT_FDCWD, &old, RenameFlags::RENAME_EXCHANGE) {
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                return Err(Error::Unsupported("exchanging two directories on the store's filesystem"));
            }
            other => other.map_err(|errno| io(errno.into()))?,
        }
        directory::sync_dir(&self.home.dir).map_err(io)?;
        snapshots::remove_dir(&new).map_err(io)
    }

    /// A directory for files that are worthless when the process ends.
    #[must_use]
    pub fn scratch_dir(&self) -> PathBuf {
        if self.read_only { std::env::temp_dir() } else { self.home.dir.join(SCRATCH) }
    }

    /// Whether the filesystem that the store is on cannot be written.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The directory for checkpoints of graphs. It exists.
    #[must_use]
    pub fn index_dir(&self) -> PathBuf {
        self.home.dir.join("index")
    }

    /// Removes files from the directory for checkpoints, durably.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn remove_index_files(&self, names: &[String]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let dir = self.index_dir();
        names.iter().try_for_each(|name| std::fs::remove_file(dir.join(name))).map_err(io)?;
        directory::sync_dir(&dir).map_err(io)
    }

    /// Refuses a store that has content and no catalog. A new one would name none of it, and all of it would be taken for
    /// leftovers. Called before anything is adopted.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with what there is; I/O errors.
    pub fn check_has_catalog(&self) -> Result<()> {
        let is_there = match std::fs::read_dir(self.catalog_dir()) {
            Ok(mut files) => files.next().is_some(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(io(error)),
        };
        let (blobs, segments) = (self.blobs.unadopted(), self.slots.files());
        let snapshots = self.snapshot_names()?.len();
        if is_there || blobs + segments + snapshots == 0 {
            return Ok(());
        }
        let what = format!(
            "is not there, and the store has {blobs} blobs, {segments} segments, {snapshots} snapshots"
        );
        Err(Error::Corrupt { file: "catalog".into(), offset: 0, what })
    }

    /// The store's identity: 32 hexadecimal digits, random, given on first use.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    /// Says in the store that this program writes it: an older one, which would write blobs and leave the checksums
    /// beside them, does not open it any more.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn upgrade(&self) -> Result<()> {
        self.identity.upgrade(&self.home.dir).map_err(io)
    }

    /// Tells the store that the catalog names this slot. Called for every live slot at open, before the first
    /// [`write_slot`](Self::write_slot) and before any other use of the slot; naming a slot again is fine. Two
    /// different references to one slot are not told apart here: the checksum of one of them fails when read.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the segment is missing or damaged, or the reference does not fit it.
    pub fn adopt(&self, at: SlotRef) -> Result<()> {
        self.slots.adopt(at)
    }

    /// The long-lived handle of a live slot, for rows: the one that somebody has already, if there is one. Does not
    /// verify the checksum.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the reference does not fit its segment, the slot is free, or its handle is of another
    /// content.
    pub fn slot(&self, at: SlotRef) -> Result<Arc<Slot>> {
        self.slots.slot(at)
    }

    /// Appends `range` of a live slot's content to `into`, after verifying the checksum of the whole; of a
    /// range that reaches past the content, what there is. While it runs the slot's segment is pinned: a slot
    /// freed meanwhile is not reused.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`], with `into` as it was. A slot that was freed and reused between the caller's look
    /// into the catalog and this call shows as a free slot or a wrong checksum too: a caller without a lock on
    /// the file's inode looks again whether the catalog still has the same reference.
    pub fn read_slot(&self, at: SlotRef, range: Range<usize>, into: &mut Vec<u8>) -> Result<()> {
        self.slots.read(at, range, into)
    }

    /// Frees a slot that no [`Slot`] handle was doomed for: into the quarantine, which it does not leave while somebody
    /// has its handle. Called after the commit that no longer names it has returned.
    pub fn free_slot(&self, at: SlotRef) {
        self.slots.free(at);
    }

    /// Tells the store that the catalog names this blob (bounds the next id; [`sweep`](Self::sweep) spares it).
    pub fn adopt_blob(&self, id: BlobId) {
        self.blobs.adopt(id);
    }

    /// Removes what nothing adopted: blobs of an unclean end, and segments whose creation was cut short. Called
    /// once, after the adoptions at open.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn sweep(&self) -> Result<()> {
        self.blobs.sweep()?;
        self.slots.sweep()
    }

    /// Writes `content` (1..=[`SLOT_MAX`] bytes) into a fresh slot. It is not durable before
    /// [`sync`](Self::sync). A slot that no commit ends up naming is [doomed](Slot::doom) by the caller, or
    /// stays taken until the store is opened again.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`]; [`Error::Invalid`] and [`Error::TooLarge`] for a length that no slot has;
    /// [`Error::ReadOnly`] after [`close`](Self::close); I/O errors.
    pub fn write_slot(&self, content: &[u8]) -> Result<Arc<Slot>> {
        self.refuse_when_closed()?;
        self.slots.write(content)
    }

    /// Creates an empty blob and opens it for reading and writing.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], [`Error::ReadOnly`] after [`close`](Self::close), I/O errors, also that of too many open
    /// files, while some are left for the volume itself.
    pub fn create_blob(&self) -> Result<(BlobId, File)> {
        self.refuse_when_closed()?;
        self.blobs.create()
    }

    /// Opens a blob for reading and writing.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when its file is missing; I/O errors.
    pub fn open_blob(&self, id: BlobId) -> Result<File> {
        self.blobs.open_blob(id, true)
    }

    /// [`open_blob`](Self::open_blob) for a file that stays open while a user has it open.
    ///
    /// # Errors
    ///
    /// As there; also that of too many open files, while some are left for the volume itself.
    pub fn open_blob_to_keep(&self, id: BlobId) -> Result<File> {
        self.blobs.open_blob_to_keep(id)
    }

    /// A new blob with the same content and length: shared extents where the filesystem can, a copy where not,
    /// with holes where the source has holes. Nobody writes the source meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the blob's file is missing; [`Error::NoSpace`]; [`Error::ReadOnly`] after
    /// [`close`](Self::close); I/O errors. Nothing is left of the new blob then.
    pub fn clone_blob(&self, id: BlobId) -> Result<(BlobId, File)> {
        self.refuse_when_closed()?;
        self.blobs.clone_blob(id)
    }

    /// Reads a blob, sealed or not.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when its file is missing; I/O errors.
    pub fn read_blob(&self, id: BlobId) -> Result<BlobReader> {
        BlobReader::new(id, self.blobs.open_blob(id, false)?)
    }

    /// Maps for reading a blob that is sealed, or about to be: nobody writes it.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when its file is missing; I/O errors.
    pub fn map_blob(&self, id: BlobId) -> Result<Arc<BlobMap>> {
        self.blobs.map(id).map(Arc::new)
    }

    /// Gives a blob that nobody writes any more the checksums that were made of it: whoever maps or reads it from now on
    /// [checks](BlobMap::check) it. They are durable with the next [`sync_blob`](Self::sync_blob) of it; before a
    /// commit that relies on the seal is, the caller calls that.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], I/O errors.
    pub fn seal_blob(&self, id: BlobId, sums: &BlobSums) -> Result<()> {
        self.refuse_when_closed()?;
        self.blobs.seal(id, sums)
    }

    /// Keeps an error that is damage for [`damage`](Self::damage). What handles and maps find is kept without that.
    pub fn note_damage(&self, error: Error) -> Error {
        if matches!(error, Error::Corrupt { .. }) {
            // Which blob it is in is not known here, and damage is rare.
            self.blobs.compared.lock().clear();
        }
        self.home.damage.note(error)
    }

    /// What was found damaged since the store was opened: file, offset, what is wrong; and how many places more.
    #[must_use]
    pub fn damage(&self) -> (Vec<(String, u64, String)>, u64) {
        self.home.damage.list()
    }

    /// The blob is no longer named by the newest commit: its file is removed by the [`reclaim`](Self::reclaim)
    /// that follows a durable commit. Open files and maps of it stay valid. Called after that newest commit has
    /// returned.
    pub fn drop_blob(&self, id: BlobId) {
        self.home.quarantine.drop_blob(id);
    }

    /// Makes a blob durable: the content and length that `file` has now, and its entry in the store.
    ///
    /// # Errors
    ///
    /// I/O errors; [`Error::Poisoned`] once any sync of the store has failed.
    pub fn sync_blob(&self, id: BlobId, file: &File) -> Result<()> {
        self.refuse_when_poisoned()?;
        self.blobs.sync(id, file).inspect_err(|error| self.poison(error))
    }

    /// Makes every slot written so far durable. Blobs are synced by whoever holds their file.
    ///
    /// # Errors
    ///
    /// I/O errors; [`Error::Poisoned`] once any sync of the store has failed: the kernel reports a lost write
    /// once, and a sync after that would succeed without the data.
    pub fn sync(&self) -> Result<()> {
        let _syncing = self.syncing.lock();
        self.refuse_when_poisoned()?;
        self.slots.sync().inspect_err(|error| self.poison(error))
    }

    /// Marks what was freed up to now, to be passed to [`reclaim`](Self::reclaim) once the catalog has been
    /// made durable by a call that began after this one.
    #[must_use]
    pub fn freed_mark(&self) -> u64 {
        self.home.quarantine.mark()
    }

    /// Makes space freed before `mark` usable again, unless a snapshot names it: removes blobs, returns slots to the
    /// free list. A slot that has a handle, or is in a segment that is being read, waits for the next call.
    pub fn reclaim(&self, mark: u64) {
        self.slots.reclaim(mark);
        for id in self.home.quarantine.take_blobs(mark) {
            if !self.home.shared.hold_blob(id) {
                self.blobs.remove(id);
            }
        }
    }

    /// A snapshot names everything that is live now. Nothing is written, freed or committed meanwhile.
    pub fn share_all(&self) {
        self.home.shared.add(self.slots.live().into_iter(), self.blobs.end());
    }

    /// Snapshots name these: what nothing else names is held for them. Called once, between the adoptions and the
    /// sweep.
    pub fn hold(&self, named: Named) {
        let slots = self.slots.hold(&named);
        let blobs: Vec<BlobId> = named.blobs().filter(|&id| self.blobs.is_orphan(id)).collect();
        for id in named.blobs() {
            self.blobs.adopt(id);
        }
        self.home.shared.replace(named);
        for freed in slots {
            self.home.shared.hold_slot(freed);
        }
        for id in blobs {
            self.home.shared.hold_blob(id);
        }
    }

    /// From now on snapshots name these and no others. What was held for one that is gone is freed, into the
    /// quarantine.
    pub fn share_only(&self, named: Named) {
        let (slots, blobs) = self.home.shared.replace(named);
        for freed in slots {
            self.home.quarantine.free_slot(freed);
        }
        for id in blobs {
            self.home.quarantine.drop_blob(id);
        }
    }

    /// Whether a blob belongs to the newest commit alone, so that it may be written in place. Otherwise a snapshot
    /// names it as well, and whoever wants to write works on a [clone](Self::clone_blob).
    #[must_use]
    pub fn may_write_in_place(&self, id: BlobId) -> bool {
        !self.home.shared.has_blob(id)
    }

    /// Whether anybody may write a blob without asking, because it is open for writing or mapped so. Those who have it
    /// open through [`open_blob`](Self::open_blob) count.
    #[must_use]
    pub fn is_blob_open_for_writing(&self, id: BlobId) -> bool {
        self.blobs.is_open_for_writing(id)
    }

    /// What snapshots alone name.
    #[must_use]
    pub fn held(&self) -> Named {
        self.home.shared.held_alone()
    }

    /// Bytes that are taken for snapshots alone: of blobs as if they shared no extents.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let (slots, blobs) = self.home.shared.held();
        self.slots.bytes_of(&slots) + self.blobs.bytes_of(&blobs)
    }

    /// Total, free and available bytes of the filesystem below the store, and its inode counts.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn space(&self) -> Result<Space> {
        // By the descriptor: a path is copied to the stack, a kilobyte of it.
        let stat = nix::sys::statvfs::fstatvfs(self.home.lock.file()).map_err(|errno| io(errno.into()))?;
        Ok(Space {
            block_bytes: stat.fragment_size(),
            blocks: stat.blocks(),
            free: stat.blocks_free(),
            available: stat.blocks_available(),
            files: stat.files(),
            files_free: stat.files_free(),
        })
    }

    /// Records an orderly end: syncs the slots and notes that the next [`open`](Self::open) has nothing to make
    /// durable. Called last, when every blob and the catalog are durable; afterwards nothing new is written.
    ///
    /// # Errors
    ///
    /// As [`sync`](Self::sync). The end then counts as unclean.
    pub fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::SeqCst);
        if self.read_only {
            return Ok(());
        }
        self.sync()?;
        self.home.lock.mark_clean().map_err(io)
    }

    fn refuse_when_closed(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) { Err(Error::ReadOnly) } else { Ok(()) }
    }

    fn refuse_when_poisoned(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |reason| Err(Error::Poisoned { reason: reason.clone() }))
    }

    /// Keeps the first failure of a sync.
    fn poison(&self, error: &Error) {
        self.failure.get_or_init(|| error.to_string());
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.home.dir)
            .field("id", &self.identity.id)
            .finish_non_exhaustive()
    }
}

/// What the filesystem below the store has, as `statvfs` tells it.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Block size in bytes; the three block counts are in it.
    pub block_bytes: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Blocks that an ordinary user may take.
    pub available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}

/// The path of the store that is used when none is named: `$XDG_DATA_HOME/vexfs/default`, or
/// `~/.local/share/vexfs/default`. `None` when the user has no home directory.
#[must_use]
pub fn default_dir() -> Option<PathBuf> {
    default_dir_in(std::env::var_os("XDG_DATA_HOME"), std::env::home_dir())
}

fn default_dir_in(data_home: Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored.
    let data = data_home
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| home.filter(|path| path.is_absolute()).map(|home| home.join(".local/share")))?;
    Some(data.join("vexfs/default"))
}

/// The error for a system call on the store that failed. A full disk and a used up quota are the same to the
/// rooms above.
fn io(error: std::io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => Error::NoSpace,
        _ => Error::Io(error),
    }
}

#[cfg(test)]
mod tests;
