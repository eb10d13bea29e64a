//! Does a graph stay as good as a new one while its rows are replaced? And do copies of one vector harm the others?
//!
//! ```text
//! cargo bench --bench updates -- --base F --query F --metric cosine|ip|l2 [--quant sq8] [--n N] [--ef 64] [--seed 0]
//! ```
//!
//! 90 % of the rows are linked. Five times, a random 10 % of them go, as many others come under new row numbers, and
//! the graph is repaired. After each round: recall, codes compared by a query and rate beside a fresh build of the same
//! rows (passes in turn; least, median and greatest ratio of the rates), sizes of the files, time of the repair as a
//! share of that of the fresh build. Then 1,000 copies of one vector come to the first 20,000 rows.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a failed step is a failed benchmark")]

#[expect(unreachable_pub, reason = "several benchmarks share it")]
#[allow(dead_code, reason = "several benchmarks share it")]
mod support;

use std::time::Instant;

use clap::Parser;
use support::{Random, Setting, row};
use vexfs::index::flat::Matrix;
use vexfs::index::hnsw::{Hnsw, SearchScratch};
use vexfs::index::{RowId, VectorSource};

const ROUNDS: usize = 5;
const PASSES: usize = 25;
/// Rows of the base that are never stored but searched for, so that thousandths of recall can be told apart: at most
/// so many, and at most a twentieth.
const KEPT_BACK: usize = 2000;
const COPIES: usize = 1000;
const AMONG: usize = 20_000;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    setting: Setting,
}

/// Rows that come and go over vectors that stay.
struct Rows {
    vectors: Matrix,
    /// Place among the vectors of each row ever, `None` when the row is gone.
    places: Vec<Option<RowId>>,
}

impl Rows {
    fn is_live(&self, row: RowId) -> bool {
        self.places[row.0 as usize].is_some()
    }

    fn live(&self) -> Vec<RowId> {
        (0..self.places.len()).map(row).filter(|&row| self.is_live(row)).collect()
    }
}

impl VectorSource for Rows {
    fn dim(&self) -> usize {
        self.vectors.dim()
    }

    #[inline]
    fn vector<'a>(&'a self, row: RowId, scratch: &'a mut [f32]) -> Option<&'a [f32]> {
        self.vectors.vector((*self.places.get(row.0 as usize)?)?, scratch)
    }

    #[inline]
    fn inverse_norm(&self, row: RowId) -> f32 {
        self.places[row.0 as usize].map_or(0.0, |place| self.vectors.inverse_norm(place))
    }

    #[inline]
    fn prefetch(&self, row: RowId) {
        if let Some(place) = self.places[row.0 as usize] {
            self.vectors.prefetch(place);
        }
    }
}

fn main() {
    let Arguments { setting } = Arguments::parse();
    let Some((base, queries)) = setting.read() else { return };
    println!(
        "{} x {}, {} queries, {} {}, ef {}, k {}",
        base.rows(),
        base.dim(),
        queries.rows(),
        setting.metric.name(),
        setting.quant.name(),
        setting.ef,
        support::K
    );
    replaced(&setting, &base, &queries);
    copied(&setting, &base, &queries);
}

/// Bytes of the graph's file. From here on the graph lies in its pages.
fn saved_bytes(graph: &Hnsw) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("graph");
    graph.save(&path, &[0; 32]).unwrap();
    std::fs::metadata(path).unwrap().len()
}

