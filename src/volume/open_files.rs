//! Open files: what the handles of one inode share, and what of it is not in the catalog yet.
//!
//! **Invariant:** content changes hands only under the inode's lock and `io` together. While `working` is set
//! the inode names that blob, unsealed, and its dirty mark is committed: `io` alone is then enough to write.
//! `dirty` says that content waits to be settled; nobody else touches the content meanwhile.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use parking_lot::{Mutex, MutexGuard};

use super::backing::{Backing, Mode};
use super::edits::without_privileges;
use super::ingest::Ahead;
use super::types::{Handle, OpenFlags};
use super::{Volume, control};
use crate::namespace::{Content, Ino, Inode, Link, Time};
use crate::store::{BlobId, Rested};
use crate::{Error, Result};

/// Tries of a reader that is overtaken by writers, before it takes what it has.
const CONSISTENT_TRIES: usize = 64;

/// A blob, open.
#[derive(Clone, Debug)]
pub(super) struct OpenBlob {
    pub(super) id: BlobId,
    pub(super) file: Arc<File>,
    /// What is read of it is compared with these: it was at rest when it was opened for reading.
    pub(super) rested: Option<Arc<Rested>>,
}

impl OpenBlob {
    /// A blob that is being written.
    pub(super) fn to_write(id: BlobId, file: Arc<File>) -> Self {
        Self { id, file, rested: None }
    }
}

/// What writes to a blob changed in the inode since its record was committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overlay {
    pub(super) size: u64,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    /// The kernel wrote by itself, maybe for an ordinary user, and left the mode as it was.
    pub(super) ends_privileges: bool,
}

impl Overlay {
    fn onto(self, inode: &mut Inode) {
        inode.size = self.size;
        inode.mtime = self.mtime;
        inode.ctime = inode.ctime.max(self.ctime);
        if self.ends_privileges {
            inode.mode = without_privileges(inode.mode);
        }
    }
}

/// A file that is open, or being changed by its path.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) ino: Ino,
    io: Mutex<()>,
    state: Mutex<State>,
    /// The kernel may have read pages of it, so that it can have what is stored into them without asking.
    has_pages: AtomicBool,
}

/// What an open file is at this moment.
#[derive(Debug, Default)]
pub(super) struct State {
    holders: u32,
    writers: u32,
    /// Those of the writers that were closed and have not written since: the kernel ends a handle some time after
    /// its `close(2)` has returned.
    closed: u32,
    /// Content was changed and not settled; its mark is on disk.
    pub(super) dirty: bool,
    /// A new vector file, not settled: empty content is content too. Nothing is on disk of this.
    pub(super) fresh: bool,
    /// No name is left.
    pub(super) orphan: bool,
    /// It has mode bits that a write by an ordinary user takes away.
    pub(super) privileged: bool,
    /// The blob that writes go to.
    working: Option<OpenBlob>,
    /// The blob that reads come from, when it is not the working one.
    reading: Option<OpenBlob>,
    /// How often the two above have changed.
    changes: u64,
    /// It was written, so that it comes to rest some time after its last close.
    pub(super) rests_next: bool,
    /// The names in order, when they are known without asking the catalog.
    pub(super) links: Option<Vec<Link>>,
    overlay: Option<Overlay>,
    version: u64,
    /// How often the bytes of a blob were about to be changed in place, or the kernel was about to get it to write.
    pub(super) edits: u64,
    /// What reading the content has shown before the file was locked to settle it.
    pub(super) ahead: Option<Box<Ahead>>,
    /// What of it the kernel reads and writes by itself.
    pub(super) backing: Backing,
}

impl State {
    /// Whether somebody may still write who has not been closed.
    pub(super) fn has_writers(&self) -> bool {
        self.writers > self.closed
    }

    /// Whether at most one may.
    pub(super) fn has_one_writer(&self) -> bool {
        self.writers <= self.closed + 1
    }

    /// Whether the close of the last writer has something to settle.
    pub(super) fn is_unsettled(&self) -> bool {
        self.dirty || self.fresh
    }

    /// Whether content was changed that no writer's close will settle.
    pub(super) fn is_left_dirty(&self) -> bool {
        self.dirty && !self.has_writers() && !self.orphan
    }

    /// We are about to change the bytes of the working blob.
    pub(super) fn begin_edit(&mut self) {
        self.edits += 1;
        self.look_at_blob();
    }

