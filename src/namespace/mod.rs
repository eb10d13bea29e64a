//! The namespace: inodes, names, links and extended attributes, on the catalog. It knows no float: content is
//! an opaque reference into the store.
//!
//! Every changing method *stages* into a [`Batch`]; nothing is changed before the
//! volume commits it. Reads see the last commit. The caller holds [`Namespace::lock`] on every inode whose
//! record or entries it reads to decide, until the commit returned.
//!
//! **Invariant:** a directory's `size` is the number of its entries, its `nlink` is 2 + its subdirectories,
//! and a file's `nlink` is the number of its links. An inode without names has a record only while a
//! [`Mark::Orphan`] says so.

mod attributes;
mod changes;
pub mod check;
mod keys;
mod locks;
mod marks;
mod numbers;
mod paths;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use changes::{LINK_MAX, NewInode};
pub use keys::{NAME_MAX, check_name};
pub use locks::{AncestryGuard, InodeGuard};
pub use marks::Mark;

use crate::catalog::{Batch, Catalog, Table};
use crate::format::record;
use crate::store::{BlobId, SlotRef};
use crate::{Error, Result};

/// Number of an inode. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}

/// A point in time: seconds since 1970, possibly negative, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct Time {
    /// Whole seconds.
    pub secs: i64,
    /// 0..1_000_000_000.
    pub nanos: u32,
}

impl Time {
    /// The time of the system's clock.
    #[must_use]
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// The same point for the standard library, or `None` when it cannot represent it.
    #[must_use]
    pub fn to_system(self) -> Option<SystemTime> {
        let secs = Duration::from_secs(self.secs.unsigned_abs());
        let whole = if self.secs < 0 { UNIX_EPOCH.checked_sub(secs) } else { UNIX_EPOCH.checked_add(secs) };
        whole?.checked_add(Duration::from_nanos(u64::from(self.nanos)))
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        let whole = |secs: u64| i64::try_from(secs).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self { secs: whole(since.as_secs()), nanos: since.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => Self { secs: -whole(before.as_secs()), nanos: 0 },
                    nanos => Self { secs: -whole(before.as_secs()) - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link; the target is its inline content.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// Where the bytes of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Content {
    /// No bytes: the size is 0.
    Empty,
    /// In `Table::Inline`, under the inode's number.
    Inline,
    /// In a slot of the store; never written in place.
    Slot(SlotRef),
    /// In a blob. A sealed blob is named by vectors and never written in place.
    Blob {
        /// The blob.
        id: BlobId,
        /// Whether vectors are read from it.
        sealed: bool,
    },
}

/// The record of an inode.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Inode {
    /// Its number; not repeated in its record's bytes is fine, but kept here for the reader.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 12 of them (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names; for a directory 2 + its subdirectories.
    pub nlink: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Size in bytes; for a directory the number of its entries.
    pub size: u64,
    /// Last access, as set by utimensat (reads do not change it).
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// A directory's parent; the root's is itself. For others `Ino(0)`.
    pub parent: Ino,
    /// Where the bytes are.
    pub content: Content,
    /// Bytes of the names of its extended attributes, each with its NUL: what `listxattr` returns.
    pub xattrs: u32,
}

/// One name of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// The directory.
    pub parent: Ino,
    /// The name in it, 1..=255 bytes without `/` and NUL.
    pub name: Vec<u8>,
}

/// What a name in a directory names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
}

/// A directory's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// What it names.
    pub ino: Ino,
    /// Kind of what it names.
    pub kind: Kind,
}

/// Names on a catalog.
#[derive(Debug)]
pub struct Namespace {
    catalog: Arc<Catalog>,
    numbers: numbers::Numbers,
    locks: locks::Locks,
    /// How many inodes there are: directories, and others.
    directories: AtomicU64,
    others: AtomicU64,
}

impl Namespace {
    /// Opens the namespace, making the root directory (mode 0755, the process's user) on first use.
    ///
    /// # Errors
    ///
    /// `Corrupt`, or the catalog's errors.
    pub fn open(catalog: Arc<Catalog>) -> Result<Self> {
        let numbers = numbers::Numbers::open(&catalog)?;
        let (directories, others) = (AtomicU64::new(0), AtomicU64::new(0));
        let names = Self { catalog, numbers, locks: locks::Locks::new(), directories, others };
        match names.inode(Ino::ROOT) {
            Ok(_) => {}
            Err(Error::NotFound) => names.make_root()?,
            Err(error) => return Err(error),
        }
        Ok(names)
    }

