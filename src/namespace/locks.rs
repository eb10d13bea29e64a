//! Exclusive use of inodes: a fixed number of stripes, each the lock of every inode that falls on it.

use parking_lot::{Mutex, MutexGuard};

use super::Ino;

/// Number of stripes. Inode numbers are handed out in sequence, so neighbours never share one.
const STRIPES: u64 = 1024;

/// The stripes, and the lock that orders moves of directories.
pub(super) struct Locks {
    stripes: Vec<Mutex<()>>,
    ancestry: Mutex<()>,
}

/// Exclusive use of some inodes, until dropped.
#[derive(Debug)]
pub struct InodeGuard<'a> {
    _stripes: Vec<MutexGuard<'a, ()>>,
}

/// While it lives no directory gets another parent, so that an ancestor check stays true.
#[derive(Debug)]
pub struct AncestryGuard<'a> {
    _ancestry: MutexGuard<'a, ()>,
}

impl std::fmt::Debug for Locks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Locks").finish_non_exhaustive()
    }
}

impl Locks {
    pub(super) fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(), ancestry: Mutex::new(()) }
    }

    /// Stripes are taken in ascending order, each once, so two callers never wait for each other.
    pub(super) fn lock(&self, inos: &[Ino]) -> InodeGuard<'_> {
        let mut stripes: Vec<u64> = inos.iter().map(|ino| ino.0 % STRIPES).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let guards = stripes
            .into_iter()
            .map(|stripe| {
                let index = usize::try_from(stripe).expect("a stripe is below 1024");
                self.stripes[index].lock()
            })
            .collect();
        InodeGuard { _stripes: guards }
    }

    /// Every stripe, in the same order.
    pub(super) fn lock_all(&self) -> InodeGuard<'_> {
        InodeGuard { _stripes: self.stripes.iter().map(Mutex::lock).collect() }
    }

    /// Taken before any stripe.
    pub(super) fn lock_ancestry(&self) -> AncestryGuard<'_> {
        AncestryGuard { _ancestry: self.ancestry.lock() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_on_one_stripe_are_locked_together_without_deadlock() {
        let locks = Locks::new();
        let guard = locks.lock(&[Ino(3), Ino(3), Ino(3 + STRIPES)]);
        assert!(locks.stripes[3].try_lock().is_none());
        assert!(locks.stripes[4].try_lock().is_some());
        drop(guard);
        assert!(locks.stripes[3].try_lock().is_some());
    }

    #[test]
    fn opposite_orders_do_not_deadlock() {
        let locks = Locks::new();
        std::thread::scope(|scope| {
            for order in [[Ino(1), Ino(2)], [Ino(2), Ino(1)]] {
                let locks = &locks;
                scope.spawn(move || {
                    for _ in 0..2000 {
                        drop(locks.lock(&order));
                    }
                });
            }
        });
    }
}
