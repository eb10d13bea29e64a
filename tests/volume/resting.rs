//! Large ordinary files that come to rest: what they are compared with, and what wakes them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vexfs::Error;
use vexfs::volume::Allocate;
use vexfs::volume::check::{Repair, fsck};

use crate::support::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Files of blobs with this extension, in order.
fn files(store: &Path, extension: &str) -> Vec<PathBuf> {
    let directories = fs::read_dir(store.join("blobs")).unwrap();
    let all = directories.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
    let mut found: Vec<PathBuf> = all
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    found.sort();
    found
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn rest(fs: &Fs) {
    fs.volume.rest_closed(Instant::now() + PATIENCE).unwrap();
}

fn is_at_rest(fs: &Fs) -> bool {
    !files(fs.store(), "sums").is_empty()
}

/// A volume with one file at rest, whose blob is then changed.
fn with_damage(content: &[u8], at: u64) -> Fs {
    let fs = Fs::new();
    fs.put("large", content);
    rest(&fs);
    assert!(is_at_rest(&fs));
    let store = fs.shut();
    flip(&files(store.path(), "blob")[0], at);
    Fs::on(store)
}

fn damage_of<T: std::fmt::Debug>(result: vexfs::Result<T>) -> u64 {
    match result {
        Err(Error::Corrupt { file, offset, .. }) if file.starts_with("blobs/") => offset,
        other => panic!("{other:?}"),
    }
}

fn places(fs: &Fs) -> String {
    String::from_utf8(fs.get(".vexfs/health").unwrap()).unwrap()
}

#[test]
fn a_changed_byte_is_an_error_in_its_chunk_and_the_rest_is_read() {
    let content = pattern(1 << 20, 5);
    let fs = with_damage(&content, 200_000);
    assert_eq!(damage_of(fs.get("large")), 3 << 16);
    let handle = fs.open("large", READ).unwrap();
    let read = |offset: u64, size: u32| {
        let mut bytes = Vec::new();
        fs.volume.read(&ROOT, handle, offset, size, &mut bytes).map(|()| bytes)
    };
    for (offset, size) in [(0, 1), (0, 3 << 16), (4 << 16, 1 << 20), ((4 << 16) + 5, 7), ((1 << 20) - 1, 100)]
    {
        let end = content.len().min(offset as usize + size as usize);
        assert_eq!(read(offset, size).unwrap(), content[offset as usize..end], "{size} bytes at {offset}");
    }
    for (offset, size) in [(3 << 16, 1), ((4 << 16) - 1, 1), (0, 1 << 20), (200_000, 1)] {
        assert_eq!(damage_of(read(offset, size)), 3 << 16, "{size} bytes at {offset}");
    }
    fs.close(handle);
    assert!(places(&fs).contains("196608"), "{}", places(&fs));
}

#[test]
fn a_thread_brings_to_rest_what_was_closed_and_what_an_earlier_mount_left() {
    let fs = Fs::new();
    fs.put("large", &pattern(300_000, 5));
    let left = fs.killed_copy();
    let handle = left.create("open").unwrap();
    left.write(handle, 0, &pattern(300_000, 6));
    let deadline = Instant::now() + PATIENCE;
    while files(fs.store(), "sums").is_empty() || files(left.store(), "sums").is_empty() {
        assert!(
            Instant::now() < deadline,
            "{:?}, {:?}",
            files(fs.store(), "sums"),
            files(left.store(), "sums")
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(files(left.store(), "sums").len(), 1, "not what is open");
    left.close(handle);
}

#[test]
fn a_blob_that_was_cut_or_lengthened_is_damaged() {
    let content = pattern(300_000, 5);
    for len in [299_999, 300_001] {
        let fs = Fs::new();
        fs.put("large", &content);
        let store = fs.shut();
        fs::File::options().write(true).open(&files(store.path(), "blob")[0]).unwrap().set_len(len).unwrap();
        let report = fsck(store.path(), Repair::No).unwrap();
        assert_eq!(report.findings.len(), 1, "{report:#?}");
    }
}

#[test]
fn every_change_wakes_a_file_before_a_byte_of_it() {
    type Change = fn(&Fs, &mut Vec<u8>);
    let through = |fs: &Fs, change: &dyn Fn(vexfs::volume::Handle)| {
        let handle = fs.open("large", WRITE).unwrap();
        assert!(is_at_rest(fs), "an open changes nothing");
        change(handle);
        assert!(!is_at_rest(fs));
        fs.close(handle);
    };
    let changes: [(&str, Change); 6] = [
        ("write", |fs, content| {
            let handle = fs.open("large", WRITE).unwrap();
            assert!(is_at_rest(fs), "an open changes nothing");
            fs.write(handle, 100, b"changed");
            content[100..107].copy_from_slice(b"changed");
            fs.close(handle);
        }),
        ("append", |fs, content| {
            let handle = fs.open("large", WRITE).unwrap();
            fs.write(handle, content.len() as u64, b"more");
            content.extend(b"more");
            fs.close(handle);
        }),
        ("shorten", |fs, content| {
            fs.truncate("large", 150_000).unwrap();
            content.truncate(150_000);
        }),
        ("lengthen", |fs, content| {
            fs.truncate("large", 400_000).unwrap();
            content.resize(400_000, 0);
        }),
        ("punch", |fs, content| {
            let handle = fs.open("large", WRITE).unwrap();
            fs.volume.fallocate(&ROOT, handle, 70_000, 10_000, Allocate::PunchHole).unwrap();
            content[70_000..80_000].fill(0);
            fs.close(handle);
        }),
        ("copy", |fs, content| {
            let (from, to) = (fs.open("other", READ).unwrap(), fs.open("large", WRITE).unwrap());
            assert_eq!(fs.volume.copy_range(&ROOT, (from, 0), (to, 5), 50_000).unwrap(), 50_000);
            content[5..50_005].copy_from_slice(&pattern(50_000, 9));
            fs.close(from);
            fs.close(to);
        }),
    ];
    for (what, change) in changes {
        let mut content = pattern(300_000, 5);
        let mut fs = Fs::new();
        fs.put("large", &content);
        rest(&fs);
        fs.put("other", &pattern(60_000, 9)[..50_000]);
        fs = fs.killed_copy();
        let table = files(fs.store(), "sums");
        assert_eq!(table.len(), 1);
        change(&fs, &mut content);
        assert!(files(fs.store(), "sums").is_empty(), "{what}");
        // As a kill, and an orderly end, would leave it.
        assert_eq!(fs.killed_copy().get("large").unwrap(), content, "{what}");
        rest(&fs);
        assert_eq!(files(fs.store(), "sums"), table, "{what}");
        assert_eq!(fs.reopen().get("large").unwrap(), content, "{what}");
    }
    let fs = Fs::new();
    fs.put("large", &pattern(300_000, 5));
    rest(&fs);
    through(&fs, &|handle| fs.write(handle, 0, b"x"));
}

#[test]
fn the_kernel_gets_a_file_to_write_when_its_checksums_are_gone() {
    let fs = Fs::new();
    fs.volume.set_passthrough(true);
    fs.put("large", &pattern(1 << 20, 5));
    rest(&fs);
    let ino = fs.ino("large").unwrap();
    let reader = fs.volume.open_file(&ROOT, ino, READ).unwrap();
    assert!(reader.backing.is_some() && is_at_rest(&fs), "what this mount has written is known");
    let writer = fs.volume.open_file(&ROOT, ino, WRITE).unwrap();
    assert!(writer.backing.is_some() && !is_at_rest(&fs));
    writer.backing.as_ref().unwrap().write_all_at(b"changed", 5).unwrap();
    // Somebody has it, or has pages of it mapped.
    for opened in [reader, writer] {
        rest(&fs);
        assert!(!is_at_rest(&fs));
        fs.close(opened.handle);
        rest(&fs);
        assert!(!is_at_rest(&fs), "its descriptor is open");
        drop(opened);
    }
    rest(&fs);
    assert!(is_at_rest(&fs));
    assert_eq!(&fs.reopen().get("large").unwrap()[5..12], b"changed");
}

#[test]
fn the_kernel_gets_a_file_to_read_when_it_was_compared() {
    for (len, at_once) in [(1 << 20, true), (20 << 20, false)] {
        let fs = Fs::new();
        fs.put("large", &pattern(len, 5));
        let fs = fs.reopen();
        assert!(is_at_rest(&fs), "an orderly end brings it to rest");
        fs.volume.set_passthrough(true);
        let ino = fs.ino("large").unwrap();
        let is_backed = || {
            let opened = fs.volume.open_file(&ROOT, ino, READ).unwrap();
            fs.close(opened.handle);
            opened.backing.is_some()
        };
        assert_eq!(is_backed(), at_once, "{len} bytes");
        let deadline = Instant::now() + PATIENCE;
        while !is_backed() {
            assert!(Instant::now() < deadline, "{len} bytes are not compared");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn the_kernel_never_gets_a_damaged_file_to_read() {
    for len in [1 << 20, 20 << 20] {
        let fs = with_damage(&pattern(len, 5), len as u64 - 1);
        fs.volume.set_passthrough(true);
        let ino = fs.ino("large").unwrap();
        let deadline = Instant::now() + PATIENCE;
        // Until it was compared, at once or behind our back, and once more.
        loop {
            let opened = fs.volume.open_file(&ROOT, ino, READ).unwrap();
            assert!(opened.backing.is_none() && !opened.direct_io);
            let mut bytes = Vec::new();
            fs.volume.read(&ROOT, opened.handle, 0, 1 << 16, &mut bytes).unwrap();
            fs.close(opened.handle);
            if places(&fs).contains("damaged") {
                break;
            }
            assert!(Instant::now() < deadline);
        }
        assert!(fs.volume.open_file(&ROOT, ino, READ).unwrap().backing.is_none());
    }
}

#[test]
fn damage_is_not_written_over_in_part_nor_copied_nor_searched() {
    let content = pattern(300_000, 5);
    let fs = with_damage(&content, 100_000);
    let at = 1 << 16;
    let handle = fs.open("large", WRITE).unwrap();
    assert_eq!(damage_of(fs.volume.write(&ROOT, handle, 0, b"x")), at);
    assert_eq!(damage_of(fs.truncate("large", 200_000)), at);
    assert_eq!(damage_of(fs.truncate("large", 80_000)), at);
    let copy = fs.create("copy").unwrap();
    assert_eq!(damage_of(fs.volume.copy_range(&ROOT, (handle, 0), (copy, 0), 300_000)), at);
    assert_eq!(fs.volume.copy_range(&ROOT, (handle, 0), (copy, 0), 1000).unwrap(), 1000);
    fs.close(copy);
    fs.close(handle);
    assert!(is_at_rest(&fs));
    // By its new name it were a vector file.
    fs.mkdir("docs").unwrap();
    fs.rename("large", "docs/large.f32").unwrap();
    let status = fs.volume.getxattr(&ROOT, fs.ino("docs/large.f32").unwrap(), b"user.vexfs.status").unwrap();
    assert!(status.starts_with(b"invalid: damaged"), "{}", status.escape_ascii());
    assert_eq!(damage_of(fs.get("docs/large.f32")), at);
    // Written anew it is sound.
    fs.rename("docs/large.f32", "large").unwrap();
    fs.put("large", &content);
    assert_eq!(fs.get("large").unwrap(), content);
    rest(&fs);
    assert_eq!(fs.reopen().get("large").unwrap(), content);
}

#[test]
fn a_snapshot_compares_its_bytes_as_well() {
    let content = pattern(300_000, 5);
    let fs = Fs::new();
    fs.put("large", &content);
    rest(&fs);
    fs.mkdir(".vexfs/snapshots/s").unwrap();
    // The volume goes on with a copy, which has no checksums yet.
    let handle = fs.open("large", WRITE).unwrap();
    fs.write(handle, 0, b"x");
    fs.close(handle);
    assert_eq!(files(fs.store(), "sums").len(), 1);
    let old = files(fs.store(), "sums")[0].with_extension("blob");
    let store = fs.shut();
    flip(&old, 100_000);
    let report = fsck(store.path(), Repair::No).unwrap();
    assert!(report.findings.len() == 1 && !report.is_sound(), "{report:#?}");
    let fs = Fs::on(store);
    assert_eq!(&fs.get("large").unwrap()[1..], &content[1..]);
    let views = vexfs::volume::Views::new(std::sync::Arc::clone(&fs.volume));
    let ino = [".vexfs", "snapshots", "s", "large"].iter().fold(vexfs::namespace::Ino::ROOT, |dir, name| {
        views.lookup(&ROOT, dir, name.as_bytes()).unwrap().ino
    });
    let opened = views.open_file(&ROOT, ino, READ).unwrap();
    assert_eq!(damage_of(views.read(&ROOT, opened.handle, 0, u32::MAX, &mut Vec::new())), 1 << 16);
    views.release(opened.handle).unwrap();
}

#[test]
fn a_repair_keeps_the_bytes_of_a_damaged_file_under_another_name() {
    let content = pattern(300_000, 5);
    let fs = with_damage(&content, 100_000);
    let store = fs.store;
    fs.volume.close().unwrap();
    drop(fs.volume);
    let report = fsck(store.path(), Repair::No).unwrap();
    assert_eq!((report.findings.len(), report.findings[0].offset), (1, 1 << 16), "{report:#?}");
    assert_eq!(report.findings[0].path.as_deref(), Some("/large"));
    let report = fsck(store.path(), Repair::Yes).unwrap();
    assert!(report.is_sound(), "{report:#?}");
    let fs = Fs::on(store);
    assert!(matches!(fs.get("large"), Err(Error::NotFound)));
    let names = fs.list("lost+found");
    assert!(names.len() == 1 && names[0].ends_with("-large.damaged"), "{names:?}");
    let kept = fs.get(&format!("lost+found/{}", names[0])).unwrap();
    let differing: Vec<usize> = (0..content.len()).filter(|&at| kept[at] != content[at]).collect();
    assert_eq!(differing, [100_000]);
    // Taken as they are they come to rest.
    rest(&fs);
    fs.reopen();
}

#[test]
fn checksums_that_belong_to_nothing_are_removed_and_no_blob_gets_their_number() {
    let fs = Fs::new();
    fs.put("large", &pattern(300_000, 5));
    rest(&fs);
    let store = fs.shut();
    let blob = files(store.path(), "blob").remove(0);
    let table = blob.with_extension("sums");
    // What a power cut may keep of a removed file, of one that came to rest, and of one that was sealed.
    let lone = store.path().join("blobs/63/0000000000000063.sums");
    fs::copy(&table, &lone).unwrap();
    for half in ["resting", "sealing"] {
        fs::write(blob.with_extension(half), b"half").unwrap();
    }
    let fs = Fs::on(store);
    assert_eq!(files(fs.store(), "sums"), [table]);
    assert!(files(fs.store(), "resting").is_empty() && files(fs.store(), "sealing").is_empty());
    fs.put("next", &pattern(300_000, 5));
    assert!(files(fs.store(), "blob").last().unwrap().ends_with("0000000000000064.blob"));
}

#[test]
fn checksums_of_a_seal_that_was_not_committed_say_nothing() {
    let fs = Fs::new();
    fs.mkdir("docs").unwrap();
    let mut content = pattern(300_000, 5);
    fs.put("docs/large.f32", &content[..65_536]);
    fs.put("large", &content);
    let store = fs.shut();
    let tables = files(store.path(), "sums");
    // The version in the head says why it was made; the last eight bytes are the checksum of the others.
    for table in &tables {
        let mut bytes = fs::read(table).unwrap();
        bytes[8] = 1;
        bytes[32] ^= 1;
        let end = bytes.len() - 8;
        let sum = xxhash_rust::xxh3::xxh3_64(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
        fs::write(table, bytes).unwrap();
    }
    let fs = Fs::on(store);
    assert_eq!(fs.get("large").unwrap(), content);
    let handle = fs.open("large", WRITE).unwrap();
    fs.write(handle, 0, b"x");
    content[0] = b'x';
    fs.close(handle);
    rest(&fs);
    assert_eq!(fs.reopen().get("large").unwrap(), content);
}

#[test]
fn nothing_comes_to_rest_in_a_volume_that_is_read_only() {
    let fs = Fs::new();
    fs.put("large", &pattern(300_000, 5));
    let copy = fs.killed_copy().reopen_read_only();
    assert_eq!(copy.get("large").unwrap(), pattern(300_000, 5));
    let before = files(copy.store(), "sums");
    copy.volume.close().unwrap();
    assert_eq!(files(copy.store(), "sums"), before);
}
