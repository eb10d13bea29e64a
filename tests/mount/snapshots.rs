//! Snapshots through a mount: what they show while everything changes, what they cost, what a kill leaves.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use serde_json::json;

use crate::harness::{Mount, Random, VEXFS, errno, f32_bytes, is_root, npy, paths, run, text};

/// Everything that a program sees of a tree, by path.
pub(crate) type Manifest = BTreeMap<String, String>;

pub(crate) fn manifest(root: &Path) -> Manifest {
    let mut found = Manifest::new();
    collect(root, Path::new(""), &mut found);
    found
}

fn collect(root: &Path, below: &Path, found: &mut Manifest) {
    let path = root.join(below);
    let meta = fs::symlink_metadata(&path).unwrap();
    let content = if meta.is_symlink() {
        format!("{:?}", fs::read_link(&path).unwrap())
    } else if meta.is_file() {
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, meta.len(), "{}", path.display());
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes))
    } else {
        String::new()
    };
    let mut xattrs = Vec::new();
    if !meta.is_symlink() {
        for name in xattr::list(&path).unwrap() {
            xattrs.push((name.clone(), xattr::get(&path, &name).unwrap().unwrap()));
        }
    }
    let line = format!(
        "{:o} {}:{} {} links {} mtime {}.{} {content} {xattrs:?}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.len(),
        meta.nlink(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    found.insert(below.to_str().unwrap().to_owned(), line);
    if meta.is_dir() {
        for entry in fs::read_dir(&path).unwrap() {
            collect(root, &below.join(entry.unwrap().file_name()), found);
        }
    }
}

fn take(mount: &Mount, name: &str) -> PathBuf {
    let path = mount.path(".vexfs/snapshots").join(name);
    fs::create_dir(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    path
}

fn release(mount: &Mount, name: &str) {
    fs::remove_dir(mount.path(".vexfs/snapshots").join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
}

fn names(mount: &Mount) -> Vec<String> {
    let listed = fs::read_dir(mount.path(".vexfs/snapshots")).unwrap();
    let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn patterned(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len / 8).flat_map(|_| random.next().to_le_bytes()).collect()
}

/// Files of every kind and size.
fn populate(mount: &Mount) {
    mount.mkdir("docs");
    mount.mkdir("docs/sub");
    mount.mkdir("plain");
    for number in 0..20_u8 {
        mount.put(&format!("docs/{number}.f32"), &[f32::from(number), 1.0, 0.5, 0.25]);
    }
    mount.put("docs/sub/deep.f32", &[3.0, 1.0, 0.5, 0.25]);
    fs::write(mount.path("docs/words.vec"), "1 2 3 4\n").unwrap();
    let rows: Vec<Vec<f32>> = (0..12_000_u16).map(|row| vec![f32::from(row), 1.0, 2.0, 3.0]).collect();
    fs::write(mount.path("docs/many.npy"), npy(&rows)).unwrap();
    fs::write(mount.path("plain/small"), b"a few bytes").unwrap();
    for (number, name) in
        ["written", "mapped", "cut", "appended", "removed", "moved", "punched"].iter().enumerate()
    {
        // One that is held open while snapshots are taken is small enough that the kernel does not have it.
        let len = if *name == "written" { 100 << 10 } else { 400 << 10 };
        fs::write(mount.path(format!("plain/{name}")), patterned(len, number as u64)).unwrap();
    }
    symlink("small", mount.path("plain/link")).unwrap();
    fs::hard_link(mount.path("plain/small"), mount.path("plain/twin")).unwrap();
    xattr::set(mount.path("plain/small"), "user.colour", b"blue").unwrap();
    fs::set_permissions(mount.path("plain"), fs::Permissions::from_mode(0o750)).unwrap();
}

/// Changes everything that [`populate`] made, in every way there is.
#[expect(unsafe_code, reason = "a shared mapping is one of the ways to write")]
fn change_everything(mount: &Mount, held_open: &File) {
    held_open.write_all_at(&patterned(64 << 10, 77), 8192).unwrap();
    let cut = File::options().write(true).open(mount.path("plain/cut")).unwrap();
    cut.set_len(100 << 10).unwrap();
    let mapped = File::options().read(true).write(true).open(mount.path("plain/mapped")).unwrap();
    // SAFETY: nobody else has the file.
    let mut map = unsafe { MmapMut::map_mut(&mapped) }.unwrap();
    map[300 << 10..].fill(0xee);
    map.flush().unwrap();
    drop(map);
    let appended = File::options().append(true).open(mount.path("plain/appended")).unwrap();
    std::io::Write::write_all(&mut &appended, b"more").unwrap();
    let punched = File::options().write(true).open(mount.path("plain/punched")).unwrap();
    let what =
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&punched, what, 0, 200 << 10).unwrap();
    fs::remove_file(mount.path("plain/removed")).unwrap();
    fs::rename(mount.path("plain/moved"), mount.path("docs/elsewhere")).unwrap();
    fs::write(mount.path("plain/small"), b"other bytes").unwrap();
    fs::remove_file(mount.path("plain/twin")).unwrap();
    fs::remove_file(mount.path("plain/link")).unwrap();
    xattr::set(mount.path("plain/small"), "user.colour", b"red").unwrap();
    fs::set_permissions(mount.path("plain"), fs::Permissions::from_mode(0o700)).unwrap();
    for number in 0..20_u8 {
        mount.put(&format!("docs/{number}.f32"), &[-f32::from(number), 7.0, 0.5, 0.25]);
    }
    fs::rename(mount.path("docs/3.f32"), mount.path("docs/4.f32")).unwrap();
    fs::write(mount.path("docs/words.vec"), "9 9 9 9\n").unwrap();
    fs::write(mount.path("docs/many.npy"), npy(&[vec![1.0, 2.0, 3.0, 4.0]])).unwrap();
    fs::remove_dir_all(mount.path("docs/sub")).unwrap();
    mount.put("docs/new.f32", &[0.0, 1.0, 0.5, 0.25]);
}

/// What searches in a tree find.
fn searches(mount: &Mount, root: &str) -> String {
    let docs = format!("{root}docs");
    let mut similar = Vec::new();
    for name in ["0.f32", "7.f32", "sub/deep.f32", "words.vec"] {
        similar.push(mount.similar(&format!("{docs}/{name}")));
    }
    let hits = paths(&mount.ask_json(&docs, &json!({"vector": [5.0, 1.0, 0.5, 0.25], "k": 8})));
    let rows = mount.ask_json(&docs, &json!({"like": "many.npy", "row": 77, "k": 5}));
    let listed = mount.json(&format!("{docs}/.vexfs/similar/7.f32/results.json"));
    let whole = mount.json(&format!("{root}.vexfs/stats.json"))["vectors"].clone();
    format!("{similar:?} {hits:?} {:?} {:?} {whole}", paths(&rows), paths(&listed))
}

fn shows(mount: &Mount, snapshot: &Path, before: &(Manifest, String)) {
    let now = manifest(snapshot);
    for (path, line) in &before.0 {
        assert_eq!(now.get(path), Some(line), "{path}");
    }
    assert_eq!(now.len(), before.0.len());
    let root = format!("{}/", snapshot.strip_prefix(mount.root()).unwrap().display());
    assert_eq!(searches(mount, &root), before.1);
}

#[test]
fn a_snapshot_shows_everything_as_it_was_across_changes_remounts_and_kills() {
    let mut mount = Mount::new();
    populate(&mount);
    let held_open = File::options().read(true).write(true).open(mount.path("plain/written")).unwrap();
    held_open.write_all_at(b"before the snapshot", 0).unwrap();
    let before = (manifest(&mount.root()), searches(&mount, ""));
    let snapshot = take(&mount, "monday");
    change_everything(&mount, &held_open);
    let mut written = vec![0; 20];
    held_open.read_exact_at(&mut written, 8192).unwrap();
    assert_eq!(written, patterned(64 << 10, 77)[..20], "the volume has what was written since");
    drop(held_open);
    shows(&mount, &snapshot, &before);
    let after = (manifest(&mount.root()), mount.similar("docs/7.f32"));
    assert_ne!(after.0, before.0);
    mount.remount();
    shows(&mount, &snapshot, &before);
    assert_eq!((manifest(&mount.root()), mount.similar("docs/7.f32")), after);
    change_everything_again(&mount);
    mount.kill();
    mount.start();
    shows(&mount, &snapshot, &before);
    assert_eq!(names(&mount), ["monday"]);
    release(&mount, "monday");
    assert_eq!(errno(fs::metadata(&snapshot)), libc::ENOENT);
    mount.remount();
    assert_eq!(names(&mount), Vec::<String>::new());
}

fn change_everything_again(mount: &Mount) {
    for name in ["written", "mapped", "cut", "appended"] {
        let path = mount.path(format!("plain/{name}"));
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"once more, after the remount", 4096).unwrap();
    }
    for number in 5..20_u8 {
        mount.put(&format!("docs/{number}.f32"), &[f32::from(number), 70.0, 0.5, 0.25]);
    }
}

#[test]
fn nothing_in_a_snapshot_can_be_changed() {
    let mount = Mount::new();
    populate(&mount);
    let snapshot = take(&mount, "s");
    let file = snapshot.join("plain/written");
    let small = snapshot.join("plain/small");
    let refused = [
        errno(fs::write(snapshot.join("new"), b"x")),
        errno(fs::write(&small, b"x")),
        errno(File::options().write(true).open(&file)),
        errno(File::options().append(true).open(&file)),
        errno(fs::remove_file(&small)),
        errno(fs::create_dir(snapshot.join("dir"))),
        errno(fs::remove_dir(snapshot.join("docs/sub"))),
        errno(fs::rename(&small, snapshot.join("plain/renamed"))),
        errno(fs::rename(&small, mount.path("out"))),
        errno(fs::rename(mount.path("plain/cut"), snapshot.join("in"))),
        errno(fs::hard_link(&small, snapshot.join("plain/again"))),
        errno(symlink("x", snapshot.join("plain/pointer"))),
        errno(xattr::set(&small, "user.colour", b"red")),
        errno(xattr::remove(&small, "user.colour")),
        errno(xattr::set(snapshot.join("docs"), "user.vexfs.recall", b"0.5")),
        errno(fs::set_permissions(&small, fs::Permissions::from_mode(0o600))),
        errno(nix::unistd::truncate(&file, 10).map_err(Into::into)),
        errno(fs::write(snapshot.join("docs/.vexfs/config"), "")),
        errno(fs::write(mount.path(".vexfs/snapshots/file"), b"x")),
    ];
    assert!(refused.iter().all(|&errno| errno == libc::EROFS), "{refused:?}");
    let health = mount.json(".vexfs/snapshots/s/.vexfs/health");
    assert_eq!((&health["status"], &health["reason"]), (&json!("read-only"), &json!("snapshot s")));
    assert!(!snapshot.join(".vexfs/snapshots").exists());
    assert_eq!(fs::read(snapshot.join(".vexfs/sync")).unwrap(), b"ok\n");
    // What is read of it may be written elsewhere.
    fs::copy(&file, mount.path("copy")).unwrap();
    assert_eq!(fs::read(mount.path("copy")).unwrap(), fs::read(&file).unwrap());
}

#[test]
fn names_are_checked_and_what_is_in_use_stays() {
    let mount = Mount::new();
    mount.put("a.f32", &[1.0, 2.0]);
    let snapshots = mount.path(".vexfs/snapshots");
    for (name, want) in [(".hidden", libc::EINVAL), (&"n".repeat(256), libc::ENAMETOOLONG)] {
        assert_eq!(errno(fs::create_dir(snapshots.join(name))), want, "{name}");
    }
    for name in ["n".repeat(255).as_str(), "two words", "\u{e4}"] {
        assert_eq!(fs::read(take(&mount, name).join("a.f32")).unwrap(), f32_bytes(&[1.0, 2.0]));
        assert_eq!(errno(fs::create_dir(snapshots.join(name))), libc::EEXIST);
    }
    assert_eq!(names(&mount).len(), 3);
    let open = File::open(snapshots.join("two words/a.f32")).unwrap();
    assert_eq!(errno(fs::remove_dir(snapshots.join("two words"))), libc::EBUSY);
    drop(open);
    crate::harness::wait_for("the file to be released", || {
        fs::remove_dir(snapshots.join("two words")).is_ok()
    });
    assert_eq!(errno(fs::remove_dir(snapshots.join("two words"))), libc::ENOENT);
    assert_eq!(names(&mount).len(), 2);
}

#[test]
fn whoever_may_write_the_root_may_take_and_drop() {
    if !is_root() {
        return;
    }
    let mount = Mount::with_options(&["-o", "allow_other"]);
    fs::set_permissions(mount.outside(""), fs::Permissions::from_mode(0o755)).unwrap();
    mount.mkdir("secret");
    fs::write(mount.path("secret/file"), b"x").unwrap();
    fs::set_permissions(mount.path("secret"), fs::Permissions::from_mode(0o700)).unwrap();
    let nobody = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(mount.root()).uid(65534).gid(65534).env("LC_ALL", "C");
        run(&mut command)
    };
    assert!(!nobody("mkdir .vexfs/snapshots/n").status.success());
    take(&mount, "s");
    assert!(!nobody("rmdir .vexfs/snapshots/s").status.success());
    let read = nobody("cat .vexfs/snapshots/s/secret/file");
    assert!(text(&read.stderr).contains("Permission denied"), "{}", text(&read.stderr));
    fs::set_permissions(mount.root(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(
        nobody("mkdir .vexfs/snapshots/n && rmdir .vexfs/snapshots/n && rmdir .vexfs/snapshots/s")
            .status
            .success()
    );
}

#[test]
fn a_directory_that_is_closed_while_too_many_searches_wait_does_not_stay_open() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let mut random = Random(11);
    let rows: Vec<_> = (0..4000).map(|_| random.vector(64)).collect();
    fs::write(mount.path("docs/rows.npy"), npy(&rows)).unwrap();
    let control = take(&mount, "s").join("docs/.vexfs");
    let open: Vec<_> = (0..20).map(|_| File::open(&control).unwrap()).collect();
    let mut request = b"{\"dtype\":\"f32\",\"rows\":200,\"dim\":64,\"k\":3}\n".to_vec();
    request.extend(rows[..200].iter().flat_map(|row| f32_bytes(row)));
    // More than the threads of the search pool and its queue have room for.
    let room = 65 * std::thread::available_parallelism().unwrap().get().max(2);
    let asking: Vec<_> = (0..room + 60).map(|_| mount.query_file("docs")).collect();
    asking.iter().for_each(|mut query| query.write_all(&request).unwrap());
    let refused = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for query in &asking {
            scope.spawn(|| {
                while let Err(error) = query.read_at(&mut [0; 8], 0) {
                    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
                    refused.store(true, Ordering::Relaxed);
                    std::thread::yield_now();
                }
            });
        }
        crate::harness::wait_for("a search to be refused", || refused.load(Ordering::Relaxed));
        drop(open);
    });
    crate::harness::wait_for("the snapshot to be in use no longer", || {
        fs::remove_dir(mount.path(".vexfs/snapshots/s")).is_ok()
    });
}

