//! Directories that are open: listings with stable offsets.
//!
//! A handle reads the directory as it goes, in pages, and remembers what it read: an offset means the same entry
//! for as long as the handle is open and offset 0 is not asked for again. The control directory is never listed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;

use super::{Caller, DirEntry, Handle, Volume, control};
use crate::namespace::{Ino, Kind};
use crate::{Error, Result};

/// Entries read from the catalog at once.
const PAGE: usize = 1024;

/// Entries that every listing begins with, which are not in the catalog.
const DOTS: usize = 2;

/// Every open directory of a volume.
#[derive(Debug, Default)]
pub(super) struct OpenDirs {
    handles: DashMap<u64, Arc<OpenDir>>,
    uses: DashMap<Ino, Use>,
    last_handle: AtomicU64,
}

/// How a directory is used by handles.
#[derive(Debug, Default)]
struct Use {
    handles: u32,
    is_removed: bool,
}

#[derive(Debug)]
struct OpenDir {
    ino: Ino,
    parent: Ino,
    listing: Mutex<Listing>,
}

/// What a handle has read of its directory. The names lie one after the other: a large directory would otherwise
/// be as many small pieces of memory.
#[derive(Debug, Default)]
struct Listing {
    names: Vec<u8>,
    entries: Vec<Listed>,
    is_complete: bool,
}

#[derive(Clone, Copy, Debug)]
struct Listed {
    ino: Ino,
    kind: Kind,
    /// Where its name ends; it begins where the one before it ends.
    end: usize,
}

impl OpenDirs {
    /// Whether a handle to this directory exists. The caller holds the directory's lock.
    pub(super) fn is_open(&self, ino: Ino) -> bool {
        self.uses.contains_key(&ino)
    }

    /// Whether a directory is open.
    pub(super) fn has_handles(&self) -> bool {
        !self.handles.is_empty()
    }

    /// A directory was removed: its last handle ends it.
    pub(super) fn note_removed(&self, ino: Ino) {
        if let Some(mut used) = self.uses.get_mut(&ino) {
            used.is_removed = true;
        }
    }

    fn add(&self, ino: Ino, parent: Ino) -> Handle {
        self.uses.entry(ino).or_default().handles += 1;
        let number = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.insert(number, Arc::new(OpenDir { ino, parent, listing: Mutex::default() }));
        Handle(number)
    }

    /// Ends a use; whether it was the last one of a removed directory.
    fn end_use(&self, ino: Ino) -> bool {
        let ended = self.uses.remove_if_mut(&ino, |_, used| {
            used.handles = used.handles.saturating_sub(1);
            used.handles == 0
        });
        ended.is_some_and(|(_, used)| used.is_removed)
    }
}

impl Volume {
    /// Opens a directory.
    ///
    /// # Errors
    ///
    /// `NotFound`, `NotDirectory`.
    pub fn open_dir(&self, caller: &Caller, ino: Ino) -> Result<Handle> {
        if control::is_control(ino) {
            return self.control_open_dir(caller, ino);
        }
        let _locked = self.names.lock(&[ino]);
        let parent = match self.names.inode(ino) {
            Ok(inode) if inode.kind == Kind::Directory => inode.parent,
            Ok(_) => return Err(Error::NotDirectory),
            // A working directory that was removed has no entries.
            Err(Error::NotFound) if self.gone.is_directory(ino) => ino,
            Err(error) => return Err(error),
        };
        Ok(self.dirs.add(ino, parent))
    }

    /// Calls `emit` for each entry from `offset` on ("." and ".." first) until it returns false (buffer full).
    ///
    /// # Errors
    ///
    /// `BadHandle`, `Corrupt`.
    pub fn read_dir(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        emit: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        if control::is_control_handle(handle) {
            return self.control_read_dir(caller, handle, offset, emit);
        }
        let dir = self.dirs.handles.get(&handle.0).map(|dir| dir.clone()).ok_or(Error::BadHandle)?;
        let mut listing = dir.listing.lock();
        if offset == 0 || listing.entries.is_empty() {
            listing.begin(&dir);
        }
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        loop {
            while at >= listing.entries.len() && !listing.is_complete {
                self.read_page(dir.ino, &mut listing)?;
            }
            match listing.get(at) {
                Some(entry) if emit(&entry) => at += 1,
                _ => return Ok(()),
            }
        }
    }

