//! The walk: best-first search on one level, and the descent through the levels (algorithms 2 and 5).
//!
//! The walk compares codes only, so rows that are gone are walked through like any other. What it found is then
//! compared by the vectors themselves: see `refine`.
//!
//! A walk waits for memory more than it computes. So it expands the next node before it compares those that it met at
//! the one before: their codes come meanwhile. The node is the nearest of what is known a step earlier; where one that
//! is nearer comes up in that step, it is next but one.

use super::Hnsw;
use super::absence::Absence;
use super::frontier::Frontier;
use super::nodes::{NodeId, Nodes};
use super::refine::Refining;
use super::scan::Shortlist;
use crate::index::codec::{Codec, Probe};
use crate::index::flat::MAX_TIES;
use crate::index::ranked::Ranked;
use crate::index::{Neighbor, Query, RowId, VectorSource};
use crate::store::rows::{BATCH, CodeBatch, Guard, pin};
use crate::sync::Ordering;

/// How wide a search is.
#[derive(Clone, Copy, Debug)]
pub struct Beam<'a> {
    /// Results wanted.
    pub k: usize,
    /// Accepted results kept while searching: the more, the higher the recall and the cost. Raised above `k`.
    pub ef: usize,
    /// Rows visited after which the search gives up: see [`Found::exhausted`].
    pub max_visited: usize,
    /// How what is accepted may be told to lie far from the query, `None` to go there whatever it costs.
    pub outlook: Option<Outlook>,
    /// Whether `accept` is asked only of what the walk found, and not of every row that it meets: for searches that
    /// are refused hardly anything. When it refuses more than an eighth after all, the search is made anew with it.
    pub accepts_most: bool,
    /// A row that is to be as if it were not in the graph: for measuring recall with stored rows as queries.
    pub without: Option<&'a Absence>,
}

impl Beam<'_> {
    /// A beam whose work is bounded so that only a filter that refuses nearly everything meets the bound.
    #[must_use]
    pub fn new(k: usize, ef: usize) -> Self {
        let ef = ef.max(k);
        Beam {
            k,
            ef,
            max_visited: ef.saturating_mul(256).max(16_384),
            outlook: None,
            accepts_most: false,
            without: None,
        }
    }
}

/// What is expected of a filter. All nodes that are as near as the results are expanded, whether they are accepted or
/// not; so where clearly fewer of them are accepted than of all, a search costs many times more, and gives up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outlook {
    /// Share of all rows that is accepted, above 0.
    pub selectivity: f64,
    /// How many times fewer than that may be accepted among those met, above 1.
    pub patience: f64,
}

impl Outlook {
    /// Standard errors that the accepted may fall short by chance.
    const CHANCE: f64 = 3.0;

    fn is_bad(&self, frontier: &Frontier) -> bool {
        let (met, share) = (frontier.len() as f64, (self.selectivity / self.patience).min(1.0));
        let by_chance = Self::CHANCE * (met * share * (1.0 - share)).sqrt();
        (frontier.count_accepted() as f64) < met * share - by_chance
    }
}

/// What a search found.
#[derive(Debug)]
pub struct Found {
    /// Nearest first, equal keys by row. More than `k` where rows tie with the k-th, fewer where the graph has no
    /// more that are accepted or the search was cut short.
    pub neighbors: Vec<Neighbor>,
    /// Nodes visited: codes compared.
    pub visited: usize,
    /// Nodes whose links were followed.
    pub expanded: usize,
    /// Vectors compared.
    pub refined: usize,
    /// The search met [`Beam::max_visited`], or the [`Outlook`] was bad: nearer rows may be missing, and a scan
    /// of what is accepted is the better way. With an outlook, no neighbours are told then.
    pub exhausted: bool,
    /// `keep_going` said no: nearer rows may be missing.
    pub stopped: bool,
    /// The graph is damaged where the search went: what was found is no answer.
    pub damaged: bool,
}

/// What a search needs beside its results. Keep it and use it again: it grows to the size of the graph.
#[derive(Debug, Default)]
pub struct SearchScratch {
    pub(super) visited: Visited,
    pub(super) frontier: Frontier,
    /// Nodes to compare: met at one node, and at the one that is expanded after it.
    pub(super) batch: Vec<u32>,
    pub(super) next_batch: Vec<u32>,
    /// Where a walk begins.
    pub(super) entries: Vec<Ranked>,
    pub(super) probe: Probe,
    pub(super) codes: Box<CodeBatch>,
    pub(super) shortlist: Shortlist,
    pub(super) refining: Refining,
}

