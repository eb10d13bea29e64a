//! Whether the recorder sees everything, and fails what it is asked to.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use vexfs::volume::{Volume, VolumeOptions};

use crate::image::Image;
use crate::recorder::{Call, Failure, Fault, Recording};

/// Played back, the tape gives the directory byte for byte.
fn assert_complete(recording: &Recording, dir: &Path) {
    let tape = recording.tape();
    let mut image = tape.start;
    tape.events.iter().for_each(|event| image.apply(event));
    assert_eq!(image.difference(dir), None);
    let again = tempfile::tempdir().unwrap();
    image.write_to(again.path());
    assert_eq!(image.difference(again.path()), None);
}

fn open(store: &Path) -> Arc<Volume> {
    Volume::open(VolumeOptions { store: store.to_path_buf(), mountpoint: None, read_only: false }).unwrap()
}

#[test]
fn every_change_of_a_directory_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let recording = Recording::start(dir.path(), Image::empty());
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("d/e")).unwrap();
    fs::write(at("d/a"), [7; 10_000]).unwrap();
    let file = File::options().append(true).open(at("d/a")).unwrap();
    (&file).write_all(b"appended").unwrap();
    file.set_len(9_000).unwrap();
    let copy = file.try_clone().unwrap();
    drop(file);
    (&copy).write_all(b"by another descriptor").unwrap();
    fs::copy(at("d/a"), at("b")).unwrap();
    File::options().write(true).open(at("b")).unwrap().write_all_at(b"inside", 5_000).unwrap();
    fs::hard_link(at("b"), at("d/c")).unwrap();
    fs::rename(at("b"), at("d/e/b")).unwrap();
    fs::rename(at("d/e"), at("f")).unwrap();
    let mut named = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
    named.write_all(b"temporary").unwrap();
    named.persist(at("d/a")).unwrap();
    fs::write(at("g"), b"gone").unwrap();
    fs::write(at("g"), b"g").unwrap();
    fs::create_dir(at("h")).unwrap();
    fs::write(at("h/i"), b"gone").unwrap();
    fs::remove_dir_all(at("h")).unwrap();
    assert_complete(&recording, dir.path());
    let names = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 3);
}

#[test]
fn every_change_of_a_store_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let recording = Recording::start(dir.path(), Image::empty());
    for _ in 0..2 {
        open(dir.path()).close().unwrap();
    }
    drop(open(dir.path()));
    assert_complete(&recording, dir.path());
}

#[test]
fn a_fault_meets_the_call_that_it_names_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let recording = Recording::start(dir.path(), Image::empty());
    let path = dir.path().join("a");
    let file = File::create(&path).unwrap();
    let fault = |nth, sticky, failure| Some(Fault { call: Call::Write, nth, sticky, failure });
    recording.set_fault(fault(2, false, Failure::Errno(libc::EIO)));
    assert!((&file).write_all(b"1").is_ok());
    assert_eq!((&file).write_all(b"2").unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!((&file).write_all(b"3").is_ok());
    assert!(fs::write(dir.path().join("b"), b"4").is_ok());
    assert_eq!(recording.counts()[&Call::Write], 4);
    recording.set_fault(fault(1, true, Failure::Errno(libc::ENOSPC)));
    for _ in 0..2 {
        assert_eq!((&file).write_all(b"5").unwrap_err().kind(), ErrorKind::StorageFull);
    }
    assert!(fs::write(dir.path().join("c"), b"").is_ok());
    recording.set_fault(fault(1, false, Failure::Short));
    assert_eq!((&file).write_all(b"67").unwrap_err().kind(), ErrorKind::StorageFull);
    recording.set_fault(None);
    assert_eq!(fs::read(&path).unwrap(), b"136");
    assert_complete(&recording, dir.path());
}
