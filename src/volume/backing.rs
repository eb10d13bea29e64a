//! Files that the kernel reads and writes by itself: large ordinary ones, in their blob, without asking us (FUSE
//! passthrough).
//!
//! ```text
//! open ──▶ Mode::Backed: the door hands the blob to the kernel ──▶ read, write, mmap: kernel and blob alone
//!          stat, fsync, truncate, fallocate ...: still asked here; size and time are looked up in the blob
//! last release ──▶ size and time go into the record, the mark goes, names are settled
//! ```
//!
//! Either all handles of an inode are backed, by one blob, or none is: the kernel fails an open that is answered
//! otherwise. So the first handle decides for those beside it, whatever became of the file since: cut short, without a
//! name, with a name of a vector file, or with a mode that writing has to change.
//!
//! **Invariant:** while a handle is backed, the inode names that blob, unsealed: every change is made in place, and
//! nothing is settled. A writing one has its inode marked dirty on disk, as what it does is not committed.
//!
//! **Invariant:** the same holds of an ordinary file as long as pages may be mapped for writing that were handed over,
//! which may be after the handle has ended: what is stored into them must be in the file, and seen by its readers.
//! Nothing of the kind is sealed. Vectors get a copy.
//!
//! **Invariant:** a blob that a snapshot shares is not handed over, and no snapshot is taken of one that the kernel has:
//! it would change under the snapshot.

use std::fs::{File, FileTimes};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::life::Active;
use super::open_files::{OpenBlob, OpenFile, Overlay};
use super::types::{Handle, OpenFlags};
use super::{SyncMode, Txn, Volume, edits};
use crate::format;
use crate::namespace::{Content, Ino, Inode, Link, Mark, Time};
use crate::store::BlobId;
use crate::{Error, Result};

/// Smallest file that is worth it: below, handing a blob over costs more than asking for its bytes.
const SMALLEST: u64 = 128 << 10;

/// Free space that the store's filesystem must have for a file to be written in this way, in bytes: such writes do
/// not ask whether they leave the reserve alone.
const ROOM: u64 = 1 << 30;

/// How the kernel treats a handle.
#[derive(Clone, Debug)]
pub(super) enum Mode {
    /// Through its page cache.
    Cached,
    /// Past its page cache: one copy less of what nobody reads through this handle, or the kernel did not take the blob.
    Direct,
    /// By itself, in this blob; `as_root` for somebody whose writes leave set-user-id.
    Backed { blob: Arc<File>, as_root: bool },
}

impl Mode {
    /// That of a handle which asks us, of a file of `size` bytes.
    pub(super) fn asking(flags: OpenFlags, size: u64) -> Self {
        if size == 0 && !flags.read { Mode::Direct } else { Mode::Cached }
    }
}

/// Handles of a file, by mode, and what its blob was like when it was looked at last.
#[derive(Debug, Default)]
pub(super) struct Backing {
    /// Those that go through us.
    asking: u32,
    /// Those of them through which pages may be mapped for writing.
    mappers: u32,
    readers: u32,
    writers: u32,
    /// Those of the writers whose writes take set-user-id away.
    ordinary: u32,
    /// Length and time of the blob that are in the record or the overlay; while there are writers.
    seen: Option<(u64, SystemTime)>,
}

impl Backing {
    pub(super) fn is_backed(&self) -> bool {
        self.readers + self.writers > 0
    }

    /// Whether the blob changes without us.
    pub(super) fn is_live(&self) -> bool {
        self.writers > 0
    }

    /// Whether pages may be mapped for writing through a handle that asks us.
    pub(super) fn may_map(&self) -> bool {
        self.mappers > 0
    }

    pub(super) fn add(&mut self, mode: &Mode, flags: OpenFlags) {
        self.count(mode, flags, |count| *count += 1);
    }

    pub(super) fn remove(&mut self, mode: &Mode, flags: OpenFlags) {
        self.count(mode, flags, |count| *count = count.saturating_sub(1));
        if !self.is_live() {
            self.seen = None;
        }
    }

