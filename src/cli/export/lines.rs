//! Vectors as text, a line for each: `.jsonl`, which keeps names and attributes too, and `.csv`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;

use serde_json::{Map, Value};

use super::super::exit::Failure;
use super::arrays::Progress;
use super::listing::{Entry, Listing};
use super::source::Source;
use crate::format::{Dtype, decode};

/// The longest list of attributes, and the longest value, that Linux has.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// A JSON object for each row: `id`, `path`, `row`, `dtype`, `vector`, and in row 0 the file's `attributes`.
///
/// Values are those of the file, in its own type, to the last bit. What is no UTF-8 is in hexadecimal digits:
/// `path_hex` beside `path`, `attributes_hex` instead of `attributes`.
pub(super) fn jsonl(listing: &Listing, out: &mut impl Write, progress: &Progress<'_>) -> Result<(), Failure> {
    let mut vector = Vec::new();
    listing.each(|entry| {
        let mut source = Source::open(listing, entry)?;
        let mut names = String::new();
        name_into(&mut names, entry);
        // Writing to a string does not fail.
        let _ = write!(names, ",\"dtype\":\"{}\"", source.dtype);
        let mut attributes = attributes_of(&source)?;
        while let Some(block) = source.next_block()? {
            for row in 0..block.layout.rows {
                let number = block.first_row + row;
                let id = u64::from(entry.first_id) + number;
                let bytes = &block.bytes[block.layout.row_range(row)];
                write!(out, "{{\"id\":{id},\"row\":{number}{names},\"vector\":")
                    .and_then(|()| values(out, block.layout.dtype, bytes, &mut vector))
                    .and_then(|()| out.write_all(std::mem::take(&mut attributes).as_bytes()))
                    .and_then(|()| out.write_all(b"}\n"))
                    .map_err(progress.failed)?;
            }
            progress.bar.inc(block.layout.rows);
        }
        source.finish()
    })
}

/// A line of column names, then `id`, `path`, `row` and the values of each row.
pub(super) fn csv(
    listing: &Listing,
    dim: u32,
    out: &mut impl Write,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    out.write_all(b"id,path,row")
        .and_then(|()| (0..dim).try_for_each(|column| write!(out, ",v{column}")))
        .and_then(|()| out.write_all(b"\n"))
        .map_err(progress.failed)?;
    let (mut vector, mut path) = (Vec::new(), Vec::new());
    listing.each(|entry| {
        path.clear();
        quote_into(&mut path, &entry.path);
        let mut source = Source::open(listing, entry)?;
        while let Some(block) = source.next_block()? {
            for row in 0..block.layout.rows {
                let number = block.first_row + row;
                let id = u64::from(entry.first_id) + number;
                let bytes = &block.bytes[block.layout.row_range(row)];
                vector.resize(entry.dim as usize, 0.0);
                decode(block.layout.dtype, bytes, &mut vector);
                write!(out, "{id},")
                    .and_then(|()| out.write_all(&path))
                    .and_then(|()| write!(out, ",{number}"))
                    .and_then(|()| vector.iter().try_for_each(|value| number_into(out, b",", value)))
                    .and_then(|()| out.write_all(b"\n"))
                    .map_err(progress.failed)?;
            }
            progress.bar.inc(block.layout.rows);
        }
        source.finish()
    })
}

/// `,"path":"a/b.npy"`, and its bytes where that is not all of it.
fn name_into(out: &mut String, entry: &Entry) {
    let path = String::from_utf8_lossy(&entry.path);
    let _ = write!(out, ",\"path\":{}", Value::from(&*path));
    if let std::borrow::Cow::Owned(_) = path {
        let _ = write!(out, ",\"path_hex\":\"{}\"", hex(&entry.path));
    }
}

/// The values of a row as a JSON list. f64 and i32 are not rounded.
fn values(out: &mut impl Write, dtype: Dtype, bytes: &[u8], vector: &mut Vec<f32>) -> io::Result<()> {
    let list = match dtype {
        Dtype::F64 => {
            let values = bytes.as_chunks().0.iter().map(|&value| f64::from_le_bytes(value));
            return list(out, values);
        }
        Dtype::I32 => {
            let values = bytes.as_chunks().0.iter().map(|&value| i32::from_le_bytes(value));
            return list(out, values);
        }
        Dtype::I8 => return list(out, bytes.iter().map(|&value| value.cast_signed())),
        Dtype::U8 => return list(out, bytes.iter().copied()),
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => vector,
    };
    list.resize(bytes.len() / dtype.size_bytes(), 0.0);
    decode(dtype, bytes, list);
    self::list(out, list.iter().copied())
}

