//! Codes while they are written, retired and written again.

use std::sync::Arc;

use super::rows::{CodeBatch, CodeRows, pin};
use crate::Model;
use crate::sync::{AtomicU32, Kind, Mutex, Ordering, together};

/// Near bytes that leave room for the head beside them, and such that do not: then heads have rows of their own.
const BESIDE: usize = 8;
const APART: usize = 33;
const FAR: usize = 4;

/// Every byte of a code is its head's number.
fn put(codes: &CodeRows, row: u32, head: u8, near: usize) {
    let guard = pin();
    codes.put(row, head.into(), &vec![head; near], &[head; FAR], &guard);
}

/// Reads the row that `link` leads to in both ways, and again later under the same guard.
fn read(codes: &CodeRows, link: &AtomicU32) {
    let guard = pin();
    let Some(row) = link.load(Ordering::Acquire).checked_sub(1) else { return };
    let mut batch = CodeBatch::default();
    let batch = codes.read(&[row], &mut batch, &guard);
    let one = codes.get(row, &guard);
    let far = codes.far(row, &guard);
    // Whoever goes on now may do what he likes: what was handed out stays as it is.
    loom::thread::yield_now();
    for (&head, near) in batch.heads().iter().zip(batch.near()) {
        assert!(near.iter().all(|&byte| u64::from(byte) == head), "head {head}, near {near:?}");
    }
    let Some(one) = one else { return };
    assert!(one.near.iter().all(|&byte| u64::from(byte) == one.head), "{one:?}");
    if let Some(far) = far {
        assert!(far.iter().all(|&byte| u64::from(byte) == one.head), "{one:?}, far {far:?}");
    }
}

const WRITTEN: &[(Kind, &str)] = &[
    (Kind::Acquire, "let head = self.head(row, guard)?.load("),
    (Kind::Acquire, "if self.head(row, guard)?.load("),
    (Kind::Acquire, "let head = state.load("),
    (Kind::Release, "state.store(head,"),
];

const USED_AGAIN: &[(Kind, &str)] = &[
    (Kind::Guard, "vacate.run(done)"),
    (Kind::Acquire, "let Some(row) = link.load("),
    (Kind::Release, "link.store(row + 1,"),
];

pub(super) const MODELS: &[Model] = &[
    Model {
        name: "a code is read whole or not at all (head beside it)",
        preemptions: None,
        notices: WRITTEN,
        run: written_while_read::<BESIDE>,
    },
    Model {
        name: "a code is read whole or not at all (head apart)",
        preemptions: None,
        notices: WRITTEN,
        run: written_while_read::<APART>,
    },
    Model {
        name: "a row is used again when nobody reads its code (head beside it)",
        preemptions: Some(4),
        notices: USED_AGAIN,
        run: used_again_while_read::<BESIDE>,
    },
    Model {
        name: "a row is used again when nobody reads its code (head apart)",
        preemptions: Some(4),
        notices: USED_AGAIN,
        run: used_again_while_read::<APART>,
    },
];

fn written_while_read<const NEAR: usize>() {
    let codes = Arc::new(CodeRows::new(NEAR, FAR, NEAR + FAR + 8));
    codes.ensure(0).expect("memory");
    let (reader, link) = (Arc::clone(&codes), AtomicU32::new(1));
    together(vec![Box::new(move || read(&reader, &link))], || put(&codes, 0, 7, NEAR));
    let guard = pin();
    assert_eq!(codes.get(0, &guard).map(|code| code.head), Some(7));
}

fn used_again_while_read<const NEAR: usize>() {
    let codes = Arc::new(CodeRows::new(NEAR, FAR, NEAR + FAR + 8));
    codes.ensure(0).expect("memory");
    put(&codes, 0, 7, NEAR);
    let free = Arc::new(Mutex::new(Vec::new()));
    let link = Arc::new(AtomicU32::new(1));
    let (reader, followed) = (Arc::clone(&codes), Arc::clone(&link));
    together(vec![Box::new(move || read(&reader, &followed))], || {
        let vacant = Arc::clone(&free);
        let guard = pin();
        // As in a graph: first nothing leads to it, then it is retired.
        link.store(0, Ordering::Relaxed);
        codes.retire(0, &guard, move |row| vacant.lock().push(row));
        drop(guard);
        let row = free.lock().pop();
        if let Some(row) = row {
            put(&codes, row, 9, NEAR);
            link.store(row + 1, Ordering::Release);
        }
    });
}
