//! The graph: our own HNSW (hierarchical navigable small world) over row numbers.
//!
//! Source: Malkov and Yashunin 2018 (arXiv:1603.09320). Rows are inserted from any number of threads while others
//! search; searches take no lock. Rows are never taken out: a row whose vector is gone stays as a waypoint and is
//! not returned.
//!
//! - `nodes` is where links lie, `space` computes distances, `search` walks, `build` inserts, `checkpoint` saves.
//!
//! **Invariant:** on level 0 every node but the first has a *tree parent*, and parent and child link each other for
//! good. So from any node every node can be reached, whatever is pruned and whatever vanishes.

mod build;
mod checkpoint;
mod nodes;
mod search;
mod space;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};

use super::{Quant, RowId};
use crate::distance::Metric;
use crate::pool::Pool;
use crate::{Error, Result};
use build::BuildScratch;
use nodes::{EMPTY, NodeId, Nodes};

pub use search::{Beam, Found, SearchScratch};

/// How a graph is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// The most links that a node has on each level above 0; twice as many on level 0. 2..=128.
    pub m: u32,
    /// Width of the search for a new node's neighbours. 1..=4096.
    pub ef_construction: u32,
    /// Seed of the levels. The same rows inserted by one thread in the same order give the same graph.
    pub seed: u64,
    /// What the walk reads.
    pub quant: Quant,
}

impl Default for Params {
    fn default() -> Self {
        Params { m: 16, ef_construction: 200, seed: 0, quant: Quant::Sq8 }
    }
}

impl Params {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] naming the parameter, its value and its range.
    pub fn validate(&self) -> Result<()> {
        if !(2..=128).contains(&self.m) {
            return Err(Error::Config(format!("m is {}, want 2..=128", self.m)));
        }
        if !(1..=4096).contains(&self.ef_construction) {
            return Err(Error::Config(format!("ef_construction is {}, want 1..=4096", self.ef_construction)));
        }
        Ok(())
    }
}

/// The graph of one collection. See the [module](self).
pub struct Hnsw {
    metric: Metric,
    dim: usize,
    params: Params,
    nodes: Nodes,
    /// Node on the highest level, where every search begins. [`EMPTY`] in an empty graph.
    entry: AtomicU32,
    /// Held while the first node or one above all others is inserted. Taken before any of `stripes`.
    raising: Mutex<()>,
    /// Node n's links and children change only under stripe n % STRIPES. Nobody holds two.
    stripes: Box<[Mutex<()>]>,
    /// Shared by inserts, exclusive for the writing of a checkpoint.
    gate: RwLock<()>,
    scratch: Pool<BuildScratch>,
}

const STRIPES: usize = 1024;

/// A level that is practically never reached: at the smallest m one node in 2^24 is on it.
const MAX_LEVEL: usize = 24;

impl Hnsw {
    /// An empty graph for vectors of `dim` elements.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when a parameter is out of its range, [`Error::Invalid`] when `dim` is 0.
    pub fn new(metric: Metric, dim: usize, params: Params) -> Result<Self> {
        params.validate()?;
        if dim == 0 {
            return Err(Error::Invalid("a graph needs vectors of at least one element"));
        }
        Ok(Hnsw {
            metric,
            dim,
            params,
            nodes: Nodes::new(params.m as usize),
            entry: AtomicU32::new(EMPTY),
            raising: Mutex::new(()),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            gate: RwLock::new(()),
            scratch: Pool::new(16, BuildScratch::default),
        })
    }

    /// How distances are measured.
    #[must_use]
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Number of elements of every vector.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How the graph is built.
    #[must_use]
    pub fn params(&self) -> Params {
        self.params
    }

    /// Number of nodes, vanished rows included. While rows are inserted it may count those in progress.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.count() as usize
    }

    /// Whether no row was ever inserted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows of all nodes in the order of insertion, vanished ones included.
    pub fn rows(&self) -> impl Iterator<Item = RowId> {
        self.nodes.ids().filter_map(|id| self.nodes.row(id))
    }

    /// Rows that no walk on level 0 can reach from the entry point. Empty by construction; for checks and tests.
    /// Meaningful while nothing is inserted.
    #[must_use]
    pub fn unreachable(&self) -> Vec<RowId> {
        let mut open: Vec<NodeId> = self.entry().into_iter().collect();
        let mut seen = vec![false; self.len()];
        while let Some(id) = open.pop() {
            if !std::mem::replace(&mut seen[id.index()], true) {
                open.extend(self.nodes.linked(id, 0).filter(|linked| linked.index() < seen.len()));
            }
        }
        let missed = self.nodes.ids().zip(seen).filter(|&(_, seen)| !seen);
        missed.filter_map(|(id, _)| self.nodes.row(id)).collect()
    }

    fn entry(&self) -> Option<NodeId> {
        let entry = self.entry.load(Ordering::Acquire);
        (entry != EMPTY).then_some(NodeId(entry))
    }
}

impl fmt::Debug for Hnsw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hnsw")
            .field("metric", &self.metric)
            .field("dim", &self.dim)
            .field("params", &self.params)
            .field("nodes", &self.len())
            .finish_non_exhaustive()
    }
}
