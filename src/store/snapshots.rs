//! Where snapshots lie in the store: `snapshots/NAME/` with a catalog, graphs and a note.
//!
//! A snapshot is made under a name that none has, and renamed when all of it is on the disk; it is removed by
//! renaming it away first. So there is none of which a part is missing, whenever the process or the power ends.
//! What is left under the two other names is removed by the next open.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::directory::{create_file, make_dir, open_file, sync_dir};
use super::{Named, Store, io as store_error};
use crate::{Error, Result};

/// Directory of the snapshots in the store.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// One that is being made, and one that is being removed.
const NEW: &str = ".new";
const GONE: &str = ".gone";

/// The note of a snapshot, and its longest length in bytes.
const NOTE: &str = "snapshot";
const NOTE_MAX: u64 = 4096;

/// What its catalog names, once somebody had to know.
const NAMED: &str = "named";

const CHECKSUM_BYTES: usize = 8;

/// A snapshot that is being made. Dropped before [`publish`](Self::publish), it is removed.
#[derive(Debug)]
pub struct Draft {
    snapshots: PathBuf,
    is_published: bool,
}

impl Draft {
    /// Where its catalog goes. It is not there yet.
    #[must_use]
    pub fn catalog_dir(&self) -> PathBuf {
        self.dir().join("catalog")
    }

    fn dir(&self) -> PathBuf {
        self.snapshots.join(NEW)
    }

    /// Gives it its name. The catalog is durable but for its own entry. The snapshot survives a power cut when
    /// [`Store::sync_snapshots`] has returned, and may do so before.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::NoSpace`], I/O errors.
    pub fn publish(mut self, name: &OsStr, note: &[u8]) -> Result<()> {
        let published = (|| {
            let mut file = create_file(&self.dir().join(NOTE))?;
            file.write_all(note)?;
            file.write_all(&xxh3_64(note).to_le_bytes())?;
            file.sync_all()?;
            sync_dir(&self.dir().join("index"))?;
            sync_dir(&self.dir())?;
            fs::rename(self.dir(), self.snapshots.join(name))
        })();
        self.is_published = published.is_ok();
        published.map_err(store_error)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_published
            && let Err(error) = remove_dir(&self.dir())
        {
            tracing::warn!(%error, "a snapshot that was not finished stays until the next open");
        }
    }
}

