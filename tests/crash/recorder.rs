//! Records what system calls do below a directory, and makes them fail when asked.
//!
//! [`interpose`](crate::interpose) passes every call of the process here. A call on something else goes to the
//! kernel at once. One on a recorded directory is done under a lock and appended to its tape, so the order on the
//! tape is the order in which the kernel saw the calls. Syncs are recorded and not done: the disk is simulated.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::ops::{Deref, DerefMut};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::image::{Entry, Event, Image, Node, NodeId, ROOT};

/// What a system call is for, as far as failing it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Open,
    Read,
    Write,
    Sync,
    Resize,
    Allocate,
    Names,
    Map,
}

/// How a system call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With this number, and nothing done.
    Errno(c_int),
    /// Half of the bytes are written, and the next call fails because the disk is full.
    Short,
}

/// Makes calls of one kind fail, from the `nth` on, or only that one.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub call: Call,
    pub nth: usize,
    pub sticky: bool,
    pub failure: Failure,
}

/// What was recorded.
#[derive(Clone, Debug)]
pub struct Tape {
    /// The directory before the first event.
    pub start: Image,
    pub events: Vec<Event>,
}

/// A directory that is recorded until this is dropped.
#[derive(Debug)]
pub struct Recording {
    id: usize,
}

struct Disk {
    id: usize,
    dir: PathBuf,
    tape: Tape,
    /// What the process sees.
    now: Image,
    next: NodeId,
    fault: Option<Fault>,
    counts: BTreeMap<Call, usize>,
    /// What the recorder cannot follow.
    violations: Vec<String>,
}

struct Open {
    disk: usize,
    node: NodeId,
    append: bool,
}

#[derive(Default)]
struct Table {
    disks: Vec<Disk>,
    fds: BTreeMap<c_int, Open>,
    next_id: usize,
}

/// Recordings under way: calls of a process without any take no lock.
static RECORDINGS: AtomicUsize = AtomicUsize::new(0);

static TABLE: Mutex<Table> = Mutex::new(Table { disks: Vec::new(), fds: BTreeMap::new(), next_id: 0 });

impl Recording {
    /// Begins to record what happens in `dir`, which holds what `start` says.
    pub fn start(dir: &Path, start: Image) -> Self {
        let dir = dir.canonicalize().unwrap();
        let mut table = lock();
        table.next_id += 1;
        let id = table.next_id;
        let next = start.nodes.keys().next_back().map_or(1, |last| last + 1);
        table.disks.push(Disk {
            id,
            dir,
            now: start.clone(),
            tape: Tape { start, events: Vec::new() },
            next,
            fault: None,
            counts: BTreeMap::new(),
            violations: Vec::new(),
        });
        RECORDINGS.fetch_add(1, Ordering::SeqCst);
        Self { id }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Disk) -> T) -> T {
        let mut table = lock();
        look(table.disks.iter_mut().find(|disk| disk.id == self.id).expect("it is being recorded"))
    }

    /// Events so far.
    pub fn position(&self) -> usize {
        self.with(|disk| disk.tape.events.len())
    }

    /// What was recorded so far.
    pub fn tape(&self) -> Tape {
        self.with(|disk| {
            assert!(disk.violations.is_empty(), "not recorded: {:?}", disk.violations);
            disk.tape.clone()
        })
    }

    /// Makes calls fail from now on, counted from now on.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.with(|disk| {
            disk.fault = fault;
            disk.counts.clear();
        });
    }

    /// Calls of each kind since the last [`set_fault`](Self::set_fault).
    pub fn counts(&self) -> BTreeMap<Call, usize> {
        self.with(|disk| disk.counts.clone())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut table = lock();
        table.disks.retain(|disk| disk.id != self.id);
        table.fds.retain(|_, open| open.disk != self.id);
        RECORDINGS.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Disk {
    fn log(&mut self, event: Event) {
        self.now.apply(&event);
        self.tape.events.push(event);
    }

    /// Counts a call; how it is to fail.
    fn fails(&mut self, call: Call) -> Option<Failure> {
        let count = self.counts.entry(call).or_default();
        *count += 1;
        let fault = self.fault.filter(|fault| fault.call == call)?;
        match fault.failure {
            Failure::Short if *count == fault.nth => Some(Failure::Short),
            Failure::Short => (*count == fault.nth + 1 || fault.sticky && *count > fault.nth)
                .then_some(Failure::Errno(libc::ENOSPC)),
            failure => (*count == fault.nth || fault.sticky && *count > fault.nth).then_some(failure),
        }
    }

    fn len(&self, node: NodeId) -> u64 {
        match &self.now.nodes[&node] {
            Node::File(bytes) => bytes.len,
            Node::Dir(_) => 0,
        }
    }

    /// The entry that a path below the directory names; `None` for the directory itself and where a directory on
    /// the way is missing.
    fn entry(&self, below: &[u8]) -> Option<Entry> {
        let mut names = below.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).peekable();
        let mut dir = ROOT;
        while let Some(name) = names.next() {
            let at = Entry { dir, name: name.to_vec() };
            if names.peek().is_none() {
                return Some(at);
            }
            dir = self.now.child(&at)?;
        }
        None
    }
}

