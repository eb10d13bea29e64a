//! What a change or sync leaves behind that the disk has refused.

use std::path::Path;
use std::sync::Arc;

use vexfs::namespace::Ino;
use vexfs::volume::{OpenFlags, RenameMode, SetAttr, Volume};
use vexfs::{Error, Result};

use crate::image::Image;
use crate::recorder::{Call, Failure, Fault, Recording};
use crate::workload::{ROOT, open};

const FULL: Fault = Fault { call: Call::Write, nth: 1, sticky: true, failure: Failure::Errno(libc::ENOSPC) };

const WRITE: OpenFlags =
    OpenFlags { read: true, write: true, truncate: false, append: false, exclusive: false };

fn with_volume(test: impl FnOnce(Arc<Volume>, &Recording, &Path)) {
    let store = tempfile::tempdir().unwrap();
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
