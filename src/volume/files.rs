//! Files that are open: open, create, read, write, flush, release, fsync.
//!
//! Content is complete, and vectors follow it, when the last writer closes: at the flush of a `close(2)` while
//! no other handle may write, or at the release of the last such handle when mapped pages came after that.

use super::backing::Mode;
use super::content::Finish;
use super::edits::Edit;
use super::open_files::{OpenFile, OpenHandle};
use super::{Attr, Caller, Handle, OpenFlags, Opened, SyncMode, Volume, control};
use crate::namespace::{Content, Ino, Inode, Kind};
use crate::{Error, Result};

impl Volume {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// `NotFound`, `IsDirectory`, `Invalid` for what has no content; for writing also `ReadOnly`, `Poisoned`.
    pub fn open_file(&self, caller: &Caller, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        if control::is_control(ino) {
            return self.control_open(caller, ino, flags);
        }
        self.open_stored(caller, ino, flags)
    }

    #[inline(never)]
    fn open_stored(&self, caller: &Caller, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        if flags.write || flags.truncate {
            self.check_writable()?;
        }
        let _locked = self.names.lock(&[ino]);
        let mut inode = self.names.inode(ino)?;
        match inode.kind {
            Kind::File => {}
            Kind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid("only regular files are opened")),
        }
        let file = self.files.hold(ino);
        let emptied = if flags.truncate { self.empty(caller, &file, &mut inode, flags) } else { Ok(()) };
        match emptied.and_then(|()| self.mode_for(&file, &inode, flags, caller.uid == 0)) {
            Ok((mode, _until_there_is_a_handle)) => {
                if inode.size > 0 {
                    file.note_pages();
                }
                Ok(self.opened(file, flags, mode))
            }
            Err(error) => {
                self.let_go(&file);
                Err(error)
            }
        }
    }

    /// Cuts the file off, as opening it does. Who then cannot write leaves it so, and no close will say more. Apart: not
    /// every open pays for it with stack.
    #[inline(never)]
    fn empty(&self, caller: &Caller, file: &OpenFile, inode: &mut Inode, flags: OpenFlags) -> Result<()> {
        self.edit_locked(file, Edit::Resize { size: 0 }, caller.uid == 0)?;
        let is_complete = !flags.write && file.state().is_left_dirty();
        if is_complete {
            self.complete(file)?;
        }
        *inode = self.names.inode(inode.ino)?;
        Ok(())
    }

    /// Creates a file and opens it. An existing name is opened unless `flags.exclusive`.
    ///
    /// # Errors
    ///
    /// `Exists`, a bad name, `NoSpace`, and those of [`open_file`](Self::open_file).
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u16,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        if control::is_control(parent) {
            return self.control_create(caller, parent, name, mode, flags);
        }
        self.create_stored(caller, parent, name, mode, flags)
    }

    #[inline(never)]
    fn create_stored(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u16,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        let new = super::names::NewNode { kind: Kind::File, mode, rdev: 0, target: None };
        match self.make(caller, parent, name, &new, true) {
            Ok(inode) => self.open_made(&inode, name, flags),
            Err(Error::Exists) if !flags.exclusive && name != super::CONTROL_NAME => {
                self.open_existing(caller, parent, name, flags)
            }
            Err(error) => Err(error),
        }
    }

    #[inline(never)]
    fn open_made(&self, inode: &Inode, name: &[u8], flags: OpenFlags) -> Result<(Attr, Opened)> {
        let file = self.files.get(inode.ino).ok_or(Error::BadHandle)?;
        // An empty vector file is bad content too: its close says so.
        file.state().fresh = crate::format::recognise(name).is_some();
        Ok((self.attr(inode), self.opened(file, flags, Mode::asking(flags, 0))))
    }

    #[inline(never)]
    fn open_existing(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        let ino = self.names.lookup(parent, name)?.ok_or(Error::NotFound)?.ino;
        let opened = self.open_file(caller, ino, flags)?;
        Ok((self.getattr(ino)?, opened))
    }

    #[inline(never)]
    fn opened(&self, file: std::sync::Arc<OpenFile>, flags: OpenFlags, mode: Mode) -> Opened {
        let handle = self.files.add_handle(file, flags, mode.clone());
        let is_cached = matches!(mode, Mode::Cached);
        let direct_io = matches!(mode, Mode::Direct);
        let backing = match mode {
            Mode::Backed { blob, .. } => Some(blob),
            Mode::Cached | Mode::Direct => None,
        };
        Opened { handle, direct_io, keep_cache: is_cached && !flags.truncate, backing }
    }

    /// Appends to `into` at most `size` bytes from `offset`; fewer only at the end of the file.
    ///
    /// Also for handles that were opened for writing only: the kernel fills pages through them.
    ///
    /// # Errors
    ///
    /// `BadHandle`, `Corrupt`, I/O errors.
    pub fn read(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        size: u32,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        if control::is_control_handle(handle) {
            return self.control_read(caller, handle, offset, size, into);
        }
        self.read_stored(handle, offset, size, into)
    }

    #[inline(never)]
    fn read_stored(&self, handle: Handle, offset: u64, size: u32, into: &mut Vec<u8>) -> Result<()> {
        let open = self.files.handle(handle)?;
        if matches!(open.mode, Mode::Cached) {
            open.file.note_pages();
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        self.read_file(&open.file, offset, size, into)
    }

    /// Answers a request in one step, through a handle of a transaction file but apart from its conversation: the
    /// request for one vector that `request` begins with, and nothing but zero bytes behind it. The answer has at most
    /// `room` bytes.
    ///
    /// # Errors
    ///
    /// `BadHandle`, `Request`, `TooLarge`; of a binary request those of [`search`](Self::search), which a JSON request
    /// is answered with.
    pub fn ask(&self, caller: &Caller, handle: Handle, request: &[u8], room: u32) -> Result<Vec<u8>> {
        if !control::is_control_handle(handle) {
            return Err(Error::BadHandle);
        }
        self.control_ask(caller, handle, request, usize::try_from(room).unwrap_or(usize::MAX))
    }

    /// Writes `data` at `offset`, and returns how much of it.
    ///
    /// There is no appending: under the inode's lock the kernel has put an offset at the end, and a large write past its
    /// page cache comes in pieces, in any order.
    ///
    /// # Errors
    ///
    /// `BadHandle`, `FileTooBig`, `NoSpace`, `ReadOnly`, `Poisoned`, I/O errors.
    pub fn write(&self, caller: &Caller, handle: Handle, offset: u64, data: &[u8]) -> Result<u32> {
        if control::is_control_handle(handle) {
            return self.control_write(caller, handle, offset, data);
        }
        let open = self.writable(handle)?;
        let done = self.edit(&open.file, Edit::Write { offset, data: countable(data) }, caller.uid == 0)?;
        Ok(u32::try_from(done).unwrap_or(u32::MAX))
    }

    /// Whether the kernel writes through this handle past its page cache.
    pub fn is_direct(&self, handle: Handle) -> bool {
        self.files.handle(handle).is_ok_and(|open| matches!(open.mode, Mode::Direct))
    }

    /// Writes pages that were changed where a process has them mapped, all of them, and returns how much that is. They
    /// have their place whatever the handle is for: the kernel takes any that may write, and does not ask how much was
    /// written.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_mapped(&self, caller: &Caller, handle: Handle, offset: u64, pages: &[u8]) -> Result<u32> {
        if control::is_control_handle(handle) {
            return self.control_write(caller, handle, offset, pages);
        }
        let open = self.writable(handle)?;
        let (mut at, mut left) = (offset, pages);
        while !left.is_empty() {
            let done = self.edit(&open.file, Edit::Write { offset: at, data: left }, true)?;
            at += done;
            left = usize::try_from(done).ok().and_then(|done| left.get(done..)).unwrap_or_default();
        }
        Ok(u32::try_from(pages.len()).unwrap_or(u32::MAX))
    }

    /// Called at every `close(2)` of a handle: the last writer's completes the content.
    ///
    /// # Errors
    ///
    /// `BadHandle`; the complaint about content that is no vector of its strict collection (the bytes are kept);
    /// those of a commit.
    pub fn flush(&self, caller: &Caller, handle: Handle) -> Result<()> {
        if control::is_control_handle(handle) {
            return self.control_flush(caller, handle);
        }
        let open = self.files.handle(handle)?;
        // What the kernel writes by itself is complete at the release: a copy of the descriptor would go on unseen.
        if !open.flags.write || matches!(open.mode, Mode::Backed { .. }) {
            return Ok(());
        }
        self.read_ahead_of_close(&open);
        open.close();
        let how = {
            let state = open.file.state();
            match (state.is_unsettled(), state.has_writers()) {
                (false, _) => return Ok(()),
                (true, false) => Finish::Settle,
                (true, true) => Finish::WriteBack,
            }
        };
        self.finish(&open.file, how)?.map_or(Ok(()), Err)
    }

    /// Ends a handle: nothing refers to it any more.
    ///
    /// # Errors
    ///
    /// `BadHandle`, those of completing content that nobody flushed. The handle is gone in any case.
    pub fn release(&self, handle: Handle) -> Result<()> {
        if control::is_control_handle(handle) {
            return self.control_release(handle);
        }
        let open = self.files.remove_handle(handle)?;
        self.read_ahead_of_close(&open);
        let file = &open.file;
        let _locked = self.names.lock(&[file.ino]);
        let is_left_dirty = {
            open.end();
            let state = file.state();
            // What is kept is tried again by syncs, and its readers have no part in it.
            let is_kept = self.marked.kept.contains_key(&file.ino);
            state.is_unsettled() && !state.has_writers() && !state.orphan && !is_kept
        };
        let completed = if is_left_dirty { self.complete(file) } else { Ok(()) };
        self.let_go(file);
        completed
    }

    /// If this may be the last writer's close, the content is complete.
    fn read_ahead_of_close(&self, open: &OpenHandle) {
        let is_last = {
            let state = open.file.state();
            open.flags.write && state.is_unsettled() && !state.orphan && state.has_one_writer()
        };
        if is_last {
            self.read_ahead(&open.file);
        }
    }

    /// Whether closing or ending this handle may take long, so that a worker that answers `stat` must not do it.
    pub fn close_takes_long(&self, handle: Handle) -> bool {
        let Ok(open) = self.files.handle(handle) else { return false };
        open.flags.write && open.file.state().is_unsettled() && self.takes_long(open.file.ino, 0)
    }

    /// Settles what the last writer left. A failure is tried again later: the mark on disk stays. Vectors'
    /// complaints are in the file's status; there is nobody to return them to.
    pub(super) fn complete(&self, file: &OpenFile) -> Result<()> {
        let Err(error) = self.finish_locked(file, Finish::Settle) else { return Ok(()) };
        self.marked.unsettled.insert(file.ino);
        tracing::warn!("settling inode {} is tried again later: {error}", file.ino.0);
        let written_back = match error {
            Error::Poisoned { .. } => Ok(()),
            _ => self.finish_locked(file, Finish::WriteBack).map(|_| ()),
        };
        if written_back.is_err() && !self.marked.kept.contains_key(&file.ino) {
            // Its size and time are nowhere else. They stay in memory until there is room for them.
            self.marked.kept.insert(file.ino, self.files.hold(file.ino));
        }
        written_back.and(Err(error))
    }

    /// Makes a file survive a power cut: its content, and everything in the catalog. `data_only` spares nothing
    /// here, because size and content are committed together. Under [`SyncMode::Off`] it does nothing.
    ///
    /// # Errors
    ///
    /// `BadHandle`, `Poisoned`, I/O errors; a failed sync poisons the volume.
    pub fn fsync(&self, handle: Handle, _data_only: bool) -> Result<()> {
        if control::is_control_handle(handle) {
            return self.control_fsync(handle);
        }
        let open = self.files.handle(handle)?;
        self.check_poison()?;
        if self.sync_mode() == SyncMode::Off {
            return Ok(());
        }
        self.promise(open.file.ino);
        self.sync_content(&open.file)?;
        if open.file.state().has_overlay() {
            self.finish(&open.file, Finish::WriteBack)?;
        }
        self.persist()
    }

    /// Makes the blob of a file durable, if its content is in one.
    fn sync_content(&self, file: &OpenFile) -> Result<()> {
        match self.inode(file.ino)?.content {
            Content::Blob { id, .. } => self.sync_blob(id, &self.blob_for_reading(file, id)?.file),
            Content::Empty | Content::Inline | Content::Slot(_) => Ok(()),
        }
    }

    /// Settles every file that is open, as if its writers had closed it.
    pub(super) fn settle_open_files(&self) -> Result<()> {
        let mut result = Ok(());
        for file in self.files.all() {
            match self.finish(&file, Finish::Settle) {
                Ok(_) => {}
                Err(error) if result.is_ok() => result = Err(error),
                Err(_) => {}
            }
        }
        result
    }
}

