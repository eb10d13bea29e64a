//! x86-64 with AVX-512F: blocks of 4 x 16 floats, then 16 at a time, then a masked tail.

use std::arch::x86_64::{
    __m512, __mmask16, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_blend_ps,
    _mm512_maskz_loadu_ps, _mm512_permute_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_sub_ps,
};

/// The dot product.
#[target_feature(enable = "avx512f")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum::<false>(a, b)
}

/// The squared Euclidean distance.
#[target_feature(enable = "avx512f")]
pub(super) fn l2_squared(a: &[f32], b: &[f32]) -> f32 {
    sum::<true>(a, b)
}

/// In each whole block of 16, the steps of a Walsh-Hadamard transform between elements 1, 2, 4 and 8 apart. Returns 16,
/// or 1 where there is no whole block and nothing was done.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn hadamard_blocks(v: &mut [f32]) -> usize {
    let (blocks, _) = v.as_chunks_mut::<16>();
    let signs =
        |negative: __mmask16| _mm512_mask_blend_ps(negative, _mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
    let (ones, twos, fours, eights) = (signs(0xAAAA), signs(0xCCCC), signs(0xF0F0), signs(0xFF00));
    for block in &mut *blocks {
        // The product with a sign is exact, so the sum is rounded once, as without a fused instruction.
        let x = load(block);
        let x = _mm512_fmadd_ps(x, ones, _mm512_permute_ps::<0b10_11_00_01>(x));
        let x = _mm512_fmadd_ps(x, twos, _mm512_permute_ps::<0b01_00_11_10>(x));
        let x = _mm512_fmadd_ps(x, fours, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
        let x = _mm512_fmadd_ps(x, eights, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x));
        // SAFETY: the reference covers the 64 bytes that are written, and an unaligned store has no alignment to keep.
        unsafe { _mm512_storeu_ps(block.as_mut_ptr(), x) };
    }
    if blocks.is_empty() { 1 } else { 16 }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sum<const DIFFERENCE: bool>(a: &[f32], b: &[f32]) -> f32 {
    let (groups_a, tail_a) = a.as_chunks::<16>();
    let (groups_b, tail_b) = b.as_chunks::<16>();
    let (blocks_a, rest_a) = groups_a.as_chunks::<4>();
    let (blocks_b, rest_b) = groups_b.as_chunks::<4>();
    // Four sums, so that an addition need not wait for the one before it.
    let mut sums = [_mm512_setzero_ps(); 4];
    for (x, y) in blocks_a.iter().zip(blocks_b) {
        for lane in 0..4 {
            sums[lane] = step::<DIFFERENCE>(sums[lane], load(&x[lane]), load(&y[lane]));
        }
    }
    for (lane, (x, y)) in rest_a.iter().zip(rest_b).enumerate() {
        sums[lane] = step::<DIFFERENCE>(sums[lane], load(x), load(y));
    }
    if !tail_a.is_empty() {
        sums[3] = step::<DIFFERENCE>(sums[3], load_tail(tail_a), load_tail(tail_b));
    }
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn step<const DIFFERENCE: bool>(sum: __m512, x: __m512, y: __m512) -> __m512 {
    if DIFFERENCE {
        let d = _mm512_sub_ps(x, y);
        _mm512_fmadd_ps(d, d, sum)
    } else {
        _mm512_fmadd_ps(x, y, sum)
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(v: &[f32; 16]) -> __m512 {
    // SAFETY: the reference covers the 64 bytes that are read, and an unaligned load has no alignment to keep.
    unsafe { _mm512_loadu_ps(v.as_ptr()) }
}

/// Loads fewer than 16 floats; the other lanes are zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_tail(v: &[f32]) -> __m512 {
    let len = v.len().min(15);
    let mask: __mmask16 = (1 << len) - 1;
    // SAFETY: the mask selects the first `len <= v.len()` floats; the CPU reads nothing of the masked-out lanes.
    unsafe { _mm512_maskz_loadu_ps(mask, v.as_ptr()) }
}
