//! `vexfs export`: what is in the file, what is refused, and what an export that fails leaves.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vexfs::format::{Dtype, FileKind, Limits, layout, validate};

use crate::damage::damage;
use crate::harness::{Mount, Random, VEXFS, f32_bytes, is_root, npy, run, text, wait_for};

fn export(dir: &Path, file: &Path, more: &[&str]) -> Output {
    run(Command::new(VEXFS).arg("export").arg(dir).arg(file).args(more))
}

/// Exports a directory of the mount to a file outside, which must succeed, and returns its path.
#[track_caller]
fn exported(mount: &Mount, dir: &str, name: &str) -> PathBuf {
    let file = mount.outside(name);
    let output = export(&mount.path(dir), &file, &["--force"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    file
}

/// Expects an exit code and a sentence, and no file.
#[track_caller]
fn refused(mount: &Mount, dir: &str, name: &str, code: i32, sentence: &str) {
    let file = mount.outside(name);
    let output = export(&mount.path(dir), &file, &[]);
    let said = text(&output.stderr);
    assert!(said.contains(sentence), "{said}");
    assert_eq!((output.status.code(), file.exists()), (Some(code), false), "{said}");
    assert!(leftovers(file.parent().unwrap()).is_empty());
}

/// Files that are not whole.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_str().unwrap().ends_with(".part")).collect()
}

/// The rows of a vector file.
fn rows(kind: FileKind, path: &Path) -> (Dtype, Vec<Vec<f32>>) {
    let bytes = fs::read(path).unwrap();
    let layout = layout(kind, &bytes, &Limits::default()).unwrap();
    let mut rows = Vec::new();
    validate(&layout, &bytes, false, |_, row| rows.push(row.to_vec())).unwrap();
    (layout.dtype, rows)
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Small whole numbers, which every element type has.
fn small(random: &mut Random, dim: usize) -> Vec<f32> {
    (0..dim).map(|_| (random.below(127) + 1) as f32).collect()
}

/// A collection with a file of many rows, one file before it and some after it, one of which is gone. Returns path, row
/// and vector of each row in the order of ids.
fn collection(mount: &Mount) -> Vec<(String, u64, Vec<f32>)> {
    let mut random = Random(7);
    mount.mkdir("docs");
    mount.mkdir("docs/notes");
    let mut all = Vec::new();
    let mut one = |path: &str| {
        let vector = small(&mut random, 6);
        (path.to_owned(), 0, vector)
    };
    let first = one("first.f32");
    let gone = one("gone.f32");
    let deep = one("notes/tab\tquote\"comma,.f32");
    let text = one("notes/text.vec");
    let mut random = Random(8);
    let many: Vec<Vec<f32>> = (0..300).map(|_| small(&mut random, 6)).collect();

    mount.put("docs/first.f32", &first.2);
    mount.put("docs/gone.f32", &gone.2);
    fs::write(mount.path("docs/many.npy"), npy(&many)).unwrap();
    mount.put(&format!("docs/{}", deep.0), &deep.2);
    let words: Vec<String> = text.2.iter().map(f32::to_string).collect();
    fs::write(mount.path("docs/notes/text.vec"), words.join(" ")).unwrap();
    fs::remove_file(mount.path("docs/gone.f32")).unwrap();

    all.push(first);
    all.extend((0..).zip(many).map(|(row, vector)| ("many.npy".to_owned(), row, vector)));
    all.extend([deep, text]);
    all
}

#[test]
fn files_of_rows_have_every_vector_in_the_order_of_ids() {
    let mount = Mount::new();
    let all = collection(&mount);
    let want: Vec<Vec<f32>> = all.iter().map(|(_, _, vector)| vector.clone()).collect();
    for (name, kind, dtype) in [
        ("e.npy", FileKind::Npy, Dtype::F32),
        ("e.fvecs", FileKind::Vecs(Dtype::F32), Dtype::F32),
        ("e.bvecs", FileKind::Vecs(Dtype::U8), Dtype::U8),
        ("e.ivecs", FileKind::Vecs(Dtype::I32), Dtype::I32),
        ("e.fbin", FileKind::Bin(Dtype::F32), Dtype::F32),
        ("e.f16bin", FileKind::Bin(Dtype::F16), Dtype::F16),
        ("e.u8bin", FileKind::Bin(Dtype::U8), Dtype::U8),
        ("e.i8bin", FileKind::Bin(Dtype::I8), Dtype::I8),
    ] {
        assert_eq!(rows(kind, &exported(&mount, "docs", name)), (dtype, want.clone()), "{name}");
    }
    let notes = exported(&mount, "docs/notes", "notes.npy");
    assert_eq!(rows(FileKind::Npy, &notes).1, want[want.len() - 2..]);
}

#[test]
fn lines_say_which_row_is_which() {
    let mount = Mount::new();
    let all = collection(&mount);
    let table = fs::read_to_string(mount.path("docs/.vexfs/ids.tsv")).unwrap();
    let ids: Vec<u64> =
        table.lines().skip(1).map(|line| line.split('\t').next().unwrap().parse().unwrap()).collect();
    assert!(ids.windows(2).any(|pair| pair[1] > pair[0] + 1), "the ids have a gap");

    let objects = lines(&exported(&mount, "docs", "e.jsonl"));
    let csv = fs::read_to_string(exported(&mount, "docs", "e.csv")).unwrap();
    let mut csv = csv.lines();
    assert_eq!(csv.next(), Some("id,path,row,v0,v1,v2,v3,v4,v5"));
    assert_eq!(objects.len(), all.len());
    for (((path, row, vector), object), id) in all.iter().zip(&objects).zip(ids) {
        let dtype = &object["dtype"];
        assert_eq!(*object, json!({"id": id, "path": path, "row": row, "dtype": dtype, "vector": vector}));
        let numbers: Vec<String> = vector.iter().map(|value| format!("{value:.1}")).collect();
        let path =
            if path.contains('"') { format!("\"{}\"", path.replace('"', "\"\"")) } else { path.clone() };
        assert_eq!(csv.next(), Some(&*format!("{id},{path},{row},{}", numbers.join(","))));
    }
}

#[test]
fn a_jsonl_keeps_every_bit_attributes_and_names_that_are_no_text() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let precise = [0.1f64, 1e-300, -std::f64::consts::PI];
    let bytes: Vec<u8> = precise.iter().flat_map(|value| value.to_le_bytes()).collect();
    fs::write(mount.path("docs/a.f64"), bytes).unwrap();
    xattr::set(mount.path("docs/a.f64"), "user.lang", b"en \"x\"").unwrap();
    xattr::set(mount.path("docs/a.f64"), "user.raw", b"\xff\x00").unwrap();
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"b\xff.f32");
    fs::write(mount.path("docs").join(name), f32_bytes(&[f32::MIN_POSITIVE, 16_777_217.0, 0.1])).unwrap();
    fs::write(mount.path("docs/c.npy"), npy(&[vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]])).unwrap();
    xattr::set(mount.path("docs/c.npy"), "user.lang", b"de").unwrap();

    let said = lines(&exported(&mount, "docs", "e.jsonl"));
    let vector: Vec<f64> =
        said[0]["vector"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!((vector, &said[0]["dtype"]), (precise.to_vec(), &json!("f64")));
    assert_eq!(said[0]["attributes"], json!({"lang": "en \"x\""}));
    assert_eq!(said[0]["attributes_hex"], json!({"726177": "ff00"}));
    assert_eq!((&said[1]["path"], &said[1]["path_hex"]), (&json!("b\u{fffd}.f32"), &json!("62ff2e663332")));
    assert_eq!(said[2]["attributes"], json!({"lang": "de"}));
    assert_eq!(said[3].get("attributes"), None, "the attributes of a file are said once");
}

