//! `.fbin`, `.f16bin`, `.u8bin`, `.i8bin`: two u32, the number of rows and the dimension, then the rows.
//!
//! The format of the big-ann-benchmarks data sets.

use super::{Dtype, Layout, Limits};
use crate::{Error, Result};

const HEADER: usize = 8;

pub(super) fn layout(dtype: Dtype, head: &[u8], len: u64, limits: &Limits) -> Result<Layout> {
    let Some((header, _)) = head.split_first_chunk::<HEADER>() else {
        return Err(Error::Format(format!("{len} bytes, the header alone has {HEADER}")));
    };
    let [r0, r1, r2, r3, d0, d1, d2, d3] = *header;
    let rows = u32::from_le_bytes([r0, r1, r2, r3]);
    let dim = u32::from_le_bytes([d0, d1, d2, d3]);
    Layout::packed(dtype, (rows.into(), dim.into()), HEADER as u64, len, limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dtype: Dtype, bytes: &[u8], limits: &Limits) -> Result<Layout> {
        super::layout(dtype, bytes, bytes.len() as u64, limits)
    }

    fn file(rows: u32, dim: u32, data_bytes: usize) -> Vec<u8> {
        let mut bytes = [rows.to_le_bytes(), dim.to_le_bytes()].concat();
        bytes.resize(HEADER + data_bytes, 7);
        bytes
    }

    #[test]
    fn rows_follow_the_header_without_gaps() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::U8, Dtype::I8] {
            let row = 3 * dtype.size_bytes();
            let layout = layout(dtype, &file(2, 3, 2 * row), &Limits::default()).unwrap();
            assert_eq!((layout.rows, layout.dim), (2, 3));
            assert_eq!(layout.row_range(1), HEADER + row..HEADER + 2 * row);
        }
    }

    #[test]
    fn a_header_that_contradicts_the_file_or_the_limits_is_refused() {
        for (bytes, message) in [
            (file(2, 3, 5), "header says 2 rows x 3 u8 = 6 bytes after offset 8, file has 5"),
            (file(2, 3, 7), "header says 2 rows x 3 u8 = 6 bytes after offset 8, file has 7"),
            (file(0, 3, 0), "no rows"),
            (file(2, 0, 0), "dimension 0, want at least 1"),
            (file(u32::MAX, 1, 9), "number of rows 4294967295, the limit is 4294967294"),
            (file(2, u32::MAX, 9), "dimension 4294967295, the limit is 16384"),
            (vec![1, 0, 0, 0, 1, 0, 0], "7 bytes, the header alone has 8"),
        ] {
            let error = layout(Dtype::U8, &bytes, &Limits::default()).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
