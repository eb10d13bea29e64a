//! Element types: their names, their sizes, and their values as f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Dtype;

impl Dtype {
    /// Every element type.
    pub const ALL: [Dtype; 7] =
        [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64, Dtype::I8, Dtype::U8, Dtype::I32];

    /// Bytes of one element.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::I8 | Dtype::U8 => 1,
        }
    }

    /// The name that users read and write: `f32`, `bf16`, `u8`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::F64 => "f64",
            Dtype::I8 => "i8",
            Dtype::U8 => "u8",
            Dtype::I32 => "i32",
        }
    }

    /// The type of that [`name`](Self::name).
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Decodes the elements of one row into `out`.
///
/// f64 and i32 are rounded to the nearest f32; an f64 beyond the range of f32 becomes an infinity, which
/// [`check_vector`](super::check_vector) then refuses. All other types are exact.
///
/// # Panics
///
/// When `bytes` does not hold exactly `out.len()` elements.
pub fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * dtype.size_bytes(), "bytes of a row of {} {dtype}", out.len());
    match dtype {
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::F16 => decode_f16(bytes, out),
        Dtype::Bf16 => each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F64 => each(bytes, out, |b| round_f64(f64::from_le_bytes(b))),
        Dtype::I8 => each(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        Dtype::U8 => each(bytes, out, |[b]| f32::from(b)),
        Dtype::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
    }
}

/// The elements of `bytes`, as [`decode`] would have them.
///
/// # Panics
///
/// When `bytes` does not hold whole elements.
#[must_use]
pub fn decoded(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    if dtype == Dtype::F32 {
        // Not into zeros: a batch of queries is some hundred kilobytes.
        let (elements, rest) = bytes.as_chunks();
        assert!(rest.is_empty(), "{} bytes of {dtype}", bytes.len());
        return elements.iter().map(|element| f32::from_le_bytes(*element)).collect();
    }
    let mut values = vec![0.0; bytes.len() / dtype.size_bytes()];
    decode(dtype, bytes, &mut values);
    values
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (to, from) in out.iter_mut().zip(elements) {
        *to = value(*from);
    }
}

/// Appends the elements of a row as `dtype`.
///
/// Integers and f64 are what they were; f16 and bf16 are rounded to the nearest.
///
/// # Errors
///
/// The column of the first value that the type does not have: a fraction or a number out of range for integers, a number
/// that becomes infinite for f16 and bf16. Elements before it were appended.
pub fn encode(dtype: Dtype, row: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
    out.reserve(row.len() * dtype.size_bytes());
    for (column, &value) in row.iter().enumerate() {
        match dtype {
            Dtype::F32 => out.extend(value.to_le_bytes()),
            Dtype::F64 => out.extend(f64::from(value).to_le_bytes()),
            Dtype::F16 => {
                let half = f16::from_f32(value);
                out.extend(half.is_finite().then_some(half.to_le_bytes()).ok_or(column)?);
            }
            Dtype::Bf16 => {
                let half = bf16::from_f32(value);
                out.extend(half.is_finite().then_some(half.to_le_bytes()).ok_or(column)?);
            }
            Dtype::I8 | Dtype::U8 | Dtype::I32 => {
                let whole = whole(value).ok_or(column)?;
                match dtype {
                    Dtype::I8 => out.extend(i8::try_from(whole).map_err(|_| column)?.to_le_bytes()),
                    Dtype::U8 => out.push(u8::try_from(whole).map_err(|_| column)?),
                    _ => out.extend(i32::try_from(whole).map_err(|_| column)?.to_le_bytes()),
                }
            }
        }
    }
    Ok(())
}

/// The whole number that `value` is, when it is one that could be an element.
fn whole(value: f32) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "what was cut off is seen by the comparison")]
    let whole = value as i64;
    #[expect(clippy::cast_precision_loss, reason = "a number that f32 does not have differs from value")]
    let is_whole = whole as f32 == value && value.abs() < 4e9;
    is_whole.then_some(whole)
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest f32 is what is asked for")]
fn round_f64(value: f64) -> f32 {
    value as f32
}

/// In blocks, because the conversion of a slice uses the CPU's instruction for it and that of a value does not.
fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    const BLOCK: usize = 64;
    let mut halves = [f16::ZERO; BLOCK];
    for (to, from) in out.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
        let (elements, _) = from.as_chunks::<2>();
        for (half, element) in halves.iter_mut().zip(elements) {
            *half = f16::from_le_bytes(*element);
        }
        halves[..to.len()].convert_to_f32_slice(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![9.0; bytes.len() / dtype.size_bytes()];
        decode(dtype, bytes, &mut out);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&super::decoded(dtype, bytes)), bits(&out));
        out
    }

    #[test]
    fn every_type_is_found_by_its_name_and_no_other() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::parse(dtype.name()), Some(dtype));
        }
        for name in ["", "F32", "f32 ", "float32", "f8", "u32"] {
            assert_eq!(Dtype::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn every_type_decodes_its_edges() {
        assert_eq!(decoded(Dtype::F32, &[0, 0, 128, 63, 0, 0, 0, 192]), [1.0, -2.0]);
        assert_eq!(decoded(Dtype::F16, &[0, 0x3c, 0xff, 0x7b, 1, 0]), [1.0, 65504.0, 5.960_464_5e-8]);
        assert_eq!(decoded(Dtype::Bf16, &[0x80, 0x3f, 0x49, 0xc0]), [1.0, -3.140_625]);
        assert_eq!(decoded(Dtype::I8, &[0, 1, 127, 128, 255]), [0.0, 1.0, 127.0, -128.0, -1.0]);
        assert_eq!(decoded(Dtype::U8, &[0, 1, 127, 128, 255]), [0.0, 1.0, 127.0, 128.0, 255.0]);
        let bytes: Vec<u8> = [i32::MIN, -1, 16_777_217].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(decoded(Dtype::I32, &bytes), [-2_147_483_648.0, -1.0, 16_777_216.0]);
    }

    #[test]
    fn a_double_is_rounded_to_nearest_and_becomes_infinite_beyond_the_range() {
        let bytes: Vec<u8> = [0.1f64, 1e300, -1e300, 1e-300].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(decoded(Dtype::F64, &bytes), [0.1f32, f32::INFINITY, f32::NEG_INFINITY, 0.0]);
    }

    #[test]
    fn every_half_decodes_to_the_value_it_stands_for() {
        // All 65536 patterns in rows of a length that is not a multiple of the block.
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for row in bytes.chunks(2 * 67) {
            for (value, pattern) in decoded(Dtype::F16, row).into_iter().zip(row.as_chunks::<2>().0) {
                let want = f16::from_le_bytes(*pattern).to_f32();
                assert!(value == want || (value.is_nan() && want.is_nan()), "{pattern:?}: {value}");
            }
        }
        for (value, pattern) in decoded(Dtype::Bf16, &bytes).into_iter().zip(bytes.as_chunks::<2>().0) {
            let want = half::bf16::from_le_bytes(*pattern).to_f32();
            assert!(value == want || (value.is_nan() && want.is_nan()), "{pattern:?}: {value}");
        }
    }

    #[test]
    #[should_panic(expected = "bytes of a row of 2 f32")]
    fn a_row_of_the_wrong_length_is_not_decoded() {
        decode(Dtype::F32, &[0; 7], &mut [0.0; 2]);
    }
}
