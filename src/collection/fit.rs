//! Whether the codes of a graph fit the rows that come.
//!
//! A code is relative to a center, and centers are chosen when a graph is begun ([`index::centers`](crate::index::centers())).
//! Rows of a kind that was not there then, of another topic, may lie so far from every center that their codes do not tell
//! them apart: a walk finds few of them, and the recall that was measured before does not know it. So rows are looked at
//! before they are linked. A *stray* is farther from its center than any row was that the centers were chosen for, by far.
//! Once there are too many the graph is *outgrown*: it takes no more rows, searches compare those that wait, and another
//! graph is built, with centers for all.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::Graph;
use super::table::Reader;
use crate::index::RowId;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Rows that say how far from their centers those of a graph are, at most.
const SAMPLE: usize = 4096;

/// Rows of a batch that are looked at, at least, if it has as many.
const LOOKED_AT: usize = 256;

/// How many times the greatest squared distance of the sample a stray's is. Of rows of one kind, however long the tails
/// of their distances, no more than one in `2 * SAMPLE` is expected beyond.
const FAR: f32 = 2.0;

/// Part of the rows, as 1/n, that may be strays, and how many may be whatever their part.
const STRAYS: u64 = 64;
const FEW_STRAYS: u64 = 64;

/// Part of the rows, as 1/n, that wait before an outgrown graph is followed by another while more keep coming. Building a
/// graph for each kind of rows in a long load would take the square of their number.
const WAITING: u64 = 8;

/// After this long without any more, it is followed by another anyway.
const QUIET: Duration = Duration::from_secs(1);

/// What is known of how a graph's rows and its centers fit.
#[derive(Debug, Default)]
pub(super) struct Fit {
    /// Greatest squared distance from its center that a stray does not have. Made when the first rows are looked at.
    reach: OnceLock<f32>,
    /// Strays that were linked, and of the batch that was not.
    strays: AtomicU64,
    /// Number of the last row that waited, and since when it is the last.
    last: Mutex<Option<(RowId, Instant)>>,
}

impl Graph {
    /// Looks at `rows` that are to be linked.
    pub(super) fn look_at(&self, rows: &[RowId], reader: &Reader) {
        let mut scratch = Vec::new();
        let mut residual = |row| self.hnsw.residual(row, reader, &mut scratch).unwrap_or(0.0);
        let reach = self.fit.reach.get_or_init(|| {
            let end = if self.watermark() > RowId(0) { self.watermark() } else { reader.end() };
            let own: Vec<RowId> = reader.live_from(RowId(0)).take_while(|&row| row < end).collect();
            let sample = own.iter().step_by(own.len().div_ceil(SAMPLE).max(1));
            FAR * sample.map(|&row| residual(row)).fold(0.0, f32::max)
        });
        let step = (rows.len() / LOOKED_AT).max(1);
        let strays = rows.iter().step_by(step).filter(|&&row| residual(row) > *reach).count();
        self.fit.strays.fetch_add((strays * step) as u64, Ordering::Relaxed);
    }

    /// Whether it has more strays than it should.
    pub(super) fn is_outgrown(&self) -> bool {
        let rows = self.hnsw.len() as u64;
        self.fit.strays.load(Ordering::Relaxed) > FEW_STRAYS.max(rows / STRAYS)
    }

    /// Whether to wait for more of the `waiting` rows, the last of them below `end`, before another graph is begun.
    pub(super) fn waits_for_more(&self, waiting: u64, end: RowId) -> bool {
        let mut last = self.fit.last.lock();
        let since = match *last {
            Some((known, since)) if known == end => since,
            _ => last.insert((end, Instant::now())).1,
        };
        waiting < self.hnsw.len() as u64 / WAITING && since.elapsed() < QUIET
    }
}