impl Table {
    fn by_fd(&mut self, fd: c_int) -> Option<(&mut Disk, NodeId, bool)> {
        let open = self.fds.get(&fd)?;
        let (node, append, id) = (open.node, open.append, open.disk);
        Some((self.disks.iter_mut().find(|disk| disk.id == id)?, node, append))
    }

    /// As [`by_fd`](Self::by_fd), for files only: a directory's descriptor may have been closed by the C library
    /// itself and its number may mean something else.
    fn file(&mut self, fd: c_int) -> Option<(&mut Disk, NodeId, bool)> {
        self.by_fd(fd).filter(|(disk, node, _)| matches!(disk.now.nodes.get(node), Some(Node::File(_))))
    }

    fn by_path(&mut self, dirfd: c_int, path: &[u8]) -> Option<(&mut Disk, Option<Entry>)> {
        if !path.starts_with(b"/") {
            let (disk, node, _) = self.by_fd(dirfd)?;
            return Some((disk, Some(Entry { dir: node, name: path.to_vec() })));
        }
        let disk = self.disks.iter_mut().find(|disk| {
            let below = path.strip_prefix(disk.dir.as_os_str().as_bytes());
            below.is_some_and(|below| below.is_empty() || below.starts_with(b"/"))
        })?;
        let entry = disk.entry(&path[disk.dir.as_os_str().len()..]);
        Some((disk, entry))
    }
}

thread_local! {
    /// Whether this thread has the table locked: what a panic opens and prints then is nobody's.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn is_idle() -> bool {
    RECORDINGS.load(Ordering::SeqCst) == 0 || IS_INSIDE.get()
}

/// The table, locked.
struct Locked(MutexGuard<'static, Table>);

fn lock() -> Locked {
    let guard = TABLE.lock();
    IS_INSIDE.set(true);
    Locked(guard)
}

impl Deref for Locked {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.0
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        IS_INSIDE.set(false);
    }
}

/// Fails a call with a number.
fn fail(errno: c_int) -> i64 {
    nix::errno::Errno::from_raw(errno).set();
    -1
}

