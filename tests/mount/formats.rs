//! Vector files of every recognised kind, and what happens to content that is none.

use std::fs::{self, File};
use std::io::{self, Write as _};

use half::{bf16, f16};
use serde_json::{Value, json};

use crate::harness::{Mount, errno, f32_bytes, npy, paths, shell, text};

/// Values that every element type holds exactly, far apart in direction.
const ROWS: [[i8; 4]; 3] = [[10, 0, 1, 0], [0, 10, 1, 0], [1, 1, 0, 10]];

/// One row as little-endian elements of a type, named as in a file's suffix.
fn encoded(dtype: &str, row: &[i8]) -> Vec<u8> {
    row.iter()
        .flat_map(|&value| match dtype {
            "f32" => f32::from(value).to_le_bytes().to_vec(),
            "f16" => f16::from_f32(value.into()).to_le_bytes().to_vec(),
            "bf16" => bf16::from_f32(value.into()).to_le_bytes().to_vec(),
            "f64" => f64::from(value).to_le_bytes().to_vec(),
            "i8" => value.to_le_bytes().to_vec(),
            "u8" => u8::try_from(value).unwrap().to_le_bytes().to_vec(),
            "i32" => i32::from(value).to_le_bytes().to_vec(),
            _ => panic!("{dtype}"),
        })
        .collect()
}

/// A `.npy` file with any header.
fn npy_file(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let len = u16::try_from(header.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), data].concat()
}

/// A file of the kind that the suffix says, with these rows.
fn file_of(suffix: &str, rows: &[[i8; 4]]) -> Vec<u8> {
    let all = |dtype: &str| rows.iter().flat_map(|row| encoded(dtype, row)).collect::<Vec<u8>>();
    let vecs = |dtype: &str| {
        rows.iter().flat_map(|row| [&4u32.to_le_bytes()[..], &encoded(dtype, row)].concat()).collect()
    };
    let bin = |dtype: &str| {
        let count = u32::try_from(rows.len()).unwrap().to_le_bytes();
        [&count[..], &4u32.to_le_bytes(), &all(dtype)].concat()
    };
    match suffix {
        "vec" => format!("{:?}\n", rows[0]).into_bytes(),
        "npy" => npy_file("<f4", "False", &format!("({}, 4)", rows.len()), &all("f32")),
        "fvecs" => vecs("f32"),
        "bvecs" => vecs("u8"),
        "ivecs" => vecs("i32"),
        "fbin" => bin("f32"),
        "f16bin" => bin("f16"),
        "u8bin" => bin("u8"),
        "i8bin" => bin("i8"),
        raw => encoded(raw, &rows[0]),
    }
}

fn close(file: File) -> io::Result<()> {
    nix::unistd::close(file).map_err(io::Error::from)
}

/// Writes a file and returns what its close said.
fn write_and_close(mount: &Mount, path: &str, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(mount.path(path))?;
    file.write_all(content)?;
    close(file)
}

