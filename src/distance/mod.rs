//! Distances between f32 vectors: a scalar definition and variants for the CPU at hand.
//!
//! [`codes`] has the dot products of vectors that were cut down to small integers, [`rotation`] the transform that
//! makes them fit for that.
//!
//! This room knows numbers only: no rows, no files. The variant is chosen once, at first use; [`variant`] names it.
//! Variants differ from the definition in the order of their additions, so results differ by rounding; one
//! process always uses one variant, so the same two vectors have the same distance wherever it is computed.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod codes;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod rotation;
mod scalar;

use std::sync::LazyLock;

/// How the distance of two vectors is measured.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// 1 - cos(a, b): 0 for the same direction, 2 for the opposite one.
    #[default]
    Cosine,
    /// -(a . b): the smaller, the more alike; the dot product is the score.
    Ip,
    /// The Euclidean distance, root included.
    L2,
}

impl Metric {
    /// The metric of that name: `cosine`, `ip` or `l2`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Metric::Cosine, Metric::Ip, Metric::L2].into_iter().find(|metric| metric.name() == name)
    }

    /// The name in configuration and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Metric::Cosine => "cosine",
            Metric::Ip => "ip",
            Metric::L2 => "l2",
        }
    }

    /// Turns an index key into the reported distance: the root for L2, whose key is the square; the key itself
    /// for the others.
    #[must_use]
    pub fn finish(self, key: f32) -> f32 {
        match self {
            Metric::Cosine | Metric::Ip => key,
            Metric::L2 => key.sqrt(),
        }
    }

    /// Turns a reported distance into a score, which is larger for nearer vectors: the cosine (1 - distance), the
    /// dot product (-distance), or the negated Euclidean distance.
    #[must_use]
    pub fn score(self, distance: f32) -> f32 {
        match self {
            Metric::Cosine => 1.0 - distance,
            // Not `-distance`: a distance of 0 has the score 0, not -0.
            Metric::Ip | Metric::L2 => 0.0 - distance,
        }
    }
}

/// The dot product of two vectors of the same length.
///
/// # Panics
///
/// When the lengths differ.
#[must_use]
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    VARIANT.dot(a, b)
}

/// The squared Euclidean distance of two vectors of the same length.
///
/// # Panics
///
/// When the lengths differ.
#[must_use]
#[inline]
pub fn l2_squared(a: &[f32], b: &[f32]) -> f32 {
    VARIANT.l2_squared(a, b)
}

/// 1 / |v|; 0 for the zero vector, which has no direction. Infinite when |v| is below 3e-39, whose inverse an
/// f32 cannot hold.
#[must_use]
pub fn inverse_norm(v: &[f32]) -> f32 {
    let squared = dot(v, v);
    if squared.is_normal() && squared > 1e-30 {
        return 1.0 / squared.sqrt();
    }
    // The square leaves the range of f32 long before the norm does.
    let squared: f64 = v.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if squared == 0.0 {
        return 0.0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    let inverse = (1.0 / squared.sqrt()) as f32;
    inverse
}

/// 1 - cos(a, b) in double precision from the vectors alone, within 0..=2; 1 if one of them is zero. For vectors so
/// long or short that their dot product leaves the range of f32.
pub(crate) fn cosine_f64(a: &[f32], b: &[f32]) -> f32 {
    let (mut ab, mut aa, mut bb) = (0.0f64, 0.0f64, 0.0f64);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    // A product of the norms may leave even the range of f64's normal numbers; a quotient by each does not.
    let cosine = if aa == 0.0 || bb == 0.0 { 0.0 } else { ab / aa.sqrt() / bb.sqrt() };
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    let distance = (1.0 - cosine).clamp(0.0, 2.0) as f32;
    distance
}

/// The Euclidean distance in double precision. For vectors so near that the square leaves the range of f32.
pub(crate) fn l2_f64(a: &[f32], b: &[f32]) -> f32 {
    let squares = a.iter().zip(b).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2));
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    let distance = squares.sum::<f64>().sqrt() as f32;
    distance
}

/// Name of the variant in use: `avx512`, `avx2`, `neon` or `scalar`.
#[must_use]
pub fn variant() -> &'static str {
    VARIANT.name
}

/// Asks the CPU to bring the head of `v` into its cache, for a distance that is computed soon.
#[inline]
pub fn prefetch(v: &[f32]) {
    prefetch_lines(v.as_ptr().cast(), v.len().div_ceil(16));
}

/// Asks the CPU to bring `lines` cache lines from `address` on into its cache. The address need not be valid.
#[inline]
pub(crate) fn prefetch_lines(address: *const u8, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..lines.min(PREFETCH_LINES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch accesses nothing that the program can see, whatever its address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(64 * line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, lines);
}

/// Cache lines that are prefetched. All of a vector of 384 elements: against 8 lines, it is searched a sixth faster.
#[cfg(target_arch = "x86_64")]
const PREFETCH_LINES: usize = 32;

/// A distance function over slices of equal length. `unsafe` because its CPU features must be there.
type Kernel = unsafe fn(&[f32], &[f32]) -> f32;

/// The functions over f32 in the form that one family of CPUs runs.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    name: &'static str,
    dot: Kernel,
    l2_squared: Kernel,
}