/// As much of it as an answer can count, in 32 bits.
fn countable(data: &[u8]) -> &[u8] {
    &data[..data.len().min(usize::try_from(u32::MAX).unwrap_or(usize::MAX))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::testing::{self, ROOT, held_up};

    #[test]
    fn a_sync_waits_for_a_change_that_knows_nothing_of_its_promise() {
        promises_behind_changes(|volume, handle| volume.fsync(handle, false).unwrap());
        promises_behind_changes(|volume, _| volume.sync().unwrap());
    }

    fn promises_behind_changes(sync: impl Fn(&Volume, Handle) + Sync) {
        let (_store, volume) = testing::volume();
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        let (attr, opened) = volume.create(&ROOT, Ino::ROOT, b"f", 0o644, flags).unwrap();
        volume.write(&ROOT, opened.handle, 0, b"promised").unwrap();
        // As a write does that moves the bytes to a blob, and syncs that only if some of them were promised.
        let changing = volume.names.lock(&[attr.ino]);
        std::thread::scope(|scope| {
            let syncing = held_up(scope, || sync(&volume, opened.handle), || true);
            drop(changing);
            syncing.join().unwrap();
        });
        assert!(!volume.volatile.contains(&attr.ino));
        volume.release(opened.handle).unwrap();
        volume.close().unwrap();
    }
}
