//! Snapshots: the volume as it was at one moment, read-only, on the same store.
//!
//! **Taking one** costs about the same however many files there are. Changes are stopped (`Volume::gate`), what
//! writers have in memory is committed, the files of the catalog are linked ([`Catalog::checkpoint`]), and the store
//! is told that everything that is live has another owner now ([`Store::share_all`](crate::store::Store::share_all)).
//! Then changes go on, and the snapshot is made durable: blobs and slots that were not synced, its catalog, its
//! directory under the name `.new`; and last its name. A death before that leaves nothing, one after it the whole
//! snapshot.
//!
//! **From then on** slots are never overwritten anyway; what the volume frees of a snapshot's is held; and a blob
//! that it shares is cloned before it is written (`edits`), also by those who were writing it at that moment.
//!
//! **Looking at one** opens a second volume over the same store, on a copy of the snapshot's catalog that vanishes
//! with it. It is opened when somebody first looks below its root, costs what mounting costs, and is closed a
//! minute after the last use. Its searches go through the graphs that were saved last before it was taken, and
//! compare what those lack: there is no indexer.
//!
//! **Dropping one** renames its directory away, durably, then reads what the snapshots that are left name: what is held for
//! none of them is free. An open of the store finds out the same. What a snapshot names never changes, so it is kept
//! beside its catalog once it was read ([`named`]); it is derived state, and nothing else about sharing is on the disk.
//!
//! `restore` brings a store that is not mounted back to one.

mod named;
mod restore;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

pub use restore::restore_snapshot;

use super::life::Writes;
use super::{Attr, Ground, Volume};
use crate::catalog::{self, Catalog};
use crate::format::record;
use crate::namespace::{self, Ino, Inode, Namespace, Time};
use crate::pool::shallow::aside;
use crate::store::Store;
use crate::{Error, Result};

/// How long a snapshot that nobody uses stays open.
const IDLE: Duration = Duration::from_secs(60);

/// How long taking one waits for the kernel to let go of large files.
const LETTING_GO: Duration = Duration::from_secs(1);

/// Bits of the number of a snapshot, which says whose an inode or a handle is.
pub(super) const NUMBER_BITS: u32 = 20;

/// The snapshots of a volume.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// Held while one is taken or dropped.
    changing: Mutex<()>,
    known: RwLock<Known>,
    reader: named::Reader,
}

#[derive(Debug, Default)]
struct Known {
    by_name: BTreeMap<Vec<u8>, Arc<Snapshot>>,
    last_number: u32,
}

/// A snapshot.
#[derive(Debug)]
struct Snapshot {
    name: OsString,
    /// As long as the process lives no other has this number, unless a million came between.
    number: u32,
    note: Note,
    /// Of its control nodes and handles, over all the times that it is opened.
    control_numbers: Arc<AtomicU64>,
    /// What it names is kept beside it, or could not be found out.
    was_read: AtomicBool,
    state: Mutex<State>,
}

/// What is kept beside its catalog, so that listing snapshots opens none.
#[derive(Clone, Debug, bincode::Encode, bincode::Decode)]
struct Note {
    taken: Time,
    root: Inode,
}

#[derive(Debug, Default)]
struct State {
    volume: Option<Arc<Volume>>,
    used: Option<Instant>,
    is_gone: bool,
}

impl Known {
    fn add(&mut self, name: OsString, note: Note) -> Result<Arc<Snapshot>> {
        let count = 1 << NUMBER_BITS;
        let is_taken = |number| self.by_name.values().any(|snapshot| snapshot.number == number);
        // 0 is the volume itself.
        let mut numbers = (1..count).map(|step| (self.last_number + step) % count);
        let number = numbers.find(|&number| number != 0 && !is_taken(number)).ok_or(Error::NoSpace)?;
        self.last_number = number;
        let snapshot = Arc::new(Snapshot {
            name,
            number,
            note,
            control_numbers: Arc::default(),
            was_read: AtomicBool::new(false),
            state: Mutex::default(),
        });
        self.by_name.insert(snapshot.name.as_bytes().to_vec(), Arc::clone(&snapshot));
        Ok(snapshot)
    }

    fn named(&self, name: &[u8]) -> Result<Arc<Snapshot>> {
        self.by_name.get(name).cloned().ok_or(Error::NotFound)
    }

