//! What snapshots name as well: slots and blobs that are not free when the newest commit lets go of them, and
//! blobs that are not written in place.
//!
//! Space that came out of the quarantine and is named by a snapshot is *held*. It stays taken until
//! [`Shared::replace`] says what the snapshots that are left name.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

use super::quarantine::FreedSlot;
use super::{BlobId, SlotRef};

/// Slots and blobs that snapshots name.
#[derive(Debug, Default)]
pub struct Named {
    /// For each segment a bit for each slot.
    slots: HashMap<u32, Vec<u64>>,
    blobs: HashSet<u64>,
    /// Every blob with a number below this one counts as named.
    blobs_below: u64,
}

impl Named {
    /// A snapshot names this slot.
    pub fn slot(&mut self, at: SlotRef) {
        self.slots_of(at.segment, at.slot)[(at.slot / u64::BITS) as usize] |= 1 << (at.slot % u64::BITS);
    }

    /// A snapshot names this blob.
    pub fn blob(&mut self, id: BlobId) {
        self.blobs.insert(id.0);
    }

    /// Whether it is named.
    #[must_use]
    pub fn names_slot(&self, at: SlotRef) -> bool {
        self.has_slot(FreedSlot { segment: at.segment, slot: at.slot })
    }

    /// Whether it is named.
    #[must_use]
    pub fn names_blob(&self, id: BlobId) -> bool {
        self.has_blob(id)
    }

    /// Takes in what another snapshot names.
    pub fn extend(&mut self, other: Self) {
        for (segment, words) in other.slots {
            let known = self.slots.entry(segment).or_default();
            known.resize(known.len().max(words.len()), 0);
            for (known, word) in known.iter_mut().zip(words) {
                *known |= word;
            }
        }
        self.blobs.extend(other.blobs);
        self.blobs_below = self.blobs_below.max(other.blobs_below);
    }

    /// As a list of numbers: how many segments; of each its number, how many words, and the words; then the blobs.
    pub(super) fn to_numbers(&self) -> Vec<u64> {
        let mut numbers = vec![self.slots.len() as u64];
        for (&segment, words) in &self.slots {
            numbers.extend([u64::from(segment), words.len() as u64]);
            numbers.extend(words);
        }
        numbers.extend(&self.blobs);
        numbers
    }

    /// What [`to_numbers`](Self::to_numbers) made; `None` for what it cannot have made.
    pub(super) fn from_numbers(numbers: &[u64]) -> Option<Self> {
        let (&segments, mut rest) = numbers.split_first()?;
        let mut named = Self::default();
        for _ in 0..segments {
            let (&[segment, words], tail) = rest.split_first_chunk()?;
            let (words, tail) = tail.split_at_checked(usize::try_from(words).ok()?)?;
            named.slots.insert(u32::try_from(segment).ok()?, words.to_vec());
            rest = tail;
        }
        named.blobs.extend(rest);
        Some(named)
    }

    /// The words of a segment, with at least the one of `slot`.
    fn slots_of(&mut self, segment: u32, slot: u32) -> &mut [u64] {
        let words = self.slots.entry(segment).or_default();
        let needed = (slot / u64::BITS) as usize + 1;
        words.resize(words.len().max(needed), 0);
        words
    }

    fn has_slot(&self, freed: FreedSlot) -> bool {
        let word =
            self.slots.get(&freed.segment).and_then(|words| words.get((freed.slot / u64::BITS) as usize));
        word.is_some_and(|word| word & (1 << (freed.slot % u64::BITS)) != 0)
    }

    pub(super) fn has_blob(&self, id: BlobId) -> bool {
        id.0 < self.blobs_below || self.blobs.contains(&id.0)
    }

    /// The slots, by segment and number.
    pub(super) fn slots(&self) -> impl Iterator<Item = FreedSlot> + '_ {
        self.slots.iter().flat_map(|(&segment, words)| {
            (0u32..).zip(words).flat_map(move |(number, &word)| {
                (0..u64::BITS)
                    .filter(move |bit| word & (1 << bit) != 0)
                    .map(move |bit| FreedSlot { segment, slot: number * u64::BITS + bit })
            })
        })
    }

    pub(super) fn blobs(&self) -> impl Iterator<Item = BlobId> + '_ {
        self.blobs.iter().map(|&id| BlobId(id))
    }
}

/// What is named by snapshots, and what of it nothing else names any more.
#[derive(Debug, Default)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    named: Named,
    slots: Vec<FreedSlot>,
    blobs: Vec<BlobId>,
}

impl Shared {
    /// A snapshot is taken: the slots with a bit in `live`, and all blobs below `blobs_below` that are there, are
    /// named by it.
    pub(super) fn add(&self, live: impl Iterator<Item = (u32, Vec<u64>)>, blobs_below: u64) {
        let mut inner = self.inner.lock();
        for (segment, words) in live {
            let Some(last) = words.len().checked_sub(1) else { continue };
            let last = u32::try_from(last).expect("segments have few slots") * u64::BITS;
            let known = inner.named.slots_of(segment, last);
            for (known, word) in known.iter_mut().zip(words) {
                *known |= word;
            }
        }
        inner.named.blobs_below = inner.named.blobs_below.max(blobs_below);
    }

