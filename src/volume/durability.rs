//! Durability: what is made to survive a power cut, in which order, and what happens when that fails.
//!
//! **Invariant:** bytes are synced before the catalog is persisted with a commit that relies on them: blobs
//! that vectors are read from, slots, then the catalog. After the first failed sync or commit the volume is
//! [poisoned](super::life).

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::thread::{Thread, outlive};
use super::{SyncMode, Volume};
use crate::namespace::{Content, Ino, Mark};
use crate::store::BlobId;
use crate::{Error, Result};

/// How often changes are made durable without being asked.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// How long `close` waits for changes that are under way.
const CLOSE_WAIT: Duration = Duration::from_secs(30);

/// Stale marks removed by one commit, with their inodes locked.
const MARKS_PER_COMMIT: usize = 256;

/// Blobs with bytes that are not known to be on disk.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    blobs: Mutex<HashMap<BlobId, Written>>,
    clock: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    /// Time of the last write, on the clock of this table.
    at: u64,
    /// Whether a commit relies on the bytes.
    sealed: bool,
}

impl Unsynced {
    pub(super) fn note(&self, id: BlobId) {
        let at = self.clock.fetch_add(1, Ordering::Relaxed);
        self.blobs.lock().entry(id).or_insert(Written { at, sealed: false }).at = at;
    }

    pub(super) fn seal(&self, id: BlobId) {
        if let Some(written) = self.blobs.lock().get_mut(&id) {
            written.sealed = true;
        }
    }

    pub(super) fn forget(&self, id: BlobId) {
        self.blobs.lock().remove(&id);
    }

    fn written_at(&self, id: BlobId) -> Option<u64> {
        self.blobs.lock().get(&id).map(|written| written.at)
    }

    /// Everything written up to `at` is on disk.
    fn synced(&self, id: BlobId, at: u64) {
        let mut blobs = self.blobs.lock();
        if blobs.get(&id).is_some_and(|written| written.at == at) {
            blobs.remove(&id);
        }
    }

    fn is_empty(&self) -> bool {
        self.blobs.lock().is_empty()
    }

    pub(super) fn list(&self, sealed_only: bool) -> Vec<BlobId> {
        let blobs = self.blobs.lock();
        blobs.iter().filter(|(_, written)| written.sealed || !sealed_only).map(|(&id, _)| id).collect()
    }
}

/// The thread that syncs, and the way to stop it.
#[derive(Debug, Default)]
pub(super) struct Background {
    signal: Arc<Signal>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Signal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Waits for the interval; whether the thread is to go on.
    fn wait(&self) -> bool {
        let mut stopped = self.stopped.lock();
        let deadline = Instant::now() + SYNC_INTERVAL;
        while !*stopped {
            if self.changed.wait_until(&mut stopped, deadline).timed_out() {
                return !*stopped;
            }
        }
        false
    }

    fn stop(&self) {
        *self.stopped.lock() = true;
        self.changed.notify_all();
    }
}

impl Volume {
    /// Makes everything that was changed so far survive a power cut, and makes freed space usable again.
    ///
    /// # Errors
    ///
    /// `NoSpace`: it may be tried again. `Poisoned`, I/O errors; the volume is then poisoned.
    pub fn sync(&self) -> Result<()> {
        if self.life.is_frozen() {
            return Ok(());
        }
        let _one_at_a_time = self.syncing.lock();
        self.check_poison()?;
        self.note_lent();
        // What is written from here on is added to something that this sync promises.
        let volatile: Vec<Ino> = self.volatile.iter().map(|ino| *ino).collect();
        volatile.into_iter().for_each(|ino| self.promise(ino));
        self.retry_unsettled();
        // The mark comes first: what is freed after it is not covered by this sync.
        let mark = self.store.freed_mark();
        self.sync_blobs(false)?;
        self.remove_stale_marks()?;
        self.persist()?;
        self.store.reclaim(mark);
        Ok(())
    }

    /// Settles everything, checkpoints the graphs, syncs; further changes are refused. A second call does
    /// nothing.
    ///
    /// # Errors
    ///
    /// The first error of what it did; it goes on to the end nevertheless.
    pub fn close(&self) -> Result<()> {
        if !self.life.begin_end() {
            return Ok(());
        }
        self.stop_background();
        self.snapshots.stop_reading();
        self.scrub.stop();
        self.rest.end();
        if self.life.is_frozen() {
            self.indexer.stop();
            self.life.end();
            self.snapshots.close();
            self.catalog.remove_copy();
            return if self.life.is_snapshot() { Ok(()) } else { self.store.close() };
        }
        self.snapshots.close();
        let settled = if self.life.is_read_only() { Ok(()) } else { self.settle_open_files() };
        self.indexer.stop();
        self.save_graphs();
        self.life.end();
        self.snapshots.wait();
        self.life.wait_for_changes(CLOSE_WAIT);
        let synced = self
            .sync()
            .inspect(|()| self.rest_at_end())
            .and_then(|()| self.mark_clean())
            .and_then(|()| self.store.close());
        settled.and(synced)
    }

