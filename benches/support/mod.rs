//! What the benchmarks of the graph share: vectors from files, graphs of them, recall, memory.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use vexfs::distance::Metric;
use vexfs::format::{self, Limits};
use vexfs::index::flat::{self, Matrix, TopK};
use vexfs::index::hnsw::{Beam, Hnsw, Params, SearchScratch};
use vexfs::index::{self, Quant, Query, RowId, VectorSource};
use vexfs::random::splitmix64;

/// How many neighbours.
pub const K: usize = 10;

/// What is measured on what.
#[derive(clap::Args)]
pub struct Setting {
    /// The vectors: a file of many by its name (`.npy`, `.fvecs`, `.fbin`, ...)
    #[arg(long)]
    pub base: Option<PathBuf>,
    /// The vectors that are searched for
    #[arg(long)]
    pub query: Option<PathBuf>,
    /// How distances are measured: cosine, ip or l2
    #[arg(long, default_value = "cosine", value_parser = |name: &str| Metric::parse(name).ok_or("no metric"))]
    pub metric: Metric,
    /// What the graph keeps for the walk: none, sq8 or b1
    #[arg(long, default_value = "sq8", value_parser = |name: &str| Quant::parse(name).ok_or("no quant"))]
    pub quant: Quant,
    /// Only the first N vectors of the base
    #[arg(long)]
    pub n: Option<usize>,
    /// Width of the search
    #[arg(long, default_value_t = 64)]
    pub ef: usize,
    /// Seed of the graph's levels and rotation, and of what goes: for telling a difference from chance
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads that build and repair
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Setting {
    /// Base and queries, or nothing when the command line names no files.
    pub fn read(&self) -> Option<(Matrix, Matrix)> {
        let (Some(base), Some(query)) = (&self.base, &self.query) else {
            println!("nothing to measure without --base and --query");
            return None;
        };
        Some((read(base, self.n, self.metric), read(query, None, self.metric)))
    }

    pub fn params(&self) -> Params {
        Params { quant: self.quant, seed: self.seed, ..Params::default() }
    }

    /// A graph of `rows`, inserted in order, each by whichever thread is free.
    pub fn build<S: VectorSource>(&self, source: &S, rows: &[RowId]) -> Hnsw {
        let centers = index::centers(self.metric, self.quant, source, rows.iter().copied());
        let graph = Hnsw::with_centers(self.metric, source.dim(), self.params(), centers).unwrap();
        self.insert(&graph, source, rows);
        graph
    }

    pub fn insert<S: VectorSource>(&self, graph: &Hnsw, source: &S, rows: &[RowId]) {
        let before = graph.len();
        graph.insert_all(rows, source, self.threads, || ()).unwrap();
        assert_eq!(graph.len(), before + rows.len(), "every row has a vector");
    }

    /// Key of the `K`-th nearest of `rows` for each query, by an exact scan.
    pub fn truth<S: VectorSource>(&self, queries: &Matrix, source: &S, rows: &[RowId]) -> Vec<f32> {
        let last = |query: RowId| {
            let query = Query::new(self.metric, queries.row(query).unwrap());
            let mut top = TopK::new(K);
            let mut scratch = vec![0.0; source.dim()];
            flat::scan(&query, rows.iter().copied(), source, &mut top, &mut scratch, &mut || true);
            top.into_sorted()[K - 1].key
        };
        queries.row_ids().map(last).collect()
    }

    /// Share of the true neighbours, by distance, that searches of the rows that `accept` lets pass find, and how many
    /// codes a query is compared with for it.
    pub fn recall<S: VectorSource>(
        &self,
        graph: &Hnsw,
        queries: &Matrix,
        truth: &[f32],
        source: &S,
        accept: impl Fn(RowId) -> bool,
    ) -> (f64, f64) {
        let mut scratch = SearchScratch::new();
        let (mut hits, mut compared) = (0, 0);
        for (query, last) in queries.row_ids().zip(truth) {
            let query = Query::new(self.metric, queries.row(query).unwrap());
            let beam = Beam::new(K, self.ef);
            let found = graph.search(&query, beam, source, &accept, &mut scratch, &mut || true);
            assert!(!found.damaged);
            compared += found.visited;
            for neighbor in found.neighbors.iter().take(K) {
                assert!(accept(neighbor.row), "a row that is gone");
                hits += usize::from(neighbor.key <= *last);
            }
        }
        (hits as f64 / (K * queries.rows()) as f64, compared as f64 / queries.rows() as f64)
    }

    /// Queries per second of one pass by one thread.
    pub fn rate<S: VectorSource>(
        &self,
        graph: &Hnsw,
        queries: &Matrix,
        source: &S,
        accept: impl Fn(RowId) -> bool,
        scratch: &mut SearchScratch,
    ) -> f64 {
        let started = Instant::now();
        for query in queries.row_ids() {
            let query = Query::new(self.metric, queries.row(query).unwrap());
            let found = graph.search(&query, Beam::new(K, self.ef), source, &accept, scratch, &mut || true);
            assert!(!found.neighbors.is_empty());
        }
        queries.rows() as f64 / started.elapsed().as_secs_f64()
    }
}

fn read(path: &Path, n: Option<usize>, metric: Metric) -> Matrix {
    let kind = format::recognise(path.file_name().unwrap().as_bytes()).expect("a vector file's name");
    let bytes = std::fs::read(path).unwrap();
    let mut layout = format::layout(kind, &bytes, &Limits::default()).unwrap();
    layout.rows = layout.rows.min(n.unwrap_or(usize::MAX) as u64);
    let mut values = Vec::new();
    format::validate(&layout, &bytes, metric == Metric::Cosine, |_, row| values.extend_from_slice(row))
        .unwrap();
    Matrix::new(layout.dim as usize, values)
}

/// Numbers that only look random.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(splitmix64(&mut self.0) >> 1).unwrap() % bound
    }
}

/// The number of a row.
pub fn row(number: usize) -> RowId {
    RowId(u32::try_from(number).unwrap())
}
