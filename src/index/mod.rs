//! Nearest-neighbour search over numbered rows: an exact scan ([`flat`]) and a graph ([`hnsw`]).
//!
//! The index knows row numbers, vectors and distances. It does not know what a file or a collection is: the
//! vectors come from a [`VectorSource`], and what may be returned is decided by the caller's `accept`.
//!
//! Inside the index a distance is the metric's *key*: the squared distance for L2 (same order, no root).
//! [`Query::distance`] turns keys into the reported distance.

mod centers;
mod codec;
pub mod flat;
pub mod hnsw;
mod ranked;
mod row_set;

use crate::distance::{self, Metric};

pub use centers::centers;
pub use row_set::{RowSet, Rows};

/// What a graph keeps of its vectors for the walk, beside the originals that decide the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum Quant {
    /// Nothing: the walk reads the originals.
    None,
    /// One byte per element.
    Sq8,
    /// One bit per element.
    B1,
}

impl Quant {
    /// Its name in configurations and options: `none`, `sq8` or `b1`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Quant::None => "none",
            Quant::Sq8 => "sq8",
            Quant::B1 => "b1",
        }
    }

    /// The reverse of [`name`](Self::name).
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Quant::None, Quant::Sq8, Quant::B1].into_iter().find(|quant| quant.name() == name)
    }
}

/// Number of a row within its collection. Never used twice while the collection has rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub u32);

/// Where the vectors of rows come from. One implementation reads a collection's files where they lie, another a
/// plain matrix (benchmarks, tests).
pub trait VectorSource: Sync {
    /// Number of elements of every vector.
    fn dim(&self) -> usize;
    /// The vector of `row`, `None` if the row is gone. `scratch` has [`dim`](Self::dim) elements and is used when
    /// the row has to be decoded.
    fn vector<'a>(&'a self, row: RowId, scratch: &'a mut [f32]) -> Option<&'a [f32]>;
    /// 1 / |v| of the row's vector; only asked under [`Metric::Cosine`].
    fn inverse_norm(&self, row: RowId) -> f32;
    /// A hint that the vector of `row` is asked for soon. Does nothing unless the source can use it.
    fn prefetch(&self, _row: RowId) {}
    /// A hint, well before that one, for what tells where the vector is.
    fn announce(&self, _row: RowId) {}
}

/// A row and its distance key from the query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    /// The row.
    pub row: RowId,
    /// Distance key: see the [module](self).
    pub key: f32,
}

/// Squared distances below it may have lost digits of their terms.
const TINY: f32 = 1e-30;

/// Above the key that rounding leaves of equal vectors under cosine: their dot product is the square that both norms
/// come of, so it is that of roots, quotients and products, at most 2^-21.
const NEARLY_SAME: f32 = 1e-6;

/// A query prepared for one metric: for cosine, its inverse norm.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The query's vector.
    pub vector: &'a [f32],
    /// How distances are measured.
    pub metric: Metric,
    /// 1 / |vector| for cosine, else 1.
    pub inverse_norm: f32,
}

impl<'a> Query<'a> {
    /// Prepares `vector` for `metric`.
    #[must_use]
    pub fn new(metric: Metric, vector: &'a [f32]) -> Self {
        let inverse_norm = match metric {
            Metric::Cosine => distance::inverse_norm(vector),
            Metric::Ip | Metric::L2 => 1.0,
        };
        Query { vector, metric, inverse_norm }
    }

    /// Distance key of `row`, `None` if the row is gone: the squared distance for L2, the negated dot product for
    /// Ip, and 1 - cos within 0..=2 for Cosine, exactly 0 for an equal vector. Never NaN. Squared distances below
    /// 1e-30, for which f32 lacks digits, are all 0: [`distance`](Self::distance) tells such rows apart. `scratch` has
    /// [`VectorSource::dim`] elements.
    ///
    /// # Panics
    ///
    /// When the source's vectors and the query's have different lengths.
    #[inline]
    pub fn key<S: VectorSource + ?Sized>(&self, source: &S, row: RowId, scratch: &mut [f32]) -> Option<f32> {
        let vector = source.vector(row, scratch)?;
        let key = match self.metric {
            Metric::L2 => match distance::l2_squared(self.vector, vector) {
                key if key < TINY => 0.0,
                key => key,
            },
            // Not `-dot`: orthogonal vectors have the key 0, not -0.
            Metric::Ip => 0.0 - distance::dot(self.vector, vector),
            Metric::Cosine => {
                let scale = self.inverse_norm * source.inverse_norm(row);
                // Within this range neither the dot product nor any of its partial sums can overflow, and what
                // underflows is below the rounding error.
                let key = if scale > 1e-30 && scale < 1e30 {
                    (1.0 - distance::dot(self.vector, vector) * scale).clamp(0.0, 2.0)
                } else {
                    distance::cosine_f64(self.vector, vector)
                };
                if key < NEARLY_SAME { self.key_of_copy(vector).unwrap_or(key) } else { key }
            }
        };
        // A dot product that overflows in both directions has no value; such a row is as far as can be.
        Some(if key.is_nan() { f32::INFINITY } else { key })
    }

