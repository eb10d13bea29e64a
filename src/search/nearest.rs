//! The nearest rows of one collection: by graph or its codes and a scan of what it does not have, or by scan alone.

use std::time::{Duration, Instant};

use super::plan::{Case, Plan, WIDE};
use super::request::Options;
use crate::collection::{Collection, Effort, FileNumber, Filter, Graph, Snapshot};
use crate::index::flat::{self, TopK};
use crate::index::hnsw::{self, Beam, SearchScratch};
use crate::index::{Neighbor, Query, RowId, RowSet, VectorSource as _};
use crate::{Error, Result};

/// What one search works with.
#[derive(Debug)]
pub struct Context<'a> {
    /// Reusable memory.
    pub scratch: &'a mut Scratch,
    /// When the search gives up.
    pub limits: Limits<'a>,
}

/// Memory of one search, to be kept for the next.
#[derive(Debug, Default)]
pub struct Scratch {
    graph: SearchScratch,
    /// A decoded row.
    row: Vec<f32>,
}

/// When a search gives up.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// The moment.
    deadline: Instant,
    /// How long it had, for the message.
    allowance: Duration,
    /// Whether somebody still waits for the answer at this moment. Asked often.
    is_awaited: &'a dyn Fn(Instant) -> bool,
}

impl Limits<'static> {
    /// `allowance` from now.
    #[must_use]
    pub fn within(allowance: Duration) -> Self {
        Self { deadline: Instant::now() + allowance, allowance, is_awaited: &|_| true }
    }
}

impl<'a> Limits<'a> {
    /// The same, for an answer that somebody waits for as long as `is_awaited` says so.
    #[must_use]
    pub fn while_awaited(self, is_awaited: &'a dyn Fn(Instant) -> bool) -> Self {
        Self { is_awaited, ..self }
    }

    fn allow(&self, now: Instant) -> bool {
        now < self.deadline && (self.is_awaited)(now)
    }