/// Bytes that blobs below a directory take of the disk.
fn used(store: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(store).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let is_blob = entry.path().extension().is_some_and(|extension| extension == "blob");
        bytes += match meta.is_dir() {
            true => used(&entry.path()),
            false => u64::from(is_blob) * meta.blocks() * 512,
        };
    }
    bytes
}

fn held(mount: &Mount) -> u64 {
    mount.json(".vexfs/snapshots.json")["held_bytes"].as_u64().unwrap()
}

#[test]
fn space_is_freed_when_the_last_user_goes() {
    const FILE: usize = 8 << 20;
    let mut mount = Mount::new();
    fs::write(mount.path("kept"), patterned(FILE, 1)).unwrap();
    fs::write(mount.path("gone"), patterned(FILE, 2)).unwrap();
    mount.sync();
    let blobs = mount.store().join("blobs");
    let full = used(&blobs);
    take(&mount, "first");
    take(&mount, "second");
    fs::remove_file(mount.path("gone")).unwrap();
    mount.sync();
    assert_eq!((used(&blobs), held(&mount)), (full, FILE as u64), "both snapshots have the file");
    release(&mount, "first");
    assert_eq!(used(&blobs), full, "the second still has it");
    assert_eq!(fs::read(mount.path(".vexfs/snapshots/second/gone")).unwrap(), patterned(FILE, 2));
    mount.remount();
    assert_eq!((used(&blobs), held(&mount)), (full, FILE as u64));
    release(&mount, "second");
    assert_eq!((used(&blobs), held(&mount)), (full - FILE as u64, 0));
    assert_eq!(fs::read(mount.path("kept")).unwrap(), patterned(FILE, 1));
}

