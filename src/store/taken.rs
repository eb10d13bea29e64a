//! Which slots of a segment are taken, a bit for each, and which of them are on their way back.
//!
//! A slot goes round: free, taken, freed, free. It is taken and given back under the lock of its segment's class; that it
//! is freed is noted by whoever lets go of it last, under no lock, and from then on it is the quarantine's.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The slots of one segment.
pub(super) struct Taken {
    slots: u32,
    /// Bit per slot: something may name it, or did until a commit that may not be durable yet.
    taken: Box<[AtomicU64]>,
    /// Bit per slot: it is in the quarantine. Keeps a slot that is freed twice from being given out twice.
    freed: Box<[AtomicU64]>,
    /// No word of `taken` below this one has a clear bit.
    first_open_word: AtomicU32,
}

impl Taken {
    /// As many slots, none of them taken.
    pub(super) fn new(slots: u32) -> Self {
        let words = slots.div_ceil(u64::BITS);
        let clear = || (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { slots, taken: clear(), freed: clear(), first_open_word: AtomicU32::new(0) }
    }

    /// Whether a slot is taken. There is one of this number, here and below.
    pub(super) fn has(&self, slot: u32) -> bool {
        word(&self.taken, slot).load(Ordering::Acquire) & mask(slot) != 0
    }

    /// Notes that a slot is live, before the first is [taken](Self::take_free).
    pub(super) fn adopt(&self, slot: u32) {
        word(&self.taken, slot).fetch_or(mask(slot), Ordering::AcqRel);
    }

    /// Notes that a slot is named by a snapshot alone; `false` when something else has it, or there is none.
    pub(super) fn hold(&self, slot: u32) -> bool {
        if slot >= self.slots || self.has(slot) {
            return false;
        }
        self.adopt(slot);
        self.set_freed(slot)
    }

    /// Takes a free slot, `None` when there is none. The caller holds the lock of the segment's class, which
    /// all changes after the adoptions go through.
    pub(super) fn take_free(&self) -> Option<u32> {
        let first = self.first_open_word.load(Ordering::Relaxed);
        for (number, word) in (0u32..).zip(&self.taken).skip(first as usize) {
            let bit = (!word.load(Ordering::Acquire)).trailing_zeros();
            let slot = number * u64::BITS + bit;
            if bit < u64::BITS && slot < self.slots {
                word.fetch_or(1 << bit, Ordering::AcqRel);
                self.first_open_word.store(number, Ordering::Relaxed);
                return Some(slot);
            }
        }
        self.first_open_word.store(u32::MAX, Ordering::Relaxed);
        None
    }

    /// Makes a taken slot free again. The caller holds the lock of the segment's class.
    pub(super) fn give_back(&self, slot: u32) {
        word(&self.freed, slot).fetch_and(!mask(slot), Ordering::AcqRel);
        word(&self.taken, slot).fetch_and(!mask(slot), Ordering::AcqRel);
        self.first_open_word.fetch_min(slot / u64::BITS, Ordering::Relaxed);
    }

    /// Notes that a taken slot goes into the quarantine; `false` when it is free or there already.
    pub(super) fn set_freed(&self, slot: u32) -> bool {
        self.has(slot) && word(&self.freed, slot).fetch_or(mask(slot), Ordering::AcqRel) & mask(slot) == 0
    }

    /// A bit for each slot that is taken and not on its way back.
    pub(super) fn live(&self) -> Vec<u64> {
        let words = self.taken.iter().zip(&self.freed);
        words.map(|(taken, freed)| taken.load(Ordering::Acquire) & !freed.load(Ordering::Acquire)).collect()
    }
}

fn word(bits: &[AtomicU64], slot: u32) -> &AtomicU64 {
    &bits[(slot / u64::BITS) as usize]
}

const fn mask(slot: u32) -> u64 {
    1 << (slot % u64::BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_from_the_lowest_up_and_end() {
        let slots = Taken::new(63);
        slots.adopt(1);
        slots.adopt(62);
        let taken: Vec<u32> = std::iter::from_fn(|| slots.take_free()).collect();
        assert_eq!(taken, (0..62).filter(|&slot| slot != 1).collect::<Vec<_>>());
        slots.give_back(40);
        assert_eq!(slots.take_free(), Some(40));
        assert_eq!(slots.take_free(), None);
    }

    #[test]
    fn a_slot_is_freed_once_and_only_when_taken() {
        let slots = Taken::new(1023);
        assert!(!slots.set_freed(5));
        slots.adopt(5);
        assert!(slots.set_freed(5));
        assert!(!slots.set_freed(5));
        slots.give_back(5);
        assert!(!slots.set_freed(5));
    }
}
