//! Stands in for the package's `sync`: the same names, run by loom.
//!
//! An atomic here is its value and nothing else, as it is in the package, so it may lie in any memory. What loom knows
//! of it is found by its address, from the moment on that threads run ([`together`]). Before that and after, one
//! thread is alone, and the values are read and written as they are.
//!
//! A run can be told to do one thing less than the source says: see [`Fault`]. A model that does not notice is none.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::Arc;
pub(crate) use std::sync::atomic::Ordering;

use loom::sync::atomic as model;

/// Something that a run leaves out, at one place of the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) file: String,
    pub(crate) line: u32,
    column: u32,
}

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A load does not acquire.
    Acquire,
    /// A store does not release.
    Release,
    /// What is put off until everybody is gone is done at once.
    Guard,
}

impl Fault {
    fn at(kind: Kind, place: &'static Location<'static>) -> Self {
        Self { kind, file: place.file().to_owned(), line: place.line(), column: place.column() }
    }

    /// The reverse of showing it.
    pub(crate) fn parse(shown: &str) -> Option<Self> {
        let (kind, place) = shown.split_once(" of ")?;
        let kind = [Kind::Acquire, Kind::Release, Kind::Guard]
            .into_iter()
            .find(|known| format!("{known:?}") == kind)?;
        let mut parts = place.rsplitn(3, ':');
        let (column, line) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { kind, file: parts.next()?.to_owned(), line, column })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}:{}:{}", self.kind, self.file, self.line, self.column)
    }
}

#[derive(Default)]
struct Known {
    atomics: HashMap<usize, Box<Modelled>>,
    /// Loom has an atomic, and a cell, begin with a write of whoever makes it, which others must have seen: so these
    /// were made before there were others.
    new_atomics: Vec<model::AtomicU64>,
    new_bytes: Vec<loom::cell::UnsafeCell<()>>,
    locks: HashMap<usize, &'static loom::sync::RwLock<()>>,
    mutexes: HashMap<usize, &'static loom::sync::Mutex<()>>,
    bytes: HashMap<usize, Box<loom::cell::UnsafeCell<()>>>,
    condvars: HashMap<usize, &'static loom::sync::Condvar>,
    epoch: Epoch,
}

/// What loom knows of an atomic.
struct Modelled {
    /// What has been added to the first value.
    added: model::AtomicU64,
    first: u64,
    /// How many were met before it.
    number: usize,
    /// Puts a value where the atomic lies.
    put: fn(usize, u64),
}

/// Atomics, and ranges of bytes, that a run may use.
const MOST: usize = 160;

type Work = Box<dyn FnOnce()>;

#[derive(Default)]
struct Epoch {
    next: u64,
    /// Guards that are there.
    held: BTreeSet<u64>,
    /// What is to be done when these guards are gone.
    deferred: Vec<(BTreeSet<u64>, Work)>,
    /// Written by whoever defers and read by whoever pins; written by whoever lets go and read before what was deferred
    /// is done. Nothing else is passed on.
    defers: Atomic<u64>,
    ends: Atomic<u64>,
}

thread_local! {
    // Threads of a model take turns on one thread of the system.
    static KNOWN: RefCell<Known> = RefCell::default();
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    static FAULT: RefCell<Option<Fault>> = const { RefCell::new(None) };
    static MET: RefCell<BTreeSet<Fault>> = const { RefCell::new(BTreeSet::new()) };
}

/// Runs every order of the threads that `model` has run [`together`], and returns how many there were. With `fault`,
/// one thing is left out. Panics when a model does.
pub(crate) fn explore(
    fault: Option<Fault>,
    preemptions: Option<usize>,
    model: impl Fn() + Sync + Send + 'static,
) -> u64 {
    FAULT.with(|chosen| *chosen.borrow_mut() = fault);
    let runs = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = preemptions;
    let counted = Arc::clone(&runs);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        RUNNING.set(false);
        KNOWN.with(|known| *known.borrow_mut() = Known::default());
        model();
    });
    runs.load(Ordering::Relaxed)
}

/// What could be left out, of what runs have met since this was asked last.
pub(crate) fn take_met() -> BTreeSet<Fault> {
    MET.with(std::cell::RefCell::take)
}

