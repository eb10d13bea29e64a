//! Nodes that are removed and that the kernel still has: pipes, sockets and devices that are open, working directories,
//! what a descriptor of `O_PATH` is of. None of them is open here, so nothing but the kernel's `forget` says when that
//! ends.
//!
//! Their last attributes are kept, in memory alone. Content and extended attributes went with the last name and handle.

use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;

use super::{Attr, SetAttr, Volume};
use crate::namespace::{Content, Ino, Inode, Kind, Time};
use crate::{Error, Result};

/// Nodes that are kept at most: the kernel forgets nearly all of them at once.
const MOST: usize = 1 << 16;

/// Nodes without names, by number.
#[derive(Debug, Default)]
pub(super) struct Gone {
    nodes: DashMap<Ino, Inode>,
    /// About how many there are: the map would count them part by part, for each name that is removed.
    count: AtomicUsize,
}

impl Gone {
    /// Keeps a node that is about to be destroyed.
    pub(super) fn keep(&self, inode: &Inode) {
        if self.count.load(Ordering::Relaxed) < MOST {
            let last = Inode { content: Content::Empty, ..inode.clone() };
            if self.nodes.insert(inode.ino, last).is_none() {
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The kernel has no such node any more.
    pub(super) fn forget(&self, ino: Ino) {
        if self.nodes.remove(&ino).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Forgets all of them: there is no kernel yet.
    pub(super) fn clear(&self) {
        self.nodes.clear();
        self.count.store(0, Ordering::Relaxed);
    }

    pub(super) fn is_directory(&self, ino: Ino) -> bool {
        self.nodes.get(&ino).is_some_and(|inode| inode.kind == Kind::Directory)
    }
}

impl Volume {
    /// Attributes of a node that is gone.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    #[cold]
    #[inline(never)]
    pub(super) fn gone_attr(&self, ino: Ino) -> Result<Attr> {
        self.gone.nodes.get(&ino).map(|inode| self.attr(&inode)).ok_or(Error::NotFound)
    }

    /// Changes them.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    #[cold]
    #[inline(never)]
    pub(super) fn set_gone(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        let mut inode = self.gone.nodes.get_mut(&ino).ok_or(Error::NotFound)?;
        set.apply(&mut inode, Time::now());
        Ok(self.attr(&inode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::testing::{self, ROOT};

    #[test]
    fn a_removed_node_has_attributes_until_the_kernel_forgets_it() {
        let (_store, volume) = testing::volume();
        let made = volume.mknod(&ROOT, Ino::ROOT, b"pipe", Kind::Fifo, 0o600, 0).unwrap();
        volume.unlink(&ROOT, Ino::ROOT, b"pipe").unwrap();
        let left = volume.getattr(made.ino).unwrap();
        assert_eq!((left.kind, left.mode, left.nlink), (Kind::Fifo, 0o600, 0));
        let set = SetAttr { mode: Some(0o640), ..SetAttr::default() };
        assert_eq!(volume.setattr(&ROOT, made.ino, set, None).unwrap().mode, 0o640);
        assert_eq!(volume.getattr(made.ino).unwrap().mode, 0o640);
        assert!(matches!(volume.lookup(&ROOT, Ino::ROOT, b"pipe"), Err(Error::NotFound)));
        volume.forget(made.ino, 1);
        assert!(matches!(volume.getattr(made.ino), Err(Error::NotFound)));
        assert!(matches!(volume.setattr(&ROOT, made.ino, set, None), Err(Error::NotFound)));
        volume.close().unwrap();
    }
}
