//! The exact scan: every row is compared, so nothing is missed. Also [`Matrix`], vectors in memory.

use super::ranked::{Nearest, Ranked};
use super::{Neighbor, Query, RowId, VectorSource};
use crate::distance;

/// Rows that may tie with the k-th and are kept beside the first `k`.
pub const MAX_TIES: usize = 4096;

/// Rows between two questions whether to go on.
const ROWS_PER_CHECK: usize = 4096;

/// Rows that are asked for before the first of them is compared: where rows lie apart, their ways through memory
/// overlap. Divides [`ROWS_PER_CHECK`].
const AHEAD: usize = 8;

/// Collector of the `k` nearest rows.
///
/// Rows whose key equals that of the k-th are kept too (the first [`MAX_TIES`] of them by row), because who among
/// them stays is decided later, by path.
#[derive(Debug, Default)]
pub struct TopK {
    nearest: Nearest,
}

impl TopK {
    /// A collector of `k` rows. Memory is taken as rows come.
    #[must_use]
    pub fn new(k: usize) -> Self {
        let mut nearest = Nearest::default();
        nearest.reset(k, MAX_TIES);
        TopK { nearest }
    }

    /// Offers a row. A NaN key counts as infinitely far.
    #[inline]
    pub fn push(&mut self, neighbor: Neighbor) {
        self.nearest.push(Ranked::new(neighbor.key, neighbor.row.0));
    }

    /// Key of the k-th row so far: what is farther cannot enter. Infinite while there are fewer than `k`.
    #[inline]
    #[must_use]
    pub fn bound(&self) -> f32 {
        self.nearest.bound()
    }

    /// The rows nearest first, equal keys by row; more than `k` if rows tie with the k-th.
    #[must_use]
    pub fn into_sorted(mut self) -> Vec<Neighbor> {
        let mut ranked = Vec::new();
        self.nearest.drain_into(&mut ranked);
        ranked.iter().map(|r| Neighbor { row: RowId(r.number()), key: r.key() }).collect()
    }
}

/// Compares `query` with every one of `rows` and offers what it finds to `top`; rows that are gone are skipped.
///
/// `scratch` has [`VectorSource::dim`] elements. `keep_going` is asked every 4096 rows; when it says no, the scan
/// stops and returns false, and `top` holds the best of what was seen.
pub fn scan<S: VectorSource + ?Sized>(
    query: &Query<'_>,
    rows: impl Iterator<Item = RowId>,
    source: &S,
    top: &mut TopK,
    scratch: &mut [f32],
    keep_going: &mut dyn FnMut() -> bool,
) -> bool {
    let mut ahead = [RowId(0); AHEAD];
    let mut seen = 0;
    let mut rows = rows.fuse();
    loop {
        let mut count = 0;
        for (place, row) in ahead.iter_mut().zip(&mut rows) {
            source.prefetch(row);
            *place = row;
            count += 1;
        }
        for &row in &ahead[..count] {
            if let Some(key) = query.key(source, row, scratch)
                && key <= top.bound()
            {
                top.push(Neighbor { row, key });
            }
        }
        if count < AHEAD {
            return true;
        }
        seen += count;
        if seen % ROWS_PER_CHECK == 0 && !keep_going() {
            return false;
        }
    }
}

/// Vectors in memory, row after row. The number of a row is its place.
#[derive(Clone, Debug)]
pub struct Matrix {
    dim: usize,
    values: Vec<f32>,
    inverse_norms: Vec<f32>,
}

impl Matrix {
    /// A matrix of `values.len() / dim` rows.
    ///
    /// # Panics
    ///
    /// When `dim` is 0, `values` is not a whole number of rows, or there are more rows than a [`RowId`] can number.
    #[must_use]
    pub fn new(dim: usize, values: Vec<f32>) -> Self {
        assert!(dim > 0 && values.len().is_multiple_of(dim), "{} values, rows of {dim}", values.len());
        assert!(u32::try_from(values.len() / dim).is_ok(), "{} rows", values.len() / dim);
        let inverse_norms = values.chunks_exact(dim).map(distance::inverse_norm).collect();
        Matrix { dim, values, inverse_norms }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.inverse_norms.len()
    }

    /// The vector of a row, `None` past the last.
    #[inline]
    #[must_use]
    pub fn row(&self, row: RowId) -> Option<&[f32]> {
        let start = usize::try_from(row.0).ok()?.checked_mul(self.dim)?;
        self.values.get(start..start.checked_add(self.dim)?)
    }

