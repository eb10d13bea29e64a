//! aarch64 with NEON: 16 bytes of a plane per load. Four rows at a time share the loads of the query and the additions
//! across lanes.
//!
//! Without the dot product instructions, whose intrinsics std does not offer on its stable channel: products are
//! added up in 16 bits and widened once per group.

use std::arch::aarch64::{
    int8x16_t, int16x8_t, int32x4_t, uint8x16_t, vaddq_s32, vaddvq_s32, vandq_s8, vandq_u8, vcombine_u8,
    vdup_n_u8, vdupq_n_s16, vdupq_n_s32, vdupq_n_u8, vget_low_s8, vld1q_s8, vld1q_u8, vmlal_high_s8,
    vmlal_s8, vpadalq_s8, vpadalq_s16, vpaddq_s32, vreinterpretq_s8_u8, vshlq_n_s32, vshrq_n_u8, vst1q_s32,
    vtstq_u8,
};

use super::{GROUP, check_lengths};

/// Sums of the products of query elements and nibbles.
#[target_feature(enable = "neon")]
pub(super) fn dot_plane_each(query: &[i8], planes: &[&[u8]], out: &mut [i32]) {
    let (fours, rest) = planes.as_chunks::<4>();
    let (fours_out, rest_out) = out.as_chunks_mut::<4>();
    for (rows, out) in fours.iter().zip(fours_out) {
        store(sum_lanes(plane_rows(query, rows)), out);
    }
    for (&row, out) in rest.iter().zip(rest_out) {
        let [sums] = plane_rows(query, &[row]);
        *out = vaddvq_s32(sums);
    }
}

/// The sum of the products of query elements and values of two nibbles.
#[target_feature(enable = "neon")]
pub(super) fn dot_planes(query: &[i8], high: &[u8], low: &[u8]) -> i32 {
    let [high, low] = plane_rows(query, &[high, low]);
    vaddvq_s32(vaddq_s32(vshlq_n_s32::<4>(high), low))
}

/// Sums of the query elements whose bits are set.
#[target_feature(enable = "neon")]
pub(super) fn dot_bits_each(query: &[i8], rows: &[&[u8]], out: &mut [i32]) {
    let (fours, rest) = rows.as_chunks::<4>();
    let (fours_out, rest_out) = out.as_chunks_mut::<4>();
    for (rows, out) in fours.iter().zip(fours_out) {
        store(sum_lanes(bit_rows(query, rows)), out);
    }
    for (&row, out) in rest.iter().zip(rest_out) {
        let [sums] = bit_rows(query, &[row]);
        *out = vaddvq_s32(sums);
    }
}

/// For each plane, four sums that add up to its dot product.
#[inline]
#[target_feature(enable = "neon")]
fn plane_rows<const R: usize>(query: &[i8], rows: &[&[u8]; R]) -> [int32x4_t; R] {
    check_lengths(query, rows, 2);
    let nibbles = vdupq_n_u8(0x0F);
    let mut sums = [vdupq_n_s32(0); R];
    let bytes = query.len() / 2;
    for start in (0..bytes).step_by(GROUP / 2) {
        let len = (bytes - start).min(GROUP / 2);
        let group = &query[2 * start..2 * (start + len)];
        let (firsts, seconds) = group.split_at(len);
        // A product is at most 15 * 127 and a lane gets four from each of at most four runs: 16 bits hold them.
        let mut small = [vdupq_n_s16(0); R];
        let whole = len / 16 * 16;
        for at in (0..whole).step_by(16) {
            let (first, second) = (load_query(&firsts[at..]), load_query(&seconds[at..]));
            for row in 0..R {
                let plane = load(&rows[row][start + at..]);
                small[row] = add_products(small[row], plane, nibbles, first, second);
            }
        }
        let rest = len - whole;
        if rest > 0 {
            if bytes >= 16 {
                // The last 16 bytes, with a mask that leaves out those that were taken before.
                let mask = load(&LAST_NIBBLES[rest..]);
                let first = load_query(&query[query.len() - len - 16..]);
                let second = load_query(&query[query.len() - 16..]);
                for row in 0..R {
                    let plane = load(&rows[row][bytes - 16..]);
                    small[row] = add_products(small[row], plane, mask, first, second);
                }
            } else {
                let (first, second) = (load_query(&padded(firsts)), load_query(&padded(seconds)));
                for row in 0..R {
                    small[row] = add_products(small[row], load(&padded(rows[row])), nibbles, first, second);
                }
            }
        }
        for row in 0..R {
            sums[row] = vpadalq_s16(sums[row], small[row]);
        }
    }
    sums
}

