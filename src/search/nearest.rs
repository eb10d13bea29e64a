//! The nearest rows of one collection: by graph and a scan of what it does not have, or by scan alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::request::Options;
use crate::collection::{Allowed, Collection, FileNumber, Snapshot, VectorFile};
use crate::index::flat::{self, TopK};
use crate::index::hnsw::{Beam, SearchScratch};
use crate::index::{Neighbor, Query, RowId, VectorSource as _};
use crate::{Error, Result};

/// Where the filter leaves fewer rows than one in this many, the rest is scanned: the graph would walk
/// mostly through rows that it may not return.
const SCAN_BELOW_SHARE: u64 = 10;

/// How many times `ef` is widened fourfold before everything is scanned.
const WIDENINGS: u32 = 2;

/// What one search works with.
#[derive(Debug)]
pub struct Context<'a> {
    /// Reusable memory.
    pub scratch: &'a mut Scratch,
    /// When the search gives up.
    pub limits: Limits,
}

/// Memory of one search, to be kept for the next.
#[derive(Debug, Default)]
pub struct Scratch {
    graph: SearchScratch,
    /// A decoded row.
    row: Vec<f32>,
}

/// When a search gives up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The moment.
    pub deadline: Instant,
    /// How long it had, for the message.
    pub allowance: Duration,
}

impl Limits {
    /// `allowance` from now.
    #[must_use]
    pub fn within(allowance: Duration) -> Self {
        Self { deadline: Instant::now() + allowance, allowance }
    }

    fn exceeded(&self) -> Error {
        Error::Deadline { limit_ms: u64::try_from(self.allowance.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// A row that is near.
#[derive(Clone, Debug)]
pub struct Near {
    /// Its file.
    pub file: Arc<VectorFile>,
    /// Row within the file.
    pub index: u32,
    /// Number in the collection.
    pub row: RowId,
    /// Distance, as the metric's name says.
    pub distance: f32,
}

/// The nearest rows of a collection.
#[derive(Debug)]
pub struct Found {
    /// Nearest first, then by row. With ties at the end there may be more than `k`: the caller, who knows
    /// paths, cuts.
    pub near: Vec<Near>,
    /// Whether every allowed row was looked at.
    pub exact: bool,
    /// Rows that were scanned because the graph did not have them yet.
    pub pending: u64,
}

/// The `k` rows nearest to `vector` among the allowed files, without row `exclude`.
///
/// `vector` has the collection's dimension and finite values. Exactly `k` rows (and those tied with the last)
/// come back when so many exist, unless `options.max` cuts them off.
///
/// # Errors
///
/// [`Error::Deadline`]; [`Error::Dimension`] when the collection's dimension has changed meanwhile.
pub fn nearest(
    collection: &Collection,
    vector: &[f32],
    k: usize,
    options: &Options,
    allowed: &Allowed,
    exclude: Option<(FileNumber, u32)>,
    context: &mut Context<'_>,
) -> Result<Found> {
    let schema = collection.schema();
    let query = Query::new(schema.metric, vector);
    let snapshot = collection.snapshot();
    let expected = snapshot.reader.dim();
    if expected != vector.len() {
        // The collection has changed its dimension since the caller looked.
        let number = |dim: usize| u32::try_from(dim).unwrap_or(u32::MAX);
        return Err(Error::Dimension { expected: number(expected), got: number(vector.len()) });
    }
    let search = Search { snapshot: &snapshot, query: &query, allowed, exclude, limits: context.limits };
    let total = collection.count(allowed);
    let small = total < u64::from(schema.exact_below);
    let selective = total.saturating_mul(SCAN_BELOW_SHARE) < collection.len();
    let wants_graph = !options.exact && !small && !selective;
    let ef = options.ef.unwrap_or(schema.ef).max(u32::try_from(k).unwrap_or(u32::MAX)) as usize;
    let mut found = match &snapshot.graph {
        Some(graph) if wants_graph && graph.hnsw.dim() == vector.len() => {
            search.by_graph(k, ef, total, context.scratch)?
        }
        _ => None,
    };
    let (exact, pending) = match found {
        Some(_) => (false, snapshot.reader.count_live_from(snapshot.watermark)),
        None => (true, if wants_graph { total } else { 0 }),
    };
    let neighbors = match found.take() {
        Some(neighbors) => neighbors,
        None => search.by_scan(k, context.scratch)?,
    };
    let near = neighbors
        .into_iter()
        .filter_map(|neighbor| search.resolve(neighbor))
        .filter(|near| options.max.is_none_or(|max| near.distance <= max))
        .collect();
    Ok(Found { near, exact, pending })
}

struct Search<'a> {
    snapshot: &'a Snapshot,
    query: &'a Query<'a>,
    allowed: &'a Allowed,
    exclude: Option<(FileNumber, u32)>,
    limits: Limits,
}

impl Search<'_> {
    fn accepts(&self, row: RowId) -> bool {
        self.snapshot.reader.row(row).is_some_and(|found| {
            self.allowed.contains(found.file.group())
                && self.exclude != Some((found.file.number(), found.index))
        })
    }

    fn resolve(&self, neighbor: Neighbor) -> Option<Near> {
        let found = self.snapshot.reader.row(neighbor.row)?;
        Some(Near {
            file: Arc::clone(found.file),
            index: found.index,
            row: neighbor.row,
            distance: self.query.metric.finish(neighbor.key),
        })
    }

    /// Every allowed row, compared.
    fn by_scan(&self, k: usize, scratch: &mut Scratch) -> Result<Vec<Neighbor>> {
        let mut top = TopK::new(k);
        self.scan_from(RowId(0), &mut top, scratch)?;
        Ok(top.into_sorted())
    }

    fn scan_from(&self, first: RowId, top: &mut TopK, scratch: &mut Scratch) -> Result<()> {
        let reader = &self.snapshot.reader;
        let rows = (first.0..reader.end().0).map(RowId).filter(|&row| self.accepts(row));
        let mut in_time = || Instant::now() < self.limits.deadline;
        scratch.row.resize(self.query.vector.len(), 0.0);
        if flat::scan(self.query, rows, reader, top, &mut scratch.row, &mut in_time) {
            Ok(())
        } else {
            Err(self.limits.exceeded())
        }
    }

    /// The graph's rows and, exactly, those that it does not have yet. `None` when it did not find enough.
    fn by_graph(
        &self,
        k: usize,
        ef: usize,
        total: u64,
        scratch: &mut Scratch,
    ) -> Result<Option<Vec<Neighbor>>> {
        let Some(graph) = &self.snapshot.graph else { return Ok(None) };
        let watermark = self.snapshot.watermark;
        let excluded = u64::from(self.exclude.is_some());
        let want = usize::try_from(total.saturating_sub(excluded)).unwrap_or(usize::MAX).min(k);
        for widening in 0..=WIDENINGS {
            let mut in_time = || Instant::now() < self.limits.deadline;
            let found = graph.hnsw.search(
                self.query,
                Beam::new(k, ef << (2 * widening)),
                &self.snapshot.reader,
                |row| row < watermark && self.accepts(row),
                &mut scratch.graph,
                &mut in_time,
            );
            if found.stopped {
                return Err(self.limits.exceeded());
            }
            if found.exhausted {
                return Ok(None);
            }
            let mut top = TopK::new(k);
            for neighbor in found.neighbors {
                top.push(neighbor);
            }
            self.scan_from(watermark, &mut top, scratch)?;
            let neighbors = top.into_sorted();
            if neighbors.len() >= want {
                return Ok(Some(neighbors));
            }
        }
        Ok(None)
    }
}
