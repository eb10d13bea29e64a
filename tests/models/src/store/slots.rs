//! Slots on their way round: taken, written, read, freed, and taken again.
//!
//! What is compiled are the bits and the quarantine; that a class has a lock, and that the last handle of a slot frees it,
//! is said here once more.

use std::sync::Arc;

use loom::cell::UnsafeCell;

use super::quarantine::{FreedSlot, Quarantine};
use super::taken::Taken;
use crate::Model;
use crate::sync::{AtomicU32, Kind, Mutex, Ordering, together};

pub(super) const MODELS: &[Model] = &[
    Model {
        name: "a slot is written again when nobody reads it",
        preemptions: None,
        notices: &[
            (Kind::Acquire, "if self.handles.fetch_sub(1,"),
            (Kind::Release, "if self.handles.fetch_sub(1,"),
        ],
        run: written_again,
    },
    Model {
        name: "a slot has one owner, and one that was given back is found",
        preemptions: Some(4),
        notices: &[],
        run: taken_by_two,
    },
    Model {
        name: "a slot that two free at once goes into the quarantine once",
        preemptions: None,
        notices: &[],
        run: freed_by_two,
    },
];

/// A segment of few slots, its class, and the content of the first slot.
struct Segment {
    taken: Taken,
    class: Mutex<()>,
    quarantine: Quarantine,
    content: UnsafeCell<u32>,
    /// Those of the first slot.
    handles: AtomicU32,
}

// SAFETY: threads of a model take turns, and loom looks who can have touched the content at one time.
unsafe impl Sync for Segment {}

impl Segment {
    /// With the first slot taken, for so many handles.
    fn new(slots: u32, handles: u32) -> Arc<Self> {
        let taken = Taken::new(slots);
        taken.adopt(0);
        Arc::new(Self {
            taken,
            class: Mutex::new(()),
            quarantine: Quarantine::default(),
            content: UnsafeCell::new(7),
            handles: AtomicU32::new(handles),
        })
    }

    fn read(&self) -> u32 {
        // SAFETY: as above.
        self.content.with(|content| unsafe { *content })
    }

    fn write(&self, value: u32) {
        // SAFETY: as above.
        self.content.with_mut(|content| unsafe { *content = value });
    }

    fn take(&self) -> Option<u32> {
        let _class = self.class.lock();
        self.taken.take_free()
    }

    fn free(&self) {
        if self.taken.set_freed(0) {
            self.quarantine.free_slot(FreedSlot { segment: 0, slot: 0 });
        }
    }

    /// As the last of several `Arc`s does, whose slot no commit names any more.
    fn drop_handle(&self) {
        if self.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.free();
        }
    }

    /// What follows a durable commit.
    fn reclaim(&self) {
        let mark = self.quarantine.mark();
        for (_, freed) in self.quarantine.take_slots(mark) {
            let _class = self.class.lock();
            self.taken.give_back(freed.slot);
        }
    }
}

fn written_again() {
    let segment = Segment::new(1, 2);
    let read = Arc::clone(&segment);
    let reader = move || {
        assert_eq!(read.read(), 7, "it stays while there is a handle");
        read.drop_handle();
    };
    together(vec![Box::new(reader)], || {
        segment.drop_handle();
        segment.reclaim();
        if segment.take().is_some() {
            segment.write(9);
            assert_eq!(segment.read(), 9);
            assert!(segment.taken.set_freed(0), "it is the new owner's alone");
        }
    });
}

fn taken_by_two() {
    // Two words of bits, the first of them full but for what comes back.
    let segment = Segment::new(66, 1);
    (1..65).for_each(|slot| segment.taken.adopt(slot));
    let other = Arc::clone(&segment);
    let taken = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&taken);
    let take = move || {
        let slot = other.take();
        noted.lock().extend(slot);
    };
    together(vec![Box::new(take)], || {
        segment.drop_handle();
        segment.reclaim();
        let slot = segment.take();
        taken.lock().extend(slot);
    });
    let mut all = taken.lock().clone();
    assert_eq!(all.len(), 2, "two are free for two: {all:?}");
    all.extend(segment.take());
    all.sort_unstable();
    assert_eq!(all, [0, 65], "each once, and no other");
}

fn freed_by_two() {
    let segment = Segment::new(1, 0);
    let other = Arc::clone(&segment);
    together(vec![Box::new(move || other.free())], || segment.free());
    let mark = segment.quarantine.mark();
    assert_eq!(segment.quarantine.take_slots(mark).len(), 1);
}
