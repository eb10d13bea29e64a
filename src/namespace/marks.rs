//! Marks: inodes with work to finish after an unclean end.

use super::{Ino, Namespace, keys};
use crate::Result;
use crate::catalog::{Batch, Table};

/// What is to be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Content was written and not settled; its size may be known only to the blob.
    Dirty = 1,
    /// No name is left, but it was still open.
    Orphan = 2,
    /// A directory moved into another collection, and its vectors have not followed.
    Moved = 3,
}

impl Mark {
    /// The mark with this number on disk.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Mark::Dirty, Mark::Orphan, Mark::Moved].into_iter().find(|&mark| mark as u8 == number)
    }
}

impl Namespace {
    /// Stages a mark.
    pub fn put_mark(&self, batch: &mut Batch<'_>, mark: Mark, ino: Ino) {
        batch.put(Table::Marks, key(mark, ino), b"");
    }

    /// Stages the removal of a mark.
    pub fn remove_mark(&self, batch: &mut Batch<'_>, mark: Mark, ino: Ino) {
        batch.remove(Table::Marks, key(mark, ino));
    }

    /// Every inode with this mark, in order.
    ///
    /// # Errors
    ///
    /// `Corrupt`, or the catalog's errors.
    pub fn marked(&self, mark: Mark) -> Result<Vec<Ino>> {
        self.catalog
            .scan(Table::Marks, &[mark as u8], None)
            .map(|pair| Ok(keys::split_ino("marks", &pair?.0)?.0))
            .collect()
    }
}

fn key(mark: Mark, ino: Ino) -> [u8; 9] {
    let mut key = [mark as u8; 9];
    key[1..].copy_from_slice(&keys::ino(ino));
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::testing::Tree;

    #[test]
    fn marks_of_each_kind_are_listed_apart() {
        let tree = Tree::new();
        tree.change(|names, batch| {
            names.put_mark(batch, Mark::Dirty, Ino(9));
            names.put_mark(batch, Mark::Dirty, Ino(300));
            names.put_mark(batch, Mark::Orphan, Ino(9));
        });
        tree.change(|names, batch| names.remove_mark(batch, Mark::Dirty, Ino(9)));
        assert_eq!(tree.names.marked(Mark::Dirty).unwrap(), [Ino(300)]);
        assert_eq!(tree.names.marked(Mark::Orphan).unwrap(), [Ino(9)]);
    }
}
