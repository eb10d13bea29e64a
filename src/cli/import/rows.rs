//! One file becomes one vector file: a copy of one, or an `.npy` of the rows of another.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::exit::{Code, Failure};
use super::super::output::bar;
use super::super::target::Target;
use super::lines::{self, Line};
use super::{Imported, Place, confirm, open, refused};
use crate::format::safetensors::{self, Tensor};
use crate::format::unzip::{self, Member};
use crate::format::{
    self, CsvReader, Dtype, FileKind, HEAD_BYTES, Layout, Limits, RowReader, decode, encode, parse_text,
};
use crate::{Error, Result};

/// What a file's name must end with.
const NAMES: &str = "want a vector file, .npz, .safetensors, .csv or .jsonl";

/// The array that is meant when nothing is said.
const VECTORS: &str = "vectors";

/// Bytes that are read or written at a time, at least.
const BUFFER: usize = 1 << 20;

/// Rows that lie in a file as numbers.
struct Table {
    rows: RowReader<Box<dyn Read>>,
    layout: Layout,
    /// What is written before the rows, and their type there.
    header: Vec<u8>,
    dtype: Dtype,
}

/// A file that is read, checked and written.
struct Job<'a> {
    file: &'a Path,
    place: &'a Place,
    target: &'a Path,
    out: BufWriter<&'a File>,
}

/// Imports one file.
///
/// # Errors
///
/// `Invalid` for what is no vectors of the directory's collection, or of none; what the mount answers. Nothing is left
/// then, and a file that was to be replaced is what it was.
pub(super) fn import(
    file: &Path,
    place: &Place,
    array: Option<&str>,
    force: bool,
) -> Result<Imported, Failure> {
    let kind = file.file_name().and_then(|name| format::recognise(name.as_bytes()));
    let path = place.dir.join(vector_file_name(file, kind)?);
    let input = open(file)?;
    let target = Target::create(&path, force)?;
    let out = BufWriter::with_capacity(BUFFER, target.file());
    let mut job = Job { file, place, target: &path, out };
    let (rows, dim) = job.write(input, kind, array)?;
    drop(job);
    target.commit()?;
    confirm(&path)?;
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    Ok(Imported { file: shown(file), path: Some(shown(&path)), files: 1, rows, dim: Some(dim) })
}

/// The name in the mount.
fn vector_file_name(file: &Path, kind: Option<FileKind>) -> Result<OsString, Failure> {
    let invalid = |why: &str| Failure::new(Code::Invalid, format!("{}: {why}", file.display()));
    if kind.is_some() {
        return Ok(file.file_name().unwrap_or_default().to_owned());
    }
    if !matches!(file.extension().map(OsStr::as_bytes), Some(b"npz" | b"safetensors" | b"csv" | b"jsonl")) {
        return Err(invalid(NAMES));
    }
    let mut name = file.file_stem().unwrap_or_default().to_owned();
    name.push(".npy");
    match format::recognise(name.as_bytes()) {
        Some(_) => Ok(name),
        None => Err(invalid(&format!("{} would be an ordinary file", name.display()))),
    }
}