#[test]
fn slots_are_held_and_used_again_once_no_snapshot_names_them() {
    let mount = Mount::new();
    mount.mkdir("v");
    let vector = |seed: u16| -> Vec<f32> { (0..512_u16).map(|at| f32::from(at * 7 + seed) + 1.0).collect() };
    let fill =
        |seed: u16| (0..2000_u16).for_each(|file| mount.put(&format!("v/{file}.f32"), &vector(seed + file)));
    let segments = || fs::read_dir(mount.store().join("segments")).unwrap().count();
    fill(0);
    take(&mount, "s");
    let one = segments();
    fill(1);
    mount.sync();
    fill(2);
    mount.sync();
    let three = segments();
    assert!(three > one, "what the snapshot names is not overwritten");
    // A row that died lately may still be read.
    crate::harness::wait_for("all that the snapshot alone names to be held", || {
        mount.sync();
        held(&mount) >= 2000 * 2048
    });
    for file in [0, 999, 1999] {
        let was = fs::read(mount.path(format!(".vexfs/snapshots/s/v/{file}.f32"))).unwrap();
        assert_eq!(was, f32_bytes(&vector(file)));
    }
    release(&mount, "s");
    assert_eq!(held(&mount), 0);
    // Each round would take a segment more. What died last is free a little later, when nothing reads it.
    for seed in 3..9 {
        fill(seed);
        mount.sync();
    }
    assert!(segments() <= three + 2, "what was held is used again: {three}, then {}", segments());
}

