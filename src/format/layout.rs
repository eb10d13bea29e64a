//! Where the rows of a file lie, and views of them.

use std::ops::Range;

use zerocopy::FromBytes;

use super::{Dtype, FileKind, Layout, Limits, bin, decode, npy, raw, vecs};
use crate::{Error, Result};

/// As many of a file's first bytes as [`layout_of_head`] can want: the longest header is that of an npy.
pub const HEAD_BYTES: usize = npy::PREFIX + npy::MAX_HEADER;

/// Finds the rows in the bytes of a whole file.
///
/// Everything that the layout says is inside `bytes`, and the rows end where the file ends. Values are not
/// looked at: see [`validate`](super::validate). The headers of every row of the `vecs` kinds are.
///
/// # Errors
///
/// [`Error::TooLarge`] above a limit; [`Error::Format`] for everything else that is wrong, an empty file
/// included. [`Error::Invalid`] for [`FileKind::Text`], which has no fixed rows: see
/// [`parse_text`](super::parse_text).
pub fn layout(kind: FileKind, bytes: &[u8], limits: &Limits) -> Result<Layout> {
    layout_of_head(kind, bytes, bytes.len() as u64, limits)
}

/// Finds the rows of a file of `len_bytes` by its first bytes: all that it has, or [`HEAD_BYTES`] of them.
///
/// As [`layout`], except that of the `vecs` kinds only the row headers inside `head` are looked at;
/// [`RowReader`](super::RowReader) looks at the others.
///
/// # Errors
///
/// As [`layout`].
pub fn layout_of_head(kind: FileKind, head: &[u8], len_bytes: u64, limits: &Limits) -> Result<Layout> {
    if len_bytes == 0 {
        return Err(Error::Format("empty file".into()));
    }
    match kind {
        FileKind::Raw(dtype) => raw::layout(dtype, len_bytes, limits),
        FileKind::Text => Err(Error::Invalid("a vector in text form has no layout")),
        FileKind::Npy => npy::layout(head, len_bytes, limits),
        FileKind::Vecs(dtype) => vecs::layout(dtype, head, len_bytes, limits),
        FileKind::Bin(dtype) => bin::layout(dtype, head, len_bytes, limits),
    }
}

impl Layout {
    /// Rows without gaps from `offset` to the end of a file of `len_bytes`, as a header promised.
    pub(super) fn packed(
        dtype: Dtype,
        (rows, dim): (u64, u64),
        offset: u64,
        len_bytes: u64,
        limits: &Limits,
    ) -> Result<Self> {
        let dim = check_dim(dim, limits)?;
        check_rows(rows, limits)?;
        let stride = row_bytes(dtype, dim);
        let want = u128::from(rows) * u128::from(stride);
        let got = len_bytes.checked_sub(offset);
        if got.map(u128::from) != Some(want) {
            let got = got.unwrap_or(0);
            return Err(Error::Format(format!(
                "header says {rows} rows x {dim} {dtype} = {want} bytes after offset {offset}, file has {got}"
            )));
        }
        Ok(Self { dtype, dim, rows, offset, stride })
    }

    /// Whether the layout has rows and all of them lie inside a file of `len_bytes`.
    ///
    /// Holds for what [`layout`] returned and the file it was made from. A layout that was read back from
    /// elsewhere is checked with this before a row is asked for.
    #[must_use]
    pub fn fits(&self, len_bytes: u64) -> bool {
        let row = row_bytes(self.dtype, self.dim);
        let end = self
            .rows
            .checked_sub(1)
            .and_then(|last| last.checked_mul(self.stride)?.checked_add(self.offset)?.checked_add(row));
        self.dim > 0 && self.stride >= row && end.is_some_and(|end| end <= len_bytes)
    }

