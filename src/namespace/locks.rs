//! Exclusive use of inodes: a fixed number of stripes, each the lock of every inode that falls on it.

use parking_lot::{Mutex, MutexGuard};

use super::Ino;

/// Number of stripes. Inode numbers are handed out in sequence, so neighbours never share one.
const STRIPES: u64 = 1024;

/// What an operation locks at most, two names and what they name, is locked without memory from the heap.
const FEW: usize = 4;

/// The stripes, and the lock that orders moves of directories.
pub(super) struct Locks {
    stripes: Vec<Mutex<()>>,
    ancestry: Mutex<()>,
}

/// Exclusive use of some inodes, until dropped.
#[derive(Debug)]
pub struct InodeGuard<'a> {
    few: [Option<MutexGuard<'a, ()>>; FEW],
    many: Vec<MutexGuard<'a, ()>>,
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

    /// Stripes are taken in ascending order, each once, so two callers never wait for each other. Apart: its lists are
    /// not on the stack of what is done with the locks.
    #[inline(never)]
    pub(super) fn lock(&self, inos: &[Ino]) -> InodeGuard<'_> {
        let mut guard = InodeGuard { few: [const { None }; FEW], many: Vec::new() };
        let mut few = [0; FEW];
        let mut many = Vec::new();
        let stripes = if inos.len() <= FEW {
            &mut few[..inos.len()]
        } else {
            many.resize(inos.len(), 0);
            &mut many[..]
        };
        for (stripe, ino) in stripes.iter_mut().zip(inos) {
            *stripe = ino.0 % STRIPES;
        }
        stripes.sort_unstable();
        let mut last = None;
        for (at, &stripe) in stripes.iter().enumerate() {
            if last.replace(stripe) == Some(stripe) {
                continue;
            }
            let index = usize::try_from(stripe).expect("a stripe is below 1024");
            let locked = self.stripes[index].lock();
            match guard.few.get_mut(at) {
                Some(place) => *place = Some(locked),
                None => guard.many.push(locked),
            }
        }
        guard
    }

    /// Locks `ino` for who has locked `first`, if nobody else has it: waiting for it, when its stripe comes before the
    /// other, could be for ever. Whether both are locked now.
    pub(super) fn try_also<'a>(&'a self, guard: &mut InodeGuard<'a>, first: Ino, ino: Ino) -> bool {
        let stripe = ino.0 % STRIPES;
        if first.0 % STRIPES == stripe {
            return true;
        }
        let index = usize::try_from(stripe).expect("a stripe is below 1024");
        let Some(locked) = self.stripes[index].try_lock() else { return false };
        match guard.few.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(locked),
            None => guard.many.push(locked),
        }
        true
    }

    /// Every stripe, in the same order.
    pub(super) fn lock_all(&self) -> InodeGuard<'_> {
        InodeGuard { few: [const { None }; FEW], many: self.stripes.iter().map(Mutex::lock).collect() }
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
    fn another_inode_is_locked_beside_the_first_unless_somebody_has_it() {
        let locks = Locks::new();
        let mut guard = locks.lock(&[Ino(9)]);
        assert!(locks.try_also(&mut guard, Ino(9), Ino(4)));
        assert!(locks.stripes[4].try_lock().is_none());
        assert!(locks.try_also(&mut guard, Ino(9), Ino(9 + STRIPES)), "on the stripe of the first");
        let other = locks.lock(&[Ino(5)]);
        assert!(!locks.try_also(&mut guard, Ino(9), Ino(5)));
        drop(guard);
        assert!(locks.stripes[9].try_lock().is_some() && locks.stripes[4].try_lock().is_some());
        drop(other);
    }

    #[test]
    fn many_inodes_are_locked_as_few_are() {
        let locks = Locks::new();
        let inos: Vec<Ino> = (0..9).map(|number| Ino(number / 2 * 7)).collect();
        let guard = locks.lock(&inos);
        for stripe in [0, 7, 14, 21, 28] {
            assert!(locks.stripes[stripe].try_lock().is_none(), "{stripe}");
        }
        assert!(locks.stripes[1].try_lock().is_some());
        drop(guard);
        assert!(locks.stripes[28].try_lock().is_some());
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
