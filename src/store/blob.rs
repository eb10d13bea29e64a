//! Blobs: files of their own for content that no slot holds, in 256 directories by the low byte of their
//! number.
//!
//! A blob's bytes are its owner's business; this room creates, copies, maps and removes. Which blobs are live
//! is told by the adoptions at open.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, MmapOptions};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Whence, lseek};
use parking_lot::Mutex;

use super::damage::DamageLog;
use super::directory::{create_file, make_dir, open_file, sync_dir};
use super::sums::{Made, Sums};
use super::watch::Watch;
use super::{BlobId, BlobSums, io as store_error};
use crate::{Error, Result};

/// Bytes copied at once where the kernel cannot copy by itself.
const COPY_BYTES: usize = 64 << 10;

/// The command of `fcntl` that chooses the signal for a broken lease, from `asm-generic/fcntl.h`.
const F_SETSIG: i32 = 10;

/// Descriptors that no user's open file takes.
const OWN_FILES: u64 = 128;

/// All blobs of a store.
#[derive(Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
    next: AtomicU64,
    /// Nothing of the filesystem below can be changed.
    read_only: bool,
    /// Blobs found at open and not adopted since; `None` after the sweep.
    orphans: Mutex<Option<HashSet<u64>>>,
    /// Files of checksums that were found at open and belong to no blob or are half made; none after the sweep.
    lone: Mutex<HashMap<u64, Vec<PathBuf>>>,
    /// For each of the 256 directories.
    entries: Box<[Entries]>,
    /// Blobs that were written since the store was opened, or compared with their checksums from end to end.
    pub(super) compared: Mutex<HashSet<u64>>,
    damage: Arc<DamageLog>,
}

/// How far a directory's entries are durable. They count as one change at open: the last process may have
/// ended before it synced them.
#[derive(Debug)]
pub(super) struct Entries {
    pub(super) made: AtomicU64,
    synced: AtomicU64,
}

