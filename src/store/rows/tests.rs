//! Rows in memory and in files: they grow, stay where they are for whoever reads, and damage is told.

use std::fs::{self, OpenOptions};
use std::sync::atomic::AtomicU32;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;

const WORDS: usize = 3;

fn word(row: u32, place: usize) -> u32 {
    row.wrapping_mul(2_654_435_761).wrapping_add(u32::try_from(place).unwrap())
}

fn write_words(rows: &WordRows, numbers: impl Iterator<Item = u32>) {
    let guard = pin();
    for row in numbers {
        rows.ensure(row).unwrap();
        let words = rows.get(row, &guard).unwrap();
        words.iter().enumerate().for_each(|(place, here)| here.store(word(row, place), Ordering::Relaxed));
    }
}

fn read_words(rows: &WordRows, row: u32, guard: &Guard) -> Option<Vec<u32>> {
    Some(rows.get(row, guard)?.iter().map(|word| word.load(Ordering::Relaxed)).collect())
}

fn expected(row: u32) -> Option<Vec<u32>> {
    Some((0..WORDS).map(|place| word(row, place)).collect())
}

/// A file with the words of `count` rows from offset 64 on, and where they are in it.
fn word_file(dir: &Path, rows: &WordRows, count: usize) -> (File, PathBuf, Section) {
    let path = dir.join("words");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    (&file).write_all(&[0xAA; 64]).unwrap();
    let checksums = rows.write(count, &pin(), &mut &file).unwrap();
    (file, path, Section { offset: 64, rows: count, checksums })
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap()
}

#[test]
fn blocks_grow_and_new_rows_are_zero() {
    let rows = WordRows::new(WORDS);
    let guard = pin();
    assert_eq!(read_words(&rows, 0, &guard), None);
    rows.ensure(0).unwrap();
    assert_eq!(read_words(&rows, number(BLOCK_ROWS) - 1, &guard), Some(vec![0; WORDS]));
    assert_eq!(read_words(&rows, number(BLOCK_ROWS), &guard), None);
    let first = rows.get(0, &guard).unwrap();
    write_words(&rows, 0..2 * number(BLOCK_ROWS) + 5);
    rows.ensure(u32::MAX).unwrap();
    assert_eq!(first[1].load(Ordering::Relaxed), word(0, 1), "a row stays where it is");
    for row in [0, 1, 4095, 4096, 8192, 8196] {
        assert_eq!(read_words(&rows, row, &guard), expected(row), "row {row}");
    }
    assert_eq!(read_words(&rows, 8197, &guard), Some(vec![0; WORDS]));
    assert_eq!(read_words(&rows, u32::MAX, &guard), Some(vec![0; WORDS]));
    assert_eq!(read_words(&rows, 1 << 20, &guard), None, "between them there is nothing");
    assert!(!rows.is_damaged() && rows.damage().is_none());
}

#[test]
fn a_table_without_blocks_takes_no_memory() {
    // What is freed here, the allocator would give out again: from its heap, so that it had to be cleared.
    drop(vec![1u8; 16 << 20]);
    drop(vec![1u8; 24 << 20]);
    for _ in 0..4 {
        let rows = WordRows::new(1);
        let table: *const u8 = rows.blocks.table.as_ptr().cast();
        let len = size_of_val(&*rows.blocks.table);
        let mut pages = vec![0u8; len / 4096 + 1];
        let start = table.wrapping_sub(table.addr() % 4096).cast_mut();
        // SAFETY: the range lies within the table's mapping but for the page's beginning, and there is a byte for
        // each page.
        let told = unsafe { libc::mincore(start.cast(), len, pages.as_mut_ptr()) };
        assert_eq!(told, 0);
        assert_eq!(pages.iter().filter(|&&page| page & 1 == 1).count(), 0);
        drop(rows);
    }
}

