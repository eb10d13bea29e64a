//! Bytes that outlive the process: pages of a file, which the operating system keeps when the process dies. A power
//! cut may take any of them, old and new ones side by side: whoever reads them has checksums.
//!
//! Where a store into a mapping finds its block on the disk they are written through one, which takes no system call.
//! A filesystem that writes elsewhere than where it read may have no room for that, and a store into a mapping cannot
//! say so: there they are written by `pwrite`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use memmap2::MmapMut;
use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};

/// A file of fixed length that is written in place.
#[derive(Debug)]
pub struct Lasting {
    file: File,
    map: Option<MmapMut>,
}

impl Lasting {
    /// Opens the file at `path`, which nobody else writes, and gives it `len` bytes with blocks of their own. Bytes that
    /// are there stay if there are as many.
    ///
    /// # Errors
    ///
    /// I/O errors, `StorageFull` among them.
    pub fn open(path: &Path, len: usize) -> io::Result<Self> {
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path)?;
        if file.metadata()?.len() != len as u64 {
            // Written, not only reserved: a store into a reserved block may need another one for the note of it.
            file.set_len(0)?;
            file.write_all_at(&vec![0; len], 0)?;
        }
        let map = if overwrites(&file) {
            // SAFETY: the file belongs to the store, which is locked and the daemon's alone; it is never shortened
            // while it is mapped, and what lies in it is looked at through this value only.
            unsafe { MmapMut::map_mut(&file) }.ok()
        } else {
            None
        };
        if let Some(map) = &map {
            // A page that is read from the disk again may not be there. With a limit on locked memory it may be.
            drop(map.lock());
        }
        Ok(Self { file, map })
    }

    /// Puts `bytes` at `at`. When this returns, the death of the process does not undo it.
    ///
    /// # Errors
    ///
    /// I/O errors; `InvalidInput` beyond the end. What of the bytes is there is unknown then.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let Some(map) = &mut self.map else { return self.file.write_all_at(bytes, at as u64) };
        let to = at.checked_add(bytes.len()).and_then(|end| map.get_mut(at..end));
        to.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// Whether bytes that a file has are written where they were read.
fn overwrites(file: &File) -> bool {
    let kind = fstatfs(file).map(|filesystem| filesystem.filesystem_type());
    kind.is_ok_and(|kind| [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, TMPFS_MAGIC].contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_in_the_file_and_stays_when_it_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes");
        let mut lasting = Lasting::open(&path, 10_000).unwrap();
        lasting.write(9_996, b"last").unwrap();
        assert!(lasting.write(9_997, b"last").is_err());
        // Through the page cache, while it is mapped.
        assert_eq!(&std::fs::read(&path).unwrap()[9_995..], b"\0last");
        drop(lasting);
        let mut written = Lasting { map: None, ..Lasting::open(&path, 10_000).unwrap() };
        written.write(0, b"first").unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((&bytes[..5], &bytes[9_996..]), (&b"first"[..], &b"last"[..]));
        Lasting::open(&path, 20_000).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![0; 20_000]);
    }
}
