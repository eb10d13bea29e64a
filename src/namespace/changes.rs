//! Changes of names: create, link, unlink, remove a directory, rename, exchange.
//!
//! Each method stages the entries and the records of the *parents*. The record of the inode that was named,
//! renamed or un-named is changed in the caller's hands and staged by the caller, who may have more to change
//! in it: a key is staged once in a batch.

use std::sync::atomic::Ordering;

use super::{Content, Ino, Inode, Kind, Link, Namespace, Time, keys};
use crate::catalog::{Batch, Table};
use crate::format::record;
use crate::{Error, Result};

/// Most names that one file can have.
pub const LINK_MAX: u32 = 65_000;

/// The fields that an inode is created with; the rest follows from them.
#[derive(Clone, Debug)]
pub struct NewInode {
    /// From [`Namespace::allocate`].
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Size in bytes of its content.
    pub size: u64,
    /// Where the content is.
    pub content: Content,
}

impl Namespace {
    /// Stages a new inode under `name` in `parent`, and returns it. The caller stages its record.
    ///
    /// # Errors
    ///
    /// `Exists`, `TooManyLinks`, a bad name.
    pub fn create(
        &self,
        batch: &mut Batch<'_>,
        mut parent: Inode,
        name: &[u8],
        new: NewInode,
        now: Time,
    ) -> Result<Inode> {
        self.check_free(parent.ino, name)?;
        let is_directory = new.kind == Kind::Directory;
        let inode = Inode {
            ino: new.ino,
            kind: new.kind,
            mode: new.mode & 0o7777,
            uid: new.uid,
            gid: new.gid,
            nlink: if is_directory { 2 } else { 1 },
            rdev: new.rdev,
            size: new.size,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: if is_directory { parent.ino } else { Ino(0) },
            content: new.content,
            xattrs: 0,
        };
        gain(&mut parent, inode.kind, now)?;
        self.put_name(batch, &Link { parent: parent.ino, name: name.to_vec() }, &inode);
        self.put_inode(batch, &parent);
        self.count(&inode);
        Ok(inode)
    }

    /// Stages one more name of a file.
    ///
    /// # Errors
    ///
    /// `NotPermitted` for a directory, `NotFound` for a file without names, `TooManyLinks`, `Exists`, a bad
    /// name.
    pub fn link(
        &self,
        batch: &mut Batch<'_>,
        mut parent: Inode,
        name: &[u8],
        inode: &mut Inode,
        now: Time,
    ) -> Result<()> {
        if inode.kind == Kind::Directory {
            return Err(Error::NotPermitted);
        }
        if inode.nlink == 0 {
            return Err(Error::NotFound);
        }
        if inode.nlink >= LINK_MAX {
            return Err(Error::TooManyLinks);
        }
        self.check_free(parent.ino, name)?;
        gain(&mut parent, inode.kind, now)?;
        inode.nlink += 1;
        inode.ctime = now;
        self.put_name(batch, &Link { parent: parent.ino, name: name.to_vec() }, inode);
        self.put_inode(batch, &parent);
        Ok(())
    }

    /// Stages the removal of one name of a file. With `nlink` 0 the caller destroys or orphans it.
    ///
    /// # Errors
    ///
    /// `IsDirectory`.
    pub fn unlink(
        &self,
        batch: &mut Batch<'_>,
        mut parent: Inode,
        name: &[u8],
        inode: &mut Inode,
        now: Time,
    ) -> Result<()> {
        if inode.kind == Kind::Directory {
            return Err(Error::IsDirectory);
        }
        lose(&mut parent, inode.kind, now);
        self.remove_name(batch, &Link { parent: parent.ino, name: name.to_vec() }, inode.ino);
        drop_link(inode, now);
        self.put_inode(batch, &parent);
        Ok(())
    }

    /// Stages the removal of an empty directory. The caller destroys or orphans it.
    ///
    /// # Errors
    ///
    /// `NotDirectory`, `NotEmpty`.
    pub fn remove_dir(
        &self,
        batch: &mut Batch<'_>,
        mut parent: Inode,
        name: &[u8],
        dir: &mut Inode,
        now: Time,
    ) -> Result<()> {
        if dir.kind != Kind::Directory {
            return Err(Error::NotDirectory);
        }
        if dir.size > 0 {
            return Err(Error::NotEmpty);
        }
        lose(&mut parent, dir.kind, now);
        self.remove_name(batch, &Link { parent: parent.ino, name: name.to_vec() }, dir.ino);
        drop_link(dir, now);
        self.put_inode(batch, &parent);
        Ok(())
    }

