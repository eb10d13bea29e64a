//! The catalog: VexFS's ground state of names and references, in an ordered transactional key-value store.
//!
//! This room knows tables, keys and bytes. It does not know what an inode or a vector is: the rooms above
//! encode their records with [`crate::format::record`]. The engine is fjall and is not named outside this
//! folder, so that another engine can take its place.
//!
//! **Promise.** [`Batch::commit`] applies a [`Batch`] atomically; once it returned, the death of the
//! process loses nothing of it: see `tail` and `log`. On a full disk it is refused, and works again when there is room: see `active` and
//! `revival`. [`Catalog::persist`] makes everything committed so far survive a power cut. A
//! catalog that has lost what was persisted, or whose files are not those that were closed, is not opened: see
//! `tally` and `seal`. [`Catalog::checkpoint`] makes a second catalog of it, at a cost that hardly depends on its size.

mod active;
mod batch;
mod checkpoint;
mod engine;
mod journal;
mod log;
mod manifests;
mod recent;
mod revival;
mod seal;
mod tail;
mod tally;
#[cfg(test)]
mod tests;

pub use batch::Batch;
pub use engine::{Catalog, Suffix, Value, copy, sync_copy};

/// Under this name in [`Table::Meta`]: the number of the last commit.
const COMMITS: &[u8] = b"commits";

/// The tables of the catalog. Keys are compared as bytes, so integers in keys are big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `ino u64` -> inode record.
    Inodes,
    /// `parent u64, name` -> dentry record.
    Dentries,
    /// `ino u64, parent u64, name` -> nothing: the names of a file, for paths and membership.
    Links,
    /// `ino u64, name` -> value of an extended attribute.
    Xattrs,
    /// `ino u64` -> content of a small file, or a symlink's target.
    Inline,
    /// `collection u64, ino u64` -> the vectors of a file in a collection.
    Vectors,
    /// `directory u64` -> a collection's configuration and counters.
    Collections,
    /// `mark u8, ino u64` -> nothing: work to finish after an unclean end.
    Marks,
    /// Names of single facts: format version, counters, clean shutdown.
    Meta,
}

impl Table {
    /// Every table, in the order of their numbers on disk.
    pub const ALL: [Table; 9] = [
        Table::Inodes,
        Table::Dentries,
        Table::Links,
        Table::Xattrs,
        Table::Inline,
        Table::Vectors,
        Table::Collections,
        Table::Marks,
        Table::Meta,
    ];

    /// The table's name on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Table::Inodes => "inodes",
            Table::Dentries => "dentries",
            Table::Links => "links",
            Table::Xattrs => "xattrs",
            Table::Inline => "inline",
            Table::Vectors => "vectors",
            Table::Collections => "collections",
            Table::Marks => "marks",
            Table::Meta => "meta",
        }
    }
}
