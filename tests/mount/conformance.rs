//! What programs expect of any filesystem, beyond names and bytes: locks, waiting, watching, offsets of listings,
//! large files, direct and synchronous writes.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, copy_file_range, fallocate, fcntl};
use nix::unistd::{Whence, lseek};

use crate::harness::{Mount, is_root, run, shell, wait_for};

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A write lock on `len` bytes from `start`.
fn range(start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap(),
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

#[test]
fn locks_of_all_kinds_hold_against_each_other_and_other_processes() {
    let mount = Mount::new();
    let path = mount.path("f");
    let (a, b) = (open(&path), open(&path));
    let set = |file: &File, lock| fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop);
    set(&a, range(0, 10)).unwrap();
    assert_eq!(set(&b, range(5, 1)), Err(Errno::EAGAIN));
    set(&b, range(10, 10)).unwrap();
    // A process's own lock is another owner's than a description's.
    let of_process = |lock| fcntl(&b, FcntlArg::F_SETLK(&lock)).map(drop);
    assert_eq!(of_process(range(9, 1)), Err(Errno::EAGAIN));
    of_process(range(20, 0)).unwrap();
    assert_eq!(set(&a, range(100, 1)), Err(Errno::EAGAIN));
    // With the last descriptor they go.
    drop(a);
    set(&b, range(0, 10)).unwrap();
    drop(b);
    // Those of flock, between processes.
    let file = open(&path);
    file.lock().unwrap();
    let other = || run(Command::new("flock").arg("-n").arg(&path).arg("true")).status.code();
    assert_eq!(other(), Some(1));
    file.unlock().unwrap();
    assert_eq!(other(), Some(0));
    let waiting = format!(
        "exec 9>>{0}; flock 9; (flock -w 20 {0} echo second) & echo first; flock -u 9; wait",
        path.display()
    );
    assert_eq!(shell(&mount.root(), &waiting), "first\nsecond\n");
}

#[test]
#[expect(unsafe_code, reason = "std has no poll")]
fn a_file_is_always_ready() {
    let mount = Mount::new();
    let file = open(&mount.path("f"));
    let mut asked = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN | libc::POLLOUT | libc::POLLPRI,
        revents: 0,
    };
    // SAFETY: one element is passed, and it lives through the call.
    assert_eq!(unsafe { libc::poll(&raw mut asked, 1, 60_000) }, 1);
    assert_eq!(asked.revents, libc::POLLIN | libc::POLLOUT);
}

nix::ioctl_read_bad!(bytes_left, libc::FIONREAD, libc::c_int);
nix::ioctl_read!(inode_flags, b'f', 1, libc::c_long);

#[test]
#[expect(unsafe_code, reason = "an ioctl is what is tested")]
fn what_is_left_to_read_is_known_and_inode_flags_do_not_exist() {
    let mount = Mount::new();
    let file = open(&mount.path("f"));
    file.write_all_at(&[1; 100], 0).unwrap();
    lseek(&file, 30, Whence::SeekSet).unwrap();
    let mut left = 0;
    // SAFETY: the request writes one int.
    unsafe { bytes_left(file.as_raw_fd(), &raw mut left) }.unwrap();
    assert_eq!(left, 70);
    let mut flags = 0;
    // SAFETY: the request writes at most one long.
    assert_eq!(unsafe { inode_flags(file.as_raw_fd(), &raw mut flags) }, Err(Errno::ENOTTY));
}

/// Events of a watched directory, as pairs of a bit and a name.
#[expect(unsafe_code, reason = "std has no inotify")]
#[expect(clippy::host_endian_bytes, reason = "so the kernel writes them")]
fn watch(dir: &Path, act: impl FnOnce()) -> Vec<(u32, String)> {
    // SAFETY: no pointer is passed.
    let watcher = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
    assert!(watcher >= 0, "{}", io::Error::last_os_error());
    let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
    let kinds = libc::IN_CREATE
        | libc::IN_CLOSE_WRITE
        | libc::IN_MOVED_FROM
        | libc::IN_MOVED_TO
        | libc::IN_DELETE
        | libc::IN_ATTRIB;
    // SAFETY: the path ends with a zero byte.
    assert!(unsafe { libc::inotify_add_watch(watcher, path.as_ptr(), kinds) } >= 0);
    act();
    let mut bytes = [0u8; 4096];
    // SAFETY: the buffer has as many bytes as are asked for.
    let length = unsafe { libc::read(watcher, bytes.as_mut_ptr().cast(), bytes.len()) };
    // SAFETY: nobody else has this descriptor.
    unsafe { libc::close(watcher) };
    let mut rest = &bytes[..usize::try_from(length).unwrap()];
    let mut events = Vec::new();
    // Watch, mask, cookie, length of the name, and the name, padded with zeroes.
    while let Some((head, after)) = rest.split_at_checked(16) {
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        let (name, after) = after.split_at(word(12) as usize);
        let name = name.split(|&byte| byte == 0).next().unwrap();
        events.push((word(4), String::from_utf8(name.to_vec()).unwrap()));
        rest = after;
    }
    events
}

