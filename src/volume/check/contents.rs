//! Bytes of files: whether slots and blobs hold what the catalog says, and what is saved of those that do not.

use std::collections::{HashMap, HashSet};
use std::io::Write;

use crate::catalog::{Catalog, Table};
use crate::namespace::check::Census;
use crate::namespace::{Content, Ino, Inode, Kind, Link, Mark, Namespace, NewInode, Time};
use crate::store::{BlobId, Pages, SlotRef, Store};
use crate::volume::content::INLINE_MAX;
use crate::volume::ingest::ino_at;
use crate::{Error, Result};

/// The directory in the mount's root for what repairs have set aside.
const LOST: &str = "lost+found";

/// What files are made of, and what is wrong with it.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Whether the volume was closed: then a blob has the length that its inode says.
    was_closed: bool,
    /// Slots with their owners.
    pub(super) slots: Vec<(SlotRef, u64)>,
    /// Blobs with their owners.
    pub(super) blobs: Vec<NamedBlob>,
    pub(super) bytes_read: u64,
    pub(super) faults: Vec<ContentFault>,
}

/// A blob that an inode names. They are sorted by their numbers, and those of one by their owners.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NamedBlob {
    id: BlobId,
    ino: Ino,
    /// The length, where it is known.
    len: Option<u64>,
    sealed: bool,
    /// Its bytes were compared already.
    compared: bool,
}

/// Bytes that are not what the catalog says.
#[derive(Debug)]
pub(super) struct ContentFault {
    pub(super) ino: Ino,
    pub(super) content: Content,
    pub(super) error: Error,
}

impl Contents {
    pub(super) fn new(was_closed: bool) -> Self {
        Self { was_closed, ..Self::default() }
    }

    /// Takes the content of an inode.
    pub(super) fn note(&mut self, inode: &Inode) {
        match inode.content {
            Content::Empty | Content::Inline => {}
            Content::Slot(at) => self.slots.push((at, inode.ino.0)),
            Content::Blob { id, sealed } => {
                let len = (sealed || self.was_closed).then_some(inode.size);
                self.blobs.push(NamedBlob { id, ino: inode.ino, len, sealed, compared: false });
            }
        }
    }

    /// Takes what vectors are read from beside that.
    pub(super) fn note_members(&mut self, contents: &[(Content, Ino)]) {
        for &(content, ino) in contents {
            match content {
                Content::Empty | Content::Inline => {}
                Content::Slot(at) => self.slots.push((at, ino.0)),
                Content::Blob { id, sealed } => {
                    self.blobs.push(NamedBlob { id, ino, len: None, sealed, compared: false });
                }
            }
        }
    }

    /// Leaves out what `checked` has, which was found sound.
    pub(super) fn leave_out(&mut self, checked: &Self) {
        let damaged: Vec<Content> = checked.faults.iter().map(|fault| fault.content).collect();
        let sound: HashSet<SlotRef> = checked.slots.iter().map(|(at, _)| *at).collect();
        self.slots.retain(|(at, _)| !sound.contains(at) || damaged.contains(&Content::Slot(*at)));
        let sound: HashSet<BlobId> = checked.blobs.iter().map(|blob| blob.id).collect();
        for blob in &mut self.blobs {
            // Its length is compared with this inode as well.
            let content = Content::Blob { id: blob.id, sealed: false };
            blob.compared = sound.contains(&blob.id) && !damaged.contains(&content);
        }
    }

    /// Compares all of it with what is in the store, which is told that it is in use.
    pub(super) fn check(&mut self, store: &Store, census: &Census) -> Result<()> {
        for (at, _) in &self.slots {
            // Those that do not fit are found below.
            let _ = store.adopt(*at);
        }
        let faults = &mut self.faults;
        self.bytes_read = store.check_slots(&mut self.slots, |at, owner, error| {
            faults.push(ContentFault { ino: Ino(owner), content: Content::Slot(at), error });
        })?;
        self.blobs.sort_unstable();
        let mut last: Option<(BlobId, Ino)> = None;
        for &NamedBlob { id, ino, len, sealed, compared } in &self.blobs {
            store.adopt_blob(id);
            // Of a file that was being written the blob knows the length.
            let len = len.filter(|_| !census.has_mark(Mark::Dirty, ino));
            let content = Content::Blob { id, sealed: false };
            let file = store.blob_path(id);
            let found = match (store.blob_len(id), last) {
                (_, Some((other, owner))) if other == id && owner != ino => {
                    let what = format!("the blob also belongs to inode {}", owner.0);
                    Some(Error::Corrupt { file, offset: 0, what })
                }
                (Ok(got), _) if len.is_some_and(|len| len != got) => {
                    let len = len.unwrap_or_default();
                    let what = format!("{got} bytes, want {len}");
                    Some(Error::Corrupt { file, offset: got.min(len), what })
                }
                (Ok(_), _) if !compared => match store.check_blob(id, sealed, 0, Pages::Drop, |_| true) {
                    Ok(read) => {
                        self.bytes_read += read;
                        None
                    }
                    Err(error @ Error::Corrupt { .. }) => Some(error),
                    Err(error) => return Err(error),
                },
                (Ok(_), _) => None,
                (Err(error @ Error::Corrupt { .. }), _) => Some(error),
                (Err(error), _) => return Err(error),
            };
            faults.extend(found.map(|error| ContentFault { ino, content, error }));
            last = Some((id, ino));
        }
        Ok(())
    }