/// Runs `others` each on a thread of its own and `first` on this one.
pub(crate) fn together(others: Vec<Box<dyn FnOnce() + 'static>>, first: impl FnOnce()) {
    known(|known| {
        known.new_atomics.resize_with(MOST, || model::AtomicU64::new(0));
        known.new_bytes.resize_with(MOST / 8, || loom::cell::UnsafeCell::new(()));
    });
    RUNNING.set(true);
    let threads: Vec<_> = others.into_iter().map(loom::thread::spawn).collect();
    first();
    for thread in threads {
        thread.join().expect("a thread that panics ends the run");
    }
    RUNNING.set(false);
    let mut atomics: Vec<_> = known(|known| std::mem::take(&mut known.atomics)).into_iter().collect();
    // A run is told by number what each load returns: so always in the same order.
    atomics.sort_unstable_by_key(|(_, modelled)| modelled.number);
    for (place, modelled) in &atomics {
        (modelled.put)(*place, modelled.load(Ordering::Relaxed));
    }
}

/// Puts a value where an atomic lies.
fn put<T: Word>(place: usize, value: u64) {
    let atomic = std::ptr::with_exposed_provenance::<Atomic<T>>(place);
    // SAFETY: an atomic that is dropped is forgotten, so it is there.
    unsafe { &*atomic }.set(T::from(value));
}

/// Whether threads run. Not while a run is being cleared away.
fn is_running() -> bool {
    RUNNING.get() && !std::thread::panicking()
}

fn known<T>(look: impl FnOnce(&mut Known) -> T) -> T {
    KNOWN.with(|known| look(&mut known.borrow_mut()))
}

/// `ordering`, or less of it where that is the fault of this run.
fn ordering(asked: Ordering, at: &'static Location<'static>, loads: bool, stores: bool) -> Ordering {
    let acquires = loads && !matches!(asked, Ordering::Relaxed | Ordering::Release);
    let releases = stores && !matches!(asked, Ordering::Relaxed | Ordering::Acquire);
    if !acquires && !releases {
        return Ordering::Relaxed;
    }
    let is_kept = |kind: Kind| !is_left_out(Fault::at(kind, at));
    match (acquires && is_kept(Kind::Acquire), releases && is_kept(Kind::Release)) {
        (true, true) => Ordering::AcqRel,
        (true, false) => Ordering::Acquire,
        (false, true) => Ordering::Release,
        (false, false) => Ordering::Relaxed,
    }
}

/// Whether this run leaves something out. Notes that it could.
fn is_left_out(fault: Fault) -> bool {
    let is_chosen = FAULT.with(|chosen| chosen.borrow().as_ref() == Some(&fault));
    if is_running() {
        MET.with(|met| met.borrow_mut().insert(fault));
    }
    is_chosen
}

/// A value that an atomic may have.
pub(crate) trait Word: Copy {
    fn to(self) -> u64;
    fn from(word: u64) -> Self;
}

macro_rules! word {
    ($($of:ty),*) => {$(
        impl Word for $of {
            fn to(self) -> u64 {
                self as u64
            }
            fn from(word: u64) -> Self {
                word as Self
            }
        }
    )*};
}

word!(u32, u64, usize);

impl Word for bool {
    fn to(self) -> u64 {
        self.into()
    }
    fn from(word: u64) -> Self {
        word != 0
    }
}

impl<T> Word for *mut T {
    fn to(self) -> u64 {
        self as u64
    }
    fn from(word: u64) -> Self {
        word as Self
    }
}

/// An atomic of any kind.
#[derive(Default)]
#[repr(transparent)]
pub(crate) struct Atomic<T: Word>(UnsafeCell<T>);

pub(crate) type AtomicBool = Atomic<bool>;
pub(crate) type AtomicU32 = Atomic<u32>;
pub(crate) type AtomicU64 = Atomic<u64>;
pub(crate) type AtomicUsize = Atomic<usize>;
pub(crate) type AtomicPtr<T> = Atomic<*mut T>;

// SAFETY: threads of a model take turns on one thread of the system.
unsafe impl<T: Word> Sync for Atomic<T> {}
// SAFETY: as above.
unsafe impl<T: Word> Send for Atomic<T> {}