    /// Stages a rename, over `replaced` when something is there.
    ///
    /// `moved` is what `from` names, `replaced` what `to` names; the two differ. After it the caller stages
    /// `moved`, and stages or destroys `replaced` as after [`unlink`](Self::unlink). When a directory gets
    /// another parent the caller holds [`lock_ancestry`](Self::lock_ancestry).
    ///
    /// # Errors
    ///
    /// `Invalid` for a directory into its own subtree; `NotDirectory` and `IsDirectory` when one is a
    /// directory and the other is not; `NotEmpty`; `TooManyLinks`; a bad name.
    pub fn rename(
        &self,
        batch: &mut Batch<'_>,
        (from, to): (&Link, &Link),
        moved: &mut Inode,
        replaced: Option<&mut Inode>,
        now: Time,
    ) -> Result<()> {
        keys::check_name(&to.name)?;
        self.refuse_cycle(moved, from.parent, to.parent)?;
        let mut parents = self.parents(from.parent, to.parent)?;
        if let Some(replaced) = replaced {
            match (moved.kind == Kind::Directory, replaced.kind == Kind::Directory) {
                (true, false) => return Err(Error::NotDirectory),
                (false, true) => return Err(Error::IsDirectory),
                (true, true) if replaced.size > 0 => return Err(Error::NotEmpty),
                _ => {}
            }
            lose(parents.to(), replaced.kind, now);
            batch.remove(Table::Links, keys::link(replaced.ino, to));
            drop_link(replaced, now);
        }
        lose(&mut parents.from, moved.kind, now);
        gain(parents.to(), moved.kind, now)?;
        self.remove_name(batch, from, moved.ino);
        arrive(moved, to.parent, now);
        self.put_name(batch, to, moved);
        parents.stage(self, batch);
        Ok(())
    }

    /// Stages the exchange of two names. `first` is what `from` names, `second` what `to` names; the two
    /// differ. After it the caller stages both. When a directory gets another parent the caller holds
    /// [`lock_ancestry`](Self::lock_ancestry).
    ///
    /// # Errors
    ///
    /// `Invalid` for a directory into its own subtree, `TooManyLinks`.
    pub fn exchange(
        &self,
        batch: &mut Batch<'_>,
        (from, to): (&Link, &Link),
        (first, second): (&mut Inode, &mut Inode),
        now: Time,
    ) -> Result<()> {
        self.refuse_cycle(first, from.parent, to.parent)?;
        self.refuse_cycle(second, to.parent, from.parent)?;
        let mut parents = self.parents(from.parent, to.parent)?;
        lose(&mut parents.from, first.kind, now);
        gain(&mut parents.from, second.kind, now)?;
        lose(parents.to(), second.kind, now);
        gain(parents.to(), first.kind, now)?;
        batch.remove(Table::Links, keys::link(first.ino, from));
        batch.remove(Table::Links, keys::link(second.ino, to));
        arrive(first, to.parent, now);
        arrive(second, from.parent, now);
        self.put_name(batch, to, first);
        self.put_name(batch, from, second);
        parents.stage(self, batch);
        Ok(())
    }

    /// Stages the end of an inode: its record and its attributes. Its content and its marks are the caller's.
    ///
    /// # Errors
    ///
    /// The catalog's errors.
    pub fn destroy(&self, batch: &mut Batch<'_>, inode: &Inode) -> Result<()> {
        batch.remove(Table::Inodes, keys::ino(inode.ino));
        self.counter(inode.kind).fetch_sub(1, Ordering::Relaxed);
        self.remove_xattrs(batch, inode)
    }

    fn check_free(&self, parent: Ino, name: &[u8]) -> Result<()> {
        keys::check_name(name)?;
        match self.lookup(parent, name)? {
            Some(_) => Err(Error::Exists),
            None => Ok(()),
        }
    }

