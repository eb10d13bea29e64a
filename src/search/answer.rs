//! What a search found.

use std::sync::Arc;

use super::Explanation;
use crate::distance::Metric;

/// One row that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Path of the file, relative to the directory asked. Bytes as the user named it.
    pub path: Arc<[u8]>,
    /// Row within the file.
    pub row: u32,
    /// Whether the file has more than one row.
    pub multi: bool,
    /// Number of the row in its collection.
    pub id: u32,
    /// Distance, as the metric's name says.
    pub distance: f32,
    /// The larger, the more alike: cosine, dot product, or the negated distance.
    pub score: f32,
}

/// The answer to one query vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// How many hits were asked for.
    pub k: u32,
    /// The metric of the distances.
    pub metric: Metric,
    /// Whether every row was looked at.
    pub exact: bool,
    /// Whether everything that was asked for was looked for.
    pub complete: bool,
    /// Rows that were scanned because the graph did not have them yet.
    pub pending: u64,
    /// Time of the search in microseconds.
    pub took_us: u64,
    /// Nearest first; ties by path, then row.
    pub hits: Vec<Hit>,
    /// How it came about, where that was asked.
    pub explain: Option<Box<Explanation>>,
}
