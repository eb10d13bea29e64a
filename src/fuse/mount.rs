//! The life of a mount: from the first handshake with the kernel to the closed volume.

use std::io;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, Session, SessionACL};
use parking_lot::{Condvar, Mutex};

use super::attach;
use super::dispatch::Door;
use crate::volume::Volume;
use crate::{Error, Result};

/// How long requests may still run once the mount is to end.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// How a volume is mounted.
///
/// Whether it can be changed is the volume's own business. The kernel is not told: it would then refuse to open
/// anything for writing, also the file that search requests are written into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Programs on the mount cannot be executed.
    pub no_exec: bool,
    /// Other users than the one who mounts may use it, as far as modes and owners allow.
    pub allow_other: bool,
    /// Threads that answer the kernel, within [`THREADS`](Self::THREADS).
    pub threads: usize,
    /// The stack that each operation uses is measured, which costs some microseconds of each.
    pub stack_probe: bool,
}

impl MountOptions {
    /// How many threads may answer the kernel.
    pub const THREADS: RangeInclusive<usize> = 1..=64;
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { no_exec: false, allow_other: false, threads: 4, stack_probe: false }
    }
}

/// A volume that is being served. Dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    ending: Arc<Ending>,
    session: Mutex<Option<Served>>,
}

/// Serves `volume` on the directory `mountpoint`. When this returns, the mount answers.
///
/// The volume is closed when the mount ends, however it ends, and also when this fails.
///
/// # Errors
///
/// I/O errors with a sentence: no FUSE in the kernel, no helper for an ordinary user, the mount refused.
/// `Invalid` when `options.threads` is out of range.
pub fn mount(volume: Arc<Volume>, mountpoint: &Path, options: &MountOptions) -> Result<Mounted> {
    let ending = Arc::new(Ending::new(volume.clone()));
    match serve(volume, &ending, mountpoint, options) {
        Ok(served) => {
            Ok(Mounted { mountpoint: mountpoint.to_path_buf(), ending, session: Mutex::new(Some(served)) })
        }
        Err(error) => {
            ending.close();
            Err(error)
        }
    }
}

fn serve(
    volume: Arc<Volume>,
    ending: &Arc<Ending>,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Served> {
    if !MountOptions::THREADS.contains(&options.threads) {
        return Err(Error::Invalid("number of threads"));
    }
    // As mount(8) resolves it before it compares.
    let store = volume.store_dir().canonicalize()?;
    let door = Door::new(volume, ending.clone(), options)?;
    let tellers = door.tellers();
    let config = session_config(options);
    let connection = match attach::attach(&store, mountpoint, options)? {
        Some(connection) => connection,
        None => attach::attach_with_helper(&store, mountpoint, options)?,
    };
    let session = Session::from_fd(door, connection, config.acl, config);
    let told = session.and_then(|session| tellers(&|| session.notifier()).map(|()| session));
    let session = told.and_then(Session::spawn).inspect_err(|_| {
        if let Err(error) = attach::unmount(mountpoint, true) {
            tracing::warn!("{}: unmount: {error}", mountpoint.display());
        }
    })?;
    Ok(Served { session })
}

/// How fuser serves a mount with these options.
pub(super) fn session_config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    // The kernel keeps strangers away. Who has changed its user since an open, or was given a descriptor, is none.
    config.acl = SessionACL::All;
    config.n_threads = Some(options.threads);
    // Each worker has its own queue then. A user whom only the helper lets in cannot open the device again.
    config.clone_fd = attach::open_device().is_ok();
    config
}

impl Mounted {
    /// Waits until the mount has ended, by [`unmount`](Self::unmount) or from outside, and the volume is closed.
    ///
    /// # Errors
    ///
    /// What closing the volume reported, to the first who waits; else what ended the conversation with the kernel
    /// before its time.
    pub fn wait(&self) -> Result<()> {
        self.ending.wait(None);
        let closed = self.ending.result();
        let session = if self.ending.session_ended.load(Ordering::Acquire) {
            self.session.lock().take().map_or(Ok(()), Served::join)
        } else {
            Ok(())
        };
        closed.and(session.map_err(Error::Io))
    }

