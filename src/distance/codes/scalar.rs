//! The definition: what every other variant computes.

use super::{GROUP, check_lengths};

/// Sums of the products of query elements and nibbles.
pub(super) fn dot_plane_each(query: &[i8], planes: &[&[u8]], out: &mut [i32]) {
    check_lengths(query, planes, 2);
    for (plane, out) in planes.iter().zip(out) {
        *out = dot_plane(query, plane);
    }
}

/// The sum of the products of query elements and values of two nibbles.
pub(super) fn dot_planes(query: &[i8], high: &[u8], low: &[u8]) -> i32 {
    check_lengths(query, &[high, low], 2);
    16 * dot_plane(query, high) + dot_plane(query, low)
}

/// Sums of the query elements whose bits are set.
pub(super) fn dot_bits_each(query: &[i8], rows: &[&[u8]], out: &mut [i32]) {
    check_lengths(query, rows, 8);
    for (bits, out) in rows.iter().zip(out) {
        *out = dot_bits(query, bits);
    }
}

fn dot_plane(query: &[i8], plane: &[u8]) -> i32 {
    let mut sum = 0;
    for (group, bytes) in query.chunks(GROUP).zip(plane.chunks(GROUP / 2)) {
        let (firsts, seconds) = group.split_at(bytes.len());
        for ((&first, &second), &byte) in firsts.iter().zip(seconds).zip(bytes) {
            sum += i32::from(first) * i32::from(byte & 0x0F) + i32::from(second) * i32::from(byte >> 4);
        }
    }
    sum
}

fn dot_bits(query: &[i8], bits: &[u8]) -> i32 {
    let (octets, _) = query.as_chunks::<8>();
    let mut sum = 0;
    for (octet, &byte) in octets.iter().zip(bits) {
        for (bit, &element) in octet.iter().enumerate() {
            sum += i32::from(element) * i32::from(byte >> bit & 1);
        }
    }
    sum
}
