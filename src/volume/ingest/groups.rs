//! Groups: the files that are found by the same callers in the same places. A collection knows them as numbers.

use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use parking_lot::RwLock;

use crate::format;
use crate::namespace::{Ino, Inode, Link};

/// What decides who may find a file, and below which directories.
#[derive(Clone, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub(in crate::volume) struct GroupKey {
    /// Directories with a recognised name of the file, in order, each once: by another it is not found.
    pub(in crate::volume) dirs: Vec<Ino>,
    /// Owner of the file.
    pub(in crate::volume) uid: u32,
    /// Group of the file.
    pub(in crate::volume) gid: u32,
    /// Its permission bits.
    pub(in crate::volume) mode: u16,
}

impl GroupKey {
    /// The key of a file with these names.
    pub(in crate::volume) fn of(inode: &Inode, links: &[Link]) -> Self {
        Self::below(inode, links.iter().filter(|link| format::recognise(&link.name).is_some()))
    }

    /// What earlier programs kept: names that are not recognised count as well.
    pub(in crate::volume) fn of_all(inode: &Inode, links: &[Link]) -> Self {
        Self::below(inode, links.iter())
    }

    /// The key of a directory, which is found like a file.
    pub(in crate::volume) fn of_directory(inode: &Inode) -> Self {
        Self { dirs: vec![inode.parent], uid: inode.uid, gid: inode.gid, mode: inode.mode & 0o777 }
    }

    fn below<'l>(inode: &Inode, links: impl Iterator<Item = &'l Link>) -> Self {
        let mut dirs: Vec<Ino> = links.map(|link| link.parent).collect();
        dirs.sort_unstable();
        dirs.dedup();
        Self { dirs, uid: inode.uid, gid: inode.gid, mode: inode.mode & 0o777 }
    }
}

/// Keys and their numbers. Numbers are given once and kept until the volume closes.
#[derive(Debug, Default)]
pub(in crate::volume) struct Groups {
    numbers: DashMap<GroupKey, u32>,
    keys: RwLock<Vec<GroupKey>>,
    /// Raised before anybody else has the new number.
    count: AtomicUsize,
}

impl Groups {
    /// The number of a key.
    pub(in crate::volume) fn number(&self, key: &GroupKey) -> u32 {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        *self.numbers.entry(key.clone()).or_insert_with(|| {
            let mut keys = self.keys.write();
            keys.push(key.clone());
            self.count.store(keys.len(), Ordering::Release);
            u32::try_from(keys.len() - 1).expect("there are fewer groups than files")
        })
    }

    /// The first directory with a name of the files of a group.
    pub(in crate::volume) fn directory(&self, group: u32) -> Option<Ino> {
        self.keys.read().get(group as usize)?.dirs.first().copied()
    }

    /// How many numbers have been given.
    pub(in crate::volume) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// What `judge` says of each key, by number.
    pub(in crate::volume) fn judge(&self, mut judge: impl FnMut(&GroupKey) -> bool) -> Vec<bool> {
        // Copied, because judging reads the catalog.
        let keys = self.keys.read().clone();
        keys.iter().map(&mut judge).collect()
    }
}
