//! What users hold in memory through handles of `query`: requests that wait for a read, and answers.

use std::sync::Arc;

use dashmap::DashMap;

use crate::{Error, Result};

/// Most bytes that the handles of one user may hold: a few of the largest requests, and any one alone.
const HELD_BYTES: u64 = 512 << 20;

/// What is counted: the last bytes of a handle are not.
const UNIT: u64 = 4 << 10;

/// What each user holds, in a volume and its snapshots.
#[derive(Debug, Default)]
pub(super) struct Held {
    by_user: DashMap<u32, u64>,
}

/// What one handle holds for its user, until it is dropped.
#[derive(Debug)]
pub(in crate::volume) struct Share {
    held: Arc<Held>,
    uid: u32,
    bytes: u64,
}

impl Share {
    pub(super) fn new(held: &Arc<Held>, uid: u32) -> Self {
        Self { held: Arc::clone(held), uid, bytes: 0 }
    }

    /// Counts that the handle holds so much from now on, in whole [`UNIT`]s: most requests hold less.
    ///
    /// # Errors
    ///
    /// `OverBudget` when all handles of the user hold more than they may. It is counted nevertheless.
    pub(super) fn set(&mut self, bytes: u64) -> Result<()> {
        let bytes = bytes - bytes % UNIT;
        if bytes == self.bytes {
            return Ok(());
        }
        let mut all = self.held.by_user.entry(self.uid).or_default();
        *all = *all - self.bytes + bytes;
        self.bytes = bytes;
        let got = *all;
        drop(all);
        if bytes == 0 {
            self.held.by_user.remove_if(&self.uid, |_, all| *all == 0);
        }
        match got {
            got if got > HELD_BYTES => {
                Err(Error::OverBudget { what: "requests and answers of bytes", got, limit: HELD_BYTES })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Less is not too much.
        let _ = self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_handles_hold_so_much_together_and_another_users_as_much() {
        let held = Arc::default();
        let (mut one, mut two, mut other) =
            (Share::new(&held, 1), Share::new(&held, 1), Share::new(&held, 2));
        one.set(HELD_BYTES - UNIT).unwrap();
        two.set(2 * UNIT - 1).unwrap();
        assert!(matches!(two.set(2 * UNIT), Err(Error::OverBudget { got, .. }) if got == HELD_BYTES + UNIT));
        other.set(HELD_BYTES).unwrap();
        one.set(0).unwrap();
        two.set(HELD_BYTES).unwrap();
        drop((one, two, other));
        assert!(held.by_user.is_empty());
    }
}
