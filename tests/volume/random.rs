//! Random operations on a volume and on a model that keeps everything in memory, compared as whole trees.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vexfs::namespace::{Ino, Kind};
use vexfs::random::splitmix64;
use vexfs::volume::{Allocate, Handle, RenameMode};
use vexfs::{Error, Result};

use crate::support::*;

const OPERATIONS: usize = 1500;
const NAMES: [&str; 6] = ["a", "b", "c.f32", "d.f32", "e", "f.npy"];

/// A file of the model: the names that share it hold its number.
type Files = BTreeMap<usize, Vec<u8>>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    File(usize),
    Dir,
}

/// Paths to nodes. The root is "".
#[derive(Clone, Debug, Default)]
struct Model {
    nodes: BTreeMap<String, Node>,
    files: Files,
    next: usize,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// A path of one to three names.
    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        (0..depth).map(|_| NAMES[self.below(NAMES.len())]).collect::<Vec<_>>().join("/")
    }

    /// Small most of the time, sometimes beyond each border.
    fn size(&mut self) -> usize {
        match self.below(10) {
            0..=5 => self.below(2000),
            6 | 7 => self.below(20_000),
            8 => self.below(140_000),
            _ => self.below(300_000),
        }
    }
}

impl Model {
    fn parent(path: &str) -> &str {
        path.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    /// Checks that every directory above `path` is one.
    fn walk(&self, path: &str) -> Result<()> {
        let mut at = String::new();
        for name in Self::parent(path).split('/').filter(|name| !name.is_empty()) {
            at = if at.is_empty() { name.into() } else { format!("{at}/{name}") };
            match self.nodes.get(&at) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => return Err(Error::NotDirectory),
                None => return Err(Error::NotFound),
            }
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Option<&Node> {
        self.walk(path).ok()?;
        self.nodes.get(path)
    }

    fn is_empty_dir(&self, path: &str) -> bool {
        let below = format!("{path}/");
        !self.nodes.keys().any(|other| other.starts_with(&below))
    }

    fn content(&mut self, path: &str) -> Option<&mut Vec<u8>> {
        match self.get(path)? {
            Node::File(file) => {
                let file = *file;
                self.files.get_mut(&file)
            }
            Node::Dir => None,
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> bool {
        let (Some(moved), Ok(())) = (self.get(from).cloned(), self.walk(to)) else { return false };
        let target = self.nodes.get(to).cloned();
        if target.as_ref() == Some(&moved) && (moved != Node::Dir || from == to) {
            return true;
        }
        if moved == Node::Dir && to.starts_with(&format!("{from}/")) {
            return false;
        }
        match (&moved, &target) {
            (Node::Dir, Some(Node::File(_))) | (Node::File(_), Some(Node::Dir)) => return false,
            (Node::Dir, Some(Node::Dir)) if !self.is_empty_dir(to) => return false,
            _ => {}
        }
        let below = format!("{from}/");
        let moving: Vec<String> =
            self.nodes.keys().filter(|path| *path == from || path.starts_with(&below)).cloned().collect();
        self.nodes.remove(to);
        for path in moving {
            let node = self.nodes.remove(&path).unwrap();
            self.nodes.insert(format!("{to}{}", &path[from.len()..]), node);
        }
        true
    }

    fn exchange(&mut self, from: &str, to: &str) -> bool {
        if self.get(from).is_none() || self.get(to).is_none() {
            return false;
        }
        if from == to || self.nodes[from] == self.nodes[to] && self.nodes[from] != Node::Dir {
            return true;
        }
        let is_above = |a: &str, b: &str| b.starts_with(&format!("{a}/"));
        if is_above(from, to) || is_above(to, from) {
            return false;
        }
        let swap = |path: &String| {
            let replaced = |a: &str, b: &str| {
                (path == a || is_above(a, path)).then(|| format!("{b}{}", &path[a.len()..]))
            };
            replaced(from, to).or_else(|| replaced(to, from)).unwrap_or_else(|| path.clone())
        };
        self.nodes = self.nodes.iter().map(|(path, node)| (swap(path), node.clone())).collect();
        true
    }
}

/// The volume under test beside its model. Some files stay open between operations.
struct Pair {
    fs: Fs,
    model: Model,
    open: Vec<(Handle, usize)>,
    random: Random,
}

impl Pair {
    fn step(&mut self) {
        let path = self.random.path();
        match self.random.below(17) {
            0..=3 => self.write(&path),
            4 => self.truncate(&path),
            5 => self.create(&path),
            6 | 7 => self.mkdir(&path),
            8 => self.rmdir(&path),
            9 => self.unlink(&path),
            10 => self.link(&path),
            11 | 12 => self.rename(&path),
            13 => self.exchange(&path),
            14 => self.zero(&path),
            15 => self.fs.volume.rest_closed(Instant::now() + Duration::from_secs(60)).unwrap(),
            _ => self.close_one(),
        }
    }

    fn create(&mut self, path: &str) {
        let is_free = self.model.walk(path).is_ok() && self.model.get(path).is_none();
        let size = self.random.size();
        let content = pattern(size, self.random.next() as u8);
        if is_free {
            self.fs.put(path, &content);
            self.model.nodes.insert(path.into(), Node::File(self.model.next));
            self.model.files.insert(self.model.next, content);
            self.model.next += 1;
        } else if self.model.content(path).is_some() {
            self.fs.put(path, &content);
            *self.model.content(path).unwrap() = content;
        } else {
            assert!(self.fs.create(path).is_err());
        }
    }

    fn write(&mut self, path: &str) {
        let Some(Node::File(file)) = self.model.get(path).cloned() else {
            return self.create(path);
        };
        let content = self.model.content(path).unwrap();
        let offset = if content.is_empty() { 0 } else { self.random.below(content.len() + 100) };
        let data = pattern(self.random.size(), self.random.next() as u8);
        if !data.is_empty() {
            content.resize(content.len().max(offset + data.len()), 0);
            content[offset..offset + data.len()].copy_from_slice(&data);
        }
        let handle = self.fs.open(path, WRITE).unwrap();
        self.fs.write(handle, offset as u64, &data);
        if self.open.len() < 4 && self.random.below(3) == 0 {
            self.open.push((handle, file));
        } else {
            self.fs.close(handle);
        }
    }

    fn close_one(&mut self) {
        if let Some((handle, file)) = self.open.pop() {
            assert!(self.fs.read(handle) == self.model.files[&file], "the content of an open file");
            self.fs.close(handle);
        }
    }

    fn truncate(&mut self, path: &str) {
        let size = self.random.size();
        match self.model.content(path) {
            Some(content) => {
                content.resize(size, 0);
                self.fs.truncate(path, size as u64).unwrap();
            }
            None => assert!(self.fs.truncate(path, size as u64).is_err()),
        }
    }

    fn zero(&mut self, path: &str) {
        let Some(content) = self.model.content(path) else { return };
        let (from, len) = (self.random.below(5000), 1 + self.random.below(30_000));
        let end = content.len().min(from + len);
        if from < end {
            content[from..end].fill(0);
        }
        let handle = self.fs.open(path, WRITE).unwrap();
        self.fs.volume.fallocate(&ROOT, handle, from as u64, len as u64, Allocate::PunchHole).unwrap();
        self.fs.close(handle);
    }

    fn mkdir(&mut self, path: &str) {
        let may = self.model.walk(path).is_ok() && self.model.get(path).is_none();
        assert_eq!(self.fs.mkdir(path).is_ok(), may, "mkdir {path}");
        if may {
            self.model.nodes.insert(path.into(), Node::Dir);
        }
    }

    fn rmdir(&mut self, path: &str) {
        let may = self.model.get(path) == Some(&Node::Dir) && self.model.is_empty_dir(path);
        assert_eq!(self.fs.rmdir(path).is_ok(), may, "rmdir {path}");
        if may {
            self.model.nodes.remove(path);
        }
    }

    fn unlink(&mut self, path: &str) {
        let may = matches!(self.model.get(path), Some(Node::File(_)));
        assert_eq!(self.fs.unlink(path).is_ok(), may, "unlink {path}");
        if may {
            self.model.nodes.remove(path);
        }
    }

    fn link(&mut self, path: &str) {
        let to = self.random.path();
        let node = self.model.get(path).filter(|node| **node != Node::Dir).cloned();
        let is_free = self.model.walk(&to).is_ok() && self.model.get(&to).is_none();
        assert_eq!(self.fs.link(path, &to).is_ok(), node.is_some() && is_free, "link {path} {to}");
        if let Some(node) = node.filter(|_| is_free) {
            self.model.nodes.insert(to, node);
        }
    }

    fn rename(&mut self, path: &str) {
        let to = self.random.path();
        let result = self.fs.rename(path, &to);
        assert_eq!(self.model.rename(path, &to), result.is_ok(), "rename {path} {to}: {result:?}");
    }

    fn exchange(&mut self, path: &str) {
        let to = self.random.path();
        let result = self.fs.rename_as(path, &to, RenameMode::Exchange);
        assert_eq!(self.model.exchange(path, &to), result.is_ok(), "exchange {path} {to}: {result:?}");
    }

    fn check(&self) {
        let mut found = BTreeMap::new();
        let subdirs = collect(&self.fs, Ino::ROOT, "", &mut found);
        assert_eq!(self.fs.stat("").unwrap().nlink, 2 + subdirs);
        let names: Vec<&String> = found.keys().collect();
        assert_eq!(names, self.model.nodes.keys().collect::<Vec<_>>());
        let mut numbers = BTreeMap::new();
        for (path, node) in &self.model.nodes {
            let (ino, content) = &found[path];
            match (node, content) {
                (Node::Dir, None) => {}
                (Node::File(file), Some(content)) => {
                    assert!(*content == self.model.files[file], "content of {path}");
                    let names = self.model.nodes.values().filter(|other| *other == node).count();
                    assert_eq!(self.fs.stat(path).unwrap().nlink as usize, names, "{path}");
                    assert_eq!(*numbers.entry(file).or_insert(*ino), *ino, "{path}");
                }
                other => panic!("{path}: {other:?}"),
            }
        }
    }
}

type Found = BTreeMap<String, (Ino, Option<Vec<u8>>)>;

/// Collects everything below a directory, and checks its counts. Returns the number of its subdirectories.
fn collect(fs: &Fs, dir: Ino, path: &str, found: &mut Found) -> u32 {
    let entries = fs.entries(dir);
    assert_eq!(fs.volume.getattr(dir).unwrap().size, entries.len() as u64, "entries of {path}");
    let mut subdirs = 0;
    for (name, ino, kind) in entries {
        let at = if path.is_empty() { name } else { format!("{path}/{name}") };
        if kind == Kind::Directory {
            subdirs += 1;
            let below = collect(fs, ino, &at, found);
            assert_eq!(fs.volume.getattr(ino).unwrap().nlink, 2 + below, "{at}");
            found.insert(at, (ino, None));
        } else {
            let content = fs.get(&at).unwrap();
            assert_eq!(fs.stat(&at).unwrap().size, content.len() as u64, "{at}");
            found.insert(at, (ino, Some(content)));
        }
    }
    subdirs
}

fn run(seed: u64) {
    let mut pair = Pair { fs: Fs::new(), model: Model::default(), open: Vec::new(), random: Random(seed) };
    for step in 1..=OPERATIONS {
        pair.step();
        if step % 150 == 0 {
            pair.fs.volume.sync().unwrap();
            pair.check();
        }
        if step % 300 == 0 {
            // A kill in the middle, with files open: nothing that returned is lost.
            let survivor = Pair {
                fs: pair.fs.killed_copy(),
                model: pair.model.clone(),
                open: Vec::new(),
                random: Random(0),
            };
            survivor.check();
            pair = Pair { fs: survivor.fs, random: pair.random, model: pair.model, open: Vec::new() };
        }
        if step % 500 == 0 {
            pair.open.drain(..).for_each(|(handle, _)| pair.fs.close(handle));
            pair.fs = pair.fs.reopen();
            pair.check();
        }
    }
}

#[test]
fn random_operations_agree_with_the_model_seed_1() {
    run(1);
}

#[test]
fn random_operations_agree_with_the_model_seed_2() {
    run(2);
}

#[test]
fn random_operations_agree_with_the_model_seed_3() {
    run(3);
}