impl SearchScratch {
    /// An empty scratch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

/// The set of nodes seen in one walk: a node is in it while its tag is the current one.
#[derive(Debug, Default)]
pub(super) struct Visited {
    tags: Vec<u8>,
    current: u8,
}

impl Visited {
    /// An empty set of the nodes below `nodes`.
    fn begin(&mut self, nodes: u32) -> Seen<'_> {
        self.current = self.current.wrapping_add(1);
        if self.current == 0 {
            self.tags.fill(0);
            self.current = 1;
        }
        if self.tags.len() < nodes as usize {
            self.tags.resize(nodes as usize, 0);
        }
        Seen { tags: &mut self.tags[..nodes as usize], current: self.current }
    }
}

/// A [`Visited`] in use.
struct Seen<'v> {
    tags: &'v mut [u8],
    current: u8,
}

impl Seen<'_> {
    /// Whether the node is new; `None` if there was no such node when the walk began.
    #[inline(always)]
    fn insert(&mut self, id: NodeId) -> Option<bool> {
        let tag = self.tags.get_mut(id.index())?;
        Some(std::mem::replace(tag, self.current) != self.current)
    }
}

/// The work that a search may do, and what it did.
pub(super) struct Budget<'k> {
    visited: usize,
    max_visited: usize,
    outlook: Option<Outlook>,
    expanded: usize,
    keep_going: &'k mut dyn FnMut() -> bool,
    exhausted: bool,
    stopped: bool,
}

/// Nodes expanded between two questions whether to go on.
const EXPANSIONS_PER_CHECK: usize = 64;

/// How many times the root mean square of the errors so far the code of a result may have erred.
const ERROR_MARGIN: f32 = 3.0;

impl<'k> Budget<'k> {
    pub(super) fn new(max_visited: usize, keep_going: &'k mut dyn FnMut() -> bool) -> Self {
        Budget {
            visited: 0,
            max_visited,
            outlook: None,
            expanded: 0,
            keep_going,
            exhausted: false,
            stopped: false,
        }
    }

    /// Whether one more node may be expanded.
    #[inline]
    fn expand(&mut self) -> bool {
        self.expanded += 1;
        if self.expanded.is_multiple_of(EXPANSIONS_PER_CHECK) && !self.stopped {
            self.stopped = !(self.keep_going)();
        }
        self.exhausted |= self.visited >= self.max_visited;
        !self.stopped && !self.exhausted
    }

    /// Gives up when the nodes met so far say that it is not worth going on.
    #[inline]
    fn judge(&mut self, frontier: &Frontier) {
        if let Some(outlook) = self.outlook {
            self.exhausted |= outlook.is_bad(frontier);
        }
    }
}

/// A graph as one search or insertion sees it.
#[derive(Clone, Copy)]
pub(super) struct View<'g> {
    pub(super) nodes: &'g Nodes,
    pub(super) codec: &'g Codec,
    pub(super) guard: &'g Guard,
}