impl Variant {
    /// `avx512`, `avx2`, `neon` or `scalar`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// As [`dot`], with its panic.
    #[must_use]
    #[inline]
    pub fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        Self::call(self.dot, a, b)
    }

    /// As [`l2_squared`], with its panic.
    #[must_use]
    #[inline]
    pub fn l2_squared(&self, a: &[f32], b: &[f32]) -> f32 {
        Self::call(self.l2_squared, a, b)
    }

    #[inline]
    fn call(kernel: Kernel, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "vectors of different lengths");
        // SAFETY: `variants` lists only kernels whose features the CPU was found to have, and a kernel asks for
        // nothing else: it is a safe function apart from its features.
        unsafe { kernel(a, b) }
    }
}

static VARIANT: LazyLock<Variant> = LazyLock::new(|| variants()[0]);

/// The variants that this CPU can run, the best first, which is the one in use; the definition is always the last.
#[must_use]
pub fn variants() -> Vec<Variant> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            found.push(Variant { name: "avx512", dot: avx512::dot, l2_squared: avx512::l2_squared });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            found.push(Variant { name: "avx2", dot: avx2::dot, l2_squared: avx2::l2_squared });
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        found.push(Variant { name: "neon", dot: neon::dot, l2_squared: neon::l2_squared });
    }
    found.push(Variant { name: "scalar", dot: scalar::dot, l2_squared: scalar::l2_squared });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four blocks of the widest variant (4 x 16 floats), and three more.
    const MAX_LEN: usize = 4 * 64 + 3;

    fn numbers(seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1 << 24) as f32 * 4.0 - 2.0
            })
            .collect()
    }

    /// The sum in f64, and the sum of the terms' magnitudes that bounds the rounding error.
    fn reference(terms: impl Iterator<Item = f64>) -> (f64, f64) {
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    }

    fn agrees_with_reference(variant: &Variant) {
        let (left, right) = (numbers(1, MAX_LEN + 3), numbers(2, MAX_LEN + 3));
        for len in 0..=MAX_LEN {
            for start in 0..=3 {
                let (a, b) = (&left[start..start + len], &right[3 - start..3 - start + len]);
                let pairs = || a.iter().zip(b).map(|(&x, &y)| (f64::from(x), f64::from(y)));
                let cases = [
                    ("dot", variant.dot(a, b), reference(pairs().map(|(x, y)| x * y))),
                    (
                        "l2_squared",
                        variant.l2_squared(a, b),
                        reference(pairs().map(|(x, y)| (x - y) * (x - y))),
                    ),
                ];
                for (what, got, (want, size)) in cases {
                    let got = f64::from(got);
                    assert!(
                        (got - want).abs() <= size * 1e-5,
                        "{} {what}, length {len}, start {start}: {got}, want {want}",
                        variant.name
                    );
                }
            }
        }
    }

    fn test_by_name(name: &str) {
        match variants().iter().find(|variant| variant.name == name) {
            Some(variant) => agrees_with_reference(variant),
            None => assert_ne!(super::variant(), name, "a variant in use must be available"),
        }
    }

    #[test]
    fn scalar_definition_agrees_with_f64() {
        test_by_name("scalar");
    }

    #[test]
    fn avx2_agrees_with_f64_where_the_cpu_has_it() {
        test_by_name("avx2");
    }

    #[test]
    fn avx512_agrees_with_f64_where_the_cpu_has_it() {
        test_by_name("avx512");
    }

    #[test]
    fn neon_agrees_with_f64_where_the_cpu_has_it() {
        test_by_name("neon");
    }

    #[test]
    fn not_a_number_and_infinity_pass_through_every_variant() {
        for variant in variants() {
            for at in [0, 15, 16, 63, 64, 70] {
                let mut a = vec![1.0; 71];
                a[at] = f32::NAN;
                assert!(variant.dot(&a, &[1.0; 71]).is_nan(), "{} at {at}", variant.name);
                a[at] = f32::INFINITY;
                assert_eq!(variant.l2_squared(&a, &[1.0; 71]), f32::INFINITY, "{}", variant.name);
            }
        }
    }

    #[test]
    #[should_panic(expected = "different lengths")]
    fn different_lengths_are_refused() {
        let _ = dot(&[1.0, 2.0], &[1.0]);
    }

    #[test]
    fn metric_names_parse_back() {
        for metric in [Metric::Cosine, Metric::Ip, Metric::L2] {
            assert_eq!(Metric::parse(metric.name()), Some(metric));
        }
        assert_eq!(Metric::parse("L2"), None);
    }

    #[test]
    fn keys_become_distances_and_scores() {
        assert_eq!(Metric::L2.finish(25.0), 5.0);
        assert_eq!(Metric::Ip.finish(-3.0), -3.0);
        assert_eq!(Metric::Cosine.finish(0.25), 0.25);
        assert_eq!(Metric::Cosine.score(0.25), 0.75);
        assert_eq!(Metric::Ip.score(-3.0), 3.0);
        assert_eq!(Metric::L2.score(5.0), -5.0);
        assert!(Metric::Ip.score(0.0).is_sign_positive());
    }

    #[test]
    fn inverse_norm_holds_beyond_the_range_of_the_square() {
        assert_eq!(inverse_norm(&[3.0, 4.0]), 0.2);
        assert_eq!(inverse_norm(&[0.0; 5]), 0.0);
        for scale in [1e-30f32, 1e30] {
            let got = inverse_norm(&[3.0 * scale, 4.0 * scale]) * scale;
            assert!((got - 0.2).abs() < 1e-6, "scale {scale}: {got}");
        }
        assert_eq!(cosine_f64(&[1e30, 0.0], &[0.0, 1e30]), 1.0);
        assert_eq!(cosine_f64(&[1e-40, 0.0], &[2e38, 0.0]), 0.0);
        assert_eq!(cosine_f64(&[0.0, 0.0], &[1.0, 0.0]), 1.0);
    }
}