    /// From now on snapshots name these, and no others. Returns what was held and is free now.
    pub(super) fn replace(&self, named: Named) -> (Vec<FreedSlot>, Vec<BlobId>) {
        let mut inner = self.inner.lock();
        let (slots, free_slots) =
            std::mem::take(&mut inner.slots).into_iter().partition(|&slot| named.has_slot(slot));
        let (blobs, free_blobs) =
            std::mem::take(&mut inner.blobs).into_iter().partition(|&id| named.has_blob(id));
        *inner = Inner { named, slots, blobs };
        (free_slots, free_blobs)
    }

    /// Holds a slot that is free otherwise, if a snapshot names it; whether it does.
    pub(super) fn hold_slot(&self, freed: FreedSlot) -> bool {
        let mut inner = self.inner.lock();
        let is_named = inner.named.has_slot(freed);
        if is_named {
            inner.slots.push(freed);
        }
        is_named
    }

    /// Holds a blob that is dropped otherwise, if a snapshot names it; whether it does.
    pub(super) fn hold_blob(&self, id: BlobId) -> bool {
        let mut inner = self.inner.lock();
        let is_named = inner.named.has_blob(id);
        if is_named {
            inner.blobs.push(id);
        }
        is_named
    }

    pub(super) fn has_blob(&self, id: BlobId) -> bool {
        self.inner.lock().named.has_blob(id)
    }

    /// What is held, to be asked for.
    pub(super) fn held_alone(&self) -> Named {
        let (slots, blobs) = self.held();
        let mut held = Named::default();
        for FreedSlot { segment, slot } in slots {
            held.slot(SlotRef { segment, slot, len: 0, checksum: 0 });
        }
        blobs.into_iter().for_each(|id| held.blob(id));
        held
    }

    /// What is held.
    pub(super) fn held(&self) -> (Vec<FreedSlot>, Vec<BlobId>) {
        let inner = self.inner.lock();
        (inner.slots.clone(), inner.blobs.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn slot(slot: u32) -> FreedSlot {
        FreedSlot { segment: 3, slot }
    }

    fn at(slot: u32) -> SlotRef {
        SlotRef { segment: 3, slot, len: 1, checksum: 0 }
    }

    #[test]
    fn what_a_snapshot_names_is_held_until_none_names_it() {
        let shared = Shared::default();
        assert!(!shared.hold_slot(slot(70)) && !shared.hold_blob(BlobId(4)));
        shared.add([(3, vec![0b10, 1 << 6])].into_iter(), 5);
        assert!(shared.hold_slot(slot(70)) && shared.hold_slot(slot(1)) && !shared.hold_slot(slot(2)));
        assert!(shared.hold_blob(BlobId(4)) && !shared.hold_blob(BlobId(5)));
        let mut left = Named::default();
        left.slot(at(1));
        assert_eq!(left.slots().collect::<Vec<_>>(), [slot(1)]);
        assert_eq!(shared.replace(left), (vec![slot(70)], vec![BlobId(4)]));
        assert_eq!(shared.held(), (vec![slot(1)], vec![]));
        assert!(!shared.has_blob(BlobId(0)));
        assert_eq!(shared.replace(Named::default()), (vec![slot(1)], vec![]));
    }

    #[test]
    fn what_is_named_survives_its_numbers_and_joins_others() {
        let (mut one, mut other) = (Named::default(), Named::default());
        one.slot(at(70));
        one.blob(BlobId(8));
        other.slot(at(200));
        other.slot(SlotRef { segment: 9, ..at(0) });
        other.extend(Named::from_numbers(&one.to_numbers()).unwrap());
        let shared = Shared::default();
        shared.replace(Named::from_numbers(&other.to_numbers()).unwrap());
        for held in [slot(70), slot(200), FreedSlot { segment: 9, slot: 0 }] {
            assert!(shared.hold_slot(held), "{held:?}");
        }
        assert!(shared.has_blob(BlobId(8)) && !shared.has_blob(BlobId(9)));
        assert!(!shared.hold_slot(FreedSlot { segment: 9, slot: 1 }));
        for wrong in [&[][..], &[1], &[1, 3, 5, 0], &[u64::MAX, 1], &[1, 1 << 32, 0]] {
            assert!(Named::from_numbers(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_second_snapshot_adds_to_the_first() {
        let shared = Shared::default();
        shared.add([(3, vec![1])].into_iter(), 9);
        shared.add([(3, vec![2, 1])].into_iter(), 7);
        for number in [0, 1, 64] {
            assert!(shared.hold_slot(slot(number)), "{number}");
        }
        assert!(shared.has_blob(BlobId(8)));
    }
}
