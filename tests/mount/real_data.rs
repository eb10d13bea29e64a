//! Recall on real vectors, through the kernel: the graph's answers against a scan in f64.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Mount, f32_bytes};

const K: usize = 10;

/// A data set, its rows widened to f32.
struct Set {
    name: &'static str,
    metric: &'static str,
    suffix: &'static str,
    base: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
}

/// The data type, the number of columns and the elements' bytes of a 2-D `.npy`.
fn parse_npy(bytes: &[u8]) -> (String, usize, &[u8]) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..end]).unwrap();
    let after = |key: &str| header.split_once(key).unwrap().1;
    assert!(after("'fortran_order':").trim_start().starts_with("False"));
    let descr = after("'descr':").split('\'').nth(1).unwrap().to_owned();
    let shape = after("'shape':").split_once('(').unwrap().1.split_once(')').unwrap().0;
    let columns = shape.split(',').nth(1).unwrap().trim().parse().unwrap();
    (descr, columns, &bytes[end..])
}

fn rows_of(path: &Path) -> Vec<Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    let (descr, columns, data) = parse_npy(&bytes);
    let values: Vec<f32> = match descr.as_str() {
        "<f4" => data.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect(),
        "|u1" => data.iter().map(|&value| value.into()).collect(),
        other => panic!("{other}"),
    };
    values.chunks(columns).map(<[f32]>::to_vec).collect()
}

fn file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

impl Set {
    fn load(name: &'static str, metric: &'static str, suffix: &'static str) -> Self {
        let base = rows_of(&file(&format!("{name}_base.npy")));
        let queries = rows_of(&file(&format!("{name}_query.npy")));
        Self { name, metric, suffix, base, queries }
    }

    fn distance(&self, query: usize, row: usize) -> f64 {
        let pairs =
            self.queries[query].iter().zip(&self.base[row]).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        match self.metric {
            "ip" => -pairs.map(|(a, b)| a * b).sum::<f64>(),
            _ => pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt(),
        }
    }

    /// The distance of the `K`-th nearest row.
    fn reach(&self, query: usize) -> f64 {
        let mut all: Vec<f64> = (0..self.base.len()).map(|row| self.distance(query, row)).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[K - 1]
    }

    /// Half of the base as single raw files, the rest as one array.
    fn copy_in(&self, mount: &Mount) {
        mount.mkdir(self.name);
        let config = format!("[collection]\nmetric = \"{}\"\n[index]\nexact_below = 500\n", self.metric);
        fs::write(mount.path(self.name).join(".vexfs/config"), config).unwrap();
        let bytes = fs::read(file(&format!("{}_base.npy", self.name))).unwrap();
        let (descr, columns, data) = parse_npy(&bytes);
        let width = data.len() / self.base.len();
        let half = self.base.len() / 2;
        for (row, bytes) in data.chunks(width).take(half).enumerate() {
            fs::write(mount.path(format!("{}/{row:05}.{}", self.name, self.suffix)), bytes).unwrap();
        }
        let rest = self.base.len() - half;
        let mut header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rest}, {columns}), }}");
        while (11 + header.len()) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let len = u16::try_from(header.len()).unwrap().to_le_bytes();
        let array = [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), &data[half * width..]].concat();
        fs::write(mount.path(format!("{}/rest.npy", self.name)), array).unwrap();
    }

    /// Which row of the base an id stands for.
    fn rows_by_id(&self, mount: &Mount) -> HashMap<u32, usize> {
        let table = fs::read_to_string(mount.path(self.name).join(".vexfs/ids.tsv")).unwrap();
        let rows = table.lines().skip(1).map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            let row: usize = match fields[1].split_once('.').unwrap() {
                ("rest", _) => self.base.len() / 2 + fields[2].parse::<usize>().unwrap(),
                (number, _) => number.parse().unwrap(),
            };
            (fields[0].parse().unwrap(), row)
        });
        let rows: HashMap<u32, usize> = rows.collect();
        assert_eq!(rows.len(), self.base.len());
        rows
    }

    /// Asks every query in one binary request and returns the share of the right neighbours. `option` is `exact`,
    /// `recall` or `ef`, with its value.
    fn recall(&self, mount: &Mount, option: Option<(&str, Value)>) -> f64 {
        let mut header =
            json!({ "dtype": "f32", "rows": self.queries.len(), "dim": self.base[0].len(), "k": K });
        if let Some((name, value)) = option {
            header[name] = value;
        }
        let mut request = format!("{header}\n").into_bytes();
        request.extend(self.queries.iter().flat_map(|query| f32_bytes(query)));
        let answer = mount.ask(self.name, &request);
        assert_eq!(answer.len(), self.queries.len() * K * 8);
        let rows = self.rows_by_id(mount);
        let mut right = 0;
        for (query, records) in answer.chunks(K * 8).enumerate() {
            // Near-ties may change places within the rounding of f32.
            let reach = self.reach(query);
            let reach = reach + 1e-6 * reach.abs();
            let mut seen = Vec::new();
            for record in records.chunks(8) {
                let id = u32::from_le_bytes(record[..4].try_into().unwrap());
                let shown = f32::from_le_bytes(record[4..].try_into().unwrap());
                let row = rows[&id];
                assert!(!seen.contains(&row), "{} query {query}: row {row} twice", self.name);
                seen.push(row);
                let distance = self.distance(query, row);
                let error = (f64::from(shown) - distance).abs();
                assert!(
                    error <= 1e-5 * distance.abs().max(1.0),
                    "{} query {query}: {shown}, not {distance}",
                    self.name
                );
                right += usize::from(distance <= reach);
            }
        }
        right as f64 / (self.queries.len() * K) as f64
    }
}

