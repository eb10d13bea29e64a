//! The engine's journals: what they hold, the end of the newest after a power cut, and of all when the tables have what
//! is in them.
//!
//! The disk may have kept any sectors of commits that were never synced. The engine puts up with a journal that
//! ends in the middle of a commit, and refuses one whose last commit has its end and lost its middle. So the journal
//! is cut behind its last whole commit before the engine reads it. Commits are found by the engine's own format: a
//! start with the number of items, the items, an end with their checksum.
//!
//! The engine cuts off what it cannot read as well, also where that is damage. So whoever opens a catalog looks first.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::COMMITS;
use crate::Result;
use crate::format::record;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;

/// What follows the checksum at the end of a commit.
const TRAILER: [u8; 4] = *b"FJL\x03";

/// Bytes of an item behind its tag and before its key: type, compression, keyspace u64, lengths of key u16, of the
/// value u32 and of the value as it is stored u32.
const ITEM_HEADER: usize = 20;

/// Bytes of key and value of the item that says which commit it is in, at most.
const NUMBER_MAX: usize = 32;

/// What the journals of a catalog hold.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// The number of the last whole commit, if there is one.
    pub(super) last: Option<u64>,
    /// Where the commits end.
    pub(super) end: Place,
    /// Behind the commits of a journal are not only the zeros that it has ahead.
    pub(super) has_rest: bool,
    /// Where such a rest begins that later commits are behind: a power cut leaves none.
    pub(super) gap: Option<Place>,
}

/// A byte of a journal.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The file below the store directory.
    pub(super) file: String,
    pub(super) offset: u64,
}

impl Default for Place {
    fn default() -> Self {
        Self { file: "catalog".into(), offset: 0 }
    }
}

/// A commit in a journal.
struct Commit {
    bytes: u64,
    number: Option<u64>,
}

/// Reads the journals of the catalog in `dir`, which nobody has open.
///
/// # Errors
///
/// I/O errors.
pub(super) fn held(dir: &Path) -> io::Result<Held> {
    let mut held = Held::default();
    let mut rest = None;
    for (number, path) in all(dir)? {
        let file = File::open(path)?;
        let (whole, last) = read_whole(&file)?;
        let end = Place { file: format!("catalog/{number}.jnl"), offset: whole };
        if whole > 0 {
            held.gap = held.gap.or(rest.take());
        }
        if has_bytes_behind(&file, whole)? {
            held.has_rest = true;
            rest.get_or_insert_with(|| end.clone());
        } else if whole == 0 && held.last.is_some() {
            continue;
        }
        held.last = last.or(held.last);
        held.end = end;
    }
    Ok(held)
}

/// Whether anything but zeros is behind `from`.
fn has_bytes_behind(file: &File, mut from: u64) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    loop {
        match file.read_at(&mut buffer, from)? {
            0 => return Ok(false),
            read if buffer[..read].iter().any(|&byte| byte != 0) => return Ok(true),
            read => from += read as u64,
        }
    }
}

/// Ends the newest journal of the catalog in `dir` behind its last whole commit. Called before the engine is opened, when
/// it is known that no commit which was durable is cut off. Journals before the newest were synced when it was begun;
/// while nothing is in it, that may have failed, and the one before is ended as well.
///
/// # Errors
///
/// I/O errors.
pub(super) fn drop_torn_tail(dir: &Path) -> Result<()> {
    let mut next = newest(dir)?;
    while let Some(path) = next {
        let file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        if end_behind_whole(&path, &file)? > 0 {
            return Ok(());
        }
        next = before(&path);
    }
    Ok(())
}

/// Cuts a journal behind its last whole commit. Returns where that is.
fn end_behind_whole(path: &Path, file: &File) -> Result<u64> {
    let len = file.metadata()?.len();
    let (whole, _) = read_whole(file)?;
    if whole < len {
        tracing::info!(journal = %path.display(), whole, "the journal ends behind its last whole commit");
        file.set_len(whole)?;
        file.sync_all()?;
    }
    Ok(whole)
}

