//! Names, inodes and extended attributes: what is made, moved, linked, listed, owned and reserved.

use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::fs::{chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::mkfifo;

use crate::harness::{Mount, errno, f32_bytes, run, shell, text};

/// A user who owns nothing.
const NOBODY: u32 = 65534;

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    renameat2(AT_FDCWD, from, AT_FDCWD, to, flags).map_err(io::Error::from)
}

fn meta(path: &Path) -> Metadata {
    fs::symlink_metadata(path).unwrap()
}

/// Names in a directory, in order.
fn listed(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort_unstable();
    names
}

/// Changing owners, and being somebody else, takes root. Says so where it is missing.
fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("{test}: not checked, it needs root");
    }
    root
}

/// A mount that other users reach.
fn shared_mount() -> Mount {
    let mount = Mount::with_options(&["-o", "allow_other"]);
    fs::set_permissions(mount.outside("."), Permissions::from_mode(0o755)).unwrap();
    mount
}

/// Runs a shell script as a user who owns nothing, and returns whether it succeeded, and what it said.
fn as_nobody(dir: &Path, script: &str) -> (bool, String) {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(dir).uid(NOBODY).gid(NOBODY).env("LC_ALL", "C");
    let output = run(&mut command);
    (output.status.success(), text(&output.stderr))
}

