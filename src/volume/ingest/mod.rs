//! What a change of names or content means for vectors: which files are members of which collections, and when.
//!
//! ```text
//! close, rename, unlink, chmod ──▶ settle: wanted members (names) against members now
//!     ├─ new or changed content ──▶ prepare: parse, check, place in slot or seal blob ──▶ Collection::stage
//!     ├─ gone                   ──▶ Remove
//!     └─ same content           ──▶ Regroup (directory or permissions changed)
//! commit of the catalog ──▶ publish: every collection moves to its new version
//! ```
//!
//! A file is a member of the collection of every directory in which it has a recognised name, once in each.

pub(super) mod check;
mod groups;
mod reading;
mod restore;
mod settle;
mod unreadable;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

pub(super) use groups::{GroupKey, Groups};
pub(super) use reading::Ahead;
pub(super) use restore::{Found, ino_at, vector_contents};
pub(super) use settle::{Why, last_row};

use crate::Error;
use crate::collection::{Attributes, Collection, FileNumber, Kept, RowBytes, Schema, Staged, VectorFile};
use crate::format::{FileKind, Layout};
use crate::metrics::Metrics;
use crate::namespace::{Content, Ino, Time};
use crate::store::{BlobId, BlobMap, Store};

/// A file's place in one collection.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Directory of the collection.
    pub(super) root: Ino,
    /// The format that its name says.
    pub(super) kind: FileKind,
    /// Its vectors, or why it has none.
    pub(super) state: State,
}

/// Whether a member has vectors.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// It has.
    Valid {
        /// The version that searches see.
        file: Arc<VectorFile>,
        /// What its rows are read from.
        content: Content,
    },
    /// Its content was refused.
    Invalid(Problem),
}

/// Why content was refused.
#[derive(Clone, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub(super) struct Problem {
    /// The message, with both numbers.
    pub(super) reason: String,
    /// When.
    pub(super) at: Time,
}

impl Problem {
    /// What is noted of content that was refused for `error`, or that is not what was written.
    pub(super) fn of(error: &Error) -> Self {
        let reason = match error {
            Error::Corrupt { .. } => format!("damaged: {error}"),
            _ => error.to_string(),
        };
        Self { reason, at: Time::now() }
    }
}

/// Record of a member in the catalog, under collection and inode.
#[derive(Debug, bincode::Encode, bincode::Decode)]
struct MemberRecord {
    kind: FileKind,
    group: GroupKey,
    state: MemberState,
}

#[derive(Debug, bincode::Encode, bincode::Decode)]
enum MemberState {
    Valid { first_row: u32, layout: Layout, content: Content },
    Invalid(Problem),
}

/// Record of a collection in the catalog, under its directory.
#[derive(Debug, Default, bincode::Encode, bincode::Decode)]
pub(super) struct CollectionRecord {
    /// The configuration, where one was written.
    pub(super) schema: Option<Schema>,
    /// See [`Collection::numbering`].
    numbering: u64,
}

/// What a transaction does to vectors once its catalog batch is committed.
#[derive(Debug)]
pub(super) enum Change {
    /// A new version becomes visible.
    Add { collection: Arc<Collection>, file: Arc<VectorFile> },
    /// A version ends. `release` is its content when nothing else names it any more.
    Remove { collection: Arc<Collection>, file: Arc<VectorFile>, release: Option<Content> },
    /// A version belongs to another group.
    Regroup { collection: Arc<Collection>, file: Arc<VectorFile>, group: u32 },
    /// The memberships of a file are now these.
    Members { ino: Ino, members: Vec<Member> },
    /// A collection is gone with its directory.
    Drop { root: Ino },
}

/// Directories whose roots are kept.
const ROOTS: usize = 16 << 10;

/// The collections of a volume and their members.
#[derive(Debug)]
pub(super) struct Vectors {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    pub(super) collections: DashMap<Ino, Arc<Collection>>,
    /// Directories below a top-level one that are collections of their own.
    nested: DashMap<Ino, ()>,
    /// The roots of directories that were asked for, and the state of the tree in which each was found.
    roots: DashMap<Ino, (u64, Ino)>,
    members: DashMap<Ino, Vec<Member>>,
    pub(super) groups: Groups,
    /// Counts changes of the tree and its permissions, for what is derived from them.
    tree: AtomicU64,
    /// Counts changes of vector files' names.
    names: AtomicU64,
    unreadable: unreadable::Accounted,
    /// What the attributes take that conditions of searches are about.
    pub(super) kept: Arc<Kept>,
}

