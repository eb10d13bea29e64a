//! The nearest rows of one collection: by graph or its codes and a scan of what it does not have, or by scan alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::explain::{Costs, Ef, EfFrom, Explained, GaveUp, Recall, Run, Why};
use super::plan::{self, Case, Plan, WIDE};
use super::request::Options;
use crate::collection::{
    Collection, Effort, FileNumber, Filter, Graph, Kept, NoRows, Reader, Snapshot, VectorFile,
};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Way {
    /// Every allowed row was compared: nothing nearer was missed.
    #[serde(rename = "rows")]
    Scan,
    /// The codes of all allowed rows were compared, and what the graph does not have yet was scanned.
    #[serde(rename = "codes")]
    CodeScan,
    /// The graph was walked, and what it does not have yet was scanned.
    #[serde(rename = "graph")]
    Walk,
}

/// The nearest rows of a collection.
#[derive(Debug)]
pub struct Found {
    /// In order of their keys, then of their rows. There may be more than `k`, with ties at the end among others: the
    /// caller, who knows paths, sorts and cuts.
    pub near: Vec<Near>,
    /// How they were found.
    pub way: Way,
    /// Whether a walk, before that, did not find enough within its budget.
    pub walked_in_vain: bool,
    /// Rows that were scanned because the graph did not have them yet.
    pub pending: u64,
    /// How it came about, where [`Options::explain`] asks.
    pub explained: Option<Box<Explained>>,
    /// Files whose attributes have to be known before anything is searched: nothing was.
    pub unknown: Vec<Arc<VectorFile>>,
}

/// What is decided before a search begins.
struct Planned<'a> {
    graph: Option<&'a Graph>,
    /// Rows that may be returned.
    total: u64,
    /// Whether a graph is to be asked for them.
    wants_graph: bool,
    /// Rows that it does not have yet.
    pending: u64,
    /// Rows wanted.
    k: usize,
    effort: Effort,
    /// The whole number of this query.
    ef: usize,
    case: Option<Case>,
    plan: Plan,
    why: Why,
}

impl<'a> Planned<'a> {
    /// Plans a search for `k` rows by vectors of `dim` elements; `whole` rounds the width of a walk.
    #[inline]
    fn new(
        collection: &Collection,
        search: &Allowing<'a>,
        (k, dim): (usize, usize),
        options: &Options,
        whole: impl Fn(f64) -> usize,
    ) -> Self {
        let schema = collection.schema();
        let Allowing { snapshot, allowed } = *search;
        let total = allowed.map_or(collection.len(), RowSet::len);
        let graph = snapshot.graph.as_deref().filter(|graph| graph.hnsw.dim() == dim);
        let effort = effort(options, schema.recall, k, graph);
        let is_large = total >= u64::from(schema.exact_below);
        let wants_graph = effort != Effort::Scan && is_large;
        let pending = if wants_graph { search.count_from(snapshot.watermark) } else { 0 };
        let ef = match effort {
            Effort::Walk(ef) => whole(ef).max(k),
            Effort::Scan => k,
        };
        // Without a filter nothing makes a walk longer than it is expected to be.
        let unfiltered = Plan::Walk { max_visited: Beam::new(k, ef).max_visited, outlook: None };
        let case = graph.map(|graph| Case {
            allowed: total.saturating_sub(pending),
            nodes: graph.hnsw.len() as u64,
            k,
            ef,
            dim,
            quant: graph.hnsw.params().quant,
        });
        let (plan, why) = match case {
            _ if options.exact => (Plan::Scan, Why::ExactAsked),
            _ if !is_large => (Plan::Scan, Why::BelowExactBelow),
            _ if effort == Effort::Scan => {
                let is_whole = options.recall.is_some_and(|recall| recall >= 1.0);
                (Plan::Scan, if is_whole { Why::WholeRecallAsked } else { Why::RecallNotReached })
            }
            None => (Plan::Scan, Why::NoGraph),
            Some(_) if allowed.is_none() && total > k as u64 && ef < WIDE => {
                (unfiltered, Why::NothingRefused)
            }
            Some(case) if case.wants_all() => (Plan::Scan, Why::FewInGraph),
            Some(case) => match case.plan() {
                Plan::Walk { .. } if allowed.is_none() => (unfiltered, Why::Cost),
                plan => (plan, Why::Cost),
            },
        };
        Self { graph, total, wants_graph, pending, k, effort, ef, case, plan, why }
    }

