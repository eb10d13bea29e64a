//! `vexfs import`: what becomes of a file, what is refused, and that an export comes back as it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{Mount, Random, VEXFS, f32_bytes, npy, paths, run, text};

fn import(files: &[&Path], dir: &Path, more: &[&str]) -> Output {
    run(Command::new(VEXFS).arg("import").args(files).arg(dir).args(more))
}

#[track_caller]
fn imported(file: &Path, dir: &Path, more: &[&str]) -> Value {
    let output = import(&[file], dir, &[more, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exports a directory of the mount to a file outside and returns its path.
#[track_caller]
fn exported(mount: &Mount, dir: &str, name: &str) -> PathBuf {
    let file = mount.outside(name);
    let output = run(Command::new(VEXFS).arg("export").arg(mount.path(dir)).arg(&file));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    file
}

/// Imports content under a name into `docs`, which must be refused with a sentence and leave the directory as it is.
#[track_caller]
fn refused(mount: &Mount, name: &str, content: &[u8], more: &[&str], sentence: &str) {
    let file = mount.outside(name);
    fs::write(&file, content).unwrap();
    let listed = || names(&mount.path("docs"));
    let before = listed();
    let output = import(&[&file], &mount.path("docs"), more);
    let said = text(&output.stderr);
    assert!(said.contains(sentence), "{name}: {said}");
    assert_eq!((output.status.code(), listed()), (Some(4), before), "{said}");
}

/// Names in a directory, those that begin with a dot too.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn random_rows(seed: u64, rows: usize, dim: usize) -> Vec<Vec<f32>> {
    let mut random = Random(seed);
    (0..rows).map(|_| random.vector(dim)).collect()
}

#[test]
fn an_export_comes_back_as_the_files_that_it_is_of() {
    let mut mount = Mount::new();
    for dir in ["docs", "docs/notes", "again"] {
        mount.mkdir(dir);
    }
    for dir in ["docs", "again"] {
        fs::write(mount.path(dir).join(".vexfs/config"), "[collection]\nmetric = \"l2\"\n").unwrap();
    }
    let rows = random_rows(5, 400, 3);
    fs::write(mount.path("docs/many.npy"), npy(&rows)).unwrap();
    fs::write(mount.path("docs/one.npy"), npy(&rows[7..8])).unwrap();
    mount.put("docs/notes/a b.f32", &rows[3]);
    let precise: Vec<u8> = [0.1f64, 1e-30, -7.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    fs::write(mount.path("docs/p.f64"), &precise).unwrap();
    fs::write(mount.path("docs/words.vec"), "1.50, -2e-3 4\n").unwrap();
    fs::write(mount.path("docs/bytes.u8bin"), [2, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3, 4, 5, 6]).unwrap();
    fs::write(mount.path("docs/ids.ivecs"), [3, 0, 0, 0, 1, 2, 3, 127, 4, 0, 0, 0, 255, 255, 255, 255])
        .unwrap();
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff.f32");
    fs::write(mount.path("docs").join(odd), f32_bytes(&rows[9])).unwrap();
    for (file, name, value) in
        [("many.npy", "lang", &b"en"[..]), ("p.f64", "raw", b"\xff\x00\x01"), ("p.f64", "empty", b"")]
    {
        xattr::set(mount.path("docs").join(file), format!("user.{name}"), value).unwrap();
    }
    fs::remove_file(mount.path("docs/words.vec")).unwrap();
    fs::write(mount.path("docs/words.vec"), "1.50, -2e-3 4\n").unwrap();

    let file = exported(&mount, "docs", "e.jsonl");
    let said = imported(&file, &mount.path("again"), &["--as-files"]);
    let one = &said["imported"][0];
    assert_eq!(
        (&said["schema"], &one["files"], &one["rows"], &one["dim"]),
        (&json!(1), &json!(8), &json!(408), &json!(3))
    );

    for file in ["many.npy", "notes/a b.f32", "p.f64", "bytes.u8bin", "ids.ivecs"] {
        let read = |dir: &str| fs::read(mount.path(dir).join(file)).unwrap();
        assert_eq!(read("again"), read("docs"), "{file}");
    }
    assert_eq!(fs::read(mount.path("again").join(odd)).unwrap(), f32_bytes(&rows[9]));
    assert_eq!(fs::read(mount.path("again/words.vec")).unwrap(), b"[1.5,-0.002,4.0]\n");
    // As numpy saves one vector.
    assert!(text(&fs::read(mount.path("again/one.npy")).unwrap()).contains("'shape': (3,)"));
    let own = |dir: &str, name: &str| xattr::get(mount.path(dir).join("p.f64"), name).unwrap();
    for name in ["user.raw", "user.empty"] {
        assert_eq!(own("again", name), own("docs", name));
    }
    let agree = |mount: &Mount| {
        assert_eq!(mount.attribute("again/many.npy", "user.lang"), "en");
        for query in random_rows(6, 20, 3) {
            let request = json!({"vector": query, "k": 30});
            let [old, new] = ["docs", "again"].map(|dir| mount.ask_json(dir, &request));
            assert_eq!(paths(&old), paths(&new));
            for (old, new) in old["hits"].as_array().unwrap().iter().zip(new["hits"].as_array().unwrap()) {
                assert_eq!((&old["row"], &old["distance"]), (&new["row"], &new["distance"]));
            }
        }
    };
    agree(&mount);
    mount.remount();
    agree(&mount);
    // The same rows in the same order, also to who exports what was imported.
    let again = fs::read_to_string(exported(&mount, "again", "again.jsonl")).unwrap();
    let rows = |text: &str| -> Vec<Value> {
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .map(|line| json!([line["path"], line["row"], line["dtype"], line["vector"], line["attributes"]]))
            .collect()
    };
    assert_eq!(rows(&again), rows(&fs::read_to_string(&file).unwrap()));
}

#[test]
fn what_every_format_has_is_found_again() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let rows = random_rows(11, 700, 5);
    fs::write(mount.path("docs/many.npy"), npy(&rows)).unwrap();
    mount.put("docs/one.f32", &rows[0]);
    let want = fs::read(exported(&mount, "docs", "want.npy")).unwrap();
    for (number, name) in
        ["e.npy", "e.npz", "e.fvecs", "e.fbin", "e.csv", "e.jsonl", "e.safetensors"].into_iter().enumerate()
    {
        let dir = format!("d{number}");
        mount.mkdir(&dir);
        let said = imported(&exported(&mount, "docs", name), &mount.path(&dir), &["--wait"]);
        let made = PathBuf::from(said["imported"][0]["path"].as_str().unwrap());
        assert_eq!(
            mount.status(made.strip_prefix(mount.root().canonicalize().unwrap()).unwrap().to_str().unwrap()),
            "indexed"
        );
        assert_eq!(names(&mount.path(&dir)).len(), 1, "{name}");
        assert_eq!(fs::read(exported(&mount, &dir, &format!("again{number}.npy"))).unwrap(), want, "{name}");
        let hits = mount.ask_json(&dir, &json!({"vector": rows[42], "k": 1}));
        assert_eq!(hits["hits"][0]["row"], 42, "{name}: {hits}");
    }
}

#[test]
fn lines_and_archives_of_other_programs_are_read() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let data = |name: &str, content: &[u8]| {
        let file = mount.outside(name);
        fs::write(&file, content).unwrap();
        imported(&file, &mount.path("docs"), &[]);
    };
    data("plain.csv", b"1,2\n3,4\n");
    data("named.csv", b"x,y\n5,6\r\n");
    data("chosen.csv", b"id,v0,name,v1\n9,7,\"a,b\",8\n");
    data("labelled.csv", b"v0,v1,label\n9,7,cat\n8,6,1\n");
    data("marked.csv", b"\xef\xbb\xbf1,2\n3,4\n");
    data("marked_names.csv", b"\xef\xbb\xbfv1,v0\n6,5\n");
    data("year.csv", b"2024,v0,v1\n9,7,8\n");
    data("marked.vec", b"\xef\xbb\xbf1 2\n");
    data("marked_lists.jsonl", b"\xef\xbb\xbf[1.5,2]\n[3,4]\n");
    data("lists.jsonl", b"[1.5,2]\n\n{\"embedding\":[3,4],\"text\":\"x\"}\n");
    let header = br#"{"w":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}"#;
    data(
        "t.safetensors",
        &[&(header.len() as u64).to_le_bytes()[..], header, &[0x80, 0x3f, 0, 0x40]].concat(),
    );
    let vector = |file: &str, row: u32| {
        let bytes = fs::read(mount.path(format!("docs/.vexfs/rows/{file}/{row:06}.f32"))).unwrap();
        let floats = bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value));
        floats.collect::<Vec<_>>()
    };
    for (file, row, want) in [
        ("plain.npy", 1, [3.0, 4.0]),
        ("marked.npy", 0, [1.0, 2.0]),
        ("marked.npy", 1, [3.0, 4.0]),
        ("marked_names.npy", 0, [5.0, 6.0]),
        ("year.npy", 0, [7.0, 8.0]),
        ("marked.vec", 0, [1.0, 2.0]),
        ("marked_lists.npy", 0, [1.5, 2.0]),
        ("marked_lists.npy", 1, [3.0, 4.0]),
        ("named.npy", 0, [5.0, 6.0]),
        ("chosen.npy", 0, [7.0, 8.0]),
        ("labelled.npy", 0, [9.0, 7.0]),
        ("labelled.npy", 1, [8.0, 6.0]),
        ("lists.npy", 0, [1.5, 2.0]),
        ("lists.npy", 1, [3.0, 4.0]),
        ("t.npy", 0, [1.0, 2.0]),
    ] {
        assert_eq!(vector(file, row), want, "{file}");
    }
}

