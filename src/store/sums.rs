//! Checksums of blobs, chunk by chunk, in a file beside each.
//!
//! A blob that is sealed is never written again, so its checksums are made once, when it is sealed. Another has them
//! while it is at rest: see [`rest`](super::rest). Either way they are compared when a chunk is first used. A table that
//! is missing or damaged says nothing: what it belongs to is then not checked.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::{BlobId, BlobSums};

/// Bytes that one checksum covers.
pub(super) const CHUNK: usize = 64 << 10;

const MAGIC: [u8; 8] = *b"VEXSUM\0\0";
const HEADER: usize = 32;

/// Why a table was made. Its number is the version in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// The blob was sealed, or was about to be: while the catalog says that it is not, the table says nothing.
    Sealing = 1,
    /// The blob came to rest: the table goes before a byte changes.
    Rest = 2,
}

/// The checksums of one blob, and which chunks have been compared with them.
#[derive(Debug)]
pub(super) struct Sums {
    made: Made,
    sums: Box<[u64]>,
    len: usize,
    /// Bit per chunk: it was compared and is sound.
    sound: Box<[AtomicU64]>,
    /// How many bits are set.
    sound_chunks: AtomicUsize,
}

impl Sums {
    /// Those that were computed of `len` bytes, chunk by chunk.
    pub(super) fn new(made: Made, sums: Box<[u64]>, len: usize) -> Self {
        let words = sums.len().div_ceil(64);
        let sound = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { made, sums, len, sound, sound_chunks: AtomicUsize::new(0) }
    }

    /// Reads the table of a blob; `None` when there is none that can be trusted.
    pub(super) fn read(path: &Path, id: BlobId) -> Option<Self> {
        let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path).ok()?;
        let mut bytes = Vec::new();
        file.take(1 << 30).read_to_end(&mut bytes).ok()?;
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
        let u64_at = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
        let is_head_of = |made: &Made| body.get(..24).is_some_and(|start| start == head(*made, id));
        let made = [Made::Sealing, Made::Rest].into_iter().find(is_head_of)?;
        if sum != xxh3_64(body).to_le_bytes() {
            return None;
        }
        let len = usize::try_from(u64_at(24)?).ok()?;
        let sums: Box<[u64]> = body
            .get(HEADER..)?
            .chunks_exact(8)
            .map(|sum| sum.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
            .collect();
        (sums.len() == len.div_ceil(CHUNK)).then(|| Self::new(made, sums, len))
    }

    /// Writes the table of a blob to a file that is not there, or is a leftover. Not durable.
    pub(super) fn write(&self, path: &Path, id: BlobId) -> io::Result<File> {
        let mut bytes = head(self.made, id);
        bytes.extend((self.len as u64).to_le_bytes());
        bytes.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = super::directory::create_file(path)?;
        file.write_all(&bytes)?;
        Ok(file)
    }

    /// Why the table was made.
    pub(super) fn made(&self) -> Made {
        self.made
    }

    /// Length of the blob when the table was made.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether every chunk is known to be sound.
    #[inline]
    pub(super) fn all_known(&self) -> bool {
        self.sound_chunks.load(Ordering::Acquire) == self.sums.len()
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
            if !self.is_chunk(chunk, &bytes[begin..self.len.min(begin + CHUNK)]) {
                return Err(begin);
            }
        }
        Ok(())
    }

    /// Compares those of the whole blob as it was read. The error is the offset of the first chunk that differs.
    pub(super) fn compare(&self, read: &BlobSums) -> Result<(), usize> {
        if read.len != self.len {
            return Err(read.len.min(self.len));
        }
        let mut read = read.sums.iter().enumerate();
        match read.find(|&(chunk, &sum)| !self.is_sum(chunk, sum)) {
            Some((chunk, _)) => Err(chunk * CHUNK),
            None => Ok(()),
        }
    }

    /// Whether the chunk of this number is `bytes`, which is known from then on.
    pub(super) fn is_chunk(&self, chunk: usize, bytes: &[u8]) -> bool {
        self.is_sum(chunk, xxh3_64(bytes))
    }

    fn is_sum(&self, chunk: usize, sum: u64) -> bool {
        let is_sound = self.sums.get(chunk).is_some_and(|&known| known == sum);
        if is_sound {
            let bit = 1 << (chunk % 64);
            let before = self.sound[chunk / 64].fetch_or(bit, Ordering::AcqRel);
            self.sound_chunks.fetch_add(usize::from(before & bit == 0), Ordering::AcqRel);
        }
        is_sound
    }
}

fn head(made: Made, id: BlobId) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((made as u32).to_le_bytes());
    bytes.extend((CHUNK as u64).to_le_bytes().into_iter().take(4));
    bytes.extend(id.0.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums_of(made: Made, bytes: &[u8]) -> Sums {
        Sums::new(made, bytes.chunks(CHUNK).map(xxh3_64).collect(), bytes.len())
    }

    #[test]
    fn a_table_comes_back_and_finds_the_chunk_that_differs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sums");
        let mut bytes: Vec<u8> = (0..3 * CHUNK + 100).map(|i| u8::try_from(i % 251).unwrap()).collect();
        sums_of(Made::Rest, &bytes).write(&path, BlobId(7)).unwrap();
        let sums = Sums::read(&path, BlobId(7)).unwrap();
        assert!(!sums.known(0, 1));
        assert_eq!(sums.check(&bytes, CHUNK, CHUNK + 1), Ok(()));
        assert!(sums.known(CHUNK, 2 * CHUNK) && !sums.known(CHUNK, 2 * CHUNK + 1));
        bytes[3 * CHUNK + 99] ^= 1;
        assert_eq!(sums.check(&bytes, 0, 3 * CHUNK), Ok(()));
        assert_eq!(sums.check(&bytes, 0, bytes.len()), Err(3 * CHUNK));
        assert_eq!(sums.check(&bytes[..100], 0, 100), Err(100));
        assert!(sums.made() == Made::Rest && !sums.all_known());
        bytes[3 * CHUNK + 99] ^= 1;
        assert_eq!(sums.check(&bytes, 0, bytes.len()), Ok(()));
        assert!(sums.all_known());
    }

    #[test]
    fn the_chunks_of_a_blob_that_was_read_from_end_to_end_are_known() {
        let bytes = vec![7; 2 * CHUNK + 100];
        let sums = sums_of(Made::Rest, &bytes);
        let read = |at: usize, len: usize| {
            let mut bytes = bytes[..len].to_vec();
            bytes[at] ^= 1;
            BlobSums { sums: bytes.chunks(CHUNK).map(xxh3_64).collect(), len }
        };
        assert_eq!(sums.compare(&read(0, 100)), Err(100));
        assert_eq!(sums.compare(&read(CHUNK + 5, bytes.len())), Err(CHUNK));
        assert!(!sums.all_known());
        let same = BlobSums { sums: bytes.chunks(CHUNK).map(xxh3_64).collect(), len: bytes.len() };
        assert_eq!(sums.compare(&same), Ok(()));
        assert!(sums.all_known());
    }

    #[test]
    fn a_damaged_table_and_one_of_another_blob_say_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sums");
        sums_of(Made::Sealing, &[7; 100_000]).write(&path, BlobId(7)).unwrap();
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
