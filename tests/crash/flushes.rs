//! How many flushes of the disk a promise costs.

use vexfs::namespace::Ino;
use vexfs::volume::{Handle, SyncMode, Volume};

use crate::image::Image;
use crate::recorder::{Call, Recording};
use crate::workload::{ROOT, WRITE, open};

/// Times that each is measured: the thread that syncs every few seconds may come between one of them.
const TRIES: usize = 9;

fn create(volume: &Volume, name: &str) -> Handle {
    volume.create(&ROOT, Ino::ROOT, name.as_bytes(), 0o644, WRITE).unwrap().1.handle
}

/// Flushes during `call`, most often.
fn flushes(recording: &Recording, mut call: impl FnMut(usize)) -> usize {
    let mut counts: Vec<usize> = (0..TRIES)
        .map(|number| {
            recording.set_fault(None);
            call(number);
            recording.counts().get(&Call::Sync).copied().unwrap_or(0)
        })
        .collect();
    counts.sort_unstable();
    counts[TRIES / 2]
}

fn with_volume(test: impl FnOnce(&Volume, &Recording)) {
    let store = tempfile::tempdir().unwrap();
    let recording = Recording::start(store.path(), Image::empty());
    let volume = open(store.path()).unwrap();
    test(&volume, &recording);
    volume.close().unwrap();
}

#[test]
fn an_fsync_costs_no_more_flushes_than_there_are_places_to_flush() {
    with_volume(|volume, recording| {
        let small = create(volume, "small");
        let in_the_catalog = flushes(recording, |number| {
            volume.write(&ROOT, small, 0, &[number as u8; 4096]).unwrap();
            volume.fsync(small, false).unwrap();
        });
        assert_eq!(in_the_catalog, 1, "content in the catalog: the journal");

        let large = create(volume, "large");
        volume.write(&ROOT, large, 0, &[1; 100_000]).unwrap();
        volume.fsync(large, false).unwrap();
        let in_a_blob = flushes(recording, |number| {
            volume.write(&ROOT, large, 0, &[number as u8; 4096]).unwrap();
            volume.fsync(large, false).unwrap();
        });
        assert_eq!(in_a_blob, 2, "content in a blob: the blob, then size and times in the journal");
        let grown = flushes(recording, |number| {
            volume.write(&ROOT, large, 100_000 + number as u64 * 4096, &[2; 4096]).unwrap();
            volume.fsync(large, true).unwrap();
        });
        assert_eq!(grown, 2, "the same when it grows");

        let named = flushes(recording, |number| {
            volume.mkdir(&ROOT, Ino::ROOT, format!("d{number}").as_bytes(), 0o755).unwrap();
            volume.fsync_dir(Ino::ROOT).unwrap();
        });
        assert_eq!(named, 1, "names: the journal");

        let vectors = volume.mkdir(&ROOT, Ino::ROOT, b"v", 0o755).unwrap().ino;
        let in_a_slot = flushes(recording, |number| {
            let name = format!("{number}.f32");
            let handle = volume.create(&ROOT, vectors, name.as_bytes(), 0o644, WRITE).unwrap().1.handle;
            volume.write(&ROOT, handle, 0, &[64 + number as u8; 64]).unwrap();
            volume.flush(&ROOT, handle).unwrap();
            volume.fsync(handle, false).unwrap();
            volume.release(handle).unwrap();
        });
        assert_eq!(in_a_slot, 2, "a vector: the segment, then the journal");

        let nothing = flushes(recording, |_| volume.fsync(large, false).unwrap());
        assert_eq!(nothing, 0, "nothing changed");
        volume.release(small).unwrap();
        volume.release(large).unwrap();
    });
}

#[test]
fn a_volume_that_syncs_always_flushes_before_it_acknowledges() {
    with_volume(|volume, recording| {
        volume.set_sync_mode(SyncMode::Always);
        volume.acknowledge().unwrap();
        let named = flushes(recording, |number| {
            volume.mkdir(&ROOT, Ino::ROOT, format!("d{number}").as_bytes(), 0o755).unwrap();
            volume.acknowledge().unwrap();
        });
        assert_eq!(named, 1, "names: the journal");
        let large = create(volume, "large");
        volume.write(&ROOT, large, 0, &[1; 100_000]).unwrap();
        volume.acknowledge().unwrap();
        let in_place = flushes(recording, |number| {
            volume.write(&ROOT, large, 0, &[number as u8; 4096]).unwrap();
            volume.acknowledge().unwrap();
        });
        assert_eq!(in_place, 1, "written in place: the blob");
        assert_eq!(flushes(recording, |_| volume.acknowledge().unwrap()), 0, "nothing changed");
        volume.release(large).unwrap();
    });
}

#[test]
fn a_volume_that_syncs_by_itself_does_not_flush_for_an_fsync() {
    with_volume(|volume, recording| {
        volume.set_sync_mode(SyncMode::Off);
        let file = create(volume, "file");
        let synced = flushes(recording, |number| {
            volume.write(&ROOT, file, 0, &[number as u8; 4096]).unwrap();
            volume.fsync(file, false).unwrap();
            volume.fsync_dir(Ino::ROOT).unwrap();
            volume.acknowledge().unwrap();
        });
        assert_eq!(synced, 0);
        let asked = flushes(recording, |number| {
            volume.write(&ROOT, file, 0, &[number as u8; 4096]).unwrap();
            volume.sync().unwrap();
        });
        assert_eq!(asked, 1);
        volume.release(file).unwrap();
    });
}
