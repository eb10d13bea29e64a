//! What can be wrong about names, in words, and what sets it right.

use std::fmt;

use crate::Result;
use crate::catalog::{Batch, Table};
use crate::format::record;
use crate::namespace::{Ino, Kind, Link, Mark, Namespace, Time, keys, numbers};

/// What is wrong about names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A record or a key that cannot be read.
    Unreadable {
        /// Its table.
        table: Table,
        /// Its key.
        key: Vec<u8>,
        /// Why.
        why: String,
    },
    /// An entry that names no inode.
    EntryOfNothing(Ino, Link),
    /// An entry or a link in what is no directory.
    NowhereToBe(Ino, Link),
    /// An entry without its link.
    LinkMissing(Ino, Link),
    /// A link without its entry.
    EntryMissing(Ino, Link, Kind),
    /// A link whose inode is missing, or whose entry names another inode.
    StrayLink(Ino, Link),
    /// An entry that says another kind than the inode.
    WrongKind(Ino, Link, Kind),
    /// A directory with a second name, or the root with one.
    SecondName(Ino, Link),
    /// A directory that cannot be reached from the root, by its one name.
    Unreachable(Ino, Link),
    /// An inode without names, and no mark says why.
    Nameless(Ino),
    /// A mark that would remove an inode which has names.
    NotOrphan(Ino),
    /// Attributes of an inode that does not exist.
    StrayXattr(Ino, Vec<u8>),
    /// Bytes kept for an inode that has none in the catalog.
    StrayInline(Ino),
    /// An inode's bytes should be in the catalog and are not.
    InlineMissing(Ino),
    /// What an inode says about itself differs from what was counted: names, size, bytes of attribute names, parent.
    Counts {
        /// The inode.
        ino: Ino,
        /// Names counted.
        nlink: u32,
        /// Size found.
        size: u64,
        /// Bytes of attribute names counted.
        xattrs: u32,
        /// The directory's parent.
        parent: Ino,
        /// What differs.
        what: String,
    },
    /// Inode numbers up to this one are used and were not reserved.
    Unreserved(Ino),
}

impl Fault {
    /// The table that is at fault.
    #[must_use]
    pub fn table(&self) -> Table {
        match self {
            Fault::Unreadable { table, .. } => *table,
            Fault::EntryOfNothing(..) | Fault::NowhereToBe(..) | Fault::WrongKind(..) => Table::Dentries,
            Fault::EntryMissing(..) => Table::Dentries,
            Fault::LinkMissing(..) | Fault::StrayLink(..) | Fault::SecondName(..) => Table::Links,
            Fault::Unreachable(..) => Table::Links,
            Fault::Nameless(_) | Fault::Counts { .. } => Table::Inodes,
            Fault::NotOrphan(_) => Table::Marks,
            Fault::StrayXattr(..) => Table::Xattrs,
            Fault::StrayInline(_) | Fault::InlineMissing(_) => Table::Inline,
            Fault::Unreserved(_) => Table::Meta,
        }
    }

    /// The inode concerned, if one is known.
    #[must_use]
    pub fn ino(&self) -> Option<Ino> {
        match self {
            Fault::Unreadable { table: Table::Inodes, key, .. } => {
                keys::split_ino("inodes", key).ok().map(|(ino, _)| ino)
            }
            Fault::Unreadable { .. } => None,
            Fault::EntryOfNothing(ino, _)
            | Fault::NowhereToBe(ino, _)
            | Fault::LinkMissing(ino, _)
            | Fault::EntryMissing(ino, ..)
            | Fault::StrayLink(ino, _)
            | Fault::WrongKind(ino, ..)
            | Fault::SecondName(ino, _)
            | Fault::Unreachable(ino, _)
            | Fault::Nameless(ino)
            | Fault::NotOrphan(ino)
            | Fault::StrayXattr(ino, _)
            | Fault::StrayInline(ino)
            | Fault::InlineMissing(ino)
            | Fault::Counts { ino, .. }
            | Fault::Unreserved(ino) => Some(*ino),
        }
    }

    /// Whether other faults may follow from it: counts are only right once these are gone.
    #[must_use]
    pub fn is_structural(&self) -> bool {
        !matches!(self, Fault::Counts { .. } | Fault::Unreserved(_))
    }