#[test]
fn blocks_that_many_threads_want_are_made_once() {
    let rows = WordRows::new(1);
    std::thread::scope(|scope| {
        for part in 0..4 {
            let rows = &rows;
            scope.spawn(move || {
                for row in (part..8 * number(BLOCK_ROWS)).step_by(4) {
                    rows.ensure(row).unwrap();
                    rows.get(row, &pin()).unwrap()[0].fetch_add(row + 1, Ordering::Relaxed);
                }
            });
        }
    });
    let guard = pin();
    assert!((0..8 * number(BLOCK_ROWS)).all(|row| read_words(&rows, row, &guard) == Some(vec![row + 1])));
}

#[test]
fn rows_of_a_file_are_read_and_changed_without_changing_it() {
    let dir = tempfile::tempdir().unwrap();
    let count = 2 * BLOCK_ROWS + 7;
    let original = WordRows::new(WORDS);
    write_words(&original, 0..number(count));
    let (file, path, section) = word_file(dir.path(), &original, count);
    let bytes = fs::read(&path).unwrap();

    let rows = WordRows::new(WORDS);
    rows.attach(&Arc::new(Image::map(&file, &path).unwrap()), section).unwrap();
    let guard = pin();
    for row in (0..number(count)).rev() {
        assert_eq!(read_words(&rows, row, &guard), expected(row), "row {row}");
    }
    assert_eq!(read_words(&rows, number(count), &guard), Some(vec![0; WORDS]), "there is room for more");
    assert_eq!(read_words(&rows, 3 * number(BLOCK_ROWS), &guard), None);
    for row in [0, 4096, number(count) - 1] {
        rows.get(row, &guard).unwrap()[0].store(1, Ordering::Relaxed);
        assert_eq!(read_words(&rows, row, &guard).unwrap()[0], 1);
    }
    write_words(&rows, number(count)..3 * number(BLOCK_ROWS) + 1);
    assert_eq!(read_words(&rows, 3 * number(BLOCK_ROWS), &guard), expected(3 * number(BLOCK_ROWS)));
    assert!(fs::read(&path).unwrap() == bytes, "the file is as it was");
}

#[test]
fn a_block_that_differs_from_its_checksum_is_never_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let count = 3 * BLOCK_ROWS;
    let original = WordRows::new(WORDS);
    write_words(&original, 0..number(count));
    let (file, path, section) = word_file(dir.path(), &original, count);
    let mut bytes = fs::read(&path).unwrap();
    let offset = 64 + BLOCK_ROWS * 4 * WORDS;
    bytes[offset + 1000] ^= 4;
    fs::write(&path, &bytes).unwrap();

    let rows = WordRows::new(WORDS);
    rows.attach(&Arc::new(Image::map(&file, &path).unwrap()), section).unwrap();
    let guard = pin();
    assert_eq!(read_words(&rows, 0, &guard), expected(0));
    assert!(!rows.is_damaged(), "nobody came there yet");
    for row in [number(BLOCK_ROWS), 2 * number(BLOCK_ROWS) - 1, number(BLOCK_ROWS)] {
        assert_eq!(read_words(&rows, row, &guard), None);
    }
    assert!(rows.is_damaged());
    let is_told = |error: &Error| {
        let Error::Corrupt { file, offset: at, .. } = error else { return false };
        *file == path.display().to_string() && *at == offset as u64
    };
    assert!(is_told(&rows.damage().unwrap()), "{}", rows.damage().unwrap());
    assert!(is_told(&rows.ensure(number(BLOCK_ROWS)).unwrap_err()), "it is not replaced by an empty one");
    assert_eq!(read_words(&rows, number(count) - 1, &guard), expected(number(count) - 1), "others are sound");
    assert!(rows.write(count, &guard, &mut Vec::new()).is_err());
}

#[test]
fn a_section_that_is_not_within_its_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let original = WordRows::new(WORDS);
    write_words(&original, 0..100);
    let (file, path, section) = word_file(dir.path(), &original, 100);
    let image = Arc::new(Image::map(&file, &path).unwrap());
    let with = |change: &dyn Fn(&mut Section)| {
        let mut section = section.clone();
        change(&mut section);
        WordRows::new(WORDS).attach(&image, section)
    };
    assert!(with(&|_| ()).is_ok());
    assert!(with(&|section| section.rows = 101).is_err(), "a row beyond the end");
    assert!(with(&|section| section.rows = usize::MAX / 2).is_err());
    assert!(with(&|section| section.offset = 128).is_err());
    assert!(with(&|section| section.offset = usize::MAX - 63).is_err());
    assert!(with(&|section| section.offset = 60).is_err(), "not aligned");
    assert!(with(&|section| section.checksums.clear()).is_err());
    assert!(with(&|section| section.checksums.push(0)).is_err());
}

