//! A disk that is full: by the volume itself, and by somebody else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Result, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
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
    take_the_rest(&theirs);
    for number in 0..900 {
        let removed = fs::remove_file(root.join(format!("{number}.txt")));
        removed.unwrap_or_else(|error| panic!("{number}: {error}\n{}", machine.said()));
    }
    let refused = fs::write(root.join("more"), vec![7; 1 << 20]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    assert_eq!(fs::read(root.join("large")).unwrap(), vec![7; 1 << 20]);
    fs::rename(root.join("990.txt"), root.join("renamed.txt")).unwrap();
    assert!(health(&root).contains("\"status\":\"ok\""), "{}", health(&root));

    fs::remove_file(&theirs).unwrap();
    fs::write(root.join("more"), vec![7; 1 << 20]).unwrap();
    fs::write(root.join("990.txt"), [7; 3000]).unwrap();
    assert!(daemon.is_alive());
    daemon.unmount().unwrap();
    machine.checks_store().unwrap();
}

#[test]
fn mapped_pages_that_a_full_disk_does_not_take_are_told_of() {
    let machine = Machine::new();
    let _disk = machine.format("disk", &SMALL);
    let _below = machine.mount_below("disk", &SMALL).unwrap();
    let mut daemon = machine.start().unwrap();
    // A name that keeps the kernel from writing it by itself.
    let path = machine.root().join("holes.vec");
    fs::write(&path, [7; 1 << 20]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    #[expect(unsafe_code, reason = "a map is what is tested")]
    // SAFETY: the file is not cut off while it is mapped.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();

    // Room for a part of what the kernel writes in one request: no further one fails.
    let theirs = machine.below().join("theirs");
    take_the_rest(&theirs);
    let theirs = File::options().write(true).open(theirs).unwrap();
    theirs.set_len(theirs.metadata().unwrap().len() - (300 << 10)).unwrap();
    theirs.sync_all().unwrap();
    map[7 << 20..].fill(9);
    match map.flush() {
        Err(error) => assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}"),
        // Somebody has given back what was needed.
        Ok(()) => {
            let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
            let mut bytes = vec![0; 1 << 20];
            direct.read_exact_at(&mut bytes, 7 << 20).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 9), "msync said that it was there");
        }
    }
    assert!(daemon.is_alive());
    drop((map, file));
    daemon.unmount().unwrap();
}

/// Takes all that is left of the disk below the store.
fn take_the_rest(path: &Path) {
    let mut file = File::create(path).unwrap();
    for bytes in [1 << 20, 4096] {
        while file.write_all(&vec![1; bytes]).is_ok() {}
    }
    let _ = file.sync_all();
}

/// Content of a small file, which the catalog keeps: no two are alike.
fn small(round: usize, number: usize) -> Vec<u8> {
    (0..12_000_usize).map(|at| (at * 31 + number * 7 + round * 13 + at / 256) as u8).collect()
}

/// Everything is done to a full disk that changes something, while the catalog has to write its tables; then there is
/// room again, and the same mount goes on.
#[test]
fn a_disk_that_was_full_in_every_way_is_written_again_without_a_remount() {
    let machine = Machine::new();
    let _disk = machine.format("disk", &SMALL);
    let _below = machine.mount_below("disk", &SMALL).unwrap();
    let mut daemon = machine.start().unwrap();
    let root = machine.root();
    let theirs = machine.below().join("theirs");
    let mut kept = BTreeMap::new();
    let mut refused = 0;
    for round in 0..4 {
        let dir = root.join(format!("round{round}"));
        fs::create_dir(&dir).unwrap();
        let mut write = |name: String, bytes: Vec<u8>| {
            let path = dir.join(name);
            let written = File::create(&path).and_then(|mut file| file.write_all(&bytes));
            match written {
                Ok(()) => drop(kept.insert(path, bytes)),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StorageFull, "{}: {error}", path.display());
                    let _ = fs::remove_file(&path);
                    refused += 1;
                }
            }
        };
        // The catalog writes a table after 8 MiB of small files; the last of them come to a disk that is full.
        for number in 0..560 {
            write(format!("{number}.txt"), small(round, number));
        }
        take_the_rest(&theirs);
        for number in 560..900 {
            write(format!("{number}.txt"), small(round, number));
        }
        write("large.bin".into(), vec![7; 4 << 20]);
        for number in 0..20 {
            write(format!("{number}.f32"), vector(number));
        }
        let deep = fs::create_dir(dir.join("deep"));
        assert!(deep.is_ok() || deep.unwrap_err().kind() == ErrorKind::StorageFull);
        assert!(daemon.is_alive());
        assert!(health(&root).contains("\"status\":\"ok\""), "{}\n{}", health(&root), machine.said());
        for (path, bytes) in kept.iter().step_by(37) {
            assert!(fs::read(path).unwrap() == *bytes, "{}", path.display());
        }

        fs::remove_file(&theirs).unwrap();
        for number in 0..100 {
            let path = dir.join(format!("{number}.txt"));
            fs::remove_file(&path).unwrap();
            kept.remove(&path);
        }
        for number in 900..960 {
            let path = dir.join(format!("{number}.txt"));
            fs::write(&path, small(round, number)).unwrap_or_else(|error| {
                panic!("{error} in round {round}, {}\n{}", health(&root), machine.said())
            });
            kept.insert(path, small(round, number));
        }
        fs::write(dir.join("again.f32"), vector(round)).unwrap();
        fs::read(root.join(".vexfs/sync")).unwrap();
    }
    let revivals = machine.said().matches("the catalog was opened anew").count();
    println!("{refused} writes refused, {revivals} times opened anew, {} files kept", kept.len());
    assert!(refused > 0 && revivals > 0, "{refused} refused, {revivals} opened anew");
    daemon.unmount().unwrap();
    machine.checks_store().unwrap();
    let daemon = machine.start().unwrap();
    for (path, bytes) in &kept {
        assert!(fs::read(path).unwrap() == *bytes, "{}", path.display());
    }
    daemon.unmount().unwrap();
}