    fn count(&mut self, mode: &Mode, flags: OpenFlags, change: impl Fn(&mut u32)) {
        match mode {
            Mode::Cached | Mode::Direct => {
                change(&mut self.asking);
                if flags.read && flags.write {
                    change(&mut self.mappers);
                }
            }
            Mode::Backed { as_root, .. } if flags.write => {
                change(&mut self.writers);
                if !as_root {
                    change(&mut self.ordinary);
                }
            }
            Mode::Backed { .. } => change(&mut self.readers),
        }
    }

    /// The blob's time was set to `mtime` by us.
    pub(super) fn set_time(&mut self, mtime: SystemTime) {
        if let Some(seen) = &mut self.seen {
            seen.1 = mtime;
        }
    }

    /// What is in `blob` is known: we changed it.
    pub(super) fn know(&mut self, blob: &File) {
        if self.seen.is_some()
            && let Ok(now) = length_and_time(blob)
        {
            self.seen = Some(now);
        }
    }

    /// What the kernel changed in `blob` since the last look.
    pub(super) fn look(&mut self, blob: &File) -> Option<Overlay> {
        let seen = self.seen?;
        let now = length_and_time(blob).ok()?;
        if now == seen {
            return None;
        }
        self.seen = Some(now);
        let mtime = Time::from(now.1);
        Some(Overlay { size: now.0, mtime, ctime: mtime, ends_privileges: self.ordinary > 0 })
    }
}

impl Volume {
    /// Says whether the door can hand files to the kernel. At first it cannot, and where every write is to be durable
    /// it never can: nobody hears of what the kernel writes by itself.
    pub fn set_passthrough(&self, can: bool) {
        self.passthrough.store(can && self.sync_mode() != SyncMode::Always, Ordering::Release);
    }

    /// The kernel does not take a file that [`open_file`](Self::open_file) offered: the handle goes past its page
    /// cache instead.
    pub fn refuse_backing(&self, handle: Handle) {
        self.files.change_mode(handle, Mode::Direct);
    }

    /// How the kernel is to treat a handle that is about to be made. The caller holds the inode's lock and the file,
    /// whose record is `inode` after an `O_TRUNC`, and keeps what comes beside the mode until the handle is there: it
    /// keeps snapshots away.
    ///
    /// # Errors
    ///
    /// Those of a commit and of opening the blob.
    #[inline(never)]
    pub(super) fn mode_for(
        &self,
        file: &OpenFile,
        inode: &Inode,
        flags: OpenFlags,
        as_root: bool,
    ) -> Result<(Mode, Option<Active<'_>>)> {
        let asking = (Mode::asking(flags, inode.size), None);
        let Content::Blob { id, sealed: false } = inode.content else { return Ok(asking) };
        let (is_backed, is_asked) = {
            let state = file.state();
            (state.backing.is_backed(), state.backing.asking > 0)
        };
        let must_back = is_backed || !is_asked && self.can_back(id) && self.may_be_mapped(id);
        if !must_back && (is_asked || !self.may_back(file, inode, id, flags)?) {
            return Ok(asking);
        }
        // The inode is locked: a blob that is not there is damage.
        let blob = self.blob_for_reading(file, id).map_err(|error| self.store.note_damage(error))?;
        let _io = file.lock_io();
        if flags.write {
            if !must_back && self.room_for_backing()? < ROOM {
                return Ok(asking);
            }
            self.mark_before_backed_writing(file)?;
        }
        let active = self.active();
        if !self.store.may_write_in_place(id) {
            // A snapshot was taken since the look above, which nothing was backed for.
            return Ok(asking);
        }
        if flags.write {
            let is_working = file.state().working().is_some_and(|working| working.id == id);
            if !is_working {
                match self.wake(file, id, inode.size) {
                    Ok(()) => {}
                    // Whoever writes is told.
                    Err(Error::Corrupt { .. }) if !is_backed => return Ok(asking),
                    Err(error) => return Err(error),
                }
            }
            self.begin_backed_writing(file, inode, &blob)?;
        }
        Ok((Mode::Backed { blob: blob.file, as_root }, Some(active)))
    }

