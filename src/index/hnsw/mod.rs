//! The graph: our own HNSW (hierarchical navigable small world) over row numbers.
//!
//! Source: Malkov and Yashunin 2018 (arXiv:1603.09320). Rows are inserted from any number of threads while others
//! search; searches take no lock. What a walk compares are codes, kept with the graph; the vectors decide the answer.
//! Rows that are gone are refused by the caller at once and taken away in place later.
//!
//! - `nodes` is where the graph lies, `search` walks (its list is `frontier`), `scan` compares all codes instead,
//!   `refine` compares what either found by the vectors, `build` inserts, `select` chooses links, `repair` takes away,
//!   `absence` is how it would be without a row, `checkpoint` saves and maps, `verify` checks.
//!
//! **Invariant:** on level 0 every node but the first has a *tree parent*, and parent and child link each other as long
//! as both are there. So from any node every node can be reached, whatever is pruned and whatever goes.
//!
//! **Invariant:** a damaged graph gives no answer: see [`Found::damaged`].

mod absence;
mod build;
mod checkpoint;
mod frontier;
mod nodes;
mod refine;
mod repair;
mod scan;
mod search;
mod select;
#[cfg(test)]
mod tests;
mod verify;

use std::fmt;

use super::centers::MAX_CENTERS;
use super::codec::Codec;
use super::{Quant, RowId, VectorSource};
use crate::distance::Metric;
use crate::pool::Pool;
use crate::store::rows::pin;
use crate::sync::{AtomicU32, AtomicUsize, Mutex, Ordering, RwLock};
use crate::{Error, Result};
use build::BuildScratch;
use nodes::Nodes;

pub use absence::{Absence, Place};
pub use scan::CODE_SCAN_RECALL;
pub use search::{Beam, Found, Outlook, SearchScratch};
pub use verify::Report;

/// How a graph is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// The most links that a node has on each level above 0; twice as many on level 0. 2..=128.
    pub m: u32,
    /// Width of the search for a new node's neighbours. 1..=4096.
    pub ef_construction: u32,
    /// Seed of the levels and of the codes' rotation. The same rows inserted by one thread in the same order give the
    /// same graph.
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
    codec: Codec,
    nodes: Nodes,
    /// Link to the node on the highest level, where every search begins. 0 in an empty graph.
    entry: AtomicU32,
    /// Nodes with a row.
    live: AtomicUsize,
    /// Held while the first node or one above all others is inserted. Taken before any of `stripes`.
    raising: Mutex<()>,
    /// Node n's links and children change only under stripe n % STRIPES. Nobody holds two.
    stripes: Box<[Mutex<()>]>,
    /// Shared by inserts, exclusive for a checkpoint, a repair and a check.
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
        Self::with_centers(metric, dim, params, Vec::new())
    }

    /// An empty graph for vectors of `dim` elements around `centers`, which has `dim` elements for each of up to 512: see
    /// [`centers`](super::centers()). Codes tell more of vectors that are near one of them.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and [`Error::Dimension`] when `centers` has another length.
    pub fn with_centers(metric: Metric, dim: usize, params: Params, centers: Vec<f32>) -> Result<Self> {
        params.validate()?;
        if dim == 0 {
            return Err(Error::Invalid("a graph needs vectors of at least one element"));
        }
        if !centers.len().is_multiple_of(dim) || centers.len() / dim > MAX_CENTERS {
            let number = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
            return Err(Error::Dimension { expected: number(dim), got: number(centers.len()) });
        }
        let codec = Codec::new(params.quant, metric, dim, centers, params.seed);
        Ok(Hnsw {
            metric,
            dim,
            params,
            nodes: Nodes::new(params.m as usize, &codec),
            codec,
            entry: AtomicU32::new(0),
            live: AtomicUsize::new(0),
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

    /// Number of rows, those included that are gone and not taken away yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a vector's code, its head included.
    #[must_use]
    pub fn code_bytes(&self) -> usize {
        self.nodes.codes.row_bytes().iter().sum()
    }

    /// Bytes that a row takes, its code and its links on the lowest level; in a checkpoint about as many.
    #[must_use]
    pub fn node_bytes(&self) -> usize {
        let Nodes { links, rows, about, .. } = &self.nodes;
        links.row_bytes() + rows.row_bytes() + about.row_bytes() + self.code_bytes()
    }

    /// The squared distance of a row from the center that its code is, or would be, relative to; 0 of one without codes.
    /// `None` when its vector is gone. `scratch` is for the vector.
    pub fn residual<S: VectorSource + ?Sized>(
        &self,
        row: RowId,
        source: &S,
        scratch: &mut Vec<f32>,
    ) -> Option<f32> {
        let mut decoded = vec![0.0; self.dim];
        let vector = source.vector(row, &mut decoded)?;
        Some(self.codec.residual(vector, scratch))
    }

    /// The rows of all nodes, in no order.
    #[must_use]
    pub fn rows(&self) -> Vec<RowId> {
        let guard = pin();
        self.nodes.ids().filter_map(|id| self.nodes.row(id, &guard)).collect()
    }

    /// What was found damaged. Only of use after [`Found::damaged`].
    #[must_use]
    pub fn damage(&self) -> Error {
        self.nodes.damage().unwrap_or(Error::Invalid("the graph has a link to a node that does not exist"))
    }

    /// Whether damage was met so far.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.nodes.is_damaged()
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
