//! Vector files to write: answers and exports.

use super::npy;

/// A `.npy` of shape `(rows, dim)`, version 1.0. Its elements begin at a multiple of 64 bytes.
///
/// # Panics
///
/// When `data` does not have `rows * dim` elements.
#[must_use]
pub fn npy_f32(rows: usize, dim: usize, data: &[f32]) -> Vec<u8> {
    /// Magic, version and length of the header.
    const PREFIX: usize = 10;
    assert_eq!(Some(data.len()), rows.checked_mul(dim), "elements of {rows} rows x {dim}");
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let end = (PREFIX + header.len() + 1).next_multiple_of(64);
    header.extend(std::iter::repeat_n(' ', end - PREFIX - header.len() - 1));
    header.push('\n');
    let len = u16::try_from(header.len()).expect("two numbers of 20 digits fit");

    let mut bytes = Vec::with_capacity(end + 4 * data.len());
    bytes.extend(npy::MAGIC);
    bytes.extend([1, 0]);
    bytes.extend(len.to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data.iter().flat_map(|value| value.to_le_bytes()));
    bytes
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
    use crate::format::{Dtype, FileKind, Layout, Limits, layout, validate};

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
