//! Keeping what is deep off the stacks of operations.
//!
//! The catalog's engine and the graphs free what nobody reads any more by *epochs* of the process: whoever reads
//! joins them, which takes kilobytes of stack for a thread's first time and for every 128th. [`hold`] joins at the
//! shallow end of an operation, so that nothing below it has to. What is rare and deep, such as opening a snapshot,
//! runs [`aside`], on a stack of its own, while the operation waits.

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::panic::resume_unwind;

use crossbeam::epoch::{Guard, pin};

use crate::Result;

thread_local! {
    static HELD: RefCell<Option<Guard>> = const { RefCell::new(None) };
}

/// This thread's part in the epochs, for one operation. Nothing is freed meanwhile that was given up after it began.
#[derive(Debug)]
pub struct Held {
    /// It ends on the thread on which it began.
    _here: PhantomData<*const ()>,
}

/// Joins the epochs until the value is dropped. It is not nested.
#[must_use]
#[inline(never)]
pub fn hold() -> Held {
    HELD.set(Some(pin()));
    Held { _here: PhantomData }
}

impl Drop for Held {
    fn drop(&mut self) {
        // None while the thread ends.
        drop(HELD.try_with(RefCell::take));
    }
}

/// Leaves the epochs for what is left of the operation, so that the work that follows may free what was given up.
pub fn let_go() {
    drop(HELD.take());
}

/// Runs `work` on a thread of its own and waits for it. For what is rare: starting a thread takes some ten microseconds.
///
/// # Errors
///
/// Those of `work`; an I/O error when no thread can be started.
///
/// # Panics
///
/// As `work` does.
pub fn aside<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("vexfs-aside".into()).spawn_scoped(scope, work)?;
        Ok::<_, io::Error>(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    done?
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::Error;

    fn is_held() -> bool {
        HELD.with_borrow(Option::is_some)
    }

    #[test]
    fn an_operation_holds_until_its_end_or_until_it_lets_go() {
        let held = hold();
        assert!(is_held());
        drop(held);
        assert!(!is_held());
        let held = hold();
        let_go();
        assert!(!is_held());
        drop(held);
    }

    #[test]
    fn what_is_done_aside_is_done_on_a_thread_of_its_own() {
        let _held = hold();
        let (held, thread) = aside(|| Ok((is_held(), std::thread::current().id()))).unwrap();
        assert!(!held && thread != std::thread::current().id());
        assert!(is_held());
    }

    #[test]
    fn errors_and_panics_come_back_to_who_waits() {
        let error = aside::<()>(|| Err(Error::Busy)).unwrap_err();
        assert!(matches!(error, Error::Busy), "{error:?}");
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _held = hold();
            aside::<()>(|| panic!("in the work"))
        }));
        assert!(panicked.is_err() && !is_held());
    }
}