#[test]
fn collections_below_are_exported_too_and_only_lines_may_differ_in_dimension() {
    let mount = Mount::new();
    for (dir, vector) in [("a", &[1.0, 2.0][..]), ("b", &[3.0, 4.0]), ("b/own", &[5.0, 6.0])] {
        mount.mkdir(dir);
        xattr::set(mount.path(dir), "user.vexfs.metric", b"l2").unwrap();
        mount.put(&format!("{dir}/v.f32"), vector);
    }
    mount.put("top.f32", &[7.0, 8.0]);
    let all = exported(&mount, "", "e.npy");
    let want = [[7.0, 8.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]];
    assert_eq!(rows(FileKind::Npy, &all).1, want);
    let paths = |dir: &str| -> Vec<String> {
        let said = lines(&exported(&mount, dir, "e.jsonl"));
        said.iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(paths(""), ["top.f32", "a/v.f32", "b/v.f32", "b/own/v.f32"]);
    assert_eq!(paths("b"), ["v.f32", "own/v.f32"]);

    mount.mkdir("a/wide");
    xattr::set(mount.path("a/wide"), "user.vexfs.dim", b"3").unwrap();
    mount.put("a/wide/v.f32", &[1.0, 2.0, 3.0]);
    refused(&mount, "", "other.npy", 4, "a/wide/v.f32: dimension 3, others below");
    assert_eq!(paths("a"), ["v.f32", "wide/v.f32"]);
}

#[test]
fn a_value_that_the_format_does_not_have_is_named() {
    let mount = Mount::new();
    mount.mkdir("docs");
    fs::write(mount.path("docs/many.npy"), npy(&[vec![1.0, 2.0], vec![3.0, 70_000.5]])).unwrap();
    refused(&mount, "docs", "e.u8bin", 4, "docs/many.npy: row 1, column 1: 70000.5 is no u8");
    refused(&mount, "docs", "e.ivecs", 4, "row 1, column 1: 70000.5 is no i32");
    refused(&mount, "docs", "e.f16bin", 4, "row 1, column 1: 70000.5 is no f16");
}

#[test]
fn a_snapshot_is_exported_as_it_was() {
    let mount = Mount::new();
    collection(&mount);
    let before = fs::read(exported(&mount, "docs", "before.jsonl")).unwrap();
    fs::create_dir(mount.path(".vexfs/snapshots/s")).unwrap();
    fs::remove_file(mount.path("docs/first.f32")).unwrap();
    mount.put("docs/new.f32", &[1.0; 6]);
    fs::write(mount.path("docs/many.npy"), npy(&[vec![2.0; 6]])).unwrap();
    let from_snapshot = exported(&mount, ".vexfs/snapshots/s/docs", "snapshot.jsonl");
    assert_eq!(fs::read(from_snapshot).unwrap(), before);
    assert_eq!(lines(&exported(&mount, "docs", "now.jsonl")).len(), 4);
    // The root of a snapshot has collections below it, as that of the mount has.
    assert_eq!(lines(&exported(&mount, ".vexfs/snapshots/s", "whole.jsonl")).len(), 303);
}

#[test]
fn invalid_files_are_counted_and_damage_ends_an_export() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.5, 2.5, 3.5, 4.5]);
    mount.put("docs/short.f32", &[1.0]);
    fs::write(mount.path("docs/words.vec"), "one two").unwrap();
    let output = export(&mount.path("docs"), &mount.outside("e.npy"), &["--json"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text(&output.stderr)
            .contains("2 invalid files are left out: short.f32: dimension 1, collection has 4")
    );
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["schema"], &said["invalid"], &said["rows"]), (&json!(1), &json!(2), &json!(1)));
    assert_eq!((&said["dim"], &said["files"], &said["format"]), (&json!(4), &json!(1), &json!("npy")));
    assert_eq!(said["bytes"], fs::metadata(mount.outside("e.npy")).unwrap().len());

    mount.unmount();
    damage(&mount.store(), ".seg", &f32_bytes(&[1.5, 2.5, 3.5, 4.5]));
    mount.start();
    // Found by the export itself; afterwards it is known.
    for name in ["x.npy", "y.jsonl"] {
        refused(&mount, "docs", name, 6, "docs/a.f32: ");
    }
}

