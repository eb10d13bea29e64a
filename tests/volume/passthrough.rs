//! Large files that the kernel writes by itself, beside snapshots. The test is the kernel: it writes into the blob that
//! it is handed.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vexfs::Error;
use vexfs::volume::Views;

use crate::support::{Fs, READ, ROOT, WRITE};

/// A stamp is at the front of each of these many bytes.
const BLOCK: usize = 4096;
const BLOCKS: usize = 64;

/// Snapshots that are taken.
const SNAPSHOTS: usize = 8;

const PATIENCE: Duration = Duration::from_secs(60);

/// A content that is all of one moment.
fn stamped(stamp: u64) -> Vec<u8> {
    let block = [stamp.to_le_bytes().to_vec(), vec![7; BLOCK - 8]].concat();
    block.repeat(BLOCKS)
}

fn stamps(content: &[u8]) -> Vec<u64> {
    content.chunks(BLOCK).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap())).collect()
}

/// Writes the file over and over: as the kernel, where it is handed the blob. Counts both ways.
fn write_on(fs: &Fs, stop: &AtomicBool, rounds: &AtomicU64) -> (u64, u64) {
    let ino = fs.ino("big.bin").unwrap();
    let (mut backed, mut asked) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let stamp = rounds.fetch_add(1, Ordering::Relaxed) + 1;
        let opened = fs.volume.open_file(&ROOT, ino, WRITE).unwrap();
        match &opened.backing {
            Some(blob) => {
                for block in 0..BLOCKS {
                    blob.write_all_at(&stamp.to_le_bytes(), (block * BLOCK) as u64).unwrap();
                }
                backed += 1;
            }
            None => {
                let content = stamped(stamp);
                let done = fs.volume.write(&ROOT, opened.handle, 0, &content).unwrap();
                assert_eq!(done as usize, content.len());
                asked += 1;
            }
        }
        let handle = opened.handle;
        drop(opened);
        fs.close(handle);
        // Somebody else may have it for a moment.
        std::thread::yield_now();
    }
    (backed, asked)
}

/// The file in a snapshot.
fn in_snapshot(views: &Views, name: &str) -> Vec<u64> {
    let ino = [".vexfs", "snapshots", name, "big.bin"]
        .iter()
        .try_fold(vexfs::namespace::Ino::ROOT, |dir, name| {
            Ok::<_, Error>(views.lookup(&ROOT, dir, name.as_bytes())?.ino)
        })
        .unwrap();
    let handle = views.open_file(&ROOT, ino, READ).unwrap().handle;
    let mut bytes = Vec::new();
    views.read(&ROOT, handle, 0, u32::MAX, &mut bytes).unwrap();
    views.release(handle).unwrap();
    stamps(&bytes)
}

#[test]
fn a_snapshot_never_changes_while_the_kernel_writes_the_file_by_itself() {
    let fs = Fs::new();
    fs.volume.set_passthrough(true);
    fs.put("big.bin", &stamped(0));
    let views = Views::new(fs.volume.clone());
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let (backed, asked) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&fs, &stop, &rounds));
        for number in 0..SNAPSHOTS {
            let name = format!("s{number}");
            let deadline = Instant::now() + PATIENCE;
            loop {
                match fs.mkdir(&format!(".vexfs/snapshots/{name}")) {
                    Ok(_) => break,
                    Err(Error::Busy) => assert!(Instant::now() < deadline, "no snapshot in {PATIENCE:?}"),
                    Err(error) => panic!("{error}"),
                }
            }
            let first = in_snapshot(&views, &name);
            let seen = rounds.load(Ordering::Relaxed);
            while rounds.load(Ordering::Relaxed) < seen + 5 {
                assert!(Instant::now() < deadline && !writer.is_finished());
                std::thread::yield_now();
            }
            assert!(first.iter().all(|stamp| *stamp == first[0]), "{name}: half of a write: {first:?}");
            assert_eq!(in_snapshot(&views, &name), first, "{name} has changed");
            if number % 2 == 0 {
                fs.rmdir(&format!(".vexfs/snapshots/{name}")).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    println!("{backed} times handed over, {asked} times written through the volume");
    assert!(backed > 0 && asked > 0, "{backed} handed over, {asked} not");
    drop(views);
    fs.shut();
}

#[test]
fn vectors_of_a_file_that_may_still_be_written_unseen_are_read_from_a_copy() {
    let fs = Fs::new();
    fs.volume.set_passthrough(true);
    let status = |path: &str| {
        let status = fs.volume.getxattr(&ROOT, fs.ino(path).unwrap(), b"user.vexfs.status").unwrap();
        String::from_utf8(status.to_vec()).unwrap()
    };
    let blobs = || {
        fs.volume.sync().unwrap();
        let dirs = std::fs::read_dir(fs.store().join("blobs")).unwrap();
        dirs.flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap())
            .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|kind| kind == "blob"))
            .count()
    };
    let (rows, dim) = (5000_u32, 16_u32);
    let content: Vec<u8> = [rows, dim]
        .into_iter()
        .chain((0..rows * dim).map(|_| 1f32.to_bits()))
        .flat_map(u32::to_le_bytes)
        .collect();
    let end = content.len() as u64 - 4;
    let nan = f32::NAN.to_le_bytes();
    for (name, is_valid) in [("sound", true), ("refused", false)] {
        let before = format!("{name}.bin");
        fs.put(&before, &content);
        let opened = fs.volume.open_file(&ROOT, fs.ino(&before).unwrap(), WRITE).unwrap();
        // As long as it lives, it is as if pages were mapped.
        let blob = opened.backing.clone().unwrap();
        if !is_valid {
            blob.write_all_at(&nan, end).unwrap();
        }
        fs.close(opened.handle);
        let had = blobs();
        let after = format!("{name}.fbin");
        fs.rename(&before, &after).unwrap();
        blob.write_all_at(&nan, end).unwrap();
        assert_eq!(status(&after).starts_with("invalid: row 4999"), !is_valid, "{}", status(&after));
        assert_eq!(fs.get(&after).unwrap() == content, is_valid);
        assert_eq!(blobs(), had, "what is not used is given up");
    }
    fs.shut();
}
