//! The command line without a mount: exit codes, and the sentence that a person reads.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bench;
mod bench_mount;
mod fsck;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the program with a home directory of its own, as somebody who mounts nothing.
fn vexfs(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vexfs"))
        .args(args)
        .current_dir(home)
        .env("HOME", home)
        .env("XDG_DATA_HOME", home.join("data"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Expects a code, a sentence on stderr, and nothing on stdout.
#[track_caller]
fn refused(args: &[&str], code: i32, sentence: &str) {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("dir")).unwrap();
    std::fs::write(home.path().join("file"), b"text").unwrap();
    let output = vexfs(home.path(), args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("vexfs: ") && said.contains(sentence), "{args:?}: {said}");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{args:?}");
}

#[test]
fn help_and_version_are_data() {
    let home = tempfile::tempdir().unwrap();
    let output = vexfs(home.path(), &["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), concat!("vexfs ", env!("CARGO_PKG_VERSION"), "\n"));
    let output = vexfs(home.path(), &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for command in ["mount", "umount", "status", "search", "index", "export", "import", "fsck", "bench"] {
        assert!(help.contains(command), "{help}");
    }
    assert!(output.stderr.is_empty());
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    refused(&["frobnicate"], 2, "unrecognized subcommand 'frobnicate'");
    refused(&["mount"], 2, "<MOUNTPOINT>");
    refused(&["mount", "--stroe", "s", "dir"], 2, "unexpected argument '--stroe'");
    refused(&["umount"], 2, "<MOUNTPOINT>");
    refused(&["search", "dir"], 2, "required arguments");
    refused(&["search", "dir", "--like", "a", "--text", "b"], 2, "cannot be used with");
    refused(&["search", "dir", "--like", "a", "--ef", "9", "--exact"], 2, "cannot be used with");
    refused(&["search", "dir", "--like", "a", "--json", "-0"], 2, "cannot be used with");
    refused(&["search", "dir", "--like", "a", "-k", "0"], 2, "invalid value '0'");
    refused(&["search", "dir", "--like", "a", "--max", "nan"], 2, "finite");
    refused(&["search", "dir", "--like", "a", "--recall", "0"], 2, "above 0 and at most 1");
    refused(&["search", "dir", "--like", "a", "--recall", "1.5"], 2, "above 0 and at most 1");
    refused(&["search", "dir", "--like", "a", "--recall", "nan"], 2, "above 0 and at most 1");
    refused(&["search", "dir", "--like", "a", "--recall", "0.9", "--ef", "9"], 2, "cannot be used with");
    refused(&["search", "dir", "--like", "a", "--recall", "0.9", "--exact"], 2, "cannot be used with");
    refused(&["index", "explain"], 2, "<DIR>");
    refused(&["index", "explain", "dir", "--like", "a", "--vector", "b"], 2, "cannot be used with");
    refused(&["index", "explain", "dir", "--ef", "9", "--exact"], 2, "cannot be used with");
    refused(&["index", "explain", "dir", "--recall", "nan"], 2, "above 0 and at most 1");
    refused(&["index", "explain", "dir", "--max", "inf"], 2, "finite");
    refused(&["index", "verify"], 2, "<DIR>");
}

#[test]
fn an_unknown_mount_option_is_named() {
    refused(&["mount", "-o", "ro,dirsync", "dir"], 2, "unknown mount option 'dirsync'");
    refused(&["mount", "-o", "uid=0", "dir"], 2, "unknown mount option 'uid'");
    refused(&["mount", "-o", "threads=0", "dir"], 2, "threads=0: want a number from 1 to 64");
}

#[test]
fn mount_wants_a_directory_apart_from_its_store() {
    refused(&["mount", "--store", "s", "absent"], 4, "absent: no such directory");
    refused(&["mount", "--store", "s", "file"], 4, "file: not a directory");
    refused(&["mount", "--store", "dir/s", "dir"], 4, "the mountpoint contains the store");
    refused(&["mount", "--store", ".", "dir"], 4, "the mountpoint is inside the store");
}

#[test]
fn a_directory_that_is_not_mounted_is_said_to_be_so() {
    refused(&["umount", "dir"], 3, "dir: not a VexFS mount");
    refused(&["umount", "absent/below"], 3, "absent/below: ");
    refused(&["status", "dir"], 3, "dir: not a VexFS mount");
    refused(&["search", "dir", "--text", "t"], 3, "dir: not in a VexFS mount");
    for what in ["show", "verify", "rebuild", "explain"] {
        refused(&["index", what, "dir"], 3, "dir: not in a VexFS mount");
        refused(&["index", what, "absent"], 4, "absent: ");
        refused(&["index", what, "file"], 4, "file: not a directory");
    }
    refused(&["export", "dir", "e.npy"], 3, "dir: not in a VexFS mount");
    refused(&["import", "e.npy", "dir"], 3, "dir: not in a VexFS mount");
    refused(&["import", "dir"], 2, "want at least one FILE and a DIR");
    refused(&["import", "file", "--array", "a", "dir"], 3, "dir: not in a VexFS mount");
    refused(&["export", "dir", "e.h5"], 4, "e.h5: want a name in .npy .npz");
    refused(&["search", "absent", "--text", "t"], 4, "absent: ");
    refused(&["search", "file", "--text", "t"], 4, "file: not a directory");
}
