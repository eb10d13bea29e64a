//! Looking up and listing what is in a control directory.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::results::Opened;
use super::{Access, Control, Node, What};
use crate::collection::VectorFile;
use crate::namespace::{Ino, Inode, Kind};
use crate::search::Options;
use crate::volume::ingest::State;
use crate::volume::types::{Attr, Caller, Handle, SetAttr};
use crate::volume::{CONTROL_NAME, Volume};
use crate::{Error, Result};

/// The attribute that tells why something was refused.
const ERROR: &[u8] = b"user.vexfs.error";

/// Names in every `.vexfs`, and whether they are directories.
const EVERYWHERE: [(&str, Kind); 13] = [
    ("config", Kind::File),
    ("errors.jsonl", Kind::File),
    ("ids.tsv", Kind::File),
    ("index.json", Kind::File),
    ("queries", Kind::Directory),
    ("query", Kind::File),
    ("rebuild", Kind::File),
    ("results", Kind::Directory),
    ("rows", Kind::Directory),
    ("search", Kind::Directory),
    ("similar", Kind::Directory),
    ("stats.json", Kind::File),
    ("verify.json", Kind::File),
];

/// Names in the root's `.vexfs` besides, and not in that of a snapshot's.
const NOT_IN_SNAPSHOTS: [(&str, Kind); 2] = [("snapshots", Kind::Directory), ("snapshots.json", Kind::File)];

/// Names in the root's `.vexfs` besides.
const ROOT_ONLY: [(&str, Kind); 5] = [
    ("README", Kind::File),
    ("health", Kind::File),
    ("metrics", Kind::File),
    ("sync", Kind::File),
    ("version", Kind::File),
];

impl Volume {
    /// Looks up a name in a control node, or `.vexfs` in an ordinary directory.
    #[inline(never)]
    pub(in crate::volume) fn control_lookup(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
    ) -> Result<Attr> {
        if !super::is_control(parent) {
            return Ok(self.control_root(caller, parent)?.attr());
        }
        let node = self.control.node(parent)?;
        if matches!(node.what, What::Snapshots) {
            return self.snapshot_root(name);
        }
        Ok(self.child(caller, &node, name)?.attr())
    }

    /// The `.vexfs` of an ordinary directory.
    #[inline(never)]
    fn control_root(&self, caller: &Caller, base: Ino) -> Result<Arc<Node>> {
        let dir = self.names.inode(base)?;
        if dir.kind != Kind::Directory {
            return Err(Error::NotDirectory);
        }
        let above = Node::above(base, dir.mtime);
        let node = self.same(caller, &above, CONTROL_NAME, What::Control, Access::listing(&dir));
        Ok(node)
    }

    /// The node known under this name while it stands for the same, else a new one.
    pub(super) fn same(
        &self,
        caller: &Caller,
        parent: &Node,
        name: &[u8],
        what: What,
        access: Access,
    ) -> Arc<Node> {
        let identity = (parent.ino, name.to_vec(), caller.uid, caller.gid);
        let fits = |node: &Node| {
            let is_open_alike = (node.mode, node.uid, node.gid) == (access.mode, access.uid, access.gid);
            is_open_alike && node.what.is_same(&what)
        };
        match self.control.again(&identity, fits) {
            Some(node) => node,
            None => self.control.add(parent, what, access, identity),
        }
    }

    /// The generated file known under this name, with these bytes from now on, or a new one.
    fn generated_node(
        &self,
        caller: &Caller,
        parent: &Node,
        name: &[u8],
        bytes: Vec<u8>,
        access: Access,
    ) -> Arc<Node> {
        let bytes = Arc::new(bytes);
        let what = if name == b"config" && matches!(parent.what, What::Control) {
            What::Config(ArcSwap::new(Arc::clone(&bytes)))
        } else {
            What::Bytes(ArcSwap::new(Arc::clone(&bytes)))
        };
        let node = self.same(caller, parent, name, what, access);
        if let What::Bytes(known) | What::Config(known) = &node.what {
            known.store(bytes);
        }
        node
    }

