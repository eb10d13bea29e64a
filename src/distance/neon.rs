//! aarch64 with NEON: blocks of 4 x 4 floats, then 4 at a time, then a scalar tail.

use std::arch::aarch64::{float32x4_t, vaddq_f32, vaddvq_f32, vdupq_n_f32, vfmaq_f32, vld1q_f32, vsubq_f32};

use super::scalar;

/// The dot product.
#[target_feature(enable = "neon")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (sum, a, b) = sum_blocks::<false>(a, b);
    sum + scalar::dot(a, b)
}

/// The squared Euclidean distance.
#[target_feature(enable = "neon")]
pub(super) fn l2_squared(a: &[f32], b: &[f32]) -> f32 {
    let (sum, a, b) = sum_blocks::<true>(a, b);
    sum + scalar::l2_squared(a, b)
}

/// Sums over all whole groups of 4 and returns the tails of less than 4.
#[inline]
#[target_feature(enable = "neon")]
fn sum_blocks<'v, const DIFFERENCE: bool>(a: &'v [f32], b: &'v [f32]) -> (f32, &'v [f32], &'v [f32]) {
    let (groups_a, tail_a) = a.as_chunks::<4>();
    let (groups_b, tail_b) = b.as_chunks::<4>();
    let (blocks_a, rest_a) = groups_a.as_chunks::<4>();
    let (blocks_b, rest_b) = groups_b.as_chunks::<4>();
    let mut sums = [vdupq_n_f32(0.0); 4];
    for (x, y) in blocks_a.iter().zip(blocks_b) {
        for lane in 0..4 {
            sums[lane] = step::<DIFFERENCE>(sums[lane], &x[lane], &y[lane]);
        }
    }
    for (x, y) in rest_a.iter().zip(rest_b) {
        sums[0] = step::<DIFFERENCE>(sums[0], x, y);
    }
    let sum = vaddvq_f32(vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3])));
    (sum, tail_a, tail_b)
}

#[inline]
#[target_feature(enable = "neon")]
fn step<const DIFFERENCE: bool>(sum: float32x4_t, x: &[f32; 4], y: &[f32; 4]) -> float32x4_t {
    let (x, y) = (load(x), load(y));
    if DIFFERENCE {
        let d = vsubq_f32(x, y);
        vfmaq_f32(sum, d, d)
    } else {
        vfmaq_f32(sum, x, y)
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(v: &[f32; 4]) -> float32x4_t {
    // SAFETY: the reference covers the 16 bytes that are read, and floats are aligned as the load wants it.
    unsafe { vld1q_f32(v.as_ptr()) }
}
