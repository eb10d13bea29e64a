//! Opening the engine anew after the disk was full.
//!
//! The engine takes no commit after one that failed, and none after its own thread failed, which writes tables and
//! merges them, whatever the reason was. For want of room nothing is lost by that: what is committed is in the
//! journals, and half of a table is nobody's. So the engine is closed and opened again on the files as they are, by
//! the commit that finds it so, and the commit is tried again.
//!
//! ```text
//! commit ──▶ the engine has failed ──▶ syncfs ──▶ readers let go ──▶ close, cut the journals, open ──▶ commit
//!                                        │ a write or sync failed since the catalog was opened
//!                                        ▼ the error stays: the volume refuses changes
//! ```
//!
//! The journals go up to 64 MB before the engine begins another, and have all that is in tables as well. On a disk with
//! little room they are emptied while the engine is closed, or the thread would find no room to merge tables again and
//! again, while the room that it needs lies there twice.
//!
//! Why its thread failed, the engine does not say. It may have been a sync; after one that failed nothing may go on.
//! So everything is synced first, by a descriptor that is as old as the catalog: the kernel reports there every write
//! that failed since. And where there is a lot of room, an engine that fails twice within [`PAUSE`] is given up.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::statvfs::fstatvfs;
use nix::unistd::syncfs;
use parking_lot::Mutex;

use super::batch::Item;
use super::{Catalog, journal};
use crate::{Error, Result};

/// How long readers are waited for, and how long at a time they are kept from coming.
const LETTING_GO: Duration = Duration::from_secs(2);
const HOLDING_OFF: Duration = Duration::from_millis(20);

/// With fewer bytes on the disk the engine may have had no room: it merges tables of some ten MiB.
const LITTLE_ROOM: u64 = 256 << 20;

/// Where there is more, it may fail once in this time.
const PAUSE: Duration = Duration::from_secs(60);

/// When the engine was opened anew, and what that needs.
#[derive(Debug)]
pub(super) struct Revivals {
    /// The catalog's directory, open since the catalog is.
    disk: File,
    /// When the engine's thread was last found to have failed.
    last: Mutex<Option<Instant>>,
    /// The engine failed for another reason than a full disk, or could not be opened anew.
    is_broken: AtomicBool,
}

impl Revivals {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self { disk: File::open(dir)?, last: Mutex::new(None), is_broken: AtomicBool::new(false) })
    }

    /// Whether the engine that answered `error` may go on.
    fn permits(&self, error: &fjall::Error) -> bool {
        let permits = match error {
            fjall::Error::Io(error) => is_full(error),
            fjall::Error::Poisoned => {
                let before = self.last.lock().replace(Instant::now());
                before.is_none_or(|before| before.elapsed() > PAUSE) || self.has_little_room()
            }
            _ => false,
        };
        if !permits {
            self.is_broken.store(true, Ordering::Release);
        }
        !self.is_broken.load(Ordering::Acquire)
    }

    fn has_little_room(&self) -> bool {
        let room = fstatvfs(&self.disk).map(|disk| disk.blocks_available() * disk.fragment_size());
        room.is_ok_and(|room| room < LITTLE_ROOM)
    }

    /// Bytes that are free on the disk, what is kept for root included: without that right a write fails, and nothing
    /// is lost.
    fn free_bytes(&self) -> u64 {
        fstatvfs(&self.disk).map_or(0, |disk| disk.blocks_free() * disk.fragment_size())
    }
}

impl Catalog {
    /// Applies `items`, which take `bytes` of the journal, as what makes the commit `number` the engine's last, after it
    /// answered `error` to that and had `last` before. The caller has the lock of commits.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when there is no room still: nothing is applied. After another error the engine takes no
    /// commit any more.
    #[cold]
    #[inline(never)]
    pub(super) fn commit_anew(
        &self,
        mut error: fjall::Error,
        items: &[Item],
        bytes: usize,
        last: u64,
        number: u64,
    ) -> Result<()> {
        for is_last in [false, true] {
            if !self.revivals.permits(&error) {
                return Err(error.into());
            }
            // Also after the last try: what is left of the commit in memory is written when the engine is closed, and
            // that must not happen when the next one has its number.
            self.revive(last).inspect_err(|error| {
                let is_over = !matches!(error, Error::NoSpace);
                self.revivals.is_broken.fetch_or(is_over, Ordering::AcqRel);
            })?;
            let engine = self.engine()?;
            if engine.commits()? == number {
                return Ok(());
            }
            if is_last {
                break;
            }
            self.active.make_room(&self.dir, bytes)?;
            self.active.take(bytes);
            match engine.commit(items, number) {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
            }
        }
        Err(Error::NoSpace)
    }

    /// Closes the engine and opens it again. It must have `last` commits then.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when readers do not let go of it; it is as it was then. I/O errors; [`Error::Corrupt`]:
    /// nothing can be read any more if the engine is closed by then.
    fn revive(&self, last: u64) -> Result<()> {
        syncfs(&self.revivals.disk).map_err(io::Error::from)?;
        let deadline = Instant::now() + LETTING_GO;
        let mut place = loop {
            if let Some(place) = self.engine.try_write_for(HOLDING_OFF) {
                break place;
            }
            if Instant::now() > deadline {
                return Err(Error::NoSpace);
            }
        };
        let begun = Instant::now();
        drop(place.take());
        self.active.forget();
        journal::drop_torn_tail(&self.dir)?;
        let has_emptied =
            self.revivals.has_little_room() && self.empty_journals(self.revivals.free_bytes())?;
        let engine = self.open_engine()?;
        let found = engine.commits()?;
        if found < last {
            let what = format!("{last} commits were made, and {found} are there");
            return Err(Error::Corrupt { file: "catalog".into(), offset: 0, what });
        }
        *place = Some(engine);
        let took = begun.elapsed();
        tracing::warn!(has_emptied, "the disk was full: the catalog was opened anew in {took:?}");
        Ok(())
    }
}

/// Whether a call failed for want of room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
