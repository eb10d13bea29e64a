//! Graphs shown, checked and built anew, while mounted; and what becomes of them when their files are damaged.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{Mount, Random, VEXFS, errno, is_root, npy, run, text, wait_for};

const ROWS: usize = 500;

/// A collection `docs` with a graph, its rows, and the mount.
fn mounted() -> (Mount, Vec<Vec<f32>>) {
    mounted_with(ROWS)
}

fn mounted_with(rows: usize) -> (Mount, Vec<Vec<f32>>) {
    let mount = Mount::with_options(&["-o", "allow_other"]);
    mount.mkdir("docs");
    let config = "[collection]\nmetric = \"l2\"\n[index]\nexact_below = 100\n";
    fs::write(mount.path("docs/.vexfs/config"), config).unwrap();
    let mut random = Random(41);
    let rows: Vec<_> = (0..rows).map(|_| random.vector(8)).collect();
    fs::write(mount.path("docs/rows.npy"), npy(&rows)).unwrap();
    mount.sync();
    (mount, rows)
}

fn index(mount: &Mount, what: &str, more: &[&str]) -> Output {
    run(Command::new(VEXFS).args(["index", what]).arg(mount.path("docs")).args(more))
}

/// What `vexfs index WHAT docs --json` says, which ends with `code`.
#[track_caller]
fn said(mount: &Mount, what: &str, code: i32) -> Value {
    let output = index(mount, what, &["--json"]);
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The graph's file in the store.
fn checkpoint(mount: &Mount) -> PathBuf {
    let index = fs::read_dir(mount.store().join("index")).unwrap();
    let paths = index.map(|entry| entry.unwrap().path());
    let found: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "hnsw")).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

