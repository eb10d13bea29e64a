//! `vexfs export`: the vectors below a directory of a mount as one file that other programs read.
//!
//! Nothing here opens a store. `.vexfs/ids.tsv` says which rows there are ([`listing`]), the vector files are read
//! through their names ([`source`]), and what is written ([`arrays`], [`lines`]) appears under its name when it is
//! whole ([`Target`]). Memory does not grow with the number of rows.

mod arrays;
mod lines;
mod listing;
mod source;

use std::ffi::OsStr;
use std::io::{BufWriter, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::exit::{Code, Failure, Outcome};
use super::output::{bar, put, shown};
use super::target::Target;
use crate::format::{self, Dtype, FileKind};
use arrays::Progress;
use listing::{LeftOut, Listing, Totals};

/// What a file's name must end with.
const NAMES: &str =
    "want a name in .npy .npz .fvecs .bvecs .ivecs .fbin .f16bin .u8bin .i8bin .jsonl .csv .safetensors";

/// Bytes that are written at a time, at least.
const BUFFER: usize = 1 << 20;

#[derive(Args, Debug)]
pub(super) struct Export {
    /// The directory; the vectors of all files below it are exported, in the order of their ids
    dir: PathBuf,
    /// What is written; its name chooses the format: .npy .npz .fvecs .bvecs .ivecs .fbin .f16bin .u8bin .i8bin .jsonl
    /// .csv .safetensors
    file: PathBuf,
    /// Replace the file when it exists
    #[arg(long)]
    force: bool,
    /// Say what was exported in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Rows(FileKind, Dtype),
    Npz,
    Safetensors,
    Jsonl,
    Csv,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    dir: String,
    file: String,
    format: &'a str,
    rows: u64,
    /// Null where files differ.
    dim: Option<u32>,
    files: u64,
    bytes: u64,
    invalid: u64,
}

impl Export {
    pub(super) fn run(&self) -> Outcome {
        let format = Format::of(&self.file)?;
        let listing = Listing::open(&self.dir)?;
        self.refuse_to_feed_itself(&listing)?;
        let target = Target::create(&self.file, self.force)?;
        let totals = listing.totals()?;
        let left_out = listing.left_out()?;
        if let Some((path, why)) = &left_out.damaged {
            let path = listing.dir.join(path);
            return Err(Failure::new(Code::Damaged, format!("{}: {}", path.display(), shown(why))));
        }
        self.warn(&left_out);
        if totals.rows == 0 {
            return Err(Failure::new(Code::NoResult, format!("{}: no vectors", self.dir.display())));
        }
        if let Some((path, dim)) = totals.other.as_ref().filter(|_| format != Format::Jsonl) {
            let message = format!(
                "{}: dimension {dim}, others below {} have {}: export one directory, or to .jsonl",
                path.display(),
                self.dir.display(),
                totals.dim
            );
            return Err(Failure::new(Code::Invalid, message));
        }

        let bytes = self.write(format, &listing, &totals, &target)?;
        target.commit()?;
        let dim = totals.other.is_none().then_some(totals.dim);
        self.report(&Report {
            schema: 1,
            dir: listing.dir.to_string_lossy().into_owned(),
            file: self.file.to_string_lossy().into_owned(),
            format: self.file.extension().and_then(OsStr::to_str).unwrap_or_default(),
            rows: totals.rows,
            dim,
            files: totals.files,
            bytes,
            invalid: left_out.invalid,
        })?;
        Ok(Code::Ok)
    }

    /// Writes the file and returns its length.
    fn write(
        &self,
        format: Format,
        listing: &Listing,
        totals: &Totals,
        target: &Target,
    ) -> Result<u64, Failure> {
        let failed = |error| Failure::io(&self.file, &error);
        let bar = bar("export", totals.rows);
        let progress = Progress { failed: &failed, bar: &bar };
        let mut out = BufWriter::with_capacity(BUFFER, target.file());
        match format {
            Format::Rows(kind, dtype) => arrays::rows(listing, totals, (kind, dtype), &mut out, &progress)?,
            Format::Npz => arrays::npz(listing, totals, &mut out, &progress)?,
            Format::Safetensors => arrays::safetensors(listing, totals, &mut out, &progress)?,
            Format::Jsonl => lines::jsonl(listing, &mut out, &progress)?,
            Format::Csv => lines::csv(listing, totals.dim, &mut out, &progress)?,
        }
        out.flush().map_err(failed)?;
        bar.finish_and_clear();
        out.stream_position().map_err(failed)
    }

    /// A vector file below the directory would be among the vectors of the next export.
    fn refuse_to_feed_itself(&self, listing: &Listing) -> Result<(), Failure> {
        let dir = self.file.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        let is_vectors =
            self.file.file_name().is_some_and(|name| format::recognise(name.as_bytes()).is_some());
        if is_vectors && dir.canonicalize().is_ok_and(|dir| dir.starts_with(&listing.dir)) {
            let why = format!("would itself be vectors below {}", self.dir.display());
            return Err(Failure::new(Code::Invalid, format!("{}: {why}", self.file.display())));
        }
        Ok(())
    }

    fn warn(&self, left_out: &LeftOut) {
        let Some((path, why)) = &left_out.example else { return };
        let (count, path, why) = (left_out.invalid, shown(path), shown(why));
        let files = if count == 1 { "1 invalid file is" } else { &format!("{count} invalid files are") };
        super::say(&format!("{}: {files} left out: {path}: {why}", self.dir.display()));
    }

    fn report(&self, report: &Report<'_>) -> Result<(), Failure> {
        let text = if self.json {
            serde_json::to_string(report).expect("the keys are strings")
        } else {
            let Report { rows, files, bytes, .. } = report;
            let of = report.dim.map_or(String::new(), |dim| format!(" of {dim} dimensions"));
            let s = if *files == 1 { "" } else { "s" };
            format!("{}: {rows} vectors{of} from {files} file{s}, {bytes} bytes", shown(&report.file))
        };
        put(format!("{text}\n").as_bytes())
    }
}

impl Format {
    /// The format that a name asks for.
    fn of(file: &Path) -> Result<Self, Failure> {
        let name = file.file_name().unwrap_or_default().as_bytes();
        let kind = match format::recognise(name) {
            Some(FileKind::Npy) => Some((FileKind::Npy, Dtype::F32)),
            Some(kind @ (FileKind::Vecs(dtype) | FileKind::Bin(dtype))) => Some((kind, dtype)),
            _ => None,
        };
        if let Some((kind, dtype)) = kind {
            return Ok(Format::Rows(kind, dtype));
        }
        match file.extension().map(OsStr::as_bytes) {
            Some(b"npz") => Ok(Format::Npz),
            Some(b"safetensors") => Ok(Format::Safetensors),
            Some(b"jsonl") => Ok(Format::Jsonl),
            Some(b"csv") => Ok(Format::Csv),
            _ => Err(Failure::new(Code::Invalid, format!("{}: {NAMES}", file.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_chooses_the_format() {
        for (name, format) in [
            ("a/b.npy", Format::Rows(FileKind::Npy, Dtype::F32)),
            ("b.ivecs", Format::Rows(FileKind::Vecs(Dtype::I32), Dtype::I32)),
            ("b.f16bin", Format::Rows(FileKind::Bin(Dtype::F16), Dtype::F16)),
            ("b.npz", Format::Npz),
            ("b.safetensors", Format::Safetensors),
            ("b.jsonl", Format::Jsonl),
            (".b.csv", Format::Csv),
        ] {
            assert_eq!(Format::of(Path::new(name)).unwrap(), format, "{name}");
        }
        for name in ["b", "b.f32", "b.vec", "b.parquet", "b.h5", "b.json", ".b.npy", "dir/"] {
            let failure = Format::of(Path::new(name)).unwrap_err();
            assert_eq!(failure.code, Code::Invalid);
            assert!(failure.message.ends_with(NAMES), "{}", failure.message);
        }
    }
}
