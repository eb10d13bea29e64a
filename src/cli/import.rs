//! `vexfs import`: files of other programs become vector files of a mount.
//!
//! Nothing here opens a store. What the mount recognises is copied as it is, arrays and lines become an `.npy`
//! ([`rows`]), and a `.jsonl` of `vexfs export` can become the files again that it is of ([`files`]). What is written
//! is checked on the way and appears under its name when it is whole, so that nobody sees a half or a bad file. Memory
//! does not grow with the number of rows.

mod files;
mod lines;
mod rows;

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::control::{self, ControlFile};
use super::exit::{Code, Failure, Outcome, code_of};
use super::index;
use super::output::{put, shown};
use crate::Error;
use crate::format::check_vector;

#[derive(Args, Debug)]
#[command(override_usage = "vexfs import [OPTIONS] FILE... DIR")]
pub(super) struct Import {
    /// What is imported, any vector file, .npz, .safetensors, .csv or .jsonl, and last the directory of a mount that gets
    /// a vector file for each
    // One list: of two, options between files and directory would end the first.
    #[arg(required = true, value_name = "FILE... DIR")]
    paths: Vec<PathBuf>,
    /// Of an .npz or .safetensors with several arrays, the one with the vectors
    #[arg(long, value_name = "NAME")]
    array: Option<String>,
    /// Make the files and attributes again that a .jsonl of vexfs export is of
    #[arg(long, conflicts_with = "array")]
    as_files: bool,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Return when the graph has the vectors; they are found before that too
    #[arg(long)]
    wait: bool,
    /// Say what was imported in JSON
    #[arg(long)]
    json: bool,
}

/// What one file has become.
#[derive(Serialize)]
struct Imported {
    file: String,
    /// The vector file; null where there are several.
    path: Option<String>,
    files: u64,
    rows: u64,
    /// Null where files differ.
    dim: Option<u32>,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    dir: String,
    imported: &'a [Imported],
}

/// A directory of the mount and what its collection asks of vectors.
#[derive(Clone, Debug)]
struct Place {
    /// Without symbolic links.
    dir: PathBuf,
    /// Once it is fixed.
    dim: Option<u32>,
    cosine: bool,
}

impl Import {
    pub(super) fn run(&self) -> Outcome {
        let Some((dir, files)) = self.paths.split_last().filter(|(_, files)| !files.is_empty()) else {
            return Err(Failure::new(Code::Usage, "want at least one FILE and a DIR"));
        };
        let ControlFile { dir, .. } = control::open(dir, "index.json", File::options().read(true))?;
        let mut imported = Vec::new();
        for file in files {
            // Each may have fixed the dimension for the next.
            let place = Place::of(dir.clone());
            let one = match self.as_files {
                true => files::import(file, &place, self.force)?,
                false => rows::import(file, &place, self.array.as_deref(), self.force)?,
            };
            if !self.json {
                put(one.describe().as_bytes())?;
            }
            imported.push(one);
        }
        // What was placed is in the directory, and on disk with it.
        File::open(&dir).and_then(|open| open.sync_all()).map_err(|error| Failure::io(&dir, &error))?;
        if self.wait {
            index::wait_until_indexed(&dir)?;
        }
        if self.json {
            let report = Report { schema: 1, dir: dir.to_string_lossy().into_owned(), imported: &imported };
            let text = serde_json::to_string(&report).expect("the keys are strings");
            put(format!("{text}\n").as_bytes())?;
        }
        Ok(Code::Ok)
    }
}

impl Imported {
    fn describe(&self) -> String {
        let Imported { file, path, files, rows, dim } = self;
        let of = dim.map_or(String::new(), |dim| format!(" of {dim} dimensions"));
        let into = path.as_deref().map_or(format!("{files} files"), shown);
        format!("{}: {rows} vectors{of} in {into}\n", shown(file))
    }
}

impl Place {
    fn of(dir: PathBuf) -> Self {
        let dim = control::attribute(&dir, "user.vexfs.dim").and_then(|dim| dim.parse().ok());
        let cosine = control::attribute(&dir, "user.vexfs.metric").is_none_or(|metric| metric == "cosine");
        Self { dir, dim, cosine }
    }

    /// Whether a vector can be one of the collection's; `row` is only named in the error.
    fn check(&self, row: u64, vector: &[f32]) -> crate::Result<()> {
        self.check_dim(u32::try_from(vector.len()).unwrap_or(u32::MAX))?;
        check_vector(row, vector, self.cosine)
    }

    fn check_dim(&self, got: u32) -> crate::Result<()> {
        match self.dim {
            Some(expected) if expected != got => Err(Error::Dimension { expected, got }),
            _ => Ok(()),
        }
    }
}

/// A failure about a file that is imported.
fn refused(file: &Path, error: Error) -> Failure {
    let code = match &error {
        // What a file that ends early or does not inflate says.
        Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => Code::Invalid,
        Error::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Code::Invalid,
        error => code_of(error),
    };
    Failure::new(code, format!("{}: {error}", file.display()))
}

/// Takes a file away again whose content the mount refuses although it was checked: the collection has changed.
fn confirm(path: &Path) -> Result<(), Failure> {
    let status = control::attribute(path, "user.vexfs.status").unwrap_or_default();
    let Some(why) = status.strip_prefix("invalid: ") else { return Ok(()) };
    std::fs::remove_file(path).map_err(|error| Failure::io(path, &error))?;
    Err(Failure::new(Code::Invalid, format!("{}: {}", path.display(), shown(why))))
}

/// Opens what is imported.
fn open(file: &Path) -> Result<File, Failure> {
    let failed = |error: &std::io::Error| Failure::new(Code::Invalid, format!("{}: {error}", file.display()));
    let opened = File::open(file).map_err(|error| failed(&error))?;
    if !opened.metadata().map_err(|error| failed(&error))?.is_file() {
        return Err(Failure::new(Code::Invalid, format!("{}: not a regular file", file.display())));
    }
    Ok(opened)
}