impl<T: Word> Atomic<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// # Safety
    ///
    /// As those of std.
    pub(crate) unsafe fn from_ptr<'a>(place: *mut T) -> &'a Self {
        // SAFETY: the caller's, and the representation is transparent.
        unsafe { &*place.cast() }
    }

    /// What loom knows of it; nothing while one thread is alone.
    fn model(&self) -> Option<&'static Modelled> {
        is_running().then(|| {
            let place = std::ptr::from_ref(self).addr();
            let modelled = known(|known| {
                let Known { atomics, new_atomics, .. } = known;
                let number = MOST - new_atomics.len();
                let modelled = atomics.entry(place).or_insert_with(|| {
                    let added = new_atomics.pop().expect("there are enough atomics");
                    Box::new(Modelled { added, first: self.value().to(), number, put: put::<T> })
                });
                std::ptr::from_ref::<Modelled>(modelled)
            });
            // SAFETY: it stays in its box until the next run.
            unsafe { &*modelled }
        })
    }

    fn value(&self) -> T {
        // SAFETY: nobody has a reference to the value, and nobody writes it at the moment.
        unsafe { *self.0.get() }
    }

    fn set(&self, value: T) {
        // SAFETY: as above.
        unsafe { *self.0.get() = value }
    }

    #[track_caller]
    pub(crate) fn load(&self, asked: Ordering) -> T {
        let Some(model) = self.model() else { return self.value() };
        T::from(model.load(ordering(asked, Location::caller(), true, false)))
    }

    #[track_caller]
    pub(crate) fn store(&self, value: T, asked: Ordering) {
        let at = Location::caller();
        if let Some(model) = self.model() {
            model.store(value.to(), ordering(asked, at, false, true));
        } else {
            self.set(value);
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        assert!(!is_running(), "only where one thread is alone");
        self.0.get_mut()
    }

    #[track_caller]
    pub(crate) fn swap(&self, value: T, asked: Ordering) -> T {
        let order = ordering(asked, Location::caller(), true, true);
        let Some(model) = self.model() else {
            let before = self.value();
            self.set(value);
            return before;
        };
        T::from(model.swap(value.to(), order))
    }

    #[track_caller]
    pub(crate) fn compare_exchange(
        &self,
        current: T,
        new: T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<T, T> {
        let at = Location::caller();
        let (order, failed) = (ordering(success, at, true, true), ordering(failure, at, true, false));
        let Some(model) = self.model() else {
            let before = self.value();
            if before.to() != current.to() {
                return Err(before);
            }
            self.set(new);
            return Ok(before);
        };
        model.compare_exchange(current.to(), new.to(), order, failed).map(T::from).map_err(T::from)
    }

    #[track_caller]
    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        mut update: impl FnMut(T) -> Option<T>,
    ) -> Result<T, T> {
        let at = Location::caller();
        let (order, fetched) = (ordering(set, at, true, true), ordering(fetch, at, true, false));
        let Some(model) = self.model() else {
            let before = self.value();
            self.set(update(before).ok_or(before)?);
            return Ok(before);
        };
        model.update(order, fetched, |word| update(T::from(word)).map(T::to)).map(T::from).map_err(T::from)
    }
}

macro_rules! arithmetic {
    ($($name:ident: |$before:ident, $with:ident| $after:expr;)*) => {
        impl<T: Word> Atomic<T> {$(
            #[track_caller]
            pub(crate) fn $name(&self, value: T, asked: Ordering) -> T {
                let order = ordering(asked, Location::caller(), true, true);
                let $with = value.to();
                let after = |$before: u64| Some($after);
                let Some(model) = self.model() else {
                    let before = self.value();
                    self.set(after(before.to()).map_or(before, T::from));
                    return before;
                };
                T::from(model.update(order, Ordering::Relaxed, after).unwrap_or_else(|before| before))
            }
        )*}
    };
}

arithmetic! {
    fetch_or: |before, with| before | with;
    fetch_and: |before, with| before & with;
    fetch_min: |before, with| before.min(with);
    fetch_max: |before, with| before.max(with);
}

impl<T: Word> Atomic<T> {
    #[track_caller]
    pub(crate) fn fetch_add(&self, value: T, asked: Ordering) -> T {
        self.add(value.to(), asked, Location::caller())
    }

    #[track_caller]
    pub(crate) fn fetch_sub(&self, value: T, asked: Ordering) -> T {
        self.add(value.to().wrapping_neg(), asked, Location::caller())
    }