    fn room_for_backing(&self) -> Result<u64> {
        let space = self.store.space()?;
        Ok(space.available.saturating_mul(space.block_bytes))
    }

    /// Whether the kernel can take the blob `id`.
    fn can_back(&self, id: BlobId) -> bool {
        self.passthrough.load(Ordering::Acquire) && self.store.may_write_in_place(id)
    }

    /// Whether the first handle of this file, whose blob `id` is, may be backed.
    fn may_back(&self, file: &OpenFile, inode: &Inode, id: BlobId, flags: OpenFlags) -> Result<bool> {
        if !self.can_back(id) || edits::is_privileged(inode.mode) || inode.size < SMALLEST {
            return Ok(false);
        }
        // Content that a vector may be read from changes by commits only.
        if file.state().orphan || is_vector_file(&self.links_of(file.ino)?) {
            return Ok(false);
        }
        Ok(flags.write || self.may_be_read_unseen(file.ino, id, inode.size)?)
    }

    /// Whether pages of the blob `id` may be mapped for writing that the kernel had.
    fn may_be_mapped(&self, id: BlobId) -> bool {
        self.lent.contains(&id) && self.store.is_blob_open_for_writing(id)
    }

    /// Whether the blob `id` of this file stays its content whatever is done to it: others may read or write it.
    pub(super) fn is_handed_over(&self, file: &OpenFile, id: BlobId) -> bool {
        file.is_backed() || self.may_be_mapped(id)
    }

    /// Marks the inode dirty on disk. The mark is stale until the writing begins.
    fn mark_before_backed_writing(&self, file: &OpenFile) -> Result<()> {
        if !self.has_mark(file) {
            let mut txn = self.begin()?;
            self.names.put_mark(&mut txn.batch, Mark::Dirty, file.ino);
            self.commit(txn)?;
            self.marked.stale.insert(file.ino);
        }
        Ok(())
    }

    /// From here on the blob may change without us.
    fn begin_backed_writing(&self, file: &OpenFile, inode: &Inode, blob: &OpenBlob) -> Result<()> {
        self.marked.forget(file.ino);
        let mut state = file.state();
        state.dirty = true;
        state.edits += 1;
        if state.working().is_none_or(|working| working.id != blob.id) {
            state.set_working(Some(OpenBlob::to_write(blob.id, Arc::clone(&blob.file))));
        }
        if state.backing.seen.is_none() {
            // After a kill the later of the two times counts: without a write they must be the same.
            let known = state.overlaid_mtime().unwrap_or(inode.mtime);
            if let Some(mtime) = known.to_system() {
                blob.file.set_times(FileTimes::new().set_modified(mtime))?;
            }
            state.backing.seen = Some(length_and_time(&blob.file)?);
        }
        drop(state);
        self.lent.insert(blob.id);
        self.unsynced.note(blob.id);
        Ok(())
    }

    /// Refuses a snapshot while the kernel has a file, or pages of one are mapped that it had for writing. The caller has
    /// stopped every change.
    ///
    /// # Errors
    ///
    /// `Busy`.
    pub(super) fn refuse_backed(&self) -> Result<()> {
        if self.files.all().iter().any(|file| file.is_backed()) {
            return Err(Error::Busy);
        }
        self.note_lent();
        if self.lent.is_empty() { Ok(()) } else { Err(Error::Busy) }
    }

    /// Before a sync: what was written without us, by the kernel or through mapped pages, is not known to be on disk.
    /// Blobs that nobody can write any more without asking are ours alone again.
    pub(super) fn note_lent(&self) {
        self.lent.retain(|&id| {
            // First: what comes in between is on disk with the rest.
            self.unsynced.note(id);
            self.store.is_blob_open_for_writing(id)
        });
    }

    /// The blob that vectors may be read from in the place of the blob `id`: a copy of it when somebody may still
    /// write it through mapped pages.
    pub(super) fn blob_to_seal(&self, txn: &mut Txn<'_>, id: BlobId) -> Result<BlobId> {
        if !self.lent.contains(&id) {
            return Ok(id);
        }
        let (copy, _) = self.store.clone_blob(id)?;
        txn.made_blob(copy);
        self.unsynced.note(copy);
        Ok(copy)
    }