#[test]
fn directories_are_made_once_and_removed_when_empty() {
    let mount = Mount::new();
    let a = mount.mkdir("a");
    assert_eq!(errno(fs::create_dir(&a)), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(mount.path("none/b"))), libc::ENOENT);
    let links = meta(&a).nlink();
    mount.mkdir("a/b");
    assert_eq!(meta(&a).nlink(), links + 1);
    assert_eq!(errno(fs::remove_dir(&a)), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(&a)), libc::EISDIR);
    fs::write(mount.path("a/f"), b"x").unwrap();
    assert_eq!(errno(fs::remove_dir(mount.path("a/f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::create_dir(mount.path("a/f/c"))), libc::ENOTDIR);
    fs::remove_file(mount.path("a/f")).unwrap();
    fs::remove_dir(mount.path("a/b")).unwrap();
    assert_eq!(meta(&a).nlink(), links);
    fs::remove_dir(&a).unwrap();
    assert_eq!(errno(fs::metadata(&a)), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(&a)), libc::ENOENT);
}

#[test]
fn files_are_created_exclusively_or_opened() {
    let mount = Mount::new();
    let path = mount.path("f");
    File::create_new(&path).unwrap().write_all(b"first").unwrap();
    assert_eq!(errno(File::create_new(&path)), libc::EEXIST);
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(errno(File::open(mount.path("g"))), libc::ENOENT);
    assert_eq!(errno(File::create(mount.root())), libc::EISDIR);
    fs::remove_file(&path).unwrap();
    assert_eq!(errno(fs::remove_file(&path)), libc::ENOENT);
}

#[test]
fn a_rename_replaces_refuses_or_exchanges() {
    let mount = Mount::new();
    let (a, b, dir, full) = (mount.path("a"), mount.path("b"), mount.mkdir("dir"), mount.mkdir("full"));
    fs::write(&a, b"a").unwrap();
    fs::write(&b, b"b").unwrap();
    fs::write(full.join("x"), b"x").unwrap();
    assert_eq!(errno(rename_with(&a, &b, RenameFlags::RENAME_NOREPLACE)), libc::EEXIST);
    rename_with(&a, &b, RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    rename_with(&a, &full, RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!((fs::read(&full).unwrap(), fs::read(a.join("x")).unwrap()), (b"b".to_vec(), b"x".to_vec()));
    rename_with(&a, &full, RenameFlags::RENAME_EXCHANGE).unwrap();
    let missing = mount.path("missing");
    assert_eq!(errno(rename_with(&a, &missing, RenameFlags::RENAME_EXCHANGE)), libc::ENOENT);
    rename_with(&a, &missing, RenameFlags::RENAME_NOREPLACE).unwrap();
    fs::rename(&missing, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"b");
    assert_eq!(errno(fs::rename(&b, &dir)), libc::EISDIR);
    assert_eq!(errno(fs::rename(&dir, &b)), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(&dir, &full)), libc::ENOTEMPTY);
    fs::rename(&full, &dir).unwrap();
    assert_eq!(fs::read(dir.join("x")).unwrap(), b"x");
    assert_eq!(listed(&mount.root()), ["b", "dir"]);
}

#[test]
fn a_rename_over_an_open_file_keeps_the_old_content_for_its_handle() {
    let mount = Mount::new();
    for (old, new) in [(b"old".to_vec(), b"new".to_vec()), (vec![1; 40_000], vec![2; 50_000])] {
        let (a, b) = (mount.path("a"), mount.path("b"));
        fs::write(&a, &old).unwrap();
        fs::write(&b, &new).unwrap();
        let mut handle = File::options().read(true).write(true).open(&a).unwrap();
        fs::rename(&b, &a).unwrap();
        assert_eq!(handle.metadata().unwrap().nlink(), 0);
        let mut content = Vec::new();
        handle.read_to_end(&mut content).unwrap();
        assert_eq!(content, old);
        handle.write_all(b"more").unwrap();
        drop(handle);
        assert_eq!(fs::read(&a).unwrap(), new);
        assert_eq!(errno(fs::metadata(&b)), libc::ENOENT);
    }
}

#[test]
fn a_directory_moves_with_everything_below_it_but_not_into_itself() {
    let mount = Mount::new();
    let (a, b) = (mount.mkdir("a"), mount.mkdir("b"));
    mount.mkdir("a/sub");
    mount.mkdir("a/sub/deep");
    fs::write(mount.path("a/sub/deep/f"), b"x").unwrap();
    let (ino, from, to) = (meta(&a.join("sub")).ino(), meta(&a).nlink(), meta(&b).nlink());
    assert_eq!(errno(fs::rename(&a, a.join("sub/deep/a"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(&a, a.join("a"))), libc::EINVAL);
    let inside = File::open(a.join("sub/deep/f")).unwrap();
    fs::rename(a.join("sub"), b.join("moved")).unwrap();
    assert_eq!(meta(&b.join("moved")).ino(), ino);
    assert_eq!(meta(&b.join("moved/..")).ino(), meta(&b).ino());
    assert_eq!((meta(&a).nlink(), meta(&b).nlink()), (from - 1, to + 1));
    assert_eq!(fs::read(b.join("moved/deep/f")).unwrap(), b"x");
    assert_eq!(inside.metadata().unwrap().ino(), meta(&b.join("moved/deep/f")).ino());
    // An ancestor cannot take the place of its descendant, nor the other way round.
    assert_eq!(errno(fs::rename(b.join("moved/deep"), b.join("moved"))), libc::ENOTEMPTY);
    let exchange = rename_with(&b, &b.join("moved/deep"), RenameFlags::RENAME_EXCHANGE);
    assert_eq!(errno(exchange), libc::EINVAL);
}

#[test]
fn hard_links_are_names_of_one_inode() {
    let mut mount = Mount::new();
    mount.mkdir("d");
    let (a, b) = (mount.path("a"), mount.path("d/b"));
    fs::write(&a, b"one").unwrap();
    fs::hard_link(&a, &b).unwrap();
    assert_eq!((meta(&a).ino(), meta(&a).nlink()), (meta(&b).ino(), 2));
    fs::write(&b, b"other").unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"other");
    assert_eq!(errno(fs::hard_link(&a, &b)), libc::EEXIST);
    assert_eq!(errno(fs::hard_link(mount.path("d"), mount.path("e"))), libc::EPERM);
    // Renaming one name of an inode over another does nothing.
    fs::rename(&a, &b).unwrap();
    assert_eq!(meta(&a).nlink(), 2);
    mount.remount();
    assert_eq!((meta(&a).ino(), meta(&a).nlink()), (meta(&b).ino(), 2));
    fs::remove_file(&a).unwrap();
    assert_eq!((fs::read(&b).unwrap(), meta(&b).nlink()), (b"other".to_vec(), 1));
}

#[test]
fn symbolic_links_hold_any_target() {
    let mount = Mount::new();
    let long = "x/".repeat(2047);
    for target in ["nowhere", "../../etc", "/", "a b\n", &long] {
        let link = mount.path("link");
        symlink(target, &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap().as_os_str(), target);
        assert_eq!(meta(&link).len(), target.len() as u64);
        assert_eq!(errno(symlink("again", &link)), libc::EEXIST);
        fs::remove_file(&link).unwrap();
    }
    symlink("loop", mount.path("loop")).unwrap();
    assert_eq!(errno(fs::read(mount.path("loop"))), libc::ELOOP);
    mount.mkdir("d");
    fs::write(mount.path("d/f"), b"through").unwrap();
    symlink("d", mount.path("s")).unwrap();
    assert_eq!(fs::read(mount.path("s/f")).unwrap(), b"through");
    symlink("d/missing", mount.path("dangling")).unwrap();
    assert_eq!(errno(fs::metadata(mount.path("dangling"))), libc::ENOENT);
    fs::write(mount.path("dangling"), b"made").unwrap();
    assert_eq!(fs::read(mount.path("d/missing")).unwrap(), b"made");
}

#[test]
fn modes_and_times_are_kept_to_the_nanosecond_also_before_1970() {
    let mut mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, b"x").unwrap();
    symlink("f", mount.path("link")).unwrap();
    for mode in [0o000, 0o7777, 0o640, 0o1755, 0o4711] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        assert_eq!(meta(&path).mode() & 0o7777, mode);
    }
    let stamps = [(-1, 1), (-14_182_940, 999_999_999), (0, 0), (4_000_000_000, 123_456_789)];
    for (secs, nanos) in stamps {
        let (atime, mtime) = (TimeSpec::new(secs, nanos), TimeSpec::new(secs + 1, nanos));
        utimensat(AT_FDCWD, &path, &atime, &mtime, UtimensatFlags::FollowSymlink).unwrap();
        let meta = meta(&path);
        assert_eq!((meta.atime(), meta.atime_nsec()), (secs, nanos));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (secs + 1, nanos));
    }
    let (old, omit) = (TimeSpec::new(7, 8), TimeSpec::UTIME_OMIT);
    utimensat(AT_FDCWD, &mount.path("link"), &old, &old, UtimensatFlags::NoFollowSymlink).unwrap();
    utimensat(AT_FDCWD, &path, &omit, &old, UtimensatFlags::FollowSymlink).unwrap();
    mount.remount();
    let (file, link) = (meta(&path), meta(&mount.path("link")));
    assert_eq!((file.atime(), file.mtime(), file.mtime_nsec()), (4_000_000_000, 7, 8));
    assert_eq!((link.mtime(), link.mtime_nsec()), (7, 8));
    assert_eq!(file.mode() & 0o7777, 0o4711);
}

#[test]
fn changes_move_the_times_that_posix_names() {
    let mount = Mount::new();
    let (dir, path) = (mount.mkdir("d"), mount.path("d/f"));
    fs::write(&path, b"x").unwrap();
    let old = TimeSpec::new(1000, 0);
    let age = |path: &Path| utimensat(AT_FDCWD, path, &old, &old, UtimensatFlags::FollowSymlink).unwrap();
    age(&path);
    age(&dir);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert_eq!((meta(&path).mtime(), meta(&dir).mtime()), (1000, 1000), "chmod changes the inode only");
    assert!(meta(&path).ctime() > 1000);
    fs::write(&path, b"y").unwrap();
    assert!(meta(&path).mtime() > 1000);
    assert_eq!(meta(&dir).mtime(), 1000, "writing a file does not change its directory");
    fs::rename(&path, mount.path("d/g")).unwrap();
    assert!(meta(&dir).mtime() > 1000);
    age(&dir);
    fs::remove_file(mount.path("d/g")).unwrap();
    assert!(meta(&dir).mtime() > 1000);
}

#[test]
fn owners_change_and_only_root_or_the_owner_may_change_modes() {
    if !is_root("owners_change_and_only_root_or_the_owner_may_change_modes") {
        return;
    }
    let mount = shared_mount();
    let path = mount.path("f");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let (done, message) = as_nobody(&mount.root(), "chmod 600 f");
    assert!(!done && message.contains("Operation not permitted"), "{message}");
    let (done, message) = as_nobody(&mount.root(), "echo y > f");
    assert!(!done && message.contains("Permission denied"), "{message}");
    let (done, message) = as_nobody(&mount.root(), "touch new");
    assert!(!done && message.contains("Permission denied"), "{message}");
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    assert_eq!((meta(&path).uid(), meta(&path).gid()), (NOBODY, NOBODY));
    let (done, message) = as_nobody(&mount.root(), "chmod 600 f && echo y > f && test -r f");
    assert!(done, "{message}");
    let (done, message) = as_nobody(&mount.root(), "chown 0 f");
    assert!(!done && message.contains("Operation not permitted"), "{message}");
    symlink("f", mount.path("link")).unwrap();
    std::os::unix::fs::lchown(mount.path("link"), Some(1), Some(2)).unwrap();
    assert_eq!((meta(&mount.path("link")).uid(), meta(&path).uid()), (1, NOBODY));
}

#[test]
fn a_change_of_owner_clears_setuid_and_setgid() {
    if !is_root("a_change_of_owner_clears_setuid_and_setgid") {
        return;
    }
    let mount = shared_mount();
    let path = mount.path("f");
    fs::write(&path, b"x").unwrap();
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o6755)).unwrap();
    let (done, message) = as_nobody(&mount.root(), &format!("chgrp {NOBODY} f"));
    assert!(done, "{message}");
    assert_eq!(meta(&path).mode() & 0o7777, 0o755);
}

