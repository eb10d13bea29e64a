//! Asks the kernel to forget names of control directories that it has not used for long.
//!
//! The kernel takes the lock of a directory to do so, which whoever looks a name up in it holds until that is answered.
//! So a thread of its own asks, which answers nothing. It ends with the server that it counts for.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded};
use fuser::{INodeNo, Notifier};

use crate::namespace::Ino;
use crate::volume::Views;

/// The way to the thread, which is told a node in the volume whose names are to be counted.
#[derive(Debug)]
pub(super) struct Surplus {
    wake: Sender<Ino>,
    woken: Receiver<Ino>,
}

impl Default for Surplus {
    fn default() -> Self {
        // One that waits is enough: whoever comes later comes again.
        let (wake, woken) = bounded(1);
        Self { wake, woken }
    }
}

impl Surplus {
    /// Something is looked up in `parent`.
    #[inline]
    pub(super) fn look(&self, volume: &Views, parent: INodeNo) {
        let parent = Ino(parent.0);
        if volume.is_crowded(parent) {
            // Full: the thread is at it.
            let _ = self.wake.try_send(parent);
        }
    }

    /// Starts the thread. `surplus` says which names are too many.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(super) fn start(
        &self,
        notifier: Notifier,
        surplus: impl Fn(Ino) -> Vec<(Ino, Vec<u8>)> + Send + 'static,
    ) -> io::Result<()> {
        let woken = self.woken.clone();
        let ask = move || {
            for ino in woken {
                for (parent, name) in surplus(ino) {
                    // It may have forgotten it meanwhile, or be about to end.
                    if let Err(error) = notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(&name)) {
                        tracing::trace!("a name that need not be kept: {error}");
                    }
                }
            }
        };
        thread::Builder::new().name("vexfs-surplus".into()).spawn(ask).map(drop)
    }
}
