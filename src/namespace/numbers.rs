//! Inode numbers: handed out in sequence, never twice, also not after an unclean end.
//!
//! The catalog holds a number that no inode has reached yet. It is raised by a block in a commit of its own
//! before a number of the block is handed out; what is left of a block at the end is skipped.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Ino, keys};
use crate::Result;
use crate::catalog::{Catalog, Table};
use crate::format::record;

/// Numbers reserved by one commit.
const BLOCK: u64 = 1024;

/// Under this name in `Table::Meta`: the first number that is not reserved.
pub(super) const RESERVED: &[u8] = b"inodes_reserved";

#[derive(Debug)]
pub(super) struct Numbers {
    next: AtomicU64,
    reserved: AtomicU64,
    reserving: Mutex<()>,
}

impl Numbers {
    pub(super) fn open(catalog: &Catalog) -> Result<Self> {
        let reserved = match catalog.get(Table::Meta, RESERVED)? {
            Some(bytes) => record::decode::<u64>("meta", &bytes)?,
            None => Ino::ROOT.0 + 1,
        };
        Ok(Self {
            next: AtomicU64::new(reserved),
            reserved: AtomicU64::new(reserved),
            reserving: Mutex::new(()),
        })
    }

    /// A number that was never handed out before.
    pub(super) fn allocate(&self, catalog: &Catalog) -> Result<Ino> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.reserved.load(Ordering::Acquire) {
            self.reserve(catalog, number)?;
        }
        Ok(Ino(number))
    }

    fn reserve(&self, catalog: &Catalog, number: u64) -> Result<()> {
        let _one_at_a_time = self.reserving.lock();
        if number < self.reserved.load(Ordering::Acquire) {
            return Ok(());
        }
        // The highest bit belongs to nodes that have no record.
        let Some(reserved) = number.checked_add(BLOCK).filter(|&end| end < 1 << 63) else {
            return Err(keys::corrupt("meta", format!("inode number {number} is out of range")));
        };
        let mut batch = catalog.batch();
        batch.put(Table::Meta, RESERVED, record::encode(&reserved));
        batch.commit()?;
        self.reserved.store(reserved, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_repeated_across_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = Ino::ROOT;
        for _ in 0..3 {
            let catalog = Catalog::open(dir.path()).unwrap();
            let numbers = Numbers::open(&catalog).unwrap();
            for _ in 0..BLOCK + 5 {
                let ino = numbers.allocate(&catalog).unwrap();
                assert!(ino > last);
                last = ino;
            }
        }
    }

    #[test]
    fn a_damaged_mark_is_refused_instead_of_starting_over() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        let mut batch = catalog.batch();
        batch.put(Table::Meta, RESERVED, b"x");
        batch.commit().unwrap();
        assert!(matches!(Numbers::open(&catalog), Err(crate::Error::Corrupt { .. })));
    }
}