/// Where the last whole commit of a journal ends that follows others without a gap, and the number of the last that has
/// one.
fn read_whole(file: &File) -> io::Result<(u64, Option<u64>)> {
    let len = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let (mut whole, mut last) = (0, None);
    while let Some(Commit { bytes, number }) = next_commit(&mut reader, len - whole)? {
        whole += bytes;
        last = number.or(last);
    }
    Ok((whole, last))
}

/// Bytes that the journals of the catalog in `dir` take on disk.
pub(super) fn bytes(dir: &Path) -> io::Result<u64> {
    let journals = all(dir)?;
    journals.iter().map(|(_, path)| Ok(path.metadata()?.blocks() * 512)).sum()
}

/// Ends all journals of the catalog in `dir`, which have nothing that its tables do not have, durably. The engine is
/// closed.
pub(super) fn empty(dir: &Path) -> io::Result<()> {
    // The tables are durable and the lists of them as well: that is how the engine makes them. What is left of the
    // journals when that ends halfway is passed over, as it was before.
    let journals = all(dir)?;
    let Some((newest, older)) = journals.split_last() else { return Ok(()) };
    for (_, path) in older {
        fs::remove_file(path)?;
    }
    let newest = File::options().write(true).open(&newest.1)?;
    newest.set_len(0)?;
    newest.sync_all()?;
    File::open(dir)?.sync_all()
}

/// The journals in their order, each with its number.
fn all(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let mut journals: Vec<_> = paths.into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
    journals.sort_unstable();
    Ok(journals)
}

/// The journal with the highest number.
pub(super) fn newest(dir: &Path) -> io::Result<Option<PathBuf>> {
    match all(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        journals => Ok(journals?.pop().map(|(_, path)| path)),
    }
}

/// Where the journal before this one is, or was.
pub(super) fn before(path: &Path) -> Option<PathBuf> {
    Some(path.with_file_name(format!("{}.jnl", number(path)?.checked_sub(1)?)))
}

/// Where the one behind it is, once it has been begun.
pub(super) fn after(path: &Path) -> Option<PathBuf> {
    Some(path.with_file_name(format!("{}.jnl", number(path)?.checked_add(1)?)))
}

/// The number of a journal; `None` of other files.
fn number(path: &Path) -> Option<u64> {
    let is_journal = path.extension().is_some_and(|extension| extension == "jnl");
    path.file_stem().filter(|_| is_journal).and_then(|stem| stem.to_str()?.parse().ok())
}

/// The commit that begins here, of which at most `left` bytes are there; `None` when it is not whole.
fn next_commit(reader: &mut impl Read, left: u64) -> io::Result<Option<Commit>> {
    match read_commit(reader, left) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        other => other,
    }
}

fn read_commit(reader: &mut impl Read, left: u64) -> io::Result<Option<Commit>> {
    let [tag, count @ ..]: [u8; 5] = take(reader)?;
    if tag != START {
        return Ok(None);
    }
    let _sequence: [u8; 8] = take(reader)?;
    let (mut bytes, mut number, mut checksum) = (13, None, Xxh3::new());
    for _ in 0..u32::from_le_bytes(count) {
        let item = read_item(reader, left.saturating_sub(bytes), &mut checksum, &mut number)?;
        let Some(item) = item else { return Ok(None) };
        bytes += item;
    }
    let [tag]: [u8; 1] = take(reader)?;
    let expected = u64::from_le_bytes(take(reader)?);
    let trailer: [u8; 4] = take(reader)?;
    let is_whole = tag == END && trailer == TRAILER && expected == checksum.digest();
    Ok(is_whole.then_some(Commit { bytes: bytes + 13, number }))
}