fn list(out: &mut impl Write, values: impl Iterator<Item = impl serde::Serialize>) -> io::Result<()> {
    let mut before: &[u8] = b"[";
    for value in values {
        number_into(out, before, &value)?;
        before = b",";
    }
    out.write_all(b"]")
}

/// A number in the fewest digits that are read as the same number.
fn number_into(out: &mut impl Write, before: &[u8], value: &impl serde::Serialize) -> io::Result<()> {
    out.write_all(before)?;
    serde_json::to_writer(out, value).map_err(io::Error::from)
}

/// A field of a CSV line: quoted where it has to be (RFC 4180).
fn quote_into(out: &mut Vec<u8>, field: &[u8]) {
    if !field.iter().any(|byte| matches!(byte, b'"' | b',' | b'\n' | b'\r')) {
        out.extend_from_slice(field);
        return;
    }
    out.push(b'"');
    for &byte in field {
        out.extend(std::iter::repeat_n(byte, if byte == b'"' { 2 } else { 1 }));
    }
    out.push(b'"');
}

/// The file's own attributes as the end of a JSON object; empty when there are none.
fn attributes_of(source: &Source) -> Result<String, Failure> {
    let failed = |error: rustix::io::Errno| Failure::io(&source.path, &error.into());
    let mut names = vec![0; MAX_ATTRIBUTE];
    let len = rustix::fs::flistxattr(&source.file, &mut names[..]).map_err(failed)?;
    names.truncate(len);
    let (mut plain, mut coded) = (Map::new(), Map::new());
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let Some(short) = name.strip_prefix(b"user.") else { continue };
        let mut value = vec![0; MAX_ATTRIBUTE];
        let len = match rustix::fs::fgetxattr(&source.file, OsStr::from_bytes(name), &mut value[..]) {
            Ok(len) => len,
            // Removed since it was listed.
            Err(rustix::io::Errno::NODATA) => continue,
            Err(error) => return Err(failed(error)),
        };
        value.truncate(len);
        match (str::from_utf8(short), str::from_utf8(&value)) {
            (Ok(name), Ok(value)) => plain.insert(name.into(), value.into()),
            _ => coded.insert(hex(short), hex(&value).into()),
        };
    }
    let mut out = String::new();
    for (name, attributes) in [("attributes", plain), ("attributes_hex", coded)] {
        if !attributes.is_empty() {
            let _ = write!(out, ",\"{name}\":{}", Value::Object(attributes));
        }
    }
    Ok(out)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(dtype: Dtype, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        values(&mut out, dtype, bytes, &mut Vec::new()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_shown_to_the_last_bit() {
        let f64s: Vec<u8> = [0.1f64, 1e300, -5e-324].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(shown(Dtype::F64, &f64s), "[0.1,1e+300,-5e-324]");
        let i32s: Vec<u8> = [i32::MAX, -1].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(shown(Dtype::I32, &i32s), "[2147483647,-1]");
        assert_eq!(shown(Dtype::I8, &[127, 255]), "[127,-1]");
        assert_eq!(shown(Dtype::U8, &[127, 255]), "[127,255]");
        let mut bits = 1u32;
        let mut row = Vec::new();
        while row.len() < 4 * 5000 {
            bits = bits.wrapping_mul(2_654_435_761).wrapping_add(12_345);
            if f32::from_bits(bits).is_finite() {
                row.extend(bits.to_le_bytes());
            }
        }
        let read: Vec<f32> = serde_json::from_str(&shown(Dtype::F32, &row)).unwrap();
        let back: Vec<u8> = read.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(back, row);
    }

    #[test]
    fn fields_are_quoted_where_a_reader_would_go_wrong() {
        for (field, want) in [
            (&b"a b.npy"[..], &b"a b.npy"[..]),
            (b"a,b", b"\"a,b\""),
            (b"a\"b", b"\"a\"\"b\""),
            (b"a\nb\r", b"\"a\nb\r\""),
            (b"\xff", b"\xff"),
        ] {
            let mut out = Vec::new();
            quote_into(&mut out, field);
            assert_eq!(out, want);
        }
    }
}