#[test]
fn changes_by_others_are_seen_by_who_watches() {
    let mount = Mount::new();
    let dir = mount.mkdir("docs");
    let events = watch(&dir, || {
        shell(&dir, "printf x > a; chmod 600 a; mv a b; rm b; mkdir d");
    });
    let is_dir = libc::IN_ISDIR;
    let want = [
        (libc::IN_CREATE, "a"),
        (libc::IN_CLOSE_WRITE, "a"),
        (libc::IN_ATTRIB, "a"),
        (libc::IN_MOVED_FROM, "a"),
        (libc::IN_MOVED_TO, "b"),
        (libc::IN_DELETE, "b"),
        (libc::IN_CREATE | is_dir, "d"),
    ];
    assert_eq!(events, want.map(|(kind, name)| (kind, name.to_owned())));
}

#[test]
#[expect(unsafe_code, reason = "std has no telldir")]
fn a_place_in_a_listing_is_found_again_while_names_come_and_go() {
    let mount = Mount::new();
    let dir = mount.mkdir("d");
    for i in 0..3000 {
        File::create(dir.join(format!("{i:04}"))).unwrap();
    }
    let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends with a zero byte.
    let stream = unsafe { libc::opendir(path.as_ptr()) };
    assert!(!stream.is_null());
    let next = || {
        // SAFETY: the stream is open; the entry is copied before the next call.
        let entry = unsafe { libc::readdir(stream).as_ref() }?;
        // SAFETY: the name ends with a zero byte.
        Some(unsafe { std::ffi::CStr::from_ptr(entry.d_name.as_ptr()) }.to_str().unwrap().to_owned())
    };
    // SAFETY: the stream is open.
    let tell = || unsafe { libc::telldir(stream) };
    let mut places = Vec::new();
    loop {
        let place = tell();
        let Some(name) = next() else { break };
        places.push((place, name));
    }
    assert_eq!(places.len(), 3002);
    for (_, name) in places.iter().filter(|(_, name)| name.ends_with('5')) {
        fs::remove_file(dir.join(name)).unwrap();
    }
    for i in 0..100 {
        File::create(dir.join(format!("new{i}"))).unwrap();
    }
    for (place, name) in places.iter().rev().step_by(97) {
        // SAFETY: the stream is open, and the place is one that it gave.
        unsafe { libc::seekdir(stream, *place) };
        assert_eq!(next().as_ref(), Some(name));
    }
    // From the beginning on it is what is there now.
    // SAFETY: the stream is open.
    unsafe { libc::rewinddir(stream) };
    let now: Vec<String> = std::iter::from_fn(next).collect();
    assert_eq!(now.len(), 2802);
    assert!(now.contains(&"new99".to_owned()) && !now.contains(&"0005".to_owned()));
    // SAFETY: nobody else has the stream.
    unsafe { libc::closedir(stream) };
}

#[test]
fn a_file_of_more_than_four_gibibytes_takes_what_was_written() {
    const GIB: u64 = 1 << 30;
    let mut mount = Mount::new();
    let path = mount.path("large");
    let file = open(&path);
    let border = 4 * GIB;
    file.write_all_at(b"across the border", border - 6).unwrap();
    file.write_all_at(b"end", 9 * GIB).unwrap();
    let size = 9 * GIB + 3;
    let stat = fs::metadata(&path).unwrap();
    assert_eq!(stat.len(), size);
    assert!(stat.blocks() * 512 < 1 << 20, "{} blocks", stat.blocks());
    let seek = |from: u64, whence| {
        lseek(&file, i64::try_from(from).unwrap(), whence).map(|at| u64::try_from(at).unwrap())
    };
    assert_eq!(seek(0, Whence::SeekHole), Ok(0));
    let data = seek(0, Whence::SeekData).unwrap();
    assert!((border - 65_536..=border - 6).contains(&data), "{data}");
    assert!(seek(border + GIB, Whence::SeekData).unwrap() > 8 * GIB);
    assert_eq!(seek(size, Whence::SeekData), Err(Errno::ENXIO));
    let piece = |at: u64, len: usize| {
        let mut bytes = vec![9; len];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    assert_eq!(piece(border - 8, 20), b"\0\0across the border\0");
    // To the end, whatever its offset is, and from beyond the border to before it.
    File::options().append(true).open(&path).unwrap().write_all(b"ing").unwrap();
    assert_eq!(piece(9 * GIB, 6), b"ending");
    let (mut from, mut to) = (i64::try_from(border).unwrap(), 7);
    assert_eq!(copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 10), Ok(10));
    assert_eq!(piece(0, 20), b"\0\0\0\0\0\0\0 the borde\0\0\0"[..].get(..20).unwrap());
    fallocate(
        &file,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        i64::try_from(border - 65_536).unwrap(),
        131_072,
    )
    .unwrap();
    assert_eq!(piece(border - 8, 20), [0; 20]);
    file.set_len(border + 1).unwrap();
    file.set_len(6 * GIB).unwrap();
    drop(file);
    mount.remount();
    let file = open(&path);
    assert_eq!(file.metadata().unwrap().len(), 6 * GIB);
    let mut bytes = [9; 6];
    file.read_exact_at(&mut bytes, 6 * GIB - 6).unwrap();
    assert_eq!(bytes, [0; 6]);
}

