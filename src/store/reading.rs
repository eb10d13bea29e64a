//! Reading a blob from its first byte to its last, with its checksums made on the way.
//!
//! The bytes come into memory of the reader's own, so somebody may write the blob meanwhile: then what was read, and its
//! checksums, are of no use. That nobody did is for the caller to know.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::blob::relative_path;
use super::check::read_up_to;
use super::sums::CHUNK;
use super::{BlobId, io as store_error};
use crate::{Error, Result};

/// A blob that is being read.
pub struct BlobReader {
    id: BlobId,
    file: File,
    len: u64,
    at: u64,
    /// Of the chunk that was read in part.
    begun: Box<Xxh3>,
    sums: Vec<u64>,
}

/// The checksums of a whole blob.
#[derive(Debug)]
pub struct BlobSums {
    pub(super) sums: Box<[u64]>,
    pub(super) len: usize,
}

impl BlobReader {
    pub(super) fn new(id: BlobId, file: File) -> Result<Self> {
        let len = file.metadata().map_err(store_error)?.len();
        Ok(Self { id, file, len, at: 0, begun: Box::default(), sums: Vec::new() })
    }

    /// Bytes that the blob had when reading began: more are not read.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first bytes, at most so many. They are read beside the others.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the disk fails; I/O errors.
    pub fn head(&self, most: usize) -> Result<Vec<u8>> {
        let mut head = vec![0; usize::try_from(self.len).unwrap_or(most).min(most)];
        let got = read_up_to(&self.file, &mut head, 0).map_err(|error| self.failed(store_error(error)))?;
        head.truncate(got);
        Ok(head)
    }

    /// Reads what is left, and gives the checksums of all.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the blob ends early, or the disk fails; I/O errors.
    pub fn sums(mut self) -> Result<BlobSums> {
        io::copy(&mut self, &mut io::sink()).map_err(|error| self.failed(store_error(error)))?;
        if self.at < self.len {
            let what = format!("the blob ends, want {} bytes", self.len);
            return Err(self.corrupt(what));
        }
        if !self.at.is_multiple_of(CHUNK as u64) {
            self.sums.push(self.begun.digest());
        }
        let len = usize::try_from(self.len).map_err(|_| Error::TooLarge {
            what: "blob, bytes",
            got: self.len,
            limit: usize::MAX as u64,
        })?;
        Ok(BlobSums { sums: self.sums.into(), len })
    }

    /// An error of reading, with what is damage called so.
    #[must_use]
    pub fn failed(&self, error: Error) -> Error {
        match error {
            Error::Io(io) if io.raw_os_error() == Some(libc::EIO) => {
                self.corrupt("what begins here cannot be read".into())
            }
            other => other,
        }
    }

    fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { file: format!("blobs/{}", relative_path(self.id)), offset: self.at, what }
    }

    fn take_in(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let begun = usize::try_from(self.at % CHUNK as u64).expect("a chunk is in memory");
            let (piece, rest) = bytes.split_at(bytes.len().min(CHUNK - begun));
            if piece.len() == CHUNK {
                self.sums.push(xxh3_64(piece));
            } else {
                self.begun.update(piece);
                if begun + piece.len() == CHUNK {
                    self.sums.push(self.begun.digest());
                    self.begun.reset();
                }
            }
            self.at += piece.len() as u64;
            bytes = rest;
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len - self.at).unwrap_or(usize::MAX);
        let most = into.len().min(left);
        let got = self.file.read_at(&mut into[..most], self.at)?;
        self.take_in(&into[..got]);
        Ok(got)
    }
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("id", &self.id).field("at", &self.at).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_are_those_of_the_chunks_however_it_was_read() {
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 100] {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let want: Vec<u64> = bytes.chunks(CHUNK).map(xxh3_64).collect();
            for step in [7, 1000, CHUNK, CHUNK + 9, 4 * CHUNK] {
                let file = tempfile::tempfile().unwrap();
                file.write_all_at(&bytes, 0).unwrap();
                let mut reader = BlobReader::new(BlobId(1), file).unwrap();
                assert_eq!(reader.head(10).unwrap(), bytes[..len.min(10)]);
                let mut read = vec![0; len / 2];
                read.chunks_mut(step).for_each(|piece| reader.read_exact(piece).unwrap());
                assert!(read == bytes[..len / 2]);
                let sums = reader.sums().unwrap();
                assert_eq!((&*sums.sums, sums.len), (&*want, len), "{len} by {step}");
            }
        }
    }

    #[test]
    fn a_blob_that_is_cut_meanwhile_is_an_error_and_one_that_grows_is_as_it_was() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 100], 0).unwrap();
        let reader = || BlobReader::new(BlobId(1), file.try_clone().unwrap()).unwrap();
        let (grows, cut) = (reader(), reader());
        file.set_len(200).unwrap();
        assert_eq!(grows.sums().unwrap().len, 100);
        file.set_len(50).unwrap();
        let error = cut.sums().unwrap_err().to_string();
        assert_eq!(error, "blobs/01/0000000000000001.blob: offset 50: the blob ends, want 100 bytes");
    }
}
