//! Bringing a file's memberships in line with its names and content, inside a transaction.

use std::collections::HashSet;
use std::sync::Arc;

use super::reading::{Check, Reading};
use super::{Change, CollectionRecord, GroupKey, Member, MemberRecord, MemberState, Problem, State, number};
use crate::catalog::Table;
use crate::collection::{Collection, OnInvalid, RowBytes, Schema, VectorFile};
use crate::format::{self, Dtype, FileKind, Layout, record};
use crate::index::RowId;
use crate::namespace::{Content, Ino, Inode, Kind, Link};
use crate::store::{BlobId, SLOT_MAX, Slot};
use crate::volume::content::missing_inline;
use crate::volume::{Txn, Volume};
use crate::{Error, Result};

/// What changed about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::volume) enum Why {
    /// Its content is complete.
    Content,
    /// It gained, lost or changed a name.
    Names,
    /// Its owner or permissions.
    Owner,
}

/// Checked content, ready to be numbered.
#[derive(Clone)]
struct Prepared {
    layout: Layout,
    bytes: RowBytes,
    content: Content,
}

impl Volume {
    /// Brings the memberships of a regular file in line with `links` and its content; see the
    /// [module](super). `inode` is the record as the transaction will leave it; its content may be moved
    /// to where vectors are read from. The returned error is for the caller of `close`, once the transaction,
    /// which keeps the bytes, is committed.
    pub(in crate::volume) fn settle(
        &self,
        txn: &mut Txn<'_>,
        inode: &mut Inode,
        links: &[Link],
        why: Why,
    ) -> Result<Option<Error>> {
        if inode.kind != Kind::File {
            return Ok(None);
        }
        let wanted = self.wanted(links)?;
        let now = self.vectors.members(inode.ino);
        if wanted.is_empty() && now.is_empty() {
            return Ok(None);
        }
        let group = GroupKey::of(inode, links);
        // The close that ends the writing settles what is in flux now.
        let in_flux = why != Why::Content && self.is_busy(inode.ino) || self.is_backed(inode.ino);
        let mut members: Vec<Member> = Vec::new();
        let mut complaint = None;
        let mut ready: Option<(FileKind, Check, Prepared)> = None;
        for (root, kind) in wanted {
            let collection = self.vectors.collection(root);
            match now.iter().find(|member| member.root == root && member.kind == kind) {
                Some(member) if why != Why::Content => {
                    self.regroup(txn, inode.ino, member, &collection, &group);
                    members.push(member.clone());
                }
                _ if in_flux => {}
                _ => {
                    let check = Check::of(&collection, inode.ino);
                    let prepared = match &ready {
                        Some((done, before, prepared)) if (*done, before) == (kind, &check) => {
                            Ok(prepared.clone())
                        }
                        _ => self.prepare(txn, inode, kind, &check),
                    };
                    ready = prepared.as_ref().ok().map(|prepared| (kind, check, prepared.clone()));
                    let (state, error) = self.enter(txn, inode, &collection, kind, &group, prepared)?;
                    if collection.schema().on_invalid() == OnInvalid::Error {
                        complaint = complaint.or(error);
                    }
                    members.push(Member { root, kind, state });
                }
            }
        }
        for old in &now {
            self.leave(txn, inode, old, &members);
        }
        txn.changes.push(Change::Members { ino: inode.ino, members });
        Ok(complaint)
    }

    /// The collections that a file with these names belongs to, and the format that it has there. The names are in
    /// order, as the catalog has them, and of several in one collection the first decides.
    pub(super) fn wanted(&self, links: &[Link]) -> Result<Vec<(Ino, FileKind)>> {
        let mut wanted: Vec<(Ino, FileKind)> = Vec::new();
        for link in links {
            let Some(kind) = format::recognise(&link.name) else { continue };
            let root = self.collection_root(link.parent)?;
            if wanted.iter().all(|(known, _)| *known != root) {
                wanted.push((root, kind));
            }
        }
        Ok(wanted)
    }

