//! What is done to a volume before the power is cut: random system calls from a seed, each noted in the
//! [`History`] with its place on the tape.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vexfs::Result;
use vexfs::namespace::Ino;
use vexfs::volume::{
    Caller, Handle, OpenFlags, RenameMode, SetAttr, SyncMode, Volume, VolumeOptions, XattrMode,
};

use crate::random::Random;
use crate::recorder::Recording;
use crate::reference::{FileId, History, Node, Step, Tree};

pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// Elements of every vector.
pub const DIM: usize = 8;

pub const READ: OpenFlags =
    OpenFlags { read: true, write: false, append: false, truncate: false, exclusive: false };
pub const WRITE: OpenFlags = OpenFlags { write: true, ..READ };
const TRUNCATE: OpenFlags = OpenFlags { truncate: true, ..WRITE };

/// Directories that may be there. `v` is the collection, and files elsewhere are no vectors.
const DIRS: [&str; 5] = ["v/s", "v/t", "d", "d/e", "d/g"];
const VECTORS: [&str; 5] = ["a.f32", "b.f32", "c.f32", "m.fbin", "n.fbin"];
const PLAIN: [&str; 4] = ["t.txt", "u", "w.tmp", "x"];

/// Files above this length have a blob of their own.
const LARGE: usize = 16 << 10;

/// Rows from which the collection has a graph.
const GRAPH_FROM: usize = 64;

pub fn open(store: &Path) -> Result<Arc<Volume>> {
    Volume::open(VolumeOptions { store: store.to_path_buf(), mountpoint: None, read_only: false })
}

/// The file or directory at `path`.
pub fn resolve(volume: &Volume, path: &str) -> Result<Ino> {
    path.split('/')
        .filter(|name| !name.is_empty())
        .try_fold(Ino::ROOT, |dir, name| Ok(volume.lookup(&ROOT, dir, name.as_bytes())?.ino))
}

/// The directory and the last name of a path.
pub fn split<'a>(volume: &Volume, path: &'a str) -> Result<(Ino, &'a [u8])> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((resolve(volume, dir)?, name.as_bytes()))
}

/// A volume that is being worked on.
pub struct Run<'a> {
    /// Not while the store is restored.
    pub(crate) opened: Option<Arc<Volume>>,
    pub history: History,
    /// Whether snapshots are taken and dropped, and the store brought back to them. In between it is not open.
    pub snapshots: bool,
    pub restores: bool,
    /// Whether files that the kernel would write by itself are written so.
    pub passthrough: bool,
    pub(crate) store: PathBuf,
    pub(crate) recording: &'a Recording,
    pub(crate) mode: SyncMode,
    pub(crate) random: Random,
}

impl<'a> Run<'a> {
    /// Opens a new store, and makes the collection. What `mode` promises is noted.
    pub fn new(store: &Path, recording: &'a Recording, mode: SyncMode, seed: u64) -> Result<Self> {
        let volume = open(store)?;
        volume.set_sync_mode(mode);
        let mut run = Self {
            opened: Some(volume),
            history: History::new(),
            snapshots: true,
            restores: false,
            passthrough: false,
            store: store.to_path_buf(),
            recording,
            mode,
            random: Random(seed),
        };
        run.mkdir("v")?;
        run.configure()?;
        Ok(run)
    }

    pub fn volume(&self) -> &Arc<Volume> {
        self.opened.as_ref().expect("it is open between steps")
    }

    /// Does `call`, and notes the tree that `change` makes of the present one.
    pub(crate) fn step(
        &mut self,
        what: String,
        persists: bool,
        call: impl FnOnce(&Volume) -> Result<()>,
        change: impl FnOnce(&mut History, &mut Tree),
    ) -> Result<()> {
        let start = self.recording.position();
        let result = call(self.volume()).and_then(|()| self.volume().acknowledge());
        let mut tree = self.history.tree().clone();
        change(&mut self.history, &mut tree);
        let persists = persists || self.mode == SyncMode::Always;
        if self.mode == SyncMode::Always {
            durable_all(&mut self.history, &mut tree);
        }
        let end = if result.is_ok() { self.recording.position() } else { usize::MAX };
        self.history.steps.push(Step { what, start, end, tree, persists });
        result
    }