#[test]
fn what_is_there_is_replaced_only_with_force_and_only_by_a_whole_file() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 2.0]);
    let file = mount.outside("e.npy");
    fs::write(&file, b"old").unwrap();
    let output = export(&mount.path("docs"), &file, &[]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("e.npy: exists; --force replaces it"));
    fs::create_dir(mount.outside("d.npy")).unwrap();
    let output = export(&mount.path("docs"), &mount.outside("d.npy"), &["--force"]);
    assert!(text(&output.stderr).contains("not a regular file"), "{}", text(&output.stderr));
    assert_eq!(fs::read(&file).unwrap(), b"old");
    exported(&mount, "docs", "e.npy");
    assert_eq!(rows(FileKind::Npy, &file).1, [[1.0, 2.0]]);
    assert!(leftovers(file.parent().unwrap()).is_empty());

    // On the mount itself files without a name do not exist.
    for name in ["docs/all.csv", "docs/all.csv", "other.npy"] {
        exported(&mount, "docs", mount.path(name).to_str().unwrap());
    }
    assert_eq!(rows(FileKind::Npy, &mount.path("other.npy")).1, [[1.0, 2.0]]);
    assert!(leftovers(&mount.path("docs")).is_empty() && leftovers(&mount.root()).is_empty());
    // It would be among the vectors of the next one.
    let output = export(&mount.path("docs"), &mount.path("docs/all.npy"), &[]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("would itself be vectors"), "{}", text(&output.stderr));
}

