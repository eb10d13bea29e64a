//! Names: lookup, make, link, remove, rename.
//!
//! A change looks up what it is about, locks that, and looks again: when the names have changed meanwhile it
//! begins anew.

use std::sync::Arc;

use super::ingest::Why;
use super::open_files::OpenFile;
use super::{Attr, CONTROL_NAME, Caller, RenameMode, Txn, Volume, control};
use crate::namespace::{Child, Content, Ino, Inode, Kind, Link, Mark, NAME_MAX, NewInode, Time};
use crate::pool::shallow::aside;
use crate::{Error, Result};

/// Longest target of a symbolic link, in bytes.
const TARGET_MAX: usize = 4095;

const SET_GID: u16 = 0o2000;

/// What a new name names.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewNode<'a> {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) rdev: u32,
    /// Target of a symbolic link.
    pub(super) target: Option<&'a [u8]>,
}

/// A node after its rename.
struct Moved {
    ino: Ino,
    kind: Kind,
    /// Where they were needed.
    links: Option<Vec<Link>>,
    content: Content,
    /// A directory whose files now belong to another collection.
    resettles: bool,
}

/// What is left of a node that has lost a name.
struct Left {
    kind: Kind,
    /// It has no other.
    is_orphan: bool,
    /// The others, where they were needed.
    links: Option<Vec<Link>>,
}