    fn add(&self, value: u64, asked: Ordering, at: &'static Location<'static>) -> T {
        let order = ordering(asked, at, true, true);
        let Some(model) = self.model() else {
            let before = self.value();
            self.set(T::from(before.to().wrapping_add(value)));
            return before;
        };
        T::from(model.first.wrapping_add(model.added.fetch_add(value, order)))
    }
}

impl Modelled {
    fn load(&self, order: Ordering) -> u64 {
        self.first.wrapping_add(self.added.load(order))
    }

    fn store(&self, value: u64, order: Ordering) {
        self.added.store(value.wrapping_sub(self.first), order);
    }

    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.first.wrapping_add(self.added.swap(value.wrapping_sub(self.first), order))
    }

    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        let relative = |value: u64| value.wrapping_sub(self.first);
        let exchanged = self.added.compare_exchange(relative(current), relative(new), success, failure);
        let absolute = |added: u64| self.first.wrapping_add(added);
        exchanged.map(absolute).map_err(absolute)
    }

    /// Reads the newest value, whatever was loaded first, and writes another.
    fn update(
        &self,
        set: Ordering,
        fetch: Ordering,
        mut update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        let mut before = self.load(fetch);
        loop {
            let Some(after) = update(before) else { return Err(before) };
            match self.compare_exchange(before, after, set, fetch) {
                Ok(_) => return Ok(before),
                Err(other) => before = other,
            }
        }
    }
}

impl<T: Word> Drop for Atomic<T> {
    fn drop(&mut self) {
        let place = std::ptr::from_ref(self).addr();
        // Other things may come to lie there. Where this fails, all is being forgotten anyway.
        let _ = KNOWN.try_with(|known| {
            if let Ok(mut known) = known.try_borrow_mut() {
                known.atomics.remove(&place);
            }
        });
    }
}

impl<T: Word + fmt::Debug> fmt::Debug for Atomic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value().fmt(f)
    }
}

/// Says that bytes are about to be written.
#[track_caller]
pub(crate) fn writes(start: *const u8) {
    if let Some(bytes) = bytes_at(start) {
        bytes.with_mut(|_| ());
    }
}

/// Says that bytes are about to be read.
#[track_caller]
pub(crate) fn reads(start: *const u8) {
    if let Some(bytes) = bytes_at(start) {
        bytes.with(|_| ());
    }
}

fn bytes_at(start: *const u8) -> Option<&'static loom::cell::UnsafeCell<()>> {
    is_running().then(|| {
        let bytes = known(|known| {
            let Known { bytes, new_bytes, .. } = known;
            let made = || Box::new(new_bytes.pop().expect("there are enough ranges of bytes"));
            std::ptr::from_ref::<loom::cell::UnsafeCell<()>>(bytes.entry(start.addr()).or_insert_with(made))
        });
        // SAFETY: it stays in its box until the next run.
        unsafe { &*bytes }
    })
}

/// Keeps what was put off from being done.
#[derive(Debug)]
pub struct Guard {
    number: u64,
}

/// Protects memory from now on until the guard is dropped.
pub fn pin() -> Guard {
    let number = known(|known| {
        known.epoch.next += 1;
        known.epoch.held.insert(known.epoch.next);
        known.epoch.next
    });
    // Whoever comes after something was put off is not waited for, but sees what happened before it was.
    epoch_atomic(|epoch| &epoch.defers, |defers| _ = defers.fetch_add(0, Ordering::Acquire));
    Guard { number }
}

/// Runs `change` on one of the epoch's atomics, which stay where they are until the next run.
fn epoch_atomic(which: impl FnOnce(&Epoch) -> &Atomic<u64>, change: impl FnOnce(&Atomic<u64>)) {
    if is_running() {
        let atomic = known(|known| std::ptr::from_ref(which(&known.epoch)));
        // SAFETY: `KNOWN` stays where it is, and is exchanged only before a run.
        change(unsafe { &*atomic });
    }
}

impl Guard {
    /// Has `work` done when all guards that exist now are gone.
    #[track_caller]
    pub fn defer<R>(&self, work: impl FnOnce() -> R + Send + 'static) {
        if is_left_out(Fault::at(Kind::Guard, Location::caller())) {
            work();
            return;
        }
        epoch_atomic(|epoch| &epoch.defers, |defers| _ = defers.fetch_add(1, Ordering::Release));
        known(|known| {
            let held = known.epoch.held.clone();
            known.epoch.deferred.push((held, Box::new(|| drop(work()))));
        });
    }

