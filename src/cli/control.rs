//! Files of a directory's `.vexfs`, for commands that work through a mount.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use super::exit::{Code, Failure};

/// An open control file.
#[derive(Debug)]
pub(super) struct ControlFile {
    pub(super) file: File,
    /// Its path, for messages.
    pub(super) path: PathBuf,
    /// The ordinary directory, without symbolic links.
    pub(super) dir: PathBuf,
}

/// Opens `.vexfs/NAME` of `dir`.
///
/// # Errors
///
/// `Invalid` when `dir` is no directory, `NotMounted` when it lies in no VexFS mount or a dead one, and as the mount
/// answers.
pub(super) fn open(dir: &Path, name: &str, how: &OpenOptions) -> Result<ControlFile, Failure> {
    let real = dir.canonicalize().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTCONN) => not_mounted(dir, "dead mount: its process has ended"),
        _ => Failure::new(Code::Invalid, format!("{}: {error}", dir.display())),
    })?;
    let path = real.join(".vexfs").join(name);
    match how.open(&path) {
        Ok(file) => Ok(ControlFile { file, path, dir: real }),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::ENOENT) => not_mounted(dir, "not in a VexFS mount"),
            Some(libc::ENOTDIR) => Failure::new(Code::Invalid, format!("{}: not a directory", dir.display())),
            Some(libc::ENOTCONN) => not_mounted(dir, "dead mount: its process has ended"),
            _ => Failure::io(&path, &error),
        }),
    }
}

fn not_mounted(dir: &Path, why: &str) -> Failure {
    Failure::new(Code::NotMounted, format!("{}: {why}", dir.display()))
}

/// A short extended attribute as text, where there is one.
pub(super) fn attribute(path: &Path, name: &str) -> Option<String> {
    let mut value = [0u8; 1024];
    let len = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    Some(String::from_utf8_lossy(&value[..len]).into_owned())
}