    /// Makes everything durable that was committed before this call, after the bytes that it relies on. Callers that
    /// come together share the flushes.
    pub(super) fn persist(&self) -> Result<()> {
        if self.life.is_frozen() {
            return Ok(());
        }
        self.check_poison()?;
        let wanted = self.catalog.last_commit();
        self.flushes.share(|| {
            self.check_poison()?;
            self.sync_blobs(self.sync_mode() != SyncMode::Always)?;
            self.sync_slots()?;
            self.persist_catalog()
        })?;
        // Another one's flush may have failed, or found no room.
        self.check_poison()?;
        if self.catalog.has_persisted(wanted) { Ok(()) } else { Err(Error::NoSpace) }
    }

    /// Makes every commit durable.
    ///
    /// # Errors
    ///
    /// `NoSpace`: nothing was done, and it may be tried again. After others the volume is poisoned.
    pub(super) fn persist_catalog(&self) -> Result<()> {
        self.catalog.persist().inspect_err(|error| {
            // A sync that fails for want of room is another error, and may have lost something.
            if !matches!(error, Error::NoSpace) {
                self.poison("sync of the catalog", error);
            }
        })
    }

    /// Says when changes are made durable: [`SyncMode::Normal`], unless this is called once, before the volume is used.
    pub fn set_sync_mode(&self, mode: SyncMode) {
        if self.sync_mode.set(mode).is_err() {
            tracing::warn!(?mode, "the volume keeps the mode that was set first");
        }
    }

    pub(super) fn sync_mode(&self) -> SyncMode {
        self.sync_mode.get().copied().unwrap_or_default()
    }

    /// Called by a door after a change, before it answers: under [`SyncMode::Always`] returns when the change is
    /// durable, otherwise at once. It is not done inside the change, because there locks are held: those who wait for
    /// the disk together share a flush.
    ///
    /// # Errors
    ///
    /// `Poisoned`, I/O errors; the volume is then poisoned, and the change may not be durable.
    pub fn acknowledge(&self) -> Result<()> {
        let is_due = self.sync_mode() == SyncMode::Always && !self.is_all_durable();
        if is_due { self.persist() } else { Ok(()) }
    }

    /// Whether a flush would find nothing to do.
    fn is_all_durable(&self) -> bool {
        self.unsynced.is_empty() && self.catalog.has_persisted(self.catalog.last_commit())
    }

    /// Makes durable what somebody asked to be, unless the mode is that he is not waited for.
    pub(super) fn persist_as_asked(&self) -> Result<()> {
        match self.sync_mode() {
            SyncMode::Always | SyncMode::Normal => self.persist(),
            SyncMode::Off => self.check_poison(),
        }
    }

    /// When a blob was written last, if that is not known to be on disk. What is written without us is written now.
    fn written_at(&self, id: BlobId) -> Option<u64> {
        if self.lent.contains(&id) {
            self.unsynced.note(id);
        }
        self.unsynced.written_at(id)
    }

    /// Makes what was written to a blob durable, if that is not known already.
    pub(super) fn sync_blob(&self, id: BlobId, file: &File) -> Result<()> {
        let Some(at) = self.written_at(id) else { return Ok(()) };
        self.store.sync_blob(id, file).inspect_err(|error| self.poison("sync of a blob", error))?;
        self.unsynced.synced(id, at);
        Ok(())
    }

    /// [`sync_blob`](Self::sync_blob) for a caller that does not have it open.
    pub(super) fn sync_blob_by_id(&self, id: BlobId) -> Result<()> {
        if self.written_at(id).is_none() {
            return Ok(());
        }
        match self.store.open_blob(id) {
            Ok(file) => self.sync_blob(id, &file),
            // Dropped meanwhile: nobody relies on it.
            Err(_) if self.unsynced.written_at(id).is_none() => Ok(()),
            Err(error) => {
                self.poison("sync of a blob", &error);
                Err(error)
            }
        }
    }

    fn sync_blobs(&self, sealed_only: bool) -> Result<()> {
        self.unsynced.list(sealed_only).into_iter().try_for_each(|id| self.sync_blob_by_id(id))
    }

    /// Makes every slot written so far durable.
    pub(super) fn sync_slots(&self) -> Result<()> {
        self.store.sync().inspect_err(|error| self.poison("sync of slots", error))
    }

    /// Whether bytes of this blob are not known to be on disk.
    pub(super) fn is_unsynced(&self, id: BlobId) -> bool {
        self.unsynced.written_at(id).is_some()
    }

