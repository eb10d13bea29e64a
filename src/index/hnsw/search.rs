//! The walk: best-first search on one level, and the descent through the levels (algorithms 2 and 5).
//!
//! **Vanished rows.** A node whose row is gone has no distance. It is walked through at a guess, made from the
//! distances of the live nodes that are linked beside it, or else at the distance of the live node that led to it.
//! One for which neither is known is kept aside until everything else is exhausted and results are missing:
//! otherwise a graph with many of them would be walked as a whole.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Hnsw;
use super::nodes::{NodeId, Nodes};
use super::space::{Probe, Space};
use crate::index::flat::MAX_TIES;
use crate::index::ranked::{Nearest, Ranked};
use crate::index::{Neighbor, Query, RowId, VectorSource};

/// How wide a search is.
#[derive(Clone, Copy, Debug)]
pub struct Beam {
    /// Results wanted.
    pub k: usize,
    /// Accepted results kept while searching: the more, the higher the recall and the cost. Raised to `k`.
    pub ef: usize,
    /// Rows visited after which the search gives up: see [`Found::exhausted`].
    pub max_visited: usize,
}

impl Beam {
    /// A beam whose work is bounded so that only a filter that refuses nearly everything meets the bound.
    #[must_use]
    pub fn new(k: usize, ef: usize) -> Self {
        let ef = ef.max(k);
        Beam { k, ef, max_visited: ef.saturating_mul(256).max(16_384) }
    }
}

/// What a search found.
#[derive(Debug)]
pub struct Found {
    /// Nearest first, equal keys by row. More than `k` where rows tie with the k-th, fewer where the graph has no
    /// more that are accepted or the search was cut short.
    pub neighbors: Vec<Neighbor>,
    /// Rows visited: distances computed, and vanished rows walked through.
    pub visited: usize,
    /// The search met [`Beam::max_visited`]: nearer rows may be missing, and a scan of what is accepted is the
    /// better way.
    pub exhausted: bool,
    /// `keep_going` said no: nearer rows may be missing.
    pub stopped: bool,
}

/// What a search needs beside its results. Keep it and use it again: it grows to the size of the graph.
#[derive(Debug, Default)]
pub struct SearchScratch {
    visited: Visited,
    candidates: BinaryHeap<Reverse<Ranked>>,
    /// Vanished nodes behind vanished nodes.
    aside: Vec<NodeId>,
    /// Neighbours of the node that is being expanded.
    batch: Vec<Step>,
    /// Where the walk begins on the next level; what it found, after it.
    pub(super) entries: Vec<Ranked>,
    pub(super) nearest: Nearest,
    pub(super) decode: Vec<f32>,
}

impl SearchScratch {
    /// An empty scratch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// A node to be compared.
#[derive(Clone, Copy, Debug)]
struct Step {
    id: NodeId,
    row: RowId,
}

/// The set of nodes seen in one walk: a node is in it while its tag is the current one.
#[derive(Debug, Default)]
struct Visited {
    tags: Vec<u16>,
    current: u16,
}

impl Visited {
    fn clear(&mut self, nodes: u32) {
        self.current = self.current.wrapping_add(1);
        if self.current == 0 {
            self.tags.fill(0);
            self.current = 1;
        }
        if self.tags.len() < nodes as usize {
            self.tags.resize(nodes as usize, 0);
        }
    }

    /// Whether the node is new.
    #[inline]
    fn insert(&mut self, id: NodeId) -> bool {
        if id.index() >= self.tags.len() {
            // Inserted since the walk began.
            self.tags.resize(id.index() + 1, 0);
        }
        std::mem::replace(&mut self.tags[id.index()], self.current) != self.current
    }
}

/// The work that a search may do, and what it did.
pub(super) struct Budget<'k> {
    visited: usize,
    max_visited: usize,
    expanded: usize,
    keep_going: &'k mut dyn FnMut() -> bool,
    exhausted: bool,
    stopped: bool,
}

