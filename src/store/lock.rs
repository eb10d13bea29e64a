//! The lock that keeps a second process away from a store, and what it tells about the last end.
//!
//! The file `lock` is locked with `flock` for as long as anything of the store is in use. Its content names
//! the holder; it is emptied only by an orderly close. Whoever opens the store and finds content knows that
//! the last holder died, perhaps with bytes in the page cache that are not on the disk yet.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::directory::open_file;
use super::io;
use crate::{Error, Result};

/// Bytes of the lock file that are read for the message to a second process.
const HOLDER_MAX: u64 = 4096;

/// A locked store. The lock goes when this drops, or when the process ends in any way.
#[derive(Debug)]
pub(super) struct Lock {
    file: Flock<File>,
    last_end_was_unclean: bool,
}

impl Lock {
    /// Locks the store in `dir` for `holder`.
    ///
    /// # Errors
    ///
    /// [`Error::StoreLocked`] with the present holder's own words, I/O errors.
    pub(super) fn acquire(dir: &Path, holder: &str) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(dir.join("lock"))
            .map_err(io)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((file, Errno::EWOULDBLOCK)) => {
                let holder = read_holder(file);
                return Err(Error::StoreLocked { path: dir.to_path_buf(), holder });
            }
            Err((_, errno)) => return Err(io(errno.into())),
        };
        let last_end_was_unclean = file.metadata().map_err(io)?.len() > 0;
        // The content is replaced without ever being empty: a death in between must not look like an orderly
        // close of the holder before.
        let text = format!("{holder}\n");
        file.write_all_at(text.as_bytes(), 0).map_err(io)?;
        file.set_len(text.len() as u64).map_err(io)?;
        if !last_end_was_unclean {
            // Before anything else is written: a power cut must not leave what this holder wrote beside an empty file.
            file.sync_all().map_err(io)?;
        }
        Ok(Self { file, last_end_was_unclean })
    }

    /// Locks a store that cannot be written: other readers are let in, a writer is not.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub(super) fn acquire_for_reading(dir: &Path) -> Result<Self> {
        let file = open_file(&dir.join("lock"), false).map_err(io)?;
        let last_end_was_unclean = file.metadata().map_err(io)?.len() > 0;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(file) => Ok(Self { file, last_end_was_unclean }),
            Err((file, Errno::EWOULDBLOCK)) => {
                Err(Error::StoreLocked { path: dir.to_path_buf(), holder: read_holder(file) })
            }
            Err((_, errno)) => Err(io(errno.into())),
        }
    }

    /// Whether the last holder ended without [`mark_clean`](Self::mark_clean).
    pub(super) fn last_end_was_unclean(&self) -> bool {
        self.last_end_was_unclean
    }

    /// The file that is locked, which lies in the store.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Records that everything is on the disk. The lock stays held.
    pub(super) fn mark_clean(&self) -> io::Result<()> {
        self.file.set_len(0)
    }
}

fn read_holder(file: File) -> String {
    let mut bytes = Vec::new();
    // The message is a courtesy: what cannot be read is not named.
    let read = file.take(HOLDER_MAX).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    match read {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::acquire(dir.path(), "pid 17, mounted at /mnt/v").unwrap();
        let error = Lock::acquire(dir.path(), "pid 18").unwrap_err();
        let expected = format!("{}: store is in use by pid 17, mounted at /mnt/v", dir.path().display());
        assert_eq!(error.to_string(), expected);
        drop(first);
        Lock::acquire(dir.path(), "pid 18").unwrap();
    }

    #[test]
    fn a_longer_holder_leaves_nothing_behind_in_the_text_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        drop(Lock::acquire(dir.path(), "pid 123456, mounted at /mnt/vectors").unwrap());
        let _held = Lock::acquire(dir.path(), "pid 7").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("lock")).unwrap(), "pid 7\n");
    }

    #[test]
    fn only_a_marked_end_is_clean() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::acquire(dir.path(), "pid 1").unwrap();
        assert!(!first.last_end_was_unclean());
        drop(first);
        let second = Lock::acquire(dir.path(), "pid 2").unwrap();
        assert!(second.last_end_was_unclean());
        second.mark_clean().unwrap();
        drop(second);
        assert!(!Lock::acquire(dir.path(), "pid 3").unwrap().last_end_was_unclean());
    }

    #[test]
    fn a_lock_that_is_a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join("lock")).unwrap();
        assert!(matches!(Lock::acquire(dir.path(), "pid 1"), Err(Error::Io(_))));
        assert!(!dir.path().join("elsewhere").exists());
    }
}
