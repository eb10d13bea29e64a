//! Reusable objects on the heap: request contexts, search scratch and byte buffers are taken from here, so that
//! operations neither allocate each time nor put large things on the stack.
//!
//! A pool knows nothing of what it holds. Taking and returning never waits: an empty pool makes a new object, a full
//! one drops what comes back.

pub mod crew;
pub mod lasting;
pub mod shallow;
pub mod stack;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::sync::{ArrayQueue, AtomicU64, Ordering};

/// A bounded lock-free pool. Clones share the same objects.
pub struct Pool<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    idle: ArrayQueue<Box<T>>,
    make: Box<dyn Fn() -> T + Send + Sync>,
    /// Prepares an object that comes back for its next user; one for which it says no is dropped.
    restore: Box<dyn Fn(&mut T) -> bool + Send + Sync>,
    hits: AtomicU64,
    misses: AtomicU64,
    in_use: AtomicU64,
    most_in_use: AtomicU64,
}

/// What a pool has done so far, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Objects that were there when they were wanted.
    pub hits: u64,
    /// Objects that had to be made.
    pub misses: u64,
    /// Objects that are taken.
    pub in_use: u64,
    /// Most objects that were taken at one time.
    pub most_in_use: u64,
    /// Objects that wait to be taken.
    pub idle: u64,
}

impl<T> Pool<T> {
    /// A pool that keeps up to `capacity` (at least 1) idle objects, which come back as their user left them.
    pub fn new(capacity: usize, make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self::with_restore(capacity, make, |_| true)
    }

    /// As [`new`](Self::new); each object that comes back passes through `restore` and is dropped when that
    /// returns false.
    pub fn with_restore(
        capacity: usize,
        make: impl Fn() -> T + Send + Sync + 'static,
        restore: impl Fn(&mut T) -> bool + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            idle: ArrayQueue::new(capacity.max(1)),
            make: Box::new(make),
            restore: Box::new(restore),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            in_use: AtomicU64::new(0),
            most_in_use: AtomicU64::new(0),
        };
        Pool { shared: Arc::new(shared) }
    }

    /// An idle object, or a new one.
    #[must_use]
    pub fn take(&self) -> Pooled<T> {
        let in_use = self.shared.in_use.fetch_add(1, Ordering::Relaxed) + 1;
        self.shared.most_in_use.fetch_max(in_use, Ordering::Relaxed);
        let object = match self.shared.idle.pop() {
            Some(object) => {
                self.shared.hits.fetch_add(1, Ordering::Relaxed);
                object
            }
            None => {
                self.shared.misses.fetch_add(1, Ordering::Relaxed);
                Box::new((self.shared.make)())
            }
        };
        Pooled { object: Some(object), home: Some(Arc::clone(&self.shared)) }
    }

    /// How often [`take`](Self::take) found an idle object.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::Relaxed)
    }

    /// How often [`take`](Self::take) had to make one.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.shared.misses.load(Ordering::Relaxed)
    }

    /// What the pool has done so far.
    #[must_use]
    pub fn used(&self) -> PoolUse {
        PoolUse {
            hits: self.hits(),
            misses: self.misses(),
            in_use: self.shared.in_use.load(Ordering::Relaxed),
            most_in_use: self.shared.most_in_use.load(Ordering::Relaxed),
            idle: self.idle() as u64,
        }
    }

    /// Objects that wait to be taken.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.shared.idle.len()
    }
}

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Pool { shared: Arc::clone(&self.shared) }
    }
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("idle", &self.idle())
            .field("hits", &self.hits())
            .field("misses", &self.misses())
            .finish()
    }
}

/// An object out of a pool; dropping it returns it.
pub struct Pooled<T> {
    /// Empty only while it is being dropped.
    object: Option<Box<T>>,
    /// `None` for an object that no pool would keep.
    home: Option<Arc<Shared<T>>>,
}

impl<T> Deref for Pooled<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.object.as_deref().expect("only drop takes the object out")
    }
}

impl<T> DerefMut for Pooled<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.object.as_deref_mut().expect("only drop takes the object out")
    }
}

impl<T> Drop for Pooled<T> {
    fn drop(&mut self) {
        let (Some(mut object), Some(home)) = (self.object.take(), self.home.take()) else { return };
        home.in_use.fetch_sub(1, Ordering::Relaxed);
        if (home.restore)(&mut object) {
            // A full pool hands the object back, and it is dropped here.
            drop(home.idle.push(object));
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Pooled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Largest class of which as many idle buffers are kept as the pool is told, and how many are kept of larger ones.
const IDLE_ALL_UP_TO: usize = 64 << 10;
const IDLE_LARGE: usize = 4;

/// Byte buffers in five sizes.
#[derive(Debug)]
pub struct BufferPool {
    classes: [Pool<Vec<u8>>; 5],
    oversized: AtomicU64,
    /// Bytes that were asked for, and that the buffers given had room for.
    asked: AtomicU64,
    given: AtomicU64,
}

impl BufferPool {
    /// Capacities of the classes in bytes. The last is the largest read that a kernel sends at once.
    pub const CLASSES: [usize; 5] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20];

    /// A pool that keeps up to `capacity` idle buffers of each class.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let class = |bytes| {
            Pool::with_restore(
                // Idle large ones would be memory that is missed elsewhere.
                if bytes > IDLE_ALL_UP_TO { capacity.min(IDLE_LARGE) } else { capacity },
                move || Vec::with_capacity(bytes),
                move |buffer: &mut Vec<u8>| {
                    buffer.clear();
                    // A buffer that grew, or whose memory was moved out, no longer belongs to its class.
                    (bytes..2 * bytes).contains(&buffer.capacity())
                },
            )
        };
        BufferPool {
            classes: Self::CLASSES.map(class),
            oversized: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            given: AtomicU64::new(0),
        }
    }

