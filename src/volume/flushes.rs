//! Group commit: those who wait for the disk at the same time share a flush.
//!
//! One flush is under way at a time. Who comes while one is under way cannot rely on it, because it may have begun
//! before his change: all who come meanwhile wait for the next one together, and one of them runs it.

use crate::Result;
use crate::sync::{Condvar, Mutex};

/// Flushes of a volume, one after the other.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_running: bool,
    begun: u64,
    ended: u64,
    asked: u64,
}

/// Ends the flush under way, also when it panics: others must not wait for it.
struct Running<'a>(&'a Flushes);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.is_running = false;
        state.ended = state.begun;
        drop(state);
        self.0.ended.notify_all();
    }
}

impl Flushes {
    /// Returns when a flush has ended that began after this call. The result is that of `flush` if it was run here, and
    /// `Ok` if somebody else ran his: then the caller asks whether it failed.
    pub(super) fn share(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = self.state.lock();
        state.asked += 1;
        let awaited = state.begun + 1;
        loop {
            if state.ended >= awaited {
                return Ok(());
            }
            if !state.is_running {
                break;
            }
            self.ended.wait(&mut state);
        }
        state.is_running = true;
        state.begun += 1;
        drop(state);
        let _running = Running(self);
        flush()
    }

    /// How often somebody asked for a flush, and how many there were.
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.asked, state.begun)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn who_comes_during_a_flush_shares_the_next_one() {
        const OTHERS: u64 = 8;
        let (flushes, run) = (&Flushes::default(), &AtomicU64::new(0));
        let (begun_tx, begun) = channel();
        let (go, go_rx) = channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                flushes.share(|| {
                    begun_tx.send(()).unwrap();
                    go_rx.recv().unwrap();
                    Ok(())
                })
            });
            begun.recv().unwrap();
            let others: Vec<_> = (0..OTHERS)
                .map(|_| {
                    scope.spawn(move || {
                        flushes.share(|| {
                            run.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                    })
                })
                .collect();
            let deadline = Instant::now() + Duration::from_secs(60);
            while flushes.counts().0 < OTHERS + 1 {
                assert!(Instant::now() < deadline, "{:?}", flushes.counts());
                std::thread::yield_now();
            }
            // The flush under way is not theirs.
            assert!(others.iter().all(|other| !other.is_finished()));
            go.send(()).unwrap();
            others.into_iter().for_each(|other| other.join().unwrap().unwrap());
        });
        assert_eq!(run.load(Ordering::SeqCst), 1);
        assert_eq!(flushes.counts(), (OTHERS + 1, 2));
    }

    #[test]
    fn a_flush_that_fails_or_panics_leaves_nobody_waiting() {
        let flushes = Flushes::default();
        assert!(flushes.share(|| Err(crate::Error::NoSpace)).is_err());
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| flushes.share(|| panic!("on purpose"))));
        assert!(panicked.is_err());
        assert!(flushes.share(|| Ok(())).is_ok());
        assert_eq!(flushes.counts(), (3, 3));
    }
}
