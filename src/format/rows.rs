//! Reading the rows of a file one after the other, with one buffer however long the file is.

use std::io::{self, Read};

use super::{FileKind, Layout, vecs};
use crate::{Error, Result};

/// Bytes that are asked for at a time. A row that is longer is read alone.
const BLOCK_BYTES: usize = 1 << 20;

/// The rows of a vector file, in blocks.
#[derive(Debug)]
pub struct RowReader<R> {
    input: R,
    layout: Layout,
    /// Bytes in front of each row that are its own: the dimension in the `vecs` kinds.
    gap: usize,
    next_row: u64,
    buffer: Vec<u8>,
}

/// Some rows that follow one another.
#[derive(Debug)]
pub struct Block<'a> {
    /// The number of the block's row 0 in the file.
    pub first_row: u64,
    /// Where the block's rows lie in `bytes`.
    pub layout: Layout,
    /// The rows as they lie in the file.
    pub bytes: &'a [u8],
}

impl<R: Read> RowReader<R> {
    /// `input` begins with the file's first byte; `layout` is what [`layout_of_head`](super::layout_of_head) said of
    /// it.
    ///
    /// # Errors
    ///
    /// What the input answers, and [`Error::Format`] when it ends before the first row.
    pub fn new(mut input: R, kind: FileKind, layout: Layout) -> Result<Self> {
        let gap = if let FileKind::Vecs(_) = kind { vecs::HEADER } else { 0 };
        let before = layout.offset - gap as u64;
        if io::copy(&mut input.by_ref().take(before), &mut io::sink())? < before {
            return Err(cut(0));
        }
        Ok(Self { input, layout, gap, next_row: 0, buffer: Vec::new() })
    }

    /// The row that is read next. After an error, the one that could not be read.
    pub fn next_row(&self) -> u64 {
        self.next_row
    }

    /// Reads the next rows, which [`block`](Self::block) then shows; false after the last.
    ///
    /// # Errors
    ///
    /// What the input answers; [`Error::Format`] when it ends early, or a row's own header has another dimension.
    pub fn advance(&mut self) -> Result<bool> {
        let first_row = self.next_row;
        let stride = self.stride();
        let most = (BLOCK_BYTES / stride).max(1) as u64;
        let rows = most.min(self.layout.rows - first_row);
        if rows == 0 {
            self.buffer.clear();
            return Ok(false);
        }
        let len = usize::try_from(rows).expect("a block is in memory") * stride;
        self.buffer.resize(len, 0);
        let mut filled = 0;
        while filled < len {
            match self.input.read(&mut self.buffer[filled..]) {
                Ok(0) => return Err(cut(self.stop(filled))),
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.stop(filled);
                    return Err(error.into());
                }
            }
        }
        if self.gap > 0 {
            for (row, bytes) in (first_row..).zip(self.buffer.chunks_exact(stride)) {
                if let Err(error) = vecs::check_header(bytes, row, self.layout.dim) {
                    self.stop(usize::try_from(row - first_row).expect("a block is in memory") * stride);
                    return Err(error);
                }
            }
        }
        self.next_row += rows;
        Ok(true)
    }

    /// The rows that were read last: none before the first [`advance`](Self::advance), after the last, and after an
    /// error.
    pub fn block(&self) -> Block<'_> {
        let stride = self.stride() as u64;
        let rows = self.buffer.len() as u64 / stride;
        let layout = Layout { rows, offset: self.gap as u64, stride, ..self.layout };
        Block { first_row: self.next_row - rows, layout, bytes: &self.buffer }
    }

    /// Bytes of a row with what is in front of it.
    fn stride(&self) -> usize {
        self.gap + self.layout.row_len_bytes()
    }

    /// Notes that reading ended after some bytes of the block.
    fn stop(&mut self, filled: usize) -> u64 {
        self.next_row += (filled / self.stride()) as u64;
        self.buffer.clear();
        self.next_row
    }
}

fn cut(row: u64) -> Error {
    Error::Format(format!("row {row}: the file ends before it does"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Dtype, HEAD_BYTES, Limits, fvecs, layout, layout_of_head, npy_f32, validate};

    /// All values of a file by blocks.
    fn read(kind: FileKind, bytes: &[u8]) -> Result<Vec<f32>> {
        let head = &bytes[..bytes.len().min(HEAD_BYTES)];
        let layout = layout_of_head(kind, head, bytes.len() as u64, &Limits::default())?;
        let mut reader = RowReader::new(bytes, kind, layout)?;
        let (mut values, mut scratch) = (Vec::new(), vec![0.0; layout.dim as usize]);
        let mut expected = 0;
        while reader.advance()? {
            let block = reader.block();
            assert_eq!(block.first_row, expected);
            expected += block.layout.rows;
            for row in 0..block.layout.rows {
                values.extend_from_slice(block.layout.vector(block.bytes, row, &mut scratch));
            }
        }
        assert_eq!((expected, reader.block().layout.rows), (layout.rows, 0));
        Ok(values)
    }

    #[test]
    fn blocks_have_what_the_whole_file_has() {
        for (rows, dim) in [(1, 1), (3, 5), (70_000, 4), (40, 16_384)] {
            let data: Vec<f32> = (0..rows * dim).map(|i| i as f32 * 0.5 + 1.0).collect();
            let dim32 = u32::try_from(dim).unwrap();
            let bin = [u32::try_from(rows).unwrap().to_le_bytes(), dim32.to_le_bytes()].concat();
            let f32s: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
            for (kind, bytes) in [
                (FileKind::Npy, npy_f32(rows, dim, &data)),
                (FileKind::Vecs(Dtype::F32), fvecs(dim32, &data)),
                (FileKind::Bin(Dtype::F32), [bin, f32s].concat()),
            ] {
                assert_eq!(read(kind, &bytes).unwrap(), data, "{kind:?} {rows} x {dim}");
                let whole = layout(kind, &bytes, &Limits::default()).unwrap();
                let mut values = Vec::new();
                validate(&whole, &bytes, false, |_, row| values.extend_from_slice(row)).unwrap();
                assert_eq!(values, data);
            }
        }
    }

    #[test]
    fn a_row_of_another_dimension_beyond_the_head_is_found() {
        let mut bytes = fvecs(2, &vec![1.0; 40_000]);
        bytes[19_999 * 12] = 3;
        assert!(bytes.len() > HEAD_BYTES + 12);
        let error = read(FileKind::Vecs(Dtype::F32), &bytes).unwrap_err();
        assert_eq!(error.to_string(), "row 19999: dimension 3, row 0 has 2");
    }

    #[test]
    fn an_input_that_ends_early_is_an_error_that_names_the_row() {
        let bytes = npy_f32(5, 3, &[1.0; 15]);
        let layout = layout(FileKind::Npy, &bytes, &Limits::default()).unwrap();
        for (len, row) in [(bytes.len() - 1, 4), (bytes.len() - 13, 3), (128, 0)] {
            let mut reader = RowReader::new(&bytes[..len], FileKind::Npy, layout).unwrap();
            let error = reader.advance().unwrap_err().to_string();
            assert_eq!(error, format!("row {row}: the file ends before it does"));
            assert_eq!(reader.next_row(), row);
        }
        assert!(RowReader::new(&bytes[..127], FileKind::Npy, layout).is_err());
    }
}