    #[inline(never)]
    fn child(&self, caller: &Caller, parent: &Node, name: &[u8]) -> Result<Arc<Node>> {
        let dir = self.names.inode(parent.base)?;
        match &parent.what {
            What::Control => self.lookup_in_control(caller, parent, &dir, name),
            What::Options => match name {
                b"similar" | b"results" | b"search" => self.lookup_in_control(caller, parent, &dir, name),
                _ => Err(Error::NotFound),
            },
            What::Similar { dir } => self.lookup_similar(caller, parent, *dir, name),
            What::Rows { dir } => self.lookup_rows(caller, parent, *dir, name),
            What::RowsOf { file } => self.lookup_row(caller, parent, *file, name),
            What::Queries => {
                let query = self.control.saved.get(&(parent.base, name.to_vec())).ok_or(Error::NotFound)?;
                let access = Access::private(query.uid, query.gid, 0o600);
                let what = What::Saved(Arc::clone(&query));
                drop(query);
                Ok(self.same(caller, parent, name, what, access))
            }
            What::Results => self.lookup_results(caller, parent, name),
            What::Search => Err(Error::NoEmbedder),
            What::Snapshots => Err(Error::NotFound),
            What::Set(set) => {
                let access = |mode| Access::private(parent.uid, parent.gid, mode);
                match self.found(caller, set)?.open(name, parent.depth - 1).ok_or(Error::NotFound)? {
                    Opened::Link(target) => {
                        Ok(self.same(caller, parent, name, What::Link(target), access(0o777)))
                    }
                    Opened::Bytes(bytes) => {
                        Ok(self.generated_node(caller, parent, name, bytes, access(0o400)))
                    }
                }
            }
            What::Saved(_)
            | What::Bytes(_)
            | What::Link(_)
            | What::Config(_)
            | What::Query
            | What::Verify
            | What::Rebuild
            | What::Sync => Err(Error::NotDirectory),
        }
    }

    #[inline(never)]
    fn lookup_in_control(
        &self,
        caller: &Caller,
        parent: &Node,
        dir: &Inode,
        name: &[u8],
    ) -> Result<Arc<Node>> {
        let same = |what, access| Ok(self.same(caller, parent, name, what, access));
        let listing = Access::listing(dir);
        match name {
            b"similar" => same(What::Similar { dir: parent.base }, listing),
            b"rows" => same(What::Rows { dir: parent.base }, listing),
            b"queries" => same(What::Queries, Access::dropping(dir)),
            b"results" => same(What::Results, listing),
            b"search" => same(What::Search, listing),
            b"query" => same(What::Query, Access::asking(dir)),
            b"verify.json" => same(What::Verify, Access::reading(dir)),
            b"rebuild" => same(What::Rebuild, Access::writing(dir)),
            b"sync" if parent.base == Ino::ROOT => same(What::Sync, Access::reading(dir)),
            b"snapshots" if self.has_snapshots(parent.base) => same(What::Snapshots, Access::changing(dir)),
            b"config" => {
                let text = self.config_text(parent.base)?;
                Ok(self.generated_node(caller, parent, name, text, Access::settings(dir)))
            }
            _ if name.first() == Some(&b'@') => {
                let element = std::str::from_utf8(name).map_err(|_| Error::NotFound)?;
                let options = Options::parse_element(element)?;
                options.check(&self.request_limits(parent.base)?)?;
                Ok(self.with_options(caller, parent, name, options, listing))
            }
            _ => {
                let bytes = self.generated(caller, parent.base, name)?;
                Ok(self.generated_node(caller, parent, name, bytes, Access::reading(dir)))
            }
        }
    }

    #[inline(never)]
    fn with_options(
        &self,
        caller: &Caller,
        parent: &Node,
        name: &[u8],
        options: Options,
        access: Access,
    ) -> Arc<Node> {
        let &Node { ino, parent: above, base, depth, made, .. } = parent;
        let with = Node { ino, parent: above, depth, options, ..Node::above(base, made) };
        self.same(caller, &with, name, What::Options, access)
    }

