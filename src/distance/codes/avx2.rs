//! x86-64 with AVX2: 32 bytes of a plane per load. Four rows at a time share the loads of the query and the additions
//! across lanes.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi32, _mm_cvtsi128_si32, _mm_shuffle_epi32, _mm_storeu_si128,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_castsi256_si128, _mm256_cmpeq_epi8,
    _mm256_extracti128_si256, _mm256_hadd_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setr_epi64x,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi16,
};

use super::{GROUP, check_lengths};

/// Sums of the products of query elements and nibbles.
#[target_feature(enable = "avx2")]
pub(super) fn dot_plane_each(query: &[i8], planes: &[&[u8]], out: &mut [i32]) {
    let (fours, rest) = planes.as_chunks::<4>();
    let (fours_out, rest_out) = out.as_chunks_mut::<4>();
    for (rows, out) in fours.iter().zip(fours_out) {
        store(sum_lanes(plane_rows(query, rows)), out);
    }
    for (&row, out) in rest.iter().zip(rest_out) {
        let [sums] = plane_rows(query, &[row]);
        *out = sum(sums);
    }
}

/// The sum of the products of query elements and values of two nibbles.
#[target_feature(enable = "avx2")]
pub(super) fn dot_planes(query: &[i8], high: &[u8], low: &[u8]) -> i32 {
    let [high, low] = plane_rows(query, &[high, low]);
    sum(_mm256_add_epi32(_mm256_slli_epi32::<4>(high), low))
}

/// Sums of the query elements whose bits are set.
#[target_feature(enable = "avx2")]
pub(super) fn dot_bits_each(query: &[i8], rows: &[&[u8]], out: &mut [i32]) {
    let (fours, rest) = rows.as_chunks::<4>();
    let (fours_out, rest_out) = out.as_chunks_mut::<4>();
    for (rows, out) in fours.iter().zip(fours_out) {
        store(sum_lanes(bit_rows(query, rows)), out);
    }
    for (&row, out) in rest.iter().zip(rest_out) {
        let [sums] = bit_rows(query, &[row]);
        *out = sum(sums);
    }
}

/// For each plane, eight sums that add up to its dot product.
#[inline]
#[target_feature(enable = "avx2")]
fn plane_rows<const R: usize>(query: &[i8], rows: &[&[u8]; R]) -> [__m256i; R] {
    check_lengths(query, rows, 2);
    let nibbles = _mm256_set1_epi8(0x0F);
    let mut sums = [_mm256_setzero_si256(); R];
    let bytes = query.len() / 2;
    for start in (0..bytes).step_by(GROUP / 2) {
        let len = (bytes - start).min(GROUP / 2);
        let group = &query[2 * start..2 * (start + len)];
        let (firsts, seconds) = group.split_at(len);
        // A product is at most 15 * 127 and a lane gets four from each of at most two runs: 16 bits hold them.
        let mut small = [_mm256_setzero_si256(); R];
        let whole = len / 32 * 32;
        for at in (0..whole).step_by(32) {
            let (first, second) = (load_query(&firsts[at..]), load_query(&seconds[at..]));
            for row in 0..R {
                let plane = load(&rows[row][start + at..]);
                small[row] = _mm256_add_epi16(small[row], products(plane, nibbles, first, second));
            }
        }
        let rest = len - whole;
        if rest > 0 {
            let mask = load(&LAST_NIBBLES[rest..]);
            if bytes >= 32 {
                // The last 32 bytes, with a mask that leaves out those that were taken before.
                let first = load_query(&query[query.len() - len - 32..]);
                let second = load_query(&query[query.len() - 32..]);
                for row in 0..R {
                    let plane = load(&rows[row][bytes - 32..]);
                    small[row] = _mm256_add_epi16(small[row], products(plane, mask, first, second));
                }
            } else {
                let (first, second) = (load_query(&padded(firsts)), load_query(&padded(seconds)));
                for row in 0..R {
                    let plane = load(&padded(rows[row]));
                    small[row] = products(plane, nibbles, first, second);
                }
            }
        }
        for row in 0..R {
            let wide = _mm256_madd_epi16(small[row], _mm256_set1_epi16(1));
            sums[row] = _mm256_add_epi32(sums[row], wide);
        }
    }
    sums
}