    /// Random steps.
    pub fn work(&mut self, steps: usize) -> Result<()> {
        let until = self.history.steps.len() + steps;
        while self.history.steps.len() < until {
            self.act()?;
        }
        Ok(())
    }

    fn act(&mut self) -> Result<()> {
        let path = self.path();
        match self.random.below(39) {
            0..=7 => self.put(&path),
            8 | 9 => self.replace(&path),
            10..=12 => self.overwrite(&path),
            13 => self.truncate(&path),
            14 | 15 => {
                let dir = self.dir();
                self.mkdir(&dir)
            }
            16 => self.rmdir(),
            17..=19 => self.unlink(&path),
            20 | 21 => {
                let to = self.sibling(&path);
                self.rename(&path, &to)
            }
            22 => self.rename_dir(),
            23 => self.link(&path),
            24 | 25 => self.set_attribute(&path),
            26 | 27 => self.fsync_path(&path),
            28 | 29 => self.fsync_dir(),
            30 => self.sync(),
            32 | 33 => self.take_snapshot(),
            34 => self.drop_snapshot(),
            35 => self.restore_snapshot(),
            36..=38 => self.rest_and_change(),
            _ if self.random.chance(20) => self.barrier(),
            _ => self.fsync_path(&path),
        }
    }

    fn dir(&mut self) -> String {
        DIRS[self.random.below(DIRS.len())].to_owned()
    }

    fn path(&mut self) -> String {
        let dir = if self.random.chance(50) { "v".to_owned() } else { self.dir() };
        let name = match dir.starts_with('v') && self.random.chance(80) {
            true => VECTORS[self.random.below(VECTORS.len())],
            false => PLAIN[self.random.below(PLAIN.len())],
        };
        format!("{dir}/{name}")
    }

    /// Another path of the same kind.
    fn sibling(&mut self, path: &str) -> String {
        loop {
            let other = self.path();
            if kind(&other) == kind(path) && other != path {
                return other;
            }
        }
    }

    fn has_dir_of(&self, path: &str) -> bool {
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        dir.is_empty() || self.history.tree().nodes.get(dir) == Some(&Node::Dir)
    }

    fn content(&mut self, path: &str) -> Vec<u8> {
        let random = &mut self.random;
        if path.ends_with(".f32") {
            return if random.chance(10) { vec![1; 33] } else { values(1, random) };
        }
        if path.ends_with(".fbin") {
            let rows =
                if random.chance(25) { 5_000 + random.below(300) } else { 1 + random.below(2 * GRAPH_FROM) };
            let header =
                [u32::try_from(rows).unwrap().to_le_bytes(), u32::try_from(DIM).unwrap().to_le_bytes()];
            return [header.concat(), values(rows, random)].concat();
        }
        let len = match random.below(6) {
            0..=2 => random.below(3_000),
            3 => 15_000 + random.below(3_000),
            4 => random.below(60_000),
            _ => 100_000 + random.below(200_000),
        };
        noise(len, random)
    }

    fn configure(&mut self) -> Result<()> {
        let text = format!("[collection]\nmetric = \"l2\"\n[index]\nexact_below = {GRAPH_FROM}\n");
        let call = |volume: &Volume| {
            let config = resolve(volume, "v/.vexfs/config")?;
            let handle = volume.open_file(&ROOT, config, TRUNCATE)?.handle;
            volume.write(&ROOT, handle, 0, text.as_bytes())?;
            volume.flush(&ROOT, handle)?;
            volume.release(handle)
        };
        self.step("configure".into(), false, call, |_, _| {})
    }

