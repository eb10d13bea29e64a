//! What does a search with `where` cost: the first, the same again, another, and after one attribute has changed?
//! Beside each, in the same rounds, the search without.
//!
//! usage: cargo bench --bench conditions [-- FILES]
//!
//! Two collections of the same vectors: FILES files of one row (100,000 unless given), and a hundredth of that with 100
//! rows each. Every file has three attributes. Times are medians in microseconds, with the least and the most; rows that
//! come back are checked against the attributes that were set.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a benchmark may panic"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use vexfs::namespace::Ino;
use vexfs::search::{Options, Request, Target, condition};
use vexfs::volume::{Caller, OpenFlags, Volume, VolumeOptions, XattrMode};

const DIM: u32 = 16;
const ROUNDS: usize = 200;
const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const WRITE: OpenFlags =
    OpenFlags { read: true, write: true, append: false, truncate: false, exclusive: false };

struct Bed {
    volume: Arc<Volume>,
    dir: Ino,
    files: Vec<Ino>,
    state: u64,
}

impl Bed {
    /// `files` files of `rows` rows, with attributes.
    fn new(store: &std::path::Path, files: usize, rows: usize) -> Self {
        let options = VolumeOptions { store: store.to_path_buf(), mountpoint: None, read_only: false };
        let volume = Volume::open(options).unwrap();
        let dir = volume.mkdir(&ROOT, Ino::ROOT, b"c", 0o755).unwrap().ino;
        volume.setxattr(&ROOT, dir, b"user.vexfs.metric", b"l2", XattrMode::Either).unwrap();
        let mut bed = Self { volume, dir, files: Vec::new(), state: 1 };
        for number in 0..files {
            let bytes: Vec<u8> = (0..rows)
                .flat_map(|_| {
                    [DIM.to_le_bytes().to_vec(), bed.vector().iter().flat_map(|v| v.to_le_bytes()).collect()]
                })
                .flatten()
                .collect();
            let name = format!("{number}.fvecs");
            let (attr, opened) = bed.volume.create(&ROOT, dir, name.as_bytes(), 0o644, WRITE).unwrap();
            bed.volume.write(&ROOT, opened.handle, 0, &bytes).unwrap();
            let values =
                [("lang", ["en", "de"][number % 2].to_owned()), ("share", (number % 1000).to_string())];
            for (name, value) in values.into_iter().chain([("title", format!("document number {number}"))]) {
                bed.set(attr.ino, name, &value);
            }
            bed.volume.flush(&ROOT, opened.handle).unwrap();
            bed.volume.release(opened.handle).unwrap();
            bed.files.push(attr.ino);
        }
        let pending = || bed.volume.getxattr(&ROOT, dir, b"user.vexfs.pending").unwrap();
        while pending().as_ref() != b"0" {
            std::thread::sleep(Duration::from_millis(100));
        }
        bed
    }

    fn vector(&mut self) -> Vec<f32> {
        let mut value = || {
            self.state =
                self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.state >> 40) as f32 / (1u32 << 24) as f32
        };
        (0..DIM).map(|_| value()).collect()
    }

    fn set(&self, ino: Ino, name: &str, value: &str) {
        let name = format!("user.{name}");
        self.volume.setxattr(&ROOT, ino, name.as_bytes(), value.as_bytes(), XattrMode::Either).unwrap();
    }

    /// Microseconds of a search, and how many hits it had.
    fn search(&mut self, text: Option<&str>) -> (f64, usize) {
        let condition = text.map(|text| Arc::new(condition::parse(text).unwrap()));
        let options = Options { k: Some(10), condition, ..Options::default() };
        let request = Request { target: Target::Vectors { dim: DIM, values: self.vector() }, options };
        let begun = Instant::now();
        let answers = self.volume.search(&ROOT, self.dir, &request).unwrap();
        (begun.elapsed().as_secs_f64() * 1e6, answers[0].hits.len())
    }
}

fn show(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!("{what:32} {:9.1} {:9.1} {:9.1}", times[times.len() / 2], times[0], times[times.len() - 1]);
}

/// Anonymous memory of this process, in bytes.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn run(files: usize, rows: usize) {
    let store = tempfile::tempdir().unwrap();
    let mut bed = Bed::new(store.path(), files, rows);
    println!("\n{files} files x {rows} rows x {DIM} f32, k 10, three attributes each");
    println!("{:32} {:>9} {:>9} {:>9}", "", "p50", "least", "most");
    for _ in 0..20 {
        bed.search(None);
    }
    let before = anonymous();
    show("the first", vec![bed.search(Some("lang=en")).0]);
    println!(
        "{:32} {:9.1}",
        "kept, bytes for each file",
        anonymous().saturating_sub(before) as f64 / files as f64
    );
    let (mut without, mut again, mut other, mut changed) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        without.push(bed.search(None).0);
        let (time, hits) = bed.search(Some("lang=en"));
        assert_eq!(hits, 10);
        again.push(time);
        if round < 50 {
            other.push(bed.search(Some(&format!("lang=en and share<{}", 100 + round))).0);
        }
        bed.set(bed.files[round % files], "lang", "fr");
        changed.push(bed.search(Some("lang=en")).0);
    }
    show("without", without);
    show("the same again, 50 %", again);
    show("another, 5 to 8 %", other);
    show("after one setxattr, 50 %", changed);
    let narrow: Vec<f64> = (0..ROUNDS).map(|_| bed.search(Some("share<1")).0).collect();
    show("the same again, 0.1 %", narrow);
    let count = (0..ROUNDS.min(files)).count();
    assert_eq!(bed.search(Some("lang=fr")).1, (count * rows).min(10));
    bed.volume.close().unwrap();
}

fn main() {
    let files = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(100_000);
    run(files, 1);
    run(files / 100, 100);
}
