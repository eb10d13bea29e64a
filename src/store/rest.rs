//! Blobs at rest: ordinary content that nobody writes at the moment, with checksums.
//!
//! ```text
//!   written ──▶ durable ──▶ read ──▶ table durable under another name ──▶ renamed: at rest
//!      ▲                                                                        │
//!      └──── bytes may change ◀── directory durable ◀── table removed ◀─────────┘
//! ```
//!
//! **Invariant:** while a blob has a table of [`Made::Rest`], on this disk or on what a power cut leaves of it, its
//! bytes are those that the table was made of. So the table comes after the bytes, and its going is durable before the
//! first of them changes. A cut in between leaves a blob without a table, which is not checked and comes to rest again.
//!
//! This room makes tables, removes them and compares. That nobody writes meanwhile is the business of the caller, who
//! alone knows who has the blob open.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use xxhash_rust::xxh3::xxh3_64;

use super::blob::{Blobs, relative_path};
use super::check::read_up_to;
use super::directory::sync_dir;
use super::sums::{CHUNK, Made, Sums};
use super::{BlobId, BlobSums, Store, io as store_error};
use crate::{Error, Result};

/// Most blobs that are remembered as compared; beyond, all are forgotten and compared again.
const COMPARED: usize = 1 << 16;

/// Bytes that are read at once, a multiple of [`CHUNK`].
const PIECE: usize = 1 << 20;

/// What becomes of the page cache behind a reader of a whole blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// They stay: somebody was here just now.
    Keep,
    /// The kernel is asked to let go of them.
    Drop,
}

/// The checksums of a blob at rest.
#[derive(Debug)]
pub struct Rested {
    id: BlobId,
    sums: Sums,
}

impl Rested {
    /// Whether the chunks that hold this range have been compared and are sound.
    #[must_use]
    pub fn is_known(&self, range: &Range<u64>) -> bool {
        self.sums.known(index(range.start), index(range.end))
    }

    /// Compares the chunks that hold this range of `blob`. `bytes` is what was read from its start on; chunks that it
    /// does not have whole are read into `buffer`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] naming the offset of the first chunk that differs. If somebody changed the blob meanwhile,
    /// that is no damage. I/O errors.
    pub fn compare(&self, blob: &File, range: Range<u64>, bytes: &[u8], buffer: &mut Vec<u8>) -> Result<()> {
        let (from, to) = (index(range.start), index(range.end));
        for chunk in from / CHUNK..to.div_ceil(CHUNK) {
            let begin = chunk * CHUNK;
            let len = CHUNK.min(self.sums.len().saturating_sub(begin));
            if self.sums.known(begin, begin + 1) {
                continue;
            }
            let is_sound = match begin.checked_sub(from).and_then(|at| bytes.get(at..at + len)) {
                Some(whole) => self.sums.is_chunk(chunk, whole),
                None => {
                    buffer.resize(len, 0);
                    let read = read_up_to(blob, buffer, begin as u64).map_err(store_error)?;
                    read == len && self.sums.is_chunk(chunk, buffer)
                }
            };
            if !is_sound {
                return Err(differs(self.id, begin));
            }
        }
        Ok(())
    }

    /// [`compare`](Self::compare) for all bytes, of which there are as many as the blob has.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`].
    pub fn compare_all(&self, bytes: &[u8]) -> Result<()> {
        self.sums.check(bytes, 0, bytes.len()).map_err(|offset| differs(self.id, offset))
    }

    /// The same for a blob that was read.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`].
    pub fn compare_sums(&self, read: &BlobSums) -> Result<()> {
        self.sums.compare(read).map_err(|offset| differs(self.id, offset))
    }
}

/// Checksums that are on the disk under another name, for a blob that comes to rest unless this is dropped.
#[derive(Debug)]
pub struct RestDraft {
    id: BlobId,
    from: Option<PathBuf>,
    to: PathBuf,
}

impl RestDraft {
    /// From now on the blob is at rest. Nobody has changed it since its bytes were made durable, and it is still named.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn publish(mut self, store: &Store) -> Result<()> {
        let Some(from) = self.from.take() else { return Ok(()) };
        fs::rename(&from, &self.to).map_err(store_error)?;
        // Not synced: a power cut may take the name, and then the blob comes to rest once more.
        store.blobs.note_entry(self.id);
        store.blobs.note_compared(self.id);
        Ok(())
    }
}

impl Drop for RestDraft {
    fn drop(&mut self) {
        if let Some(path) = self.from.take()
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(%error, "checksums that nothing needs stay until the next open");
        }
    }
}

impl Store {
    /// The checksums of a blob that is not sealed, if it is at rest.
    #[must_use]
    pub fn rested(&self, id: BlobId) -> Option<Rested> {
        let sums = self.blobs.sums(id).filter(|sums| sums.made() == Made::Rest)?;
        Some(Rested { id, sums })
    }