impl Volume {
    /// What `name` names in `parent`.
    ///
    /// # Errors
    ///
    /// `NotFound`, `NameTooLong`.
    pub fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        if control::is_control(parent) || name == CONTROL_NAME {
            return self.control_lookup(caller, parent, name);
        }
        self.lookup_entry(parent, name)
    }

    /// [`lookup`](Self::lookup) of what is stored. Apart, as its likes in this room: what has to do with `.vexfs` is
    /// deep, and does not pay for these frames.
    #[inline(never)]
    fn lookup_entry(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong { got: name.len() });
        }
        let child = self.names.lookup(parent, name)?.ok_or(Error::NotFound)?;
        self.stored_attr(child.ino)
    }

    /// The kernel forgets `lookups` lookups of a node.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        if control::is_control(ino) {
            self.control_forget(ino, lookups);
        } else {
            self.gone.forget(ino);
        }
    }

    /// Makes a file, pipe, socket or device node.
    ///
    /// # Errors
    ///
    /// `Exists`, `NotFound` and `NotDirectory` about the parent, a bad name, `NoSpace`.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        mode: u16,
        rdev: u32,
    ) -> Result<Attr> {
        if control::is_control(parent) {
            return Err(Error::ReadOnly);
        }
        if matches!(kind, Kind::Directory | Kind::Symlink) {
            return Err(Error::Invalid("directories and symbolic links are not made with mknod"));
        }
        let inode = self.make(caller, parent, name, &NewNode { kind, mode, rdev, target: None }, false)?;
        Ok(self.attr(&inode))
    }

    /// Makes a directory.
    ///
    /// # Errors
    ///
    /// As [`mknod`](Self::mknod).
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u16) -> Result<Attr> {
        if control::is_control(parent) {
            return self.control_mkdir(parent, name);
        }
        let new = NewNode { kind: Kind::Directory, mode, rdev: 0, target: None };
        Ok(self.attr(&self.make(caller, parent, name, &new, false)?))
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    ///
    /// As [`mknod`](Self::mknod); `NotFound` for an empty target, `NameTooLong`.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        if control::is_control(parent) {
            return Err(Error::ReadOnly);
        }
        match target.len() {
            0 => return Err(Error::NotFound),
            got if got > TARGET_MAX => return Err(Error::NameTooLong { got }),
            _ => {}
        }
        let new = NewNode { kind: Kind::Symlink, mode: 0o777, rdev: 0, target: Some(target) };
        Ok(self.attr(&self.make(caller, parent, name, &new, false)?))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Invalid` for what is no symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        if control::is_control(ino) {
            return self.control_readlink(ino);
        }
        if self.names.inode(ino)?.kind != Kind::Symlink {
            return Err(Error::Invalid("not a symbolic link"));
        }
        Ok(self.names.inline(ino)?.ok_or_else(|| super::content::missing_inline(ino))?.to_vec())
    }

    /// Makes a node and its name. With `hold` its open file is held once, before anybody else can see it.
    #[inline(never)]
    pub(super) fn make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new: &NewNode<'_>,
        hold: bool,
    ) -> Result<Inode> {
        if name == CONTROL_NAME {
            return Err(Error::Exists);
        }
        self.check_writable()?;
        let size = new.target.map_or(0, <[u8]>::len) as u64;
        self.need_room(size)?;
        let ino = {
            // It may commit.
            let _active = self.active();
            self.names.allocate().map_err(|error| self.commit_failed(error))?
        };
        let parent_ino = parent;
        let _locked = self.names.lock(&[parent_ino, ino]);
        let parent = self.names.directory(parent_ino)?;
        let mut txn = self.begin()?;
        let inherits = parent.mode & SET_GID != 0;
        let mode = if inherits && new.kind == Kind::Directory { new.mode | SET_GID } else { new.mode };
        let fields = NewInode {
            ino,
            kind: new.kind,
            mode,
            uid: caller.uid,
            gid: if inherits { parent.gid } else { caller.gid },
            rdev: new.rdev,
            size,
            content: if new.target.is_some() { Content::Inline } else { Content::Empty },
        };
        let inode = self.names.create(&mut txn.batch, parent, name, fields, Time::now())?;
        if let Some(target) = new.target {
            self.names.put_inline(&mut txn.batch, ino, target);
        }
        self.names.put_inode(&mut txn.batch, &inode);
        let held = hold.then(|| self.files.hold(ino));
        if let Some(file) = &held {
            file.state().links = Some(vec![Link { parent: parent_ino, name: name.to_vec() }]);
        }
        if let Err(error) = self.commit(txn) {
            if let Some(file) = held {
                self.files.let_go(&file);
            }
            return Err(error);
        }
        Ok(inode)
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    ///
    /// `Exists`, `NotPermitted` for a directory, `TooManyLinks`, `CrossDimension`, a bad name.
    pub fn link(&self, _caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        if control::is_control(ino) || control::is_control(parent) {
            return Err(Error::ReadOnly);
        }
        if name == CONTROL_NAME {
            return Err(Error::Exists);
        }
        self.check_writable()?;
        self.need_room(0)?;
        let to = Link { parent, name: name.to_vec() };
        let read = self.hold_and_read(ino, &to);
        let linked = self.link_stored(ino, to);
        self.let_go_of_read(read);
        linked
    }

    fn link_stored(&self, ino: Ino, to: Link) -> Result<Attr> {
        let (parent, name) = (to.parent, &*to.name.clone());
        let _locked = self.names.lock(&[ino, parent]);
        let directory = self.names.directory(parent)?;
        let mut txn = self.begin()?;
        let mut inode = self.inode_for(&mut txn, ino)?;
        if inode.kind == Kind::File {
            self.forbid_link(&inode, &to)?;
        }
        self.names.link(&mut txn.batch, directory, name, &mut inode, Time::now())?;
        let mut links = self.links_that_matter(ino, &[name])?;
        if let Some(links) = &mut links {
            insert_link(links, to);
            self.renamed(&mut txn, &mut inode, links)?;
        }
        self.names.put_inode(&mut txn.batch, &inode);
        self.commit(txn)?;
        self.note_links(ino, links);
        Ok(self.attr(&inode))
    }

    /// Removes a name of a file.
    ///
    /// # Errors
    ///
    /// `NotFound`, `IsDirectory`, `Busy` for the control directory.
    pub fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        if control::is_control(parent) {
            return self.control_unlink(caller, parent, name);
        }
        if name == CONTROL_NAME {
            return Err(Error::Busy);
        }
        self.remove(parent, name, |txn, directory, inode| {
            self.names.unlink(&mut txn.batch, directory, name, inode, Time::now())
        })
    }

    /// Removes the entry `name`; `stage` stages its end in the directory and in the inode.
    fn remove(
        &self,
        parent: Ino,
        name: &[u8],
        stage: impl FnOnce(&mut Txn<'_>, Inode, &mut Inode) -> Result<()>,
    ) -> Result<()> {
        let (entry, _locked) = self.names.lock_entry(parent, name)?.ok_or(Error::NotFound)?;
        let directory = self.names.directory(parent)?;
        let mut txn = self.begin()?;
        let mut inode = self.inode_for(&mut txn, entry.ino)?;
        stage(&mut txn, directory, &mut inode)?;
        let left = self.stage_removed(&mut txn, inode, &Link { parent, name: name.to_vec() })?;
        self.commit(txn)?;
        self.note_removed(entry.ino, left);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// `NotFound`, `NotDirectory`, `NotEmpty`, `Busy` for the control directory.
    pub fn rmdir(&self, _caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        if control::is_control(parent) {
            return self.control_rmdir(parent, name);
        }
        if name == CONTROL_NAME {
            return Err(Error::Busy);
        }
        self.remove(parent, name, |txn, directory, inode| {
            self.names.remove_dir(&mut txn.batch, directory, name, inode, Time::now())
        })
    }

    /// Renames, replaces or exchanges.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Exists` with `NoReplace`, `Invalid` for a directory into itself, `NotDirectory`,
    /// `IsDirectory`, `NotEmpty`, `CrossDimension`, `Busy` about the control directory.
    pub fn rename(
        &self,
        _caller: &Caller,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        if control::is_control(from.0) || control::is_control(to.0) {
            return Err(Error::ReadOnly);
        }
        if from.1 == CONTROL_NAME || to.1 == CONTROL_NAME {
            return Err(Error::Busy);
        }
        self.check_writable()?;
        let from = Link { parent: from.0, name: from.1.to_vec() };
        let to = Link { parent: to.0, name: to.1.to_vec() };
        crate::namespace::check_name(&to.name)?;
        let read =
            self.vector_to_be(from.parent, &from.name, &to).and_then(|ino| self.hold_and_read(ino, &to));
        let mut renamed = Ok(false);
        while matches!(renamed, Ok(false)) {
            renamed = self.try_rename(&from, &to, mode);
        }
        self.let_go_of_read(read);
        renamed.map(|_| ())
    }

    /// Whether this rename may take long: what is renamed is a large file that becomes a vector file of a collection.
    pub fn rename_takes_long(&self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> bool {
        let to = Link { parent: to.0, name: to.1.to_vec() };
        self.vector_to_be(from.0, from.1, &to).is_some_and(|ino| self.naming_takes_long(ino, &to))
    }

    /// The same of one more name.
    pub fn link_takes_long(&self, ino: Ino, parent: Ino, name: &[u8]) -> bool {
        self.naming_takes_long(ino, &Link { parent, name: name.to_vec() })
    }

    /// What `name` names, if it is going to have the name of a vector file.
    fn vector_to_be(&self, parent: Ino, name: &[u8], to: &Link) -> Option<Ino> {
        crate::format::recognise(&to.name)?;
        self.names.lookup(parent, name).ok().flatten().map(|child| child.ino)
    }

    fn let_go_of_read(&self, read: Option<Arc<OpenFile>>) {
        if let Some(file) = read {
            let _locked = self.names.lock(&[file.ino]);
            self.let_go(&file);
        }
    }

    /// Renames, unless the names changed while they were being locked; whether it is done.
    fn try_rename(&self, from: &Link, to: &Link, mode: RenameMode) -> Result<bool> {
        let (moved, target) = self.ends(from, to)?;
        if let (RenameMode::Replace | RenameMode::Exchange, Some(target)) = (mode, &target) {
            self.sync_before_replacing(moved.ino)?;
            if mode == RenameMode::Exchange {
                self.sync_before_replacing(target.ino)?;
            }
        }
        let moves_directory = from.parent != to.parent
            && [Some(&moved), target.as_ref()].into_iter().flatten().any(|it| it.kind == Kind::Directory);
        let _ancestry = moves_directory.then(|| self.names.lock_ancestry());
        let target_ino = target.as_ref().map_or(moved.ino, |target| target.ino);
        // A directory may take the files below it into another collection.
        let _locked = match moves_directory {
            true => self.names.lock_all(),
            false => self.names.lock(&[from.parent, to.parent, moved.ino, target_ino]),
        };
        if self.ends(from, to)? != (moved, target) {
            return Ok(false);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err(Error::Exists),
            (RenameMode::Exchange, None) => Err(Error::NotFound),
            // Two names of one file: POSIX wants nothing done.
            (_, Some(target)) if target.ino == moved.ino => Ok(true),
            (RenameMode::Exchange, Some(target)) => self.exchange(from, to, (moved.ino, target.ino)),
            (_, target) => self.replace(from, to, moved.ino, target.map(|target| target.ino)),
        }
    }

    fn ends(&self, from: &Link, to: &Link) -> Result<(Child, Option<Child>)> {
        let moved = self.names.lookup(from.parent, &from.name)?.ok_or(Error::NotFound)?;
        Ok((moved, self.names.lookup(to.parent, &to.name)?))
    }

    fn replace(&self, from: &Link, to: &Link, moved: Ino, replaced: Option<Ino>) -> Result<bool> {
        let now = Time::now();
        let mut txn = self.begin()?;
        let mut moved = self.inode_for(&mut txn, moved)?;
        let mut replaced = replaced.map(|ino| self.inode_for(&mut txn, ino)).transpose()?;
        self.names.rename(&mut txn.batch, (from, to), &mut moved, replaced.as_mut(), now)?;
        let left = match replaced {
            Some(replaced) => {
                let ino = replaced.ino;
                Some((ino, replaced.kind, self.stage_removed(&mut txn, replaced, to)?))
            }
            None => None,
        };
        let moved = self.stage_moved(&mut txn, moved, from, to)?;
        if matches!(left, Some((_, Kind::File, _))) {
            self.sync_moved(&moved)?;
        }
        self.commit(txn)?;
        if let Some((ino, _, links)) = left {
            self.note_removed(ino, links);
        }
        self.note_moved(moved);
        Ok(true)
    }

    fn exchange(&self, from: &Link, to: &Link, (first, second): (Ino, Ino)) -> Result<bool> {
        let mut txn = self.begin()?;
        let mut first = self.inode_for(&mut txn, first)?;
        let mut second = self.inode_for(&mut txn, second)?;
        self.names.exchange(&mut txn.batch, (from, to), (&mut first, &mut second), Time::now())?;
        let first = self.stage_moved(&mut txn, first, from, to)?;
        let second = self.stage_moved(&mut txn, second, to, from)?;
        // Each replaces the other.
        self.sync_moved(&first)?;
        self.sync_moved(&second)?;
        self.commit(txn)?;
        self.note_moved(first);
        self.note_moved(second);
        Ok(true)
    }

    /// A rename is committed. Vectors follow a directory into its new collection in a change of their own: when
    /// that fails, the next sync tries again, and its mark makes the next open do so.
    fn note_moved(&self, moved: Moved) {
        if moved.kind == Kind::Directory {
            self.vectors.tree_changed();
        }
        if moved.resettles
            && let Err(error) = aside(|| self.resettle(moved.ino))
        {
            tracing::error!("vectors below inode {} stay behind for now: {error}", moved.ino.0);
            self.marked.unsettled.insert(moved.ino);
        }
        self.note_links(moved.ino, moved.links);
    }

    /// Stages an inode whose name `from` became `to`.
    fn stage_moved(&self, txn: &mut Txn<'_>, mut inode: Inode, from: &Link, to: &Link) -> Result<Moved> {
        let mut links = match inode.nlink {
            1 => Some(Vec::new()),
            _ => self.links_that_matter(inode.ino, &[&from.name, &to.name])?,
        };
        if let Some(links) = &mut links {
            links.retain(|link| link != from);
            insert_link(links, to.clone());
        }
        let resettles = inode.kind == Kind::Directory
            && self.move_changes_collection(inode.ino, from.parent, to.parent)?;
        if resettles {
            self.names.put_mark(&mut txn.batch, Mark::Moved, inode.ino);
        }
        if let Some(links) = &links {
            self.renamed(txn, &mut inode, links)?;
        }
        self.names.put_inode(&mut txn.batch, &inode);
        self.note_sealed(&inode);
        Ok(Moved { ino: inode.ino, kind: inode.kind, links, content: inode.content, resettles })
    }

    /// Stages what is left of an inode that lost the name `gone`: fewer names, an orphan that is still open, or
    /// nothing.
    fn stage_removed(&self, txn: &mut Txn<'_>, mut inode: Inode, gone: &Link) -> Result<Left> {
        if inode.kind == Kind::Directory {
            self.directory_removed(txn, inode.ino);
        }
        let mut links = match inode.nlink {
            0 => Some(Vec::new()),
            _ => self.links_that_matter(inode.ino, &[&gone.name])?,
        };
        if let Some(links) = &mut links {
            links.retain(|link| link != gone);
        }
        let left = Left { kind: inode.kind, is_orphan: inode.nlink == 0, links };
        let is_open = self.files.get(inode.ino).is_some() || self.dirs.is_open(inode.ino);
        if inode.nlink > 0 || is_open {
            if let Some(links) = &left.links {
                self.renamed(txn, &mut inode, links)?;
            }
            self.names.put_inode(&mut txn.batch, &inode);
            if left.is_orphan {
                self.names.put_mark(&mut txn.batch, Mark::Orphan, inode.ino);
            }
            return Ok(left);
        }
        self.gone.keep(&inode);
        // Asked while the vectors still name the content, so that exactly one of the two lets it go.
        let content = std::mem::replace(&mut inode.content, Content::Empty);
        self.release_content(txn, inode.ino, content);
        self.renamed(txn, &mut inode, &[])?;
        self.names.destroy(&mut txn.batch, &inode)?;
        if self.marked.contains(inode.ino) {
            self.names.remove_mark(&mut txn.batch, Mark::Dirty, inode.ino);
        }
        Ok(left)
    }

    /// A name was removed and the commit is done.
    fn note_removed(&self, ino: Ino, Left { kind, is_orphan, links }: Left) {
        self.dirs.note_removed(ino);
        if kind == Kind::Directory {
            self.control.directory_removed(ino);
        }
        match self.files.get(ino) {
            Some(file) => {
                let mut state = file.state();
                state.orphan = is_orphan;
                state.links = links;
            }
            None if is_orphan => {
                self.marked.forget(ino);
            }
            None => {}
        }
    }

    /// The names of an inode changed: vectors follow a regular file. A complaint about its content is in its
    /// status; to the kernel the change of names has happened.
    fn renamed(&self, txn: &mut Txn<'_>, inode: &mut Inode, links: &[Link]) -> Result<()> {
        if inode.kind == Kind::File {
            self.settle_when_released(txn, inode.ino, links);
            self.settle(txn, inode, links, Why::Names)?;
        }
        Ok(())
    }

    /// Before a rename replaces a file: most of the new content is made durable while nothing is locked.
    fn sync_before_replacing(&self, moved: Ino) -> Result<()> {
        match self.inode(moved) {
            Ok(Inode { content: Content::Blob { id, .. }, .. }) => self.sync_blob_by_id(id),
            Ok(_) | Err(Error::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The rest of it, as the commit will name it. From then on it is promised: whoever had the name lost the old content
    /// for it.
    fn sync_moved(&self, moved: &Moved) -> Result<()> {
        self.volatile.remove(&moved.ino);
        match moved.content {
            Content::Blob { id, .. } => self.sync_blob_by_id(id),
            Content::Slot(_) => self.sync_slots(),
            Content::Empty | Content::Inline => Ok(()),
        }
    }
}

/// Adds a name in the place that the catalog has it: of several in one collection the first says what the file is.
fn insert_link(links: &mut Vec<Link>, link: Link) {
    let at = links.partition_point(|known| *known < link);
    links.insert(at, link);
}