    /// `rows/…/NAME`: a directory that is mirrored, or the rows of a file.
    #[inline(never)]
    fn lookup_rows(&self, caller: &Caller, parent: &Node, dir: Ino, name: &[u8]) -> Result<Arc<Node>> {
        let (inode, ..) = self.mirrored(caller, dir, name)?;
        if inode.kind == Kind::Directory {
            let what = What::Rows { dir: inode.ino };
            return Ok(self.same(caller, parent, name, what, Access::listing(&inode)));
        }
        self.member(inode.ino)?;
        self.live_file(inode.ino).ok_or(Error::NotFound)?;
        let access = Access::private(caller.uid, caller.gid, 0o500);
        Ok(self.same(caller, parent, name, What::RowsOf { file: inode.ino }, access))
    }

    #[inline(never)]
    fn lookup_row(&self, caller: &Caller, parent: &Node, ino: Ino, name: &[u8]) -> Result<Arc<Node>> {
        let file = self.live_file(ino).ok_or(Error::NotFound)?;
        self.check_sees(caller, ino)?;
        let row = row_number(name).filter(|&row| row < file.rows()).ok_or(Error::NotFound)?;
        let mut scratch = vec![0.0; file.dim() as usize];
        let bytes = file.sound_row(row, &mut scratch)?.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.bytes().check_read()?;
        let access = Access::private(caller.uid, caller.gid, 0o400);
        Ok(self.generated_node(caller, parent, name, bytes, access))
    }

    /// The version of a file that searches see.
    fn live_file(&self, ino: Ino) -> Option<Arc<VectorFile>> {
        match self.vectors.members(ino).first().map(|member| &member.state) {
            Some(State::Valid { file, .. }) => Some(Arc::clone(file)),
            _ => None,
        }
    }

    /// The names in a control directory, with their kinds.
    pub(super) fn control_names(&self, caller: &Caller, node: &Node) -> Result<Vec<(Vec<u8>, Kind)>> {
        let fixed = |names: &[(&str, Kind)]| -> Vec<(Vec<u8>, Kind)> {
            names.iter().map(|(name, kind)| (name.as_bytes().to_vec(), *kind)).collect()
        };
        Ok(match &node.what {
            What::Control => {
                let mut names = fixed(&EVERYWHERE);
                if node.base == Ino::ROOT {
                    names.extend(fixed(&ROOT_ONLY));
                }
                if self.has_snapshots(node.base) {
                    names.extend(fixed(&NOT_IN_SNAPSHOTS));
                }
                names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
                names
            }
            What::Options => fixed(&[
                ("results", Kind::Directory),
                ("search", Kind::Directory),
                ("similar", Kind::Directory),
            ]),
            What::Similar { dir } | What::Rows { dir } => self.mirror_names(caller, *dir)?,
            What::RowsOf { file } => {
                let rows = self.live_file(*file).map_or(0, |file| file.rows());
                self.check_sees(caller, *file)?;
                (0..rows).map(|row| (format!("{row:06}.f32").into_bytes(), Kind::File)).collect()
            }
            What::Queries => self.saved_names(node.base, Kind::File),
            What::Results => self.saved_names(node.base, Kind::Directory),
            What::Search => Vec::new(),
            What::Snapshots => {
                self.snapshot_names().into_iter().map(|name| (name, Kind::Directory)).collect()
            }
            What::Set(set) => self.found(caller, set)?.names(),
            What::Saved(_)
            | What::Bytes(_)
            | What::Link(_)
            | What::Config(_)
            | What::Query
            | What::Verify
            | What::Rebuild
            | What::Sync => return Err(Error::NotDirectory),
        })
    }

    /// Whether the `.vexfs` of `base` is the place of the snapshots.
    pub(super) fn has_snapshots(&self, base: Ino) -> bool {
        base == Ino::ROOT && !self.life.is_snapshot()
    }

