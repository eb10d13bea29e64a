//! Waiting for a store that its last holder is about to let go of.
//!
//! An unmount takes the mount away at once; the process behind it then makes everything durable and closes the store.
//! `vexfs umount` waits for that, `umount` does not, and what comes next would find the store in use.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::fuse::mounts;

/// How long a process may take to close its store.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time between two looks at the store's lock.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until nobody holds the store. Says whether that came in time.
pub(super) fn wait(store: &Path) -> bool {
    wait_while(|| is_held(store))
}

/// For who is about to open the store: waits for a holder whose mount is not there any more. One that is mounted, or
/// takes too long, is left to the opener, who says who it is.
pub(super) fn wait_for_unmounted(store: &Path) {
    wait_while(|| is_held(store) && !is_mounted(store));
}

fn wait_while(is_held: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while is_held() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// Whether a process holds the store's lock. What cannot be read belongs to somebody else and is not waited for.
fn is_held(store: &Path) -> bool {
    let Ok(lock) = File::open(store.join("lock")) else {
        return false;
    };
    // A shared lock is compatible with others who only look, and goes with the file.
    matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Whether a mount of the store is in the table; yes when that cannot be told.
fn is_mounted(store: &Path) -> bool {
    let (Ok(store), Ok(mounts)) = (store.canonicalize(), mounts::vexfs()) else {
        return true;
    };
    mounts.iter().any(|mount| mount.source.canonicalize().is_ok_and(|source| source == store))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_held_while_its_lock_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()), "no lock file");
        let lock = File::create(dir.path().join("lock")).unwrap();
        assert!(!is_held(dir.path()));
        lock.lock().unwrap();
        assert!(is_held(dir.path()));
        drop(lock);
        assert!(!is_held(dir.path()));
    }

    #[test]
    fn a_holder_without_a_mount_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let lock = File::create(dir.path().join("lock")).unwrap();
        lock.lock().unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait_for_unmounted(dir.path()));
            std::thread::sleep(3 * PAUSE);
            assert!(!waiter.is_finished());
            drop(lock);
            waiter.join().unwrap();
        });
        assert!(wait(dir.path()));
    }
}
