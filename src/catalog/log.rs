//! The file `tail`: the newest commits, so that they outlive the process before the engine has them.
//!
//! ```text
//! 0        8         12   16      24         32
//! | VEXTAIL | version | 0  | epoch | checksum | record | record | ...
//!
//! record:  number u64, bytes u32, items u32, checksum u64, then of each item
//!          table u8, 1 with a value u8, key bytes u16, value bytes u32, key, value
//! ```
//!
//! When the engine has been given what is in it, it is written from the front again. What is behind its end is older:
//! records follow each other by their numbers. The epoch is another one for each process, and checksums depend on it, so
//! that records of two do not follow each other by chance.
//!
//! Nothing of it is synced: a power cut leaves any of its pages, and what follows the engine's last commit without a gap
//! is as good as if it had been in the engine's journal.

use std::fs;
use std::io;
use std::path::Path;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Table;
use super::batch::Item;
use crate::pool::lasting::Lasting;

/// The file's name in the catalog's directory.
pub(super) const NAME: &str = "tail";

const MAGIC: [u8; 8] = *b"VEXTAIL\0";
const VERSION: u32 = 1;

/// Length of the file: some hundred commits of small changes, which the engine takes in about a millisecond.
const BYTES: usize = 256 << 10;
const HEADER_BYTES: usize = 32;
const RECORD_BYTES: usize = 24;
const ITEM_BYTES: usize = 8;

/// The log that this process writes.
#[derive(Debug)]
pub(super) struct Log {
    bytes: Lasting,
    epoch: u64,
    end: usize,
    record: Vec<u8>,
}

impl Log {
    /// Begins the log of the catalog in `dir`. What was in it has been [read](read) and given to the engine.
    pub(super) fn begin(dir: &Path) -> io::Result<Self> {
        let mut bytes = Lasting::open(&dir.join(NAME), BYTES)?;
        let epoch = crate::random::unlike_any();
        bytes.write(0, &header(epoch))?;
        Ok(Self { bytes, epoch, end: HEADER_BYTES, record: Vec::new() })
    }

    /// Appends a commit; false when there is no room for it.
    ///
    /// # Errors
    ///
    /// I/O errors; nothing can be appended any more then.
    pub(super) fn append(&mut self, number: u64, items: &[Item]) -> io::Result<bool> {
        let len = record_bytes(items);
        if len > BYTES - self.end {
            return Ok(false);
        }
        let Ok(()) = encode(number, items, self.epoch, &mut self.record) else { return Ok(false) };
        self.bytes.write(self.end, &self.record)?;
        self.end += self.record.len();
        Ok(true)
    }

    /// The engine has everything.
    pub(super) fn rewind(&mut self) {
        self.end = HEADER_BYTES;
    }
}

/// Whether the log takes a commit, once it is empty.
pub(super) fn takes(items: &[Item]) -> bool {
    // Larger ones gain little.
    record_bytes(items) <= BYTES / 4
}

fn record_bytes(items: &[Item]) -> usize {
    let of_item =
        |item: &Item| ITEM_BYTES + item.key.len() + item.value.as_ref().map_or(0, |value| value.len());
    RECORD_BYTES + items.iter().map(of_item).sum::<usize>()
}

