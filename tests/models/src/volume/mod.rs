//! Models of group commit.

use std::sync::Arc;

use crate::Model;
use crate::sync::{AtomicBool, Ordering, together};

#[path = "../../../../src/volume/flushes.rs"]
mod flushes;

use flushes::Flushes;

pub(crate) const MODELS: &[Model] = &[Model {
    name: "who returns is covered by a flush that began after his write",
    preemptions: Some(3),
    notices: &[],
    run: covered_when_it_returns,
}];

fn covered_when_it_returns() {
    let flushes = Arc::new(Flushes::default());
    let [written, kept]: [Arc<[AtomicBool; 3]>; 2] = Default::default();
    let client = |me: usize| {
        let (flushes, written, kept) = (Arc::clone(&flushes), Arc::clone(&written), Arc::clone(&kept));
        move || {
            written[me].store(true, Ordering::Relaxed);
            let flush = || {
                // What is there when it begins is on disk when it ends.
                let seen = written.each_ref().map(|written| written.load(Ordering::Relaxed));
                loom::thread::yield_now();
                for (kept, _) in kept.iter().zip(seen).filter(|(_, seen)| *seen) {
                    kept.store(true, Ordering::Relaxed);
                }
                Ok(())
            };
            flushes.share(flush).expect("no flush fails");
            assert!(
                kept[me].load(Ordering::Relaxed),
                "{me} returned before a flush had ended that covers it"
            );
        }
    };
    together(vec![Box::new(client(1)), Box::new(client(2))], client(0));
    let (asked, begun) = flushes.counts();
    assert!(asked == 3 && begun <= 3);
}