#[test]
fn a_large_snapshot_searches_through_the_graph_of_its_time() {
    let mount = Mount::new();
    mount.mkdir("v");
    let mut random = Random(11);
    let rows: Vec<Vec<f32>> = (0..8000).map(|_| random.vector(16)).collect();
    fs::write(mount.path("v/rows.npy"), npy(&rows)).unwrap();
    mount.sync();
    let query = json!({"vector": rows[4321], "k": 10, "ef": 400});
    let before = mount.ask_json("v", &query);
    assert_eq!(before["exact"], json!(false));
    take(&mount, "s");
    fs::remove_file(mount.path("v/rows.npy")).unwrap();
    mount.put("v/other.f32", &random.vector(16));
    mount.sync();
    let after = mount.ask_json(".vexfs/snapshots/s/v", &query);
    assert_eq!(after["exact"], json!(false));
    assert_eq!(after["hits"], before["hits"]);
    assert_eq!(mount.ask_json("v", &query)["hits"].as_array().unwrap().len(), 1);
}

#[test]
fn the_command_takes_lists_drops_and_restores() {
    let mut mount = Mount::new();
    populate(&mount);
    let before = (manifest(&mount.root()), searches(&mount, ""));
    let vexfs = |args: &[&str], last: &[&Path]| {
        let output = run(Command::new(VEXFS).arg("snapshot").args(args).args(last));
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let root = mount.root();
    let ok = (0, String::new(), String::new());
    assert_eq!(vexfs(&["create"], &[&root, Path::new("good")]), ok);
    assert_eq!(vexfs(&["create"], &[&root.join("docs"), Path::new("other")]), ok);
    let (_, listed, _) = vexfs(&["list"], &[&root]);
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].ends_with("Z  good") && lines[1].ends_with("Z  other"), "{listed}");
    assert_eq!(lines[2], "0 bytes are held for snapshots alone");
    let (_, listed, _) = vexfs(&["list", "--json"], &[&root]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed["schema"], &listed["snapshots"][1]["name"]), (&json!(1), &json!("other")));
    assert_eq!(vexfs(&["drop"], &[&root, Path::new("other")]), ok);
    let (code, _, message) = vexfs(&["drop"], &[&root, Path::new("other")]);
    assert_eq!(code, 1, "{message}");

    let held_open = File::options().write(true).open(mount.path("plain/written")).unwrap();
    change_everything(&mount, &held_open);
    drop(held_open);
    let (code, _, message) = vexfs(&["restore"], &[&mount.store(), Path::new("good")]);
    assert!(code == 5 && message.contains("in use"), "{code} {message}");
    mount.unmount();
    let (code, _, message) = vexfs(&["restore"], &[&mount.store(), Path::new("bad")]);
    assert!(code == 4 && message.contains("no snapshot bad"), "{code} {message}");
    for _ in 0..2 {
        assert_eq!(vexfs(&["restore"], &[&mount.store(), Path::new("good")]), ok);
        mount.start();
        assert_eq!((manifest(&mount.root()), searches(&mount, "")), before);
        let snapshot = mount.path(".vexfs/snapshots/good");
        shows(&mount, &snapshot, &before);
        // Numbers of inodes, rows and blobs are given out anew: what is new must not meet what was.
        for number in 0..40_u8 {
            mount.put(&format!("docs/{number}.f32"), &[f32::from(number), -1.0, 0.5, 0.25]);
            fs::write(mount.path(format!("plain/new-{number}")), patterned(40 << 10, u64::from(number)))
                .unwrap();
        }
        mount.sync();
        shows(&mount, &snapshot, &before);
        mount.unmount();
    }
    assert!(!mount.store().join("catalog.new").exists());
}