impl Job<'_> {
    /// Writes all of the target, and returns its rows and its dimension.
    fn write(
        &mut self,
        input: File,
        kind: Option<FileKind>,
        array: Option<&str>,
    ) -> Result<(u64, u32), Failure> {
        let shape = match (kind, self.file.extension().map(OsStr::as_bytes)) {
            (Some(FileKind::Text), _) => self.text(input)?,
            (Some(kind), _) => self.table(packed(input, kind).map_err(|error| self.bad(error))?)?,
            (None, Some(b"npz")) => self.table(npz(input, array).map_err(|error| self.bad(error))?)?,
            (None, Some(b"safetensors")) => {
                self.table(tensor(input, array).map_err(|error| self.bad(error))?)?
            }
            (None, Some(b"csv")) => self.csv(input)?,
            (None, _) => self.jsonl(input)?,
        };
        self.out.flush().map_err(|error| Failure::io(self.target, &error))?;
        Ok(shape)
    }

    fn bad(&self, error: Error) -> Failure {
        refused(self.file, error)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| Failure::io(self.target, &error))
    }

    /// A vector in text form, as it is.
    fn text(&mut self, input: File) -> Result<(u64, u32), Failure> {
        let (bytes, values) = text(&input, &Limits::default()).map_err(|error| self.bad(error))?;
        self.place.check(0, &values).map_err(|error| self.bad(error))?;
        self.put(&bytes)?;
        Ok((1, columns(&values)))
    }

    /// Rows of numbers: as they lie where their type stays, else one after the other.
    fn table(&mut self, table: Table) -> Result<(u64, u32), Failure> {
        let Table { mut rows, layout, header, dtype } = table;
        self.place.check_dim(layout.dim).map_err(|error| self.bad(error))?;
        self.put(&header)?;
        let bar = bar("import", layout.rows);
        let (mut vector, mut encoded) = (vec![0.0; layout.dim as usize], Vec::new());
        while rows.advance().map_err(|error| self.bad(error))? {
            let block = rows.block();
            encoded.clear();
            for row in 0..block.layout.rows {
                let bytes = &block.bytes[block.layout.row_range(row)];
                decode(layout.dtype, bytes, &mut vector);
                let number = block.first_row + row;
                self.place
                    .check(number, &vector)
                    .map_err(|error| self.bad(format::as_written(error, layout.dtype, bytes)))?;
                if dtype != layout.dtype {
                    encode(dtype, &vector, &mut encoded).map_err(|column| {
                        let what = format!("row {number}, column {column}: {} is no {dtype}", vector[column]);
                        self.bad(Error::Format(what))
                    })?;
                }
            }
            self.put(if dtype == layout.dtype { block.bytes } else { &encoded })?;
            bar.inc(block.layout.rows);
        }
        bar.finish_and_clear();
        Ok((layout.rows, layout.dim))
    }

    /// Lines of numbers, of all columns or of those that `v0`, `v1`, ... name.
    fn csv(&mut self, input: File) -> Result<(u64, u32), Failure> {
        let mut records = CsvReader::new(BufReader::with_capacity(BUFFER, input));
        let mut npy = Npy::begin(self)?;
        let mut begun: Option<First> = None;
        let mut vector = Vec::new();
        while records.advance().map_err(|error| npy.job.bad(error))? {
            let fields: Vec<&[u8]> = records.fields().collect();
            let line = records.line();
            let First { columns, width, .. } = match &begun {
                Some(first) => first,
                None => {
                    let first = first_line(&fields).map_err(|error| npy.job.bad(lines::at(line, error)))?;
                    let first = begun.insert(first);
                    if first.is_names {
                        continue;
                    }
                    first
                }
            };
            if fields.len() != *width {
                let what = format!("{} columns, the first line has {width}", fields.len());
                return Err(npy.job.bad(lines::at(line, Error::Format(what))));
            }
            vector.clear();
            for &column in columns {
                let value = fields.get(column).copied().and_then(number).ok_or_else(|| {
                    let field = fields.get(column).copied().unwrap_or_default();
                    let what = format!("column {}: '{}' is not a number", column + 1, field.escape_ascii());
                    npy.job.bad(lines::at(line, Error::Format(what)))
                })?;
                vector.push(value);
            }
            npy.row(line, &vector)?;
        }
        npy.finish()
    }

    /// Lines of JSON, each with a vector.
    fn jsonl(&mut self, input: File) -> Result<(u64, u32), Failure> {
        let mut npy = Npy::begin(self)?;
        let mut failure = None;
        let input = BufReader::with_capacity(BUFFER, input);
        let read = lines::each(input, |number, text| {
            let vector = Line::parse(text)
                .and_then(|line| parse_text(line.numbers(), &Limits::default()))
                .map_err(|error| lines::at(number, error))?;
            npy.row(number, &vector).map_err(|failed| {
                failure = Some(failed);
                Error::Interrupted
            })
        });
        match (failure, read) {
            (Some(failure), _) => Err(failure),
            (None, Err(error)) => Err(npy.job.bad(error)),
            (None, Ok(())) => npy.finish(),
        }
    }
}

/// An `.npy` whose number of rows is known when the last is written.
struct Npy<'a, 'b> {
    job: &'a mut Job<'b>,
    dim: Option<u32>,
    rows: u64,
    encoded: Vec<u8>,
}

impl<'a, 'b> Npy<'a, 'b> {
    /// Leaves room for the header.
    fn begin(job: &'a mut Job<'b>) -> Result<Self, Failure> {
        let room = header(0, 0).map_err(|error| job.bad(error))?;
        job.put(&room)?;
        Ok(Npy { job, dim: None, rows: 0, encoded: Vec::new() })
    }

