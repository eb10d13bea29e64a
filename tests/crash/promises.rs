//! Promises that came to be broken: what is left where the power goes behind a few steps, and what a mount does to a
//! store of which a part is not there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vexfs::Error;
use vexfs::namespace::Ino;
use vexfs::volume::check::{Repair, fsck};
use vexfs::volume::{RenameMode, SyncMode, Volume};

use crate::check::{FoundNode, read_all};
use crate::cuts::temporary;
use crate::image::Image;
use crate::random::Random;
use crate::recorder::Recording;
use crate::survivors::{Names, survivors};
use crate::workload::{READ, ROOT, WRITE, open, resolve, split};

/// Cuts behind the last step.
const CUTS: u64 = 100;

/// Bytes without a zero, which is what a disk leaves of what it lost.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| 1 + (random.next() % 255) as u8).collect()
}

fn vector(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..64).flat_map(|_| (random.below(2000) as f32 / 1000.0 + 0.5).to_le_bytes()).collect()
}

fn put(volume: &Volume, path: &str, content: &[u8], synced: bool) {
    let (dir, name) = split(volume, path).unwrap();
    let handle = volume.create(&ROOT, dir, name, 0o644, WRITE).unwrap().1.handle;
    assert_eq!(volume.write(&ROOT, handle, 0, content).unwrap() as usize, content.len());
    if synced {
        volume.fsync(handle, false).unwrap();
    }
    volume.flush(&ROOT, handle).unwrap();
    volume.release(handle).unwrap();
}

fn rewrite(volume: &Volume, path: &str, at: usize, content: &[u8]) {
    let handle = volume.open_file(&ROOT, resolve(volume, path).unwrap(), WRITE).unwrap().handle;
    assert_eq!(volume.write(&ROOT, handle, at as u64, content).unwrap() as usize, content.len());
    volume.flush(&ROOT, handle).unwrap();
    volume.release(handle).unwrap();
}

fn rename(volume: &Volume, from: &str, to: &str, mode: RenameMode) {
    volume.rename(&ROOT, split(volume, from).unwrap(), split(volume, to).unwrap(), mode).unwrap();
}

fn unlink(volume: &Volume, path: &str) {
    let (dir, name) = split(volume, path).unwrap();
    volume.unlink(&ROOT, dir, name).unwrap();
}

/// The content of a file; none when it is not there or damaged.
fn content(volume: &Arc<Volume>, path: &str) -> Option<Vec<u8>> {
    match read_all(volume).unwrap().nodes.remove(path)? {
        FoundNode::Dir => None,
        FoundNode::File { content, .. } => content,
    }
}

/// Closes it, and gives the store up.
fn close(volume: Arc<Volume>) {
    volume.close().unwrap();
    drop(volume);
}

fn new_volume(store: &Path) -> Arc<Volume> {
    let volume = open(store).unwrap();
    volume.set_sync_mode(SyncMode::Normal);
    volume.set_passthrough(true);
    volume.mkdir(&ROOT, Ino::ROOT, b"d", 0o755).unwrap();
    volume
}

/// Does `work` on a new store, cuts behind it, and wants `d/F` to begin with one of `wanted`.
fn cut_behind(what: &str, wanted: &[Vec<u8>], work: impl Fn(&Volume)) {
    let store = temporary();
    let recording = Recording::start(store.path(), Image::empty());
    let volume = new_volume(store.path());
    work(&volume);
    let tape = recording.tape();
    drop(volume);
    drop(recording);
    let mut wrong = BTreeMap::new();
    for seed in 0..CUTS {
        let left = temporary();
        survivors(&tape.start, &tape.events, Names::Ordered, &mut Random(seed)).write_to(left.path());
        let volume = open(left.path()).unwrap();
        let found = content(&volume, "d/F");
        let is_right = wanted.iter().any(|want| found.as_ref().is_some_and(|found| found.starts_with(want)));
        if !is_right {
            *wrong.entry(found.map(|found| found.len())).or_insert(0) += 1;
        }
        close(volume);
    }
    assert!(wrong.is_empty(), "{what}: wrong in {wrong:?} of {CUTS} cuts, by the length that is left");
}

