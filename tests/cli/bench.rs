//! `vexfs bench ann` on slices of real vectors.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vexfs::format;

use super::vexfs;

fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).to_str().unwrap().to_owned()
}

/// Runs `bench ann` on files, with a graph that is quick to build.
fn run(base: &str, query: &str, metric: &str, more: &[&str]) -> std::process::Output {
    let mut args = vec!["bench", "ann", "--base", base, "--query", query, "--metric", metric];
    args.extend(["--m", "8", "--ef-construction", "60", "--runs", "1"]);
    args.extend(more);
    vexfs(&std::env::temp_dir(), &args)
}

#[track_caller]
fn answer(base: &str, query: &str, metric: &str, more: &[&str]) -> Value {
    let output = run(base, query, metric, &[more, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said, "", "no progress where nobody looks");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refused(base: &str, query: &str, metric: &str, more: &[&str], code: i32, sentence: &str) {
    let output = run(base, query, metric, more);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("vexfs: ") && said.contains(sentence), "{said}");
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty());
}

fn recalls(answer: &Value) -> Vec<f64> {
    answer["points"].as_array().unwrap().iter().map(|point| point["recall"].as_f64().unwrap()).collect()
}

/// Base, query and ground truth of a set.
fn set(name: &str) -> [String; 3] {
    ["base", "query", "gt"].map(|part| data(&format!("{name}_{part}.npy")))
}

#[test]
fn real_vectors_are_found_again() {
    for (name, metric, n, dim) in
        [("minilm384", "ip", 1000, 384), ("glove100", "cosine", 2000, 100), ("sift128", "l2", 2000, 128)]
    {
        let [base, query, gt] = set(name);
        let answer = answer(&base, &query, metric, &["--gt", &gt, "--ef", "10,200"]);
        assert_eq!((answer["n"].as_u64(), answer["dim"].as_u64()), (Some(n), Some(dim)), "{name}");
        let recalls = recalls(&answer);
        assert!(recalls[0] > 0.6 && recalls[1] > 0.97, "{name}: {recalls:?}");
    }
}

#[test]
fn the_object_has_what_was_promised() {
    let [base, query, gt] = set("minilm384");
    let answer = answer(&base, &query, "ip", &["--gt", &gt, "--ef", "20,40", "--build-threads", "2"]);
    assert_eq!(answer["schema"], 1);
    assert_eq!(answer["engine"], concat!("vexfs ", env!("CARGO_PKG_VERSION")));
    for (field, value) in [("metric", "ip"), ("quant", "sq8"), ("truth", "gt")] {
        assert_eq!(answer[field], value, "{field}");
    }
    for (field, value) in [("k", 10), ("m", 8), ("ef_construction", 60), ("threads", 1), ("queries", 50)] {
        assert_eq!(answer[field], value, "{field}");
    }
    assert!(answer["variant"].is_string());
    assert_eq!(answer["build"]["threads"], 2);
    let point = &answer["points"][0];
    assert_eq!(point["ef"], 20);
    for (object, fields) in [
        (&answer["build"], &["seconds", "vectors_per_s", "vectors_per_core_s"][..]),
        (&answer["bytes"], &["file_per_vector", "anon_rss", "rss_file"]),
        (point, &["recall", "qps", "qps_cpu", "compared", "p50_us", "p99_us"]),
    ] {
        for field in fields {
            assert!(object[field].as_f64().is_some_and(|value| value > 0.0), "{field} in {object}");
        }
    }
    assert!(point["p99_us"].as_f64() >= point["p50_us"].as_f64());
}

#[test]
fn a_scan_finds_the_neighbours_that_the_file_gives() {
    let [base, query, gt] = set("sift128");
    let with_file = answer(&base, &query, "l2", &["--gt", &gt, "--ef", "10,20"]);
    let with_scan = answer(&base, &query, "l2", &["--ef", "10,20"]);
    assert_eq!(with_scan["truth"], "scan");
    assert_eq!(recalls(&with_file), recalls(&with_scan));
}

