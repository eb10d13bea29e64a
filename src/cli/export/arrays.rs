//! Vectors as arrays: one after the other in a file of rows, or beside the arrays that say where they are from.
//!
//! An `.npz` and a `.safetensors` have, for each row, its vector, its id, its row in its file, and the number of the file
//! in the list of paths.

use std::io::{self, Seek, Write};

use indicatif::ProgressBar;
use serde_json::json;

use super::super::exit::{Code, Failure};
use super::listing::{Entry, Listing, Totals};
use super::source::Source;
use crate::format::{self, Dtype, FileKind, decode, encode, npy_header, row_header, zip::ZipWriter};

/// Where something is written, for messages, and how far it has come.
pub(super) struct Progress<'a> {
    pub(super) failed: &'a dyn Fn(io::Error) -> Failure,
    pub(super) bar: &'a ProgressBar,
}

/// What is known of each row beside its vector.
#[derive(Clone, Copy)]
enum Column {
    Id,
    Row,
    /// The number of its file in the list of paths.
    File,
}

const COLUMNS: [(&str, Column); 3] = [("ids", Column::Id), ("rows", Column::Row), ("file", Column::File)];

/// A file of rows: `.npy`, `.fvecs`, `.fbin` and their kin.
pub(super) fn rows(
    listing: &Listing,
    totals: &Totals,
    (kind, dtype): (FileKind, Dtype),
    out: &mut impl Write,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let header = format::file_header(kind, dtype, totals.rows, totals.dim)?;
    out.write_all(&header).map_err(progress.failed)?;
    vectors(listing, dtype, row_header(kind, totals.dim), out, progress)
}

/// The arrays `vectors`, `ids`, `rows`, `file` and `paths` as numpy's `savez` writes them.
pub(super) fn npz(
    listing: &Listing,
    totals: &Totals,
    out: &mut (impl Write + Seek),
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let failed = progress.failed;
    let mut zip = ZipWriter::new(out);
    let (rows, dim) = (totals.rows, totals.dim);
    let member = |zip: &mut ZipWriter<_>, name: &str, header: Vec<u8>, data_bytes: u64| {
        let started = zip.start(&format!("{name}.npy"), header.len() as u64 + data_bytes);
        started.and_then(|()| zip.write_all(&header)).map_err(failed)
    };
    member(&mut zip, "vectors", npy_header("<f4", &format!("({rows}, {dim})")), rows * u64::from(dim) * 4)?;
    vectors(listing, Dtype::F32, None, &mut zip, progress)?;
    for (name, column) in COLUMNS {
        member(&mut zip, name, npy_header("<u4", &format!("({rows},)")), rows * 4)?;
        numbers(listing, column, &mut zip, progress, |number, out| out.write_all(&number.to_le_bytes()))?;
    }
    let (files, width) = (totals.files, totals.path_chars.max(1));
    let header = npy_header(&format!("<U{width}"), &format!("({files},)"));
    member(&mut zip, "paths", header, files * width as u64 * 4)?;
    listing.each(|entry| {
        let mut text = Vec::with_capacity(width * 4);
        text.extend(characters(&entry.path).flat_map(u32::to_le_bytes));
        text.resize(width * 4, 0);
        zip.write_all(&text).map_err(failed)
    })?;
    zip.finish().map_err(failed)?;
    Ok(())
}