    /// The key of an equal vector under cosine, if it is one. Apart, because few are so near.
    #[cold]
    #[inline(never)]
    fn key_of_copy(&self, vector: &[f32]) -> Option<f32> {
        (self.vector == vector).then_some(0.0)
    }

    /// The distance, as the metric's name says, of a row whose key is known.
    #[inline]
    pub fn distance<S: VectorSource + ?Sized>(
        &self,
        source: &S,
        neighbor: Neighbor,
        scratch: &mut [f32],
    ) -> f32 {
        match self.metric {
            Metric::L2 if neighbor.key == 0.0 => source
                .vector(neighbor.row, scratch)
                .map_or(0.0, |vector| distance::l2_f64(self.vector, vector)),
            Metric::L2 | Metric::Ip | Metric::Cosine => self.metric.finish(neighbor.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::flat::Matrix;
    use super::*;

    fn key(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
        let matrix = Matrix::new(b.len(), b.to_vec());
        Query::new(metric, a).key(&matrix, RowId(0), &mut vec![0.0; b.len()]).unwrap()
    }

    #[test]
    fn keys_follow_the_metric() {
        assert_eq!(key(Metric::L2, &[1.0, 2.0], &[4.0, 6.0]), 25.0);
        assert_eq!(key(Metric::Ip, &[1.0, 2.0], &[4.0, 6.0]), -16.0);
        assert!(key(Metric::Cosine, &[1.0, 2.0], &[-2.0, 1.0]).to_bits() == 1.0f32.to_bits());
        assert!((key(Metric::Cosine, &[1.0, 2.0], &[-3.0, -6.0]) - 2.0).abs() < 1e-6);
        assert!(key(Metric::Ip, &[1.0, 0.0], &[0.0, -1.0]).is_sign_positive());
    }

    #[test]
    fn a_copy_is_at_no_distance_under_cosine_whatever_its_length_and_size() {
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for dim in [1, 2, 3, 16, 96, 100, 384, 1000, 16_384] {
            for scale in [1e-18f32, 1e-3, 1.0, 7e5, 1e15] {
                for _ in 0..20 {
                    let vector: Vec<f32> = (0..dim).map(|_| random() * scale).collect();
                    assert_eq!(key(Metric::Cosine, &vector, &vector), 0.0, "{dim} elements of {scale}");
                }
            }
        }
        // What is not equal is told as it is computed.
        assert!(key(Metric::Cosine, &[1.0, 0.0], &[1.0, 1e-3]) > 0.0);
        assert_eq!(key(Metric::Cosine, &[0.0, 1.0], &[-0.0, 1.0]), 0.0);
    }

    #[test]
    fn vectors_too_near_for_the_square_tie_by_key_and_have_a_distance() {
        for (x, y) in [(3e-25f32, 4e-25f32), (3e-23, 4e-23), (3e-17, 4e-17), (3e-14, 4e-14), (0.0, 1e-45)] {
            let matrix = Matrix::new(3, vec![7.0, x, y]);
            let query = Query::new(Metric::L2, &[7.0, 0.0, 0.0]);
            let key = query.key(&matrix, RowId(0), &mut []).unwrap();
            let want = (f64::from(x).powi(2) + f64::from(y).powi(2)).sqrt();
            let got = query.distance(&matrix, Neighbor { row: RowId(0), key }, &mut []);
            assert!((f64::from(got) / want - 1.0).abs() < 1e-6, "{got:e}, want {want:e}");
            assert_eq!(key == 0.0, want < 1e-15, "{key:e}");
        }
    }

    #[test]
    fn cosine_holds_for_vectors_whose_squares_leave_the_range() {
        for (a, b) in [(1e-25f32, 1e-25f32), (1e30, 1e30), (1e30, 1e-30), (1e-42, 1.0)] {
            let got = key(Metric::Cosine, &[a, 0.0], &[b, b]);
            assert!((got - 0.292_893_2).abs() < 1e-5, "{a} and {b}: {got}");
        }
        assert_eq!(key(Metric::Cosine, &[1.0, 1.0], &[0.0, 0.0]), 1.0);
    }

    #[test]
    fn keys_are_never_nan() {
        assert_eq!(key(Metric::Ip, &[1e38, 1e38], &[1e38, -1e38]), f32::INFINITY);
    }

    #[test]
    fn a_row_that_is_gone_has_no_key() {
        let matrix = Matrix::new(1, vec![1.0]);
        assert_eq!(Query::new(Metric::L2, &[0.0]).key(&matrix, RowId(1), &mut [0.0]), None);
    }
}
