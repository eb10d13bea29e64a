//! Reading what the store holds and comparing it with its checksums, past the page cache where that is possible.
//!
//! Slots are read segment by segment with `read`, not through the mapping: an error of the disk is then an error and
//! no signal, and pages that nobody else reads do not stay in memory.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use xxhash_rust::xxh3::xxh3_64;

use super::directory::{self, open_file};
use super::segment::{HEADER_BYTES, SEGMENT_BYTES};
use super::{BlobId, SlotRef, Store, io as store_error, segment, slots};
use crate::{Error, Result};

impl Store {
    /// Refuses a directory that is no store, instead of making one of it.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn refuse_missing(dir: &Path) -> Result<()> {
        if directory::is_store(dir) {
            return Ok(());
        }
        Err(Error::Store { path: dir.to_path_buf(), why: "is no VexFS store".into() })
    }

    /// Whether the last process to hold the store ended without [`close`](Self::close).
    #[must_use]
    pub fn ended_uncleanly(&self) -> bool {
        self.home.lock.last_end_was_unclean()
    }

    /// Compares slots with their checksums. Each comes with the number of its owner. `slots` is sorted by it; `found` is told of each that is damaged, out of
    /// range, or named by two owners. Returns how many bytes were read.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn check_slots(
        &self,
        slots: &mut [(SlotRef, u64)],
        mut found: impl FnMut(SlotRef, u64, Error),
    ) -> Result<u64> {
        slots.sort_unstable_by_key(|(at, owner)| (at.segment, at.slot, *owner));
        let mut read = 0;
        let mut bytes = Vec::new();
        for of_segment in slots.chunk_by(|(a, _), (b, _)| a.segment == b.segment) {
            let number = of_segment[0].0.segment;
            let stride = match self.slots.stride(number) {
                Ok(stride) => stride,
                Err(error) => {
                    of_segment.iter().for_each(|&(at, owner)| found(at, owner, again(&error)));
                    continue;
                }
            };
            let path = segment::relative_path(number);
            read_past_cache(&self.home.dir.join(&path), SEGMENT_BYTES, &mut bytes).map_err(store_error)?;
            read += bytes.len() as u64;
            let mut last: Option<(SlotRef, u64)> = None;
            for &(at, owner) in of_segment {
                let corrupt = |offset: u64, what: String| Error::Corrupt { file: path.clone(), offset, what };
                if let Err(error) = self.slots.check_fits(at) {
                    found(at, owner, error);
                    continue;
                }
                let begin = HEADER_BYTES as u64 + u64::from(at.slot) * u64::from(stride);
                if let Some((other, first)) = last.filter(|(other, _)| other.slot == at.slot) {
                    // One owner may name its content more than once.
                    if first != owner || other != at {
                        found(at, owner, corrupt(begin, format!("the slot also belongs to inode {first}")));
                    }
                    continue;
                }
                last = Some((at, owner));
                let content =
                    usize::try_from(begin).ok().and_then(|begin| bytes.get(begin..begin + at.len as usize));
                match content {
                    None => {
                        found(
                            at,
                            owner,
                            corrupt(bytes.len() as u64, "the segment ends before the slot".into()),
                        );
                    }
                    Some(content) if xxh3_64(content) != at.checksum => {
                        let got = xxh3_64(content);
                        let what =
                            format!("{} bytes with checksum {got:016x}, want {:016x}", at.len, at.checksum);
                        found(at, owner, corrupt(begin, what));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(read)
    }

    /// The bytes of a slot as they are, as many as are left of them, whatever its segment's header says; and whether
    /// they are those that the reference names.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn salvage_slot(&self, at: SlotRef) -> Result<(Vec<u8>, bool)> {
        // A header that cannot be read is no reason to give the slots up: the length says what stride they have.
        let stride = self.slots.stride(at.segment).unwrap_or_else(|_| slots::stride_for(at.len));
        let begin = HEADER_BYTES as u64 + u64::from(at.slot) * u64::from(stride);
        let mut bytes = vec![0; at.len as usize];
        let path = self.home.dir.join(segment::relative_path(at.segment));
        let read = match open_file(&path, false) {
            Ok(file) => read_up_to(&file, &mut bytes, begin).map_err(store_error)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(store_error(error)),
        };
        bytes.truncate(read);
        let sound = bytes.len() == at.len as usize && xxh3_64(&bytes) == at.checksum;
        Ok((bytes, sound))
    }

    /// Length of a blob in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when its file is missing; I/O errors.
    pub fn blob_len(&self, id: BlobId) -> Result<u64> {
        Ok(self.blobs.open_blob(id, false)?.metadata().map_err(store_error)?.len())
    }

    /// Path of a blob's file below the store directory.
    #[must_use]
    pub fn blob_path(&self, id: BlobId) -> String {
        format!("blobs/{}", super::blob::relative_path(id))
    }

    /// Blobs and half-made segments that nothing has adopted: what [`sweep`](Self::sweep) would remove.
    #[must_use]
    pub fn leftovers(&self) -> (usize, usize) {
        (self.blobs.unadopted(), self.slots.half_made())
    }

    /// The blobs that nothing has adopted, in their order.
    #[must_use]
    pub fn unnamed_blobs(&self) -> Vec<BlobId> {
        self.blobs.orphans()
    }

    /// Numbers of the segments whose file is no segment, with what is wrong.
    #[must_use]
    pub fn damaged_segments(&self) -> Vec<(String, u64, String)> {
        self.slots.damaged()
    }

    /// Names of the files in the directory for checkpoints.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn index_files(&self) -> Result<HashSet<String>> {
        let listing = fs::read_dir(self.index_dir()).map_err(store_error)?;
        listing
            .map(|entry| Ok(entry.map_err(store_error)?.file_name().to_string_lossy().into_owned()))
            .collect()
    }
}

/// The same error once more, for another who meets it.
fn again(error: &Error) -> Error {
    match error {
        Error::Corrupt { file, offset, what } => {
            Error::Corrupt { file: file.clone(), offset: *offset, what: what.clone() }
        }
        other => Error::Catalog(other.to_string()),
    }
}

/// Reads at most `len` bytes of a file, and lets go of the pages.
fn read_past_cache(path: &Path, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
    let file = open_file(path, false)?;
    into.resize(len, 0);
    let read = read_up_to(&file, into, 0)?;
    into.truncate(read);
    // Advice: where it is not taken, nothing is lost.
    let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    Ok(())
}

pub(super) fn read_up_to(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
