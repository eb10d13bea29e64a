//! Stores of each format version, as they were written then.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use vexfs::Error;
use vexfs::volume::check::{Repair, fsck};
use vexfs::volume::{Volume, VolumeOptions};

use crate::support::*;

/// Unpacks the store of a version. `scripts/make_fixture.sh` has made it.
fn unpacked(version: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let archive =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/v{version}/store.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--no-same-owner", "-xzpf"]).arg(archive).arg("-C").arg(dir.path());
    assert!(tar.status().unwrap().success());
    dir
}

fn f32s(values: [f32; 4]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn a_store_of_version_2_is_sound_opens_and_is_searched_and_is_one_of_this_version_then() {
    opens_and_is_searched(2);
}

#[test]
fn stores_of_versions_3_and_4_are_sound_open_and_are_searched() {
    for version in [3, 4] {
        let dir = opens_and_is_searched(version);
        // Its large ordinary file was at rest.
        let table = dir.path().join("store/blobs/01/0000000000000001.sums");
        assert_eq!(fs::read(table).unwrap()[8], 2);
    }
}

fn opens_and_is_searched(version: u32) -> TempDir {
    let dir = unpacked(version);
    let store = dir.path().join("store");
    let says = |version: u32| {
        let head = fs::read_to_string(dir.path().join("store/VEXFS")).unwrap();
        assert!(head.starts_with(&format!("VexFS store\nversion {version}\n")), "{head}");
    };
    says(version);
    let report = fsck(&store, Repair::No).unwrap();
    assert!(report.findings.is_empty() && !report.ended_uncleanly, "{report:#?}");
    assert_eq!((report.counted.vectors, report.counted.blobs), (4401, 2));
    let volume = Volume::open(VolumeOptions { store, mountpoint: None, read_only: false }).unwrap();
    let fs = Fs { volume, store: tempfile::tempdir().unwrap() };
    // A graph of an older version is built anew: this waits for it.
    fs.volume.barrier().unwrap();
    for i in 0..100u8 {
        let vector =
            [f32::from(i), f32::from((u16::from(i) * u16::from(i) % 17) as u8), f32::from(i % 5), 1.0];
        assert_eq!(fs.get(&format!("docs/{i:02}.f32")).unwrap(), f32s(vector));
    }
    let similar = |path: &str, name: &[u8]| {
        String::from_utf8(fs.volume.getxattr(&ROOT, fs.ino(path).unwrap(), name).unwrap().to_vec()).unwrap()
    };
    // (10, 15, 0, 1) is nearest to (7, 15, 2, 1), by 3 and 2.
    assert_eq!(similar("docs/10.f32", b"user.vexfs.similar.1"), format!("{}\t07.f32\n", 13f32.sqrt()));
    assert_eq!(similar("docs/10.f32", b"user.vexfs.status"), "indexed");
    assert!(similar("docs/text.vec", b"user.vexfs.similar.1").ends_with("\t99.f32\n"));
    assert!(similar("rows/below/bad.f32", b"user.vexfs.status").starts_with("invalid"));
    assert_eq!(fs.get("rows/all.fbin").unwrap().len(), 8 + 4300 * 32);
    assert_eq!(fs.get("plain/large.bin").unwrap(), (0..=255u8).cycle().take(51_200).collect::<Vec<_>>());
    assert_eq!(fs.get("plain/linked.txt").unwrap(), b"a note\n");
    let note = fs.stat("plain/note.txt").unwrap();
    assert_eq!(
        (note.nlink, note.mode, note.mtime.secs, note.mtime.nanos),
        (2, 0o640, 1_500_000_000, 123_456_789)
    );
    assert_eq!(similar("plain/linked.txt", b"user.colour"), "blue");
    fs.volume.close().unwrap();
    says(4);
    dir
}

#[test]
fn other_versions_are_refused_with_both_numbers() {
    let dir = unpacked(2);
    let store = dir.path().join("store");
    let head = fs::read_to_string(store.join("VEXFS")).unwrap();
    for other in [1, 5, 4_294_967_295u32] {
        fs::write(store.join("VEXFS"), head.replace("version 2", &format!("version {other}"))).unwrap();
        let options = VolumeOptions { store: store.clone(), mountpoint: None, read_only: false };
        for error in [Volume::open(options).map(drop).unwrap_err(), fsck(&store, Repair::Yes).unwrap_err()] {
            assert!(matches!(error, Error::Version { expected: 4, got, .. } if got == other), "{error}");
            let sentence = error.to_string();
            assert!(
                sentence.ends_with(&format!("format version {other}, this program reads 4")),
                "{sentence}"
            );
        }
    }
}
