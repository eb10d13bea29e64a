//! The yardstick of `vexfs bench mount`: a bare in-memory filesystem on the same library.
//!
//! It does the least that a daemon on this library can do for each request: one table lookup, no log, no disk, no
//! vectors, no permissions of its own. What it takes is the price of FUSE here, and no VexFS can be cheaper. It asks
//! the kernel for the same capabilities and gives the same lifetimes of attributes as the real door.
//!
//! Everything is behind one lock for each file and one for the names, and gone when it ends.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, TimeOrNow,
    WriteFlags,
};
use parking_lot::{Mutex, RwLock};

use super::answer::GENERATION;
use super::mount::MountOptions;
use super::{attach, dispatch, mount};

/// How long the kernel may keep names and attributes: for good, as only the kernel changes them.
const TTL: Duration = Duration::from_secs(3600);

const ROOT: u64 = 1;

/// Mounts the yardstick on `mountpoint` and serves it until it is unmounted.
///
/// # Errors
///
/// I/O errors with a sentence: no FUSE in the kernel, the mount refused.
pub fn serve_floor(mountpoint: &Path, threads: usize) -> std::io::Result<()> {
    let options = MountOptions { threads, ..MountOptions::default() };
    let config = mount::session_config(&options);
    let connection = match attach::attach(Path::new("vexfs-floor"), mountpoint, &options)? {
        Some(connection) => connection,
        None => attach::attach_with_helper(Path::new("vexfs-floor"), mountpoint, &options)?,
    };
    let session = Session::from_fd(Floor::new(), connection, config.acl, config);
    session.and_then(Session::spawn)?.join()
}

/// A file or directory.
struct Node {
    attr: Mutex<FileAttr>,
    data: RwLock<Vec<u8>>,
    xattrs: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    dir: RwLock<Dir>,
}

/// The entries of a directory: removed ones leave a hole, so that offsets stay what they are.
#[derive(Default)]
struct Dir {
    at: HashMap<Vec<u8>, usize>,
    entries: Vec<Option<(Vec<u8>, u64, FileType)>>,
}

impl Dir {
    fn add(&mut self, name: &[u8], ino: u64, kind: FileType) {
        self.at.insert(name.to_vec(), self.entries.len());
        self.entries.push(Some((name.to_vec(), ino, kind)));
    }

    fn find(&self, name: &[u8]) -> Option<u64> {
        let entry = self.entries.get(*self.at.get(name)?)?;
        entry.as_ref().map(|(_, ino, _)| *ino)
    }

    fn remove(&mut self, name: &[u8]) -> Option<(u64, FileType)> {
        let at = self.at.remove(name)?;
        let (_, ino, kind) = self.entries.get_mut(at)?.take()?;
        if self.at.is_empty() {
            self.entries.clear();
        }
        Some((ino, kind))
    }
}

/// The filesystem.
struct Floor {
    nodes: DashMap<u64, Arc<Node>>,
    last: AtomicU64,
}

impl Floor {
    fn new() -> Self {
        let floor = Self { nodes: DashMap::new(), last: AtomicU64::new(ROOT) };
        floor.nodes.insert(ROOT, Node::new(ROOT, FileType::Directory, 0o755, (0, 0)));
        floor
    }

    fn node(&self, ino: INodeNo) -> Result<Arc<Node>, Errno> {
        self.nodes.get(&ino.0).map(|node| Arc::clone(&node)).ok_or(Errno::ENOENT)
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let ino = self.node(parent)?.dir.read().find(name.as_bytes()).ok_or(Errno::ENOENT)?;
        Ok(*self.node(INodeNo(ino))?.attr.lock())
    }

    fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        kind: FileType,
        mode: u32,
    ) -> Result<FileAttr, Errno> {
        let directory = self.node(parent)?;
        let ino = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let node = Node::new(ino, kind, mode, (request.uid(), request.gid()));
        let attr = *node.attr.lock();
        let mut dir = directory.dir.write();
        if dir.find(name.as_bytes()).is_some() {
            return Err(Errno::EEXIST);
        }
        self.nodes.insert(ino, node);
        dir.add(name.as_bytes(), ino, kind);
        Ok(attr)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
        let directory = self.node(parent)?;
        let mut dir = directory.dir.write();
        let ino = dir.find(name.as_bytes()).ok_or(Errno::ENOENT)?;
        if is_dir && !self.node(INodeNo(ino))?.dir.read().at.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        dir.remove(name.as_bytes());
        self.nodes.remove(&ino);
        Ok(())
    }

    fn rename(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr)) -> Result<(), Errno> {
        let (ino, kind) = self.node(from.0)?.dir.write().remove(from.1.as_bytes()).ok_or(Errno::ENOENT)?;
        let target = self.node(to.0)?;
        let mut target = target.dir.write();
        if let Some((replaced, _)) = target.remove(to.1.as_bytes()) {
            self.nodes.remove(&replaced);
        }
        target.add(to.1.as_bytes(), ino, kind);
        Ok(())
    }
}

