//! Large ordinary files, which the kernel reads and writes by itself where the daemon may let it. Everything here
//! holds without that too; that it is so is asserted for root.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::harness::{Mount, VEXFS, errno, f32_bytes, is_root, run, shell, text, wait_for};

const MIB: usize = 1 << 20;

/// A plain file of `len` bytes that is closed.
fn large(mount: &Mount, path: &str, len: usize) -> Vec<u8> {
    let content: Vec<u8> = (0..len).map(|at| (at / 4096 + at).to_le_bytes()[0]).collect();
    fs::write(mount.path(path), &content).unwrap();
    content
}

fn open(mount: &Mount, path: &str) -> File {
    OpenOptions::new().read(true).write(true).open(mount.path(path)).unwrap()
}

/// How many requests of a kind the daemon has answered.
fn answered(mount: &Mount, op: &str) -> u64 {
    let metrics = fs::read_to_string(mount.path(".vexfs/metrics")).unwrap();
    let name = format!("vexfs_fuse_ops_total{{op=\"{op}\",result=\"ok\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

#[test]
fn the_kernel_reads_and_writes_large_ordinary_files_by_itself() {
    if !is_root() {
        // The kernel lets only root do it; the other tests here run all the same.
        return;
    }
    let mount = Mount::new();
    let mut content = large(&mount, "big.bin", 2 * MIB);
    let file = open(&mount, "big.bin");
    let before = (answered(&mount, "read"), answered(&mount, "write"));
    file.write_all_at(b"new bytes", 4090).unwrap();
    content[4090..4099].copy_from_slice(b"new bytes");
    let mut read = vec![0; content.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == content);
    // What reads the metrics reads through the daemon as well.
    assert!(answered(&mount, "read") - before.0 <= 4);
    assert_eq!(answered(&mount, "write"), before.1);
}

#[test]
fn size_time_and_bytes_are_those_of_the_last_write_while_open_and_after() {
    let mut mount = Mount::new();
    let mut content = large(&mount, "big.bin", MIB);
    let path = mount.path("big.bin");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();

    let file = open(&mount, "big.bin");
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), old, "opening changes nothing");
    file.write_all_at(&[7; 10], MIB as u64 + 5).unwrap();
    content.resize(MIB + 5, 0);
    content.extend([7; 10]);
    let seen = fs::metadata(&path).unwrap();
    assert_eq!(seen.len(), content.len() as u64);
    assert!(seen.modified().unwrap() > old);

    // Others that write: at the end, by a shorter length, by a hole.
    let mut append = OpenOptions::new().append(true).open(&path).unwrap();
    append.write_all(b"end").unwrap();
    content.extend(b"end");
    assert_eq!(fs::metadata(&path).unwrap().len(), content.len() as u64);
    file.set_len(MIB as u64 / 2).unwrap();
    content.truncate(MIB / 2);
    assert_eq!(fs::metadata(&path).unwrap().len(), content.len() as u64);
    append.write_all(b"after").unwrap();
    content.extend(b"after");
    file.sync_all().unwrap();
    assert!(fs::read(&path).unwrap() == content);

    drop((file, append));
    assert!(fs::read(&path).unwrap() == content);
    let last = fs::metadata(&path).unwrap();
    assert_eq!(
        (last.len(), last.mtime_nsec()),
        (content.len() as u64, fs::metadata(&path).unwrap().mtime_nsec())
    );
    mount.remount();
    assert!(fs::read(&path).unwrap() == content);
    let again = fs::metadata(&path).unwrap();
    assert_eq!((again.len(), again.modified().unwrap()), (last.len(), last.modified().unwrap()));
}

#[test]
fn what_was_written_survives_the_death_of_the_daemon() {
    let mut mount = Mount::new();
    let mut content = large(&mount, "big.bin", MIB);
    let file = open(&mount, "big.bin");
    file.write_all_at(b"written", 123).unwrap();
    file.write_all_at(b"and longer", MIB as u64).unwrap();
    content[123..130].copy_from_slice(b"written");
    content.extend(b"and longer");
    mount.kill();
    drop(file);
    mount.start();
    assert!(fs::read(mount.path("big.bin")).unwrap() == content);
    assert_eq!(fs::metadata(mount.path("big.bin")).unwrap().len(), content.len() as u64);
}