/// From index n on, masks for the nibbles of the last n of 16 bytes.
static LAST_NIBBLES: [u8; 32] = {
    let mut masks = [0; 32];
    let mut at = 16;
    while at < 32 {
        masks[at] = 0x0F;
        at += 1;
    }
    masks
};

/// Adds products of the nibbles of 16 bytes with 16 + 16 query elements, four per lane.
#[inline]
#[target_feature(enable = "neon")]
fn add_products(
    sums: int16x8_t,
    plane: uint8x16_t,
    nibbles: uint8x16_t,
    first: int8x16_t,
    second: int8x16_t,
) -> int16x8_t {
    let low = vreinterpretq_s8_u8(vandq_u8(plane, nibbles));
    let high = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<4>(plane), nibbles));
    let sums = vmlal_s8(sums, vget_low_s8(low), vget_low_s8(first));
    let sums = vmlal_high_s8(sums, low, first);
    let sums = vmlal_s8(sums, vget_low_s8(high), vget_low_s8(second));
    vmlal_high_s8(sums, high, second)
}

/// For each row of bits, four sums that add up to its dot product.
#[inline]
#[target_feature(enable = "neon")]
fn bit_rows<const R: usize>(query: &[i8], rows: &[&[u8]; R]) -> [int32x4_t; R] {
    check_lengths(query, rows, 8);
    let mut sums = [vdupq_n_s32(0); R];
    // A lane gains at most 2 * 127 per 16 elements: 16 bits hold 128 of them.
    for (block, elements) in query.chunks(16 * 128).enumerate() {
        let mut small = [vdupq_n_s16(0); R];
        for (at, run) in elements.chunks(16).enumerate() {
            let run = match run.as_array::<16>() {
                Some(run) => load_query(run),
                None => load_query(&padded(run)),
            };
            let start = block * 2 * 128 + at * 2;
            for row in 0..R {
                let first = rows[row][start];
                // An odd last byte has no second one; the query's padding takes its place.
                let second = rows[row].get(start + 1).copied().unwrap_or(0);
                small[row] = vpadalq_s8(small[row], vandq_s8(spread_bits(first, second), run));
            }
        }
        for row in 0..R {
            sums[row] = vpadalq_s16(sums[row], small[row]);
        }
    }
    sums
}

/// A byte per bit of two bytes, the lowest first: all ones for a set bit, zero for another.
#[inline]
#[target_feature(enable = "neon")]
fn spread_bits(first: u8, second: u8) -> int8x16_t {
    let bytes = vcombine_u8(vdup_n_u8(first), vdup_n_u8(second));
    vreinterpretq_s8_u8(vtstq_u8(bytes, load(&[1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128])))
}

/// The four sums over the lanes of four vectors.
#[inline]
#[target_feature(enable = "neon")]
fn sum_lanes([a, b, c, d]: [int32x4_t; 4]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))
}

/// Up to 16 values, and zeros.
#[inline]
fn padded<T: Copy + Default>(values: &[T]) -> [T; 16] {
    let mut all = [T::default(); 16];
    all[..values.len()].copy_from_slice(values);
    all
}

/// The first 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8]) -> uint8x16_t {
    let bytes: &[u8; 16] = bytes.first_chunk().expect("a whole run");
    // SAFETY: the reference covers the 16 bytes that are read, which need no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// The first 16 query elements.
#[inline]
#[target_feature(enable = "neon")]
fn load_query(elements: &[i8]) -> int8x16_t {
    let elements: &[i8; 16] = elements.first_chunk().expect("a whole run");
    // SAFETY: as in `load`.
    unsafe { vld1q_s8(elements.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(sums: int32x4_t, out: &mut [i32; 4]) {
    // SAFETY: the reference covers the 16 bytes that are written, aligned for i32.
    unsafe { vst1q_s32(out.as_mut_ptr(), sums) }
}
