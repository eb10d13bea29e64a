//! Keys with a number, packed so that one integer comparison orders them.

use std::collections::BinaryHeap;

/// A number that is ordered among others as `key` is among keys. Of NaN there is none; -0 is 0.
#[inline]
pub(super) fn rank(key: f32) -> u32 {
    let bits = (key + 0.0).to_bits();
    // Negative floats order backwards as integers: flip them whole, and lift the others above them.
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The key whose [`rank`] it is.
#[inline]
pub(super) fn key_of(rank: u32) -> f32 {
    f32::from_bits(if rank >> 31 == 1 { rank & !(1 << 31) } else { !rank })
}

/// A distance key and a number (a row or a node), ordered by key, then number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ranked(u64);

impl Ranked {
    /// NaN has no place in an order and counts as infinitely far; -0 is 0.
    #[inline]
    pub(super) fn new(key: f32, number: u32) -> Self {
        let key = if key.is_nan() { f32::INFINITY } else { key };
        Ranked(u64::from(rank(key)) << 32 | u64::from(number))
    }

    /// The distance key.
    #[inline]
    pub(super) fn key(self) -> f32 {
        key_of((self.0 >> 32) as u32)
    }

    /// The row or node.
    #[inline]
    pub(super) fn number(self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the low half of 64 bits is 32 bits")]
        let number = self.0 as u32;
        number
    }
}

/// Collector of the `k` smallest, and of a bounded number of those that tie with the last of them.
#[derive(Debug, Default)]
pub(super) struct Nearest {
    k: usize,
    max_ties: usize,
    best: BinaryHeap<Ranked>,
    /// What was pushed out of `best`, or came too late for it, with the key of its last element. The smallest
    /// `max_ties` are kept, so the outcome does not depend on the order of arrival.
    ties: BinaryHeap<Ranked>,
}

impl Nearest {
    /// Empties it and sets its bounds.
    pub(super) fn reset(&mut self, k: usize, max_ties: usize) {
        self.k = k;
        self.max_ties = max_ties;
        self.best.clear();
        self.ties.clear();
    }

    /// Key of the k-th; infinite while there are fewer than `k`, and -infinite when `k` is 0.
    #[inline]
    pub(super) fn bound(&self) -> f32 {
        if self.best.len() < self.k {
            return f32::INFINITY;
        }
        self.best.peek().map_or(f32::NEG_INFINITY, |last| last.key())
    }

    /// Whether `k` are there, so that only nearer ones and ties matter.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.best.len() >= self.k
    }

    #[inline]
    pub(super) fn push(&mut self, new: Ranked) {
        if !self.is_full() {
            self.best.push(new);
            return;
        }
        let Some(mut last) = self.best.peek_mut() else {
            return;
        };
        if new >= *last {
            if new.key() == last.key() {
                drop(last);
                self.push_tie(new);
            }
            return;
        }
        let out = std::mem::replace(&mut *last, new);
        drop(last);
        if self.bound() < out.key() {
            self.ties.clear();
        } else {
            self.push_tie(out);
        }
    }

    fn push_tie(&mut self, tie: Ranked) {
        if self.max_ties > 0 {
            self.ties.push(tie);
            if self.ties.len() > self.max_ties {
                self.ties.pop();
            }
        }
    }

    /// Moves everything to the end of `into`, nearest first, and leaves this empty.
    pub(super) fn drain_into(&mut self, into: &mut Vec<Ranked>) {
        let start = into.len();
        into.extend(self.best.drain());
        into.extend(self.ties.drain());
        into[start..].sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_order_and_values() {
        let keys = [f32::NEG_INFINITY, -3.5, -1e-40, 0.0, 1e-40, 0.1, 2.0, f32::INFINITY];
        for pair in keys.windows(2) {
            assert!(Ranked::new(pair[0], u32::MAX) < Ranked::new(pair[1], 0), "{pair:?}");
        }
        for key in keys {
            assert_eq!((Ranked::new(key, 7).key(), Ranked::new(key, 7).number()), (key, 7));
        }
        assert_eq!(Ranked::new(-0.0, 1), Ranked::new(0.0, 1));
        assert_eq!(Ranked::new(f32::NAN, 1), Ranked::new(f32::INFINITY, 1));
    }

    #[test]
    fn without_ties_exactly_k_are_kept() {
        let mut nearest = Nearest::default();
        nearest.reset(2, 0);
        for number in [3, 1, 2] {
            nearest.push(Ranked::new(1.0, number));
        }
        let mut out = Vec::new();
        nearest.drain_into(&mut out);
        assert_eq!(out, [Ranked::new(1.0, 1), Ranked::new(1.0, 2)]);
    }
}