    /// A file that the kernel has got a name of a vector file: it is settled when the kernel lets go of it, also
    /// after a kill.
    pub(super) fn settle_when_released(&self, txn: &mut Txn<'_>, ino: Ino, links: &[Link]) {
        let Some(file) = self.files.get(ino).filter(|file| file.is_backed()) else { return };
        if !is_vector_file(links) {
            return;
        }
        if !self.has_mark(&file) {
            self.names.put_mark(&mut txn.batch, Mark::Dirty, ino);
        }
        self.marked.stale.remove(&ino);
        file.state().dirty = true;
    }
}

fn length_and_time(blob: &File) -> std::io::Result<(u64, SystemTime)> {
    let metadata = blob.metadata()?;
    Ok((metadata.len(), metadata.modified()?))
}

pub(super) fn is_vector_file(links: &[Link]) -> bool {
    links.iter().any(|link| format::recognise(&link.name).is_some())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::volume::testing::{self, ROOT, held_up};

    const WRITING: OpenFlags =
        OpenFlags { read: true, write: true, append: false, truncate: false, exclusive: false };

    #[test]
    fn what_changed_in_the_blob_is_seen_once() {
        let mut blob = tempfile::tempfile().unwrap();
        let mut backing = Backing::default();
        let mode = Mode::Backed { blob: Arc::new(blob.try_clone().unwrap()), as_root: false };
        backing.add(&mode, WRITING);
        let metadata = blob.metadata().unwrap();
        backing.seen = Some((metadata.len(), metadata.modified().unwrap()));
        assert!(backing.look(&blob).is_none());
        blob.write_all(b"abc").unwrap();
        let overlay = backing.look(&blob).unwrap();
        assert!(overlay.size == 3 && overlay.ends_privileges);
        assert!(backing.look(&blob).is_none());
        backing.remove(&mode, WRITING);
        assert!(!backing.is_backed() && backing.seen.is_none());
    }

    #[test]
    fn a_snapshot_taken_while_a_file_is_being_handed_over_keeps_its_blob() {
        let (_store, volume) = testing::volume();
        volume.set_passthrough(true);
        let (attr, opened) = volume.create(&ROOT, Ino::ROOT, b"big", 0o644, WRITING).unwrap();
        volume.write(&ROOT, opened.handle, 0, &vec![7; 1 << 20]).unwrap();
        volume.flush(&ROOT, opened.handle).unwrap();
        volume.release(opened.handle).unwrap();
        let opened = volume.open_file(&ROOT, attr.ino, OpenFlags { write: false, ..WRITING }).unwrap();
        volume.release(opened.handle).unwrap();
        assert!(opened.backing.is_some(), "it is handed over when nothing comes between");
        drop(opened);

        // Nothing is left that a sync would take the inode's lock for, which the open has.
        volume.sync().unwrap();
        // The open has looked whether a snapshot has the blob, and waits behind us.
        let file = volume.files.hold(attr.ino);
        let io = file.lock_io();
        std::thread::scope(|scope| {
            let open = || volume.open_file(&ROOT, attr.ino, WRITING).unwrap();
            let opening = held_up(scope, open, || true);
            volume.take_snapshot(b"s").unwrap();
            drop(io);
            let opened = opening.join().unwrap();
            assert!(opened.backing.is_none(), "the kernel would write into the snapshot");
            volume.release(opened.handle).unwrap();
        });
        volume.let_go(&file);
        volume.close().unwrap();
    }

    #[test]
    fn readers_are_backed_and_nothing_changes_by_them() {
        let mut backing = Backing::default();
        let reading = OpenFlags { read: true, ..OpenFlags::default() };
        let blob = Arc::new(tempfile::tempfile().unwrap());
        backing.add(&Mode::Backed { blob, as_root: true }, reading);
        assert!(backing.is_backed() && !backing.is_live());
    }
}
