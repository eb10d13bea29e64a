//! A volume in a temporary directory, with paths for names.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use vexfs::namespace::{Ino, Kind};
use vexfs::volume::check::{Repair, fsck};
use vexfs::volume::{Attr, Caller, Handle, OpenFlags, RenameMode, SetAttr, Volume, VolumeOptions};
use vexfs::{Error, Result};

pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };
pub const USER: Caller = Caller { uid: 1000, gid: 1000, pid: 0 };

pub const READ: OpenFlags =
    OpenFlags { read: true, write: false, append: false, truncate: false, exclusive: false };
pub const WRITE: OpenFlags = OpenFlags { write: true, ..READ };
pub const TRUNCATE: OpenFlags = OpenFlags { truncate: true, ..WRITE };

pub struct Fs {
    pub volume: Arc<Volume>,
    pub store: TempDir,
}

impl Fs {
    pub fn new() -> Self {
        let store = tempfile::tempdir().unwrap();
        Self { volume: open(store.path()), store }
    }

    /// Closes and opens again.
    pub fn reopen(self) -> Self {
        let store = self.shut();
        Self { volume: open(store.path()), store }
    }

    /// Closes. What is left is checked.
    pub fn shut(self) -> TempDir {
        self.volume.close().unwrap();
        let Self { volume, store } = self;
        drop(volume);
        let report = fsck(store.path(), Repair::No).unwrap();
        assert!(report.findings.is_empty() && !report.ended_uncleanly, "{report:#?}");
        store
    }

    /// The volume of a store that [`shut`](Self::shut) gave, or a copy of it.
    pub fn on(store: TempDir) -> Self {
        Self { volume: open(store.path()), store }
    }

    pub fn reopen_read_only(self) -> Self {
        self.volume.close().unwrap();
        let Self { volume, store } = self;
        drop(volume);
        let options = VolumeOptions { store: store.path().to_path_buf(), mountpoint: None, read_only: true };
        Self { volume: Volume::open(options).unwrap(), store }
    }

    /// What another process would find if this one were killed now.
    pub fn killed_copy(&self) -> Self {
        self.damaged_copy(|store| {
            let report = fsck(store, Repair::No).unwrap();
            assert!(report.is_sound(), "{report:#?}");
        })
    }

    /// A killed copy whose store directory was worked on before it is opened.
    pub fn damaged_copy(&self, damage: impl FnOnce(&Path)) -> Self {
        let store = tempfile::tempdir().unwrap();
        copy_tree(self.store.path(), store.path());
        damage(store.path());
        Self { volume: open(store.path()), store }
    }

    pub fn store(&self) -> &Path {
        self.store.path()
    }

