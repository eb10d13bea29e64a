//! Distances within a graph. The one place that knows how: today from the rows' vectors.

use super::nodes::{NodeId, Nodes};
use crate::distance::Metric;
use crate::index::{Query, RowId, VectorSource};

/// A graph's nodes together with their vectors.
pub(super) struct Space<'s, S: ?Sized> {
    pub(super) nodes: &'s Nodes,
    pub(super) source: &'s S,
    pub(super) metric: Metric,
}

impl<'s, S: VectorSource + ?Sized> Space<'s, S> {
    /// Distances from a query's vector.
    pub(super) fn probe<'v>(&'v self, query: Query<'v>) -> Probe<'v, S> {
        Probe { source: self.source, query }
    }

    /// Distances from a row's vector, `None` if it is gone. `decode` is kept as long as the probe.
    pub(super) fn probe_row<'v>(&'v self, row: RowId, decode: &'v mut [f32]) -> Option<Probe<'v, S>> {
        let vector = self.source.vector(row, decode)?;
        let inverse_norm = match self.metric {
            Metric::Cosine => self.source.inverse_norm(row),
            Metric::Ip | Metric::L2 => 1.0,
        };
        Some(self.probe(Query { vector, metric: self.metric, inverse_norm }))
    }

    /// As [`probe_row`](Self::probe_row), from a node's row.
    pub(super) fn probe_node<'v>(&'v self, id: NodeId, decode: &'v mut [f32]) -> Option<Probe<'v, S>> {
        self.probe_row(self.nodes.row(id)?, decode)
    }
}

/// Distances from one vector to rows.
pub(super) struct Probe<'v, S: ?Sized> {
    source: &'v S,
    query: Query<'v>,
}

impl<S: VectorSource + ?Sized> Probe<'_, S> {
    /// Distance key to a row, `None` if it is gone.
    #[inline]
    pub(super) fn key(&self, row: RowId, decode: &mut [f32]) -> Option<f32> {
        self.query.key(self.source, row, decode)
    }

    /// Whether a row has a vector.
    pub(super) fn is_live(&self, row: RowId, decode: &mut [f32]) -> bool {
        self.source.vector(row, decode).is_some()
    }

    /// A hint that [`key`](Self::key) is asked for this row soon.
    #[inline]
    pub(super) fn prefetch(&self, row: RowId) {
        self.source.prefetch(row);
    }
}
