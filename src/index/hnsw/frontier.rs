//! The nodes that a walk has met, nearest first: those to expand next and those to return are the same list.

use crate::index::ranked::{key_of, rank};

/// Met nodes in the order of their keys. Holds the nearest `ef` that are *accepted* and, among them, whatever else is
/// as near: what is not accepted is walked through and takes no place.
#[derive(Debug, Default)]
pub(super) struct Frontier {
    /// Key, node and flags, so that one integer comparison orders them.
    entries: Vec<u64>,
    /// All before this are expanded.
    next: usize,
    ef: usize,
    accepted: usize,
    /// See [`bound`](Self::bound).
    bound: f32,
}

const EXPANDED: u64 = 1;
const ACCEPTED: u64 = 2;
/// Entries from the end that are looked at one by one before the place of a new one is searched by halving.
const NEAR_END: usize = 8;

impl Frontier {
    /// Empties it and sets how many accepted nodes it holds, at least 1.
    pub(super) fn reset(&mut self, ef: usize) {
        self.entries.clear();
        self.next = 0;
        self.ef = ef.max(1);
        self.accepted = 0;
        self.bound = f32::INFINITY;
    }

    /// Key that a node must have less than to be of interest: that of the last accepted, infinite until there are
    /// `ef`.
    #[inline]
    pub(super) fn bound(&self) -> f32 {
        self.bound
    }

    /// How many nodes it holds, accepted or not.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many of them are accepted.
    #[inline]
    pub(super) fn count_accepted(&self) -> usize {
        self.accepted
    }

    /// Adds a node that was not met before. Returns whether it is the one that is expanded next.
    #[inline]
    pub(super) fn offer(&mut self, new_key: f32, node: u32, accepted: bool) -> bool {
        let entry = pack(new_key, node) | if accepted { ACCEPTED } else { 0 };
        let place = self.insert(entry);
        let is_next = place <= self.next;
        self.next = self.next.min(place);
        if accepted {
            self.accepted += 1;
            if self.accepted >= self.ef {
                self.cut();
            }
        }
        is_next
    }

    /// Puts an entry in its place, which it returns.
    #[inline]
    fn insert(&mut self, entry: u64) -> usize {
        let mut place = self.entries.len();
        self.entries.push(entry);
        // Most belong near the end: those are moved up one by one, without the cost of a search and a copy.
        for _ in 0..NEAR_END {
            let Some(before) =
                place.checked_sub(1).map(|at| self.entries[at]).filter(|&before| before > entry)
            else {
                self.entries[place] = entry;
                return place;
            };
            self.entries[place] = before;
            place -= 1;
        }
        let found = self.entries[..place].partition_point(|&there| there < entry);
        self.entries.copy_within(found..place, found + 1);
        self.entries[found] = entry;
        found
    }

    /// Drops what is behind the `ef`-th accepted node, which is the last then.
    fn cut(&mut self) {
        loop {
            while self.entries.last().is_some_and(|&last| last & ACCEPTED == 0) {
                self.entries.pop();
            }
            if self.accepted <= self.ef {
                break;
            }
            self.entries.pop();
            self.accepted -= 1;
        }
        self.bound = self.entries.last().map_or(f32::INFINITY, |&last| key(last));
    }

    /// The nearest node that is not expanded; it counts as expanded from now on.
    #[inline]
    pub(super) fn expand(&mut self) -> Option<(f32, u32)> {
        while let Some(entry) = self.entries.get_mut(self.next) {
            self.next += 1;
            if *entry & EXPANDED == 0 {
                *entry |= EXPANDED;
                return Some((key(*entry), node(*entry)));
            }
        }
        None
    }

    /// The two nodes that are expanded next, as far as can be said.
    #[inline]
    pub(super) fn peek(&self) -> impl Iterator<Item = u32> {
        self.entries[self.next..].iter().take(2).map(|&entry| node(entry))
    }

    /// Key and node of the accepted ones, nearest first.
    pub(super) fn accepted(&self) -> impl Iterator<Item = (f32, u32)> + Clone {
        self.entries.iter().filter(|&&entry| entry & ACCEPTED != 0).map(|&entry| (key(entry), node(entry)))
    }

    /// Key and node of all, nearest first.
    pub(super) fn all(&self) -> impl Iterator<Item = (f32, u32)> + Clone {
        self.entries.iter().map(|&entry| (key(entry), node(entry)))
    }
}

#[inline]
fn pack(key: f32, node: u32) -> u64 {
    u64::from(rank(key)) << 32 | u64::from(node) << 2
}

#[inline]
fn key(entry: u64) -> f32 {
    key_of((entry >> 32) as u32)
}

#[inline]
fn node(entry: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the low half of 64 bits is 32 bits")]
    let low = entry as u32;
    low >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(frontier: &Frontier) -> Vec<u32> {
        frontier.all().map(|(_, node)| node).collect()
    }

    #[test]
    fn the_nearest_accepted_are_kept_in_order_and_expanded_once() {
        let mut frontier = Frontier::default();
        frontier.reset(3);
        for (key, node) in [(5.0, 1), (-1.0, 2), (3.0, 3), (4.0, 4), (9.0, 5), (-2.0, 6)] {
            frontier.offer(key, node, true);
        }
        assert_eq!(nodes(&frontier), [6, 2, 3]);
        assert_eq!(frontier.bound(), 3.0);
        assert_eq!(frontier.expand(), Some((-2.0, 6)));
        assert_eq!(frontier.expand(), Some((-1.0, 2)));
        frontier.offer(-1.5, 7, true);
        assert_eq!(frontier.peek().collect::<Vec<_>>(), [7, 2]);
        assert_eq!(frontier.expand(), Some((-1.5, 7)));
        assert_eq!(frontier.expand(), None);
    }

    #[test]
    fn what_is_not_accepted_takes_no_place_and_goes_with_the_last_that_is_farther() {
        let mut frontier = Frontier::default();
        frontier.reset(2);
        for node in 0..10 {
            frontier.offer(node as f32, node, false);
        }
        assert_eq!((frontier.accepted().count(), frontier.bound()), (0, f32::INFINITY));
        frontier.offer(8.5, 20, true);
        frontier.offer(3.5, 21, true);
        assert_eq!(frontier.bound(), 8.5);
        frontier.offer(1.5, 22, true);
        assert_eq!(nodes(&frontier), [0, 1, 22, 2, 3, 21]);
        assert_eq!(frontier.accepted().map(|(_, node)| node).collect::<Vec<_>>(), [22, 21]);
        assert_eq!(frontier.bound(), 3.5);
    }

    #[test]
    fn many_random_offers_agree_with_sorting() {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as u32
        };
        for ef in [1, 5, 40, 200] {
            let mut frontier = Frontier::default();
            frontier.reset(ef);
            let mut all: Vec<(f32, u32)> = (0..500).map(|node| (random() as f32 - 8e6, node)).collect();
            for &(key, node) in &all {
                frontier.offer(key, node, true);
            }
            all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            assert!(frontier.all().eq(all.into_iter().take(ef)), "ef {ef}");
        }
    }
}