    /// The directory and the last name of a path.
    pub fn split<'a>(&self, path: &'a str) -> Result<(Ino, &'a [u8])> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.ino(dir)?, name.as_bytes()))
    }

    pub fn ino(&self, path: &str) -> Result<Ino> {
        path.split('/')
            .filter(|name| !name.is_empty())
            .try_fold(Ino::ROOT, |dir, name| Ok(self.volume.lookup(&ROOT, dir, name.as_bytes())?.ino))
    }

    pub fn stat(&self, path: &str) -> Result<Attr> {
        self.volume.getattr(self.ino(path)?)
    }

    pub fn mkdir(&self, path: &str) -> Result<Attr> {
        let (dir, name) = self.split(path)?;
        self.volume.mkdir(&ROOT, dir, name, 0o755)
    }

    pub fn unlink(&self, path: &str) -> Result<()> {
        let (dir, name) = self.split(path)?;
        self.volume.unlink(&ROOT, dir, name)
    }

    pub fn rmdir(&self, path: &str) -> Result<()> {
        let (dir, name) = self.split(path)?;
        self.volume.rmdir(&ROOT, dir, name)
    }

    pub fn link(&self, from: &str, to: &str) -> Result<Attr> {
        let (dir, name) = self.split(to)?;
        self.volume.link(&ROOT, self.ino(from)?, dir, name)
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.rename_as(from, to, RenameMode::Replace)
    }

    pub fn rename_as(&self, from: &str, to: &str, mode: RenameMode) -> Result<()> {
        self.volume.rename(&ROOT, self.split(from)?, self.split(to)?, mode)
    }

    pub fn open(&self, path: &str, flags: OpenFlags) -> Result<Handle> {
        Ok(self.volume.open_file(&ROOT, self.ino(path)?, flags)?.handle)
    }

    /// Creates, or opens what is there.
    pub fn create(&self, path: &str) -> Result<Handle> {
        let (dir, name) = self.split(path)?;
        Ok(self.volume.create(&ROOT, dir, name, 0o644, WRITE)?.1.handle)
    }

    /// `close(2)` of the last reference.
    pub fn close(&self, handle: Handle) {
        self.volume.flush(&ROOT, handle).unwrap();
        self.volume.release(handle).unwrap();
    }

    /// What `cp` does: create or truncate, write in pieces, close.
    pub fn put(&self, path: &str, content: &[u8]) {
        let (dir, name) = self.split(path).unwrap();
        let handle = self.volume.create(&ROOT, dir, name, 0o644, TRUNCATE).unwrap().1.handle;
        self.write(handle, 0, content);
        self.close(handle);
    }

    pub fn write(&self, handle: Handle, offset: u64, data: &[u8]) {
        for (index, piece) in data.chunks(128 << 10).enumerate() {
            let at = offset + (index * (128 << 10)) as u64;
            assert_eq!(self.volume.write(&ROOT, handle, at, piece).unwrap() as usize, piece.len());
        }
    }

    pub fn read(&self, handle: Handle) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.volume.read(&ROOT, handle, 0, u32::MAX, &mut bytes).unwrap();
        bytes
    }

    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let handle = self.open(path, READ)?;
        let mut bytes = Vec::new();
        let read = self.volume.read(&ROOT, handle, 0, u32::MAX, &mut bytes);
        self.volume.release(handle)?;
        read.map(|()| bytes)
    }

    pub fn truncate(&self, path: &str, size: u64) -> Result<Attr> {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        self.volume.setattr(&ROOT, self.ino(path)?, set, None)
    }

    /// Names in a directory, without "." and "..".
    pub fn list(&self, path: &str) -> Vec<String> {
        self.entries(self.ino(path).unwrap()).into_iter().map(|(name, _, _)| name).collect()
    }

    pub fn entries(&self, dir: Ino) -> Vec<(String, Ino, Kind)> {
        let handle = self.volume.open_dir(&ROOT, dir).unwrap();
        let mut entries = Vec::new();
        self.volume
            .read_dir(&ROOT, handle, 0, &mut |entry| {
                entries.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.ino, entry.kind));
                true
            })
            .unwrap();
        self.volume.release_dir(handle);
        assert_eq!((&*entries[0].0, entries[0].1), (".", dir));
        assert_eq!(entries[1].0, "..");
        entries.split_off(2)
    }
}

pub fn open(store: &Path) -> Arc<Volume> {
    Volume::open(VolumeOptions { store: store.to_path_buf(), mountpoint: None, read_only: false }).unwrap()
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
            let modified = entry.metadata().unwrap().modified().unwrap();
            std::fs::File::options().write(true).open(&target).unwrap().set_modified(modified).unwrap();
        }
    }
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
}

/// Bytes that differ from each other and from zero, and that are a vector of small numbers when read as f32.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let byte = |index: usize| if index % 4 == 3 { 0x3d } else { (index % 251) as u8 ^ seed | 1 };
    (0..len).map(byte).collect()
}

/// The error of a call that must fail.
pub fn error<T: std::fmt::Debug>(result: Result<T>) -> Error {
    result.unwrap_err()
}