    fn read_page(&self, dir: Ino, listing: &mut Listing) -> Result<()> {
        let last = listing.entries.len().checked_sub(1).filter(|&last| last >= DOTS);
        let after = last.and_then(|last| listing.get(last)).map(|entry| entry.name.to_vec());
        let count = self.names.each_entry(dir, after.as_deref(), PAGE, |name, child| {
            listing.push(child.ino, child.kind, name);
        })?;
        listing.is_complete = count < PAGE;
        Ok(())
    }

    /// Ends a handle of a directory.
    pub fn release_dir(&self, handle: Handle) {
        if control::is_control_handle(handle) {
            return self.control_release_dir(handle);
        }
        let Some((_, dir)) = self.dirs.handles.remove(&handle.0) else { return };
        let _locked = self.names.lock(&[dir.ino]);
        if self.dirs.end_use(dir.ino)
            && self.check_writable().is_ok()
            && let Err(error) = self.destroy_orphan(dir.ino)
        {
            tracing::warn!("removing directory {} is left to the next open: {error}", dir.ino.0);
        }
    }

    /// Makes a directory's entries survive a power cut, unless the mode is [`SyncMode::Off`](super::SyncMode::Off).
    ///
    /// # Errors
    ///
    /// `NotFound`, `Poisoned`, I/O errors; a failed sync poisons the volume.
    pub fn fsync_dir(&self, ino: Ino) -> Result<()> {
        if control::is_control(ino) { Ok(()) } else { self.persist_as_asked() }
    }

    /// Whether an operation on this node may run a search, so that it must not run on a worker that answers
    /// `stat`.
    pub fn may_search(&self, ino: Ino) -> bool {
        control::is_control(ino)
    }

    /// Whether a read through this handle may run a search that a worker must not.
    pub fn read_may_search(&self, handle: Handle) -> bool {
        control::is_control_handle(handle) && !self.control_read_is_short(handle)
    }

    /// Whether writing `data` through this handle may take long.
    pub fn write_may_search(&self, handle: Handle, data: &[u8]) -> bool {
        control::is_control_handle(handle) && !self.control_write_is_short(handle, data)
    }

    /// Whether [`ask`](Self::ask) may take long; none where it is not a transaction file.
    pub fn ask_may_search(&self, handle: Handle) -> Option<bool> {
        let short = control::is_control_handle(handle).then(|| self.control_ask_is_short(handle));
        short.flatten().map(|short| !short)
    }

    /// Whether closing this handle may take long.
    pub fn close_may_search(&self, handle: Handle) -> bool {
        control::is_control_handle(handle) && !self.control_close_is_short(handle)
    }
}

impl Listing {
    /// Begins anew, in the memory that it has.
    fn begin(&mut self, dir: &OpenDir) {
        self.names.clear();
        self.entries.clear();
        self.is_complete = false;
        self.push(dir.ino, Kind::Directory, b".");
        self.push(dir.parent, Kind::Directory, b"..");
    }

    fn push(&mut self, ino: Ino, kind: Kind, name: &[u8]) {
        self.names.extend_from_slice(name);
        self.entries.push(Listed { ino, kind, end: self.names.len() });
    }

    fn get(&self, at: usize) -> Option<DirEntry<'_>> {
        let Listed { ino, kind, end } = *self.entries.get(at)?;
        let begin = at.checked_sub(1).map_or(0, |before| self.entries[before].end);
        Some(DirEntry { offset: at as u64 + 1, ino, kind, name: &self.names[begin..end] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_gives_back_what_was_put_in_at_the_offset_of_the_next() {
        let mut listing = Listing::default();
        listing.push(Ino(1), Kind::Directory, b".");
        listing.push(Ino(7), Kind::File, b"name");
        let entry = listing.get(1).unwrap();
        assert_eq!((entry.offset, entry.ino, entry.kind, entry.name), (2, Ino(7), Kind::File, &b"name"[..]));
        assert_eq!(listing.get(0).unwrap().name, b".");
        assert!(listing.get(2).is_none());
    }
}