#[test]
fn a_sticky_directory_keeps_others_from_removing() {
    if !is_root("a_sticky_directory_keeps_others_from_removing") {
        return;
    }
    let mount = shared_mount();
    let dir = mount.mkdir("tmp");
    fs::set_permissions(&dir, Permissions::from_mode(0o1777)).unwrap();
    fs::write(dir.join("f"), b"x").unwrap();
    let (done, message) = as_nobody(&dir, "rm -f f");
    assert!(!done && message.contains("Operation not permitted"), "{message}");
    let (done, message) = as_nobody(&dir, "mv f g");
    assert!(!done && message.contains("Operation not permitted"), "{message}");
    let (done, message) = as_nobody(&dir, "echo own > own && mv own other && rm other");
    assert!(done, "{message}");
}

#[test]
fn what_is_made_in_a_setgid_directory_gets_its_group() {
    if !is_root("what_is_made_in_a_setgid_directory_gets_its_group") {
        return;
    }
    let mount = Mount::new();
    let dir = mount.mkdir("shared");
    chown(&dir, None, Some(4242)).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o2775)).unwrap();
    fs::write(dir.join("f"), b"x").unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    symlink("f", dir.join("link")).unwrap();
    for name in ["f", "sub", "link"] {
        assert_eq!(meta(&dir.join(name)).gid(), 4242, "{name}");
    }
    assert_eq!(meta(&dir.join("sub")).mode() & 0o2000, 0o2000, "a directory passes it on");
    assert_eq!(meta(&dir.join("f")).mode() & 0o2000, 0);
}