#[test]
fn what_was_renamed_over_a_file_is_whole_whatever_is_done_to_it_then() {
    for (old, new, added) in [(10_000, 15_000, 5_000), (100_000, 120_000, 10)] {
        let (old, new) = (noise(old, 1), noise(new, 2));
        cut_behind("appended to", &[old.clone(), new.clone()], |volume| {
            put(volume, "d/F", &old, true);
            volume.sync().unwrap();
            put(volume, "d/new", &new, false);
            rename(volume, "d/new", "d/F", RenameMode::Replace);
            rewrite(volume, "d/F", new.len(), &noise(added, 3));
            put(volume, "d/other", b"other", true);
        });
        cut_behind("exchanged, and the old one removed", &[old.clone(), new.clone()], |volume| {
            put(volume, "d/F", &old, true);
            volume.sync().unwrap();
            put(volume, "d/new", &new, false);
            rename(volume, "d/new", "d/F", RenameMode::Exchange);
            unlink(volume, "d/new");
            put(volume, "d/other", b"other", true);
        });
    }
}

/// The kernel writes `new` into a file by itself behind a sync of the volume, and lets go of it.
fn write_unasked(volume: &Volume, path: &str, new: &[u8]) {
    let opened = volume.open_file(&ROOT, resolve(volume, path).unwrap(), WRITE).unwrap();
    let blob = opened.backing.clone().expect("the file is large enough");
    volume.sync().unwrap();
    blob.write_all_at(new, 0).unwrap();
    volume.flush(&ROOT, opened.handle).unwrap();
    volume.release(opened.handle).unwrap();
}

#[test]
fn what_the_kernel_wrote_by_itself_is_promised_by_every_sync_that_follows() {
    let (old, new) = (noise(300_000, 1), noise(300_000, 2));
    cut_behind("a sync", std::slice::from_ref(&new), |volume| {
        put(volume, "d/F", &old, true);
        write_unasked(volume, "d/F", &new);
        volume.sync().unwrap();
    });
    cut_behind("an fsync by a reader", std::slice::from_ref(&new), |volume| {
        put(volume, "d/F", &old, true);
        write_unasked(volume, "d/F", &new);
        let reader = volume.open_file(&ROOT, resolve(volume, "d/F").unwrap(), READ).unwrap().handle;
        volume.fsync(reader, false).unwrap();
        volume.release(reader).unwrap();
    });
    cut_behind("a rename over another", &[old.clone(), new.clone()], |volume| {
        put(volume, "d/F", &old, true);
        put(volume, "d/new", &old, true);
        write_unasked(volume, "d/new", &new);
        rename(volume, "d/new", "d/F", RenameMode::Replace);
        put(volume, "d/other", b"other", true);
    });
}

#[test]
fn a_sync_has_what_is_stored_into_pages_behind_the_last_close() {
    let (old, new) = (noise(300_000, 1), noise(300_000, 2));
    cut_behind("mapped", std::slice::from_ref(&new), |volume| {
        put(volume, "d/F", &old, true);
        let opened = volume.open_file(&ROOT, resolve(volume, "d/F").unwrap(), WRITE).unwrap();
        // As long as it lives, it is as if pages were mapped.
        let blob = opened.backing.clone().expect("the file is large enough");
        volume.flush(&ROOT, opened.handle).unwrap();
        volume.release(opened.handle).unwrap();
        volume.sync().unwrap();
        blob.write_all_at(&new, 0).unwrap();
        volume.sync().unwrap();
    });
}

fn copy_of(store: &Path) -> (tempfile::TempDir, PathBuf) {
    let dir = temporary();
    let copy = dir.path().join("store");
    let copied = std::process::Command::new("cp").arg("-a").args([store, &copy]).status().unwrap();
    assert!(copied.success());
    (dir, copy)
}

fn blobs(store: &Path) -> Vec<PathBuf> {
    let dirs = fs::read_dir(store.join("blobs")).unwrap();
    let files = dirs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|kind| kind == "blob")).collect()
}

