//! Which values can be searched: finite ones, of a length that distances survive.

use super::{Dtype, Layout};
use crate::{Error, Result};

/// Greatest Euclidean norm of a vector: 2^62.
///
/// Up to it neither a dot product (2^124) nor a squared distance (2^126) overflows f32, so no distance is
/// infinite or NaN.
pub const MAX_NORM: f32 = (1u64 << 62) as f32;

const MAX_SQUARED_NORM: f32 = MAX_NORM * MAX_NORM;

/// Reads every row once and refuses the file at the first that cannot be searched.
///
/// `on_row` sees each accepted row and its number, in order, before the next is read. Rows are read where they
/// lie when that is possible.
///
/// # Errors
///
/// As [`check_vector`]; [`Error::Format`] when the rows are not inside `bytes`.
pub fn validate(layout: &Layout, bytes: &[u8], cosine: bool, on_row: impl FnMut(u64, &[f32])) -> Result<()> {
    validate_from(0, layout, bytes, cosine, on_row)
}

/// The same of a part of a file whose first row is number `first_row` of it.
///
/// # Errors
///
/// As [`validate`].
pub fn validate_from(
    first_row: u64,
    layout: &Layout,
    bytes: &[u8],
    cosine: bool,
    mut on_row: impl FnMut(u64, &[f32]),
) -> Result<()> {
    let Layout { rows, dim, dtype, offset, .. } = *layout;
    if !layout.fits(bytes.len() as u64) {
        return Err(Error::Format(format!(
            "{rows} rows x {dim} {dtype} from offset {offset} are not inside {} bytes",
            bytes.len()
        )));
    }
    let mut scratch = vec![0.0; dim as usize];
    for row in 0..rows {
        let vector = layout.vector(bytes, row, &mut scratch);
        check_vector(first_row + row, vector, cosine)
            .map_err(|error| as_written(error, dtype, &bytes[layout.row_range(row)]))?;
        on_row(first_row + row, vector);
    }
    Ok(())
}

/// Checks that distances from and to a vector are defined; `row` is only named in the error.
///
/// # Errors
///
/// [`Error::NotFinite`] for the first NaN or infinity, [`Error::Norm`] for a norm above [`MAX_NORM`]. Under
/// cosine [`Error::ZeroVector`], and [`Error::Norm`] for a norm whose square is below the least normal f32.
pub fn check_vector(row: u64, vector: &[f32], cosine: bool) -> Result<()> {
    // A NaN or an infinity among the values makes the sum one too, and the comparison false.
    let squared = squared_norm(vector);
    if squared <= MAX_SQUARED_NORM && (!cosine || squared >= f32::MIN_POSITIVE) {
        return Ok(());
    }
    Err(why_refused(row, vector))
}

#[cold]
fn why_refused(row: u64, vector: &[f32]) -> Error {
    for (column, &value) in (0u32..).zip(vector) {
        if !value.is_finite() {
            return Error::NotFinite { row, column, value: value.into() };
        }
    }
    if vector.iter().all(|&value| value == 0.0) {
        return Error::ZeroVector { row };
    }
    let norm = vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let bound = if norm < 1.0 { f32::MIN_POSITIVE.sqrt() } else { MAX_NORM };
    Error::Norm { row, norm, bound }
}

/// What [`check_vector`] said of a row that was decoded from `bytes`, with the value as it is there: an f64 beyond the
/// range of f32 was decoded as an infinity.
#[must_use]
pub fn as_written(error: Error, dtype: Dtype, bytes: &[u8]) -> Error {
    match (error, dtype) {
        (Error::NotFinite { row, column, value }, Dtype::F64) => {
            let written = bytes.as_chunks().0.get(column as usize).map(|bytes| f64::from_le_bytes(*bytes));
            Error::NotFinite { row, column, value: written.unwrap_or(value) }
        }
        (error, _) => error,
    }
}

