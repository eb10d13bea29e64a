//! Raw files: the elements of one vector and nothing else.

use super::layout::check_dim;
use super::{Dtype, Layout, Limits};
use crate::{Error, Result};

/// One row over the whole file.
pub(super) fn layout(dtype: Dtype, len: u64, limits: &Limits) -> Result<Layout> {
    let size = dtype.size_bytes() as u64;
    if !len.is_multiple_of(size) {
        return Err(Error::Format(format!("{len} bytes, want a multiple of {size} ({dtype})")));
    }
    let dim = check_dim(len / size, limits)?;
    Ok(Layout { dtype, dim, rows: 1, offset: 0, stride: len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_file_is_one_row() {
        for dtype in Dtype::ALL {
            let size = dtype.size_bytes();
            let file = vec![0; 16_384 * size];
            let whole = layout(dtype, file.len() as u64, &Limits::default()).unwrap();
            assert_eq!((whole.dim, whole.rows, whole.row_range(0)), (16_384, 1, 0..file.len()));
            assert_eq!(layout(dtype, size as u64, &Limits::default()).unwrap().dim, 1);
        }
    }

    #[test]
    fn a_raw_file_that_ends_within_an_element_or_is_too_long_is_refused() {
        let limits = Limits { max_dim: 2, ..Limits::default() };
        for (dtype, len, message) in [
            (Dtype::F32, 383, "383 bytes, want a multiple of 4 (f32)"),
            (Dtype::F16, 1, "1 bytes, want a multiple of 2 (f16)"),
            (Dtype::F64, 12, "12 bytes, want a multiple of 8 (f64)"),
            (Dtype::U8, 3, "dimension 3, the limit is 2"),
            (Dtype::F32, 12, "dimension 3, the limit is 2"),
        ] {
            assert_eq!(layout(dtype, len, &limits).unwrap_err().to_string(), message);
        }
    }
}
