//! What is there after an orderly end, and after a sudden one.

use std::path::{Path, PathBuf};

use vexfs::Error;
use vexfs::namespace::{Ino, Time};
use vexfs::volume::check::{Repair, fsck};
use vexfs::volume::{SetAttr, SetTime, Volume, VolumeOptions, XattrMode};

use crate::support::*;

#[test]
fn everything_is_there_after_a_close() {
    let fs = Fs::new();
    fs.mkdir("d").unwrap();
    for (name, size) in [("d/empty", 0), ("d/inline", 500), ("d/blob", 50_000), ("d/v.f32", 4000)] {
        fs.put(name, &pattern(size, 1));
    }
    let open = fs.create("open").unwrap();
    fs.write(open, 0, &pattern(70_000, 2));
    fs.write(open, 70_000, &pattern(10, 3));
    let before = fs.stat("d/blob").unwrap();
    let fs = fs.reopen();
    assert_eq!(fs.list("d"), ["blob", "empty", "inline", "v.f32"]);
    assert_eq!(fs.stat("d/blob").unwrap(), before);
    for (name, size) in [("d/empty", 0), ("d/inline", 500), ("d/blob", 50_000), ("d/v.f32", 4000)] {
        assert_eq!(fs.get(name).unwrap(), pattern(size, 1), "{name}");
    }
    assert_eq!(fs.get("open").unwrap(), [pattern(70_000, 2), pattern(10, 3)].concat());
}

#[test]
fn a_closed_volume_refuses_changes_and_closes_once() {
    let fs = Fs::new();
    fs.put("f", b"1");
    let handle = fs.open("f", WRITE).unwrap();
    fs.volume.close().unwrap();
    fs.volume.close().unwrap();
    assert!(matches!(error(fs.mkdir("d")), Error::ReadOnly));
    assert!(matches!(error(fs.volume.write(&ROOT, handle, 0, b"x")), Error::ReadOnly));
    assert!(matches!(error(fs.unlink("f")), Error::ReadOnly));
    assert_eq!(fs.read(handle), b"1");
    fs.volume.release(handle).unwrap();
}

#[test]
fn a_read_only_volume_reads_and_refuses_changes() {
    let fs = Fs::new();
    fs.put("f", b"1");
    let fs = fs.reopen_read_only();
    assert_eq!(fs.get("f").unwrap(), b"1");
    assert!(matches!(error(fs.mkdir("d")), Error::ReadOnly));
    assert!(matches!(error(fs.open("f", WRITE)), Error::ReadOnly));
    assert!(matches!(error(fs.truncate("f", 0)), Error::ReadOnly));
    fs.volume.close().unwrap();
}

#[test]
fn a_kill_loses_no_write_that_returned() {
    let fs = Fs::new();
    let inline = fs.create("inline").unwrap();
    let blob = fs.create("blob").unwrap();
    fs.write(inline, 0, &pattern(3000, 1));
    fs.write(blob, 0, &pattern(20_000, 2));
    // In place: only the blob knows the size.
    fs.write(blob, 20_000, &pattern(30_000, 3));
    fs.write(blob, 5, b"overwritten");
    let found = fs.killed_copy();
    assert_eq!(found.get("inline").unwrap(), pattern(3000, 1));
    let mut model = [pattern(20_000, 2), pattern(30_000, 3)].concat();
    model[5..16].copy_from_slice(b"overwritten");
    assert_eq!(found.get("blob").unwrap(), model);
    assert_eq!(found.stat("blob").unwrap().size, 50_000);
    let (ours, theirs) = (fs.stat("blob").unwrap().mtime, found.stat("blob").unwrap().mtime);
    assert!((ours.secs - theirs.secs).abs() <= 1, "{ours:?} and {theirs:?}");
}

#[test]
fn a_time_set_while_writing_survives_a_kill() {
    let fs = Fs::new();
    let handle = fs.create("blob").unwrap();
    fs.write(handle, 0, &pattern(20_000, 2));
    fs.write(handle, 20_000, b"x");
    let past = Time { secs: 1_000_000, nanos: 7 };
    let set = SetAttr { mtime: Some(SetTime::To(past)), ..SetAttr::default() };
    fs.volume.setattr(&ROOT, fs.ino("blob").unwrap(), set, Some(handle)).unwrap();
    let found = fs.killed_copy();
    assert_eq!(found.stat("blob").unwrap().mtime, past);
    assert_eq!(found.stat("blob").unwrap().size, 20_001);
}

