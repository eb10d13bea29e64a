//! Several threads for work that has many equal parts, such as a batch of queries.
//!
//! Helpers are started for the work and end with it, which takes some ten microseconds for each: they are for
//! work of milliseconds. All who have such work share a fixed number of helpers. Who finds none idle works alone;
//! nobody waits for one.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{Builder, scope};

use crate::Result;

/// A number of helpers.
#[derive(Debug)]
pub struct Crew {
    idle: AtomicUsize,
    helped: AtomicU64,
}

/// The parts of some work that nobody has begun.
#[derive(Debug)]
pub struct Parts {
    next: AtomicUsize,
    count: usize,
}

/// Helpers that were taken, and are idle again when this drops.
struct Taken<'a> {
    crew: &'a Crew,
    helpers: usize,
}

impl Parts {
    /// The numbers, from 0, of parts that are the caller's as they come; until all were begun, or one has failed.
    pub fn take(&self) -> impl Iterator<Item = usize> {
        let next = || Some(self.next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(next).take_while(|&number| number < self.count)
    }

    fn stop(&self) {
        self.next.store(self.count, Ordering::Relaxed);
    }
}

impl Crew {
    /// So many helpers, at most, at one time.
    #[must_use]
    pub fn new(helpers: usize) -> Self {
        Self { idle: AtomicUsize::new(helpers), helped: AtomicU64::new(0) }
    }

    /// Has `count` parts done by this thread and up to `helpers` others, and returns what came of them in the order of their
    /// numbers. Each thread calls `work` once, which takes parts until there are none, and returns them with their
    /// numbers.
    ///
    /// # Errors
    ///
    /// Those of `work`; the other threads end after the part that they are at.
    ///
    /// # Panics
    ///
    /// As `work` does.
    pub fn share<T: Send>(
        &self,
        count: usize,
        helpers: usize,
        work: impl Fn(&Parts) -> Result<Vec<(usize, T)>> + Sync,
    ) -> Result<Vec<T>> {
        let parts = Parts { next: AtomicUsize::new(0), count };
        let taken = self.take(helpers.min(count.saturating_sub(1)));
        let done = if taken.helpers == 0 { work(&parts)? } else { together(taken.helpers, &parts, &work)? };
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }

    /// How often a helper was taken.
    #[must_use]
    pub fn helped(&self) -> u64 {
        self.helped.load(Ordering::Relaxed)
    }

    fn take(&self, most: usize) -> Taken<'_> {
        let take = |idle: usize| Some(idle - idle.min(most));
        let before = self.idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let helpers = before.map_or(0, |idle| idle.min(most));
        self.helped.fetch_add(helpers as u64, Ordering::Relaxed);
        Taken { crew: self, helpers }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.crew.idle.fetch_add(self.helpers, Ordering::Relaxed);
    }
}

/// Apart from work that has no helpers, which does not pay for this frame.
#[inline(never)]
fn together<T: Send>(
    helpers: usize,
    parts: &Parts,
    work: &(impl Fn(&Parts) -> Result<Vec<(usize, T)>> + Sync),
) -> Result<Vec<(usize, T)>> {
    let work = || work(parts).inspect_err(|_| parts.stop());
    let mut done = scope(|scope| {
        let start = |_| Builder::new().name("vexfs-helper".into()).spawn_scoped(scope, work).ok();
        // A thread that cannot be started is one that does not help.
        let threads: Vec<_> = (0..helpers).filter_map(start).collect();
        let mut done = work();
        for thread in threads {
            let helped = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            done = done.and_then(|mut done| {
                done.extend(helped?);
                Ok(done)
            });
        }
        done
    })?;
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::thread::{ThreadId, current};

    use super::*;
    use crate::Error;

    /// Takes all parts that it can, and says which thread did each.
    fn take_all(parts: &Parts) -> Result<Vec<(usize, (usize, ThreadId))>> {
        Ok(parts.take().map(|number| (number, (number, current().id()))).collect())
    }

    #[test]
    fn each_part_is_done_once_and_comes_back_in_order() {
        let crew = Crew::new(3);
        for count in [0, 1, 2, 1000] {
            let done = crew.share(count, 3, take_all).unwrap();
            assert!(done.iter().map(|(number, _)| *number).eq(0..count));
        }
        assert_eq!(crew.idle.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn helpers_work_beside_the_caller_and_no_more_than_there_are() {
        let crew = Crew::new(2);
        // Each of three waits for the others: fewer would never end.
        let all = Barrier::new(3);
        let threads = crew
            .share(3, 5, |parts| {
                all.wait();
                let inner = crew.share(1, 5, take_all)?;
                assert_eq!(inner[0].1, current().id(), "there is no helper left");
                let number = parts.take().next().unwrap();
                Ok(vec![(number, current().id())])
            })
            .unwrap();
        assert!(threads[0] != threads[1] && threads[1] != threads[2] && threads[0] != threads[2]);
        assert!(threads.contains(&current().id()));
    }

    #[test]
    fn one_alone_works_on_its_own_thread() {
        let done = Crew::new(0).share(2, 5, take_all).unwrap();
        assert!(done.iter().all(|(_, thread)| *thread == current().id()));
    }

    #[test]
    fn an_error_ends_the_work_and_the_helpers_are_idle_again() {
        let crew = Crew::new(1);
        let error = crew.share::<()>(1_000_000, 1, |parts| {
            for number in parts.take() {
                if number == 5 {
                    return Err(Error::Busy);
                }
            }
            Ok(Vec::new())
        });
        assert!(matches!(error, Err(Error::Busy)));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            crew.share::<()>(2, 1, |_| {
                if current().name() == Some("vexfs-helper") { panic!() } else { Ok(Vec::new()) }
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(crew.idle.load(Ordering::Relaxed), 1);
    }
}
