//! What a change or sync leaves behind that the disk has refused.

use std::path::Path;
use std::sync::Arc;

use vexfs::namespace::Ino;
use vexfs::volume::{OpenFlags, RenameMode, SetAttr, Views, Volume};
use vexfs::{Error, Result};

use crate::check::{FoundNode, list, read_tree};
use crate::cuts::temporary;
use crate::faults::all_of;
use crate::image::Image;
use crate::random::Random;
use crate::recorder::{Call, Failure, Fault, Recording};
use crate::survivors::{Names, survivors};
use crate::workload::{ROOT, WRITE, open, resolve};

const FULL: Fault = Fault { call: Call::Write, nth: 1, sticky: true, failure: Failure::Errno(libc::ENOSPC) };

fn with_volume(test: impl FnOnce(Arc<Volume>, &Recording, &Path)) {
    let store = temporary();
    let recording = Recording::start(store.path(), Image::empty());
    test(open(store.path()).unwrap(), &recording, store.path());
}

/// Does `call` while the disk is full.
fn refused<T: std::fmt::Debug>(recording: &Recording, call: impl FnOnce() -> Result<T>) {
    recording.set_fault(Some(FULL));
    let error = call().unwrap_err();
    recording.set_fault(None);
    assert!(matches!(error, Error::NoSpace), "{error}");
}

fn put(volume: &Volume, name: &str, content: &[u8]) -> Result<Ino> {
    let flags = OpenFlags { truncate: true, ..WRITE };
    let (attr, opened) = volume.create(&ROOT, Ino::ROOT, name.as_bytes(), 0o644, flags)?;
    volume.write(&ROOT, opened.handle, 0, content)?;
    volume.flush(&ROOT, opened.handle)?;
    volume.release(opened.handle)?;
    Ok(attr.ino)
}

fn get(volume: &Volume, ino: Ino) -> Vec<u8> {
    let handle = volume.open_file(&ROOT, ino, OpenFlags { write: false, ..WRITE }).unwrap().handle;
    let mut content = Vec::new();
    volume.read(&ROOT, handle, 0, u32::MAX, &mut content).unwrap();
    volume.release(handle).unwrap();
    content
}

fn rename(volume: &Volume, from: &str, to: &str) -> Result<()> {
    volume.rename(&ROOT, (Ino::ROOT, from.as_bytes()), (Ino::ROOT, to.as_bytes()), RenameMode::Replace)
}

fn vector(first: f32) -> Vec<u8> {
    (0..16).flat_map(|index| (first + index as f32).to_le_bytes()).collect()
}

/// A file that leaves its collection keeps its content where the vector was, and nobody reads it as a vector then.
#[test]
fn a_vector_keeps_its_bytes_when_it_was_not_let_back_into_its_collection() {
    with_volume(|volume, recording, store| {
        let ino = put(&volume, "a.f32", &vector(1.0)).unwrap();
        rename(&volume, "a.f32", "a.bin").unwrap();
        volume.close().unwrap();
        drop(volume);
        let volume = open(store).unwrap();
        refused(recording, || rename(&volume, "a.bin", "a.f32"));
        for number in 0..3 {
            volume.sync().unwrap();
            put(&volume, &format!("{number}.f32"), &vector(100.0)).unwrap();
        }
        assert_eq!(get(&volume, ino), vector(1.0));
        volume.close().unwrap();
    });
}

/// Space is used again after the sync that covers its removal, and not after one that covered nothing.
#[test]
fn a_sync_does_what_the_one_before_was_refused() {
    with_volume(|volume, recording, _| {
        put(&volume, "a.f32", &vector(1.0)).unwrap();
        volume.sync().unwrap();
        volume.unlink(&ROOT, Ino::ROOT, b"a.f32").unwrap();
        refused(recording, || volume.sync());
        volume.sync().unwrap();
        assert!(recording.counts().contains_key(&Call::Sync), "the removal is not on the disk");
        volume.close().unwrap();
    });
}

#[test]
fn bytes_that_were_synced_are_kept_when_they_were_not_let_go() {
    with_volume(|volume, recording, _| {
        let (attr, opened) = volume.create(&ROOT, Ino::ROOT, b"f", 0o644, WRITE).unwrap();
        volume.write(&ROOT, opened.handle, 0, &[1; 10_000]).unwrap();
        volume.fsync(opened.handle, false).unwrap();
        let cut = SetAttr { size: Some(0), ..SetAttr::default() };
        refused(recording, || volume.setattr(&ROOT, attr.ino, cut, None));
        // They move to a blob now.
        volume.write(&ROOT, opened.handle, 10_000, &[2; 10_000]).unwrap();
        let flushes = recording.counts().get(&Call::Sync).copied();
        assert!(flushes >= Some(1), "a commit names a copy that is not on the disk");
        volume.release(opened.handle).unwrap();
        volume.close().unwrap();
    });
}

