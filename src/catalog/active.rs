//! The journal that the engine appends to, open a second time.
//!
//! The engine syncs its journal with the lock held that every commit takes, so commits would wait for the disk, and
//! those who wait for durability would come to it one by one. A commit is in the journal's file when it returns; so
//! the file is synced here, by a descriptor of our own, while commits go on. Of a journal that is no longer the newest
//! nothing needs to be synced: the engine has done that before it began the next.
//!
//! A commit that fails in the middle is the end of the engine. So the journal has blocks ahead of its end, and before
//! each commit it is seen to that they are enough: on a full disk a commit is refused before the engine sees it, and
//! what is ahead is for removals.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use parking_lot::Mutex;

use super::journal;
use super::revival::is_full;
use crate::{Error, Result};

/// Bytes behind the end of the journal that get blocks: some thousand removals of files.
const AHEAD: i64 = 4 << 20;

/// Up to this length the engine begins no other journal. Behind it, its thread does when it writes a table: it is looked
/// for before each commit of the engine.
const ROTATES_AT: i64 = 64_000_000;

/// The newest journal of a catalog, as far as was looked.
#[derive(Debug, Default)]
pub(super) struct Active {
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: Arc<File>,
    /// Where the bytes ended when that was last asked, rounded up to a block; no hole is before it.
    end: i64,
    /// Commits have bytes up to here, or before.
    claimed: i64,
    /// How far they had when it was last seen to be the newest.
    seen: i64,
    /// Where the blocks end that it has; everywhere, where blocks cannot be had in advance.
    reserved: i64,
}

/// The journals that have every commit which may not be on disk.
#[derive(Debug)]
pub(super) struct Journals {
    newest: Arc<File>,
    /// The one before, while nothing is in the newest: the engine may have failed to go on to it.
    before: Option<File>,
}

impl Journals {
    pub(super) fn sync(&self) -> io::Result<()> {
        if let Some(before) = &self.before {
            before.sync_data()?;
        }
        self.newest.sync_data()
    }
}

impl Active {
    /// The journals in `dir` that have every commit which has returned and may not be on disk.
    pub(super) fn journals(&self, dir: &Path) -> io::Result<Journals> {
        let mut open = self.open.lock();
        let open = newest(&mut open, dir)?;
        open.reserve(0);
        let before = if open.end == 0 { journal::before(&open.path).map(File::open) } else { None };
        let before = match before {
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
            other => other.transpose()?,
        };
        Ok(Journals { newest: Arc::clone(&open.file), before })
    }

    /// Sees to it that commits of `bytes` behind those that were [taken](Self::take) find room in the journal. One at a
    /// time.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`].
    pub(super) fn make_room(&self, dir: &Path, bytes: usize) -> Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| Error::NoSpace)?;
        let mut open = self.open.lock();
        if let Some(open) = &mut *open
            && (open.claimed < ROTATES_AT || open.claimed == open.seen)
            && open.claimed + bytes <= open.reserved - AHEAD / 2
        {
            return Ok(());
        }
        // When it cannot be opened, for want of descriptors, the engine has it open.
        let Ok(open) = newest(&mut open, dir) else { return Ok(()) };
        open.reserve(bytes);
        if open.claimed + bytes > open.reserved {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// The engine is about to append `bytes` at most.
    pub(super) fn take(&self, bytes: usize) {
        if let (Some(open), Ok(bytes)) = (&mut *self.open.lock(), i64::try_from(bytes)) {
            open.claimed += bytes;
        }
    }

    /// The journals are others now, or shorter.
    pub(super) fn forget(&self) {
        *self.open.lock() = None;
    }
}