impl Blobs {
    /// Opens the blobs below the store directory, making the directories for them on first use unless it is
    /// `read_only`.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub(super) fn open(store_dir: &Path, read_only: bool, damage: Arc<DamageLog>) -> Result<Self> {
        let dir = store_dir.join("blobs");
        let Listing { found, lone, made } = list(&dir, !read_only).map_err(store_error)?;
        if made {
            sync_dir(&dir).map_err(store_error)?;
        }
        // Past checksums without a blob as well: a blob of that number would be compared with them.
        let next = found.iter().chain(lone.keys()).max().map_or(0, |last| last.saturating_add(1));
        let entries =
            (0..256).map(|_| Entries { made: AtomicU64::new(1), synced: AtomicU64::new(0) }).collect();
        let orphans = Mutex::new(Some(found));
        let (next, lone, compared) = (AtomicU64::new(next), Mutex::new(lone), Mutex::default());
        Ok(Self { dir, next, read_only, orphans, lone, entries, compared, damage })
    }

    fn path(&self, id: BlobId) -> PathBuf {
        self.dir.join(relative_path(id))
    }

    pub(super) fn entries(&self, id: BlobId) -> &Entries {
        &self.entries[usize::from(low_byte(id))]
    }

    /// Every blob has a number below this one.
    pub(super) fn end(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Whether it was found at open and nothing has named it since.
    pub(super) fn is_orphan(&self, id: BlobId) -> bool {
        self.orphans.lock().as_ref().is_some_and(|orphans| orphans.contains(&id.0))
    }

    /// Bytes of the disk that these blobs take, each as if it shared nothing with another.
    pub(super) fn bytes_of(&self, ids: &[BlobId]) -> u64 {
        let bytes = |&id: &BlobId| fs::metadata(self.path(id)).map_or(0, |meta| meta.blocks() * 512);
        ids.iter().map(bytes).sum()
    }

    pub(super) fn adopt(&self, id: BlobId) {
        self.next.fetch_max(id.0.saturating_add(1), Ordering::Relaxed);
        if let Some(orphans) = &mut *self.orphans.lock() {
            orphans.remove(&id.0);
        }
    }

    /// The blobs that were found at open and adopted by nobody, in their order.
    pub(super) fn orphans(&self) -> Vec<BlobId> {
        let mut ids: Vec<_> = self.orphans.lock().iter().flatten().copied().map(BlobId).collect();
        ids.sort_unstable();
        ids
    }

    /// How many blobs were found at open and adopted by nobody.
    pub(super) fn unadopted(&self) -> usize {
        self.orphans.lock().as_ref().map_or(0, HashSet::len)
    }

    pub(super) fn sweep(&self) -> Result<()> {
        for id in self.orphans.lock().take().unwrap_or_default() {
            remove(&self.sums_path(BlobId(id))).map_err(store_error)?;
            remove(&self.path(BlobId(id))).map_err(store_error)?;
        }
        for path in std::mem::take(&mut *self.lone.lock()).values().flatten() {
            remove(path).map_err(store_error)?;
        }
        Ok(())
    }

    pub(super) fn create(&self) -> Result<(BlobId, File)> {
        let id = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |id| id.checked_add(1))
            .map(BlobId)
            .map_err(|_| Error::Store { path: self.dir.clone(), why: "all blob numbers are used".into() })?;
        let file = create_file(&self.path(id)).map_err(store_error)?;
        if let Err(error) = may_keep(&file) {
            self.remove(id);
            return Err(error);
        }
        // After the entry is there, so that a sync which sees this count covers it.
        self.note_entry(id);
        self.note_compared(id);
        Ok((id, file))
    }

    /// Opens a blob that stays open for as long as somebody likes.
    pub(super) fn open_blob_to_keep(&self, id: BlobId) -> Result<File> {
        let file = self.open_blob(id, true)?;
        may_keep(&file).map(|()| file)
    }

    pub(super) fn open_blob(&self, id: BlobId, write: bool) -> Result<File> {
        open_file(&self.path(id), write && !self.read_only).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Corrupt {
                file: format!("blobs/{}", relative_path(id)),
                offset: 0,
                what: "the blob named is missing".into(),
            },
            _ => store_error(error),
        })
    }

    /// Whether anybody has it open for writing, mappings included. What cannot be found out counts as yes.
    pub(super) fn is_open_for_writing(&self, id: BlobId) -> bool {
        let file = match self.open_blob(id, false) {
            Ok(file) => file,
            Err(Error::Corrupt { .. }) => return false,
            Err(_) => return true,
        };
        // A read lease is given only while nobody has the file open for writing. Whoever opens it while the lease is
        // held waits until it is returned, and the holder gets a signal: one that is ignored by default.
        let fcntl = |command, argument: i32| {
            // SAFETY: these commands take an integer and touch no memory; the file is open.
            Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) })
        };
        let leased = fcntl(F_SETSIG, libc::SIGURG).and_then(|_| fcntl(libc::F_SETLEASE, libc::F_RDLCK));
        leased.and_then(|_| fcntl(libc::F_SETLEASE, libc::F_UNLCK)).is_err()
    }

    pub(super) fn clone_blob(&self, id: BlobId) -> Result<(BlobId, File)> {
        let source = self.open_blob(id, false)?;
        let (new, target) = self.create()?;
        if let Err(error) = clone_content(&source, &target) {
            self.remove(new);
            return Err(store_error(error));
        }
        Ok((new, target))
    }

    pub(super) fn map(&self, id: BlobId) -> Result<BlobMap> {
        let file = self.open_blob(id, false)?;
        let len = file.metadata().map_err(store_error)?.len();
        let map_of =
            |watch, map| BlobMap { id, watch, map, sums: self.sums(id), damage: Arc::clone(&self.damage) };
        if len == 0 {
            return Ok(map_of(None, None));
        }
        let too_large =
            Error::TooLarge { what: "blob to be mapped, bytes", got: len, limit: isize::MAX as u64 };
        let len = usize::try_from(len).ok().filter(|&len| isize::try_from(len).is_ok()).ok_or(too_large)?;
        // SAFETY: callers map sealed blobs only, or what they are about to seal, with its inode locked and not where
        // the kernel has had it to write: nobody writes or shortens them any more, and the store directory keeps other
        // users out. Removing the file leaves the mapping valid.
        let map = unsafe { MmapOptions::new().len(len).map(&file) }.map_err(store_error)?;
        let watch = Watch::over(map.as_ptr(), map.len(), false);
        Ok(map_of(Some(watch), Some(map)))
    }

    pub(super) fn sums_path(&self, id: BlobId) -> PathBuf {
        self.path(id).with_extension("sums")
    }

    /// The checksums of a blob, if it has any.
    pub(super) fn sums(&self, id: BlobId) -> Option<Sums> {
        Sums::read(&self.sums_path(id), id)
    }

    pub(super) fn seal(&self, id: BlobId, BlobSums { sums, len }: &BlobSums) -> Result<()> {
        // By another name first: those of a blob at rest stay until these are there.
        let path = self.sums_path(id);
        let new = path.with_extension("sealing");
        Sums::new(Made::Sealing, sums.clone(), *len).write(&new, id).map_err(store_error)?;
        fs::rename(&new, &path).map_err(store_error)?;
        self.note_entry(id);
        Ok(())
    }

    pub(super) fn sync(&self, id: BlobId, file: &File) -> Result<()> {
        file.sync_data().map_err(store_error)?;
        match open_file(&self.sums_path(id), true) {
            Ok(sums) => sums.sync_data().map_err(store_error)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(store_error(error)),
        }
        let entries = self.entries(id);
        let made = entries.made.load(Ordering::SeqCst);
        if entries.synced.load(Ordering::SeqCst) < made {
            let path = self.path(id);
            sync_dir(path.parent().expect("a blob lies in a directory")).map_err(store_error)?;
            entries.synced.fetch_max(made, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Removes a blob's file. One that cannot be removed is found by the next open's sweep.
    pub(super) fn remove(&self, id: BlobId) {
        // The blob last: it is what the next open finds when this is cut short.
        if let Err(error) = remove(&self.sums_path(id)).and_then(|()| remove(&self.path(id))) {
            tracing::warn!(blob = id.0, %error, "a dropped blob stays until the next open");
        }
    }
}

/// Refuses a file that would take one of the last descriptors: those are for what the volume itself has to open, such
/// as a blob that is synced, whose failure would end all changes. The kernel gives the lowest number that is free, so
/// the number says how many are taken.
fn may_keep(file: &File) -> Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| store_error(errno.into()))?;
    let reserve = OWN_FILES.min(limit / 2);
    match u64::try_from(file.as_raw_fd()) {
        Ok(number) if number >= limit - reserve => {
            Err(store_error(io::Error::from_raw_os_error(libc::EMFILE)))
        }
        _ => Ok(()),
    }
}