#[test]
fn the_umask_and_the_mode_of_the_call_decide_the_first_mode() {
    let mount = Mount::new();
    shell(&mount.root(), "umask 027; touch f; mkdir d; umask 000; touch g");
    assert_eq!(meta(&mount.path("f")).mode() & 0o7777, 0o640);
    assert_eq!(meta(&mount.path("d")).mode() & 0o7777, 0o750);
    assert_eq!(meta(&mount.path("g")).mode() & 0o7777, 0o666);
    fs::DirBuilder::new().mode(0o700).create(mount.path("private")).unwrap();
    assert_eq!(meta(&mount.path("private")).mode() & 0o7777, 0o700);
}

#[test]
fn a_large_directory_is_listed_whole_while_it_is_emptied() {
    const ENTRIES: usize = 3000;
    let mount = Mount::new();
    let dir = mount.mkdir("many");
    for i in 0..ENTRIES {
        File::create_new(dir.join(format!("entry-{i}"))).unwrap();
    }
    assert_eq!(listed(&dir).len(), ENTRIES);
    let mut seen = HashSet::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert!(seen.insert(entry.file_name()), "{:?} was listed twice", entry.file_name());
        fs::remove_file(entry.path()).unwrap();
    }
    assert_eq!(seen.len(), ENTRIES, "entries were skipped");
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn a_listing_survives_entries_that_come_and_go() {
    let mount = Mount::new();
    let dir = mount.mkdir("d");
    for i in 0..500 {
        File::create_new(dir.join(format!("stays-{i}"))).unwrap();
    }
    let mut seen = HashSet::new();
    for (i, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name();
        assert!(seen.insert(name.clone()), "{name:?} was listed twice");
        if i < 600 {
            File::create_new(dir.join(format!("a-new-{i}"))).unwrap();
            fs::rename(dir.join(format!("a-new-{i}")), dir.join(format!("z-new-{i}"))).unwrap();
        }
    }
    let stays = seen.iter().filter(|name| name.as_bytes().starts_with(b"stays-")).count();
    assert_eq!(stays, 500, "what was there all the time is listed");
}

