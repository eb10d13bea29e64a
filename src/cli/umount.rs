//! `vexfs umount`: ends a mount, and waits until its store can be opened again.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::{Code, Failure, Outcome};
use super::release;
use crate::fuse;
use crate::fuse::mounts::{self, Mount};

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
        if !self.lazy && !release::wait(&mount.source) {
            let message =
                format!("{}: unmounted, its process is still closing the store", mount.source.display());
            return Err(Failure::new(Code::NotReady, message));
        }
        Ok(Code::Ok)
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
    fn busy_says_what_to_do() {
        let failure = refused(Path::new("/mnt/v"), &io::Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(failure.code, Code::FAILED);
        assert!(failure.message.starts_with("/mnt/v: in use"), "{}", failure.message);
        assert!(failure.message.contains("--lazy"), "{}", failure.message);
    }
}