    /// What `cp` does: create or truncate, write in pieces, sometimes sync, close.
    fn put(&mut self, path: &str) -> Result<()> {
        if !self.has_dir_of(path) || self.history.tree().nodes.get(path) == Some(&Node::Dir) {
            return Ok(());
        }
        let content = self.content(path);
        let syncs = self.random.chance(40);
        let (handle, file) = self.create(path)?;
        let pieces = 1 + self.random.below(3);
        for (number, piece) in content.chunks(content.len().div_ceil(pieces).max(1)).enumerate() {
            let offset = number * content.len().div_ceil(pieces).max(1);
            self.write(path, handle, file, offset, piece)?;
        }
        if syncs {
            self.fsync(path, handle, file)?;
        }
        self.close(path, handle)
    }

    /// What an editor does: a new file beside, sometimes synced, renamed over the old.
    fn replace(&mut self, path: &str) -> Result<()> {
        let beside = self.sibling(path);
        self.put(&beside)?;
        self.rename(&beside, path)
    }

    fn create(&mut self, path: &str) -> Result<(Handle, FileId)> {
        let known = self.history.file(path);
        let file = known.unwrap_or_else(|| self.history.next_file());
        let mut opened = None;
        self.step(
            format!("create {path}"),
            false,
            |volume| {
                let (dir, name) = split(volume, path)?;
                opened = Some(volume.create(&ROOT, dir, name, 0o644, TRUNCATE)?.1.handle);
                Ok(())
            },
            |history, tree| {
                tree.nodes.insert(path.to_owned(), Node::File(file));
                history.set_content(file, Vec::new());
            },
        )?;
        Ok((opened.unwrap(), file))
    }

    fn write(&mut self, path: &str, handle: Handle, file: FileId, offset: usize, data: &[u8]) -> Result<()> {
        self.step(
            format!("write {} bytes at {offset} of {path}", data.len()),
            false,
            |volume| {
                let written = volume.write(&ROOT, handle, offset as u64, data)? as usize;
                if written < data.len() { Err(vexfs::Error::NoSpace) } else { Ok(()) }
            },
            |history, _| overwrite(history, file, offset, data),
        )
    }

    fn fsync(&mut self, path: &str, handle: Handle, file: FileId) -> Result<()> {
        let call = |volume: &Volume| volume.fsync(handle, false);
        let holds = self.mode != SyncMode::Off;
        self.step(format!("fsync {path}"), holds, call, |history, _| {
            if holds {
                history.set_durable(file, false);
            }
        })
    }

    fn close(&mut self, path: &str, handle: Handle) -> Result<()> {
        let call = |volume: &Volume| {
            let flushed = volume.flush(&ROOT, handle);
            flushed.and(volume.release(handle))
        };
        self.step(format!("close {path}"), false, call, |_, _| {})
    }

    fn open(&mut self, path: &str, flags: OpenFlags) -> Result<Handle> {
        Ok(self.volume().open_file(&ROOT, resolve(self.volume(), path)?, flags)?.handle)
    }

    /// Writes into the middle or at the end of a plain file.
    fn overwrite(&mut self, path: &str) -> Result<()> {
        let Some(file) = self.history.file(path).filter(|_| !path.ends_with(".f32")) else { return Ok(()) };
        let len = self.history.content(file).len();
        // A header stays: with another dimension a file would be a valid vector by chance.
        let first = if is_vector(path) { len.min(8) } else { 0 };
        let offset = if self.random.chance(50) { len } else { first + self.random.below(len - first + 1) };
        let count =
            if self.random.chance(50) { 1 + self.random.below(100) } else { self.random.below(30_000) };
        let data = noise(count, &mut self.random);
        self.volume().set_passthrough(self.passthrough);
        let opened = self.volume().open_file(&ROOT, resolve(self.volume(), path)?, WRITE)?;
        let handle = opened.handle;
        match opened.backing {
            None => self.write(path, handle, file, offset, &data)?,
            Some(blob) => self.step(
                format!("the kernel writes {} bytes at {offset} of {path}", data.len()),
                false,
                |_| Ok(blob.write_all_at(&data, offset as u64)?),
                |history, _| overwrite(history, file, offset, &data),
            )?,
        }
        if self.random.chance(40) {
            self.fsync(path, handle, file)?;
        }
        self.close(path, handle)
    }

