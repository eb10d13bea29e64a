//! Does the filter planner choose well? Filtered searches of one collection: as planned, by scanning the allowed rows,
//! and by walking the graph whatever it costs, with recall@k of the planned search against the scan.
//!
//! ```text
//! cargo bench --bench filters -- --base BASE.npy --query QUERY.npy --metric ip [--k 10] [--ef 100] [--queries 50]
//! ```
//!
//! `random` filters have nothing to do with the queries. The correlated ones are the rows nearest to (`near`) and
//! farthest from (`far`) one query, asked with the queries that are nearest to it. One thread; times are those
//! of the best round; `scan` is the same search asked with `exact`; `ratio` is its time through that of the planned
//! one.

use std::cell::RefCell;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Parser;
use vexfs::collection::{Allowed, Collection, FileNumber, Filter, RowBytes, Schema, Staged, VectorFile};
use vexfs::distance::Metric;
use vexfs::format;
use vexfs::index::flat::{self, TopK};
use vexfs::index::hnsw::{Beam, SearchScratch};
use vexfs::index::{Query, RowId, RowSet, VectorSource as _};
use vexfs::search::{Context, Limits, Options, Scratch, Way, nearest};
use vexfs::store::Store;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Args {
    /// Vectors of the collection, in any format with rows.
    #[arg(long)]
    base: PathBuf,
    /// Queries, in any format with rows.
    #[arg(long)]
    query: PathBuf,
    /// `cosine`, `ip` or `l2`.
    #[arg(long, default_value = "ip")]
    metric: String,
    /// Results wanted.
    #[arg(long, default_value_t = 10)]
    k: u32,
    /// Width of the beam.
    #[arg(long, default_value_t = 100)]
    ef: u32,
    /// Queries of each round.
    #[arg(long, default_value_t = 50)]
    queries: usize,
    /// Below this many allowed rows nothing is planned.
    #[arg(long, default_value_t = 0)]
    exact_below: u32,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A collection of one file, and how it is searched.
struct Bench {
    collection: Collection,
    k: usize,
    options: Options,
    _store: Arc<Store>,
    _dir: tempfile::TempDir,
}

fn rows_of(path: &PathBuf) -> Outcome<(Vec<u8>, format::Layout)> {
    let bytes = std::fs::read(path)?;
    let name = path.file_name().ok_or("no file name")?;
    let kind = format::recognise(name.as_encoded_bytes()).ok_or("no vector format has this suffix")?;
    let limits = format::Limits { max_dim: Schema::MAX_DIM, max_rows: u64::from(u32::MAX - 1) };
    let layout = format::layout(kind, &bytes, &limits)?;
    Ok((bytes, layout))
}

fn open(args: &Args, metric: Metric) -> Outcome<Bench> {
    let (bytes, layout) = rows_of(&args.base)?;
    let dir = tempfile::tempdir()?;
    let store = Store::open(&dir.path().join("store"), "filters")?;
    let (id, mut file) = store.create_blob()?;
    file.write_all(&bytes)?;
    let rows = RowBytes::Blob(store.map_blob(id)?);
    let collection =
        Collection::new(1, Schema { metric, exact_below: args.exact_below, ..Schema::default() }, 1);
    let (file, _) = collection.stage(VectorFile::new(FileNumber(1), layout, rows, 0))?;
    collection.publish(&Staged { added: vec![file], removed: vec![] });
    let threads = std::thread::available_parallelism()?.get();
    while collection.index_step(threads, &AtomicBool::new(false))? {}
    let options = Options { ef: Some(args.ef), ..Options::default() };
    Ok(Bench { collection, k: args.k as usize, options, _store: store, _dir: dir })
}

impl Bench {
    fn limits() -> Limits<'static> {
        Limits::within(Duration::from_secs(600))
    }

    /// Rows in the order of their distance to `vector`.
    fn ranked(&self, vector: &[f32]) -> Vec<RowId> {
        let mut rows = Vec::new();
        self.scan(vector, &self.everything(), usize::MAX >> 1, &mut rows);
        rows
    }

    fn everything(&self) -> RowSet {
        self.collection.reader().live_from(RowId(0)).collect()
    }

    fn scan(&self, vector: &[f32], allowed: &RowSet, k: usize, found: &mut Vec<RowId>) {
        let reader = self.collection.reader();
        let mut top = TopK::new(k);
        let query = Query::new(self.collection.schema().metric, vector);
        let mut scratch = vec![0.0; reader.dim()];
        flat::scan(&query, allowed.iter(), &reader, &mut top, &mut scratch, &mut || true);
        found.clear();
        found.extend(top.into_sorted().iter().map(|neighbor| neighbor.row));
    }

    /// A walk without a budget. Returns the nodes visited.
    fn walk(&self, vector: &[f32], allowed: &RowSet, scratch: &mut SearchScratch) -> usize {
        let snapshot = self.collection.snapshot();
        let Some(graph) = snapshot.graph else { return 0 };
        let query = Query::new(self.collection.schema().metric, vector);
        let ef = self.options.ef.unwrap_or_default() as usize;
        let beam = Beam { max_visited: usize::MAX, ..Beam::new(self.k, ef) };
        let accept = |row| allowed.contains(row);
        let found = graph.hnsw.search(&query, beam, &snapshot.reader, accept, scratch, &mut || true);
        found.visited
    }

    fn search(
        &self,
        vector: &[f32],
        options: &Options,
        filter: &Filter,
        scratch: &mut Scratch,
        found: &mut Vec<RowId>,
    ) -> Outcome<(Way, bool)> {
        let mut context = Context { scratch, limits: Self::limits() };
        let answer = nearest(&self.collection, vector, self.k, options, filter, None, &mut context)?;
        found.clear();
        found.extend(answer.near.iter().map(|near| near.row));
        Ok((answer.way, answer.walked_in_vain))
    }

    /// Measures one filter and prints its line.
    fn line(&self, kind: &str, share: f64, allowed: RowSet, queries: &[&[f32]]) -> Outcome<()> {
        let count = queries.len() as f64;
        let allowed = Arc::new(allowed);
        let filter =
            Filter { allowed: Arc::new(Allowed::All), within: Some(Arc::clone(&allowed)), condition: None };
        let (mut scratch, mut walking) = (Scratch::default(), SearchScratch::default());
        let (mut exact, mut found) = (Vec::new(), Vec::new());
        let (mut hits, mut wanted, mut ways, mut in_vain) = (0u32, 0u32, [0; 3], 0);
        for query in queries {
            self.scan(query, &allowed, self.k, &mut exact);
            let (way, walked_in_vain) =
                self.search(query, &self.options, &filter, &mut scratch, &mut found)?;
            ways[match way {
                Way::Scan => 0,
                Way::CodeScan => 1,
                Way::Walk => 2,
            }] += 1;
            in_vain += i32::from(walked_in_vain);
            exact.truncate(self.k);
            hits += u32::try_from(exact.iter().filter(|row| found.contains(row)).count())?;
            wanted += u32::try_from(exact.len())?;
        }
        let mut visited = 0;
        let [walk] = best([&mut || {
            visited = queries.iter().map(|query| self.walk(query, &allowed, &mut walking)).sum()
        }]);
        let exactly = Options { exact: true, ..Options::default() };
        let (mut comparing, failed) = (Scratch::default(), RefCell::new(None));
        let all = |options, scratch: &mut Scratch, found: &mut Vec<RowId>| {
            for query in queries {
                if let Err(error) = self.search(query, options, &filter, scratch, found) {
                    failed.replace(Some(error));
                }
            }
        };
        let [scan, planned] = best([&mut || all(&exactly, &mut comparing, &mut exact), &mut || {
            all(&self.options, &mut scratch, &mut found)
        }]);
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        println!(
            "{kind:<7}{:>7.1} %{:>9}{:>8.4}{:>9.0}{:>9.0}{:>9.0}{:>7.2} {:>9}/{}{:>9.0}{:>8.1}{:>8.1}",
            share * 100.0,
            allowed.len(),
            f64::from(hits) / f64::from(wanted),
            count / planned,
            count / scan,
            count / walk,
            scan / planned,
            ways.map(|ways| ways.to_string()).join("/"),
            in_vain,
            visited as f64 / count,
            scan * 1e9 / count / allowed.len() as f64,
            walk * 1e9 / visited as f64,
        );
        Ok(())
    }
}