    /// What [`stage`](Self::stage) does about it; `None` when it takes more than these tables: see
    /// [`Nameless`](Self::Nameless), [`InlineMissing`](Self::InlineMissing).
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            // An inode's record says where its bytes are: nothing is removed on account of one that cannot be read.
            Fault::Unreadable { table: Table::Inodes, .. } => return None,
            Fault::Unreadable { .. } => "record removed",
            Fault::EntryOfNothing(..) | Fault::NowhereToBe(..) => "name removed",
            Fault::LinkMissing(..) | Fault::EntryMissing(..) => "name completed",
            Fault::StrayLink(..) => "link removed",
            Fault::WrongKind(..) => "kind corrected",
            Fault::SecondName(..) | Fault::Unreachable(..) => "name removed",
            Fault::NotOrphan(_) => "mark removed",
            Fault::StrayXattr(..) => "attribute removed",
            Fault::StrayInline(_) => "bytes removed",
            Fault::Counts { .. } => "corrected",
            Fault::Unreserved(_) => "numbers reserved",
            Fault::Nameless(_) | Fault::InlineMissing(_) => return None,
        })
    }

    /// Stages what sets it right. One batch for each fault: a key is staged once.
    ///
    /// # Errors
    ///
    /// The catalog's errors.
    pub fn stage(&self, names: &Namespace, batch: &mut Batch<'_>) -> Result<()> {
        match self {
            Fault::Unreadable { table: Table::Inodes, .. } => {}
            Fault::Unreadable { table, key, .. } => batch.remove(*table, key),
            Fault::EntryOfNothing(ino, link)
            | Fault::NowhereToBe(ino, link)
            | Fault::SecondName(ino, link)
            | Fault::Unreachable(ino, link) => {
                batch.remove(Table::Links, keys::link(*ino, link));
                let named = names.lookup(link.parent, &link.name);
                if named.is_ok_and(|entry| entry.is_some_and(|entry| entry.ino == *ino)) {
                    batch.remove(Table::Dentries, keys::named(link.parent, &link.name));
                }
            }
            Fault::LinkMissing(ino, link) => batch.put(Table::Links, keys::link(*ino, link), b""),
            Fault::StrayLink(ino, link) => batch.remove(Table::Links, keys::link(*ino, link)),
            Fault::EntryMissing(ino, link, kind) | Fault::WrongKind(ino, link, kind) => {
                let key = keys::named(link.parent, &link.name);
                batch.put(Table::Dentries, key, record::encode(&(*ino, *kind)));
            }
            Fault::NotOrphan(ino) => names.remove_mark(batch, Mark::Orphan, *ino),
            Fault::StrayXattr(ino, name) => batch.remove(Table::Xattrs, keys::named(*ino, name)),
            Fault::StrayInline(ino) => names.remove_inline(batch, *ino),
            Fault::Counts { ino, nlink, size, xattrs, parent, .. } => {
                let mut inode = names.inode(*ino)?;
                (inode.nlink, inode.size, inode.xattrs, inode.parent) = (*nlink, *size, *xattrs, *parent);
                inode.ctime = Time::now();
                names.put_inode(batch, &inode);
            }
            Fault::Unreserved(ino) => {
                batch.put(Table::Meta, numbers::RESERVED, record::encode(&ino.0.saturating_add(1)));
            }
            Fault::Nameless(_) | Fault::InlineMissing(_) => {}
        }
        Ok(())
    }
}

/// In words, lower case, with the inode's number and the name.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unreadable { key, why, .. } => {
                write!(f, "key ")?;
                key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                write!(f, ": {why}")
            }
            Fault::EntryOfNothing(ino, link) => {
                write!(f, "{} names inode {}, which does not exist", shown(link), ino.0)
            }
            Fault::NowhereToBe(ino, link) => {
                write!(f, "{} of inode {} lies in no directory", shown(link), ino.0)
            }
            Fault::LinkMissing(ino, link) => {
                write!(f, "inode {} does not know its name {}", ino.0, shown(link))
            }
            Fault::EntryMissing(ino, link, _) => write!(f, "{} of inode {} has no entry", shown(link), ino.0),
            Fault::StrayLink(ino, link) => write!(f, "{} is not inode {}", shown(link), ino.0),
            Fault::WrongKind(ino, link, kind) => {
                write!(f, "{} says another kind than inode {}, which is a {kind:?}", shown(link), ino.0)
            }
            Fault::SecondName(ino, link) => write!(f, "directory {} has another name {}", ino.0, shown(link)),
            Fault::Unreachable(ino, link) => {
                write!(f, "directory {}, {}, cannot be reached from the root", ino.0, shown(link))
            }
            Fault::Nameless(ino) => write!(f, "inode {} has no name", ino.0),
            Fault::NotOrphan(ino) => write!(f, "inode {} is marked as nameless and has names", ino.0),
            Fault::StrayXattr(ino, name) => {
                write!(f, "attribute {} of inode {}, which does not exist", name.escape_ascii(), ino.0)
            }
            Fault::StrayInline(ino) => write!(f, "bytes for inode {}, which has none here", ino.0),
            Fault::InlineMissing(ino) => write!(f, "the bytes of inode {} are missing", ino.0),
            Fault::Counts { ino, what, .. } => write!(f, "inode {}: {what}", ino.0),
            Fault::Unreserved(ino) => write!(f, "inode number {} is in use and not reserved", ino.0),
        }
    }
}

fn shown(link: &Link) -> String {
    format!("'{}' in directory {}", link.name.escape_ascii(), link.parent.0)
}