    /// The collections that the files with faults are members of.
    pub(super) fn members_of(&self, catalog: &Catalog) -> Result<HashMap<Ino, Vec<Ino>>> {
        let mut members: HashMap<Ino, Vec<Ino>> = HashMap::new();
        let concerned: HashSet<Ino> = self.faults.iter().map(|fault| fault.ino).collect();
        if concerned.is_empty() {
            return Ok(members);
        }
        for pair in catalog.scan(Table::Vectors, b"", None) {
            let (key, _) = pair?;
            // A key that is no key is a fault of the members.
            let (Ok(root), Ok(ino)) = (ino_at(&key, 0), ino_at(&key, 8)) else { continue };
            if concerned.contains(&ino) {
                members.entry(ino).or_default().push(root);
            }
        }
        Ok(members)
    }
}

/// Key of a member's record.
pub(super) fn member_key(root: Ino, ino: Ino) -> Vec<u8> {
    [root.0.to_be_bytes(), ino.0.to_be_bytes()].concat()
}

/// Sets aside what cannot stay where it is. Every step is one commit.
pub(super) struct Rescue<'a> {
    pub(super) store: &'a Store,
    pub(super) catalog: &'a Catalog,
    pub(super) names: &'a Namespace,
    /// The directory `lost+found`, once it was needed.
    pub(super) lost: &'a mut Option<Ino>,
}

