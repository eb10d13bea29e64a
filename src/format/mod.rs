//! Formats: the bytes of vector files and of catalog records.
//!
//! This room turns a file's final name into a [`FileKind`], the file's bytes into a [`Layout`] and a row's
//! bytes into f32 values, and refuses what cannot be searched. It knows bytes and floats. It does not know
//! where the bytes lie, what a collection is, or which of its limits are configured.
//!
//! Files come from anybody: everything a header says is checked against the limits and the length of the file
//! before it is used, and nothing is allocated by what a header says.

mod bin;
mod csv;
mod dtype;
#[cfg(test)]
mod hostile;
mod layout;
mod name;
mod npy;
mod raw;
pub mod record;
mod rows;
pub mod safetensors;
mod text;
pub mod unzip;
mod validate;
mod vecs;
mod write;
pub mod zip;

pub use csv::CsvReader;
pub use dtype::{decode, decoded, encode};
pub use layout::{HEAD_BYTES, layout, layout_of_head};
pub use name::{recognise, sniff};
pub use npy::{Numbers, npy_numbers};
pub use rows::{Block, RowReader};
pub use text::{check_text_len, parse_numbers, parse_text, without_mark};
pub use validate::{MAX_NORM, as_written, check_vector, validate, validate_from};
pub use write::{file_header, fvecs, ivecs, npy_f32, npy_header, npy_vector_header, row_header};

/// Element types of vector files. Little-endian on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// IEEE 754 double precision; rounded to f32 for search.
    F64,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
    /// Signed 32-bit integer (`.ivecs`); rounded to f32 for search.
    I32,
}

/// What a file's final name says about its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum FileKind {
    /// `.f32 .f16 .bf16 .f64 .i8 .u8`: the values of one vector and nothing else.
    Raw(Dtype),
    /// `.vec`: one vector as text numbers.
    Text,
    /// `.npy`: 1-D one vector, 2-D rows.
    Npy,
    /// `.fvecs .bvecs .ivecs`: each row preceded by its dimension.
    Vecs(Dtype),
    /// `.fbin .f16bin .u8bin .i8bin`: row count and dimension, then the rows.
    Bin(Dtype),
}

/// Where the rows of a vector file lie in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Layout {
    /// Element type.
    pub dtype: Dtype,
    /// Elements of a row.
    pub dim: u32,
    /// Number of rows.
    pub rows: u64,
    /// Byte offset of the first element of row 0.
    pub offset: u64,
    /// Bytes from one row's first element to the next row's.
    pub stride: u64,
}

/// How large a vector file may be in its two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most elements of a row.
    pub max_dim: u32,
    /// Most rows of a file.
    pub max_rows: u64,
}

impl Limits {
    /// Most elements of a row, where nothing else is configured.
    pub const MAX_DIM: u32 = 16_384;
    /// Most rows of a file: row numbers are u32, and the highest one pads answers.
    pub const MAX_ROWS: u64 = u32::MAX as u64 - 1;
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_dim: Self::MAX_DIM, max_rows: Self::MAX_ROWS }
    }
}

/// Bytes of a file as they are shown in a message: at most 40, escaped.
fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 40;
    match bytes.get(..LONGEST) {
        Some(head) if bytes.len() > LONGEST => format!("{}...", head.escape_ascii()),
        _ => bytes.escape_ascii().to_string(),
    }
}