    /// An empty buffer with room for at least `bytes`. Above the largest class it is made for this use, and freed
    /// after it.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Pooled<Vec<u8>> {
        self.asked.fetch_add(bytes as u64, Ordering::Relaxed);
        for (class, size) in self.classes.iter().zip(Self::CLASSES) {
            if bytes <= size {
                self.given.fetch_add(size as u64, Ordering::Relaxed);
                return class.take();
            }
        }
        self.given.fetch_add(bytes as u64, Ordering::Relaxed);
        self.oversized.fetch_add(1, Ordering::Relaxed);
        Pooled { object: Some(Box::new(Vec::with_capacity(bytes))), home: None }
    }

    /// What each class has done so far, by its capacity.
    pub fn used(&self) -> impl Iterator<Item = (usize, PoolUse)> + '_ {
        Self::CLASSES.into_iter().zip(&self.classes).map(|(size, class)| (size, class.used()))
    }

    /// Buffers that were made for one use, being larger than the largest class.
    #[must_use]
    pub fn oversized(&self) -> u64 {
        self.oversized.load(Ordering::Relaxed)
    }

    /// The part of all buffers' room that nobody asked for: their classes are larger than what they are used for.
    #[must_use]
    pub fn fragmentation(&self) -> f64 {
        let (asked, given) = (self.asked.load(Ordering::Relaxed), self.given.load(Ordering::Relaxed));
        if given == 0 { 0.0 } else { 1.0 - asked as f64 / given as f64 }
    }

    /// How often [`take`](Self::take) found an idle buffer.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.classes.iter().map(Pool::hits).sum()
    }

    /// How often [`take`](Self::take) had to allocate one, also for being larger than the largest class.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.classes.iter().map(Pool::misses).sum::<u64>() + self.oversized.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_object_is_taken_again() {
        let pool = Pool::new(4, || vec![0u32; 8]);
        let mut first = pool.take();
        first[0] = 7;
        drop(first);
        assert_eq!(pool.take()[0], 7);
        assert_eq!((pool.hits(), pool.misses()), (1, 1));
    }

    #[test]
    fn a_full_pool_drops_what_comes_back() {
        let pool = Pool::new(2, String::new);
        let taken: Vec<_> = (0..5).map(|_| pool.take()).collect();
        drop(taken);
        assert_eq!((pool.idle(), pool.misses()), (2, 5));
    }

    #[test]
    fn restore_decides_what_is_kept() {
        let pool = Pool::with_restore(4, || 1u32, |n| *n < 10);
        *pool.take() = 50;
        assert_eq!(pool.idle(), 0);
        *pool.take() = 5;
        assert_eq!(pool.idle(), 1);
    }

    #[test]
    fn an_object_may_outlive_its_pool_and_cross_threads() {
        let pool = Pool::new(1, || String::from("kept"));
        let object = pool.take();
        drop(pool);
        assert_eq!(std::thread::spawn(move || object.len()).join().unwrap(), 4);
    }

    #[test]
    fn threads_never_share_an_object() {
        let pool = Pool::new(3, || 0u64);
        std::thread::scope(|scope| {
            for id in 1..=3u64 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for round in 0..2000 {
                        let mut object = pool.take();
                        *object = id * 10_000 + round;
                        std::hint::spin_loop();
                        assert_eq!(*object, id * 10_000 + round);
                    }
                });
            }
        });
        assert_eq!(pool.hits() + pool.misses(), 6000);
    }

    #[test]
    fn buffers_come_empty_and_with_the_capacity_of_their_class() {
        let pool = BufferPool::new(2);
        for (bytes, want) in [(0, 1024), (1024, 1024), (1025, 4096), (65_536, 65_536), (2 << 20, 2 << 20)] {
            let mut buffer = pool.take(bytes);
            assert!(buffer.is_empty());
            assert!(buffer.capacity() >= want, "{bytes}: {}", buffer.capacity());
            buffer.resize(bytes, 1);
        }
        assert_eq!((pool.hits(), pool.misses()), (1, 4));
    }

    #[test]
    fn use_is_counted_by_class_and_fragmentation_over_all() {
        let pool = BufferPool::new(2);
        let taken = [pool.take(512), pool.take(512)];
        drop(taken);
        drop(pool.take(1024));
        let (size, first) = pool.used().next().unwrap();
        let expected = PoolUse { hits: 1, misses: 2, in_use: 0, most_in_use: 2, idle: 2 };
        assert_eq!((size, first), (1024, expected));
        assert!((pool.fragmentation() - (1.0 - 2048.0 / 3072.0)).abs() < 1e-9);
        assert_eq!(pool.oversized(), 0);
    }

    #[test]
    fn a_buffer_whose_memory_was_moved_out_is_not_kept() {
        let pool = BufferPool::new(2);
        let moved = std::mem::take(&mut *pool.take(100));
        assert!(moved.capacity() >= 1024);
        assert!(pool.take(100).capacity() >= 1024);
        assert_eq!(pool.hits(), 0);
    }
}
