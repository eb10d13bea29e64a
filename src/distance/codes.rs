//! Dot products of an i8 query with integer codes: nibble planes and bit planes.
//!
//! A *nibble plane* holds one value 0..=15 per element. Elements come in groups of 128, a group takes 64 bytes: its
//! byte j holds element j in the low half and element 64 + j in the high half, so that a mask and a shift give two
//! runs of elements in natural order. The last group of r < 128 elements takes h = ceil(r / 2) bytes: byte j holds
//! elements j and h + j. Two planes, one of the high and one of the low nibbles, hold byte values 0..=255.
//!
//! A *bit plane* holds one bit per element: element i is bit i % 8, the lowest first, of byte i / 8.
//!
//! The query has natural order in both cases and is padded with zeros ([`query_len`], 8 elements per byte of bits).
//! All sums are exact, in whatever order a variant adds. They fit i32 up to [`MAX_DIM`] elements.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

/// Elements up to which no sum leaves i32: 127 * 255 * 65,536 < 2^31.
pub const MAX_DIM: usize = 65_536;

/// Elements in a whole group of a nibble plane.
const GROUP: usize = 128;

/// Bytes of a nibble plane of `dim` elements.
#[must_use]
#[inline]
pub const fn plane_bytes(dim: usize) -> usize {
    dim.div_ceil(2)
}

/// Elements of a query for a nibble plane of `dim` elements: `dim`, and a zero where `dim` is odd.
#[must_use]
#[inline]
pub const fn query_len(dim: usize) -> usize {
    2 * plane_bytes(dim)
}

/// Bytes of a bit plane of `dim` elements.
#[must_use]
#[inline]
pub const fn bit_bytes(dim: usize) -> usize {
    dim.div_ceil(8)
}

/// Splits values 0..=255 into the plane of their high and the plane of their low nibbles.
///
/// # Panics
///
/// Unless both planes have [`plane_bytes`] of the number of values.
pub fn write_planes(values: &[u8], high: &mut [u8], low: &mut [u8]) {
    let bytes = plane_bytes(values.len());
    assert!(high.len() == bytes && low.len() == bytes, "planes that do not fit the values");
    let planes = high.chunks_mut(GROUP / 2).zip(low.chunks_mut(GROUP / 2));
    for (group, (high, low)) in values.chunks(GROUP).zip(planes) {
        let (firsts, seconds) = group.split_at(high.len());
        // The second half of an odd group is one element short: its last nibble is 0.
        let seconds = seconds.iter().copied().chain(std::iter::once(0));
        for (((high, low), &first), second) in high.iter_mut().zip(low).zip(firsts).zip(seconds) {
            *high = first >> 4 | second & 0xF0;
            *low = first & 0x0F | second << 4;
        }
    }
}

/// Puts values 0..=255 together again: the reverse of [`write_planes`].
///
/// # Panics
///
/// Unless both planes have [`plane_bytes`] of the number of values.
pub fn read_planes(high: &[u8], low: &[u8], values: &mut [u8]) {
    let bytes = plane_bytes(values.len());
    assert!(high.len() == bytes && low.len() == bytes, "planes that do not fit the values");
    let planes = high.chunks(GROUP / 2).zip(low.chunks(GROUP / 2));
    for (group, (high, low)) in values.chunks_mut(GROUP).zip(planes) {
        let (firsts, seconds) = group.split_at_mut(high.len());
        for ((value, high), low) in firsts.iter_mut().zip(high).zip(low) {
            *value = high << 4 | low & 0x0F;
        }
        for ((value, high), low) in seconds.iter_mut().zip(high).zip(low) {
            *value = high & 0xF0 | low >> 4;
        }
    }
}

/// Sum of `query[i]` times nibble i of the plane.
///
/// # Panics
///
/// Unless the query has two elements per byte of the plane.
#[must_use]
#[inline]
pub fn dot_plane(query: &[i8], plane: &[u8]) -> i32 {
    VARIANT.dot_plane(query, plane)
}

/// [`dot_plane`] of each of `planes`, in order, into `out`. Faster than one at a time: four rows share the loads of the
/// query and the last additions.
///
/// # Panics
///
/// Unless the query has two elements per byte of each plane, and `out` has the length of `planes`.
#[inline]
pub fn dot_plane_each(query: &[i8], planes: &[&[u8]], out: &mut [i32]) {
    VARIANT.dot_plane_each(query, planes, out);
}

/// Sum of `query[i]` times value i, which is 16 times its nibble in `high` plus its nibble in `low`.
///
/// # Panics
///
/// Unless the query has two elements per byte of each plane.
#[must_use]
#[inline]
pub fn dot_planes(query: &[i8], high: &[u8], low: &[u8]) -> i32 {
    VARIANT.dot_planes(query, high, low)
}