    /// We have changed the bytes of `blob`, the working one, and with them the inode.
    pub(super) fn end_edit(&mut self, blob: &OpenBlob, overlay: Overlay) {
        self.overlay(overlay);
        self.backing.know(&blob.file);
    }

    /// A write to the working blob changed the inode.
    fn overlay(&mut self, mut overlay: Overlay) {
        overlay.ends_privileges |= self.overlay.is_some_and(|before| before.ends_privileges);
        self.overlay = Some(overlay);
        self.version += 1;
    }

    pub(super) fn working(&self) -> Option<&OpenBlob> {
        self.working.as_ref()
    }

    /// The content is being changed: in this blob, or inline.
    pub(super) fn set_working(&mut self, working: Option<OpenBlob>) {
        self.rests_next |= working.is_some();
        self.working = working;
        self.reading = None;
        self.changes += 1;
    }

    /// The blob for reading is opened anew: its checksums may not be those of now.
    pub(super) fn forget_reading(&mut self) {
        self.reading = None;
        self.changes += 1;
    }

    /// A snapshot names the working blob as well, or the blob has checksums: the next write looks what is to be done.
    pub(super) fn end_in_place(&mut self) {
        if let Some(blob) = self.working.take() {
            self.reading = Some(blob);
            self.changes += 1;
        }
    }

    /// The content is complete; its blob stays open for reading.
    pub(super) fn end_working(&mut self, content: &Content) {
        let is_content = |blob: &OpenBlob| matches!(content, Content::Blob { id, .. } if *id == blob.id);
        self.reading = self.working.take().filter(is_content);
        self.changes += 1;
    }

    pub(super) fn has_overlay(&self) -> bool {
        self.overlay.is_some()
    }

    /// The size that is newer than the record; not while the kernel may change it at any moment.
    pub(super) fn overlaid_size(&self) -> Option<u64> {
        self.overlay.filter(|_| !self.backing.is_live()).map(|overlay| overlay.size)
    }

    /// The time that is newer than the record.
    pub(super) fn overlaid_mtime(&self) -> Option<Time> {
        self.overlay.map(|overlay| overlay.mtime)
    }

    /// Takes what the kernel wrote by itself into the overlay.
    fn look_at_blob(&mut self) {
        if let Some(working) = &self.working
            && let Some(overlay) = self.backing.look(&working.file)
        {
            self.overlay(overlay);
        }
    }
}

impl OpenFile {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The kernel reads pages of it, or has read some before it was opened.
    pub(super) fn note_pages(&self) {
        self.has_pages.store(true, Ordering::Relaxed);
    }

    /// Whether bytes may be in mapped pages that nobody has sent us. A page that is to be stored into is read first.
    pub(super) fn may_have_unsent_pages(&self) -> bool {
        self.has_pages.load(Ordering::Relaxed) && self.state().backing.may_map()
    }

    /// Exclusive use of the working blob.
    pub(super) fn lock_io(&self) -> MutexGuard<'_, ()> {
        self.io.lock()
    }

    /// Applies what is newer than the record, and returns its version.
    pub(super) fn overlay_onto(&self, inode: &mut Inode) -> Option<u64> {
        let mut state = self.state.lock();
        state.look_at_blob();
        state.overlay?.onto(inode);
        Some(state.version)
    }

    /// The record that was committed has everything up to `version`.
    pub(super) fn written_back(&self, version: u64) {
        let mut state = self.state.lock();
        if state.version == version {
            state.overlay = None;
            state.version += 1;
        }
    }

    /// The inode as `read` finds it in the catalog, with what is newer: both from one moment.
    fn consistent(&self, read: impl Fn() -> Result<Inode>) -> Result<Inode> {
        let mut tries = 0;
        loop {
            let (overlay, version) = {
                let mut state = self.state.lock();
                state.look_at_blob();
                (state.overlay, state.version)
            };
            let mut inode = read()?;
            tries += 1;
            if tries < CONSISTENT_TRIES && self.state.lock().version != version {
                continue;
            }
            if let Some(overlay) = overlay {
                overlay.onto(&mut inode);
            }
            return Ok(inode);
        }
    }

    /// Whether the kernel reads or writes its blob by itself.
    pub(super) fn is_backed(&self) -> bool {
        self.state.lock().backing.is_backed()
    }

    /// The open blob `id`, if this file has it.
    pub(super) fn open_blob(&self, id: BlobId) -> Option<OpenBlob> {
        let state = self.state.lock();
        let blobs = [&state.working, &state.reading];
        blobs.into_iter().flatten().find(|blob| blob.id == id).cloned()
    }

    /// How often the blobs have changed.
    pub(super) fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Keeps what was opened when there had been so many `changes`: with more of them it may be at rest no longer.
    pub(super) fn keep_for_reading(&self, blob: &OpenBlob, changes: u64) {
        let mut state = self.state.lock();
        if state.changes == changes {
            state.reading = Some(blob.clone());
        }
    }
}

