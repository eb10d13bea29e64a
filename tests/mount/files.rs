//! The content of files: reads, writes, holes, sizes, maps, and handles that outlive names.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{Mmap, MmapMut};
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::unistd::{Whence, lseek};

use crate::harness::{Mount, Random, errno, f32_bytes, is_root, run, shell, text, wait_for};

/// Content up to this size lies in the catalog, larger content in a blob or, when it is a vector, in a slot.
const INLINE_MAX: u64 = 16 << 10;

/// Bytes that show where they belong.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn content_of_every_size_survives_a_remount() {
    let mut mount = Mount::new();
    let sizes = [
        0,
        1,
        511,
        4095,
        4096,
        4097,
        16383,
        16384,
        16385,
        65536,
        131_071,
        135_168,
        135_169,
        1 << 20,
        3_000_001,
    ];
    for len in sizes {
        fs::write(mount.path(format!("f{len}")), pattern(len as u64, len)).unwrap();
    }
    for _ in 0..2 {
        for len in sizes {
            let path = mount.path(format!("f{len}"));
            assert_eq!(size(&path), len as u64);
            assert!(fs::read(&path).unwrap() == pattern(len as u64, len), "{len} bytes");
        }
        mount.remount();
    }
}

#[test]
fn reads_and_writes_at_odd_offsets_agree_with_a_model() {
    let seed = 0x5eed_f11e;
    let mount = Mount::new();
    // One crosses from the catalog to a blob, one is a vector file that keeps being rewritten.
    for (name, reach) in [("small", 6_000), ("crossing", 40_000), ("large", 700_000), ("vector.f32", 9_000)] {
        let mut random = Random(seed);
        let path = mount.path(name);
        let mut file = open(&path);
        let mut model: Vec<u8> = Vec::new();
        for step in 0..150 {
            let offset = usize::try_from(random.below(reach)).unwrap();
            let len = usize::try_from(random.below(reach / 3) + 1).unwrap();
            match random.below(10) {
                0..4 => {
                    let data = pattern(random.next(), len);
                    file.write_all_at(&data, offset as u64).unwrap();
                    model.resize(model.len().max(offset + len), 0);
                    model[offset..offset + len].copy_from_slice(&data);
                }
                4..7 => {
                    let mut got = vec![0; len];
                    let count = file.read_at(&mut got, offset as u64).unwrap();
                    let want = model.get(offset..).unwrap_or_default();
                    let want = &want[..want.len().min(len)];
                    assert!(
                        got[..count] == *want,
                        "{name}, seed {seed:#x}, step {step}: read {offset}+{len}"
                    );
                }
                7 => {
                    file.set_len(offset as u64).unwrap();
                    model.resize(offset, 0);
                }
                8 => {
                    drop(file);
                    file = open(&path);
                }
                _ => {
                    file.sync_data().unwrap();
                    assert_eq!(size(&path), model.len() as u64, "{name}, seed {seed:#x}, step {step}");
                }
            }
        }
        drop(file);
        assert!(fs::read(&path).unwrap() == model, "{name}, seed {seed:#x}: the end");
    }
}

#[test]
fn sparse_writes_read_as_zeroes_between() {
    let mount = Mount::new();
    for at in [100, INLINE_MAX - 1, INLINE_MAX + 1, 5 << 20] {
        let path = mount.path(format!("sparse-{at}"));
        let file = open(&path);
        file.write_all_at(b"end", at).unwrap();
        assert_eq!(size(&path), at + 3);
        let content = fs::read(&path).unwrap();
        assert!(content[..usize::try_from(at).unwrap()].iter().all(|&byte| byte == 0));
        assert!(content.ends_with(b"end"));
    }
    let blocks = fs::metadata(mount.path(format!("sparse-{}", 5 << 20))).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks for 3 bytes");
}