#[test]
fn a_file_at_rest_whose_blob_was_cut_is_damaged_after_a_kill_too() {
    let store = temporary();
    let volume = new_volume(store.path());
    put(&volume, "d/F", &noise(200_000, 1), true);
    volume.sync().unwrap();
    volume.rest_closed(Instant::now() + Duration::from_secs(60)).unwrap();
    volume.sync().unwrap();
    for len in [0, 50_000, 65_536] {
        let (_dir, killed) = copy_of(store.path());
        let [blob] = &blobs(&killed)[..] else { panic!("one file has one blob") };
        File::options().write(true).open(blob).unwrap().set_len(len).unwrap();
        let left = open(&killed).unwrap();
        assert_eq!(content(&left, "d/F"), None, "cut to {len} bytes");
        assert_eq!(left.getattr(resolve(&left, "d/F").unwrap()).unwrap().size, 200_000);
        close(left);
    }
    close(volume);
}

#[test]
fn a_store_whose_catalog_is_not_there_is_refused_and_keeps_what_it_has() {
    let store = temporary();
    let volume = new_volume(store.path());
    for number in 0..5 {
        put(&volume, &format!("d/{number}.bin"), &noise(100_000, number), false);
    }
    close(volume);
    let (catalog, away) = (store.path().join("catalog"), store.path().join("away"));
    fs::rename(&catalog, &away).unwrap();
    let refuse = || {
        let refused = open(store.path()).map(drop).unwrap_err();
        assert!(matches!(&refused, Error::Corrupt { what, .. } if what.contains("5 blobs")), "{refused}");
        for repair in [Repair::No, Repair::Yes] {
            assert!(!fsck(store.path(), repair).unwrap().is_sound(), "{repair:?}");
        }
        assert_eq!(blobs(store.path()).len(), 5);
    };
    refuse();
    assert!(!catalog.exists(), "nothing made one");
    fs::create_dir(&catalog).unwrap();
    refuse();
    fs::remove_dir(&catalog).unwrap();
    fs::rename(&away, &catalog).unwrap();
    let volume = open(store.path()).unwrap();
    for number in 0..5 {
        assert_eq!(content(&volume, &format!("d/{number}.bin")), Some(noise(100_000, number)));
    }
    close(volume);
}

fn vectors(volume: &Arc<Volume>, numbers: std::ops::Range<u64>, suffix: &str) -> usize {
    numbers.filter(|&number| content(volume, &format!("d/{number}.{suffix}")) == Some(vector(number))).count()
}

#[test]
fn a_segment_that_is_named_is_no_leftover_and_no_other_gets_its_number() {
    let store = temporary();
    let volume = new_volume(store.path());
    for number in 0..10 {
        put(&volume, &format!("d/{number}.f32"), &vector(number), false);
    }
    close(volume);
    let segment = store.path().join("segments/00000000.seg");
    let file = File::options().read(true).write(true).open(&segment).unwrap();
    let (whole, mut head) = (file.metadata().unwrap().len(), [0; 512]);
    file.read_exact_at(&mut head, 0).unwrap();
    type Harm = fn(&File);
    let harms: [Harm; 2] = [
        |file| file.set_len(file.metadata().unwrap().len() - 4096).unwrap(),
        |file| file.write_all_at(&[0; 512], 0).unwrap(),
    ];
    for harm in harms {
        harm(&file);
        let volume = open(store.path()).unwrap();
        assert_eq!(vectors(&volume, 0..10, "f32"), 0);
        close(volume);
        file.set_len(whole).unwrap();
        file.write_all_at(&head, 0).unwrap();
        let volume = open(store.path()).unwrap();
        assert_eq!(vectors(&volume, 0..10, "f32"), 10, "the disk is well again");
        close(volume);
    }
    // It is lost, and others come that leave their collection and stay where they are.
    fs::remove_file(&segment).unwrap();
    let volume = open(store.path()).unwrap();
    for number in 100..110 {
        put(&volume, &format!("d/{number}.f32"), &vector(number), true);
        rename(&volume, &format!("d/{number}.f32"), &format!("d/{number}.txt"), RenameMode::Replace);
    }
    close(volume);
    assert!(!segment.exists());
    let volume = open(store.path()).unwrap();
    for number in 0..10 {
        unlink(&volume, &format!("d/{number}.f32"));
    }
    volume.sync().unwrap();
    for number in 200..210 {
        put(&volume, &format!("d/{number}.f32"), &vector(number), true);
    }
    assert_eq!(vectors(&volume, 100..110, "txt"), 10);
    close(volume);
}