/// From index n on, masks for the nibbles of the last n of 32 bytes.
static LAST_NIBBLES: [u8; 64] = {
    let mut masks = [0; 64];
    let mut at = 32;
    while at < 64 {
        masks[at] = 0x0F;
        at += 1;
    }
    masks
};

/// Products of the nibbles of 32 bytes with 32 + 32 query elements, added up in fours.
#[inline]
#[target_feature(enable = "avx2")]
fn products(plane: __m256i, nibbles: __m256i, first: __m256i, second: __m256i) -> __m256i {
    let low = _mm256_and_si256(plane, nibbles);
    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(plane), nibbles);
    _mm256_add_epi16(_mm256_maddubs_epi16(low, first), _mm256_maddubs_epi16(high, second))
}

/// For each row of bits, eight sums that add up to its dot product.
#[inline]
#[target_feature(enable = "avx2")]
fn bit_rows<const R: usize>(query: &[i8], rows: &[&[u8]; R]) -> [__m256i; R] {
    check_lengths(query, rows, 8);
    let ones = _mm256_set1_epi8(1);
    let mut sums = [_mm256_setzero_si256(); R];
    // A lane gains at most 2 * 127 per 32 elements: 16 bits hold 128 of them.
    for (block, elements) in query.chunks(32 * 128).enumerate() {
        let mut small = [_mm256_setzero_si256(); R];
        for (at, run) in elements.chunks(32).enumerate() {
            let run = match run.as_array::<32>() {
                Some(run) => load_query(run),
                None => load_query(&padded(run)),
            };
            let start = block * 4 * 128 + at * 4;
            for row in 0..R {
                let chosen = _mm256_and_si256(spread_bits(word(rows[row], start)), run);
                small[row] = _mm256_add_epi16(small[row], _mm256_maddubs_epi16(ones, chosen));
            }
        }
        for row in 0..R {
            let wide = _mm256_madd_epi16(small[row], _mm256_set1_epi16(1));
            sums[row] = _mm256_add_epi32(sums[row], wide);
        }
    }
    sums
}

/// The four bytes from `start` on, or what there is of them, as a word, the first the lowest.
#[inline]
fn word(bytes: &[u8], start: usize) -> u32 {
    let rest = &bytes[start..];
    if let Some(&all) = rest.first_chunk() {
        return u32::from_le_bytes(all);
    }
    match bytes.last_chunk() {
        // Those before `start` are shifted out.
        Some(&last) => u32::from_le_bytes(last) >> (8 * (4 - rest.len())),
        None => bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte)),
    }
}

/// A byte per bit, the lowest first: all ones for a set bit, zero for another.
#[inline]
#[target_feature(enable = "avx2")]
fn spread_bits(bits: u32) -> __m256i {
    let copies = _mm256_set1_epi32(bits.cast_signed());
    let byte_of_lane =
        _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bit_of_lane = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    let bytes = _mm256_shuffle_epi8(copies, byte_of_lane);
    _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of_lane), bit_of_lane)
}

/// The four sums over the lanes of four vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_lanes([a, b, c, d]: [__m256i; 4]) -> __m128i {
    let abcd = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_add_epi32(_mm256_castsi256_si128(abcd), _mm256_extracti128_si256::<1>(abcd))
}

/// The sum over the lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn sum(sums: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two)))
}

/// Up to 32 values, and zeros.
#[inline]
fn padded<T: Copy + Default>(values: &[T]) -> [T; 32] {
    let mut all = [T::default(); 32];
    all[..values.len()].copy_from_slice(values);
    all
}

/// The first 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8]) -> __m256i {
    let bytes: &[u8; 32] = bytes.first_chunk().expect("a whole run");
    // SAFETY: the reference covers the 32 bytes that are read, and an unaligned load has no alignment to keep.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// The first 32 query elements.
#[inline]
#[target_feature(enable = "avx2")]
fn load_query(elements: &[i8]) -> __m256i {
    let elements: &[i8; 32] = elements.first_chunk().expect("a whole run");
    // SAFETY: as in `load`.
    unsafe { _mm256_loadu_si256(elements.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(sums: __m128i, out: &mut [i32; 4]) {
    // SAFETY: the reference covers the 16 bytes that are written, and an unaligned store has no alignment to keep.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sums) }
}
