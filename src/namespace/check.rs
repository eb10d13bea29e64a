//! Checking names against each other: every record of an inode with its links, entries, attributes, content and
//! marks, in one pass over each table, and what sets each fault right.
//!
//! All tables but the entries are in the order of inode numbers, so they are read side by side. Entries are in the
//! order of directories: that they say what the links say is seen from two sums over all of them, and only when
//! these differ is every entry looked for among the links, and every link among the entries.

mod fault;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter::Peekable;

use xxhash_rust::xxh3::xxh3_128;

pub use fault::Fault;

use super::{Content, Ino, Inode, Kind, Link, Mark, keys, numbers};
use crate::Result;
use crate::catalog::{Catalog, Suffix, Table, Value};
use crate::format::record;

/// What was found about names.
#[derive(Debug, Default)]
pub struct Census {
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// Number of inodes.
    pub inodes: u64,
    /// The parent of every directory, by its name there; the root's is itself.
    pub parents: HashMap<Ino, Ino>,
    /// Inodes with each mark.
    pub marks: BTreeMap<u8, HashSet<Ino>>,
}

impl Census {
    /// Whether an inode has a mark.
    #[must_use]
    pub fn has_mark(&self, mark: Mark, ino: Ino) -> bool {
        self.marks.get(&(mark as u8)).is_some_and(|marked| marked.contains(&ino))
    }
}

/// A directory as its record has it, and as its entries do.
struct Directory {
    inode: Inode,
    link: Option<Link>,
    xattrs: u32,
    entries: u64,
    subdirectories: u32,
}

/// Reads all names. `each` is given every inode that is no directory, with its names.
///
/// # Errors
///
/// The catalog's errors, when a table cannot be read.
pub fn check(catalog: &Catalog, mut each: impl FnMut(&Inode, &[Link])) -> Result<Census> {
    let mut census = Census::default();
    read_marks(catalog, &mut census)?;
    let mut directories: HashMap<Ino, Directory> = HashMap::new();
    let mut sum_of_links = 0u128;
    let mut links = Owned::new(catalog, Table::Links);
    let mut xattrs = Owned::new(catalog, Table::Xattrs);
    let mut inlines = Owned::new(catalog, Table::Inline);
    let mut last = Ino(0);
    for pair in catalog.scan(Table::Inodes, b"", None) {
        let (key, value) = pair?;
        let inode = match read_inode(&key, &value) {
            Ok(inode) => inode,
            Err(why) => {
                census.faults.push(Fault::Unreadable {
                    table: Table::Inodes,
                    key: key.to_vec(),
                    why: why.to_string(),
                });
                continue;
            }
        };
        let ino = inode.ino;
        last = ino;
        census.inodes += 1;
        strays(&mut census.faults, [&mut links, &mut xattrs, &mut inlines], Some(ino))?;
        let mut names = Vec::new();
        for pair in links.of(ino)? {
            match keys::parse_link(pair.rest()) {
                Ok(link) => {
                    sum_of_links = sum_of_links.wrapping_add(name_hash(ino, &link, inode.kind));
                    names.push(link);
                }
                Err(why) => {
                    let (key, why) = (pair.key, why.to_string());
                    census.faults.push(Fault::Unreadable { table: Table::Links, key, why });
                }
            }
        }
        let mut bytes_of_names = 0u32;
        for pair in xattrs.of(ino)? {
            let bytes = u32::try_from(pair.rest().len() + 1).unwrap_or(u32::MAX);
            bytes_of_names = bytes_of_names.saturating_add(bytes);
        }
        let inline = inlines.of(ino)?.first().map(|pair| pair.value.len() as u64);
        check_inline(&mut census.faults, &inode, inline);
        check_names(&mut census, &inode, &names);
        if inode.kind == Kind::Directory {
            let link = names.into_iter().next();
            let counted = Directory { inode, link, xattrs: bytes_of_names, entries: 0, subdirectories: 0 };
            directories.insert(ino, counted);
        } else {
            let size = match inode.content {
                Content::Empty => 0,
                Content::Inline => inline.unwrap_or(inode.size),
                Content::Slot(at) => u64::from(at.len),
                Content::Blob { .. } => inode.size,
            };
            let nlink = u32::try_from(names.len()).unwrap_or(u32::MAX);
            note_counts(&mut census.faults, &inode, nlink, size, bytes_of_names, Ino(0));
            each(&inode, &names);
        }
    }
    strays(&mut census.faults, [&mut links, &mut xattrs, &mut inlines], None)?;
    let sum_of_entries = read_entries(catalog, &mut census, &mut directories)?;
    if sum_of_entries != sum_of_links {
        compare_entries(catalog, &mut census, &directories)?;
    }
    check_tree(&mut census, &directories);
    for directory in directories.values() {
        let Directory { inode, link, xattrs, entries, subdirectories } = directory;
        let parent = link.as_ref().map_or(inode.parent, |link| link.parent);
        // A directory that was removed and is still open.
        let nlink = if link.is_none() && inode.ino != Ino::ROOT { 0 } else { 2 + subdirectories };
        note_counts(&mut census.faults, inode, nlink, *entries, *xattrs, parent);
    }
    check_reserved(catalog, &mut census, last)?;
    Ok(census)
}

