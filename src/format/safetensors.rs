//! `.safetensors`: the length of a header, the header as JSON, then the tensors.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Dtype, Layout, Limits};
use crate::{Error, Result};

/// Longest header that is read, in bytes: some 100,000 tensors.
const MAX_HEADER: u64 = 16 << 20;

/// Bytes before the header.
pub const PREFIX: usize = 8;

/// A tensor, as the header has it.
#[derive(Debug, Deserialize)]
pub struct Tensor {
    /// Its element type in the format's words: `F32`.
    pub dtype: String,
    /// Its lengths in each direction.
    pub shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The length of the header, by the file's first bytes.
///
/// # Errors
///
/// [`Error::Format`] when the file is too short for it or the header is longer than 16 MiB.
pub fn header_len(prefix: [u8; PREFIX], len_bytes: u64) -> Result<u64> {
    let len = u64::from_le_bytes(prefix);
    if len > MAX_HEADER || len > len_bytes.saturating_sub(PREFIX as u64) {
        return Err(Error::Format(format!("header of {len} bytes, file has {len_bytes}")));
    }
    Ok(len)
}

/// The tensors by their names.
///
/// # Errors
///
/// [`Error::Format`] when the header is something else.
pub fn tensors(header: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let bad = |error: serde_json::Error| Error::Format(format!("header: {error}"));
    let mut entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).map_err(bad)?;
    entries.remove("__metadata__");
    let tensor = |(name, value)| Ok((name, serde_json::from_value(value).map_err(bad)?));
    entries.into_iter().map(tensor).collect()
}

impl Tensor {
    /// Where the rows of a matrix, or the one of a list, lie in a file of `len_bytes` with a header of `header_len`.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] for another number of directions, an element type that no vector file has, and bytes that do
    /// not fit the shape or the file; [`Error::TooLarge`] above a limit.
    pub fn layout(&self, header_len: u64, len_bytes: u64, limits: &Limits) -> Result<Layout> {
        let (rows, dim) = match self.shape[..] {
            [dim] => (1, dim),
            [rows, dim] => (rows, dim),
            _ => return Err(Error::Format(format!("shape {:?}, want 1 or 2 dimensions", self.shape))),
        };
        let dtype = match &self.dtype[..] {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::Bf16,
            "F64" => Dtype::F64,
            "I8" => Dtype::I8,
            "U8" => Dtype::U8,
            "I32" => Dtype::I32,
            other => {
                return Err(Error::Format(format!(
                    "dtype {other:?}, want F32, F16, BF16, F64, I8, U8 or I32"
                )));
            }
        };
        let data = PREFIX as u64 + header_len;
        let [start, end] = self.data_offsets.map(|offset| data.checked_add(offset));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Error::Format("offsets are beyond the file".into()));
        };
        if start > end || end > len_bytes {
            return Err(Error::Format(format!("bytes {start} to {end}, file has {len_bytes}")));
        }
        Layout::packed(dtype, (rows, dim), start, end, limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(json: &str, len_bytes: u64) -> Result<Layout> {
        tensors(json.as_bytes())?["v"].layout(100, len_bytes, &Limits::default())
    }

    #[test]
    fn a_matrix_is_rows_and_a_list_is_one() {
        let json = r#"{"__metadata__":{"a":"b"},"v":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},
            "w":{"dtype":"I64","shape":[],"data_offsets":[0,4]}} "#;
        let found = layout(json, 124).unwrap();
        assert_eq!((found.dtype, found.rows, found.dim, found.row_range(1)), (Dtype::F16, 2, 3, 118..124));
        let json = r#"{"v":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#;
        assert_eq!(layout(json, 120).unwrap().rows, 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (json, message) in [
            (r#"{"v":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}}"#, "header says 2 rows x 3 f32"),
            (
                r#"{"v":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#,
                "bytes 108 to 132, file has 130",
            ),
            (r#"{"v":{"dtype":"F32","shape":[2,3],"data_offsets":[24,0]}}"#, "bytes 132 to 108"),
            (r#"{"v":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, "dtype \"I64\", want"),
            (r#"{"v":{"dtype":"F32","shape":[1,1,1],"data_offsets":[0,4]}}"#, "shape [1, 1, 1], want"),
            (r#"{"v":{"dtype":"F32","shape":[1,0],"data_offsets":[0,0]}}"#, "dimension 0"),
            (r#"{"v":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551615,1]}}"#, "beyond"),
            (r#"{"v":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#, "header: "),
            ("[]", "header: "),
            ("", "header: "),
        ] {
            let error = layout(json, 130).unwrap_err().to_string();
            assert!(error.contains(message), "{json}: {error}");
        }
        assert_eq!(header_len(100u64.to_le_bytes(), 108).unwrap(), 100);
        assert!(header_len(101u64.to_le_bytes(), 108).is_err() && header_len([255; 8], u64::MAX).is_err());
    }
}
