//! What a check found, and what became of it.

use std::ffi::OsStr;

use crate::catalog::Catalog;
use crate::namespace::check::Fault;
use crate::namespace::{Ino, Namespace};
use crate::volume::ingest::check::MemberFault;
use crate::volume::recovery;
use crate::{Error, Result};

/// Most directories of a path that is shown.
const DEPTH_SHOWN: usize = 1000;

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    /// Every fault, in the order in which it was met.
    pub findings: Vec<Finding>,
    /// How much was checked.
    pub counted: Counted,
    /// Whether the last process to hold the store died with it: the next mount finishes what that left.
    pub ended_uncleanly: bool,
}

/// How much was checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Inodes.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Collections.
    pub collections: u64,
    /// Vectors in them.
    pub vectors: u64,
    /// Slots that were compared with their checksums.
    pub slots: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of slots and blobs that were read.
    pub bytes_read: u64,
    /// Inodes with work that the next mount finishes.
    pub unfinished: u64,
    /// Blobs that nothing names; the next mount removes them.
    pub leftover_blobs: usize,
    /// Files about graphs of collections that are empty or gone; the next mount removes them.
    pub leftover_graphs: usize,
}

/// One fault.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The file, below the store directory.
    pub file: String,
    /// Where in it, in bytes. 0 for a table of the catalog: `what` has the key.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// The path in the mount that it concerns, as far as it is known.
    pub path: Option<String>,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is still there.
    Damaged,
    /// It was repaired, in this way.
    Repaired(String),
    /// It does no harm, and is left alone.
    Harmless,
}

impl Report {
    pub(super) fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Whether nothing is damaged, or all of it was repaired.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        !self.findings.iter().any(|finding| finding.fate == Fate::Damaged)
    }

    /// How many faults were repaired.
    #[must_use]
    pub fn repaired(&self) -> usize {
        self.findings.iter().filter(|finding| matches!(finding.fate, Fate::Repaired(_))).count()
    }

    /// How many are still there.
    #[must_use]
    pub fn damaged(&self) -> usize {
        self.findings.iter().filter(|finding| finding.fate == Fate::Damaged).count()
    }
}

/// One line: file, offset, path, what is wrong, what was done.
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: offset {}: ", self.file, self.offset)?;
        if let Some(path) = &self.path {
            write!(f, "{path}: ")?;
        }
        f.write_str(&self.what)?;
        match &self.fate {
            Fate::Damaged => Ok(()),
            Fate::Repaired(how) => write!(f, ": {how}"),
            Fate::Harmless => write!(f, ": left alone"),
        }
    }
}

impl Finding {
    /// The same of a snapshot.
    pub(super) fn in_snapshot(self, name: &OsStr) -> Self {
        let root = format!("/.vexfs/snapshots/{}", name.display());
        let path = self.path.map_or_else(|| root.clone(), |path| format!("{root}{path}"));
        let file = match self.file.starts_with("catalog") {
            true => format!("snapshots/{}/{}", name.display(), self.file),
            false => self.file,
        };
        Self { file, path: Some(path), ..self }
    }

    pub(super) fn of(error: &Error, path: Option<String>, fate: Fate) -> Self {
        let (file, offset, what) = match error {
            Error::Corrupt { file, offset, what } => (file.clone(), *offset, what.clone()),
            other => ("catalog".to_owned(), 0, other.to_string()),
        };
        Self { file, offset, what, path, fate }
    }

    pub(super) fn of_names(fault: &Fault, path: Option<String>, fate: Fate) -> Self {
        let file = format!("catalog/{}", fault.table().name());
        Self { file, offset: 0, what: fault.to_string(), path, fate }
    }

    pub(super) fn of_member(fault: &MemberFault, path: Option<String>, fate: Fate) -> Self {
        let (table, what) = match fault {
            MemberFault::Collection { key, why } => ("collections", format!("key {}: {why}", hex(key))),
            MemberFault::Unreadable { key, why } => ("vectors", format!("key {}: {why}", hex(key))),
            MemberFault::Member { root, ino, why } => {
                ("vectors", format!("inode {} in collection {}: {why}", ino.0, root.0))
            }
            MemberFault::Missing { root, ino } => {
                ("vectors", format!("collection {} does not know inode {}", root.0, ino.0))
            }
        };
        Self { file: format!("catalog/{table}"), offset: 0, what, path, fate }
    }

    pub(super) fn of_graph(file: &str, why: &str, fate: Fate) -> Self {
        Self { file: file.to_owned(), offset: 0, what: why.to_owned(), path: None, fate }
    }
}

impl MemberFault {
    /// The file concerned, if it is known.
    pub(super) fn ino(&self) -> Option<Ino> {
        match self {
            MemberFault::Member { ino, .. } | MemberFault::Missing { ino, .. } => Some(*ino),
            MemberFault::Collection { .. } | MemberFault::Unreadable { .. } => None,
        }
    }
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the volume was closed.
pub(super) fn was_closed(catalog: &Catalog) -> Result<bool> {
    recovery::was_closed(catalog)
}

/// A path of an inode in the mount, if it has one.
pub(super) fn path_of(names: &Namespace, ino: Ino) -> Option<String> {
    let first = |ino| names.links(ino).ok().and_then(|links| links.into_iter().next());
    let mut link = first(ino)?;
    let mut path = Vec::new();
    // Directories that are damaged may lie in each other.
    for _ in 0..DEPTH_SHOWN {
        path.push(link.name);
        if link.parent == Ino::ROOT {
            path.push(Vec::new());
            path.reverse();
            return Some(String::from_utf8_lossy(&path.join(&b'/')).into_owned());
        }
        link = first(link.parent)?;
    }
    None
}
