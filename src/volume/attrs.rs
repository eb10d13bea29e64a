//! Attributes of nodes: stat and its changes.

use std::fs::FileTimes;
use std::time::Duration;

use super::edits::{Edit, is_privileged, without_privileges};
use super::ingest::Why;
use super::{Attr, Caller, Handle, SetAttr, SetTime, Volume, control};
use crate::namespace::{Content, Ino, Inode, Kind, Time};
use crate::store::BlobId;
use crate::{Error, Result};

/// How long the kernel may keep the attributes of an ordinary node. Only the kernel changes them.
const TTL: Duration = Duration::from_secs(3600);

/// Bytes of a block of `stat`.
const BLOCK: u64 = 512;

impl Volume {
    /// Attributes of a node.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        if control::is_control(ino) {
            return self.control_getattr(ino);
        }
        match self.stored_attr(ino) {
            Err(Error::NotFound) => self.gone_attr(ino),
            attr => attr,
        }
    }

    #[inline(never)]
    pub(super) fn stored_attr(&self, ino: Ino) -> Result<Attr> {
        self.inode(ino).map(|inode| self.attr(&inode))
    }

    /// Changes attributes.
    ///
    /// A size truncates or extends; without an open writer the content is complete after it. A change of owner
    /// takes set-user-id and set-group-id bits away from what is no directory, whoever makes it, and so does a change of
    /// nothing.
    ///
    /// # Errors
    ///
    /// `NotFound`; `IsDirectory` and `Invalid` for the size of what has none; those of
    /// [`write`](Self::write) for a size.
    pub fn setattr(&self, caller: &Caller, ino: Ino, set: SetAttr, handle: Option<Handle>) -> Result<Attr> {
        if control::is_control(ino) {
            return self.control_setattr(caller, ino, set, handle);
        }
        self.check_writable()?;
        if let Some(size) = set.size {
            self.resize(caller, ino, size)?;
        }
        if set.is_only_size() {
            return self.stored_attr(ino);
        }
        match self.set_record(ino, &set) {
            Err(Error::NotFound) => self.set_gone(ino, &set),
            set => set,
        }
    }

    /// Whether setting this size may take long: without a writer a vector file is complete after it.
    pub fn resize_takes_long(&self, ino: Ino, size: u64) -> bool {
        self.takes_long(ino, size)
    }

    #[inline(never)]
    fn resize(&self, caller: &Caller, ino: Ino, size: u64) -> Result<()> {
        let locked = self.names.lock(&[ino]);
        match self.names.inode(ino)?.kind {
            Kind::File => {}
            Kind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid("only regular files have a size to set")),
        }
        let file = self.files.hold(ino);
        let mut result = self.edit_locked(&file, Edit::Resize { size }, caller.uid == 0).map(|_| ());
        drop(locked);
        let is_complete = || file.state().is_left_dirty();
        if result.is_ok() && is_complete() {
            self.read_ahead(&file);
        }
        let _locked = self.names.lock(&[ino]);
        if result.is_ok() && is_complete() {
            result = self.complete(&file);
        }
        self.let_go(&file);
        result
    }

    /// Sets everything but the size.
    #[inline(never)]
    fn set_record(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        let _locked = self.names.lock(&[ino]);
        let mut txn = self.begin()?;
        let mut inode = self.inode_for(&mut txn, ino)?;
        set.apply(&mut inode, Time::now());
        if inode.kind == Kind::File && set.changes_access() {
            let links = self.links_of(ino)?;
            // A complaint is about content, which stays as it was.
            self.settle(&mut txn, &mut inode, &links, Why::Owner)?;
        }
        self.names.put_inode(&mut txn.batch, &inode);
        self.commit(txn)?;
        if inode.kind == Kind::Directory && set.changes_access() {
            self.vectors.tree_changed();
        }
        if let Some(file) = self.files.get(ino) {
            file.state().privileged = is_privileged(inode.mode);
        }
        if set.mtime.is_some()
            && let Content::Blob { id, sealed: false } = inode.content
            && let Err(error) = self.set_blob_time(&inode, id)
        {
            tracing::debug!("time of blob {}: {error}", id.0);
        }
        Ok(self.attr(&inode))
    }

    /// Gives a file's blob the time of its record. After a kill the later of the two counts, because a write in place
    /// changes the blob alone; that is so until the sync after the last close, and from the next write on.
    #[inline(never)]
    fn set_blob_time(&self, inode: &Inode, id: BlobId) -> Result<()> {
        let Some(mtime) = inode.mtime.to_system() else { return Ok(()) };
        let times = FileTimes::new().set_modified(mtime);
        let file = self.files.get(inode.ino);
        match file.as_ref().and_then(|file| file.open_blob(id)) {
            Some(blob) => blob.file.set_times(times)?,
            None => self.store.open_blob(id)?.set_times(times)?,
        }
        if let Some(file) = file {
            file.state().backing.set_time(mtime);
        }
        Ok(())
    }

    /// A record as `stat` shows it.
    #[inline(never)]
    pub(in crate::volume) fn attr(&self, inode: &Inode) -> Attr {
        let blocks = match inode.content {
            Content::Blob { id, .. } => self.blob_blocks(inode.ino, id),
            Content::Empty | Content::Inline | Content::Slot(_) => None,
        };
        let is_counted = matches!(inode.kind, Kind::File | Kind::Symlink);
        Attr {
            ino: inode.ino,
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            nlink: inode.nlink,
            rdev: inode.rdev,
            size: inode.size,
            blocks: blocks.unwrap_or(if is_counted { inode.size.div_ceil(BLOCK) } else { 0 }),
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            btime: inode.btime,
            ttl: if self.is_changing(inode) { Duration::ZERO } else { TTL },
        }
    }

    /// Whether attributes may change without the kernel knowing: the mode by a write past its page cache, size and time
    /// through mapped pages.
    fn is_changing(&self, inode: &Inode) -> bool {
        let is_live = || self.files.get(inode.ino).is_some_and(|file| file.state().backing.is_live());
        match inode.content {
            _ if inode.kind == Kind::File && is_privileged(inode.mode) => true,
            Content::Blob { .. } => is_live(),
            Content::Empty | Content::Inline | Content::Slot(_) => false,
        }
    }

    /// Blocks that a blob takes; `None` when it is missing, so that a damaged file can still be removed.
    #[inline(never)]
    fn blob_blocks(&self, ino: Ino, id: BlobId) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let open = self.files.get(ino).and_then(|file| file.open_blob(id));
        let metadata = match open {
            Some(open) => open.file.metadata(),
            None => self.store.open_blob(id).ok()?.metadata(),
        };
        Some(metadata.ok()?.blocks())
    }
}

