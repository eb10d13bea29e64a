//! The catalog as its users see it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::engine::{ENGINE_MEMTABLE_BYTES, MEMTABLE_BYTES, TABLE_OVERHEAD, end_of_journal, successor};
use super::journal::Place;
use super::*;
use crate::Error;

#[test]
fn scan_is_bounded_by_its_prefix_and_starts_after_the_given_key() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    let mut batch = catalog.batch();
    for key in [&b"a1"[..], b"b\xff1", b"b\xff2", b"b\xff3", b"c"] {
        batch.put(Table::Dentries, key, b"v");
    }
    batch.commit().unwrap();
    let keys = |after: Option<&[u8]>| -> Vec<Vec<u8>> {
        catalog.scan(Table::Dentries, b"b\xff", after).map(|pair| pair.unwrap().0.to_vec()).collect()
    };
    assert_eq!(keys(None), [b"1", b"2", b"3"]);
    assert_eq!(keys(Some(b"1")), [b"2", b"3"]);
}

#[test]
fn a_batch_survives_reopening_and_one_that_was_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    {
        let catalog = Catalog::open(dir.path()).unwrap();
        let mut batch = catalog.batch();
        batch.put(Table::Meta, b"kept", b"1");
        batch.commit().unwrap();
        let mut dropped = catalog.batch();
        dropped.put(Table::Meta, b"dropped", b"1");
    }
    let catalog = Catalog::open(dir.path()).unwrap();
    assert_eq!(catalog.get(Table::Meta, b"kept").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(catalog.get(Table::Meta, b"dropped").unwrap(), None);
}

fn put(catalog: &Catalog, key: &str, value: &[u8]) {
    let mut batch = catalog.batch();
    batch.put(Table::Inline, key, value);
    batch.commit().unwrap();
}

/// Name of the newest journal.
fn journal_of(dir: &Path) -> String {
    end_of_journal(dir).file.replace("catalog/", "")
}

fn keys(catalog: &Catalog) -> Vec<String> {
    let pairs = catalog.scan(Table::Inline, b"", None);
    pairs.map(|pair| String::from_utf8(pair.unwrap().0.to_vec()).unwrap()).collect()
}

#[test]
fn a_checkpoint_has_what_was_committed_and_a_copy_of_it_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(&dir.path().join("catalog")).unwrap();
    let mut want: Vec<String> = Vec::new();
    for round in 0..6 {
        // More than a memtable holds, so that tables and journals change while copies are made.
        for number in 0..40 {
            let key = format!("{round}-{number:03}");
            put(&catalog, &key, &vec![round; 300 << 10]);
            want.push(key);
        }
        let checkpoint = dir.path().join(format!("checkpoint-{round}"));
        catalog.checkpoint(&checkpoint).unwrap();
        sync_copy(&checkpoint).unwrap();
        for _ in 0..2 {
            let copy = Catalog::open_copy(&checkpoint, dir.path()).unwrap();
            assert_eq!(keys(&copy), want, "round {round}");
            put(&copy, "only in the copy", b"x");
        }
    }
    drop(catalog);
    let first = Catalog::open_copy(&dir.path().join("checkpoint-0"), dir.path()).unwrap();
    assert_eq!(keys(&first), want[..40]);
    drop(first);
    // What is gone of a copy is missed, as in any catalog.
    let checkpoint = dir.path().join("checkpoint-5");
    let journal = checkpoint.join(journal_of(&checkpoint));
    File::options().write(true).open(journal).unwrap().set_len(0).unwrap();
    let lost = Catalog::open_copy(&checkpoint, dir.path()).unwrap_err();
    assert!(matches!(lost, Error::Corrupt { .. }), "{lost}");
    let left = std::fs::read_dir(dir.path()).unwrap();
    let left = left.filter(|entry| entry.as_ref().unwrap().path().to_string_lossy().contains("vexfs-"));
    assert_eq!(left.count(), 0, "copies vanish");
}