#[test]
fn a_time_set_after_the_last_close_survives_a_kill() {
    let fs = Fs::new();
    fs.put("shared", &pattern(20_000, 1));
    let being_written = fs.open("shared", WRITE).unwrap();
    fs.write(being_written, 0, b"x");
    // It ends the writing in place.
    fs.mkdir(".vexfs/snapshots/s").unwrap();
    for name in ["one_write", "more_writes", "renamed", "refused.npy"] {
        fs.put(name, &pattern(20_000, 1));
    }
    let handle = fs.open("more_writes", WRITE).unwrap();
    fs.write(handle, 20_000, &pattern(20_000, 2));
    fs.close(handle);
    let past = Time { secs: 1_000_000, nanos: 7 };
    for name in ["shared", "one_write", "more_writes", "renamed", "refused.npy"] {
        let set = SetAttr { mtime: Some(SetTime::To(past)), ..SetAttr::default() };
        fs.volume.setattr(&ROOT, fs.ino(name).unwrap(), set, None).unwrap();
    }
    fs.rename("renamed", "renamed.txt").unwrap();
    let found = fs.killed_copy();
    let names = ["shared", "one_write", "more_writes", "renamed.txt", "refused.npy"];
    assert_eq!(names.map(|name| found.stat(name).unwrap().mtime), [past; 5]);
    assert_eq!(found.get("shared").unwrap()[..1], *b"x");
}

#[test]
fn a_kill_settles_what_was_being_written() {
    let fs = Fs::new();
    let handle = fs.create("v.f32").unwrap();
    fs.write(handle, 0, &pattern(4000, 1));
    fs.put("w.f32", &pattern(400_000, 2));
    let again = fs.open("w.f32", WRITE).unwrap();
    fs.write(again, 0, b"half");
    let found = fs.killed_copy();
    assert_eq!(found.get("v.f32").unwrap(), pattern(4000, 1));
    let mut model = pattern(400_000, 2);
    model[..4].copy_from_slice(b"half");
    assert_eq!(found.get("w.f32").unwrap(), model);
    let found = found.reopen();
    assert_eq!(found.get("v.f32").unwrap(), pattern(4000, 1));
    assert_eq!(found.get("w.f32").unwrap(), model);
}

/// Rows of 8 elements; each file has others.
fn rows(seed: u64, count: u32) -> Vec<u8> {
    let mut state = seed;
    let mut value = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(state >> 48).unwrap()) / 32768.0 - 1.0
    };
    let mut bytes = [count.to_le_bytes(), 8u32.to_le_bytes()].concat();
    bytes.extend((0..count * 8).flat_map(|_| value().to_le_bytes()));
    bytes
}

fn saved_graphs(fs: &Fs) -> usize {
    let files = files_below(&fs.store().join("index"));
    files.iter().filter(|file| file.extension().is_some_and(|end| end == "hnsw")).count()
}

#[test]
fn a_graph_of_vectors_that_are_gone_is_not_used_for_others_after_two_kills() {
    let fs = Fs::new();
    for (dir, seed) in [("old", 1), ("new", 2)] {
        fs.mkdir(dir).unwrap();
        fs.put(&format!("{dir}/x.fbin"), &rows(seed, 6000));
    }
    fs.volume.barrier().unwrap();
    assert_eq!(saved_graphs(&fs), 2);
    fs.unlink("old/x.fbin").unwrap();
    let fs = fs.killed_copy();
    assert_eq!(saved_graphs(&fs), 1, "that of the emptied collection is gone");
    fs.rename("new/x.fbin", "old/x.fbin").unwrap();
    let fs = fs.killed_copy();
    let content = fs.get("old/x.fbin").unwrap();
    for row in [5, 500, 5000] {
        // A copy of a row is nearest to it.
        let at = 8 + row * 32;
        fs.put("old/copy.f32", &content[at..at + 32]);
        let ino = fs.ino("old/copy.f32").unwrap();
        let nearest = fs.volume.getxattr(&ROOT, ino, b"user.vexfs.similar.1").unwrap();
        let nearest = String::from_utf8(nearest.to_vec()).unwrap();
        assert!(nearest.ends_with(&format!("\tx.fbin#{row}\n")), "row {row}: {nearest}");
    }
}

