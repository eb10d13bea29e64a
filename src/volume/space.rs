//! Room in the filesystem below the store.
//!
//! The catalog cannot take back a commit that failed on a full disk, so what grows is refused while there is
//! still room for what shrinks: deleting files works on a full volume.

use std::sync::atomic::{AtomicI64, Ordering};

use super::Volume;
use crate::store::Space;
use crate::{Error, Result};

/// Bytes that only deletions, syncs and the catalog's own upkeep may use.
const RESERVE: u64 = 64 << 20;

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

    /// Blocks and inodes of the filesystem below the store; the reserve is not offered.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn statfs(&self) -> Result<Space> {
        let space = self.store.space()?;
        let reserve = RESERVE / space.block_bytes.max(1);
        Ok(Space { available: space.available.saturating_sub(reserve), ..space })
    }
}

/// What may be written after a change of `need` bytes, or `None` when it does not fit.
fn grant(space: Space, need: i64) -> Option<i64> {
    let available = space.available.saturating_mul(space.block_bytes).saturating_sub(RESERVE);
    let left = i64::try_from(available).unwrap_or(i64::MAX).checked_sub(need).filter(|&left| left >= 0)?;
    Some((left / 2).min(i64::try_from(GRANT_MAX).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(available_bytes: u64) -> Space {
        let available = available_bytes / 4096;
        Space { block_bytes: 4096, blocks: available, free: available, available, files: 1, files_free: 1 }
    }

    #[test]
    fn the_reserve_is_never_granted() {
        assert_eq!(grant(space(RESERVE), 1), None);
        assert_eq!(grant(space(RESERVE + 8192), 8192), Some(0));
        assert_eq!(grant(space(RESERVE + 16384), 8192), Some(4096));
        assert_eq!(grant(space(1 << 50), 1), Some(64 << 20));
    }
}