    fn make_root(&self) -> Result<()> {
        let now = Time::now();
        let root = Inode {
            ino: Ino::ROOT,
            kind: Kind::Directory,
            mode: 0o755,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            nlink: 2,
            rdev: 0,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: Ino::ROOT,
            content: Content::Empty,
            xattrs: 0,
        };
        let mut batch = self.catalog.batch();
        self.put_inode(&mut batch, &root);
        batch.commit()
    }

    fn counter(&self, kind: Kind) -> &AtomicU64 {
        if kind == Kind::Directory { &self.directories } else { &self.others }
    }

    /// Counts an inode that is found at open.
    pub fn count(&self, inode: &Inode) {
        self.counter(inode.kind).fetch_add(1, Ordering::Relaxed);
    }

    /// How many inodes are not directories, and how many are: for statistics.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.others.load(Ordering::Relaxed), self.directories.load(Ordering::Relaxed))
    }

    /// A number for a new inode.
    ///
    /// # Errors
    ///
    /// The catalog's errors.
    pub fn allocate(&self) -> Result<Ino> {
        self.numbers.allocate(&self.catalog)
    }

    /// Exclusive use of `inos` (striped locks, taken in one order, so no deadlock). A thread that holds a guard
    /// must not ask for another.
    pub fn lock(&self, inos: &[Ino]) -> InodeGuard<'_> {
        self.locks.lock(inos)
    }

    /// Exclusive use of a directory and of what `name` in it names; `None` when that is nothing. The name is looked up
    /// once, unless somebody else has the inode.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Self::lookup).
    pub fn lock_entry(&self, parent: Ino, name: &[u8]) -> Result<Option<(Child, InodeGuard<'_>)>> {
        loop {
            let mut guard = self.locks.lock(&[parent]);
            let Some(child) = self.lookup(parent, name)? else { return Ok(None) };
            if self.locks.try_also(&mut guard, parent, child.ino) {
                return Ok(Some((child, guard)));
            }
            drop(guard);
            let guard = self.locks.lock(&[parent, child.ino]);
            if self.lookup(parent, name)? == Some(child) {
                return Ok(Some((child, guard)));
            }
        }
    }

    /// Exclusive use of every inode, for changes that reach over a whole subtree.
    pub fn lock_all(&self) -> InodeGuard<'_> {
        self.locks.lock_all()
    }

    /// While the guard lives no directory gets another parent. Taken before [`lock`](Self::lock).
    pub fn lock_ancestry(&self) -> AncestryGuard<'_> {
        self.locks.lock_ancestry()
    }

    /// The record of an inode.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        match self.catalog.get(Table::Inodes, &keys::ino(ino))? {
            Some(bytes) => record::decode("inodes", &bytes),
            None => Err(Error::NotFound),
        }
    }

    /// The record of a directory that can take entries.
    ///
    /// # Errors
    ///
    /// `NotFound` also for a directory that was removed and is still open; `NotDirectory`.
    pub fn directory(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::Directory if inode.nlink > 0 => Ok(inode),
            Kind::Directory => Err(Error::NotFound),
            _ => Err(Error::NotDirectory),
        }
    }

    /// Stages an inode's record.
    pub fn put_inode(&self, batch: &mut Batch<'_>, inode: &Inode) {
        batch.put(Table::Inodes, keys::ino(inode.ino), record::encode(inode));
    }

    /// Every inode's record, in order of their numbers.
    pub fn inodes(&self) -> impl Iterator<Item = Result<Inode>> + '_ {
        self.catalog.scan(Table::Inodes, b"", None).map(|pair| record::decode("inodes", &pair?.1))
    }

    /// The records of at most `limit` inodes behind `after`, in order of their numbers.
    ///
    /// # Errors
    ///
    /// `Corrupt`, or the catalog's errors.
    pub fn inodes_after(&self, after: Ino, limit: usize) -> Result<Vec<Inode>> {
        let after = keys::ino(after);
        let pairs = self.catalog.scan(Table::Inodes, b"", Some(&after)).take(limit);
        pairs.map(|pair| record::decode("inodes", &pair?.1)).collect()
    }

    /// What the entry `name` in directory `parent` names.
    ///
    /// # Errors
    ///
    /// `Corrupt`, or the catalog's errors.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Child>> {
        match keys::with_named(parent, name, |key| self.catalog.get(Table::Dentries, key))? {
            Some(bytes) => child(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Entries of a directory in name order after `after`, at most `limit`.
    ///
    /// # Errors
    ///
    /// `Corrupt`, or the catalog's errors.
    pub fn entries(&self, dir: Ino, after: Option<&[u8]>, limit: usize) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.each_entry(dir, after, limit, |name, Child { ino, kind }| {
            entries.push(Entry { name: name.to_vec(), ino, kind });
        })?;
        Ok(entries)
    }

    /// Calls `visit` with each of them, and returns how many there were.
    ///
    /// # Errors
    ///
    /// `Corrupt`, or the catalog's errors.
    pub fn each_entry(
        &self,
        dir: Ino,
        after: Option<&[u8]>,
        limit: usize,
        mut visit: impl FnMut(&[u8], Child),
    ) -> Result<usize> {
        let mut count = 0;
        for pair in self.catalog.scan(Table::Dentries, &keys::ino(dir), after).take(limit) {
            let (name, bytes) = pair?;
            visit(&name, child(&bytes)?);
            count += 1;
        }
        Ok(count)
    }
}