fn error_lines(mount: &Mount, dir: &str) -> Vec<Value> {
    let text = fs::read_to_string(mount.path(dir).join(".vexfs/errors.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_single_vector_of_every_kind_is_indexed_and_finds_its_neighbour() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    fs::write(mount.path("docs/.vexfs/config"), "[collection]\nmetric = \"l2\"\n").unwrap();
    for (i, row) in ROWS.iter().enumerate() {
        let values: Vec<f32> = row.iter().map(|&value| value.into()).collect();
        mount.put(&format!("docs/row{i}.f32"), &values);
    }
    let kinds = [
        ("f32", "f32"),
        ("f16", "f16"),
        ("bf16", "bf16"),
        ("f64", "f64"),
        ("i8", "i8"),
        ("u8", "u8"),
        ("vec", "f32"),
        ("npy", "f32"),
        ("fvecs", "f32"),
        ("bvecs", "u8"),
        ("ivecs", "i32"),
        ("fbin", "f32"),
        ("f16bin", "f16"),
        ("u8bin", "u8"),
        ("i8bin", "i8"),
    ];
    for (suffix, _) in kinds {
        for (i, row) in ROWS.iter().enumerate() {
            let name = format!("docs/{suffix}{i}.{suffix}");
            write_and_close(&mount, &name, &file_of(suffix, &[*row])).unwrap();
        }
    }
    for again in [false, true] {
        for (suffix, dtype) in kinds {
            for (i, row) in ROWS.iter().enumerate() {
                let name = format!("docs/{suffix}{i}.{suffix}");
                assert_eq!(mount.status(&name), "indexed", "{name}, remounted: {again}");
                assert_eq!(mount.attribute(&name, "user.vexfs.dim"), "4", "{name}");
                assert_eq!(mount.attribute(&name, "user.vexfs.rows"), "1", "{name}");
                assert_eq!(mount.attribute(&name, "user.vexfs.dtype"), dtype, "{name}");
                let distance =
                    |to: usize| mount.attribute(&name, &format!("user.vexfs.distance.row{to}.f32"));
                assert_eq!(distance(i), "0", "{name}");
                assert_ne!(distance((i + 1) % 3), "0", "{name}");
                assert_eq!(fs::read(mount.path(&name)).unwrap(), file_of(suffix, &[*row]), "{name}");
            }
        }
        mount.remount();
    }
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "48");
}

#[test]
fn the_rows_of_every_multi_row_kind_are_found_one_by_one() {
    let mount = Mount::new();
    for suffix in ["npy", "fvecs", "bvecs", "ivecs", "fbin", "f16bin", "u8bin", "i8bin"] {
        mount.mkdir(suffix);
        let name = format!("{suffix}/all.{suffix}");
        fs::write(mount.path(&name), file_of(suffix, &ROWS)).unwrap();
        assert_eq!(mount.attribute(&name, "user.vexfs.rows"), "3", "{suffix}");
        for (i, row) in ROWS.iter().enumerate() {
            let answer = mount.ask_json(suffix, &json!({"vector": row, "k": 1}));
            assert_eq!(answer["hits"][0]["row"], i, "{suffix}: {answer}");
            assert_eq!(answer["hits"][0]["id"], i, "{suffix}: {answer}");
            let values: Vec<f32> = row.iter().map(|&value| value.into()).collect();
            let path = format!("{suffix}/.vexfs/rows/all.{suffix}/00000{i}.f32");
            assert_eq!(fs::read(mount.path(path)).unwrap(), f32_bytes(&values), "{suffix}");
        }
    }
}

#[test]
fn npy_arrays_of_other_types_shapes_and_orders_are_read() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let all = |dtype: &str| ROWS.iter().flat_map(|row| encoded(dtype, row)).collect::<Vec<u8>>();
    let vector = encoded("f32", &ROWS[0]);
    for (name, content, dtype, rows) in [
        ("f8", npy_file("<f8", "False", "(3, 4)", &all("f64")), "f64", "3"),
        ("f2", npy_file("<f2", "False", "(3, 4)", &all("f16")), "f16", "3"),
        ("i1", npy_file("|i1", "False", "(3, 4)", &all("i8")), "i8", "3"),
        ("u1", npy_file("|u1", "False", "(3, 4)", &all("u8")), "u8", "3"),
        ("flat", npy_file("<f4", "False", "(4,)", &vector), "f32", "1"),
        ("one", npy_file("<f4", "False", "(1, 4)", &vector), "f32", "1"),
    ] {
        let path = format!("docs/{name}.npy");
        fs::write(mount.path(&path), content).unwrap();
        assert_eq!(mount.status(&path), "indexed", "{name}");
        assert_eq!(mount.attribute(&path, "user.vexfs.dtype"), dtype, "{name}");
        assert_eq!(mount.attribute(&path, "user.vexfs.rows"), rows, "{name}");
    }
    for (name, content) in [
        ("big_endian", npy_file(">f4", "False", "(3, 4)", &all("f32"))),
        ("strings", npy_file("<U4", "False", "(3,)", &[0; 48])),
        ("objects", npy_file("|O", "False", "(3, 4)", &[0; 96])),
        ("cube", npy_file("<f4", "False", "(3, 2, 2)", &all("f32"))),
        ("scalar", npy_file("<f4", "False", "()", &[0; 4])),
        ("short", npy_file("<f4", "False", "(4, 4)", &all("f32"))),
        ("long", npy_file("<f4", "False", "(2, 4)", &all("f32"))),
        ("endless", npy_file("<f4", "False", "(99999999999999999999, 4)", &all("f32"))),
        ("negative", npy_file("<f4", "False", "(-3, 4)", &all("f32"))),
        ("magic", b"\x93NUMPX\x01\x00".to_vec()),
    ] {
        let path = format!("docs/{name}.npy");
        fs::write(mount.path(&path), &content).unwrap();
        assert!(mount.status(&path).starts_with("invalid: "), "{name}: {}", mount.status(&path));
        assert_eq!(fs::read(mount.path(&path)).unwrap(), content, "{name}");
    }
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "14");
}