    fn numbered(&self, number: u32) -> Result<Arc<Snapshot>> {
        self.by_name.values().find(|snapshot| snapshot.number == number).cloned().ok_or(Error::NotFound)
    }
}

impl Snapshot {
    /// Closes it for good.
    ///
    /// # Errors
    ///
    /// `Busy` while something in it is open.
    fn retire(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.is_in_use() {
            return Err(Error::Busy);
        }
        state.volume = None;
        state.is_gone = true;
        Ok(())
    }
}

impl State {
    fn is_in_use(&self) -> bool {
        self.volume.as_ref().is_some_and(|volume| Arc::strong_count(volume) > 1 || volume.has_handles())
    }
}

impl Snapshots {
    /// The snapshots that a store has.
    pub(super) fn open(store: &Store) -> Result<Self> {
        let mut known = Known::default();
        for name in store.snapshot_names()? {
            let note = record::decode("snapshots", &store.snapshot_note(&name)?)?;
            known.add(name, note)?;
        }
        Ok(Self { known: RwLock::new(known), ..Self::default() })
    }

    /// Closes those that nobody has used for a while.
    pub(super) fn close_idle(&self) {
        let snapshots: Vec<_> = self.known.read().by_name.values().cloned().collect();
        for snapshot in snapshots {
            let mut state = snapshot.state.lock();
            let is_idle = state.used.is_some_and(|used| used.elapsed() > IDLE);
            if is_idle && !state.is_in_use() {
                state.volume = None;
            }
        }
    }

    /// Waits for one that is being taken or dropped.
    pub(super) fn wait(&self) {
        drop(self.changing.lock());
    }

    /// Closes all of them.
    pub(super) fn close(&self) {
        for snapshot in self.known.read().by_name.values() {
            snapshot.state.lock().volume = None;
        }
    }
}

/// The names of a snapshot, read without opening it: it may be dropped meanwhile.
pub(super) struct Glimpse {
    number: u32,
    catalog: Arc<Catalog>,
    names: Namespace,
}

impl Glimpse {
    pub(super) fn names(&self) -> &Namespace {
        &self.names
    }
}

/// Refuses names that no snapshot can have: one that begins with a dot is the store's own.
fn check_name(name: &[u8]) -> Result<()> {
    namespace::check_name(name)?;
    if name.starts_with(b".") {
        return Err(Error::Invalid("the name of a snapshot does not begin with '.'"));
    }
    Ok(())
}

impl Volume {
    /// Takes a snapshot: see the [module](self). Its root, as [`snapshot_root`](Self::snapshot_root) gives it.
    ///
    /// # Errors
    ///
    /// `Exists`, a bad name, `Busy` while the kernel reads or writes a file by itself, `ReadOnly`, `Poisoned`, `NoSpace`,
    /// I/O errors. There is no snapshot then.
    pub(super) fn take_snapshot(&self, name: &[u8]) -> Result<Attr> {
        aside(|| self.take_snapshot_now(name))
    }

    fn take_snapshot_now(&self, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        self.check_writable()?;
        let _changing = self.snapshots.changing.lock();
        if self.snapshots.known.read().by_name.contains_key(name) {
            return Err(Error::Exists);
        }
        self.need_room(0)?;
        // So that little is left to be made durable once changes are stopped.
        self.sync()?;
        // The kernel lets go of a file some time after its `close(2)` has returned.
        let deadline = Instant::now() + LETTING_GO;
        while self.refuse_backed().is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let draft = self.store.begin_snapshot()?;
        // A directory that moves is not seen with its files still in the collection that it left.
        let ancestry = self.names.lock_ancestry();
        let stopped = self.life.stop_changes();
        self.check_writable()?;
        self.refuse_backed()?;
        self.write_back_all()?;
        self.catalog.checkpoint(&draft.catalog_dir())?;
        let note = Note { taken: Time::now(), root: self.names.inode(Ino::ROOT)? };
        let unsynced = self.unsynced.list(false);
        self.store.share_all();
        drop(stopped);
        drop(ancestry);
        let name = OsString::from_vec(name.to_vec());
        let published = (|| {
            for id in unsynced {
                let synced = self.store.sync_blob(id, &self.store.open_blob(id)?);
                synced.inspect_err(|error| self.poison("sync of a blob", error))?;
            }
            self.sync_slots()?;
            catalog::sync_copy(&draft.catalog_dir())?;
            draft.publish(&name, &record::encode(&note))
        })();
        if let Err(error) = published {
            self.free_unnamed();
            return Err(error);
        }
        self.sync_snapshot_names()?;
        let snapshot = self.snapshots.known.write().add(name, note)?;
        Ok(self.attr_of(&snapshot))
    }

