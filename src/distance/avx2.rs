//! x86-64 with AVX2 and FMA: blocks of 4 x 8 floats, then 8 at a time, then a scalar tail.

use std::arch::x86_64::{
    __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehl_ps, _mm_shuffle_ps, _mm256_add_ps,
    _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_permute_ps,
    _mm256_permute2f128_ps, _mm256_setr_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm256_sub_ps,
};

use super::scalar;

/// The dot product.
#[target_feature(enable = "avx2,fma")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (sum, a, b) = sum_blocks::<false>(a, b);
    sum + scalar::dot(a, b)
}

/// The squared Euclidean distance.
#[target_feature(enable = "avx2,fma")]
pub(super) fn l2_squared(a: &[f32], b: &[f32]) -> f32 {
    let (sum, a, b) = sum_blocks::<true>(a, b);
    sum + scalar::l2_squared(a, b)
}

/// In each whole block of 8, the steps of a Walsh-Hadamard transform between elements 1, 2 and 4 apart. Returns 8, or 1
/// where there is no whole block and nothing was done.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn hadamard_blocks(v: &mut [f32]) -> usize {
    let (blocks, _) = v.as_chunks_mut::<8>();
    let ones = _mm256_setr_ps(1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0);
    let twos = _mm256_setr_ps(1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0);
    let fours = _mm256_setr_ps(1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0);
    for block in &mut *blocks {
        // The product with a sign is exact, so the sum is rounded once, as without a fused instruction.
        let x = load(block);
        let x = _mm256_fmadd_ps(x, ones, _mm256_permute_ps::<0b10_11_00_01>(x));
        let x = _mm256_fmadd_ps(x, twos, _mm256_permute_ps::<0b01_00_11_10>(x));
        let x = _mm256_fmadd_ps(x, fours, _mm256_permute2f128_ps::<1>(x, x));
        // SAFETY: the reference covers the 32 bytes that are written, and an unaligned store has no alignment to keep.
        unsafe { _mm256_storeu_ps(block.as_mut_ptr(), x) };
    }
    if blocks.is_empty() { 1 } else { 8 }
}

/// Sums over all whole groups of 8 and returns the tails of less than 8.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sum_blocks<'v, const DIFFERENCE: bool>(a: &'v [f32], b: &'v [f32]) -> (f32, &'v [f32], &'v [f32]) {
    let (groups_a, tail_a) = a.as_chunks::<8>();
    let (groups_b, tail_b) = b.as_chunks::<8>();
    let (blocks_a, rest_a) = groups_a.as_chunks::<4>();
    let (blocks_b, rest_b) = groups_b.as_chunks::<4>();
    // Four sums, so that an addition need not wait for the one before it.
    let mut sums = [_mm256_setzero_ps(); 4];
    for (x, y) in blocks_a.iter().zip(blocks_b) {
        for lane in 0..4 {
            sums[lane] = step::<DIFFERENCE>(sums[lane], &x[lane], &y[lane]);
        }
    }
    for (x, y) in rest_a.iter().zip(rest_b) {
        sums[0] = step::<DIFFERENCE>(sums[0], x, y);
    }
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    let one = _mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair));
    (_mm_cvtss_f32(one), tail_a, tail_b)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn step<const DIFFERENCE: bool>(sum: __m256, x: &[f32; 8], y: &[f32; 8]) -> __m256 {
    let (x, y) = (load(x), load(y));
    if DIFFERENCE {
        let d = _mm256_sub_ps(x, y);
        _mm256_fmadd_ps(d, d, sum)
    } else {
        _mm256_fmadd_ps(x, y, sum)
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load(v: &[f32; 8]) -> __m256 {
    // SAFETY: the reference covers the 32 bytes that are read, and an unaligned load has no alignment to keep.
    unsafe { _mm256_loadu_ps(v.as_ptr()) }
}