/// The names of the snapshots, each of which is as it was taken.
fn sound_snapshots(volume: Arc<Volume>, files: &[(&str, &[u8])]) -> Vec<String> {
    let dir = resolve(&volume, ".vexfs/snapshots").unwrap();
    let views = Views::new(volume);
    let names: Vec<String> = list(&views, dir).unwrap().into_iter().map(|(name, ..)| name).collect();
    for name in &names {
        let root = views.lookup(&ROOT, dir, name.as_bytes()).unwrap().ino;
        let found = read_tree(&views, root).unwrap();
        for (path, want) in files {
            let FoundNode::File { content, .. } = &found.nodes[*path] else { panic!("{path} is a file") };
            assert!(content.as_deref() == Some(want), "{path} in {name} is another");
        }
    }
    names
}

/// Each of the syncs of taking or dropping a snapshot fails once.
fn with_failing_syncs(call: impl Fn(&Volume) -> Result<()>, is_there: bool) {
    let (vector_bytes, large) = (vector(1.0), vec![7; 100_000]);
    let files = [("a.f32", &vector_bytes[..]), ("large", &large[..])];
    for nth in 1.. {
        let store = temporary();
        let recording = Recording::start(store.path(), Image::empty());
        let volume = open(store.path()).unwrap();
        for (name, content) in files {
            put(&volume, name, content).unwrap();
        }
        if is_there {
            take_snapshot(&volume).unwrap();
        }
        let fault = Fault { call: Call::Sync, nth, sticky: false, failure: Failure::Errno(libc::EIO) };
        recording.set_fault(Some(fault));
        let done = call(&volume);
        recording.set_fault(None);
        // What it named is let go of and its space used again, as far as changes go on.
        let went_on = (|| {
            for (name, _) in files {
                volume.unlink(&ROOT, Ino::ROOT, name.as_bytes())?;
            }
            volume.sync()?;
            put(&volume, "b.f32", &vector(2.0))?;
            put(&volume, "c.f32", &vector(3.0))
        })();
        let tape = recording.tape();
        let cut = survivors(&tape.start, &tape.events, Names::Ordered, &mut Random(nth as u64));
        for image in [all_of(&tape), cut] {
            let left = temporary();
            image.write_to(left.path());
            let names = sound_snapshots(open(left.path()).unwrap(), &files);
            assert!(done.is_err() || names.is_empty() == is_there);
        }
        if done.is_ok() {
            went_on.unwrap();
            assert!(nth > 1, "nothing was synced");
            return;
        }
    }
}

fn take_snapshot(volume: &Volume) -> Result<()> {
    volume.mkdir(&ROOT, resolve(volume, ".vexfs/snapshots")?, b"s", 0o755).map(|_| ())
}

#[test]
fn a_snapshot_that_may_have_its_name_keeps_what_it_names() {
    with_failing_syncs(take_snapshot, false);
}

#[test]
fn a_snapshot_that_may_have_lost_its_name_keeps_what_it_names() {
    with_failing_syncs(|volume| volume.rmdir(&ROOT, resolve(volume, ".vexfs/snapshots")?, b"s"), true);
}

#[test]
fn bytes_that_cannot_be_written_are_an_error_and_a_commit_that_cannot_is_the_end_of_changes() {
    with_volume(|volume, recording, _| {
        let handle = volume.create(&ROOT, Ino::ROOT, b"f", 0o644, WRITE).unwrap().1.handle;
        volume.write(&ROOT, handle, 0, &[1; 100_000]).unwrap();
        let failing = Fault { sticky: false, failure: Failure::Errno(libc::EIO), ..FULL };
        recording.set_fault(Some(failing));
        assert!(matches!(volume.write(&ROOT, handle, 0, &[2; 1000]), Err(Error::Io(_))));
        assert_eq!(volume.refusal(), None);
        volume.write(&ROOT, handle, 0, &[3; 1000]).unwrap();
        recording.set_fault(Some(Fault { sticky: true, ..failing }));
        assert!(volume.mkdir(&ROOT, Ino::ROOT, b"d", 0o755).is_err());
        assert!(volume.refusal().is_some());
        assert!(matches!(volume.write(&ROOT, handle, 0, &[4; 1000]), Err(Error::Poisoned { .. })));
    });
}

/// A large matrix stays in its blob, which gets checksums before the commit that has vectors read from it.
#[test]
fn a_matrix_whose_close_was_refused_can_be_written_on() {
    with_volume(|volume, recording, _| {
        let (attr, opened) = volume.create(&ROOT, Ino::ROOT, b"m.fbin", 0o644, WRITE).unwrap();
        let mut content: Vec<u8> = [4000_u32, 16].into_iter().flat_map(u32::to_le_bytes).collect();
        content.extend(vector(1.0).repeat(4000));
        volume.write(&ROOT, opened.handle, 0, &content).unwrap();
        for nth in 1.. {
            recording.set_fault(Some(Fault { nth, ..FULL }));
            let closed = volume.flush(&ROOT, opened.handle);
            recording.set_fault(None);
            if closed.is_ok() {
                assert!(nth > 1, "nothing was written");
                break;
            }
            let row = vector(nth as f32);
            content[8..72].copy_from_slice(&row);
            volume.write(&ROOT, opened.handle, 8, &row).unwrap();
        }
        volume.release(opened.handle).unwrap();
        assert!(get(&volume, attr.ino) == content);
        volume.close().unwrap();
    });
}