impl Hnsw {
    /// Finds up to `beam.k` nearest rows of `query` among those that `accept` lets pass.
    ///
    /// Refused rows are walked through; they take no place among the `ef`. Rows that have no vector in `source` are
    /// not returned. `keep_going` is asked about every thousand distances. Rows that are inserted meanwhile may or may
    /// not be found.
    ///
    /// # Panics
    ///
    /// When the query's vector or the source's have another length than the graph's.
    pub fn search<S: VectorSource + ?Sized>(
        &self,
        query: &Query<'_>,
        beam: Beam<'_>,
        source: &S,
        accept: impl Fn(RowId) -> bool,
        scratch: &mut SearchScratch,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Found {
        self.check_lengths(query, source);
        let guard = pin();
        let view = self.view(&guard);
        let mut budget = Budget { outlook: beam.outlook, ..Budget::new(beam.max_visited, keep_going) };
        let (mut neighbors, mut compared) = (Vec::new(), 0);
        if let Some(entry) = self.entry(&guard)
            && beam.k > 0
        {
            view.codec.probe(query.vector, &mut scratch.probe);
            let without = beam.without;
            let nearest = descend(view, entry, without.map(|absence| absence.node), scratch, &mut budget);
            // One more than wanted tells whether others tie with the last of them.
            let mut ef = beam.ef.max(beam.k.saturating_add(1));
            let mut accepts_most = beam.accepts_most;
            loop {
                begin(view, nearest, without.map(|absence| absence.node), scratch);
                // What is accepted may lie where many are about as far: a code without all bytes tells less of it.
                let kept = if accepts_most || view.codec.compares_well() { ef } else { ef + ef / 4 };
                walk(view, 0, kept, without, (!accepts_most).then_some(&accept), scratch, &mut budget);
                if budget.exhausted && beam.outlook.is_some() {
                    // Everything will be compared: what was found is not worth reading vectors for.
                    break;
                }
                let SearchScratch { frontier, refining, probe, .. } = scratch;
                let candidates = frontier.accepted();
                let refined =
                    refining.refine(view, query, probe, beam.k, source, &accept, candidates, ERROR_MARGIN);
                neighbors = refined.neighbors;
                compared += refined.compared;
                // Where copies of one vector fill the list from the k-th place to its end, others of them may come
                // first by a rule that is not ours.
                let tied = beam.k.checked_sub(1).and_then(|last| neighbors.get(last)).is_some_and(|last| {
                    neighbors.len() > beam.k
                        && neighbors.len() >= ef
                        && neighbors.last().is_some_and(|end| end.key == last.key)
                });
                let too_few = accepts_most && (refined.refused > ef / 8 || neighbors.len() < beam.k);
                if !(too_few || tied && ef < MAX_TIES) || !budget.expand() {
                    break;
                }
                if too_few {
                    accepts_most = false;
                } else {
                    ef = (4 * ef).min(MAX_TIES);
                }
            }
        }
        Found {
            neighbors,
            visited: budget.visited,
            expanded: budget.expanded,
            refined: compared,
            exhausted: budget.exhausted,
            stopped: budget.stopped,
            damaged: self.nodes.is_damaged(),
        }
    }

    pub(super) fn check_lengths<S: VectorSource + ?Sized>(&self, query: &Query<'_>, source: &S) {
        assert_eq!(query.vector.len(), self.dim, "the query's dimension");
        assert_eq!(source.dim(), self.dim, "the source's dimension");
        assert_eq!(query.metric, self.metric, "the query's metric");
    }

    pub(super) fn view<'g>(&'g self, guard: &'g Guard) -> View<'g> {
        View { nodes: &self.nodes, codec: &self.codec, guard }
    }
}

/// Goes down from `entry` to level 1, on each level to the node that is nearest.
pub(super) fn descend(
    view: View<'_>,
    entry: NodeId,
    without: Option<NodeId>,
    scratch: &mut SearchScratch,
    budget: &mut Budget<'_>,
) -> Ranked {
    let mut nearest = Ranked::new(f32::INFINITY, entry.0);
    let SearchScratch { probe, codes, .. } = scratch;
    view.keys(probe, codes, &[entry.0], f32::INFINITY, |node, key| nearest = Ranked::new(key, node));
    for level in (1..=view.nodes.level(entry, view.guard)).rev() {
        nearest = greedy(view, level, nearest, without, scratch, budget);
    }
    nearest
}

/// Where the walk on level 0 begins: at `nearest`, or around it if that is to be left out.
pub(super) fn begin(view: View<'_>, nearest: Ranked, without: Option<NodeId>, scratch: &mut SearchScratch) {
    let SearchScratch { entries, batch, probe, codes, .. } = scratch;
    entries.clear();
    if without != Some(NodeId(nearest.number())) {
        entries.push(nearest);
        return;
    }
    batch.clear();
    batch.extend(view.nodes.linked(NodeId(nearest.number()), 0, view.guard).map(|linked| linked.0));
    view.announce(batch, false);
    for batch in batch.chunks(BATCH) {
        view.keys(probe, codes, batch, f32::INFINITY, |node, key| entries.push(Ranked::new(key, node)));
    }
}

/// Goes to nearer nodes on a level until none is linked.
pub(super) fn greedy(
    view: View<'_>,
    level: usize,
    from: Ranked,
    without: Option<NodeId>,
    scratch: &mut SearchScratch,
    budget: &mut Budget<'_>,
) -> Ranked {
    let mut nearest = from;
    loop {
        let here = nearest;
        scratch.batch.clear();
        for linked in view.nodes.linked(NodeId(here.number()), level, view.guard) {
            if Some(linked) != without {
                scratch.batch.push(linked.0);
            }
        }
        budget.visited += scratch.batch.len();
        view.announce(&scratch.batch, false);
        // The links of the nearest are found by what is said about it.
        scratch.batch.iter().for_each(|&node| view.nodes.about.prefetch(node));
        let SearchScratch { probe, codes, batch, .. } = &mut *scratch;
        for batch in batch.chunks(BATCH) {
            view.keys(probe, codes, batch, nearest.key(), |node, key| {
                if key < nearest.key() {
                    nearest = Ranked::new(key, node);
                }
            });
        }
        if nearest == here || !budget.expand() {
            return nearest;
        }
    }
}

/// Searches one level from `scratch.entries`, and leaves what it found in `scratch.frontier`. Without `accept` every
/// node is accepted.
pub(super) fn walk(
    view: View<'_>,
    level: usize,
    ef: usize,
    without: Option<&Absence>,
    accept: Option<impl Fn(RowId) -> bool>,
    scratch: &mut SearchScratch,
    budget: &mut Budget<'_>,
) {
    let View { nodes, guard, .. } = view;
    let SearchScratch { visited, frontier, batch, next_batch, entries, probe, codes, .. } = scratch;
    let accepts = |node: u32| match &accept {
        Some(accept) => nodes.row(NodeId(node), guard).is_some_and(accept),
        None => true,
    };
    // What a filter lets pass may lie far from the query, where many are about as far: which of them are nearer takes
    // all of the code to tell.
    let by_all_bytes = accept.is_some() && view.codec.has_far();
    let mut seen = visited.begin(nodes.count());
    for batch in [&mut *batch, &mut *next_batch] {
        batch.clear();
        batch.resize(nodes.max_links(level), 0);
    }
    frontier.reset(ef);
    if let Some(absence) = without {
        seen.insert(absence.node);
    }
    for entry in entries.iter() {
        if seen.insert(NodeId(entry.number())) == Some(true) {
            frontier.offer(entry.key(), entry.number(), accepts(entry.number()));
        }
    }
    let (mut batch, mut next_batch) = (batch, next_batch);
    // Nodes in `batch`: their codes are on their way while the next node is expanded.
    let mut waiting = 0;
    loop {
        let expanded = frontier.expand().filter(|&(key, _)| {
            budget.judge(frontier);
            key <= frontier.bound() && budget.expand()
        });
        let mut fresh = 0;
        if let Some((_, node)) = expanded {
            let replaced = without.and_then(|absence| absence.list(NodeId(node)));
            for link in replaced.unwrap_or_else(|| nodes.list(NodeId(node), level, guard)) {
                let Some(linked) = link.load(Ordering::Acquire).checked_sub(1) else { break };
                let Some(is_new) = seen.insert(NodeId(linked)) else {
                    // Either it came after the walk began, or it is damage, which this finds.
                    nodes.target(linked + 1);
                    continue;
                };
                // Written in any case and kept if it is new: whether it is cannot be predicted.
                next_batch[fresh] = linked;
                fresh += usize::from(is_new);
            }
            view.announce(&next_batch[..fresh], by_all_bytes);
            if accept.is_some() {
                next_batch[..fresh].iter().for_each(|&node| nodes.rows.prefetch(node));
            }
            frontier.peek().for_each(|next| nodes.links.prefetch(next));
            budget.visited += fresh;
        } else if waiting == 0 {
            break;
        }
        for now in batch[..waiting].chunks(BATCH) {
            let bound = frontier.bound();
            let each = |node, key| {
                if key < frontier.bound() && frontier.offer(key, node, accepts(node)) {
                    nodes.links.prefetch(node);
                }
            };
            if by_all_bytes {
                view.full_keys(probe, now, each);
            } else {
                view.keys(probe, codes, now, bound, each);
            }
        }
        (batch, next_batch, waiting) = (next_batch, batch, fresh);
    }
}

impl View<'_> {
    /// A hint that the nodes are compared soon.
    fn announce(self, batch: &[u32], by_all_bytes: bool) {
        let codes = &self.nodes.codes;
        if by_all_bytes {
            batch.iter().for_each(|&node| codes.prefetch(node));
        } else {
            batch.iter().for_each(|&node| codes.prefetch_near(node));
        }
    }

