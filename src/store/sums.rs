//! Checksums of sealed blobs, chunk by chunk, in a file beside each.
//!
//! A blob that is sealed is never written again, so its checksums are made once, when it is sealed, and compared when a
//! chunk is first used. A table that is missing or damaged says nothing: what it belongs to is then not checked.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::BlobId;

/// Bytes that one checksum covers.
pub(super) const CHUNK: usize = 64 << 10;

const MAGIC: [u8; 8] = *b"VEXSUM\0\0";
const VERSION: u32 = 1;
const HEADER: usize = 32;

/// The checksums of one blob, and which chunks have been compared with them.
#[derive(Debug)]
pub(super) struct Sums {
    sums: Box<[u64]>,
    len: usize,
    /// Bit per chunk: it was compared and is sound.
    sound: Box<[AtomicU64]>,
}

impl Sums {
    /// Computes those of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::new(bytes.chunks(CHUNK).map(xxh3_64).collect(), bytes.len())
    }

    fn new(sums: Box<[u64]>, len: usize) -> Self {
        let words = sums.len().div_ceil(64);
        Self { sums, len, sound: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Reads the table of a blob; `None` when there is none that can be trusted.
    pub(super) fn read(path: &Path, id: BlobId) -> Option<Self> {
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path).ok()?;
        let mut bytes = Vec::new();
        file.take(1 << 30).read_to_end(&mut bytes).ok()?;
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
        let u64_at = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
        if sum != xxh3_64(body).to_le_bytes()
            || body.get(..HEADER)?[..16] != head(id)[..16]
            || u64_at(16)? != id.0
        {
            return None;
        }
        let len = usize::try_from(u64_at(24)?).ok()?;
        let sums: Box<[u64]> = body[HEADER..]
            .chunks_exact(8)
            .map(|sum| sum.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
            .collect();
        (sums.len() == len.div_ceil(CHUNK)).then(|| Self::new(sums, len))
    }

    /// Writes the table of a blob, in the place of an earlier one. Not durable.
    pub(super) fn write(&self, path: &Path, id: BlobId) -> io::Result<()> {
        let mut bytes = head(id);
        bytes.extend((self.len as u64).to_le_bytes());
        bytes.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        super::directory::create_file(path)?.write_all(&bytes)
    }

    /// Length of the blob when it was sealed.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether every chunk that `from..to` touches is known to be sound.
    #[inline]
    pub(super) fn known(&self, from: usize, to: usize) -> bool {
        (from / CHUNK..to.div_ceil(CHUNK)).all(|chunk| {
            let word = self.sound.get(chunk / 64);
            word.is_some_and(|word| word.load(Ordering::Acquire) & 1 << (chunk % 64) != 0)
        })
    }

    /// Compares the chunks of `bytes`, which is the whole blob, that `from..to` touches. The error is the offset of
    /// the first that differs.
    pub(super) fn check(&self, bytes: &[u8], from: usize, to: usize) -> Result<(), usize> {
        if bytes.len() != self.len {
            return Err(bytes.len().min(self.len));
        }
        for chunk in from / CHUNK..to.min(self.len).div_ceil(CHUNK) {
            let begin = chunk * CHUNK;
            if self.known(begin, begin + 1) {
                continue;
            }
            if xxh3_64(&bytes[begin..self.len.min(begin + CHUNK)]) != self.sums[chunk] {
                return Err(begin);
            }
            self.sound[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::AcqRel);
        }
        Ok(())
    }

    /// Whether the chunk of this number is `bytes`.
    pub(super) fn is_chunk(&self, chunk: usize, bytes: &[u8]) -> bool {
        self.sums.get(chunk).is_some_and(|&sum| sum == xxh3_64(bytes))
    }
}

fn head(id: BlobId) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((CHUNK as u64).to_le_bytes().into_iter().take(4));
    bytes.extend(id.0.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_and_finds_the_chunk_that_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sums");
        let mut bytes: Vec<u8> = (0..3 * CHUNK + 100).map(|i| u8::try_from(i % 251).unwrap()).collect();
        Sums::of(&bytes).write(&path, BlobId(7)).unwrap();
        let sums = Sums::read(&path, BlobId(7)).unwrap();
        assert!(!sums.known(0, 1));
        assert_eq!(sums.check(&bytes, CHUNK, CHUNK + 1), Ok(()));
        assert!(sums.known(CHUNK, 2 * CHUNK) && !sums.known(CHUNK, 2 * CHUNK + 1));
        bytes[3 * CHUNK + 99] ^= 1;
        assert_eq!(sums.check(&bytes, 0, 3 * CHUNK), Ok(()));
        assert_eq!(sums.check(&bytes, 0, bytes.len()), Err(3 * CHUNK));
        assert_eq!(sums.check(&bytes[..100], 0, 100), Err(100));
    }

    #[test]
    fn a_damaged_table_and_one_of_another_blob_say_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sums");
        Sums::of(&[7; 100_000]).write(&path, BlobId(7)).unwrap();
        assert!(Sums::read(&path, BlobId(8)).is_none());
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert!(Sums::read(&path, BlobId(7)).is_none(), "byte {at}");
            fs::write(&path, &bytes[..at]).unwrap();
            assert!(Sums::read(&path, BlobId(7)).is_none(), "{at} bytes");
        }
    }
}
