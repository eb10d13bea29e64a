//! A store on a filesystem that cannot be written.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::{Mount, Random, VEXFS, errno, npy, paths, run, text};
use crate::snapshots::manifest;

/// A directory that cannot be written as long as this lives: mounted on itself, read-only.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn new(dir: &Path) -> Self {
        let mount = |args: &[&str]| {
            let output = run(Command::new("mount").args(args).arg(dir));
            assert!(output.status.success(), "{}", text(&output.stderr));
        };
        mount(&["--bind", dir.to_str().unwrap()]);
        let bound = Self(dir.to_path_buf());
        mount(&["-o", "remount,bind,ro"]);
        assert_eq!(errno(File::create(dir.join("x"))), libc::EROFS);
        bound
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("not checked: binding a directory read-only needs root");
    }
    is_root
}

fn filled() -> Mount {
    let mount = Mount::new();
    mount.mkdir("v");
    let mut random = Random(3);
    let rows: Vec<Vec<f32>> = (0..7000).map(|_| random.vector(8)).collect();
    fs::write(mount.path("v/rows.npy"), npy(&rows)).unwrap();
    mount.put("v/one.f32", &rows[5]);
    fs::write(mount.path("large"), vec![7; 300 << 10]).unwrap();
    fs::write(mount.path("small"), b"small").unwrap();
    fs::create_dir(mount.path(".vexfs/snapshots/s")).unwrap();
    fs::remove_file(mount.path("small")).unwrap();
    mount
}

/// Compares what is served with what was, and tries to change it.
fn check(mount: &mut Mount, before: &crate::snapshots::Manifest) {
    let store = mount.store();
    let listing = || {
        let output = run(Command::new("find").arg(&store).args(["-type", "f", "-printf", "%P %s %T@\n"]));
        text(&output.stdout)
    };
    let _bound = ReadOnly::new(&store);
    let files = listing();
    let checked = run(Command::new(VEXFS).arg("fsck").arg(&store));
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
    let repair = run(Command::new(VEXFS).arg("fsck").arg(&store).arg("--repair"));
    assert!(!repair.status.success() && text(&repair.stderr).contains("read-only"), "{repair:?}");
    // What the daemon needs to write meanwhile goes to another filesystem.
    let scratch = mount.outside("scratch");
    fs::create_dir(&scratch).unwrap();
    mount.set_env(&[("TMPDIR", &scratch)]);
    mount.start();
    assert_eq!(&manifest(&mount.root()), before);
    let health = mount.json(".vexfs/health");
    assert_eq!(health["reason"], json!("the store's filesystem is read-only"));
    assert_eq!(errno(fs::write(mount.path("new"), b"x")), libc::EROFS);
    assert_eq!(errno(fs::write(mount.path("v/one.f32"), b"x")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(mount.path("large"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(mount.path(".vexfs/snapshots/t"))), libc::EROFS);
    assert_eq!(errno(fs::remove_dir(mount.path(".vexfs/snapshots/s"))), libc::EROFS);
    mount.sync();
    let answer = mount.ask_json("v", &json!({"like": "one.f32", "k": 3}));
    assert_eq!(paths(&answer)[0], "rows.npy");
    let walked = mount.ask_json("v", &json!({"like": "one.f32", "k": 3, "ef": 300}));
    assert_eq!((&walked["exact"], paths(&walked)), (&json!(false), paths(&answer)));
    assert_eq!(fs::read(mount.path(".vexfs/snapshots/s/small")).unwrap(), b"small");
    mount.unmount();
    assert_eq!(listing(), files, "nothing was written");
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "nothing is left behind");
    mount.set_env(&[]);
}

#[test]
fn a_store_on_a_read_only_filesystem_is_mounted_read_only() {
    if !is_root() {
        return;
    }
    let mut mount = filled();
    mount.sync();
    let before = manifest(&mount.root());
    mount.unmount();
    check(&mut mount, &before);
    mount.start();
    fs::write(mount.path("new"), b"x").unwrap();
}

#[test]
fn a_store_that_was_not_closed_is_shown_as_it_is() {
    if !is_root() {
        return;
    }
    let mut mount = filled();
    let writer = File::options().write(true).open(mount.path("v/one.f32")).unwrap();
    let before = manifest(&mount.root());
    mount.kill();
    drop(writer);
    check(&mut mount, &before);
    mount.start();
    assert_eq!(manifest(&mount.root()), before);
    assert_eq!(fs::read(mount.path("v/one.f32")).unwrap().len(), 32);
}

#[test]
fn a_directory_that_is_no_store_is_refused() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (store, root) = (dir.path().join("store"), dir.path().join("mnt"));
    fs::create_dir(&store).unwrap();
    fs::create_dir(&root).unwrap();
    let _bound = ReadOnly::new(&store);
    let output = run(Command::new(VEXFS).args(["mount", "--store"]).arg(&store).arg(&root));
    let message = text(&output.stderr);
    assert!(output.status.code() == Some(4) && message.contains("no file VEXFS"), "{message}");
}
