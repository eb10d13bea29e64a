//! What a collection demands of content, and reading large content to find out whether it is so.
//!
//! A large file takes long to read, so it is read before anything is locked ([`Volume::read_ahead`]). What was found is
//! kept with the open file, and used by the settling that follows if nobody has changed the content meanwhile. Otherwise
//! settling reads it once more, with the file locked.

use std::sync::Arc;

use super::number;
use crate::collection::Collection;
use crate::distance::Metric;
use crate::format::{self, FileKind, Layout, RowReader};
use crate::namespace::{Content, Ino, Kind, Link};
use crate::store::{BlobId, BlobReader, BlobSums};
use crate::volume::Volume;
use crate::volume::backing::is_vector_file;
use crate::volume::open_files::OpenFile;
use crate::{Error, Result};

/// From this size on, in bytes, content is read ahead: some milliseconds of work.
const LARGE: u64 = 4 << 20;

/// What a collection demands of content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) cosine: bool,
    pub(super) limits: format::Limits,
    /// The dimension that the file must have, if anything else decides it.
    dim: Option<u32>,
}

/// What reading a blob has shown.
#[derive(Debug)]
pub(super) struct Reading {
    /// Where its rows lie, if it is what was demanded.
    pub(super) layout: Result<Layout>,
    /// Those of all its bytes: none if reading ended where it was refused.
    pub(super) sums: Option<BlobSums>,
}

/// A [`Reading`] that was made before the file was locked.
#[derive(Debug)]
pub(in crate::volume) struct Ahead {
    id: BlobId,
    /// How often the content had been changed: see [`State::edits`](crate::volume::open_files::State::edits).
    edits: u64,
    kind: FileKind,
    check: Check,
    reading: Reading,
}

impl Check {
    pub(super) fn of(collection: &Collection, ino: Ino) -> Self {
        let schema = collection.schema();
        let limits = format::Limits { max_dim: schema.max_dim, ..format::Limits::default() };
        Self { cosine: schema.metric == Metric::Cosine, limits, dim: collection.dim_for(number(ino)) }
    }

    /// Checked before the values, so that a file of another dimension is told so whatever is in it.
    pub(super) fn dim(&self, got: u32) -> Result<()> {
        match self.dim {
            Some(expected) if expected != got => Err(Error::Dimension { expected, got }),
            _ => Ok(()),
        }
    }

    /// Checks the bytes of a whole file.
    pub(super) fn layout(&self, kind: FileKind, bytes: &[u8]) -> Result<Layout> {
        let layout = self.headers(kind, format::layout(kind, bytes, &self.limits), bytes.len() as u64)?;
        format::validate(&layout, bytes, self.cosine, |_, _| {})?;
        Ok(layout)
    }

    /// The same for a file that is read in pieces.
    fn read(&self, kind: FileKind, blob: &mut BlobReader) -> Result<Layout> {
        let head = blob.head(format::HEAD_BYTES)?;
        let found = format::layout_of_head(kind, &head, blob.len(), &self.limits);
        let layout = self.headers(kind, found, blob.len())?;
        let mut rows = RowReader::new(blob, kind, layout)?;
        while rows.advance()? {
            let block = rows.block();
            format::validate_from(block.first_row, &block.layout, block.bytes, self.cosine, |_, _| {})?;
        }
        Ok(layout)
    }

    fn headers(&self, kind: FileKind, found: Result<Layout>, len: u64) -> Result<Layout> {
        let layout = found.map_err(|error| match (error, kind, self.dim) {
            // The bytes are no whole number of elements: what the collection wants says more.
            (Error::Format(_), FileKind::Raw(dtype), Some(dim)) if len > 0 => {
                let want = dim as usize * dtype.size_bytes();
                Error::Format(format!("{len} bytes, want {want} (dim {dim}, {})", dtype.name()))
            }
            (error, ..) => error,
        })?;
        self.dim(layout.dim)?;
        Ok(layout)
    }

    /// What was found under these demands, under those of `now`; none where that is not known.
    fn under(&self, now: &Self, layout: Result<Layout>) -> Option<Result<Layout>> {
        match layout {
            _ if (self.cosine, self.limits) != (now.cosine, now.limits) => None,
            Ok(layout) => Some(now.dim(layout.dim).map(|()| layout)),
            Err(error) => (self.dim == now.dim).then_some(Err(error)),
        }
    }
}