/// A handle.
#[derive(Clone, Debug)]
pub(super) struct OpenHandle {
    pub(super) file: Arc<OpenFile>,
    pub(super) flags: OpenFlags,
    pub(super) mode: Mode,
    /// Closed, and not written to since. Changed under the file's state.
    is_closed: Arc<AtomicBool>,
}

impl OpenHandle {
    /// Notes a `close(2)`. A copy of the descriptor may be left, and write again.
    pub(super) fn close(&self) {
        let mut state = self.file.state();
        if self.flags.write && !self.is_closed.swap(true, Ordering::AcqRel) {
            state.closed += 1;
        }
    }

    /// Notes that somebody writes.
    fn reopen(&self) {
        if self.is_closed.load(Ordering::Acquire) {
            let mut state = self.file.state();
            if self.is_closed.swap(false, Ordering::AcqRel) {
                state.closed = state.closed.saturating_sub(1);
            }
        }
    }

    /// Takes the handle off its file's writers.
    pub(super) fn end(&self) {
        self.reopen();
        let mut state = self.file.state();
        state.look_at_blob();
        state.backing.remove(&self.mode, self.flags);
        if self.flags.write {
            state.writers = state.writers.saturating_sub(1);
        }
    }
}

/// Every open file of a volume.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    files: DashMap<Ino, Arc<OpenFile>>,
    handles: DashMap<u64, OpenHandle>,
    last_handle: AtomicU64,
}

impl OpenFiles {
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.files.get(&ino).map(|file| file.clone())
    }

    /// Every open file at this moment.
    pub(super) fn all(&self) -> Vec<Arc<OpenFile>> {
        self.files.iter().map(|file| file.clone()).collect()
    }

    /// The file of `ino`, held until [`let_go`](Self::let_go). The caller holds the inode's lock.
    pub(super) fn hold(&self, ino: Ino) -> Arc<OpenFile> {
        let file = match self.files.entry(ino) {
            Slot::Occupied(slot) => slot.get().clone(),
            Slot::Vacant(slot) => {
                let (io, state) = (Mutex::new(()), Mutex::default());
                let file = OpenFile { ino, io, state, has_pages: AtomicBool::new(false) };
                slot.insert(Arc::new(file)).clone()
            }
        };
        file.state().holders += 1;
        file
    }

    /// Ends a [`hold`](Self::hold); whether it was the last. The caller holds the inode's lock.
    pub(super) fn let_go(&self, file: &OpenFile) -> bool {
        let mut state = file.state();
        state.holders = state.holders.saturating_sub(1);
        let is_last = state.holders == 0;
        drop(state);
        if is_last {
            self.files.remove(&file.ino);
        }
        is_last
    }

    /// A handle to a file that the caller holds; the handle takes the hold over.
    pub(super) fn add_handle(&self, file: Arc<OpenFile>, flags: OpenFlags, mode: Mode) -> Handle {
        {
            let mut state = file.state();
            state.writers += u32::from(flags.write);
            state.backing.add(&mode, flags);
        }
        let number = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.insert(number, OpenHandle { file, flags, mode, is_closed: Arc::default() });
        Handle(number)
    }

    /// The kernel treats a handle otherwise than it was made for.
    pub(super) fn change_mode(&self, handle: Handle, mode: Mode) {
        if let Some(mut open) = self.handles.get_mut(&handle.0) {
            let old = std::mem::replace(&mut open.mode, mode);
            let mut state = open.file.state();
            state.backing.remove(&old, open.flags);
            state.backing.add(&open.mode, open.flags);
        }
    }

    /// Whether a file is open.
    pub(super) fn has_handles(&self) -> bool {
        !self.handles.is_empty()
    }

    /// # Errors
    ///
    /// `BadHandle`.
    pub(super) fn handle(&self, handle: Handle) -> Result<OpenHandle> {
        self.handles.get(&handle.0).map(|open| open.clone()).ok_or(Error::BadHandle)
    }

    pub(super) fn remove_handle(&self, handle: Handle) -> Result<OpenHandle> {
        self.handles.remove(&handle.0).map(|(_, open)| open).ok_or(Error::BadHandle)
    }
}