#[test]
fn a_kill_while_snapshots_come_and_go_leaves_whole_ones_and_no_lost_space() {
    let seed = u64::from(std::process::id());
    let mut random = Random(seed);
    eprintln!("seed {seed}");
    let mut mount = Mount::new();
    let generation = |round: u64| patterned(48 << 10, round);
    fs::write(mount.path("a"), generation(0)).unwrap();
    fs::write(mount.path("b"), generation(0)).unwrap();
    let mut taken: Vec<String> = Vec::new();
    for round in 0..6_u64 {
        let stop = AtomicBool::new(false);
        let (root, limit) = (mount.root(), Duration::from_millis(50 + random.below(400)));
        let (mut maybe, mut dropped) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let file = File::options().write(true).open(root.join("a"));
                for number in 0.. {
                    // The one in place, the other by a new name: each is one whole write.
                    let bytes = generation(number);
                    let written = file.as_ref().is_ok_and(|file| file.write_all_at(&bytes, 0).is_ok())
                        && fs::write(root.join("c"), &bytes).is_ok()
                        && fs::rename(root.join("c"), root.join("b")).is_ok();
                    if !written || stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let snapper = scope.spawn(|| {
                let snapshots = root.join(".vexfs/snapshots");
                for number in 0.. {
                    let name = format!("{round}-{number}");
                    maybe.push(name.clone());
                    if fs::create_dir(snapshots.join(&name)).is_err() {
                        return;
                    }
                    taken.push(name);
                    if taken.len() > 3 {
                        dropped.push(taken[0].clone());
                        if fs::remove_dir(snapshots.join(&taken[0])).is_err() {
                            return;
                        }
                        taken.remove(0);
                    }
                }
            });
            let deadline = Instant::now() + limit;
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            mount.kill();
            stop.store(true, Ordering::Relaxed);
            snapper.join().unwrap();
            writer.join().unwrap();
        });
        mount.start();
        let there = names(&mount);
        for name in &taken {
            let may_be_gone = dropped.last() == Some(name);
            assert!(
                may_be_gone || there.contains(name),
                "seed {seed}: {name} of {taken:?} is not in {there:?}"
            );
        }
        for name in &there {
            let known = taken.contains(name) || maybe.last() == Some(name) || dropped.last() == Some(name);
            assert!(known, "seed {seed}: {name} came from nowhere");
            for file in ["a", "b"] {
                let bytes = fs::read(mount.path(format!(".vexfs/snapshots/{name}/{file}"))).unwrap();
                assert_eq!(bytes.len(), 48 << 10, "seed {seed}: {name}/{file}");
                let whole = (0..4000)
                    .any(|number| bytes[..8] == patterned(8, number)[..] && bytes == generation(number));
                assert!(whole, "seed {seed}: {name}/{file} is of no one generation");
            }
        }
        taken = there;
    }
    for name in names(&mount) {
        release(&mount, &name);
    }
    mount.sync();
    let listed = run(Command::new("find").arg(mount.store().join("blobs")).args(["-name", "*.blob"]));
    assert!(text(&listed.stdout).lines().count() <= 3, "seed {seed}: blobs that nothing names");
    for name in ["scratch", "snapshots"] {
        assert_eq!(fs::read_dir(mount.store().join(name)).unwrap().count(), 0, "seed {seed}: {name}");
    }
}

