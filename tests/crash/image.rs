//! A directory tree in memory: what is on a disk, or what a process sees of it. Changes are [`Event`]s.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

const PAGE: usize = 4096;

/// Number of a file or directory. Never used again within a recording.
pub type NodeId = u32;

/// The directory that is recorded.
pub const ROOT: NodeId = 0;

/// A place for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub dir: NodeId,
    pub name: Vec<u8>,
}

/// What a system call changed or made durable.
#[derive(Clone, Debug)]
pub enum Event {
    Make { node: NodeId, is_dir: bool, at: Entry },
    Link { node: NodeId, at: Entry },
    Unlink { at: Entry },
    Rename { from: Entry, to: Entry },
    Exchange { from: Entry, to: Entry },
    Write { node: NodeId, offset: u64, data: Arc<[u8]> },
    Zero { node: NodeId, offset: u64, len: u64 },
    Resize { node: NodeId, len: u64 },
    Sync { node: NodeId },
    SyncAll,
}

#[derive(Clone, Debug)]
pub enum Node {
    Dir(BTreeMap<Vec<u8>, NodeId>),
    File(Bytes),
}

/// Content of a file; pages that are not there are zero.
#[derive(Clone, Debug, Default)]
pub struct Bytes {
    pub len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl Bytes {
    /// Writes without changing the length.
    pub fn put(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (page, at) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
            let count = data.len().min(PAGE - at);
            let bytes = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(bytes)[at..at + count].copy_from_slice(&data[..count]);
            (offset, data) = (offset + count as u64, &data[count..]);
        }
    }

    pub fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let first = offset / PAGE as u64;
        let touched: Vec<u64> = self.pages.range(first..=end / PAGE as u64).map(|(&page, _)| page).collect();
        for page in touched {
            let start = page * PAGE as u64;
            let (from, to) = (offset.max(start), end.min(start + PAGE as u64));
            if to - from.min(to) == PAGE as u64 {
                self.pages.remove(&page);
            } else if from < to {
                let bytes = Arc::make_mut(self.pages.get_mut(&page).unwrap());
                bytes[(from - start) as usize..(to - start) as usize].fill(0);
            }
        }
    }

    pub fn resize(&mut self, len: u64) {
        if len < self.len {
            self.clip(len);
        }
        self.len = len;
    }

    /// Forgets the bytes from `len` on.
    pub fn clip(&mut self, len: u64) {
        drop(self.pages.split_off(&len.div_ceil(PAGE as u64)));
        self.zero(len, PAGE as u64);
    }
}

/// A tree of nodes.
#[derive(Clone, Debug)]
pub struct Image {
    pub nodes: BTreeMap<NodeId, Node>,
}

impl Image {
    pub fn empty() -> Self {
        Self { nodes: BTreeMap::from([(ROOT, Node::Dir(BTreeMap::new()))]) }
    }

    pub fn child(&self, at: &Entry) -> Option<NodeId> {
        match self.nodes.get(&at.dir)? {
            Node::Dir(entries) => entries.get(&at.name).copied(),
            Node::File(_) => None,
        }
    }

    fn entries(&mut self, dir: NodeId) -> Option<&mut BTreeMap<Vec<u8>, NodeId>> {
        match self.nodes.get_mut(&dir)? {
            Node::Dir(entries) => Some(entries),
            Node::File(_) => None,
        }
    }

    pub fn file(&mut self, node: NodeId) -> &mut Bytes {
        match self.nodes.entry(node).or_insert_with(|| Node::File(Bytes::default())) {
            Node::File(bytes) => bytes,
            Node::Dir(_) => panic!("node {node} is a directory"),
        }
    }

    /// Applies a change. Names whose directory or source is not there are left out: the disk lost it.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Make { node, is_dir, at } => {
                let new = if *is_dir { Node::Dir(BTreeMap::new()) } else { Node::File(Bytes::default()) };
                self.nodes.entry(*node).or_insert(new);
                self.put_name(at, *node);
            }
            Event::Link { node, at } => self.put_name(at, *node),
            Event::Unlink { at } => {
                if let Some(entries) = self.entries(at.dir) {
                    entries.remove(&at.name);
                }
            }
            Event::Rename { from, to } => {
                let moved = self.entries(from.dir).and_then(|entries| entries.remove(&from.name));
                if let Some(node) = moved {
                    self.put_name(to, node);
                }
            }
            Event::Exchange { from, to } => {
                if let (Some(first), Some(second)) = (self.child(from), self.child(to)) {
                    self.put_name(from, second);
                    self.put_name(to, first);
                }
            }
            Event::Write { node, offset, data } => {
                let file = self.file(*node);
                file.put(*offset, data);
                file.len = file.len.max(offset + data.len() as u64);
            }
            Event::Zero { node, offset, len } => self.file(*node).zero(*offset, *len),
            Event::Resize { node, len } => self.file(*node).resize(*len),
            Event::Sync { .. } | Event::SyncAll => {}
        }
    }

    fn put_name(&mut self, at: &Entry, node: NodeId) {
        if let Some(entries) = self.entries(at.dir) {
            entries.insert(at.name.clone(), node);
        }
    }

    /// Makes the tree in `dir`, which is empty.
    pub fn write_to(&self, dir: &Path) {
        self.write_node(ROOT, dir);
    }

    fn write_node(&self, node: NodeId, path: &Path) {
        match &self.nodes[&node] {
            Node::Dir(entries) => {
                if node != ROOT {
                    fs::DirBuilder::new().mode(0o700).create(path).unwrap();
                }
                for (name, &child) in entries {
                    self.write_node(child, &path.join(std::str::from_utf8(name).unwrap()));
                }
            }
            Node::File(bytes) => {
                let file = File::options().write(true).create_new(true).mode(0o600).open(path).unwrap();
                for (&page, data) in &bytes.pages {
                    file.write_all_at(&data[..], page * PAGE as u64).unwrap();
                }
                file.set_len(bytes.len).unwrap();
            }
        }
    }

    /// Where the tree in `dir` differs from this one.
    pub fn difference(&self, dir: &Path) -> Option<String> {
        self.differs(ROOT, dir)
    }

    fn differs(&self, node: NodeId, path: &Path) -> Option<String> {
        match &self.nodes[&node] {
            Node::Dir(entries) => {
                let mut there: Vec<_> =
                    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                there.sort();
                let expected: Vec<OsString> =
                    entries.keys().map(|name| std::str::from_utf8(name).unwrap().into()).collect();
                if there != expected {
                    return Some(format!("{}: {there:?}, recorded {expected:?}", path.display()));
                }
                entries.iter().find_map(|(name, &child)| {
                    self.differs(child, &path.join(std::str::from_utf8(name).unwrap()))
                })
            }
            Node::File(bytes) => {
                let mut file = File::open(path).unwrap();
                let len = file.metadata().unwrap().len();
                if len != bytes.len {
                    return Some(format!("{}: {len} bytes, recorded {}", path.display(), bytes.len));
                }
                let mut page = [0; PAGE];
                for number in 0..len.div_ceil(PAGE as u64) {
                    let count = (len - number * PAGE as u64).min(PAGE as u64) as usize;
                    file.read_exact(&mut page[..count]).unwrap();
                    let zero = [0; PAGE];
                    let recorded = bytes.pages.get(&number).map_or(&zero, |page| page);
                    if page[..count] != recorded[..count] {
                        return Some(format!("{}: page {number} differs", path.display()));
                    }
                }
                None
            }
        }
    }
}
