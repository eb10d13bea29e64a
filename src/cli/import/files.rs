//! The lines of an export become the files again that they are of, with their attributes.
//!
//! The file is read twice: first everything is checked, then it is written, so that one that is wrong leaves nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::XattrFlags;
use xxhash_rust::xxh3::xxh3_64;

use super::super::exit::{Code, Failure};
use super::super::output::bar;
use super::super::target::Target;
use super::lines::{self, Line};
use super::{Imported, Place, confirm, open, refused};
use crate::format::{
    self, Dtype, FileKind, Limits, encode, file_header, npy_vector_header, parse_numbers, parse_text,
    row_header,
};
use crate::{Error, Result};

/// Bytes that are read or written at a time, at least.
const BUFFER: usize = 1 << 20;

/// Content that is in a file of its own in the store, so that a sync of the directory does not reach it.
const SYNCED_ALONE: u64 = 16 << 10;

/// A row of a file that is to be.
struct Record {
    /// Below the directory.
    path: PathBuf,
    row: u64,
    kind: FileKind,
    dtype: Dtype,
    vector: Vec<f32>,
    /// As they are in the file, with what is before them.
    bytes: Vec<u8>,
    attributes: Vec<(OsString, Vec<u8>)>,
}

/// Why reading ends: for what is read, or for what is done with it.
enum Ended {
    Input(Error),
    Failed(Failure),
}

/// Makes all files of an export below a directory.
///
/// # Errors
///
/// `Invalid` for lines that are no export, paths that leave the directory, files that exist and vectors that their
/// collection refuses, before anything is made; what the mount answers.
pub(super) fn import(file: &Path, place: &Place, force: bool) -> Result<Imported, Failure> {
    if file.extension().is_none_or(|end| end != "jsonl") {
        let message = format!("{}: --as-files wants a .jsonl of vexfs export", file.display());
        return Err(Failure::new(Code::Invalid, message));
    }
    let mut input = open(file)?;
    let len = input.metadata().map_err(|error| Failure::io(file, &error))?.len();
    let mut check = Check::new(place, force);
    let checking = bar("check", len);
    each(&input, &checking, |record| check.see(record)).map_err(|ended| ended.of(file))?;
    checking.finish_and_clear();
    if check.files.is_empty() {
        return Err(refused(file, Error::Format("no vectors".into())));
    }
    input.rewind().map_err(|error| Failure::io(file, &error))?;
    let mut open: Option<Making> = None;
    let making = bar("import", len);
    let made = each(&input, &making, |record| {
        if record.row == 0 {
            if let Some(whole) = open.take() {
                whole.finish().map_err(Ended::Failed)?;
            }
            open = Some(Making::begin(place, record, force).map_err(Ended::Failed)?);
        }
        let making = open.as_mut().expect("a file begins with row 0");
        making.row(record).map_err(Ended::Failed)
    });
    made.map_err(|ended| ended.of(file))?;
    if let Some(whole) = open {
        whole.finish()?;
    }
    making.finish_and_clear();
    let dim = check.dim.filter(|_| check.has_one_dim);
    let files = check.files.len() as u64;
    Ok(Imported { file: file.to_string_lossy().into_owned(), path: None, files, rows: check.rows, dim })
}

impl Ended {
    fn of(self, file: &Path) -> Failure {
        match self {
            Ended::Input(error) => refused(file, error),
            Ended::Failed(failure) => failure,
        }
    }
}

