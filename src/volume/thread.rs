//! A thread that works for a volume, and ends before it or with it.

use std::io;
use std::thread::{self, Builder, JoinHandle};

use parking_lot::Mutex;

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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

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