    /// Stages a name alone: neither the directory nor the inode counts it. Repairs count afterwards.
    pub fn put_name(&self, batch: &mut Batch<'_>, link: &Link, inode: &Inode) {
        batch.put(
            Table::Dentries,
            keys::named(link.parent, &link.name),
            record::encode(&(inode.ino, inode.kind)),
        );
        batch.put(Table::Links, keys::link(inode.ino, link), b"");
    }

    /// Stages the removal of a name alone: see [`put_name`](Self::put_name).
    pub fn remove_name(&self, batch: &mut Batch<'_>, link: &Link, ino: Ino) {
        batch.remove(Table::Dentries, keys::named(link.parent, &link.name));
        batch.remove(Table::Links, keys::link(ino, link));
    }

    fn refuse_cycle(&self, moved: &Inode, from: Ino, to: Ino) -> Result<()> {
        let is_moved_directory = moved.kind == Kind::Directory && from != to;
        if is_moved_directory && self.is_below(to, moved.ino)? {
            return Err(Error::Invalid("a directory cannot be moved into itself"));
        }
        Ok(())
    }

    fn parents(&self, from: Ino, to: Ino) -> Result<Parents> {
        let other = if from == to { None } else { Some(self.directory(to)?) };
        Ok(Parents { from: self.directory(from)?, other })
    }
}

/// The directories of a rename: one record when they are the same.
struct Parents {
    from: Inode,
    other: Option<Inode>,
}

impl Parents {
    fn to(&mut self) -> &mut Inode {
        self.other.as_mut().unwrap_or(&mut self.from)
    }

    fn stage(&self, names: &Namespace, batch: &mut Batch<'_>) {
        names.put_inode(batch, &self.from);
        if let Some(other) = &self.other {
            names.put_inode(batch, other);
        }
    }
}

/// A directory gains an entry.
fn gain(parent: &mut Inode, kind: Kind, now: Time) -> Result<()> {
    parent.size += 1;
    if kind == Kind::Directory {
        parent.nlink = parent.nlink.checked_add(1).ok_or(Error::TooManyLinks)?;
    }
    parent.mtime = now;
    parent.ctime = now;
    Ok(())
}

/// A directory loses an entry.
fn lose(parent: &mut Inode, kind: Kind, now: Time) {
    parent.size = parent.size.saturating_sub(1);
    if kind == Kind::Directory {
        parent.nlink = parent.nlink.saturating_sub(1);
    }
    parent.mtime = now;
    parent.ctime = now;
}

/// An inode loses a name; a directory its only one.
fn drop_link(inode: &mut Inode, now: Time) {
    inode.nlink = if inode.kind == Kind::Directory { 0 } else { inode.nlink.saturating_sub(1) };
    inode.ctime = now;
}