/// An export of a collection of some size to `out/e.jsonl`, where something else is, that has written a part of it and
/// is stopped.
fn begun(mount: &Mount) -> Child {
    mount.mkdir("docs");
    let mut random = Random(3);
    let rows: Vec<Vec<f32>> = (0..60_000).map(|_| random.vector(128)).collect();
    fs::write(mount.path("docs/many.npy"), npy(&rows)).unwrap();
    mount.put("docs/last.f32", &rows[0]);
    fs::create_dir(mount.outside("out")).unwrap();
    let file = mount.outside("out/e.jsonl");
    let mut begun = None;
    wait_for("an export that is stopped before its middle", || {
        fs::write(&file, b"old").unwrap();
        let mut command = Command::new(VEXFS);
        command.arg("export").arg(mount.path("docs")).arg(&file).arg("--force").stdin(Stdio::null());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // What it has written; nothing when it has ended.
        let own = format!("/proc/{}/fd", child.id());
        let written = || {
            let fds = fs::read_dir(&own).into_iter().flatten();
            let mut ours = fds.filter_map(Result::ok).filter(|fd| {
                fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(mount.outside("out")))
            });
            ours.find_map(|fd| fs::metadata(fd.path()).ok()).map_or(0, |file| file.len())
        };
        wait_for("a megabyte to be written", || written() > 1 << 20 || child.try_wait().unwrap().is_some());
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        let pid = pid(&child);
        kill(pid, Signal::SIGSTOP).unwrap();
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        // On a busy machine it may have got further than this process saw.
        if (1 << 20..40 << 20).contains(&written()) {
            begun = Some(child);
        } else {
            let _ = child.kill();
            let _ = child.wait();
        }
        begun.is_some()
    });
    begun.unwrap()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}

/// What was there before is there, and nothing else.
fn assert_old(mount: &Mount) {
    assert_eq!(fs::read(mount.outside("out/e.jsonl")).unwrap(), b"old");
    assert_eq!(fs::read_dir(mount.outside("out")).unwrap().count(), 1);
}

#[test]
fn an_export_that_is_killed_leaves_the_old_file_and_nothing_else() {
    let mount = Mount::new();
    let mut child = begun(&mount);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it was killed before it ended");
    assert_old(&mount);
}

