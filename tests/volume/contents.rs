//! Content: where it lies changes with size and name, what is read does not.

use std::time::Duration;

use vexfs::Error;
use vexfs::namespace::{Ino, Kind, Time};
use vexfs::volume::{Allocate, OpenFlags, Seek, SetAttr, SetTime};

use crate::support::*;

/// Sizes on both sides of every border: empty, inline, blob or slot, blob only.
const SIZES: [usize; 7] = [0, 1, 16 << 10, (16 << 10) + 1, 100_000, 132 << 10, 300_000];

#[test]
fn every_size_comes_back_under_plain_and_recognised_names() {
    let fs = Fs::new();
    for name in ["plain", "vector.f32"] {
        for size in SIZES {
            let content = pattern(size, 5);
            fs.put(name, &content);
            assert_eq!(fs.get(name).unwrap(), content, "{name}, {size} bytes");
            let attr = fs.stat(name).unwrap();
            assert_eq!(attr.size, size as u64);
            assert_eq!(attr.blocks > 0, size > 0);
        }
    }
}

#[test]
fn settled_content_is_changed_in_every_way_without_losing_the_rest() {
    let fs = Fs::new();
    for size in SIZES {
        let mut model = pattern(size, 9);
        fs.put("v.f32", &model);
        let handle = fs.open("v.f32", WRITE).unwrap();
        let at = size / 2;
        fs.write(handle, at as u64, b"inserted");
        model.resize(model.len().max(at + 8), 0);
        model[at..at + 8].copy_from_slice(b"inserted");
        assert_eq!(fs.read(handle), model, "{size} bytes, while open");
        fs.close(handle);
        assert_eq!(fs.get("v.f32").unwrap(), model, "{size} bytes, closed");
        for new in [size + 20_000, size / 3] {
            fs.truncate("v.f32", new as u64).unwrap();
            model.resize(new, 0);
            assert_eq!(fs.get("v.f32").unwrap(), model, "{size} bytes truncated to {new}");
        }
    }
}

#[test]
fn a_handle_that_began_to_read_sees_what_a_writer_writes() {
    let fs = Fs::new();
    fs.put("v.f32", &pattern(200_000, 1));
    let reader = fs.open("v.f32", READ).unwrap();
    assert_eq!(fs.read(reader), pattern(200_000, 1));
    let writer = fs.open("v.f32", WRITE).unwrap();
    fs.write(writer, 0, b"changed");
    assert_eq!(&fs.read(reader)[..7], b"changed");
    fs.close(writer);
    assert_eq!(&fs.read(reader)[..7], b"changed");
    fs.volume.release(reader).unwrap();
}

#[test]
fn a_gap_reads_as_zeroes_wherever_the_content_lies() {
    let fs = Fs::new();
    for offset in [10, 20_000, 1 << 20] {
        let handle = fs.create(&format!("gap{offset}")).unwrap();
        fs.write(handle, offset, b"end");
        let content = fs.read(handle);
        assert_eq!(content.len() as u64, offset + 3);
        assert!(content[..content.len() - 3].iter().all(|&byte| byte == 0));
        fs.close(handle);
    }
    let sparse = fs.create("sparse").unwrap();
    fs.write(sparse, 1 << 40, b"x");
    let attr = fs.stat("sparse").unwrap();
    assert_eq!(attr.size, (1 << 40) + 1);
    assert!(attr.blocks < 1000);
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let fs = Fs::new();
    for size in [1000, 50_000] {
        fs.put("f", &pattern(size, 7));
        fs.truncate("f", 10).unwrap();
        fs.truncate("f", size as u64).unwrap();
        let mut model = pattern(size, 7);
        model[10..].fill(0);
        assert_eq!(fs.get("f").unwrap(), model);
    }
}

#[test]
fn opening_with_truncation_empties_the_file_and_the_page_cache() {
    let fs = Fs::new();
    for size in SIZES {
        fs.put("f.f32", &pattern(size, 1));
        let opened = fs.volume.open_file(&ROOT, fs.ino("f.f32").unwrap(), TRUNCATE).unwrap();
        assert!(!opened.keep_cache);
        assert_eq!(fs.stat("f.f32").unwrap().size, 0);
        fs.close(opened.handle);
        assert_eq!(fs.get("f.f32").unwrap(), b"");
    }
    assert!(fs.volume.open_file(&ROOT, fs.ino("f.f32").unwrap(), READ).unwrap().keep_cache);
}