#[test]
fn a_graph_whose_collection_is_gone_is_no_damage_and_goes_with_the_next_open() {
    let fs = Fs::new();
    fs.mkdir("above").unwrap();
    let moved = fs.mkdir("moved").unwrap().ino;
    fs.put("moved/x.fbin", &rows(1, 6000));
    fs.volume.barrier().unwrap();
    let graph = std::fs::read(fs.store().join(format!("index/{:016x}.hnsw", moved.0))).unwrap();
    fs.rename("moved", "above/moved").unwrap();
    let found = fs.damaged_copy(|store| {
        // Death came before the file was removed: of a collection that is empty, and of a directory that is gone.
        let files = [moved.0, 4711].map(|root| store.join(format!("index/{root:016x}.hnsw")));
        files.iter().for_each(|file| std::fs::write(file, &graph).unwrap());
        let report = fsck(store, Repair::No).unwrap();
        assert!(report.findings.is_empty(), "{report:#?}");
        assert!(report.counted.leftover_graphs >= 2, "{report:#?}");
    });
    assert_eq!(saved_graphs(&found), 0);
    found.volume.barrier().unwrap();
    assert_eq!(saved_graphs(&found), 1, "that of the collection that has the vectors");
    assert_eq!(saved_graphs(&found.reopen()), 1);
}

#[test]
fn a_directory_with_vectors_that_becomes_a_collection_keeps_its_configuration() {
    let fs = Fs::new();
    fs.mkdir("c").unwrap();
    let dir = fs.mkdir("c/sub").unwrap().ino;
    fs.put("c/sub/a.f32", &pattern(64, 1));
    fs.volume.setxattr(&ROOT, dir, b"user.vexfs.metric", b"l2", XattrMode::Either).unwrap();
    let metric = |fs: &Fs| fs.volume.getxattr(&ROOT, dir, b"user.vexfs.metric").unwrap().to_vec();
    assert_eq!(metric(&fs), b"l2");
    assert_eq!(metric(&fs.killed_copy()), b"l2");
    assert_eq!(metric(&fs.reopen()), b"l2");
}

#[test]
fn refused_content_is_looked_at_again_when_the_file_changes_and_not_when_its_collection_does() {
    let fs = Fs::new();
    let status = |fs: &Fs, path: &str| {
        let value = fs.volume.getxattr(&ROOT, fs.ino(path).unwrap(), b"user.vexfs.status").unwrap();
        String::from_utf8(value.to_vec()).unwrap()
    };
    fs.mkdir("c").unwrap();
    fs.put("c/a.vec", b"1 2 3");
    fs.put("c/b.vec", b"1 2");
    fs.put("c/d.vec", b"2 1");
    fs.unlink("c/a.vec").unwrap();
    fs.put("c/c.vec", b"3 4");
    let refused = "invalid: dimension 2, collection has 3";
    assert_eq!([status(&fs, "c/c.vec"), status(&fs, "c/b.vec")], ["indexed", refused]);
    let found = fs.killed_copy();
    assert_eq!([status(&found, "c/c.vec"), status(&found, "c/b.vec")], ["indexed", refused]);
    let found = found.reopen();
    assert_eq!([status(&found, "c/c.vec"), status(&found, "c/b.vec")], ["indexed", refused]);
    found.rename("c/b.vec", "c/e.vec").unwrap();
    assert_eq!(status(&found, "c/e.vec"), refused, "it is the same file of the same collection");
    found.rename("c/e.vec", "c/e").unwrap();
    found.rename("c/e", "c/b.vec").unwrap();
    found.put("c/d.vec", b"2 1");
    assert_eq!([status(&found, "c/b.vec"), status(&found, "c/d.vec")], ["indexed", "indexed"]);
    found.shut();
}

#[test]
fn unlinked_files_and_directories_that_were_open_are_gone_after_a_kill() {
    let fs = Fs::new();
    fs.put("f", &pattern(50_000, 1));
    let file = fs.ino("f").unwrap();
    let handle = fs.open("f", WRITE).unwrap();
    fs.write(handle, 0, b"dirty");
    let dir = fs.mkdir("d").unwrap().ino;
    fs.volume.setxattr(&ROOT, dir, b"user.a", b"1", XattrMode::Either).unwrap();
    fs.volume.open_dir(&ROOT, dir).unwrap();
    fs.unlink("f").unwrap();
    fs.rmdir("d").unwrap();
    let found = fs.killed_copy();
    assert!(matches!(error(found.volume.getattr(file)), Error::NotFound));
    assert!(matches!(error(found.volume.getattr(dir)), Error::NotFound));
    assert!(matches!(error(found.volume.getxattr(&ROOT, dir, b"user.a")), Error::NotFound));
    let blobs = || {
        found.volume.sync().unwrap();
        count_files(&found.store().join("blobs"))
    };
    assert_eq!(blobs(), 0, "the orphan's blob is removed");
}