impl Store {
    /// The names of the snapshots, in their order.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn snapshot_names(&self) -> Result<Vec<OsString>> {
        let listing = match fs::read_dir(self.home.dir.join(SNAPSHOTS)) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(store_error(error)),
        };
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry.map_err(store_error)?;
            if entry.file_type().map_err(store_error)?.is_dir()
                && ![NEW, GONE].iter().any(|own| entry.file_name() == *own)
            {
                names.push(entry.file_name());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The directory of a snapshot, whether it exists or not.
    #[must_use]
    pub fn snapshot_dir(&self, name: &OsStr) -> PathBuf {
        self.home.dir.join(SNAPSHOTS).join(name)
    }

    /// The note that a snapshot was published with.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`], I/O errors.
    pub fn snapshot_note(&self, name: &OsStr) -> Result<Vec<u8>> {
        let path = self.snapshot_dir(name).join(NOTE);
        let mut bytes = Vec::new();
        let read = open_file(&path, false).and_then(|file| file.take(NOTE_MAX).read_to_end(&mut bytes));
        let corrupt = |what: &str| Error::Corrupt {
            file: format!("{SNAPSHOTS}/{}/{NOTE}", name.display()),
            offset: 0,
            what: what.into(),
        };
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt("the file is missing"));
            }
            Err(error) => return Err(store_error(error)),
        }
        let body = bytes.len().saturating_sub(CHECKSUM_BYTES);
        if bytes[body..] != xxh3_64(&bytes[..body]).to_le_bytes() {
            return Err(corrupt("checksum does not match"));
        }
        bytes.truncate(body);
        Ok(bytes)
    }

    /// What the snapshot names, if it was [kept](Self::keep_named) and can be read.
    #[must_use]
    pub fn kept_named(&self, name: &OsStr) -> Option<Named> {
        let bytes = fs::read(self.snapshot_dir(name).join(NAMED)).ok()?;
        let mut numbers = Vec::with_capacity(bytes.len() / 8);
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            numbers.push(u64::from_le_bytes(chunk.try_into().ok()?));
        }
        let (&checksum, numbers) = numbers.split_last()?;
        let (&stamp, numbers) = numbers.split_first()?;
        let is_whole = chunks.remainder().is_empty() && checksum == xxh3_64(&bytes[..bytes.len() - 8]);
        let is_its_own = stamp == xxh3_64(&self.snapshot_note(name).ok()?);
        if is_whole && is_its_own { Named::from_numbers(numbers) } else { None }
    }

    /// Keeps what the snapshot names, so that its catalog need not be read again. Derived state: it is not synced, and
    /// what is left of it is told by its checksum.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the snapshot has no note, I/O errors.
    pub fn keep_named(&self, name: &OsStr, named: &Named) -> Result<()> {
        let stamp = xxh3_64(&self.snapshot_note(name)?);
        let numbers = std::iter::once(stamp).chain(named.to_numbers());
        let mut bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        let path = self.snapshot_dir(name).join(NAMED);
        let beside = path.with_extension("tmp");
        fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, &path)).map_err(store_error)
    }

    /// Begins a snapshot: one at a time. The graphs that are saved now are already in it.
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`] after [`close`](Store::close), [`Error::NoSpace`], I/O errors.
    pub fn begin_snapshot(&self) -> Result<Draft> {
        self.refuse_when_closed()?;
        let snapshots = self.home.dir.join(SNAPSHOTS);
        if make_dir(&snapshots).map_err(store_error)? {
            sync_dir(&self.home.dir).map_err(store_error)?;
        }
        let draft = Draft { snapshots, is_published: false };
        remove_dir(&draft.dir()).map_err(store_error)?;
        make_dir(&draft.dir()).map_err(store_error)?;
        link_graphs(&self.index_dir(), &draft.dir().join("index")).map_err(store_error)?;
        Ok(draft)
    }

    /// Takes a snapshot its name. It does not come back when [`sync_snapshots`](Self::sync_snapshots) has returned; then
    /// its [files go](Self::clear_removed), and what only it named is free once the caller has said so.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], I/O errors.
    pub fn remove_snapshot(&self, name: &OsStr) -> Result<()> {
        let snapshots = self.home.dir.join(SNAPSHOTS);
        let gone = snapshots.join(GONE);
        remove_dir(&gone).map_err(store_error)?;
        match fs::rename(snapshots.join(name), &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotFound),
            other => other.map_err(store_error),
        }
    }

    /// Makes the names of the snapshots durable.
    ///
    /// # Errors
    ///
    /// I/O errors: a snapshot may then have the name that it had before, or the one that it was given. It must be left
    /// as it is, with all that it names, until the store is opened again.
    pub fn sync_snapshots(&self) -> Result<()> {
        self.refuse_when_poisoned()?;
        let synced = sync_dir(&self.home.dir.join(SNAPSHOTS)).map_err(store_error);
        synced.inspect_err(|error| self.poison(error))
    }

    /// Removes the files of a snapshot that has lost its name for good.
    pub fn clear_removed(&self) {
        if let Err(error) = remove_dir(&self.home.dir.join(SNAPSHOTS).join(GONE)) {
            tracing::warn!(%error, "files of a snapshot that was removed stay until the next open");
        }
    }

    /// Puts the graphs of a snapshot in the place of those that are saved. Each is one that the store had at an
    /// earlier time, which is right for the catalog of now as well.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn restore_graphs(&self, name: &OsStr) -> Result<()> {
        let restored = (|| {
            for entry in fs::read_dir(self.index_dir())? {
                fs::remove_file(entry?.path())?;
            }
            sync_dir(&self.index_dir())?;
            link_graphs(&self.snapshot_dir(name).join("index"), &self.index_dir())?;
            sync_dir(&self.index_dir())
        })();
        restored.map_err(store_error)
    }
}

/// Removes what was begun and not ended.
///
/// # Errors
///
/// I/O errors.
pub(super) fn clean(dir: &Path) -> io::Result<()> {
    [NEW, GONE].iter().try_for_each(|own| remove_dir(&dir.join(SNAPSHOTS).join(own)))
}

/// Removes a directory with everything in it; one that is not there is removed.
pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Links the checkpoints of graphs, which are never changed, from one directory to another, which is made if it is
/// not there. They are derived state: one that cannot be linked is left out.
fn link_graphs(from: &Path, to: &Path) -> io::Result<()> {
    make_dir(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let is_whole = path.extension().is_some_and(|extension| extension != "tmp");
        if let (true, Some(name)) = (is_whole, path.file_name())
            && let Err(error) = fs::hard_link(&path, to.join(name))
        {
            tracing::warn!(path = %path.display(), %error, "a snapshot goes without this graph");
        }
    }
    File::open(to)?.sync_all()
}
