//! How many commits were made durable, kept beside the engine's files.
//!
//! The engine ends its journal at the first entry that it cannot read, without a word: after a power cut that is
//! right, but a damaged byte in the middle of a journal would take every later commit away, synced ones included.
//! So every batch carries its number, and each sync notes the number that is durable by then in a small file. A
//! catalog that opens with a lower number has lost commits that somebody was told are safe, and is refused.
//!
//! The note is written after the engine's sync and not synced itself: it may lag, and never leads.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

/// The file's name in the catalog's directory.
pub(super) const NAME: &str = "durable";

const MAGIC: [u8; 8] = *b"VEXDUR\0\0";

const BYTES: usize = 24;

/// The note, open for writing.
#[derive(Debug)]
pub(super) struct Tally(File);

impl Tally {
    /// Opens the note in the catalog's directory, making it when there is none. Returns the number in it; 0 when it
    /// cannot be read, as after a power cut.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, u64)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(dir.join(NAME))?;
        let durable = number_in(&file)?;
        Ok((Self(file), durable))
    }

    /// Notes that the commits up to `durable` are on disk.
    pub(super) fn note(&self, durable: u64) -> io::Result<()> {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&durable.to_le_bytes());
        let sum = xxh3_64(&bytes[..16]);
        bytes[16..].copy_from_slice(&sum.to_le_bytes());
        self.0.write_all_at(&bytes, 0)
    }
}

/// The number in the note in the catalog's directory; 0 when there is none, or it cannot be read.
pub(super) fn durable(dir: &Path) -> io::Result<u64> {
    match File::open(dir.join(NAME)) {
        Ok(file) => number_in(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn number_in(file: &File) -> io::Result<u64> {
    let mut bytes = [0; BYTES];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(read(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        Err(error) => Err(error),
    }
}

fn read(bytes: &[u8; BYTES]) -> u64 {
    let (checked, sum) = bytes.split_at(16);
    let mut durable = [0; 8];
    durable.copy_from_slice(&checked[8..]);
    match checked[..8] == MAGIC && sum == xxh3_64(checked).to_le_bytes() {
        true => u64::from_le_bytes(durable),
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_and_a_torn_one_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (tally, durable) = Tally::open(dir.path()).unwrap();
        assert_eq!(durable, 0);
        tally.note(7).unwrap();
        tally.note(700).unwrap();
        assert_eq!(Tally::open(dir.path()).unwrap().1, 700);
        for at in 0..BYTES {
            let mut bytes = std::fs::read(dir.path().join(NAME)).unwrap();
            bytes[at] ^= 1;
            assert_eq!(read(&bytes.try_into().unwrap()), 0, "byte {at}");
        }
        tally.0.set_len(23).unwrap();
        assert_eq!(Tally::open(dir.path()).unwrap().1, 0);
    }
}
