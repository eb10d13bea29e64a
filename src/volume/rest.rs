//! Files that come to rest: when large ordinary files get checksums, when these go, and who compares.
//!
//! Some seconds after the last close of a file whose content lies in a blob that is not sealed, a thread makes its bytes
//! durable, reads them and puts their checksums beside them ([`store`](crate::store::Store::draft_rest) says in which
//! order). Before the first change after that they go, durably. What is read through us is compared as it is read
//! ([`content`](super::content)); what the kernel reads by itself ([`backing`](super::backing)) is compared as a whole
//! before it gets it.
//!
//! ```text
//! last close ──▶ Waiting ──▶ choose: lock, is it still so? ──▶ read, no lock ──▶ lock, is it still so? ──▶ at rest
//!                   ▲                                             │
//!                   └── opened, mapped for writing ◀──────────────┴── wake: an open for writing, a write, a resize
//! ```
//!
//! Who may write a file has it open, or mapped: a file comes to rest while nobody has it open here and the kernel has no
//! writer of its blob. While it is read, nobody is kept from opening it: who wants to change it takes it away from
//! the thread ([`Volume::wake`]), which then gives up.
//!
//! **Invariant:** a blob is woken, with its inode locked, before it becomes the working blob of an open file: nothing
//! else writes in place.
//!
//! What was closed by an earlier mount, and what did not fit into the list, is found by a pass over all inodes.

mod waiting;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Volume;
use super::open_files::OpenFile;
use super::thread::{Thread, outlive};
use crate::namespace::{Content, Ino};
use crate::store::{BlobId, Pages};
use crate::{Error, Result};
use waiting::{Task, Waiting};

/// How long after its last close a file comes to rest.
const AFTER: Duration = Duration::from_secs(10);

/// A large file waits a second longer for each so many bytes: one that is opened again and again is not read each time.
const LONGER_BY: u64 = 16 << 20;

/// Most bytes per second that are read for it.
const RATE: u64 = 64 << 20;

/// The same where somebody has opened a file that is to be compared.
const RATE_ASKED: u64 = 512 << 20;

/// Inodes that a pass looks at together.
const INODES: usize = 1024;

/// How long the end of a volume waits for files that were closed just before.
const AT_END: Duration = Duration::from_secs(1);

/// Largest file that is compared as a whole while its opener, or first writer, waits.
const COMPARED_AT_ONCE: u64 = 16 << 20;

/// What comes to rest, and how far that is.
#[derive(Debug, Default)]
pub(super) struct Rest {
    waiting: Waiting,
    /// Held by whoever brings a file to rest.
    one_at_a_time: Mutex<()>,
    /// The blob that is being read, until somebody wants to change it.
    current: Mutex<Option<BlobId>>,
    thread: Thread,
    rested: AtomicU64,
    woken: AtomicU64,
    bytes: AtomicU64,
}

/// Whether a file comes to rest.
enum Choice {
    Read(BlobId, u64),
    Later(Duration),
    Never,
}

/// For whoever asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// Files that came to rest.
    pub(super) files: u64,
    /// Bytes of them.
    pub(super) bytes: u64,
    /// Files that were at rest and were changed.
    pub(super) woken: u64,
}

impl Rest {
    pub(super) fn progress(&self) -> Progress {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Progress { files: read(&self.rested), bytes: read(&self.bytes), woken: read(&self.woken) }
    }

    /// Has the thread end.
    pub(super) fn stop(&self) {
        self.waiting.stop();
    }

    /// [`stop`](Self::stop), and waits for it.
    pub(super) fn end(&self) {
        self.stop();
        self.thread.join();
    }

    fn is_current(&self, id: BlobId) -> bool {
        *self.current.lock() == Some(id)
    }
}

impl Volume {
    /// Starts the thread, which only compares where nothing is written.
    pub(super) fn start_rest(self: &Arc<Self>) -> Result<()> {
        if !self.life.is_read_only() {
            self.rest.waiting.set_pass(Some((Instant::now() + AFTER, Ino(0))));
        }
        let volume = Arc::downgrade(self);
        Ok(self.rest.thread.start("vexfs-rest", move || work(&volume))?)
    }

