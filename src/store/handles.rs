//! The handles of a segment's slots: each slot has one, however many read it.
//!
//! The last to let go of a doomed slot frees it. Were there two handles, the slot could be another's by the time that the
//! second is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::slots::Slot;

/// The handles of one segment, by slot.
#[derive(Default)]
pub(super) struct Handles {
    /// Never held while a handle is dropped, which locks it.
    live: Mutex<HashMap<u32, Weak<Slot>>>,
}

impl Handles {
    /// The handle of a slot; `make` makes it, if there is none.
    pub(super) fn of(&self, slot: u32, make: impl FnOnce() -> Slot) -> Arc<Slot> {
        let mut live = self.live.lock();
        if let Some(handle) = live.get(&slot).and_then(Weak::upgrade) {
            return handle;
        }
        let handle = Arc::new(make());
        live.insert(slot, Arc::downgrade(&handle));
        handle
    }

    /// Whether a slot has a handle, be it one that is being dropped.
    pub(super) fn has(&self, slot: u32) -> bool {
        self.live.lock().contains_key(&slot)
    }

    /// The handle of a slot has nothing left to do.
    pub(super) fn forget(&self, slot: u32) {
        let mut live = self.live.lock();
        // Another may have taken its place already.
        if live.get(&slot).is_some_and(|handle| handle.strong_count() == 0) {
            live.remove(&slot);
        }
    }
}