#[test]
fn a_restore_that_is_killed_has_restored_everything_or_nothing() {
    let seed = u64::from(std::process::id());
    let mut random = Random(seed);
    eprintln!("seed {seed}");
    let mut mount = Mount::new();
    populate(&mount);
    let before = manifest(&mount.root());
    take(&mount, "s");
    let mut restored = true;
    for round in 0..12 {
        if restored {
            let held_open = File::options().write(true).open(mount.path("plain/written")).unwrap();
            change_everything(&mount, &held_open);
        }
        let changed = manifest(&mount.root());
        mount.unmount();
        let mut restore = Command::new(VEXFS);
        restore.args(["snapshot", "restore"]).arg(mount.store()).arg("s");
        let mut restore = restore.spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        restore.kill().unwrap();
        restore.wait().unwrap();
        mount.start();
        let now = manifest(&mount.root());
        restored = now == before;
        assert!(restored || now == changed, "seed {seed}, round {round}: neither the one nor the other");
        assert_eq!(manifest(&mount.path(".vexfs/snapshots/s")), before, "seed {seed}, round {round}");
        assert!(!mount.store().join("catalog.new").exists(), "seed {seed}, round {round}");
    }
}

#[test]
fn what_a_death_leaves_of_a_snapshot_or_a_restore_is_cleared_away() {
    let mut mount = Mount::new();
    populate(&mount);
    let before = (manifest(&mount.root()), searches(&mount, ""));
    take(&mount, "whole");
    take(&mount, "half");
    mount.unmount();
    let snapshots = mount.store().join("snapshots");
    // Died before the name: nothing. Died after it was renamed away: gone.
    fs::rename(snapshots.join("half"), snapshots.join(".new")).unwrap();
    mount.start();
    assert_eq!(names(&mount), ["whole"]);
    take(&mount, "half");
    mount.unmount();
    fs::rename(snapshots.join("half"), snapshots.join(".gone")).unwrap();
    fs::create_dir(mount.store().join("catalog.new")).unwrap();
    fs::write(mount.store().join("catalog.new/version"), b"half").unwrap();
    fs::write(mount.store().join("scratch/left"), b"x").unwrap();
    // Derived state: damaged, or left by another snapshot of that name, it is made again.
    let named = snapshots.join("whole/named");
    let good = fs::read(&named).unwrap();
    let mut other = good.clone();
    other[0] ^= 1;
    fs::write(&named, other).unwrap();
    mount.start();
    let again = fs::read(&named).unwrap();
    assert_eq!((again.len(), &again[..8]), (good.len(), &good[..8]));
    assert_eq!(names(&mount), ["whole"]);
    assert_eq!((manifest(&mount.root()), searches(&mount, "")), before);
    shows(&mount, &mount.path(".vexfs/snapshots/whole"), &before);
    assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 1);
    assert!(!mount.store().join("catalog.new").exists());
    // One that cannot be read is named, and nothing that it may need is given away.
    mount.unmount();
    fs::write(snapshots.join("whole/snapshot"), b"damage").unwrap();
    let output =
        run(Command::new(VEXFS).args(["mount", "-f", "--store"]).arg(mount.store()).arg(mount.root()));
    let message = text(&output.stderr);
    assert!(output.status.code() == Some(6) && message.contains("snapshots/whole/snapshot"), "{message}");
    fs::remove_dir_all(snapshots.join("whole")).unwrap();
    mount.start();
    assert_eq!((manifest(&mount.root()), searches(&mount, "")), before);
}

