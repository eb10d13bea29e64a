//! The scrub: a thread that reads every slot and sealed blob again and again, at a bounded rate, and compares them
//! with their checksums. It is how damage is found in what nobody reads, while a copy of it may still exist.
//!
//! It holds no lock while it reads. What it finds is looked at once more with the inode locked, because a slot may have
//! been freed and written since its name was read. It reads past the page cache as far as the kernel lets it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Volume;
use crate::namespace::{Content, Ino};
use crate::store::SlotRef;
use crate::{Error, Result};

/// Inodes that are looked at together: those that were made together lie in the same segments.
const INODES: usize = 1024;

/// Pause between two passes, so that a small store is not read without end.
const BETWEEN_PASSES: Duration = Duration::from_secs(60);

/// How far the scrub is.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// Bytes per second; 0 while there is none.
    rate: AtomicU64,
    passes: AtomicU64,
    bytes: AtomicU64,
    stop: Arc<Stop>,
}

#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

/// How far the scrub is, for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Progress {
    bytes_per_second: u64,
    pub(super) passes: u64,
    pub(super) bytes: u64,
}

impl Stop {
    /// Waits; whether to go on.
    fn wait(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        let deadline = Instant::now() + time;
        while !*stopped && !self.changed.wait_until(&mut stopped, deadline).timed_out() {}
        !*stopped
    }
}