    fn truncate(&mut self, path: &str) -> Result<()> {
        let Some(file) = self.history.file(path).filter(|_| !path.ends_with(".f32")) else { return Ok(()) };
        let size = self.random.below(self.history.content(file).len() + 100);
        self.step(
            format!("truncate {path} to {size}"),
            false,
            |volume| {
                let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                volume.setattr(&ROOT, resolve(volume, path)?, set, None).map(|_| ())
            },
            |history, _| {
                let mut content = history.content(file).to_vec();
                content.resize(size, 0);
                history.set_content(file, content);
            },
        )
    }

    fn mkdir(&mut self, path: &str) -> Result<()> {
        if !self.has_dir_of(path) || self.history.tree().nodes.contains_key(path) {
            return Ok(());
        }
        let call = |volume: &Volume| {
            let (dir, name) = split(volume, path)?;
            volume.mkdir(&ROOT, dir, name, 0o755).map(|_| ())
        };
        self.step(format!("mkdir {path}"), false, call, |_, tree| {
            tree.nodes.insert(path.to_owned(), Node::Dir);
        })
    }

    fn rmdir(&mut self) -> Result<()> {
        let path = self.dir();
        let below = format!("{path}/");
        let nodes = &self.history.tree().nodes;
        if !nodes.contains_key(&path) || nodes.keys().any(|other| other.starts_with(&below)) {
            return Ok(());
        }
        let call = |volume: &Volume| {
            let (dir, name) = split(volume, &path)?;
            volume.rmdir(&ROOT, dir, name)
        };
        self.step(format!("rmdir {path}"), false, call, |_, tree| {
            tree.nodes.remove(&path);
        })
    }

    fn unlink(&mut self, path: &str) -> Result<()> {
        if self.history.file(path).is_none() {
            return Ok(());
        }
        let call = |volume: &Volume| {
            let (dir, name) = split(volume, path)?;
            volume.unlink(&ROOT, dir, name)
        };
        self.step(format!("unlink {path}"), false, call, |_, tree| {
            tree.nodes.remove(path);
        })
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let Some(file) = self.history.file(from).filter(|_| self.has_dir_of(to)) else { return Ok(()) };
        let replaced = self.history.file(to);
        if replaced == Some(file) || self.history.tree().nodes.get(to) == Some(&Node::Dir) {
            return Ok(());
        }
        let call = |volume: &Volume| {
            volume.rename(&ROOT, split(volume, from)?, split(volume, to)?, RenameMode::Replace)
        };
        self.step(format!("rename {from} to {to}"), false, call, |history, tree| {
            tree.nodes.remove(from);
            tree.nodes.insert(to.to_owned(), Node::File(file));
            if replaced.is_some() {
                history.set_durable(file, true);
            }
        })
    }

    fn rename_dir(&mut self) -> Result<()> {
        let (from, to) = *[("d/e", "d/g"), ("d/g", "d/e"), ("v/s", "v/t"), ("v/t", "v/s")]
            .get(self.random.below(4))
            .unwrap();
        let nodes = &self.history.tree().nodes;
        if !nodes.contains_key(from) || nodes.contains_key(to) {
            return Ok(());
        }
        let call = |volume: &Volume| {
            volume.rename(&ROOT, split(volume, from)?, split(volume, to)?, RenameMode::Replace)
        };
        self.step(format!("rename {from} to {to}"), false, call, |_, tree| {
            let below = format!("{from}/");
            let moves = |path: &str| path == from || path.starts_with(&below);
            let renamed = |(path, node): (String, Node)| match moves(&path) {
                true => (format!("{to}{}", &path[from.len()..]), node),
                false => (path, node),
            };
            tree.nodes = std::mem::take(&mut tree.nodes).into_iter().map(renamed).collect();
        })
    }

