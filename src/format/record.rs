//! Catalog records as bytes: fixed-width little-endian fields behind a version byte.
//!
//! `bincode` is used here and nowhere else.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};

use crate::{Error, Result};

/// Version of the record encoding, the first byte of every record.
const VERSION: u8 = 1;

/// Records of inodes are shorter, in bytes.
const USUAL: usize = 128;

/// Longest record that is decoded, in bytes.
const LIMIT: usize = 1 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<LIMIT>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>();

/// Encodes a record.
///
/// # Panics
///
/// When the record is larger than a record can be, which its fields' own bounds exclude.
#[must_use]
#[inline(never)]
pub fn encode<T: bincode::Encode>(record: &T) -> Vec<u8> {
    let mut bytes = Bytes(Vec::with_capacity(USUAL));
    bytes.0.push(VERSION);
    bincode::encode_into_writer(record, &mut bytes, CONFIG).expect("records are bounded by their fields");
    bytes.0
}

/// A record as it grows. Its length is not asked for first: that would be encoding it twice.
struct Bytes(Vec<u8>);

impl Writer for &mut Bytes {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Decodes a record of `table`; `table` is only named in the error.
///
/// # Errors
///
/// [`Error::Corrupt`] when the bytes are not a record of this type, or some are left over.
pub fn decode<T: bincode::Decode<()>>(table: &str, bytes: &[u8]) -> Result<T> {
    let Some((&VERSION, body)) = bytes.split_first() else { return Err(other_version(table, bytes)) };
    match bincode::decode_from_slice(body, CONFIG) {
        Ok((record, used)) if used == body.len() => Ok(record),
        Ok((_, used)) => Err(too_long(table, body.len() - used, used)),
        Err(error) => Err(not_a_record(table, &error)),
    }
}

// What is said of damage is put together apart: records are read deep in the stack of every operation.

#[cold]
#[inline(never)]
fn not_a_record(table: &str, error: &DecodeError) -> Error {
    corrupt(table, 1, format!("record: {error}"))
}

#[cold]
#[inline(never)]
fn too_long(table: &str, left: usize, used: usize) -> Error {
    corrupt(table, 1 + used, format!("{left} bytes after the record"))
}

#[cold]
#[inline(never)]
fn other_version(table: &str, bytes: &[u8]) -> Error {
    match bytes.first() {
        Some(version) => corrupt(table, 0, format!("record version {version}, want {VERSION}")),
        None => corrupt(table, 0, "empty record".into()),
    }
}

fn corrupt(table: &str, offset: usize, what: String) -> Error {
    Error::Corrupt { file: format!("catalog/{table}"), offset: offset as u64, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_damage_is_named() {
        let bytes = encode(&(7u32, -1i64));
        assert_eq!(bytes, [1, 7, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(decode::<(u32, i64)>("t", &bytes).unwrap(), (7, -1));
        for bad in [&bytes[..12], &[bytes.as_slice(), &[0]].concat(), &[2], &[]] {
            assert!(matches!(decode::<(u32, i64)>("t", bad), Err(Error::Corrupt { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_hostile_length_is_refused_before_it_is_allocated() {
        let mut bytes = vec![VERSION];
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(matches!(decode::<Vec<u8>>("t", &bytes), Err(Error::Corrupt { .. })));
    }
}
