//! How long searches took lately, which says where the next is to run: one that is short is answered by the worker
//! that received it, because waking another thread would take a good part of the time that it needs.
//!
//! An expectation may be wrong once: a directory that has grown from few rows to many is searched by a worker before
//! it is known, and the others answer meanwhile.

use std::time::Duration;

use dashmap::DashMap;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::namespace::Ino;

/// The longest search that a worker may be kept from its queue with. A wake-up and its way back take a tenth of it,
/// or all of it on a busy machine.
const SHORT: Duration = Duration::from_micros(400);

/// How long a helper should have work: starting it and waiting for its end takes some ten microseconds.
const WORTH_A_HELPER: Duration = Duration::from_millis(1);

/// Directories that are remembered.
const DIRECTORIES: usize = 1024;

/// One part in so many of what was expected is given up with each search that took less.
const FADE: u32 = 8;

/// Times of searches, by the directory asked.
#[derive(Debug, Default)]
pub(super) struct Pace {
    lately: DashMap<Ino, Duration>,
}

impl Pace {
    /// A search for one vector in `base` took `took`.
    pub(super) fn note(&self, base: Ino, took: Duration) {
        match self.lately.get_mut(&base) {
            // What is slow at times is expected to be slow.
            Some(mut lately) => *lately = took.max(*lately - (*lately).saturating_sub(took) / FADE),
            None => {
                if self.lately.len() >= DIRECTORIES {
                    self.lately.clear();
                }
                self.lately.insert(base, took);
            }
        }
    }

    /// Whether searches for so many vectors in `base` are expected to be short. None is; what is not known is not.
    pub(super) fn is_short(&self, base: Ino, vectors: usize) -> bool {
        vectors == 0 || self.expected(base, vectors).is_some_and(|expected| expected <= SHORT)
    }

    /// How many helpers searches for so many vectors in `base` are worth. What is not known is taken for short.
    pub(super) fn helpers(&self, base: Ino, vectors: usize) -> usize {
        let expected = self.expected(base, vectors).unwrap_or_default();
        usize::try_from(expected.as_nanos() / WORTH_A_HELPER.as_nanos())
            .unwrap_or(usize::MAX)
            .saturating_sub(1)
    }

    fn expected(&self, base: Ino, vectors: usize) -> Option<Duration> {
        let vectors = u32::try_from(vectors).unwrap_or(u32::MAX);
        Some(self.lately.get(&base)?.saturating_mul(vectors))
    }
}

/// CPUs that this thread, and so helpers that it starts, may run on beside the one that it is on: more helpers would only
/// cost. It may have changed since the process began.
#[inline(never)]
pub(super) fn other_cpus() -> usize {
    let Ok(cpus) = sched_getaffinity(Pid::from_raw(0)) else { return usize::MAX };
    (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu).unwrap_or(false)).count().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use nix::sched::sched_setaffinity;

    use super::*;

    const DIR: Ino = Ino(7);

    #[test]
    fn what_is_not_known_is_not_short_and_nothing_is() {
        let pace = Pace::default();
        assert!(pace.is_short(DIR, 0) && !pace.is_short(DIR, 1));
        pace.note(DIR, SHORT / 4);
        assert!(pace.is_short(DIR, 4) && !pace.is_short(DIR, 5) && !pace.is_short(DIR, usize::MAX));
        assert!(!pace.is_short(Ino(8), 1));
    }

    #[test]
    fn a_batch_is_worth_helpers_when_it_takes_milliseconds() {
        let pace = Pace::default();
        assert_eq!(pace.helpers(DIR, 1000), 0);
        pace.note(DIR, Duration::from_micros(25));
        assert_eq!([1, 40, 79, 80, 500].map(|vectors| pace.helpers(DIR, vectors)), [0, 0, 0, 1, 11]);
        assert!(pace.helpers(DIR, usize::MAX) > 1000);
    }

    #[test]
    fn a_thread_on_one_cpu_has_no_other() {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let is_set = |&cpu: &usize| all.is_set(cpu).unwrap();
        let first = (0..CpuSet::count()).find(is_set).unwrap();
        let mut one = CpuSet::new();
        one.set(first).unwrap();
        let alone = std::thread::spawn(move || {
            sched_setaffinity(Pid::from_raw(0), &one).unwrap();
            other_cpus()
        });
        assert_eq!(alone.join().unwrap(), 0);
        assert_eq!(other_cpus(), (0..CpuSet::count()).filter(is_set).count() - 1);
    }

    #[test]
    fn one_long_search_is_remembered_for_a_while() {
        let pace = Pace::default();
        pace.note(DIR, SHORT * 2);
        pace.note(DIR, SHORT / 8);
        assert!(!pace.is_short(DIR, 1));
        for _ in 0..64 {
            pace.note(DIR, SHORT / 8);
        }
        assert!(pace.is_short(DIR, 1));
    }

    #[test]
    fn memory_is_bounded() {
        let pace = Pace::default();
        for number in 0..3 * DIRECTORIES as u64 {
            pace.note(Ino(number), SHORT);
        }
        assert!(pace.lately.len() <= DIRECTORIES);
    }
}
