//! Collections and members as the catalog has them, put back when a volume opens.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::settle::member_key;
use super::{CollectionRecord, Member, MemberRecord, MemberState, Problem, State, Vectors, number};
use crate::catalog::{Catalog, Table};
use crate::collection::{Collection, RowBytes, VectorFile, checkpoint_root};
use crate::format::{Layout, record};
use crate::index::RowId;
use crate::namespace::{Content, Ino, Inode, Namespace};
use crate::{Error, Result};

/// What the members of one volume share while they are put back.
#[derive(Default)]
struct Restored {
    files: HashMap<Ino, Vec<Arc<VectorFile>>>,
    /// Bytes of files that are in several collections: one handle for all.
    shared: HashMap<Ino, (Content, RowBytes)>,
    damaged: Damaged,
}

/// Keys of records of collections whose directory is gone.
pub(in crate::volume) type Stray = Vec<[u8; 8]>;

/// Keys and records of members whose vectors cannot be read, as the catalog is to have them: the next open may not
/// look again.
pub(in crate::volume) type Damaged = Vec<([u8; 16], Vec<u8>)>;

/// What was found while everything was put back.
#[derive(Debug)]
pub(in crate::volume) struct Found {
    /// Members whose vectors cannot be read.
    pub(in crate::volume) damaged: Damaged,
    /// Collections without a directory, which are not put back.
    pub(in crate::volume) stray: Stray,
    /// Collections whose graph's checkpoint is not used, and why.
    pub(in crate::volume) without_graph: Vec<(Ino, Error)>,
}

impl Vectors {
    /// Puts the collections back, and tells the store which slots and blobs they name: before it sweeps, and before
    /// anything is written. After an unclean end (`verify`) every slot is compared with its checksum, and one
    /// that a power cut has torn makes its file invalid instead of being served.
    pub(in crate::volume) fn restore(
        &self,
        catalog: &Catalog,
        names: &Namespace,
        index_dir: &Path,
        verify: bool,
    ) -> Result<Found> {
        let mut stray = Stray::new();
        for pair in catalog.scan(Table::Collections, &[], None) {
            let (key, value) = pair?;
            let root = ino_at(&key, 0)?;
            match names.directory(root) {
                Ok(dir) => self.restore_collection(&dir, record::decode("collections", &value)?),
                // One record too many must not keep the store from being mounted.
                Err(error @ (Error::NotFound | Error::NotDirectory)) => {
                    tracing::error!(root = root.0, %error, "a collection without a directory is left out");
                    stray.push(root.0.to_be_bytes());
                }
                Err(error) => return Err(error),
            }
        }
        let mut restored = Restored::default();
        for pair in catalog.scan(Table::Vectors, &[], None) {
            let (key, value) = pair?;
            let entry: MemberRecord = record::decode("vectors", &value)?;
            self.restore_member(ino_at(&key, 0)?, ino_at(&key, 8)?, entry, verify, &mut restored)?;
        }
        let mut without_graph = Vec::new();
        for (root, mut files) in restored.files {
            files.sort_unstable_by_key(|file| file.first_row());
            let collection = self.collection(root);
            collection.restore(&files);
            if let Err(error) = collection.load_graph(index_dir) {
                tracing::warn!(%error, "graph checkpoint is not used; the graph is built anew");
                without_graph.push((root, error));
            }
        }
        Ok(Found { damaged: restored.damaged, stray, without_graph })
    }

    /// Removes the checkpoints that no graph was loaded from: once more rows have been numbered, one that was passed over
    /// may look like that of what is there.
    pub(in crate::volume) fn remove_unused_checkpoints(&self) -> Result<()> {
        let has_graph =
            |root| self.existing(Ino(root)).is_some_and(|collection| collection.graph().is_some());
        let is_unused = |name: &String| {
            checkpoint_root(name).is_some_and(|root| name.ends_with(".tmp") || !has_graph(root))
        };
        let unused: Vec<_> = self.store.index_files()?.into_iter().filter(is_unused).collect();
        self.store.remove_index_files(&unused)
    }