#[test]
fn bad_input_is_named_with_its_place_and_leaves_nothing() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 2.0]);
    let rows = |rows: &[&[f32]]| npy(&rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>());
    for (name, content, sentence) in [
        ("wide.npy", rows(&[&[1.0, 2.0, 3.0]]), "wide.npy: dimension 3, collection has 2"),
        ("nan.npy", rows(&[&[1.0, 2.0], &[1.0, f32::NAN]]), "nan.npy: row 1, column 1: value is NaN"),
        ("zero.npy", rows(&[&[0.0, 0.0]]), "zero.npy: row 0: the zero vector"),
        ("cut.npy", rows(&[&[1.0, 2.0]])[..130].to_vec(), "header says 1 rows x 2 f32"),
        ("r.csv", b"1,2\n3\n".to_vec(), "r.csv: line 2: 1 columns, the first line has 2"),
        ("e.csv", b"1,2\n3,\n".to_vec(), "e.csv: line 2: column 2: '' is not a number"),
        ("m.csv", b"label,v0,v1\nx,1,2,3\n".to_vec(), "m.csv: line 2: 4 columns, the first line has 3"),
        ("g.csv", b"v0,v2\n1,2\n".to_vec(), "g.csv: line 1: column 2: 'v2' does not follow on v0"),
        ("r.csv", b"1,2\n3,4,5\n".to_vec(), "r.csv: line 2: 3 columns, the first line has 2"),
        ("w.csv", b"a,b\n1,x\n".to_vec(), "w.csv: line 2: column 2: 'x' is not a number"),
        ("e.csv", b"a,b\n".to_vec(), "e.csv: no vectors"),
        ("h.csv", b"1,\n3,4\n".to_vec(), "h.csv: line 1: column 2: '' is not a number, others are"),
        ("h.csv", b"\n1,2x\n3,4\n".to_vec(), "h.csv: line 2: column 2: '2x' is not a number, others are"),
        ("b.jsonl", b"[1,2]\n{\"vector\":[1,2}\n".to_vec(), "b.jsonl: line 2: "),
        ("d.jsonl", b"[1,2]\n[1,2,3]\n".to_vec(), "d.jsonl: line 2: dimension 3, the first vector has 2"),
        ("o.jsonl", b"[1,1e39]\n".to_vec(), "o.jsonl: line 1: row 0, column 1: value is inf"),
        ("z.npz", b"PK".to_vec(), "z.npz: no zip archive"),
        ("s.safetensors", vec![255; 20], "s.safetensors: header of"),
        ("t.vec", b"1 two".to_vec(), "t.vec: value 2: 'two' is not a number"),
        ("x.parquet", b"PAR1".to_vec(), "x.parquet: want a vector file"),
    ] {
        refused(&mount, name, &content, &[], sentence);
    }
    let archive = include_bytes!("../data/deflated.zip");
    refused(&mount, "a.npz", archive, &["--array", "b"], "no array \"b\"; there are: a");
    refused(&mount, "a.npz", archive, &[], "a.npz: begins with 'abcdef'");

    // What was there stays, also when it was to be replaced.
    fs::write(mount.path("docs/b.npy"), rows(&[&[5.0, 6.0]])).unwrap();
    refused(&mount, "b.npy", &rows(&[&[7.0, 8.0]]), &[], "b.npy: exists; --force replaces it");
    refused(&mount, "b.npy", &rows(&[&[1.0, f32::INFINITY]]), &["--force"], "value is inf");
    assert_eq!(mount.attribute("docs/b.npy", "user.vexfs.vector"), "5,6");
    imported(
        &{
            fs::write(mount.outside("b.npy"), rows(&[&[7.0, 8.0]])).unwrap();
            mount.outside("b.npy")
        },
        &mount.path("docs"),
        &["--force"],
    );
    assert_eq!(mount.attribute("docs/b.npy", "user.vexfs.vector"), "7,8");
}

