//! What a client's system calls were, and which states of its directory they allow.
//!
//! A client is alone in its directory, so its changes have one order. After a power cut the directory must be in a
//! state that it had after some of them: not before the last sync that had returned, and not after a call that had
//! not begun. After the death of the daemon, all calls that returned count as synced.
//!
//! Content that was not synced is exact as well, with one exception that SEMANTICS.md states: large content is
//! changed in place, so after a cut it may be in part what was not written, as long as no vector is read from it.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Up to this size the content of an ordinary file is part of the change that wrote it.
const SMALL: usize = 16 << 10;

/// A write reaches VexFS in parts that end here.
const PAGE: usize = 4096;

/// What one system call does. Paths are relative to the client's directory.
#[derive(Clone)]
pub(super) enum Change {
    Mkdir(String),
    Rmdir(String),
    /// `open` with `O_CREAT | O_TRUNC`.
    Begin(String),
    /// `open` with `O_CREAT | O_APPEND`.
    Continue(String),
    Write {
        path: String,
        bytes: Arc<[u8]>,
    },
    Close(String),
    Rename {
        from: String,
        to: String,
    },
    Unlink(String),
    /// `setxattr` of `user.note`.
    Note {
        path: String,
        value: Vec<u8>,
    },
    /// `fsync` of this file or directory.
    Sync(String),
    /// `mkdir` of a snapshot of this name.
    Take(String),
    /// `rmdir` of it.
    Drop(String),
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mkdir(path) => write!(f, "mkdir {path}"),
            Self::Rmdir(path) => write!(f, "rmdir {path}"),
            Self::Begin(path) => write!(f, "open O_TRUNC {path}"),
            Self::Continue(path) => write!(f, "open O_APPEND {path}"),
            Self::Write { path, bytes } => write!(f, "write {} bytes {path}", bytes.len()),
            Self::Close(path) => write!(f, "close {path}"),
            Self::Rename { from, to } => write!(f, "rename {from} {to}"),
            Self::Unlink(path) => write!(f, "unlink {path}"),
            Self::Note { path, .. } => write!(f, "setxattr {path}"),
            Self::Sync(path) => write!(f, "fsync {path}"),
            Self::Take(name) => write!(f, "take snapshot {name}"),
            Self::Drop(name) => write!(f, "drop snapshot {name}"),
        }
    }
}

/// A system call, and where the disk's record was when it began and when it had returned.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) change: Change,
    pub(super) began: usize,
    pub(super) ended: Option<usize>,
}

impl Step {
    /// Whether it had returned when the record had `cut` entries.
    pub(super) fn has_ended(&self, cut: usize) -> bool {
        self.ended.is_some_and(|ended| ended <= cut)
    }
}

/// A file as the system calls made it.
#[derive(Clone, Debug, Default)]
struct File {
    content: Vec<u8>,
    note: Option<Vec<u8>>,
    /// So many of its first bytes a cut must not touch.
    firm: usize,
    closed: bool,
    /// It is being written to.
    grows: bool,
}

/// A file as it is found.
#[derive(Debug)]
pub(super) struct SeenFile {
    /// Its bytes, or the error of reading them.
    pub(super) content: Result<Vec<u8>, std::io::Error>,
    pub(super) note: Option<Vec<u8>>,
    /// What VexFS says of it as a vector.
    pub(super) status: String,
}

impl SeenFile {
    /// Whether searches are said to return its rows.
    pub(super) fn is_searched(&self) -> bool {
        self.status == "indexed" || self.status == "pending"
    }
}

/// A client's directory as it is found: directories, and files by path.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) dirs: Vec<String>,
    pub(super) files: BTreeMap<String, SeenFile>,
}

/// A client's directory as its system calls made it.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Dir,
    File(File),
}

/// What a state that matches is worth.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    /// Bytes that had been synced, and are there.
    pub(super) synced_bytes: usize,
    /// Files whose newest content had not been synced, and that say so by an error.
    pub(super) damaged: usize,
    /// Snapshots that are there and show what they must.
    pub(super) snapshots: usize,
}

