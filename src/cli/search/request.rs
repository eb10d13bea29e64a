//! Request lines, from files and words.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use super::super::exit::{Code, Failure};
use crate::format::{self, Dtype, FileKind, Layout, Limits};

/// Largest vector file that is read into memory to be asked for, in bytes.
const FILE_MAX: u64 = 4 << 30;

/// What is the same in every request of a command.
#[derive(Clone, Debug, Serialize)]
pub(in crate::cli) struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) ef: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) recall: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) exact: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) max: Option<f64>,
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) condition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) explain: Option<bool>,
}

/// The requests of a command, made one by one.
#[derive(Debug)]
pub(in crate::cli) struct Requests {
    what: What,
    options: Options,
}

#[derive(Debug)]
enum What {
    /// A file of the mount, by its path from the directory that is searched.
    Like {
        path: String,
        row: Option<u64>,
    },
    Text(String),
    Vectors(Vectors),
    Nothing,
}

#[derive(Debug)]
enum Vectors {
    /// A single vector, from text.
    One(Vec<f32>),
    /// `rows` rows from `first` on.
    Rows { bytes: Vec<u8>, layout: Layout, first: u64, rows: u64 },
}

/// A request as it goes into the transaction file.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    like: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// Widened: the shortest decimal of the widened value is the same f32 for a reader that goes through f64 and
    /// for one that does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<Vec<f64>>,
    #[serde(flatten)]
    options: &'a Options,
}

impl Requests {
    /// Neighbours of a file: by name when it lies in the mount of `dir`, or in the snapshot that `dir` is in; by its
    /// content when not.
    ///
    /// # Errors
    ///
    /// When there is no such file or row, or its name or content cannot be asked for.
    pub(in crate::cli) fn like(file: &Path, dir: &Path, options: Options) -> Result<Self, Failure> {
        let (file, row) = split_row(file);
        let real = file.canonicalize().map_err(|error| invalid(&file, &error.to_string()))?;
        let same_mount = real.metadata().and_then(|meta| Ok(meta.dev() == dir.metadata()?.dev()));
        let same_mount = same_mount.map_err(|error| Failure::io(&file, &error))?;
        let what = if same_mount && snapshot_of(&real) == snapshot_of(dir) {
            let path = relative(&real, dir);
            let Some(path) = path.to_str() else {
                return Err(invalid(&file, "the name is not UTF-8"));
            };
            What::Like { path: path.to_owned(), row }
        } else {
            What::Vectors(Vectors::read(&real, row)?)
        };
        Ok(Self { what, options })
    }

    /// Neighbours of every row of a file; `-` is stdin.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is no vector file.
    pub(in crate::cli) fn vectors(file: &Path, options: Options) -> Result<Self, Failure> {
        Ok(Self { what: What::Vectors(Vectors::read(file, None)?), options })
    }

    pub(in crate::cli) fn text(text: &str, options: Options) -> Self {
        Self { what: What::Text(text.to_owned()), options }
    }

    /// Of no vector: how such a search would be answered.
    pub(in crate::cli) fn of_nothing(options: Options) -> Self {
        Self { what: What::Nothing, options }
    }

    /// How many there are.
    pub(in crate::cli) fn len(&self) -> u64 {
        match &self.what {
            What::Like { .. } | What::Text(_) | What::Nothing | What::Vectors(Vectors::One(_)) => 1,
            What::Vectors(Vectors::Rows { rows, .. }) => *rows,
        }
    }

    /// One request as a line, with its end.
    ///
    /// # Errors
    ///
    /// `Invalid` for a row with a value that cannot be searched.
    pub(in crate::cli) fn line(&self, number: u64) -> Result<String, Failure> {
        let mut line = Line { like: None, row: None, text: None, vector: None, options: &self.options };
        match &self.what {
            What::Like { path, row } => {
                line.like = Some(path);
                line.row = *row;
            }
            What::Text(text) => line.text = Some(text),
            What::Nothing => {}
            What::Vectors(vectors) => line.vector = Some(vectors.row(number)?),
        }
        let text = serde_json::to_string(&line);
        let mut text = text.map_err(|error| Failure::new(Code::FAILED, format!("request: {error}")))?;
        text.push('\n');
        Ok(text)
    }
}

impl Vectors {
    fn read(file: &Path, row: Option<u64>) -> Result<Self, Failure> {
        let bytes = if file.as_os_str() == "-" {
            read_bounded(&mut io::stdin().lock())
        } else {
            File::open(file).and_then(|mut open| read_bounded(&mut open))
        };
        let bytes = bytes.map_err(|error| invalid(file, &error.to_string()))?;
        let kind = file.file_name().and_then(|name| format::recognise(name.as_bytes()));
        // A name that says nothing: by the first bytes, and else one raw vector.
        let kind = kind.or_else(|| format::sniff(&bytes)).unwrap_or(FileKind::Raw(Dtype::F32));
        Self::parse(kind, bytes, row).map_err(|mut failure| {
            failure.message = format!("{}: {}", file.display(), failure.message);
            failure
        })
    }

