//! `.fvecs`, `.bvecs`, `.ivecs`: each row is an i32, its dimension, and its elements.
//!
//! The format of the TEXMEX data sets (SIFT1M, GIST1M).

use super::layout::{check_dim, check_rows, row_bytes};
use super::{Dtype, Layout, Limits};
use crate::{Error, Result};

pub(super) const HEADER: usize = 4;

/// Reads the header of every row in `head`, so that a file whose rows differ is found before its values are used.
pub(super) fn layout(dtype: Dtype, head: &[u8], len: u64, limits: &Limits) -> Result<Layout> {
    let Some(first) = header(head) else {
        return Err(Error::Format(format!("{len} bytes, the first row's dimension alone has {HEADER}")));
    };
    let Ok(first) = u64::try_from(first) else {
        return Err(Error::Format(format!("dimension {first}, want at least 1")));
    };
    let dim = check_dim(first, limits)?;
    let stride = HEADER as u64 + row_bytes(dtype, dim);
    let rows = len / stride;
    if rows > 0 {
        check_rows(rows, limits)?;
        let stride = usize::try_from(stride).expect("a limit of the dimension was kept");
        // The part of a row at the end has a header too, and it tells more than the length.
        for (row, bytes) in head.chunks(stride).enumerate().skip(1) {
            check_header(bytes, row as u64, dim)?;
        }
    }
    if !len.is_multiple_of(stride) {
        return Err(Error::Format(format!("{len} bytes, want a multiple of {stride} (dim {dim}, {dtype})")));
    }
    Ok(Layout { dtype, dim, rows, offset: HEADER as u64, stride })
}

/// Checks that a row, which begins with its header, has `dim` elements. A part without a whole header is left alone.
pub(super) fn check_header(bytes: &[u8], row: u64, dim: u32) -> Result<()> {
    match header(bytes) {
        Some(got) if u32::try_from(got) != Ok(dim) => {
            Err(Error::Format(format!("row {row}: dimension {got}, row 0 has {dim}")))
        }
        _ => Ok(()),
    }
}

fn header(row: &[u8]) -> Option<i32> {
    row.first_chunk::<HEADER>().map(|header| i32::from_le_bytes(*header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dtype: Dtype, bytes: &[u8], limits: &Limits) -> Result<Layout> {
        super::layout(dtype, bytes, bytes.len() as u64, limits)
    }

    fn row(dim: u32, dtype: Dtype) -> Vec<u8> {
        let mut bytes = dim.to_le_bytes().to_vec();
        bytes.resize(HEADER + dim as usize * dtype.size_bytes(), 1);
        bytes
    }

    #[test]
    fn rows_are_found_behind_their_headers() {
        for dtype in [Dtype::F32, Dtype::U8, Dtype::I32] {
            let file = [row(3, dtype), row(3, dtype)].concat();
            let layout = layout(dtype, &file, &Limits::default()).unwrap();
            let len = 3 * dtype.size_bytes();
            assert_eq!((layout.rows, layout.dim), (2, 3));
            assert_eq!(layout.row_range(0), 4..4 + len);
            assert_eq!(layout.row_range(1), 8 + len..file.len());
        }
    }

    #[test]
    fn a_row_of_another_dimension_or_half_a_row_is_refused() {
        let u8s = |dims: &[u32]| dims.iter().flat_map(|&dim| row(dim, Dtype::U8)).collect::<Vec<u8>>();
        let cut = |len: usize| u8s(&[4, 4])[..len].to_vec();
        for (bytes, message) in [
            (u8s(&[4, 4, 5]), "row 2: dimension 5, row 0 has 4"),
            (u8s(&[4, 3, 4, 1]), "row 1: dimension 3, row 0 has 4"),
            (u8s(&[4, 0]), "row 1: dimension 0, row 0 has 4"),
            (u8s(&[0]), "dimension 0, want at least 1"),
            (cut(15), "15 bytes, want a multiple of 8 (dim 4, u8)"),
            (cut(10), "10 bytes, want a multiple of 8 (dim 4, u8)"),
            (cut(7), "7 bytes, want a multiple of 8 (dim 4, u8)"),
            (cut(3), "3 bytes, the first row's dimension alone has 4"),
            (vec![0xff; 8], "dimension -1, want at least 1"),
            (u8s(&[16_385]), "dimension 16385, the limit is 16384"),
            ([u8s(&[4, 4]), vec![0xff; 8]].concat(), "row 2: dimension -1, row 0 has 4"),
        ] {
            let error = layout(Dtype::U8, &bytes, &Limits::default()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn the_limit_of_rows_is_kept() {
        let limits = Limits { max_rows: 2, ..Limits::default() };
        let three = [row(1, Dtype::U8), row(1, Dtype::U8), row(1, Dtype::U8)].concat();
        assert_eq!(layout(Dtype::U8, &three[..10], &limits).unwrap().rows, 2);
        let error = layout(Dtype::U8, &three, &limits).unwrap_err();
        assert_eq!(error.to_string(), "number of rows 3, the limit is 2");
    }
}
