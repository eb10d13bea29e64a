//! Checking members and collections against the files and directories that they belong to.

use std::collections::{HashMap, HashSet};

use xxhash_rust::xxh3::xxh3_64;

use super::restore::ino_at;
use super::{CollectionRecord, GroupKey, MemberRecord, MemberState};
use crate::catalog::{Catalog, Table};
use crate::collection::{MAX_ROWS, Schema};
use crate::format::{self, FileKind, record};
use crate::namespace::check::Census;
use crate::namespace::{Content, Ino, Inode, Kind, Link, Mark};
use crate::store::SlotRef;
use crate::{Error, Result};

/// What is known of the files when their members are read.
#[derive(Debug, Default)]
pub(in crate::volume) struct Files {
    /// In order of their numbers.
    facts: Vec<Facts>,
    /// Recognised names: file, directory, format.
    names: Vec<(Ino, Ino, FileKind)>,
}

#[derive(Debug)]
struct Facts {
    ino: Ino,
    content: Content,
    size: u64,
    /// Checksum of the group's record, the same for the same group, and of that of earlier programs.
    groups: [u64; 2],
}

impl Files {
    /// Takes a file, with its names.
    pub(in crate::volume) fn note(&mut self, inode: &Inode, links: &[Link]) {
        if inode.kind != Kind::File || links.is_empty() {
            return;
        }
        let groups = [GroupKey::of(inode, links), GroupKey::of_all(inode, links)].map(|key| group_sum(&key));
        self.facts.push(Facts { ino: inode.ino, content: inode.content, size: inode.size, groups });
        for link in links {
            if let Some(kind) = format::recognise(&link.name) {
                self.names.push((inode.ino, link.parent, kind));
            }
        }
    }

    fn get(&self, ino: Ino) -> Option<&Facts> {
        self.facts.binary_search_by_key(&ino, |facts| facts.ino).ok().map(|at| &self.facts[at])
    }
}

fn group_sum(group: &GroupKey) -> u64 {
    xxh3_64(&record::encode(group))
}

/// A record that is wrong.
#[derive(Debug)]
pub(in crate::volume) enum MemberFault {
    /// A collection's record that cannot be read, or whose directory is gone.
    Collection { key: Vec<u8>, why: String },
    /// A member's record that cannot be read.
    Unreadable { key: Vec<u8>, why: String },
    /// A member's record that does not fit its file or its collection.
    Member { root: Ino, ino: Ino, why: String },
    /// A file with a recognised name that its collection does not know.
    Missing { root: Ino, ino: Ino },
}

/// What was found about members.
#[derive(Debug, Default)]
pub(in crate::volume) struct Members {
    pub(in crate::volume) faults: Vec<MemberFault>,
    /// Collections with a record or a member.
    pub(in crate::volume) collections: HashSet<Ino>,
    pub(in crate::volume) vectors: u64,
    /// Content that vectors are read from and that is not the file's own.
    pub(in crate::volume) contents: Vec<(Content, Ino)>,
}

/// What is known of a collection while its members are read.
#[derive(Debug, Default)]
struct Rows {
    dim: Option<u32>,
    /// First row, the row behind the last, file.
    ranges: Vec<(u32, u32, Ino)>,
}

/// Reads all members.
///
/// # Errors
///
/// The catalog's errors, when a table cannot be read.
pub(in crate::volume) fn check(catalog: &Catalog, census: &Census, files: &Files) -> Result<Members> {
    let mut members = Members::default();
    let (schemas, nested) = read_collections(catalog, census, &mut members)?;
    // While directories wait for their files to follow, members are where they were.
    let is_moving = census.marks.get(&(Mark::Moved as u8)).is_some_and(|marked| !marked.is_empty());
    let mut expected: HashSet<(Ino, Ino, FileKind)> = HashSet::new();
    let mut taken: HashSet<(Ino, Ino)> = HashSet::new();
    for &(ino, dir, kind) in &files.names {
        let root = collection_root(census, &nested, dir);
        // Of several names in one collection the first decides.
        if taken.insert((root, ino)) {
            expected.insert((root, ino, kind));
        }
    }
    drop(taken);
    let mut rows: HashMap<Ino, Rows> = HashMap::new();
    for pair in catalog.scan(Table::Vectors, b"", None) {
        let (key, value) = pair?;
        let parsed = ino_at(&key, 0).and_then(|root| {
            Ok((root, ino_at(&key, 8)?, record::decode::<MemberRecord>("vectors", &value)?))
        });
        let (root, ino, member) = match parsed {
            Ok(parsed) if key.len() == 16 => parsed,
            Ok(_) => {
                members
                    .faults
                    .push(MemberFault::Unreadable { key: key.to_vec(), why: "key of another length".into() });
                continue;
            }
            Err(why) => {
                members.faults.push(MemberFault::Unreadable { key: key.to_vec(), why: why.to_string() });
                continue;
            }
        };
        members.collections.insert(root);
        let is_expected = expected.remove(&(root, ino, member.kind));
        let in_flux = is_moving || census.has_mark(Mark::Dirty, ino);
        let schema = schemas.get(&root);
        let rows = rows
            .entry(root)
            .or_insert_with(|| Rows { dim: schema.and_then(|schema| schema.dim), ..Rows::default() });
        let why = match files.get(ino) {
            None => Some("no such file".to_owned()),
            Some(_) if !in_flux && !is_expected => Some("the file has no name that makes it a member".into()),
            Some(facts) => judge(facts, &member, in_flux),
        };
        let why = why.or_else(|| rows.take(ino, &member.state));
        if let MemberState::Valid { layout, content, .. } = &member.state {
            members.vectors += layout.rows;
            if files.get(ino).is_none_or(|facts| facts.content != *content) {
                members.contents.push((*content, ino));
            }
        }
        members.faults.extend(why.map(|why| MemberFault::Member { root, ino, why }));
    }
    for (root, rows) in rows {
        let overlaps = rows.overlaps();
        members.faults.extend(overlaps.into_iter().map(|(ino, why)| MemberFault::Member { root, ino, why }));
    }
    // A file that was just made is refused, for being empty, by its first close.
    let is_settled = |ino| {
        let is_empty = files.get(ino).is_none_or(|facts| facts.content == Content::Empty);
        !is_empty && !is_moving && !census.has_mark(Mark::Dirty, ino)
    };
    let missing = expected.into_iter().filter(|(_, ino, _)| is_settled(*ino));
    members.faults.extend(missing.map(|(root, ino, _)| MemberFault::Missing { root, ino }));
    Ok(members)
}

