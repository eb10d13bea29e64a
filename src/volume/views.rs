//! The volume and its snapshots as the one tree that the kernel sees. What serves the kernel calls this; nothing
//! below knows of it.
//!
//! ```text
//! number of an inode or a handle:   | 63: control | 62 .. 43: snapshot, 0 the volume itself | 42 .. 0: its own number |
//! ```
//!
//! Every method here does what that of [`Volume`] does, in the volume that the number names.

use std::sync::Arc;

use super::control::is_control_handle;
use super::snapshots::NUMBER_BITS;
use super::{
    Allocate, Attr, Caller, DirEntry, Handle, OpenFlags, Opened, RenameMode, Seek, SetAttr, Volume, XattrMode,
};
use crate::catalog::Value;
use crate::metrics::Metrics;
use crate::namespace::{Ino, Kind};
use crate::pool::BufferPool;
use crate::store::Space;
use crate::{Error, Result};

/// Where the number of the snapshot begins: 2^43 files are more than a store can hold.
const SHIFT: u32 = 63 - NUMBER_BITS;

const MASK: u64 = ((1 << NUMBER_BITS) - 1) << SHIFT;

/// A volume with its snapshots.
#[derive(Debug)]
pub struct Views(Arc<Volume>);

/// The snapshot that a number belongs to.
fn snapshot_of(number: u64) -> u32 {
    u32::try_from((number & MASK) >> SHIFT).expect("the mask has few bits")
}

/// Whether what has this number is stored in the volume itself.
fn is_own(number: u64) -> bool {
    number >> SHIFT == 0
}

/// An inode of a snapshot, as the kernel knows it.
pub(super) fn outer(ino: Ino, snapshot: u32) -> Ino {
    Ino(ino.0 | u64::from(snapshot) << SHIFT)
}

/// What a volume answers, with its own numbers turned into those that the kernel knows.
trait Outward {
    fn outward(self, snapshot: u32) -> Self;
}

macro_rules! without_numbers {
    ($($answer:ty),*) => {
        $(impl Outward for $answer {
            fn outward(self, _: u32) -> Self {
                self
            }
        })*
    };
}

without_numbers!((), u32, u64, Vec<u8>, Value);

impl Outward for Handle {
    fn outward(self, snapshot: u32) -> Self {
        Handle(self.0 | u64::from(snapshot) << SHIFT)
    }
}

impl Outward for Opened {
    fn outward(self, snapshot: u32) -> Self {
        Self { handle: self.handle.outward(snapshot), ..self }
    }
}

impl Outward for Attr {
    fn outward(self, snapshot: u32) -> Self {
        Self { ino: outer(self.ino, snapshot), ..self }
    }
}

impl Outward for (Attr, Opened) {
    fn outward(self, snapshot: u32) -> Self {
        (self.0.outward(snapshot), self.1.outward(snapshot))
    }
}

#[expect(
    missing_docs,
    clippy::missing_errors_doc,
    reason = "each is the method of `Volume` with the same name"
)]
impl Views {
    /// The tree of `volume`.
    #[must_use]
    pub fn new(volume: Arc<Volume>) -> Self {
        Self(volume)
    }

    fn within<T: Outward>(&self, number: u64, work: impl FnOnce(&Volume, u64) -> Result<T>) -> Result<T> {
        match snapshot_of(number) {
            0 => work(&self.0, number),
            snapshot => self.within_snapshot(snapshot, number & !MASK, work),
        }
    }

    /// Apart, so that what concerns the volume itself pays no stack for it.
    #[cold]
    #[inline(never)]
    fn within_snapshot<T: Outward>(
        &self,
        snapshot: u32,
        number: u64,
        work: impl FnOnce(&Volume, u64) -> Result<T>,
    ) -> Result<T> {
        let volume = self.0.snapshot_volume(snapshot)?;
        Ok(work(&volume, number)?.outward(snapshot))
    }

    fn at<T: Outward>(&self, ino: Ino, work: impl FnOnce(&Volume, Ino) -> Result<T>) -> Result<T> {
        self.within(ino.0, |volume, ino| work(volume, Ino(ino)))
    }

    fn with<T: Outward>(&self, handle: Handle, work: impl FnOnce(&Volume, Handle) -> Result<T>) -> Result<T> {
        self.within(handle.0, |volume, handle| work(volume, Handle(handle)))
    }

    /// What concerns two nodes: those of a snapshot do not change.
    fn at_both<T: Outward>(
        &self,
        one: Ino,
        other: Ino,
        work: impl FnOnce(&Volume) -> Result<T>,
    ) -> Result<T> {
        if (one.0 | other.0) & MASK != 0 { Err(Error::ReadOnly) } else { work(&self.0) }
    }

    pub fn acknowledge(&self) -> Result<()> {
        self.0.acknowledge()
    }

