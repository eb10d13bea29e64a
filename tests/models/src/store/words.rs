//! Blocks of words that come into being while others look for them.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use super::rows::{Image, Section, WordRows, pin};
use crate::Model;
use crate::sync::{AtomicU32, Ordering, together};

pub(super) const MODELS: &[Model] = &[
    Model {
        name: "who finds a row finds what was written before",
        preemptions: None,
        notices: &[],
        run: found_while_it_is_made,
    },
    Model {
        name: "two that make the block of a row share it",
        preemptions: Some(3),
        notices: &[],
        run: made_by_two,
    },
    Model {
        name: "two that touch a block of a file first share it",
        preemptions: None,
        notices: &[],
        run: touched_by_two,
    },
];

fn found_while_it_is_made() {
    let rows = Arc::new(WordRows::new(2));
    // As the entry of a graph does, a number leads to a row.
    let number = Arc::new(AtomicU32::new(0));
    let (there, found) = (Arc::clone(&rows), Arc::clone(&number));
    let other = move || {
        let guard = pin();
        if let Some(row) = found.load(Ordering::Acquire).checked_sub(1) {
            let words = there.get(row, &guard).expect("it has memory");
            assert_eq!(words[1].load(Ordering::Relaxed), 5);
        }
        // A row that nobody named has no memory yet, or zeros or what is being written.
        if let Some(words) = there.get(0, &guard) {
            assert!([0, 5].contains(&words[1].load(Ordering::Relaxed)));
        }
    };
    together(vec![Box::new(other)], || {
        rows.ensure(0).expect("memory");
        rows.get(0, &pin()).expect("it has memory")[1].store(5, Ordering::Relaxed);
        number.store(1, Ordering::Release);
    });
}

fn made_by_two() {
    let rows = Arc::new(WordRows::new(2));
    let write = |word: usize| {
        let rows = Arc::clone(&rows);
        move || {
            rows.ensure(0).expect("memory");
            rows.get(0, &pin()).expect("it has memory")[word].store(5, Ordering::Relaxed);
        }
    };
    together(vec![Box::new(write(0))], write(1));
    let guard = pin();
    let words = rows.get(0, &guard).expect("it has memory");
    assert_eq!([words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)], [5, 5]);
}

fn touched_by_two() {
    // Any file will do: this program.
    let path = std::env::current_exe().expect("this program has a path");
    let mut file = File::open(&path).expect("it can be read");
    let mut bytes = [0; 16];
    file.read_exact(&mut bytes).expect("it has a few bytes");
    let image = Arc::new(Image::map(&file, Path::new("image")).expect("it can be mapped"));
    let rows = Arc::new(WordRows::new(2));
    let section = Section { offset: 0, rows: 2, checksums: vec![xxhash_rust::xxh3::xxh3_64(&bytes)] };
    rows.attach(&image, section).expect("it is within the file");
    let before = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    let other = Arc::clone(&rows);
    let second = move || {
        let guard = pin();
        let words = other.get(1, &guard).expect("the checksum is right");
        assert!([before, 1].contains(&words[0].load(Ordering::Relaxed)));
        words[1].store(2, Ordering::Relaxed);
    };
    together(vec![Box::new(second)], || {
        rows.ensure(1).expect("the checksum is right");
        rows.get(1, &pin()).expect("it has memory")[0].store(1, Ordering::Relaxed);
    });
    let guard = pin();
    let words = rows.get(1, &guard).expect("it has memory");
    assert_eq!([words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)], [1, 2]);
}
