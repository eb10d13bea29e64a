//! What a volume may still do: take changes or only show what is there, go on after a failure, end.
//!
//! A failed commit or sync *poisons* it: changes are refused until it is opened anew, because a repeated sync may say
//! OK while the data is gone. [`close`](Volume::close) first has nobody begin what takes long, then refuses changes,
//! and waits for those that are under way.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::Volume;
use crate::{Error, Result};

/// What is written, and why no more than that.
#[derive(Debug)]
pub(super) enum Writes {
    /// What users change, and what the volume does by itself.
    All,
    /// What the volume does by itself.
    Upkeep(String),
    /// Nothing: the store cannot be written.
    Nothing(String),
    /// Nothing: it is a snapshot, whose store and indexer are another volume's.
    Snapshot(String),
}

impl Writes {
    /// Why users may change nothing, if they may not.
    fn refusal(&self) -> Option<&String> {
        match self {
            Writes::All => None,
            Writes::Upkeep(reason) | Writes::Nothing(reason) | Writes::Snapshot(reason) => Some(reason),
        }
    }

    /// Whether not even the volume itself writes anything.
    pub(super) fn is_frozen(&self) -> bool {
        matches!(self, Writes::Nothing(_) | Writes::Snapshot(_))
    }
}

/// How far a volume's life has come.
#[derive(Debug)]
pub(super) struct Life {
    writes: Writes,
    poisoned: OnceLock<String>,
    closing: AtomicBool,
    closed: AtomicBool,
    /// Changes under way.
    active: AtomicUsize,
    /// Held by every change for as long as it takes, and by nobody else but a snapshot that is being taken.
    gate: RwLock<()>,
}

/// A change under way. While it lives no snapshot is taken; it waits for one that is being taken, so nothing is
/// locked while it lives that somebody holds who waits for one of these.
pub(super) struct Active<'a> {
    count: &'a AtomicUsize,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Life {
    pub(super) fn new(writes: Writes) -> Self {
        Self {
            writes,
            poisoned: OnceLock::new(),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            gate: RwLock::new(()),
        }
    }

    /// Whether users may change nothing, from the beginning on.
    pub(super) fn is_read_only(&self) -> bool {
        self.writes.refusal().is_some()
    }

    /// Whether not even the volume itself writes anything.
    pub(super) fn is_frozen(&self) -> bool {
        self.writes.is_frozen()
    }

    pub(super) fn is_snapshot(&self) -> bool {
        matches!(self.writes, Writes::Snapshot(_))
    }

    /// Begins the end; whether nobody had.
    pub(super) fn begin_end(&self) -> bool {
        !self.closing.swap(true, Ordering::SeqCst)
    }

    /// Whether the end has begun: nothing is opened any more that would have to be closed.
    pub(super) fn is_ending(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Refuses changes from here on.
    pub(super) fn end(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Waits for the changes that are under way, but no longer than this.
    pub(super) fn wait_for_changes(&self, longest: Duration) {
        let deadline = Instant::now() + longest;
        while self.active.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the changes that are under way, and holds up others.
    pub(super) fn stop_changes(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write()
    }

    #[cfg(test)]
    pub(super) fn has_changes(&self) -> bool {
        self.gate.try_write().is_none()
    }
}

impl Volume {
    /// Enters a change.
    pub(super) fn active(&self) -> Active<'_> {
        let gate = self.life.gate.read();
        self.life.active.fetch_add(1, Ordering::SeqCst);
        Active { count: &self.life.active, _gate: gate }
    }

    /// Why changes are refused, when they are.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.life.poisoned.get().or(self.life.writes.refusal()).cloned()
    }

    /// Refuses a change when the volume cannot take one.
    ///
    /// # Errors
    ///
    /// `Poisoned` after a failed commit or sync of ground state, `ReadOnly` when the volume is read-only or closed.
    pub(super) fn check_writable(&self) -> Result<()> {
        self.check_poison()?;
        if self.life.is_read_only() || self.life.has_ended() {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }

    /// Remembers the first failure of ground state.
    pub(super) fn poison(&self, what: &str, error: &Error) {
        let reason = format!("{what}: {error}");
        if self.life.poisoned.set(reason).is_ok() {
            tracing::error!("{what} failed, the volume refuses changes until it is reopened: {error}");
        }
    }

    /// Refuses when the volume is poisoned.
    pub(super) fn check_poison(&self) -> Result<()> {
        match self.life.poisoned.get() {
            Some(reason) => Err(Error::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::Ino;
    use crate::volume::OpenFlags;
    use crate::volume::testing::{self, ROOT};

    #[test]
    fn a_poisoned_volume_refuses_changes_and_still_reads() {
        let (_store, volume) = testing::volume();
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        let (_, opened) = volume.create(&ROOT, Ino::ROOT, b"f", 0o644, flags).unwrap();
        volume.write(&ROOT, opened.handle, 0, &[7; 20_000]).unwrap();
        volume.write(&ROOT, opened.handle, 0, b"in place").unwrap();
        volume.poison("sync", &Error::NoSpace);
        volume.poison("sync", &Error::NotFound);
        let is_poisoned = |result: Result<()>| match result {
            Err(Error::Poisoned { reason }) => reason.contains("no space"),
            _ => false,
        };
        assert!(is_poisoned(volume.write(&ROOT, opened.handle, 0, b"x").map(|_| ())));
        assert!(is_poisoned(volume.mkdir(&ROOT, Ino::ROOT, b"d", 0o755).map(|_| ())));
        assert!(is_poisoned(volume.unlink(&ROOT, Ino::ROOT, b"f")));
        assert!(is_poisoned(volume.fsync(opened.handle, false)));
        assert!(is_poisoned(volume.sync()));
        let mut bytes = Vec::new();
        volume.read(&ROOT, opened.handle, 0, 8, &mut bytes).unwrap();
        assert_eq!(bytes, b"in place");
        assert!(is_poisoned(volume.release(opened.handle)));
        assert!(is_poisoned(volume.close()));
    }
}