impl Tree {
    /// The directory as it is found: what the next calls start from.
    pub(super) fn of(seen: &Seen) -> Self {
        let mut nodes: BTreeMap<String, Node> =
            seen.dirs.iter().map(|path| (path.clone(), Node::Dir)).collect();
        for (path, file) in &seen.files {
            let content = file.content.as_ref().cloned().unwrap_or_default();
            let (firm, note) = (content.len(), file.note.clone());
            let file = File { firm, content, note, closed: true, grows: false };
            nodes.insert(path.clone(), Node::File(file));
        }
        Self { nodes }
    }

    pub(super) fn dirs(&self) -> Vec<&str> {
        self.nodes
            .iter()
            .filter(|(_, node)| matches!(node, Node::Dir))
            .map(|(path, _)| path.as_str())
            .collect()
    }

    pub(super) fn files(&self) -> Vec<&str> {
        let files = self.nodes.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.as_str()).collect()
    }

    fn file(&mut self, path: &str) -> &mut File {
        let node = self.nodes.entry(path.to_owned()).or_insert_with(|| Node::File(File::default()));
        match node {
            Node::File(file) => file,
            Node::Dir => panic!("{path} is a directory"),
        }
    }

    /// Does to the model what the call did.
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Mkdir(path) => drop(self.nodes.insert(path.clone(), Node::Dir)),
            Change::Rmdir(path) | Change::Unlink(path) => drop(self.nodes.remove(path)),
            Change::Begin(path) => {
                let file = self.file(path);
                (file.content, file.firm, file.closed) = (Vec::new(), 0, false);
            }
            Change::Continue(path) => self.file(path).closed = false,
            Change::Write { path, bytes } => self.file(path).content.extend_from_slice(bytes),
            Change::Close(path) => self.file(path).closed = true,
            Change::Rename { from, to } => {
                let node = self.nodes.remove(from);
                let over = self.nodes.remove(to).is_some();
                let Some(Node::File(mut file)) = node else { panic!("{from} is a file") };
                if over {
                    // The new content is made durable first.
                    file.firm = file.content.len();
                }
                self.nodes.insert(to.clone(), Node::File(file));
            }
            Change::Note { path, value } => self.file(path).note = Some(value.clone()),
            Change::Sync(path) => self.make_firm(|file_path, file| {
                // What the catalog holds, and what vectors are read from, goes with every sync.
                file_path == path || file.content.len() <= SMALL || (file.closed && is_vector(file_path))
            }),
            Change::Take(_) | Change::Drop(_) => {}
        }
    }

    fn make_firm(&mut self, which: impl Fn(&str, &File) -> bool) {
        for (path, node) in &mut self.nodes {
            if let Node::File(file) = node
                && which(path, file)
            {
                file.firm = file.content.len();
            }
        }
    }

    /// Everything that is here counts as synced.
    pub(super) fn all_firm(&mut self) {
        self.make_firm(|_, _| true);
    }

    /// Compares what is found with this state and the first pages of a write: the kernel may hand a write on in
    /// parts.
    fn matches_part_of(&self, path: &str, bytes: &[u8], seen: &Seen) -> Option<Kept> {
        let Some(Node::File(file)) = self.nodes.get(path) else { return None };
        let first = PAGE - file.content.len() % PAGE;
        (first..bytes.len()).step_by(PAGE).find_map(|end| {
            let mut part = self.clone();
            part.apply(&Change::Write { path: path.to_owned(), bytes: bytes[..end].into() });
            part.matches(seen).ok()
        })
    }

    /// Compares what is found with this state. Says what differs.
    pub(super) fn matches(&self, seen: &Seen) -> Result<Kept, String> {
        let mut kept = Kept::default();
        for dir in &seen.dirs {
            if !matches!(self.nodes.get(dir), Some(Node::Dir)) {
                return Err(format!("{dir}/ should not be there"));
            }
        }
        for path in seen.files.keys() {
            if !matches!(self.nodes.get(path), Some(Node::File(_))) {
                return Err(format!("{path} should not be there"));
            }
        }
        for (path, node) in &self.nodes {
            match node {
                Node::Dir if seen.dirs.contains(path) => {}
                Node::Dir => return Err(format!("{path}/ is missing")),
                Node::File(file) => {
                    let found = seen.files.get(path).ok_or_else(|| format!("{path} is missing"))?;
                    file.matches(found, &mut kept).map_err(|what| format!("{path}: {what}"))?;
                }
            }
        }
        Ok(kept)
    }
}