#[test]
fn text_vectors_are_read_as_people_write_them() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/q.f32", &[1.5, -2.0, 0.001]);
    for (i, content) in
        ["1.5 -2 1e-3", "1.5,-2,.001\n", "[1.5, -2.0, 0.001]", "1.5\n-2\n0.001\n\n", "  +1.5\t-2E0 1.0e-3"]
            .iter()
            .enumerate()
    {
        let name = format!("docs/{i}.vec");
        fs::write(mount.path(&name), content).unwrap();
        assert_eq!(mount.status(&name), "indexed", "{content:?}");
        assert_eq!(mount.attribute(&name, "user.vexfs.vector"), "1.5,-2,0.001", "{content:?}");
        assert_eq!(fs::read_to_string(mount.path(&name)).unwrap(), *content);
    }
    for (content, reason) in [
        ("\n", "no values"),
        ("1 two 3", "value 2: 'two' is not a number"),
        ("1,,3", "value 2"),
        ("[1, 2, 3", "'[' and ']'"),
        ("1 nan 3", "column 1"),
        ("1 2", "dimension 2, collection has 3"),
    ] {
        fs::write(mount.path("docs/bad.vec"), content).unwrap();
        let status = mount.status("docs/bad.vec");
        assert!(status.starts_with("invalid: ") && status.contains(reason), "{content:?}: {status}");
        assert_eq!(fs::read_to_string(mount.path("docs/bad.vec")).unwrap(), content);
    }
}

