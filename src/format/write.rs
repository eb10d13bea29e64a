//! Vector files to write: answers and exports.

use super::{Dtype, FileKind, npy};
use crate::{Error, Result};

/// A `.npy` of shape `(rows, dim)`, version 1.0. Its elements begin at a multiple of 64 bytes.
///
/// # Panics
///
/// When `data` does not have `rows * dim` elements.
#[must_use]
pub fn npy_f32(rows: usize, dim: usize, data: &[f32]) -> Vec<u8> {
    assert_eq!(Some(data.len()), rows.checked_mul(dim), "elements of {rows} rows x {dim}");
    let mut bytes = npy_header("<f4", &format!("({rows}, {dim})"));
    bytes.reserve_exact(4 * data.len());
    bytes.extend(data.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// What stands before the elements of an `.npy` whose elements are of type `descr`, in numpy's words, and whose shape is
/// the tuple `shape`. Its length is a multiple of 64.
///
/// # Panics
///
/// When both together are longer than 64 KiB.
#[must_use]
pub fn npy_header(descr: &str, shape: &str) -> Vec<u8> {
    /// Magic, version and length of the header.
    const PREFIX: usize = 10;
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let end = (PREFIX + header.len() + 1).next_multiple_of(64);
    header.extend(std::iter::repeat_n(' ', end - PREFIX - header.len() - 1));
    header.push('\n');
    let len = u16::try_from(header.len()).expect("a type and a shape are short");

    let mut bytes = Vec::with_capacity(end);
    bytes.extend(npy::MAGIC);
    bytes.extend([1, 0]);
    bytes.extend(len.to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes
}

/// What stands before the first row of a file of many rows. Before each row stands [`row_header`].
///
/// # Errors
///
/// [`Error::TooLarge`] for more rows than the header of a `bin` kind can count; [`Error::Invalid`] for a kind of one
/// vector, and for an element type that the format does not have.
pub fn file_header(kind: FileKind, dtype: Dtype, rows: u64, dim: u32) -> Result<Vec<u8>> {
    match kind {
        FileKind::Npy => match npy::descr(dtype) {
            Some(descr) => Ok(npy_header(descr, &format!("({rows}, {dim})"))),
            None => Err(Error::Invalid("npy has no element type bf16")),
        },
        FileKind::Vecs(_) => Ok(Vec::new()),
        FileKind::Bin(_) => {
            let limit = u32::MAX;
            let rows = u32::try_from(rows).map_err(|_| Error::TooLarge {
                what: "number of rows",
                got: rows,
                limit: limit.into(),
            })?;
            Ok([rows.to_le_bytes(), dim.to_le_bytes()].concat())
        }
        FileKind::Raw(_) | FileKind::Text => Err(Error::Invalid("a file of one vector has no header")),
    }
}

/// What stands before the elements of an `.npy` of one vector, of shape `(dim,)`.
///
/// # Errors
///
/// [`Error::Invalid`] for an element type that numpy does not have.
pub fn npy_vector_header(dtype: Dtype, dim: u32) -> Result<Vec<u8>> {
    let descr = npy::descr(dtype).ok_or(Error::Invalid("npy has no element type bf16"))?;
    Ok(npy_header(descr, &format!("({dim},)")))
}

/// What stands before each row: the dimension in the `vecs` kinds, else nothing.
#[must_use]
pub fn row_header(kind: FileKind, dim: u32) -> Option<[u8; 4]> {
    matches!(kind, FileKind::Vecs(_)).then(|| dim.to_le_bytes())
}

/// An `.ivecs` of rows of `dim` ids. `u32::MAX`, which pads answers, reads as -1 where ids are signed.
///
/// # Panics
///
/// When `data` is not whole rows of at least one element.
#[must_use]
pub fn ivecs(dim: u32, data: &[u32]) -> Vec<u8> {
    vecs(dim, data, |id| id.to_le_bytes())
}

/// An `.fvecs` of rows of `dim` elements.
///
/// # Panics
///
/// When `data` is not whole rows of at least one element.
#[must_use]
pub fn fvecs(dim: u32, data: &[f32]) -> Vec<u8> {
    vecs(dim, data, |value| value.to_le_bytes())
}

fn vecs<T: Copy>(dim: u32, data: &[T], element: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    assert!(dim > 0 && data.len().is_multiple_of(dim as usize), "{} elements in rows of {dim}", data.len());
    let rows = data.chunks_exact(dim as usize);
    let mut bytes = Vec::with_capacity(4 * (rows.len() + data.len()));
    for row in rows {
        bytes.extend(dim.to_le_bytes());
        bytes.extend(row.iter().flat_map(|&value| element(value)));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Layout, Limits, decode, encode, layout, validate};

    fn rows_of(kind: FileKind, bytes: &[u8]) -> (Layout, Vec<f32>) {
        let layout = layout(kind, bytes, &Limits::default()).unwrap();
        let mut values = Vec::new();
        validate(&layout, bytes, false, |_, vector| values.extend(vector)).unwrap();
        (layout, values)
    }

    #[test]
    fn what_is_written_reads_back() {
        for (rows, dim) in [(1, 1), (1, 7), (5, 3), (100, 16)] {
            let data: Vec<f32> = (0..rows * dim).map(|i| i as f32 / 3.0 - 1.0).collect();
            let dim32 = u32::try_from(dim).unwrap();
            for (kind, bytes) in [
                (FileKind::Npy, npy_f32(rows, dim, &data)),
                (FileKind::Vecs(Dtype::F32), fvecs(dim32, &data)),
            ] {
                let (layout, values) = rows_of(kind, &bytes);
                assert_eq!((layout.rows, layout.dim, layout.dtype), (rows as u64, dim32, Dtype::F32));
                assert_eq!(values, data);
            }
            let ids: Vec<u32> = (0..rows * dim).map(|i| u32::try_from(i).unwrap()).collect();
            let (layout, values) = rows_of(FileKind::Vecs(Dtype::I32), &ivecs(dim32, &ids));
            assert_eq!((layout.rows, layout.dim), (rows as u64, dim32));
            assert!(values.iter().zip(&ids).all(|(&value, &id)| value == id as f32));
        }
    }

    #[test]
    fn headers_are_those_of_files_that_are_read() {
        let (rows, dim) = (3u64, 2u32);
        let kinds = [Dtype::F32, Dtype::F16, Dtype::F64, Dtype::I8, Dtype::U8, Dtype::I32];
        let npys = kinds.map(|dtype| (FileKind::Npy, dtype));
        let vecs = [Dtype::F32, Dtype::U8, Dtype::I32].map(|dtype| (FileKind::Vecs(dtype), dtype));
        let bins = [Dtype::F32, Dtype::F16, Dtype::U8, Dtype::I8].map(|dtype| (FileKind::Bin(dtype), dtype));
        for (kind, dtype) in npys.into_iter().chain(vecs).chain(bins) {
            let mut file = file_header(kind, dtype, rows, dim).unwrap();
            let data: Vec<f32> = (1..=6u8).map(f32::from).collect();
            for row in data.chunks(2) {
                file.extend(row_header(kind, dim).iter().flatten());
                encode(dtype, row, &mut file).unwrap();
            }
            let (layout, values) = rows_of(kind, &file);
            assert_eq!((layout.dtype, layout.rows, layout.dim), (dtype, rows, dim), "{kind:?}");
            assert_eq!(values, data);
        }
        assert!(file_header(FileKind::Bin(Dtype::U8), Dtype::U8, 1 << 32, 1).is_err());
        assert!(file_header(FileKind::Npy, Dtype::Bf16, 1, 1).is_err());
        assert!(file_header(FileKind::Text, Dtype::F32, 1, 1).is_err());
    }

    #[test]
    fn a_value_is_written_as_it_is_or_named() {
        let written = |dtype, row: &[f32]| {
            let mut bytes = Vec::new();
            encode(dtype, row, &mut bytes).map(|()| {
                let mut back = vec![0.0; row.len()];
                decode(dtype, &bytes, &mut back);
                back
            })
        };
        for (dtype, row) in [
            (Dtype::F32, &[1.5, f32::MAX, -0.0][..]),
            (Dtype::F64, &[1.5, f32::MIN_POSITIVE]),
            (Dtype::F16, &[1.5, 65504.0]),
            (Dtype::Bf16, &[1.5, -3.140_625]),
            (Dtype::U8, &[0.0, 255.0]),
            (Dtype::I8, &[-128.0, 127.0]),
            (Dtype::I32, &[-2_147_483_648.0, 2_147_483_520.0]),
        ] {
            assert_eq!(written(dtype, row).unwrap(), row, "{dtype}");
        }
        assert_eq!(written(Dtype::F16, &[0.1]).unwrap(), [0.099_975_586], "halves are rounded");
        for (dtype, bad) in [
            (Dtype::F16, &[65520.0, -1e9, 1e38][..]),
            (Dtype::Bf16, &[f32::MAX]),
            (Dtype::U8, &[-1.0, 256.0, 0.5, f32::NAN]),
            (Dtype::I8, &[-129.0, 128.0, 0.1]),
            (Dtype::I32, &[2_147_483_648.0, 0.25, f32::INFINITY]),
        ] {
            for &value in bad {
                assert_eq!(written(dtype, &[1.0, value]).unwrap_err(), 1, "{dtype} {value}");
            }
        }
    }

    #[test]
    fn the_bytes_are_those_that_numpy_writes() {
        let bytes = npy_f32(1, 2, &[1.0, -2.0]);
        let text = format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }");
        assert_eq!(bytes[..10], *b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(bytes[10..128], *text.as_bytes());
        assert_eq!(bytes[128..], [0, 0, 128, 63, 0, 0, 0, 192]);
    }

    #[test]
    fn a_padding_id_is_minus_one() {
        assert_eq!(ivecs(2, &[7, u32::MAX]), [2, 0, 0, 0, 7, 0, 0, 0, 255, 255, 255, 255]);
        assert!(ivecs(2, &[]).is_empty());
    }

    #[test]
    #[should_panic(expected = "3 elements in rows of 2")]
    fn part_of_a_row_is_not_written() {
        let _ = fvecs(2, &[0.0; 3]);
    }

    #[test]
    #[should_panic(expected = "elements of 2 rows x 2")]
    fn an_npy_of_another_shape_is_not_written() {
        let _ = npy_f32(2, 2, &[0.0; 3]);
    }
}
