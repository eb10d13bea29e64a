//! A change of the volume: a batch for the catalog, and what to do with store and vectors once it is committed.

use std::sync::Arc;

use super::ingest::Change;
use super::life::Active;
use super::open_files::OpenFile;
use super::{Volume, durability};
use crate::catalog::Batch;
use crate::namespace::{Content, Ino, Inode, Mark};
use crate::store::{BlobId, Slot, SlotRef};
use crate::{Error, Result};

/// A change that is being put together. Dropped without [`Volume::commit`] it leaves nothing behind.
///
/// Staged writes are not visible to reads, and a key may be staged once only. It is kept on the heap: it passes
/// through many calls, and would be on the stack in each.
pub(in crate::volume) struct Txn<'a> {
    /// What the catalog is to apply.
    pub(in crate::volume) batch: Batch<'a>,
    /// What the vectors are to publish once it is applied.
    pub(in crate::volume) changes: Vec<Change>,
    volume: &'a Volume,
    releases: Vec<Release>,
    fresh_blobs: Vec<BlobId>,
    fresh_slots: Vec<Arc<Slot>>,
    written_back: Vec<(Arc<OpenFile>, u64)>,
    /// Files whose vectors are read from a blob that is not known to be on disk.
    sealed: Vec<Ino>,
    _active: Active<'a>,
}

/// Space that no inode names once the transaction is committed.
#[derive(Clone, Copy, Debug)]
enum Release {
    Slot(SlotRef),
    Blob(BlobId),
}

impl Volume {
    /// Begins a change.
    ///
    /// # Errors
    ///
    /// As [`check_writable`](Self::check_writable).
    pub(in crate::volume) fn begin(&self) -> Result<Box<Txn<'_>>> {
        let txn = self.begin_repair();
        self.check_writable()?;
        Ok(txn)
    }

    /// Begins a change that the volume itself makes, also when users may not.
    #[inline(never)]
    pub(super) fn begin_repair(&self) -> Box<Txn<'_>> {
        Box::new(Txn {
            _active: self.active(),
            batch: self.catalog.batch(),
            changes: Vec::new(),
            volume: self,
            releases: Vec::new(),
            fresh_blobs: Vec::new(),
            fresh_slots: Vec::new(),
            written_back: Vec::new(),
            sealed: Vec::new(),
        })
    }

    /// Applies a change. When this returns, process death does not undo it.
    ///
    /// # Errors
    ///
    /// `NoSpace`: the change is not made. Other errors of the catalog; the volume is then poisoned.
    pub(in crate::volume) fn commit(&self, mut txn: Box<Txn<'_>>) -> Result<()> {
        self.commit_within(&mut txn)
    }

    /// [`commit`](Self::commit) for a caller that has more to do before a snapshot may be taken: until it drops `txn`
    /// the change is under way.
    #[inline(never)]
    pub(super) fn commit_within(&self, txn: &mut Txn<'_>) -> Result<()> {
        let batch = std::mem::replace(&mut txn.batch, txn.volume.catalog.batch());
        let committed = self.commit_batch(batch);
        if committed.is_ok() || self.check_poison().is_err() {
            // They are named now, or it is unknown whether that comes back after recovery.
            txn.fresh_blobs.clear();
            txn.fresh_slots.clear();
        }
        committed?;
        self.vectors.publish(std::mem::take(&mut txn.changes));
        for release in std::mem::take(&mut txn.releases) {
            match release {
                Release::Slot(at) => self.store.free_slot(at),
                Release::Blob(id) => self.drop_blob(id),
            }
        }
        for ino in std::mem::take(&mut txn.sealed) {
            self.marked.stale.insert(ino);
        }
        for (file, version) in std::mem::take(&mut txn.written_back) {
            file.written_back(version);
        }
        Ok(())
    }

    /// Applies a batch that needs nothing done after it.
    pub(super) fn commit_batch(&self, batch: Batch<'_>) -> Result<()> {
        batch.commit().map_err(|error| self.commit_failed(error))
    }

    /// A commit has failed. Returns the error for the caller.
    pub(super) fn commit_failed(&self, error: Error) -> Error {
        match error {
            // Refused whole, and the next one may find room.
            Error::NoSpace => error,
            error => {
                self.poison("commit", &error);
                durability::name_full_disk(error)
            }
        }
    }

    /// The inode's record as its writers see it, to be changed and staged in `txn`, which writes back what was
    /// only in memory. The caller holds the inode's lock.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub(in crate::volume) fn inode_for(&self, txn: &mut Txn<'_>, ino: Ino) -> Result<Inode> {
        let mut inode = self.names.inode(ino)?;
        if let Some(file) = self.files.get(ino)
            && let Some(version) = file.overlay_onto(&mut inode)
        {
            txn.written_back.push((file, version));
        }
        Ok(inode)
    }

    /// Stages the end of the content that inode `ino` named until this transaction. What vectors name stays
    /// theirs until they have let go of it.
    pub(in crate::volume) fn release_content(&self, txn: &mut Txn<'_>, ino: Ino, old: Content) {
        match old {
            Content::Empty => {}
            Content::Inline => self.names.remove_inline(&mut txn.batch, ino),
            Content::Blob { id, sealed: false } => txn.releases.push(Release::Blob(id)),
            Content::Slot(_) | Content::Blob { sealed: true, .. }
                if self.vectors.names_content(ino, &old) => {}
            Content::Slot(at) => txn.releases.push(Release::Slot(at)),
            Content::Blob { id, sealed: true } => txn.releases.push(Release::Blob(id)),
        }
    }

    fn drop_blob(&self, id: BlobId) {
        self.unsynced.forget(id);
        self.lent.remove(&id);
        self.store.drop_blob(id);
    }
}

impl Txn<'_> {
    /// `id` was made for this transaction: it goes when the transaction is given up.
    pub(super) fn made_blob(&mut self, id: BlobId) {
        self.fresh_blobs.push(id);
    }

    /// The same for a slot.
    pub(in crate::volume) fn wrote_slot(&mut self, slot: Arc<Slot>) {
        self.fresh_slots.push(slot);
    }

    /// `id` was made for this transaction and turned out to be of no use: it goes in any case.
    pub(super) fn gives_up_blob(&mut self, id: BlobId) {
        self.releases.push(Release::Blob(id));
    }

    /// The vectors of `ino` are read from the blob `id` from this commit on. Until the blob is on disk the file is
    /// marked, so that after a power cut its vectors are made of what is there.
    pub(in crate::volume) fn seals(&mut self, ino: Ino, id: BlobId) {
        if self.volume.is_unsynced(id) && !self.keeps_mark(ino) {
            self.volume.names.put_mark(&mut self.batch, Mark::Dirty, ino);
            self.sealed.push(ino);
        }
    }

    /// Whether the file stays marked although it is settled.
    pub(super) fn keeps_mark(&self, ino: Ino) -> bool {
        self.sealed.contains(&ino)
    }

    /// Whether there is nothing to commit.
    pub(super) fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.changes.is_empty() && self.written_back.is_empty()
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        if !self.changes.is_empty() {
            self.volume.vectors.abandon(std::mem::take(&mut self.changes));
        }
        for id in std::mem::take(&mut self.fresh_blobs) {
            self.volume.drop_blob(id);
        }
        for slot in std::mem::take(&mut self.fresh_slots) {
            slot.doom();
        }
    }
}
