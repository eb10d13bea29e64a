//! One graph of a collection: how far it has got, what is known of its recall, and how much of it is not on disk.

use std::sync::Arc;

use super::calibration::{Calibration, Measuring};
use super::fit::Fit;
use crate::index::RowId;
use crate::index::hnsw::Hnsw;
use crate::sync::{ArcSwapOption, AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering};

/// Bytes of rows that are not on disk for which a graph that still grows is saved, if it is not large.
const UNSAVED_BYTES: u64 = 32 << 20;

/// Of a large one that still grows, this part of its rows, as 1/n. All of it is written each time, so a graph that
/// grows from nothing is written about `n` times over.
const UNSAVED_WHILE_GROWING: u64 = 2;

/// Of one that does not grow at the moment.
const UNSAVED_AT_REST: u64 = 8;

/// Rows of which it is not worth the while: they are linked again in a moment.
const FEW_ROWS: u64 = 4096;

/// A graph and how far it has got.
#[derive(Debug)]
pub struct Graph {
    /// The graph.
    pub hnsw: Hnsw,
    /// Every live row below this number is in the graph; rows from here on are scanned.
    watermark: AtomicU32,
    /// What is known of its recall.
    pub(super) calibration: ArcSwapOption<Calibration>,
    /// The measuring of it that is under way.
    pub(super) measuring: Mutex<Option<Measuring>>,
    changes: Changes,
    pub(super) fit: Fit,
    /// Some rows from the watermark on may be linked: their batch was not finished.
    pub(super) has_part_of_batch: AtomicBool,
}

/// Rows that were linked into a graph and rows that were taken out of it, counted together.
#[derive(Debug, Default)]
struct Changes {
    /// Since it was begun or loaded.
    made: AtomicU64,
    /// Those that its checkpoint has.
    saved: AtomicU64,
    /// Those that there were when it was last tried.
    tried: AtomicU64,
}

impl Graph {
    /// One that has every live row below `watermark`, and all of it on disk unless changes are noted.
    pub(super) fn new(hnsw: Hnsw, watermark: RowId) -> Self {
        Self {
            hnsw,
            watermark: AtomicU32::new(watermark.0),
            calibration: ArcSwapOption::empty(),
            measuring: Mutex::default(),
            changes: Changes::default(),
            fit: Fit::default(),
            has_part_of_batch: AtomicBool::new(false),
        }
    }

    /// Whether it is the one in this place.
    pub(super) fn is_in(self: &Arc<Self>, place: &ArcSwapOption<Graph>) -> bool {
        place.load().as_ref().is_some_and(|there| Arc::ptr_eq(there, self))
    }

    /// Every live row below this number is in the graph.
    #[must_use]
    pub fn watermark(&self) -> RowId {
        RowId(self.watermark.load(Ordering::Acquire))
    }

    pub(super) fn set_watermark(&self, watermark: RowId) {
        self.watermark.store(watermark.0, Ordering::Release);
    }

    /// Notes that `rows` were linked or taken out.
    pub(super) fn note_changes(&self, rows: usize) {
        self.changes.made.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// How many changes there have been.
    pub(super) fn changes(&self) -> u64 {
        self.changes.made.load(Ordering::Relaxed)
    }

    /// Notes that a checkpoint has the first `changes`.
    pub(super) fn note_saved(&self, changes: u64) {
        self.changes.saved.fetch_max(changes, Ordering::Relaxed);
        self.note_tried(changes);
    }

    /// Notes that saving the first `changes` was tried: the next try waits for more.
    pub(super) fn note_tried(&self, changes: u64) {
        self.changes.tried.fetch_max(changes, Ordering::Relaxed);
    }

    /// Whether the checkpoint that it was loaded from or last saved to has all of it.
    pub(super) fn is_saved(&self) -> bool {
        self.changes() == self.changes.saved.load(Ordering::Relaxed)
    }

    /// Whether so much of it would have to be built again after a crash that it is worth being saved now.
    /// `is_growing` says that rows wait to be linked.
    pub(super) fn wants_save(&self, is_growing: bool) -> bool {
        let unsaved = self.changes().saturating_sub(self.changes.tried.load(Ordering::Relaxed));
        let rows = self.hnsw.len() as u64;
        if is_growing {
            let bytes = unsaved.saturating_mul(self.hnsw.node_bytes() as u64);
            bytes >= UNSAVED_BYTES && unsaved >= rows / UNSAVED_WHILE_GROWING
        } else {
            unsaved >= FEW_ROWS.max(rows / UNSAVED_AT_REST)
        }
    }
}