#[test]
fn a_plain_copy_of_a_store_that_is_not_mounted_is_a_backup() {
    let mut mount = Mount::new();
    populate(&mount);
    let before = (manifest(&mount.root()), searches(&mount, ""));
    take(&mount, "s");
    let held_open = File::options().write(true).open(mount.path("plain/written")).unwrap();
    change_everything(&mount, &held_open);
    drop(held_open);
    let now = manifest(&mount.root());
    mount.unmount();
    let copied = run(Command::new("cp").arg("-a").arg(mount.store()).arg(mount.outside("copy")));
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    fs::remove_dir_all(mount.store()).unwrap();
    fs::rename(mount.outside("copy"), mount.store()).unwrap();
    mount.start();
    assert_eq!(manifest(&mount.root()), now);
    shows(&mount, &mount.path(".vexfs/snapshots/s"), &before);
}

#[test]
fn fsck_knows_what_snapshots_hold_and_names_one_that_is_damaged() {
    let mut mount = Mount::new();
    populate(&mount);
    take(&mount, "other");
    let held_open = File::options().write(true).open(mount.path("plain/written")).unwrap();
    fs::remove_file(mount.path("docs/5.f32")).unwrap();
    let snapshot = take(&mount, "s");
    change_everything(&mount, &held_open);
    drop(held_open);
    release(&mount, "other");
    let now = manifest(&mount.root());
    mount.unmount();
    let store = mount.store();
    let fsck = |args: &[&str], code: i32| {
        let output = run(Command::new(VEXFS).arg("fsck").arg(&store).arg("--json").args(args));
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    for args in [&[][..], &["--repair"]] {
        let sound = fsck(args, 0);
        assert_eq!((&sound["findings"], &sound["left_for_mount"]["blobs"]), (&json!([]), &json!(0)));
    }

    // The one blob that is sealed, as the head of its checksums says, is that of many.npy, which the mount has no more.
    let listed = run(Command::new("find").arg(store.join("blobs")).args(["-name", "*.sums"]));
    let all = text(&listed.stdout);
    let sealed: Vec<&str> = all.lines().filter(|path| fs::read(path).unwrap()[8] == 1).collect();
    let [sums] = sealed[..] else { panic!("{all}") };
    let blob = Path::new(sums).with_extension("blob");
    let file = File::options().read(true).write(true).open(&blob).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 70_000).unwrap();
    file.write_all_at(&[!byte[0]], 70_000).unwrap();
    for args in [&[][..], &["--repair"]] {
        let found = fsck(args, 6);
        let finding = &found["findings"][0];
        assert_eq!(
            (&finding["path"], &finding["state"]),
            (&json!("/.vexfs/snapshots/s/docs/many.npy"), &json!("damaged"))
        );
        assert_eq!((&finding["offset"], found["findings"].as_array().unwrap().len()), (&json!(65_536), 1));
    }
    mount.start();
    assert_eq!(manifest(&mount.root()), now, "the newest state is whole");
    assert_eq!(errno(fs::read(snapshot.join("docs/many.npy"))), libc::EUCLEAN);
    assert_eq!(fs::read(snapshot.join("plain/small")).unwrap(), b"a few bytes");
    mount.unmount();

    fs::write(store.join("snapshots/s/catalog/version"), b"?").unwrap();
    let found = fsck(&["--repair"], 6);
    assert_eq!(found["findings"][0]["file"], json!("snapshots/s/catalog/version"));
    assert!(blob.exists());
}