    /// The directory whose collection the files of `dir` belong to: `dir` itself or the nearest above it that is
    /// a collection of its own, which every directory in the root is.
    pub(in crate::volume) fn collection_root(&self, dir: Ino) -> Result<Ino> {
        self.vectors.root_of(dir, || self.find_root(dir))
    }

    fn find_root(&self, dir: Ino) -> Result<Ino> {
        let mut at = dir;
        while at != Ino::ROOT && !self.vectors.is_nested(at) {
            let parent = self.names.inode(at)?.parent;
            if parent == Ino::ROOT {
                break;
            }
            at = parent;
        }
        Ok(at)
    }

    fn regroup(
        &self,
        txn: &mut Txn<'_>,
        ino: Ino,
        member: &Member,
        collection: &Arc<Collection>,
        key: &GroupKey,
    ) {
        if let State::Valid { file, content } = &member.state {
            let group = self.vectors.groups.number(key);
            if file.group() == group {
                return;
            }
            txn.changes.push(Change::Regroup {
                collection: Arc::clone(collection),
                file: Arc::clone(file),
                group,
            });
            put_member(txn, member.root, ino, member.kind, key, valid_state(file, *content));
        }
    }

    /// A new membership, or new content of one: numbered rows, or the reason why there are none.
    fn enter(
        &self,
        txn: &mut Txn<'_>,
        inode: &Inode,
        collection: &Arc<Collection>,
        kind: FileKind,
        key: &GroupKey,
        prepared: Result<Prepared>,
    ) -> Result<(State, Option<Error>)> {
        let (root, ino) = (Ino(collection.root()), inode.ino);
        let staged = prepared.and_then(|prepared| {
            let group = self.vectors.groups.number(key);
            let attributes = self.vectors.attributes_of(ino, inode.xattrs > 0, collection);
            let file = VectorFile::new(number(ino), prepared.layout, prepared.bytes, group)
                .with_attributes(attributes);
            collection.stage(file).map(|(file, renumbered)| (file, renumbered, prepared.content))
        });
        match staged {
            Ok((file, renumbered, content)) => {
                if renumbered {
                    self.put_collection(txn, collection)?;
                }
                put_member(txn, root, ino, kind, key, valid_state(&file, content));
                txn.changes.push(Change::Add { collection: Arc::clone(collection), file: Arc::clone(&file) });
                Ok((State::Valid { file, content }, None))
            }
            Err(error) if error.is_about_content() || matches!(error, Error::Corrupt { .. }) => {
                let problem = Problem::of(&error);
                put_member(txn, root, ino, kind, key, MemberState::Invalid(problem.clone()));
                Ok((State::Invalid(problem), Some(error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Ends an old membership, or its old content, unless it goes on in `members`.
    fn leave(&self, txn: &mut Txn<'_>, inode: &Inode, old: &Member, members: &[Member]) {
        if members.iter().all(|member| member.root != old.root) {
            txn.batch.remove(Table::Vectors, member_key(old.root, inode.ino));
        }
        let State::Valid { file, content } = &old.state else { return };
        let goes_on = members
            .iter()
            .any(|member| matches!(&member.state, State::Valid { file: new, .. } if Arc::ptr_eq(new, file)));
        if goes_on {
            return;
        }
        let still_named = inode.content == *content
            || members
                .iter()
                .any(|member| matches!(&member.state, State::Valid { content: new, .. } if new == content));
        txn.changes.push(Change::Remove {
            collection: self.vectors.collection(old.root),
            file: Arc::clone(file),
            release: (!still_named).then_some(*content),
        });
    }

    /// Checks a file's content as `kind` and moves it to where vectors are read from: a slot, or for large files their
    /// blob, sealed. A text's numbers get a slot of their own.
    fn prepare(
        &self,
        txn: &mut Txn<'_>,
        inode: &mut Inode,
        kind: FileKind,
        check: &Check,
    ) -> Result<Prepared> {
        if kind == FileKind::Text {
            // Before its checksums are compared, which reads all of it.
            format::check_text_len(inode.size, &check.limits)?;
        }
        match inode.content {
            Content::Empty => Err(Error::Format("empty file".into())),
            Content::Inline => {
                let bytes = self.names.inline(inode.ino)?.ok_or_else(|| missing_inline(inode.ino))?;
                if kind == FileKind::Text {
                    return self.prepare_text(txn, inode.ino, &bytes, check);
                }
                let layout = check.layout(kind, &bytes)?;
                let slot = self.write_slot(txn, inode.ino, &bytes)?;
                self.release_content(txn, inode.ino, inode.content);
                inode.content = Content::Slot(slot.at());
                Ok(Prepared { layout, content: inode.content, bytes: RowBytes::Slot(slot) })
            }
            Content::Slot(at) => {
                let slot = self.store.slot(at)?;
                slot.verify()?;
                if kind == FileKind::Text {
                    return self.prepare_text(txn, inode.ino, slot.bytes(), check);
                }
                let layout = check.layout(kind, slot.bytes())?;
                Ok(Prepared { layout, content: inode.content, bytes: RowBytes::Slot(slot) })
            }
            Content::Blob { id, sealed: true } if kind != FileKind::Text => {
                let Reading { layout, sums } = self.reading_of(inode.ino, id, true, kind, check)?;
                let map = self.store.map_blob(id)?;
                sums.map_or(Ok(()), |sums| map.check_sums(&sums))?;
                let layout = layout?;
                txn.seals(inode.ino, id);
                Ok(Prepared { layout, content: inode.content, bytes: RowBytes::Blob(map) })
            }
            Content::Blob { id, .. } if kind != FileKind::Text && inode.size <= SLOT_MAX as u64 => {
                // Read once: what is checked is what is kept, whoever may still write the blob through mapped pages.
                let bytes = self.store.read_blob(id)?.head(SLOT_MAX)?;
                if let Some(rested) = self.store.rested(id) {
                    rested.compare_all(&bytes).map_err(|error| self.store.note_damage(error))?;
                }
                let layout = check.layout(kind, &bytes)?;
                let slot = self.write_slot(txn, inode.ino, &bytes)?;
                self.release_content(txn, inode.ino, inode.content);
                inode.content = Content::Slot(slot.at());
                Ok(Prepared { layout, content: inode.content, bytes: RowBytes::Slot(slot) })
            }
            Content::Blob { id, sealed } => {
                let own = if sealed { id } else { self.blob_to_seal(txn, id)? };
                let prepared = match kind {
                    FileKind::Text => self.prepare_text_blob(txn, inode.ino, (own, sealed), check),
                    _ => self.prepare_blob(txn, inode, own, kind, check),
                };
                if own != id && inode.content != (Content::Blob { id: own, sealed: true }) {
                    txn.gives_up_blob(own);
                }
                prepared
            }
        }
    }

    /// [`prepare`](Self::prepare) of what is sealed now: the blob `own`, a file's content or a copy of it that nobody
    /// else writes.
    fn prepare_blob(
        &self,
        txn: &mut Txn<'_>,
        inode: &mut Inode,
        own: BlobId,
        kind: FileKind,
        check: &Check,
    ) -> Result<Prepared> {
        let rested = self.store.rested(own);
        let Reading { layout, sums } = self.reading_of(inode.ino, own, rested.is_some(), kind, check)?;
        if let (Some(rested), Some(sums)) = (rested, &sums) {
            rested.compare_sums(sums).map_err(|error| self.store.note_damage(error))?;
        }
        let layout = layout?;
        let sums = sums.expect("what is accepted was read to its end");
        if !matches!(inode.content, Content::Blob { id, .. } if id == own) {
            self.keep_promise_in_blob(inode.ino, own, &self.store.open_blob(own)?)?;
            self.release_content(txn, inode.ino, inode.content);
        }
        self.store.seal_blob(own, &sums)?;
        // The checksums are not on disk yet, whether the bytes are or not, and every commit that is made durable from
        // here on may rely on them.
        self.unsynced.note(own);
        self.unsynced.seal(own);
        txn.seals(inode.ino, own);
        inode.content = Content::Blob { id: own, sealed: true };
        let map = self.store.map_blob(own)?;
        map.check_sums(&sums)?;
        Ok(Prepared { layout, content: inode.content, bytes: RowBytes::Blob(map) })
    }

    fn prepare_text_blob(
        &self,
        txn: &mut Txn<'_>,
        ino: Ino,
        (id, sealed): (BlobId, bool),
        check: &Check,
    ) -> Result<Prepared> {
        let map = self.store.map_blob(id)?;
        if sealed {
            map.check(0, map.bytes().len())?;
        } else if let Some(rested) = self.store.rested(id) {
            let compared = rested.compare_all(map.bytes());
            map.check_read().and(compared).map_err(|error| self.store.note_damage(error))?;
        }
        let prepared = self.prepare_text(txn, ino, map.bytes(), check);
        // A page that cannot be read looks like zeros.
        map.check_read().and(prepared)
    }

    fn prepare_text(&self, txn: &mut Txn<'_>, ino: Ino, text: &[u8], check: &Check) -> Result<Prepared> {
        let values = format::parse_text(text, &check.limits)?;
        let layout = Layout {
            dtype: Dtype::F32,
            dim: u32::try_from(values.len()).unwrap_or(u32::MAX),
            rows: 1,
            offset: 0,
            stride: values.len() as u64 * 4,
        };
        check.dim(layout.dim)?;
        format::check_vector(0, &values, check.cosine)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let slot = self.write_slot(txn, ino, &bytes)?;
        Ok(Prepared { layout, content: Content::Slot(slot.at()), bytes: RowBytes::Slot(slot) })
    }

    /// Puts what vectors of `ino` are to be read from into a slot that goes with the transaction, if that fails.
    fn write_slot(&self, txn: &mut Txn<'_>, ino: Ino, bytes: &[u8]) -> Result<Arc<Slot>> {
        let slot = self.store.write_slot(bytes)?;
        txn.wrote_slot(Arc::clone(&slot));
        self.keep_promise_in_slot(ino)?;
        Ok(slot)
    }

    /// Stages a collection's record.
    pub(in crate::volume) fn put_collection(&self, txn: &mut Txn<'_>, collection: &Collection) -> Result<()> {
        let before = self.collection_record(collection.root())?;
        // One that is just becoming a collection of its own is put with its configuration by the same transaction.
        let is_nested =
            || self.vectors.is_nested(Ino(collection.root())).then(|| (*collection.schema()).clone());
        let schema = before.schema.or_else(is_nested);
        let entry = CollectionRecord { schema, numbering: collection.numbering() };
        txn.batch.put(Table::Collections, collection.root().to_be_bytes(), record::encode(&entry));
        Ok(())
    }

    /// A collection's record, by the number of its directory.
    pub(in crate::volume) fn collection_record(&self, root: u64) -> Result<CollectionRecord> {
        match self.catalog.get(Table::Collections, &root.to_be_bytes())? {
            Some(bytes) => record::decode("collections", &bytes),
            None => Ok(CollectionRecord::default()),
        }
    }

    /// Stages a collection's record with a configuration.
    pub(in crate::volume) fn put_schema(&self, txn: &mut Txn<'_>, collection: &Collection, schema: &Schema) {
        let entry = CollectionRecord { schema: Some(schema.clone()), numbering: collection.numbering() };
        txn.batch.put(Table::Collections, collection.root().to_be_bytes(), record::encode(&entry));
    }

    /// Whether a new name for `inode` is possible there.
    ///
    /// # Errors
    ///
    /// [`Error::CrossDimension`] when the name makes it a member of a collection of another dimension.
    pub(in crate::volume) fn forbid_link(&self, inode: &Inode, to: &Link) -> Result<()> {
        if format::recognise(&to.name).is_none() {
            return Ok(());
        }
        let dims: Vec<u32> = self
            .vectors
            .members(inode.ino)
            .iter()
            .filter_map(|member| match &member.state {
                State::Valid { file, .. } => Some(file.dim()),
                State::Invalid(_) => None,
            })
            .collect();
        let collection = self.vectors.existing(self.collection_root(to.parent)?);
        match (dims.first(), collection.and_then(|collection| collection.dim())) {
            (Some(&got), Some(expected)) if got != expected => Err(Error::CrossDimension { expected, got }),
            _ => Ok(()),
        }
    }

    /// A directory goes: so does its collection, which is empty.
    pub(in crate::volume) fn directory_removed(&self, txn: &mut Txn<'_>, ino: Ino) {
        if self.vectors.existing(ino).is_some() || self.vectors.is_nested(ino) {
            txn.batch.remove(Table::Collections, ino.0.to_be_bytes());
            txn.changes.push(Change::Drop { root: ino });
        }
        self.vectors.tree_changed();
    }

    /// Settles every vector file below `dir` whose collection is decided above it, because that has changed: the
    /// directory has moved, or become a collection of its own.
    pub(in crate::volume) fn settle_below(&self, txn: &mut Txn<'_>, dir: Ino) -> Result<()> {
        // A file with several names below is staged once.
        let mut settled = HashSet::new();
        let mut dirs = vec![dir];
        while let Some(dir) = dirs.pop() {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let entries = self.names.entries(dir, after.as_deref(), 1024)?;
                let Some(last) = entries.last() else { break };
                after = Some(last.name.clone());
                for entry in &entries {
                    if entry.kind == Kind::Directory && !self.vectors.is_nested(entry.ino) {
                        dirs.push(entry.ino);
                    } else if entry.kind == Kind::File
                        && format::recognise(&entry.name).is_some()
                        && settled.insert(entry.ino)
                    {
                        self.settle_names(txn, entry.ino)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn settle_names(&self, txn: &mut Txn<'_>, ino: Ino) -> Result<()> {
        let before = self.names.inode(ino)?;
        let mut inode = self.inode_for(txn, ino)?;
        let links = self.names.links(ino)?;
        self.settle(txn, &mut inode, &links, Why::Names)?;
        // Also what only the open file knew of: with this commit it counts as written back.
        if inode != before {
            self.names.put_inode(&mut txn.batch, &inode);
        }
        Ok(())
    }
}

pub(super) fn member_key(root: Ino, ino: Ino) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&root.0.to_be_bytes());
    key[8..].copy_from_slice(&ino.0.to_be_bytes());
    key
}

fn valid_state(file: &VectorFile, content: Content) -> MemberState {
    MemberState::Valid { first_row: file.first_row().0, layout: *file.layout(), content }
}

fn put_member(txn: &mut Txn<'_>, root: Ino, ino: Ino, kind: FileKind, key: &GroupKey, state: MemberState) {
    let entry = MemberRecord { kind, group: key.clone(), state };
    txn.batch.put(Table::Vectors, member_key(root, ino), record::encode(&entry));
}

/// The last row of a file.
pub(in crate::volume) fn last_row(file: &VectorFile) -> RowId {
    RowId(file.first_row().0 + u32::try_from(file.rows().saturating_sub(1)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::testing::{self, ROOT};
    use crate::volume::{OpenFlags, XattrMode};

    #[test]
    fn content_is_checked_for_each_of_the_collections_that_it_enters_at_once() {
        let (_store, volume) = testing::volume();
        let flags = OpenFlags { read: true, write: true, truncate: true, ..OpenFlags::default() };
        // In either order of the names one of them comes second.
        let dirs = [b"l", b"c", b"m"].map(|name| volume.mkdir(&ROOT, Ino::ROOT, name, 0o755).unwrap().ino);
        for (dir, metric) in dirs.into_iter().zip([&b"l2"[..], b"cosine", b"l2"]) {
            volume.setxattr(&ROOT, dir, b"user.vexfs.metric", metric, XattrMode::Either).unwrap();
        }
        let (attr, opened) = volume.create(&ROOT, dirs[0], b"a.f32", 0o644, flags).unwrap();
        volume.link(&ROOT, attr.ino, dirs[1], b"a.f32").unwrap();
        volume.link(&ROOT, attr.ino, dirs[2], b"a.f32").unwrap();
        volume.write(&ROOT, opened.handle, 0, &[0; 12]).unwrap();
        volume.flush(&ROOT, opened.handle).unwrap();
        volume.release(opened.handle).unwrap();
        let members = volume.vectors.members(attr.ino);
        let is_valid = |dir: Ino| {
            let member = members.iter().find(|member| member.root == dir).unwrap();
            matches!(member.state, State::Valid { .. })
        };
        assert_eq!(dirs.map(is_valid), [true, false, true], "zeros have no direction");
        volume.close().unwrap();
    }

    #[test]
    fn what_is_being_written_keeps_its_length_when_its_directory_becomes_a_collection() {
        let (_store, volume) = testing::volume();
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        let outer = volume.mkdir(&ROOT, Ino::ROOT, b"c", 0o755).unwrap().ino;
        let inner = volume.mkdir(&ROOT, outer, b"sub", 0o755).unwrap().ino;
        let (attr, opened) = volume.create(&ROOT, inner, b"a.npy", 0o644, flags).unwrap();
        // The first goes to a blob, the second is known by the open file alone.
        volume.write(&ROOT, opened.handle, 0, &[1; 20_000]).unwrap();
        volume.write(&ROOT, opened.handle, 20_000, &[2; 20_000]).unwrap();
        volume.setxattr(&ROOT, inner, b"user.vexfs.metric", b"l2", XattrMode::Either).unwrap();
        assert_eq!(volume.getattr(attr.ino).unwrap().size, 40_000);
        volume.release(opened.handle).unwrap();
        assert_eq!(volume.getattr(attr.ino).unwrap().size, 40_000);
        volume.close().unwrap();
    }

    #[test]
    fn vectors_of_two_kinds_read_a_slot_through_one_handle() {
        let (_store, volume) = testing::volume();
        let flags = OpenFlags { read: true, write: true, truncate: true, ..OpenFlags::default() };
        let dirs = [b"f", b"u"].map(|name| volume.mkdir(&ROOT, Ino::ROOT, name, 0o755).unwrap().ino);
        let (attr, opened) = volume.create(&ROOT, dirs[0], b"a.f32", 0o644, flags).unwrap();
        volume.link(&ROOT, attr.ino, dirs[1], b"a.u8").unwrap();
        volume.write(&ROOT, opened.handle, 0, &1.0_f32.to_le_bytes()).unwrap();
        volume.flush(&ROOT, opened.handle).unwrap();
        volume.release(opened.handle).unwrap();
        let slots: Vec<Arc<Slot>> = volume
            .vectors
            .members(attr.ino)
            .iter()
            .filter_map(|member| match &member.state {
                State::Valid { file, .. } => Some(file),
                State::Invalid(_) => None,
            })
            .filter_map(|file| match file.bytes() {
                RowBytes::Slot(slot) => Some(Arc::clone(slot)),
                RowBytes::Blob(_) => None,
            })
            .collect();
        assert_eq!(slots.len(), 2);
        assert!(Arc::ptr_eq(&slots[0], &slots[1]));
        volume.close().unwrap();
    }
}