/// Flips a bit of the unmounted store's graph.
fn flip(path: &PathBuf, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[test]
fn a_collection_is_sound_after_changes_and_after_a_kill() {
    let (mut mount, _) = mounted();
    let mut random = Random(42);
    for i in 0..60 {
        mount.put(&format!("docs/{i}.f32"), &random.vector(8));
    }
    for i in 0..20 {
        fs::remove_file(mount.path(format!("docs/{i}.f32"))).unwrap();
    }
    for round in ["changed", "killed", "caught up"] {
        let checks = said(&mount, "verify", 0);
        assert_eq!((&checks["schema"], &checks["sound"]), (&json!(1), &json!(true)), "{round}: {checks}");
        let docs = &checks["collections"][0];
        assert_eq!((&docs["path"], &docs["vectors"]), (&json!("/docs"), &json!(540)), "{round}: {checks}");
        assert_eq!(docs["graph"]["missing"], 0, "{round}: {checks}");
        match round {
            "changed" => {
                mount.kill();
                mount.start();
            }
            _ => mount.sync(),
        }
    }
    let shown = said(&mount, "show", 0);
    let docs = &shown["collections"][0];
    assert_eq!(
        (&docs["state"], &docs["pending"], &docs["damage"]),
        (&json!("ready"), &json!(0), &Value::Null)
    );
    assert_eq!((&docs["graph"]["m"], &docs["graph"]["ef_construction"]), (&json!(16), &json!(200)));
    assert_eq!(docs["graph"]["file_bytes"], fs::metadata(checkpoint(&mount)).unwrap().len());
    let lines = text(&index(&mount, "show", &[]).stdout);
    assert!(lines.contains("vectors      540 (0 pending)\nsearches     go through the graph\n"), "{lines}");
    let line = text(&index(&mount, "verify", &[]).stdout);
    assert!(line.starts_with("/docs  sound: 540 vectors, 0 pending, "), "{line}");
}

#[test]
fn a_directory_without_graphs_is_sound() {
    let (mount, _) = mounted();
    mount.mkdir("few");
    mount.put("few/a.f32", &[1.0, 2.0]);
    let output = run(Command::new(VEXFS).args(["index", "verify"]).arg(mount.path("few")));
    assert_eq!(output.status.code(), Some(0));
    let line = text(&output.stdout);
    assert_eq!(line, "/few  no graph: 1 vectors, 0 pending, every search is exact\n");
    // A directory's collections are those below it as well.
    let all = run(Command::new(VEXFS).args(["index", "verify"]).arg(mount.root()));
    let lines = text(&all.stdout);
    assert!(lines.starts_with("/docs  sound: ") && lines.ends_with(&line), "{lines}");
}

#[test]
fn a_graph_with_flipped_bits_is_found_by_verify_and_built_anew() {
    let (mut mount, rows) = mounted();
    let ask = |mount: &Mount, exact: bool| {
        mount.ask_json("docs", &json!({"vector": rows[3], "k": 20, "ef": 500, "exact": exact}))
    };
    let want = ask(&mount, true)["hits"].clone();
    let len = fs::metadata(checkpoint(&mount)).unwrap().len();
    for at in [4096, len / 2, len - 100] {
        mount.unmount();
        flip(&checkpoint(&mount), at);
        mount.start();
        let checks = said(&mount, "verify", 6);
        let docs = &checks["collections"][0];
        assert_eq!((&checks["sound"], &docs["sound"]), (&json!(false), &json!(false)), "{at}: {checks}");
        let damage = docs["damage"].as_str().unwrap();
        assert!(damage.contains(".hnsw") && damage.contains("checksum"), "{at}: {damage}");
        assert_eq!(ask(&mount, false)["hits"], want, "{at}");
        mount.sync();
        let found = ask(&mount, false);
        assert_eq!((&found["hits"], &found["exact"]), (&want, &json!(false)), "{at}");
        assert_eq!(said(&mount, "verify", 0)["collections"][0]["graph"]["nodes"], ROWS, "{at}");
        assert_eq!(said(&mount, "show", 0)["collections"][0]["damage"], Value::Null, "{at}");
    }
}

#[test]
fn a_search_that_meets_damage_compares_every_vector() {
    let (mut mount, rows) = mounted_with(9000);
    let request = |row: usize, exact| json!({"vector": rows[row], "k": 10, "exact": exact});
    let want = [4096, 5000, 8000].map(|row| mount.ask_json("docs", &request(row, true))["hits"].clone());
    mount.unmount();
    // Among the links of the 4096 nodes in the middle: a walk finds others enough, and misses these.
    flip(&checkpoint(&mount), 700_000);
    mount.start();
    let first = mount.ask_json("docs", &request(5000, false));
    assert_eq!((&first["exact"], &first["pending"], &first["hits"]), (&json!(true), &json!(9000), &want[1]));
    for (row, want) in [4096, 5000, 8000].into_iter().zip(&want) {
        assert_eq!(&mount.ask_json("docs", &request(row, false))["hits"], want, "{row}");
    }
    mount.sync();
    assert_eq!(mount.ask_json("docs", &request(5000, false))["exact"], false);
    // What `sync` saved is whole again.
    mount.remount();
    assert_eq!(said(&mount, "verify", 0)["collections"][0]["graph"]["nodes"], 9000);
}

#[test]
fn a_rebuild_builds_another_graph_and_the_first_is_searched_until_then() {
    let (mut mount, rows) = mounted_with(9000);
    let file = checkpoint(&mount);
    let written = || fs::metadata(&file).unwrap().ino();
    let before = written();
    let done = std::thread::scope(|scope| {
        let rebuild = scope.spawn(|| index(&mount, "rebuild", &["--wait"]));
        while !rebuild.is_finished() {
            let answer = mount.ask_json("docs", &json!({"vector": rows[0]}));
            assert_eq!((&answer["exact"], &answer["pending"]), (&json!(false), &json!(0)));
        }
        rebuild.join().unwrap()
    });
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let docs = said(&mount, "show", 0)["collections"][0].clone();
    assert_eq!((&docs["state"], &docs["graph"]["nodes"]), (&json!("ready"), &json!(9000)));
    // It is saved without being asked for.
    wait_for("the new graph's file", || written() != before);
    mount.kill();
    mount.start();
    assert_eq!(said(&mount, "show", 0)["collections"][0]["pending"], 0);
    said(&mount, "verify", 0);
}

#[test]
fn another_quant_takes_effect_while_the_graph_is_searched() {
    let (mount, rows) = mounted_with(9000);
    xattr::set(mount.path("docs"), "user.vexfs.quant", b"b1").unwrap();
    assert_eq!(mount.ask_json("docs", &json!({"vector": rows[0]}))["exact"], false);
    let graph = || said(&mount, "show", 0)["collections"][0].clone();
    wait_for("the graph of the new quant", || graph()["pending"] == 0);
    assert_eq!((&graph()["state"], &graph()["graph"]["quant"]), (&json!("ready"), &json!("b1")));
    said(&mount, "verify", 0);
}

#[test]
fn a_graph_that_nobody_asked_to_save_is_there_after_a_kill() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    let mut random = Random(43);
    let rows: Vec<_> = (0..6000).map(|_| random.vector(8)).collect();
    fs::write(mount.path("docs/rows.npy"), npy(&rows)).unwrap();
    let folder = mount.store().join("index");
    let files = || -> Vec<_> {
        let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter_map(|path| Some(path.extension()?.to_str()?.to_owned())).collect()
    };
    // The last that is written.
    wait_for("the graph's recall", || files().contains(&"recall".to_owned()));
    mount.kill();
    mount.start();
    let docs = said(&mount, "show", 0)["collections"][0].clone();
    assert_eq!((&docs["state"], &docs["pending"]), (&json!("ready"), &json!(0)));
    assert_eq!(mount.json("docs/.vexfs/stats.json")["recall"]["measured_on"], 6000);
    // A directory that goes takes its files along.
    fs::remove_file(mount.path("docs/rows.npy")).unwrap();
    fs::remove_dir(mount.path("docs")).unwrap();
    mount.sync();
    assert_eq!(files(), [""; 0]);
}

