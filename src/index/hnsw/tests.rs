//! The graph as a whole: recall against the exact scan, copies, filters, vanished rows, threads.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::distance;
use crate::index::flat::{self, Matrix, TopK};
use crate::index::{Query, VectorSource};

const DIM: usize = 32;
const ROWS: usize = 3000;
const K: usize = 10;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
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
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let centres: Vec<Vec<f32>> = (0..30).map(|_| random.vector(1.0)).collect();
    let mut one = || {
        let centre = &centres[usize::try_from(random.next() % 30).unwrap()];
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

    fn is_gone(&self, row: RowId) -> bool {
        self.gone[row.0 as usize].load(Ordering::Relaxed)
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
        if self.is_gone(row) { None } else { self.matrix.vector(row, scratch) }
    }

    fn inverse_norm(&self, row: RowId) -> f32 {
        self.matrix.inverse_norm(row)
    }
}

fn params() -> Params {
    Params { m: 16, ef_construction: 100, seed: 1, quant: crate::index::Quant::Sq8 }
}

fn build(metric: Metric, matrix: &Matrix) -> Hnsw {
    let graph = Hnsw::new(metric, matrix.dim(), params()).unwrap();
    matrix.row_ids().for_each(|row| assert!(graph.insert(row, matrix)));
    graph
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

/// Mean share of the exact neighbours (by distance, so that copies count alike) among the first `K` found.
fn recall<S: VectorSource + ?Sized>(
    graph: &Hnsw,
    queries: &[Vec<f32>],
    ef: usize,
    source: &S,
    accept: impl Fn(RowId) -> bool,
) -> f64 {
    let mut hits = 0;
    for vector in queries {
        let query = Query::new(graph.metric(), vector);
        let mut top = TopK::new(K);
        let accepted = graph.rows().filter(|&row| accept(row));
        flat::scan(&query, accepted, source, &mut top, &mut [0.0; DIM], &mut || true);
        let last = top.into_sorted()[K - 1].key;
        let found = find(graph, vector, ef, source, &accept);
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

fn assert_recall(got: f64, least: f64) {
    assert!(got >= least, "recall {got}, want {least}");
}

#[test]
fn every_metric_reaches_its_recall() {
    for metric in [Metric::L2, Metric::Ip, Metric::Cosine] {
        let (values, queries) = clustered(1, ROWS, 50, metric == Metric::Ip);
        let matrix = Matrix::new(DIM, values);
        let graph = build(metric, &matrix);
        let got = recall(&graph, &queries, 100, &matrix, |_| true);
        assert!(got >= 0.95, "{}: recall {got}", metric.name());
        assert_eq!(graph.unreachable(), [], "{}", metric.name());
    }
}

#[test]
fn one_thread_and_one_seed_give_one_graph() {
    let (values, _) = clustered(2, 600, 0, false);
    let matrix = Matrix::new(DIM, values);
    let links = |graph: &Hnsw| -> Vec<Vec<u32>> {
        let all = graph.nodes.ids().flat_map(|id| (0..=graph.nodes.level(id)).map(move |level| (id, level)));
        all.map(|(id, level)| graph.nodes.linked(id, level).map(|linked| linked.0).collect()).collect()
    };
    assert_eq!(links(&build(Metric::L2, &matrix)), links(&build(Metric::L2, &matrix)));
}

#[test]
fn lists_have_no_double_links_and_keep_their_tree() {
    let (values, _) = clustered(3, 1500, 0, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let mut children = vec![0u8; graph.len()];
    for id in graph.nodes.ids() {
        for level in 0..=graph.nodes.level(id) {
            let links: Vec<NodeId> = graph.nodes.linked(id, level).collect();
            let mut distinct = links.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), links.len(), "node {} level {level}", id.0);
        }
        let parent = graph.nodes.linked(id, 0).next().unwrap();
        if parent != id {
            assert!(graph.nodes.linked(parent, 0).skip(1).any(|child| child == id));
            children[parent.index()] += 1;
        }
    }
    for id in graph.nodes.ids() {
        assert_eq!(graph.nodes.children(id).load(Ordering::Relaxed), children[id.index()]);
    }
}

#[test]
fn copies_of_one_vector_do_not_become_a_sink() {
    let (mut values, queries) = clustered(4, ROWS, 50, false);
    let copied = values[..DIM].to_vec();
    for copy in 0..500 {
        let row = copy * 6 + 1;
        values[row * DIM..(row + 1) * DIM].copy_from_slice(&copied);
    }
    let matrix = Matrix::new(DIM, values);
    for metric in [Metric::L2, Metric::Cosine] {
        let graph = build(metric, &matrix);
        assert_eq!(graph.unreachable(), []);
        assert_recall(recall(&graph, &queries, 100, &matrix, |_| true), 0.95);
        // Asked for the copied vector itself, every copy ties with the last place.
        let found = find(&graph, &copied, 100, &matrix, |_| true);
        assert!(found.neighbors.len() >= 500, "{} copies found", found.neighbors.len());
        // Behind the copies the others are still found.
        let others = |row: RowId| row.0 % 6 != 1 && row.0 != 0;
        assert_recall(recall(&graph, std::slice::from_ref(&copied), 100, &matrix, others), 0.95);
    }
}

#[test]
fn copies_alone_make_a_graph_in_reasonable_time() {
    let matrix = Matrix::new(DIM, vec![0.5; DIM * 6000]);
    let graph = Hnsw::new(
        Metric::L2,
        DIM,
        Params { m: 4, ef_construction: 20, seed: 0, quant: crate::index::Quant::Sq8 },
    )
    .unwrap();
    matrix.row_ids().for_each(|row| assert!(graph.insert(row, &matrix)));
    assert_eq!(graph.unreachable(), []);
    assert!(find(&graph, &[0.5; DIM], 20, &matrix, |_| true).neighbors.len() >= K);
}

#[test]
fn refused_rows_take_no_place() {
    let (values, queries) = clustered(5, ROWS, 30, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    for every in [2, 10, 50] {
        assert_recall(recall(&graph, &queries, 100, &matrix, |row| row.0 % every == 0), 0.95);
    }
}

#[test]
fn a_filter_that_refuses_everything_ends() {
    let (values, queries) = clustered(6, ROWS, 1, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let found = find(&graph, &queries[0], 100, &matrix, |_| false);
    assert!(found.neighbors.is_empty() && !found.exhausted);
    assert!(found.visited >= ROWS);

    let query = Query::new(Metric::L2, &queries[0]);
    let beam = Beam { k: K, ef: 100, max_visited: 500 };
    let found = graph.search(&query, beam, &matrix, |_| false, &mut SearchScratch::new(), &mut || true);
    assert!(found.exhausted && found.visited < 700, "{found:?}");
}

#[test]
fn a_search_stops_when_told_to() {
    let (values, queries) = clustered(7, ROWS, 1, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let query = Query::new(Metric::L2, &queries[0]);
    let mut scratch = SearchScratch::new();
    let found = graph.search(&query, Beam::new(K, 1000), &matrix, |_| true, &mut scratch, &mut || false);
    assert!(found.stopped && found.visited < ROWS / 2, "{} visited", found.visited);
    // The same scratch serves the next search.
    let found = graph.search(&query, Beam::new(K, 100), &matrix, |_| true, &mut scratch, &mut || true);
    assert!(!found.stopped && found.neighbors.len() == K);
}

#[test]
fn vanished_rows_are_walked_through_and_not_returned() {
    let (values, queries) = clustered(8, ROWS, 50, false);
    let matrix = Matrix::new(DIM, values);
    let graph = build(Metric::L2, &matrix);
    let source = Vanishing::new(matrix);
    let mut random = Random(99);
    for percent in [50, 90] {
        for row in graph.rows().filter(|_| random.next() % 100 < percent) {
            source.vanish(row);
        }
        let got = recall(&graph, &queries, 100, &source, |row| !source.is_gone(row));
        assert!(got >= 0.95, "{percent} % vanished: recall {got}");
        let visited = find(&graph, &queries[0], 20, &source, |_| true).visited;
        assert!(visited < ROWS, "{percent} % vanished: {visited} visited");
    }
}

#[test]
fn a_graph_whose_rows_all_vanished_takes_new_ones() {
    let (values, queries) = clustered(9, ROWS, 30, false);
    let source = Vanishing::new(Matrix::new(DIM, values));
    let graph = Hnsw::new(Metric::L2, DIM, params()).unwrap();
    let (old, new): (Vec<_>, Vec<_>) = source.matrix.row_ids().partition(|row| row.0 < 1500);
    for &row in &old {
        assert!(graph.insert(row, &source));
    }
    old.iter().for_each(|&row| source.vanish(row));
    assert!(find(&graph, &queries[0], 100, &source, |_| true).neighbors.is_empty());
    assert!(!graph.insert(old[3], &source), "a vanished row is not inserted");
    for &row in &new {
        assert!(graph.insert(row, &source));
    }
    assert_eq!(graph.unreachable(), []);
    assert_recall(recall(&graph, &queries, 100, &source, |row| row.0 >= 1500), 0.95);
}

#[test]
fn rows_are_inserted_searched_and_vanish_at_the_same_time() {
    let (values, queries) = clustered(10, ROWS, 30, false);
    let source = Vanishing::new(Matrix::new(DIM, values));
    let graph = Hnsw::new(Metric::L2, DIM, params()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let inserters: Vec<_> = (0..2u32)
            .map(|part| {
                let (graph, source) = (&graph, &source);
                scope.spawn(move || {
                    for row in source.matrix.row_ids().filter(|row| row.0 % 2 == part) {
                        assert!(graph.insert(row, source));
                        if row.0 % 10 == part {
                            source.vanish(row);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut scratch = SearchScratch::new();
            while !done.load(Ordering::Relaxed) {
                for vector in &queries {
                    let query = Query::new(Metric::L2, vector);
                    let beam = Beam::new(K, 50);
                    let found = graph.search(&query, beam, &source, |_| true, &mut scratch, &mut || true);
                    assert!(found.neighbors.windows(2).all(|pair| pair[0].key <= pair[1].key));
                }
            }
        });
        let outcomes: Vec<_> = inserters.into_iter().map(|inserter| inserter.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok));
    });
    assert_eq!(graph.rows().count(), ROWS);
    assert_eq!(graph.unreachable(), []);
    assert_recall(recall(&graph, &queries, 100, &source, |row| !source.is_gone(row)), 0.95);
}

/// A source that unwinds after so many vectors, without the noise of a panic.
struct Failing<'m> {
    matrix: &'m Matrix,
    left: AtomicU32,
}

impl VectorSource for Failing<'_> {
    fn dim(&self) -> usize {
        self.matrix.dim()
    }

    fn vector<'a>(&'a self, row: RowId, scratch: &'a mut [f32]) -> Option<&'a [f32]> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            std::panic::resume_unwind(Box::new("out of vectors"));
        }
        self.matrix.vector(row, scratch)
    }

    fn inverse_norm(&self, row: RowId) -> f32 {
        self.matrix.inverse_norm(row)
    }
}

#[test]
fn an_insertion_that_panics_leaves_a_sound_graph() {
    let (values, queries) = clustered(12, 1000, 20, false);
    let matrix = Matrix::new(DIM, values);
    let graph = Hnsw::new(
        Metric::L2,
        DIM,
        Params { m: 4, ef_construction: 40, seed: 0, quant: crate::index::Quant::Sq8 },
    )
    .unwrap();
    let mut failed = 0;
    let mut random = Random(77);
    for row in matrix.row_ids() {
        // An insertion asks for some hundred vectors.
        let left = u32::try_from(random.next() % 1500).unwrap();
        let failing = Failing { matrix: &matrix, left: AtomicU32::new(left) };
        let insert = std::panic::AssertUnwindSafe(|| graph.insert(row, &failing));
        failed += usize::from(std::panic::catch_unwind(insert).is_err());
    }
    assert!(failed > 100, "{failed} failed");
    assert_eq!(graph.unreachable(), []);
    assert!(graph.rows().count() >= 1000 - failed && graph.rows().count() < 1000);
    assert_recall(recall(&graph, &queries, 100, &matrix, |_| true), 0.9);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("graph");
    graph.save(&path, &[1; 32]).unwrap();
    let loaded = Hnsw::load(&path, &[1; 32], Metric::L2, DIM).unwrap().unwrap();
    assert!(loaded.rows().eq(graph.rows()));
    assert_eq!(loaded.unreachable(), []);
}

#[test]
fn small_graphs_answer_exactly() {
    let matrix = Matrix::new(1, vec![3.0, 1.0, 2.0]);
    let graph = Hnsw::new(
        Metric::L2,
        1,
        Params { m: 2, ef_construction: 1, seed: 0, quant: crate::index::Quant::Sq8 },
    )
    .unwrap();
    assert!(find(&graph, &[0.0], 10, &matrix, |_| true).neighbors.is_empty());
    matrix.row_ids().for_each(|row| assert!(graph.insert(row, &matrix)));
    let found = find(&graph, &[0.0], 1, &matrix, |_| true);
    assert_eq!(
        found.neighbors.iter().map(|n| (n.row.0, n.key)).collect::<Vec<_>>(),
        [(1, 1.0), (2, 4.0), (0, 9.0)]
    );
    assert_eq!(graph.rows().map(|row| row.0).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn the_smallest_m_keeps_everything_reachable() {
    let (values, _) = clustered(11, 1000, 0, false);
    let matrix = Matrix::new(DIM, values);
    let graph = Hnsw::new(
        Metric::L2,
        DIM,
        Params { m: 2, ef_construction: 4, seed: 3, quant: crate::index::Quant::Sq8 },
    )
    .unwrap();
    matrix.row_ids().for_each(|row| assert!(graph.insert(row, &matrix)));
    assert_eq!(graph.unreachable(), []);
}

#[test]
fn parameters_out_of_range_are_refused() {
    for (m, ef_construction) in [(1, 200), (129, 200), (16, 0), (16, 4097)] {
        assert!(
            Hnsw::new(Metric::L2, 4, Params { m, ef_construction, seed: 0, quant: crate::index::Quant::Sq8 })
                .is_err()
        );
    }
    assert!(Hnsw::new(Metric::L2, 0, Params::default()).is_err());
}