#[test]
fn maps_reads_and_writes_of_two_processes_see_each_other() {
    let mount = Mount::new();
    let path = mount.path("f");
    // A page and a half: the last page is partly beyond the end.
    fs::write(&path, vec![b'.'; 6144]).unwrap();
    let file = open(&path);
    #[expect(unsafe_code, reason = "a map is what is tested")]
    // SAFETY: the file is not cut off while it is mapped.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    shell(&mount.root(), "printf other | dd of=f bs=1 seek=4090 conv=notrunc status=none");
    assert_eq!(&map[4089..4096], b".other.");
    map[100..104].copy_from_slice(b"mine");
    // Another process's read is through the same pages, before any msync.
    assert_eq!(shell(&mount.root(), "dd if=f bs=1 skip=99 count=6 status=none"), ".mine.");
    map[6140..6144].copy_from_slice(b"last");
    let mut bytes = [0; 5];
    file.read_exact_at(&mut bytes, 6139).unwrap();
    assert_eq!(&bytes, b".last");
    // A direct read has what is in memory written out first.
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    direct.read_exact_at(&mut bytes, 99).unwrap();
    assert_eq!(&bytes, b".mine");
    drop(map);
    assert_eq!(fs::metadata(&path).unwrap().len(), 6144);
}

#[test]
fn mapped_pages_of_a_file_that_is_appended_to_keep_their_places() {
    let mount = Mount::new();
    for len in [5000, 20_000, 300_000] {
        // A name that keeps the kernel from writing it by itself.
        let path = mount.path(format!("{len}.vec"));
        fs::write(&path, vec![b'.'; len]).unwrap();
        let mut file = File::options().read(true).append(true).open(&path).unwrap();
        #[expect(unsafe_code, reason = "a map is what is tested")]
        // SAFETY: the file is not cut off while it is mapped.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        map[100..104].copy_from_slice(b"mine");
        map.flush().unwrap();
        drop(map);
        file.write_all(b"end").unwrap();
        drop(file);
        let mut want = vec![b'.'; len];
        want[100..104].copy_from_slice(b"mine");
        want.extend_from_slice(b"end");
        assert!(fs::read(&path).unwrap() == want, "{len} bytes");
    }
}

#[test]
fn what_is_stored_into_mapped_pages_is_data_before_it_is_written() {
    let mount = Mount::new();
    for (name, len) in [("f", 60_000), ("v.vec", 300_000)] {
        let path = mount.path(name);
        let file = open(&path);
        file.set_len(len).unwrap();
        #[expect(unsafe_code, reason = "a map is what is tested")]
        // SAFETY: the file is not cut off while it is mapped.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        drop(file);
        map[50_000..50_004].copy_from_slice(b"mine");
        let reader = File::open(&path).unwrap();
        assert!(lseek(&reader, 0, Whence::SeekData).unwrap() <= 50_000, "{name}");
        shell(&mount.root(), &format!("cp --sparse=always {name} copy"));
        assert_eq!(fs::read(mount.path("copy")).unwrap()[50_000..50_004], *b"mine", "{name}");
        drop(map);
    }
}