    /// All row numbers in order.
    pub fn row_ids(&self) -> impl Iterator<Item = RowId> + use<> {
        (0u32..).take(self.rows()).map(RowId)
    }
}

impl VectorSource for Matrix {
    fn dim(&self) -> usize {
        self.dim
    }

    #[inline]
    fn vector<'a>(&'a self, row: RowId, _scratch: &'a mut [f32]) -> Option<&'a [f32]> {
        self.row(row)
    }

    #[inline]
    fn inverse_norm(&self, row: RowId) -> f32 {
        usize::try_from(row.0).ok().and_then(|row| self.inverse_norms.get(row)).copied().unwrap_or(0.0)
    }

    #[inline]
    fn prefetch(&self, row: RowId) {
        if let Some(vector) = self.row(row) {
            distance::prefetch(vector);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distance::Metric;

    fn rows_of(found: &[Neighbor]) -> Vec<u32> {
        found.iter().map(|n| n.row.0).collect()
    }

    fn scan_all(matrix: &Matrix, metric: Metric, vector: &[f32], k: usize) -> Vec<Neighbor> {
        let mut top = TopK::new(k);
        let mut scratch = vec![0.0; matrix.dim()];
        let query = Query::new(metric, vector);
        assert!(scan(&query, matrix.row_ids(), matrix, &mut top, &mut scratch, &mut || true));
        top.into_sorted()
    }

    #[test]
    fn each_metric_finds_its_own_nearest() {
        let matrix = Matrix::new(2, vec![1.0, 0.0, 10.0, 1.0, 0.0, 2.0]);
        assert_eq!(rows_of(&scan_all(&matrix, Metric::L2, &[0.9, 0.1], 2)), [0, 2]);
        assert_eq!(rows_of(&scan_all(&matrix, Metric::Ip, &[0.9, 0.1], 2)), [1, 0]);
        assert_eq!(rows_of(&scan_all(&matrix, Metric::Cosine, &[0.9, 0.1], 2)), [1, 0]);
        assert_eq!(scan_all(&matrix, Metric::L2, &[1.0, 2.0], 1)[0].key, 1.0);
    }

    #[test]
    fn ties_with_the_last_place_are_kept_in_row_order() {
        let matrix = Matrix::new(1, vec![5.0, 1.0, 3.0, 3.0, 1.0, 3.0, 9.0]);
        assert_eq!(rows_of(&scan_all(&matrix, Metric::L2, &[0.0], 3)), [1, 4, 2, 3, 5]);
        assert_eq!(rows_of(&scan_all(&matrix, Metric::L2, &[0.0], 2)), [1, 4]);
        assert!(scan_all(&matrix, Metric::L2, &[0.0], 0).is_empty());
    }

    #[test]
    fn ties_are_bounded_and_the_outcome_does_not_depend_on_the_order() {
        let count = u32::try_from(MAX_TIES).unwrap() + 100;
        let collect = |rows: &mut dyn Iterator<Item = u32>| {
            let mut top = TopK::new(2);
            rows.for_each(|row| top.push(Neighbor { row: RowId(row), key: 1.0 }));
            rows_of(&top.into_sorted())
        };
        let forward = collect(&mut (0..count));
        assert_eq!(forward, (0..count - 98).collect::<Vec<_>>());
        assert_eq!(forward, collect(&mut (0..count).rev()));
    }

    #[test]
    fn nearer_rows_push_ties_out() {
        let mut top = TopK::new(2);
        for (row, key) in [(0, 2.0), (1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)] {
            top.push(Neighbor { row: RowId(row), key });
        }
        assert_eq!(top.bound(), 1.0);
        assert_eq!(rows_of(&top.into_sorted()), [3, 4]);
    }

    #[test]
    fn scan_stops_when_told_to() {
        let matrix = Matrix::new(1, vec![1.0; 10_000]);
        let mut asked = 0;
        let finished = scan(
            &Query::new(Metric::L2, &[0.0]),
            matrix.row_ids(),
            &matrix,
            &mut TopK::new(1),
            &mut [0.0],
            &mut || {
                asked += 1;
                asked < 2
            },
        );
        assert!(!finished);
        assert_eq!(asked, 2);
    }
}