fn child(bytes: &[u8]) -> Result<Child> {
    let (ino, kind) = record::decode("dentries", bytes)?;
    Ok(Child { ino, kind })
}

#[cfg(test)]
mod testing {
    //! A namespace in a temporary directory, for the tests of this room.

    use super::*;

    pub(super) struct Tree {
        pub(super) names: Namespace,
        _dir: tempfile::TempDir,
    }

    impl Tree {
        pub(super) fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let catalog = Arc::new(Catalog::open(dir.path()).unwrap());
            Self { names: Namespace::open(catalog).unwrap(), _dir: dir }
        }

        pub(super) fn new_inode(&self, kind: Kind) -> NewInode {
            let ino = self.names.allocate().unwrap();
            NewInode { ino, kind, mode: 0o644, uid: 0, gid: 0, rdev: 0, size: 0, content: Content::Empty }
        }

        pub(super) fn make(&self, parent: Ino, name: &[u8], kind: Kind) -> Inode {
            let new = self.new_inode(kind);
            let parent = self.names.directory(parent).unwrap();
            let mut made = None;
            self.change(|names, batch| {
                let inode = names.create(batch, parent, name, new, Time::default()).unwrap();
                names.put_inode(batch, &inode);
                made = Some(inode);
            });
            made.unwrap()
        }

        pub(super) fn change(&self, stage: impl FnOnce(&Namespace, &mut Batch<'_>)) {
            let mut batch = self.names.catalog.batch();
            stage(&self.names, &mut batch);
            batch.commit().unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Tree;
    use super::*;

    #[test]
    fn the_root_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Namespace::open(Arc::new(Catalog::open(dir.path()).unwrap())).unwrap();
        let first = open().inode(Ino::ROOT).unwrap();
        assert_eq!((first.nlink, first.size, first.parent, first.mode), (2, 0, Ino::ROOT, 0o755));
        assert_eq!(open().inode(Ino::ROOT).unwrap(), first);
    }

    #[test]
    fn entries_are_listed_in_pages_in_byte_order() {
        let tree = Tree::new();
        for name in [&b"b"[..], b"a", b"a-", b"\xff"] {
            tree.make(Ino::ROOT, name, Kind::File);
        }
        let names = |after: Option<&[u8]>, limit| -> Vec<Vec<u8>> {
            let page = tree.names.entries(Ino::ROOT, after, limit).unwrap();
            page.into_iter().map(|entry| entry.name).collect()
        };
        assert_eq!(names(None, 2), [&b"a"[..], b"a-"]);
        assert_eq!(names(Some(b"a-"), 9), [&b"b"[..], b"\xff"]);
        assert!(tree.names.entries(Ino(99), None, 9).unwrap().is_empty());
    }

    #[test]
    fn times_before_1970_survive_the_way_through_the_standard_library() {
        for time in [
            Time { secs: 0, nanos: 0 },
            Time { secs: -1, nanos: 999_999_999 },
            Time { secs: -5, nanos: 0 },
            Time { secs: 1 << 33, nanos: 1 },
        ] {
            assert_eq!(Time::from(time.to_system().unwrap()), time);
        }
        assert!(Time::now().secs > 1_600_000_000);
    }
}