    /// Does nothing: nothing is put off for longer than it must be.
    pub fn flush(&self) {}
}

impl Drop for Guard {
    fn drop(&mut self) {
        epoch_atomic(|epoch| &epoch.ends, |ends| _ = ends.fetch_add(1, Ordering::Release));
        let due: Vec<_> = known(|known| {
            let epoch = &mut known.epoch;
            epoch.held.remove(&self.number);
            for (awaited, _) in &mut epoch.deferred {
                awaited.remove(&self.number);
            }
            let (due, rest) =
                std::mem::take(&mut epoch.deferred).into_iter().partition(|(awaited, _)| awaited.is_empty());
            epoch.deferred = rest;
            due
        });
        if due.is_empty() || std::thread::panicking() {
            return;
        }
        epoch_atomic(|epoch| &epoch.ends, |ends| _ = ends.fetch_add(0, Ordering::Acquire));
        for (_, work) in due {
            work();
        }
    }
}

/// A pointer that is exchanged while others follow it, as `arc_swap` has it.
pub(crate) struct Swap<V> {
    /// Which of `values` it is now.
    now: AtomicUsize,
    /// All that it has been.
    values: RefCell<Vec<V>>,
}

pub(crate) type ArcSwap<T> = Swap<Arc<T>>;
pub(crate) type ArcSwapOption<T> = Swap<Option<Arc<T>>>;

/// What was loaded.
pub(crate) struct Loaded<V>(V);

// SAFETY: threads of a model take turns on one thread of the system.
unsafe impl<V> Sync for Swap<V> {}
// SAFETY: as above.
unsafe impl<V> Send for Swap<V> {}

impl<T> Swap<Arc<T>> {
    pub(crate) fn from_pointee(value: T) -> Self {
        Self::of(Arc::new(value))
    }
}

impl<T> Swap<Option<Arc<T>>> {
    pub(crate) fn empty() -> Self {
        Self::of(None)
    }
}

impl<V: Default> Default for Swap<V> {
    fn default() -> Self {
        Self { now: AtomicUsize::default(), values: RefCell::new(vec![V::default()]) }
    }
}

impl<V> Swap<V> {
    fn of(value: V) -> Self {
        Self { now: AtomicUsize::new(0), values: RefCell::new(vec![value]) }
    }

    fn add(&self, value: V) -> usize {
        self.values.borrow_mut().push(value);
        self.values.borrow().len() - 1
    }
}

impl<V: Clone> Swap<V> {
    fn at(&self, number: usize) -> V {
        self.values.borrow()[number].clone()
    }

    #[track_caller]
    pub(crate) fn load_full(&self) -> V {
        self.at(self.now.load(Ordering::Acquire))
    }

    #[track_caller]
    pub(crate) fn load(&self) -> Loaded<V> {
        Loaded(self.load_full())
    }

    #[track_caller]
    pub(crate) fn store(&self, value: V) {
        let number = self.add(value);
        self.now.store(number, Ordering::Release);
    }

    #[track_caller]
    pub(crate) fn swap(&self, value: V) -> V {
        let number = self.add(value);
        self.at(self.now.swap(number, Ordering::AcqRel))
    }

    pub(crate) fn rcu<R: Into<V>>(&self, mut change: impl FnMut(&V) -> R) {
        loop {
            let before = self.now.load(Ordering::Acquire);
            let after = self.add(change(&self.at(before)).into());
            if self.now.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }
}

impl<V> Deref for Loaded<V> {
    type Target = V;
    fn deref(&self) -> &V {
        &self.0
    }
}

impl<V> fmt::Debug for Swap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swap").finish_non_exhaustive()
    }
}

/// A bounded queue as `crossbeam` has it: it has one order of all that is done to it, and whoever takes something out
/// sees what was written before it was put in.
pub(crate) struct ArrayQueue<T> {
    capacity: usize,
    /// Written by whoever puts something in.
    put: Atomic<u64>,
    values: RefCell<VecDeque<T>>,
}

// SAFETY: threads of a model take turns on one thread of the system.
unsafe impl<T: Send> Sync for ArrayQueue<T> {}

