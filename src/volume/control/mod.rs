//! The control directories: `.vexfs` in every directory, reachable and never listed.
//!
//! Their nodes exist only while the kernel knows them, and keep their numbers as long; when they are many it is asked
//! to forget those that it used least recently ([`surplus`]). What a generated file says is
//! made anew at each lookup, so that its size is true; whoever has it open keeps what was there at the open. A set
//! of results stays the same node until something changes that could change the answer, and searches when it is
//! first looked into.
//!
//! ```text
//! .vexfs/  config stats.json errors.jsonl ids.tsv query index.json verify.json rebuild
//!          similar/PATH/   rows/FILE/   queries/NAME   results/NAME/   search/
//!          @k=20/          the same similar/ and results/, with options
//!          snapshots/NAME/ in the root's alone: the whole tree as it was
//! ```

mod configure;
mod files;
mod generated;
mod held;
mod index;
mod results;
mod surplus;
mod tree;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use parking_lot::Mutex;

use crate::namespace::{Ino, Inode, Kind, Time};
use crate::search::{Options, Request};
use crate::volume::types::{Attr, Handle};
use crate::{Error, Result};

pub(super) use files::OpenControl;
use held::Held;
use results::ResultSet;

/// Numbers of control nodes and handles have this bit.
const BIT: u64 = 1 << 63;

/// Most bytes that the queries of one user may take, and most queries.
const SAVED_BYTES: usize = 256 << 20;
const SAVED_QUERIES: usize = 1024;

/// The path under which `errors.jsonl` speaks of a refused configuration.
const CONFIG_PATH: &str = ".vexfs/config";

/// Messages kept for `errors.jsonl` that belong to no vector file.
const NOTES: usize = 100;

/// Whether an inode number is that of a control node.
pub(super) fn is_control(ino: Ino) -> bool {
    ino.0 & BIT != 0
}

/// Whether a handle is that of a control node.
pub(super) fn is_control_handle(handle: Handle) -> bool {
    handle.0 & BIT != 0
}

/// What a node is.
#[derive(Debug)]
enum What {
    /// `.vexfs`
    Control,
    /// `@k=20`
    Options,
    /// `similar/` and the directories below it, which mirror ordinary ones.
    Similar { dir: Ino },
    /// `rows/` and the directories below it.
    Rows { dir: Ino },
    /// `rows/FILE/`
    RowsOf { file: Ino },
    /// `queries/`
    Queries,
    /// `queries/NAME`
    Saved(Arc<SavedQuery>),
    /// `results/`
    Results,
    /// `search/`, where text queries would be.
    Search,
    /// `snapshots/`, with the roots of other volumes.
    Snapshots,
    /// A set of results.
    Set(Arc<ResultSet>),
    /// A generated file, as it was looked up last.
    Bytes(ArcSwap<Vec<u8>>),
    /// A symbolic link to this target.
    Link(Vec<u8>),
    /// `config`, with the text in force when it was looked up last.
    Config(ArcSwap<Vec<u8>>),
    /// `query`
    Query,
    /// `verify.json`, which is made when it is opened
    Verify,
    /// `rebuild`
    Rebuild,
    /// `sync`
    Sync,
}

impl What {
    fn kind(&self) -> Kind {
        match self {
            What::Control
            | What::Options
            | What::Similar { .. }
            | What::Rows { .. }
            | What::RowsOf { .. }
            | What::Queries
            | What::Results
            | What::Search
            | What::Snapshots
            | What::Set(_) => Kind::Directory,
            What::Link(_) => Kind::Symlink,
            What::Saved(_)
            | What::Bytes(_)
            | What::Config(_)
            | What::Query
            | What::Verify
            | What::Rebuild
            | What::Sync => Kind::File,
        }
    }

    /// Whether both stand for the same, so that a name which is looked up again has its node again: it may be another
    /// file's by now. What is generated anew at each lookup is the same however it reads.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (What::Similar { dir }, What::Similar { dir: other })
            | (What::Rows { dir }, What::Rows { dir: other }) => dir == other,
            (What::RowsOf { file }, What::RowsOf { file: other }) => file == other,
            (What::Saved(query), What::Saved(other)) => Arc::ptr_eq(query, other),
            (What::Set(set), What::Set(other)) => Arc::ptr_eq(set, other),
            (What::Link(target), What::Link(other)) => target == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// The path under which `errors.jsonl` speaks of what was written here; none where nothing is refused.
    fn noted_as(&self) -> Option<String> {
        match self {
            What::Config(_) => Some(CONFIG_PATH.into()),
            What::Saved(query) => Some(query.path()),
            _ => None,
        }
    }

