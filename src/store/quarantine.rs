//! The quarantine: space that was freed but that a durable catalog commit may still name.
//!
//! Every entry has a stamp. [`Quarantine::mark`] ends the running stamp and returns it, so that exactly the
//! entries from before that call have a stamp up to the mark.
//!
//! **Invariant:** space is freed only after the commit that no longer names it has returned. So a mark that is
//! taken before the catalog is made durable covers only space which that durable state does not name.

use std::collections::VecDeque;

use super::BlobId;
use crate::sync::Mutex;

/// A freed slot, by the numbers of its segment and of its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FreedSlot {
    pub(super) segment: u32,
    pub(super) slot: u32,
}

/// Freed slots and dropped blobs, oldest first.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    stamp: u64,
    slots: VecDeque<(u64, FreedSlot)>,
    blobs: VecDeque<(u64, BlobId)>,
}

impl Quarantine {
    pub(super) fn free_slot(&self, freed: FreedSlot) {
        let mut inner = self.inner.lock();
        let stamp = inner.stamp;
        inner.slots.push_back((stamp, freed));
    }

    pub(super) fn drop_blob(&self, id: BlobId) {
        let mut inner = self.inner.lock();
        let stamp = inner.stamp;
        inner.blobs.push_back((stamp, id));
    }

    /// Marks what was freed up to now.
    pub(super) fn mark(&self) -> u64 {
        let mut inner = self.inner.lock();
        let mark = inner.stamp;
        inner.stamp += 1;
        mark
    }

    /// Takes the slots that were freed before `mark` was taken.
    pub(super) fn take_slots(&self, mark: u64) -> Vec<(u64, FreedSlot)> {
        take(&mut self.inner.lock().slots, mark)
    }

    /// Takes the blobs that were dropped before `mark` was taken.
    pub(super) fn take_blobs(&self, mark: u64) -> Vec<BlobId> {
        take(&mut self.inner.lock().blobs, mark).into_iter().map(|(_, id)| id).collect()
    }

    /// Puts taken slots back with their old stamps: they are being read.
    pub(super) fn put_back(&self, slots: Vec<(u64, FreedSlot)>) {
        let mut inner = self.inner.lock();
        for entry in slots.into_iter().rev() {
            inner.slots.push_front(entry);
        }
    }
}

fn take<T>(queue: &mut VecDeque<(u64, T)>, mark: u64) -> Vec<(u64, T)> {
    let due = queue.iter().take_while(|(stamp, _)| *stamp <= mark).count();
    queue.drain(..due).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn slot(slot: u32) -> FreedSlot {
        FreedSlot { segment: 3, slot }
    }

    #[test]
    fn a_mark_covers_what_was_freed_before_it_and_nothing_after() {
        let quarantine = Quarantine::default();
        quarantine.free_slot(slot(1));
        quarantine.drop_blob(BlobId(10));
        let early = quarantine.mark();
        quarantine.free_slot(slot(2));
        quarantine.drop_blob(BlobId(20));
        let late = quarantine.mark();
        quarantine.free_slot(slot(3));

        assert_eq!(quarantine.take_slots(early), [(early, slot(1))]);
        assert_eq!(quarantine.take_blobs(early), [BlobId(10)]);
        assert_eq!(quarantine.take_slots(late), [(late, slot(2))]);
        assert_eq!(quarantine.take_blobs(late), [BlobId(20)]);
        assert_eq!(quarantine.take_slots(late), []);
    }

    #[test]
    fn a_slot_that_was_put_back_comes_again_before_younger_ones() {
        let quarantine = Quarantine::default();
        quarantine.free_slot(slot(1));
        quarantine.free_slot(slot(2));
        let early = quarantine.mark();
        quarantine.free_slot(slot(3));
        let taken = quarantine.take_slots(early);
        quarantine.put_back(taken);
        let late = quarantine.mark();
        let again: Vec<u32> = quarantine.take_slots(late).into_iter().map(|(_, freed)| freed.slot).collect();
        assert_eq!(again, [1, 2, 3]);
    }
}
