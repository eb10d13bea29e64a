//! Requests in, answers out: each is converted, handed to the volume, and its result sent back.
//!
//! [`answer!`] decides where a request is worked on: here, on the worker that received it, in the search pool when the
//! volume says that it may run a search, or in that for settling when a large file is read. What goes to a pool takes copies of the request's bytes with
//! it, because the worker reads the next request into the same memory.
//!
//! A panic in a handler is logged and its caller gets EIO; the worker and the mount live on.

use std::any::Any;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use super::answer::{Answer, Fail, GENERATION, Open, is_change, xattr};
use super::ask::is_ask;
use super::convert::{self, caller};
use super::errno::errno;
use super::job_pool::{JobPool, Turn};
use super::mount::{Ending, MountOptions};
use super::passthrough::Passthrough;
use super::surplus::Surplus;
use crate::metrics::{Op, Worker};
use crate::namespace::Ino;
use crate::pool::{shallow, stack};
use crate::volume::{Caller, Handle, Views, Volume};
use crate::{Error, Result};

/// Largest write that the kernel sends in one request.
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// Requests that the kernel may have under way without a process waiting, such as read-ahead.
const MAX_BACKGROUND: u16 = 64;

/// Most that one `copy_file_range` copies: its answer has 32 bits. The caller asks again for the rest, which may be
/// up to 2^63.
const MAX_COPY_BYTES: u64 = 1 << 30;

