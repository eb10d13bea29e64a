//! Threads for what may take long, so that the workers that answer `stat` never wait for it.
//!
//! A pool knows nothing of what it runs. Its queue may have an end, and a job that finds it full is told so at once
//! instead of waiting.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, unbounded};

/// Searches that may wait for each thread.
const QUEUE_PER_THREAD: usize = 64;

/// Threads that settle large files. More would wait for the same disk and take more of the cores from searches.
const SETTLING: usize = 2;

/// What a job is told when its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Do the work.
    Run,
    /// The queue is full: answer without doing it.
    Refused,
}

/// Something to do and to answer.
pub(super) type Job = Box<dyn FnOnce(Turn) + Send>;

/// A fixed number of threads behind a queue.
#[derive(Debug)]
pub(super) struct JobPool {
    /// Empty once the pool was stopped.
    queue: Option<Sender<Job>>,
    /// Each thread holds a sender of it, and says by dropping it that it ended.
    ended: Receiver<()>,
}

impl JobPool {
    /// For searches: one thread for each core the process may use, and at least 2. What does not fit into the queue is
    /// refused.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub(super) fn for_searches() -> std::io::Result<Self> {
        Self::searching(thread::available_parallelism().map_or(2, |cores| cores.get().max(2)))
    }

    fn searching(threads: usize) -> std::io::Result<Self> {
        Self::start("search", threads, bounded(threads * QUEUE_PER_THREAD))
    }

    /// For large files that are settled: nothing is refused, because the end of a handle comes once. A request waits
    /// here for each that a process, or the end of a handle, has under way.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn for_settling() -> std::io::Result<Self> {
        Self::start("settle", SETTLING, unbounded())
    }

    fn start(
        name: &str,
        threads: usize,
        (queue, jobs): (Sender<Job>, Receiver<Job>),
    ) -> std::io::Result<Self> {
        let (alive, ended) = bounded::<()>(0);
        for number in 0..threads {
            let (jobs, alive) = (jobs.clone(), alive.clone());
            thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                for job in jobs {
                    job(Turn::Run);
                }
                drop(alive);
            })?;
        }
        Ok(Self { queue: Some(queue), ended })
    }

    /// Puts a job into the queue. When that is full, or the pool was stopped, the job is refused on this thread.
    pub(super) fn submit(&self, job: Job) {
        let Some(queue) = &self.queue else {
            return job(Turn::Refused);
        };
        match queue.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job(Turn::Refused),
        }
    }

    /// Takes no more jobs and waits up to `grace` for those it has. Says whether all of them ended.
    pub(super) fn stop(&mut self, grace: Duration) -> bool {
        drop(self.queue.take());
        let deadline = Instant::now() + grace;
        // Nothing is ever sent: the channel closes when the last thread has dropped its end.
        self.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_on_several_threads_at_once() {
        let pool = JobPool::searching(2).unwrap();
        // Each job waits for the other: one thread alone would never end.
        let (first, second) = (bounded::<()>(0), bounded::<()>(0));
        let (done, results) = bounded(2);
        for (to, from) in [(first.0, second.1), (second.0, first.1)] {
            let done = done.clone();
            pool.submit(Box::new(move |turn| {
                crossbeam::channel::select! {
                    send(to, ()) -> sent => { sent.unwrap(); from.recv().ok(); }
                    recv(from) -> got => { got.unwrap(); }
                }
                drop(to);
                done.send(turn).unwrap();
            }));
        }
        for _ in 0..2 {
            assert_eq!(results.recv_timeout(Duration::from_secs(10)), Ok(Turn::Run));
        }
    }

    #[test]
    fn a_full_queue_refuses_at_once_on_the_callers_thread() {
        let mut pool = JobPool::searching(1).unwrap();
        let (release, blocked) = bounded::<()>(0);
        let (started, running) = bounded(1);
        pool.submit(Box::new(move |_| {
            started.send(()).unwrap();
            blocked.recv().unwrap_err();
        }));
        running.recv_timeout(Duration::from_secs(10)).unwrap();
        let (done, turns) = bounded(2 * QUEUE_PER_THREAD);
        for _ in 0..=QUEUE_PER_THREAD {
            let done = done.clone();
            pool.submit(Box::new(move |turn| done.send((turn, thread::current().id())).unwrap()));
        }
        assert_eq!(turns.try_recv(), Ok((Turn::Refused, thread::current().id())));
        assert!(turns.try_recv().is_err(), "the others wait");
        drop(release);
        assert!(pool.stop(Duration::from_secs(10)));
        assert_eq!(turns.try_iter().filter(|(turn, _)| *turn == Turn::Run).count(), QUEUE_PER_THREAD);
    }

    #[test]
    fn what_settles_is_never_refused() {
        let mut pool = JobPool::for_settling().unwrap();
        let (done, turns) = unbounded();
        for _ in 0..100 * QUEUE_PER_THREAD {
            let done = done.clone();
            pool.submit(Box::new(move |turn| done.send(turn).unwrap()));
        }
        assert!(pool.stop(Duration::from_secs(60)));
        assert_eq!(turns.try_iter().filter(|turn| *turn == Turn::Run).count(), 100 * QUEUE_PER_THREAD);
    }

    #[test]
    fn stop_waits_no_longer_than_it_is_told() {
        let mut pool = JobPool::searching(1).unwrap();
        let (release, blocked) = bounded::<()>(0);
        pool.submit(Box::new(move |_| {
            blocked.recv().unwrap_err();
        }));
        assert!(!pool.stop(Duration::from_millis(20)));
        let (done, turns) = bounded(1);
        pool.submit(Box::new(move |turn| done.send(turn).unwrap()));
        assert_eq!(turns.recv(), Ok(Turn::Refused));
        drop(release);
        assert!(pool.stop(Duration::from_secs(10)));
    }
}