#[test]
fn building_anew_needs_permission_to_write_and_checking_to_read() {
    if !is_root() {
        return;
    }
    let (mount, _) = mounted();
    fs::create_dir(mount.path("docs/theirs")).unwrap();
    fs::set_permissions(mount.path("docs/theirs"), fs::Permissions::from_mode(0o777)).unwrap();
    let as_nobody = |what: &str, dir: &str| {
        // The program may lie where others may not look.
        let script = match what {
            "verify" => "cat .vexfs/verify.json >/dev/null",
            _ => "echo rebuild >.vexfs/rebuild",
        };
        let mut command = Command::new("bash");
        command.args(["-c", script]).current_dir(mount.path(dir)).uid(65534).gid(65534);
        run(&mut command).status.success()
    };
    fs::set_permissions(mount.outside(""), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(as_nobody("verify", "docs"));
    assert!(!as_nobody("rebuild", "docs"));
    // The graph belongs to the directory above.
    assert!(!as_nobody("rebuild", "docs/theirs"));
    fs::set_permissions(mount.path("docs"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(as_nobody("rebuild", "docs/theirs"));
}

#[test]
fn the_control_files_of_graphs_take_what_they_say() {
    let (mount, _) = mounted();
    let control = |name: &str| mount.path("docs/.vexfs").join(name);
    for name in ["index.json", "verify.json"] {
        assert_eq!(errno(File::options().write(true).open(control(name))), libc::EROFS, "{name}");
        assert_eq!(mount.json(&format!("docs/.vexfs/{name}"))["collections"][0]["path"], "/docs", "{name}");
    }
    let mode = fs::metadata(control("rebuild")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o200);
    let before = said(&mount, "show", 0)["collections"][0]["graph"]["file_bytes"].clone();
    assert!(before.is_u64());
    // To open it is to do nothing.
    drop(File::options().write(true).truncate(true).open(control("rebuild")).unwrap());
    assert_eq!(said(&mount, "show", 0)["collections"][0]["graph"]["file_bytes"], before);
    fs::write(control("rebuild"), b"x").unwrap();
    mount.sync();
    assert_eq!(said(&mount, "show", 0)["collections"][0]["state"], "ready");
}