#[test]
fn settling_keeps_content_and_readers_and_lets_whole_blocks_go() {
    let dir = tempfile::tempdir().unwrap();
    let count = 2 * BLOCK_ROWS + 7;
    let rows = WordRows::new(WORDS);
    write_words(&rows, 0..number(count));
    assert_eq!(rows.blocks.anonymous.lock().len(), 3);
    let reading = pin();
    let held: Vec<&[AtomicU32]> = (0..number(count)).map(|row| rows.get(row, &reading).unwrap()).collect();

    let (file, path, section) = word_file(dir.path(), &rows, count);
    rows.settle(&Arc::new(Image::map(&file, &path).unwrap()), section, &pin()).unwrap();
    assert_eq!(rows.blocks.anonymous.lock().len(), 1, "only the block with room for more");
    let guard = pin();
    for row in 0..number(count) {
        assert_eq!(read_words(&rows, row, &guard), expected(row), "row {row}");
        let there: Vec<u32> = held[row as usize].iter().map(|word| word.load(Ordering::Relaxed)).collect();
        assert_eq!(Some(there), expected(row), "row {row} as it was held");
    }
    write_words(&rows, number(count)..4 * number(BLOCK_ROWS));
    assert_eq!(read_words(&rows, number(count), &guard), expected(number(count)));
    drop(held);
    drop(reading);

    // Once more, from pages of the first file to those of a second.
    rows.get(5, &guard).unwrap()[0].store(9, Ordering::Relaxed);
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let (file, path, section) = word_file(&other, &rows, 4 * BLOCK_ROWS);
    rows.settle(&Arc::new(Image::map(&file, &path).unwrap()), section, &guard).unwrap();
    assert!(rows.blocks.anonymous.lock().is_empty());
    assert_eq!(read_words(&rows, 5, &guard).unwrap()[0], 9);
    assert_eq!(read_words(&rows, 6, &guard), expected(6));
}

#[test]
fn settling_keeps_memory_of_rows_that_were_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let rows = WordRows::new(WORDS);
    // The row after a whole block has memory, but is not among those of the file yet.
    write_words(&rows, 0..number(BLOCK_ROWS) + 1);
    let (file, path, section) = word_file(dir.path(), &rows, BLOCK_ROWS);
    rows.settle(&Arc::new(Image::map(&file, &path).unwrap()), section, &pin()).unwrap();
    assert_eq!(rows.blocks.anonymous.lock().len(), 1);
    assert_eq!(read_words(&rows, number(BLOCK_ROWS), &pin()), expected(number(BLOCK_ROWS)));
}

/// Near bytes, far bytes, and the most in all.
type Size = (usize, usize, usize);

/// With the head in the padding of the near bytes, and apart; with far bytes and without; in lines and without gaps.
const CODES: [Size; 8] = [
    (1, 0, 17),
    (13, 0, 29),
    (48, 5, 80),
    (64, 68, 200),
    (100, 54, 200),
    (192, 196, 400),
    (48, 52, 115),
    (33, 37, 78),
];

fn code(row: u32, (near, far, _): Size) -> (u64, Vec<u8>, Vec<u8>) {
    let bytes = |len: usize, salt: u32| -> Vec<u8> {
        (0..len).map(|at| word(row ^ salt, at).to_le_bytes()[1]).collect()
    };
    (u64::from(row) + 3, bytes(near, 1), bytes(far, 2))
}

fn put(rows: &CodeRows, row: u32, size: Size) {
    rows.ensure(row).unwrap();
    let (head, near, far) = code(row, size);
    rows.put(row, head, &near, &far, &pin());
}