    #[must_use]
    pub fn buffers(&self) -> &BufferPool {
        self.0.buffers()
    }

    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        self.0.metrics()
    }

    /// Opening a snapshot takes as long as a search.
    #[must_use]
    pub fn may_search(&self, ino: Ino) -> bool {
        let snapshot = snapshot_of(ino.0);
        self.0.may_search(ino) || (snapshot != 0 && !self.0.snapshot_is_open(snapshot))
    }

    /// Whether there may be a [`surplus`](Self::surplus) in the volume that has this inode.
    #[must_use]
    pub fn is_crowded(&self, ino: Ino) -> bool {
        match snapshot_of(ino.0) {
            0 => self.0.is_crowded(),
            number => self.0.open_snapshot_volume(number).is_some_and(|volume| volume.is_crowded()),
        }
    }

    /// In the volume that has this inode.
    #[must_use]
    pub fn surplus(&self, ino: Ino) -> Vec<(Ino, Vec<u8>)> {
        let number = snapshot_of(ino.0);
        let names = match number {
            0 => self.0.surplus(),
            _ => self.0.open_snapshot_volume(number).map_or_else(Vec::new, |volume| volume.surplus()),
        };
        names.into_iter().map(|(parent, name)| (outer(parent, number), name)).collect()
    }

    /// How long searches in a snapshot take is not followed.
    #[must_use]
    pub fn xattr_may_search(&self, ino: Ino, name: &[u8]) -> bool {
        snapshot_of(ino.0) != 0 || self.0.xattr_may_search(ino, name)
    }

    #[must_use]
    pub fn read_may_search(&self, handle: Handle) -> bool {
        self.handle_may_search(handle, || self.0.read_may_search(handle))
    }

    #[must_use]
    pub fn write_may_search(&self, handle: Handle, data: &[u8]) -> bool {
        self.handle_may_search(handle, || self.0.write_may_search(handle, data))
    }

    /// None where the handle is of no transaction file.
    #[must_use]
    pub fn ask_may_search(&self, handle: Handle) -> Option<bool> {
        match snapshot_of(handle.0) {
            0 => self.0.ask_may_search(handle),
            number => {
                let volume = self.0.open_snapshot_volume(number)?;
                volume.ask_may_search(Handle(handle.0 & !MASK)).map(|_| true)
            }
        }
    }

    #[must_use]
    pub fn close_may_search(&self, handle: Handle) -> bool {
        self.handle_may_search(handle, || self.0.close_may_search(handle))
    }

    /// Nothing of a snapshot changes, so this is about the volume alone, as its likes.
    #[must_use]
    pub fn close_takes_long(&self, handle: Handle) -> bool {
        is_own(handle.0) && self.0.close_takes_long(handle)
    }

    #[must_use]
    pub fn is_direct(&self, handle: Handle) -> bool {
        is_own(handle.0) && self.0.is_direct(handle)
    }

    #[must_use]
    pub fn resize_takes_long(&self, ino: Ino, size: u64) -> bool {
        is_own(ino.0) && self.0.resize_takes_long(ino, size)
    }

    #[must_use]
    pub fn rename_takes_long(&self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> bool {
        is_own(from.0.0 | to.0.0) && self.0.rename_takes_long(from, to)
    }

    #[must_use]
    pub fn link_takes_long(&self, ino: Ino, parent: Ino, name: &[u8]) -> bool {
        is_own(ino.0 | parent.0) && self.0.link_takes_long(ino, parent, name)
    }

    fn handle_may_search(&self, handle: Handle, in_volume: impl FnOnce() -> bool) -> bool {
        match snapshot_of(handle.0) {
            0 => in_volume(),
            _ => is_control_handle(handle),
        }
    }

    /// Files of snapshots are not offered to the kernel.
    pub fn set_passthrough(&self, can: bool) {
        self.0.set_passthrough(can);
    }

    pub fn refuse_backing(&self, handle: Handle) {
        self.0.refuse_backing(handle);
    }

    pub fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.at(parent, |volume, parent| volume.lookup(caller, parent, name))
    }

    pub fn forget(&self, ino: Ino, lookups: u64) {
        let snapshot = snapshot_of(ino.0);
        // What nobody has open has forgotten everything.
        if snapshot == 0 || self.0.snapshot_is_open(snapshot) {
            let forgotten = self.at(ino, |volume, ino| {
                volume.forget(ino, lookups);
                Ok(())
            });
            if let Err(error) = forgotten {
                tracing::debug!(%error, "forget");
            }
        }
    }

    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.at(ino, Volume::getattr)
    }

    pub fn setattr(&self, caller: &Caller, ino: Ino, set: SetAttr, handle: Option<Handle>) -> Result<Attr> {
        let handle = handle.map(|handle| Handle(handle.0 & !MASK));
        self.at(ino, |volume, ino| volume.setattr(caller, ino, set, handle))
    }

    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.at(ino, Volume::readlink)
    }

    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        mode: u16,
        rdev: u32,
    ) -> Result<Attr> {
        self.at(parent, |volume, parent| volume.mknod(caller, parent, name, kind, mode, rdev))
    }

    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u16) -> Result<Attr> {
        self.at(parent, |volume, parent| volume.mkdir(caller, parent, name, mode))
    }

    pub fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.at(parent, |volume, parent| volume.unlink(caller, parent, name))
    }

    pub fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.at(parent, |volume, parent| volume.rmdir(caller, parent, name))
    }

    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        self.at(parent, |volume, parent| volume.symlink(caller, parent, name, target))
    }

    pub fn rename(
        &self,
        caller: &Caller,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        self.at_both(from.0, to.0, |volume| volume.rename(caller, from, to, mode))
    }

    pub fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.at_both(ino, parent, |volume| volume.link(caller, ino, parent, name))
    }

    pub fn open_file(&self, caller: &Caller, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        self.at(ino, |volume, ino| volume.open_file(caller, ino, flags))
    }

    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u16,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        self.at(parent, |volume, parent| volume.create(caller, parent, name, mode, flags))
    }

    pub fn read(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        size: u32,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        self.with(handle, |volume, handle| volume.read(caller, handle, offset, size, into))
    }

    pub fn write(&self, caller: &Caller, handle: Handle, offset: u64, data: &[u8]) -> Result<u32> {
        self.with(handle, |volume, handle| volume.write(caller, handle, offset, data))
    }

    pub fn write_mapped(&self, caller: &Caller, handle: Handle, offset: u64, pages: &[u8]) -> Result<u32> {
        self.with(handle, |volume, handle| volume.write_mapped(caller, handle, offset, pages))
    }

    pub fn ask(&self, caller: &Caller, handle: Handle, request: &[u8], room: u32) -> Result<Vec<u8>> {
        self.with(handle, |volume, handle| volume.ask(caller, handle, request, room))
    }

    pub fn flush(&self, caller: &Caller, handle: Handle) -> Result<()> {
        self.with(handle, |volume, handle| volume.flush(caller, handle))
    }

    pub fn release(&self, handle: Handle) -> Result<()> {
        self.with(handle, Volume::release)
    }

    pub fn fsync(&self, handle: Handle, data_only: bool) -> Result<()> {
        self.with(handle, |volume, handle| volume.fsync(handle, data_only))
    }

    pub fn open_dir(&self, caller: &Caller, ino: Ino) -> Result<Handle> {
        self.at(ino, |volume, ino| volume.open_dir(caller, ino))
    }

    pub fn read_dir(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let snapshot = snapshot_of(handle.0);
        if snapshot == 0 {
            return self.0.read_dir(caller, handle, offset, emit);
        }
        self.with(handle, |volume, handle| {
            volume.read_dir(caller, handle, offset, &mut |entry| {
                emit(&DirEntry { ino: outer(entry.ino, snapshot), ..*entry })
            })
        })
    }

    pub fn release_dir(&self, handle: Handle) {
        let released = self.with(handle, |volume, handle| {
            volume.release_dir(handle);
            Ok(())
        });
        if let Err(error) = released {
            tracing::debug!(%error, "release of a directory");
        }
    }

    pub fn fsync_dir(&self, ino: Ino) -> Result<()> {
        self.at(ino, Volume::fsync_dir)
    }

    pub fn statfs(&self) -> Result<Space> {
        self.0.statfs()
    }

    pub fn getxattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Value> {
        self.at(ino, |volume, ino| volume.getxattr(caller, ino, name))
    }

    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        self.at(ino, |volume, ino| volume.setxattr(caller, ino, name, value, mode))
    }

    pub fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        self.at(ino, |volume, ino| volume.listxattr(caller, ino))
    }

    pub fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        self.at(ino, |volume, ino| volume.removexattr(caller, ino, name))
    }

    pub fn fallocate(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        len: u64,
        what: Allocate,
    ) -> Result<()> {
        self.with(handle, |volume, handle| volume.fallocate(caller, handle, offset, len, what))
    }

    pub fn seek(&self, handle: Handle, offset: u64, what: Seek) -> Result<u64> {
        self.with(handle, |volume, handle| volume.seek(handle, offset, what))
    }

    /// Out of a snapshot the kernel copies by reading and writing.
    pub fn copy_range(
        &self,
        caller: &Caller,
        from: (Handle, u64),
        to: (Handle, u64),
        len: u64,
    ) -> Result<u32> {
        if (from.0.0 | to.0.0) & MASK != 0 {
            return Err(Error::Unsupported("copying ranges between a snapshot and the volume"));
        }
        self.0.copy_range(caller, from, to, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_says_whose_it_is_and_keeps_the_control_bit() {
        for own in [1, (1 << SHIFT) - 1, 1 << 63 | 7] {
            assert_eq!(snapshot_of(own), 0);
            for snapshot in [1, 5, (1 << NUMBER_BITS) - 1] {
                let seen = outer(Ino(own), snapshot);
                assert_eq!((snapshot_of(seen.0), seen.0 & !MASK), (snapshot, own));
                assert_eq!(seen.0 >> 63, own >> 63);
            }
        }
    }
}