#[test]
fn truncation_goes_up_and_down_across_every_limit() {
    let mount = Mount::new();
    let sizes = [10, INLINE_MAX, INLINE_MAX + 1, 3, 200_000, INLINE_MAX - 1, 0, 7, 1 << 20, 5];
    for (name, first) in [("plain", pattern(1, 300)), ("vector.f32", f32_bytes(&[0.5; 300]))] {
        let path = mount.path(name);
        fs::write(&path, &first).unwrap();
        let mut model = first;
        for to in sizes {
            File::options().write(true).open(&path).unwrap().set_len(to).unwrap();
            model.resize(usize::try_from(to).unwrap(), 0);
            assert!(fs::read(&path).unwrap() == model, "{name} truncated to {to}");
        }
    }
    let path = mount.path("plain");
    fs::write(&path, b"0123456789").unwrap();
    let file = File::options().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(size(&path), 0, "O_TRUNC");
    drop(file);
    shell(&mount.root(), "echo text > plain; truncate -s +3 plain; truncate -s -5 plain");
    assert_eq!(fs::read(&path).unwrap(), b"tex");
    assert_eq!(errno(File::open(&path).unwrap().set_len(1)), libc::EINVAL, "a handle for reading");
}

#[test]
fn overwriting_a_part_of_a_vector_file_changes_only_that_part() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/q.f32", &[0.0, 1.0, 0.0]);
    mount.put("docs/a.f32", &[1.0, 0.0, 0.0]);
    let file = open(&mount.path("docs/a.f32"));
    file.write_all_at(&1f32.to_le_bytes(), 4).unwrap();
    drop(file);
    assert_eq!(fs::read(mount.path("docs/a.f32")).unwrap(), f32_bytes(&[1.0, 1.0, 0.0]));
    assert_eq!(mount.attribute("docs/a.f32", "user.vexfs.vector"), "1,1,0");
    let big: Vec<f32> = (0..30_000u16).map(|i| f32::from(i) + 1.0).collect();
    mount.mkdir("wide");
    let bytes = f32_bytes(&big);
    let rows = [&2u32.to_le_bytes()[..], &15_000u32.to_le_bytes(), &bytes].concat();
    fs::write(mount.path("wide/a.fbin"), &rows).unwrap();
    let file = open(&mount.path("wide/a.fbin"));
    file.write_all_at(&(-1f32).to_le_bytes(), 8).unwrap();
    drop(file);
    let mut want = rows;
    want[8..12].copy_from_slice(&(-1f32).to_le_bytes());
    assert!(fs::read(mount.path("wide/a.fbin")).unwrap() == want);
    let row = fs::read(mount.path("wide/.vexfs/rows/a.fbin/000000.f32")).unwrap();
    assert!(row == want[8..60_008]);
}

#[test]
fn appends_of_two_handles_do_not_overwrite_each_other() {
    let mount = Mount::new();
    for (name, lines) in [("small.log", 20), ("large.log", 1500)] {
        let path = mount.path(name);
        let appender = || File::options().append(true).create(true).open(&path).unwrap();
        let (mut a, mut b) = (appender(), appender());
        for i in 0..lines {
            writeln!(a, "a{i:06}-------").unwrap();
            writeln!(b, "b{i:06}-------").unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2 * lines);
        for (i, pair) in text.lines().collect::<Vec<_>>().chunks(2).enumerate() {
            assert_eq!(pair, [format!("a{i:06}-------"), format!("b{i:06}-------")]);
        }
    }
}

#[test]
fn processes_that_append_at_once_lose_nothing() {
    let mount = Mount::new();
    shell(
        &mount.root(),
        "for who in a b c; do (for i in $(seq 200); do echo $who$i >> log; done) & done; wait",
    );
    assert_eq!(shell(&mount.root(), "sort log | uniq | wc -l; wc -l < log"), "600\n600\n");
}

#[test]
fn two_handles_see_each_others_writes_at_once() {
    let mount = Mount::new();
    let path = mount.path("f");
    let (writer, mut reader) = (
        open(&path),
        File::open({
            fs::write(&path, b"").unwrap();
            &path
        })
        .unwrap(),
    );
    for len in [10usize, 9000, 40_000] {
        writer.write_all_at(&pattern(len as u64, len), 0).unwrap();
        reader.seek(SeekFrom::Start(0)).unwrap();
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert!(got == pattern(len as u64, len), "{len} bytes");
    }
}