impl File {
    fn matches(&self, found: &SeenFile, kept: &mut Kept) -> Result<(), String> {
        if found.note != self.note {
            return Err(format!("user.note is {:?}, want {:?}", found.note, self.note));
        }
        let is_firm = self.firm == self.content.len();
        let bytes = match &found.content {
            Ok(bytes) => bytes,
            Err(_) if !is_firm => {
                kept.damaged += 1;
                return Ok(());
            }
            Err(error) => return Err(format!("reading it: {error}")),
        };
        kept.synced_bytes += self.firm;
        if *bytes == self.content {
            return Ok(());
        }
        let how = format!(
            "{} bytes found, {} wanted, {} of them synced",
            bytes.len(),
            self.content.len(),
            self.firm
        );
        if (is_firm && !self.grows) || self.content.len() <= SMALL || found.is_searched() {
            return Err(format!("the content differs: {how}, status {}", found.status));
        }
        match bytes.get(..self.firm) == self.content.get(..self.firm) {
            true => Ok(()),
            false => Err(format!("synced bytes differ: {how}")),
        }
    }
}

/// Whether VexFS takes a file of this name for a vector.
pub(super) fn is_vector(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    !name.starts_with('.') && (name.ends_with(".f32") || name.ends_with(".npy"))
}

/// Compares what is found after a cut of the power when the record had `cut` entries.
///
/// # Errors
///
/// What differs from the state after the last sync that had returned, and from the newest.
pub(super) fn allow_after_cut(start: &Tree, steps: &[Step], cut: usize, seen: &Seen) -> Result<Kept, String> {
    let floor = steps
        .iter()
        .rposition(|step| matches!(step.change, Change::Sync(_)) && step.has_ended(cut))
        .map_or(0, |at| at + 1);
    let mut tree = start.clone();
    steps[..floor].iter().for_each(|step| tree.apply(&step.change));
    let begun = steps[floor..].iter().take_while(|step| step.began < cut || step.has_ended(cut)).count();
    allow(tree, steps, floor, begun, seen)
}

/// Compares what is found after the daemon's death.
///
/// # Errors
///
/// As [`allow_after_cut`].
pub(super) fn allow_after_death(start: &Tree, steps: &[Step], seen: &Seen) -> Result<Kept, String> {
    let returned = steps.iter().take_while(|step| step.ended.is_some()).count();
    let mut tree = start.clone();
    steps[..returned].iter().for_each(|step| tree.apply(&step.change));
    tree.all_firm();
    allow(tree, steps, returned, steps.len() - returned, seen)
}

/// Looks for what is found among the states from `steps[..floor]` on, whose result `tree` is, through `begun` more
/// steps.
fn allow(mut tree: Tree, steps: &[Step], floor: usize, begun: usize, seen: &Seen) -> Result<Kept, String> {
    let begun = &steps[floor..floor + begun];
    // Bytes behind the synced ones may be there before the change that makes them the file's.
    for step in begun {
        if let Change::Write { path, .. } = &step.change
            && let Some(Node::File(file)) = tree.nodes.get_mut(path)
        {
            file.grows = true;
        }
    }
    let first = match tree.matches(seen) {
        Ok(kept) => return Ok(kept),
        Err(what) => what,
    };
    let (mut last, mut many) = (first.clone(), 0);
    for step in begun {
        if let Change::Write { path, bytes } = &step.change
            && let Some(kept) = tree.matches_part_of(path, bytes, seen)
        {
            return Ok(kept);
        }
        // A sync that had not returned promises nothing.
        if !matches!(step.change, Change::Sync(_)) {
            tree.apply(&step.change);
        }
        many += 1;
        match tree.matches(seen) {
            Ok(kept) => return Ok(kept),
            Err(what) => last = what,
        }
    }
    let last_calls: Vec<String> =
        steps[..floor + many].iter().rev().take(40).map(|step| format!("{step:?}")).collect();
    Err(format!(
        "against what was synced: {first}; {many} calls later: {last}; the last calls, the newest first:\n{}",
        last_calls.join("\n")
    ))
}