#[test]
fn recall_on_real_vectors_is_what_is_promised() {
    let mut mount = Mount::new();
    let sets = [
        Set::load("minilm384", "ip", "f32"),
        Set::load("glove100", "ip", "f32"),
        Set::load("sift128", "l2", "u8"),
    ];
    for set in &sets {
        set.copy_in(&mount);
        // Before the graph is complete, what it does not have is scanned.
        let exact = set.recall(&mount, Some(("exact", json!(true))));
        assert!((exact - 1.0).abs() < 1e-9, "{}: exact, while it is built", set.name);
    }
    mount.sync();
    for again in [false, true] {
        for set in &sets {
            let probe = mount.ask_json(set.name, &json!({"vector": set.queries[0]}));
            assert_eq!(
                (&probe["exact"], &probe["pending"]),
                (&Value::Bool(false), &json!(0)),
                "{}",
                set.name
            );
            // What is promised is within 0.02 of what is asked, and 0.95 is asked by default.
            for (asked, option) in
                [(0.95, None), (0.9, Some(("recall", json!(0.9)))), (0.99, Some(("recall", json!(0.99))))]
            {
                let recall = set.recall(&mount, option);
                let what = format!("asked {asked}, recall@{K} is {recall}, remounted: {again}");
                assert!(recall >= asked - 0.02, "{}: {what}", set.name);
            }
            let exact = set.recall(&mount, Some(("exact", json!(true))));
            assert!((exact - 1.0).abs() < 1e-9, "{}: {exact} of the exact answers are right", set.name);
        }
        mount.remount();
    }
}

#[test]
fn the_neighbours_of_loaded_vectors_are_those_of_the_published_ground_truth() {
    let mount = Mount::new();
    for (name, metric) in [("minilm384", "ip"), ("glove100", "ip"), ("sift128", "l2")] {
        mount.mkdir(name);
        fs::write(mount.path(name).join(".vexfs/config"), format!("[collection]\nmetric = \"{metric}\"\n"))
            .unwrap();
        fs::copy(file(&format!("{name}_base.npy")), mount.path(name).join("base.npy")).unwrap();
        fs::copy(file(&format!("{name}_query.npy")), mount.path(name).join(".vexfs/queries/q.npy")).unwrap();
        let ids = fs::read(mount.path(name).join(".vexfs/results/q.npy/ids.ivecs")).unwrap();
        let truth = fs::read(file(&format!("{name}_gt.npy"))).unwrap();
        let (descr, columns, truth) = parse_npy(&truth);
        assert_eq!((descr.as_str(), columns), ("<i4", K));
        let mut differing = 0;
        for (ids, truth) in ids.chunks(4 + 4 * K).zip(truth.chunks(4 * K)) {
            assert_eq!(ids[..4], 10u32.to_le_bytes());
            differing += ids[4..].chunks(4).zip(truth.chunks(4)).filter(|(id, want)| id != want).count();
        }
        // The ids of a file in an empty collection are its row numbers; only near-ties may stand otherwise.
        assert!(differing <= 4, "{name}: {differing} of 500 places differ");
    }
}
