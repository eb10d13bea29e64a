//! `vexfs umount`: ends a mount, and waits until its store can be opened again.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::exit::{Code, Failure, Outcome};
use crate::fuse;
use crate::fuse::mounts::{self, Mount};

/// How long the daemon may take to close its store.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time between two looks at the store's lock.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Args, Debug)]
pub(super) struct Umount {
    /// The directory that is mounted on
    mountpoint: PathBuf,
    /// Take it off also while it is in use; who uses it keeps what is open
    #[arg(short, long)]
    lazy: bool,
}

impl Umount {
    pub(super) fn run(&self) -> Outcome {
        // The daemon is not asked for anything: it may be stuck.
        let mount = find(&self.mountpoint)?;
        if let Err(error) = fuse::unmount(&mount.mountpoint, self.lazy) {
            return Err(refused(&mount.mountpoint, &error));
        }
        // A lazy end comes when the last user has gone, whenever that is.
        if self.lazy { Ok(Code::Ok) } else { wait_for_release(&mount.source) }
    }
}

/// The resolved path of a directory that a VexFS mount is on.
///
/// # Errors
///
/// `NotMounted` when there is none.
pub(super) fn mounted(mountpoint: &Path) -> Result<PathBuf, Failure> {
    find(mountpoint).map(|mount| mount.mountpoint)
}

fn find(mountpoint: &Path) -> Result<Mount, Failure> {
    let none = |why: &str| Failure::new(Code::NotMounted, format!("{}: {why}", mountpoint.display()));
    let resolved = mounts::resolve(mountpoint).map_err(|error| none(&error.to_string()))?;
    match mounts::at(&resolved) {
        Ok(Some(mount)) if mount.is_vexfs() => Ok(mount),
        Ok(_) => Err(none("not a VexFS mount")),
        Err(error) => Err(Failure::new(Code::FAILED, format!("table of mounts: {error}"))),
    }
}

fn refused(mountpoint: &Path, error: &io::Error) -> Failure {
    let why = match error.kind() {
        io::ErrorKind::ResourceBusy => {
            "in use: close the files and leave the directories below it, or unmount with --lazy".to_owned()
        }
        _ => error.to_string(),
    };
    Failure::new(Code::FAILED, format!("{}: {why}", mountpoint.display()))
}

/// Waits until nobody holds the store, so that a mount may follow at once.
fn wait_for_release(store: &Path) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while is_held(store) {
        if Instant::now() >= deadline {
            let message = format!("{}: unmounted, its process is still closing the store", store.display());
            return Err(Failure::new(Code::NotReady, message));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Code::Ok)
}

/// Whether a process holds the store's lock. What cannot be read belongs to somebody else and is not waited for.
fn is_held(store: &Path) -> bool {
    let Ok(lock) = File::open(store.join("lock")) else {
        return false;
    };
    // A shared lock is compatible with others who only look, and goes with the file.
    matches!(lock.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_is_not_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        let failure = mounted(dir.path()).unwrap_err();
        assert_eq!(failure.code, Code::NotMounted);
        assert!(failure.message.ends_with("not a VexFS mount"), "{}", failure.message);
        let failure = mounted(&dir.path().join("absent/below")).unwrap_err();
        assert_eq!(failure.code, Code::NotMounted);
    }

    #[test]
    fn a_store_is_held_while_its_lock_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()), "no lock file");
        let lock = File::create(dir.path().join("lock")).unwrap();
        assert!(!is_held(dir.path()));
        lock.lock().unwrap();
        assert!(is_held(dir.path()));
        drop(lock);
        assert!(!is_held(dir.path()));
    }

    #[test]
    fn busy_says_what_to_do() {
        let failure = refused(Path::new("/mnt/v"), &io::Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(failure.code, Code::FAILED);
        assert!(failure.message.starts_with("/mnt/v: in use"), "{}", failure.message);
        assert!(failure.message.contains("--lazy"), "{}", failure.message);
    }
}