#[test]
fn a_file_that_changes_while_it_is_exported_ends_the_export() {
    type Change = fn(&Mount);
    let changes: [(Change, &str); 3] = [
        (|mount| fs::remove_file(mount.path("docs/last.f32")).unwrap(), "last.f32"),
        (|mount| mount.put("docs/last.f32", &[1.0; 64]), "last.f32"),
        (
            |mount| {
                let file = File::options().write(true).open(mount.path("docs/many.npy")).unwrap();
                file.write_all_at(&[0, 0, 128, 63], 128).unwrap();
            },
            "many.npy",
        ),
    ];
    for (change, name) in changes {
        let mount = Mount::new();
        let child = begun(&mount);
        change(&mount);
        kill(pid(&child), Signal::SIGCONT).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        let want = format!("docs/{name}: changed while it was exported");
        assert!(said.contains(&want), "{want}, but {}: {said}", output.status);
        assert_eq!(output.status.code(), Some(5));
        assert_old(&mount);
    }
}

#[test]
fn what_the_caller_may_not_find_is_left_out() {
    if !is_root() {
        // Only root can become somebody else; what others may find is asked in `doors` too.
        return;
    }
    let mount = Mount::with_options(&["-o", "allow_other"]);
    for (dir, mode) in [("docs", 0o755), ("docs/own", 0o700)] {
        mount.mkdir(dir);
        xattr::set(mount.path(dir), "user.vexfs.metric", b"l2").unwrap();
        fs::set_permissions(mount.path(dir), Permissions::from_mode(mode)).unwrap();
        mount.put(&format!("{dir}/a.f32"), &[1.0, 2.0]);
        mount.put(&format!("{dir}/secret.f32"), &[3.0, 4.0]);
        fs::set_permissions(mount.path(dir).join("secret.f32"), Permissions::from_mode(0o600)).unwrap();
    }
    // The program may lie where others may not enter.
    let program = mount.outside("vexfs");
    fs::copy(VEXFS, &program).unwrap();
    fs::create_dir(mount.outside("out")).unwrap();
    for (path, mode) in [(".", 0o755), ("out", 0o777)] {
        fs::set_permissions(mount.outside(path), Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
    let output = run(command.arg("export").arg(mount.path("docs")).arg(mount.outside("out/e.jsonl")));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found: Vec<_> =
        lines(&mount.outside("out/e.jsonl")).iter().map(|line| line["path"].clone()).collect();
    assert_eq!(found, ["a.f32"]);
    assert_eq!(lines(&exported(&mount, "docs", "root.jsonl")).len(), 4);
}

#[test]
fn a_full_disk_leaves_the_old_file_and_no_part() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let rows: Vec<Vec<f32>> = (1..10_000u16).map(|i| vec![f32::from(i); 64]).collect();
    fs::write(mount.path("docs/many.npy"), npy(&rows)).unwrap();
    fs::create_dir(mount.outside("small")).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=1m none small; echo old > small/e.npy
         code=0; {VEXFS} export mnt/docs small/e.npy --force || code=$?
         echo $code $(cat small/e.npy) $(ls -A small)"
    );
    let user = if nix::unistd::geteuid().is_root() { &[][..] } else { &["--user", "--map-root-user"] };
    let mut command = Command::new("unshare");
    command.args(user).args(["--mount", "--propagation", "private", "bash", "-euc", &script]);
    let output = run(command.current_dir(mount.outside(".")));
    assert_eq!(text(&output.stdout), "1 old e.npy\n", "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("e.npy: No space left"), "{}", text(&output.stderr));
}

#[test]
fn what_cannot_be_exported_is_said() {
    let mount = Mount::new();
    mount.mkdir("docs");
    refused(&mount, "docs", "e.npy", 1, "docs: no vectors");
    refused(&mount, "docs", "e.parquet", 4, "e.parquet: want a name in .npy .npz");
    refused(&mount, "absent", "e.npy", 4, "absent: No such file");
    refused(&mount, "docs", "absent/e.npy", 1, "absent");
    mount.put("docs/a.f32", &[1.0]);
    refused(&mount, "docs/a.f32", "e.npy", 4, "not a directory");
    let outside = export(&mount.outside("."), &mount.outside("e.npy"), &[]);
    assert_eq!(outside.status.code(), Some(3), "{}", text(&outside.stderr));
}