impl Node {
    fn new(ino: u64, kind: FileType, mode: u32, (uid, gid): (u32, u32)) -> Arc<Self> {
        let now = SystemTime::now();
        let attr = FileAttr {
            ino: INodeNo(ino),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: super::convert::permissions(mode),
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        Arc::new(Self {
            attr: Mutex::new(attr),
            data: RwLock::default(),
            xattrs: Mutex::default(),
            dir: RwLock::default(),
        })
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Sends what a closure made, or its error.
macro_rules! reply {
    ($reply:ident, $work:expr, |$value:pat_param| $ok:expr) => {
        match $work {
            Ok($value) => $ok,
            Err(errno) => $reply.error(errno),
        }
    };
}

impl Filesystem for Floor {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        dispatch::shake_hands(config)
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply!(reply, self.find(parent, name), |attr| reply.entry(&TTL, &attr, GENERATION));
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply!(reply, self.node(ino), |node| reply.attr(&TTL, &node.attr.lock()));
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.node(ino).map(|node| {
            let mut attr = node.attr.lock();
            if let Some(mode) = mode {
                attr.perm = super::convert::permissions(mode);
            }
            attr.uid = uid.unwrap_or(attr.uid);
            attr.gid = gid.unwrap_or(attr.gid);
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => attr.mtime = time,
                Some(TimeOrNow::Now) => attr.mtime = SystemTime::now(),
                None => {}
            }
            if let Some(size) = size {
                node.data.write().resize(index(size), 0);
                attr.size = size;
            }
            *attr
        });
        reply!(reply, changed, |attr| reply.attr(&TTL, &attr));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(request, parent, name, FileType::Directory, mode);
        reply!(reply, made, |attr| reply.entry(&TTL, &attr, GENERATION));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(request, parent, name, FileType::RegularFile, mode);
        reply!(reply, made, |attr| reply.entry(&TTL, &attr, GENERATION));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, self.remove(parent, name, false), |()| reply.ok());
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(reply, self.remove(parent, name, true), |()| reply.ok());
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply!(reply, self.rename((parent, name), (new_parent, new_name)), |()| reply.ok());
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.node(ino).map(|node| {
            if flags.0 & libc::O_TRUNC != 0 {
                node.data.write().clear();
                node.attr.lock().size = 0;
            }
        });
        reply!(reply, opened, |()| reply.opened(FileHandle(ino.0), floor_flags(flags.0)));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(request, parent, name, FileType::RegularFile, mode);
        reply!(reply, made, |attr| {
            reply.created(&TTL, &attr, GENERATION, FileHandle(attr.ino.0), floor_flags(flags));
        });
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply!(reply, self.node(ino), |node| {
            let data = node.data.read();
            let from = index(offset).min(data.len());
            let to = from.saturating_add(size as usize).min(data.len());
            reply.data(&data[from..to]);
        });
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.node(ino).map(|node| {
            let mut content = node.data.write();
            let (from, to) = (index(offset), index(offset).saturating_add(data.len()));
            if content.len() < to {
                content.resize(to, 0);
            }
            content[from..to].copy_from_slice(data);
            let mut attr = node.attr.lock();
            attr.size = content.len() as u64;
            attr.mtime = SystemTime::now();
            u32::try_from(data.len()).unwrap_or(u32::MAX)
        });
        reply!(reply, written, |written| reply.written(written));
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        reply!(reply, self.node(ino), |node| {
            let dir = node.dir.read();
            for (at, entry) in dir.entries.iter().enumerate().skip(index(offset)) {
                let Some((name, ino, kind)) = entry else { continue };
                if reply.add(INodeNo(*ino), at as u64 + 1, *kind, OsStr::from_bytes(name)) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        reply!(reply, self.node(ino), |node| {
            let dir = node.dir.read();
            for (at, entry) in dir.entries.iter().enumerate().skip(index(offset)) {
                let Some((name, ino, _)) = entry else { continue };
                let Ok(node) = self.node(INodeNo(*ino)) else { continue };
                let attr = *node.attr.lock();
                if reply.add(attr.ino, at as u64 + 1, OsStr::from_bytes(name), &TTL, &attr, GENERATION) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 30, 1 << 29, 1 << 29, 1 << 20, 1 << 20, 4096, 255, 4096);
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply!(reply, self.node(ino), |node| {
            let mut xattrs = node.xattrs.lock();
            xattrs.retain(|(known, _)| known != name.as_bytes());
            xattrs.push((name.as_bytes().to_vec(), value.to_vec()));
            reply.ok();
        });
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply!(reply, self.node(ino), |node| {
            let xattrs = node.xattrs.lock();
            match xattrs.iter().find(|(known, _)| known == name.as_bytes()) {
                None => reply.error(Errno::ENODATA),
                Some((_, value)) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
                Some((_, value)) => reply.data(value),
            }
        });
    }

    fn listxattr(&self, _request: &Request, _ino: INodeNo, size: u32, reply: ReplyXattr) {
        if size == 0 { reply.size(0) } else { reply.data(&[]) }
    }
}

/// The real door's flags for an ordinary file.
fn floor_flags(flags: i32) -> FopenFlags {
    let mut fopen = FopenFlags::FOPEN_KEEP_CACHE;
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        fopen |= FopenFlags::FOPEN_NOFLUSH;
    }
    fopen
}