/// Length of the item that begins here. `number` is what it says of the commit, if it does.
fn read_item(
    reader: &mut impl Read,
    left: u64,
    checksum: &mut Xxh3,
    number: &mut Option<u64>,
) -> io::Result<Option<u64>> {
    let tag: [u8; 1] = take(reader)?;
    checksum.update(&tag);
    match tag[0] {
        CLEAR => {
            let keyspace: [u8; 8] = take(reader)?;
            checksum.update(&keyspace);
            Ok(Some(9))
        }
        ITEM => {
            let header: [u8; ITEM_HEADER] = take(reader)?;
            checksum.update(&header);
            let [.., a, b, _, _, _, _, c, d, e, f] = header;
            let key = u16::from_le_bytes([a, b]);
            let bytes = u64::from(key) + u64::from(u32::from_le_bytes([c, d, e, f]));
            if bytes > left {
                return Ok(None);
            }
            let len = 1 + ITEM_HEADER as u64 + bytes;
            if usize::from(key) == COMMITS.len() && bytes <= NUMBER_MAX as u64 {
                let mut item = [0; NUMBER_MAX];
                let item = &mut item[..usize::try_from(bytes).unwrap_or_default()];
                reader.read_exact(item)?;
                checksum.update(item);
                // No other key is so short.
                let value = item.strip_prefix(COMMITS);
                *number = value.and_then(|value| record::decode("meta", value).ok()).or(*number);
                return Ok(Some(len));
            }
            let mut rest = reader.take(bytes);
            let mut buffer = [0; 4096];
            loop {
                match rest.read(&mut buffer)? {
                    0 => break,
                    count => checksum.update(&buffer[..count]),
                }
            }
            Ok((rest.limit() == 0).then_some(len))
        }
        _ => Ok(None),
    }
}

fn take<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, Table, log};

    /// A catalog with three commits, and where its journal ends.
    fn three_commits() -> (tempfile::TempDir, PathBuf, u64) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("catalog");
        let catalog = Catalog::open(&dir).unwrap();
        for key in [b"a", b"b", b"c"] {
            let mut batch = catalog.batch();
            batch.put(Table::Links, key, [key[0]; 3000]);
            batch.remove(Table::Marks, key);
            batch.commit().unwrap();
            catalog.persist().unwrap();
        }
        drop(catalog);
        // It has the last of them still.
        fs::remove_file(dir.join(log::NAME)).unwrap();
        let path = newest(&dir).unwrap().unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let (whole, last) = read_whole(&file).unwrap();
        assert_eq!(last, Some(3));
        (temporary, path, whole)
    }

    fn keys(dir: &Path) -> Vec<Vec<u8>> {
        // What is gone was noted as durable.
        let catalog = Catalog::open_shortened(dir).unwrap();
        catalog.scan(Table::Links, b"", None).map(|pair| pair.unwrap().0.to_vec()).collect()
    }

    #[test]
    fn a_whole_journal_keeps_every_commit() {
        let (_temporary, path, whole) = three_commits();
        assert!(whole > 9000);
        drop_torn_tail(path.parent().unwrap()).unwrap();
        assert_eq!(path.metadata().unwrap().len(), whole);
        assert_eq!(keys(path.parent().unwrap()), [b"a", b"b", b"c"]);
    }

    #[test]
    fn a_commit_that_lost_any_part_is_dropped_with_what_follows() {
        let (_temporary, path, whole) = three_commits();
        let bytes = fs::read(&path).unwrap();
        let last = whole * 2 / 3;
        for at in (last..whole).step_by(37) {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(0).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            file.write_all_at(&[0x5a; 8], at).unwrap();
            drop_torn_tail(path.parent().unwrap()).unwrap();
            assert_eq!(path.metadata().unwrap().len(), last, "damaged at {at}");
        }
        assert_eq!(keys(path.parent().unwrap()), [b"a", b"b"]);
    }

    #[test]
    fn the_journal_before_an_empty_one_is_ended_too() {
        let (_temporary, path, whole) = three_commits();
        let bytes = fs::read(&path).unwrap();
        let last = whole * 2 / 3;
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0x5a; 8], last + 20).unwrap();
        // The engine makes a journal as long as it may become, and nothing is in it yet.
        File::create(after(&path).unwrap()).unwrap().set_len(1 << 20).unwrap();
        drop_torn_tail(path.parent().unwrap()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes[..usize::try_from(last).unwrap()]);
        assert_eq!(keys(path.parent().unwrap()), [b"a", b"b"]);
    }

    #[test]
    fn a_catalog_that_is_not_there_has_no_tail() {
        let dir = tempfile::tempdir().unwrap();
        drop_torn_tail(&dir.path().join("catalog")).unwrap();
        drop_torn_tail(dir.path()).unwrap();
    }
}
