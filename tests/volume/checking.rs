//! Stores that are wrong, checked and repaired.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vexfs::Error;
use vexfs::catalog::{Batch, Catalog, Table};
use vexfs::volume::check::{Fate, Repair, Report, fsck};
use vexfs::volume::{Volume, VolumeOptions, XattrMode};

use crate::support::*;

/// Numbers of inodes in the store of [`closed`], found by the names there.
struct Known {
    docs: u64,
    deep: u64,
    vector: u64,
    note: u64,
    large: u64,
}

/// A store with something of everything, closed.
fn closed() -> (TempDir, Known) {
    let fs = Fs::new();
    for dir in ["docs", "docs/deep", "other", "big"] {
        fs.mkdir(dir).unwrap();
    }
    for i in 0..20u8 {
        fs.put(&format!("docs/{i}.f32"), &pattern(64, i | 1));
        fs.put(&format!("docs/deep/{i}.f32"), &pattern(64, i | 129));
    }
    fs.put("note.txt", b"a note");
    fs.put("other/a.vec", b"1 2 3 4");
    fs.put("other/large.bin", &pattern(300_000, 7));
    fs.put("big/rows.fbin", &fbin(3000, 24));
    fs.link("note.txt", "docs/linked").unwrap();
    fs.volume.symlink(&ROOT, vexfs::namespace::Ino::ROOT, b"symlink", b"docs").unwrap();
    let number = |path: &str| fs.ino(path).unwrap().0;
    let known = Known {
        docs: number("docs"),
        deep: number("docs/deep"),
        vector: number("docs/7.f32"),
        note: number("note.txt"),
        large: number("other/large.bin"),
    };
    (fs.shut(), known)
}

/// The bytes of an `.fbin` file.
fn fbin(rows: u32, dim: u32) -> Vec<u8> {
    let mut bytes = [rows.to_le_bytes(), dim.to_le_bytes()].concat();
    bytes.extend((0..rows * dim).flat_map(|i| (1.0 + (i % 977) as f32).to_le_bytes()));
    bytes
}

/// Changes the catalog behind the back of the volume.
fn tamper(store: &Path, change: impl FnOnce(&mut Batch<'_>)) {
    let catalog = Catalog::open(&store.join("catalog")).unwrap();
    let mut batch = catalog.batch();
    change(&mut batch);
    batch.commit().unwrap();
    catalog.persist().unwrap();
}

fn key(parts: &[u64], name: &[u8]) -> Vec<u8> {
    let mut key: Vec<u8> = parts.iter().flat_map(|part| part.to_be_bytes()).collect();
    key.extend(name);
    key
}

/// Finds damage, repairs it, finds none any more, and opens. Returns what was found, and the volume.
fn repaired(store: TempDir) -> (Report, Fs) {
    let found = fsck(store.path(), Repair::No).unwrap();
    assert!(!found.is_sound(), "{found:#?}");
    let again = fsck(store.path(), Repair::No).unwrap();
    assert_eq!(found.findings.len(), again.findings.len(), "a check changes nothing");
    let repair = fsck(store.path(), Repair::Yes).unwrap();
    assert!(repair.is_sound() && repair.repaired() > 0, "{repair:#?}");
    let after = fsck(store.path(), Repair::Yes).unwrap();
    assert!(after.is_sound() && after.repaired() == 0, "{after:#?}");
    let fs = Fs::on(store).reopen();
    (found, fs)
}

fn says(report: &Report, words: &str) -> bool {
    report.findings.iter().any(|finding| finding.to_string().contains(words))
}

fn assert_rest(fs: &Fs, except: &[&str]) {
    for i in 0..20u8 {
        for (path, seed) in [(format!("docs/{i}.f32"), i | 1), (format!("docs/deep/{i}.f32"), i | 129)] {
            if !except.contains(&&*path) {
                assert_eq!(fs.get(&path).unwrap(), pattern(64, seed), "{path}");
                assert_eq!(status(fs, &path), "indexed", "{path}");
            }
        }
    }
    if !except.contains(&"other/large.bin") {
        assert_eq!(fs.get("other/large.bin").unwrap(), pattern(300_000, 7));
    }
    if !except.contains(&"big/rows.fbin") {
        assert_eq!(fs.get("big/rows.fbin").unwrap(), fbin(3000, 24));
    }
}

fn status(fs: &Fs, path: &str) -> String {
    let value = fs.volume.getxattr(&ROOT, fs.ino(path).unwrap(), b"user.vexfs.status").unwrap();
    String::from_utf8(value.to_vec()).unwrap()
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path, suffix)),
            false if path.to_str().unwrap().ends_with(suffix) => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