pub fn open(dirfd: c_int, path: &[u8], flags: c_int, real: impl FnOnce() -> i64) -> i64 {
    if is_idle() {
        return real();
    }
    let mut table = lock();
    let Some((disk, entry)) = table.by_path(dirfd, path) else {
        let opened = real();
        table.fds.remove(&(opened as c_int));
        return opened;
    };
    if let Some(Failure::Errno(errno)) = disk.fails(Call::Open) {
        return fail(errno);
    }
    let opened = real();
    if opened < 0 {
        return opened;
    }
    let found = entry.as_ref().map_or(Some(ROOT), |at| disk.now.child(at));
    let node = match (found, entry) {
        (Some(node), _) => {
            if flags & libc::O_TRUNC != 0 && disk.len(node) > 0 {
                disk.log(Event::Resize { node, len: 0 });
            }
            node
        }
        (None, Some(at)) if flags & libc::O_CREAT != 0 && flags & libc::O_TMPFILE != libc::O_TMPFILE => {
            let node = disk.next;
            disk.next += 1;
            disk.log(Event::Make { node, is_dir: false, at });
            node
        }
        (None, _) => {
            disk.violations.push(format!("open {} with {flags:#x}", String::from_utf8_lossy(path)));
            ROOT
        }
    };
    let open = Open { disk: disk.id, node, append: flags & libc::O_APPEND != 0 };
    table.fds.insert(opened as c_int, open);
    opened
}

pub fn close(fd: c_int, real: impl FnOnce() -> i64) -> i64 {
    if !is_idle() {
        // Before the kernel can give the number to somebody else.
        lock().fds.remove(&fd);
    }
    real()
}

/// A call that returns another descriptor of the same file.
pub fn duplicate(fd: c_int, real: impl FnOnce() -> i64) -> i64 {
    if is_idle() {
        return real();
    }
    let mut table = lock();
    let new = real();
    if new >= 0 {
        table.fds.remove(&(new as c_int));
        if let Some(open) = table.fds.get(&fd) {
            let open = Open { ..*open };
            table.fds.insert(new as c_int, open);
        }
    }
    new
}

pub fn read(fd: c_int, real: impl FnOnce() -> i64) -> i64 {
    if !is_idle()
        && let Some((disk, ..)) = lock().file(fd)
        && let Some(Failure::Errno(errno)) = disk.fails(Call::Read)
    {
        return fail(errno);
    }
    real()
}

/// `offset` is where the bytes go; `None`: where the descriptor stands, which `tell` asks.
pub fn write(
    fd: c_int,
    data: &[u8],
    offset: Option<u64>,
    tell: impl FnOnce() -> u64,
    real: impl FnOnce(&[u8]) -> i64,
) -> i64 {
    if is_idle() {
        return real(data);
    }
    let mut table = lock();
    let Some((disk, node, append)) = table.file(fd) else {
        drop(table);
        return real(data);
    };
    let data = match disk.fails(Call::Write) {
        Some(Failure::Errno(errno)) => return fail(errno),
        Some(Failure::Short) if data.len() > 1 => &data[..data.len() / 2],
        _ => data,
    };
    let offset = match offset {
        _ if append => disk.len(node),
        Some(offset) => offset,
        None => tell(),
    };
    let written = real(data);
    if let Ok(count) = usize::try_from(written) {
        disk.log(Event::Write { node, offset, data: data[..count].into() });
    }
    written
}

/// A call that puts bytes of another file at `offset`: `source` reads what it copied there.
pub fn copy(
    fd: c_int,
    offset: u64,
    real: impl FnOnce() -> i64,
    source: impl FnOnce(usize) -> Vec<u8>,
) -> i64 {
    change(fd, Call::Write, real, |node, _, count| {
        Some(Event::Write { node, offset, data: source(count).into() })
    })
}

/// A call that would change a file in a way that cannot be recorded: it is refused, and the caller does without.
pub fn refuse(fd: c_int, errno: c_int, real: impl FnOnce() -> i64) -> i64 {
    if !is_idle() && lock().file(fd).is_some() {
        return fail(errno);
    }
    real()
}

pub fn sync(fd: c_int, of_all: bool, real: impl FnOnce() -> i64) -> i64 {
    if is_idle() {
        return real();
    }
    let mut table = lock();
    let Some((disk, node, _)) = table.by_fd(fd) else {
        drop(table);
        return real();
    };
    if let Some(Failure::Errno(errno)) = disk.fails(Call::Sync) {
        return fail(errno);
    }
    disk.log(if of_all { Event::SyncAll } else { Event::Sync { node } });
    0
}

