//! The graph as a whole. Here is what the tests share: data, sources, measured recall.
//!
//! - `recall` searches: recall, copies, filters, budgets, leave-one-out; `scan` compares all codes.
//! - `shape` looks at links and parameters. - `updates` takes rows away and puts others in.
//! - `threads` does everything at once, and panics.

mod recall;
mod scan;
mod shape;
mod threads;
mod updates;

use std::sync::atomic::{AtomicBool, Ordering};

use super::nodes::NodeId;
use super::*;
use crate::distance;
use crate::index::flat::{self, Matrix, TopK};
use crate::index::{Neighbor, Query, VectorSource};

/// With fewer a code of sq8 has no far part.
const DIM: usize = 40;
const ROWS: usize = 3000;
const K: usize = 10;

const METRICS: [Metric; 3] = [Metric::L2, Metric::Ip, Metric::Cosine];
const QUANTS: [Quant; 3] = [Quant::None, Quant::Sq8, Quant::B1];

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 11).unwrap() % bound
    }

    /// Roughly normal: the sum of four uniform numbers within -1..1.
    fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).sum()
    }

    fn vector(&mut self, scale: f32) -> Vec<f32> {
        (0..DIM).map(|_| self.normal() * scale).collect()
    }
}

/// Rows and queries around 30 centres.
fn clustered(seed: u64, rows: usize, queries: usize, unit: bool) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut random = Random::new(seed);
    let centres: Vec<Vec<f32>> = (0..30).map(|_| random.vector(1.0)).collect();
    let mut one = || {
        let centre = &centres[random.below(30)];
        let offset = random.vector(0.5);
        let mut v: Vec<f32> = centre.iter().zip(offset).map(|(c, o)| c + o).collect();
        if unit {
            let scale = distance::inverse_norm(&v);
            v.iter_mut().for_each(|x| *x *= scale);
        }
        v
    };
    let values = (0..rows).flat_map(|_| one()).collect();
    (values, (0..queries).map(|_| one()).collect())
}

/// A matrix some of whose rows are gone.
struct Vanishing {
    matrix: Matrix,
    gone: Vec<AtomicBool>,
}

impl Vanishing {
    fn new(matrix: Matrix) -> Self {
        let gone = (0..matrix.rows()).map(|_| AtomicBool::new(false)).collect();
        Vanishing { matrix, gone }
    }

    fn is_live(&self, row: RowId) -> bool {
        !self.gone[row.0 as usize].load(Ordering::Relaxed)
    }

    fn vanish(&self, row: RowId) {
        self.gone[row.0 as usize].store(true, Ordering::Relaxed);
    }
}

impl VectorSource for Vanishing {
    fn dim(&self) -> usize {
        self.matrix.dim()
    }

    fn vector<'a>(&'a self, row: RowId, scratch: &'a mut [f32]) -> Option<&'a [f32]> {
        if self.is_live(row) { self.matrix.vector(row, scratch) } else { None }
    }

    fn inverse_norm(&self, row: RowId) -> f32 {
        self.matrix.inverse_norm(row)
    }
}

fn params() -> Params {
    Params { ef_construction: 100, seed: 1, ..Params::default() }
}

/// A width of the search at which the rows of [`clustered`] are found. One bit of 32 elements tells little, so more of
/// what the walk finds has to be compared by the vectors.
fn wide_enough(quant: Quant) -> usize {
    match quant {
        Quant::None | Quant::Sq8 => 100,
        Quant::B1 => 300,
    }
}

fn insert_all<S: VectorSource>(graph: &Hnsw, rows: impl Iterator<Item = RowId>, source: &S) {
    for row in rows {
        assert!(graph.insert(row, source).unwrap(), "row {}", row.0);
    }
}

fn build_with(metric: Metric, matrix: &Matrix, params: Params) -> Hnsw {
    let centers = crate::index::centers(metric, params.quant, matrix, matrix.row_ids());
    let graph = Hnsw::with_centers(metric, matrix.dim(), params, centers).unwrap();
    insert_all(&graph, matrix.row_ids(), matrix);
    graph
}