#[test]
fn who_empties_a_vector_file_and_cannot_write_has_emptied_it_at_once() {
    let fs = Fs::new();
    let status = || {
        let status = fs.volume.getxattr(&ROOT, fs.ino("f.f32").unwrap(), b"user.vexfs.status").unwrap();
        String::from_utf8(status.to_vec()).unwrap()
    };
    fs.put("f.f32", &[0, 0, 128, 63]);
    assert_eq!(status(), "indexed");
    let empties = OpenFlags { truncate: true, ..READ };
    let opened = fs.volume.open_file(&ROOT, fs.ino("f.f32").unwrap(), empties).unwrap();
    assert_eq!(status(), "invalid: empty file");
    fs.close(opened.handle);
    // While somebody writes, that close decides.
    fs.put("f.f32", &[0, 0, 128, 63]);
    let writer = fs.open("f.f32", WRITE).unwrap();
    let opened = fs.volume.open_file(&ROOT, fs.ino("f.f32").unwrap(), empties).unwrap();
    fs.write(writer, 0, &[0, 0, 0, 64]);
    fs.close(writer);
    assert_eq!(status(), "indexed");
    fs.close(opened.handle);
    assert_eq!(fs.get("f.f32").unwrap(), [0, 0, 0, 64]);
}

#[test]
fn sizes_and_offsets_beyond_the_largest_file_are_refused() {
    let fs = Fs::new();
    let handle = fs.create("f").unwrap();
    let far = i64::MAX as u64;
    assert!(matches!(error(fs.volume.write(&ROOT, handle, far, b"x")), Error::FileTooBig { .. }));
    assert!(matches!(error(fs.volume.write(&ROOT, handle, u64::MAX, b"x")), Error::FileTooBig { .. }));
    assert!(matches!(error(fs.truncate("f", far + 1)), Error::FileTooBig { .. }));
    let allocate = fs.volume.fallocate(&ROOT, handle, far, 1, Allocate::Reserve { keep_size: false });
    assert!(matches!(error(allocate), Error::FileTooBig { .. }));
    assert_eq!(fs.stat("f").unwrap().size, 0);
    assert!(matches!(error(fs.truncate("", 0)), Error::IsDirectory));
}

#[test]
fn a_handle_for_reading_does_not_write() {
    let fs = Fs::new();
    fs.put("f", b"1");
    let handle = fs.open("f", READ).unwrap();
    assert!(matches!(error(fs.volume.write(&ROOT, handle, 0, b"x")), Error::BadHandle));
    let allocate = fs.volume.fallocate(&ROOT, handle, 0, 1, Allocate::PunchHole);
    assert!(matches!(error(allocate), Error::BadHandle));
    fs.close(handle);
    assert!(matches!(error(fs.volume.flush(&ROOT, handle)), Error::BadHandle));
    assert!(matches!(error(fs.volume.release(handle)), Error::BadHandle));
}

#[test]
fn ranges_are_reserved_punched_and_zeroed() {
    let fs = Fs::new();
    for (name, size) in [("small", 1000), ("vector.f32", 50_000), ("blob", 200_000)] {
        let mut model = pattern(size, 3);
        fs.put(name, &model);
        let handle = fs.open(name, WRITE).unwrap();
        let end = size as u64;
        let call = |offset, len, what| fs.volume.fallocate(&ROOT, handle, offset, len, what).unwrap();
        call(100, 200, Allocate::PunchHole);
        model[100..300].fill(0);
        call(end - 100, 200, Allocate::ZeroRange { keep_size: true });
        model[size - 100..].fill(0);
        assert_eq!(fs.read(handle), model, "{name}");
        call(end, 50, Allocate::ZeroRange { keep_size: false });
        call(0, end + 100, Allocate::Reserve { keep_size: false });
        model.resize(size + 100, 0);
        call(0, end + 100_000, Allocate::Reserve { keep_size: true });
        assert_eq!(fs.stat(name).unwrap().size, end + 100);
        assert!(fs.stat(name).unwrap().blocks * 512 >= end + 100_000, "{name}: the space is there");
        assert_eq!(fs.read(handle), model, "{name}");
        assert!(matches!(
            error(fs.volume.fallocate(&ROOT, handle, 0, 0, Allocate::PunchHole)),
            Error::Invalid(_)
        ));
        fs.close(handle);
        assert_eq!(fs.get(name).unwrap(), model, "{name}");
    }
}