#[test]
fn preallocation_reserves_zeroes_and_punches() {
    let mount = Mount::new();
    for (name, unit) in [("small", 100i64), ("large", 1 << 17)] {
        let path = mount.path(name);
        let file = open(&path);
        let len = usize::try_from(unit).unwrap() * 4;
        file.write_all_at(&vec![1; len], 0).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, unit * 6).unwrap();
        assert_eq!(size(&path), 6 * unit as u64);
        fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, unit * 8).unwrap();
        assert_eq!(size(&path), 6 * unit as u64);
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, punch, unit, unit).unwrap();
        fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, unit * 3 + 7, 5).unwrap();
        let mut want = vec![1; len];
        want[len / 4..len / 2].fill(0);
        want[len * 3 / 4 + 7..][..5].fill(0);
        want.resize(len / 4 * 6, 0);
        assert!(fs::read(&path).unwrap() == want, "{name}");
        let past = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        fallocate(&file, past, unit * 6, unit).unwrap();
        assert_eq!(size(&path), 7 * unit as u64);
        let collapse = fallocate(&file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
        assert_eq!(collapse, Err(nix::Error::EOPNOTSUPP));
        assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 0), Err(nix::Error::EINVAL));
    }
}

#[test]
fn data_and_holes_are_found() {
    let mount = Mount::new();
    let path = mount.path("f");
    let file = open(&path);
    file.set_len(4 << 20).unwrap();
    file.write_all_at(&[1; 1 << 16], 1 << 20).unwrap();
    let seek = |at, whence| lseek(&file, at, whence);
    assert_eq!(seek(0, Whence::SeekData), Ok(1 << 20));
    assert_eq!(seek(1 << 20, Whence::SeekHole), Ok((1 << 20) + (1 << 16)));
    assert_eq!(seek(0, Whence::SeekHole), Ok(0));
    assert_eq!(seek(2 << 20, Whence::SeekData), Err(nix::Error::ENXIO));
    assert_eq!(seek(4 << 20, Whence::SeekHole), Err(nix::Error::ENXIO));
    let small = open(&mount.path("small"));
    small.write_all_at(b"content", 0).unwrap();
    assert_eq!(lseek(&small, 3, Whence::SeekData), Ok(3));
    assert_eq!(lseek(&small, 3, Whence::SeekHole), Ok(7));
    assert_eq!(lseek(&small, 7, Whence::SeekData), Err(nix::Error::ENXIO));
    // What cp does with them.
    shell(&mount.root(), "cp --sparse=auto f copy && cmp f copy");
    assert!(fs::metadata(mount.path("copy")).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn ranges_are_copied_inside_the_mount() {
    let mount = Mount::new();
    let content = pattern(3, 300_000);
    fs::write(mount.path("from"), &content).unwrap();
    let (from, to) = (File::open(mount.path("from")).unwrap(), open(&mount.path("to")));
    let (mut at, mut into, mut left) = (1000i64, 7i64, 250_000usize);
    while left > 0 {
        let copied = copy_file_range(&from, Some(&mut at), &to, Some(&mut into), left).unwrap();
        assert!(copied > 0, "{left} bytes are left");
        left -= copied;
    }
    let mut want = vec![0; 7];
    want.extend(&content[1000..251_000]);
    assert!(fs::read(mount.path("to")).unwrap() == want);
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 2.0]);
    shell(&mount.root(), "cp docs/a.f32 docs/b.f32; cp --reflink=auto from again; cmp from again");
    assert_eq!(mount.similar("docs/a.f32"), ["b.f32"]);
    let end = copy_file_range(&from, Some(&mut 300_000), &to, Some(&mut 0), 10);
    assert_eq!(end, Ok(0));
}

#[expect(unsafe_code, reason = "a map is what is tested")]
fn map_shared(file: &File) -> MmapMut {
    // SAFETY: the file is on a mount of this test, and nobody truncates it while the map lives.
    unsafe { MmapMut::map_mut(file) }.unwrap()
}

