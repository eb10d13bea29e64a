//! The rows of one vector file of the mount, read through its name.

use std::fs::{File, OpenOptions};
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::super::exit::{Failure, code_of_io};
use super::listing::{Entry, Listing, changed};
use crate::Error;
use crate::format::{self, Block, Dtype, FileKind, HEAD_BYTES, Layout, Limits, RowReader};

/// What any file in the mount may have: it was accepted there.
const LIMITS: Limits = Limits { max_dim: u32::MAX, max_rows: u64::MAX };

/// An open vector file.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) dtype: Dtype,
    seen: (u64, Option<SystemTime>),
    rows: RowReader<Box<dyn Read>>,
}

impl Source {
    /// Opens the file of an entry.
    ///
    /// # Errors
    ///
    /// `NotReady` when it is not what the listing says any more; what reading it answers, `Damaged` for damage.
    pub(super) fn open(listing: &Listing, entry: &Entry) -> Result<Self, Failure> {
        let path = listing.path_of(entry);
        // A pipe that has taken the name does not hold this up.
        let how = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file =
            OpenOptions::new().read(true).custom_flags(how).open(&path).map_err(|error| match error {
                error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ELOOP | libc::ENOTDIR)) => {
                    changed(&path)
                }
                error => Failure::io(&path, &error),
            })?;
        let seen = stamp(&file, &path)?;
        let name = entry.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let Some(kind) = format::recognise(name) else { return Err(changed(&path)) };
        let opened = if kind == FileKind::Text { text(&file, seen.0) } else { packed(&file, kind, seen.0) };
        let (layout, rows) = opened.map_err(|error| match error {
            Error::Io(error) => Failure::io(&path, &error),
            // It had rows when it was listed.
            _ => changed(&path),
        })?;
        if (layout.rows, layout.dim) != (entry.rows, entry.dim) {
            return Err(changed(&path));
        }
        Ok(Self { path, file, dtype: layout.dtype, seen, rows })
    }

    /// The next rows; `None` after the last.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), naming the row.
    pub(super) fn next_block(&mut self) -> Result<Option<Block<'_>>, Failure> {
        match self.rows.advance() {
            Ok(more) => Ok(more.then(|| self.rows.block())),
            Err(Error::Io(error)) => {
                let row = self.rows.next_row();
                let message = format!("{}: row {row} or one of the next: {error}", self.path.display());
                Err(Failure::new(code_of_io(&error), message))
            }
            Err(_) => Err(changed(&self.path)),
        }
    }

    /// Says whether what was read is one state of the file.
    ///
    /// # Errors
    ///
    /// `NotReady` when it was written meanwhile.
    pub(super) fn finish(self) -> Result<(), Failure> {
        if stamp(&self.file, &self.path)? == self.seen { Ok(()) } else { Err(changed(&self.path)) }
    }
}

/// What a write to the file changes.
fn stamp(file: &File, path: &std::path::Path) -> Result<(u64, Option<SystemTime>), Failure> {
    let found = file.metadata().map_err(|error| Failure::io(path, &error))?;
    if !found.is_file() {
        return Err(changed(path));
    }
    Ok((found.len(), found.modified().ok()))
}

type Opened = crate::Result<(Layout, RowReader<Box<dyn Read>>)>;

fn packed(file: &File, kind: FileKind, len: u64) -> Opened {
    let mut head = Vec::with_capacity(HEAD_BYTES.min(usize::try_from(len).unwrap_or(HEAD_BYTES)));
    file.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    let layout = format::layout_of_head(kind, &head, len, &LIMITS)?;
    let input: Box<dyn Read> = if head.len() as u64 == len {
        Box::new(Cursor::new(head))
    } else {
        let mut file = file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        Box::new(file)
    };
    Ok((layout, RowReader::new(input, kind, layout)?))
}

/// The values of a vector in text form, as a raw file of them.
fn text(file: &File, len: u64) -> Opened {
    format::check_text_len(len, &Limits::default())?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    let values = format::parse_text(&bytes, &LIMITS)?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let kind = FileKind::Raw(Dtype::F32);
    let layout = format::layout(kind, &bytes, &LIMITS)?;
    let input: Box<dyn Read> = Box::new(Cursor::new(bytes));
    Ok((layout, RowReader::new(input, kind, layout)?))
}
