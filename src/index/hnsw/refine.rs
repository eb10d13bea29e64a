//! The last step of every search: what was found by codes is compared by the vectors themselves, nearest first, until
//! what follows is too far even if its code erred by several times what those before it did.
//!
//! Where codes have several centers they err by more or less, as query and row are far from the center or near: errors are
//! then counted in units of what is to be expected, and what follows is judged one by one.

use super::nodes::NodeId;
use super::search::View;
use crate::index::codec::Probe;
use crate::index::flat::MAX_TIES;
use crate::index::ranked::{Nearest, Ranked};
use crate::index::{Neighbor, Query, RowId, VectorSource};

/// Candidates that are compared by their vectors before the error of their codes is judged.
const LEAST_REFINED: usize = 8;
/// Candidates whose vectors are asked for before they are compared.
const AHEAD: usize = 6;

/// Memory for it.
#[derive(Debug, Default)]
pub(super) struct Refining {
    nearest: Nearest,
    ranked: Vec<Ranked>,
    decode: Vec<f32>,
}

/// What the vectors said of candidates.
pub(super) struct Refined {
    /// The `k` nearest and those that tie with the last, ordered by key, then row.
    pub(super) neighbors: Vec<Neighbor>,
    /// Candidates whose vectors were compared.
    pub(super) compared: usize,
    /// Candidates that are refused or gone.
    pub(super) refused: usize,
    /// What is farther than this by its code is not among the nearest; infinite while too few were compared.
    pub(super) reach: f32,
}

impl Refining {
    /// Compares `candidates`, codec keys and nodes with the nearest first. `margin` is how many times the root mean
    /// square of the errors so far a code may have erred.
    #[inline(never)]
    #[expect(clippy::too_many_arguments, reason = "what a search is, whom it asks, and what it found")]
    pub(super) fn refine<S: VectorSource + ?Sized>(
        &mut self,
        view: View<'_>,
        query: &Query<'_>,
        probe: &mut Probe,
        k: usize,
        source: &S,
        accept: impl Fn(RowId) -> bool,
        candidates: impl Iterator<Item = (f32, u32)> + Clone,
        margin: f32,
    ) -> Refined {
        let Refining { nearest, ranked, decode } = self;
        let row = |node: u32| view.nodes.row(NodeId(node), view.guard);
        decode.resize(source.dim(), 0.0);
        nearest.reset(k, MAX_TIES);
        let mut ahead = candidates.clone().filter_map(|(_, node)| row(node));
        let mut farther = ahead.clone();
        farther.by_ref().take(2 * AHEAD).for_each(|row| source.announce(row));
        ahead.by_ref().take(AHEAD).for_each(|row| source.prefetch(row));
        let several = view.codec.has_several_centers();
        let (mut squares, mut compared, mut refused) = (0.0f32, 0usize, 0usize);
        let (mut bound, mut slack, mut most) = (f32::INFINITY, 0.0f32, 1.0f32);
        for (estimate, node) in candidates {
            let mut unit = 1.0;
            if several && let Some(code) = view.nodes.codes.get(node, view.guard) {
                unit = view.codec.expected_error(probe, code.head);
                most = if compared == 0 { unit } else { most.max(unit) };
            }
            if estimate > bound + slack * unit {
                if several {
                    continue;
                }
                break;
            }
            if let Some(row) = farther.next() {
                source.announce(row);
            }
            if let Some(row) = ahead.next() {
                source.prefetch(row);
            }
            let accepted = row(node).filter(|&row| accept(row));
            let Some((row, key)) = accepted.and_then(|row| Some((row, query.key(source, row, decode)?)))
            else {
                refused += 1;
                continue;
            };
            let error = (view.codec.key_from_metric(key) - estimate) / unit;
            if error.is_finite() {
                squares += error * error;
            }
            compared += 1;
            nearest.push(Ranked::new(key, row.0));
            if compared >= LEAST_REFINED && nearest.is_full() {
                bound = view.codec.key_from_metric(nearest.bound());
                slack = margin * (squares / compared as f32).sqrt();
            }
        }
        ranked.clear();
        nearest.drain_into(ranked);
        if let Some(&last) = k.checked_sub(1).and_then(|last| ranked.get(last)) {
            let ties = ranked[k..].iter().take_while(|entry| entry.key() == last.key()).count();
            ranked.truncate(k + ties);
        }
        let neighbors = ranked.iter().map(|entry| Neighbor { row: RowId(entry.number()), key: entry.key() });
        Refined { neighbors: neighbors.collect(), compared, refused, reach: bound + slack * most }
    }
}