#[test]
fn bad_content_is_kept_and_named_and_a_good_rewrite_heals_it() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 0.0, 0.0, 1.0]);
    let row = |dim: u32| [&dim.to_le_bytes()[..], &vec![1; dim as usize * 4]].concat();
    let bad: Vec<(&str, Vec<u8>, &str)> = vec![
        ("short.f32", f32_bytes(&[1.0, 2.0, 3.0]), "dimension 3, collection has 4"),
        ("odd.f32", vec![1; 15], "15 bytes, want 16 (dim 4, f32)"),
        (
            "nan.f32",
            f32_bytes(&[1.0, f32::NAN, 0.0, 0.0]),
            "row 0, column 1: value is NaN, want a finite number",
        ),
        (
            "inf.f32",
            f32_bytes(&[1.0, 0.0, f32::NEG_INFINITY, 0.0]),
            "row 0, column 2: value is -inf, want a finite number",
        ),
        ("zero.f32", f32_bytes(&[0.0; 4]), "row 0: the zero vector has no cosine distance"),
        ("wide.f32", vec![1; 16_385 * 4], "dimension 16385, the limit is 16384"),
        ("rows.npy", npy(&[vec![1.0; 5], vec![2.0; 5]]), "dimension 5, collection has 4"),
        (
            "late.npy",
            npy(&[vec![1.0; 4], vec![2.0, f32::NAN, 0.0, 0.0]]),
            "row 1, column 1: value is NaN, want a finite number",
        ),
        ("cut.npy", npy(&[vec![1.0; 4]])[..70].to_vec(), "header"),
        ("beyond.f64", 1e300_f64.to_le_bytes().repeat(4), "value is 1e300, beyond the range of f32"),
        ("far.f32", f32_bytes(&[4e18; 4]), "row 0: norm 8.0e18, want at most 4.6e18"),
        ("near.f32", f32_bytes(&[1e-20; 4]), "row 0: norm 2.0e-20, cosine wants at least 1.1e-19"),
        ("minus.fvecs", vec![0xff; 20], "dimension -1, want at least 1"),
        ("mixed.fvecs", [row(4), row(3)].concat(), "row 1: dimension 3, row 0 has 4"),
        ("cut.fvecs", row(4)[..17].to_vec(), "17 bytes, want a multiple of 20 (dim 4, f32)"),
        ("huge.fbin", vec![255; 24], "4294967295"),
        (
            "more.fbin",
            [2u32.to_le_bytes(), 4u32.to_le_bytes(), [1; 4]].concat(),
            "header says 2 rows x 4 f32 = 32 bytes after offset 8, file has 4",
        ),
    ];
    for (name, content, reason) in &bad {
        let path = format!("docs/{name}");
        write_and_close(&mount, &path, content).unwrap_or_else(|error| panic!("{name}: {error}"));
        let status = mount.status(&path);
        assert!(status.starts_with("invalid: ") && status.contains(reason), "{name}: {status}");
        assert_eq!(mount.attribute(&path, "user.vexfs.error"), status["invalid: ".len()..], "{name}");
        assert!(mount.try_attribute(&path, "user.vexfs.similar").is_err(), "{name}");
        assert!(fs::read(mount.path(&path)).unwrap() == *content, "{name}: the bytes are kept");
    }
    for again in [false, true] {
        let lines = error_lines(&mount, "docs");
        assert_eq!(lines.len(), bad.len(), "remounted: {again}");
        for (name, _, reason) in &bad {
            let line = lines.iter().find(|line| line["path"] == *name).unwrap_or_else(|| panic!("{name}"));
            assert!(line["error"].as_str().unwrap().contains(reason), "{line}");
            assert!(line["at"].as_f64().unwrap() > 1e9, "{line}");
        }
        assert_eq!(mount.json("docs/.vexfs/stats.json")["invalid"], bad.len());
        assert_eq!(mount.similar("docs/a.f32"), [""; 0]);
        mount.remount();
    }
    for (name, ..) in &bad {
        let path = format!("docs/{name}");
        let kind = name.split_once('.').unwrap().1;
        write_and_close(&mount, &path, &file_of(kind, &[ROWS[0]])).unwrap();
        assert_eq!(mount.status(&path), "indexed", "{name}");
    }
    assert_eq!(error_lines(&mount, "docs"), [Value::Null; 0]);
    let answer = mount.ask_json("docs", &json!({"vector": ROWS[0], "k": 100}));
    assert_eq!(paths(&answer).len(), bad.len() + 1);
}

#[test]
fn a_strict_collection_fails_the_close_and_keeps_the_bytes() {
    let mount = Mount::new();
    mount.mkdir("docs");
    fs::write(mount.path("docs/.vexfs/config"), "[collection]\ndim = 4\n[limits]\nmax_dim = 8\n").unwrap();
    for (name, content, code) in [
        ("dim.f32", f32_bytes(&[1.0, 2.0, 3.0]), libc::EINVAL),
        ("odd.f32", vec![1; 15], libc::EINVAL),
        ("text.vec", b"1 2 three 4".to_vec(), libc::EINVAL),
        ("nan.f32", f32_bytes(&[f32::NAN; 4]), libc::EDOM),
        ("inf.f64", f64::INFINITY.to_le_bytes().repeat(4), libc::EDOM),
        ("zero.f32", f32_bytes(&[0.0; 4]), libc::EDOM),
        ("far.f32", f32_bytes(&[4e18; 4]), libc::EDOM),
        ("near.f32", f32_bytes(&[1e-20; 4]), libc::EDOM),
        ("beyond.f64", 1e300_f64.to_le_bytes().repeat(4), libc::EDOM),
        ("wide.f32", vec![1; 9 * 4], libc::EMSGSIZE),
    ] {
        let path = format!("docs/{name}");
        assert_eq!(errno(write_and_close(&mount, &path, &content)), code, "{name}");
        assert!(mount.status(&path).starts_with("invalid: "), "{name}: {}", mount.status(&path));
        assert_eq!(fs::read(mount.path(&path)).unwrap(), content, "{name}");
        write_and_close(&mount, &path, &file_of(name.split_once('.').unwrap().1, &[ROWS[0]])).unwrap();
        assert_eq!(mount.status(&path), "indexed", "{name}");
    }
    fs::write(mount.path("docs/note.txt"), b"anything").unwrap();
    // What a shell user sees.
    let said = shell(&mount.root(), "if LC_ALL=C cp docs/note.txt docs/bad.f32 2>&1; then echo copied; fi");
    assert!(said.contains("Invalid argument") && !said.contains("copied"), "{said}");
    assert_eq!(mount.attribute("docs/bad.f32", "user.vexfs.error"), "dimension 2, collection has 4");
}