/// What is asked of the kernel, where it has it.
///
/// Left out: `WRITEBACK_CACHE` delays small writes past the close that has to report a bad vector,
/// `POSIX_ACL` needs a daemon that keeps them, `CACHE_SYMLINKS` would keep result links that moved on, and
/// `SETXATTR_EXT` changes a request that fuser 0.18 then cannot parse.
const CAPABILITIES: [InitFlags; 7] = [
    // Otherwise every single write is preceded by a getxattr of security.capability.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// Answers one request.
///
/// `bytes` names the `&[u8]` of the request that the work reads: in the pool they are copies. The rest of what
/// the work uses is `Copy`. The work gets the [`Server`] and the reply, for answers that are filled piecemeal.
macro_rules! answer {
    ($door:ident, $op:expr, $reply:ident, search: $may_search:expr, bytes: [$($bytes:ident),*],
     |$server:ident, $out:pat_param| $work:expr) => {
        answer!($door, $op, $reply, pool: $door.searching($may_search), bytes: [$($bytes),*],
            |$server, $out| $work)
    };
    ($door:ident, $op:expr, $reply:ident, pool: $pool:expr, bytes: [$($bytes:ident),*],
     |$server:ident, $out:pat_param| $work:expr) => {{
        let started = Instant::now();
        if let Some(pool) = $pool {
            let server = Arc::clone(&$door.server);
            $(let $bytes = {
                let mut copy = server.volume.buffers().take($bytes.len());
                copy.extend_from_slice($bytes);
                copy
            };)*
            pool.submit(Box::new(move |turn| match turn {
                Turn::Run => {
                    $(let $bytes: &[u8] = &$bytes;)*
                    server.answer((Worker::Search, $op), started, $reply, |$server, $out| $work);
                }
                Turn::Refused => server.refuse($op, started, $reply),
            }));
        } else {
            $door.server.answer((Worker::Request, $op), started, $reply, |$server, $out| $work);
        }
    }};
}

/// Whether the kernel asks about an inode that is gone, because another took its name since the kernel looked that up.
/// At ESTALE it looks again, and the caller sees none of it.
fn is_stale(op: Op, error: &Error) -> bool {
    let is_about_inode = matches!(
        op,
        Op::Getattr
            | Op::Setattr
            | Op::Readlink
            | Op::Open
            | Op::Opendir
            | Op::Link
            | Op::Getxattr
            | Op::Setxattr
            | Op::Listxattr
            | Op::Removexattr
    );
    is_about_inode && matches!(error, Error::NotFound)
}

/// The filesystem as fuser sees it.
#[derive(Debug)]
pub(super) struct Door {
    server: Arc<Server>,
    searches: JobPool,
    settling: JobPool,
    ending: Arc<Ending>,
}

/// What an answer is made with, on whichever thread.
#[derive(Debug)]
struct Server {
    volume: Views,
    passthrough: Passthrough,
    surplus: Surplus,
    /// The stack that each operation uses is measured.
    stack_probe: bool,
}

impl Server {
    fn new(volume: Arc<Volume>, stack_probe: bool) -> Self {
        let (passthrough, surplus) = (Passthrough::default(), Surplus::default());
        Self { volume: Views::new(volume), passthrough, surplus, stack_probe }
    }

    /// Does the work and sends its result.
    fn answer<R, V>(
        &self,
        (worker, op): (Worker, Op),
        started: Instant,
        reply: R,
        work: impl FnOnce(&Self, &mut R) -> Result<V>,
    ) where
        R: Answer<V>,
    {
        if self.stack_probe {
            stack::paint();
        }
        let _held = shallow::hold();
        if self.stack_probe {
            self.volume.metrics().stack(worker, None, stack::used());
            stack::paint();
        }
        let ok = self.worked(op, reply, work);
        if self.stack_probe {
            self.volume.metrics().stack(worker, Some(op), stack::used());
        }
        self.volume.metrics().op(op, started.elapsed(), ok);
    }

    /// Does the work and sends its result; whether that is a success.
    #[inline(never)]
    fn worked<R, V>(&self, op: Op, reply: R, work: impl FnOnce(&Self, &mut R) -> Result<V>) -> bool
    where
        R: Answer<V>,
    {
        // The reply is inside: when the work panics, dropping it unsent answers EIO.
        let answered = catch_unwind(AssertUnwindSafe(|| {
            let mut reply = reply;
            // Not in one expression, and handed on where it lies: each copy of the result takes of the stack.
            let mut done = Some(work(self, &mut reply));
            if is_change(op)
                && matches!(done, Some(Ok(_)))
                && let Err(error) = self.volume.acknowledge()
            {
                done = Some(Err(error));
            }
            send(op, reply, &mut done)
        }));
        answered.unwrap_or_else(|panic| {
            self.volume.metrics().panic();
            log_panic(op.name(), panic.as_ref());
            false
        })
    }

    /// The queue of a pool is full, or the pool was stopped.
    fn refuse<R: Fail>(&self, op: Op, started: Instant, reply: R) {
        reply.error(Errno::EAGAIN);
        self.volume.metrics().op(op, started.elapsed(), false);
    }

    /// Syncs what was written past the page cache: the kernel asks for it only behind a write through it.
    #[inline(never)]
    fn sync_written(&self, handle: Handle) -> Result<()> {
        if !self.volume.is_direct(handle) {
            return Ok(());
        }
        let started = Instant::now();
        let synced = self.volume.fsync(handle, true);
        self.volume.metrics().op(Op::Fsync, started.elapsed(), synced.is_ok());
        synced
    }

    fn list_plus(
        &self,
        caller: &Caller,
        (ino, handle): (Ino, Handle),
        offset: u64,
        out: &mut ReplyDirectoryPlus,
    ) -> Result<()> {
        let mut listed = 0;
        let mut failed = None;
        self.volume.read_dir(caller, handle, offset, &mut |entry| {
            let name = OsStr::from_bytes(entry.name);
            // The kernel counts no lookup for these two.
            if matches!(name.as_bytes(), b"." | b"..") {
                let ino = INodeNo(entry.ino.0);
                listed += 1;
                return !out.add(ino, entry.offset, name, &Duration::ZERO, &convert::dot(ino), GENERATION);
            }
            let attr = match self.volume.lookup(caller, ino, entry.name) {
                Ok(attr) => attr,
                // Removed since it was read.
                Err(Error::NotFound) => return true,
                Err(error) => {
                    failed = Some(error);
                    return false;
                }
            };
            let ino = INodeNo(attr.ino.0);
            let full = out.add(ino, entry.offset, name, &attr.ttl, &convert::attr(&attr), GENERATION);
            if full {
                self.volume.forget(attr.ino, 1);
            }
            listed += 1;
            !full
        })?;
        match failed {
            // The entries before it have been looked up and must arrive; the next request meets the error first.
            Some(_) if listed > 0 => Ok(()),
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Settles with the kernel what it may do on its own.
pub(super) fn shake_hands(config: &mut KernelConfig) -> std::io::Result<()> {
    for capability in CAPABILITIES {
        if config.add_capabilities(capability).is_err() {
            tracing::info!(?capability, "the kernel does not have this");
        }
    }
    config.set_max_write(MAX_WRITE_BYTES).map_err(out_of_range)?;
    config.set_max_background(MAX_BACKGROUND).map_err(out_of_range)?;
    config.set_time_granularity(Duration::from_nanos(1)).map_err(out_of_range)?;
    Ok(())
}

/// The three settings at the handshake are refused only outside of a range that ours are inside of.
fn out_of_range<T: std::fmt::Debug>(nearest: T) -> std::io::Error {
    std::io::Error::other(format!("handshake with the kernel: the nearest possible value is {nearest:?}"))
}

/// Sends the result of an operation; whether that is a success. Apart, so that what makes the answer for the kernel is
/// not on the stack while the work is done.
#[inline(never)]
fn send<R: Answer<V>, V>(op: Op, reply: R, done: &mut Option<Result<V>>) -> bool {
    match done.take() {
        Some(Ok(value)) => {
            reply.ok(value);
            true
        }
        Some(Err(error)) => {
            reply.error(if is_stale(op, &error) { Errno::ESTALE } else { errno(&error) });
            false
        }
        None => false,
    }
}

#[cold]
#[inline(never)]
fn log_panic(what: &str, panic: &(dyn Any + Send)) {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(what, "panic in a request, answered EIO: {}", said.unwrap_or("no message"));
}

impl Door {
    /// # Errors
    ///
    /// When the threads of the search pool cannot be started.
    pub(super) fn new(
        volume: Arc<Volume>,
        ending: Arc<Ending>,
        options: &MountOptions,
    ) -> std::io::Result<Self> {
        let server = Server::new(volume, options.stack_probe);
        Ok(Self {
            server: Arc::new(server),
            searches: JobPool::for_searches()?,
            settling: JobPool::for_settling()?,
            ending,
        })
    }

    /// Gives those who tell the kernel something by themselves the means to, for the session that is made with this
    /// door.
    pub(super) fn tellers(&self) -> impl FnOnce(&dyn Fn() -> Notifier) -> std::io::Result<()> + use<> {
        let server = Arc::downgrade(&self.server);
        move |notifier| {
            let Some(owner) = server.upgrade() else { return Ok(()) };
            owner.passthrough.set_notifier(notifier());
            // The thread must not keep the volume.
            let surplus =
                move |ino| server.upgrade().map_or_else(Vec::new, |server| server.volume.surplus(ino));
            owner.surplus.start(notifier(), surplus)
        }
    }

    fn may_search(&self, ino: INodeNo) -> bool {
        self.server.volume.may_search(Ino(ino.0))
    }

    /// Where a request is worked on, if not here.
    fn searching(&self, may_search: bool) -> Option<&JobPool> {
        may_search.then_some(&self.searches)
    }

    fn settling(&self, takes_long: bool) -> Option<&JobPool> {
        takes_long.then_some(&self.settling)
    }
}

impl Filesystem for Door {
    // Apart, because the library's frame would have room for it below each operation.
    #[cold]
    #[inline(never)]
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        shake_hands(config)?;
        // Of the filesystems below the store none is stacked on another, or it is not done.
        let can = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        config.set_max_stack_depth(1).map_err(out_of_range)?;
        self.server.volume.set_passthrough(can);
        Ok(())
    }

    fn destroy(&mut self) {
        if !self.searches.stop(super::mount::GRACE) {
            tracing::warn!("searches are still running, their answers are lost");
        }
        if !self.settling.stop(super::mount::GRACE) {
            tracing::warn!("large files are still being read, which closing the volume goes on with");
        }
        self.ending.session_ended();
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.server.surplus.look(&self.server.volume, parent);
        let (caller, name) = (caller(request), name.as_bytes());
        answer!(self, Op::Lookup, reply, search: self.may_search(parent), bytes: [name], |server, _| {
            server.volume.lookup(&caller, Ino(parent.0), name)
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        let forget = AssertUnwindSafe(|| self.server.volume.forget(Ino(ino.0), lookups));
        if let Err(panic) = catch_unwind(forget) {
            self.server.volume.metrics().panic();
            log_panic("forget", panic.as_ref());
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        answer!(self, Op::Getattr, reply, search: self.may_search(ino), bytes: [], |server, _| {
            server.volume.getattr(Ino(ino.0))
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let caller = caller(request);
        let set = convert::set_attr(mode, uid, gid, size, atime, mtime);
        let takes_long = size.is_some_and(|size| self.server.volume.resize_takes_long(Ino(ino.0), size));
        let pool = self.searching(self.may_search(ino)).or_else(|| self.settling(takes_long));
        answer!(self, Op::Setattr, reply, pool: pool, bytes: [], |server, _| {
            server.volume.setattr(&caller, Ino(ino.0), *set, handle.map(|handle| Handle(handle.0)))
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        answer!(self, Op::Readlink, reply, search: self.may_search(ino), bytes: [], |server, _| {
            server.volume.readlink(Ino(ino.0))
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (caller(request), name.as_bytes());
        answer!(self, Op::Mknod, reply, search: self.may_search(parent), bytes: [name], |server, _| {
            let kind = convert::kind_of_mode(mode)?;
            server.volume.mknod(&caller, Ino(parent.0), name, kind, convert::permissions(mode), rdev)
        });
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
        let (caller, name) = (caller(request), name.as_bytes());
        answer!(self, Op::Mkdir, reply, search: self.may_search(parent), bytes: [name], |server, _| {
            server.volume.mkdir(&caller, Ino(parent.0), name, convert::permissions(mode))
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request), name.as_bytes());
        answer!(self, Op::Unlink, reply, search: self.may_search(parent), bytes: [name], |server, _| {
            server.volume.unlink(&caller, Ino(parent.0), name)
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request), name.as_bytes());
        answer!(self, Op::Rmdir, reply, search: self.may_search(parent), bytes: [name], |server, _| {
            server.volume.rmdir(&caller, Ino(parent.0), name)
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (caller, name, target) = (caller(request), name.as_bytes(), target.as_os_str().as_bytes());
        answer!(self, Op::Symlink, reply, search: self.may_search(parent), bytes: [name, target], |server, _| {
            server.volume.symlink(&caller, Ino(parent.0), name, target)
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (caller, name, new_name) = (caller(request), name.as_bytes(), new_name.as_bytes());
        let search = self.may_search(parent) || self.may_search(new_parent);
        let (from, to) = ((Ino(parent.0), name), (Ino(new_parent.0), new_name));
        let takes_long = self.server.volume.rename_takes_long(from, to);
        let pool = self.searching(search).or_else(|| self.settling(takes_long));
        answer!(self, Op::Rename, reply, pool: pool, bytes: [name, new_name], |server, _| {
            let mode = convert::rename_mode(flags)?;
            server.volume.rename(&caller, (Ino(parent.0), name), (Ino(new_parent.0), new_name), mode)
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (caller, name) = (caller(request), name.as_bytes());
        let search = self.may_search(ino) || self.may_search(parent);
        let takes_long = self.server.volume.link_takes_long(Ino(ino.0), Ino(parent.0), name);
        let pool = self.searching(search).or_else(|| self.settling(takes_long));
        answer!(self, Op::Link, reply, pool: pool, bytes: [name], |server, _| {
            server.volume.link(&caller, Ino(ino.0), Ino(parent.0), name)
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (caller, flags) = (caller(request), convert::open_flags(flags.0));
        answer!(self, Op::Open, reply, search: self.may_search(ino), bytes: [], |server, out| {
            let opened = server.volume.open_file(&caller, Ino(ino.0), flags)?;
            Ok(server.passthrough.answer(&server.volume, ino.0, opened, flags, out))
        });
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
        let (caller, name, flags) = (caller(request), name.as_bytes(), convert::open_flags(flags));
        answer!(self, Op::Create, reply, search: self.may_search(parent), bytes: [name], |server, out| {
            let mode = convert::permissions(mode);
            let (attr, opened) = server.volume.create(&caller, Ino(parent.0), name, mode, flags)?;
            let open = server.passthrough.answer(&server.volume, attr.ino.0, opened, flags, out);
            Ok((attr, open))
        });
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let caller = caller(request);
        let search = self.server.volume.read_may_search(Handle(handle.0));
        answer!(self, Op::Read, reply, search: search, bytes: [], |server, _| {
            let mut buffer = server.volume.buffers().take(size as usize);
            server.volume.read(&caller, Handle(handle.0), offset, size, &mut buffer)?;
            Ok(buffer)
        });
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let caller = caller(request);
        let is_mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let search = self.server.volume.write_may_search(Handle(handle.0), data);
        answer!(self, Op::Write, reply, search: search, bytes: [data], |server, _| {
            let handle = Handle(handle.0);
            if is_mapped {
                return server.volume.write_mapped(&caller, handle, offset, data);
            }
            let written = server.volume.write(&caller, handle, offset, data)?;
            if convert::is_synchronous(flags.0) {
                server.sync_written(handle)?;
            }
            Ok(written)
        });
    }

    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let caller = caller(request);
        let search = self.server.volume.close_may_search(Handle(handle.0));
        let takes_long = self.server.volume.close_takes_long(Handle(handle.0));
        let pool = self.searching(search).or_else(|| self.settling(takes_long));
        answer!(self, Op::Flush, reply, pool: pool, bytes: [], |server, _| {
            server.volume.flush(&caller, Handle(handle.0))
        });
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Searches nothing: a snapshot with a handle is open. Nobody sees it refused, and the handle would stay.
        let pool = self.settling(self.server.volume.close_takes_long(Handle(handle.0)));
        answer!(self, Op::Release, reply, pool: pool, bytes: [], |server, _| {
            let released = server.volume.release(Handle(handle.0));
            server.passthrough.released(ino, Handle(handle.0));
            released
        });
    }

    fn fsync(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        answer!(self, Op::Fsync, reply, search: self.may_search(ino), bytes: [], |server, _| {
            server.volume.fsync(Handle(handle.0), data_only)
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let caller = caller(request);
        answer!(self, Op::Opendir, reply, search: self.may_search(ino), bytes: [], |server, _| {
            let handle = server.volume.open_dir(&caller, Ino(ino.0))?;
            Ok(Open { handle, flags: fuser::FopenFlags::empty(), backing: None })
        });
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let caller = caller(request);
        answer!(self, Op::Readdir, reply, search: self.may_search(ino), bytes: [], |server, out| {
            server.volume.read_dir(&caller, Handle(handle.0), offset, &mut |entry| {
                let (kind, name) = (convert::file_type(entry.kind), OsStr::from_bytes(entry.name));
                !out.add(INodeNo(entry.ino.0), entry.offset, kind, name)
            })
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.server.surplus.look(&self.server.volume, ino);
        let caller = caller(request);
        answer!(self, Op::Readdir, reply, search: self.may_search(ino), bytes: [], |server, out| {
            server.list_plus(&caller, (Ino(ino.0), Handle(handle.0)), offset, out)
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        // As a release.
        answer!(self, Op::Releasedir, reply, search: false, bytes: [], |server, _| {
            server.volume.release_dir(Handle(handle.0));
            Ok(())
        });
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        answer!(self, Op::Fsyncdir, reply, search: self.may_search(ino), bytes: [], |server, _| {
            server.volume.fsync_dir(Ino(ino.0))
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        answer!(self, Op::Statfs, reply, search: false, bytes: [], |server, _| server.volume.statfs());
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (caller, name) = (caller(request), name.as_bytes());
        answer!(self, Op::Setxattr, reply, search: self.may_search(ino), bytes: [name, value], |server, _| {
            let mode = convert::xattr_mode(flags)?;
            server.volume.setxattr(&caller, Ino(ino.0), name, value, mode)
        });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (caller, name) = (caller(request), name.as_bytes());
        let search = self.server.volume.xattr_may_search(Ino(ino.0), name);
        answer!(self, Op::Getxattr, reply, search: search, bytes: [name], |server, _| {
            xattr(server.volume.getxattr(&caller, Ino(ino.0), name)?, size)
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = caller(request);
        answer!(self, Op::Listxattr, reply, search: self.may_search(ino), bytes: [], |server, _| {
            xattr(server.volume.listxattr(&caller, Ino(ino.0))?.into(), size)
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request), name.as_bytes());
        answer!(self, Op::Removexattr, reply, search: self.may_search(ino), bytes: [name], |server, _| {
            server.volume.removexattr(&caller, Ino(ino.0), name)
        });
    }

    /// The mount has `default_permissions`, so the kernel checks and does not ask.
    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn ioctl(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        data: &[u8],
        room: u32,
        reply: ReplyIoctl,
    ) {
        let caller = caller(request);
        let search = is_ask(command).then(|| self.server.volume.ask_may_search(Handle(handle.0)));
        // What ioctl(2) says of a command that a file does not have.
        let Some(search) = search.flatten() else { return reply.error(Errno::ENOTTY) };
        answer!(self, Op::Ioctl, reply, search: search, bytes: [data], |server, _| {
            server.volume.ask(&caller, Handle(handle.0), data, room)
        });
    }

    /// The one `ENOSYS`: the kernel then never asks again and says of every file that it is ready for reading and
    /// writing, which is true here.
    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let caller = caller(request);
        answer!(self, Op::Fallocate, reply, search: self.may_search(ino), bytes: [], |server, _| {
            server.volume.fallocate(&caller, Handle(handle.0), offset, length, convert::allocate(mode)?)
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        answer!(self, Op::Lseek, reply, search: self.may_search(ino), bytes: [], |server, _| {
            let what = convert::seek(whence)?;
            // lseek(2): an offset before the beginning has neither data nor a hole.
            let offset = u64::try_from(offset).map_err(|_| Error::NoSuchOffset)?;
            let found = server.volume.seek(Handle(handle.0), offset, what)?;
            i64::try_from(found).map_err(|_| Error::NoSuchOffset)
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from_ino: INodeNo,
        from_handle: FileHandle,
        from_offset: u64,
        to_ino: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        length: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let caller = caller(request);
        let search = self.may_search(from_ino) || self.may_search(to_ino);
        answer!(self, Op::CopyFileRange, reply, search: search, bytes: [], |server, _| {
            if !flags.is_empty() {
                return Err(Error::Invalid("copy_file_range with flags"));
            }
            let length = length.min(MAX_COPY_BYTES);
            let (from, to) = (Handle(from_handle.0), Handle(to_handle.0));
            server.volume.copy_range(&caller, (from, from_offset), (to, to_offset), length)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::fuse::answer::Fail;
    use crate::volume::VolumeOptions;

    /// As fuser's replies: dropped unsent, it answers EIO.
    struct Reply(Option<Sender<std::result::Result<u32, i32>>>);

    impl Reply {
        fn send(mut self, answer: std::result::Result<u32, i32>) {
            self.0.take().unwrap().send(answer).unwrap();
        }
    }

    impl Fail for Reply {
        fn error(self, errno: Errno) {
            self.send(Err(errno.code()));
        }
    }

    impl Answer<u32> for Reply {
        fn ok(self, value: u32) {
            self.send(Ok(value));
        }
    }

    impl Drop for Reply {
        fn drop(&mut self) {
            if let Some(unsent) = self.0.take() {
                unsent.send(Err(libc::EIO)).unwrap();
            }
        }
    }

    fn volume(store: &Path) -> Arc<Volume> {
        let options = VolumeOptions { store: store.into(), mountpoint: None, read_only: false };
        Volume::open(options).unwrap()
    }

    #[test]
    fn each_request_gets_one_answer_and_a_panic_is_eio() {
        let store = tempfile::tempdir().unwrap();
        let volume = volume(&store.path().join("store"));
        let server = Server::new(volume.clone(), false);
        let (sender, answers) = channel();
        let started = Instant::now();
        let reply = || Reply(Some(sender.clone()));
        let write = (Worker::Request, Op::Write);
        server.answer(write, started, reply(), |_, _| Ok(7));
        server.answer(write, started, reply(), |_, _| Err(Error::ZeroVector { row: 0 }));
        server.answer(write, started, reply(), |_, _| panic!("a fault in a handler"));
        server.refuse(Op::Write, started, reply());
        let got: Vec<_> = answers.try_iter().collect();
        assert_eq!(got, [Ok(7), Err(libc::EDOM), Err(libc::EIO), Err(libc::EAGAIN)]);
        let counted = server.volume.metrics().render(&[]);
        assert!(counted.contains("vexfs_fuse_ops_total{op=\"write\",result=\"error\"} 3"), "{counted}");
        volume.close().unwrap();
    }

    #[test]
    fn what_may_search_takes_copies_of_its_bytes_to_the_pool() {
        let store = tempfile::tempdir().unwrap();
        let volume = volume(&store.path().join("store"));
        let door = Door::new(volume.clone(), Arc::new(Ending::new(volume.clone())), &MountOptions::default())
            .unwrap();
        let (sender, answers) = channel();
        for search in [false, true] {
            let (reply, threads) = (Reply(Some(sender.clone())), channel());
            let request = vec![1, 2, 3];
            let (bytes, thread) = (request.as_slice(), &threads.0);
            let thread = thread.clone();
            answer!(door, Op::Write, reply, search: search, bytes: [bytes], |_server, _| {
                thread.send(std::thread::current().id()).unwrap();
                Ok(bytes.iter().copied().map(u32::from).sum())
            });
            drop(request);
            let wait = Duration::from_secs(10);
            assert_eq!(answers.recv_timeout(wait), Ok(Ok(6)));
            let here = threads.1.recv_timeout(wait).unwrap() == std::thread::current().id();
            assert_eq!(here, !search);
        }
        volume.close().unwrap();
    }
}