fn read_inode(key: &[u8], value: &[u8]) -> Result<Inode> {
    let (ino, rest) = keys::split_ino("inodes", key)?;
    let inode: Inode = record::decode("inodes", value)?;
    if inode.ino != ino || !rest.is_empty() || ino.0 == 0 || ino.0 >= 1 << 63 {
        return Err(keys::corrupt("inodes", format!("record of inode {} under another key", inode.ino.0)));
    }
    Ok(inode)
}

fn read_marks(catalog: &Catalog, census: &mut Census) -> Result<()> {
    for pair in catalog.scan(Table::Marks, b"", None) {
        let (key, _) = pair?;
        let known = key.first().is_some_and(|&mark| Mark::from_number(mark).is_some());
        match keys::split_ino("marks", key.get(1..).unwrap_or_default()) {
            Ok((ino, b"")) if known => {
                census.marks.entry(key[0]).or_default().insert(ino);
            }
            _ => {
                let why = "no mark of an inode".to_owned();
                census.faults.push(Fault::Unreadable { table: Table::Marks, key: key.to_vec(), why });
            }
        }
    }
    Ok(())
}

fn check_inline(faults: &mut Vec<Fault>, inode: &Inode, inline: Option<u64>) {
    match (inode.content, inline) {
        (Content::Inline, None) => faults.push(Fault::InlineMissing(inode.ino)),
        (Content::Empty | Content::Slot(_) | Content::Blob { .. }, Some(_)) => {
            faults.push(Fault::StrayInline(inode.ino));
        }
        _ => {}
    }
}

fn check_names(census: &mut Census, inode: &Inode, names: &[Link]) {
    let is_orphan = census.has_mark(Mark::Orphan, inode.ino);
    if inode.ino == Ino::ROOT {
        census.faults.extend(names.iter().map(|link| Fault::SecondName(inode.ino, link.clone())));
        return;
    }
    match (names.is_empty(), is_orphan) {
        (true, false) => census.faults.push(Fault::Nameless(inode.ino)),
        (false, true) => census.faults.push(Fault::NotOrphan(inode.ino)),
        _ => {}
    }
    if inode.kind == Kind::Directory {
        let others = names.iter().skip(1);
        census.faults.extend(others.map(|link| Fault::SecondName(inode.ino, link.clone())));
    }
}

fn note_counts(faults: &mut Vec<Fault>, inode: &Inode, nlink: u32, size: u64, xattrs: u32, parent: Ino) {
    let mut what = Vec::new();
    if inode.nlink != nlink {
        what.push(format!("{} names recorded, {nlink} counted", inode.nlink));
    }
    if inode.size != size {
        what.push(format!("size {} recorded, {size} found", inode.size));
    }
    if inode.xattrs != xattrs {
        what.push(format!("{} bytes of attribute names recorded, {xattrs} counted", inode.xattrs));
    }
    if inode.parent != parent {
        what.push(format!("parent {} recorded, {} found", inode.parent.0, parent.0));
    }
    if !what.is_empty() {
        faults.push(Fault::Counts { ino: inode.ino, nlink, size, xattrs, parent, what: what.join(", ") });
    }
}

/// Counts the entries of every directory. Returns the sum over them that [`check`] compares with that of the links.
fn read_entries(
    catalog: &Catalog,
    census: &mut Census,
    directories: &mut HashMap<Ino, Directory>,
) -> Result<u128> {
    let mut sum = 0u128;
    for pair in catalog.scan(Table::Dentries, b"", None) {
        let (key, value) = pair?;
        match read_entry(&key, &value) {
            Ok((link, ino, kind)) => {
                sum = sum.wrapping_add(name_hash(ino, &link, kind));
                match directories.get_mut(&link.parent) {
                    Some(directory) => {
                        directory.entries += 1;
                        directory.subdirectories += u32::from(kind == Kind::Directory);
                    }
                    None => census.faults.push(Fault::NowhereToBe(ino, link)),
                }
            }
            Err(why) => {
                census.faults.push(Fault::Unreadable {
                    table: Table::Dentries,
                    key: key.to_vec(),
                    why: why.to_string(),
                });
            }
        }
    }
    Ok(sum)
}

