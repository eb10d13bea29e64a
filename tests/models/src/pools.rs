//! Models of a pool: objects that are taken and come back from several threads at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as Counter, Ordering};

use loom::cell::UnsafeCell;

use crate::Model;
use crate::pool::Pool;
use crate::sync::{Kind, together};

const HANDED_ON: &[(Kind, &str)] =
    &[(Kind::Acquire, "match self.shared.idle.pop()"), (Kind::Release, "drop(home.idle.push(object))")];

pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "an object of a pool has one user and comes back restored (two threads, one kept)",
        preemptions: Some(3),
        notices: HANDED_ON,
        run: taken_by_many::<1, 1>,
    },
    Model {
        name: "an object of a pool has one user and comes back restored (two threads, two kept)",
        preemptions: Some(3),
        notices: HANDED_ON,
        run: taken_by_many::<1, 2>,
    },
    Model {
        name: "an object of a pool has one user and comes back restored (three threads, two kept)",
        preemptions: Some(1),
        notices: HANDED_ON,
        run: taken_by_many::<2, 2>,
    },
];

/// How often a thread takes an object. The second one it leaves in a state in which nobody wants it.
const TAKES: u64 = 2;

/// What a pool holds: who uses it, and how many of its kind are gone. Loom looks who can have touched it at one time.
struct Object {
    user: UnsafeCell<u64>,
    is_spoilt: bool,
    dropped: Arc<Counter>,
}

impl Drop for Object {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Object {
    fn user(&self) -> u64 {
        // SAFETY: threads of a model take turns.
        self.user.with(|user| unsafe { *user })
    }

    fn set_user(&mut self, user: u64) {
        // SAFETY: as above.
        self.user.with_mut(|place| unsafe { *place = user });
    }
}

fn work(pool: &Pool<Object>, me: u64) {
    for take in 1..=TAKES {
        let mut object = pool.take();
        assert!(object.user() == 0 && !object.is_spoilt, "it is as one that was just made");
        object.set_user(me);
        loom::thread::yield_now();
        assert_eq!(object.user(), me, "two have the same");
        object.is_spoilt = take == TAKES;
    }
}

fn taken_by_many<const OTHERS: u64, const KEPT: usize>() {
    let (made, dropped) = (Arc::new(Counter::new(0)), Arc::new(Counter::new(0)));
    let (counted, told) = (Arc::clone(&made), Arc::clone(&dropped));
    let make = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Object { user: UnsafeCell::new(0), is_spoilt: false, dropped: Arc::clone(&told) }
    };
    let restore = |object: &mut Object| {
        object.set_user(0);
        !object.is_spoilt
    };
    let pool = Pool::with_restore(KEPT, make, restore);
    let others = (0..OTHERS).map(|number| {
        let pool = pool.clone();
        Box::new(move || work(&pool, number + 2)) as Box<dyn FnOnce()>
    });
    together(others.collect(), || work(&pool, 1));
    let used = pool.used();
    let (made, dropped) = (made.load(Ordering::Relaxed), dropped.load(Ordering::Relaxed));
    assert_eq!((used.hits + used.misses, used.misses), (TAKES * (OTHERS + 1), made), "{used:?}");
    assert!(used.in_use == 0 && (1..=OTHERS + 1).contains(&used.most_in_use), "{used:?}");
    assert!(
        used.idle <= KEPT as u64 && used.idle == made - dropped,
        "{used:?}, {made} made, {dropped} dropped"
    );
}