#[test]
fn a_descriptor_appends_for_as_long_as_its_flag_says_so() {
    let mount = Mount::new();
    // What the kernel writes by itself it opens with the flags of the open, and they stay.
    for (name, len) in [("f", 100), ("g", 20_000), ("v.vec", 100), ("w.vec", 300_000)] {
        let path = mount.path(name);
        fs::write(&path, vec![b'.'; len]).unwrap();
        let flags = |file: &File, flags| fcntl(file, FcntlArg::F_SETFL(flags)).unwrap();
        let file = File::options().read(true).append(true).open(&path).unwrap();
        flags(&file, OFlag::empty());
        file.write_all_at(b"first", 10).unwrap();
        flags(&file, OFlag::O_APPEND);
        (&file).write_all(b"end").unwrap();
        drop(file);
        let mut want = vec![b'.'; len];
        want[10..15].copy_from_slice(b"first");
        want.extend_from_slice(b"end");
        assert!(fs::read(&path).unwrap() == want, "{name}");
    }
}

#[test]
fn a_large_direct_append_arrives_in_order() {
    let mount = Mount::new();
    // The kernel sends it in several requests at once.
    let mut piece = memmap2::MmapMut::map_anon(8 << 20).unwrap();
    for (i, mib) in piece.chunks_mut(1 << 20).enumerate() {
        mib.fill(b'A' + u8::try_from(i).unwrap());
    }
    for name in ["f", "v.f32"] {
        for before in [0, 4096, 1 << 20] {
            let path = mount.path(name);
            fs::write(&path, vec![b'.'; before]).unwrap();
            let mut file = File::options().append(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
            file.write_all(&piece).unwrap();
            drop(file);
            let content = fs::read(&path).unwrap();
            assert_eq!(content.len(), before + piece.len());
            assert!(content[before..] == piece[..], "{name} behind {before} bytes");
        }
    }
}

#[test]
fn direct_writes_of_any_alignment_and_buffered_ones_agree() {
    let mount = Mount::new();
    for name in ["f", "v.f32"] {
        let path = mount.path(name);
        let buffered = open(&path);
        let direct = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        let mut want = vec![0; 100_000];
        buffered.write_all_at(&want, 0).unwrap();
        for (at, len) in [(0, 4096), (1, 511), (4095, 2), (16_383, 1), (50_001, 40_000), (99_999, 1)] {
            let piece: Vec<u8> = (0..len).map(|i| u8::try_from((i + at) % 256).unwrap()).collect();
            want[at..at + len].copy_from_slice(&piece);
            // What is read through the cache is not what was there before.
            let writer = if at % 2 == 0 { &direct } else { &buffered };
            let reader = if at % 2 == 0 { &buffered } else { &direct };
            reader.read_exact_at(&mut vec![0; len], at as u64).unwrap();
            writer.write_all_at(&piece, at as u64).unwrap();
            for file in [reader, writer] {
                let mut back = vec![0; want.len()];
                file.read_exact_at(&mut back, 0).unwrap();
                assert!(back == want, "{name}: {len} bytes at {at}");
            }
        }
    }
}

#[test]
fn a_synchronous_write_is_followed_by_a_sync_of_its_own() {
    let mount = Mount::new();
    let syncs = || {
        let metrics = fs::read_to_string(mount.path(".vexfs/metrics")).unwrap();
        let line = "vexfs_fuse_ops_total{op=\"fsync\",result=\"ok\"} ";
        metrics
            .lines()
            .find_map(|text| text.strip_prefix(line))
            .map_or(0, |count| count.parse::<u32>().unwrap())
    };
    for flag in [libc::O_SYNC, libc::O_DSYNC] {
        let mut file =
            File::options().append(true).create(true).custom_flags(flag).open(mount.path("f")).unwrap();
        let before = syncs();
        for _ in 0..3 {
            file.write_all(b"one line\n").unwrap();
        }
        // A request is counted after it was answered.
        wait_for("the syncs to be counted", || syncs() - before >= 3);
        assert_eq!(syncs() - before, 3, "flag {flag:o}");
    }
    // Of a single write it may be said as well, through whichever handle.
    for reads in [false, true] {
        let path = mount.path(format!("single-{reads}"));
        let file = File::options().read(reads).write(true).create_new(true).open(path).unwrap();
        let line = b"one line\n";
        let piece = libc::iovec { iov_base: line.as_ptr().cast_mut().cast(), iov_len: line.len() };
        let before = syncs();
        for flags in [0, libc::RWF_DSYNC, libc::RWF_SYNC] {
            #[expect(unsafe_code, reason = "no safe call has these flags")]
            // SAFETY: the vector is one, of bytes that live and are only read.
            let done = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const piece, 1, 0, flags) };
            assert_eq!(usize::try_from(done), Ok(line.len()));
        }
        wait_for("the syncs to be counted", || syncs() - before >= 2);
        assert_eq!(syncs() - before, 2, "open for reading: {reads}");
    }
}