#[test]
fn a_sound_store_is_clean_and_stays_so() {
    let (store, _) = closed();
    for repair in [Repair::No, Repair::Yes] {
        let report = fsck(store.path(), repair).unwrap();
        assert!(report.findings.is_empty(), "{report:#?}");
        assert_eq!((report.counted.directories, report.counted.vectors), (5, 3041));
        assert!(!report.ended_uncleanly && report.counted.unfinished == 0);
    }
    assert_rest(&Fs::on(store), &[]);
}

#[test]
fn a_store_in_use_and_a_directory_that_is_none_are_refused() {
    let fs = Fs::new();
    match fsck(fs.store(), Repair::Yes) {
        Err(Error::StoreLocked { holder, .. }) => assert!(holder.contains(&std::process::id().to_string())),
        other => panic!("{other:?}"),
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(fsck(empty.path(), Repair::Yes), Err(Error::Store { .. })));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn a_name_is_completed_from_its_other_half() {
    for (table, parts) in [(Table::Dentries, "entry"), (Table::Links, "name")] {
        let (store, known) = closed();
        tamper(store.path(), |batch| match table {
            Table::Dentries => batch.remove(table, key(&[known.docs], b"7.f32")),
            _ => batch.remove(table, key(&[known.vector, known.docs], b"7.f32")),
        });
        let (found, fs) = repaired(store);
        assert!(says(&found, parts), "{found:#?}");
        assert_rest(&fs, &[]);
        assert_eq!(fs.stat("docs").unwrap().size, 22);
    }
}

#[test]
fn what_has_no_name_left_comes_to_lost_and_found() {
    let (store, known) = closed();
    tamper(store.path(), |batch| {
        batch.remove(Table::Dentries, key(&[known.docs], b"7.f32"));
        batch.remove(Table::Links, key(&[known.vector, known.docs], b"7.f32"));
        batch.remove(Table::Dentries, key(&[known.docs], b"deep"));
        batch.remove(Table::Links, key(&[known.deep, known.docs], b"deep"));
    });
    let (found, fs) = repaired(store);
    assert!(says(&found, "has no name"), "{found:#?}");
    let moved: Vec<_> = (0..20).map(|i| format!("docs/deep/{i}.f32")).collect();
    let mut except: Vec<&str> = moved.iter().map(String::as_str).collect();
    except.push("docs/7.f32");
    assert_rest(&fs, &except);
    assert_eq!(fs.get(&format!("lost+found/#{}", known.vector)).unwrap(), pattern(64, 7));
    for i in 0..20u8 {
        let path = format!("lost+found/#{}/{i}.f32", known.deep);
        assert_eq!(fs.get(&path).unwrap(), pattern(64, i | 129));
        assert_eq!(status(&fs, &path), "indexed");
    }
    assert_eq!(fs.stat("lost+found").unwrap().mode, 0o700);
}

#[test]
fn names_of_nothing_and_attributes_of_nobody_are_removed() {
    let (store, known) = closed();
    tamper(store.path(), |batch| {
        batch.remove(Table::Inodes, key(&[known.note], b""));
        batch.put(Table::Xattrs, key(&[1 << 40], b"user.a"), b"1");
        batch.put(Table::Inline, key(&[1 << 41], b""), b"bytes");
        batch.put(Table::Marks, [9, 9, 9], b"");
    });
    let (found, fs) = repaired(store);
    assert!(says(&found, "does not exist") && says(&found, "catalog/marks"), "{found:#?}");
    assert_rest(&fs, &[]);
    for gone in ["note.txt", "docs/linked"] {
        assert!(matches!(fs.stat(gone), Err(Error::NotFound)));
    }
}

#[test]
fn a_mark_never_removes_what_has_names() {
    let (store, known) = closed();
    let mut mark = vec![2];
    mark.extend(known.note.to_be_bytes());
    tamper(store.path(), |batch| batch.put(Table::Marks, &mark, b""));
    let (_, fs) = repaired(store);
    assert_eq!(fs.get("docs/linked").unwrap(), b"a note");
}

#[test]
fn a_directory_in_itself_is_taken_out() {
    let (store, known) = closed();
    tamper(store.path(), |batch| {
        batch.remove(Table::Dentries, key(&[1], b"docs"));
        batch.remove(Table::Links, key(&[known.docs, 1], b"docs"));
        let catalog_entry = entry_of(known.docs);
        batch.put(Table::Dentries, key(&[known.deep], b"loop"), catalog_entry);
        batch.put(Table::Links, key(&[known.docs, known.deep], b"loop"), b"");
    });
    let (found, fs) = repaired(store);
    assert!(says(&found, "cannot be reached"), "{found:#?}");
    assert_eq!(fs.list("lost+found").len(), 1);
    let found = fs.list("lost+found").remove(0);
    let kept = fs.list(&format!("lost+found/{found}"));
    assert!(kept.len() >= 20, "{kept:?}");
}

/// An entry's record that names a directory.
fn entry_of(dir: u64) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend(dir.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes
}

#[test]
fn counts_that_are_wrong_are_counted_again() {
    let (store, known) = closed();
    let path = store.path().join("catalog");
    let change = |ino: u64, at: usize| {
        let catalog = Catalog::open(&path).unwrap();
        let mut record = catalog.get(Table::Inodes, &ino.to_be_bytes()).unwrap().unwrap().to_vec();
        record[at] ^= 0x40;
        drop(catalog);
        tamper(store.path(), |batch| batch.put(Table::Inodes, ino.to_be_bytes(), &record));
    };
    // Names, size, parent, bytes of attribute names.
    change(known.note, 23);
    change(known.docs, 31);
    change(known.deep, 87);
    change(known.vector, 119);
    let (found, fs) = repaired(store);
    assert_eq!(found.findings.len(), 4, "{found:#?}");
    assert_rest(&fs, &[]);
    assert_eq!(fs.stat("note.txt").unwrap().nlink, 2);
    assert_eq!(fs.stat("docs").unwrap().size, 22);
}

#[test]
fn members_that_are_wrong_are_read_from_their_files_again() {
    let (store, known) = closed();
    let catalog = Catalog::open(&store.path().join("catalog")).unwrap();
    let member = |ino| catalog.get(Table::Vectors, &key(&[known.docs, ino], b"")).unwrap().unwrap().to_vec();
    let (one, other) = (member(known.vector), member(known.vector + 2));
    drop(catalog);
    tamper(store.path(), |batch| {
        // Another file's vectors, nobody's vectors, no vectors.
        batch.put(Table::Vectors, key(&[known.docs, known.vector + 2], b""), &one);
        batch.put(Table::Vectors, key(&[known.docs, 1 << 40], b""), &other);
        batch.put(Table::Vectors, key(&[known.docs], b"x"), b"bad");
        batch.put(Table::Collections, key(&[1 << 40], b""), b"bad");
    });
    let (found, fs) = repaired(store);
    assert!(says(&found, "no such file") && says(&found, "other bytes"), "{found:#?}");
    assert_rest(&fs, &[]);
}

#[test]
fn a_damaged_slot_is_set_aside_and_the_others_stay() {
    let (store, known) = closed();
    let wanted = pattern(64, 7);
    let segments = files(&store.path().join("segments"), ".seg");
    let mut hits = 0;
    for path in segments {
        let bytes = fs::read(&path).unwrap();
        for at in (4096..bytes.len() - 64).step_by(64).filter(|&at| bytes[at..at + 64] == wanted) {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[wanted[9] ^ 4], at as u64 + 9).unwrap();
            hits += 1;
        }
    }
    assert_eq!(hits, 2, "7.f32 and 6.f32, whose patterns are the same");
    let (found, fs) = repaired(store);
    assert!(says(&found, "segments/") && says(&found, "/docs/7.f32"), "{found:#?}");
    assert_rest(&fs, &["docs/6.f32", "docs/7.f32"]);
    assert!(matches!(fs.stat("docs/7.f32"), Err(Error::NotFound)));
    let kept = fs.get(&format!("lost+found/#{}-7.f32.damaged", known.vector)).unwrap();
    assert_eq!(kept.iter().zip(&wanted).filter(|(a, b)| a != b).count(), 1);
}