/// Sum of `query[i]` over the set bits.
///
/// # Panics
///
/// Unless the query has eight elements per byte of bits.
#[must_use]
#[inline]
pub fn dot_bits(query: &[i8], bits: &[u8]) -> i32 {
    VARIANT.dot_bits(query, bits)
}

/// [`dot_bits`] of each of `rows`, in order, into `out`.
///
/// # Panics
///
/// Unless the query has eight elements per byte of each row, and `out` has the length of `rows`.
#[inline]
pub fn dot_bits_each(query: &[i8], rows: &[&[u8]], out: &mut [i32]) {
    VARIANT.dot_bits_each(query, rows, out);
}

/// Name of the variant in use: `avx512vnni`, `avx2`, `neon` or `scalar`.
#[must_use]
pub fn variant() -> &'static str {
    VARIANT.name
}

/// A dot product with each of some rows. `unsafe` because its CPU features must be there; lengths it checks itself.
type EachKernel = unsafe fn(&[i8], &[&[u8]], &mut [i32]);

/// The functions of this module in the form that one family of CPUs runs. They panic as those of the module do.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    name: &'static str,
    dot_plane_each: EachKernel,
    dot_planes: unsafe fn(&[i8], &[u8], &[u8]) -> i32,
    dot_bits_each: EachKernel,
}

impl Variant {
    /// `avx512vnni`, `avx2`, `neon` or `scalar`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// As [`dot_plane`].
    #[must_use]
    #[inline]
    pub fn dot_plane(&self, query: &[i8], plane: &[u8]) -> i32 {
        let mut out = [0];
        self.dot_plane_each(query, &[plane], &mut out);
        out[0]
    }

    /// As [`dot_plane_each`].
    #[inline]
    pub fn dot_plane_each(&self, query: &[i8], planes: &[&[u8]], out: &mut [i32]) {
        assert_eq!(planes.len(), out.len(), "results for another number of rows");
        // SAFETY: `variants` lists only kernels whose features the CPU was found to have, and a kernel asks for
        // nothing else: it is a safe function apart from its features.
        unsafe { (self.dot_plane_each)(query, planes, out) }
    }

    /// As [`dot_planes`].
    #[must_use]
    #[inline]
    pub fn dot_planes(&self, query: &[i8], high: &[u8], low: &[u8]) -> i32 {
        // SAFETY: as in `dot_plane_each`.
        unsafe { (self.dot_planes)(query, high, low) }
    }

    /// As [`dot_bits`].
    #[must_use]
    #[inline]
    pub fn dot_bits(&self, query: &[i8], bits: &[u8]) -> i32 {
        let mut out = [0];
        self.dot_bits_each(query, &[bits], &mut out);
        out[0]
    }

    /// As [`dot_bits_each`].
    #[inline]
    pub fn dot_bits_each(&self, query: &[i8], rows: &[&[u8]], out: &mut [i32]) {
        assert_eq!(rows.len(), out.len(), "results for another number of rows");
        // SAFETY: as in `dot_plane_each`.
        unsafe { (self.dot_bits_each)(query, rows, out) }
    }
}

static VARIANT: LazyLock<Variant> = LazyLock::new(|| variants()[0]);

/// The variants that this CPU can run, the best first, which the functions of this module use; the definition is
/// always the last.
#[must_use]
pub fn variants() -> Vec<Variant> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
        {
            found.push(Variant {
                name: "avx512vnni",
                dot_plane_each: avx512::dot_plane_each,
                dot_planes: avx512::dot_planes,
                dot_bits_each: avx512::dot_bits_each,
            });
        }
        if is_x86_feature_detected!("avx2") {
            found.push(Variant {
                name: "avx2",
                dot_plane_each: avx2::dot_plane_each,
                dot_planes: avx2::dot_planes,
                dot_bits_each: avx2::dot_bits_each,
            });
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        found.push(Variant {
            name: "neon",
            dot_plane_each: neon::dot_plane_each,
            dot_planes: neon::dot_planes,
            dot_bits_each: neon::dot_bits_each,
        });
    }
    found.push(Variant {
        name: "scalar",
        dot_plane_each: scalar::dot_plane_each,
        dot_planes: scalar::dot_planes,
        dot_bits_each: scalar::dot_bits_each,
    });
    found
}

/// Panics unless the query has `per_byte` elements for each byte of each row.
#[inline]
fn check_lengths(query: &[i8], rows: &[&[u8]], per_byte: usize) {
    assert!(
        rows.iter().all(|row| row.len() * per_byte == query.len()),
        "codes and query of different lengths"
    );
}
