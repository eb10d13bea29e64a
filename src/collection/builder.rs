//! The graph of a collection: begun, grown, built anew, loaded. Run by the volume's indexer, never by a search.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::check::Coverage;
use super::table::Reader;
use super::{Calibration, Collection, Graph, REPAIR_SHARE};
use crate::index::hnsw::{Hnsw, Params};
use crate::index::{self, RowId};
use crate::{Error, Result};

/// Rows that are linked before the watermark moves.
const BATCH: u32 = 2048;

/// Seed of the graphs of collections: one that is built by one thread comes out the same each time.
pub const GRAPH_SEED: u64 = 0x5eed_0f7e_7f50;

/// Everything a search needs, taken so that the parts fit each other.
#[derive(Debug)]
pub struct Snapshot {
    /// The rows.
    pub reader: Reader,
    /// The graph, when there is one.
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
                return Snapshot { reader, graph, watermark, _era: era };
            }
        }
    }

    pub(super) fn stamp(&self) -> [u8; 32] {
        let mut stamp = [0; 32];
        stamp[..8].copy_from_slice(&self.root.to_le_bytes());
        stamp[8..16].copy_from_slice(&self.numbering().to_le_bytes());
        stamp
    }

    fn params(&self) -> Params {
        let schema = self.schema();
        Params { m: schema.m, ef_construction: schema.ef_construction, seed: GRAPH_SEED, quant: schema.quant }
    }

    /// Loads the graph's checkpoint, when it is this collection's. Called once, after
    /// [`restore`](Self::restore).
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the checkpoint is damaged or lacks rows that it should have, I/O errors. The collection
    /// is then without a graph.
    pub fn load_graph(&self, dir: &Path) -> Result<()> {
        let loaded = self.load(dir);
        if let Err(damage @ Error::Corrupt { .. }) = &loaded {
            *self.damage.lock() = Some(damage.to_string());
        }
        loaded
    }

    fn load(&self, dir: &Path) -> Result<()> {
        let Some(dim) = self.dim() else { return Ok(()) };
        let path = dir.join(self.checkpoint_name());
        let schema = self.schema();
        let Some(hnsw) = Hnsw::load(&path, &self.stamp(), schema.metric, dim as usize)? else {
            return Ok(());
        };
        if hnsw.params() != self.params() {
            return Ok(());
        }
        let rows = hnsw.rows();
        let watermark = rows.iter().map(|row| row.0 + 1).max().unwrap_or(0);
        let missing = Coverage::new(&rows, &self.reader(), RowId(watermark)).missing;
        if hnsw.is_damaged() {
            return Err(hnsw.damage());
        }
        // A power cut may have taken the removal of a row back that the graph was saved without.
        if let Some(first) = missing.first() {
            let what = format!("{} live rows are missing, the first is {}", missing.len(), first.0);
            return Err(Error::Corrupt { file: path.display().to_string(), offset: 0, what });
        }
        let mut writer = self.writer.lock();
        // A number that the graph knows is never given to another row.
        writer.next_row = writer.next_row.max(watermark);
        let graph = Graph::new(hnsw, watermark);
        let known = Calibration::load(&dir.join(self.calibration_name()), self.stamp());
        graph.calibration.store(known.map(Arc::new));
        self.graph.store(Some(Arc::new(graph)));
        Ok(())
    }

    /// Does a piece of the graph's work: drops dead rows, takes nodes out of the graph when too many are gone, links a
    /// batch of new ones. A graph that is damaged is given up and begun anew. Returns whether there was something to do.
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
            return Ok(self.install(graph, numbering) || swept);
        };
        if graph.hnsw.is_damaged() {
            return Ok(self.give_up(&graph, graph.hnsw.damage().to_string()));
        }
        Ok(self.repair(&graph, threads) || self.grow(&graph, threads, stop)? || swept)
    }

    fn empty_graph(&self) -> Result<Option<Graph>> {
        let Some(dim) = self.dim() else { return Ok(None) };
        let reader = self.reader();
        let metric = self.schema().metric;
        let params = self.params();
        let centers = index::centers(metric, params.quant, &reader, reader.live_from(RowId(0)));
        let hnsw = Hnsw::with_centers(metric, dim as usize, params, centers)?;
        Ok(Some(Graph::new(hnsw, 0)))
    }

    /// Puts a graph in place unless rows have been numbered anew since it was begun.
    fn install(&self, graph: Graph, numbering: u64) -> bool {
        let _writer = self.writer.lock();
        let fits = self.numbering() == numbering;
        if fits {
            self.graph.store(Some(Arc::new(graph)));
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
            let is_live = |row| repair.reader.row(row).is_some();
            return graph.hnsw.repair(is_live, &repair.reader, threads) > 0;
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

    /// Links the rows from the watermark on, one batch. Returns whether the watermark moved.
    fn grow(&self, graph: &Graph, threads: usize, stop: &AtomicBool) -> Result<bool> {
        let settled = self.settled_end();
        let reader = self.reader();
        let begin = graph.watermark().0;
        let end = settled.min(begin.saturating_add(BATCH));
        if begin >= settled {
            *self.damage.lock() = None;
        }
        if begin >= end || stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let rows: Vec<RowId> = (begin..end).map(RowId).filter(|&row| reader.row(row).is_some()).collect();
        let _whole_batch = self.linking.lock();
        // A batch is finished once begun: the rows of a graph are those below its watermark.
        graph.hnsw.insert_all(&rows, &reader, threads, || ())?;
        graph.watermark.store(end, Ordering::Release);
        Ok(true)
    }
}