    /// The bytes of a row's elements within the file.
    ///
    /// # Panics
    ///
    /// When there is no such row, or the layout does not [fit](Self::fits) any file.
    #[inline]
    #[must_use]
    pub fn row_range(&self, row: u64) -> Range<usize> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let start = row.checked_mul(self.stride).and_then(|start| start.checked_add(self.offset));
        let start = start.and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(self.row_len_bytes())?));
        range.expect("a layout fits its file before its rows are read")
    }

    /// Bytes of a row's elements.
    #[inline]
    #[must_use]
    pub fn row_len_bytes(&self) -> usize {
        self.dim as usize * self.dtype.size_bytes()
    }

    /// A row as it lies in the file, when its bytes can be used as they are: the type is f32, the host
    /// little-endian and the address aligned. Otherwise `None`, and [`vector`](Self::vector) decodes.
    ///
    /// # Panics
    ///
    /// As [`row_range`](Self::row_range), and when the row is not inside `bytes`.
    #[inline]
    #[must_use]
    pub fn f32_row<'a>(&self, bytes: &'a [u8], row: u64) -> Option<&'a [f32]> {
        if self.dtype != Dtype::F32 {
            return None;
        }
        view_f32(&bytes[self.row_range(row)])
    }

    /// A row's values: where they lie when that is possible ([`f32_row`](Self::f32_row)), else decoded into
    /// `scratch`, which has [`dim`](Self::dim) elements.
    ///
    /// # Panics
    ///
    /// As [`f32_row`](Self::f32_row), and when `scratch` has another length.
    #[inline]
    #[must_use]
    pub fn vector<'a>(&self, bytes: &'a [u8], row: u64, scratch: &'a mut [f32]) -> &'a [f32] {
        match self.f32_row(bytes, row) {
            Some(vector) => vector,
            None => {
                decode(self.dtype, &bytes[self.row_range(row)], scratch);
                scratch
            }
        }
    }
}

/// The elements of a row of f32 where they lie.
#[inline]
fn view_f32(row: &[u8]) -> Option<&[f32]> {
    if cfg!(target_endian = "big") {
        return None;
    }
    <[f32]>::ref_from_bytes(row).ok()
}

/// Bytes of a row of `dim` elements. Cannot overflow: 2^32 elements of 8 bytes.
pub(super) fn row_bytes(dtype: Dtype, dim: u32) -> u64 {
    u64::from(dim) * dtype.size_bytes() as u64
}

/// A dimension from a header, between 1 and the limit.
pub(super) fn check_dim(dim: u64, limits: &Limits) -> Result<u32> {
    match u32::try_from(dim) {
        Ok(0) => Err(Error::Format("dimension 0, want at least 1".into())),
        Ok(small) if small <= limits.max_dim => Ok(small),
        _ => Err(Error::TooLarge { what: "dimension", got: dim, limit: limits.max_dim.into() }),
    }
}