#[track_caller]
fn assert_code(rows: &CodeRows, row: u32, size: Size) {
    let guard = pin();
    let (head, near, far) = code(row, size);
    let got = rows.get(row, &guard).unwrap();
    assert_eq!((got.head, got.near), (head, &*near), "row {row}");
    assert_eq!(rows.far(row, &guard), (size.1 > 0).then_some(&*far), "row {row}");
}

#[test]
fn codes_are_read_as_they_were_put() {
    for size in CODES {
        let rows = CodeRows::new(size.0, size.1, size.2);
        assert!(rows.get(0, &pin()).is_none());
        rows.ensure(0).unwrap();
        assert!(rows.get(0, &pin()).is_none() && rows.far(0, &pin()).is_none(), "vacant");
        let numbers = [0, 1, 2, 4095, 4096, 9000];
        numbers.iter().for_each(|&row| put(&rows, row, size));
        numbers.iter().for_each(|&row| assert_code(&rows, row, size));
        assert!(rows.get(3, &pin()).is_none());
        let bytes = rows.row_bytes().iter().sum::<usize>();
        assert!((size.0 + size.1 + 8..=size.2).contains(&bytes), "{size:?}: {bytes}");
    }
}

#[test]
#[should_panic(expected = "row 5 has a code")]
fn a_code_is_not_put_on_another() {
    let rows = CodeRows::new(4, 0, 20);
    put(&rows, 5, (4, 0, 20));
    put(&rows, 5, (4, 0, 20));
}

#[test]
fn codes_that_are_exchanged_keep_what_belongs_to_each() {
    let rows = CodeRows::new(4, 0, 20);
    [0, 1, 2, 5].iter().for_each(|&row| put(&rows, row, (4, 0, 20)));
    let (guard, mut batch) = (pin(), Box::<CodeBatch>::default());
    // The row 3 has no code.
    let mut codes = rows.read(&[5, 3, 1, 0, 2], &mut batch, &guard);
    codes.swap(0, 3);
    codes.swap(1, 1);
    assert_eq!(codes.rows(), [2, 1, 0, 5]);
    for ((&row, &head), &near) in codes.rows().iter().zip(codes.heads()).zip(codes.near()) {
        let code = rows.get(row, &guard).unwrap();
        assert_eq!((head, near), (code.head, code.near), "row {row}");
    }
}

#[test]
#[should_panic(expected = "row 5 has a code")]
fn a_code_is_not_put_where_a_retired_one_may_be_read() {
    let rows = CodeRows::new(4, 0, 20);
    put(&rows, 5, (4, 0, 20));
    let reading = pin();
    rows.retire(5, &reading, |_| ());
    put(&rows, 5, (4, 0, 20));
}

#[test]
#[should_panic(expected = "bytes of a code")]
fn a_code_of_another_length_is_refused() {
    let rows = CodeRows::new(4, 0, 20);
    rows.ensure(0).unwrap();
    rows.put(0, 9, &[0; 5], &[], &pin());
}

#[test]
#[should_panic(expected = "head 2 is reserved")]
fn a_head_that_means_a_state_is_refused() {
    let rows = CodeRows::new(4, 0, 20);
    rows.ensure(0).unwrap();
    rows.put(0, 2, &[0; 4], &[], &pin());
}

