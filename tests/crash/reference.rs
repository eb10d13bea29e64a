//! What a volume must hold: every state that it went through, and which contents were promised to survive.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Names, and the attributes of files, as they were after a step. Paths have no slash at the front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    pub nodes: BTreeMap<String, Node>,
    /// Extended attributes of files that have any.
    pub attributes: BTreeMap<FileId, BTreeMap<String, Vec<u8>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    Dir,
    File(FileId),
}

/// A file, whatever its names are.
pub type FileId = usize;

pub type Content = Arc<Vec<u8>>;

/// One call on the volume, and the tree after it.
#[derive(Clone, Debug)]
pub struct Step {
    pub what: String,
    /// Events on the tape when it began and when it returned.
    pub start: usize,
    pub end: usize,
    pub tree: Tree,
    /// Whether it promised that all names survive.
    pub persists: bool,
}

/// A content that a file had from a step on.
#[derive(Clone, Debug)]
struct Version {
    step: usize,
    content: Content,
}

/// What a tree held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub nodes: BTreeMap<String, ShownNode>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShownNode {
    Dir,
    File { file: FileId, content: Content, attributes: BTreeMap<String, Vec<u8>> },
}

/// A snapshot that was taken, or dropped.
#[derive(Clone, Debug)]
pub struct SnapshotStep {
    pub name: String,
    /// What it shows from now on; `None` when it was dropped.
    pub shown: Option<Arc<Shown>>,
    pub start: usize,
    /// As of a [`Step`].
    pub end: usize,
}

/// Everything that happened.
#[derive(Clone, Debug)]
pub struct History {
    pub steps: Vec<Step>,
    pub snapshots: Vec<SnapshotStep>,
    versions: BTreeMap<FileId, Vec<Version>>,
    /// Steps after which the content that a file had then is durable; with the flag, if the step's change of
    /// names survived.
    durable: BTreeMap<FileId, Vec<(usize, bool)>>,
}

/// What a file may hold after a cut.
#[derive(Debug)]
pub enum Expected {
    /// This.
    Exactly(Content),
    /// In each sector one of these, or zeroes; or the file is known to be damaged.
    MixOf(Vec<Content>),
}

impl History {
    pub fn new() -> Self {
        let first = Step { what: "open".into(), start: 0, end: 0, tree: Tree::default(), persists: false };
        Self {
            steps: vec![first],
            snapshots: Vec::new(),
            versions: BTreeMap::new(),
            durable: BTreeMap::new(),
        }
    }

    pub fn tree(&self) -> &Tree {
        &self.steps.last().unwrap().tree
    }

    pub fn content(&self, file: FileId) -> Content {
        self.versions[&file].last().unwrap().content.clone()
    }

    pub fn file(&self, path: &str) -> Option<FileId> {
        match self.tree().nodes.get(path)? {
            Node::File(file) => Some(*file),
            Node::Dir => None,
        }
    }

    /// A number that no file has.
    pub fn next_file(&self) -> FileId {
        self.versions.len()
    }

    /// The step that comes next has given a file this content.
    pub fn set_content(&mut self, file: FileId, content: Vec<u8>) {
        let version = Version { step: self.steps.len(), content: Arc::new(content) };
        self.versions.entry(file).or_default().push(version);
    }

    /// The step that comes next makes the content of a file durable.
    pub fn set_durable(&mut self, file: FileId, if_named: bool) {
        self.durable.entry(file).or_default().push((self.steps.len(), if_named));
    }

    /// What there is now.
    pub fn shown(&self) -> Shown {
        let tree = self.tree();
        let node = |node: &Node| match *node {
            Node::Dir => ShownNode::Dir,
            Node::File(file) => ShownNode::File {
                file,
                content: self.content(file),
                attributes: tree.attributes.get(&file).cloned().unwrap_or_default(),
            },
        };
        Shown { nodes: tree.nodes.iter().map(|(path, at)| (path.clone(), node(at))).collect() }
    }

    /// For each snapshot that ever was, what it may show after a cut; `None`: it may be gone.
    pub fn snapshots_after(&self, cut: usize) -> BTreeMap<&str, Vec<Option<Arc<Shown>>>> {
        let mut may: BTreeMap<&str, Vec<Option<Arc<Shown>>>> = BTreeMap::new();
        for step in self.snapshots.iter().filter(|step| step.start < cut) {
            let states = may.entry(&step.name).or_insert_with(|| vec![None]);
            if step.end <= cut {
                states.clear();
            }
            states.push(step.shown.clone());
        }
        may
    }

    /// As if every snapshot had been dropped.
    pub fn without_snapshots(&self) -> Self {
        Self { snapshots: Vec::new(), ..self.clone() }
    }

    /// Names of snapshots that are there for sure.
    pub fn present_snapshots(&self) -> Vec<(String, Arc<Shown>)> {
        let states = self.snapshots_after(usize::MAX - 1).into_iter();
        let sure = states.filter_map(|(name, states)| match &states[..] {
            [Some(shown)] => Some((name.to_owned(), Arc::clone(shown))),
            _ => None,
        });
        sure.collect()
    }

    pub fn files(&self) -> Vec<FileId> {
        self.versions.keys().copied().collect()
    }

    /// The steps whose names the disk may show after a cut.
    pub fn candidates(&self, cut: usize) -> std::ops::RangeInclusive<usize> {
        let sure = self.steps.iter().rposition(|step| step.persists && step.end <= cut).unwrap_or(0);
        let last = self.steps.iter().rposition(|step| step.start < cut).unwrap_or(0);
        sure..=last.max(sure)
    }

    /// What `file` may hold after a cut that left the names of step `shown`.
    pub fn expected(&self, file: FileId, shown: usize, cut: usize) -> Expected {
        let last = *self.candidates(cut).end();
        let begun = |version: &&Version| version.step <= last;
        let versions: Vec<&Version> = self.versions[&file].iter().take_while(begun).collect();
        let marks = self.durable.get(&file).into_iter().flatten();
        let durable = marks
            .filter(
                |&&(step, if_named)| {
                    if if_named { step <= shown } else { step <= last && self.steps[step].end <= cut }
                },
            )
            .map(|&(step, _)| step)
            .max()
            .unwrap_or(0);
        // The last version that was made durable, and what came after it.
        let first = versions.iter().rposition(|version| version.step <= durable).unwrap_or(0);
        let left = &versions[first..];
        match left {
            [only] if only.step <= durable => Expected::Exactly(only.content.clone()),
            _ => Expected::MixOf(left.iter().map(|version| version.content.clone()).collect()),
        }
    }
}

impl Expected {
    /// Whether `content` may be there; `None` is a file that is reported as damaged.
    pub fn allows(&self, content: Option<&[u8]>) -> bool {
        match (self, content) {
            (Expected::Exactly(expected), Some(content)) => content == &expected[..],
            (Expected::Exactly(_), None) => false,
            (Expected::MixOf(_), None) => true,
            (Expected::MixOf(versions), Some(content)) => {
                let longest = versions.iter().map(|version| version.len()).max().unwrap_or(0);
                let sectors = content.chunks(512).enumerate();
                content.len() <= longest
                    && sectors.into_iter().all(|(number, sector)| {
                        is_zero(sector)
                            || versions.iter().any(|version| has_sector(version, number * 512, sector))
                    })
            }
        }
    }
}

/// Whether `content` has `sector` at `at`; it is zero behind its end.
fn has_sector(content: &[u8], at: usize, sector: &[u8]) -> bool {
    let there = &content[at.min(content.len())..(at + sector.len()).min(content.len())];
    sector.starts_with(there) && is_zero(&sector[there.len()..])
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
