//! Disks that remember: files in a FUSE mount of this process, made into block devices by the loop driver.
//!
//! Every write and every flush is recorded in the order in which it arrived. A disk that loses its power at some
//! point of the record holds what was flushed before, and of what was written since any part of any write, torn at
//! [`SECTOR`]: [`Record::after_cut`] makes it. Reads, writes and flushes can be made to fail, and flushes to lie.
//!
//! The kernel writes to a disk from its own threads, so nothing here may wait for a filesystem that lies on one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::Random;

/// What a disk writes whole or not at all.
pub(super) const SECTOR: usize = 4096;

/// The content of a disk. Sectors that are not here are zero; copies share what they have in common.
#[derive(Clone, Default)]
pub(super) struct Medium {
    sectors: HashMap<u64, Arc<[u8; SECTOR]>>,
}

impl Medium {
    /// Calls `each` with every piece of `len` bytes from `at` on: sector, place in it, place in the whole.
    fn pieces(at: u64, len: usize, mut each: impl FnMut(u64, Range<usize>, Range<usize>)) {
        let mut done = 0;
        while done < len {
            let from = at + done as u64;
            let within = usize::try_from(from % SECTOR as u64).expect("it is below SECTOR");
            let many = (SECTOR - within).min(len - done);
            each(from / SECTOR as u64, within..within + many, done..done + many);
            done += many;
        }
    }

    fn write_piece(&mut self, sector: u64, within: Range<usize>, bytes: &[u8]) {
        if within.len() == SECTOR && bytes.iter().all(|&byte| byte == 0) {
            self.sectors.remove(&sector);
            return;
        }
        let known = self.sectors.entry(sector).or_insert_with(|| Arc::new([0; SECTOR]));
        Arc::make_mut(known)[within].copy_from_slice(bytes);
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        Self::pieces(at, data.len(), |sector, within, of| self.write_piece(sector, within, &data[of]));
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Self::pieces(at, len, |sector, within, of| {
            if let Some(known) = self.sectors.get(&sector) {
                bytes[of].copy_from_slice(&known[within]);
            }
        });
        bytes
    }
}

enum Entry {
    Write { at: u64, data: Box<[u8]> },
    Flush,
}

/// What a disk was before it was watched, and what came since.
#[derive(Default)]
pub(super) struct Record {
    before: Medium,
    entries: Vec<Entry>,
}

impl Record {
    /// How many writes and flushes came.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What the disk holds when the power went after the first `count` entries.
    pub(super) fn after_cut(&self, count: usize, random: &mut Random) -> Medium {
        let entries = &self.entries[..count];
        let flushed = entries.iter().rposition(|entry| matches!(entry, Entry::Flush)).unwrap_or(0);
        let mut medium = self.before.clone();
        for (number, entry) in entries.iter().enumerate() {
            let Entry::Write { at, data } = entry else { continue };
            if number < flushed {
                medium.write(*at, data);
                continue;
            }
            Medium::pieces(*at, data.len(), |sector, within, of| {
                if random.one_in(2) {
                    medium.write_piece(sector, within, &data[of]);
                }
            });
        }
        medium
    }
}

/// How a disk fails at the moment.
#[derive(Default)]
pub(super) struct Faults {
    /// Reads that touch these bytes fail.
    pub(super) reads: Mutex<Vec<Range<u64>>>,
    /// Every write fails.
    pub(super) writes: AtomicBool,
    /// Every flush fails.
    pub(super) flushes: AtomicBool,
    /// Flushes succeed and do nothing.
    pub(super) lies: AtomicBool,
}

/// A disk.
pub(super) struct Disk {
    bytes: u64,
    medium: Mutex<Medium>,
    /// `None` while the disk is not watched.
    record: Mutex<Option<Record>>,
    position: AtomicUsize,
    pub(super) faults: Faults,
}