fn replaced(setting: &Setting, base: &Matrix, queries: &Matrix) {
    let stored = base.rows() - KEPT_BACK.min(base.rows() / 20);
    let asked = (stored..base.rows()).map(|number| base.row(row(number)).unwrap());
    let asked = queries.row_ids().map(|query| queries.row(query).unwrap()).chain(asked);
    let queries = &Matrix::new(base.dim(), asked.flatten().copied().collect());
    let begin = stored * 9 / 10;
    let mut rows = Rows { vectors: base.clone(), places: (0..begin).map(|place| Some(row(place))).collect() };
    let mut waiting: std::collections::VecDeque<RowId> = (begin..stored).map(row).collect();
    let graph = setting.build(&rows, &rows.live());
    let mut random = Random(setting.seed.max(1));
    println!("round\trecall\tfresh\tcompared\tfresh\tqps\tfresh\tratio\tbytes\tfresh\trepair/build\tnodes");
    for round in 0..=ROUNDS {
        let mut repair = 0.0;
        if round > 0 {
            let mut live = rows.live();
            let go: Vec<RowId> =
                (0..begin / 10).map(|_| live.swap_remove(random.below(live.len()))).collect();
            waiting.extend(go.iter().filter_map(|row| rows.places[row.0 as usize].take()));
            let first = rows.places.len();
            rows.places.extend(waiting.drain(..go.len()).map(Some));
            let come: Vec<RowId> = (first..rows.places.len()).map(row).collect();
            setting.insert(&graph, &rows, &come);
            let started = Instant::now();
            assert_eq!(graph.repair(|row| rows.is_live(row), &rows, setting.threads), go.len());
            repair = started.elapsed().as_secs_f64();
        }
        let report = graph.verify();
        assert!(report.is_sound(), "{report}");
        let live = rows.live();
        let started = Instant::now();
        let fresh = setting.build(&rows, &live);
        let built = started.elapsed().as_secs_f64();
        let bytes = [&graph, &fresh].map(saved_bytes);

        let truth = setting.truth(queries, &rows, &live);
        let accept = |row: RowId| rows.is_live(row);
        let [(recall, compared), (of_fresh, fresh_compared)] =
            [&graph, &fresh].map(|graph| setting.recall(graph, queries, &truth, &rows, accept));
        let mut scratch = SearchScratch::new();
        let mut rates: Vec<[f64; 2]> = Vec::new();
        for _ in 0..PASSES {
            rates.push(
                [&graph, &fresh].map(|graph| setting.rate(graph, queries, &rows, accept, &mut scratch)),
            );
        }
        let mut ratios: Vec<f64> = rates.iter().map(|[own, fresh]| own / fresh).collect();
        ratios.sort_by(f64::total_cmp);
        let best = |which: usize| rates.iter().map(|rates| rates[which]).fold(0.0, f64::max);
        println!(
            "{round}\t{recall:.4}\t{of_fresh:.4}\t{compared:.0}\t{fresh_compared:.0}\t{:.0}\t{:.0}\t{:.3} {:.3} {:.3}\t{}\t{}\t{:.3}\t{} + {} free",
            best(0),
            best(1),
            ratios[0],
            ratios[PASSES / 2],
            ratios[PASSES - 1],
            bytes[0],
            bytes[1],
            repair / built,
            report.nodes,
            report.free,
        );
    }
}

fn copied(setting: &Setting, base: &Matrix, queries: &Matrix) {
    let among = base.rows().min(AMONG);
    let mut random = Random(2);
    let original = random.below(among);
    let places = (0..among).map(|place| Some(row(place)));
    let alone = Rows { vectors: base.clone(), places: places.clone().collect() };
    let graph = setting.build(&alone, &alone.live());
    // The copies come between the others.
    let mut mixed: Vec<Option<RowId>> = places.collect();
    for _ in 0..COPIES {
        mixed.insert(random.below(mixed.len()), Some(row(original)));
    }
    let with = Rows { vectors: base.clone(), places: mixed };
    let graph_with = setting.build(&with, &with.live());
    let is_copy = |of: RowId| with.places[of.0 as usize] == Some(row(original));
    let others: Vec<RowId> = with.live().into_iter().filter(|&row| !is_copy(row)).collect();

    let without: Vec<RowId> = alone.live().into_iter().filter(|&of| of != row(original)).collect();
    // Those that have the copies right beside them, and the copied vector itself.
    let mut top = vexfs::index::flat::TopK::new(200);
    let query = vexfs::index::Query::new(setting.metric, base.row(row(original)).unwrap());
    let mut decode = vec![0.0; base.dim()];
    vexfs::index::flat::scan(&query, without.iter().copied(), &alone, &mut top, &mut decode, &mut || true);
    let beside = top.into_sorted().into_iter().take(199).map(|neighbor| neighbor.row).chain([row(original)]);
    let beside = Matrix::new(base.dim(), beside.flat_map(|row| base.row(row).unwrap().to_vec()).collect());

    println!("queries\trecall of the others among {among}\twith {COPIES} copies of one");
    for (name, queries) in [("the file's", queries), ("beside the copies", &beside)] {
        let truth = setting.truth(queries, &alone, &without);
        let (before, _) = setting.recall(&graph, queries, &truth, &alone, |of| of != row(original));
        let truth = setting.truth(queries, &with, &others);
        let (after, _) = setting.recall(&graph_with, queries, &truth, &with, |row| !is_copy(row));
        println!("{name}\t{before:.4}\t{after:.4}");
    }
    for (name, graph) in [("without", &graph), ("with", &graph_with)] {
        println!("{name} copies: {}", graph.verify());
    }
}