/// With codes relative to one center, whatever clusters there are.
fn build_around_mean(matrix: &Matrix) -> Hnsw {
    let sum = |at| matrix.row_ids().map(|row| matrix.row(row).unwrap()[at]).sum::<f32>();
    let mean = (0..DIM).map(|at| sum(at) / matrix.rows() as f32).collect();
    let graph = Hnsw::with_centers(Metric::L2, DIM, params(), mean).unwrap();
    insert_all(&graph, matrix.row_ids(), matrix);
    graph
}

fn build(metric: Metric, matrix: &Matrix) -> Hnsw {
    build_with(metric, matrix, params())
}

fn find<S: VectorSource + ?Sized>(
    graph: &Hnsw,
    query: &[f32],
    ef: usize,
    source: &S,
    accept: impl Fn(RowId) -> bool,
) -> Found {
    let query = Query::new(graph.metric(), query);
    graph.search(&query, Beam::new(K, ef), source, accept, &mut SearchScratch::new(), &mut || true)
}

/// The `K` nearest of what is accepted, by a scan of all vectors.
fn exactly(query: &Query<'_>, matrix: &Matrix, accept: impl Fn(RowId) -> bool) -> Vec<Neighbor> {
    let mut top = TopK::new(K);
    let rows = matrix.row_ids().filter(|&row| accept(row));
    flat::scan(query, rows, matrix, &mut top, &mut [0.0; DIM], &mut || true);
    top.into_sorted()
}

/// Mean share of the exact neighbours (by distance, so that copies count alike) among the first `K` found.
fn recall<S: VectorSource + ?Sized>(
    graph: &Hnsw,
    queries: &[Vec<f32>],
    ef: usize,
    source: &S,
    accept: impl Fn(RowId) -> bool,
) -> f64 {
    let mut hits = 0;
    let rows = graph.rows();
    for vector in queries {
        let query = Query::new(graph.metric(), vector);
        let mut top = TopK::new(K);
        let accepted = rows.iter().copied().filter(|&row| accept(row));
        flat::scan(&query, accepted, source, &mut top, &mut [0.0; DIM], &mut || true);
        let last = top.into_sorted()[K - 1].key;
        let found = find(graph, vector, ef, source, &accept);
        assert!(!found.damaged);
        assert!(found.neighbors.windows(2).all(|pair| pair[0].key <= pair[1].key), "nearest first");
        for neighbor in found.neighbors.iter().take(K) {
            assert!(accept(neighbor.row), "row {} was refused", neighbor.row.0);
            let key = query.key(source, neighbor.row, &mut [0.0; DIM]);
            assert_eq!(key, Some(neighbor.key), "row {}", neighbor.row.0);
            hits += usize::from(neighbor.key <= last);
        }
    }
    hits as f64 / (queries.len() * K) as f64
}

#[track_caller]
fn assert_recall(got: f64, least: f64) {
    assert!(got >= least, "recall {got}, want {least}");
}

/// The graph is sound, and counts the rows that it has.
#[track_caller]
fn assert_sound(graph: &Hnsw) {
    let report = graph.verify();
    assert!(report.is_sound(), "{report}");
    assert_eq!(report.nodes, graph.len(), "rows");
    assert_eq!(report.nodes, graph.rows().len(), "rows");
}

/// No list names a node twice or the node itself, but for the root's parent.
#[track_caller]
fn assert_lists_are_distinct(graph: &Hnsw) {
    let guard = pin();
    for id in graph.nodes.ids().filter(|&id| graph.nodes.row(id, &guard).is_some()) {
        for level in 0..=graph.nodes.level(id, &guard) {
            let links: Vec<NodeId> = graph.nodes.linked(id, level, &guard).collect();
            let mut distinct = links.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), links.len(), "node {} level {level}: {links:?}", id.0);
            assert!(!links.iter().skip(1).any(|&link| link == id), "node {} level {level}: {links:?}", id.0);
        }
    }
}