impl Vectors {
    pub(super) fn new(store: Arc<Store>, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            metrics,
            collections: DashMap::new(),
            nested: DashMap::new(),
            roots: DashMap::new(),
            members: DashMap::new(),
            groups: Groups::default(),
            tree: AtomicU64::new(0),
            names: AtomicU64::new(0),
            unreadable: unreadable::Accounted::default(),
            kept: Arc::default(),
        }
    }

    /// The collection whose directory is `root`, made when something is about to be in it.
    pub(super) fn collection(&self, root: Ino) -> Arc<Collection> {
        let entry = self.collections.entry(root);
        Arc::clone(&entry.or_insert_with(|| empty(root)))
    }

    /// The collection whose directory is `root`, if it has been used.
    pub(super) fn existing(&self, root: Ino) -> Option<Arc<Collection>> {
        self.collections.get(&root).map(|found| Arc::clone(&found))
    }

    /// The collection whose directory is `root`, or an empty one that nobody else has: looking makes none, or one would
    /// be left of a directory that is removed and still open.
    pub(super) fn existing_or_empty(&self, root: Ino) -> Arc<Collection> {
        self.existing(root).unwrap_or_else(|| empty(root))
    }

    /// The collection whose directory is `root` is empty, and nothing of it is known. Its record, if the catalog has one,
    /// goes with the directory.
    pub(super) fn begin_empty(&self, root: Ino) {
        self.collections.insert(root, empty(root));
    }

    /// The schema in force below `root`.
    pub(super) fn schema(&self, root: Ino) -> Arc<Schema> {
        self.existing(root).map(|known| known.schema()).unwrap_or_default()
    }

    /// Every collection, in order of its directory's number.
    pub(super) fn all(&self) -> Vec<Arc<Collection>> {
        let mut all: Vec<_> = self.collections.iter().map(|entry| Arc::clone(entry.value())).collect();
        all.sort_unstable_by_key(|collection| collection.root());
        all
    }

    /// Whether a directory below a top-level one is a collection of its own.
    pub(super) fn is_nested(&self, dir: Ino) -> bool {
        self.nested.contains_key(&dir)
    }

    /// `dir` is a collection of its own from now on, wherever it lies.
    pub(super) fn nest(&self, dir: Ino) {
        self.nested.insert(dir, ());
        self.tree_changed();
    }

    /// `dir` belongs to the collection above it again.
    pub(super) fn unnest(&self, dir: Ino) {
        self.nested.remove(&dir);
        self.tree_changed();
    }

    /// The root of `dir`'s collection, as `find` finds it or found it in this state of the tree.
    pub(super) fn root_of(&self, dir: Ino, find: impl FnOnce() -> crate::Result<Ino>) -> crate::Result<Ino> {
        // Taken before the tree is read: what is found during a change is not kept for long.
        let tree = self.tree();
        if let Some(known) = self.roots.get(&dir)
            && known.0 == tree
        {
            return Ok(known.1);
        }
        let root = find()?;
        if self.roots.len() >= ROOTS {
            self.roots.clear();
        }
        self.roots.insert(dir, (tree, root));
        Ok(root)
    }

    /// The memberships of a file.
    pub(super) fn members(&self, ino: Ino) -> Vec<Member> {
        self.members.get(&ino).map(|members| members.clone()).unwrap_or_default()
    }

    /// Whether a file is in a collection that is to be told of changes of attributes.
    pub(super) fn knows_attributes(&self, ino: Ino) -> bool {
        let is_told = |member: &Member| {
            self.collections.get(&member.root).is_some_and(|collection| collection.keeps_attributes())
        };
        self.members.get(&ino).is_some_and(|members| members.iter().any(is_told))
    }

    /// The attributes of a file as one of its versions has them, for the next version in a collection that keeps
    /// them. `has_some` says whether it has any.
    fn attributes_of(&self, ino: Ino, has_some: bool, collection: &Collection) -> Option<Arc<Attributes>> {
        if !collection.keeps_attributes() {
            return None;
        }
        if !has_some {
            return Some(Attributes::none());
        }
        // What another version knows is up to date only where changes are told to it.
        self.members.get(&ino)?.iter().find_map(|member| match &member.state {
            State::Valid { file, .. } if self.existing(member.root)?.keeps_attributes() => file.attributes(),
            State::Valid { .. } | State::Invalid(_) => None,
        })
    }

    /// How many files each collection has refused.
    pub(super) fn invalid_counts(&self) -> HashMap<Ino, usize> {
        let mut counts = HashMap::new();
        for entry in &self.members {
            for member in entry.value().iter().filter(|member| matches!(member.state, State::Invalid(_))) {
                *counts.entry(member.root).or_default() += 1;
            }
        }
        counts
    }

    /// The files whose content a collection refused.
    pub(super) fn invalid(&self, root: Ino) -> Vec<(Ino, Problem)> {
        let mut found: Vec<(Ino, Problem)> = Vec::new();
        for entry in &self.members {
            for member in entry.value() {
                if let (true, State::Invalid(problem)) = (member.root == root, &member.state) {
                    found.push((*entry.key(), problem.clone()));
                }
            }
        }
        found.sort_unstable_by_key(|(ino, problem)| (problem.at, *ino));
        found
    }

    /// Whether a file's vectors are read from this content, so that their removal releases it.
    pub(super) fn names_content(&self, ino: Ino, content: &Content) -> bool {
        self.members.get(&ino).is_some_and(|members| {
            members
                .iter()
                .any(|member| matches!(&member.state, State::Valid { content: c, .. } if c == content))
        })
    }

    /// The mapping of a blob that a file's vectors are read from.
    pub(super) fn blob(&self, ino: Ino, id: BlobId) -> Option<Arc<BlobMap>> {
        let members = self.members.get(&ino)?;
        members.iter().find_map(|member| match &member.state {
            State::Valid { file, .. } => match file.bytes() {
                RowBytes::Blob(map) if map.id() == id => Some(Arc::clone(map)),
                _ => None,
            },
            State::Invalid(_) => None,
        })
    }

    /// Counts a change of directories or permissions.
    pub(super) fn tree_changed(&self) {
        self.tree.fetch_add(1, Ordering::AcqRel);
    }

    /// Number of changes of directories and permissions so far.
    pub(super) fn tree(&self) -> u64 {
        self.tree.load(Ordering::Acquire)
    }

    /// Number of changes of vector files so far, by name or content.
    pub(super) fn names(&self) -> u64 {
        self.names.load(Ordering::Acquire)
    }

    /// Makes a committed transaction's changes visible. Collections that gain rows go first, so that a file moved
    /// between two is at no moment in neither.
    pub(super) fn publish(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.names.fetch_add(1, Ordering::AcqRel);
        }
        let mut staged: HashMap<u64, (Arc<Collection>, Staged)> = HashMap::new();
        let mut last = Vec::new();
        let entry = |staged: &mut HashMap<u64, (Arc<Collection>, Staged)>, collection: &Arc<Collection>| {
            staged.entry(collection.root()).or_insert_with(|| {
                (Arc::clone(collection), Staged { added: Vec::new(), removed: Vec::new() })
            });
        };
        for change in changes {
            match change {
                Change::Add { collection, file } => {
                    self.metrics.vectors_indexed(file.rows());
                    entry(&mut staged, &collection);
                    if let Some((_, staged)) = staged.get_mut(&collection.root()) {
                        staged.added.push(file);
                    }
                }
                Change::Remove { collection, file, release } => {
                    entry(&mut staged, &collection);
                    if let Some((_, staged)) = staged.get_mut(&collection.root()) {
                        staged.removed.push(Arc::clone(&file));
                    }
                    last.push((file, release));
                }
                Change::Regroup { collection, file, group } => collection.regroup(&file, group),
                Change::Members { ino, members } if members.is_empty() => {
                    self.members.remove(&ino);
                }
                Change::Members { ino, members } => {
                    self.members.insert(ino, members);
                }
                Change::Drop { root } => self.drop_collection(root),
            }
        }
        let mut staged: Vec<_> = staged.into_values().collect();
        staged.sort_unstable_by_key(|(_, staged)| staged.added.is_empty());
        for (collection, staged) in staged {
            collection.publish(&staged);
        }
        for (file, release) in last {
            self.release(&file, release);
        }
    }

    fn drop_collection(&self, root: Ino) {
        self.unnest(root);
        let Some((_, collection)) = self.collections.remove(&root) else { return };
        if let Err(error) = collection.remove_checkpoint(&self.store.index_dir()) {
            tracing::warn!(root = root.0, %error, "a graph's checkpoint outlives its collection");
        }
    }

    /// After a removal: gives up what only the vectors named.
    fn release(&self, file: &VectorFile, release: Option<Content>) {
        match (file.bytes(), release) {
            (RowBytes::Slot(slot), Some(_)) => slot.doom(),
            (RowBytes::Blob(_), Some(Content::Blob { id, .. })) => self.store.drop_blob(id),
            (RowBytes::Slot(_) | RowBytes::Blob(_), _) => {}
        }
    }

    /// Takes the changes of a failed transaction back.
    pub(super) fn abandon(&self, changes: Vec<Change>) {
        for change in changes {
            if let Change::Add { collection, file } = change {
                collection.abandon(&Staged { added: vec![file], removed: Vec::new() });
            }
        }
    }
}

/// Apart, so that who finds one does not pay for its frame.
#[cold]
#[inline(never)]
fn empty(root: Ino) -> Arc<Collection> {
    Arc::new(Collection::new(root.0, Schema::default(), 0))
}

/// The collection room's number of a file.
pub(super) fn number(ino: Ino) -> FileNumber {
    FileNumber(ino.0)
}
