//! The scrub: a thread that reads every slot, sealed blob and blob at rest again and again, at a bounded rate, and
//! compares them with their checksums. It is how damage is found in what nobody reads, while a copy of it may still
//! exist.
//!
//! It holds no lock while it reads. What it finds is looked at once more with the inode locked, because a slot may have
//! been freed and written since its name was read, and a blob at rest woken. It reads past the page cache as far as the
//! kernel lets it.
//!
//! After what the volume has it reads what snapshots alone have, snapshot by snapshot, through a copy of the catalog of
//! each: so one may be dropped meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Volume;
use super::snapshots::Glimpse;
use super::thread::outlive;
use crate::namespace::{Content, Ino, Namespace};
use crate::store::{Named, Pages, SlotRef};
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
        let metrics = self.metrics();
        std::thread::Builder::new().name("vexfs-scrub".into()).spawn(move || {
            let pass = || pass(&volume, &stop, bytes_per_second.max(1));
            while outlive(&metrics, "scrub", pass).unwrap_or(true) && stop.wait(BETWEEN_PASSES) {}
        })?;
        Ok(())
    }

    /// Reads the contents of the inodes behind `after`. Returns the last of them and how many bytes were read.
    fn scrub_piece(&self, after: Ino) -> Result<Option<(Ino, u64)>> {
        let Some(piece) = self.read_piece(&self.names, after, None)? else { return Ok(None) };
        for (ino, content, offset) in piece.differ {
            self.note_if_still(ino, content, offset)?;
        }
        Ok(Some((piece.last, piece.read)))
    }

    /// The same for a snapshot, and for what is named in `held` only.
    fn scrub_piece_of(&self, snapshot: &Glimpse, held: &Named, after: Ino) -> Result<Option<(Ino, u64)>> {
        let Some(piece) = self.read_piece(snapshot.names(), after, Some(held))? else { return Ok(None) };
        for (_, content, offset) in piece.differ {
            // Once it is dropped its slots may be written.
            self.while_there_is(snapshot, || self.note_if_differs(content, offset))?;
        }
        Ok(Some((piece.last, piece.read)))
    }

    /// Reads what `names` have behind `after`, where it is `wanted`.
    fn read_piece(&self, names: &Namespace, after: Ino, wanted: Option<&Named>) -> Result<Option<Piece>> {
        let mut last = None;
        let (mut slots, mut blobs) = (Vec::new(), Vec::new());
        for inode in names.inodes_after(after, INODES)? {
            last = Some(inode.ino);
            match inode.content {
                Content::Slot(at) if wanted.is_none_or(|wanted| wanted.names_slot(at)) => {
                    slots.push((at, inode.ino.0));
                }
                Content::Blob { id, sealed } if wanted.is_none_or(|wanted| wanted.names_blob(id)) => {
                    blobs.push((id, sealed, inode.ino));
                }
                Content::Empty | Content::Inline | Content::Slot(_) | Content::Blob { .. } => {}
            }
        }
        let Some(last) = last else { return Ok(None) };
        let mut differ: Vec<(Ino, Content, u64)> = Vec::new();
        let mut read = self
            .store
            .check_slots(&mut slots, |at, owner, _| differ.push((Ino(owner), Content::Slot(at), 0)))?;
        for (id, sealed, ino) in blobs {
            match self.store.check_blob(id, sealed, 0, Pages::Drop, |_| true) {
                Ok(bytes) => read += bytes,
                Err(Error::Corrupt { offset, .. }) => {
                    differ.push((ino, Content::Blob { id, sealed }, offset))
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Piece { last, read, differ }))
    }

    /// Looks once more at what differed, of a blob from `offset` on, while nobody changes it.
    pub(super) fn note_if_still(&self, ino: Ino, content: Content, offset: u64) -> Result<()> {
        let _locked = self.names.lock(&[ino]);
        match self.names.inode(ino) {
            Ok(inode) if inode.content == content => {}
            Ok(_) | Err(Error::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.note_if_differs(content, offset)
    }

    fn note_if_differs(&self, content: Content, offset: u64) -> Result<()> {
        let again = match content {
            Content::Slot(at) => self.check_slot_again(at),
            Content::Blob { id, sealed } => {
                // One chunk says it: the inode is not kept for longer.
                let is_done = |_| false;
                self.store.check_blob(id, sealed, offset, Pages::Keep, is_done).map(drop)
            }
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

/// What was read at once.
struct Piece {
    /// The last inode.
    last: Ino,
    /// Bytes.
    read: u64,
    /// What does not match its checksum, and from which offset of a blob on.
    differ: Vec<(Ino, Content, u64)>,
}

/// Reads all contents once. Returns whether to go on.
fn pass(volume: &Weak<Volume>, stop: &Stop, bytes_per_second: u64) -> bool {
    if !read_all(volume, stop, bytes_per_second, |volume, after| volume.scrub_piece(after)) {
        return false;
    }
    let Some(names) = volume.upgrade().map(|volume| volume.snapshot_names()) else { return false };
    for name in names {
        let Some(whole) = volume.upgrade() else { return false };
        let (glimpse, held) = (whole.glimpse(&name), whole.store.held());
        let glimpse = match glimpse {
            Ok(glimpse) => glimpse,
            Err(Error::NotFound) => continue,
            Err(error @ Error::Corrupt { .. }) => {
                whole.store.note_damage(error);
                continue;
            }
            Err(error) => {
                tracing::warn!("the scrub leaves a snapshot out: {error}");
                continue;
            }
        };
        drop(whole);
        let piece = |volume: &Volume, after| volume.scrub_piece_of(&glimpse, &held, after);
        if !read_all(volume, stop, bytes_per_second, piece) {
            return false;
        }
    }
    if let Some(volume) = volume.upgrade() {
        volume.scrub.passes.fetch_add(1, Ordering::Relaxed);
    }
    true
}

/// Reads piece by piece until there is none. Returns whether to go on.
fn read_all(
    volume: &Weak<Volume>,
    stop: &Stop,
    bytes_per_second: u64,
    piece: impl Fn(&Volume, Ino) -> Result<Option<(Ino, u64)>>,
) -> bool {
    let mut after = Ino(0);
    loop {
        let begun = Instant::now();
        let Some(volume) = volume.upgrade() else { return false };
        let read = match piece(&volume, after) {
            Ok(Some((last, read))) => {
                after = last;
                volume.scrub.bytes.fetch_add(read, Ordering::Relaxed);
                read
            }
            Ok(None) => return true,
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

    const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

    fn open(store: &std::path::Path) -> Arc<Volume> {
        let options = VolumeOptions { store: store.to_path_buf(), mountpoint: None, read_only: false };
        Volume::open(options).unwrap()
    }

    /// A vector file: of one row when it is short.
    fn put(volume: &Volume, name: &[u8], len: usize) {
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        let (_, opened) = volume.create(&CALLER, Ino::ROOT, name, 0o644, flags).unwrap();
        let mut bytes: Vec<u8> = (0..len / 4).flat_map(|i| (1.0 + i as f32).to_le_bytes()).collect();
        if len > 64 {
            bytes[..8].copy_from_slice(&[3125u32.to_le_bytes(), 16u32.to_le_bytes()].concat());
        }
        volume.write(&CALLER, opened.handle, 0, &bytes).unwrap();
        volume.flush(&CALLER, opened.handle).unwrap();
        volume.release(opened.handle).unwrap();
    }

    fn content(volume: &Volume, name: &[u8]) -> Content {
        let ino = volume.lookup(&CALLER, Ino::ROOT, name).unwrap().ino;
        volume.names.inode(ino).unwrap().content
    }

    fn flip(path: &std::path::Path, at: u64) {
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }

    fn places(volume: &Volume) -> Vec<(String, u64)> {
        let (damage, _) = volume.store.damage();
        damage.into_iter().map(|(file, offset, _)| (file[..5].to_owned(), offset)).collect()
    }

    #[test]
    fn a_pass_finds_the_damage_that_nobody_has_read() {
        let store = tempfile::tempdir().unwrap();
        let volume = open(store.path());
        for (name, len) in [(&b"a.f32"[..], 64), (b"b.f32", 64), (b"c.fbin", 200_008)] {
            put(&volume, name, len);
        }
        volume.sync().unwrap();
        let (last, read) = volume.scrub_piece(Ino(0)).unwrap().unwrap();
        assert!(read > 200_000 && volume.scrub_piece(last).unwrap().is_none());
        assert!(places(&volume).is_empty());
        let Content::Blob { id, sealed: true } = content(&volume, b"c.fbin") else {
            panic!("a large vector file lies in a sealed blob")
        };
        flip(&store.path().join(volume.store.blob_path(id)), 150_000);
        flip(&store.path().join("segments/00000000.seg"), 4096 + 70);
        volume.scrub_piece(Ino(0)).unwrap();
        assert_eq!(places(&volume), [("blobs".into(), 131_072), ("segme".into(), 4160)]);
    }

    #[test]
    fn a_pass_reads_what_only_a_snapshot_has_and_nothing_that_no_snapshot_has_any_more() {
        let store = tempfile::tempdir().unwrap();
        let volume = open(store.path());
        for (name, len) in [(&b"a.f32"[..], 64), (b"b.f32", 64), (b"c.fbin", 200_008)] {
            put(&volume, name, len);
        }
        let (Content::Blob { id, .. }, Content::Slot(at)) =
            (content(&volume, b"c.fbin"), content(&volume, b"b.f32"))
        else {
            panic!("a large vector file lies in a blob, a small one in a slot")
        };
        for name in [&b"one"[..], b"two"] {
            volume.take_snapshot(name).unwrap();
        }
        for name in [&b"b.f32"[..], b"c.fbin"] {
            volume.unlink(&CALLER, Ino::ROOT, name).unwrap();
        }
        // What is freed is held once a durable commit no longer names it, and no search may still read it.
        let is_held = || {
            let held = volume.store.held();
            held.names_slot(at) && held.names_blob(id)
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_held() {
            // A change, for the sync; always of one file, so that a pass stays one piece.
            put(&volume, b"d.f32", 64);
            volume.sync().unwrap();
            assert!(Instant::now() < deadline, "what was removed is never held");
        }
        let all = || assert!(pass(&Arc::downgrade(&volume), &Stop::default(), u64::MAX));
        all();
        assert!(places(&volume).is_empty());
        let read = volume.scrub.progress().bytes;
        assert!(read > 400_000, "the blob once for each snapshot, {read} bytes in all");
        flip(&store.path().join(volume.store.blob_path(id)), 150_000);
        flip(&store.path().join("segments/00000000.seg"), 4096 + 64 * u64::from(at.slot) + 6);
        all();
        let expected = [("blobs".to_owned(), 131_072), ("segme".into(), 4096 + 64 * u64::from(at.slot))];
        assert_eq!(places(&volume), expected);
        assert_eq!(volume.scrub.progress().passes, 2);
        for name in [&b"one"[..], b"two"] {
            volume.drop_snapshot(name).unwrap();
        }
        let before = volume.scrub.progress().bytes;
        all();
        assert!(volume.scrub.progress().bytes - before < 2 * (4 << 20), "a segment, and no blob");
        volume.close().unwrap();
    }
}
