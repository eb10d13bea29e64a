//! The scan of codes: all nodes that may be returned are compared by their codes, in the order in which these lie, and
//! the nearest by their vectors.
//!
//! A walk is cheaper where most rows pass. Where few do, or those that are far from the query, it would have to see most
//! of the graph to find them; the scan finds them anyway, for a few nanoseconds each and one for each that is refused.
//!
//! It keeps a list of the nearest by code that is longer than what will be needed. Comparing the vectors tells how much
//! the codes err; if by so much that what did not get on the list may belong there, a further pass collects everything
//! within reach.

use super::Hnsw;
use super::search::{Found, SearchScratch, View};
use crate::index::codec::Probe;
use crate::index::ranked::Ranked;
use crate::index::{Query, RowId, VectorSource};
use crate::store::rows::{BATCH, CodeBatch, pin};

/// Candidates that are kept for one result, and at least in all.
const KEPT_PER_RESULT: usize = 8;
const LEAST_KEPT: usize = 256;
/// How many times the root mean square of the errors the code of a result may have erred: of normal errors, three of
/// 100,000 are larger.
const ERROR_MARGIN: f32 = 4.0;
/// Share of the true neighbours that a scan of codes finds at least, by that.
pub const CODE_SCAN_RECALL: f64 = 0.9999;
/// One of so many rows may be compared by its vector: with more, comparing all vectors in order takes less time.
const MOST_REFINED: usize = 8;
/// Passes after which that is done as well. Errors differ little from one to the next.
const PASSES: usize = 4;
/// Nodes that are asked about at a time.
const STRETCH: u32 = 32;
/// Nodes between two questions whether to go on. A multiple of [`STRETCH`].
const NODES_PER_CHECK: u32 = 8192;

/// The nearest of what was offered, by code.
#[derive(Debug, Default)]
pub(super) struct Shortlist {
    entries: Vec<Ranked>,
    keep: usize,
    /// Nothing nearer than this was left out.
    bound: f32,
    /// Whether something was left out that is as far.
    is_cut: bool,
}

impl Shortlist {
    /// Empties it. It keeps the nearest `keep`, at least 1, that are not farther than `limit`.
    fn reset(&mut self, keep: usize, limit: f32) {
        self.entries.clear();
        self.keep = keep.max(1);
        self.bound = limit;
        self.is_cut = false;
    }

    /// Whether nothing was left out that is not farther than `reach`.
    fn has_all_within(&self, reach: f32) -> bool {
        if self.is_cut { reach < self.bound } else { reach <= self.bound }
    }

    #[inline]
    fn push(&mut self, new: Ranked) {
        self.entries.push(new);
        if self.entries.len() / 2 >= self.keep {
            self.cut();
        }
    }

    /// Leaves out what is behind the nearest `keep`.
    fn cut(&mut self) {
        if self.entries.len() > self.keep {
            let (_, last, _) = self.entries.select_nth_unstable(self.keep - 1);
            self.bound = last.key();
            self.is_cut = true;
            self.entries.truncate(self.keep);
        }
    }

    /// Key and node of all, nearest first.
    fn sorted(&mut self) -> impl Iterator<Item = (f32, u32)> + Clone {
        self.cut();
        self.entries.sort_unstable();
        self.entries.iter().map(|entry| (entry.key(), entry.number()))
    }
}

impl Hnsw {
    /// Finds the `k` nearest rows of `query` among those that `accept` lets pass, by comparing the codes of all.
    ///
    /// [`Found::exhausted`] says that codes tell too little here, and that a scan of the vectors is the better way;
    /// no neighbours are told then. What else holds for [`search`](Self::search) does here.
    ///
    /// # Panics
    ///
    /// When the query's vector or the source's have another length than the graph's.
    pub fn scan_codes<S: VectorSource + ?Sized>(
        &self,
        query: &Query<'_>,
        k: usize,
        source: &S,
        accept: impl Fn(RowId) -> bool,
        scratch: &mut SearchScratch,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Found {
        self.check_lengths(query, source);
        let guard = pin();
        let view = self.view(&guard);
        view.codec.probe(query.vector, &mut scratch.probe);
        let mut found = Found {
            neighbors: Vec::new(),
            visited: 0,
            expanded: 0,
            refined: 0,
            exhausted: true,
            stopped: false,
            damaged: false,
        };
        let (mut keep, mut limit) = (KEPT_PER_RESULT.saturating_mul(k).max(LEAST_KEPT), f32::INFINITY);
        for _ in 0..PASSES {
            scratch.shortlist.reset(keep, limit);
            let Some(compared) = collect(view, &accept, scratch, keep_going) else {
                found.stopped = true;
                break;
            };
            found.visited += compared;
            let SearchScratch { shortlist, refining, probe, .. } = scratch;
            let sorted = shortlist.sorted();
            let refined = refining.refine(view, query, probe, k, source, &accept, sorted, ERROR_MARGIN);
            found.refined += refined.compared;
            if shortlist.has_all_within(refined.reach) {
                found.neighbors = refined.neighbors;
                found.exhausted = false;
                break;
            }
            keep = compared / MOST_REFINED;
            if keep <= shortlist.entries.len() {
                break;
            }
            limit = refined.reach;
        }
        found.damaged = self.nodes.is_damaged();
        found
    }
}

/// Offers every node that is accepted and within the list's bound to the list. Returns how many were compared; `None`
/// when `keep_going` said no.
#[inline(never)]
fn collect(
    view: View<'_>,
    accept: impl Fn(RowId) -> bool,
    scratch: &mut SearchScratch,
    keep_going: &mut dyn FnMut() -> bool,
) -> Option<usize> {
    let SearchScratch { batch, probe, codes, shortlist, .. } = scratch;
    let count = view.nodes.count();
    batch.clear();
    batch.resize(2 * BATCH + STRETCH as usize, 0);
    // So many of `batch` are to be compared. A whole batch stays behind, so that what was asked for last is on its way.
    let (mut waiting, mut compared) = (0, 0);
    for first in (0..count).step_by(STRETCH as usize) {
        if first.is_multiple_of(NODES_PER_CHECK) && !keep_going() {
            return None;
        }
        let begun = waiting;
        let nodes = first..count.min(first.saturating_add(STRETCH));
        for (node, row) in nodes.clone().zip(view.nodes.rows_of(nodes, view.guard)) {
            // Written in any case and kept if it is accepted: whether it is cannot be predicted.
            batch[waiting] = node;
            waiting += usize::from(row.is_some_and(&accept));
        }
        batch[begun..waiting].iter().for_each(|&node| view.nodes.codes.prefetch_near(node));
        if waiting >= 2 * BATCH {
            compare(view, probe, codes, &batch[..BATCH], shortlist);
            batch.copy_within(BATCH..waiting, 0);
            waiting -= BATCH;
            compared += BATCH;
        }
    }
    for now in batch[..waiting].chunks(BATCH) {
        compare(view, probe, codes, now, shortlist);
    }
    Some(compared + waiting)
}

#[inline]
fn compare(
    view: View<'_>,
    probe: &mut Probe,
    codes: &mut CodeBatch,
    nodes: &[u32],
    shortlist: &mut Shortlist,
) {
    view.keys(probe, codes, nodes, shortlist.bound, |node, key| shortlist.push(Ranked::new(key, node)));
}