#[test]
fn data_and_holes_are_found() {
    let fs = Fs::new();
    fs.put("small", b"12345");
    let handle = fs.open("small", READ).unwrap();
    assert_eq!(fs.volume.seek(handle, 2, Seek::Data).unwrap(), 2);
    assert_eq!(fs.volume.seek(handle, 2, Seek::Hole).unwrap(), 5);
    assert!(matches!(error(fs.volume.seek(handle, 5, Seek::Data)), Error::NoSuchOffset));
    assert!(matches!(error(fs.volume.seek(handle, 5, Seek::Hole)), Error::NoSuchOffset));
    let sparse = fs.create("sparse").unwrap();
    fs.write(sparse, 1 << 20, &[1; 4096]);
    assert_eq!(fs.volume.seek(sparse, 0, Seek::Data).unwrap(), 1 << 20);
    assert_eq!(fs.volume.seek(sparse, 0, Seek::Hole).unwrap(), 0);
    assert_eq!(fs.volume.seek(sparse, 1 << 20, Seek::Hole).unwrap(), (1 << 20) + 4096);
    // Pages of it may be mapped now, and what is stored into them not be here yet.
    fs.read(sparse);
    assert_eq!(fs.volume.seek(sparse, 7, Seek::Data).unwrap(), 7);
    assert_eq!(fs.volume.seek(sparse, 7, Seek::Hole).unwrap(), (1 << 20) + 4096);
    fs.close(sparse);
    let sparse = fs.open("sparse", READ).unwrap();
    assert_eq!(fs.volume.seek(sparse, 7, Seek::Data).unwrap(), 1 << 20);
}

#[test]
fn ranges_are_copied_between_all_kinds_of_content() {
    let fs = Fs::new();
    for (source, target) in [(100, 50), (100, 100_000), (100_000, 10), (300_000, 300_000), (40_000, 0)] {
        fs.put("from", &pattern(source, 1));
        fs.put("to", &pattern(target, 2));
        let (from, to) = (fs.open("from", READ).unwrap(), fs.open("to", WRITE).unwrap());
        let len = fs.volume.copy_range(&ROOT, (from, 10), (to, 5), 1 << 30).unwrap() as usize;
        assert_eq!(len, source - 10, "clipped to the source");
        let mut model = pattern(target, 2);
        model.resize(target.max(5 + len), 0);
        model[5..5 + len].copy_from_slice(&pattern(source, 1)[10..]);
        assert_eq!(fs.read(to), model, "{source} to {target}");
        assert_eq!(fs.volume.copy_range(&ROOT, (from, source as u64), (to, 0), 10).unwrap(), 0);
        fs.close(from);
        fs.close(to);
        assert_eq!(fs.get("to").unwrap(), model);
    }
    let handle = fs.open("from", WRITE).unwrap();
    let overlapping = fs.volume.copy_range(&ROOT, (handle, 0), (handle, 50), 100);
    assert!(matches!(error(overlapping), Error::Invalid(_)));
    assert_eq!(fs.volume.copy_range(&ROOT, (handle, 0), (handle, 50_000), 100).unwrap(), 100);
}

#[test]
fn times_follow_changes_and_can_be_set() {
    let fs = Fs::new();
    fs.put("f", b"1");
    let before = fs.stat("f").unwrap();
    let past = Time { secs: -100, nanos: 5 };
    let set =
        SetAttr { mtime: Some(SetTime::To(past)), atime: Some(SetTime::To(past)), ..SetAttr::default() };
    let attr = fs.volume.setattr(&ROOT, fs.ino("f").unwrap(), set, None).unwrap();
    assert_eq!((attr.mtime, attr.atime, attr.btime), (past, past, before.btime));
    assert!(attr.ctime >= before.ctime);
    assert_eq!(attr.ttl, Duration::from_secs(3600));
    let handle = fs.open("f", WRITE).unwrap();
    fs.write(handle, 0, &pattern(100_000, 1));
    fs.write(handle, 0, b"in place");
    let written = fs.stat("f").unwrap();
    assert!(written.mtime > past && written.ctime >= attr.ctime);
    fs.volume.setattr(&ROOT, fs.ino("f").unwrap(), set, Some(handle)).unwrap();
    assert_eq!(fs.stat("f").unwrap().mtime, past, "set while it is being written");
    fs.close(handle);
    assert_eq!(fs.stat("f").unwrap().mtime, past, "kept by the close");
}