type Schemas = HashMap<Ino, Schema>;

/// The configurations, and the directories below the top that are collections of their own.
fn read_collections(
    catalog: &Catalog,
    census: &Census,
    members: &mut Members,
) -> Result<(Schemas, HashSet<Ino>)> {
    let (mut schemas, mut nested) = (HashMap::new(), HashSet::new());
    for pair in catalog.scan(Table::Collections, b"", None) {
        let (key, value) = pair?;
        let parsed: Result<(Ino, CollectionRecord)> =
            ino_at(&key, 0).and_then(|root| Ok((root, record::decode("collections", &value)?)));
        match parsed {
            Ok((root, _)) if !census.parents.contains_key(&root) => {
                members.faults.push(MemberFault::Collection {
                    key: key.to_vec(),
                    why: format!("no directory {}", root.0),
                });
            }
            Ok((root, entry)) => {
                members.collections.insert(root);
                if let Some(schema) = entry.schema {
                    let is_top = root == Ino::ROOT || census.parents.get(&root) == Some(&Ino::ROOT);
                    if !is_top {
                        nested.insert(root);
                    }
                    schemas.insert(root, schema);
                }
            }
            Err(why) => {
                members.faults.push(MemberFault::Collection { key: key.to_vec(), why: why.to_string() })
            }
        }
    }
    Ok((schemas, nested))
}

/// As `Volume::collection_root`.
fn collection_root(census: &Census, nested: &HashSet<Ino>, dir: Ino) -> Ino {
    let mut at = dir;
    // As many steps as there are directories: one that cannot be reached from the root is a fault of its own.
    for _ in 0..census.parents.len() {
        if at == Ino::ROOT || nested.contains(&at) {
            break;
        }
        match census.parents.get(&at) {
            Some(&Ino::ROOT) | None => break,
            Some(&parent) => at = parent,
        }
    }
    at
}

/// What is wrong with a member of this file.
fn judge(file: &Facts, member: &MemberRecord, in_flux: bool) -> Option<String> {
    // Without vectors there is nothing to be found, by whomever.
    let MemberState::Valid { first_row, layout, content } = &member.state else { return None };
    if !in_flux && !file.groups.contains(&group_sum(&member.group)) {
        return Some("directories, owner or permissions are not those of the file".into());
    }
    let end = u64::from(*first_row).saturating_add(layout.rows);
    if layout.rows == 0 || end > u64::from(MAX_ROWS) {
        return Some(format!("rows {first_row} to {end} are out of range"));
    }
    let own = *content == file.content;
    if !own && !in_flux && member.kind != FileKind::Text {
        return Some("its vectors are read from other bytes than the file's".into());
    }
    let len = match content {
        Content::Slot(SlotRef { len, .. }) => u64::from(*len),
        Content::Blob { sealed: true, .. } if own => file.size,
        // The blob of an old version: its length is not recorded.
        Content::Blob { sealed: true, .. } => return None,
        _ => return Some("its vectors lie in neither a slot nor a sealed blob".into()),
    };
    (!layout.fits(len)).then(|| format!("{} rows x {} do not fit {len} bytes", layout.rows, layout.dim))
}

impl Rows {
    /// Takes the rows of a member; what is wrong with their dimension.
    fn take(&mut self, ino: Ino, state: &MemberState) -> Option<String> {
        let MemberState::Valid { first_row, layout, .. } = state else { return None };
        let end = first_row.saturating_add(u32::try_from(layout.rows).unwrap_or(u32::MAX));
        self.ranges.push((*first_row, end, ino));
        let want = *self.dim.get_or_insert(layout.dim);
        (want != layout.dim).then(|| Error::Dimension { expected: want, got: layout.dim }.to_string())
    }

    /// Files whose rows have numbers that another has, each but the first.
    fn overlaps(mut self) -> Vec<(Ino, String)> {
        self.ranges.sort_unstable();
        let mut end_before = 0;
        let mut found = Vec::new();
        for (first, end, ino) in self.ranges {
            if first < end_before {
                found.push((ino, format!("rows from {first} on belong to another file")));
            }
            end_before = end_before.max(end);
        }
        found
    }
}
