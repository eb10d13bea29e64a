//! The journal that the engine appends to, open a second time.
//!
//! The engine syncs its journal with the lock held that every commit takes, so commits would wait for the disk, and
//! those who wait for durability would come to it one by one. A commit is in the journal's file when it returns; so
//! the file is synced here, by a descriptor of our own, while commits go on. Of a journal that is no longer the newest
//! nothing needs to be synced: the engine has done that before it began the next.
//!
//! A commit that fails is the end of changes until the catalog is opened again. So the journal has blocks ahead of its
//! end where there is room for them: on a disk that is full, files can be removed.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use parking_lot::Mutex;

use super::journal::newest;

/// Bytes behind the end of the journal that get blocks: some thousand removals of files.
const AHEAD: i64 = 4 << 20;

/// The newest journal of a catalog, as far as was looked.
#[derive(Debug, Default)]
pub(super) struct Active {
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: Arc<File>,
    /// Where the bytes ended when that was last asked; no hole is before it.
    end: i64,
    /// Where the blocks end that it has.
    reserved: i64,
}

impl Active {
    /// The journal in `dir` that has every commit which has returned and may not be on disk.
    pub(super) fn journal(&self, dir: &Path) -> io::Result<Arc<File>> {
        let mut open = self.open.lock();
        if let Some(open) = &mut *open
            && is_newest(&open.path, &open.file)?
        {
            open.reserve();
            return Ok(Arc::clone(&open.file));
        }
        let Some(path) = newest(dir)? else { return Err(io::ErrorKind::NotFound.into()) };
        let file = Arc::new(File::options().read(true).write(true).open(&path)?);
        let open = open.insert(Open { path, file, end: 0, reserved: 0 });
        open.reserve();
        Ok(Arc::clone(&open.file))
    }
}

impl Open {
    /// Sees to it that there are blocks ahead. Without them everything works as long as the disk has room.
    fn reserve(&mut self) {
        // Blocks that were reserved and not written to are a hole as well; the length is no hint, because the engine
        // makes a new journal as long as it may become.
        let Ok(end) = lseek(&*self.file, self.end, Whence::SeekHole) else { return };
        self.end = end;
        if self.reserved - end < AHEAD / 2
            && fallocate(&*self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, end, AHEAD).is_ok()
        {
            self.reserved = end + AHEAD;
        }
    }
}

/// Journals are numbered without gaps and removed from the oldest on: one that is there and has no next is the last.
fn is_newest(path: &Path, file: &File) -> io::Result<bool> {
    let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
    let Some(next) = number.and_then(|number| number.checked_add(1)) else { return Ok(false) };
    Ok(file.metadata()?.nlink() > 0 && !path.with_file_name(format!("{next}.jnl")).try_exists()?)
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
        let inode = || active.journal(dir.path()).unwrap().metadata().unwrap().ino();
        let inode_of = |number: u64| fs::metadata(at(number)).unwrap().ino();
        assert!(active.journal(dir.path()).is_err());
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
    fn the_journal_has_blocks_ahead_of_its_end_and_keeps_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.jnl");
        // As the engine begins one.
        fs::write(&path, b"commits").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(64 << 20).unwrap();
        let active = Active::default();
        let blocks = || active.journal(dir.path()).unwrap().metadata().unwrap().blocks() * 512;
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