#[test]
fn privileges_are_lost_by_ordinary_writers_and_by_chown() {
    let fs = Fs::new();
    let chmod = |mode| {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        fs.volume.setattr(&ROOT, fs.ino("f").unwrap(), set, None).unwrap();
    };
    let mode = || fs.stat("f").unwrap().mode;
    fs.put("f", &pattern(50_000, 1));
    let handle = fs.open("f", WRITE).unwrap();
    for _ in 0..2 {
        chmod(0o6755);
        fs.volume.write(&ROOT, handle, 0, b"root").unwrap();
        assert_eq!(mode(), 0o6755);
        fs.volume.write(&USER, handle, 0, b"user").unwrap();
        assert_eq!(mode(), 0o755);
    }
    chmod(0o4644);
    let set = SetAttr { size: Some(3), ..SetAttr::default() };
    fs.volume.setattr(&USER, fs.ino("f").unwrap(), set, Some(handle)).unwrap();
    assert_eq!(mode(), 0o644);
    fs.close(handle);
    chmod(0o4755);
    let opened = fs.volume.open_file(&USER, fs.ino("f").unwrap(), TRUNCATE).unwrap();
    assert_eq!(mode(), 0o755);
    fs.close(opened.handle);
    chmod(0o6755);
    let set = SetAttr { uid: Some(5), ..SetAttr::default() };
    let attr = fs.volume.setattr(&ROOT, fs.ino("f").unwrap(), set, None).unwrap();
    assert_eq!((attr.uid, attr.mode), (5, 0o755));
    // What the kernel asks for before an ordinary user's fallocate, and for a chown to nobody.
    chmod(0o6755);
    let before = fs.stat("f").unwrap();
    let attr = fs.volume.setattr(&ROOT, before.ino, SetAttr::default(), None).unwrap();
    assert!(attr.mode == 0o755 && attr.ctime > before.ctime && attr.mtime == before.mtime);
    let pipe = fs.volume.mknod(&ROOT, Ino::ROOT, b"pipe", Kind::Fifo, 0o6755, 0).unwrap();
    let set = SetAttr { gid: Some(5), ..SetAttr::default() };
    assert_eq!(fs.volume.setattr(&ROOT, pipe.ino, set, None).unwrap().mode, 0o755);
    let dir = fs.mkdir("d").unwrap();
    fs.volume.setattr(&ROOT, dir.ino, SetAttr { mode: Some(0o2755), ..SetAttr::default() }, None).unwrap();
    assert_eq!(fs.volume.setattr(&ROOT, dir.ino, set, None).unwrap().mode, 0o2755);
}

#[test]
fn a_rename_into_a_recognised_name_settles_and_out_of_it_keeps_the_bytes() {
    let fs = Fs::new();
    for size in SIZES {
        let content = pattern(size, 4);
        fs.put("x.tmp", &content);
        fs.rename("x.tmp", "x.f32").unwrap();
        assert_eq!(fs.get("x.f32").unwrap(), content);
        fs.rename("x.f32", "x.bak").unwrap();
        assert_eq!(fs.get("x.bak").unwrap(), content);
        fs.volume.sync().unwrap();
        assert_eq!(fs.get("x.bak").unwrap(), content, "what is still named is not reclaimed");
        fs.unlink("x.bak").unwrap();
    }
}

#[test]
fn a_file_renamed_while_it_is_written_settles_at_its_close() {
    let fs = Fs::new();
    let handle = fs.create("w.tmp").unwrap();
    fs.write(handle, 0, &pattern(40_000, 1));
    fs.rename("w.tmp", "w.f32").unwrap();
    fs.write(handle, 40_000, &pattern(8, 2));
    fs.close(handle);
    assert_eq!(fs.get("w.f32").unwrap(), [pattern(40_000, 1), pattern(8, 2)].concat());
}