/// Seconds of the best round of each: five at least, and as many as pass within 400 ms, taken in turns, so that
/// what else the machine does falls on all alike.
fn best<const N: usize>(mut rounds: [&mut dyn FnMut(); N]) -> [f64; N] {
    let (begun, mut best, mut count) = (Instant::now(), [f64::INFINITY; N], 0);
    while count < 5 || begun.elapsed() < Duration::from_millis(400) {
        for (round, best) in rounds.iter_mut().zip(&mut best) {
            let started = Instant::now();
            round();
            *best = best.min(started.elapsed().as_secs_f64());
        }
        count += 1;
    }
    best
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    let metric = Metric::parse(&args.metric).ok_or("the metric is cosine, ip or l2")?;
    let bench = open(&args, metric)?;
    let (bytes, layout) = rows_of(&args.query)?;
    let mut scratch = vec![0.0; layout.dim as usize];
    let queries: Vec<Vec<f32>> =
        (0..layout.rows).map(|row| layout.vector(&bytes, row, &mut scratch).to_vec()).collect();
    // The queries nearest to the first one: for them the filters made around it are correlated.
    let pivot = Query::new(metric, &queries[0]);
    let matrix = flat::Matrix::new(layout.dim as usize, queries.concat());
    let mut order: Vec<(f32, usize)> = matrix
        .row_ids()
        .filter_map(|row| Some((pivot.key(&matrix, row, &mut [])?, row.0 as usize)))
        .collect();
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let around: Vec<&[f32]> = order.iter().take(args.queries).map(|&(_, at)| &*queries[at]).collect();
    let any: Vec<&[f32]> = queries.iter().take(args.queries).map(Vec::as_slice).collect();
    let ranked = bench.ranked(&queries[0]);
    println!(
        "{} rows x {} {}, {metric:?}, k {}, ef {}, {} queries",
        ranked.len(),
        layout.dim,
        layout.dtype,
        args.k,
        args.ef,
        any.len()
    );
    println!(
        "filter   share     rows  recall  planned     scan     walk  ratio  s/c/w/vain visited ns/row ns/node"
    );
    for share in [1.0, 0.5, 0.1, 0.01, 0.001] {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the rows")]
        let count = ((ranked.len() as f64 * share) as usize).max(1);
        let mut state = 1u64;
        let mut shuffled = ranked.clone();
        for i in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(i, usize::try_from(state >> 33)? % (i + 1));
        }
        bench.line("random", share, shuffled[..count].iter().copied().collect(), &any)?;
        bench.line("near", share, ranked[..count].iter().copied().collect(), &around)?;
        bench.line("far", share, ranked[ranked.len() - count..].iter().copied().collect(), &around)?;
    }
    Ok(())
}
