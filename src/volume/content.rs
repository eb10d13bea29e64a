//! Where the bytes of a file are: reading them from wherever that is, and completing what writers changed.
//!
//! A file begins empty, grows inline in the catalog, and beyond [`INLINE_MAX`] moves to a blob. Settling may
//! put it into a slot or seal its blob; from then on a change works on a copy (`edits`).

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Volume;
use super::ingest::Why;
use super::open_files::{OpenBlob, OpenFile};
use crate::namespace::{Content, Ino, Inode, Kind, Mark};
use crate::store::{BlobId, BlobMap};
use crate::{Error, Result};

/// Largest content that is kept in the catalog, in bytes.
pub(super) const INLINE_MAX: u64 = 16 << 10;

/// Largest file, in bytes.
pub(super) const FILE_MAX: u64 = i64::MAX as u64;

/// Bytes that are read to be compared beside what a reader has asked for.
const COMPARE_BYTES: usize = 64 << 10;

/// What became of content that waited to be settled.
#[derive(Debug)]
pub(super) enum Finish {
    /// It is complete: vectors follow it.
    Settle,
    /// Somebody else still writes: only the record is brought up to date.
    WriteBack,
}

impl Volume {
    /// Appends at most `size` bytes from `offset` to `into`; fewer only at the end of the file.
    pub(super) fn read_file(
        &self,
        file: &OpenFile,
        offset: u64,
        size: usize,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        let start = into.len();
        let unlocked =
            self.inode(file.ino).and_then(|inode| self.read_content(file, &inode, offset, size, into));
        match unlocked {
            // The content may have moved between looking at the inode and looking there.
            Err(Error::Corrupt { .. }) => {
                into.truncate(start);
                self.read_locked(file, offset, size, into)
            }
            other => other,
        }
    }

    #[cold]
    #[inline(never)]
    fn read_locked(&self, file: &OpenFile, offset: u64, size: usize, into: &mut Vec<u8>) -> Result<()> {
        let _locked = self.names.lock(&[file.ino]);
        // Nobody shortens it between the look at its size and the reading, and none takes its checksums away.
        let _io = file.lock_io();
        file.state().forget_reading();
        let inode = self.inode(file.ino)?;
        let read = self.read_content(file, &inode, offset, size, into);
        read.map_err(|error| self.store.note_damage(error))
    }

    /// Reads from where `inode` says the content is.
    #[inline(never)]
    pub(super) fn read_content(
        &self,
        file: &OpenFile,
        inode: &Inode,
        offset: u64,
        size: usize,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        match inode.content {
            Content::Empty => Ok(()),
            Content::Inline => {
                let content = self.names.inline(inode.ino)?.ok_or_else(|| missing_inline(inode.ino))?;
                into.extend_from_slice(&content[clip(offset, size, content.len())]);
                Ok(())
            }
            Content::Slot(at) => {
                let len = usize::try_from(at.len).unwrap_or(usize::MAX);
                match clip(offset, size, len) {
                    range if range.is_empty() => Ok(()),
                    range => self.store.read_slot(at, range, into),
                }
            }
            Content::Blob { id, sealed } => {
                let left = usize::try_from(inode.size.saturating_sub(offset)).unwrap_or(usize::MAX);
                let (start, size) = (into.len(), size.min(left));
                if sealed && size > 0 {
                    self.check_sealed(inode.ino, id, offset, size)?;
                }
                let blob = self.blob_for_reading(file, id)?;
                read_blob(&blob.file, offset, size, into)?;
                let got = into.len() - start;
                if got < size {
                    into.truncate(start);
                    let what = format!("the blob ends, want {} bytes", inode.size);
                    let offset = offset.saturating_add(got as u64);
                    return Err(Error::Corrupt { file: self.store.blob_path(id), offset, what });
                }
                self.compare_rested(&blob, offset..offset + got as u64, &into[start..])
                    .inspect_err(|_| into.truncate(start))
            }
        }
    }

    /// Compares what is used of a blob, if it is at rest; `bytes` is what was read of it already. A difference is damage
    /// if nobody changes the file meanwhile.
    fn compare_rested(&self, blob: &OpenBlob, range: Range<u64>, bytes: &[u8]) -> Result<()> {
        match &blob.rested {
            Some(rested) if !rested.is_known(&range) => {
                let mut buffer = self.buffers.take(COMPARE_BYTES);
                rested.compare(&blob.file, range, bytes, &mut buffer)
            }
            _ => Ok(()),
        }
    }