#[expect(unsafe_code, reason = "a map is what is tested")]
fn map(file: &File) -> Mmap {
    // SAFETY: the file is on a mount of this test, and nobody truncates it while the map lives.
    unsafe { Mmap::map(file) }.unwrap()
}

#[test]
fn a_shared_map_writes_to_an_ordinary_file() {
    let mut mount = Mount::new();
    for (name, len) in [("small", 5000usize), ("large", 100_000)] {
        let path = mount.path(name);
        fs::write(&path, vec![1; len]).unwrap();
        let file = open(&path);
        let mut view = map_shared(&file);
        drop(file);
        view[..3].copy_from_slice(b"map");
        view[len - 3..].copy_from_slice(b"end");
        view.flush().unwrap();
        let content = fs::read(&path).unwrap();
        assert!(content.starts_with(b"map") && content.ends_with(b"end"), "{name} after msync");
        view[3] = b'2';
        drop(view);
        wait_for("the map's last page", || fs::read(&path).unwrap()[..4] == *b"map2");
        assert_eq!(size(&path), len as u64);
    }
    mount.remount();
    assert!(fs::read(mount.path("large")).unwrap().starts_with(b"map2"));
    assert!(fs::read(mount.path("small")).unwrap().ends_with(b"end"));
}

#[test]
fn a_map_for_reading_shows_the_content_and_later_writes() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, pattern(5, 50_000)).unwrap();
    let file = open(&path);
    let view = map(&file);
    assert!(view[..] == pattern(5, 50_000));
    file.write_all_at(b"changed", 20_000).unwrap();
    assert_eq!(&view[20_000..20_007], b"changed");
}

#[test]
fn a_shared_map_of_a_vector_file_changes_its_neighbours() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/query.f32", &[1.0, 0.0]);
    mount.put("docs/a.f32", &[0.0, 1.0]);
    mount.put("docs/b.f32", &[1.0, 1.0]);
    assert_eq!(mount.similar("docs/query.f32"), ["b.f32", "a.f32"]);
    let file = open(&mount.path("docs/a.f32"));
    let mut view = map_shared(&file);
    view.copy_from_slice(&f32_bytes(&[1.0, 0.0]));
    drop(view);
    drop(file);
    wait_for("the neighbours to change", || mount.similar("docs/query.f32") == ["a.f32", "b.f32"]);
    // The map outlives the handle, so the last writer is gone when it is unmapped.
    let file = open(&mount.path("docs/a.f32"));
    let mut view = map_shared(&file);
    drop(file);
    view.copy_from_slice(&f32_bytes(&[0.0, 1.0]));
    drop(view);
    wait_for("the neighbours to change again", || mount.similar("docs/query.f32") == ["b.f32", "a.f32"]);
    assert_eq!(fs::read(mount.path("docs/a.f32")).unwrap(), f32_bytes(&[0.0, 1.0]));
    assert_eq!(mount.status("docs/a.f32"), "indexed");
}

#[test]
fn syncs_succeed_on_files_and_directories() {
    let mount = Mount::new();
    let dir = mount.mkdir("d");
    for (name, len) in [("small", 10), ("large", 100_000), ("v.f32", 400)] {
        let file = open(&dir.join(name));
        file.write_all_at(&vec![0; len], 0).unwrap();
        file.sync_data().unwrap();
        file.sync_all().unwrap();
    }
    File::open(&dir).unwrap().sync_all().unwrap();
    shell(&mount.root(), "sync -f d; sync d/small");
    File::open(dir.join("small")).unwrap().sync_all().unwrap();
}

#[test]
fn a_file_without_a_name_lives_until_it_is_closed() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/q.f32", &[1.0, 0.0]);
    for (name, content) in
        [("f", b"content".to_vec()), ("large", pattern(9, 100_000)), ("docs/v.f32", f32_bytes(&[1.0, 1.0]))]
    {
        let path = mount.path(name);
        fs::write(&path, &content).unwrap();
        let file = open(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        let mut got = vec![0; content.len()];
        file.read_exact_at(&mut got, 0).unwrap();
        assert!(got == content, "{name}");
        file.write_all_at(b"tail", content.len() as u64).unwrap();
        assert_eq!(file.metadata().unwrap().len(), content.len() as u64 + 4);
        file.sync_all().unwrap();
        fs::write(&path, b"another").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"another");
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(mount.similar("docs/q.f32"), [""; 0]);
}

