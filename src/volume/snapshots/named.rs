//! What snapshots name: the slots and blobs that stay as they are while the volume goes on.
//!
//! It is found by reading the catalog of each, and kept beside it, because it never changes. A thread does that soon
//! after a snapshot was taken, so that the next mount, or the drop of another, finds it there; where it was not that
//! fast they read the catalog themselves.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Glimpse, Snapshots};
use crate::catalog::Catalog;
use crate::namespace::{Content, Namespace};
use crate::store::{Named, Store};
use crate::volume::Volume;
use crate::volume::ingest::vector_contents;
use crate::volume::thread::Thread;
use crate::{Error, Result};

/// The thread, while there is something to read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    thread: Thread,
}

impl Snapshots {
    /// Tells the store at open what snapshots name.
    pub(in crate::volume) fn hold(&self, store: &Store) -> Result<()> {
        store.hold(self.named(store)?);
        Ok(())
    }

    /// What the catalogs of the snapshots name. Each is read once in its life.
    pub(super) fn named(&self, store: &Store) -> Result<Named> {
        let mut named = Named::default();
        let snapshots: Vec<_> = self.known.read().by_name.values().cloned().collect();
        for snapshot in snapshots {
            if let Some(kept) = store.kept_named(&snapshot.name) {
                named.extend(kept);
                continue;
            }
            let dir = store.snapshot_dir(&snapshot.name).join("catalog");
            let found = Catalog::open_copy(&dir, &store.scratch_dir())
                .and_then(|catalog| {
                    let catalog = Arc::new(catalog);
                    named_by(&catalog, &Namespace::open(Arc::clone(&catalog))?, &AtomicBool::new(false))
                })
                .map_err(|error| unreadable(&snapshot.name, error))?;
            if let Err(error) = store.keep_named(&snapshot.name, &found) {
                tracing::warn!(%error, "what a snapshot names has to be found out again");
            }
            named.extend(found);
        }
        Ok(named)
    }

    /// Has the thread end, and waits for it.
    pub(in crate::volume) fn stop_reading(&self) {
        self.reader.stop.store(true, Ordering::Relaxed);
        self.reader.thread.join();
    }
}

impl Volume {
    /// Finds out what the snapshots name that were not read yet, on a thread of its own.
    pub(in crate::volume) fn read_new_snapshots(self: &Arc<Self>) {
        let snapshots = self.snapshots.known.read().by_name.clone();
        let mut new = snapshots.into_values().filter(|snapshot| !snapshot.was_read.load(Ordering::Relaxed));
        let Some(first) = new.next() else { return };
        let Reader { stop, thread } = &self.snapshots.reader;
        if thread.is_running() {
            return;
        }
        let (volume, stop) = (Arc::downgrade(self), Arc::clone(stop));
        let new: Vec<_> = std::iter::once(first).chain(new).collect();
        let read = move || {
            for snapshot in new {
                let Some(volume) = volume.upgrade().filter(|_| !stop.load(Ordering::Relaxed)) else { return };
                match volume.keep_named(&snapshot.name, &stop) {
                    // Dropped, or interrupted.
                    Ok(()) | Err(Error::NotFound | Error::Interrupted) => {}
                    Err(error) => tracing::warn!(%error, "the next mount reads snapshot {:?}", snapshot.name),
                }
                snapshot.was_read.store(true, Ordering::Relaxed);
            }
        };
        if let Err(error) = thread.start("vexfs-named", read) {
            tracing::warn!(%error, "the next mount reads the snapshots");
        }
    }

    fn keep_named(&self, name: &OsStr, stop: &AtomicBool) -> Result<()> {
        if self.store.kept_named(name).is_some() {
            return Ok(());
        }
        let snapshot = self.glimpse(name.as_bytes())?;
        let Glimpse { catalog, names, .. } = &snapshot;
        let named = named_by(catalog, names, stop)?;
        self.while_there_is(&snapshot, || self.store.keep_named(name, &named))
    }
}

/// The error for a snapshot whose catalog cannot be read. Only one that is damaged is better done without: for want of
/// room, or of descriptors, it is sound.
fn unreadable(name: &OsStr, error: Error) -> Error {
    match error {
        Error::Corrupt { .. } | Error::Catalog(_) => Error::Corrupt {
            file: format!("snapshots/{}/catalog", name.display()),
            offset: 0,
            what: format!("{error}; remove the snapshot's directory to do without it"),
        },
        other => other,
    }
}

/// What a catalog names.
///
/// # Errors
///
/// `Interrupted` after `stop`; `Corrupt`, I/O errors.
fn named_by(catalog: &Arc<Catalog>, names: &Namespace, stop: &AtomicBool) -> Result<Named> {
    let mut named = Named::default();
    let mut add = |content| {
        match content {
            Content::Empty | Content::Inline => {}
            Content::Slot(at) => named.slot(at),
            Content::Blob { id, .. } => named.blob(id),
        }
        if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    };
    for inode in names.inodes() {
        add(inode?.content)?;
    }
    for content in vector_contents(catalog) {
        add(content?)?;
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::namespace::Ino;
    use crate::volume::VolumeOptions;
    use crate::volume::types::{Caller, OpenFlags};

    #[test]
    fn only_a_damaged_snapshot_is_to_be_removed() {
        let name = OsStr::new("one");
        for error in [Error::NoSpace, std::io::Error::from(std::io::ErrorKind::StorageFull).into()] {
            let words = error.to_string();
            let told = unreadable(name, error);
            assert!(!matches!(told, Error::Corrupt { .. }), "{told:?}");
            assert_eq!(told.to_string(), words);
        }
        let damage = Error::Corrupt { file: "catalog/0.jnl".into(), offset: 7, what: "cut".into() };
        let told = unreadable(name, damage).to_string();
        assert!(told.starts_with("snapshots/one/catalog") && told.contains("remove"), "{told}");
        assert!(told.contains("0.jnl: offset 7"), "{told}");
    }

    #[test]
    fn a_new_snapshot_is_read_before_the_next_mount_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        let options = VolumeOptions { store: dir.path().join("store"), mountpoint: None, read_only: false };
        let volume = Volume::open(options.clone()).unwrap();
        let caller = Caller { uid: 0, gid: 0, pid: 0 };
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        let (attr, opened) = volume.create(&caller, Ino::ROOT, b"a.f32", 0o644, flags).unwrap();
        let bytes: Vec<u8> = [1.0_f32, 2.0].into_iter().flat_map(f32::to_le_bytes).collect();
        volume.write(&caller, opened.handle, 0, &bytes).unwrap();
        volume.flush(&caller, opened.handle).unwrap();
        volume.release(opened.handle).unwrap();
        let Content::Slot(at) = volume.names.inode(attr.ino).unwrap().content else {
            panic!("a small vector lies in a slot")
        };
        volume.take_snapshot(b"one").unwrap();
        let kept = || volume.store.kept_named(OsStr::new("one"));
        assert!(kept().is_none(), "taking one reads nothing");
        volume.read_new_snapshots();
        let deadline = Instant::now() + Duration::from_secs(60);
        while kept().is_none() {
            assert!(Instant::now() < deadline, "nobody reads the snapshot");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(kept().unwrap().names_slot(at));
        volume.unlink(&caller, Ino::ROOT, b"a.f32").unwrap();
        volume.close().unwrap();
        drop(volume);
        // A mount does without its catalog.
        fs::rename(dir.path().join("store/snapshots/one/catalog"), dir.path().join("away")).unwrap();
        let volume = Volume::open(options).unwrap();
        assert!(volume.store.held().names_slot(at));
        volume.close().unwrap();
    }
}