/// The newest journal in `dir`.
fn newest<'a>(known: &'a mut Option<Open>, dir: &Path) -> io::Result<&'a mut Open> {
    let is_known = match known {
        Some(open) => is_newest(&open.path, &open.file)?,
        None => false,
    };
    if !is_known {
        let Some(path) = journal::newest(dir)? else { return Err(io::ErrorKind::NotFound.into()) };
        let file = Arc::new(File::options().read(true).write(true).open(&path)?);
        *known = Some(Open { path, file, end: 0, claimed: 0, seen: 0, reserved: 0 });
    }
    known.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl Open {
    /// Sees to it that there are blocks ahead, for `bytes` at least.
    fn reserve(&mut self, bytes: i64) {
        // Blocks that were reserved and not written to are a hole as well; the length is no hint, because the engine
        // makes a new journal as long as it may become.
        let end = match lseek(&*self.file, self.end, Whence::SeekHole) {
            Ok(end) => end,
            // Nothing is behind the end as it was.
            Err(Errno::ENXIO) => self.end,
            Err(_) => {
                self.reserved = i64::MAX;
                self.seen = self.claimed;
                return;
            }
        };
        self.end = end;
        self.claimed = end;
        self.seen = end;
        if self.reserved - end >= bytes.saturating_add(AHEAD / 2) {
            return;
        }
        for ahead in [bytes.saturating_add(AHEAD), bytes] {
            if ahead == 0 {
                return;
            }
            match fallocate(&*self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, end, ahead) {
                Ok(()) => {
                    self.reserved = self.reserved.max(end + ahead);
                    return;
                }
                Err(errno) if is_full(&errno.into()) => {}
                // Not on this filesystem. Then everything works as long as the disk has room.
                Err(_) => {
                    self.reserved = i64::MAX;
                    return;
                }
            }
        }
    }
}

/// Journals are numbered without gaps and removed from the oldest on: one that is there and has no next is the last.
fn is_newest(path: &Path, file: &File) -> io::Result<bool> {
    let Some(next) = journal::after(path) else { return Ok(false) };
    Ok(file.metadata()?.nlink() > 0 && !next.try_exists()?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_newest_journal_is_found_when_others_have_come_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |number: u64| dir.path().join(format!("{number}.jnl"));
        let active = Active::default();
        let inode = || active.journals(dir.path()).unwrap().newest.metadata().unwrap().ino();
        let inode_of = |number: u64| fs::metadata(at(number)).unwrap().ino();
        assert!(active.journals(dir.path()).is_err());
        fs::write(at(9), b"").unwrap();
        assert_eq!(inode(), inode_of(9));
        fs::write(at(10), b"").unwrap();
        assert_eq!(inode(), inode_of(10));
        // Nobody asked while the eleventh was the newest.
        fs::write(at(12), b"").unwrap();
        fs::remove_file(at(9)).unwrap();
        fs::remove_file(at(10)).unwrap();
        assert_eq!(inode(), inode_of(12));
    }

    #[test]
    fn an_empty_journal_gets_blocks_before_the_first_commit_and_the_one_before_is_synced_with_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("3.jnl"), b"commits").unwrap();
        let active = Active::default();
        assert!(active.journals(dir.path()).unwrap().before.is_none());
        // As after the engine failed to go on to it.
        fs::write(dir.path().join("4.jnl"), b"").unwrap();
        assert!(active.journals(dir.path()).unwrap().before.is_some());
        active.make_room(dir.path(), 100).unwrap();
        let blocks = fs::metadata(dir.path().join("4.jnl")).unwrap().blocks() * 512;
        assert!(blocks >= u64::try_from(AHEAD).unwrap(), "{blocks}");
        fs::write(dir.path().join("4.jnl"), b"commits").unwrap();
        assert!(active.journals(dir.path()).unwrap().before.is_none());
    }

    #[test]
    fn the_journal_has_blocks_ahead_of_its_end_and_keeps_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.jnl");
        // As the engine begins one.
        fs::write(&path, b"commits").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(64 << 20).unwrap();
        let active = Active::default();
        let blocks = || active.journals(dir.path()).unwrap().newest.metadata().unwrap().blocks() * 512;
        let ahead = u64::try_from(AHEAD).unwrap();
        assert!((ahead..2 * ahead).contains(&blocks()), "{}", blocks());
        let written = vec![1; 3 << 20];
        std::os::unix::fs::FileExt::write_all_at(
            &File::options().write(true).open(&path).unwrap(),
            &written,
            0,
        )
        .unwrap();
        assert!(blocks() >= ahead + written.len() as u64, "{}", blocks());
        assert_eq!(fs::metadata(&path).unwrap().len(), 64 << 20);
        assert_eq!(fs::read(&path).unwrap()[..written.len()], written);
    }
}
