//! A thread that works for a volume, and ends before it or with it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, Builder, JoinHandle};

use parking_lot::Mutex;

use crate::metrics::Metrics;

/// The thread, once it was started.
#[derive(Debug, Default)]
pub(super) struct Thread(Mutex<Option<JoinHandle<()>>>);

impl Thread {
    /// Starts it, in the place of one that has ended.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(super) fn start(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        *self.0.lock() = Some(Builder::new().name(name.to_owned()).spawn(work)?);
        Ok(())
    }

    pub(super) fn is_running(&self) -> bool {
        self.0.lock().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for its end, which somebody has told it. It may be the caller itself, when it is what drops the volume:
    /// then there is nothing to wait for.
    pub(super) fn join(&self) {
        let thread = self.0.lock().take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!("the thread {name} ended in a panic");
            }
        }
    }
}

/// Does a piece of work of a thread that goes on when that panics: it is counted and logged, and `None`.
pub(super) fn outlive<T>(metrics: &Metrics, what: &str, work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.inspect_err(|_| {
        metrics.panic();
        tracing::error!("{what}: panic; what it was about is tried again");
    })
    .ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_panic_is_counted_and_the_thread_goes_on() {
        let metrics = Metrics::default();
        assert_eq!(outlive(&metrics, "test", || panic!("on purpose")), None::<()>);
        assert_eq!(outlive(&metrics, "test", || 7), Some(7));
        assert_eq!(metrics.panics(), 1);
    }

    #[test]
    fn it_is_waited_for_once_and_not_by_itself() {
        let thread = Arc::new(Thread::default());
        thread.join();
        let own = Arc::clone(&thread);
        let (told, tell) = crossbeam::channel::bounded::<()>(0);
        thread
            .start("test", move || {
                let _ = tell.recv();
                own.join();
            })
            .unwrap();
        assert!(thread.is_running());
        drop(told);
        thread.join();
        assert!(!thread.is_running());
        thread.start("test", || panic!("on purpose")).unwrap();
        thread.join();
        assert!(!thread.is_running());
    }
}