#[test]
fn files_are_made_again_only_when_all_of_them_can_be() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 2.0]);
    mount.mkdir("elsewhere");
    std::os::unix::fs::symlink(mount.path("elsewhere"), mount.path("docs/link")).unwrap();
    let first = r#"{"path":"new.f32","row":0,"vector":[1,2]}"#;
    for (line, sentence) in [
        (r#"{"path":"a.f32","row":0,"vector":[1,2]}"#, "line 2: "),
        (
            r#"{"path":"../b.f32","row":0,"vector":[1,2]}"#,
            "line 2: path \"../b.f32\" is not one of a file below",
        ),
        (r#"{"path":"link/b.f32","row":0,"vector":[1,2]}"#, "link is not a directory below"),
        (r#"{"path":"b.txt","row":0,"vector":[1,2]}"#, "not the name of a vector file"),
        (r#"{"path":"new.f32","row":0,"vector":[1,2]}"#, "line 2: new.f32 comes a second time"),
        (r#"{"path":"b.npy","row":1,"vector":[1,2]}"#, "line 2: row 1 of b.npy has no row before it"),
        (r#"{"path":"b.f32","row":0,"vector":[1,2,3]}"#, "line 2: dimension 3, collection has 2"),
        (r#"{"path":"b.f32","row":0,"vector":[0,0]}"#, "line 2: row 0: the zero vector"),
        (r#"{"vector":[1,2]}"#, "line 2: no path"),
        ("{", "line 2: "),
    ] {
        refused(&mount, "e.jsonl", format!("{first}\n{line}\n").as_bytes(), &["--as-files"], sentence);
    }
    assert!(names(&mount.path("elsewhere")).is_empty());
    refused(&mount, "e.csv", b"1,2\n", &["--as-files"], "wants a .jsonl of vexfs export");
}

#[test]
fn collections_come_back_below_the_root_of_another_mount() {
    let (from, to) = (Mount::new(), Mount::new());
    for (dir, vector) in [("a", &[1.0, 2.0][..]), ("b", &[3.0, 4.0, 5.0])] {
        from.mkdir(dir);
        from.put(&format!("{dir}/v.f32"), vector);
    }
    let file = exported(&from, "", "all.jsonl");
    imported(&file, &to.root(), &["--as-files"]);
    assert_eq!(fs::read(to.path("b/v.f32")).unwrap(), f32_bytes(&[3.0, 4.0, 5.0]));
    assert_eq!((to.status("a/v.f32"), to.attribute("b", "user.vexfs.dim")), ("indexed".into(), "3".into()));
    assert!(!to.path("a/.vexfs-").exists() && names(&to.root()) == ["a", "b"]);
}