#[test]
fn a_catalog_that_lost_what_was_durable_is_refused_until_that_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let commit = |catalog: &Catalog, key: &[u8]| {
        let mut batch = catalog.batch();
        batch.put(Table::Meta, key, [7; 1000]);
        batch.commit().unwrap();
    };
    let catalog = Catalog::open(dir.path()).unwrap();
    for key in [b"a", b"b", b"c"] {
        commit(&catalog, key);
        catalog.persist().unwrap();
    }
    commit(&catalog, b"d");
    drop(catalog);
    let Place { file: journal, offset: len } = end_of_journal(dir.path());
    let journal = dir.path().join(Path::new(&journal).file_name().unwrap());
    // What was not persisted may be missing.
    let file = std::fs::OpenOptions::new().write(true).open(&journal).unwrap();
    file.set_len(len - 10).unwrap();
    drop(Catalog::open(dir.path()).unwrap());
    // In the middle of the second.
    file.set_len(1500).unwrap();
    match Catalog::open(dir.path()) {
        Err(Error::Corrupt { file, what, .. }) => {
            assert!(file.ends_with(".jnl") && what.contains("commit 1, and 3 were"), "{file}: {what}");
        }
        other => panic!("{other:?}"),
    }
    let shortened = Catalog::open_shortened(dir.path()).unwrap();
    assert!(shortened.get(Table::Meta, b"a").unwrap().is_some());
    assert_eq!(shortened.get(Table::Meta, b"b").unwrap(), None);
    commit(&shortened, b"b");
    drop(shortened);
    // As long as nobody says that it is durable.
    let refused = Catalog::open(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("commit 2, and 3 were"), "{refused}");
    Catalog::open_shortened(dir.path()).unwrap().persist().unwrap();
    Catalog::open(dir.path()).unwrap();
}

/// Names and bytes of the files of a directory.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => found.push((path.display().to_string(), std::fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_catalog_that_is_refused_stays_byte_for_byte_and_says_how_far_it_reaches() {
    for is_closed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        for key in ["a", "b", "c"] {
            put(&catalog, key, &[7; 1000]);
            catalog.persist().unwrap();
        }
        if is_closed {
            catalog.close();
        }
        drop(catalog);
        let scratch = tempfile::tempdir().unwrap();
        let path = dir.path().join(journal_of(dir.path()));
        let sound = std::fs::read(&path).unwrap();
        let commit = 1000..1200;
        // The head of the first commit, its middle, the head of the second and its middle.
        let second = (commit.start..commit.end).find(|&at| sound[at..].starts_with(b"FJL\x03")).unwrap() + 4;
        for (at, last) in [(0, 0), (500, 0), (second, 1), (second + 500, 1)] {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x5a;
            std::fs::write(&path, &damaged).unwrap();
            let before = contents(dir.path());
            for _ in 0..2 {
                let copied = Catalog::open_copy(dir.path(), scratch.path()).map(drop);
                for refused in [copied, Catalog::open(dir.path()).map(drop)] {
                    let error = refused.unwrap_err().to_string();
                    let words = format!("the journal ends with commit {last}, and 3 were durable");
                    assert!(error.contains(&words), "byte {at}: {error}");
                    assert_eq!(contents(dir.path()), before, "byte {at}");
                }
            }
        }
        std::fs::write(&path, &sound).unwrap();
        assert_eq!(keys(&Catalog::open(dir.path()).unwrap()), ["a", "b", "c"]);
    }
}

#[test]
fn a_journal_that_ends_before_others_begin_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    for key in ["a", "b"] {
        put(&catalog, key, &[7; 1000]);
        catalog.persist().unwrap();
    }
    drop(catalog);
    std::fs::remove_file(dir.path().join(log::NAME)).unwrap();
    let first = dir.path().join(journal_of(dir.path()));
    let sound = std::fs::read(&first).unwrap();
    let second = (1000..1200).find(|&at| sound[at..].starts_with(b"FJL\x03")).unwrap() + 4;
    std::fs::write(super::journal::after(&first).unwrap(), &sound[second..]).unwrap();
    std::fs::write(&first, &sound[..second - 1]).unwrap();
    let before = contents(dir.path());
    let error = Catalog::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("offset 0: what begins here is no commit, and later"), "{error}");
    assert_eq!(contents(dir.path()), before);
}

/// A copy of the directory as a kill would leave it now.
fn killed(dir: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-r").arg(dir).arg(to).status().unwrap();
    assert!(status.success());
}

