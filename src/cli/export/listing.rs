//! What there is to export: the files below a directory and their rows, in the order of ids, as the `ids.tsv` of each
//! collection has them. A table stays what it was when it was opened, so it can be gone through more than once; of a
//! large file one line is kept, never its rows.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::control::{self, ControlFile};
use super::super::exit::{Code, Failure};

/// Bytes of a table that are read at a time.
const BUFFER: usize = 1 << 20;

/// The vector files below a directory.
pub(super) struct Listing {
    /// The directory, without symbolic links.
    pub(super) dir: PathBuf,
    parts: Vec<Part>,
}

/// What one collection has below the directory.
struct Part {
    /// From the directory to where the table's paths begin: empty, or ends with a slash.
    prefix: Vec<u8>,
    table: File,
    path: PathBuf,
    dim: Option<u32>,
}

/// A vector file.
pub(super) struct Entry {
    /// From the directory.
    pub(super) path: Vec<u8>,
    /// The id of row 0; those of the others follow.
    pub(super) first_id: u32,
    pub(super) rows: u64,
    pub(super) dim: u32,
}

/// What all files have together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) files: u64,
    pub(super) rows: u64,
    /// The dimension of the first file, and a file that has another.
    pub(super) dim: u32,
    pub(super) other: Option<(PathBuf, u32)>,
    /// Bytes of all paths, and characters of the longest.
    pub(super) path_bytes: u64,
    pub(super) path_chars: usize,
}

/// Files that are no vectors although their names say so.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    pub(super) invalid: u64,
    /// One of them, and why.
    pub(super) example: Option<(String, String)>,
    /// One whose bytes are not those that were written.
    pub(super) damaged: Option<(String, String)>,
}

#[derive(Deserialize)]
struct Indexes {
    collections: Vec<Collection>,
}

#[derive(Deserialize)]
struct Collection {
    path: String,
}

#[derive(Deserialize)]
struct ErrorLine {
    path: String,
    error: String,
}

impl Listing {
    /// Opens the tables of the directory's own collection and of those below it.
    ///
    /// # Errors
    ///
    /// As [`control::open`].
    pub(super) fn open(dir: &Path) -> Result<Self, Failure> {
        let ControlFile { file, path, dir: real } = open(dir, "index.json")?;
        let indexes: Indexes = serde_json::from_reader(BufReader::new(file))
            .map_err(|error| Failure::new(Code::FAILED, format!("{}: {error}", path.display())))?;
        // Only the root of a mount, or of a snapshot, has its version.
        let root = real.ancestors().find(|above| above.join(".vexfs/version").exists()).unwrap_or(&real);
        let below_root = real.strip_prefix(root).unwrap_or(Path::new("")).to_string_lossy().into_owned();
        let above = if below_root.is_empty() { "/".to_owned() } else { format!("/{below_root}/") };

        let mut parts = vec![Part::open(&real, &real).map_err(|error| Failure::io(&real, &error))?];
        let mut below: Vec<&str> = indexes.collections.iter().map(|found| found.path.as_str()).collect();
        below.sort_unstable();
        for path in below.iter().filter_map(|path| path.strip_prefix(&above)).filter(|path| !path.is_empty())
        {
            let dir = real.join(path);
            match Part::open(&real, &dir) {
                Ok(part) => parts.push(part),
                // What the caller may not look into is not there for him, as in a search.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(changed(&dir)),
                Err(error) => return Err(Failure::io(&dir, &error)),
            }
        }
        Ok(Self { dir: real, parts })
    }

    /// Shows every file: those of the directory's own collection first, then those of the others by path, each in the
    /// order of ids.
    ///
    /// # Errors
    ///
    /// The first that `on_file` returns; what reading a table answers.
    pub(super) fn each(&self, mut on_file: impl FnMut(&Entry) -> Result<(), Failure>) -> Result<(), Failure> {
        for part in &self.parts {
            part.each(&mut on_file)?;
        }
        Ok(())
    }

    pub(super) fn totals(&self) -> Result<Totals, Failure> {
        let mut totals = Totals::default();
        self.each(|entry| {
            if totals.files == 0 {
                totals.dim = entry.dim;
            } else if totals.dim != entry.dim && totals.other.is_none() {
                totals.other = Some((self.path_of(entry), entry.dim));
            }
            totals.files += 1;
            totals.rows += entry.rows;
            totals.path_bytes += entry.path.len() as u64;
            totals.path_chars = totals.path_chars.max(super::arrays::characters(&entry.path).count());
            Ok(())
        })?;
        Ok(totals)
    }