    fn size(&self) -> u64 {
        let bytes = match self {
            What::Bytes(bytes) | What::Config(bytes) => bytes.load().len(),
            What::Link(target) => target.len(),
            What::Saved(query) => query.bytes.lock().len(),
            What::Sync => files::SYNCED.len(),
            _ => 0,
        };
        bytes as u64
    }
}

/// A node of a control directory.
#[derive(Debug)]
struct Node {
    ino: Ino,
    parent: Ino,
    /// The ordinary directory whose `.vexfs` this is in.
    base: Ino,
    /// How many directories below `.vexfs` it is.
    depth: usize,
    options: Options,
    what: What,
    uid: u32,
    gid: u32,
    mode: u16,
    made: Time,
    /// Where it is found again; none for what is no node of its own.
    identity: Option<Identity>,
    lookups: AtomicU64,
    /// The newest number there was when it was looked up last.
    used: AtomicU64,
}

impl Node {
    /// What is above the `.vexfs` of an ordinary directory. The kernel does not know it as a node of ours.
    fn above(base: Ino, made: Time) -> Self {
        Self {
            ino: base,
            parent: base,
            base,
            depth: 0,
            options: Options::default(),
            what: What::Control,
            uid: 0,
            gid: 0,
            mode: 0,
            made,
            identity: None,
            lookups: AtomicU64::new(0),
            used: AtomicU64::new(0),
        }
    }

    fn attr(&self) -> Attr {
        let size = self.what.size();
        Attr {
            ino: self.ino,
            kind: self.what.kind(),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: if self.what.kind() == Kind::Directory { 2 } else { 1 },
            rdev: 0,
            size,
            blocks: size.div_ceil(512),
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            btime: self.made,
            ttl: Duration::ZERO,
        }
    }
}

/// A query file that was dropped into `queries/`. It lives until it is unlinked or the volume closes.
#[derive(Debug)]
pub(in crate::volume) struct SavedQuery {
    name: Vec<u8>,
    uid: u32,
    gid: u32,
    bytes: Mutex<Vec<u8>>,
    /// The parsed request, once closed; counted so that results know when it was replaced.
    request: Mutex<(u64, Option<Request>)>,
}

impl SavedQuery {
    /// What it takes in memory.
    fn held_bytes(&self) -> usize {
        let request = self.request.lock().1.as_ref().map_or(0, |request| request.target.held_bytes());
        self.bytes.lock().len() + request
    }

    /// Its path from the directory that it is asked in.
    fn path(&self) -> String {
        format!(".vexfs/queries/{}", String::from_utf8_lossy(&self.name))
    }
}

/// Where a directory or set is found again: its parent, its name, and who asked.
type Identity = (Ino, Vec<u8>, u32, u32);

/// Nodes, handles and dropped queries.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// The last number that was given out; a snapshot's goes on when the snapshot is opened again, because the kernel
    /// may still know numbers of before.
    next: Arc<AtomicU64>,
    /// The number from which on somebody should look whether there are too many nodes.
    crowded_from: AtomicU64,
    nodes: DashMap<Ino, Arc<Node>>,
    known: DashMap<Identity, Ino>,
    open: DashMap<Handle, Arc<OpenControl>>,
    saved: DashMap<(Ino, Vec<u8>), Arc<SavedQuery>>,
    notes: Mutex<VecDeque<Note>>,
    /// What users hold through handles of `query`.
    held: Arc<Held>,
    /// Held while graphs are checked.
    verifying: Mutex<()>,
}

/// Why what was written into a control node was refused: for `errors.jsonl` and the node's `user.vexfs.error`. A node
/// has one at most, about what was written last.
#[derive(Clone, Debug)]
struct Note {
    base: Ino,
    path: String,
    /// Whose mistake it was: what was wrong is told to nobody else but root.
    uid: u32,
    message: String,
    at: Time,
}

impl Control {
    /// That of a snapshot: its numbers follow the last of `numbers`, and what users hold counts as in the volume.
    pub(super) fn of_snapshot(&self, numbers: &Arc<AtomicU64>) -> Self {
        Self { next: Arc::clone(numbers), held: Arc::clone(&self.held), ..Self::default() }
    }

    /// A directory is gone, and what was dropped into its `.vexfs` with it.
    pub(super) fn directory_removed(&self, base: Ino) {
        self.saved.retain(|(of, _), _| *of != base);
        self.notes.lock().retain(|note| note.base != base);
    }

