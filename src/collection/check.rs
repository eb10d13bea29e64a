//! How a collection's graph is: what it has and lacks, whether it is sound, and giving it up.

use std::fmt;
use std::sync::Arc;

use super::{Collection, Graph, Reader, Snapshot};
use crate::index::RowId;
use crate::index::hnsw::Report;
use crate::sync::Ordering;

/// What searches of a collection do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// They compare every row: the collection is too small for a graph.
    Exact,
    /// A graph is wanted and does not have every row yet; what it lacks is compared.
    Building,
    /// They go through the graph, while another is built that is to take its place.
    Rebuilding,
    /// They go through the graph.
    Ready,
}

impl Phase {
    /// Its name for people and programs: `exact`, `building`, `rebuilding` or `ready`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Exact => "exact",
            Phase::Building => "building",
            Phase::Rebuilding => "rebuilding",
            Phase::Ready => "ready",
        }
    }
}

/// What a collection's graph has and lacks, found without looking into it.
#[derive(Debug)]
pub struct IndexState {
    /// What searches do.
    pub phase: Phase,
    /// Searchable rows.
    pub vectors: u64,
    /// Rows that the graph does not have that is wanted: see [`Collection::pending`].
    pub pending: u64,
    /// Rows in the graph that no search may return any more, at least about: they wait for a repair.
    pub gone: u64,
    /// Why a graph is not used, or why the one before was given up, until another has its place.
    pub damage: Option<String>,
    /// The graph, when there is one.
    pub graph: Option<Arc<Graph>>,
}

/// What [`Collection::verify`] found.
#[derive(Debug)]
pub struct Check {
    /// What the graph's own check says; `None` without a graph.
    pub report: Option<Report>,
    /// Which rows the graph has, beside those that it should have.
    pub coverage: Coverage,
    /// Damage that was known before, of a graph that was given up and has no successor yet.
    pub known_damage: Option<String>,
}

/// The rows of a graph beside those of its collection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Live rows below the watermark that the graph lacks: no search by graph can find them.
    pub missing: Vec<RowId>,
    /// Rows that the graph has more than once.
    pub repeated: Vec<RowId>,
    /// Number of rows in the graph that are gone: they wait for a repair.
    pub gone: u64,
}

impl Coverage {
    /// Compares the rows of a graph with the live ones below `watermark`.
    pub(super) fn new(in_graph: &[RowId], reader: &Reader, watermark: RowId) -> Self {
        let mut coverage = Coverage::default();
        let end = watermark.min(reader.end());
        let mut seen = vec![false; end.0 as usize];
        // Rows from the watermark on are being linked at this moment.
        for &row in in_graph.iter().filter(|&&row| row < watermark) {
            let again = seen.get_mut(row.0 as usize).is_some_and(|seen| std::mem::replace(seen, true));
            if again {
                coverage.repeated.push(row);
            } else {
                coverage.gone += u64::from(reader.row(row).is_none());
            }
        }
        let below = (0..end.0).map(RowId).zip(&seen);
        let missing = below.filter(|&(row, &seen)| !seen && reader.row(row).is_some());
        coverage.missing = missing.map(|(row, _)| row).collect();
        coverage
    }
}

impl Check {
    /// Whether every live row is found: by the graph, or because all rows are compared.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.known_damage.is_none()
            && self.coverage.missing.is_empty()
            && self.coverage.repeated.is_empty()
            && self.report.as_ref().is_none_or(Report::is_sound)
    }
}

/// What is wrong, in one line; nothing when it is sound.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report.as_ref();
        let count = |of: fn(&Report) -> usize| report.map_or(0, of);
        let counts = [
            (self.coverage.missing.len(), "rows are missing"),
            (self.coverage.repeated.len(), "rows are there twice"),
            (count(|report| report.unreachable.len()), "rows are unreachable"),
            (count(|report| report.dangling), "links lead nowhere"),
            (count(|report| report.orphans), "nodes have no parent"),
        ];
        let mut parts: Vec<String> = self.known_damage.iter().cloned().collect();
        parts.extend(report.and_then(|report| report.damage.as_ref()).map(ToString::to_string));
        parts.extend(counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
        f.write_str(&parts.join("; "))
    }
}