#[test]
fn a_condition_in_a_snapshot_is_about_the_attributes_of_its_moment() {
    let mount = Mount::new();
    mount.mkdir("docs");
    for name in ["a", "b", "c"] {
        mount.put(&format!("docs/{name}.f32"), &[1.0, 2.0]);
        xattr::set(mount.path(format!("docs/{name}.f32")), "user.lang", b"en").unwrap();
    }
    xattr::set(mount.path("docs/c.f32"), "user.lang", b"de").unwrap();
    let ask = |dir: &str| paths(&mount.ask_json(dir, &json!({"vector": [1.0, 2.0], "where": "lang=en"})));
    assert_eq!(ask("docs"), ["a.f32", "b.f32"]);
    take(&mount, "then");
    xattr::set(mount.path("docs/a.f32"), "user.lang", b"de").unwrap();
    xattr::remove(mount.path("docs/b.f32"), "user.lang").unwrap();
    xattr::set(mount.path("docs/c.f32"), "user.lang", b"en").unwrap();
    assert_eq!(ask("docs"), ["c.f32"]);
    assert_eq!(ask(".vexfs/snapshots/then/docs"), ["a.f32", "b.f32"]);
    let results = ".vexfs/snapshots/then/docs/.vexfs/@where=lang=de/similar/a.f32/results.json";
    assert_eq!(paths(&mount.json(results)), ["c.f32"]);
}

#[test]
fn a_search_in_a_snapshot_like_a_file_of_now_is_for_the_vector_of_now() {
    let mount = Mount::new();
    mount.mkdir("c");
    for (name, vector) in [("a", "1 0"), ("b", "1 1"), ("x", "0 1")] {
        fs::write(mount.path(format!("c/{name}.vec")), format!("{vector}\n")).unwrap();
    }
    let old = take(&mount, "s").join("c");
    fs::write(mount.path("c/a.vec"), "0 1\n").unwrap();
    fs::write(mount.path("c/new.vec"), "3 1\n").unwrap();
    take(&mount, "t");
    let nearest = |dir: &Path, like: &Path| {
        let args = [dir.as_os_str(), "--like".as_ref(), like.as_os_str(), "-k".as_ref(), "1".as_ref()];
        let output = run(Command::new(VEXFS).arg("search").args(args));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let printed = text(&output.stdout);
        printed.lines().last().unwrap().split_whitespace().last().unwrap().to_owned()
    };
    let now = mount.path("c");
    assert_eq!(nearest(&old, &now.join("a.vec")), "x.vec");
    assert_eq!(nearest(&old, &now.join("new.vec")), "a.vec");
    assert_eq!(nearest(&now, &old.join("a.vec")), "new.vec");
    assert_eq!(nearest(&mount.path(".vexfs/snapshots/t/c"), &old.join("a.vec")), "new.vec");
    // Within one it is asked for by its name, and not found itself.
    assert_eq!(nearest(&old, &old.join("a.vec")), "b.vec");
}