#[test]
fn every_commit_that_has_returned_survives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog");
    let catalog = Catalog::open(&path).unwrap();
    for number in 0..3000 {
        // Every hundredth is more than the log takes.
        let value = if number % 100 == 99 { vec![1; 100_000] } else { vec![2; number % 700] };
        put(&catalog, &format!("{number:04}"), &value);
        if [0, 1, 98, 99, 100, 1234, 2998, 2999].contains(&number) {
            let copy = dir.path().join(format!("killed-{number}"));
            killed(&path, &copy);
            for _ in 0..2 {
                let again = Catalog::open(&copy).unwrap();
                assert_eq!(keys(&again).len(), number + 1);
                assert_eq!(again.commits.lock().last, number as u64 + 1);
                // Given to the engine and on disk: the log is not asked again.
                std::fs::write(copy.join(log::NAME), b"").unwrap();
            }
        }
    }
}

#[test]
fn without_a_log_commits_go_to_the_engine_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog");
    let catalog = Catalog::open(&path).unwrap();
    std::fs::create_dir(path.join(log::NAME)).unwrap();
    for number in 0..3 {
        put(&catalog, &number.to_string(), b"value");
        assert!(catalog.tail.read().get(Table::Inline, number.to_string().as_bytes()).is_none());
    }
    std::fs::remove_dir(path.join(log::NAME)).unwrap();
    killed(&path, &dir.path().join("killed"));
    assert_eq!(keys(&Catalog::open(&dir.path().join("killed")).unwrap()), ["0", "1", "2"]);
}

#[test]
fn tail_and_engine_together_are_one_ordered_table() {
    use std::collections::BTreeMap;
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let dir = tempfile::tempdir().unwrap();
    let mut catalog = Catalog::open(dir.path()).unwrap();
    let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for round in 0..4000usize {
        match random(100) {
            0 => catalog.persist().unwrap(),
            1 => {
                drop(catalog);
                catalog = Catalog::open(dir.path()).unwrap();
            }
            2..50 => {
                let mut batch = catalog.batch();
                // One of few keys, or of many, each at most once in a batch.
                for part in 0..=random(6) {
                    let key = format!("{}{part}{:03}", ["a", "b"][part % 2], random(1 + 900 * (round % 2)));
                    if random(3) == 0 {
                        batch.remove(Table::Dentries, &key);
                        model.remove(&key);
                    } else {
                        batch.put(Table::Dentries, &key, round.to_le_bytes());
                        model.insert(key, round.to_le_bytes().to_vec());
                    }
                }
                batch.commit().unwrap();
            }
            50..75 => {
                let key = format!("{}{}{:03}", ["a", "b"][random(2)], random(6), random(900));
                let found = catalog.get(Table::Dentries, key.as_bytes()).unwrap();
                assert_eq!(found.as_deref(), model.get(&key).map(Vec::as_slice), "round {round}: {key}");
            }
            _ => {
                let prefix = ["", "a", "b", "a2", "b1"][random(5)];
                let after = format!("{:03}", random(900));
                let after = [None, Some(after.as_str())][random(2)];
                let found: Vec<_> = catalog
                    .scan(Table::Dentries, prefix.as_bytes(), after.map(str::as_bytes))
                    .map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap())
                    .collect();
                let begin = format!("{prefix}{}", after.unwrap_or(""));
                let want: Vec<_> = model
                    .iter()
                    .filter(|(key, _)| key.starts_with(prefix) && after.is_none_or(|_| **key > begin))
                    .map(|(key, value)| (key.as_bytes()[prefix.len()..].to_vec(), value.clone()))
                    .collect();
                assert_eq!(found, want, "round {round}: {prefix:?} after {after:?}");
            }
        }
    }
    assert!(model.len() > 500, "{}", model.len());
}

#[test]
fn memtables_are_written_before_the_engine_asks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    let mut largest = 0;
    // Many small items, which take more memory than journal, beside large ones.
    for number in 0u64..40_000 {
        let mut batch = catalog.batch();
        for item in 0..4u64 {
            batch.put(Table::Links, (number * 4 + item).to_be_bytes(), b"");
        }
        batch.put(Table::Inline, number.to_be_bytes(), [1; 700]);
        batch.commit().unwrap();
        let engine = catalog.engine().unwrap();
        largest = Table::ALL.iter().map(|&table| engine.memtable_bytes(table)).max().unwrap().max(largest);
    }
    assert!((MEMTABLE_BYTES..ENGINE_MEMTABLE_BYTES).contains(&largest), "{largest}");
}

