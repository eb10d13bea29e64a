//! A collection's graph on disk: saved as it grows, and loaded when the store is opened.
//!
//! It is derived, so a save may fail and nothing is lost but time. What it spares is building the graph anew: after a
//! crash the rows that came since the last save are linked, and no others. A save also turns the graph's memory into
//! pages of its file.

use std::path::Path;

use super::{Calibration, Collection, Coverage, Graph};
use crate::index::RowId;
use crate::index::hnsw::Hnsw;
use crate::{Error, Result};

/// The collection that a file in the store's folder for checkpoints is about, whole or half made. `None` for a name that
/// nothing here gives.
#[must_use]
pub fn checkpoint_root(name: &str) -> Option<u64> {
    let (number, what) = name.split_once('.')?;
    let is_ours = matches!(what.strip_suffix(".tmp").unwrap_or(what), "hnsw" | "recall");
    let root = u64::from_str_radix(number, 16).ok().filter(|_| is_ours)?;
    (format!("{root:016x}") == number).then_some(root)
}

impl Collection {
    /// Path of the graph's checkpoint in the store's folder for them.
    #[must_use]
    pub fn checkpoint_name(&self) -> String {
        format!("{:016x}.hnsw", self.root)
    }

    /// Path of what is known of the graph's recall, beside it.
    pub(super) fn calibration_name(&self) -> String {
        format!("{:016x}.recall", self.root)
    }

    /// Bytes that the checkpoint should be written for now, at least about: so much of the graph would have to be built
    /// again after a crash that it is worth it. `is_growing` says that rows wait to be linked.
    #[must_use]
    pub fn wants_save(&self, is_growing: bool) -> Option<u64> {
        let graph = self.usable_graph().filter(|graph| !self.is_empty() && graph.wants_save(is_growing))?;
        Some((graph.hnsw.len() as u64).saturating_mul(graph.hnsw.node_bytes() as u64))
    }

    /// Has [`wants_save`](Self::wants_save) wait until there is more to save.
    pub fn put_save_off(&self) {
        if let Some(graph) = self.graph() {
            graph.note_tried(graph.changes());
        }
    }

    /// Writes the graph to a checkpoint, unless that has all of it, and what is known of its recall beside it; without a
    /// graph, or without a vector, an earlier checkpoint goes.
    ///
    /// # Errors
    ///
    /// I/O errors. The graph stays as it is.
    pub fn save_graph(&self, dir: &Path) -> Result<()> {
        let _whole_batches = self.linking.lock();
        // Before the graph: a stamp that is too old has the checkpoint passed over, one that is too new would not.
        let stamp = self.stamp();
        let Some(graph) = self.graph().filter(|_| !self.is_empty()) else {
            return self.remove_checkpoint(dir);
        };
        let path = dir.join(self.checkpoint_name());
        if !graph.is_saved() || !path.exists() {
            let changes = graph.changes();
            // Of another graph, perhaps: a crash must not leave it beside this one.
            remove(&dir.join(self.calibration_name()))?;
            graph.hnsw.save(&path, &stamp)?;
            graph.note_saved(changes);
        }
        match &*graph.calibration.load() {
            Some(known) => known.save(&dir.join(self.calibration_name()), stamp),
            None => remove(&dir.join(self.calibration_name())),
        }
    }

    /// Removes the graph's checkpoint and what lies beside it, if they are there.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn remove_checkpoint(&self, dir: &Path) -> Result<()> {
        remove(&dir.join(self.calibration_name()))?;
        remove(&dir.join(self.checkpoint_name()))
    }

    /// Loads the graph's checkpoint, when it is this collection's. Called once, after
    /// [`restore`](Self::restore). A graph that was built with other parameters serves until its successor is built.
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
        let metric = self.schema().metric;
        let Some(hnsw) = Hnsw::load(&path, &self.stamp(), metric, dim as usize)? else {
            return Ok(());
        };
        let rows = hnsw.rows();
        let watermark = RowId(rows.iter().map(|row| row.0 + 1).max().unwrap_or(0));
        let missing = Coverage::new(&rows, &self.reader(), watermark).missing;
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
        writer.next_row = writer.next_row.max(watermark.0);
        let graph = Graph::new(hnsw, watermark);
        let known = Calibration::load(&dir.join(self.calibration_name()), self.stamp());
        graph.calibration.store(known.map(Into::into));
        self.graph.store(Some(graph.into()));
        Ok(())
    }

    /// What a checkpoint belongs to.
    fn stamp(&self) -> [u8; 32] {
        let mut stamp = [0; 32];
        stamp[..8].copy_from_slice(&self.root.to_le_bytes());
        stamp[8..16].copy_from_slice(&self.numbering().to_le_bytes());
        stamp
    }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