#[test]
fn the_space_of_removed_content_is_given_back() {
    let fs = Fs::new();
    let blobs = || {
        fs.volume.sync().unwrap();
        count_files(&fs.store().join("blobs"))
    };
    fs.put("a", &pattern(50_000, 1));
    fs.put("b.f32", &pattern(200_000, 2));
    assert_eq!(blobs(), 2);
    let handle = fs.open("b.f32", WRITE).unwrap();
    fs.write(handle, 0, b"copy");
    fs.close(handle);
    assert_eq!(blobs(), 2, "the sealed version is let go");
    fs.truncate("a", 0).unwrap();
    assert_eq!(blobs(), 1);
    fs.put("c", &pattern(50_000, 1));
    fs.rename("c", "b.f32").unwrap();
    fs.unlink("b.f32").unwrap();
    assert_eq!(blobs(), 0);
}

#[test]
fn inode_numbers_are_not_reused() {
    let fs = Fs::new();
    fs.put("a", b"1");
    let first = fs.ino("a").unwrap();
    fs.unlink("a").unwrap();
    let fs = fs.reopen();
    fs.put("a", b"1");
    assert!(fs.ino("a").unwrap() > first);
    let found = fs.killed_copy();
    found.put("b", b"1");
    assert!(found.ino("b").unwrap() > fs.ino("a").unwrap());
}

#[test]
fn a_blob_that_lost_its_end_is_as_long_as_what_is_left() {
    let fs = Fs::new();
    fs.put("f", &pattern(50_000, 1));
    let found = fs.damaged_copy(|store| {
        for blob in files_below(&store.join("blobs")) {
            std::fs::File::options().write(true).open(blob).unwrap().set_len(30_000).unwrap();
        }
    });
    assert_eq!(found.stat("f").unwrap().size, 30_000);
    assert_eq!(found.get("f").unwrap(), pattern(50_000, 1)[..30_000]);
}

#[test]
fn a_file_whose_blob_is_missing_can_be_seen_and_removed() {
    let fs = Fs::new();
    fs.put("f", &pattern(50_000, 1));
    fs.put("g", b"sound");
    let found = fs.damaged_copy(|store| {
        for blob in files_below(&store.join("blobs")) {
            std::fs::remove_file(blob).unwrap();
        }
    });
    assert_eq!(found.stat("f").unwrap().size, 50_000);
    assert!(matches!(error(found.get("f")), Error::Corrupt { .. }));
    assert_eq!(found.get("g").unwrap(), b"sound");
    found.unlink("f").unwrap();
    found.volume.sync().unwrap();
    assert_eq!(found.reopen().list(""), ["g"]);
}

#[test]
fn a_missing_blob_that_is_opened_is_in_the_health_of_the_volume() {
    let fs = Fs::new();
    fs.put("f", &pattern(600_000, 1));
    let store = fs.shut();
    for blob in files_below(&store.path().join("blobs")) {
        std::fs::remove_file(blob).unwrap();
    }
    let found = Fs::on(store);
    // The kernel reads such a file by itself, so opening it asks for the blob.
    found.volume.set_passthrough(true);
    for _ in 0..2 {
        assert!(matches!(error(found.get("f")), Error::Corrupt { .. }));
    }
    let health = String::from_utf8(found.get(".vexfs/health").unwrap()).unwrap();
    assert!(health.contains("\"damaged\""), "{health}");
    assert_eq!(health.matches("the blob named is missing").count(), 1, "{health}");
}

#[test]
fn a_torn_slot_is_an_error_and_never_wrong_bytes() {
    let fs = Fs::new();
    fs.put("v.f32", &pattern(4000, 1));
    let found = fs.damaged_copy(|store| {
        use std::os::unix::fs::FileExt;
        for segment in files_below(&store.join("segments")) {
            let bytes = std::fs::read(&segment).unwrap();
            let at = bytes.windows(100).position(|window| window == &pattern(4000, 1)[..100]).unwrap();
            let file = std::fs::File::options().write(true).open(segment).unwrap();
            file.write_all_at(&[0; 64], at as u64 + 64).unwrap();
        }
    });
    assert!(matches!(error(found.get("v.f32")), Error::Corrupt { .. }));
    found.put("v.f32", &pattern(8, 2));
    assert_eq!(found.get("v.f32").unwrap(), pattern(8, 2));
}