impl Rescue<'_> {
    /// Gives an inode without names one.
    pub(super) fn adopt_nameless(&mut self, ino: Ino) -> Result<String> {
        let link = Link { parent: self.lost_and_found()?, name: format!("#{}", ino.0).into_bytes() };
        let inode = self.names.inode(ino)?;
        let mut batch = self.catalog.batch();
        self.names.put_name(&mut batch, &link, &inode);
        batch.commit()?;
        Ok(format!("named /{LOST}/#{}", ino.0))
    }

    /// Saves what is left of a content. Bytes that are sound go on as the file's; others only in `lost+found`.
    pub(super) fn content(&mut self, fault: &ContentFault, members: &[Ino]) -> Result<String> {
        let inode = match self.names.inode(fault.ino) {
            Ok(inode) => inode,
            Err(Error::NotFound) => {
                self.remove_members(fault.ino, members, false)?;
                return Ok("record of vectors without a file removed".into());
            }
            Err(error) => return Err(error),
        };
        let is_own = match (inode.content, fault.content) {
            (Content::Blob { id, .. }, Content::Blob { id: other, .. }) => id == other,
            (own, other) => own == other,
        };
        if !is_own {
            // What its vectors were read from; the file's own bytes say it again.
            self.remove_members(inode.ino, members, true)?;
            return Ok("its vectors are read from the file by the next mount".into());
        }
        match fault.content {
            Content::Slot(at) => match self.store.salvage_slot(at)? {
                (bytes, true) => {
                    self.replace(inode, &bytes, members)?;
                    Ok("its bytes are sound and were moved".into())
                }
                (bytes, false) => {
                    self.remove_members(inode.ino, members, true)?;
                    self.set_aside(fault.ino, &bytes)
                }
            },
            Content::Blob { id, .. } => {
                self.remove_members(inode.ino, members, true)?;
                self.set_aside_blob(inode, id)
            }
            Content::Empty | Content::Inline => Ok(String::new()),
        }
    }

    /// Removes what is known of a file's vectors; the next mount settles the file, if there is one, as it then is.
    fn remove_members(&self, ino: Ino, members: &[Ino], settle: bool) -> Result<()> {
        let mut batch = self.catalog.batch();
        for root in members {
            batch.remove(Table::Vectors, member_key(*root, ino));
        }
        if settle {
            self.names.put_mark(&mut batch, Mark::Dirty, ino);
        }
        batch.commit()
    }

    /// Gives a file these bytes in another place.
    fn replace(&self, mut inode: Inode, bytes: &[u8], members: &[Ino]) -> Result<()> {
        inode.size = bytes.len() as u64;
        inode.content = Content::Empty;
        if !bytes.is_empty() && inode.size <= INLINE_MAX {
            inode.content = Content::Inline;
        } else if !bytes.is_empty() {
            let (id, mut file) = self.store.create_blob()?;
            file.write_all(bytes)?;
            self.store.sync_blob(id, &file)?;
            inode.content = Content::Blob { id, sealed: false };
        }
        let mut batch = self.catalog.batch();
        for root in members {
            batch.remove(Table::Vectors, member_key(*root, inode.ino));
        }
        if inode.content == Content::Inline {
            self.names.put_inline(&mut batch, inode.ino, bytes);
        }
        self.names.put_inode(&mut batch, &inode);
        self.names.put_mark(&mut batch, Mark::Dirty, inode.ino);
        batch.commit()
    }

    /// Moves a file with these bytes, which are not what they should be, to `lost+found`.
    pub(super) fn set_aside(&mut self, ino: Ino, bytes: &[u8]) -> Result<String> {
        self.replace(self.names.inode(ino)?, bytes, &[])?;
        let name = self.move_away(ino)?;
        Ok(format!("{} bytes kept as /{LOST}/{name}", bytes.len()))
    }

    fn set_aside_blob(&mut self, mut inode: Inode, id: BlobId) -> Result<String> {
        let left = match self.store.blob_len(id) {
            // A blob of its own, whoever else has this one.
            Ok(len) => self.store.clone_blob(id).map(|(copy, file)| (len, copy, file)),
            Err(error) => Err(error),
        };
        match left {
            Ok((len, copy, file)) => {
                self.store.sync_blob(copy, &file)?;
                (inode.size, inode.content) = (len, Content::Blob { id: copy, sealed: false });
            }
            Err(Error::Corrupt { .. }) => (inode.size, inode.content) = (0, Content::Empty),
            Err(error) => return Err(error),
        }
        let (ino, len) = (inode.ino, inode.size);
        let mut batch = self.catalog.batch();
        self.names.put_inode(&mut batch, &inode);
        batch.commit()?;
        let name = self.move_away(ino)?;
        Ok(format!("{len} bytes kept as /{LOST}/{name}"))
    }

    /// Gives a blob that nothing names, and that has bytes, a file of its own. Returns what became of it.
    pub(super) fn adopt_blob(&mut self, id: BlobId) -> Result<Option<(Option<Error>, String)>> {
        let len = self.store.blob_len(id)?;
        if len == 0 {
            return Ok(None);
        }
        let damage = match self.store.check_blob(id, true, 0, Pages::Drop, |_| true) {
            Ok(_) => None,
            Err(error @ Error::Corrupt { .. }) => Some(error),
            Err(error) => return Err(error),
        };
        // An ordinary file's are made when it comes to rest.
        self.store.wake_blob(id)?;
        let parent = self.lost_and_found()?;
        let mut name = format!("#blob-{}", id.0).into_bytes();
        if damage.is_some() {
            name.extend(b".damaged");
        }
        while self.names.lookup(parent, &name)?.is_some() {
            name.push(b'+');
        }
        self.make(parent, &name, (Kind::File, 0o600), (len, Content::Blob { id, sealed: false }))?;
        self.store.adopt_blob(id);
        Ok(Some((damage, format!("{len} bytes kept as /{LOST}/{}", name.escape_ascii()))))
    }

    /// Takes all names of a file, and gives it one in `lost+found` that no suffix makes a vector.
    fn move_away(&mut self, ino: Ino) -> Result<String> {
        let links = self.names.links(ino)?;
        let parent = self.lost_and_found()?;
        let old = links.first().map(|link| link.name.clone()).unwrap_or_default();
        let mut name = format!("#{}-", ino.0).into_bytes();
        name.extend(&old[..old.len().min(200)]);
        name.extend(b".damaged");
        let inode = self.names.inode(ino)?;
        let mut batch = self.catalog.batch();
        for link in &links {
            self.names.remove_name(&mut batch, link, ino);
        }
        let shown = name.escape_ascii().to_string();
        self.names.put_name(&mut batch, &Link { parent, name }, &inode);
        batch.commit()?;
        Ok(shown)
    }

    /// `lost+found` in the root, made when it is not there.
    fn lost_and_found(&mut self) -> Result<Ino> {
        if let Some(known) = *self.lost {
            return Ok(known);
        }
        let mut name = LOST.as_bytes().to_vec();
        let found = loop {
            match self.names.lookup(Ino::ROOT, &name)? {
                Some(entry) if entry.kind == Kind::Directory => break entry.ino,
                Some(_) => name.push(b'+'),
                None => break self.make(Ino::ROOT, &name, (Kind::Directory, 0o700), (0, Content::Empty))?,
            }
        };
        *self.lost = Some(found);
        Ok(found)
    }

    /// Makes a node in the directory `parent`, for its owner.
    fn make(
        &self,
        parent: Ino,
        name: &[u8],
        (kind, mode): (Kind, u16),
        (size, content): (u64, Content),
    ) -> Result<Ino> {
        let parent = self.names.directory(parent)?;
        let (ino, uid, gid) = (self.names.allocate()?, parent.uid, parent.gid);
        let new = NewInode { ino, kind, mode, uid, gid, rdev: 0, size, content };
        let mut batch = self.catalog.batch();
        let inode = self.names.create(&mut batch, parent, name, new, Time::now())?;
        self.names.put_inode(&mut batch, &inode);
        batch.commit()?;
        Ok(inode.ino)
    }
}