impl Scrub {
    pub(super) fn progress(&self) -> Progress {
        Progress {
            bytes_per_second: self.rate.load(Ordering::Relaxed),
            passes: self.passes.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Has the thread end. It is not waited for: it holds the volume only while it reads a piece.
    pub(super) fn stop(&self) {
        *self.stop.stopped.lock() = true;
        self.stop.changed.notify_all();
    }
}

impl Volume {
    /// Starts reading all checksums in the background, at about `bytes_per_second`, until the volume closes.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started.
    pub fn start_scrub(self: &Arc<Self>, bytes_per_second: u64) -> Result<()> {
        self.scrub.rate.store(bytes_per_second.max(1), Ordering::Relaxed);
        let (volume, stop) = (Arc::downgrade(self), Arc::clone(&self.scrub.stop));
        std::thread::Builder::new().name("vexfs-scrub".into()).spawn(move || {
            while pass(&volume, &stop, bytes_per_second.max(1)) && stop.wait(BETWEEN_PASSES) {}
        })?;
        Ok(())
    }

    /// Reads the contents of the inodes behind `after`. Returns the last of them and how many bytes were read.
    fn scrub_piece(&self, after: Ino) -> Result<Option<(Ino, u64)>> {
        let mut last = None;
        let (mut slots, mut blobs) = (Vec::new(), Vec::new());
        for inode in self.names.inodes_after(after, INODES)? {
            last = Some(inode.ino);
            match inode.content {
                Content::Slot(at) => slots.push((at, inode.ino.0)),
                Content::Blob { id, sealed: true } => blobs.push((id, inode.ino)),
                Content::Empty | Content::Inline | Content::Blob { .. } => {}
            }
        }
        let Some(last) = last else { return Ok(None) };
        let mut found: Vec<(Ino, Content)> = Vec::new();
        let mut read =
            self.store.check_slots(&mut slots, |at, owner, _| found.push((Ino(owner), Content::Slot(at))))?;
        for (id, ino) in blobs {
            match self.store.check_blob(id) {
                Ok(bytes) => read += bytes,
                Err(Error::Corrupt { .. }) => found.push((ino, Content::Blob { id, sealed: true })),
                Err(error) => return Err(error),
            }
        }
        for (ino, content) in found {
            self.note_if_still(ino, content)?;
        }
        Ok(Some((last, read)))
    }

    /// Looks once more at what differed, while nobody changes it.
    fn note_if_still(&self, ino: Ino, content: Content) -> Result<()> {
        let _locked = self.names.lock(&[ino]);
        match self.names.inode(ino) {
            Ok(inode) if inode.content == content => {}
            Ok(_) | Err(Error::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        }
        let again = match content {
            Content::Slot(at) => self.check_slot_again(at),
            Content::Blob { id, .. } => self.store.check_blob(id).map(drop),
            Content::Empty | Content::Inline => Ok(()),
        };
        match again {
            Err(error @ Error::Corrupt { .. }) => {
                self.store.note_damage(error);
                Ok(())
            }
            other => other,
        }
    }

    fn check_slot_again(&self, at: SlotRef) -> Result<()> {
        let mut damage = None;
        self.store.check_slots(&mut [(at, 0)], |_, _, error| damage = Some(error))?;
        damage.map_or(Ok(()), Err)
    }
}

/// Reads all contents once. Returns whether to go on.
fn pass(volume: &Weak<Volume>, stop: &Stop, bytes_per_second: u64) -> bool {
    let mut after = Ino(0);
    loop {
        let begun = Instant::now();
        let Some(volume) = volume.upgrade() else { return false };
        let read = match volume.scrub_piece(after) {
            Ok(Some((last, read))) => {
                after = last;
                volume.scrub.bytes.fetch_add(read, Ordering::Relaxed);
                read
            }
            Ok(None) => {
                volume.scrub.passes.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Err(error) => {
                tracing::warn!("the scrub pauses: {error}");
                return true;
            }
        };
        drop(volume);
        #[expect(clippy::cast_precision_loss, reason = "a pause need not be exact")]
        let due = Duration::from_secs_f64(read as f64 / bytes_per_second as f64);
        if !stop.wait(due.saturating_sub(begun.elapsed())) {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::volume::{Caller, OpenFlags, VolumeOptions};

    #[test]
    fn a_pass_finds_the_damage_that_nobody_has_read() {
        let store = tempfile::tempdir().unwrap();
        let options = VolumeOptions { store: store.path().to_path_buf(), mountpoint: None, read_only: false };
        let volume = Volume::open(options).unwrap();
        let caller = Caller { uid: 0, gid: 0, pid: 0 };
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        for (name, len) in [(&b"a.f32"[..], 64), (b"b.f32", 64), (b"c.fbin", 200_008)] {
            let (_, opened) = volume.create(&caller, Ino::ROOT, name, 0o644, flags).unwrap();
            let mut bytes: Vec<u8> = (0..len / 4).flat_map(|i| (1.0 + i as f32).to_le_bytes()).collect();
            if len > 64 {
                bytes[..8].copy_from_slice(&[3125u32.to_le_bytes(), 16u32.to_le_bytes()].concat());
            }
            volume.write(&caller, opened.handle, 0, &bytes).unwrap();
            volume.flush(&caller, opened.handle).unwrap();
            volume.release(opened.handle).unwrap();
        }
        volume.sync().unwrap();
        let (last, read) = volume.scrub_piece(Ino(0)).unwrap().unwrap();
        assert!(read > 200_000 && volume.scrub_piece(last).unwrap().is_none());
        assert!(volume.store.damage().0.is_empty());
        let flip = |path: &str, at: u64| {
            let file = std::fs::File::options().read(true).write(true).open(store.path().join(path)).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[!byte[0]], at).unwrap();
        };
        let ino = volume.lookup(&caller, Ino::ROOT, b"c.fbin").unwrap().ino;
        let Content::Blob { id, sealed: true } = volume.names.inode(ino).unwrap().content else {
            panic!("a large vector file lies in a sealed blob")
        };
        flip(&volume.store.blob_path(id), 150_000);
        flip("segments/00000000.seg", 4096 + 70);
        volume.scrub_piece(Ino(0)).unwrap();
        let (damage, _) = volume.store.damage();
        let places: Vec<_> = damage.iter().map(|(file, offset, _)| (&file[..5], *offset)).collect();
        assert_eq!(places, [("blobs", 131_072), ("segme", 4160)]);
    }
}
