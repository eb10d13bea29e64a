//! Stands in for pools: what they hold passes through a queue that others have modelled, so here nothing is kept.

use std::ops::{Deref, DerefMut};

pub(crate) struct Pool<T>(Box<dyn Fn() -> T + Send + Sync>);

pub(crate) struct Pooled<T>(T);

impl<T> Pool<T> {
    pub(crate) fn new(_capacity: usize, make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self(Box::new(make))
    }

    pub(crate) fn take(&self) -> Pooled<T> {
        Pooled((self.0)())
    }
}

impl<T> Deref for Pooled<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Pooled<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