    /// Compares a part of a file that is about to be copied past us.
    ///
    /// # Errors
    ///
    /// `Corrupt`; for a blob that is not sealed see above. I/O errors.
    pub(super) fn check_part(&self, file: &OpenFile, inode: &Inode, range: Range<u64>) -> Result<()> {
        match inode.content {
            Content::Empty | Content::Inline | Content::Slot(_) => Ok(()),
            Content::Blob { id, sealed: true } => {
                let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                self.check_sealed(inode.ino, id, range.start, len)
            }
            Content::Blob { id, sealed: false } => {
                self.compare_rested(&self.blob_for_reading(file, id)?, range, &[])
            }
        }
    }

    /// The record of a file of which this part was compared with its checksums, if it has any.
    pub(super) fn checked_inode(
        &self,
        file: &OpenFile,
        part: impl Fn(&Inode) -> Range<u64>,
    ) -> Result<Inode> {
        let inode = self.inode(file.ino)?;
        match self.check_part(file, &inode, part(&inode)) {
            Ok(()) => return Ok(inode),
            // Its content may have changed meanwhile.
            Err(Error::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
        let _locked = self.names.lock(&[file.ino]);
        let _io = file.lock_io();
        file.state().forget_reading();
        let inode = self.inode(file.ino)?;
        let checked = self.check_part(file, &inode, part(&inode));
        checked.map(|()| inode).map_err(|error| self.store.note_damage(error))
    }

    /// Compares the part of a sealed blob that is about to be read with its checksums.
    pub(super) fn check_sealed(&self, ino: Ino, id: BlobId, offset: u64, size: usize) -> Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let check = |map: &BlobMap| map.check(from, from.saturating_add(size));
        match self.vectors.blob(ino, id) {
            Some(map) => check(&map),
            // Sealed, and refused by its collection since.
            None => check(&*self.store.map_blob(id)?),
        }
    }

    /// The open blob that a file's reads come from.
    pub(super) fn blob_for_reading(&self, file: &OpenFile, id: BlobId) -> Result<OpenBlob> {
        match file.open_blob(id) {
            Some(open) => Ok(open),
            None => self.open_for_reading(file, id),
        }
    }

    #[cold]
    #[inline(never)]
    fn open_for_reading(&self, file: &OpenFile, id: BlobId) -> Result<OpenBlob> {
        let changes = file.changes();
        let rested = self.store.rested(id).map(Arc::new);
        match self.store.open_blob_to_keep(id) {
            Ok(opened) => {
                let open = OpenBlob { id, file: Arc::new(opened), rested };
                file.keep_for_reading(&open, changes);
                Ok(open)
            }
            // Too many files are open: this one is opened for each read.
            Err(Error::Io(_)) => {
                let opened = self.store.open_blob(id)?;
                Ok(OpenBlob { id, file: Arc::new(opened), rested })
            }
            Err(error) => Err(error),
        }
    }

    /// The open blob that a file's writes go to.
    pub(super) fn blob_for_writing(&self, file: &OpenFile, id: BlobId) -> Result<Arc<File>> {
        match file.open_blob(id) {
            Some(open) => Ok(open.file),
            None => self.store.open_blob_to_keep(id).map(Arc::new),
        }
    }

    /// Completes what writers changed in `file`, if anything. Returns the complaint about content that is kept
    /// but is no vector of its collection.
    ///
    /// # Errors
    ///
    /// Those of settling and of the commit; the file then stays dirty.
    pub(super) fn finish(&self, file: &OpenFile, how: Finish) -> Result<Option<Error>> {
        let _locked = self.names.lock(&[file.ino]);
        self.finish_locked(file, how)
    }

    /// [`finish`](Self::finish) for a caller that holds the inode's lock.
    pub(super) fn finish_locked(&self, file: &OpenFile, how: Finish) -> Result<Option<Error>> {
        let _io = file.lock_io();
        let (is_dirty, is_kept, has_overlay) = {
            let state = file.state();
            // The kernel may have the blob: it is settled when that ends.
            let is_kept = state.orphan || state.backing.is_backed();
            (state.is_unsettled(), is_kept, state.has_overlay() || state.backing.is_live())
        };
        match how {
            Finish::Settle if is_dirty && !is_kept => self.settle_dirty(file).inspect_err(|_| {
                // Its blob may have been sealed for nothing: the next write takes the checksums away first.
                file.state().end_in_place();
            }),
            Finish::Settle | Finish::WriteBack => {
                if has_overlay {
                    self.write_back(file)?;
                }
                Ok(None)
            }
        }
    }

    fn settle_dirty(&self, file: &OpenFile) -> Result<Option<Error>> {
        let mut txn = self.begin()?;
        let mut inode = self.inode_for(&mut txn, file.ino)?;
        let before = inode.clone();
        let links = self.links_of(file.ino)?;
        let complaint = self.settle(&mut txn, &mut inode, &links, Why::Content)?;
        if txn.is_empty() && inode == before {
            self.marked.stale.insert(file.ino);
        } else {
            self.names.put_inode(&mut txn.batch, &inode);
            let keeps_mark = txn.keeps_mark(file.ino);
            if !keeps_mark {
                self.names.remove_mark(&mut txn.batch, Mark::Dirty, file.ino);
            }
            self.commit(txn)?;
            if !keeps_mark {
                self.marked.stale.remove(&file.ino);
            }
        }
        self.note_sealed(&inode);
        let mut state = file.state();
        state.dirty = false;
        state.fresh = false;
        state.end_working(&inode.content);
        Ok(complaint)
    }

    fn write_back(&self, file: &OpenFile) -> Result<()> {
        let mut txn = self.begin()?;
        let inode = self.inode_for(&mut txn, file.ino)?;
        self.names.put_inode(&mut txn.batch, &inode);
        self.commit(txn)
    }

    /// A commit now relies on the bytes of a sealed blob.
    pub(super) fn note_sealed(&self, inode: &Inode) {
        if let Content::Blob { id, sealed: true } = inode.content {
            self.unsynced.seal(id);
        }
    }

    /// Ends a hold on an open file; with the last one a file without names ends too. The caller holds the
    /// inode's lock.
    pub(super) fn let_go(&self, file: &OpenFile) {
        let is_orphan = file.state().orphan;
        let is_last = self.files.let_go(file);
        if is_last {
            self.note_at_last_close(file);
        }
        if !is_last || !is_orphan || self.check_writable().is_err() {
            return;
        }
        if let Err(error) = self.destroy_orphan(file.ino) {
            tracing::warn!("removing inode {} is tried again later: {error}", file.ino.0);
            self.marked.unsettled.insert(file.ino);
        }
    }

    /// Ends an inode without names that is not open any more.
    pub(super) fn destroy_orphan(&self, ino: Ino) -> Result<()> {
        let mut txn = self.begin_repair();
        match self.names.inode(ino) {
            Ok(inode) => {
                if inode.kind == Kind::Directory {
                    // Whoever asked the open directory about its collection has made one.
                    self.directory_removed(&mut txn, ino);
                }
                self.gone.keep(&inode);
                self.release_content(&mut txn, ino, inode.content);
                self.names.destroy(&mut txn.batch, &inode)?;
            }
            Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        self.names.remove_mark(&mut txn.batch, Mark::Dirty, ino);
        self.names.remove_mark(&mut txn.batch, Mark::Orphan, ino);
        self.commit(txn)?;
        self.marked.forget(ino);
        Ok(())
    }
}

/// Reads at most `size` bytes from `offset`, up to the end of the blob.
pub(super) fn read_blob(file: &File, offset: u64, size: usize, into: &mut Vec<u8>) -> Result<()> {
    let start = into.len();
    into.resize(start + size, 0);
    let mut done = 0;
    while done < size {
        match file.read_at(&mut into[start + done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                into.truncate(start);
                return Err(error.into());
            }
        }
    }
    into.truncate(start + done);
    Ok(())
}

/// The part of `size` bytes from `offset` that lies in `len` bytes.
fn clip(offset: u64, size: usize, len: usize) -> std::ops::Range<usize> {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
    from..from.saturating_add(size).min(len)
}

pub(super) fn missing_inline(ino: Ino) -> Error {
    Error::Corrupt {
        file: "catalog/inline".into(),
        offset: 0,
        what: format!("inode {} has no inline content", ino.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_clipped_to_what_is_there() {
        assert_eq!(clip(0, 10, 4), 0..4);
        assert_eq!(clip(3, 10, 4), 3..4);
        assert_eq!(clip(4, 10, 4), 4..4);
        assert_eq!(clip(u64::MAX, usize::MAX, 4), 4..4);
        assert_eq!(clip(1, usize::MAX, 4), 1..4);
    }

    #[test]
    fn a_blob_shorter_than_asked_ends_the_read() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        let mut into = b"x".to_vec();
        read_blob(&file, 1, 10, &mut into).unwrap();
        assert_eq!(into, b"xbc");
        read_blob(&file, 10, 10, &mut into).unwrap();
        assert_eq!(into, b"xbc");
    }
}