/// A number of rows from a header, between 1 and the limit.
pub(super) fn check_rows(rows: u64, limits: &Limits) -> Result<()> {
    if rows == 0 {
        return Err(Error::Format("no rows".into()));
    }
    if rows > limits.max_rows {
        return Err(Error::TooLarge { what: "number of rows", got: rows, limit: limits.max_rows });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Layout = Layout { dtype: Dtype::F32, dim: 2, rows: 3, offset: 4, stride: 12 };

    #[test]
    fn rows_lie_a_stride_apart_and_the_last_may_end_the_file() {
        assert_eq!(PLAIN.row_range(0), 4..12);
        assert_eq!(PLAIN.row_range(2), 28..36);
        assert!(PLAIN.fits(36) && PLAIN.fits(37) && !PLAIN.fits(35) && !PLAIN.fits(0));
    }

    #[test]
    fn a_layout_that_cannot_be_of_a_file_fits_none() {
        let most = u64::MAX;
        for bad in [
            Layout { dim: 0, ..PLAIN },
            Layout { rows: 0, ..PLAIN },
            Layout { stride: 7, ..PLAIN },
            Layout { stride: 0, ..PLAIN },
            Layout { stride: most, ..PLAIN },
            Layout { offset: most, ..PLAIN },
            Layout { offset: most - 31, ..PLAIN },
            Layout { rows: most, ..PLAIN },
            Layout { rows: most, stride: most, offset: most, dim: u32::MAX, dtype: Dtype::F64 },
        ] {
            assert!(!bad.fits(most), "{bad:?}");
        }
    }

    #[test]
    #[should_panic(expected = "row 3 of 3")]
    fn a_row_past_the_last_has_no_range() {
        let _ = PLAIN.row_range(3);
    }

    #[test]
    #[should_panic(expected = "a layout fits its file")]
    fn a_range_that_overflows_is_not_wrapped() {
        let _ = Layout { stride: u64::MAX, ..PLAIN }.row_range(2);
    }

    #[test]
    fn an_aligned_row_of_f32_is_read_in_place_and_another_is_decoded_alike() {
        let bytes: Vec<u8> = (0..48).collect();
        let aligned = bytes.as_ptr().align_offset(4);
        for shift in 0..4 {
            let file = &bytes[aligned + shift..aligned + shift + 36];
            for row in 0..3 {
                let mut scratch = [0.0; 2];
                let place = file[PLAIN.row_range(row)].as_ptr().cast::<f32>();
                let vector = PLAIN.vector(file, row, &mut scratch);
                assert_eq!(vector.as_ptr() == place, shift == 0);
                assert_eq!(PLAIN.f32_row(file, row).is_some(), shift == 0);
                let mut want = [0.0; 2];
                decode(Dtype::F32, &file[PLAIN.row_range(row)], &mut want);
                assert_eq!(PLAIN.vector(file, row, &mut scratch), want);
            }
        }
        assert_eq!(Layout { dtype: Dtype::I32, ..PLAIN }.f32_row(&bytes, 0), None);
    }

    #[test]
    fn a_promise_of_a_header_is_held_against_the_file() {
        let limits = Limits::default();
        let packed = |shape, len| Layout::packed(Dtype::F32, shape, 8, len, &limits);
        assert_eq!(packed((2, 3), 32).unwrap().row_range(1), 20..32);
        for (shape, len, message) in [
            (
                (1000, 96),
                384_004,
                "header says 1000 rows x 96 f32 = 384000 bytes after offset 8, file has 383996",
            ),
            ((1, 1), 13, "header says 1 rows x 1 f32 = 4 bytes after offset 8, file has 5"),
            ((1, 1), 7, "header says 1 rows x 1 f32 = 4 bytes after offset 8, file has 0"),
            ((0, 1), 8, "no rows"),
            ((1, 0), 8, "dimension 0, want at least 1"),
            ((1, 16_385), 8, "dimension 16385, the limit is 16384"),
            ((1, u64::MAX), 8, "dimension 18446744073709551615, the limit is 16384"),
            ((u64::MAX, 1), 8, "number of rows 18446744073709551615, the limit is 4294967294"),
        ] {
            assert_eq!(packed(shape, len).unwrap_err().to_string(), message);
        }
        let unlimited = Limits { max_dim: u32::MAX, max_rows: u64::MAX };
        let shape = (u64::MAX, u64::from(u32::MAX));
        let error = Layout::packed(Dtype::F64, shape, 0, u64::MAX, &unlimited).unwrap_err();
        assert!(matches!(error, Error::Format(_)), "{error}");
    }

    #[test]
    fn every_kind_refuses_an_empty_file_and_text_has_no_layout() {
        let limits = Limits::default();
        for kind in [
            FileKind::Raw(Dtype::U8),
            FileKind::Text,
            FileKind::Npy,
            FileKind::Vecs(Dtype::F32),
            FileKind::Bin(Dtype::F32),
        ] {
            assert_eq!(layout(kind, b"", &limits).unwrap_err().to_string(), "empty file", "{kind:?}");
        }
        assert!(matches!(layout(FileKind::Text, b"1", &limits), Err(Error::Invalid(_))));
    }
}
