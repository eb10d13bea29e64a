//! A file that appears under its name when it is whole. Until then it has no name where the filesystem can do that, so
//! that a command that is killed leaves nothing; elsewhere it is `.vexfs-*.part`, which a kill leaves behind.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tempfile::TempPath;

use super::exit::{Code, Failure};

/// Before the umask.
const MODE: u32 = 0o666;

/// A file that is being written.
pub(super) struct Target {
    path: PathBuf,
    dir: PathBuf,
    file: File,
    /// Its name until it is whole, where it needs one. Removed when dropped.
    temporary: Option<TempPath>,
    replace: bool,
}

impl Target {
    /// Begins to write what will be `path`.
    ///
    /// # Errors
    ///
    /// `Invalid` when something has the name that may not be replaced; what the directory answers.
    pub(super) fn create(path: &Path, replace: bool) -> Result<Self, Failure> {
        match path.symlink_metadata() {
            Ok(found) if replace && found.is_file() => {}
            Ok(_) if replace => return Err(refused(path, "not a regular file, so it is not replaced")),
            Ok(_) => return Err(exists(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::io(path, &error)),
        }
        let dir = match path.parent() {
            Some(dir) if dir != Path::new("") => dir.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let (file, temporary) = match rustix::fs::open(&dir, flags, Mode::from_raw_mode(MODE)) {
            Ok(file) => (File::from(file), None),
            Err(_) => {
                let named = named()
                    .permissions(Permissions::from_mode(MODE))
                    .tempfile_in(&dir)
                    .map_err(|error| Failure::io(&dir, &error))?;
                let (file, temporary) = named.into_parts();
                (file, Some(temporary))
            }
        };
        Ok(Self { path: path.into(), dir, file, temporary, replace })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file durable, gives it its name, and makes that durable.
    ///
    /// # Errors
    ///
    /// `Invalid` when something else has got the name meanwhile; what the filesystem answers.
    pub(super) fn commit(self) -> Result<(), Failure> {
        self.file.sync_all().map_err(|error| Failure::io(&self.path, &error))?;
        let dir = self.dir.clone();
        self.place()?;
        File::open(&dir).and_then(|dir| dir.sync_all()).map_err(|error| Failure::io(&dir, &error))
    }

    /// Gives the file its name; the next sync makes it durable.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub(super) fn place(self) -> Result<(), Failure> {
        let Self { path, dir, file, temporary, replace } = self;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&path),
            _ => Failure::io(&path, &error),
        };
        let Some(temporary) = temporary else {
            return match link(&file, &path) {
                Err(error) if replace && error.kind() == io::ErrorKind::AlreadyExists => {
                    // A link replaces nothing, so the file gets a name of its own first.
                    let spare = named().make_in(&dir, |spare| link(&file, spare)).map_err(failed)?;
                    spare.into_temp_path().persist(&path).map_err(|error| failed(error.error))
                }
                linked => linked.map_err(failed),
            };
        };
        // Under a vector file's name a mount has its vectors once the last writer has closed it.
        drop(file);
        let placed = if replace { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        placed.map_err(|error| failed(error.error))
    }
}

/// Names of files that are not whole yet: those of ordinary files wherever they are.
fn named() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".vexfs-").suffix(".part");
    builder
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from)
}

fn exists(path: &Path) -> Failure {
    refused(path, "exists; --force replaces it")
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::new(Code::Invalid, format!("{}: {why}", path.display()))
}
