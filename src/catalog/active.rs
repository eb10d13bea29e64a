//! The journal that the engine appends to, open a second time.
//!
//! The engine syncs its journal with the lock held that every commit takes, so commits would wait for the disk, and
//! those who wait for durability would come to it one by one. A commit is in the journal's file when it returns; so
//! the file is synced here, by a descriptor of our own, while commits go on. Of a journal that is no longer the newest
//! nothing needs to be synced: the engine has done that before it began the next.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::journal::newest;

/// The newest journal of a catalog, as far as was looked.
#[derive(Debug, Default)]
pub(super) struct Active {
    open: Mutex<Option<(PathBuf, Arc<File>)>>,
}

impl Active {
    /// The journal in `dir` that has every commit which has returned and may not be on disk.
    pub(super) fn journal(&self, dir: &Path) -> io::Result<Arc<File>> {
        let mut open = self.open.lock();
        if let Some((path, file)) = &*open
            && is_newest(path, file)?
        {
            return Ok(Arc::clone(file));
        }
        let Some(path) = newest(dir)? else { return Err(io::ErrorKind::NotFound.into()) };
        let file = Arc::new(File::open(&path)?);
        *open = Some((path, Arc::clone(&file)));
        Ok(file)
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
}
