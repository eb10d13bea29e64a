//! A random rotation in O(dim log dim): afterwards the coordinates of any vector look alike, as if drawn from one
//! normal distribution, which is what short codes of the coordinates want.
//!
//! A round flips random signs, applies the fast Walsh-Hadamard transform to the first p elements, p being the largest
//! power of two that fits, flips random signs and applies it to the last p elements. Where dim is no power of two, the
//! halves of the vector are then mixed under random signs, and a second round follows: one leaves the ends of the vector
//! with other variances than its middle. Nothing is padded, so the dimension stays.
//!
//! Sources: Ailon and Chazelle 2009 (signs and Hadamard transform, "The fast Johnson-Lindenstrauss transform"); Gao et
//! al. 2024 (arXiv:2409.09913), whose library transforms the first and the last p elements in turn.

use std::f32::consts::FRAC_1_SQRT_2;
use std::sync::LazyLock;

use crate::random::splitmix64;

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// A random orthogonal transform, the same on every machine, bit for bit: it adds and multiplies element by element in
/// one order, whatever the CPU.
#[derive(Clone, Debug)]
pub struct Rotation {
    dim: usize,
    rounds: Vec<Round>,
}

/// Random signs, each times what normalises the step that follows it.
#[derive(Clone, Debug)]
struct Round {
    /// Before the transform of the first p elements: +-1 / sqrt(p).
    firsts: Vec<f32>,
    /// Before the transform of the last p elements: +-1 / sqrt(p).
    lasts: Vec<f32>,
    /// For the second half of a vector, when the halves are mixed: +-1 / sqrt(2). Without signs, elements of one
    /// transform would cancel each other. Empty where dim is a power of two.
    mix: Vec<f32>,
}

impl Rotation {
    /// The rotation of vectors of `dim` elements that belongs to `seed`.
    ///
    /// # Panics
    ///
    /// When `dim` is 0.
    #[must_use]
    pub fn new(dim: usize, seed: u64) -> Self {
        assert!(dim > 0, "a vector without elements");
        let part = 1 << dim.ilog2();
        let scale = inverse_root(part);
        let mut state = seed;
        let mut signs = |len: usize, size: f32| -> Vec<f32> {
            (0..len).map(|_| if splitmix64(&mut state) >> 63 == 1 { -size } else { size }).collect()
        };
        let (rounds, mixed) = if part == dim { (1, 0) } else { (2, dim / 2) };
        let rounds = (0..rounds)
            .map(|_| Round {
                firsts: signs(part, scale),
                lasts: signs(part, scale),
                mix: signs(mixed, FRAC_1_SQRT_2),
            })
            .collect();
        Self { dim, rounds }
    }

    /// Elements of the vectors that this rotates.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Writes the rotated `from` into `to`. Norms and dot products stay, up to rounding.
    ///
    /// # Panics
    ///
    /// Unless both have [`Rotation::dim`] elements.
    pub fn apply(&self, from: &[f32], to: &mut [f32]) {
        assert!(from.len() == self.dim && to.len() == self.dim, "vectors of different lengths");
        to.copy_from_slice(from);
        // SAFETY: `variants` lists only functions whose features the CPU was found to have, and they ask for nothing
        // else: they are safe functions apart from their features.
        unsafe { (VARIANT.1)(self, to) }
    }

    /// `first_steps` does the steps of the transform between elements less than some power of two apart, and returns
    /// that power.
    #[inline(always)]
    fn apply_in_place(&self, v: &mut [f32], first_steps: impl Fn(&mut [f32]) -> usize) {
        for Round { firsts, lasts, mix } in &self.rounds {
            signed_hadamard(&mut v[..firsts.len()], firsts, &first_steps);
            signed_hadamard(&mut v[self.dim - lasts.len()..], lasts, &first_steps);
            let (left, right) = v.split_at_mut(mix.len());
            for ((x, y), sign) in left.iter_mut().zip(right).zip(mix) {
                let (half_x, half_y) = (*x * FRAC_1_SQRT_2, *y * sign);
                (*x, *y) = (half_x + half_y, half_x - half_y);
            }
        }
    }
}

/// The transform, not normalised, of a power of two of elements times their factors.
#[inline(always)]
fn signed_hadamard(part: &mut [f32], factors: &[f32], first_steps: impl Fn(&mut [f32]) -> usize) {
    for (x, factor) in part.iter_mut().zip(factors) {
        *x *= factor;
    }
    let mut half = first_steps(part);
    while half < part.len() {
        for pair in part.chunks_exact_mut(2 * half) {
            let (firsts, seconds) = pair.split_at_mut(half);
            for (x, y) in firsts.iter_mut().zip(seconds) {
                (*x, *y) = (*x + *y, *x - *y);
            }
        }
        half *= 2;
    }
}

/// 1 / sqrt(n), rounded to f32.
fn inverse_root(n: usize) -> f32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "rounding to f32 is meant"
    )]
    let root = (1.0 / (n as f64).sqrt()) as f32;
    root
}

/// A form of [`Rotation::apply_in_place`]. `unsafe` because its CPU features must be there.
type Apply = unsafe fn(&Rotation, &mut [f32]);