/// The same arrays as tensors; paths as their bytes, each ended by a NUL.
pub(super) fn safetensors(
    listing: &Listing,
    totals: &Totals,
    out: &mut impl Write,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let failed = progress.failed;
    let (rows, dim) = (totals.rows, totals.dim);
    let mut header = serde_json::Map::new();
    let about = "row i of vectors has the id ids[i] and is row rows[i] of the file paths[file[i]]; paths is the \
                 bytes of all paths, each ended by a NUL";
    header.insert("__metadata__".into(), json!({ "format": "vexfs", "about": about }));
    let mut at = 0;
    let mut tensor = |name: &str, dtype: &str, shape: &[u64], size_bytes: u64| {
        let end = at + shape.iter().product::<u64>() * size_bytes;
        header.insert(name.into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        at = end;
    };
    // The widest elements first, so that each tensor is aligned.
    for (name, _) in COLUMNS {
        tensor(name, "I64", &[rows], 8);
    }
    tensor("vectors", "F32", &[rows, dim.into()], 4);
    tensor("paths", "U8", &[totals.path_bytes + totals.files], 1);
    let mut text = serde_json::Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    out.write_all(&(text.len() as u64).to_le_bytes()).map_err(failed)?;
    out.write_all(text.as_bytes()).map_err(failed)?;
    for (_, column) in COLUMNS {
        numbers(listing, column, out, progress, |number, out| {
            out.write_all(&i64::from(number).to_le_bytes())
        })?;
    }
    vectors(listing, Dtype::F32, None, out, progress)?;
    listing.each(|entry| out.write_all(&entry.path).and_then(|()| out.write_all(&[0])).map_err(failed))
}

/// All vectors, one after the other, each after `before` where there is such a thing.
fn vectors(
    listing: &Listing,
    dtype: Dtype,
    before: Option<[u8; 4]>,
    out: &mut impl Write,
    progress: &Progress<'_>,
) -> Result<(), Failure> {
    let (mut encoded, mut vector) = (Vec::new(), Vec::new());
    listing.each(|entry| {
        let mut source = Source::open(listing, entry)?;
        vector.resize(entry.dim as usize, 0.0);
        let path = source.path.clone();
        while let Some(block) = source.next_block()? {
            let layout = &block.layout;
            let is_packed = layout.stride == layout.row_len_bytes() as u64;
            if layout.dtype == dtype && is_packed && before.is_none() {
                out.write_all(block.bytes).map_err(progress.failed)?;
            } else {
                encoded.clear();
                for row in 0..layout.rows {
                    encoded.extend(before.iter().flatten());
                    let bytes = &block.bytes[layout.row_range(row)];
                    if layout.dtype == dtype {
                        encoded.extend_from_slice(bytes);
                        continue;
                    }
                    decode(layout.dtype, bytes, &mut vector);
                    encode(dtype, &vector, &mut encoded).map_err(|column| {
                        let (row, value) = (block.first_row + row, vector[column]);
                        let path = path.display();
                        let message = format!("{path}: row {row}, column {column}: {value} is no {dtype}");
                        Failure::new(Code::Invalid, message)
                    })?;
                }
                out.write_all(&encoded).map_err(progress.failed)?;
            }
            progress.bar.inc(layout.rows);
        }
        source.finish()
    })
}

/// A column of numbers, each put by `put`.
fn numbers<W: Write>(
    listing: &Listing,
    column: Column,
    out: &mut W,
    progress: &Progress<'_>,
    put: impl Fn(u32, &mut dyn Write) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut file = 0u32;
    let mut buffer = Vec::new();
    listing.each(|entry: &Entry| {
        let first = match column {
            Column::Id => entry.first_id,
            Column::Row => 0,
            Column::File => file,
        };
        for row in 0..u32::try_from(entry.rows).expect("rows of a collection are counted in 32 bits") {
            let number = if let Column::File = column { first } else { first + row };
            put(number, &mut buffer).map_err(progress.failed)?;
            if buffer.len() >= 1 << 16 {
                out.write_all(&buffer).map_err(progress.failed)?;
                buffer.clear();
            }
        }
        file += 1;
        Ok(())
    })?;
    out.write_all(&buffer).map_err(progress.failed)
}

/// The characters of a path for numpy. Bytes that are no UTF-8 are what Python makes of them, so that `os.fsencode`
/// gives the bytes: U+DC80 to U+DCFF.
pub(super) fn characters(path: &[u8]) -> impl Iterator<Item = u32> {
    path.utf8_chunks().flat_map(|chunk| {
        let bytes = chunk.invalid().iter().map(|&byte| 0xdc00 + u32::from(byte));
        chunk.valid().chars().map(u32::from).chain(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_those_of_pythons_file_names() {
        let path = b"a\xc3\xa9\xff\xf0\x9f\x98\x80\xc3";
        assert_eq!(characters(path).collect::<Vec<_>>(), [0x61, 0xe9, 0xdcff, 0x1f600, 0xdcc3]);
        assert_eq!(characters(b"").count(), 0);
    }
}