    fn number(&self) -> u64 {
        BIT | (self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The newest number that was given out.
    fn newest(&self) -> u64 {
        BIT | self.next.load(Ordering::Relaxed)
    }

    fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        self.nodes.get(&ino).map(|node| Arc::clone(&node)).ok_or(Error::NotFound)
    }

    /// Gives a new node to the kernel, to be found again under `identity`.
    fn add(&self, parent: &Node, what: What, access: Access, identity: Identity) -> Arc<Node> {
        let number = self.number();
        let node = Arc::new(Node {
            ino: Ino(number),
            parent: parent.ino,
            base: parent.base,
            depth: parent.depth + 1,
            options: parent.options.clone(),
            what,
            uid: access.uid,
            gid: access.gid,
            mode: access.mode,
            made: Time::now(),
            identity: Some(identity.clone()),
            lookups: AtomicU64::new(1),
            used: AtomicU64::new(number),
        });
        self.nodes.insert(node.ino, Arc::clone(&node));
        self.known.insert(identity, node.ino);
        node
    }

    /// The node known under `identity`, looked up once more, if `fits` says that it still will do.
    fn again(&self, identity: &Identity, fits: impl FnOnce(&Node) -> bool) -> Option<Arc<Node>> {
        let ino = *self.known.get(identity)?;
        // The count is raised under the shard's lock, which removing the node at zero takes as well.
        let node = self.nodes.get(&ino)?;
        if !fits(&node) {
            return None;
        }
        node.lookups.fetch_add(1, Ordering::AcqRel);
        node.used.store(self.newest(), Ordering::Relaxed);
        Some(Arc::clone(&node))
    }

    /// The set last known under `identity`, whether or not it still will do.
    fn last(&self, identity: &Identity) -> Option<Arc<Node>> {
        let ino = *self.known.get(identity)?;
        self.nodes.get(&ino).map(|node| Arc::clone(&node))
    }

    fn forget(&self, ino: Ino, lookups: u64) {
        if let Some(node) = self.nodes.get(&ino) {
            node.lookups.fetch_sub(lookups, Ordering::AcqRel);
        }
        let gone = self.nodes.remove_if(&ino, |_, node| node.lookups.load(Ordering::Acquire) == 0);
        if let Some(identity) = gone.as_ref().and_then(|(_, node)| node.identity.as_ref()) {
            // Another node may have taken the place meanwhile.
            self.known.remove_if(identity, |_, known| *known == ino);
        }
    }

    /// How many nodes the kernel knows.
    fn known_nodes(&self) -> u64 {
        self.nodes.len() as u64
    }

    fn note(&self, base: Ino, path: &str, uid: u32, error: &Error) {
        let message = error.to_string();
        self.forget_note(base, path);
        let mut notes = self.notes.lock();
        if notes.len() == NOTES {
            notes.pop_front();
        }
        notes.push_back(Note { base, path: path.into(), uid, message, at: Time::now() });
    }

    /// What was said of `path` is no longer so.
    fn forget_note(&self, base: Ino, path: &str) {
        self.notes.lock().retain(|note| note.base != base || note.path != path);
    }

    fn handle(&self, open: OpenControl) -> Handle {
        let handle = Handle(self.number());
        self.open.insert(handle, Arc::new(open));
        handle
    }

    /// Whether something in a control directory is open.
    pub(super) fn has_handles(&self) -> bool {
        !self.open.is_empty()
    }

    fn opened(&self, handle: Handle) -> Result<Arc<OpenControl>> {
        self.open.get(&handle).map(|open| Arc::clone(&open)).ok_or(Error::BadHandle)
    }
}

/// Owner and permissions of a node.
#[derive(Clone, Copy, Debug)]
struct Access {
    uid: u32,
    gid: u32,
    mode: u16,
}

impl Access {
    /// Whoever may read the directory may do the same here, and write where `write` says so.
    fn like(dir: &Inode, bits: u16) -> Self {
        Self { uid: dir.uid, gid: dir.gid, mode: bits }
    }

    fn listing(dir: &Inode) -> Self {
        Self::like(dir, dir.mode & 0o555)
    }

    fn reading(dir: &Inode) -> Self {
        Self::like(dir, dir.mode & 0o444)
    }

    /// Writable for those who may write the directory.
    fn settings(dir: &Inode) -> Self {
        Self::like(dir, dir.mode & 0o666)
    }

    /// As the directory itself.
    fn changing(dir: &Inode) -> Self {
        Self::like(dir, dir.mode & 0o777)
    }

    /// Only writable, for those who may write the directory.
    fn writing(dir: &Inode) -> Self {
        Self::like(dir, dir.mode & 0o222)
    }

    /// Writable for those who may read the directory: asking is reading.
    fn asking(dir: &Inode) -> Self {
        let read = dir.mode & 0o444;
        Self::like(dir, read | (read >> 1))
    }

    /// A directory into which those who may read the ordinary one may drop queries.
    fn dropping(dir: &Inode) -> Self {
        let read = dir.mode & 0o444;
        Self::like(dir, (dir.mode & 0o555) | (read >> 1))
    }

    /// Only for the one who asked.
    fn private(uid: u32, gid: u32, mode: u16) -> Self {
        Self { uid, gid, mode }
    }
}