#[test]
fn a_part_of_the_base_has_its_own_neighbours() {
    let [base, query, gt] = set("sift128");
    let part = answer(&base, &query, "l2", &["--gt", &gt, "--n", "500", "--ef", "200"]);
    assert_eq!((part["n"].as_u64(), part["truth"].as_str()), (Some(500), Some("scan")));
    assert!(recalls(&part)[0] > 0.97, "{part}");
    let whole = answer(&base, &query, "l2", &["--gt", &gt, "--n", "2000", "--ef", "200"]);
    assert_eq!(whole["truth"], "gt");
}

#[test]
fn several_threads_find_what_one_finds() {
    let [base, query, gt] = set("glove100");
    let options = ["--gt", &gt, "--ef", "20", "--build-threads", "1"];
    let one = answer(&base, &query, "ip", &options);
    let three = answer(&base, &query, "ip", &[&options[..], &["--threads", "3"]].concat());
    assert_eq!(three["threads"], 3);
    assert_eq!(recalls(&one), recalls(&three));
}

#[test]
fn no_wider_search_follows_one_that_finds_nearly_all() {
    let [base, query, _] = set("minilm384");
    let answer = answer(&base, &query, "ip", &["--ef", "600,10,5,400,700", "--n", "300"]);
    let widths: Vec<_> = answer["points"].as_array().unwrap().iter().map(|point| &point["ef"]).collect();
    assert_eq!(widths, [10, 400], "5 is below k, 400 of 300 finds all");
}

#[test]
fn the_same_vectors_in_every_format_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let [base, query, _] = set("sift128");
    let npy = fs::read(&base).unwrap();
    let bytes = &npy[128..];
    let rows: Vec<&[u8]> = bytes.chunks_exact(128).collect();
    let bin = |element: &dyn Fn(u8) -> Vec<u8>| {
        let header = [2000u32.to_le_bytes(), 128u32.to_le_bytes()].concat();
        [header, bytes.iter().flat_map(|&value| element(value)).collect()].concat()
    };
    let vecs = |element: &dyn Fn(u8) -> Vec<u8>| -> Vec<u8> {
        let row =
            |row: &&[u8]| [128u32.to_le_bytes().to_vec(), row.iter().flat_map(|&v| element(v)).collect()];
        rows.iter().flat_map(row).flatten().collect()
    };
    let as_f32 = |value: u8| f32::from(value).to_le_bytes().to_vec();
    let as_f16 = |value: u8| half::f16::from(value).to_le_bytes().to_vec();
    let as_i32 = |value: u8| i32::from(value).to_le_bytes().to_vec();
    let as_u8 = |value: u8| vec![value];
    let values: Vec<f32> = bytes.iter().map(|&value| f32::from(value)).collect();
    let files: [(&str, Vec<u8>); 7] = [
        ("a.fbin", bin(&as_f32)),
        ("a.f16bin", bin(&as_f16)),
        ("a.u8bin", bin(&as_u8)),
        ("a.fvecs", vecs(&as_f32)),
        ("a.bvecs", vecs(&as_u8)),
        ("a.ivecs", vecs(&as_i32)),
        ("a.npy", format::npy_f32(2000, 128, &values)),
    ];
    let options = ["--n", "500", "--ef", "10"];
    let want = recalls(&answer(&base, &query, "l2", &options));
    for (name, content) in files {
        let path: PathBuf = dir.path().join(name);
        fs::write(&path, content).unwrap();
        assert_eq!(recalls(&answer(path.to_str().unwrap(), &query, "l2", &options)), want, "{name}");
    }
}