    fn parse(kind: FileKind, bytes: Vec<u8>, row: Option<u64>) -> Result<Self, Failure> {
        let limits = Limits::default();
        let no_row = |row: u64, rows: u64| {
            Failure::new(Code::Invalid, format!("no row {row}, the file has {rows} (counted from 0)"))
        };
        if kind == FileKind::Text {
            return match row {
                Some(row) if row > 0 => Err(no_row(row, 1)),
                _ => Ok(Vectors::One(format::parse_text(&bytes, &limits)?)),
            };
        }
        let layout = format::layout(kind, &bytes, &limits)?;
        match row {
            Some(row) if row >= layout.rows => Err(no_row(row, layout.rows)),
            Some(row) => Ok(Vectors::Rows { bytes, layout, first: row, rows: 1 }),
            None => Ok(Vectors::Rows { rows: layout.rows, bytes, layout, first: 0 }),
        }
    }

    fn row(&self, number: u64) -> Result<Vec<f64>, Failure> {
        let mut scratch = Vec::new();
        let (row, vector) = match self {
            Vectors::One(vector) => (0, vector.as_slice()),
            Vectors::Rows { bytes, layout, first, .. } => {
                scratch.resize(layout.dim as usize, 0.0);
                let row = first + number;
                (row, layout.vector(bytes, row, &mut scratch))
            }
        };
        // The metric is not known here: whether a zero vector has a distance is for the mount to say.
        format::check_vector(row, vector, false)?;
        Ok(vector.iter().copied().map(f64::from).collect())
    }
}

fn invalid(file: &Path, why: &str) -> Failure {
    Failure::new(Code::Invalid, format!("{}: {why}", file.display()))
}