static VARIANT: LazyLock<(&'static str, Apply)> = LazyLock::new(|| variants()[0]);

/// One body compiled for each family of CPUs, apart from the steps over a few neighbours, which compilers do badly;
/// that without special instructions is always the last.
fn variants() -> Vec<(&'static str, Apply)> {
    let mut found: Vec<(&'static str, Apply)> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            found.push(("avx512", apply_avx512));
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            found.push(("avx2", apply_avx2));
        }
    }
    found.push(("scalar", apply_scalar));
    found
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn apply_avx512(rotation: &Rotation, v: &mut [f32]) {
    rotation.apply_in_place(v, |part| avx512::hadamard_blocks(part));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn apply_avx2(rotation: &Rotation, v: &mut [f32]) {
    rotation.apply_in_place(v, |part| avx2::hadamard_blocks(part));
}

fn apply_scalar(rotation: &Rotation, v: &mut [f32]) {
    rotation.apply_in_place(v, |_| 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: [usize; 16] = [1, 2, 3, 5, 16, 31, 64, 65, 96, 100, 127, 128, 300, 384, 768, 1000];

    fn numbers(seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed;
        (0..len).map(|_| (splitmix64(&mut state) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn rotated(rotation: &Rotation, v: &[f32]) -> Vec<f32> {
        let mut to = vec![0.0; v.len()];
        rotation.apply(v, &mut to);
        to
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    }

    fn one_hot(dim: usize, at: usize) -> Vec<f32> {
        let mut v = vec![0.0; dim];
        v[at] = 1.0;
        v
    }

    #[test]
    fn norms_and_dot_products_stay() {
        for dim in DIMS {
            let rotation = Rotation::new(dim, 42);
            let (a, b) = (numbers(1, dim), numbers(2, dim));
            let (turned_a, turned_b) = (rotated(&rotation, &a), rotated(&rotation, &b));
            let (norm_a, norm_b) = (dot(&a, &a).sqrt(), dot(&b, &b).sqrt());
            assert!((dot(&turned_a, &turned_a).sqrt() / norm_a - 1.0).abs() < 1e-5, "dim {dim}");
            let error = (dot(&turned_a, &turned_b) - dot(&a, &b)).abs();
            assert!(error <= 1e-5 * norm_a * norm_b, "dim {dim}: {error}");
        }
    }

    #[test]
    fn vectors_with_one_element_and_constant_ones_come_out_spread() {
        for dim in DIMS.into_iter().filter(|&dim| dim >= 64) {
            let rotation = Rotation::new(dim, 7);
            let mut inputs: Vec<_> = (0..dim).map(|at| one_hot(dim, at)).collect();
            inputs.push(vec![1.0 / (dim as f32).sqrt(); dim]);
            // Of `dim` normal values with variance 1 / dim, one in 16 million is this large.
            let bound = 5.4 / (dim as f32).sqrt();
            for (which, v) in inputs.iter().enumerate() {
                let largest = rotated(&rotation, v).into_iter().fold(0.0f32, |m, x| m.max(x.abs()));
                assert!(largest < bound, "dim {dim}, input {which}: {largest}, bound {bound}");
            }
        }
    }

    /// Over many seeds, every coordinate of a fixed input has nearly the variance 1 / dim and the tails of a normal
    /// distribution, whose fourth moment is 3.
    #[test]
    fn coordinates_are_alike_and_nearly_normal() {
        const SEEDS: u64 = 2000;
        for dim in [64, 96, 100, 128, 384] {
            for at in [0, dim / 2, dim - 1] {
                let (mut squares, mut fourths) = (vec![0.0; dim], 0.0);
                for seed in 0..SEEDS {
                    let turned = rotated(&Rotation::new(dim, seed), &one_hot(dim, at));
                    for (sum, &y) in squares.iter_mut().zip(&turned) {
                        let square = f64::from(y) * f64::from(y) * dim as f64;
                        *sum += square / SEEDS as f64;
                        fourths += square * square / (SEEDS as f64 * dim as f64);
                    }
                }
                let least = squares.iter().copied().fold(f64::MAX, f64::min);
                let most = squares.iter().copied().fold(0.0, f64::max);
                println!(
                    "dim {dim}, element {at}: variances {least:.3}..{most:.3}, fourth moment {fourths:.3}"
                );
                assert!(least > 0.8 && most < 1.2, "dim {dim}, element {at}: {least}..{most}");
                assert!((2.8..3.2).contains(&fourths), "dim {dim}, element {at}: {fourths}");
            }
        }
    }

    #[test]
    fn every_variant_gives_the_same_bits() {
        for dim in DIMS {
            let rotation = Rotation::new(dim, 3);
            let v = numbers(4, dim);
            let mut want = v.clone();
            apply_scalar(&rotation, &mut want);
            for (name, apply) in variants() {
                let mut got = v.clone();
                // SAFETY: `variants` lists only functions that this CPU can run.
                unsafe { apply(&rotation, &mut got) };
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&want), "{name}, dim {dim}");
            }
        }
    }

    #[test]
    fn a_seed_gives_one_rotation_on_every_machine() {
        let turned = rotated(&Rotation::new(5, 1), &[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(turned, [3.560_660_1, 5.121_320_2, 0.439_339_88, -2.0, -3.449_747_3]);
        let other = rotated(&Rotation::new(5, 2), &[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_ne!(turned, other);
    }
}
