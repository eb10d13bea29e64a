//! The graph of a collection: begun, grown, repaired, and followed by another. Run by the volume's indexer, never by a
//! search.
//!
//! A graph that is to be built anew, because it was asked for or because the schema wants another, serves until its
//! successor has as many rows; only a damaged one goes at once. Rows that come meanwhile are linked into both.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::table::Reader;
use super::{Collection, Graph};
use crate::Result;
use crate::index::hnsw::{Hnsw, Params};
use crate::index::{self, RowId, VectorSource as _};
use crate::sync::ArcSwapOption;

/// Share of nodes in a graph whose rows are gone, as 1/n, above which they are taken out.
const REPAIR_SHARE: usize = 20;

/// Rows that are linked before the watermark moves.
const BATCH: u32 = 2048;

/// Seed of the graphs of collections: one that is built by one thread comes out the same each time.
pub const GRAPH_SEED: u64 = 0x5eed_0f7e_7f50;

/// Everything a search needs, taken so that the parts fit each other.
#[derive(Debug)]
pub struct Snapshot {
    /// The rows.
    pub reader: Reader,
    /// The graph, when there is one for vectors of the reader's dimension.
    pub graph: Option<Arc<Graph>>,
    /// The graph has every row of the reader below this; the others are to be scanned.
    pub watermark: RowId,
    /// As long as it lives, no row is taken out of the graph that died after it was taken.
    _era: Arc<()>,
}

/// A repair that waits for searches to end: see [`Collection::index_step`].
#[derive(Debug)]
pub(super) struct PendingRepair {
    graph: Weak<Graph>,
    reader: Reader,
    era: Arc<()>,
}