    /// The files below that are recognised by their names and refused for their content.
    pub(super) fn left_out(&self) -> Result<LeftOut, Failure> {
        let ControlFile { file, path, .. } = open(&self.dir, "errors.jsonl")?;
        let mut left_out = LeftOut::default();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|error| Failure::io(&path, &error))?;
            let ErrorLine { path, error } = serde_json::from_str(&line)
                .map_err(|error| Failure::new(Code::FAILED, format!("{}: {error}", path.display())))?;
            // What was wrong with a query or a configuration.
            if path.starts_with(".vexfs/") {
                continue;
            }
            if error.starts_with("damaged: ") {
                left_out.damaged.get_or_insert_with(|| (path.clone(), error.clone()));
            }
            left_out.invalid += 1;
            left_out.example.get_or_insert((path, error));
        }
        Ok(left_out)
    }

    /// The path of a file.
    pub(super) fn path_of(&self, entry: &Entry) -> PathBuf {
        self.dir.join(OsStr::from_bytes(&entry.path))
    }
}

impl Part {
    fn open(base: &Path, dir: &Path) -> io::Result<Self> {
        let path = dir.join(".vexfs/ids.tsv");
        let table = File::open(&path)?;
        let mut prefix = dir.strip_prefix(base).unwrap_or(Path::new("")).as_os_str().as_bytes().to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let dim = control::attribute(dir, "user.vexfs.dim").and_then(|dim| dim.parse().ok());
        Ok(Self { prefix, table, path, dim })
    }

    fn each(&self, on_file: &mut impl FnMut(&Entry) -> Result<(), Failure>) -> Result<(), Failure> {
        let failed = |error| Failure::io(&self.path, &error);
        let mut table = &self.table;
        table.rewind().map_err(failed)?;
        let mut lines = BufReader::with_capacity(BUFFER, table);
        let (mut line, mut number, mut shown) = (Vec::new(), 0u64, Vec::new());
        let mut entry: Option<Entry> = None;
        lines.skip_until(b'\n').map_err(failed)?;
        loop {
            line.clear();
            number += 1;
            if lines.read_until(b'\n', &mut line).map_err(failed)? == 0 {
                break;
            }
            let Some((id, path, row)) = parse(&line) else {
                let message = format!("{}: line {}: want id, path and row", self.path.display(), number + 1);
                return Err(Failure::new(Code::FAILED, message));
            };
            if let Some(entry) = &mut entry
                && shown == path
                && row == entry.rows
                && u64::from(id) == u64::from(entry.first_id) + row
            {
                entry.rows += 1;
                continue;
            }
            if let Some(entry) = entry.take() {
                on_file(&entry)?;
            }
            shown.clear();
            shown.extend_from_slice(path);
            let mut path = self.prefix.clone();
            unescape_into(&mut path, &shown);
            let Some(dim) = self.dim else { return Err(changed(Path::new(OsStr::from_bytes(&path)))) };
            entry = Some(Entry { path, first_id: id, rows: 1, dim });
        }
        entry.map_or(Ok(()), |entry| on_file(&entry))
    }
}

/// Says that a file is not what it was when the export began.
pub(super) fn changed(path: &Path) -> Failure {
    let advice = "changed while it was exported: export from a snapshot (vexfs snapshot create)";
    Failure::new(Code::NotReady, format!("{}: {advice}", path.display()))
}

fn open(dir: &Path, name: &str) -> Result<ControlFile, Failure> {
    control::open(dir, name, File::options().read(true))
}

/// `id<TAB>path<TAB>row`.
fn parse(line: &[u8]) -> Option<(u32, &[u8], u64)> {
    let mut fields = line.strip_suffix(b"\n")?.split(|&byte| byte == b'\t');
    let (id, path, row) = (fields.next()?, fields.next()?, fields.next()?);
    let number = |field: &[u8]| str::from_utf8(field).ok()?.parse::<u64>().ok();
    let is_whole = fields.next().is_none();
    is_whole.then_some((u32::try_from(number(id)?).ok()?, path, number(row)?))
}

/// A path as a table shows it, as it is.
fn unescape_into(out: &mut Vec<u8>, shown: &[u8]) {
    let mut bytes = shown.iter();
    while let Some(&byte) = bytes.next() {
        out.push(match (byte, byte == b'\\') {
            (_, false) => byte,
            (_, true) => match bytes.next() {
                Some(b't') => b'\t',
                Some(b'n') => b'\n',
                Some(&other) => other,
                None => byte,
            },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_three_fields() {
        assert_eq!(parse(b"7\ta b.npy\t3\n"), Some((7, &b"a b.npy"[..], 3)));
        for line in [&b"7\ta\n"[..], b"7\ta\t3", b"7\ta\t3\t4\n", b"x\ta\t3\n", b"4294967296\ta\t0\n"] {
            assert_eq!(parse(line), None, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_shown_path_is_read_as_it_is() {
        let path = b"a\tb\nc\\d\xff\\t";
        let mut shown = Vec::new();
        crate::search::render::escape_into(&mut shown, path);
        let mut read = b"p/".to_vec();
        unescape_into(&mut read, &shown);
        assert_eq!(read, [b"p/", &path[..]].concat());
    }
}