    fn row(&mut self, line: u64, vector: &[f32]) -> Result<(), Failure> {
        let dim = columns(vector);
        let fits = match self.dim {
            Some(first) if first != dim => {
                Err(Error::Format(format!("dimension {dim}, the first vector has {first}")))
            }
            _ => self.job.place.check(self.rows, vector),
        };
        fits.map_err(|error| self.job.bad(lines::at(line, error)))?;
        self.dim = Some(dim);
        self.rows += 1;
        self.encoded.clear();
        self.encoded.extend(vector.iter().flat_map(|value| value.to_le_bytes()));
        let Self { job, encoded, .. } = self;
        job.put(encoded)
    }

    fn finish(self) -> Result<(u64, u32), Failure> {
        let Self { job, dim, rows, .. } = self;
        let Some(dim) = dim else { return Err(job.bad(Error::Format("no vectors".into()))) };
        let header = header(rows, dim).map_err(|error| job.bad(error))?;
        let failed = |error| Failure::io(job.target, &error);
        job.out.flush().map_err(failed)?;
        job.out.get_ref().write_all_at(&header, 0).map_err(failed)?;
        Ok((rows, dim))
    }
}

/// The header of an `.npy` of f32: of one length whatever the numbers.
fn header(rows: u64, dim: u32) -> Result<Vec<u8>> {
    format::file_header(FileKind::Npy, Dtype::F32, rows, dim)
}

/// The number of a vector's elements.
fn columns(vector: &[f32]) -> u32 {
    u32::try_from(vector.len()).unwrap_or(u32::MAX)
}

fn number(field: &[u8]) -> Option<f32> {
    str::from_utf8(field.trim_ascii()).ok()?.parse().ok()
}

/// What the first line says.
struct First {
    /// Where the values are.
    columns: Vec<usize>,
    /// How many columns there are in all.
    width: usize,
    /// Whether it has names, and no values.
    is_names: bool,
}

/// The values are in the columns `v0`, `v1`, ... where the first line has such names, else in all.
fn first_line(fields: &[&[u8]]) -> Result<First> {
    let find = |name: &str| fields.iter().position(|field| *field == name.as_bytes());
    let width = fields.len();
    let columns: Vec<usize> = (0..).map_while(|value| find(&format!("v{value}"))).collect();
    if !columns.is_empty() {
        let left = (0..width).find(|column| is_value_name(fields[*column]) && !columns.contains(column));
        return match left {
            Some(column) => Err(Error::Format(format!(
                "column {}: '{}' does not follow on v{}",
                column + 1,
                fields[column].escape_ascii(),
                columns.len() - 1
            ))),
            None => Ok(First { columns, width, is_names: true }),
        };
    }
    let columns = (0..width).collect();
    let no_number = fields.iter().position(|field| number(field).is_none());
    match no_number {
        None => Ok(First { columns, width, is_names: false }),
        // As a vector with a damaged value it would be lost without a word.
        Some(column) if fields.iter().any(|field| number(field).is_some()) => Err(Error::Format(format!(
            "column {}: '{}' is not a number, others are: want numbers only, or names only",
            column + 1,
            fields[column].escape_ascii()
        ))),
        Some(_) => Ok(First { columns, width, is_names: true }),
    }
}