/// Nodes expanded between two questions whether to go on.
const EXPANSIONS_PER_CHECK: usize = 64;

impl<'k> Budget<'k> {
    pub(super) fn new(max_visited: usize, keep_going: &'k mut dyn FnMut() -> bool) -> Self {
        Budget { visited: 0, max_visited, expanded: 0, keep_going, exhausted: false, stopped: false }
    }

    /// Whether one more node may be expanded.
    fn expand(&mut self) -> bool {
        self.expanded += 1;
        if self.expanded.is_multiple_of(EXPANSIONS_PER_CHECK) && !self.stopped {
            self.stopped = !(self.keep_going)();
        }
        self.exhausted |= self.visited >= self.max_visited;
        !self.stopped && !self.exhausted
    }
}

/// How many a walk on one level is to find.
#[derive(Clone, Copy)]
pub(super) struct Width {
    pub(super) ef: usize,
    /// Bound of those kept beside the first `ef` because they tie with the last.
    pub(super) max_ties: usize,
}

impl Hnsw {
    /// Finds up to `beam.k` nearest rows of `query` among those that `accept` lets pass.
    ///
    /// Refused and vanished rows are walked through; they take no place among the `ef`. `keep_going` is asked
    /// about every thousand distances. Rows that are inserted meanwhile may or may not be found.
    ///
    /// # Panics
    ///
    /// When the query's vector or the source's have another length than the graph's.
    pub fn search<S: VectorSource + ?Sized>(
        &self,
        query: &Query<'_>,
        beam: Beam,
        source: &S,
        accept: impl Fn(RowId) -> bool,
        scratch: &mut SearchScratch,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Found {
        assert_eq!(query.vector.len(), self.dim, "the query's dimension");
        assert_eq!(query.metric, self.metric, "the query's metric");
        let mut budget = Budget::new(beam.max_visited, keep_going);
        let mut neighbors = Vec::new();
        if let Some(entry) = self.entry()
            && beam.k > 0
        {
            let space = self.space(source);
            let probe = space.probe(*query);
            self.start(entry, scratch);
            for level in (1..=self.nodes.level(entry)).rev() {
                let width = Width { ef: 1, max_ties: 0 };
                walk(&self.nodes, &probe, level, width, |_| true, scratch, &mut budget);
            }
            let width = Width { ef: beam.ef.max(beam.k), max_ties: MAX_TIES };
            if walk(&self.nodes, &probe, 0, width, accept, scratch, &mut budget) {
                neighbors = self.take_rows(beam.k, &scratch.entries);
            }
        }
        Found { neighbors, visited: budget.visited, exhausted: budget.exhausted, stopped: budget.stopped }
    }

    /// Prepares `scratch` for a walk that begins at `entry`.
    pub(super) fn start(&self, entry: NodeId, scratch: &mut SearchScratch) {
        scratch.decode.resize(self.dim, 0.0);
        scratch.entries.clear();
        scratch.entries.push(Ranked::new(f32::INFINITY, entry.0));
    }

    pub(super) fn space<'s, S: ?Sized>(&'s self, source: &'s S) -> Space<'s, S> {
        Space { nodes: &self.nodes, source, metric: self.metric }
    }

    /// The first `k` rows and those that tie with the last, ordered by key, then row.
    fn take_rows(&self, k: usize, found: &[Ranked]) -> Vec<Neighbor> {
        let rows = found.iter().filter_map(|found| {
            self.nodes.row(NodeId(found.number())).map(|row| Neighbor { row, key: found.key() })
        });
        let mut neighbors: Vec<Neighbor> = rows.collect();
        neighbors.sort_unstable_by(|a, b| a.key.total_cmp(&b.key).then(a.row.cmp(&b.row)));
        if let Some(&last) = k.checked_sub(1).and_then(|last| neighbors.get(last)) {
            let ties = neighbors[k..].iter().take_while(|neighbor| neighbor.key == last.key).count();
            neighbors.truncate(k + ties);
        }
        neighbors
    }
}

/// Searches one level from `scratch.entries` and leaves there what it found, nearest first. Finds nothing, returns
/// false and leaves the entries as they were when none that can be reached is live and accepted.
pub(super) fn walk<S: VectorSource + ?Sized>(
    nodes: &Nodes,
    probe: &Probe<'_, S>,
    level: usize,
    width: Width,
    accept: impl Fn(RowId) -> bool,
    scratch: &mut SearchScratch,
    budget: &mut Budget<'_>,
) -> bool {
    let SearchScratch { visited, candidates, aside, batch, entries, nearest, decode } = scratch;
    visited.clear(nodes.count());
    candidates.clear();
    aside.clear();
    batch.clear();
    nearest.reset(width.ef, width.max_ties);
    for entry in entries.iter() {
        gather(nodes, probe, visited, batch, std::iter::once(NodeId(entry.number())));
    }
    // Where the batch came from: none at first.
    let mut from = None;
    loop {
        let mut vanished = 0;
        let mut live = Siblings::default();
        for at in 0..batch.len() {
            let step = batch[at];
            budget.visited += 1;
            let Some(key) = probe.key(step.row, decode) else {
                batch[vanished] = step;
                vanished += 1;
                continue;
            };
            live.count(key);
            if nearest.wants(key) {
                let found = Ranked::new(key, step.id.0);
                candidates.push(Reverse(found));
                if accept(step.row) {
                    nearest.push(found);
                }
            }
        }
        if vanished > 0 {
            let from = from.filter(|&(id, _)| nodes.row(id).is_some_and(|row| probe.is_live(row, decode)));
            let guess = live.guess().or(from.map(|(_, key)| key)).filter(|key| key.is_finite());
            for step in &batch[..vanished] {
                match guess {
                    Some(key) if nearest.wants(key) => candidates.push(Reverse(Ranked::new(key, step.id.0))),
                    Some(_) => {}
                    None => aside.push(step.id),
                }
            }
        }
        batch.clear();
        let open = candidates.pop().map(|Reverse(open)| open).filter(|open| open.key() <= nearest.bound());
        let (id, key) = match open {
            Some(open) => (NodeId(open.number()), open.key()),
            None if nearest.is_full() => break,
            None => match aside.pop() {
                Some(id) => (id, f32::INFINITY),
                None => break,
            },
        };
        if !budget.expand() {
            break;
        }
        gather(nodes, probe, visited, batch, nodes.linked(id, level));
        from = Some((id, key));
    }
    if nearest.is_empty() {
        return false;
    }
    entries.clear();
    nearest.drain_into(entries);
    true
}

/// Keys of the live nodes of a batch.
#[derive(Default)]
struct Siblings {
    least: Option<f32>,
    sum: f32,
    count: f32,
}

impl Siblings {
    #[inline]
    fn count(&mut self, key: f32) {
        self.least = Some(self.least.map_or(key, |least| least.min(key)));
        self.sum += key;
        self.count += 1.0;
    }

    /// What a node among these may have for a key: a quarter of the way from the least to the mean. The mean itself
    /// loses recall, the least costs up to twice the visits for little.
    fn guess(&self) -> Option<f32> {
        self.least.map(|least| 0.75 * least + 0.25 * (self.sum / self.count))
    }
}

/// Adds those of `ids` that were not seen before to `batch`.
#[inline]
fn gather<S: VectorSource + ?Sized>(
    nodes: &Nodes,
    probe: &Probe<'_, S>,
    visited: &mut Visited,
    batch: &mut Vec<Step>,
    ids: impl Iterator<Item = NodeId>,
) {
    for id in ids {
        if visited.insert(id)
            && let Some(row) = nodes.row(id)
        {
            probe.prefetch(row);
            batch.push(Step { id, row });
        }
    }
}