impl Collection {
    /// The collection as it is now, for a search.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let era = self.era.load_full();
        loop {
            let numbering = self.numbering();
            let graph = self.graph();
            // Before the rows: what the graph has by now, the reader has too.
            let watermark = graph.as_ref().map_or(RowId(0), |graph| graph.watermark());
            let reader = self.reader();
            // An emptied collection that numbers from 0 again would make old graph and new rows meet.
            if self.numbering() == numbering {
                // The only file may have been replaced by one of another dimension since.
                let graph = graph.filter(|graph| graph.hnsw.dim() == reader.dim());
                return Snapshot { reader, graph, watermark, _era: era };
            }
        }
    }

    fn params(&self) -> Params {
        let schema = self.schema();
        Params { m: schema.m, ef_construction: schema.ef_construction, seed: GRAPH_SEED, quant: schema.quant }
    }

    /// Does a piece of the graph's work: drops dead rows, takes nodes out of the graph when too many are gone, links a
    /// batch of new ones, or of all into its successor. A graph that is damaged is given up and begun anew. Returns whether
    /// there was something to do.
    ///
    /// # Errors
    ///
    /// Those of [`Hnsw::new`].
    pub fn index_step(&self, threads: usize, stop: &AtomicBool) -> Result<bool> {
        let swept = self.unswept.swap(0, Ordering::Relaxed) > 0 && self.table.sweep() > 0;
        if !self.wants_graph() {
            return Ok(swept);
        }
        let numbering = self.numbering();
        let Some(graph) = self.graph() else {
            let Some(graph) = self.empty_graph()? else { return Ok(swept) };
            return Ok(self.install(&self.graph, graph, numbering) || swept);
        };
        if graph.hnsw.is_damaged() {
            return Ok(self.give_up(&graph, graph.hnsw.damage().to_string()));
        }
        Ok(self.repair(&graph, threads)
            || self.grow(&graph, true, (threads, stop))?
            || self.succeed(&graph, threads, stop)?
            || swept)
    }

    /// Has another graph built, which takes the place of the one that is there once it has as many rows. Returns whether
    /// there is one.
    pub fn rebuild(&self) -> bool {
        let has_one = self.graph().is_some();
        self.wants_another.store(has_one, Ordering::Release);
        has_one
    }

    /// Whether `graph` is to be followed by another.
    pub(super) fn wants_successor(&self, graph: &Graph) -> bool {
        self.is_another_asked_for(graph) || graph.is_outgrown()
    }

    fn is_another_asked_for(&self, graph: &Graph) -> bool {
        self.wants_another.load(Ordering::Acquire) || graph.hnsw.params() != self.params()
    }

    /// Whether the graph that follows `graph` is to be begun now.
    fn is_time_for_successor(&self, graph: &Graph) -> bool {
        let waiting = || self.reader().count_live_from(graph.watermark());
        self.is_another_asked_for(graph) || !graph.waits_for_more(waiting(), RowId(self.settled_end()))
    }

    /// Does a piece of the work on the graph that is to follow `graph`, which has every row. Returns whether there was
    /// something to do.
    fn succeed(&self, graph: &Arc<Graph>, threads: usize, stop: &AtomicBool) -> Result<bool> {
        if !self.wants_successor(graph) {
            self.successor.store(None);
            return Ok(false);
        }
        let numbering = self.numbering();
        let successor = self.successor.load_full().filter(|next| next.hnsw.params() == self.params());
        let Some(successor) = successor else {
            if !self.is_time_for_successor(graph) {
                return Ok(false);
            }
            let Some(successor) = self.empty_graph()? else { return Ok(false) };
            return Ok(self.install(&self.successor, successor, numbering));
        };
        // Rows of yet another kind are for the one that follows.
        if self.grow(&successor, false, (threads, stop))? {
            return Ok(true);
        }
        let _writer = self.writer.lock();
        let is_grown = successor.watermark() >= graph.watermark();
        let follows = is_grown && graph.is_in(&self.graph) && successor.is_in(&self.successor);
        if follows {
            self.wants_another.store(false, Ordering::Release);
            self.graph.store(self.successor.swap(None));
        }
        Ok(follows)
    }

    /// Searches scan from here on, until another graph has been begun.
    pub(super) fn forget_graphs(&self) {
        self.graph.store(None);
        self.successor.store(None);
        self.wants_another.store(false, Ordering::Release);
    }

    pub(super) fn empty_graph(&self) -> Result<Option<Graph>> {
        let Some(dim) = self.dim() else { return Ok(None) };
        let reader = self.reader();
        let metric = self.schema().metric;
        let params = self.params();
        let centers = index::centers(metric, params.quant, &reader, reader.live_from(RowId(0)));
        let hnsw = Hnsw::with_centers(metric, dim as usize, params, centers)?;
        Ok(Some(Graph::new(hnsw, RowId(0))))
    }

    /// Puts a graph into its `place` unless rows have been numbered anew since it was begun, or are of another dimension or
    /// metric.
    pub(super) fn install(&self, place: &ArcSwapOption<Graph>, graph: Graph, numbering: u64) -> bool {
        let _writer = self.writer.lock();
        let fits = self.numbering() == numbering
            && self.table.dim() as usize == graph.hnsw.dim()
            && self.schema().metric == graph.hnsw.metric();
        if fits {
            place.store(Some(Arc::new(graph)));
        }
        fits
    }

    /// Takes nodes out of the graph when too many of their rows are gone. Rows that were there when a search began
    /// stay until it has ended: so the first step only remembers which rows are live, and a later one, when all
    /// searches of before are over, acts. Returns whether anything was done.
    fn repair(&self, graph: &Arc<Graph>, threads: usize) -> bool {
        let mut pending = self.pending_repair.lock();
        if let Some(repair) = pending.take() {
            if !Weak::ptr_eq(&repair.graph, &Arc::downgrade(graph)) {
                return false;
            }
            if Arc::strong_count(&repair.era) > 1 {
                *pending = Some(repair);
                return false;
            }
            if repair.reader.dim() != graph.hnsw.dim() {
                return false;
            }
            let is_live = |row| repair.reader.row(row).is_some();
            let removed = graph.hnsw.repair(is_live, &repair.reader, threads);
            graph.note_changes(removed);
            return removed > 0;
        }
        let beyond = self.reader().count_live_from(graph.watermark());
        let live = usize::try_from(self.len().saturating_sub(beyond)).unwrap_or(usize::MAX);
        let gone = graph.hnsw.len().saturating_sub(live);
        if gone * REPAIR_SHARE <= graph.hnsw.len() {
            return false;
        }
        let reader = self.reader();
        let era = self.era.swap(Arc::default());
        *pending = Some(PendingRepair { graph: Arc::downgrade(graph), reader, era });
        true
    }

    /// Rows below this number are published or abandoned, none is staged.
    fn settled_end(&self) -> u32 {
        let writer = self.writer.lock();
        writer.staged.first().copied().unwrap_or(writer.next_row)
    }

    /// Links the rows from the watermark on, one batch, unless `fitting` ones are wanted and these are not. Returns
    /// whether the watermark moved.
    pub(super) fn grow(
        &self,
        graph: &Graph,
        fitting: bool,
        (threads, stop): (usize, &AtomicBool),
    ) -> Result<bool> {
        let settled = self.settled_end();
        let reader = self.reader();
        let begin = graph.watermark().0;
        let end = settled.min(begin.saturating_add(BATCH));
        if begin >= settled {
            *self.damage.lock() = None;
        }
        let outgrown = || fitting && graph.is_outgrown();
        // Of rows of another dimension it is not the graph any more.
        let is_of_rows = reader.dim() == graph.hnsw.dim();
        if begin >= end || stop.load(Ordering::Relaxed) || !is_of_rows || outgrown() {
            return Ok(false);
        }
        let mut rows: Vec<RowId> = (begin..end).map(RowId).filter(|&row| reader.row(row).is_some()).collect();
        graph.look_at(&rows, &reader);
        if outgrown() {
            return Ok(false);
        }
        let _whole_batch = self.linking.lock();
        // A batch is finished once begun, unless memory is short: the rows of a graph are those below its watermark.
        if graph.has_part_of_batch.swap(true, Ordering::Relaxed) {
            let linked: BTreeSet<RowId> = graph.hnsw.rows().into_iter().collect();
            rows.retain(|row| !linked.contains(row));
        }
        graph.hnsw.insert_all(&rows, &reader, threads, || ())?;
        graph.has_part_of_batch.store(false, Ordering::Relaxed);
        graph.note_changes(rows.len());
        graph.set_watermark(RowId(end));
        Ok(true)
    }
}