/// An inode gets its name in another directory.
fn arrive(inode: &mut Inode, parent: Ino, now: Time) {
    inode.ctime = now;
    if inode.kind == Kind::Directory {
        inode.parent = parent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::testing::Tree;

    fn link(parent: Ino, name: &[u8]) -> Link {
        Link { parent, name: name.to_vec() }
    }

    #[test]
    fn entries_and_link_counts_follow_create_and_remove() {
        let tree = Tree::new();
        let mut dir = tree.make(Ino::ROOT, b"d", Kind::Directory);
        tree.make(Ino::ROOT, b"f", Kind::File);
        let root = tree.names.inode(Ino::ROOT).unwrap();
        assert_eq!((root.nlink, root.size), (3, 2));
        assert_eq!((dir.nlink, dir.parent), (2, Ino::ROOT));
        tree.change(|names, batch| {
            names.remove_dir(batch, root, b"d", &mut dir, Time::default()).unwrap();
            names.destroy(batch, &dir).unwrap();
        });
        let root = tree.names.inode(Ino::ROOT).unwrap();
        assert_eq!((root.nlink, root.size), (2, 1));
        assert!(matches!(tree.names.inode(dir.ino), Err(Error::NotFound)));
        assert!(matches!(tree.names.directory_name(dir.ino), Err(Error::NotFound)));
    }

    #[test]
    fn a_taken_name_and_a_full_directory_are_refused() {
        let tree = Tree::new();
        let mut dir = tree.make(Ino::ROOT, b"d", Kind::Directory);
        tree.make(dir.ino, b"f", Kind::File);
        dir = tree.names.inode(dir.ino).unwrap();
        tree.change(|names, batch| {
            let root = names.directory(Ino::ROOT).unwrap();
            let new = tree.new_inode(Kind::File);
            let taken = names.create(batch, root.clone(), b"d", new, Time::default());
            assert!(matches!(taken, Err(Error::Exists)));
            let full = names.remove_dir(batch, root, b"d", &mut dir, Time::default());
            assert!(matches!(full, Err(Error::NotEmpty)));
            assert!(batch.is_empty());
        });
    }

    #[test]
    fn every_name_of_a_file_is_a_link() {
        let tree = Tree::new();
        let mut file = tree.make(Ino::ROOT, b"b", Kind::File);
        tree.change(|names, batch| {
            let root = names.directory(Ino::ROOT).unwrap();
            names.link(batch, root, b"a", &mut file, Time::default()).unwrap();
            names.put_inode(batch, &file);
        });
        assert_eq!(tree.names.links(file.ino).unwrap(), [link(Ino::ROOT, b"a"), link(Ino::ROOT, b"b")]);
        assert_eq!(tree.names.inode(file.ino).unwrap().nlink, 2);
        tree.change(|names, batch| {
            let root = names.directory(Ino::ROOT).unwrap();
            names.unlink(batch, root, b"b", &mut file, Time::default()).unwrap();
            names.put_inode(batch, &file);
        });
        assert_eq!(tree.names.links(file.ino).unwrap(), [link(Ino::ROOT, b"a")]);
    }

    #[test]
    fn a_moved_directory_takes_its_link_to_the_parent_along() {
        let tree = Tree::new();
        let a = tree.make(Ino::ROOT, b"a", Kind::Directory).ino;
        let b = tree.make(Ino::ROOT, b"b", Kind::Directory).ino;
        let mut moved = tree.make(a, b"d", Kind::Directory);
        tree.change(|names, batch| {
            let links = (&link(a, b"d"), &link(b, b"e"));
            names.rename(batch, links, &mut moved, None, Time::default()).unwrap();
            names.put_inode(batch, &moved);
        });
        let count = |ino| {
            let inode = tree.names.inode(ino).unwrap();
            (inode.nlink, inode.size)
        };
        assert_eq!((count(a), count(b)), ((2, 0), (3, 1)));
        assert_eq!(tree.names.directory_name(moved.ino).unwrap(), link(b, b"e"));
        assert_eq!(tree.names.inode(moved.ino).unwrap().parent, b);
    }

    #[test]
    fn a_directory_never_moves_below_itself() {
        let tree = Tree::new();
        let mut a = tree.make(Ino::ROOT, b"a", Kind::Directory);
        let mut b = tree.make(a.ino, b"b", Kind::Directory);
        tree.change(|names, batch| {
            let into = (&link(Ino::ROOT, b"a"), &link(b.ino, b"c"));
            let result = names.rename(batch, into, &mut a, None, Time::default());
            assert!(matches!(result, Err(Error::Invalid(_))));
            let swap = (&link(a.ino, b"b"), &link(Ino::ROOT, b"a"));
            let result = names.exchange(batch, swap, (&mut b, &mut a), Time::default());
            assert!(matches!(result, Err(Error::Invalid(_))));
            assert!(batch.is_empty());
        });
    }

    #[test]
    fn an_exchange_of_file_and_directory_keeps_counts() {
        let tree = Tree::new();
        let a = tree.make(Ino::ROOT, b"a", Kind::Directory).ino;
        let mut file = tree.make(a, b"f", Kind::File);
        let mut dir = tree.make(Ino::ROOT, b"d", Kind::Directory);
        tree.change(|names, batch| {
            let links = (&link(a, b"f"), &link(Ino::ROOT, b"d"));
            names.exchange(batch, links, (&mut file, &mut dir), Time::default()).unwrap();
            names.put_inode(batch, &file);
            names.put_inode(batch, &dir);
        });
        assert_eq!(tree.names.lookup(a, b"f").unwrap().unwrap().ino, dir.ino);
        assert_eq!(tree.names.lookup(Ino::ROOT, b"d").unwrap().unwrap().kind, Kind::File);
        assert_eq!(tree.names.inode(a).unwrap().nlink, 3);
        assert_eq!(tree.names.inode(Ino::ROOT).unwrap().nlink, 3);
        assert_eq!(tree.names.links(file.ino).unwrap(), [link(Ino::ROOT, b"d")]);
    }
}
