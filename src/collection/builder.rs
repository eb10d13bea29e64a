//! The graph of a collection: begun, grown, built anew, loaded. Run by the volume's indexer, never by a search.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::table::Reader;
use super::{Collection, Graph, REBUILD_SHARE};
use crate::Result;
use crate::index::RowId;
use crate::index::hnsw::{Hnsw, Params};

/// Rows that are linked before the watermark moves.
const BATCH: u32 = 2048;

/// Seed of the level generator: a graph built by one thread comes out the same.
const SEED: u64 = 0x5eed_0f7e_7f50;

/// Everything a search needs, taken so that the parts fit each other.
#[derive(Debug)]
pub struct Snapshot {
    /// The rows.
    pub reader: Reader,
    /// The graph, when there is one.
    pub graph: Option<Arc<Graph>>,
    /// The graph has every row of the reader below this; the others are to be scanned.
    pub watermark: RowId,
}

impl Collection {
    /// The collection as it is now, for a search.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        loop {
            let numbering = self.numbering();
            let graph = self.graph();
            // Before the rows: what the graph has by now, the reader has too.
            let watermark = graph.as_ref().map_or(RowId(0), |graph| graph.watermark());
            let reader = self.reader();
            // An emptied collection that numbers from 0 again would make old graph and new rows meet.
            if self.numbering() == numbering {
                return Snapshot { reader, graph, watermark };
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
        Params {
            m: schema.m,
            ef_construction: schema.ef_construction,
            seed: SEED,
            quant: crate::index::Quant::Sq8,
        }
    }

    /// Loads the graph's checkpoint, when it is this collection's. Called once, after
    /// [`restore`](Self::restore).
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`](crate::Error::Corrupt) when the checkpoint is damaged, I/O errors. The collection is then without a graph.
    pub fn load_graph(&self, dir: &Path) -> Result<()> {
        let Some(dim) = self.dim() else { return Ok(()) };
        let path = dir.join(self.checkpoint_name());
        let schema = self.schema();
        let Some(hnsw) = Hnsw::load(&path, &self.stamp(), schema.metric, dim as usize)? else {
            return Ok(());
        };
        if hnsw.params() != self.params() {
            return Ok(());
        }
        let watermark = hnsw.rows().map(|row| row.0 + 1).max().unwrap_or(0);
        let mut writer = self.writer.lock();
        // A number that the graph knows is never given to another row.
        writer.next_row = writer.next_row.max(watermark);
        self.graph.store(Some(Arc::new(Graph { hnsw, watermark: AtomicU32::new(watermark) })));
        Ok(())
    }

    /// Does a piece of the graph's work: drops dead rows, links a batch of new ones, or builds the graph anew
    /// when too many of its nodes are gone. Returns whether there was something to do.
    ///
    /// # Errors
    ///
    /// Those of [`Hnsw::new`].
    pub fn index_step(&self, threads: usize, stop: &AtomicBool) -> Result<bool> {
        let swept = self.unswept.swap(0, Ordering::Relaxed) > 0 && self.table.sweep() > 0;
        if self.len() < u64::from(self.schema().exact_below) {
            return Ok(swept);
        }
        let numbering = self.numbering();
        let Some(graph) = self.graph() else {
            let Some(graph) = self.empty_graph()? else { return Ok(swept) };
            return Ok(self.install(graph, numbering) || swept);
        };
        let vanished = self.vanished(&graph);
        if vanished * REBUILD_SHARE > graph.hnsw.len() {
            return self.rebuild(numbering, threads, stop);
        }
        Ok(self.grow(&graph, threads, stop) || swept)
    }

    fn empty_graph(&self) -> Result<Option<Graph>> {
        let Some(dim) = self.dim() else { return Ok(None) };
        let hnsw = Hnsw::new(self.schema().metric, dim as usize, self.params())?;
        Ok(Some(Graph { hnsw, watermark: AtomicU32::new(0) }))
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

    /// Nodes whose row is no longer live.
    fn vanished(&self, graph: &Graph) -> usize {
        let beyond = self.reader().count_live_from(graph.watermark());
        let live = usize::try_from(self.len().saturating_sub(beyond)).unwrap_or(usize::MAX);
        graph.hnsw.len().saturating_sub(live)
    }

    /// Rows below this number are published or abandoned, none is staged.
    fn settled_end(&self) -> u32 {
        let writer = self.writer.lock();
        writer.staged.first().copied().unwrap_or(writer.next_row)
    }

    /// Links the rows from the watermark on, one batch. Returns whether the watermark moved.
    fn grow(&self, graph: &Graph, threads: usize, stop: &AtomicBool) -> bool {
        let settled = self.settled_end();
        let reader = self.reader();
        let begin = graph.watermark().0;
        let end = settled.min(begin.saturating_add(BATCH));
        if begin >= end || stop.load(Ordering::Relaxed) {
            return false;
        }
        let rows: Vec<RowId> = (begin..end).map(RowId).filter(|&row| reader.row(row).is_some()).collect();
        // A batch is finished once begun: the rows of a graph are those below its watermark.
        link(&graph.hnsw, &rows, &reader, threads);
        graph.watermark.store(end, Ordering::Release);
        true
    }

    fn rebuild(&self, numbering: u64, threads: usize, stop: &AtomicBool) -> Result<bool> {
        let Some(graph) = self.empty_graph()? else { return Ok(false) };
        while self.grow(&graph, threads, stop) {}
        Ok(!stop.load(Ordering::Relaxed) && self.install(graph, numbering))
    }
}

fn link(hnsw: &Hnsw, rows: &[RowId], source: &Reader, threads: usize) {
    let next = AtomicU32::new(0);
    let work = || {
        while let Some(&row) = rows.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            hnsw.insert(row, source);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
}
