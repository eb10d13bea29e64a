//! `vexfs fsck`: exit codes, and what it says.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{refused, vexfs};

#[test]
fn what_is_no_store_is_refused() {
    refused(&["fsck"], 2, "<STORE>");
    refused(&["fsck", "dir"], 4, "is no VexFS store");
    refused(&["fsck", "missing", "--repair"], 4, "is no VexFS store");
}

#[test]
fn damage_is_shown_with_file_and_offset_and_repaired_once() {
    let home = tempfile::tempdir().unwrap();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v2/store.tar.gz");
    let mut tar = Command::new("tar");
    tar.args(["--no-same-owner", "-xzpf"]).arg(archive).arg("-C").arg(home.path());
    assert!(tar.status().unwrap().success());
    let run = |args: &[&str], code: i32| {
        let output = vexfs(home.path(), &[&["fsck", "store"], args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&[], 0).ends_with("\nclean\n"));
    let segment = home.path().join("store/segments/00000000.seg");
    File::options().write(true).open(segment).unwrap().write_all_at(&[0xff; 3], 4096).unwrap();
    let said = run(&[], 6);
    assert!(
        said.contains("segments/00000000.seg: offset 4096: /") && said.ends_with("\n1 damaged\n"),
        "{said}"
    );
    let answer: Value = serde_json::from_str(&run(&["--json"], 6)).unwrap();
    assert_eq!((&answer["schema"], &answer["sound"]), (&1.into(), &false.into()));
    assert_eq!(answer["findings"][0]["offset"], 4096);
    assert_eq!(answer["findings"][0]["state"], "damaged");
    assert!(run(&["--repair"], 0).contains("bytes kept as /lost+found/#"));
    assert!(run(&["--repair"], 0).ends_with("\nclean\n"));
}