    /// Brings to rest what waits for it, however short ago it was closed, until `deadline`. What is open goes on waiting.
    ///
    /// # Errors
    ///
    /// The first of those that kept a file from it; a failed sync ends it.
    pub fn rest_closed(&self, deadline: Instant) -> Result<()> {
        let mut first = Ok(());
        for ino in self.rest.waiting.closed() {
            if Instant::now() >= deadline {
                break;
            }
            match self.rest_file(ino, None, Pages::Keep, |_| Instant::now() < deadline) {
                Ok(()) => {}
                Err(error @ Error::Poisoned { .. }) => return Err(error),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    /// Before the volume ends. A failure leaves files for the next mount.
    pub(super) fn rest_at_end(&self) {
        if !self.life.is_read_only()
            && let Err(error) = self.rest_closed(Instant::now() + AT_END)
        {
            tracing::warn!("the last files come to rest with the next mount: {error}");
        }
    }

    /// Takes the checksums of a blob away, compared if it is not too large: from here on it may be written in place. The
    /// caller holds the inode's lock.
    ///
    /// # Errors
    ///
    /// `Corrupt`; I/O errors, and a failed sync poisons the volume.
    #[cold]
    #[inline(never)]
    pub(super) fn wake(&self, file: &OpenFile, id: BlobId, size: u64) -> Result<()> {
        file.state().rests_next = true;
        {
            let mut current = self.rest.current.lock();
            if *current == Some(id) {
                *current = None;
            }
        }
        self.compare_before_change(id, size)?;
        match self.store.wake_blob(id) {
            Ok(was_at_rest) => {
                self.rest.woken.fetch_add(u64::from(was_at_rest), Ordering::Relaxed);
                Ok(())
            }
            Err(error @ Error::Poisoned { .. }) => {
                self.poison("sync of a directory of blobs", &error);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel may read this blob by itself: if nothing is known of it that it could differ from, or it was
    /// compared with that. A large one is compared later. The caller holds the inode's lock.
    #[inline(never)]
    pub(super) fn may_be_read_unseen(&self, ino: Ino, id: BlobId, size: u64) -> Result<bool> {
        if self.store.is_compared(id) {
            return Ok(true);
        }
        if size > COMPARED_AT_ONCE {
            let is_at_rest = self.store.rested(id).is_some();
            if is_at_rest {
                self.rest.waiting.ask(ino, id);
            }
            return Ok(!is_at_rest);
        }
        match self.compare_now(id) {
            Ok(()) => Ok(true),
            // Whoever reads it through us is told where.
            Err(Error::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Compares a blob that is not too large for it before a part of it, or of a copy, is changed: what is damaged would
    /// pass for sound afterwards. The caller holds the inode's lock.
    ///
    /// # Errors
    ///
    /// `Corrupt`, I/O errors.
    pub(super) fn compare_before_change(&self, id: BlobId, size: u64) -> Result<()> {
        if size <= COMPARED_AT_ONCE { self.compare_now(id) } else { Ok(()) }
    }

    /// Compares a blob whose inode the caller has locked.
    fn compare_now(&self, id: BlobId) -> Result<()> {
        if self.store.is_compared(id) {
            return Ok(());
        }
        let checked = self.store.check_blob(id, false, 0, Pages::Keep, |_| true);
        checked.map(drop).map_err(|error| self.store.note_damage(error))
    }

    /// The last hold on a file has ended.
    pub(super) fn note_at_last_close(&self, file: &OpenFile) {
        let state = file.state();
        if state.rests_next && !state.orphan {
            drop(state);
            self.rest.waiting.note_closed(file.ino);
        }
    }

    /// Brings a file to rest if it can be. `closed` is when it was closed; without it, it waits no longer.
    fn rest_file(
        &self,
        ino: Ino,
        closed: Option<Instant>,
        pages: Pages,
        going_on: impl Fn(u64) -> bool,
    ) -> Result<()> {
        let _one_at_a_time = self.rest.one_at_a_time.lock();
        self.check_poison()?;
        let (id, size) = match self.choose(ino, closed)? {
            Choice::Read(id, size) => (id, size),
            Choice::Later(wait) => {
                self.rest.waiting.again(ino, closed.unwrap_or_else(Instant::now), wait);
                return Ok(());
            }
            Choice::Never => return Ok(()),
        };
        let drafted = self.sync_blob_by_id(id).and_then(|()| {
            self.store.draft_rest(id, pages, |done| self.rest.is_current(id) && going_on(done))
        });
        let _locked = self.names.lock(&[ino]);
        // Whoever wanted to change it has said so, with the inode locked.
        let is_undisturbed = self.rest.current.lock().take() == Some(id);
        let is_content = |content| matches!(content, Content::Blob { id: now, sealed: false } if now == id);
        let is_still_named = self.names.inode(ino).is_ok_and(|inode| is_content(inode.content));
        match drafted {
            Ok(Some(draft)) if is_undisturbed && is_still_named => {
                draft.publish(&self.store)?;
                self.rest.rested.fetch_add(1, Ordering::Relaxed);
                self.rest.bytes.fetch_add(size, Ordering::Relaxed);
                Ok(())
            }
            Ok(_) => Ok(()),
            // Removed meanwhile.
            Err(Error::Corrupt { .. }) if !is_still_named => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether a file comes to rest now. The blob that does is the current one from here on.
    fn choose(&self, ino: Ino, closed: Option<Instant>) -> Result<Choice> {
        let _locked = self.names.lock(&[ino]);
        if let Some(file) = self.files.get(ino) {
            // Its last close says so again.
            file.state().rests_next = true;
            return Ok(Choice::Never);
        }
        let inode = match self.names.inode(ino) {
            Ok(inode) => inode,
            Err(Error::NotFound) => return Ok(Choice::Never),
            Err(error) => return Err(error),
        };
        let Content::Blob { id, sealed: false } = inode.content else { return Ok(Choice::Never) };
        let due = AFTER + Duration::from_secs(inode.size / LONGER_BY);
        let age = closed.map_or(due, |closed| closed.elapsed());
        if age < due {
            return Ok(Choice::Later(due - age));
        }
        if self.marked.unsettled.contains(&ino) {
            return Ok(Choice::Later(AFTER));
        }
        if self.store.rested(id).is_some() || !self.has_room_for_sums()? {
            return Ok(Choice::Never);
        }
        // Mapped pages outlive a handle, and this daemon.
        if self.store.is_blob_open_for_writing(id) {
            return Ok(Choice::Later(AFTER));
        }
        if self.lent.remove(&id).is_some() {
            // What came through them, nobody has noted.
            self.unsynced.note(id);
        }
        *self.rest.current.lock() = Some(id);
        Ok(Choice::Read(id, inode.size))
    }

    /// Checksums take a file of their own: not the last ones that a filesystem has.
    fn has_room_for_sums(&self) -> Result<bool> {
        let space = self.store.space()?;
        let has_files = space.files == 0 || space.files_free > space.files / 16;
        match self.need_room(0) {
            Ok(()) => Ok(has_files),
            Err(Error::NoSpace) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Compares a large blob at rest from end to end.
    fn compare_asked(&self, ino: Ino, id: BlobId) -> Result<()> {
        if self.store.is_compared(id) {
            return Ok(());
        }
        let begun = Instant::now();
        let going_on = |done| self.rest.waiting.keep_to(RATE_ASKED, begun, done);
        match self.store.check_blob(id, false, 0, Pages::Keep, going_on) {
            Ok(_) => Ok(()),
            Err(Error::Corrupt { offset, .. }) => {
                self.note_if_still(ino, Content::Blob { id, sealed: false }, offset)
            }
            Err(error) => Err(error),
        }
    }

    /// Brings to rest what is found behind `after`. Returns the last inode.
    fn rest_piece(&self, after: Ino) -> Result<Option<Ino>> {
        let mut last = None;
        for inode in self.names.inodes_after(after, INODES)? {
            last = Some(inode.ino);
            // Those that were closed just now have their time.
            let is_waiting = || self.rest.waiting.has(inode.ino);
            if matches!(inode.content, Content::Blob { sealed: false, .. }) && !is_waiting() {
                let begun = Instant::now();
                let going_on = |done| self.rest.waiting.keep_to(RATE, begun, done);
                match self.rest_file(inode.ino, None, Pages::Drop, going_on) {
                    Ok(()) => {}
                    Err(error @ Error::Poisoned { .. }) => return Err(error),
                    // Others are not kept from it.
                    Err(error) => tracing::debug!("inode {} does not come to rest: {error}", inode.ino.0),
                }
                if !self.rest.waiting.idle_after(begun) {
                    break;
                }
            }
        }
        Ok(last)
    }

    /// Does one thing.
    fn rest_once(&self, task: Task) -> Result<()> {
        let begun = Instant::now();
        let going_on = |done| self.rest.waiting.keep_to(RATE, begun, done);
        match task {
            Task::Rest(ino, closed) => self.rest_file(ino, Some(closed), Pages::Keep, going_on)?,
            Task::Compare(ino, id) => return self.compare_asked(ino, id),
            Task::Pass(after) => {
                let next = self.rest_piece(after)?;
                self.rest.waiting.set_pass(next.map(|last| (Instant::now() + begun.elapsed(), last)));
            }
            Task::Wait(_) | Task::End => {}
        }
        self.rest.waiting.idle_after(begun);
        Ok(())
    }
}

fn work(volume: &Weak<Volume>) {
    loop {
        let Some(strong) = volume.upgrade() else { return };
        match strong.rest.waiting.next() {
            Task::End => return,
            Task::Wait(until) => {
                // It may end while nothing is done.
                let rest = Arc::clone(&strong.rest);
                drop(strong);
                rest.waiting.wait(until);
            }
            task => match outlive(&strong.metrics, "rest", || strong.rest_once(task)) {
                Some(Ok(())) => {}
                // Said when it happened.
                Some(Err(Error::Poisoned { .. })) => return,
                Some(Err(error)) => {
                    tracing::warn!("a file does not come to rest: {error}");
                    strong.rest.waiting.pause(AFTER);
                }
                None => {
                    strong.rest.waiting.pause(AFTER);
                }
            },
        }
    }
}