/// Shows every line as a record. The rows of a file follow one another.
fn each(
    input: &File,
    bar: &indicatif::ProgressBar,
    mut on_record: impl FnMut(&Record) -> Result<(), Ended>,
) -> Result<(), Ended> {
    let mut last: Option<(PathBuf, u64, Dtype, usize)> = None;
    let mut failure = None;
    let read = lines::each(BufReader::with_capacity(BUFFER, input), |number, text| {
        let at = |error| lines::at(number, error);
        let record = Record::parse(text).map_err(at)?;
        let (dtype, dim) = (record.dtype, record.vector.len());
        let before = last.as_ref().filter(|(path, row, ..)| *path == record.path && record.row == row + 1);
        match before {
            Some((_, _, of, columns)) if (*of, *columns) != (dtype, dim) => {
                let what = format!("{dim} {dtype}, row 0 of the file has {columns} {of}");
                return Err(at(Error::Format(what)));
            }
            None if record.row != 0 => {
                let what = format!("row {} of {} has no row before it", record.row, record.path.display());
                return Err(at(Error::Format(what)));
            }
            _ => {}
        }
        on_record(&record).map_err(|ended| match ended {
            Ended::Input(error) => at(error),
            Ended::Failed(failed) => {
                failure = Some(failed);
                Error::Interrupted
            }
        })?;
        bar.inc(text.len() as u64);
        last = Some((record.path, record.row, dtype, dim));
        Ok(())
    });
    match (failure, read) {
        (Some(failure), _) => Err(Ended::Failed(failure)),
        (None, Err(error)) => Err(Ended::Input(error)),
        (None, Ok(())) => Ok(()),
    }
}

impl Record {
    fn parse(text: &[u8]) -> Result<Self> {
        let line = Line::parse(text)?;
        let bytes = match (&line.path_hex, &line.path) {
            (Some(digits), _) => unhex(digits)?,
            (None, Some(path)) => path.as_bytes().to_vec(),
            (None, None) => {
                return Err(Error::Format("no path: this is not what vexfs export has written".into()));
            }
        };
        let path = PathBuf::from(OsString::from_vec(bytes));
        let name = path.file_name().unwrap_or_default().as_bytes();
        let is_below = path.components().all(|part| match part {
            Component::Normal(name) => name != ".vexfs" && !name.as_bytes().contains(&0),
            _ => false,
        });
        if !is_below || path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(Error::Format(format!("path {path:?} is not one of a file below a directory")));
        }
        let Some(kind) = format::recognise(name) else {
            return Err(Error::Format(format!("path {path:?} is not the name of a vector file")));
        };
        let dtype = match (kind, &line.dtype) {
            (FileKind::Raw(dtype) | FileKind::Vecs(dtype) | FileKind::Bin(dtype), _) => dtype,
            (FileKind::Text, _) | (FileKind::Npy, None) => Dtype::F32,
            (FileKind::Npy, Some(name)) => {
                Dtype::parse(name).ok_or_else(|| Error::Format(format!("dtype {name:?} is unknown")))?
            }
        };
        let row = line.row.ok_or_else(|| Error::Format("no row".into()))?;
        let vector = parse_text(line.numbers(), &Limits::default())?;
        let dim = u32::try_from(vector.len()).expect("the limit is below");
        let mut bytes: Vec<u8> = row_header(kind, dim).into_iter().flatten().collect();
        match (kind, dtype) {
            (FileKind::Text, _) => {
                bytes.extend_from_slice(line.numbers());
                bytes.push(b'\n');
            }
            // f32 does not have all values of these.
            (_, Dtype::F64) => {
                let values: Vec<f64> = parse_numbers(line.numbers(), &Limits::default())?;
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            (_, Dtype::I32) => {
                let values: Vec<i32> = parse_numbers(line.numbers(), &Limits::default())?;
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            _ => encode(dtype, &vector, &mut bytes).map_err(|column| {
                Error::Format(format!("column {column}: {} is no {dtype}", vector[column]))
            })?,
        }
        if row > 0 && matches!(kind, FileKind::Raw(_) | FileKind::Text) {
            return Err(Error::Format(format!("row {row} of {path:?}, which has one")));
        }
        let attributes = attributes(&line.attributes, &line.attributes_hex)?;
        Ok(Self { path, row, kind, dtype, vector, bytes, attributes })
    }
}

/// The attributes of a file by their whole names.
fn attributes(
    plain: &BTreeMap<String, String>,
    coded: &BTreeMap<String, String>,
) -> Result<Vec<(OsString, Vec<u8>)>> {
    let plain = plain.iter().map(|(name, value)| Ok((name.clone().into_bytes(), value.clone().into_bytes())));
    let coded = coded.iter().map(|(name, value)| Ok((unhex(name)?, unhex(value)?)));
    let whole = |named: Result<(Vec<u8>, Vec<u8>)>| {
        let (name, value) = named?;
        if name.is_empty() || name.contains(&0) || name.starts_with(b"vexfs.") {
            return Err(Error::Format(format!("attribute '{}' cannot be set", name.escape_ascii())));
        }
        Ok((OsString::from_vec([b"user.", &name[..]].concat()), value))
    };
    plain.chain(coded).map(whole).collect()
}

/// What is found out before anything is made.
struct Check<'a> {
    place: &'a Place,
    force: bool,
    /// In the root of a mount each directory is a collection of its own.
    is_root: bool,
    /// The places of directories of files.
    places: HashMap<PathBuf, Place>,
    /// Hashes of the paths.
    files: HashSet<u64>,
    rows: u64,
    dim: Option<u32>,
    has_one_dim: bool,
}