impl<T> ArrayQueue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, put: Atomic::new(0), values: RefCell::default() }
    }

    #[track_caller]
    pub(crate) fn push(&self, value: T) -> Result<(), T> {
        self.put.fetch_add(1, Ordering::Release);
        let mut values = self.values.borrow_mut();
        if values.len() == self.capacity {
            return Err(value);
        }
        values.push_back(value);
        Ok(())
    }

    #[track_caller]
    pub(crate) fn pop(&self) -> Option<T> {
        self.put.fetch_add(0, Ordering::Acquire);
        self.values.borrow_mut().pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.values.borrow().len()
    }
}

/// A lock as `parking_lot` has it.
#[derive(Default)]
pub(crate) struct RwLock<T: ?Sized> {
    /// A byte, so that every lock has an address of its own.
    _place: u8,
    value: UnsafeCell<T>,
}

// SAFETY: threads of a model take turns on one thread of the system, and the value is reached under the lock only.
unsafe impl<T: ?Sized> Sync for RwLock<T> {}

pub(crate) struct RwLockReadGuard<'a, T>(Option<loom::sync::RwLockReadGuard<'static, ()>>, &'a T);

pub(crate) struct RwLockWriteGuard<'a, T>(Option<loom::sync::RwLockWriteGuard<'static, ()>>, &'a mut T);

impl<T> RwLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { _place: 0, value: UnsafeCell::new(value) }
    }

    fn model(&self) -> Option<&'static loom::sync::RwLock<()>> {
        let place = std::ptr::from_ref(&self._place).addr();
        let made = || Box::leak(Box::new(loom::sync::RwLock::new(())));
        is_running().then(|| known(|known| *known.locks.entry(place).or_insert_with(|| made())))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        let guard = self.model().map(|model| model.read().expect("nobody panicked under it"));
        // SAFETY: the lock is held.
        RwLockReadGuard(guard, unsafe { &*self.value.get() })
    }

    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        let guard = match self.model() {
            Some(model) => Some(model.try_read().ok()?),
            None => None,
        };
        // SAFETY: as above.
        Some(RwLockReadGuard(guard, unsafe { &*self.value.get() }))
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        let guard = self.model().map(|model| model.write().expect("nobody panicked under it"));
        // SAFETY: as above, by one alone.
        RwLockWriteGuard(guard, unsafe { &mut *self.value.get() })
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.1
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.1
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.1
    }
}

/// A lock as `parking_lot` has it.
#[derive(Default)]
pub(crate) struct Mutex<T: ?Sized> {
    _place: u8,
    value: UnsafeCell<T>,
}

// SAFETY: as of `RwLock`.
unsafe impl<T: ?Sized> Sync for Mutex<T> {}
// SAFETY: as of `RwLock`.
unsafe impl<T: ?Sized> Send for Mutex<T> {}

pub(crate) struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'static, ()>>, &'a mut T);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { _place: 0, value: UnsafeCell::new(value) }
    }

    pub(crate) fn into_inner(self) -> T {
        self.value.into_inner()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let place = std::ptr::from_ref(&self._place).addr();
        let made = || Box::leak(Box::new(loom::sync::Mutex::new(())));
        let model =
            is_running().then(|| known(|known| *known.mutexes.entry(place).or_insert_with(|| made())));
        let guard = model.map(|model| model.lock().expect("nobody panicked under it"));
        // SAFETY: the lock is held.
        MutexGuard(guard, unsafe { &mut *self.value.get() })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.1
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.1
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

/// A condition variable as `parking_lot` has it.
#[derive(Debug, Default)]
pub(crate) struct Condvar {
    _place: u8,
}

impl Condvar {
    fn model(&self) -> Option<&'static loom::sync::Condvar> {
        let place = std::ptr::from_ref(&self._place).addr();
        let made = || Box::leak(Box::new(loom::sync::Condvar::new()));
        is_running().then(|| known(|known| *known.condvars.entry(place).or_insert_with(|| made())))
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let model = self.model().expect("nobody waits alone");
        let held = guard.0.take().expect("the lock is held");
        guard.0 = Some(model.wait(held).expect("nobody panicked under it"));
    }

    pub(crate) fn notify_all(&self) {
        if let Some(model) = self.model() {
            model.notify_all();
        }
    }
}
