//! Room in the filesystem below the store.
//!
//! Removing files takes room in the catalog's journal before it gives any back, so what grows is refused while there
//! is still room for what shrinks: deleting files works on a full volume.

use std::sync::atomic::{AtomicI64, Ordering};

use super::Volume;
use crate::store::Space;
use crate::{Error, Result};

/// Most bytes that only deletions, syncs and the catalog's own upkeep may use.
const RESERVE_MAX: u64 = 64 << 20;

/// On a small filesystem the reserve is this part of it.
const RESERVE_PART: u64 = 16;

/// Most bytes that are handed out before the filesystem is asked again: others use it too.
const GRANT_MAX: u64 = 64 << 20;

/// What a change costs beside its content: records, journal, index blocks.
const OVERHEAD: u64 = 4096;

/// Bytes that may be written before the filesystem is asked again.
#[derive(Debug, Default)]
pub(super) struct Room {
    granted: AtomicI64,
}

impl Volume {
    /// Refuses a change that adds `bytes` when the store's filesystem is about to be full.
    pub(super) fn need_room(&self, bytes: u64) -> Result<()> {
        let need = i64::try_from(bytes.saturating_add(OVERHEAD)).unwrap_or(i64::MAX);
        let before = self.room.granted.fetch_sub(need, Ordering::Relaxed);
        if before >= need {
            return Ok(());
        }
        let granted = grant(self.store.space()?, need);
        // A refusal leaves nothing granted, so the next change asks again.
        self.room.granted.store(granted.unwrap_or(0), Ordering::Relaxed);
        granted.map(|_| ()).ok_or(Error::NoSpace)
    }

    /// Whether `bytes` that can be done without may be written, and as many are then still left for others.
    pub(super) fn has_room_beside(&self, bytes: u64) -> bool {
        let room = |space: Space| space.available.saturating_mul(space.block_bytes);
        self.statfs().is_ok_and(|space| room(space) / 2 >= bytes)
    }

    /// Blocks and inodes of the filesystem below the store; the reserve is not offered.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn statfs(&self) -> Result<Space> {
        let space = self.store.space()?;
        let reserve = reserve(&space) / space.block_bytes.max(1);
        Ok(Space { available: space.available.saturating_sub(reserve), ..space })
    }

    /// The filesystem had no room although it was granted: somebody else took it.
    pub(super) fn forget_room(&self) {
        self.room.granted.store(0, Ordering::Relaxed);
    }
}

/// Bytes of a filesystem that are kept.
fn reserve(space: &Space) -> u64 {
    RESERVE_MAX.min(space.blocks.saturating_mul(space.block_bytes) / RESERVE_PART)
}

/// What may be written after a change of `need` bytes, or `None` when it does not fit.
fn grant(space: Space, need: i64) -> Option<i64> {
    let available = space.available.saturating_mul(space.block_bytes).saturating_sub(reserve(&space));
    let left = i64::try_from(available).unwrap_or(i64::MAX).checked_sub(need).filter(|&left| left >= 0)?;
    Some((left / 2).min(i64::try_from(GRANT_MAX).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(bytes: u64, available_bytes: u64) -> Space {
        let available = available_bytes / 4096;
        Space { block_bytes: 4096, blocks: bytes / 4096, free: available, available, files: 1, files_free: 1 }
    }

    #[test]
    fn the_reserve_is_never_granted() {
        let large = |available| space(1 << 50, available);
        assert_eq!(grant(large(RESERVE_MAX), 1), None);
        assert_eq!(grant(large(RESERVE_MAX + 8192), 8192), Some(0));
        assert_eq!(grant(large(RESERVE_MAX + 16384), 8192), Some(4096));
        assert_eq!(grant(large(1 << 50), 1), Some(64 << 20));
    }

    #[test]
    fn a_small_filesystem_keeps_a_part_of_itself() {
        let small = |available| space(256 << 20, available);
        assert_eq!(grant(small(16 << 20), 1), None);
        assert_eq!(grant(small((16 << 20) + 8192), 8192), Some(0));
    }
}