    /// Makes it certain which snapshots there are. When that fails nothing is freed any more: one that has its name
    /// after a power cut has what it names.
    fn sync_snapshot_names(&self) -> Result<()> {
        self.store.sync_snapshots().inspect_err(|error| self.poison("sync of the names of snapshots", error))
    }

    /// Commits what writers have only in memory, and has them work on copies from now on. The caller has stopped
    /// every change.
    fn write_back_all(&self) -> Result<()> {
        let mut batch = self.catalog.batch();
        let mut written_back = Vec::new();
        for file in self.files.all() {
            match self.names.inode(file.ino) {
                Ok(mut inode) => {
                    if let Some(version) = file.overlay_onto(&mut inode) {
                        self.names.put_inode(&mut batch, &inode);
                        written_back.push((Arc::clone(&file), version));
                    }
                }
                Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        self.commit_batch(batch)?;
        for (file, version) in written_back {
            file.written_back(version);
        }
        for file in self.files.all() {
            file.state().end_in_place();
        }
        Ok(())
    }

    /// Drops a snapshot. What only it named is free when this returns.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Busy` while something in it is open, `ReadOnly`, `Poisoned`, I/O errors.
    pub(super) fn drop_snapshot(&self, name: &[u8]) -> Result<()> {
        aside(|| self.drop_snapshot_now(name))
    }

    fn drop_snapshot_now(&self, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        let _changing = self.snapshots.changing.lock();
        let snapshot = self.snapshots.known.read().named(name)?;
        snapshot.retire()?;
        if let Err(error) = self.store.remove_snapshot(&snapshot.name) {
            snapshot.state.lock().is_gone = false;
            return Err(error);
        }
        self.snapshots.known.write().by_name.remove(name);
        self.sync_snapshot_names()?;
        self.store.clear_removed();
        self.free_unnamed();
        self.sync()
    }

    /// Frees what is held and no snapshot names. What cannot be found out stays held until the next open.
    fn free_unnamed(&self) {
        match self.snapshots.named(&self.store) {
            Ok(named) => self.store.share_only(named),
            Err(error) => tracing::error!(%error, "space of a snapshot that is gone stays taken"),
        }
    }

    /// The names of the snapshots, in order.
    pub(super) fn snapshot_names(&self) -> Vec<Vec<u8>> {
        self.snapshots.known.read().by_name.keys().cloned().collect()
    }

    /// Names and times of the snapshots, in order of their times.
    pub(super) fn snapshot_times(&self) -> Vec<(OsString, Time)> {
        let known = self.snapshots.known.read();
        let mut times: Vec<_> =
            known.by_name.values().map(|snapshot| (snapshot.name.clone(), snapshot.note.taken)).collect();
        times.sort_by_key(|(_, taken)| *taken);
        times
    }

    /// The names of a snapshot, for whoever does not want to keep it from being dropped.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Corrupt`, I/O errors.
    pub(super) fn glimpse(&self, name: &[u8]) -> Result<Glimpse> {
        let snapshot = self.snapshots.known.read().named(name)?;
        let dir = self.store.snapshot_dir(&snapshot.name).join("catalog");
        // It may be on its way out while it is copied.
        let catalog = Catalog::open_copy(&dir, &self.store.scratch_dir());
        if self.snapshots.known.read().numbered(snapshot.number).is_err() || !dir.exists() {
            return Err(Error::NotFound);
        }
        let catalog = Arc::new(catalog?);
        Ok(Glimpse { number: snapshot.number, names: Namespace::open(Arc::clone(&catalog))?, catalog })
    }

    /// Does `work` while the snapshot is there, if it is.
    pub(super) fn while_there_is(&self, snapshot: &Glimpse, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let _changing = self.snapshots.changing.lock();
        let is_there = self.snapshots.known.read().numbered(snapshot.number).is_ok();
        if is_there { work() } else { Ok(()) }
    }

    /// The root of a snapshot, under a number that says whose it is: see [`Views`](super::Views).
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub(super) fn snapshot_root(&self, name: &[u8]) -> Result<Attr> {
        Ok(self.attr_of(&*self.snapshots.known.read().named(name)?))
    }

    fn attr_of(&self, snapshot: &Snapshot) -> Attr {
        let mut attr = self.attr(&snapshot.note.root);
        attr.ino = super::views::outer(attr.ino, snapshot.number);
        // Another may have this name soon.
        attr.ttl = Duration::ZERO;
        attr
    }

    /// Whether a snapshot is open, so that looking into it takes no longer than looking into the volume.
    pub(super) fn snapshot_is_open(&self, number: u32) -> bool {
        self.open_snapshot_volume(number).is_some()
    }

    /// The volume of a snapshot that is open.
    pub(super) fn open_snapshot_volume(&self, number: u32) -> Option<Arc<Volume>> {
        let snapshot = self.snapshots.known.read().numbered(number).ok()?;
        // A state that is locked is being opened.
        snapshot.state.try_lock()?.volume.clone()
    }

    /// The volume of a snapshot.
    ///
    /// # Errors
    ///
    /// `NotFound`; those of opening it.
    pub(super) fn snapshot_volume(&self, number: u32) -> Result<Arc<Volume>> {
        let snapshot = self.snapshots.known.read().numbered(number)?;
        let mut state = snapshot.state.lock();
        if state.is_gone || self.life.is_ending() {
            return Err(Error::NotFound);
        }
        state.used = Some(Instant::now());
        if let Some(volume) = &state.volume {
            return Ok(Arc::clone(volume));
        }
        let volume = aside(|| self.open_snapshot(&snapshot))?;
        state.volume = Some(Arc::clone(&volume));
        Ok(volume)
    }

    fn open_snapshot(&self, snapshot: &Snapshot) -> Result<Arc<Volume>> {
        let dir = self.store.snapshot_dir(&snapshot.name);
        let (mut volume, _, _) = Volume::on(Ground {
            catalog: Catalog::open_copy(&dir.join("catalog"), &self.store.scratch_dir())?,
            store: Arc::clone(&self.store),
            index_dir: dir.join("index"),
            metrics: Arc::clone(&self.metrics),
            writes: Writes::Snapshot(format!("snapshot {}", snapshot.name.display())),
        })?;
        volume.control = self.control.of_snapshot(&snapshot.control_numbers);
        volume.mountpoint.clone_from(&self.mountpoint);
        // Its slots were on the disk before it had a name: no power cut has torn one.
        volume.restore_vectors(false)?;
        Ok(Arc::new(volume))
    }

    /// Whether a file or directory is open.
    fn has_handles(&self) -> bool {
        self.files.has_handles() || self.dirs.has_handles() || self.control.has_handles()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::testing::{self, ROOT};
    use crate::volume::{OpenFlags, Views};

    #[test]
    fn a_snapshot_that_is_opened_again_gives_no_number_of_before_to_something_else() {
        let (_store, volume) = testing::volume();
        for name in [b"a.f32", b"b.f32"] {
            let flags = OpenFlags { write: true, ..OpenFlags::default() };
            let handle = volume.create(&ROOT, Ino::ROOT, name, 0o644, flags).unwrap().1.handle;
            volume.write(&ROOT, handle, 0, &[1; 16]).unwrap();
            volume.flush(&ROOT, handle).unwrap();
            volume.release(handle).unwrap();
        }
        let root = volume.take_snapshot(b"s").unwrap().ino;
        let views = Views::new(Arc::clone(&volume));
        let similar = || {
            let control = views.lookup(&ROOT, root, b".vexfs").unwrap().ino;
            views.lookup(&ROOT, control, b"similar").unwrap().ino
        };
        let before = similar();
        let of_a = views.lookup(&ROOT, before, b"a.f32").unwrap().ino;
        // As if a minute had passed: the kernel still knows all of them.
        let snapshot = volume.snapshots.known.read().named(b"s").unwrap();
        assert!(!snapshot.state.lock().is_in_use());
        snapshot.state.lock().volume = None;
        let after = similar();
        let of_b = views.lookup(&ROOT, after, b"b.f32").unwrap().ino;
        assert!(after != before && of_b != of_a);
        assert!(matches!(views.getattr(of_a), Err(Error::NotFound)));
        views.forget(of_a, 1);
        views.forget(before, 1);
        assert_eq!(views.getattr(of_b).unwrap().ino, of_b);
        drop(views);
        volume.close().unwrap();
    }
}