#[test]
fn readers_see_whole_versions_of_a_small_file_and_never_an_error() {
    let fs = Fs::new();
    fs.put("v.f32", &[0; 4000]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Between the lookup and the open the file may have been replaced.
                let content = match fs.get("v.f32") {
                    Err(Error::NotFound) => continue,
                    other => other.unwrap(),
                };
                assert!(content.len() == 4000 && content.iter().all(|&byte| byte == content[0]));
            }
        });
        for version in 0..150 {
            fs.put("new.f32", &[version; 4000]);
            fs.rename("new.f32", "v.f32").unwrap();
            let handle = fs.open("v.f32", WRITE).unwrap();
            fs.write(handle, 0, &[version ^ 0x80; 4000]);
            fs.close(handle);
            fs.volume.sync().unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn creation_opens_what_is_there_unless_it_must_not() {
    let fs = Fs::new();
    fs.put("f", b"content");
    let (attr, opened) = fs.volume.create(&ROOT, Ino::ROOT, b"f", 0o600, WRITE).unwrap();
    assert_eq!((attr.size, attr.mode), (7, 0o644));
    assert_eq!(fs.read(opened.handle), b"content");
}

#[test]
fn a_close_completes_a_file_whose_earlier_handle_the_kernel_has_not_ended_yet() {
    let fs = Fs::new();
    let bytes = |value: f32| value.to_le_bytes();
    let earlier = fs.create("a.f32").unwrap();
    fs.write(earlier, 0, &bytes(1.0));
    fs.volume.flush(&ROOT, earlier).unwrap();
    let later = fs.open("a.f32", WRITE).unwrap();
    fs.write(later, 0, &[bytes(2.0), bytes(3.0)].concat());
    fs.volume.flush(&ROOT, later).unwrap();
    let status = || fs.volume.getxattr(&ROOT, fs.ino("a.f32").unwrap(), b"user.vexfs.dim").unwrap();
    assert_eq!(status(), b"2", "searchable when close returns");

    // A copy of the earlier descriptor writes on: it is a writer again until it is closed.
    fs.write(earlier, 8, &bytes(4.0));
    fs.volume.flush(&ROOT, later).unwrap();
    assert_eq!(status(), b"2");
    fs.volume.flush(&ROOT, earlier).unwrap();
    assert_eq!(status(), b"3");
    fs.volume.release(earlier).unwrap();
    fs.volume.release(later).unwrap();
    assert_eq!(fs.get("a.f32").unwrap(), [bytes(2.0), bytes(3.0), bytes(4.0)].concat());
}

#[test]
fn a_truncation_completes_a_file_whose_earlier_handle_the_kernel_has_not_ended_yet() {
    let fs = Fs::new();
    let earlier = fs.create("a.f32").unwrap();
    fs.write(earlier, 0, &[1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat());
    fs.volume.flush(&ROOT, earlier).unwrap();
    fs.truncate("a.f32", 4).unwrap();
    let dim = fs.volume.getxattr(&ROOT, fs.ino("a.f32").unwrap(), b"user.vexfs.dim").unwrap();
    assert_eq!(dim, b"1", "searchable when truncate returns");
    fs.volume.release(earlier).unwrap();
}

#[test]
fn content_that_changes_while_it_is_read_ahead_is_read_again() {
    let fs = Fs::new();
    let (rows, dim) = (1_u32 << 18, 8_u32);
    let mut content = [rows.to_le_bytes(), dim.to_le_bytes()].concat();
    content.extend((0..rows * dim).flat_map(|_| 1f32.to_le_bytes()));
    for round in 0..12_u32 {
        let path = format!("{round}.fbin");
        let handle = fs.create(&path).unwrap();
        fs.write(handle, 0, &content);
        let (begun, begins) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begun.send(()).unwrap();
                fs.close(handle);
            });
            begins.recv().unwrap();
            // At another moment of the close each time.
            (0..round * 40).for_each(|_| std::thread::yield_now());
            fs.truncate(&path, content.len() as u64 - 4).unwrap();
        });
        let status = fs.volume.getxattr(&ROOT, fs.ino(&path).unwrap(), b"user.vexfs.status").unwrap();
        let status = String::from_utf8(status.to_vec()).unwrap();
        assert!(status.starts_with("invalid: header says"), "round {round}: {status}");
        fs.unlink(&path).unwrap();
    }
    fs.shut();
}