    /// The same for who asks how it is; `run` is what was done.
    #[inline(never)]
    fn explain(&self, options: &Options, recall: f64, dim: usize, run: Option<Run>) -> Box<Explained> {
        let graph = self.graph.filter(|_| self.wants_graph);
        let case = self.case.filter(|_| self.wants_graph);
        let width = match self.effort {
            Effort::Walk(ef) => graph.map(|graph| (graph, ef.max(self.k as f64))),
            Effort::Scan => None,
        };
        let known = match width {
            Some((graph, ef)) => graph.measured(ef, self.k),
            // What it was measured to reach is not enough.
            None => {
                self.graph.filter(|_| self.why == Why::RecallNotReached).and_then(|g| g.measured(1.0, self.k))
            }
        };
        let (plan, max_visits) = match self.plan {
            Plan::Scan => (Way::Scan, None),
            Plan::CodeScan => (Way::CodeScan, None),
            Plan::Walk { max_visited, .. } => (Way::Walk, Some(max_visited)),
        };
        let expected = match run.map_or(plan, |run| run.answered_by) {
            Way::Scan => Some(1.0),
            Way::CodeScan => Some(hnsw::CODE_SCAN_RECALL),
            Way::Walk => known.map(|(expected, ..)| expected),
        };
        let by_recall = options.ef.is_none() && !options.exact;
        let ef = width.map(|(_, value)| {
            let from = match (options.ef, known) {
                (Some(_), _) => EfFrom::Asked,
                (None, Some(_)) => EfFrom::Measured,
                (None, None) => EfFrom::NotMeasured,
            };
            Ef { value: rounded(value), used: run.map(|_| self.ef), from }
        });
        Box::new(Explained {
            passing: self.total,
            pending: self.pending,
            plan,
            why: self.why,
            ef,
            recall: Recall {
                asked: by_recall.then(|| options.recall.unwrap_or(recall)),
                expected: expected.map(rounded),
                reachable: known.map(|(_, reachable, _)| rounded(reachable)),
                measured_on: known.map(|(.., rows)| rows),
            },
            costs: match case {
                Some(case) => Costs::of_all(&case.estimates(), max_visits),
                None => Costs::of_rows(plan::rows_us(self.total, dim)),
            },
            run,
        })
    }
}