#[test]
fn what_a_program_writes_that_reads_nothing_is_seen_by_all_who_read() {
    let mount = Mount::new();
    for name in ["f", "v.f32"] {
        let path = mount.path(name);
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        let mut want = Vec::new();
        let mut map = None;
        for (at, len) in [(0, 3000), (3000, 5000), (100, 10), (4090, 20), (8000, 200_000), (70_000, 70_000)] {
            let piece: Vec<u8> = (0..len).map(|i| u8::try_from((i * 7 + at) % 251).unwrap()).collect();
            writer.write_all_at(&piece, at as u64).unwrap();
            want.resize(want.len().max(at + len), 0);
            want[at..at + len].copy_from_slice(&piece);
            let mut read = vec![0; want.len() + 1];
            assert_eq!(reader.read_at(&mut read, 0).unwrap(), want.len());
            assert!(read[..want.len()] == want[..], "{name}: {len} bytes at {at}");
            assert_eq!(fs::metadata(&path).unwrap().len(), want.len() as u64);
            #[expect(unsafe_code, reason = "a map is what is tested")]
            // SAFETY: the file is not cut off while it is mapped.
            let map = map.get_or_insert_with(|| unsafe { memmap2::Mmap::map(&reader) }.unwrap());
            assert!(map[..] == want[..map.len()], "{name}: mapped, {len} bytes at {at}");
        }
        drop((writer, reader, map));
        assert!(fs::read(&path).unwrap() == want, "{name}");
    }
}

#[test]
fn reading_leaves_the_time_of_access() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, b"x").unwrap();
    let before = fs::metadata(&path).unwrap();
    fs::read(&path).unwrap();
    shell(&mount.root(), "cat f; ls > /dev/null");
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.atime(), before.atime_nsec()), (after.atime(), after.atime_nsec()));
    shell(&mount.root(), "touch -a -d @5 f");
    assert_eq!(fs::metadata(&path).unwrap().atime(), 5);
}

#[test]
fn what_root_does_to_a_program_leaves_its_setuid_bit() {
    if !is_root() {
        return;
    }
    let mount = Mount::new();
    let path = mount.path("program");
    let source = open(&mount.path("source"));
    source.write_all_at(&[2; 20_000], 0).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    type Act<'a> = &'a dyn Fn(&File);
    let acts: [(&str, Act); 5] = [
        ("write", &|file| file.write_all_at(b"x", 3).unwrap()),
        ("truncate", &|file| file.set_len(3).unwrap()),
        ("reserve", &|file| fallocate(file, FallocateFlags::empty(), 0, 50_000).unwrap()),
        ("punch", &|file| fallocate(file, punch, 0, 500).unwrap()),
        ("copy", &|file| {
            assert_eq!(copy_file_range(&source, Some(&mut 0), file, Some(&mut 0), 5000), Ok(5000))
        }),
    ];
    for (name, act) in acts {
        for size in [100, 30_000] {
            fs::write(&path, vec![1; size]).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o6755)).unwrap();
            act(&open(&path));
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6755, "{name} of {size} bytes");
        }
    }
}

#[test]
fn what_is_removed_and_still_held_has_attributes() {
    let mount = Mount::new();
    mount.mkdir("d");
    for name in ["file", "pipe", "link"] {
        let path = mount.path(name);
        match name {
            "file" => fs::write(&path, b"content").unwrap(),
            "pipe" => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap(),
            _ => std::os::unix::fs::symlink("d", &path).unwrap(),
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let held = nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty()).unwrap();
        let before = nix::sys::stat::fstat(&held).unwrap();
        fs::remove_file(&path).unwrap();
        let after = nix::sys::stat::fstat(&held).unwrap();
        let same = (before.st_ino, before.st_mode, before.st_size);
        assert_eq!((after.st_ino, after.st_mode, after.st_size), same, "{name}");
        assert_eq!((before.st_nlink, after.st_nlink), (1, 0), "{name}");
    }
    let path = mount.path("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let pipe = open(&path);
    fs::remove_file(&path).unwrap();
    pipe.set_permissions(Permissions::from_mode(0o644)).unwrap();
    (&pipe).write_all(b"through").unwrap();
    let after = pipe.metadata().unwrap();
    assert_eq!((after.mode() & 0o7777, after.nlink()), (0o644, 0));
    // A shell whose directory is removed below it.
    let said =
        shell(&mount.path("d"), "rmdir ../d; ls -a; stat -c %h .; cd ..; ls -d d 2>/dev/null || echo gone");
    assert!(said.ends_with("0\ngone\n"), "{said}");
}