#[test]
fn on_invalid_decides_over_the_declared_dimension() {
    let mount = Mount::new();
    for (dir, config, fails) in [
        ("kept", "[collection]\ndim = 4\non_invalid = \"keep\"\n", false),
        ("strict", "[collection]\non_invalid = \"error\"\n", true),
        ("lenient", "", false),
    ] {
        mount.mkdir(dir);
        fs::write(mount.path(dir).join(".vexfs/config"), config).unwrap();
        let closed = write_and_close(&mount, &format!("{dir}/a.f32"), &[1; 15]);
        assert_eq!(closed.is_err(), fails, "{dir}: {closed:?}");
        assert!(mount.status(&format!("{dir}/a.f32")).starts_with("invalid: "));
    }
}

#[test]
fn a_zero_vector_is_refused_only_where_it_has_no_distance() {
    let mount = Mount::new();
    for (metric, valid) in [("cosine", false), ("ip", true), ("l2", true)] {
        mount.mkdir(metric);
        let config = format!("[collection]\nmetric = \"{metric}\"\n");
        fs::write(mount.path(metric).join(".vexfs/config"), config).unwrap();
        mount.put(&format!("{metric}/a.f32"), &[3.0, 4.0]);
        mount.put(&format!("{metric}/zero.f32"), &[0.0, 0.0]);
        assert_eq!(mount.status(&format!("{metric}/zero.f32")) == "indexed", valid, "{metric}");
        assert_eq!(mount.similar(&format!("{metric}/a.f32")).len(), usize::from(valid), "{metric}");
    }
    assert_eq!(mount.attribute("l2/a.f32", "user.vexfs.distance.zero.f32"), "5");
    assert_eq!(mount.attribute("ip/a.f32", "user.vexfs.distance.zero.f32"), "0");
}

#[test]
fn the_first_valid_vector_fixes_the_dimension_until_the_last_is_gone() {
    let mount = Mount::new();
    mount.mkdir("docs");
    assert!(mount.try_attribute("docs", "user.vexfs.dim").is_err());
    mount.put("docs/bad.f32", &[f32::NAN; 7]);
    mount.put("docs/a.f32", &[1.0; 3]);
    assert_eq!(mount.attribute("docs", "user.vexfs.dim"), "3");
    mount.put("docs/b.f32", &[1.0; 5]);
    assert_eq!(mount.status("docs/b.f32"), "invalid: dimension 5, collection has 3");
    // Rewriting the only vector in another dimension is an emptied collection's first.
    fs::remove_file(mount.path("docs/a.f32")).unwrap();
    mount.put("docs/c.f32", &[1.0; 5]);
    assert_eq!(mount.attribute("docs", "user.vexfs.dim"), "5");
    assert_eq!(mount.status("docs/c.f32"), "indexed");
    mount.put("docs/b.f32", &[1.0; 5]);
    assert_eq!(mount.status("docs/b.f32"), "indexed");
}