fn low_byte(id: BlobId) -> u8 {
    id.0.to_le_bytes()[0]
}

/// Path of a blob below `blobs/`.
pub(super) fn relative_path(id: BlobId) -> String {
    format!("{:02x}/{:016x}.blob", low_byte(id), id.0)
}

/// Number of the blob that a file in the directory `low` holds, by its name.
fn id_of(name: &Path, low: u8) -> Option<u64> {
    let name = name.to_str()?;
    let id = u64::from_str_radix(name.strip_suffix(".blob")?, 16).ok()?;
    (relative_path(BlobId(id)) == format!("{low:02x}/{name}")).then_some(id)
}

/// What is in the directories of blobs.
struct Listing {
    found: HashSet<u64>,
    /// Files of checksums without a blob, and half made ones, by number.
    lone: HashMap<u64, Vec<PathBuf>>,
    /// Whether a directory was made.
    made: bool,
}

/// Lists all 256 directories. Makes those that are missing if it is to `make` them.
fn list(dir: &Path, make: bool) -> io::Result<Listing> {
    let mut listing = Listing { found: HashSet::new(), lone: HashMap::new(), made: false };
    for low in 0..=u8::MAX {
        let sub = dir.join(format!("{low:02x}"));
        let entries = match fs::read_dir(&sub) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                listing.made |= make && make_dir(&sub)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut tables = Vec::new();
        for entry in entries {
            let name = PathBuf::from(entry?.file_name());
            let blob = id_of(&name.with_extension("blob"), low);
            match (name.extension().and_then(|extension| extension.to_str()), blob) {
                (Some("blob"), id) => listing.found.extend(id),
                (Some("sums"), Some(id)) => tables.push((id, sub.join(name))),
                (Some("sealing" | "resting"), Some(id)) => {
                    listing.lone.entry(id).or_default().push(sub.join(name));
                }
                _ => {}
            }
        }
        for (id, path) in tables {
            if !listing.found.contains(&id) {
                listing.lone.entry(id).or_default().push(path);
            }
        }
    }
    Ok(listing)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives `target`, which is empty, the content of `source`.
fn clone_content(source: &File, target: &File) -> io::Result<()> {
    // SAFETY: the request takes a descriptor by value and touches no memory; both files are open.
    let cloned = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
    match Errno::result(cloned) {
        Ok(_) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::EXDEV | Errno::EINVAL | Errno::ENOTTY | Errno::ENOSYS) => {
            copy_sparse(source, target, copy_range)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Copies the data of `source`, leaving holes where it has holes. `copy` copies one range.
fn copy_sparse(
    source: &File,
    target: &File,
    copy: impl Fn(&File, &File, u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut at = 0;
    while at < len {
        let (data, hole) = match seek(source, at, Whence::SeekData) {
            Ok(data) => (data, seek(source, data, Whence::SeekHole)?),
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => break,
            // A filesystem that does not know where its holes are.
            Err(Errno::EINVAL) => (at, len),
            Err(errno) => return Err(errno.into()),
        };
        let end = hole.min(len);
        if end <= data {
            break;
        }
        copy(source, target, data, end)?;
        at = end;
    }
    Ok(())
}

fn seek(file: &File, at: u64, whence: Whence) -> Result<u64, Errno> {
    let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
    let found = lseek(file, at, whence)?;
    u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
}

/// Copies the bytes from `at` to `end` within the kernel, or by reading and writing where it refuses.
fn copy_range(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    while at < end {
        let offset = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        let (mut from, mut to) = (offset, offset);
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
        // SAFETY: both files are open, and the two offsets outlive the call, which writes nothing else.
        let copied = unsafe {
            libc::copy_file_range(source.as_raw_fd(), &raw mut from, target.as_raw_fd(), &raw mut to, want, 0)
        };
        match Errno::result(copied).map(isize::unsigned_abs) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => at += copied as u64,
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS) => {
                return read_and_write(source, target, at, end);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn read_and_write(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        source.read_exact_at(&mut buffer[..want], at)?;
        target.write_all_at(&buffer[..want], at)?;
        at += want as u64;
    }
    Ok(())
}

/// A blob mapped for reading. The mapped blob must not be written or shrunk any more: it is sealed, or is about to be
/// and nobody writes it meanwhile.
#[derive(Debug)]
pub struct BlobMap {
    id: BlobId,
    watch: Option<Watch>,
    map: Option<Mmap>,
    sums: Option<Sums>,
    damage: Arc<DamageLog>,
}

impl BlobMap {
    /// The blob's bytes, page-aligned: as many as the blob had when it was mapped.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// Whether what was read of it up to now is what was written: asked after reading.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the disk failed to read a page of it, or its file was cut.
    pub fn check_read(&self) -> Result<()> {
        match self.watch.as_ref().and_then(Watch::damage) {
            None => Ok(()),
            Some(offset) => Err(Error::Corrupt {
                file: format!("blobs/{}", relative_path(self.id)),
                offset,
                what: "the page cannot be read".into(),
            }),
        }
    }
    /// Which blob it is.
    #[must_use]
    pub fn id(&self) -> BlobId {
        self.id
    }

    /// Compares the blob's length, and the chunks that hold the bytes `from..to` with their checksums, each once. A blob
    /// without checksums passes.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] naming the blob and the offset of the chunk.
    #[inline]
    pub fn check(&self, from: usize, to: usize) -> Result<()> {
        match &self.sums {
            Some(sums) if sums.len() == self.bytes().len() && (sums.all_known() || sums.known(from, to)) => {
                Ok(())
            }
            Some(sums) => self.compare(sums, from, to),
            None => Ok(()),
        }
    }

    /// [`check`](Self::check) of the whole blob, which was read.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn check_sums(&self, read: &BlobSums) -> Result<()> {
        match &self.sums {
            Some(sums) => sums.compare(read).map_err(|offset| self.differs(sums, offset)),
            None => Ok(()),
        }
    }

    #[cold]
    fn compare(&self, sums: &Sums, from: usize, to: usize) -> Result<()> {
        sums.check(self.bytes(), from, to).map_err(|offset| self.differs(sums, offset))
    }

    fn differs(&self, sums: &Sums, offset: usize) -> Error {
        let file = format!("blobs/{}", relative_path(self.id));
        let what = match self.bytes().len() == sums.len() {
            true => "the checksum of what begins here does not match".to_owned(),
            false => format!("{} bytes, want {}", self.bytes().len(), sums.len()),
        };
        self.damage.note(Error::Corrupt { file, offset: offset as u64, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs(dir: &Path) -> Blobs {
        make_dir(&dir.join("blobs")).unwrap();
        Blobs::open(dir, false, Arc::default()).unwrap()
    }

    fn count(dir: &Path) -> usize {
        list(&dir.join("blobs"), true).unwrap().found.len()
    }

    /// A file of 4 MiB with 8 KiB of data in the middle and at the end.
    fn sparse(file: &File) -> Vec<u8> {
        let mut content = vec![0; 4 << 20];
        for at in [1 << 20, (4 << 20) - 8192] {
            content[at..at + 8192].fill(0xab);
            file.write_all_at(&content[at..at + 8192], at as u64).unwrap();
        }
        content
    }

    fn read_all(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_blob_that_somebody_may_write_is_known_by_its_mapping_too() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        let (id, file) = blobs.create().unwrap();
        file.set_len(4096).unwrap();
        assert!(blobs.is_open_for_writing(id));
        // SAFETY: nobody else uses the file, and it keeps its length.
        let mapped = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        drop(file);
        assert!(blobs.is_open_for_writing(id));
        drop(mapped);
        assert!(!blobs.is_open_for_writing(id));
        let _reader = blobs.open_blob(id, false).unwrap();
        assert!(!blobs.is_open_for_writing(id));
        assert!(!blobs.is_open_for_writing(BlobId(77)));
    }

    #[test]
    fn a_blob_lies_in_the_directory_of_its_low_byte() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        blobs.adopt(BlobId(0x1234_56fe));
        let (id, file) = blobs.create().unwrap();
        assert_eq!(id, BlobId(0x1234_56ff));
        let path = dir.path().join("blobs/ff/00000000123456ff.blob");
        assert_eq!(fs::metadata(path).unwrap().ino(), file.metadata().unwrap().ino());
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn numbers_begin_past_everything_found_or_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let first = blobs(dir.path());
        assert_eq!(first.create().unwrap().0, BlobId(0));
        assert_eq!(first.create().unwrap().0, BlobId(1));
        let second = blobs(dir.path());
        assert_eq!(second.create().unwrap().0, BlobId(2));
        second.adopt(BlobId(700));
        second.adopt(BlobId(5));
        assert_eq!(second.create().unwrap().0, BlobId(701));
        second.adopt(BlobId(u64::MAX));
        assert!(matches!(second.create(), Err(Error::Store { .. })));
    }

    #[test]
    fn the_sweep_removes_what_was_found_and_not_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let before = blobs(dir.path());
        for _ in 0..4 {
            before.create().unwrap();
        }
        fs::write(dir.path().join("blobs/00/notes.txt"), "not ours").unwrap();
        let blobs = blobs(dir.path());
        blobs.adopt(BlobId(1));
        let (new, _) = blobs.create().unwrap();
        blobs.sweep().unwrap();
        for (id, there) in [(0, false), (1, true), (2, false), (3, false), (new.0, true)] {
            assert_eq!(blobs.open_blob(BlobId(id), true).is_ok(), there, "blob {id}");
        }
        assert!(dir.path().join("blobs/00/notes.txt").exists());
        blobs.sweep().unwrap();
        assert_eq!(count(dir.path()), 2);
    }

    #[test]
    fn a_missing_blob_is_corrupt_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = blobs(dir.path()).open_blob(BlobId(0x1ff), true).unwrap_err();
        assert_eq!(error.to_string(), "blobs/ff/00000000000001ff.blob: offset 0: the blob named is missing");
    }

    #[test]
    fn a_clone_is_equal_independent_and_as_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        let (id, source) = blobs.create().unwrap();
        let content = sparse(&source);
        let (clone, target) = blobs.clone_blob(id).unwrap();
        assert_ne!(id, clone);
        assert!(read_all(&target) == content);
        assert!(target.metadata().unwrap().blocks() <= source.metadata().unwrap().blocks() + 8);
        target.write_all_at(b"changed", 0).unwrap();
        assert!(read_all(&source) == content);
    }

    #[test]
    fn every_way_to_copy_keeps_content_length_and_holes() {
        for copy in [copy_range, read_and_write] {
            let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let content = sparse(&source);
            source.set_len(5 << 20).unwrap();
            copy_sparse(&source, &target, copy).unwrap();
            let copied = read_all(&target);
            assert_eq!(copied.len(), 5 << 20);
            assert!(copied[..4 << 20] == content);
            assert!(copied[4 << 20..].iter().all(|&byte| byte == 0));
            let allocated = target.metadata().unwrap().blocks() * 512;
            assert!(allocated < 1 << 20, "{allocated} bytes allocated for 16 KiB of data");
        }
    }

    #[test]
    fn clones_of_empty_and_of_all_hole_blobs_have_their_length() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        for len in [0, 1 << 20] {
            let (id, file) = blobs.create().unwrap();
            file.set_len(len).unwrap();
            let (_, clone) = blobs.clone_blob(id).unwrap();
            assert_eq!(clone.metadata().unwrap().len(), len);
            assert_eq!(clone.metadata().unwrap().blocks(), 0);
        }
    }

    #[test]
    fn a_clone_of_a_missing_blob_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        assert!(matches!(blobs.clone_blob(BlobId(9)), Err(Error::Corrupt { .. })));
        assert_eq!(count(dir.path()), 0);
    }

    #[test]
    fn a_map_is_page_aligned_keeps_its_length_and_outlives_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        let (id, file) = blobs.create().unwrap();
        file.write_all_at(&[5; 10_000], 0).unwrap();
        let map = blobs.map(id).unwrap();
        blobs.remove(id);
        assert_eq!(map.bytes(), [5; 10_000]);
        assert_eq!(map.bytes().as_ptr() as usize % 4096, 0);
    }

    #[test]
    fn an_empty_blob_maps_to_no_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        let (id, _) = blobs.create().unwrap();
        assert_eq!(blobs.map(id).unwrap().bytes(), b"");
    }

    #[test]
    fn a_directory_is_synced_once_for_the_entries_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        let (id, file) = blobs.create().unwrap();
        let synced = |blobs: &Blobs| {
            let entries = blobs.entries(id);
            (entries.made.load(Ordering::SeqCst), entries.synced.load(Ordering::SeqCst))
        };
        assert_eq!(synced(&blobs), (2, 0));
        blobs.sync(id, &file).unwrap();
        assert_eq!(synced(&blobs), (2, 2));
        blobs.adopt(BlobId(255));
        blobs.create().unwrap();
        assert_eq!(synced(&blobs), (3, 2));
    }

    #[test]
    fn names_of_blob_files_are_exact() {
        assert_eq!(id_of(Path::new("00000000000001ff.blob"), 0xff), Some(0x1ff));
        for other in ["1ff.blob", "00000000000001FF.blob", "00000000000001ff", "00000000000001fe.blob"] {
            assert_eq!(id_of(Path::new(other), 0xff), None, "{other}");
        }
    }
}
