//! Vector files that the disk cannot read any more: they leave their collections, and say why.
//!
//! The catalog keeps them as they are. When the store is opened again on a disk that is well, they are back.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Change, Member, Problem, State, Vectors};
use crate::namespace::{Ino, Namespace};

/// How many unreadable pages the members have been looked through for.
#[derive(Debug, Default)]
pub(super) struct Accounted {
    pages: AtomicU64,
    looking: Mutex<()>,
}

impl Vectors {
    /// Makes sure that files behind the first `damages` unreadable pages of this process are in no collection. Costs
    /// nothing when none is new. The caller holds no lock.
    pub(in crate::volume) fn withdraw_unreadable(&self, names: &Namespace, damages: u64) {
        let is_known = || self.unreadable.pages.load(Ordering::Acquire) == damages;
        if is_known() {
            return;
        }
        let _looking = self.unreadable.looking.lock();
        if is_known() {
            return;
        }
        let is_unreadable = |member: &Member| matches!(&member.state, State::Valid { file, .. } if file.bytes().check_read().is_err());
        let found = self.members.iter().filter(|entry| entry.value().iter().any(is_unreadable));
        let found: Vec<Ino> = found.map(|entry| *entry.key()).collect();
        for ino in found {
            let _locked = names.lock(&[ino]);
            self.withdraw(ino);
        }
        self.unreadable.pages.store(damages, Ordering::Release);
    }

    fn withdraw(&self, ino: Ino) {
        let mut members = self.members(ino);
        let mut changes = Vec::new();
        for member in &mut members {
            let State::Valid { file, .. } = &member.state else { continue };
            let Err(error) = file.bytes().check_read() else { continue };
            tracing::error!(ino = ino.0, %error, "a vector file cannot be read and leaves its collection");
            let (collection, file) = (self.collection(member.root), file.clone());
            changes.push(Change::Remove { collection, file, release: None });
            member.state = State::Invalid(Problem::of(&error));
        }
        changes.push(Change::Members { ino, members });
        self.publish(changes);
    }
}