#[test]
fn an_fsync_writes_size_and_time_back() {
    let fs = Fs::new();
    let handle = fs.create("f").unwrap();
    fs.write(handle, 0, &pattern(20_000, 1));
    fs.write(handle, 20_000, &pattern(20_000, 2));
    let written = fs.stat("f").unwrap();
    fs.volume.fsync(handle, false).unwrap();
    fs.volume.fsync_dir(Ino::ROOT).unwrap();
    assert_eq!(fs.stat("f").unwrap(), written);
    assert_eq!(fs.killed_copy().stat("f").unwrap().size, 40_000);
}

#[test]
fn a_second_opener_is_told_who_has_the_store() {
    let fs = Fs::new();
    let again =
        Volume::open(VolumeOptions { store: fs.store().to_path_buf(), mountpoint: None, read_only: true });
    let Err(Error::StoreLocked { holder, .. }) = again else { panic!("opened twice") };
    assert!(holder.contains(&std::process::id().to_string()), "{holder}");
}

fn count_files(dir: &Path) -> usize {
    files_below(dir).len()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

#[test]
fn a_new_vector_file_that_was_written_and_not_closed_is_settled_after_a_kill() {
    let fs = Fs::new();
    let vector = fs.create("v.f32").unwrap();
    fs.write(vector, 0, &pattern(64, 1));
    let _untouched = fs.create("empty.f32").unwrap();
    let found = fs.killed_copy();
    let attribute = |path: &str, name: &[u8]| {
        let value = found.volume.getxattr(&ROOT, found.ino(path).unwrap(), name).unwrap();
        String::from_utf8(value.to_vec()).unwrap()
    };
    assert_eq!(attribute("v.f32", b"user.vexfs.status"), "indexed");
    assert_eq!(attribute("v.f32", b"user.vexfs.dim"), "16");
    assert_eq!(attribute("empty.f32", b"user.vexfs.status"), "invalid: empty file");
}

#[test]
fn a_removed_directory_that_is_open_takes_no_configuration() {
    let fs = Fs::new();
    let configure = |dir| fs.volume.setxattr(&ROOT, dir, b"user.vexfs.recall", b"0.95", XattrMode::Either);
    for parent in ["", "top/"] {
        let path = format!("{parent}d");
        fs.mkdir(&path).unwrap();
        let dir = fs.ino(&path).unwrap();
        let config = fs.open(&format!("{path}/.vexfs/config"), TRUNCATE).unwrap();
        fs.volume.write(&ROOT, config, 0, b"[index]\nrecall = 0.9\n").unwrap();
        let open = fs.volume.open_dir(&ROOT, dir).unwrap();
        fs.rmdir(&path).unwrap();
        assert!(matches!(error(configure(dir)), Error::NotFound));
        assert!(matches!(error(fs.volume.flush(&ROOT, config)), Error::NotFound));
        assert_eq!(fs.volume.getxattr(&ROOT, dir, b"user.vexfs.count").unwrap(), b"0");
        fs.volume.release(config).unwrap();
        fs.volume.release_dir(open);
        fs.mkdir("top").ok();
    }
    assert_eq!(fs.reopen().list(""), ["top"]);
}

#[test]
fn a_directory_with_a_configuration_stays_a_collection_wherever_it_is_moved() {
    let mut fs = Fs::new();
    for dir in ["plain", "own", "top"] {
        fs.mkdir(dir).unwrap();
        fs.put(&format!("{dir}/v.f32"), &pattern(64, 1));
    }
    let own = fs.ino("own").unwrap();
    // A configuration like the default is one.
    fs.volume.setxattr(&ROOT, own, b"user.vexfs.recall", b"0.95", XattrMode::Either).unwrap();
    let count = |fs: &Fs, path: &str| {
        let value = fs.volume.getxattr(&ROOT, fs.ino(path).unwrap(), b"user.vexfs.count").unwrap();
        String::from_utf8(value.to_vec()).unwrap()
    };
    fs.rename("plain", "top/plain").unwrap();
    fs.rename("own", "top/own").unwrap();
    for _ in 0..2 {
        assert_eq!(
            (count(&fs, "top"), count(&fs, "top/plain"), count(&fs, "top/own")),
            ("2".into(), "2".into(), "1".into())
        );
        fs = fs.reopen();
    }
    fs.rename("top/own", "own").unwrap();
    fs = fs.reopen();
    fs.rename("own", "top/plain/own").unwrap();
    for _ in 0..2 {
        assert_eq!((count(&fs, "top"), count(&fs, "top/plain/own")), ("2".into(), "1".into()));
        fs = fs.reopen();
    }
}
