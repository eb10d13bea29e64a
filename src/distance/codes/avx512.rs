//! x86-64 with AVX-512F, BW and VNNI: a whole group of a nibble plane per load, masked loads for the last one. Four rows
//! at a time share the loads of the query and the additions across lanes.

use std::arch::x86_64::{
    __m128i, __m512i, _mm_add_epi32, _mm_storeu_si128, _mm256_add_epi32, _mm256_castsi256_si128,
    _mm256_extracti128_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_castsi512_si256,
    _mm512_dpbusd_epi32, _mm512_extracti64x4_epi64, _mm512_loadu_epi8, _mm512_maskz_loadu_epi8,
    _mm512_maskz_mov_epi8, _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_srai_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::check_lengths;

/// Sums of the products of query elements and nibbles.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dot_plane_each(query: &[i8], planes: &[&[u8]], out: &mut [i32]) {
    let (fours, rest) = planes.as_chunks::<4>();
    let (fours_out, rest_out) = out.as_chunks_mut::<4>();
    for (rows, out) in fours.iter().zip(fours_out) {
        store(sum_lanes(plane_rows(query, rows)), out);
    }
    for (&row, out) in rest.iter().zip(rest_out) {
        let [sum] = plane_rows(query, &[row]);
        *out = _mm512_reduce_add_epi32(sum);
    }
}

/// The sum of the products of query elements and values of two nibbles.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dot_planes(query: &[i8], high: &[u8], low: &[u8]) -> i32 {
    let [high, low] = plane_rows(query, &[high, low]);
    _mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_slli_epi32::<4>(high), low))
}

/// Sums of the query elements whose bits are set.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn dot_bits_each(query: &[i8], rows: &[&[u8]], out: &mut [i32]) {
    let (fours, rest) = rows.as_chunks::<4>();
    let (fours_out, rest_out) = out.as_chunks_mut::<4>();
    for (rows, out) in fours.iter().zip(fours_out) {
        store(sum_lanes(bit_rows(query, rows)), out);
    }
    for (&row, out) in rest.iter().zip(rest_out) {
        let [sum] = bit_rows(query, &[row]);
        *out = _mm512_reduce_add_epi32(sum);
    }
}

/// For each plane, sixteen sums that add up to its dot product.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn plane_rows<const R: usize>(query: &[i8], rows: &[&[u8]; R]) -> [__m512i; R] {
    check_lengths(query, rows, 2);
    let bytes = query.len() / 2;
    let low_nibbles = _mm512_set1_epi8(0x0F);
    let high_nibbles = _mm512_set1_epi8(-16);
    // The high nibbles stay where they are, as 16 times their value: one shift of the sums replaces one per load.
    let mut lows = [_mm512_setzero_si512(); R];
    let mut highs = [_mm512_setzero_si512(); R];
    for start in (0..bytes).step_by(64) {
        let len = (bytes - start).min(64);
        let mask = u64::MAX >> (64 - len);
        // SAFETY: groups before this one have 64 bytes and 128 query elements each, and this one has `len` bytes and
        // 2 * `len` elements, all of which the slices have by `check_lengths`; masked-out bytes are not read.
        let (first, second) = unsafe {
            let group = query.as_ptr().add(2 * start);
            (_mm512_maskz_loadu_epi8(mask, group), _mm512_maskz_loadu_epi8(mask, group.add(len)))
        };
        for row in 0..R {
            // SAFETY: the same.
            let plane = unsafe { _mm512_maskz_loadu_epi8(mask, rows[row].as_ptr().add(start).cast()) };
            lows[row] = _mm512_dpbusd_epi32(lows[row], _mm512_and_si512(plane, low_nibbles), first);
            highs[row] = _mm512_dpbusd_epi32(highs[row], _mm512_and_si512(plane, high_nibbles), second);
        }
    }
    for row in 0..R {
        lows[row] = _mm512_add_epi32(lows[row], _mm512_srai_epi32::<4>(highs[row]));
    }
    lows
}

/// For each row of bits, sixteen sums that add up to its dot product.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn bit_rows<const R: usize>(query: &[i8], rows: &[&[u8]; R]) -> [__m512i; R] {
    check_lengths(query, rows, 8);
    let ones = _mm512_set1_epi8(1);
    let mut sums = [_mm512_setzero_si512(); R];
    let (words, last) = query.as_chunks::<64>();
    for (at, elements) in words.iter().enumerate() {
        // SAFETY: the reference covers the 64 bytes that are read, and an unaligned load has no alignment to keep.
        let elements = unsafe { _mm512_loadu_epi8(elements.as_ptr()) };
        for row in 0..R {
            let bits = rows[row][8 * at..].first_chunk().expect("a byte for each eight elements");
            let chosen = _mm512_maskz_mov_epi8(u64::from_le_bytes(*bits), elements);
            sums[row] = _mm512_dpbusd_epi32(sums[row], ones, chosen);
        }
    }
    if !last.is_empty() {
        // SAFETY: the mask selects the elements of `last`, which are fewer than 64; no others are read.
        let elements = unsafe { _mm512_maskz_loadu_epi8(u64::MAX >> (64 - last.len()), last.as_ptr()) };
        for row in 0..R {
            let chosen = _mm512_maskz_mov_epi8(last_word(rows[row], last.len() / 8), elements);
            sums[row] = _mm512_dpbusd_epi32(sums[row], ones, chosen);
        }
    }
    sums
}

/// The last `len` bytes, 1..=7, as a word, the first the lowest.
#[inline]
fn last_word(bytes: &[u8], len: usize) -> u64 {
    match bytes.last_chunk() {
        // Those before are shifted out.
        Some(&last) => u64::from_le_bytes(last) >> (8 * (8 - len)),
        None => bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    }
}

/// The four sums over the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_lanes([a, b, c, d]: [__m512i; 4]) -> __m128i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let half = _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64::<1>(abcd));
    _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(sums: __m128i, out: &mut [i32; 4]) {
    // SAFETY: the reference covers the 16 bytes that are written, and an unaligned store has no alignment to keep.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sums) }
}