#[test]
fn an_unnamed_temporary_file_is_not_supported() {
    let mount = Mount::new();
    let made = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(mount.root());
    assert_eq!(errno(made), libc::EOPNOTSUPP);
}

#[test]
fn a_large_file_makes_the_round_trip() {
    let mut mount = Mount::new();
    let path = mount.path("large");
    let piece = pattern(64, 1 << 20);
    let mut file = open(&path);
    for i in 0u8..64 {
        file.write_all(&[&[i], &piece[1..]].concat()).unwrap();
    }
    drop(file);
    assert_eq!(size(&path), 64 << 20);
    let blocks = fs::metadata(&path).unwrap().blocks();
    assert!(blocks * 512 >= 64 << 20, "{blocks} blocks");
    mount.remount();
    let mut file = File::open(&path).unwrap();
    let mut got = vec![0; 1 << 20];
    for i in 0u8..64 {
        file.read_exact(&mut got).unwrap();
        assert!(got[0] == i && got[1..] == piece[1..], "MiB {i}");
    }
    assert_eq!(file.read(&mut got).unwrap(), 0);
    file.read_exact_at(&mut got[..5], (33 << 20) - 2).unwrap();
    assert_eq!(got[2], 33);
    fs::remove_file(&path).unwrap();
}

#[test]
fn blocks_tell_what_a_file_takes() {
    let mount = Mount::new();
    let blocks = |name: &str| fs::metadata(mount.path(name)).unwrap().blocks();
    fs::write(mount.path("empty"), b"").unwrap();
    fs::write(mount.path("small"), b"x").unwrap();
    mount.put("v.f32", &[1.0; 1000]);
    fs::write(mount.path("large"), vec![1; 1 << 20]).unwrap();
    assert_eq!(blocks("empty"), 0);
    assert!(blocks("small") >= 1, "du must not show nothing");
    assert!((8..100).contains(&blocks("v.f32")), "{}", blocks("v.f32"));
    assert!((2048..2200).contains(&blocks("large")), "{}", blocks("large"));
    File::options().write(true).open(mount.path("large")).unwrap().set_len(0).unwrap();
    assert_eq!(blocks("large"), 0);
}

#[test]
fn a_write_by_somebody_else_clears_setuid() {
    if !is_root() {
        return;
    }
    let mount = Mount::with_options(&["-o", "allow_other"]);
    fs::set_permissions(mount.outside("."), Permissions::from_mode(0o755)).unwrap();
    for script in ["echo more >> program", ": > program", "truncate -s 2 program"] {
        let path = mount.path("program");
        fs::write(&path, b"content").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o6777)).unwrap();
        let output =
            run(Command::new("sh").args(["-c", script]).current_dir(mount.root()).uid(65534).gid(65534));
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o777, "{script} left {mode:o}");
    }
}

#[test]
fn a_handle_does_only_what_it_was_opened_for() {
    let mount = Mount::new();
    fs::write(mount.path("f"), b"x").unwrap();
    let mut reader = File::open(mount.path("f")).unwrap();
    assert_eq!(errno(reader.write(b"y")), libc::EBADF);
    let mut writer = File::options().write(true).open(mount.path("f")).unwrap();
    assert_eq!(errno(writer.read(&mut [0])), libc::EBADF);
    assert_eq!(errno(File::open(mount.root()).unwrap().read(&mut [0])), libc::EISDIR);
    let far = writer.write_at(b"x", u64::MAX >> 1);
    assert!([libc::EFBIG, libc::EINVAL].contains(&errno(far)));
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"x");
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mount.path("f"));
    match direct {
        Ok(mut file) => {
            let mut content = Vec::new();
            file.read_to_end(&mut content).unwrap();
            assert_eq!(content, b"x");
        }
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
    }
}

#[test]
fn locks_hold_between_handles() {
    let mount = Mount::new();
    let (a, b) = (open(&mount.path("f")), open(&mount.path("f")));
    a.lock().unwrap();
    assert!(b.try_lock().is_err());
    a.unlock().unwrap();
    b.try_lock().unwrap();
}