#[test]
fn handles_of_a_file_that_grows_and_shrinks_agree() {
    let mount = Mount::new();
    fs::write(mount.path("f"), b"small").unwrap();
    // Opened while it is small, so this one goes through the page cache, and so does whoever comes beside it.
    let early = open(&mount, "f");
    early.write_all_at(&vec![1; MIB], 0).unwrap();
    let late = open(&mount, "f");
    late.write_all_at(&[2; 100], 500).unwrap();
    let mut got = [0; 100];
    early.read_exact_at(&mut got, 500).unwrap();
    assert_eq!(got, [2; 100]);
    drop((early, late));

    // Alone, it is large from the beginning; then it is emptied and written anew beside the first.
    let first = open(&mount, "f");
    first.read_exact_at(&mut got, 500).unwrap();
    assert_eq!(got, [2; 100]);
    fs::write(mount.path("f"), vec![3; 2 * MIB]).unwrap();
    first.read_exact_at(&mut got, MIB as u64).unwrap();
    assert_eq!(got, [3; 100]);
    first.write_all_at(&[4; 100], 0).unwrap();
    let read = fs::read(mount.path("f")).unwrap();
    assert!(read.len() == 2 * MIB && read[..100] == [4; 100] && read[100] == 3);

    // Unlinked, it goes on until the last has let go.
    fs::remove_file(mount.path("f")).unwrap();
    first.write_all_at(&[5; 100], 0).unwrap();
    first.read_exact_at(&mut got, 0).unwrap();
    assert_eq!((got, first.metadata().unwrap().len()), ([5; 100], 2 * MIB as u64));
}

#[test]
fn a_large_file_that_gets_a_name_of_a_vector_file_is_indexed_once_nobody_writes_it() {
    let mut mount = Mount::new();
    mount.mkdir("d");
    let rows = 600;
    let header = |rows: u32| [rows.to_le_bytes(), 128u32.to_le_bytes()].concat();
    let values: Vec<f32> = (0..rows * 128).map(|at| (at % 97) as f32 + 1.0).collect();
    let content = [header(rows), f32_bytes(&values)].concat();
    fs::write(mount.path("d/part"), &content).unwrap();
    let file = open(&mount, "d/part");
    file.write_all_at(&content[..100], 0).unwrap();
    fs::rename(mount.path("d/part"), mount.path("d/v.fbin")).unwrap();
    drop(file);
    // The kernel ends a handle some time after its last close has returned.
    wait_for("the file to be settled", || mount.try_attribute("d/v.fbin", "user.vexfs.rows").is_ok());
    assert_eq!(mount.attribute("d/v.fbin", "user.vexfs.rows"), rows.to_string());
    assert!(fs::read(mount.path("d/v.fbin")).unwrap() == content);
    mount.remount();
    assert_eq!(mount.attribute("d/v.fbin", "user.vexfs.rows"), rows.to_string());
    assert!(fs::read(mount.path("d/v.fbin")).unwrap() == content);
}

#[test]
#[expect(unsafe_code, reason = "pages that stay mapped are one of the cases")]
fn no_snapshot_shares_bytes_that_the_kernel_may_write() {
    if !is_root() {
        return;
    }
    let mount = Mount::new();
    let mut content = large(&mount, "big.bin", MIB);
    let snapshot = mount.path(".vexfs/snapshots/s");
    let refused = || errno(fs::create_dir(&snapshot)) == libc::EBUSY;
    let reader = File::open(mount.path("big.bin")).unwrap();
    assert!(refused());
    drop(reader);
    let file = open(&mount, "big.bin");
    let said = run(Command::new(VEXFS).args(["snapshot", "create"]).arg(mount.root()).arg("s"));
    let message = text(&said.stderr);
    assert!(said.status.code() == Some(5) && message.contains("128 KiB"), "{message}");
    // SAFETY: nobody else has the file.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    drop(file);
    map[5] = 0xee;
    content[5] = 0xee;
    assert!(refused(), "mapped pages outlive the descriptor");
    drop(map);
    fs::create_dir(&snapshot).unwrap();

    // What is shared is not handed over, so that nothing keeps the next snapshot away, and is written elsewhere.
    let shared = open(&mount, "big.bin");
    let second = mount.path(".vexfs/snapshots/t");
    fs::create_dir(&second).unwrap();
    shared.write_all_at(&[1; 3], 4000).unwrap();
    drop(shared);
    assert!(fs::read(snapshot.join("big.bin")).unwrap() == content);
    // The bytes of its own are the kernel's again.
    fs::remove_dir(&second).unwrap();
    wait_for("the file to be handed over", || {
        let _open = open(&mount, "big.bin");
        match fs::create_dir(&second) {
            Err(error) => error.raw_os_error() == Some(libc::EBUSY),
            Ok(()) => fs::remove_dir(&second).is_err(),
        }
    });
    open(&mount, "big.bin").write_all_at(&[2; 3], 4000).unwrap();
    assert!(fs::read(snapshot.join("big.bin")).unwrap() == content);
    content[4000..4003].fill(2);
    assert!(fs::read(mount.path("big.bin")).unwrap() == content);
}

