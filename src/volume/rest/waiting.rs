//! The list of what waits to come to rest, or to be compared, and how fast that goes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::AFTER;
use crate::namespace::Ino;
use crate::store::BlobId;

/// After a file as many times as long as it took is waited: it may be syncs of the disk that take it.
const IDLE_SHARE: u32 = 3;

/// But not longer: a large file is read slowly anyway.
const IDLE_MAX: Duration = Duration::from_millis(250);

/// Files that wait. Those beyond are found by a pass.
const MOST: usize = 1 << 16;

/// What there is to do.
pub(super) enum Task {
    /// A file that was closed then comes to rest.
    Rest(Ino, Instant),
    /// A blob at rest is compared.
    Compare(Ino, BlobId),
    /// The pass over all inodes goes on behind this one.
    Pass(Ino),
    /// Nothing, until then.
    Wait(Option<Instant>),
    /// Nothing any more.
    End,
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    list: Mutex<List>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct List {
    /// When each file was closed last.
    closed: HashMap<Ino, Instant>,
    /// Each of them once, at the time when it is looked at.
    due: BTreeSet<(Instant, Ino)>,
    /// Large files at rest that somebody has opened.
    asked: VecDeque<(Ino, BlobId)>,
    /// When the pass goes on, and behind which inode.
    pass: Option<(Instant, Ino)>,
    stopped: bool,
}

impl List {
    /// When the first of what has a time is due.
    fn earliest(&self) -> Option<Instant> {
        let times = [self.due.first().map(|(due, _)| *due), self.pass.map(|(due, _)| due)];
        times.into_iter().flatten().min()
    }
}

impl Waiting {
    /// A file that was written is closed.
    pub(super) fn note_closed(&self, ino: Ino) {
        let now = Instant::now();
        let mut list = self.list.lock();
        if list.closed.len() >= MOST && !list.closed.contains_key(&ino) {
            list.pass = Some((now + AFTER, Ino(0)));
        } else if list.closed.insert(ino, now).is_none() {
            list.due.insert((now + AFTER, ino));
            self.changed.notify_all();
        }
    }

    /// Somebody reads a large file that is at rest and was not compared yet.
    pub(super) fn ask(&self, ino: Ino, id: BlobId) {
        let mut list = self.list.lock();
        if list.asked.len() < MOST && !list.asked.contains(&(ino, id)) {
            list.asked.push_back((ino, id));
            self.changed.notify_all();
        }
    }

    /// The pass goes on then and there, or is at its end.
    pub(super) fn set_pass(&self, pass: Option<(Instant, Ino)>) {
        self.list.lock().pass = pass;
    }

    /// Ends every wait for good.
    pub(super) fn stop(&self) {
        self.list.lock().stopped = true;
        self.changed.notify_all();
    }

    /// The files that wait after their last close.
    pub(super) fn closed(&self) -> Vec<Ino> {
        self.list.lock().closed.keys().copied().collect()
    }

    pub(super) fn has(&self, ino: Ino) -> bool {
        self.list.lock().closed.contains_key(&ino)
    }

    /// What is due. It is off the list.
    pub(super) fn next(&self) -> Task {
        let mut list = self.list.lock();
        if list.stopped {
            return Task::End;
        }
        if let Some((ino, id)) = list.asked.pop_front() {
            return Task::Compare(ino, id);
        }
        let now = Instant::now();
        match (list.due.first().copied(), list.pass) {
            (Some((due, ino)), _) if due <= now => {
                list.due.remove(&(due, ino));
                let closed = list.closed.remove(&ino).unwrap_or(due);
                Task::Rest(ino, closed)
            }
            (_, Some((due, after))) if due <= now => Task::Pass(after),
            _ => Task::Wait(list.earliest()),
        }
    }

    /// A file that was closed then is looked at again after a while.
    pub(super) fn again(&self, ino: Ino, closed: Instant, wait: Duration) {
        let mut list = self.list.lock();
        if let Entry::Vacant(entry) = list.closed.entry(ino) {
            entry.insert(closed);
            list.due.insert((Instant::now() + wait, ino));
        }
    }

    /// Waits until something changes, at most until `until`, as [`Task::Wait`] said it. What has changed since then is
    /// not waited past.
    pub(super) fn wait(&self, until: Option<Instant>) {
        let mut list = self.list.lock();
        if list.stopped || !list.asked.is_empty() || list.earliest() != until {
            return;
        }
        match until {
            Some(until) => drop(self.changed.wait_until(&mut list, until)),
            None => self.changed.wait(&mut list),
        }
    }

    /// Waits for a while; whether to go on.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut list = self.list.lock();
        while !list.stopped && !self.changed.wait_until(&mut list, until).timed_out() {}
        !list.stopped
    }

    /// Waits until `bytes` may have been read since `begun`; whether to go on.
    pub(super) fn keep_to(&self, rate: u64, begun: Instant, bytes: u64) -> bool {
        let due = Duration::from_millis(bytes.saturating_mul(1000) / rate);
        self.pause(due.saturating_sub(begun.elapsed()))
    }

    /// Leaves the disk to others; whether to go on.
    pub(super) fn idle_after(&self, begun: Instant) -> bool {
        self.pause((begun.elapsed() * IDLE_SHARE).min(IDLE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_closed_again_waits_once_and_from_then_on() {
        let waiting = Waiting::default();
        waiting.note_closed(Ino(5));
        let first = waiting.list.lock().closed[&Ino(5)];
        waiting.note_closed(Ino(5));
        waiting.again(Ino(5), first, Duration::ZERO);
        let list = waiting.list.lock();
        assert!(list.due.len() == 1 && list.closed[&Ino(5)] > first);
    }

    #[test]
    fn what_is_due_comes_in_order_and_what_somebody_waits_for_first() {
        let waiting = Waiting::default();
        let then = Instant::now();
        waiting.again(Ino(6), then, Duration::ZERO);
        waiting.again(Ino(5), then, Duration::ZERO);
        waiting.set_pass(Some((then, Ino(0))));
        waiting.ask(Ino(7), BlobId(1));
        waiting.ask(Ino(7), BlobId(1));
        assert!(matches!(waiting.next(), Task::Compare(Ino(7), BlobId(1))));
        assert!(matches!(waiting.next(), Task::Rest(Ino(6), _)));
        assert!(matches!(waiting.next(), Task::Rest(Ino(5), _)));
        assert!(matches!(waiting.next(), Task::Pass(Ino(0))));
        waiting.set_pass(None);
        assert!(matches!(waiting.next(), Task::Wait(None)));
        waiting.stop();
        assert!(matches!(waiting.next(), Task::End));
        assert!(!waiting.pause(Duration::from_secs(60)));
    }

    #[test]
    fn what_comes_between_the_look_and_the_wait_is_not_waited_past() {
        let waiting = Waiting::default();
        let Task::Wait(until) = waiting.next() else { panic!("there is nothing to do") };
        waiting.again(Ino(5), Instant::now(), Duration::ZERO);
        let (waited, ended) = crossbeam::channel::bounded::<()>(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                waiting.wait(until);
                drop(waited);
            });
            let end = ended.recv_timeout(Duration::from_secs(20));
            waiting.stop();
            assert_eq!(end, Err(crossbeam::channel::RecvTimeoutError::Disconnected), "it waits for ever");
        });
    }

    #[test]
    fn what_does_not_fit_is_left_to_a_pass() {
        let waiting = Waiting::default();
        (0..=MOST as u64).for_each(|number| waiting.note_closed(Ino(number)));
        let list = waiting.list.lock();
        assert!(list.closed.len() == MOST && list.pass.is_some());
    }
}