fn read_entry(key: &[u8], value: &[u8]) -> Result<(Link, Ino, Kind)> {
    let (parent, name) = keys::split_ino("dentries", key)?;
    keys::check_name(name).map_err(|error| keys::corrupt("dentries", error.to_string()))?;
    let (ino, kind) = record::decode("dentries", value)?;
    Ok((Link { parent, name: name.to_vec() }, ino, kind))
}

/// Looks for every entry among the links and for every link among the entries.
fn compare_entries(
    catalog: &Catalog,
    census: &mut Census,
    directories: &HashMap<Ino, Directory>,
) -> Result<()> {
    for pair in catalog.scan(Table::Dentries, b"", None) {
        let (key, value) = pair?;
        // What cannot be read, or lies nowhere, is noted already.
        let Ok((link, ino, kind)) = read_entry(&key, &value) else { continue };
        if !directories.contains_key(&link.parent) {
            continue;
        }
        match catalog.get(Table::Inodes, &keys::ino(ino))?.map(|bytes| read_inode(&keys::ino(ino), &bytes)) {
            None => census.faults.push(Fault::EntryOfNothing(ino, link)),
            Some(Err(_)) => {}
            Some(Ok(inode)) if inode.kind != kind => {
                census.faults.push(Fault::WrongKind(ino, link, inode.kind));
            }
            Some(Ok(inode)) if catalog.get(Table::Links, &keys::link(ino, &link))?.is_none() => {
                let has_another = inode.kind == Kind::Directory
                    && (ino == Ino::ROOT || directories.get(&ino).is_some_and(|found| found.link.is_some()));
                census.faults.push(match has_another {
                    true => Fault::SecondName(ino, link),
                    false => Fault::LinkMissing(ino, link),
                });
            }
            Some(Ok(_)) => {}
        }
    }
    for pair in catalog.scan(Table::Links, b"", None) {
        let (key, _) = pair?;
        let Ok((ino, link)) = keys::split_ino("links", &key)
            .and_then(|(ino, rest)| keys::parse_link(rest).map(|link| (ino, link)))
        else {
            continue;
        };
        let Some(Ok(inode)) =
            catalog.get(Table::Inodes, &keys::ino(ino))?.map(|bytes| read_inode(&keys::ino(ino), &bytes))
        else {
            continue;
        };
        let entry = catalog.get(Table::Dentries, &keys::named(link.parent, &link.name))?;
        match entry.map(|bytes| record::decode::<(Ino, Kind)>("dentries", &bytes)) {
            Some(Ok((named, _))) if named == ino => {}
            Some(_) => census.faults.push(Fault::StrayLink(ino, link)),
            None if !directories.contains_key(&link.parent) => {
                census.faults.push(Fault::NowhereToBe(ino, link));
            }
            None => census.faults.push(Fault::EntryMissing(ino, link, inode.kind)),
        }
    }
    Ok(())
}

/// Follows every directory to the root.
fn check_tree(census: &mut Census, directories: &HashMap<Ino, Directory>) {
    // Where there is nothing at all, and the catalog has lost nothing that was durable, the power went while the store
    // was made, and the next open goes on with that.
    let is_new = census.inodes == 0 && census.faults.is_empty() && census.marks.is_empty();
    if !is_new && !directories.contains_key(&Ino::ROOT) {
        let why = "the root directory is missing".to_owned();
        let key = keys::ino(Ino::ROOT).to_vec();
        census.faults.push(Fault::Unreadable { table: Table::Inodes, key: key.to_vec(), why });
    }
    census.parents.insert(Ino::ROOT, Ino::ROOT);
    let mut reached: HashMap<Ino, bool> = HashMap::from([(Ino::ROOT, true)]);
    for (&ino, directory) in directories {
        if let Some(link) = &directory.link {
            census.parents.insert(ino, link.parent);
        }
        let mut way = Vec::new();
        let mut at = ino;
        let outcome = loop {
            if let Some(&known) = reached.get(&at) {
                break known;
            }
            // Until it is known better: meeting it again is a cycle.
            reached.insert(at, false);
            way.push(at);
            match directories.get(&at).and_then(|found| found.link.as_ref()) {
                Some(link) => at = link.parent,
                // Nameless, which is a fault of its own or has its mark, or not there at all.
                None => break directories.contains_key(&at),
            }
        };
        if let (false, Some(&end)) = (outcome, way.last())
            && let Some(link) = directories.get(&end).and_then(|found| found.link.clone())
            && directories.contains_key(&link.parent)
        {
            census.faults.push(Fault::Unreachable(end, link));
        }
        reached.extend(way.into_iter().map(|dir| (dir, true)));
    }
}