    /// Unmounts, lazily when the mount is in use, gives requests that are under way up to 5 s, and closes the
    /// volume. What it reports is what [`wait`](Self::wait) returns.
    ///
    /// # Errors
    ///
    /// When it cannot be unmounted; it is then still served.
    pub fn unmount(&self) -> Result<()> {
        if self.ending.wait(Some(Duration::ZERO)) {
            return Ok(());
        }
        match attach::unmount(&self.mountpoint, false) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                tracing::warn!("{}: in use, unmounting lazily", self.mountpoint.display());
                attach::unmount(&self.mountpoint, true)?;
            }
            // Somebody else was faster.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
        if !self.ending.wait(Some(GRACE)) {
            tracing::warn!("{}: still in use, closing the store all the same", self.mountpoint.display());
            self.ending.close();
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!("{}: unmount: {error}", self.mountpoint.display());
        }
    }
}

/// A connection that is being served. Taking the mount off is [`attach::unmount`]'s alone.
#[derive(Debug)]
struct Served {
    session: BackgroundSession,
}

impl Served {
    /// The result of a session that has ended, or is about to.
    fn join(self) -> io::Result<()> {
        self.session.join()
    }
}

/// The end of a mount: closes the volume once, whoever comes first, and tells those who wait.
#[derive(Debug)]
pub(super) struct Ending {
    volume: Arc<Volume>,
    /// The kernel's side is over too, so the session can be joined.
    session_ended: AtomicBool,
    stage: Mutex<Stage>,
    changed: Condvar,
}

#[derive(Debug)]
enum Stage {
    Serving,
    Closing,
    /// With the result until somebody has taken it.
    Closed(Option<Result<()>>),
}

impl Ending {
    pub(super) fn new(volume: Arc<Volume>) -> Self {
        Self {
            volume,
            session_ended: AtomicBool::new(false),
            stage: Mutex::new(Stage::Serving),
            changed: Condvar::new(),
        }
    }

    /// Called when the session has ended.
    pub(super) fn session_ended(&self) {
        self.session_ended.store(true, Ordering::Release);
        self.close();
    }

    /// Closes the volume, unless that is done or under way.
    fn close(&self) {
        {
            let mut stage = self.stage.lock();
            if !matches!(*stage, Stage::Serving) {
                return;
            }
            *stage = Stage::Closing;
        }
        // A panic must not leave those who wait without an end.
        let result = catch_unwind(AssertUnwindSafe(|| self.volume.close()))
            .unwrap_or_else(|_| Err(io::Error::other("panic while the store was closed").into()));
        *self.stage.lock() = Stage::Closed(Some(result));
        self.changed.notify_all();
    }

    /// Waits until the volume is closed, but no longer than `limit`. Says whether it is.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut stage = self.stage.lock();
        while !matches!(*stage, Stage::Closed(_)) {
            match deadline {
                None => self.changed.wait(&mut stage),
                Some(deadline) => {
                    if self.changed.wait_until(&mut stage, deadline).timed_out() {
                        return matches!(*stage, Stage::Closed(_));
                    }
                }
            }
        }
        true
    }

    fn result(&self) -> Result<()> {
        match &mut *self.stage.lock() {
            Stage::Serving | Stage::Closing => Ok(()),
            Stage::Closed(result) => result.take().unwrap_or(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::VolumeOptions;

    #[test]
    fn the_volume_is_closed_once_and_its_result_goes_to_the_first_who_waits() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let open = || {
            Volume::open(VolumeOptions { store: store.clone(), mountpoint: None, read_only: false }).unwrap()
        };
        let ending = Arc::new(Ending::new(open()));
        assert!(!ending.wait(Some(Duration::ZERO)));
        let waiting = {
            let ending = ending.clone();
            std::thread::spawn(move || ending.wait(None))
        };
        ending.close();
        ending.session_ended();
        assert!(waiting.join().unwrap());
        assert!(matches!(&*ending.stage.lock(), Stage::Closed(Some(Ok(())))));
        ending.result().unwrap();
        assert!(matches!(&*ending.stage.lock(), Stage::Closed(None)));
        ending.result().unwrap();
    }

    #[test]
    fn a_mount_that_fails_closes_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let options = VolumeOptions { store: store.clone(), mountpoint: None, read_only: false };
        let volume = Volume::open(options.clone()).unwrap();
        let threads = MountOptions { threads: 0, ..MountOptions::default() };
        let error = mount(volume, dir.path(), &threads).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
        // The lock went with the last reference, so the store opens again.
        Volume::open(options).unwrap().close().unwrap();
    }
}