impl SetAttr {
    fn is_only_size(&self) -> bool {
        self.size.is_some() && self.sets_no_record()
    }

    fn sets_no_record(&self) -> bool {
        !self.changes_access() && self.atime.is_none() && self.mtime.is_none()
    }

    /// Whether it takes set-user-id and set-group-id away: a chown does, and the kernel asks for nothing else before
    /// somebody changes the content who may not keep them.
    fn ends_privileges(&self) -> bool {
        self.uid.is_some() || self.gid.is_some() || self.size.is_none() && self.sets_no_record()
    }

    fn changes_access(&self) -> bool {
        self.mode.is_some() || self.uid.is_some() || self.gid.is_some()
    }

    /// Everything but the size.
    pub(super) fn apply(&self, inode: &mut Inode, now: Time) {
        inode.uid = self.uid.unwrap_or(inode.uid);
        inode.gid = self.gid.unwrap_or(inode.gid);
        if self.ends_privileges() && inode.kind != Kind::Directory {
            inode.mode = without_privileges(inode.mode);
        }
        if let Some(mode) = self.mode {
            inode.mode = mode & 0o7777;
        }
        let time = |set: Option<SetTime>, old: Time| match set {
            None => old,
            Some(SetTime::Now) => now,
            Some(SetTime::To(time)) => time,
        };
        inode.atime = time(self.atime, inode.atime);
        inode.mtime = time(self.mtime, inode.mtime);
        inode.ctime = now;
    }
}