#[test]
fn people_get_a_table() {
    let [base, query, gt] = set("minilm384");
    let output = run(&base, &query, "ip", &["--gt", &gt, "--ef", "32"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("data    1000 x 384, ip, 50 queries"), "{text}");
    assert!(text.lines().any(|line| line.split_whitespace().next() == Some("32")), "{text}");
    assert!(output.stderr.is_empty());
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let [base, query, _] = set("minilm384");
    let refused = |more: &[&str], sentence| refused(&base, &query, "ip", more, 2, sentence);
    refused(&["--quant", "sq4"], "invalid value 'sq4'");
    refused(&["-k", "0"], "invalid value '0'");
    refused(&["--threads", "0"], "invalid value '0'");
    refused(&["--n", "0"], "invalid value '0'");
    refused(&["--ef", "8,9"], "--ef: the largest is 9, want at least k, which is 10");
    super::refused(&["bench"], 2, "ann");
    super::refused(&["bench", "ann", "--base", "b.npy", "--query", "q.npy"], 2, "--metric");
    super::refused(&["bench", "ann", "--base", "b", "--query", "q", "--metric", "hamming"], 2, "'hamming'");
}

#[test]
fn input_that_does_not_fit_is_refused_with_both_numbers() {
    let [base, query, gt] = set("minilm384");
    let [sift_base, sift_query, sift_gt] = set("sift128");
    let invalid = |query: &str, more: &[&str], sentence| refused(&base, query, "ip", more, 4, sentence);
    invalid(&sift_query, &[], "sift128_query.npy: dimension 128, ");
    invalid(&sift_query, &[], "minilm384_base.npy has 384");
    invalid(&query, &["--n", "1001"], "n is 1001, ");
    invalid(&query, &["--n", "5"], "k is 10, ");
    invalid(&query, &["--gt", &gt, "-k", "11", "--ef", "11"], "10 neighbours of each query, k is 11");
    invalid(&query, &["--gt", &query], "dtype '<f4', want <i4, <i8, <u4 or <u8");
    invalid("absent.npy", &[], "absent.npy: No such file");
    refused("text.txt", &query, "ip", &[], 4, "text.txt: want a name in .npy");
    // Other neighbours of as many queries name rows that this base does not have.
    invalid(&query, &["--gt", &sift_gt], ", the base has 1000 vectors");
    refused(&sift_base, &base, "l2", &[], 4, "dimension 384");
}

/// What `numpy.argsort` and other libraries return.
#[test]
fn true_neighbours_of_eight_bytes_each_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let [base, query, gt] = set("minilm384");
    let options = ["--ef", "20", "--build-threads", "1", "--gt"];
    let narrow = answer(&base, &query, "ip", &[&options[..], &[&gt]].concat());
    let bytes = std::fs::read(&gt).unwrap();
    let (header, numbers) = bytes.split_at(128);
    let header = String::from_utf8_lossy(&header[10..]).replace("<i4", "<i8");
    let mut wide = bytes[..10].to_vec();
    wide.extend_from_slice(header.as_bytes());
    for number in numbers.as_chunks().0 {
        wide.extend_from_slice(&i64::from(i32::from_le_bytes(*number)).to_le_bytes());
    }
    let file = dir.path().join("gt64.npy");
    std::fs::write(&file, wide).unwrap();
    let wide = answer(&base, &query, "ip", &[&options[..], &[file.to_str().unwrap()]].concat());
    assert_eq!(wide["truth"], "gt");
    assert_eq!(wide["points"][0]["recall"], narrow["points"][0]["recall"]);
}

#[test]
fn a_wrong_number_of_true_neighbours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [base, query, _] = set("minilm384");
    let file = dir.path().join("gt.ivecs");
    let file = file.to_str().unwrap();
    let row = |first: u32| (first..first + 10).collect::<Vec<u32>>();
    fs::write(file, format::ivecs(10, &row(0).repeat(49))).unwrap();
    refused(&base, &query, "ip", &["--gt", file], 4, "gt.ivecs: 49 rows, there are 50 queries");
    fs::write(file, format::ivecs(10, &[row(0).repeat(49), row(991)].concat())).unwrap();
    refused(&base, &query, "ip", &["--gt", file], 4, "query 49: neighbour 1000, the base has 1000 vectors");
}

#[test]
fn vectors_without_distances_are_refused_by_row() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.npy");
    let file = file.to_str().unwrap();
    let mut values: Vec<f32> = (0..400u16).map(f32::from).collect();
    values[42] = f32::NAN;
    fs::write(file, format::npy_f32(100, 4, &values)).unwrap();
    refused(file, file, "l2", &[], 4, "bad.npy: row 10, column 2: value is NaN");
    values[40..44].fill(0.0);
    fs::write(file, format::npy_f32(100, 4, &values)).unwrap();
    refused(file, file, "cosine", &[], 4, "bad.npy: row 10: the zero vector has no cosine distance");
    fs::write(file, &fs::read(file).unwrap()[..1000]).unwrap();
    refused(file, file, "l2", &[], 4, "bad.npy: header says 100 rows");
}