pub fn resize(fd: c_int, len: u64, real: impl FnOnce() -> i64) -> i64 {
    change(fd, Call::Resize, real, |node, _, _| Some(Event::Resize { node, len }))
}

pub fn allocate(fd: c_int, mode: c_int, offset: u64, len: u64, real: impl FnOnce() -> i64) -> i64 {
    change(fd, Call::Allocate, real, |node, before, _| {
        let end = offset + len;
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            Some(Event::Zero { node, offset, len })
        } else {
            (!keeps_size && end > before).then_some(Event::Resize { node, len: end })
        }
    })
}

/// A change of a file: `event` is told its length before, and what the call returned.
fn change(
    fd: c_int,
    call: Call,
    real: impl FnOnce() -> i64,
    event: impl FnOnce(NodeId, u64, usize) -> Option<Event>,
) -> i64 {
    if is_idle() {
        return real();
    }
    let mut table = lock();
    let Some((disk, node, _)) = table.file(fd) else {
        drop(table);
        return real();
    };
    if let Some(Failure::Errno(errno)) = disk.fails(call) {
        return fail(errno);
    }
    let done = real();
    if let Ok(count) = usize::try_from(done)
        && let Some(event) = event(node, disk.len(node), count)
    {
        disk.log(event);
    }
    done
}

/// A change of one name: a directory made, a name removed.
pub fn name(dirfd: c_int, path: &[u8], makes_dir: bool, real: impl FnOnce() -> i64) -> i64 {
    if is_idle() {
        return real();
    }
    let mut table = lock();
    let Some((disk, entry)) = table.by_path(dirfd, path) else {
        drop(table);
        return real();
    };
    if let Some(Failure::Errno(errno)) = disk.fails(Call::Names) {
        return fail(errno);
    }
    let done = real();
    if done >= 0
        && let Some(at) = entry
    {
        let node = disk.next;
        disk.next += 1;
        disk.log(if makes_dir { Event::Make { node, is_dir: true, at } } else { Event::Unlink { at } });
    }
    done
}

/// What a change of two names does with the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    Goes,
    Stays,
    IsExchanged,
}

/// A change of two names. Descriptors of directories are not followed here: nothing passes them. A symbolic link, which
/// nothing that matters is reached through, counts as one more name.
pub fn rename(from: &[u8], to: &[u8], old: Old, real: impl FnOnce() -> i64) -> i64 {
    if is_idle() {
        return real();
    }
    let mut table = lock();
    let to_entry = table.by_path(-1, to).map(|(disk, entry)| (disk.id, entry));
    let Some((disk, from_entry)) = table.by_path(-1, from) else {
        drop(table);
        return real();
    };
    if let Some(Failure::Errno(errno)) = disk.fails(Call::Names) {
        return fail(errno);
    }
    let done = real();
    if done >= 0 {
        match (from_entry, to_entry) {
            (Some(from), Some((id, Some(to)))) if id == disk.id => {
                let event = match (disk.now.child(&from), old) {
                    (Some(node), Old::Stays) => Event::Link { node, at: to },
                    (_, Old::IsExchanged) => Event::Exchange { from, to },
                    _ => Event::Rename { from, to },
                };
                disk.log(event);
            }
            _ => disk.violations.push(format!("rename {}", String::from_utf8_lossy(from))),
        }
    }
    done
}

pub fn map(fd: c_int, is_shared_for_writing: bool, real: impl FnOnce() -> i64) -> i64 {
    if is_idle() || fd < 0 {
        return real();
    }
    let mut table = lock();
    if let Some((disk, ..)) = table.file(fd) {
        if is_shared_for_writing {
            // What is stored through one is not seen here. The one that is wanted has `pwrite` to fall back on.
            return fail(libc::ENODEV);
        }
        if let Some(Failure::Errno(errno)) = disk.fails(Call::Map) {
            return fail(errno);
        }
    }
    drop(table);
    real()
}