impl<'a> Check<'a> {
    fn new(place: &'a Place, force: bool) -> Self {
        let is_root = place.dir.join(".vexfs/version").exists();
        let (places, files) = (HashMap::new(), HashSet::new());
        Self { place, force, is_root, places, files, rows: 0, dim: None, has_one_dim: true }
    }

    fn see(&mut self, record: &Record) -> Result<(), Ended> {
        let input = |what: String| Ended::Input(Error::Format(what));
        self.rows += 1;
        if record.row == 0 {
            let target = self.place.dir.join(&record.path);
            if !self.files.insert(xxh3_64(record.path.as_os_str().as_bytes())) {
                return Err(input(format!("{} comes a second time", record.path.display())));
            }
            match target.symlink_metadata() {
                Ok(found) if !self.force || !found.is_file() => {
                    return Err(input(format!("{} exists; --force replaces files", target.display())));
                }
                _ => {}
            }
        }
        let parent = record.path.parent().unwrap_or(Path::new(""));
        let place = match self.places.get_mut(parent) {
            Some(place) => place,
            None => {
                let place = self.place_of(parent)?;
                self.places.entry(parent.to_path_buf()).or_insert(place)
            }
        };
        place.check(record.row, &record.vector).map_err(Ended::Input)?;
        let dim = u32::try_from(record.vector.len()).ok();
        place.dim = dim;
        self.has_one_dim &= self.dim.is_none() || self.dim == dim;
        self.dim = self.dim.or(dim);
        Ok(())
    }

    /// The place of a directory that may not be there yet.
    fn place_of(&self, parent: &Path) -> Result<Place, Ended> {
        let whole = self.place.dir.join(parent);
        let there = whole.ancestors().find(|above| above.exists()).unwrap_or(&self.place.dir);
        // A symbolic link on the way could lead out of the directory.
        if there.canonicalize().ok().as_deref() != Some(there) || !there.is_dir() {
            let what = format!("{} is not a directory below {}", there.display(), self.place.dir.display());
            return Err(Ended::Input(Error::Format(what)));
        }
        if self.is_root && there == self.place.dir && whole != there {
            return Ok(Place { dir: whole, dim: None, cosine: true });
        }
        Ok(Place::of(there.to_path_buf()))
    }
}

/// A file that is being made.
struct Making {
    path: PathBuf,
    target: Target,
    out: BufWriter<File>,
    kind: FileKind,
    dtype: Dtype,
    dim: u32,
    rows: u64,
}