#[test]
fn one_file_is_written_by_several_threads_at_once() {
    let mount = Mount::new();
    let path = mount.path("f");
    let file = open(&path);
    std::thread::scope(|scope| {
        for who in 0..4u64 {
            let file = &file;
            scope.spawn(move || {
                for i in 0..64u64 {
                    let piece = [u8::try_from(who * 64 + i).unwrap(); 1000];
                    file.write_all_at(&piece, (i * 4 + who) * 1000).unwrap();
                }
            });
        }
    });
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len(), 256_000);
    for (at, piece) in content.chunks(1000).enumerate() {
        let want = u8::try_from(at % 4 * 64 + at / 4).unwrap();
        assert!(piece.iter().all(|&byte| byte == want), "piece {at}");
    }
}

#[test]
fn sizes_and_times_follow_writes_without_a_close() {
    let mount = Mount::new();
    let path = mount.path("f");
    let mut file = open(&path);
    for len in [1, 4096, 20_000] {
        let before = fs::metadata(&path).unwrap();
        file.write_all(&vec![1; len]).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.len(), before.len() + len as u64);
        let time = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec());
        assert!(time(&after) >= time(&before));
        assert_eq!(
            file.as_fd().try_clone_to_owned().map(File::from).unwrap().metadata().unwrap().len(),
            after.len()
        );
    }
    assert_eq!(io::copy(&mut File::open(&path).unwrap(), &mut io::sink()).unwrap(), 24_097);
}

/// What makes the content of a file complete, and how.
type Way = (&'static str, fn(File, &Path));

#[test]
fn others_go_on_while_a_large_file_is_read_at_its_close() {
    // One worker: were the file read there, nothing else would be answered meanwhile.
    let mount = Mount::with_options(&["-o", "threads=1"]);
    let docs = mount.mkdir("docs");
    xattr::set(&docs, "user.vexfs.metric", b"l2").unwrap();
    let (rows, dim) = (1_u32 << 15, 16_384_u32);
    let ways: [Way; 3] = [
        ("close", |file, _| drop(file)),
        ("rename", |file, path| {
            drop(file);
            fs::rename(path, path.with_extension("u8bin")).unwrap();
        }),
        ("truncate", |file, path| {
            let len = file.metadata().unwrap().len();
            file.set_len(len - 1).unwrap();
            drop(file);
            nix::unistd::truncate(path, i64::try_from(len).unwrap()).unwrap();
        }),
    ];
    for (way, complete) in ways {
        let vector = docs.join(way).with_extension("u8bin");
        let path = if way == "rename" { vector.with_extension("tmp") } else { vector.clone() };
        let file = open(&path);
        file.write_all_at(&[rows.to_le_bytes(), dim.to_le_bytes()].concat(), 0).unwrap();
        file.set_len(8 + u64::from(rows) * u64::from(dim)).unwrap();
        let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let answered = std::thread::scope(|scope| {
            scope.spawn(|| {
                begun.store(true, Ordering::SeqCst);
                complete(file, &path);
                ended.store(true, Ordering::SeqCst);
            });
            wait_for("the close to begin", || begun.load(Ordering::SeqCst));
            let mut answered = 0;
            while !ended.load(Ordering::SeqCst) {
                match answered {
                    5 => fs::create_dir(mount.path(format!(".vexfs/snapshots/{way}"))).unwrap(),
                    _ => drop(mount.mkdir(&format!("{way}{answered}"))),
                }
                answered += 1;
                // What it is about is not locked either. In the other ways the kernel itself locks the file, or keeps it
                // until it is closed.
                if way == "close" {
                    drop(File::open(&path).unwrap());
                }
            }
            answered
        });
        assert!(answered > 20, "{answered} operations were answered while a file was settled: {way}");
        let name = vector.strip_prefix(mount.root()).unwrap().to_str().unwrap();
        assert_eq!(mount.attribute(name, "user.vexfs.rows"), rows.to_string(), "{way}");
    }
}