#[test]
fn names_are_any_bytes_up_to_255() {
    let mut mount = Mount::new();
    let names = [
        vec![b'x'; 255],
        b"\xff\xfe\x80".to_vec(),
        b"line\nbreak\ttab".to_vec(),
        b" ".to_vec(),
        b"-rf".to_vec(),
        b"...".to_vec(),
        "\u{1f600}".as_bytes().to_vec(),
        b"back\\slash".to_vec(),
    ];
    let path = |name: &[u8]| mount.path(OsStr::from_bytes(name));
    for name in &names {
        fs::write(path(name), name).unwrap();
    }
    let too_long = path(&[b'x'; 256]);
    assert_eq!(errno(fs::write(&too_long, b"")), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::create_dir(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::rename(path(b" "), &too_long)), libc::ENAMETOOLONG);
    assert_eq!(errno(symlink("x", &too_long)), libc::ENAMETOOLONG);
    mount.remount();
    let mut want: Vec<_> = names.iter().map(|name| OsString::from_vec(name.clone())).collect();
    want.sort_unstable();
    assert_eq!(listed(&mount.root()), want);
    for name in &names {
        assert_eq!(fs::read(mount.path(OsStr::from_bytes(name))).unwrap(), *name);
    }
}

#[test]
fn the_control_directory_is_reachable_unlisted_and_reserved() {
    let mount = Mount::new();
    mount.mkdir("docs");
    fs::write(mount.path("f"), b"x").unwrap();
    for dir in ["", "docs"] {
        let control = mount.path(dir).join(".vexfs");
        assert!(meta(&control).is_dir());
        assert!(listed(&control).contains(&"config".into()));
        assert!(!listed(&mount.path(dir)).contains(&".vexfs".into()));
        assert_eq!(errno(fs::create_dir(&control)), libc::EEXIST);
        assert_eq!(errno(File::create_new(&control)), libc::EEXIST);
        assert_eq!(errno(symlink("x", &control)), libc::EEXIST);
        assert_eq!(errno(fs::hard_link(mount.path("f"), &control)), libc::EEXIST);
        assert_eq!(errno(fs::remove_dir(&control)), libc::EBUSY);
        assert!([libc::EISDIR, libc::EBUSY].contains(&errno(fs::remove_file(&control))));
        assert_eq!(errno(fs::rename(&control, mount.path("elsewhere"))), libc::EBUSY);
        let onto = [libc::EBUSY, libc::EEXIST, libc::EISDIR];
        assert!(onto.contains(&errno(fs::rename(mount.path("f"), &control))), "a file onto it");
        assert!(onto.contains(&errno(fs::rename(mount.mkdir("e"), &control))), "a directory onto it");
        let exchange = rename_with(&mount.path("e"), &control, RenameFlags::RENAME_EXCHANGE);
        assert!(onto.contains(&errno(exchange)), "an exchange");
        fs::remove_dir(mount.path("e")).unwrap();
    }
    assert!(fs::metadata(mount.path("f/.vexfs")).is_err(), "a file has none");
    fs::remove_dir(mount.path("docs")).unwrap();
    assert_eq!(listed(&mount.root()), ["f"]);
}

