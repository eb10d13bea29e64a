//! Sets of rows: what a filter lets pass.

use std::ops::Range;

use super::RowId;

/// Rows of a word.
const WORD: usize = 64;

/// A set of rows as a bitmap that knows how many rows it has.
///
/// It takes one bit for each row number up to its largest, in or not: 125 kB where a million rows are numbered.
#[derive(Clone, Debug, Default)]
pub struct RowSet {
    words: Vec<u64>,
    len: u64,
}

impl RowSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The exact number of rows.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no row is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory of the bitmap in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    /// Whether `row` is in it.
    #[inline]
    #[must_use]
    pub fn contains(&self, row: RowId) -> bool {
        let row = row.0 as usize;
        self.words.get(row / WORD).is_some_and(|word| word >> (row % WORD) & 1 == 1)
    }

    /// Adds a row. Returns whether it was new.
    pub fn insert(&mut self, row: RowId) -> bool {
        let before = self.len;
        self.insert_range(row.0..row.0.saturating_add(1));
        self.len > before
    }

    /// Adds the rows of a range of numbers; those that are there stay.
    pub fn insert_range(&mut self, rows: Range<u32>) {
        let words = (rows.end as usize).div_ceil(WORD);
        if !rows.is_empty() && self.words.len() < words {
            self.words.resize(words, 0);
        }
        for (at, mask) in masks(rows) {
            self.len += u64::from((mask & !self.words[at]).count_ones());
            self.words[at] |= mask;
        }
    }

    /// Takes the rows of a range of numbers out; those that are not there are passed over.
    pub fn remove_range(&mut self, rows: Range<u32>) {
        for (at, mask) in masks(rows) {
            let Some(word) = self.words.get_mut(at) else { break };
            self.len -= u64::from((mask & *word).count_ones());
            *word &= !mask;
        }
    }

    /// The rows that are in both.
    #[must_use]
    pub fn intersection(&self, other: &RowSet) -> RowSet {
        let words: Vec<u64> = self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect();
        let len = words.iter().map(|word| u64::from(word.count_ones())).sum();
        RowSet { words, len }
    }

    /// The rows in ascending order.
    #[must_use]
    pub fn iter(&self) -> Rows<'_> {
        self.iter_from(RowId(0))
    }

    /// The rows from number `first` on, in ascending order.
    #[must_use]
    pub fn iter_from(&self, first: RowId) -> Rows<'_> {
        let at = (first.0 as usize / WORD).min(self.words.len());
        let word = self.words.get(at).map_or(0, |word| word & !0 << (first.0 as usize % WORD));
        Rows { words: &self.words, at, word }
    }

    /// How many rows there are from number `first` on.
    #[must_use]
    pub fn count_from(&self, first: RowId) -> u64 {
        let Rows { words, at, word } = self.iter_from(first);
        let rest = words.iter().skip(at + 1).map(|word| u64::from(word.count_ones()));
        u64::from(word.count_ones()) + rest.sum::<u64>()
    }
}

impl FromIterator<RowId> for RowSet {
    fn from_iter<I: IntoIterator<Item = RowId>>(rows: I) -> Self {
        let mut set = RowSet::new();
        set.extend(rows);
        set
    }
}

impl Extend<RowId> for RowSet {
    fn extend<I: IntoIterator<Item = RowId>>(&mut self, rows: I) {
        for row in rows {
            self.insert(row);
        }
    }
}

impl<'a> IntoIterator for &'a RowSet {
    type Item = RowId;
    type IntoIter = Rows<'a>;

    fn into_iter(self) -> Rows<'a> {
        self.iter()
    }
}

/// The rows of a [`RowSet`] in ascending order.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    words: &'a [u64],
    at: usize,
    /// What is left of the word at `at`.
    word: u64,
}

impl Iterator for Rows<'_> {
    type Item = RowId;

    #[inline]
    fn next(&mut self) -> Option<RowId> {
        while self.word == 0 {
            self.at += 1;
            self.word = *self.words.get(self.at)?;
        }
        let bit = self.word.trailing_zeros();
        self.word &= self.word - 1;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "there are no words beyond the largest row number"
        )]
        let first = (self.at * WORD) as u32;
        Some(RowId(first + bit))
    }
}

/// The words that a range of rows touches, each with the bits of the rows in it.
fn masks(rows: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let (start, end) = (rows.start as usize, if rows.is_empty() { 0 } else { rows.end as usize });
    (start / WORD..end.div_ceil(WORD)).map(move |at| {
        let low = !0 << start.saturating_sub(at * WORD);
        let beyond = ((at + 1) * WORD).saturating_sub(end);
        (at, low & !0 >> beyond)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn numbers(set: &RowSet) -> Vec<u32> {
        set.iter().map(|row| row.0).collect()
    }

    #[test]
    fn random_changes_agree_with_a_tree_of_numbers() {
        let mut state = 7u64;
        let mut below = |bound: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from(state >> 33).unwrap() % bound
        };
        let (mut set, mut want) = (RowSet::new(), BTreeSet::new());
        for step in 0..2_000 {
            let start = below(1_000);
            let rows = start..start + below(if step % 3 == 0 { 200 } else { 3 });
            if below(2) == 0 {
                set.insert_range(rows.clone());
                want.extend(rows);
            } else {
                set.remove_range(rows.clone());
                want.retain(|number| !rows.contains(number));
            }
            assert_eq!(set.len(), want.len() as u64, "step {step}");
            let first = below(1_300);
            let from = want.range(first..).copied();
            assert_eq!(set.count_from(RowId(first)), from.clone().count() as u64, "step {step}");
            assert!(set.iter_from(RowId(first)).map(|row| row.0).eq(from), "step {step}");
            assert_eq!(set.contains(RowId(first)), want.contains(&first), "step {step}");
        }
        assert_eq!(numbers(&set), want.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn ranges_begin_and_end_anywhere_in_a_word() {
        for start in 0..130 {
            for end in 0..130 {
                let mut set = RowSet::new();
                set.insert_range(start..end);
                assert_eq!(numbers(&set), (start..end).collect::<Vec<_>>());
                set.insert_range(0..130);
                set.remove_range(start..end);
                assert_eq!(set.len(), 130 - (start..end).len() as u64, "{start}..{end}");
            }
        }
    }

    #[test]
    fn an_intersection_has_the_rows_of_both_and_counts_them() {
        let even: RowSet = (0..300).step_by(2).map(RowId).collect();
        let thirds: RowSet = (0..1_000).step_by(3).map(RowId).collect();
        let both = even.intersection(&thirds);
        assert_eq!(numbers(&both), (0..300).step_by(6).collect::<Vec<_>>());
        assert_eq!(both.len(), 50);
        assert!(both.intersection(&RowSet::new()).is_empty());
    }

    #[test]
    fn a_row_is_new_once() {
        let mut set = RowSet::new();
        assert!(set.insert(RowId(64)) && !set.insert(RowId(64)));
        assert!(!set.contains(RowId(u32::MAX)) && !set.contains(RowId(63)));
    }

    #[test]
    fn a_million_numbers_take_no_more_than_a_bit_each() {
        let mut set = RowSet::new();
        set.insert_range(999_999..1_000_000);
        assert!(set.bytes() <= 1_000_000 / 8 + 8, "{} bytes", set.bytes());
    }
}