    /// `mkdir` in a control directory, which takes a snapshot where it is one of those.
    pub(in crate::volume) fn control_mkdir(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        match self.control.node(parent)?.what {
            What::Snapshots => self.take_snapshot(name),
            _ => Err(Error::ReadOnly),
        }
    }

    /// `rmdir` in a control directory, which drops a snapshot where it is one of those.
    pub(in crate::volume) fn control_rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        match self.control.node(parent)?.what {
            What::Snapshots => self.drop_snapshot(name),
            _ => Err(Error::ReadOnly),
        }
    }

    /// The directories and vector files of an ordinary directory, all shown as directories.
    fn mirror_names(&self, caller: &Caller, dir: Ino) -> Result<Vec<(Vec<u8>, Kind)>> {
        self.check_sees(caller, dir)?;
        let entries = self.names.entries(dir, None, usize::MAX)?;
        let shown = entries
            .into_iter()
            .filter(|entry| entry.kind == Kind::Directory || self.live_file(entry.ino).is_some());
        Ok(shown.map(|entry| (entry.name, Kind::Directory)).collect())
    }

    fn saved_names(&self, base: Ino, kind: Kind) -> Vec<(Vec<u8>, Kind)> {
        let saved = self.control.saved.iter();
        let mut names: Vec<_> =
            saved.filter(|entry| entry.key().0 == base).map(|entry| (entry.key().1.clone(), kind)).collect();
        names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        names
    }

    pub(in crate::volume) fn control_forget(&self, ino: Ino, lookups: u64) {
        self.control.forget(ino, lookups);
    }

    pub(in crate::volume) fn control_getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.control.node(ino)?.attr())
    }

    /// Truncation and times are taken where something can be written, and mean nothing; the rest is fixed.
    pub(in crate::volume) fn control_setattr(
        &self,
        caller: &Caller,
        ino: Ino,
        set: SetAttr,
        handle: Option<Handle>,
    ) -> Result<Attr> {
        let node = self.control.node(ino)?;
        let writable = matches!(node.what, What::Config(_) | What::Query | What::Saved(_) | What::Rebuild);
        if set.uid.is_some() || set.gid.is_some() || !writable {
            return Err(Error::ReadOnly);
        }
        if let Some(size) = set.size {
            self.control_truncate(caller, &node, size, handle)?;
        }
        Ok(node.attr())
    }

    pub(in crate::volume) fn control_readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match &self.control.node(ino)?.what {
            What::Link(target) => Ok(target.clone()),
            _ => Err(Error::Invalid("not a symbolic link")),
        }
    }

    /// Control nodes have no attributes of their own, but `config` and queries tell why they were refused.
    #[inline(never)]
    pub(in crate::volume) fn control_getxattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
    ) -> Result<Vec<u8>> {
        let node = self.control.node(ino)?;
        let path = node.what.noted_as().filter(|_| name == ERROR).ok_or(Error::NoAttribute)?;
        let notes = self.control.notes_for(caller, node.base);
        let last = notes.into_iter().rfind(|note| note.path == path);
        last.map(|note| note.message.into_bytes()).ok_or(Error::NoAttribute)
    }
}

impl Control {
    /// What is noted about a directory's `.vexfs` of the caller's, oldest first.
    pub(super) fn notes_for(&self, caller: &Caller, base: Ino) -> Vec<super::Note> {
        let is_for = |uid: u32| caller.uid == 0 || caller.uid == uid;
        self.notes.lock().iter().filter(|note| note.base == base && is_for(note.uid)).cloned().collect()
    }
}

/// The row that `000123.f32` names.
fn row_number(name: &[u8]) -> Option<u64> {
    let digits = name.strip_suffix(b".f32")?;
    let row: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    // One spelling only: a row has one name.
    (format!("{row:06}").as_bytes() == digits).then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_one_name() {
        assert_eq!(row_number(b"000123.f32"), Some(123));
        assert_eq!(row_number(b"1234567.f32"), Some(1_234_567));
        for other in [&b"123.f32"[..], b"0000123.f32", b"+00123.f32", b"000123.npy", b".f32"] {
            assert_eq!(row_number(other), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