    /// Removes marks that files left behind whose content needed no settling, or waited for its blob to be on disk.
    fn remove_stale_marks(&self) -> Result<()> {
        let stale: Vec<Ino> = self.marked.stale.iter().map(|ino| *ino).collect();
        for some in stale.chunks(MARKS_PER_COMMIT) {
            let _locked = self.names.lock(some);
            let _active = self.active();
            let mut batch = self.catalog.batch();
            // Written to again meanwhile: the mark is needed again.
            let is_stale = |ino: &Ino| self.marked.stale.contains(ino) && !self.waits_for_blob(*ino);
            let still: Vec<Ino> = some.iter().copied().filter(is_stale).collect();
            for &ino in &still {
                self.names.remove_mark(&mut batch, Mark::Dirty, ino);
            }
            match self.commit_batch(batch) {
                // They may stay, and what waits to be made durable must not wait for room.
                Err(Error::NoSpace) if self.check_poison().is_ok() => return Ok(()),
                other => other?,
            }
            for ino in &still {
                self.marked.stale.remove(ino);
            }
        }
        Ok(())
    }

    /// The content of a file was empty when it was written to, or is now: nobody was promised any of it, unless that is
    /// done with every answer.
    pub(super) fn note_emptied(&self, ino: Ino) {
        if self.sync_mode() != SyncMode::Always {
            self.volatile.insert(ino);
        }
    }

    /// The content of a file is about to be made durable for somebody. A change under way that knows nothing of that has
    /// been committed when this returns, and is made durable with it.
    pub(super) fn promise(&self, ino: Ino) {
        let _locked = self.names.lock(&[ino]);
        self.volatile.remove(&ino);
    }

    /// Before a commit replaces the content of `ino` by a copy in a slot: a power cut may keep the commit and lose
    /// the copy, so the copy of bytes that may have been promised is made durable first.
    pub(super) fn keep_promise_in_slot(&self, ino: Ino) -> Result<()> {
        if self.volatile.contains(&ino) { Ok(()) } else { self.sync_slots() }
    }

    /// The same for a copy in a blob.
    pub(super) fn keep_promise_in_blob(&self, ino: Ino, id: BlobId, file: &File) -> Result<()> {
        if self.volatile.contains(&ino) { Ok(()) } else { self.sync_blob(id, file) }
    }

    /// Whether vectors are read from a blob of this file that is not known to be on disk.
    fn waits_for_blob(&self, ino: Ino) -> bool {
        let content = self.names.inode(ino).map(|inode| inode.content);
        matches!(content, Ok(Content::Blob { id, sealed: true }) if self.is_unsynced(id))
    }

    pub(super) fn start_background(self: &Arc<Self>) -> Result<()> {
        let volume = Arc::downgrade(self);
        let signal = self.background.signal.clone();
        Ok(self.background.thread.start("vexfs-sync", move || sync_until_stopped(&volume, &signal))?)
    }

    fn stop_background(&self) {
        self.background.signal.stop();
        self.background.thread.join();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Not joined: the thread itself may be what drops the volume.
        self.background.signal.stop();
        self.rest.stop();
    }
}

fn sync_until_stopped(volume: &Weak<Volume>, signal: &Signal) {
    while signal.wait() {
        let Some(volume) = volume.upgrade() else { return };
        let synced = outlive(&volume.metrics, "background sync", || {
            volume.snapshots.close_idle();
            volume.read_new_snapshots();
            volume.sync()
        });
        match synced {
            None | Some(Ok(())) => {}
            // Said once, when it happened.
            Some(Err(Error::Poisoned { .. })) => return,
            Some(Err(error)) => tracing::error!("background sync: {error}"),
        }
    }
}

/// A full disk by its own name.
pub(super) fn name_full_disk(error: Error) -> Error {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error {
        Error::Io(io) if matches!(io.kind(), StorageFull | QuotaExceeded) => Error::NoSpace,
        Error::Io(io) if io.kind() == FileTooLarge => {
            Error::FileTooBig { got: u64::MAX, limit: super::content::FILE_MAX }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_during_a_sync_keeps_the_blob_unsynced() {
        let unsynced = Unsynced::default();
        unsynced.note(BlobId(1));
        let at = unsynced.written_at(BlobId(1)).unwrap();
        unsynced.note(BlobId(1));
        unsynced.synced(BlobId(1), at);
        let later = unsynced.written_at(BlobId(1)).unwrap();
        unsynced.synced(BlobId(1), later);
        assert_eq!(unsynced.written_at(BlobId(1)), None);
    }

    #[test]
    fn only_sealed_blobs_are_listed_for_a_persist() {
        let unsynced = Unsynced::default();
        unsynced.note(BlobId(1));
        unsynced.note(BlobId(2));
        unsynced.seal(BlobId(2));
        unsynced.seal(BlobId(3));
        assert_eq!(unsynced.list(true), [BlobId(2)]);
        assert_eq!(unsynced.list(false).len(), 2);
    }

    #[test]
    fn a_full_disk_has_its_own_name() {
        let full = Error::Io(std::io::ErrorKind::StorageFull.into());
        assert!(matches!(name_full_disk(full), Error::NoSpace));
        let other = Error::Io(std::io::ErrorKind::PermissionDenied.into());
        assert!(matches!(name_full_disk(other), Error::Io(_)));
    }
}
