//! The atomics, locks and guards of the parts that are read without a lock, under one name.
//!
//! They are those of std, `parking_lot` and `crossbeam`. The source that takes them from here is compiled a second
//! time by `tests/models`, where this module is another: there threads meet in every order, and a load returns every
//! value that the memory model lets it return.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

pub(crate) use arc_swap::{ArcSwap, ArcSwapOption};
pub use crossbeam::epoch::{Guard, pin};
pub(crate) use crossbeam::queue::ArrayQueue;
pub(crate) use parking_lot::{Condvar, Mutex, RwLock, RwLockWriteGuard};

/// Says that bytes from `start` on are about to be written without an atomic. A model looks whether anybody reads them.
#[inline(always)]
pub(crate) fn writes(_start: *const u8) {}

/// Says that bytes from `start` on are about to be read without an atomic. A model looks whether anybody writes them.
#[inline(always)]
pub(crate) fn reads(_start: *const u8) {}