impl Volume {
    /// Reads a blob as `kind`; also to its end when it is refused, if it `is_compared` with checksums.
    fn read_through(&self, id: BlobId, is_compared: bool, kind: FileKind, check: &Check) -> Result<Reading> {
        let mut blob = self.store.read_blob(id)?;
        let layout = check.read(kind, &mut blob).map_err(|error| blob.failed(error));
        let sums = if layout.is_ok() || is_compared { Some(blob.sums()?) } else { None };
        Ok(Reading { layout, sums })
    }

    /// What reading the content `id` of a file shows, or has shown. The caller holds the inode, and nobody writes the
    /// blob.
    pub(super) fn reading_of(
        &self,
        ino: Ino,
        id: BlobId,
        is_compared: bool,
        kind: FileKind,
        check: &Check,
    ) -> Result<Reading> {
        let ahead = self.files.get(ino).and_then(|file| {
            let mut state = file.state();
            let edits = state.edits;
            state.ahead.take().filter(|ahead| (ahead.id, ahead.edits, ahead.kind) == (id, edits, kind))
        });
        if let Some(Ahead { check: before, reading: Reading { layout, sums }, .. }) =
            ahead.map(|ahead| *ahead)
            && let Some(layout) = before.under(check, layout)
        {
            return Ok(Reading { layout, sums });
        }
        self.read_through(id, is_compared, kind, check)
    }

    /// Whether the content of a file is so large that it is read ahead.
    pub(in crate::volume) fn is_large(&self, ino: Ino) -> bool {
        self.inode(ino).is_ok_and(|inode| {
            inode.kind == Kind::File && matches!(inode.content, Content::Blob { .. }) && inode.size >= LARGE
        })
    }

    /// Whether a file is a vector file that takes long to read, if it is of that `size` or as it is.
    pub(in crate::volume) fn takes_long(&self, ino: Ino, size: u64) -> bool {
        (size >= LARGE || self.is_large(ino)) && self.links_of(ino).is_ok_and(|links| is_vector_file(&links))
    }

    /// Reads large content that is about to be settled. The caller holds no lock. What goes wrong here is left to the
    /// settling.
    #[inline(never)]
    pub(in crate::volume) fn read_ahead(&self, file: &OpenFile) {
        if self.is_large(file.ino) {
            let read = self.links_of(file.ino).and_then(|links| self.read_ahead_as(file, &links));
            note_failure(file.ino, read);
        }
    }

    /// Holds a file that is about to get the name `to`, with its content read, if it is large and is read for that.
    #[inline(never)]
    pub(in crate::volume) fn hold_and_read(&self, ino: Ino, to: &Link) -> Option<Arc<OpenFile>> {
        if !self.naming_takes_long(ino, to) {
            return None;
        }
        let file = {
            let _locked = self.names.lock(&[ino]);
            self.names.inode(ino).ok()?;
            self.files.hold(ino)
        };
        note_failure(ino, self.read_ahead_as(&file, std::slice::from_ref(to)));
        Some(file)
    }

    /// Whether a file is read for the name `to`, and takes long.
    pub(in crate::volume) fn naming_takes_long(&self, ino: Ino, to: &Link) -> bool {
        let Some(kind) = format::recognise(&to.name) else { return false };
        let is_member = |root| {
            let members = self.vectors.members(ino);
            members.iter().any(|member| (member.root, member.kind) == (root, kind))
        };
        self.is_large(ino)
            && !self.is_busy(ino)
            && self.collection_root(to.parent).is_ok_and(|root| !is_member(root))
    }

    fn read_ahead_as(&self, file: &OpenFile, links: &[Link]) -> Result<()> {
        let Some(&(root, kind)) = self.wanted(links)?.first() else { return Ok(()) };
        let (content, edits) = {
            // No change is half done now, and each that begins later is counted.
            let _io = file.lock_io();
            (self.inode(file.ino)?.content, file.state().edits)
        };
        let Content::Blob { id, sealed } = content else { return Ok(()) };
        // Of what the kernel may write by itself a copy is read.
        if kind == FileKind::Text || self.lent.contains(&id) {
            return Ok(());
        }
        let check = Check::of(&self.vectors.existing_or_empty(root), file.ino);
        let is_compared = sealed || self.store.rested(id).is_some();
        let reading = self.read_through(id, is_compared, kind, &check)?;
        file.state().ahead = Some(Box::new(Ahead { id, edits, kind, check, reading }));
        Ok(())
    }
}

fn note_failure(ino: Ino, read: Result<()>) {
    if let Err(error) = read {
        tracing::debug!(ino = ino.0, %error, "large content is read with its file locked");
    }
}