    /// Calls `each` with the nodes of up to [`BATCH`] and their keys, leaving out those without a code and those that
    /// are farther than `bound`. Not inlined: it would be in the frame of whoever calls this, and others come below that.
    #[inline(never)]
    pub(super) fn keys(
        self,
        probe: &mut Probe,
        codes: &mut CodeBatch,
        batch: &[u32],
        bound: f32,
        mut each: impl FnMut(u32, f32),
    ) {
        let mut codes = self.nodes.codes.read(batch, codes, self.guard);
        self.codec.group(&mut codes);
        let mut keys = [0.0; BATCH];
        self.codec.near_keys(probe, codes.heads(), codes.near(), &mut keys);
        // Most are farther. Which are cannot be predicted, so they are sorted out without a branch.
        let (mut near, mut count) = ([0u8; BATCH], 0);
        for (at, key) in (0u8..).zip(&keys[..codes.rows().len()]) {
            near[count] = at;
            count += usize::from(*key <= bound);
        }
        for at in near[..count].iter().map(|&at| usize::from(at)) {
            each(codes.rows()[at], keys[at]);
        }
    }

    /// The same by all bytes of the codes, and without a bound.
    fn full_keys(self, probe: &mut Probe, batch: &[u32], mut each: impl FnMut(u32, f32)) {
        for &node in batch {
            let Some(code) = self.nodes.codes.get(node, self.guard) else { continue };
            if let Some(far) = self.nodes.codes.far(node, self.guard) {
                each(node, self.codec.full_key(probe, code, far));
            }
        }
    }
}

impl Hnsw {
    /// Where searches begin.
    pub(super) fn entry(&self, _guard: &Guard) -> Option<NodeId> {
        self.nodes.target(self.entry.load(Ordering::Acquire))
    }
}