    fn restore_collection(&self, dir: &Inode, entry: CollectionRecord) {
        let root = dir.ino;
        if entry.schema.is_some() && root != Ino::ROOT && dir.parent != Ino::ROOT {
            self.nest(root);
        }
        let collection = Collection::new(root.0, entry.schema.unwrap_or_default(), entry.numbering);
        self.collections.insert(root, Arc::new(collection));
    }

    fn restore_member(
        &self,
        root: Ino,
        ino: Ino,
        entry: MemberRecord,
        verify: bool,
        restored: &mut Restored,
    ) -> Result<()> {
        let state = match entry.state {
            MemberState::Invalid(problem) => State::Invalid(problem),
            MemberState::Valid { first_row, layout, content } => {
                let bytes = match restored.shared.get(&ino) {
                    Some((known, bytes)) if *known == content => Ok(bytes.clone()),
                    _ => self.row_bytes(content, verify),
                };
                match bytes.and_then(|bytes| fits(&layout, bytes)) {
                    Ok(bytes) => {
                        if entry.group.dirs.len() > 1 {
                            restored.shared.insert(ino, (content, bytes.clone()));
                        }
                        let group = self.groups.number(&entry.group);
                        let file = Arc::new(
                            VectorFile::new(number(ino), layout, bytes, group)
                                .with_first_row(RowId(first_row)),
                        );
                        restored.files.entry(root).or_default().push(Arc::clone(&file));
                        State::Valid { file, content }
                    }
                    Err(error @ Error::Corrupt { .. }) => {
                        tracing::error!(ino = ino.0, %error, "a vector file is damaged");
                        let problem = Problem::of(&error);
                        let state = MemberState::Invalid(problem.clone());
                        let record = MemberRecord { kind: entry.kind, group: entry.group.clone(), state };
                        restored.damaged.push((member_key(root, ino), record::encode(&record)));
                        State::Invalid(problem)
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        self.members.entry(ino).or_default().push(Member { root, kind: entry.kind, state });
        Ok(())
    }

    fn row_bytes(&self, content: Content, verify: bool) -> Result<RowBytes> {
        match content {
            Content::Slot(at) => {
                self.store.adopt(at)?;
                let slot = self.store.slot(at)?;
                if verify {
                    slot.verify()?;
                }
                Ok(RowBytes::Slot(slot))
            }
            Content::Blob { id, .. } => {
                self.store.adopt_blob(id);
                Ok(RowBytes::Blob(self.store.map_blob(id)?))
            }
            Content::Empty | Content::Inline => Err(damaged("vectors without a slot or blob")),
        }
    }
}

/// What the vectors in a catalog are read from: for those who ask what is live.
pub(in crate::volume) fn vector_contents(catalog: &Catalog) -> impl Iterator<Item = Result<Content>> + '_ {
    let members = catalog.scan(Table::Vectors, &[], None).map(|pair| record::decode("vectors", &pair?.1));
    members.filter_map(|member: Result<MemberRecord>| match member.map(|member| member.state) {
        Ok(MemberState::Valid { content, .. }) => Some(Ok(content)),
        Ok(MemberState::Invalid(_)) => None,
        Err(error) => Some(Err(error)),
    })
}

/// Hands the bytes on when the layout lies inside them.
fn fits(layout: &Layout, bytes: RowBytes) -> Result<RowBytes> {
    let len = bytes.bytes().len();
    match layout.fits(len as u64) {
        true => Ok(bytes),
        false => Err(damaged(&format!("{} rows x {} do not fit {len} bytes", layout.rows, layout.dim))),
    }
}

fn damaged(what: &str) -> Error {
    Error::Corrupt { file: "catalog/vectors".into(), offset: 0, what: what.into() }
}

pub(in crate::volume) fn ino_at(key: &[u8], at: usize) -> Result<Ino> {
    key.get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(|bytes| Ino(u64::from_be_bytes(bytes)))
        .ok_or_else(|| damaged(&format!("key of {} bytes", key.len())))
}
