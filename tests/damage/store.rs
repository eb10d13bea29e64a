//! The store that is damaged, and what must be in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use vexfs::namespace::{Ino, Kind};
use vexfs::random::splitmix64;
use vexfs::volume::{Caller, OpenFlags, Volume, VolumeOptions};
use vexfs::{Error, Result};

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// Files of the collection `docs`.
pub const DOCS: usize = 24;

/// A closed store with small and large content of each kind, sorted tables in the catalog, and a graph.
pub struct Sound {
    pub dir: TempDir,
    /// Path to bytes.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What each vector of `docs` has next to it, as lines.
    pub neighbours: BTreeMap<String, Vec<u8>>,
}

pub fn open(store: &Path) -> Result<Arc<Volume>> {
    Volume::open(VolumeOptions { store: store.to_path_buf(), mountpoint: None, read_only: false })
}

impl Sound {
    pub fn new() -> Self {
        let mut files = BTreeMap::new();
        let mut random = Random(41);
        for i in 0..DOCS {
            files.insert(format!("docs/{i:02}.f32"), random.vector(16));
        }
        for i in 0..4 {
            files.insert(
                format!("docs/text{i}.vec"),
                (0..16).map(|j| format!("{} ", i * j + 1)).collect::<String>().into_bytes(),
            );
        }
        let mut rows = [6000u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
        (0..6000).for_each(|_| rows.extend(random.vector(8)));
        files.insert("big/rows.fbin".into(), rows);
        files.insert("plain/large.bin".into(), random.bytes(100_000));
        // More than the engine keeps in memory, so that it writes sorted tables.
        for i in 0..700 {
            files.insert(format!("plain/{i:03}.txt"), random.bytes(14_000));
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = open(dir.path()).unwrap();
        for name in ["docs", "big", "plain"] {
            volume.mkdir(&ROOT, Ino::ROOT, name.as_bytes(), 0o755).unwrap();
        }
        for (path, bytes) in &files {
            let (parent, name) = path.split_once('/').unwrap();
            let parent = volume.lookup(&ROOT, Ino::ROOT, parent.as_bytes()).unwrap().ino;
            let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
            let (_, opened) = volume.create(&ROOT, parent, name.as_bytes(), 0o644, flags).unwrap();
            assert_eq!(volume.write(&ROOT, opened.handle, 0, bytes).unwrap() as usize, bytes.len());
            volume.flush(&ROOT, opened.handle).unwrap();
            volume.release(opened.handle).unwrap();
        }
        volume.barrier().unwrap();
        let neighbours = (0..DOCS)
            .map(|i| format!("docs/{i:02}.f32"))
            .map(|path| {
                let lines = similar(&volume, &path).unwrap();
                (path, lines)
            })
            .collect();
        volume.close().unwrap();
        drop(volume);
        Self { dir, files, neighbours }
    }

    /// The same, as a kill leaves it.
    pub fn killed() -> Self {
        let Self { dir: closed, files, neighbours } = Self::new();
        let volume = open(closed.path()).unwrap();
        volume.barrier().unwrap();
        let dir = loop {
            let dir = tempfile::tempdir().unwrap();
            // The catalog may be merging tables.
            match try_copy_tree(closed.path(), dir.path()) {
                Ok(()) => break dir,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
            }
        };
        volume.close().unwrap();
        Self { dir, files, neighbours }
    }

    /// A copy of the store.
    pub fn copy(&self) -> TempDir {
        let to = tempfile::tempdir().unwrap();
        copy_tree(self.dir.path(), to.path());
        to
    }

    /// Names of all files of the store, below its directory.
    pub fn names(&self) -> Vec<PathBuf> {
        let mut names = Vec::new();
        list(self.dir.path(), self.dir.path(), &mut names);
        names.sort();
        names
    }
}

/// The neighbours of a file, as its attribute says them.
pub fn similar(volume: &Volume, path: &str) -> Result<Vec<u8>> {
    Ok(volume.getxattr(&ROOT, find(volume, path)?, b"user.vexfs.similar.3")?.to_vec())
}

pub fn find(volume: &Volume, path: &str) -> Result<Ino> {
    path.split('/').try_fold(Ino::ROOT, |dir, name| Ok(volume.lookup(&ROOT, dir, name.as_bytes())?.ino))
}

pub fn read(volume: &Volume, path: &str) -> Result<Vec<u8>> {
    let ino = find(volume, path)?;
    let size = volume.getattr(ino)?.size;
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    let opened = volume.open_file(&ROOT, ino, flags)?;
    let mut bytes = Vec::new();
    let read = volume.read(&ROOT, opened.handle, 0, u32::MAX, &mut bytes);
    volume.release(opened.handle)?;
    read?;
    // As through the kernel, where a read ends short only at the end of the file.
    assert_eq!(bytes.len() as u64, size, "{path} reads as long as it says");
    Ok(bytes)
}

/// Paths of all files below a directory.
pub fn walk(volume: &Volume, dir: Ino, path: &str, found: &mut Vec<String>) -> Result<()> {
    let handle = volume.open_dir(&ROOT, dir)?;
    let mut entries = Vec::new();
    let read = volume.read_dir(&ROOT, handle, 0, &mut |entry| {
        entries.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino, entry.kind));
        true
    });
    volume.release_dir(handle);
    read?;
    for (name, ino, kind) in entries {
        let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        match kind {
            _ if name == "." || name == ".." => {}
            Kind::Directory => walk(volume, ino, &path, found)?,
            _ => found.push(path),
        }
    }
    Ok(())
}

/// Whether an error says that something is damaged, which is what damage may lead to.
pub fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. } | Error::Catalog(_) | Error::Io(_))
}

fn list(root: &Path, dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => list(root, &path, into),
            false => into.push(path.strip_prefix(root).unwrap().to_path_buf()),
        }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    try_copy_tree(from, to).unwrap();
}

fn try_copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            try_copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    fs::set_permissions(to, fs::metadata(from)?.permissions())
}

/// A sequence that is the same for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn vector(&mut self, dim: usize) -> Vec<u8> {
        (0..dim).flat_map(|_| ((self.next() % 2000) as f32 / 1000.0 - 1.0).to_le_bytes()).collect()
    }
}
