//! A disk that is full: by the volume itself, and by somebody else.

use std::fs::{self, File};
use std::io::{ErrorKind, Result, Write};
use std::path::Path;

use super::machine::{Machine, SMALL};

/// Makes numbered files until that fails, which must be for want of room. Returns how many there are.
fn fill(dir: &Path, suffix: &str, bytes: &[u8]) -> usize {
    for number in 0.. {
        let path = dir.join(format!("{number}{suffix}"));
        let written: Result<()> =
            File::create(&path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
        if let Err(error) = written {
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{}: {error}", path.display());
            let _ = fs::remove_file(&path);
            return number;
        }
    }
    unreachable!("a disk is full at some time")
}

fn health(root: &Path) -> String {
    fs::read_to_string(root.join(".vexfs/health")).unwrap()
}

fn vector(number: usize) -> Vec<u8> {
    (0..384).flat_map(|at| ((number + at) as f32 + 0.5).to_le_bytes()).collect()
}

#[test]
fn a_full_disk_takes_removals_and_then_writes_again() {
    let machine = Machine::new();
    let _disk = machine.format("disk", &SMALL);
    let _below = machine.mount_below("disk", &SMALL).unwrap();
    let mut daemon = machine.start().unwrap();
    let root = machine.root();
    let (plain, vectors) = (root.join("plain"), root.join("vectors"));
    fs::create_dir(&plain).unwrap();
    fs::create_dir(&vectors).unwrap();
    for number in 0..200 {
        fs::write(vectors.join(format!("kept{number}.f32")), vector(number)).unwrap();
    }

    let large = fill(&plain, ".bin", &vec![7; 1 << 20]);
    assert!(large > 40, "{large} MiB on a disk of {} MiB", SMALL.disk_bytes >> 20);
    fill(&vectors, ".f32", &vector(1));
    fill(&plain, ".txt", &[8; 3000]);
    assert!(daemon.is_alive());
    assert!(health(&root).contains("\"status\":\"ok\""), "{}", health(&root));
    assert_eq!(fs::read(plain.join("3.bin")).unwrap(), vec![7; 1 << 20]);
    assert_eq!(fs::read_dir(vectors.join(".vexfs/similar/kept5.f32")).unwrap().count(), 10 + 4);

    for number in 0..large {
        fs::remove_file(plain.join(format!("{number}.bin"))).unwrap();
    }
    fs::read(root.join(".vexfs/sync")).unwrap();
    let again = fill(&plain, ".bin", &vec![9; 1 << 20]);
    assert!(again + 4 >= large, "{again} MiB of {large}");
    daemon.unmount().unwrap();
    machine.checks_store().unwrap();
}

#[test]
fn a_disk_that_somebody_else_fills_takes_removals_and_then_writes_again() {
    let machine = Machine::new();
    let _disk = machine.format("disk", &SMALL);
    let _below = machine.mount_below("disk", &SMALL).unwrap();
    let mut daemon = machine.start().unwrap();
    let root = machine.root();
    for number in 0..1000 {
        fs::write(root.join(format!("{number}.txt")), [7; 3000]).unwrap();
    }
    fs::write(root.join("large"), vec![7; 1 << 20]).unwrap();
    fs::read(root.join(".vexfs/sync")).unwrap();

    let theirs = machine.below().join("theirs");
    let mut file = File::create(&theirs).unwrap();
    for bytes in [1 << 20, 4096] {
        while file.write_all(&vec![1; bytes]).is_ok() {}
    }
    let _ = file.sync_all();
    for number in 0..900 {
        fs::remove_file(root.join(format!("{number}.txt"))).unwrap();
    }
    let refused = fs::write(root.join("more"), vec![7; 1 << 20]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    assert_eq!(fs::read(root.join("large")).unwrap(), vec![7; 1 << 20]);
    fs::rename(root.join("990.txt"), root.join("renamed.txt")).unwrap();
    assert!(health(&root).contains("\"status\":\"ok\""), "{}", health(&root));

    drop(file);
    fs::remove_file(&theirs).unwrap();
    fs::write(root.join("more"), vec![7; 1 << 20]).unwrap();
    fs::write(root.join("990.txt"), [7; 3000]).unwrap();
    assert!(daemon.is_alive());
    daemon.unmount().unwrap();
    machine.checks_store().unwrap();
}