    fn link(&mut self, path: &str) -> Result<()> {
        let to = self.sibling(path);
        let Some(file) = self.history.file(path).filter(|_| self.has_dir_of(&to)) else { return Ok(()) };
        if self.history.tree().nodes.contains_key(&to) {
            return Ok(());
        }
        let call = |volume: &Volume| {
            let (dir, name) = split(volume, &to)?;
            volume.link(&ROOT, resolve(volume, path)?, dir, name).map(|_| ())
        };
        self.step(format!("link {path} to {to}"), false, call, |_, tree| {
            tree.nodes.insert(to.clone(), Node::File(file));
        })
    }

    fn set_attribute(&mut self, path: &str) -> Result<()> {
        let Some(file) = self.history.file(path) else { return Ok(()) };
        let name = format!("user.{}", ["one", "two"][self.random.below(2)]);
        let len = self.random.below(3_000);
        let value = noise(len, &mut self.random);
        let call = |volume: &Volume| {
            let ino = resolve(volume, path)?;
            volume.setxattr(&ROOT, ino, name.as_bytes(), &value, XattrMode::Either)
        };
        self.step(format!("setxattr {name} of {path}"), false, call, |_, tree| {
            tree.attributes.entry(file).or_default().insert(name.clone(), value.clone());
        })
    }

    fn fsync_path(&mut self, path: &str) -> Result<()> {
        let Some(file) = self.history.file(path) else { return Ok(()) };
        let handle = self.open(path, READ)?;
        let synced = self.fsync(path, handle, file);
        self.volume().release(handle)?;
        synced
    }

    fn fsync_dir(&mut self) -> Result<()> {
        let call = |volume: &Volume| volume.fsync_dir(Ino::ROOT);
        self.step("fsync of the root".into(), self.mode != SyncMode::Off, call, |_, _| {})
    }

    /// What was closed comes to rest, which promises nothing; then a large file that may have is changed.
    fn rest_and_change(&mut self) -> Result<()> {
        let call = |volume: &Volume| volume.rest_closed(Instant::now() + Duration::from_secs(60));
        self.step("rest".into(), false, call, |_, _| {})?;
        let paths = self.history.tree().nodes.keys().filter(|path| !is_vector(path)).cloned();
        let is_large = |path: &String| {
            self.history.file(path).is_some_and(|file| self.history.content(file).len() > LARGE)
        };
        let large: Vec<String> = paths.filter(is_large).collect();
        let Some(path) = large.get(self.random.below(large.len().max(1))) else { return Ok(()) };
        if self.random.chance(80) { self.overwrite(path) } else { self.truncate(path) }
    }

    fn sync(&mut self) -> Result<()> {
        self.step("sync".into(), true, Volume::sync, durable_all)
    }

    fn barrier(&mut self) -> Result<()> {
        self.step("barrier".into(), true, Volume::barrier, durable_all)
    }

    /// An orderly end.
    pub fn end(&mut self) -> Result<()> {
        self.step("close".into(), true, Volume::close, durable_all)
    }
}

pub fn durable_all(history: &mut History, _: &mut Tree) {
    history.files().into_iter().for_each(|file| history.set_durable(file, false));
}

fn overwrite(history: &mut History, file: FileId, offset: usize, data: &[u8]) {
    let mut content = history.content(file).to_vec();
    content.resize(content.len().max(offset + data.len()), 0);
    content[offset..offset + data.len()].copy_from_slice(data);
    history.set_content(file, content);
}

/// What a name makes of a content: the suffix of a vector file.
fn kind(path: &str) -> Option<&str> {
    path.rsplit_once('.').map(|(_, suffix)| suffix).filter(|_| is_vector(path))
}

pub fn is_vector(path: &str) -> bool {
    path.ends_with(".f32") || path.ends_with(".fbin")
}

fn values(rows: usize, random: &mut Random) -> Vec<u8> {
    (0..rows * DIM).flat_map(|_| (random.below(2000) as f32 / 1000.0 - 1.0).to_le_bytes()).collect()
}

/// Bytes without a zero, so that a lost sector shows.
fn noise(len: usize, random: &mut Random) -> Vec<u8> {
    (0..len).map(|_| 1 + (random.next() % 255) as u8).collect()
}