#[test]
fn a_file_that_the_kernel_has_opens_again_whatever_became_of_it() {
    let mount = Mount::new();
    type Change = fn(&Mount) -> std::io::Result<&'static str>;
    let changes: [(&str, Change); 5] = [
        ("renamed", |mount| fs::rename(mount.path("big"), mount.path("big.f32")).map(|()| "big.f32")),
        ("linked", |mount| fs::hard_link(mount.path("big"), mount.path("big.f32")).map(|()| "big")),
        ("privileged", |mount| {
            fs::set_permissions(mount.path("big"), fs::Permissions::from_mode(0o4755)).map(|()| "big")
        }),
        ("small", |mount| {
            OpenOptions::new().write(true).open(mount.path("big"))?.set_len(5000).map(|()| "big")
        }),
        ("removed", |mount| fs::remove_file(mount.path("big")).map(|()| "")),
    ];
    for (what, change) in changes {
        for writes in [false, true] {
            let content = large(&mount, "big", 200_000);
            let first = OpenOptions::new().read(true).write(writes).open(mount.path("big")).unwrap();
            let path = match change(&mount).unwrap() {
                "" => format!("/proc/self/fd/{}", first.as_raw_fd()).into(),
                name => mount.path(name),
            };
            let len = if what == "small" { 5000 } else { content.len() };
            let second = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            second.write_all_at(b"second", 3).unwrap();
            let mut got = [0; 9];
            first.read_exact_at(&mut got, 0).unwrap();
            assert!(got == *[&content[..3], b"second"].concat(), "{what}");
            assert_eq!(fs::read(&path).unwrap().len(), len, "{what}");
            fs::write(&path, b"instead").unwrap();
            assert_eq!(first.metadata().unwrap().len(), 7, "{what}");
            assert_eq!(fs::read(&path).unwrap(), b"instead", "{what}");
            drop((first, second));
            for name in ["big", "big.f32"] {
                let _ = fs::remove_file(mount.path(name));
            }
        }
    }
}

#[test]
#[expect(unsafe_code, reason = "pages that stay mapped are what is tested")]
fn pages_that_stay_mapped_are_those_of_the_file_whatever_is_done_to_it() {
    let mount = Mount::new();
    let path = mount.path("big");
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("nothing", |_| ()),
        ("made shorter", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(50_000).unwrap()),
        ("written anew", |path| fs::write(path, vec![b'n'; 150_000]).unwrap()),
        ("emptied and written", |path| {
            File::create(path).unwrap();
            fs::write(path, b"a few bytes").unwrap();
        }),
        ("privileged", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o4755)).unwrap()),
    ];
    for (what, change) in changes {
        let releases = answered(&mount, "release");
        large(&mount, "big", 300_000);
        let file = open(&mount, "big");
        // SAFETY: only bytes are used that the file has.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        drop(file);
        wait_for("the handles to end", || answered(&mount, "release") >= releases + 2);
        change(&path);
        fs::read(&path).unwrap();
        map[0..3].copy_from_slice(b"NEW");
        assert_eq!(fs::read(&path).unwrap()[..3], *b"NEW", "{what}");
        open(&mount, "big").write_all_at(b"2nd", 4).unwrap();
        assert_eq!(map[4..7], *b"2nd", "{what}");
        drop(map);
        let content = fs::read(&path).unwrap();
        assert!(content.starts_with(b"NEW") && content[4..7] == *b"2nd", "{what}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_write_that_nobody_is_asked_about_takes_privileges_away() {
    if !is_root() {
        return;
    }
    let mount = Mount::with_options(&["-o", "allow_other"]);
    large(&mount, "big", MIB);
    let file = open(&mount, "big");
    let mode = || fs::metadata(mount.path("big")).unwrap().mode() & 0o7777;
    file.set_permissions(fs::Permissions::from_mode(0o4755)).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    assert_eq!(mode(), 0o4755);
    file.write_all_at(b"root keeps them", 0).unwrap();
    assert_eq!(mode(), 0o4755);
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 2 << 20).unwrap();
    assert_eq!(mode(), 0o4755);
    // As an ordinary user, who opens it while root has it.
    fs::set_permissions(mount.outside("."), fs::Permissions::from_mode(0o755)).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o4777)).unwrap();
    let script = "setpriv --reuid 12345 --clear-groups bash -c 'printf after 1<>big'";
    shell(&mount.root(), script);
    assert_eq!(mode(), 0o777);
    drop(file);
    assert_eq!(mode(), 0o777);
}