impl Disk {
    pub(super) fn new(bytes: u64, medium: Medium) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            medium: Mutex::new(medium),
            record: Mutex::new(None),
            position: AtomicUsize::new(0),
            faults: Faults::default(),
        })
    }

    /// Forgets everything, when the disk is not used any more.
    pub(super) fn empty(&self) {
        *self.medium.lock() = Medium::default();
        *self.record.lock() = None;
    }

    /// The sectors that hold exactly these bytes.
    pub(super) fn sectors_with(&self, bytes: &[u8]) -> Vec<Range<u64>> {
        let medium = self.medium.lock();
        let found = medium.sectors.iter().filter(|(_, known)| known[..] == *bytes);
        found.map(|(sector, _)| sector * SECTOR as u64..(sector + 1) * SECTOR as u64).collect()
    }

    /// Begins to record.
    pub(super) fn watch(&self) {
        let before = self.medium.lock().clone();
        *self.record.lock() = Some(Record { before, entries: Vec::new() });
        self.position.store(0, Ordering::SeqCst);
    }

    /// Ends the record and returns it.
    pub(super) fn take_record(&self) -> Record {
        self.record.lock().take().expect("the disk is watched")
    }

    /// How many entries the record has: what is asked before a system call is before all of its writes, and after
    /// it behind all that it waited for.
    pub(super) fn position(&self) -> usize {
        self.position.load(Ordering::SeqCst)
    }

    fn note(&self, entry: Entry) {
        if let Some(record) = &mut *self.record.lock() {
            record.entries.push(entry);
            self.position.store(record.entries.len(), Ordering::SeqCst);
        }
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let end = (at + len as u64).min(self.bytes);
        let asked = at.min(end)..end;
        let fails = |bad: &Range<u64>| bad.start < asked.end && asked.start < bad.end;
        if self.faults.reads.lock().iter().any(fails) {
            return Err(Errno::EIO);
        }
        let len = usize::try_from(asked.end - asked.start).expect("it is no longer than what was asked");
        Ok(self.medium.lock().read(at, len))
    }

    fn write(&self, at: u64, data: &[u8]) -> Result<(), Errno> {
        if self.faults.writes.load(Ordering::SeqCst) {
            return Err(Errno::EIO);
        }
        // One lock for both: two writes are recorded in the order in which they are made.
        let mut medium = self.medium.lock();
        medium.write(at, data);
        self.note(Entry::Write { at, data: data.into() });
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        if self.faults.flushes.load(Ordering::SeqCst) {
            return Err(Errno::EIO);
        }
        if !self.faults.lies.load(Ordering::SeqCst) {
            self.note(Entry::Flush);
        }
        Ok(())
    }
}

/// Disks by name, as the kernel sees them.
type Disks = Arc<Mutex<Vec<(String, Arc<Disk>)>>>;

/// A mounted directory of disks. Dropped after everything that lies on them was unmounted.
pub(super) struct Shelf {
    dir: PathBuf,
    disks: Disks,
    _session: BackgroundSession,
}

impl Shelf {
    /// Mounts an empty shelf on `dir`.
    pub(super) fn mount(dir: &Path) -> Self {
        let disks = Disks::default();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("crash".into())];
        config.n_threads = Some(2);
        let session = fuser::spawn_mount(Server { disks: Arc::clone(&disks) }, dir, &config)
            .unwrap_or_else(|error| panic!("these tests mount disks through /dev/fuse, as root: {error}"));
        Self { dir: dir.to_owned(), disks, _session: session }
    }

    /// Puts a disk on the shelf and returns its path. The name is a new one.
    pub(super) fn add(&self, name: &str, disk: &Arc<Disk>) -> PathBuf {
        self.disks.lock().push((name.into(), Arc::clone(disk)));
        self.dir.join(name)
    }
}

/// The shelf as fuser sees it: the inode of a disk is its place, counted from 2. Disks are not removed, only emptied
/// by their owner, so a number never means another one.
struct Server {
    disks: Disks,
}

impl Server {
    fn disk(&self, ino: INodeNo) -> Result<Arc<Disk>, Errno> {
        let place = ino.0.checked_sub(2).and_then(|place| usize::try_from(place).ok());
        let disks = self.disks.lock();
        place.and_then(|place| disks.get(place)).map(|(_, disk)| Arc::clone(disk)).ok_or(Errno::ENOENT)
    }

    fn attr(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let bytes = if ino == INodeNo::ROOT { None } else { Some(self.disk(ino)?.bytes) };
        let at = SystemTime::UNIX_EPOCH;
        Ok(FileAttr {
            ino,
            size: bytes.unwrap_or(0),
            blocks: bytes.unwrap_or(0) / 512,
            atime: at,
            mtime: at,
            ctime: at,
            crtime: at,
            kind: if bytes.is_some() { FileType::RegularFile } else { FileType::Directory },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

fn answer(reply: ReplyAttr, attr: Result<FileAttr, Errno>) {
    match attr {
        Ok(attr) => reply.attr(&Duration::ZERO, &attr),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let place = self.disks.lock().iter().position(|(known, _)| OsStr::new(known) == name);
        match place.ok_or(Errno::ENOENT).and_then(|place| self.attr(INodeNo(place as u64 + 2))) {
            Ok(attr) => reply.entry(&Duration::ZERO, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer(reply, self.attr(ino));
    }

    /// A program that makes a filesystem may set a file to the size that it has.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer(reply, self.attr(ino));
    }

    /// Past the kernel's cache: a disk decides itself what it holds.
    fn open(&self, _: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk(ino).and_then(|disk| disk.read(offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = u32::try_from(data.len()).map_err(|_| Errno::EINVAL);
        match self.disk(ino).and_then(|disk| disk.write(offset, data)).and(written) {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match self.disk(ino).and_then(|disk| disk.flush()) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }
}