/// Whether a name is `v` and a number.
fn is_value_name(name: &[u8]) -> bool {
    name.strip_prefix(b"v").is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// The bytes and the values of a vector in text form.
fn text(input: &File, limits: &Limits) -> Result<(Vec<u8>, Vec<f32>)> {
    let len = input.metadata()?.len();
    format::check_text_len(len, limits)?;
    let mut bytes = Vec::new();
    input.take(len).read_to_end(&mut bytes)?;
    let values = parse_text(&bytes, limits)?;
    Ok((bytes, values))
}

/// A vector file, as it is.
fn packed(mut input: File, kind: FileKind) -> Result<Table> {
    let len = input.metadata()?.len();
    let mut head = Vec::new();
    (&input).take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    let layout = format::layout_of_head(kind, &head, len, &Limits::default())?;
    input.rewind()?;
    let gap = format::row_header(kind, layout.dim).map_or(0, |header| header.len());
    head.truncate(usize::try_from(layout.offset).unwrap_or(0) - gap);
    let rows = RowReader::new(Box::new(input) as Box<dyn Read>, kind, layout)?;
    Ok(Table { rows, layout, header: head, dtype: layout.dtype })
}

/// An array of an archive.
fn npz(mut input: File, array: Option<&str>) -> Result<Table> {
    let members = unzip::members(&mut input)?;
    let name = |member: &Member| member.name.strip_suffix(".npy").map(str::to_owned);
    let names: Vec<String> = members.iter().filter_map(name).collect();
    let name = choose(&names, array)?;
    let member = members.iter().find(|member| member.name.strip_suffix(".npy") == Some(name));
    let member = member.expect("its name is one of theirs");
    let mut bytes = member.open(input)?;
    let mut head = Vec::new();
    bytes.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    let layout = format::layout_of_head(FileKind::Npy, &head, member.len, &Limits::default())?;
    let input: Box<dyn Read> = Box::new(std::io::Cursor::new(head).chain(bytes));
    as_npy(RowReader::new(input, FileKind::Npy, layout)?, layout)
}

/// A tensor of a file of them.
fn tensor(mut input: File, array: Option<&str>) -> Result<Table> {
    let len = input.metadata()?.len();
    let mut prefix = Vec::new();
    (&input).take(safetensors::PREFIX as u64).read_to_end(&mut prefix)?;
    let prefix = prefix.first_chunk().ok_or_else(|| {
        let want = safetensors::PREFIX;
        Error::Format(format!("{} bytes, the length of the header alone has {want}", prefix.len()))
    })?;
    let header_len = safetensors::header_len(*prefix, len)?;
    let mut header = Vec::new();
    (&input).take(header_len).read_to_end(&mut header)?;
    let tensors = safetensors::tensors(&header)?;
    let names: Vec<String> = tensors.keys().cloned().collect();
    let tensor: &Tensor = &tensors[choose(&names, array)?];
    let layout = tensor.layout(header_len, len, &Limits::default())?;
    input.rewind()?;
    let kind = FileKind::Raw(layout.dtype);
    as_npy(RowReader::new(Box::new(input) as Box<dyn Read>, kind, layout)?, layout)
}

/// Rows that become those of an `.npy`, which has no bf16.
fn as_npy(rows: RowReader<Box<dyn Read>>, layout: Layout) -> Result<Table> {
    let dtype = if layout.dtype == Dtype::Bf16 { Dtype::F32 } else { layout.dtype };
    let header = format::file_header(FileKind::Npy, dtype, layout.rows, layout.dim)?;
    Ok(Table { rows, layout, header, dtype })
}

/// The array that is asked for; else `vectors`, or the only one.
fn choose<'a>(names: &'a [String], asked: Option<&str>) -> Result<&'a str> {
    let find = |want: &str| names.iter().find(|name| *name == want);
    let found = match (asked, names) {
        (Some(asked), _) => find(asked),
        (None, [only]) => Some(only),
        (None, _) => find(VECTORS),
    };
    found.map(String::as_str).ok_or_else(|| {
        let shown: Vec<&str> = names.iter().take(20).map(String::as_str).collect();
        let shown = shown.join(", ").escape_debug().to_string();
        Error::Format(match asked {
            _ if names.is_empty() => "no arrays".into(),
            Some(asked) => format!("no array {asked:?}; there are: {shown}"),
            None => format!("several arrays: choose one with --array: {shown}"),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_an_npy_has_one_length() {
        for (rows, dim) in [(0, 0), (1, 1), (u64::from(u32::MAX), u32::MAX)] {
            assert_eq!(header(rows, dim).unwrap().len(), 128);
        }
    }

    #[test]
    fn an_array_is_chosen_by_its_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let several = names(&["ids", "vectors"]);
        assert_eq!(choose(&several, None).unwrap(), "vectors");
        assert_eq!(choose(&several, Some("ids")).unwrap(), "ids");
        assert_eq!(choose(&names(&["arr_0"]), None).unwrap(), "arr_0");
        let error = choose(&names(&["base", "query"]), None).unwrap_err().to_string();
        assert_eq!(error, "several arrays: choose one with --array: base, query");
        for asked in [None, Some("x")] {
            assert_eq!(choose(&[], asked).unwrap_err().to_string(), "no arrays");
        }
        let error = choose(&several, Some("x")).unwrap_err().to_string();
        assert_eq!(error, "no array \"x\"; there are: ids, vectors");
    }
}