#[test]
fn two_files_that_are_closed_at_once_are_never_indexed_with_two_dimensions() {
    let mount = Mount::new();
    mount.mkdir("docs");
    for round in 0..200 {
        // The only vector changes its dimension while another one of the old dimension comes.
        mount.put("docs/a.f32", &[1.0, 0.0, 0.0]);
        std::thread::scope(|scope| {
            scope.spawn(|| mount.put("docs/a.f32", &[1.0, 0.0]));
            scope.spawn(|| mount.put("docs/b.f32", &[1.0, 0.0, 0.0]));
        });
        let status = |name: &str| mount.status(&format!("docs/{name}.f32"));
        let (a, b) = (status("a"), status("b"));
        let valid = [&a, &b].iter().filter(|status| **status == "indexed").count();
        assert_eq!(valid, 1, "round {round}: a of 2 elements is {a}, b of 3 is {b}");
        for name in ["a", "b"] {
            fs::remove_file(mount.path(format!("docs/{name}.f32"))).unwrap();
        }
    }
}

#[test]
fn temporary_and_other_names_cost_nothing() {
    let mount = Mount::new();
    mount.mkdir("docs");
    fs::write(mount.path("docs/.vexfs/config"), "[collection]\ndim = 2\n").unwrap();
    for name in [
        ".a.f32",
        ".a.f32.Xy12",
        "a.f32~",
        "a.f32.tmp",
        "a.f32.part",
        "a.f32.swp",
        "#a.f32#",
        "a.F32",
        "f32",
        "a.txt",
        "a",
    ] {
        let path = format!("docs/{name}");
        write_and_close(&mount, &path, b"no vector at all").unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(mount.status(&path), "plain", "{name}");
        assert!(mount.try_attribute(&path, "user.vexfs.dim").is_err(), "{name}");
    }
    assert_eq!(error_lines(&mount, "docs"), [Value::Null; 0]);
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "0");
    assert_eq!(fs::read_dir(mount.path("docs/.vexfs/similar")).unwrap().count(), 0);
}

#[test]
fn a_file_that_is_being_written_is_pending_from_its_first_moment() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let mut file = File::create(mount.path("docs/a.f32")).unwrap();
    let created = mount.status("docs/a.f32");
    file.write_all(&f32_bytes(&[1.0, 1.0])).unwrap();
    assert_eq!(mount.status("docs/a.f32"), "pending");
    close(file).unwrap();
    assert_eq!(mount.status("docs/a.f32"), "indexed");
    assert_eq!(created, "pending", "open for writing and still empty");
}

#[test]
fn an_empty_vector_file_says_so_however_it_came_to_be_empty() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/q.f32", &[1.0, 0.0]);
    mount.put("docs/cut.f32", &[1.0, 1.0]);
    shell(
        &mount.path("docs"),
        "touch q.f32; truncate -s 0 cut.f32; : > made.f32; touch empty.tmp; mv empty.tmp moved.f32",
    );
    assert_eq!(mount.status("docs/q.f32"), "indexed", "touch changes only times");
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "1");
    for name in ["cut", "moved", "made"] {
        assert_eq!(mount.status(&format!("docs/{name}.f32")), "invalid: empty file", "{name}");
    }
    for name in ["cut", "moved", "made"] {
        let error = mount.try_attribute(&format!("docs/{name}.f32"), "user.vexfs.error");
        assert_eq!(error.ok().as_deref(), Some("empty file"), "{name}");
    }
    assert_eq!(error_lines(&mount, "docs").len(), 3);
}

#[test]
fn a_multi_row_file_with_one_bad_row_is_refused_whole_and_an_older_version_is_gone() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/q.f32", &[1.0, 0.0]);
    fs::write(mount.path("docs/a.npy"), npy(&[vec![1.0, 0.1], vec![1.0, 0.2]])).unwrap();
    assert_eq!(mount.similar("docs/q.f32"), ["a.npy#0", "a.npy#1"]);
    fs::write(mount.path("docs/a.npy"), npy(&[vec![1.0, 0.1], vec![f32::NAN, 0.2], vec![1.0, 0.3]])).unwrap();
    assert_eq!(mount.similar("docs/q.f32"), [""; 0]);
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "1");
    let why = mount.attribute("docs/a.npy", "user.vexfs.error");
    assert_eq!(why, "row 1, column 0: value is NaN, want a finite number");
}