#[test]
fn nothing_is_made_or_removed_in_a_control_directory() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 0.0]);
    mount.put("docs/b.f32", &[0.0, 1.0]);
    let similar = "docs/.vexfs/similar/a.f32";
    for dir in
        ["docs/.vexfs", "docs/.vexfs/similar", similar, "docs/.vexfs/rows/a.f32", "docs/.vexfs/results"]
    {
        assert_eq!(errno(fs::write(mount.path(dir).join("new"), b"x")), libc::EROFS, "{dir}");
        assert_eq!(errno(fs::create_dir(mount.path(dir).join("new"))), libc::EROFS, "{dir}");
        assert_eq!(errno(symlink("x", mount.path(dir).join("new"))), libc::EROFS, "{dir}");
    }
    let results = mount.path(similar).join("results.json");
    assert_eq!(errno(fs::remove_file(&results)), libc::EROFS);
    assert_eq!(errno(fs::write(&results, b"x")), libc::EROFS);
    assert_eq!(errno(File::options().write(true).open(&results)), libc::EROFS);
    assert_eq!(errno(fs::remove_file(mount.path("docs/.vexfs/config"))), libc::EROFS);
    let moved = errno(fs::rename(&results, mount.path("docs/stolen.json")));
    assert!([libc::EROFS, libc::EXDEV, libc::EBUSY].contains(&moved), "{moved}");
    let moved = errno(fs::rename(mount.path("docs/b.f32"), mount.path("docs/.vexfs/queries/b.f32")));
    assert!([libc::EROFS, libc::EXDEV, libc::EBUSY].contains(&moved), "{moved}");
    assert_eq!(mount.similar("docs/a.f32"), ["b.f32"]);
}

/// Sets an attribute with the flags that `xattr::set` does not have.
fn set_with(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    #[expect(unsafe_code, reason = "std, nix and xattr have no call that takes the flags")]
    // SAFETY: both strings end in NUL and the value's pointer and length belong together.
    let done =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The error of asking for an attribute, with a missing one as `ENODATA`.
fn get_errno(path: &Path, name: &str) -> i32 {
    match xattr::get(path, name) {
        Ok(None) => libc::ENODATA,
        Ok(Some(value)) => panic!("{name}: {}", text(&value)),
        Err(error) => error.raw_os_error().unwrap(),
    }
}

fn names_of(path: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = xattr::list(path).unwrap().collect();
    names.sort_unstable();
    names
}

#[test]
fn attributes_are_set_read_listed_replaced_and_removed() {
    let mut mount = Mount::new();
    let (file, dir) = (mount.path("f"), mount.mkdir("d"));
    fs::write(&file, b"x").unwrap();
    for path in [&file, &dir] {
        assert_eq!(names_of(path), [""; 0]);
        xattr::set(path, "user.lang", b"en").unwrap();
        xattr::set(path, "user.empty", b"").unwrap();
        xattr::set(path, "user.binary", &[0, 255, 10]).unwrap();
        xattr::set(path, "user.lang", b"de").unwrap();
        assert_eq!(errno(set_with(path, "user.lang", b"fr", libc::XATTR_CREATE)), libc::EEXIST);
        assert_eq!(errno(set_with(path, "user.new", b"fr", libc::XATTR_REPLACE)), libc::ENODATA);
        set_with(path, "user.made", b"1", libc::XATTR_CREATE).unwrap();
        set_with(path, "user.made", b"2", libc::XATTR_REPLACE).unwrap();
        assert_eq!(get_errno(path, "user.none"), libc::ENODATA);
        assert_eq!(errno(xattr::remove(path, "user.none")), libc::ENODATA);
    }
    mount.remount();
    for path in [&file, &dir] {
        assert_eq!(names_of(path), ["user.binary", "user.empty", "user.lang", "user.made"]);
        assert_eq!(xattr::get(path, "user.lang").unwrap().unwrap(), b"de");
        assert_eq!(xattr::get(path, "user.empty").unwrap().unwrap(), b"");
        assert_eq!(xattr::get(path, "user.binary").unwrap().unwrap(), [0, 255, 10]);
        xattr::remove(path, "user.lang").unwrap();
        assert_eq!(names_of(path), ["user.binary", "user.empty", "user.made"]);
        assert_eq!(get_errno(path, "user.lang"), libc::ENODATA);
    }
}

#[test]
fn attributes_have_the_sizes_that_the_kernel_allows() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, b"x").unwrap();
    let name = format!("user.{}", "n".repeat(250));
    let value = vec![7; 65536];
    xattr::set(&path, &name, &value).unwrap();
    assert_eq!(xattr::get(&path, &name).unwrap().unwrap(), value);
    assert_eq!(errno(xattr::set(&path, "user.big", &[7; 65537])), libc::E2BIG);
    assert_eq!(errno(xattr::set(&path, format!("{name}n"), b"")), libc::ERANGE);
    xattr::remove(&path, &name).unwrap();
    // A list that does not fit the caller's buffer, and one that does.
    for i in 0..100 {
        xattr::set(&path, format!("user.{i:03}"), b"v").unwrap();
    }
    assert_eq!(names_of(&path).len(), 100);
    let mut small = [0u8; 10];
    let (c_path, c_name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), c"user.long");
    xattr::set(&path, "user.long", &[1; 11]).unwrap();
    #[expect(unsafe_code, reason = "xattr::get asks for the size first")]
    // SAFETY: both strings end in NUL and the buffer has the length that is passed.
    let got =
        unsafe { libc::getxattr(c_path.as_ptr(), c_name.as_ptr(), small.as_mut_ptr().cast(), small.len()) };
    assert_eq!((got, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ERANGE)));
}

