//! How long does a saved graph take to open and to give its first answer, and what memory does it take then?
//!
//! ```text
//! cargo bench --bench open -- --base F --query F --metric cosine|ip|l2 [--quant sq8] [--n N] [--copies 1]
//! ```
//!
//! The file is in the page cache. Memory is what the process has more than before the graph was opened: anonymous, and
//! pages of files. `--copies` stores so many noisy copies of each row, for graphs of a size for which there are no data.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a failed step is a failed benchmark")]

#[expect(unreachable_pub, reason = "several benchmarks share it")]
#[allow(dead_code, reason = "several benchmarks share it")]
mod support;

use std::time::Instant;

use clap::Parser;
use support::{K, Random, Setting};
use vexfs::index::flat::Matrix;
use vexfs::index::hnsw::{Beam, Hnsw, SearchScratch};
use vexfs::index::{Query, VectorSource as _};

const STAMP: [u8; 32] = [1; 32];
const RUNS: usize = 7;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    setting: Setting,
    /// Rows for each of the base, all but the first with noise
    #[arg(long, default_value_t = 1)]
    copies: usize,
}

/// Resident memory in KiB: anonymous, and of files.
fn resident() -> [f64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    ["RssAnon:", "RssFile:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    })
}

/// The base as often as is asked for, with a noise of a tenth of the mean distance between coordinates.
fn noisy(base: &Matrix, copies: usize) -> Matrix {
    let mut random = Random(3);
    let mut values: Vec<f32> = Vec::with_capacity(base.rows() * base.dim() * copies);
    for copy in 0..copies {
        for row in base.row_ids().map(|row| base.row(row).unwrap()) {
            let scale = row.iter().map(|x| x.abs()).sum::<f32>() / row.len() as f32;
            let mut noise =
                || if copy == 0 { 0.0 } else { scale * (random.below(2001) as f32 / 1000.0 - 1.0) };
            values.extend(row.iter().map(|x| x + noise()));
        }
    }
    Matrix::new(base.dim(), values)
}

fn main() {
    let Arguments { setting, copies } = Arguments::parse();
    let Some((base, queries)) = setting.read() else { return };
    let base = noisy(&base, copies);
    let rows: Vec<_> = base.row_ids().collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("graph");

    let before = resident();
    let started = Instant::now();
    let graph = setting.build(&base, &rows);
    let built = started.elapsed().as_secs_f64();
    let grown = resident();
    let started = Instant::now();
    graph.save(&path, &STAMP).unwrap();
    let saved = started.elapsed().as_secs_f64();
    // Old memory goes when nobody can be reading it.
    for query in queries.row_ids() {
        search(&setting, &graph, &base, &queries, query);
    }
    let settled = resident();
    drop(graph);
    println!(
        "{} x {}, {} {}, file {:.1} MB, built in {built:.1} s, saved in {saved:.2} s",
        base.rows(),
        base.dim(),
        setting.metric.name(),
        setting.quant.name(),
        std::fs::metadata(&path).unwrap().len() as f64 / 1e6,
    );
    print_memory("built", before, grown);
    print_memory("saved, searched", before, settled);

    let (mut loads, mut firsts, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        let before = resident();
        let started = Instant::now();
        let graph = Hnsw::load(&path, &STAMP, setting.metric, base.dim()).unwrap().unwrap();
        loads.push(started.elapsed().as_secs_f64());
        let loaded = resident();
        let started = Instant::now();
        let query = queries.row_ids().nth(run % queries.rows()).unwrap();
        search(&setting, &graph, &base, &queries, query);
        firsts.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        search(&setting, &graph, &base, &queries, query);
        seconds.push(started.elapsed().as_secs_f64());
        for query in queries.row_ids() {
            search(&setting, &graph, &base, &queries, query);
        }
        if run == 0 {
            print_memory("opened", before, loaded);
            print_memory("opened, searched", before, resident());
        }
    }
    for (name, mut times) in [("open", loads), ("first search", firsts), ("the same again", seconds)] {
        times.sort_by(f64::total_cmp);
        let [least, median, most] = [0, RUNS / 2, RUNS - 1].map(|at| times[at] * 1e3);
        println!("{name}: {least:.3} {median:.3} {most:.3} ms (least, median, most of {RUNS})");
    }
}

fn search(setting: &Setting, graph: &Hnsw, base: &Matrix, queries: &Matrix, query: vexfs::index::RowId) {
    let query = Query::new(setting.metric, queries.row(query).unwrap());
    let beam = Beam::new(K, setting.ef);
    let found = graph.search(&query, beam, base, |_| true, &mut SearchScratch::new(), &mut || true);
    assert!(!found.damaged && found.neighbors.len() >= K);
}

fn print_memory(what: &str, before: [f64; 2], now: [f64; 2]) {
    let [anonymous, of_files] = [0, 1].map(|kind| (now[kind] - before[kind]) * 1024.0 / 1e6);
    println!("{what}: {anonymous:.1} MB anonymous, {of_files:.1} MB of files");
}