impl Collection {
    /// What the graph has and lacks. Reads the table of rows, not the graph.
    #[must_use]
    pub fn index_state(&self) -> IndexState {
        let snapshot = self.snapshot();
        let (vectors, pending) = (self.len(), self.pending());
        let lacks_rows = snapshot.graph.is_none() || snapshot.reader.count_live_from(snapshot.watermark) > 0;
        let phase = match pending {
            _ if !self.wants_graph() => Phase::Exact,
            0 => Phase::Ready,
            _ if lacks_rows => Phase::Building,
            _ => Phase::Rebuilding,
        };
        let gone = snapshot.graph.as_ref().map_or(0, |graph| {
            let watermark = u64::from(snapshot.watermark.0);
            let beyond = snapshot.reader.count_live_from(snapshot.watermark);
            let live = snapshot.reader.count_live_from(RowId(0)) - beyond;
            // Rows of a batch that is being linked count as nodes and lie above the watermark.
            (graph.hnsw.len() as u64).min(watermark).saturating_sub(live)
        });
        IndexState { phase, vectors, pending, gone, damage: self.damage(), graph: snapshot.graph }
    }

    /// Reads all of the graph, and checks that it is sound and has every row that it should have. A graph that is
    /// not sound is given up: searches compare every row until the indexer has built another.
    ///
    /// Rows are not linked meanwhile; searches go on. Takes about 0.03 s for 60,000 rows.
    #[must_use]
    pub fn verify(&self) -> Check {
        let known_damage = self.noted_damage();
        let Snapshot { reader, graph, watermark, .. } = &self.snapshot();
        let Some(graph) = graph else {
            return Check { report: None, coverage: Coverage::default(), known_damage };
        };
        let report = graph.hnsw.verify();
        let coverage = Coverage::new(&graph.hnsw.rows(), reader, *watermark);
        let check = Check { report: Some(report), coverage, known_damage: None };
        if !check.is_sound() {
            self.give_up(graph, check.to_string());
        }
        Check { known_damage, ..check }
    }

    /// Gives the graph and its successor up, because what was linked is not what the rows are: searches compare every row
    /// until the indexer has built another.
    pub fn abandon_graphs(&self) {
        let _writer = self.writer.lock();
        self.forget_graphs();
    }

    /// Whether damage was met in the graph that is in place.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.graph().is_some_and(|graph| graph.hnsw.is_damaged())
    }

    /// Why the graph is not used, or why the one before was given up.
    fn damage(&self) -> Option<String> {
        let damaged = self.graph().filter(|graph| graph.hnsw.is_damaged());
        damaged.map(|graph| graph.hnsw.damage().to_string()).or_else(|| self.noted_damage())
    }

    /// Damage of a graph that was given up, while no other has taken its place.
    fn noted_damage(&self) -> Option<String> {
        self.damage.lock().clone().filter(|_| self.pending() > 0)
    }

    /// Gives a damaged graph up, and keeps the reason for whoever asks.
    pub(super) fn give_up(&self, graph: &Arc<Graph>, why: String) -> bool {
        let dropped = self.drop_graph(graph);
        if dropped {
            tracing::warn!(root = self.root, why, "a damaged graph is given up and built anew");
            *self.damage.lock() = Some(why);
        }
        dropped
    }

    /// Gives a graph up, so that searches scan and the next step begins another, or goes on with its successor.
    fn drop_graph(&self, graph: &Arc<Graph>) -> bool {
        let _writer = self.writer.lock();
        let is_current = graph.is_in(&self.graph);
        if is_current {
            self.graph.store(self.successor.swap(None));
            self.wants_another.store(false, Ordering::Release);
        }
        is_current
    }
}