#[test]
fn journals_are_emptied_without_losing_a_commit_where_there_is_room_for_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    let value = |number: u64| [number.to_le_bytes(); 600].concat();
    let change = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            let mut batch = catalog.batch();
            batch.put(Table::Inline, number.to_be_bytes(), value(number));
            batch.remove(Table::Inline, (number / 2).to_be_bytes());
            batch.commit().unwrap();
        }
        catalog.persist().unwrap();
    };
    let found = || {
        let pairs = catalog.scan(Table::Inline, b"", None).map(Result::unwrap);
        pairs.map(|(key, value)| (key.to_vec(), value.to_vec())).collect::<Vec<_>>()
    };
    change(0..4000);
    let before = found();
    assert_eq!(before.len(), 2000);

    drop(catalog.engine.write().take());
    assert!(!catalog.empty_journals(TABLE_OVERHEAD).unwrap());
    let bytes = journal::bytes(dir.path()).unwrap();
    assert!(bytes > 4000 * 4800, "{bytes}");
    assert!(catalog.empty_journals(u64::MAX).unwrap());
    assert_eq!(journal::bytes(dir.path()).unwrap(), 0);
    // Nothing is left to gain.
    assert!(!catalog.empty_journals(u64::MAX).unwrap());
    *catalog.engine.write() = Some(catalog.open_engine().unwrap());
    catalog.active.forget();
    assert!(found() == before);

    // Goes on, and is whole after it is opened again.
    change(4000..4100);
    let then = found();
    assert_eq!(then.len(), 2050);
    drop(catalog);
    let catalog = Catalog::open(dir.path()).unwrap();
    let pairs = catalog.scan(Table::Inline, b"", None).map(Result::unwrap);
    assert!(pairs.map(|(key, value)| (key.to_vec(), value.to_vec())).eq(then));
}

#[test]
fn nothing_comes_behind_the_error_of_a_scan_without_an_engine() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    // The newest commits know both; of a directory they may know half.
    put(&catalog, "a", b"1");
    put(&catalog, "b", b"2");
    let engine = catalog.engine.write().take();
    let found: Vec<_> = catalog.scan(Table::Inline, b"", None).take(3).collect();
    assert!(matches!(found[..], [Err(Error::Catalog(_))]), "{found:?}");
    *catalog.engine.write() = engine;
    assert_eq!(keys(&catalog), ["a", "b"]);
}

#[test]
fn the_successor_of_a_prefix_carries_over_full_bytes() {
    assert_eq!(successor(b"a\xff\xff"), Some(b"b".to_vec()));
    assert_eq!(successor(b"\xff"), None);
    assert_eq!(successor(b""), None);
}

#[test]
fn a_record_is_never_older_than_a_commit_that_has_returned() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    // Records that share a place, and one that has its own.
    let numbers = [7u64, 7 + 4096, 7 + 2 * 4096, 8];
    let committed: [AtomicU64; 4] = Default::default();
    let is_over = AtomicBool::new(false);
    let version = |at: usize| -> u64 {
        let record = catalog.get(Table::Inodes, &numbers[at].to_be_bytes()).unwrap();
        record.map_or(0, |bytes| u64::from_le_bytes((*bytes).try_into().unwrap()))
    };
    let read = |seed: usize| {
        let (mut at, mut found) = (seed, 0u64);
        loop {
            // Once more after the last commit: a thread may begin as late.
            let is_last = is_over.load(Ordering::Acquire);
            at = (at * 5 + 3) % numbers.len();
            let least = committed[at].load(Ordering::Acquire);
            let version = version(at);
            assert!(version >= least, "record {at}: version {version} after the commit of {least} returned");
            found += u64::from(version > 0);
            if is_last {
                break;
            }
        }
        assert!(found > 0);
    };
    std::thread::scope(|scope| {
        for seed in 0..3 {
            scope.spawn(move || read(seed));
        }
        for version in 1..=5000u64 {
            let mut batch = catalog.batch();
            let at = usize::try_from(version).unwrap() % numbers.len();
            for at in [at, (at + 1) % numbers.len()] {
                batch.put(Table::Inodes, numbers[at].to_be_bytes(), version.to_le_bytes());
            }
            batch.commit().unwrap();
            for at in [at, (at + 1) % numbers.len()] {
                committed[at].store(version, Ordering::Release);
            }
        }
        is_over.store(true, Ordering::Release);
    });
    drop(catalog);
    let catalog = Catalog::open(dir.path()).unwrap();
    let stored = catalog.get(Table::Inodes, &8u64.to_be_bytes()).unwrap().unwrap();
    assert_eq!(*stored, committed[3].load(Ordering::Acquire).to_le_bytes());
}