/// How a search for `k` rows by a vector as it usually is would be answered, without one; or the files whose attributes
/// have to be known first.
///
/// # Errors
///
/// [`Error::Deadline`], [`Error::Interrupted`].
#[inline(never)]
pub fn explain(
    collection: &Collection,
    k: usize,
    options: &Options,
    filter: &Filter,
    limits: Limits<'_>,
) -> Result<std::result::Result<Box<Explained>, Vec<Arc<VectorFile>>>> {
    let snapshot = collection.snapshot();
    let dim = snapshot.reader.dim();
    let allowed = match filter.is_all(collection.groups()) {
        true => None,
        false => match rows(collection, filter, &snapshot.reader, limits)? {
            Ok(rows) => Some(rows),
            Err(unknown) => return Ok(Err(unknown)),
        },
    };
    let allowing = Allowing { snapshot: &snapshot, allowed: allowed.as_deref() };
    let planned = Planned::new(collection, &allowing, (k, dim), options, |ef| whole(ef, &[]));
    Ok(Ok(planned.explain(options, collection.schema().recall, dim, None)))
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
    let begun = options.explain.then(Instant::now);
    let allowed = match filter.is_all(collection.groups()) {
        true => None,
        false => match rows(collection, filter, &snapshot.reader, context.limits)? {
            Ok(rows) => Some(rows),
            Err(unknown) => {
                let (near, way) = (Vec::new(), Way::Scan);
                return Ok(Found { near, way, walked_in_vain: false, pending: 0, explained: None, unknown });
            }
        },
    };
    let allowing = Allowing { snapshot: &snapshot, allowed: allowed.as_deref() };
    let search = Search { rows: allowing, query: &query, limits: context.limits };
    // One more than wanted, so that the excluded row takes no place from another.
    let k = k + usize::from(exclude.is_some());
    let planned = Planned::new(collection, &search.rows, (k, vector.len()), options, |ef| whole(ef, vector));
    let Planned { graph, total, wants_graph, pending, ef, case, mut plan, .. } = planned;
    let mut work = Work::default();
    let (neighbors, way) = loop {
        plan = match (graph, plan) {
            (Some(graph), Plan::Walk { max_visited, outlook }) => {
                let accepts_most = allowed.is_none();
                let beam = Beam { max_visited, outlook, accepts_most, ..Beam::new(k, ef) };
                if let Some(found) = search.by_graph(graph, beam, &mut work, context.scratch)? {
                    break (found, Way::Walk);
                }
                case.map_or(Plan::Scan, |case| case.scan())
            }
            (Some(graph), Plan::CodeScan) => {
                if let Some(found) = search.by_codes(graph, k, &mut work, context.scratch)? {
                    break (found, Way::CodeScan);
                }
                Plan::Scan
            }
            _ => break (search.by_scan(k, context.scratch)?, Way::Scan),
        };
    };
    let walked_in_vain = work.walk_gave_up.is_some();
    let explained = begun.map(|begun| {
        let run = work.done(way, if way == Way::Scan { total } else { pending }, begun);
        planned.explain(options, schema.recall, vector.len(), Some(run))
    });
    // What a damaged graph has is as good as not in it.
    let pending =
        if wants_graph && graph.is_some_and(|graph| graph.hnsw.is_damaged()) { total } else { pending };
    let mut near = Vec::with_capacity(neighbors.len());
    let row = &mut context.scratch.row;
    row.resize(vector.len(), 0.0);
    let found = neighbors.iter().filter_map(|&neighbor| search.resolve(neighbor, row));
    near.extend(
        found
            .filter(|near| exclude != Some((near.file, near.index)))
            .filter(|near| options.max.is_none_or(|max| near.distance <= max)),
    );
    Ok(Found { near, way, walked_in_vain, pending, explained, unknown: Vec::new() })
}

/// Without the digits that say nothing.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The rows that the filter lets pass, or the files whose attributes are to be known first.
#[inline(never)]
fn rows(
    collection: &Collection,
    filter: &Filter,
    reader: &Reader,
    limits: Limits<'_>,
) -> Result<std::result::Result<Arc<RowSet>, Vec<Arc<VectorFile>>>> {
    match collection.rows(filter, reader, &mut || limits.allow(Instant::now())) {
        Ok(rows) => Ok(Ok(rows)),
        Err(NoRows::Unknown(files)) => Ok(Err(files)),
        Err(NoRows::Stopped) => Err(limits.exceeded()),
        Err(NoRows::TooMany) => {
            let (got, limit) = (Kept::LIMIT + 1, Kept::LIMIT);
            Err(Error::TooLarge { what: "attributes of bytes", got, limit })
        }
    }
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

/// The rows that may be returned.
#[derive(Clone, Copy)]
struct Allowing<'a> {
    snapshot: &'a Snapshot,
    /// Live rows of the snapshot's version; `None` for all of them.
    allowed: Option<&'a RowSet>,
}

impl Allowing<'_> {
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
}

/// What the ways that were gone did so far.
#[derive(Default)]
struct Work {
    walk_gave_up: Option<GaveUp>,
    codes_gave_up: Option<GaveUp>,
    expanded: usize,
    codes: usize,
    refined: usize,
}

impl Work {
    fn add(&mut self, found: &hnsw::Found) {
        self.expanded += found.expanded;
        self.codes += found.visited;
        self.refined += found.refined;
    }

    /// All of it: `rows` were scanned at the end.
    fn done(&self, answered_by: Way, rows: u64, begun: Instant) -> Run {
        let Work { walk_gave_up, codes_gave_up, expanded, codes, refined } = *self;
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        Run {
            answered_by,
            walk_gave_up,
            codes_gave_up,
            expanded,
            codes,
            rows: rows + refined as u64,
            took_us,
        }
    }
}