/// The commits after `last` that the log in `dir` has, each with its number, as far as none is missing.
///
/// # Errors
///
/// I/O errors. A log that is not there, or damaged, has none from there on.
pub(super) fn read(dir: &Path, last: u64) -> io::Result<Vec<(u64, Vec<Item>)>> {
    let bytes = match fs::read(dir.join(NAME)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let Some((head, mut rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(Vec::new()) };
    let epoch = head[16..24].try_into().map_or(0, u64::from_le_bytes);
    if head != header(epoch) {
        return Ok(Vec::new());
    }
    let (mut commits, mut before) = (Vec::new(), None);
    while let Some((number, items, len)) = decode(rest, epoch) {
        if before.is_some_and(|before| before + 1 != number) || number > last + 1 + commits.len() as u64 {
            break;
        }
        if number > last {
            commits.push((number, items));
        }
        before = Some(number);
        rest = &rest[len..];
    }
    Ok(commits)
}

/// Removes the log, when the engine has what was in it.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn header(epoch: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&epoch.to_le_bytes());
    let sum = xxh3_64(&bytes[..24]);
    bytes[24..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Makes the record of a commit, if its parts are as long as a record can say.
fn encode(
    number: u64,
    items: &[Item],
    epoch: u64,
    into: &mut Vec<u8>,
) -> Result<(), std::num::TryFromIntError> {
    into.clear();
    into.extend(number.to_le_bytes());
    into.extend(u32::try_from(record_bytes(items))?.to_le_bytes());
    into.extend(u32::try_from(items.len())?.to_le_bytes());
    into.extend([0; 8]);
    for Item { table, key, value } in items {
        into.extend([*table as u8, u8::from(value.is_some())]);
        into.extend(u16::try_from(key.len())?.to_le_bytes());
        into.extend(u32::try_from(value.as_ref().map_or(0, |value| value.len()))?.to_le_bytes());
        into.extend_from_slice(key);
        into.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    let sum = xxh3_64_with_seed(into, epoch);
    into[16..24].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// The record that `bytes` begin with, and its length; `None` when there is no whole one of this epoch.
fn decode(bytes: &[u8], epoch: u64) -> Option<(u64, Vec<Item>, usize)> {
    let head: &[u8; RECORD_BYTES] = bytes.first_chunk()?;
    let number = u64::from_le_bytes(*head.first_chunk()?);
    let len = usize::try_from(u32::from_le_bytes(*head[8..].first_chunk()?)).ok()?;
    let count = u32::from_le_bytes(*head[12..].first_chunk()?);
    let sum = u64::from_le_bytes(*head[16..].first_chunk()?);
    let mut record = bytes.get(..len).filter(|record| record.len() >= RECORD_BYTES)?.to_vec();
    record[16..24].fill(0);
    if xxh3_64_with_seed(&record, epoch) != sum {
        return None;
    }
    let mut rest = &record[RECORD_BYTES..];
    let mut items = Vec::new();
    for _ in 0..count {
        let (item, after) = decode_item(rest)?;
        items.push(item);
        rest = after;
    }
    rest.is_empty().then_some((number, items, len))
}

fn decode_item(bytes: &[u8]) -> Option<(Item, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<ITEM_BYTES>()?;
    let [table, has_value, a, b, c, d, e, f] = *head;
    let table = *Table::ALL.get(usize::from(table))?;
    let (key, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([a, b])))?;
    let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes([c, d, e, f])).ok()?)?;
    let value = (has_value == 1).then(|| value.into());
    Some((Item { table, key: key.into(), value }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(number: u64) -> Vec<Item> {
        let key = number.to_be_bytes();
        let removed = Item { table: Table::Marks, key: key.into(), value: None };
        let empty = Item { table: Table::Links, key: key.into(), value: Some(b"".into()) };
        let long = Item { table: Table::Inline, key: key.into(), value: Some(vec![7; 900].into()) };
        vec![removed, empty, long]
    }

    fn numbers(dir: &Path, last: u64) -> Vec<u64> {
        read(dir, last).unwrap().into_iter().map(|(number, _)| number).collect()
    }

    fn append(log: &mut Log, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            assert!(log.append(number, &items(number)).unwrap());
        }
    }

    #[test]
    fn commits_come_back_from_the_one_after_the_engines_last() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(numbers(dir.path(), 0), [0; 0]);
        let mut log = Log::begin(dir.path()).unwrap();
        append(&mut log, 5..=9);
        assert_eq!(numbers(dir.path(), 4), [5, 6, 7, 8, 9]);
        assert_eq!(numbers(dir.path(), 7), [8, 9]);
        assert_eq!(numbers(dir.path(), 9), [0; 0]);
        // The engine has lost commits that the log had given away.
        assert_eq!(numbers(dir.path(), 3), [0; 0]);
        let (_, found) = read(dir.path(), 8).unwrap().remove(0);
        let parts = |items: &[Item]| -> Vec<_> {
            items
                .iter()
                .map(|item| (item.table, item.key.to_vec(), item.value.as_deref().map(<[u8]>::to_vec)))
                .collect()
        };
        assert_eq!(parts(&found), parts(&items(9)));
    }

    #[test]
    fn what_is_left_of_an_earlier_round_or_process_does_not_follow() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::begin(dir.path()).unwrap();
        append(&mut log, 1..=4);
        log.rewind();
        append(&mut log, 5..=6);
        assert_eq!(numbers(dir.path(), 4), [5, 6]);
        drop(log);
        let mut log = Log::begin(dir.path()).unwrap();
        assert_eq!(numbers(dir.path(), 4), [0; 0]);
        // Records of the same length, and the numbers that would follow, behind them.
        append(&mut log, 1..=2);
        assert_eq!(numbers(dir.path(), 0), [1, 2]);
    }

    #[test]
    fn a_log_that_is_full_says_so_and_takes_as_much_again_from_the_front() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::begin(dir.path()).unwrap();
        let mut number = 0;
        while log.append(number + 1, &items(number + 1)).unwrap() {
            number += 1;
        }
        assert_eq!(number, ((BYTES - HEADER_BYTES) / record_bytes(&items(1))) as u64);
        assert_eq!(numbers(dir.path(), 0).len() as u64, number);
        log.rewind();
        append(&mut log, number + 1..=number + 1);
        assert_eq!(numbers(dir.path(), number), [number + 1]);
        let large = [Item { table: Table::Inline, key: b"k".into(), value: Some(vec![0; BYTES / 4].into()) }];
        assert!(takes(&items(1)) && !takes(&large));
    }

    #[test]
    fn a_damaged_or_cut_log_has_the_commits_before_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::begin(dir.path()).unwrap();
        append(&mut log, 1..=3);
        let path = dir.path().join(NAME);
        let (sound, len) = (fs::read(&path).unwrap(), record_bytes(&items(1)));
        for at in 0..HEADER_BYTES + 3 * len {
            // Two bytes of the header are not looked at by themselves, and are in its checksum.
            let whole = at.checked_sub(HEADER_BYTES).map_or(0, |at| at / len);
            let mut flipped = sound.clone();
            flipped[at] ^= 0x20;
            fs::write(&path, &flipped).unwrap();
            assert_eq!(numbers(dir.path(), 0).len(), whole, "flipped at {at}");
            fs::write(&path, &sound[..at]).unwrap();
            assert_eq!(numbers(dir.path(), 0).len(), whole, "cut at {at}");
        }
    }
}