impl Making {
    fn begin(place: &Place, record: &Record, force: bool) -> Result<Self, Failure> {
        let path = place.dir.join(&record.path);
        let failed = |error| Failure::io(&path, &error);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| Failure::io(parent, &error))?;
        }
        let target = Target::create(&path, force)?;
        for (name, value) in &record.attributes {
            rustix::fs::fsetxattr(target.file(), name.as_os_str(), value, XattrFlags::empty())
                .map_err(|error| failed(error.into()))?;
        }
        let out = target.file().try_clone().map_err(failed)?;
        let capacity = if record.kind == FileKind::Text { 0 } else { BUFFER.min(16 * record.bytes.len()) };
        let out = BufWriter::with_capacity(capacity, out);
        let dim = u32::try_from(record.vector.len()).expect("the limit is below");
        let Record { kind, dtype, .. } = *record;
        let mut making = Self { path, target, out, kind, dtype, dim, rows: 0 };
        let room = making.header()?;
        making.put(&room)?;
        Ok(making)
    }

    fn row(&mut self, record: &Record) -> Result<(), Failure> {
        self.rows += 1;
        self.put(&record.bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| Failure::io(&self.path, &error))
    }

    /// What is before the rows, of one length however many there are.
    fn header(&self) -> Result<Vec<u8>, Failure> {
        match self.kind {
            FileKind::Raw(_) | FileKind::Text => Ok(Vec::new()),
            // As numpy saves one vector.
            FileKind::Npy if self.rows == 1 => Ok(npy_vector_header(self.dtype, self.dim)?),
            kind => Ok(file_header(kind, self.dtype, self.rows, self.dim)?),
        }
    }

    fn finish(mut self) -> Result<(), Failure> {
        let header = self.header()?;
        let Self { path, target, ref mut out, .. } = self;
        let failed = |error| Failure::io(&path, &error);
        out.flush().map_err(failed)?;
        target.file().write_all_at(&header, 0).map_err(failed)?;
        let len = target.file().metadata().map_err(failed)?.len();
        if len > SYNCED_ALONE {
            target.file().sync_all().map_err(failed)?;
        }
        // Its vectors count when the last descriptor is closed.
        drop(self.out);
        target.place()?;
        confirm(&path)
    }
}

fn unhex(digits: &str) -> Result<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8; 2]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs.iter().map(pair).collect();
    bytes
        .filter(|_| rest.is_empty())
        .ok_or_else(|| Error::Format(format!("{digits:?} is not bytes in hexadecimal")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str, rest: &str) -> Result<Record> {
        let path = serde_json::Value::from(path);
        Record::parse(format!("{{\"path\":{path},{rest}}}").as_bytes())
    }

    #[test]
    fn a_path_stays_below_the_directory_and_names_a_vector_file() {
        for path in ["a.f32", "a/b/c.npy", "..a/.b/c.vec", " .f32"] {
            assert_eq!(parsed(path, "\"row\":0,\"vector\":[1]").unwrap().path, Path::new(path));
        }
        for path in ["/a.f32", "../a.f32", "a/../b.f32", "./a.f32", "a/.vexfs/b.f32", "a.f32/", "a\0.f32"] {
            let error = parsed(path, "\"row\":0,\"vector\":[1]").err().unwrap().to_string();
            assert!(error.contains("below a directory"), "{path:?}: {error}");
        }
        for path in ["", "a", ".a.f32", "a.txt", "a.f32~"] {
            assert!(parsed(path, "\"row\":0,\"vector\":[1]").is_err(), "{path}");
        }
    }

    #[test]
    fn values_are_those_of_the_files_type_to_the_last_bit() {
        let bytes = |path: &str, rest: &str| parsed(path, rest).unwrap().bytes;
        assert_eq!(bytes("a.f64", "\"row\":0,\"vector\":[0.1,-5e-324]")[..8], 0.1f64.to_le_bytes());
        assert_eq!(bytes("a.ivecs", "\"row\":3,\"vector\":[2147483647]"), [1, 0, 0, 0, 255, 255, 255, 127]);
        assert_eq!(bytes("a.npy", "\"row\":3,\"dtype\":\"u8\",\"vector\":[255]"), [255]);
        assert_eq!(bytes("a.vec", "\"row\":0,\"vector\":[0.10,2]"), b"[0.10,2]\n");
        for (path, rest) in [
            ("a.u8", "\"row\":0,\"vector\":[256]"),
            ("a.u8", "\"row\":1,\"vector\":[1]"),
            ("a.f32", "\"vector\":[1]"),
            ("a.npy", "\"row\":0,\"dtype\":\"x\",\"vector\":[1]"),
            ("a.f32", "\"row\":0,\"vector\":[1],\"attributes\":{\"vexfs.dim\":\"1\"}"),
            ("a.f32", "\"row\":0,\"vector\":[1],\"attributes_hex\":{\"0\":\"\"}"),
        ] {
            assert!(parsed(path, rest).is_err(), "{path} {rest}");
        }
    }
}