fn check_reserved(catalog: &Catalog, census: &mut Census, last: Ino) -> Result<()> {
    let reserved = match catalog.get(Table::Meta, numbers::RESERVED)? {
        Some(bytes) => match record::decode::<u64>("meta", &bytes) {
            Ok(reserved) => reserved,
            Err(why) => {
                let key = numbers::RESERVED.to_vec();
                census.faults.push(Fault::Unreadable { table: Table::Meta, key, why: why.to_string() });
                return Ok(());
            }
        },
        None => Ino::ROOT.0 + 1,
    };
    if last.0 >= reserved {
        census.faults.push(Fault::Unreserved(last));
    }
    Ok(())
}

/// Whatever belongs to no inode before `next`, of each table.
fn strays<I>(faults: &mut Vec<Fault>, tables: [&mut Owned<I>; 3], next: Option<Ino>) -> Result<()>
where
    I: Iterator<Item = Result<(Suffix, Value)>>,
{
    for table in tables {
        for pair in table.before(next)? {
            faults.push(match (table.table, pair.owner, keys::parse_link(pair.rest())) {
                (Table::Links, Some(ino), Ok(link)) => Fault::StrayLink(ino, link),
                (Table::Xattrs, Some(ino), _) => Fault::StrayXattr(ino, pair.rest().to_vec()),
                (Table::Inline, Some(ino), _) if pair.rest().is_empty() => Fault::StrayInline(ino),
                (table, ..) => Fault::Unreadable { table, key: pair.key, why: "belongs to no inode".into() },
            });
        }
    }
    Ok(())
}

/// The pairs of a table whose keys begin with an inode number, taken inode by inode.
struct Owned<I: Iterator> {
    table: Table,
    pairs: Peekable<I>,
}

/// One of them.
struct Pair {
    /// `None` when the key is too short to have one.
    owner: Option<Ino>,
    key: Vec<u8>,
    value: Value,
}

impl Pair {
    /// The key behind its owner.
    fn rest(&self) -> &[u8] {
        self.key.get(8..).unwrap_or_default()
    }
}

impl<'a> Owned<Box<dyn Iterator<Item = Result<(Suffix, Value)>> + 'a>> {
    fn new(catalog: &'a Catalog, table: Table) -> Self {
        let pairs: Box<dyn Iterator<Item = _> + 'a> = Box::new(catalog.scan(table, b"", None));
        Self { table, pairs: pairs.peekable() }
    }
}

impl<I: Iterator<Item = Result<(Suffix, Value)>>> Owned<I> {
    /// The next pairs, as long as `wanted` says so of their owners.
    fn take(&mut self, wanted: impl Fn(Option<Ino>) -> bool) -> Result<Vec<Pair>> {
        let owner = |key: &[u8]| keys::split_ino("", key).ok().map(|(ino, _)| ino);
        let mut found = Vec::new();
        while let Some(pair) =
            self.pairs.next_if(|pair| pair.as_ref().map_or(true, |(key, _)| wanted(owner(key))))
        {
            let (key, value) = pair?;
            found.push(Pair { owner: owner(&key), key: key.to_vec(), value });
        }
        Ok(found)
    }

    /// What belongs to `ino`.
    fn of(&mut self, ino: Ino) -> Result<Vec<Pair>> {
        self.take(|owner| owner == Some(ino))
    }

    /// What belongs to inodes below `next`, or to none.
    fn before(&mut self, next: Option<Ino>) -> Result<Vec<Pair>> {
        self.take(|owner| match (owner, next) {
            (Some(owner), Some(next)) => owner < next,
            _ => true,
        })
    }
}

fn name_hash(ino: Ino, link: &Link, kind: Kind) -> u128 {
    let mut bytes = keys::link(ino, link);
    bytes.push(kind as u8);
    xxh3_128(&bytes)
}