    /// Refuses when the search has to give up at the moment `now`.
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`], [`Error::Interrupted`].
    pub fn check(&self, now: Instant) -> Result<()> {
        if self.allow(now) { Ok(()) } else { Err(self.exceeded()) }
    }

    fn exceeded(&self) -> Error {
        if Instant::now() < self.deadline {
            return Error::Interrupted;
        }
        Error::Deadline { limit_ms: u64::try_from(self.allowance.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl std::fmt::Debug for Limits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// A row that is near.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    /// Its file.
    pub file: FileNumber,
    /// Whether the file has more than one row.
    pub multi: bool,
    /// Row within the file.
    pub index: u32,
    /// Number in the collection.
    pub row: RowId,
    /// Distance, as the metric's name says.
    pub distance: f32,
}

/// How the rows were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Every allowed row was compared: nothing nearer was missed.
    Scan,
    /// The codes of all allowed rows were compared, and what the graph does not have yet was scanned.
    CodeScan,
    /// The graph was walked, and what it does not have yet was scanned.
    Walk,
}

/// The nearest rows of a collection.
#[derive(Debug)]
pub struct Found {
    /// Nearest first, then by row. There may be more than `k`, with ties at the end among others: the caller, who
    /// knows paths, cuts.
    pub near: Vec<Near>,
    /// How they were found.
    pub way: Way,
    /// Whether a walk, before that, did not find enough within its budget.
    pub walked_in_vain: bool,
    /// Rows that were scanned because the graph did not have them yet.
    pub pending: u64,
}

/// The `k` rows nearest to `vector` among those that `filter` lets pass, without row `exclude`.
///
/// `vector` has the collection's dimension and finite values. Exactly `k` rows, or somewhat more, come back when
/// so many exist, unless `options.max` cuts them off; all are of one version of the collection.
///
/// # Errors
///
/// [`Error::Deadline`], [`Error::Interrupted`]; [`Error::Dimension`] when the collection's dimension has changed meanwhile.
pub fn nearest(
    collection: &Collection,
    vector: &[f32],
    k: usize,
    options: &Options,
    filter: &Filter,
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
    let allowed = (!filter.is_all()).then(|| collection.rows(filter, &snapshot.reader));
    let search =
        Search { snapshot: &snapshot, query: &query, allowed: allowed.as_deref(), limits: context.limits };
    // One more than wanted, so that the excluded row takes no place from another.
    let k = k + usize::from(exclude.is_some());
    let total = allowed.as_ref().map_or(collection.len(), |rows| rows.len());
    let graph = snapshot.graph.as_deref().filter(|graph| graph.hnsw.dim() == vector.len());
    let effort = effort(options, schema.recall, k, graph);
    let wants_graph = effort != Effort::Scan && total >= u64::from(schema.exact_below);
    let pending = if wants_graph { search.count_from(snapshot.watermark) } else { 0 };
    let ef = match effort {
        Effort::Walk(ef) => whole(ef, vector).max(k),
        Effort::Scan => k,
    };
    // Without a filter nothing makes a walk longer than it is expected to be.
    let unfiltered = Plan::Walk { max_visited: Beam::new(k, ef).max_visited, outlook: None };
    let case = graph.map(|graph| Case {
        allowed: total.saturating_sub(pending),
        nodes: graph.hnsw.len() as u64,
        k,
        ef,
        dim: vector.len(),
        quant: graph.hnsw.params().quant,
    });
    let mut plan = match case {
        Some(case) if wants_graph => {
            let is_narrow = allowed.is_none() && total > k as u64 && ef < WIDE;
            match if is_narrow { unfiltered } else { case.plan() } {
                Plan::Walk { .. } if allowed.is_none() => unfiltered,
                plan => plan,
            }
        }
        _ => Plan::Scan,
    };
    let mut walked_in_vain = false;
    let (neighbors, way) = loop {
        plan = match (graph, plan) {
            (Some(graph), Plan::Walk { max_visited, outlook }) => {
                let accepts_most = allowed.is_none();
                let beam = Beam { max_visited, outlook, accepts_most, ..Beam::new(k, ef) };
                if let Some(found) = search.by_graph(graph, beam, context.scratch)? {
                    break (found, Way::Walk);
                }
                walked_in_vain = true;
                case.map_or(Plan::Scan, |case| case.scan())
            }
            (Some(graph), Plan::CodeScan) => {
                if let Some(found) = search.by_codes(graph, k, context.scratch)? {
                    break (found, Way::CodeScan);
                }
                Plan::Scan
            }
            _ => break (search.by_scan(k, context.scratch)?, Way::Scan),
        };
    };
    // What a damaged graph has is as good as not in it.
    let pending =
        if wants_graph && graph.is_some_and(|graph| graph.hnsw.is_damaged()) { total } else { pending };
    let mut near = Vec::with_capacity(neighbors.len());
    let found = neighbors.iter().filter_map(|&neighbor| search.resolve(neighbor));
    near.extend(
        found
            .filter(|near| exclude != Some((near.file, near.index)))
            .filter(|near| options.max.is_none_or(|max| near.distance <= max)),
    );
    Ok(Found { near, way, walked_in_vain, pending })
}

/// What `options` ask for, or else a collection whose searches are to have `recall`.
fn effort(options: &Options, recall: f64, k: usize, graph: Option<&Graph>) -> Effort {
    let recall = options.recall.unwrap_or(recall);
    match (options.ef, graph) {
        _ if options.exact => Effort::Scan,
        (Some(ef), _) => Effort::Walk(f64::from(ef)),
        (None, Some(graph)) => graph.effort(recall, k),
        (None, None) => Effort::Walk(0.0),
    }
}

/// Rounds `ef` up for as many of all queries as its fraction says. The vector's own first values tell which, so the
/// same query is always searched in the same way.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an ef is far below 2^53")]
fn whole(ef: f64, vector: &[f32]) -> usize {
    let mixed = vector
        .iter()
        .take(8)
        .fold(0u32, |mixed, value| (mixed.rotate_left(5) ^ value.to_bits()).wrapping_mul(0x9e37_79b9));
    (ef + f64::from(mixed >> 8) / f64::from(1 << 24)) as usize
}

struct Search<'a> {
    snapshot: &'a Snapshot,
    query: &'a Query<'a>,
    /// Live rows of the snapshot's version; `None` for all of them.
    allowed: Option<&'a RowSet>,
    limits: Limits<'a>,
}

impl Search<'_> {
    #[inline]
    fn accepts(&self, row: RowId) -> bool {
        match self.allowed {
            Some(allowed) => allowed.contains(row),
            None => self.snapshot.reader.row(row).is_some(),
        }
    }

    /// How many rows from `first` on may be returned.
    fn count_from(&self, first: RowId) -> u64 {
        match self.allowed {
            Some(allowed) => allowed.count_from(first),
            None => self.snapshot.reader.count_live_from(first),
        }
    }

    #[inline(never)]
    fn resolve(&self, neighbor: Neighbor) -> Option<Near> {
        let found = self.snapshot.reader.row(neighbor.row)?;
        Some(Near {
            file: found.file.number(),
            multi: found.file.rows() > 1,
            index: found.index,
            row: neighbor.row,
            distance: self.query.metric.finish(neighbor.key),
        })
    }

    /// Every allowed row, compared.
    #[inline(never)]
    fn by_scan(&self, k: usize, scratch: &mut Scratch) -> Result<Vec<Neighbor>> {
        let mut top = TopK::new(k);
        self.scan_from(RowId(0), &mut top, scratch)?;
        Ok(top.into_sorted())
    }

    fn scan_from(&self, first: RowId, top: &mut TopK, scratch: &mut Scratch) -> Result<()> {
        let reader = &self.snapshot.reader;
        let mut in_time = || self.limits.allow(Instant::now());
        scratch.row.resize(self.query.vector.len(), 0.0);
        let row = &mut scratch.row;
        let finished = match self.allowed {
            Some(allowed) => flat::scan(self.query, allowed.iter_from(first), reader, top, row, &mut in_time),
            None => flat::scan(self.query, reader.live_from(first), reader, top, row, &mut in_time),
        };
        if finished { Ok(()) } else { Err(self.limits.exceeded()) }
    }

    /// A walk's rows and, exactly, those that the graph does not have yet. `None` when it did not find enough.
    #[inline(never)]
    fn by_graph(&self, graph: &Graph, beam: Beam, scratch: &mut Scratch) -> Result<Option<Vec<Neighbor>>> {
        let watermark = self.snapshot.watermark;
        let found = graph.hnsw.search(
            self.query,
            beam,
            &self.snapshot.reader,
            |row| row < watermark && self.accepts(row),
            &mut scratch.graph,
            &mut || self.limits.allow(Instant::now()),
        );
        self.with_pending(found, beam.k, scratch)
    }

    /// The same by the codes of all allowed rows. `None` when they tell too little.
    #[inline(never)]
    fn by_codes(&self, graph: &Graph, k: usize, scratch: &mut Scratch) -> Result<Option<Vec<Neighbor>>> {
        let watermark = self.snapshot.watermark;
        let found = graph.hnsw.scan_codes(
            self.query,
            k,
            &self.snapshot.reader,
            |row| row < watermark && self.accepts(row),
            &mut scratch.graph,
            &mut || self.limits.allow(Instant::now()),
        );
        self.with_pending(found, k, scratch)
    }

    /// What was found in the graph and, exactly, the rows that it does not have yet. `None` when it is not enough.
    fn with_pending(
        &self,
        found: hnsw::Found,
        k: usize,
        scratch: &mut Scratch,
    ) -> Result<Option<Vec<Neighbor>>> {
        if found.stopped {
            return Err(self.limits.exceeded());
        }
        // A damaged graph is no reason to answer less than there is; the indexer builds another.
        if found.damaged {
            return Ok(None);
        }
        // The planner goes by the graph only where more than `k` of its rows are allowed: fewer are not all.
        if found.exhausted || found.neighbors.len() < k {
            return Ok(None);
        }
        let watermark = self.snapshot.watermark;
        if self.snapshot.reader.end() <= watermark {
            // They are ordered and cut as a scan's would be.
            return Ok(Some(found.neighbors));
        }
        let mut top = TopK::new(k);
        for neighbor in found.neighbors {
            top.push(neighbor);
        }
        self.scan_from(watermark, &mut top, scratch)?;
        Ok(Some(top.into_sorted()))
    }
}

#[cfg(test)]
mod tests;