#[test]
fn computed_attributes_are_not_listed_and_cannot_be_set() {
    let mount = Mount::new();
    let dir = mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 0.0]);
    fs::write(mount.path("docs/note.txt"), b"x").unwrap();
    let file = mount.path("docs/a.f32");
    assert_eq!((names_of(&file), names_of(&dir)), (vec![], vec![]));
    for name in ["status", "dim", "rows", "dtype", "error", "vector", "similar", "distance.b.f32", "new"] {
        let name = format!("user.vexfs.{name}");
        assert_eq!(errno(xattr::set(&file, &name, b"1")), libc::EPERM, "{name}");
        assert_eq!(errno(xattr::remove(&file, &name)), libc::EPERM, "{name}");
    }
    for name in ["count", "pending", "status"] {
        let name = format!("user.vexfs.{name}");
        assert_eq!(errno(xattr::set(&dir, &name, b"1")), libc::EPERM, "{name}");
    }
    assert_eq!(mount.attribute("docs/a.f32", "user.vexfs.dim"), "2");
    assert_eq!(mount.attribute("docs/a.f32", "user.vexfs.rows"), "1");
    assert_eq!(mount.attribute("docs/a.f32", "user.vexfs.dtype"), "f32");
    assert_eq!(mount.attribute("docs/a.f32", "user.vexfs.vector"), "1,0");
    assert_eq!(mount.status("docs/note.txt"), "plain");
    assert_eq!(get_errno(&file, "user.vexfs.error"), libc::ENODATA);
    assert_eq!(get_errno(&file, "user.vexfs.nonsense"), libc::ENODATA);
    assert_eq!(get_errno(&mount.path("docs/note.txt"), "user.vexfs.dim"), libc::ENODATA);
    assert_eq!(get_errno(&dir, "user.vexfs.nonsense"), libc::ENODATA);
}

#[test]
fn other_attribute_namespaces_answer_at_once() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, b"x").unwrap();
    for name in ["security.selinux", "security.capability", "security.ima"] {
        assert_eq!(get_errno(&path, name), libc::ENODATA, "{name}");
    }
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        assert_eq!(get_errno(&path, name), libc::EOPNOTSUPP, "{name}");
    }
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255,
        255, 255,
    ];
    assert_eq!(errno(xattr::set(&path, "system.posix_acl_access", &acl)), libc::EOPNOTSUPP);
    assert!(xattr::set(&path, "nonsense.x", b"1").is_err());
}

#[test]
fn attributes_follow_the_inode_and_are_protected_by_its_permissions() {
    if !is_root("attributes_follow_the_inode_and_are_protected_by_its_permissions") {
        return;
    }
    let mount = shared_mount();
    let path = mount.path("f");
    fs::write(&path, b"x").unwrap();
    xattr::set(&path, "user.k", b"v").unwrap();
    fs::rename(&path, mount.path("g")).unwrap();
    assert_eq!(xattr::get(mount.path("g"), "user.k").unwrap().unwrap(), b"v");
    fs::set_permissions(mount.path("g"), Permissions::from_mode(0o600)).unwrap();
    for script in ["getfattr -n user.k g", "setfattr -n user.k -v x g", "setfattr -x user.k g"] {
        let (done, message) = as_nobody(&mount.root(), script);
        assert!(!done && message.contains("ermi"), "{script}: {message}");
    }
    fs::set_permissions(mount.path("g"), Permissions::from_mode(0o644)).unwrap();
    let (done, message) = as_nobody(&mount.root(), "getfattr -n user.k g");
    assert!(done, "{message}");
    let (done, message) = as_nobody(&mount.root(), "setfattr -n user.k -v x g");
    assert!(!done && message.contains("ermi"), "{message}");
}