/// What comes out of `freed` when all guards of this thread are gone; others' may take a while.
fn wait_for(freed: &mpsc::Receiver<u32>) -> u32 {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        pin().flush();
        match freed.try_recv() {
            Ok(row) => return row,
            Err(_) => assert!(Instant::now() < deadline, "the row was never vacant"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_retired_row_is_vacant_only_when_nobody_can_be_reading_it() {
    for size in CODES {
        let rows = CodeRows::new(size.0, size.1, size.2);
        put(&rows, 7, size);
        let (tell, freed) = mpsc::channel();
        let reading = pin();
        let held = rows.get(7, &reading).unwrap();
        {
            let guard = pin();
            let again = tell.clone();
            rows.retire(7, &guard, move |row| tell.send(row).unwrap());
            rows.retire(7, &guard, move |row| again.send(row).unwrap());
        }
        assert_eq!(rows.get(7, &pin()).map(|code| code.head), Some(code(7, size).0), "the way leads past it");
        // Others pin and let go, and collect what they can.
        std::thread::scope(|scope| {
            scope.spawn(|| (0..1000).for_each(|_| pin().flush()));
        });
        assert!(freed.try_recv().is_err(), "it is still read");
        let (head, near, _) = code(7, size);
        assert_eq!((held.head, held.near), (head, &*near));
        drop(reading);
        assert_eq!(wait_for(&freed), 7);
        put(&rows, 7, size);
        assert_code(&rows, 7, size);
        assert!(freed.recv().is_err(), "it was vacated once");
    }
}

#[test]
fn retired_rows_wait_while_rows_are_held_still() {
    let rows = CodeRows::new(4, 0, 20);
    put(&rows, 1, (4, 0, 20));
    let (tell, freed) = mpsc::channel();
    let still = rows.hold_still();
    rows.retire(1, &pin(), move |row| tell.send(row).unwrap());
    for _ in 0..1000 {
        pin().flush();
    }
    assert!(freed.try_recv().is_err());
    drop(still);
    assert_eq!(wait_for(&freed), 1);
    put(&rows, 1, (4, 0, 20));
}

fn code_file(dir: &Path, rows: &CodeRows, count: usize) -> (File, PathBuf, Vec<Section>) {
    let path = dir.join("codes");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let (mut offset, mut sections) = (0, Vec::new());
    for (part, row_bytes) in rows.row_bytes().into_iter().enumerate() {
        let mut bytes = Vec::new();
        let checksums = rows.write(part, count, &pin(), &mut bytes).unwrap();
        assert_eq!(bytes.len(), count * row_bytes);
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        (&file).write_all(&bytes).unwrap();
        sections.push(Section { offset, rows: count, checksums });
        offset += bytes.len();
    }
    (file, path, sections)
}

#[test]
fn codes_go_to_a_file_and_come_back() {
    for size in CODES {
        let dir = tempfile::tempdir().unwrap();
        let count = BLOCK_ROWS + 3;
        let rows = CodeRows::new(size.0, size.1, size.2);
        (0..number(count)).for_each(|row| put(&rows, row, size));
        let reading = pin();
        rows.retire(9, &reading, |_| ());
        let (file, path, sections) = code_file(dir.path(), &rows, count);
        let image = Arc::new(Image::map(&file, &path).unwrap());

        let mut loaded = CodeRows::new(size.0, size.1, size.2);
        loaded.attach(&image, &sections).unwrap();
        rows.settle(&image, &sections, &reading).unwrap();
        for rows in [&rows, &loaded] {
            // The retired one as well: whoever loads rows knows which of them nothing leads to.
            (0..number(count)).for_each(|row| assert_code(rows, row, size));
        }
        loaded.vacate(9);
        put(&loaded, 9, size);
        assert_code(&loaded, 9, size);
        put(&loaded, number(count), size);
        assert_code(&loaded, number(count), size);
    }
}

#[test]
fn damaged_codes_are_not_read() {
    let size = (192, 196, 400);
    let dir = tempfile::tempdir().unwrap();
    let rows = CodeRows::new(size.0, size.1, size.2);
    (0..100).for_each(|row| put(&rows, row, size));
    let (_, path, sections) = code_file(dir.path(), &rows, 100);
    let bytes = fs::read(&path).unwrap();
    for section in &sections {
        let mut damaged = bytes.clone();
        damaged[section.offset + 17] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let loaded = CodeRows::new(size.0, size.1, size.2);
        let image = Image::map(&File::open(&path).unwrap(), &path).unwrap();
        loaded.attach(&Arc::new(image), &sections).unwrap();
        let guard = pin();
        let is_whole = loaded.get(50, &guard).is_some() && loaded.far(50, &guard).is_some();
        assert!(!is_whole && loaded.is_damaged());
        let Some(Error::Corrupt { offset, .. }) = loaded.damage() else { panic!("no damage") };
        assert_eq!(offset, section.offset as u64);
        drop(guard);
        fs::write(&path, &bytes).unwrap();
    }
}