    /// Takes the checksums of a blob away, durably: from here on its bytes may change. Whether it had any.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] once any sync of the store has failed, which this one may have. Other I/O errors: nothing has
    /// changed.
    pub fn wake_blob(&self, id: BlobId) -> Result<bool> {
        self.refuse_when_poisoned()?;
        let path = self.blobs.sums_path(id);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.blobs.note_compared(id);
                return Ok(false);
            }
            Err(error) => return Err(store_error(error)),
        }
        let synced = sync_dir(path.parent().expect("a blob lies in a directory")).map_err(store_error);
        if let Err(error) = synced {
            self.poison(&error);
            self.refuse_when_poisoned()?;
        }
        self.blobs.note_compared(id);
        Ok(true)
    }

    /// Makes the checksums of a blob that nobody writes and whose bytes are durable. `going_on` is asked now and then,
    /// with the number of bytes that were read; there is nothing when it says no.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], I/O errors.
    pub fn draft_rest(
        &self,
        id: BlobId,
        pages: Pages,
        mut going_on: impl FnMut(u64) -> bool,
    ) -> Result<Option<RestDraft>> {
        self.refuse_when_poisoned()?;
        let file = self.blobs.open_blob(id, false)?;
        let mut sums = Vec::new();
        let mut len = 0;
        let read = read_pieces(&file, 0, pages, |_, bytes| {
            sums.extend(bytes.chunks(CHUNK).map(xxh3_64));
            len += bytes.len();
            going_on(len as u64)
        })?;
        if !read {
            return Ok(None);
        }
        let to = self.blobs.sums_path(id);
        let draft = RestDraft { id, from: Some(to.with_extension("resting")), to };
        let table = Sums::new(Made::Rest, sums.into(), len);
        let path = draft.from.as_ref().expect("it was just made");
        table.write(path, id).and_then(|file| file.sync_data()).map_err(store_error)?;
        Ok(Some(draft))
    }

    /// Compares a blob with its checksums, from the chunk that holds the byte `from`. Returns how many bytes were read:
    /// none without checksums. `going_on` as for [`draft_rest`](Self::draft_rest).
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] naming the offset of the first chunk that differs: of a blob that is not sealed it is damage if
    /// nobody changed it meanwhile. I/O errors.
    pub fn check_blob(
        &self,
        id: BlobId,
        sealed: bool,
        from: u64,
        pages: Pages,
        mut going_on: impl FnMut(u64) -> bool,
    ) -> Result<u64> {
        let sums = self.blobs.sums(id).filter(|sums| sealed || sums.made() == Made::Rest);
        let Some(sums) = sums else { return Ok(0) };
        let file = self.blobs.open_blob(id, false)?;
        let got = file.metadata().map_err(store_error)?.len();
        if got != sums.len() as u64 {
            let what = format!("{got} bytes, want {}", sums.len());
            let offset = got.min(sums.len() as u64);
            return Err(Error::Corrupt { file: self.blob_path(id), offset, what });
        }
        let first = index(from) / CHUNK * CHUNK;
        let (mut read, mut differing) = (0, None);
        let is_whole = read_pieces(&file, first, pages, |at, bytes| {
            read += bytes.len() as u64;
            let mut chunks = (at / CHUNK..).zip(bytes.chunks(CHUNK));
            differing = chunks.find(|(chunk, bytes)| !sums.is_chunk(*chunk, bytes)).map(|(chunk, _)| chunk);
            differing.is_none() && going_on(read)
        })?;
        match differing {
            Some(chunk) => Err(differs(id, chunk * CHUNK)),
            // Cut short since its length was looked at.
            None if is_whole && read != (sums.len() - first.min(sums.len())) as u64 => {
                Err(differs(id, first + index(read) / CHUNK * CHUNK))
            }
            None => {
                if sums.all_known() {
                    self.blobs.note_compared(id);
                }
                Ok(read)
            }
        }
    }

    /// Whether every byte of a blob was compared with its checksums since the store was opened, or it was written since:
    /// what it holds is what whoever wrote it meant.
    #[must_use]
    pub fn is_compared(&self, id: BlobId) -> bool {
        self.blobs.compared.lock().contains(&id.0)
    }
}

impl Blobs {
    /// What is in this blob needs no comparison.
    pub(super) fn note_compared(&self, id: BlobId) {
        let mut compared = self.compared.lock();
        if compared.len() >= COMPARED {
            *compared = HashSet::new();
        }
        compared.insert(id.0);
    }

    /// A name in the directory of this blob is not known to be durable.
    pub(super) fn note_entry(&self, id: BlobId) {
        self.entries(id).made.fetch_add(1, Ordering::SeqCst);
    }
}

/// Reads a file from `at` on, piece by piece, until it ends or `each` says no; whether it has ended.
fn read_pieces(
    file: &File,
    mut at: usize,
    pages: Pages,
    mut each: impl FnMut(usize, &[u8]) -> bool,
) -> Result<bool> {
    let mut bytes = vec![0; PIECE];
    let ended = loop {
        let read = read_up_to(file, &mut bytes, at as u64).map_err(store_error)?;
        if read > 0 && !each(at, &bytes[..read]) {
            break false;
        }
        at += read;
        if read < PIECE {
            break true;
        }
    };
    if pages == Pages::Drop {
        // Advice: where it is not taken, nothing is lost.
        let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
    Ok(ended)
}

fn differs(id: BlobId, offset: usize) -> Error {
    Error::Corrupt {
        file: format!("blobs/{}", relative_path(id)),
        offset: offset as u64,
        what: "the checksum of what begins here does not match".into(),
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