#[test]
fn values_that_differ_only_beyond_f32_are_the_same_vector() {
    let mount = Mount::new();
    mount.mkdir("docs");
    fs::write(mount.path("docs/.vexfs/config"), "[collection]\nmetric = \"l2\"\n").unwrap();
    let bytes = |values: [f64; 2]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    fs::write(mount.path("docs/a.f64"), bytes([1.0, 2.0])).unwrap();
    fs::write(mount.path("docs/b.f64"), bytes([1.0 + 1e-12, 2.0])).unwrap();
    assert_eq!(mount.attribute("docs/a.f64", "user.vexfs.distance.b.f64"), "0");
    fs::write(mount.path("docs/c.f64"), bytes([1e300, 2.0])).unwrap();
    assert_eq!(
        mount.status("docs/c.f64"),
        "invalid: row 0, column 0: value is 1e300, beyond the range of f32"
    );
    // The same of a file that is read in pieces.
    let header = format!("{{'descr':'<f8','fortran_order':False,'shape':(40000,16)}}{:62}\n", "");
    let mut file = [
        b"\x93NUMPY\x01\0".as_slice(),
        &u16::try_from(header.len()).unwrap().to_le_bytes(),
        header.as_bytes(),
    ]
    .concat();
    for row in 0..40_000 {
        file.extend(
            (0..16)
                .flat_map(|column| if (row, column) == (39_000, 7) { 1e300_f64 } else { 1.0 }.to_le_bytes()),
        );
    }
    fs::create_dir(mount.path("rows")).unwrap();
    fs::write(mount.path("rows/d.npy"), file).unwrap();
    assert_eq!(
        mount.status("rows/d.npy"),
        "invalid: row 39000, column 7: value is 1e300, beyond the range of f32"
    );
}

#[test]
fn the_message_of_a_refused_file_is_one_line_of_text() {
    let mount = Mount::new();
    mount.mkdir("docs");
    fs::write(mount.path("docs/a.vec"), b"1 \x00\xff\n\t\"quoted\" 2").unwrap();
    fs::write(mount.path("docs/b.vec"), "z".repeat(100_000)).unwrap();
    for name in ["docs/a.vec", "docs/b.vec"] {
        let value = xattr::get(mount.path(name), "user.vexfs.error").unwrap().unwrap();
        let message = text(&value);
        assert_eq!(message.as_bytes(), value, "UTF-8");
        assert!(!message.contains('\n') && message.len() < 200, "{message}");
    }
    assert_eq!(error_lines(&mount, "docs").len(), 2);
}

#[test]
fn a_text_longer_than_any_vectors_is_refused_before_it_is_read() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    let refused = "invalid: text of bytes 1099511627776, the limit is 16777216";
    let longer = |path: &str| {
        let file = File::create(mount.path(path)).unwrap();
        file.set_len(1 << 40).unwrap();
        file
    };
    drop(longer("docs/x.vec"));
    assert_eq!(mount.status("docs/x.vec"), refused);
    drop(longer("docs/x.txt"));
    fs::rename(mount.path("docs/x.txt"), mount.path("docs/y.vec")).unwrap();
    assert_eq!(mount.status("docs/y.vec"), refused);
    fs::write(mount.path("docs/.vexfs/config"), "[collection]\ndim = 3\n[limits]\nmax_dim = 3\n").unwrap();
    let long = File::create(mount.path("docs/long.vec")).unwrap();
    (&long).write_all(format!("{:3073}", "1 2 3").as_bytes()).unwrap();
    assert_eq!(errno(nix::unistd::close(long).map_err(io::Error::from)), libc::EMSGSIZE);
    assert_eq!(mount.status("docs/long.vec"), "invalid: text of bytes 3073, the limit is 3072");
    // One that was being written when the daemon died is settled by the next mount.
    let _open = longer("docs/z.vec");
    mount.kill();
    mount.start();
    assert_eq!(mount.status("docs/z.vec"), refused.replace("16777216", "3072"));
}