/// In independent lanes, which the compiler turns into vector instructions.
fn squared_norm(vector: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (blocks, rest) = vector.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += value * value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|value| value * value).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_FINITE: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

    #[test]
    fn a_value_that_is_not_finite_is_found_in_every_column() {
        for dim in [1, 15, 16, 17, 40] {
            for column in 0..dim {
                for bad in NOT_FINITE {
                    let mut vector = vec![0.5; dim];
                    vector[column] = bad;
                    match check_vector(3, &vector, false) {
                        Err(Error::NotFinite { row: 3, column: found, value }) => {
                            assert_eq!(found as usize, column);
                            assert!(value == f64::from(bad) || value.is_nan() && bad.is_nan());
                        }
                        other => panic!("dim {dim}, column {column}: {other:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_of_several_is_named() {
        let vector = [1.0, f32::INFINITY, f32::NAN];
        assert!(matches!(check_vector(0, &vector, true), Err(Error::NotFinite { column: 1, .. })));
    }

    #[test]
    fn a_zero_vector_is_refused_under_cosine_only() {
        for vector in [&[0.0][..], &[-0.0; 33]] {
            assert!(matches!(check_vector(8, vector, true), Err(Error::ZeroVector { row: 8 })));
            assert!(check_vector(8, vector, false).is_ok());
        }
    }

    #[test]
    fn a_norm_that_distances_do_not_survive_is_refused() {
        assert!(check_vector(0, &[MAX_NORM], true).is_ok());
        assert!(check_vector(0, &[-MAX_NORM / 2.0; 4], false).is_ok());
        let far = [MAX_NORM, -MAX_NORM].map(|value| [value]);
        assert!(check_vector(0, &far[0], false).is_ok() && (far[0][0] - far[1][0]).powi(2).is_finite());
        for vector in [&[MAX_NORM * 1.01][..], &[-MAX_NORM; 2], &[f32::MAX; 20]] {
            let error = check_vector(2, vector, false).unwrap_err().to_string();
            assert!(error.starts_with("row 2: norm ") && error.ends_with(", want at most 4.6e18"), "{error}");
        }
    }

    #[test]
    fn a_norm_whose_square_vanishes_is_refused_under_cosine_only() {
        assert!(check_vector(0, &[f32::MIN_POSITIVE.sqrt() * 1.01], true).is_ok());
        for vector in [[1e-20, 0.0], [f32::from_bits(1), 0.0]] {
            let error = check_vector(0, &vector, true).unwrap_err().to_string();
            assert!(error.ends_with(", cosine wants at least 1.1e-19"), "{error}");
            assert!(check_vector(0, &vector, false).is_ok());
        }
    }

    #[test]
    fn rows_before_a_bad_one_are_seen_and_it_is_named() {
        let bytes: Vec<u8> = [1f32, 2.0, 3.0, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
        let layout = Layout { dtype: Dtype::F32, dim: 1, rows: 4, offset: 0, stride: 4 };
        let mut seen = Vec::new();
        let result = validate(&layout, &bytes, true, |row, vector| seen.push((row, vector.to_vec())));
        assert!(matches!(result, Err(Error::NotFinite { row: 3, column: 0, .. })));
        assert_eq!(seen, [(0, vec![1.0]), (1, vec![2.0]), (2, vec![3.0])]);
    }

    #[test]
    fn rows_of_every_type_are_decoded() {
        for dtype in Dtype::ALL {
            let size = dtype.size_bytes();
            // All-zero bytes are 0.0 in every type.
            let layout = Layout { dtype, dim: 3, rows: 2, offset: 1, stride: 3 * size as u64 + 1 };
            let bytes = vec![0; 2 + 6 * size];
            let mut seen = 0;
            validate(&layout, &bytes, false, |row, vector| {
                assert_eq!((row, vector), (seen, &[0.0; 3][..]));
                seen += 1;
            })
            .unwrap();
            assert_eq!(seen, 2);
            let refused = validate(&layout, &bytes, true, |_, _| panic!("a zero vector was accepted"));
            assert!(matches!(refused, Err(Error::ZeroVector { row: 0 })));
        }
    }

    #[test]
    fn an_f64_beyond_the_range_of_f32_is_not_finite() {
        for (value, message) in [
            (1e300, "row 0, column 1: value is 1e300, beyond the range of f32"),
            (-1e39, "row 0, column 1: value is -1e39, beyond the range of f32"),
            (f64::NEG_INFINITY, "row 0, column 1: value is -inf, want a finite number"),
            (f64::NAN, "row 0, column 1: value is NaN, want a finite number"),
        ] {
            let bytes = [1f64.to_le_bytes(), value.to_le_bytes()].concat();
            let layout = Layout { dtype: Dtype::F64, dim: 2, rows: 1, offset: 0, stride: 16 };
            assert_eq!(validate(&layout, &bytes, false, |_, _| ()).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_layout_of_another_file_is_refused() {
        let layout = Layout { dtype: Dtype::F32, dim: u32::MAX, rows: 2, offset: 0, stride: u64::MAX };
        let error = validate(&layout, &[0; 8], false, |_, _| ()).unwrap_err();
        assert_eq!(error.to_string(), "2 rows x 4294967295 f32 from offset 0 are not inside 8 bytes");
    }
}