fn read_bounded(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        let what = format!("more than {FILE_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}

/// Splits `FILE#ROW`. A file that has such a name is that file.
fn split_row(file: &Path) -> (PathBuf, Option<u64>) {
    let whole = || (file.to_path_buf(), None);
    if file.symlink_metadata().is_ok() {
        return whole();
    }
    let bytes = file.as_os_str().as_bytes();
    let Some(hash) = bytes.iter().rposition(|&byte| byte == b'#') else {
        return whole();
    };
    let row = std::str::from_utf8(&bytes[hash + 1..]).ok().and_then(|row| row.parse().ok());
    match row {
        Some(row) => (PathBuf::from(std::ffi::OsStr::from_bytes(&bytes[..hash])), Some(row)),
        None => whole(),
    }
}

/// The way from directory `from` to `to`, both absolute and without symbolic links.
fn relative(to: &Path, from: &Path) -> PathBuf {
    let shared = to.components().zip(from.components()).take_while(|(to, from)| to == from).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(to.components().skip(shared)).collect()
}

/// The directory of the snapshot that a real path leads into, if it does: no name leads out of one.
fn snapshot_of(path: &Path) -> Option<&Path> {
    path.ancestors().find(|at| at.parent().is_some_and(|above| above.ends_with(".vexfs/snapshots")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options {
        k: Some(10),
        ef: None,
        recall: None,
        exact: None,
        max: None,
        condition: None,
        explain: None,
    };

    fn vectors(kind: FileKind, bytes: &[u8], row: Option<u64>) -> Result<Requests, Failure> {
        Ok(Requests { what: What::Vectors(Vectors::parse(kind, bytes.to_vec(), row)?), options: OPTIONS })
    }

    fn fvecs(rows: &[[f32; 2]]) -> Vec<u8> {
        format::fvecs(2, rows.as_flattened())
    }

    #[test]
    fn a_request_has_what_was_asked_for_and_nothing_else() {
        let requests = Requests::text("a \"quoted\" word", OPTIONS);
        assert_eq!(requests.line(0).unwrap(), "{\"text\":\"a \\\"quoted\\\" word\",\"k\":10}\n");
        let options = Options { ef: Some(200), max: Some(-0.5), k: Some(3), ..OPTIONS };
        let what = What::Like { path: "../a.npy".into(), row: Some(7) };
        let line = Requests { what, options }.line(0).unwrap();
        assert_eq!(line, "{\"like\":\"../a.npy\",\"row\":7,\"k\":3,\"ef\":200,\"max\":-0.5}\n");
        let without_k = Options { k: None, ..OPTIONS };
        assert_eq!(Requests::text("t", without_k).line(0).unwrap(), "{\"text\":\"t\"}\n");
        let recall = Options { recall: Some(0.95), ..OPTIONS };
        assert!(Requests::text("t", recall).line(0).unwrap().ends_with(",\"recall\":0.95}\n"));
        let condition = Options { condition: Some("a=\"b\"".into()), ..OPTIONS };
        assert!(Requests::text("t", condition).line(0).unwrap().ends_with(",\"where\":\"a=\\\"b\\\"\"}\n"));
        let exact = Options { exact: Some(true), ..OPTIONS };
        assert!(Requests::text("t", exact).line(0).unwrap().contains("\"exact\":true"));
    }

    #[test]
    fn every_f32_arrives_as_it_was() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut values = vec![0.1, -0.0, f32::MIN_POSITIVE, 1.0e-45, 4.0e18, -16_777_217.0, 1.0 / 3.0];
        while values.len() < 4000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value = f32::from_bits(u32::try_from(state >> 32).unwrap());
            if value.abs() < 1.0e15 {
                values.push(value);
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let line = vectors(FileKind::Raw(Dtype::F32), &bytes, None).unwrap().line(0).unwrap();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        // Once through f64, as JSON readers do, and once straight to f32.
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        let through_f64: Vec<f64> = serde_json::from_value(read["vector"].clone()).unwrap();
        #[expect(clippy::cast_possible_truncation, reason = "what a reader does")]
        let through_f64: Vec<f32> = through_f64.into_iter().map(|value| value as f32).collect();
        assert_eq!(bits(&through_f64), bits(&values));
        let list = line.split_once('[').unwrap().1.split_once(']').unwrap().0;
        let straight: Vec<f32> = list.split(',').map(|number| number.parse().unwrap()).collect();
        assert_eq!(bits(&straight), bits(&values));
    }

    #[test]
    fn each_row_is_a_request_and_a_row_can_be_picked() {
        let bytes = fvecs(&[[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]]);
        let all = vectors(FileKind::Vecs(Dtype::F32), &bytes, None).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all.line(2).unwrap(), "{\"vector\":[5.0,6.5],\"k\":10}\n");
        let one = vectors(FileKind::Vecs(Dtype::F32), &bytes, Some(1)).unwrap();
        assert_eq!((one.len(), one.line(0).unwrap().as_str()), (1, "{\"vector\":[3.0,4.0],\"k\":10}\n"));
        let failure = vectors(FileKind::Vecs(Dtype::F32), &bytes, Some(3)).unwrap_err();
        assert_eq!(failure.message, "no row 3, the file has 3 (counted from 0)");
        assert_eq!(failure.code, Code::Invalid);
    }

    #[test]
    fn a_vector_with_a_nan_is_not_sent() {
        let requests = vectors(FileKind::Vecs(Dtype::F32), &fvecs(&[[1.0, f32::NAN]]), None).unwrap();
        let failure = requests.line(0).unwrap_err();
        assert_eq!(failure.code, Code::Invalid);
        assert!(failure.message.contains("NaN"), "{}", failure.message);
    }

    #[test]
    fn a_file_outside_of_the_mount_is_read_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("q.vec");
        std::fs::write(&file, "1.5, -2\n").unwrap();
        let line = Requests::vectors(&file, OPTIONS).unwrap().line(0).unwrap();
        assert_eq!(line, "{\"vector\":[1.5,-2.0],\"k\":10}\n");
        std::fs::write(dir.path().join("q.f32"), [0, 0, 0]).unwrap();
        let failure = Requests::vectors(&dir.path().join("q.f32"), OPTIONS).unwrap_err();
        assert_eq!(failure.code, Code::Invalid);
        assert!(failure.message.starts_with(dir.path().to_str().unwrap()), "{}", failure.message);
    }

    #[test]
    fn a_file_of_the_same_filesystem_is_named_and_not_read() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("docs/notes")).unwrap();
        std::fs::write(root.join("docs/a#2.npy"), b"not read").unwrap();
        let like = |file: &str, dir: &str| {
            Requests::like(&root.join(file), &root.join(dir), OPTIONS).and_then(|requests| requests.line(0))
        };
        let line = like("docs/a#2.npy", "docs").unwrap();
        assert_eq!(line, "{\"like\":\"a#2.npy\",\"k\":10}\n");
        let line = like("docs/a#2.npy#12", "docs/notes").unwrap();
        assert_eq!(line, "{\"like\":\"../a#2.npy\",\"row\":12,\"k\":10}\n");
        assert_eq!(like("docs/absent.npy", "docs").unwrap_err().code, Code::Invalid);
    }

    #[test]
    fn a_path_into_a_snapshot_names_it() {
        let of = |path: &'static str| snapshot_of(Path::new(path)).and_then(Path::to_str);
        assert_eq!(of("/m/.vexfs/snapshots/s/docs/a.vec"), Some("/m/.vexfs/snapshots/s"));
        assert_eq!(of("/m/.vexfs/snapshots/s"), Some("/m/.vexfs/snapshots/s"));
        assert_eq!(
            (of("/m/docs/a.vec"), of("/m/.vexfs/snapshots"), of("/m/snapshots/s/a.vec")),
            (None, None, None)
        );
    }

    #[test]
    fn the_way_to_a_file_goes_up_first() {
        let way = |to: &str, from: &str| relative(Path::new(to), Path::new(from));
        assert_eq!(way("/m/a/b.npy", "/m/a"), Path::new("b.npy"));
        assert_eq!(way("/m/x/b.npy", "/m/a/c"), Path::new("../../x/b.npy"));
        assert_eq!(way("/m/ab.npy", "/m/a"), Path::new("../ab.npy"));
    }
}
