//! Mappings whose disk fails, while others begin and end to be watched.
//!
//! Whoever runs the handler here is the thread that read the page, as it is in a process. The system call behind it,
//! which puts zeros in the page's place, is a store that releases: another thread that reads the zeros sees what came
//! before.

use std::sync::Arc;

use super::watch::{Failed, Places, Watch};
use crate::Model;
use crate::sync::{AtomicBool, Kind, Mutex, Ordering, together};

const PAGE: usize = 4096;

pub(super) const MODELS: &[Model] = &[
    Model {
        name: "a failed page is noted with its mapping while a place changes hands (shorter)",
        preemptions: None,
        notices: &[
            (Kind::Acquire, "let turn = self.turn.load("),
            (Kind::Acquire, "let start = self.start.load("),
            (Kind::Release, "self.start.store(start,"),
            (Kind::Release, "self.turn.fetch_add(1,"),
        ],
        run: noted_while_another_changes::<4, 1>,
    },
    Model {
        name: "a failed page is noted with its mapping while a place changes hands (longer)",
        preemptions: None,
        notices: &[(Kind::Acquire, "let len = self.len.load("), (Kind::Release, "self.len.store(len,")],
        run: noted_while_another_changes::<1, 4>,
    },
    Model {
        name: "a failed page is noted with its mapping where another lay before",
        preemptions: None,
        notices: &[],
        run: noted_where_another_lay,
    },
    Model {
        name: "two that begin to watch at once are both found",
        preemptions: None,
        notices: &[
            (Kind::Acquire, "let mut place = self.first.load("),
            (Kind::Release, "self.first.store(made,"),
        ],
        run: begun_by_two,
    },
    Model {
        name: "who reads zeros, or a count of failed pages, finds the note",
        preemptions: None,
        notices: &[(Kind::Acquire, "self.damages.load("), (Kind::Release, "self.damages.fetch_add(")],
        run: noted_before_it_is_seen,
    },
];

/// Places of this run: nothing of the runs before is in them.
fn places() -> &'static Places {
    Box::leak(Box::new(Places::new()))
}

/// What the handler finds when a page cannot be read.
fn fail(places: &Places, address: usize, writable: bool) {
    let at = address & !(PAGE - 1);
    assert_eq!(places.note(address, PAGE), Some(Failed { at, writable }), "page {at:x}");
}

fn noted_while_another_changes<const BEFORE: usize, const AFTER: usize>() {
    let places = places();
    // The handler meets the younger place first.
    let read = places.watch(0x9000, PAGE, false);
    // Of the long range and the short one none reaches the page that fails: the start of the short one with the length
    // of the long one would.
    let range = |pages: usize| (if pages == 1 { 0x8000 } else { 0x1000 }, pages * PAGE);
    let (start, len) = range(BEFORE);
    let before = places.watch(start, len, true);
    let after: Arc<Mutex<Option<Watch>>> = Arc::default();
    let begun = Arc::clone(&after);
    let change = move || {
        drop(before);
        let (start, len) = range(AFTER);
        *begun.lock() = Some(places.watch(start, len, true));
    };
    together(vec![Box::new(change)], || fail(places, 0x9010, false));
    assert_eq!(read.damage(), Some(0));
    assert_eq!(after.lock().as_ref().map(Watch::damage), Some(None), "its pages are sound");
    assert_eq!(places.damages(), 1);
}

fn noted_where_another_lay() {
    let places = places();
    let before = places.watch(0x1000, 2 * PAGE, false);
    let is_unmapped = Arc::new(AtomicBool::new(false));
    let unmapped = Arc::clone(&is_unmapped);
    let end = move || {
        fail(places, 0x2000, false);
        assert_eq!(before.damage(), Some(PAGE as u64));
        drop(before);
        // From here on the addresses may be given to another mapping.
        unmapped.store(true, Ordering::Relaxed);
    };
    together(vec![Box::new(end)], || {
        if is_unmapped.load(Ordering::Relaxed) {
            let now = places.watch(0x0, 4 * PAGE, true);
            assert_eq!(now.damage(), None);
            fail(places, 0x1008, true);
            assert_eq!(now.damage(), Some(PAGE as u64));
        }
    });
}

fn begun_by_two() {
    let places = places();
    let watched = |start: usize, writable: bool| {
        move || {
            let watch = places.watch(start, PAGE, writable);
            // Loom does not come to switch here by itself: what the other did last in the list was to write it.
            loom::thread::yield_now();
            fail(places, start + 8, writable);
            assert_eq!(watch.damage(), Some(0));
        }
    };
    together(vec![Box::new(watched(0x1000, true))], watched(0x2000, false));
    assert_eq!(places.damages(), 2);
    assert_eq!(places.note(0x1000, PAGE), None, "nobody watches any more");
}

fn noted_before_it_is_seen() {
    let places = places();
    let watch = Arc::new(places.watch(0x1000, 2 * PAGE, false));
    let are_zeros = Arc::new(AtomicBool::new(false));
    let replaced = Arc::clone(&are_zeros);
    let read = move || {
        fail(places, 0x2000, false);
        replaced.store(true, Ordering::Release);
    };
    together(vec![Box::new(read)], || {
        let damages = places.damages();
        // As a search: what is known to be damaged when it begins is left out, by a look at each mapping.
        let is_known = watch.damage().is_some();
        assert!(is_known || damages == 0, "a page is counted and not noted");
        if are_zeros.load(Ordering::Acquire) {
            assert_eq!(watch.damage(), Some(PAGE as u64));
            assert!(is_known || places.damages() != damages, "zeros are taken for what the disk has");
        }
    });
}
