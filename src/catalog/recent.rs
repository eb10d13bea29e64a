//! Inode records that were read or committed lately. Operations on a file follow each other, and each begins with its
//! record: the engine is asked by the first.
//!
//! **Promise.** What is here is what the engine would answer. A commit empties the places of its records and closes
//! them, then the engine applies it, then its records are left there. What a reader has got of the engine is left only
//! where no commit came to the place since before it asked.
//!
//! ```text
//! reader   look ──▶ nothing, and how often it was closed ──▶ engine ──▶ leave, if that is still so
//! commit            close ──▶ engine ──▶ leave
//! ```

use parking_lot::Mutex;

use super::batch::Item;
use super::{Table, Value};

/// Records that are kept: some hundred bytes each.
const PLACES: usize = 16_384;

/// Records by the remainder of their numbers: those of a directory's files follow each other.
#[derive(Debug)]
pub(super) struct Recent {
    places: Box<[Mutex<Place>]>,
}

#[derive(Clone, Debug, Default)]
struct Place {
    number: u64,
    record: Option<Value>,
    /// How often a commit has closed it.
    closings: u32,
    /// A commit is about to be applied, or failed.
    is_closed: bool,
}

/// A place in which a record was not found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missed {
    number: u64,
    closings: u32,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self { places: (0..PLACES).map(|_| Mutex::default()).collect() }
    }

    fn place(&self, number: u64) -> &Mutex<Place> {
        // A remainder is less than their count.
        #[expect(clippy::cast_possible_truncation, reason = "there are fewer places than that")]
        &self.places[(number % PLACES as u64) as usize]
    }

    /// The record under `key`, or where it may be [left](Self::leave). Apart, as that is: the engine is asked deep in
    /// the stack.
    #[inline(never)]
    pub(super) fn look(&self, key: &[u8]) -> Result<Value, Option<Missed>> {
        let number = number(key).ok_or(None)?;
        let place = self.place(number).lock();
        match &place.record {
            Some(record) if place.number == number => Ok(record.clone()),
            _ if place.is_closed => Err(None),
            _ => Err(Some(Missed { number, closings: place.closings })),
        }
    }

    /// Leaves what the engine has answered since the record was missed.
    #[inline(never)]
    pub(super) fn leave(&self, missed: Missed, record: &Value) {
        let mut place = self.place(missed.number).lock();
        if !place.is_closed && place.closings == missed.closings {
            place.number = missed.number;
            // A copy: what the engine returns may be a part of a block that it keeps alive.
            place.record = Some(Value::from(&record[..]));
        }
    }

    /// A commit of `items` is about to be applied. One at a time.
    #[inline(never)]
    pub(super) fn close(&self, items: &[Item]) {
        for number in items.iter().filter_map(inode) {
            let mut place = self.place(number).lock();
            place.record = None;
            place.closings = place.closings.wrapping_add(1);
            place.is_closed = true;
        }
    }

    /// It was applied.
    #[inline(never)]
    pub(super) fn open(&self, items: &[Item]) {
        for item in items {
            let Some(number) = inode(item) else { continue };
            let mut place = self.place(number).lock();
            place.number = number;
            place.record = item.value.clone();
            place.is_closed = false;
        }
    }
}

/// The inode whose record an item changes.
fn inode(item: &Item) -> Option<u64> {
    if item.table == Table::Inodes { number(&item.key) } else { None }
}

fn number(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(number: u64, value: Option<&str>) -> Item {
        let value = value.map(|value| value.as_bytes().into());
        Item { table: Table::Inodes, key: number.to_be_bytes().into(), value }
    }

    fn known(recent: &Recent, number: u64) -> Option<Vec<u8>> {
        recent.look(&number.to_be_bytes()).ok().map(|record| record.to_vec())
    }

    fn missed(recent: &Recent, number: u64) -> Option<Missed> {
        recent.look(&number.to_be_bytes()).unwrap_err()
    }

    #[test]
    fn what_was_committed_is_known_and_what_was_removed_or_failed_is_not() {
        let recent = Recent::new();
        let begin = |items: &[Item]| {
            recent.close(items);
            assert!(items.iter().all(|item| recent.look(&item.key).is_err_and(|place| place.is_none())));
        };
        let both = [item(1, Some("a")), item(2, Some("b"))];
        begin(&both);
        recent.open(&both);
        assert_eq!((known(&recent, 1), known(&recent, 2)), (Some(b"a".to_vec()), Some(b"b".to_vec())));
        let removal = [item(1, None)];
        begin(&removal);
        recent.open(&removal);
        begin(&[item(2, Some("c"))]);
        assert_eq!((known(&recent, 1), known(&recent, 2)), (None, None));
        assert!(missed(&recent, 1).is_some() && missed(&recent, 2).is_none());
    }

    #[test]
    fn two_records_of_one_place_are_not_taken_for_each_other() {
        let recent = Recent::new();
        let other = 1 + PLACES as u64;
        let items = [item(1, Some("a")), item(other, Some("b"))];
        recent.close(&items);
        recent.open(&items);
        assert_eq!((known(&recent, 1), known(&recent, other)), (None, Some(b"b".to_vec())));
        let place = missed(&recent, 1).unwrap();
        recent.leave(place, &"a".into());
        assert_eq!((known(&recent, 1), known(&recent, other)), (Some(b"a".to_vec()), None));
    }

    #[test]
    fn what_was_read_before_a_commit_is_not_left_after_it() {
        let recent = Recent::new();
        let before = missed(&recent, 1).unwrap();
        let items = [item(1, None)];
        recent.close(&items);
        recent.leave(before, &"old".into());
        assert_eq!(known(&recent, 1), None);
        recent.open(&items);
        recent.leave(before, &"old".into());
        assert_eq!(known(&recent, 1), None);
        recent.leave(missed(&recent, 1).unwrap(), &"new".into());
        assert_eq!(known(&recent, 1), Some(b"new".to_vec()));
    }
}