#[test]
fn a_segment_without_its_header_loses_nothing() {
    let (store, _) = closed();
    for path in files(&store.path().join("segments"), ".seg") {
        fs::File::options().write(true).open(&path).unwrap().write_all_at(&[0xff; 40], 0).unwrap();
    }
    let (found, fs) = repaired(store);
    assert!(says(&found, "no segment header"), "{found:#?}");
    assert_rest(&fs, &[]);
    assert!(matches!(fs.stat("lost+found"), Err(Error::NotFound)));
}

#[test]
fn blobs_that_are_missing_or_short_are_named_and_what_is_left_is_kept() {
    let (store, known) = closed();
    let blobs = files(&store.path().join("blobs"), ".blob");
    assert_eq!(blobs.len(), 2);
    for path in &blobs {
        let file = fs::File::options().write(true).open(path).unwrap();
        match file.metadata().unwrap().len() {
            300_000 => file.set_len(1000).unwrap(),
            _ => fs::remove_file(path).unwrap(),
        }
    }
    let (found, fs) = repaired(store);
    assert!(says(&found, "1000 bytes, want 300000") && says(&found, "missing"), "{found:#?}");
    assert_rest(&fs, &["other/large.bin", "big/rows.fbin"]);
    let kept = fs.get(&format!("lost+found/#{}-large.bin.damaged", known.large)).unwrap();
    assert_eq!(kept, pattern(300_000, 7)[..1000]);
}