impl Volume {
    /// The inode's record with what its writers have not written back yet.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    #[inline(never)]
    pub(in crate::volume) fn inode(&self, ino: Ino) -> Result<Inode> {
        match self.files.get(ino) {
            Some(file) => self.inode_of(&file),
            None => self.names.inode(ino),
        }
    }

    #[inline(never)]
    fn inode_of(&self, file: &OpenFile) -> Result<Inode> {
        file.consistent(|| self.names.inode(file.ino))
    }

    /// Whether a writer has changed the content of `ino` and not completed it.
    pub(in crate::volume) fn is_busy(&self, ino: Ino) -> bool {
        self.files.get(ino).is_some_and(|file| file.state().is_unsettled())
    }

    /// Whether the kernel reads or writes the content of `ino` by itself.
    pub(in crate::volume) fn is_backed(&self, ino: Ino) -> bool {
        self.files.get(ino).is_some_and(|file| file.is_backed())
    }

    /// The file behind a handle that allows writing.
    pub(super) fn writable(&self, handle: Handle) -> Result<OpenHandle> {
        if control::is_control_handle(handle) {
            return Err(Error::BadHandle);
        }
        let open = self.files.handle(handle)?;
        if !open.flags.write {
            return Err(Error::BadHandle);
        }
        open.reopen();
        Ok(open)
    }

    /// The names of a file: from its open file when that knows them.
    pub(super) fn links_of(&self, ino: Ino) -> Result<Vec<Link>> {
        let known = self.files.get(ino).and_then(|file| file.state().links.clone());
        known.map_or_else(|| self.names.links(ino), Ok)
    }

    /// The names of a file, if it matters to vectors that `changed` are about to come or go. They may be many, and are
    /// the affair of a file whose content or one of whose changed names is that of a vector file.
    pub(super) fn links_that_matter(&self, ino: Ino, changed: &[&[u8]]) -> Result<Option<Vec<Link>>> {
        let matters = changed.iter().any(|name| crate::format::recognise(name).is_some())
            || !self.vectors.members(ino).is_empty();
        if matters { self.links_of(ino).map(Some) } else { Ok(None) }
    }

    /// The names of a file have changed, and are these if that is known.
    pub(super) fn note_links(&self, ino: Ino, links: Option<Vec<Link>>) {
        if let Some(file) = self.files.get(ino) {
            file.state().links = links;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_let_go_ends_the_open_file() {
        let files = OpenFiles::default();
        let first = files.hold(Ino(5));
        let second = files.hold(Ino(5));
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!files.let_go(&first));
        assert!(files.get(Ino(5)).is_some());
        assert!(files.let_go(&second));
        assert!(files.get(Ino(5)).is_none());
    }

    #[test]
    fn a_write_after_the_write_back_began_stays_in_the_overlay() {
        let files = OpenFiles::default();
        let file = files.hold(Ino(5));
        let at = |secs| Overlay {
            size: 7,
            mtime: Time { secs, nanos: 0 },
            ctime: Time::default(),
            ends_privileges: false,
        };
        file.state().overlay(at(1));
        let seen = file.state().version;
        file.state().overlay(at(2));
        file.written_back(seen);
        assert!(file.state().has_overlay());
        let seen = file.state().version;
        file.written_back(seen);
        assert!(!file.state().has_overlay());
    }

    #[test]
    fn handles_end_once() {
        let files = OpenFiles::default();
        let handle = files.add_handle(
            files.hold(Ino(5)),
            OpenFlags { write: true, ..OpenFlags::default() },
            Mode::Cached,
        );
        assert_eq!(files.handle(handle).unwrap().file.state().writers, 1);
        files.remove_handle(handle).unwrap();
        assert!(matches!(files.remove_handle(handle), Err(Error::BadHandle)));
        assert!(matches!(files.handle(handle), Err(Error::BadHandle)));
    }
}