struct Search<'a> {
    rows: Allowing<'a>,
    query: &'a Query<'a>,
    limits: Limits<'a>,
}

impl Search<'_> {
    #[inline(never)]
    fn resolve(&self, neighbor: Neighbor, scratch: &mut [f32]) -> Option<Near> {
        let reader = &self.rows.snapshot.reader;
        let found = reader.row(neighbor.row)?;
        Some(Near {
            file: found.file.number(),
            multi: found.file.rows() > 1,
            index: found.index,
            row: neighbor.row,
            distance: self.query.distance(reader, neighbor, scratch),
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
        let reader = &self.rows.snapshot.reader;
        let mut in_time = || self.limits.allow(Instant::now());
        scratch.row.resize(self.query.vector.len(), 0.0);
        let row = &mut scratch.row;
        let finished = match self.rows.allowed {
            Some(allowed) => flat::scan(self.query, allowed.iter_from(first), reader, top, row, &mut in_time),
            None => flat::scan(self.query, reader.live_from(first), reader, top, row, &mut in_time),
        };
        if finished { Ok(()) } else { Err(self.limits.exceeded()) }
    }

    /// A walk's rows and, exactly, those that the graph does not have yet. `None` when it did not find enough.
    #[inline(never)]
    fn by_graph(
        &self,
        graph: &Graph,
        beam: Beam,
        work: &mut Work,
        scratch: &mut Scratch,
    ) -> Result<Option<Vec<Neighbor>>> {
        let watermark = self.rows.snapshot.watermark;
        let found = graph.hnsw.search(
            self.query,
            beam,
            &self.rows.snapshot.reader,
            |row| row < watermark && self.rows.accepts(row),
            &mut scratch.graph,
            &mut || self.limits.allow(Instant::now()),
        );
        work.add(&found);
        // With a budget it gives up at the last node that it may visit, and before that by its outlook.
        let cut_short = if found.visited < beam.max_visited { GaveUp::Outlook } else { GaveUp::Budget };
        self.with_pending(found, beam.k, cut_short, &mut work.walk_gave_up, scratch)
    }

    /// The same by the codes of all allowed rows. `None` when they tell too little.
    #[inline(never)]
    fn by_codes(
        &self,
        graph: &Graph,
        k: usize,
        work: &mut Work,
        scratch: &mut Scratch,
    ) -> Result<Option<Vec<Neighbor>>> {
        let watermark = self.rows.snapshot.watermark;
        let found = graph.hnsw.scan_codes(
            self.query,
            k,
            &self.rows.snapshot.reader,
            |row| row < watermark && self.rows.accepts(row),
            &mut scratch.graph,
            &mut || self.limits.allow(Instant::now()),
        );
        work.add(&found);
        self.with_pending(found, k, GaveUp::Outlook, &mut work.codes_gave_up, scratch)
    }

    /// What was found in the graph and, exactly, the rows that it does not have yet. `None` when it is not enough, and
    /// why in `gave_up`: `cut_short` where it did not come to its end.
    fn with_pending(
        &self,
        found: hnsw::Found,
        k: usize,
        cut_short: GaveUp,
        gave_up: &mut Option<GaveUp>,
        scratch: &mut Scratch,
    ) -> Result<Option<Vec<Neighbor>>> {
        if found.stopped {
            return Err(self.limits.exceeded());
        }
        // A damaged graph is no reason to answer less than there is; the indexer builds another.
        // The planner goes by the graph only where more than `k` of its rows are allowed: fewer are not all.
        *gave_up = match () {
            () if found.damaged => Some(GaveUp::Damage),
            () if found.exhausted => Some(cut_short),
            () if found.neighbors.len() < k => Some(GaveUp::TooFew),
            () => None,
        };
        if gave_up.is_some() {
            return Ok(None);
        }
        let watermark = self.rows.snapshot.watermark;
        if self.rows.snapshot.reader.end() <= watermark {
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