#[test]
fn a_damaged_graph_is_removed_and_nothing_else() {
    let (store, known) = closed();
    let stray = store.path().join(format!("index/{:016x}.hnsw", known.docs));
    fs::write(&stray, b"VEXHNSW\0 and no more").unwrap();
    let (found, fs) = repaired(store);
    assert!(says(&found, ".hnsw"), "{found:#?}");
    assert_rest(&fs, &[]);
}

#[test]
fn one_fault_of_each_kind_at_once_is_repaired_in_one_run() {
    let (store, known) = closed();
    for path in files(&store.path().join("segments"), ".seg") {
        fs::File::options().write(true).open(&path).unwrap().set_len(4096 + 640).unwrap();
    }
    tamper(store.path(), |batch| {
        batch.remove(Table::Dentries, key(&[known.docs], b"deep"));
        batch.remove(Table::Links, key(&[known.vector, known.docs], b"7.f32"));
        batch.remove(Table::Inline, key(&[known.note], b""));
    });
    let (found, fs) = repaired(store);
    assert!(found.findings.iter().all(|finding| finding.fate == Fate::Damaged));
    assert!(!fs.list("lost+found").is_empty());
    assert_eq!(fs.get("other/large.bin").unwrap(), pattern(300_000, 7));
    for name in fs.list("docs") {
        if name.ends_with(".f32") {
            assert!(fs.get(&format!("docs/{name}")).is_ok(), "{name}");
        }
    }
}

