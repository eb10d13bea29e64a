//! All of the benchmark that knows the index: rows to build from, the graph, the exact scan.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;

use indicatif::ProgressBar;
use zerocopy::FromBytes;

use super::dataset::{Base, Queries};
use crate::Result;
use crate::distance::{self, Metric};
use crate::index::flat::{self, TopK};
use crate::index::hnsw::{Beam, Hnsw, Params, SearchScratch};
use crate::index::{self, Query, RowId, VectorSource};

/// Rows between two messages to the progress bar, so that threads seldom meet there.
const ROWS_PER_STEP: u32 = 256;

/// The vectors of a [`Base`] as the index reads them.
pub(super) struct Rows<'a> {
    values: &'a [f32],
    dim: usize,
    stride: usize,
    rows: u32,
    /// 1 / |v| of each row under cosine; empty under the other metrics, which never ask.
    inverse_norms: Vec<f32>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(base: &'a Base, metric: Metric) -> Self {
        let values = <[f32]>::ref_from_bytes(base.bytes())
            .expect("a mapping is page-aligned and holds whole rows of f32");
        let (dim, stride) = (base.dim(), base.stride());
        let norms = values.chunks_exact(stride).map(|row| distance::inverse_norm(&row[..dim]));
        let inverse_norms = if metric == Metric::Cosine { norms.collect() } else { Vec::new() };
        let rows = u32::try_from(base.rows()).expect("a file has fewer rows than u32 numbers");
        Rows { values, dim, stride, rows, inverse_norms }
    }

    fn ids(&self) -> impl Iterator<Item = RowId> + use<> {
        (0..self.rows).map(RowId)
    }
}

impl VectorSource for Rows<'_> {
    fn dim(&self) -> usize {
        self.dim
    }

    #[inline]
    fn vector<'a>(&'a self, row: RowId, _scratch: &'a mut [f32]) -> Option<&'a [f32]> {
        let start = row.0 as usize * self.stride;
        self.values.get(start..start + self.dim)
    }

    #[inline]
    fn inverse_norm(&self, row: RowId) -> f32 {
        self.inverse_norms.get(row.0 as usize).copied().unwrap_or(0.0)
    }

    #[inline]
    fn prefetch(&self, row: RowId) {
        let start = row.0 as usize * self.stride;
        if let Some(vector) = self.values.get(start..start + self.dim) {
            distance::prefetch(vector);
        }
    }
}

/// The graph.
pub(super) struct Engine {
    graph: Hnsw,
    metric: Metric,
}

impl Engine {
    /// Builds the graph of all rows, inserted in order, each by whichever of `threads` is free.
    ///
    /// # Errors
    ///
    /// Parameters out of their range, and want of memory.
    pub(super) fn build(
        rows: &Rows<'_>,
        metric: Metric,
        params: Params,
        threads: usize,
        bar: &ProgressBar,
    ) -> Result<Self> {
        let centers = index::centers(metric, params.quant, rows, rows.ids());
        let graph = Hnsw::with_centers(metric, rows.dim, params, centers)?;
        let linked = AtomicU32::new(0);
        let step = || {
            if linked.fetch_add(1, Ordering::Relaxed) % ROWS_PER_STEP == ROWS_PER_STEP - 1 {
                bar.inc(u64::from(ROWS_PER_STEP));
            }
        };
        let ids: Vec<RowId> = rows.ids().collect();
        graph.insert_all(&ids, rows, threads, step)?;
        Ok(Engine { graph, metric })
    }

    /// Size of the graph's file: it is written to a directory of its own and removed.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub(super) fn saved_bytes(&self) -> Result<u64> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("graph");
        self.graph.save(&file, &[0; 32])?;
        Ok(file.metadata()?.len())
    }

    /// Leaves in `found` the rows of the up to `k` nearest of `query` that a search of width `ef` finds, and returns
    /// how many codes it compared.
    pub(super) fn search(
        &self,
        query: &[f32],
        (k, ef): (usize, usize),
        rows: &Rows<'_>,
        scratch: &mut SearchScratch,
        found: &mut Vec<u32>,
    ) -> usize {
        let query = Query::new(self.metric, query);
        let beam = Beam { accepts_most: true, ..Beam::new(k, ef) };
        let answer = self.graph.search(&query, beam, rows, |_| true, scratch, &mut || true);
        found.clear();
        // More than k come where rows tie with the k-th.
        found.extend(answer.neighbors.iter().take(k).map(|neighbor| neighbor.row.0));
        answer.visited
    }
}

/// The `k` nearest rows of each query by an exact scan, nearest first, ties by row.
pub(super) fn scan(
    rows: &Rows<'_>,
    metric: Metric,
    queries: &Queries,
    k: usize,
    threads: usize,
    bar: &ProgressBar,
) -> Vec<Vec<u32>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut scratch = vec![0.0; rows.dim];
        let mut answers = Vec::new();
        while let Some(vector) = queries.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut top = TopK::new(k);
            let query = Query::new(metric, vector.values);
            flat::scan(&query, rows.ids(), rows, &mut top, &mut scratch, &mut || true);
            let nearest = top.into_sorted().iter().take(k).map(|neighbor| neighbor.row.0).collect();
            answers.push((vector.number, nearest));
            bar.inc(1);
        }
        answers
    };
    let mut answers: Vec<(usize, Vec<u32>)> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let joined = others.into_iter().map(|other| other.join().expect("a scan does not panic"));
        own.into_iter().chain(joined.flatten()).collect()
    });
    answers.sort_unstable_by_key(|&(number, _)| number);
    answers.into_iter().map(|(_, nearest)| nearest).collect()
}
