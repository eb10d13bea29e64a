//! What is marked dirty on the disk although no writer will settle it.

use std::sync::Arc;

use dashmap::{DashMap, DashSet};

use super::open_files::OpenFile;
use crate::namespace::Ino;

/// The marks that writers left behind, by why they are there.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// Settled without a change, or settled and not on the disk yet: the mark goes with the next sync.
    pub(super) stale: DashSet<Ino>,
    /// Closed, or moved with its directory, and not settled because of an error: tried again with the next sync.
    pub(super) unsettled: DashSet<Ino>,
    /// Those of them whose size and time could not be committed either: they stay open.
    pub(super) kept: DashMap<Ino, Arc<OpenFile>>,
}

impl Marked {
    /// Whether it has a mark that waits for the next sync.
    pub(super) fn contains(&self, ino: Ino) -> bool {
        self.stale.contains(&ino) || self.unsettled.contains(&ino)
    }

    /// The mark is gone, or somebody else's again.
    pub(super) fn forget(&self, ino: Ino) {
        self.stale.remove(&ino);
        self.unsettled.remove(&ino);
    }
}