#[test]
fn a_journal_whose_last_commits_lost_a_part_is_as_sound_to_fsck_as_it_is_to_opening() {
    for repair in [Repair::No, Repair::Yes] {
        let fs = Fs::new();
        fs.put("kept", b"was synced");
        fs.volume.sync().unwrap();
        let noted = fs::read(fs.store().join("catalog/durable")).unwrap();
        fs.put("lost", &[0xab; 3000]);
        fs.volume.sync().unwrap();
        let torn = fs.damaged_copy(|store| {
            // The power went before the disk had the second sync: nothing of the log, and a part of the journal.
            fs::write(store.join("catalog/durable"), &noted).unwrap();
            fs::remove_file(store.join("catalog/tail")).unwrap();
            let journals = fs::read_dir(store.join("catalog")).unwrap().map(|entry| entry.unwrap().path());
            let journal =
                journals.filter(|path| path.extension().is_some_and(|end| end == "jnl")).max().unwrap();
            let mut bytes = fs::read(&journal).unwrap();
            let at = bytes.windows(2000).position(|bytes| bytes == [0xab; 2000]).unwrap();
            bytes[at + 500..at + 600].fill(0);
            fs::write(&journal, bytes).unwrap();
            let report = fsck(store, repair).unwrap();
            assert!(report.ended_uncleanly && report.findings.is_empty(), "{repair:?}: {report:#?}");
        });
        assert_eq!(torn.get("kept").unwrap(), b"was synced");
        assert!(torn.stat("lost").map_or(true, |attr| attr.size == 0));
    }
}

#[test]
fn a_configuration_without_a_directory_does_not_keep_the_store_from_opening() {
    let (store, known) = closed();
    let fs = Fs::on(store);
    let docs = fs.ino("docs").unwrap();
    fs.volume.setxattr(&ROOT, docs, b"user.vexfs.recall", b"0.9", XattrMode::Either).unwrap();
    let store = fs.shut();
    let catalog = Catalog::open(&store.path().join("catalog")).unwrap();
    let record = catalog.get(Table::Collections, &key(&[known.docs], b"")).unwrap().unwrap().to_vec();
    drop(catalog);
    tamper(store.path(), |batch| {
        for nowhere in [1 << 40, known.note] {
            batch.put(Table::Collections, key(&[nowhere], b""), &record);
        }
    });
    // Opened and closed it is sound again, which `reopen` checks.
    assert_rest(&Fs::on(store).reopen(), &[]);
}