#[test]
fn the_filesystem_says_what_it_has_room_for() {
    let mount = Mount::new();
    let space = statvfs(&mount.root()).unwrap();
    assert_eq!(space.name_max(), 255);
    assert!(space.blocks() > 0 && space.blocks_available() > 0 && space.files() > 0);
    assert!(space.blocks_available() <= space.blocks_free() && space.blocks_free() <= space.blocks());
    let below = statvfs(&mount.store()).unwrap();
    let bytes = |space: &nix::sys::statvfs::Statvfs| space.blocks() * space.fragment_size();
    assert_eq!(bytes(&space), bytes(&below), "the store's filesystem is where the bytes go");
}

#[test]
fn pipes_and_sockets_have_names_and_keep_their_kind() {
    let mut mount = Mount::new();
    let (fifo, socket) = (mount.path("pipe"), mount.path("socket"));
    mkfifo(&fifo, Mode::from_bits_truncate(0o620)).unwrap();
    mknod(&mount.path("node"), SFlag::S_IFSOCK, Mode::from_bits_truncate(0o600), 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    mknod(&mount.path("plain"), SFlag::S_IFREG, Mode::from_bits_truncate(0o600), 0).unwrap();
    assert_eq!(
        shell(&mount.root(), "timeout 20 cat pipe & timeout 20 sh -c 'echo through > pipe'; wait"),
        "through\n"
    );
    mount.remount();
    assert!(meta(&fifo).file_type().is_fifo() && meta(&fifo).len() == 0);
    assert!(meta(&socket).file_type().is_socket());
    assert!(meta(&mount.path("node")).file_type().is_socket());
    assert!(meta(&mount.path("plain")).is_file());
}

#[test]
fn a_device_node_keeps_its_number_and_cannot_be_opened() {
    if !is_root("a_device_node_keeps_its_number_and_cannot_be_opened") {
        return;
    }
    let mut mount = Mount::new();
    let path = mount.path("null");
    let device = nix::sys::stat::makedev(1, 3);
    mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), device).unwrap();
    mount.remount();
    assert!(meta(&path).file_type().is_char_device());
    assert_eq!(meta(&path).rdev(), device);
    assert_eq!(errno(File::open(&path)), libc::EACCES, "the mount is nodev");
}

#[test]
fn a_directory_is_removed_while_it_is_open_or_is_somebodys_working_directory() {
    let mount = Mount::new();
    let dir = mount.mkdir("gone");
    let open = File::open(&dir).unwrap();
    let mut shell = Command::new("sleep").arg("30").current_dir(&dir).spawn().unwrap();
    fs::remove_dir(&dir).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    let inside = format!("/proc/{}/cwd/new", shell.id());
    let made = fs::write(&inside, b"x");
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert_eq!(errno(made), libc::ENOENT);
    fs::create_dir(&dir).unwrap();
    assert_eq!(listed(&dir), [""; 0]);
}

#[test]
fn a_vector_file_under_a_hostile_name_is_found_by_it() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/query.f32", &[1.0, 0.0]);
    let name = OsStr::from_bytes(b"a\tb\n\xff.f32");
    fs::write(mount.path("docs").join(name), f32_bytes(&[1.0, 0.1])).unwrap();
    let value = xattr::get(mount.path("docs/query.f32"), "user.vexfs.similar").unwrap().unwrap();
    let path = value.split(|&byte| byte == b'\t').nth(1).unwrap();
    assert_eq!(path, b"a\\tb\\n\xff.f32\n");
    let link = fs::read_dir(mount.path("docs/.vexfs/similar/query.f32")).unwrap().next().unwrap().unwrap();
    assert!(link.file_name().as_bytes().ends_with(b"a\tb\n\xff.f32"), "{link:?}");
    assert_eq!(fs::read(link.path()).unwrap(), f32_bytes(&[1.0, 0.1]));
}