/// The files of a store with their bytes, without those that say who has it open.
fn tree(store: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let of_holder = |path: &PathBuf| path.parent() == Some(store) && path.ends_with("lock");
    let found = files(store, "").into_iter().filter(|path| !of_holder(path));
    found.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// The journal of a store's catalog.
fn journal(store: &Path) -> PathBuf {
    files(&store.join("catalog"), ".jnl").pop().unwrap()
}

#[test]
fn a_check_and_a_refused_open_leave_a_damaged_journal_as_it_is() {
    let (store, _) = closed();
    let sound = fs::read(journal(store.path())).unwrap();
    // The head of a commit, and its middle.
    for at in [0, 300] {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x5a;
        fs::write(journal(store.path()), &damaged).unwrap();
        let before = tree(store.path());
        for _ in 0..2 {
            let report = fsck(store.path(), Repair::No).unwrap();
            assert!(says(&report, "the journal ends with commit "), "{report:#?}");
            assert!(says(&report, " were durable"), "{report:#?}");
            assert!(tree(store.path()) == before, "a check changes nothing");
            let options = VolumeOptions { store: store.path().into(), mountpoint: None, read_only: false };
            let refused = Volume::open(options).unwrap_err().to_string();
            assert!(says(&report, &refused), "{refused}");
            assert!(tree(store.path()) == before, "a refused open changes nothing");
        }
    }
    fs::write(journal(store.path()), &sound).unwrap();
    assert_rest(&Fs::on(store), &[]);
}

#[test]
fn a_check_after_a_kill_changes_nothing() {
    let (store, _) = closed();
    let fs = Fs::on(store);
    fs.put("docs/new.f32", &pattern(64, 3));
    fs.unlink("note.txt").unwrap();
    let killed = fs.damaged_copy(|store| {
        let before = tree(store);
        let report = fsck(store, Repair::No).unwrap();
        assert!(report.is_sound() && report.ended_uncleanly, "{report:#?}");
        assert!(tree(store) == before);
    });
    assert_rest(&killed, &[]);
    assert_eq!(killed.get("docs/new.f32").unwrap(), pattern(64, 3));
}

/// Damages a commit in the journal of a store that was closed: later ones are lost.
fn damage_a_commit(store: &Path) {
    let mut damaged = fs::read(journal(store)).unwrap();
    damaged[300..308].fill(b'Z');
    fs::write(journal(store), &damaged).unwrap();
}

/// Numbers and bytes of the blobs of a store.
fn blobs(store: &Path) -> Vec<(u64, Vec<u8>)> {
    let number =
        |path: &PathBuf| u64::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    files(&store.join("blobs"), ".blob").iter().map(|path| (number(path), fs::read(path).unwrap())).collect()
}

fn assert_has_blobs(fs: &Fs, blobs: &[(u64, Vec<u8>)]) {
    for (number, bytes) in blobs {
        let path = format!("lost+found/#blob-{number}");
        assert!(fs.get(&path).unwrap() == *bytes, "{path}");
        assert_eq!(fs.stat(&path).unwrap().mode, 0o600);
    }
}

#[test]
fn blobs_whose_names_are_lost_come_to_lost_and_found() {
    let (store, _) = closed();
    damage_a_commit(store.path());
    let wanted = blobs(store.path());
    assert!(wanted.len() >= 2, "of large.bin and rows.fbin");
    let (found, fs) = repaired(store);
    assert!(says(&found, "the journal ends with commit 2, and "), "{found:#?}");
    assert_has_blobs(&fs, &wanted);
    assert_has_blobs(&fs.reopen(), &wanted);
}

#[test]
fn a_repair_that_was_cut_short_is_gone_on_with_before_anything_is_swept() {
    let (store, _) = closed();
    damage_a_commit(store.path());
    let wanted = blobs(store.path());
    let catalog = Catalog::open_shortened(&store.path().join("catalog")).unwrap();
    // More commits than are lost.
    for _ in 0..1000 {
        let mut batch = catalog.batch();
        batch.put(Table::Meta, b"shortened", b"");
        batch.commit().unwrap();
    }
    drop(catalog);
    let options = VolumeOptions { store: store.path().into(), mountpoint: None, read_only: false };
    let refused = Volume::open(options).unwrap_err().to_string();
    assert!(refused.contains("fsck --repair"), "{refused}");
    assert!(blobs(store.path()) == wanted);
    let (_, fs) = repaired(store);
    assert_has_blobs(&fs, &wanted);
}

#[test]
fn a_blob_that_a_snapshot_names_is_not_lost() {
    let (store, _) = closed();
    let fs = Fs::on(store);
    fs.mkdir(".vexfs/snapshots/one").unwrap();
    let in_snapshot = blobs(fs.store());
    fs.put("new.bin", &pattern(200_000, 5));
    let store = fs.shut();
    damage_a_commit(store.path());
    let (_, fs) = repaired(store);
    let new: Vec<_> = blobs(fs.store()).into_iter().filter(|blob| !in_snapshot.contains(blob)).collect();
    assert_eq!(new.len(), 1);
    assert_has_blobs(&fs, &new);
    assert_eq!(fs.list("lost+found").len(), 1);
    assert!(in_snapshot.iter().all(|blob| blobs(fs.store()).contains(blob)));
}
