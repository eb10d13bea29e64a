//! Changes of content: write, resize, reserve, zero, copy.
//!
//! A file that is already being written in a blob of its own is changed in place, which costs no commit.
//! Otherwise the change is applied to a working copy (inline bytes or a fresh blob), and one commit makes the
//! copy the content: what was there before stays whole until then, and a kill leaves the one or the other.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};

use super::content::{FILE_MAX, INLINE_MAX, read_blob};
use super::durability::name_full_disk;
use super::open_files::{OpenBlob, OpenFile, Overlay};
use super::{Txn, Volume};
use crate::namespace::{Content, Inode, Mark, Time};
use crate::{Error, Result};

/// Bytes moved at once where the kernel does not copy from file to file.
const PIECE: usize = 1 << 20;

/// Bytes that a set-user or set-group bit is worth: see [`without_privileges`].
const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o0010;

/// One change of a file's content. Ends are offsets behind the last byte.
#[derive(Clone, Copy, Debug)]
pub(super) enum Edit<'a> {
    /// Puts `data` at `offset`.
    Write { offset: u64, data: &'a [u8] },
    /// Cuts off, or extends with zeroes.
    Resize { size: u64 },
    /// Reserves space.
    Reserve { from: u64, to: u64, keep_size: bool },
    /// Makes the range read as zero; `punch` frees its space and keeps the size.
    Zero { from: u64, to: u64, keep_size: bool, punch: bool },
    /// Puts `len` bytes of a blob at `offset`.
    Copy { source: &'a File, from: u64, offset: u64, len: u64 },
}

impl Volume {
    /// Changes the content of an open file and returns the number of bytes written. With `keep_privileges` a
    /// set-user-id bit survives: the writer is root.
    ///
    /// # Errors
    ///
    /// `FileTooBig`, `NoSpace`, `Unsupported` where the store's filesystem cannot do it; those of a commit.
    pub(super) fn edit(&self, file: &OpenFile, edit: Edit<'_>, keep_privileges: bool) -> Result<u64> {
        {
            let _io = file.lock_io();
            if let Some(done) = self.edit_in_place(file, edit, keep_privileges)? {
                return Ok(done);
            }
        }
        let _locked = self.names.lock(&[file.ino]);
        self.edit_locked(file, edit, keep_privileges)
    }

    /// [`edit`](Self::edit) for a caller that holds the inode's lock.
    pub(super) fn edit_locked(&self, file: &OpenFile, edit: Edit<'_>, keep_privileges: bool) -> Result<u64> {
        let _io = file.lock_io();
        loop {
            if let Some(done) = self.edit_in_place(file, edit, keep_privileges)? {
                return Ok(done);
            }
            if let Some(done) = self.edit_record(file, edit, keep_privileges)? {
                return Ok(done);
            }
        }
    }

    /// Changes content that no working blob has: a copy of it, or nothing but its inode. With nothing done yet the
    /// content now has a working blob, unless a snapshot was taken that very moment. The caller holds the inode's
    /// lock and the file's `io`.
    fn edit_record(&self, file: &OpenFile, edit: Edit<'_>, keep_privileges: bool) -> Result<Option<u64>> {
        let mut txn = self.begin()?;
        let mut inode = self.inode_for(&mut txn, file.ino)?;
        edit.check_end()?;
        if !keep_privileges {
            inode.mode = without_privileges(inode.mode);
        }
        if edit.leaves_bytes(&inode) {
            return self.touch(txn, inode).map(Some);
        }
        self.need_room_for(&edit, inode.size)?;
        match inode.content {
            // While others have the blob no snapshot is taken, so it is shared by none.
            Content::Blob { id, sealed: false }
                if (edit.keep(inode.size) > 0 || self.is_handed_over(file, id))
                    && self.store.may_write_in_place(id) =>
            {
                let blob = OpenBlob::to_write(id, self.blob_for_writing(file, id)?);
                self.wake(file, id, inode.size)?;
                self.commit_dirty(txn, file, inode, Some(blob))?;
                Ok(None)
            }
            _ => self.edit_copy(txn, file, inode, edit).map(Some),
        }
    }

    /// Changes the working blob, if there is one. The caller holds the file's `io`.
    fn edit_in_place(&self, file: &OpenFile, edit: Edit<'_>, keep_privileges: bool) -> Result<Option<u64>> {
        // Before the working blob is looked up: taking a snapshot ends it while nobody is active.
        let _active = self.active();
        let Some(blob) = working_blob(file, keep_privileges) else { return Ok(None) };
        self.check_writable()?;
        let known = file.state().overlaid_size();
        let size = known.map_or_else(|| blob.file.metadata().map(|metadata| metadata.len()), Ok)?;
        edit.check_end()?;
        self.need_room_for(&edit, size)?;
        file.state().begin_edit();
        let result = edit.apply_to_blob(&blob.file, size);
        self.unsynced.note(blob.id);
        match result {
            Ok(done) => {
                let now = Time::now();
                let size = edit.size_after(size, done);
                file.state()
                    .end_edit(&blob, Overlay { size, mtime: now, ctime: now, ends_privileges: false });
                Ok(Some(done))
            }
            Err(error) => {
                // A blob's length is the file's size: what a failed change added at the end goes again, if it is no
                // write of the kernel's.
                if !file.state().backing.is_live() && blob.file.metadata()?.len() > size {
                    blob.file.set_len(size)?;
                }
                let error = name_full_disk(error);
                if matches!(error, Error::NoSpace) {
                    self.forget_room();
                }
                Err(error)
            }
        }
    }

    /// Changes a copy of the content and commits it in the place of the old.
    fn edit_copy(
        &self,
        mut txn: Box<Txn<'_>>,
        file: &OpenFile,
        mut inode: Inode,
        edit: Edit<'_>,
    ) -> Result<u64> {
        let old = inode.content;
        let keep = edit.keep(inode.size);
        let is_small = keep.max(edit.reach(inode.size)) <= INLINE_MAX;
        let (done, working) = if is_small {
            let mut bytes = self.first_bytes(file, &inode, keep)?;
            let done = edit.apply_to_memory(&mut bytes)?;
            inode.content = if bytes.is_empty() { Content::Empty } else { Content::Inline };
            if inode.content == Content::Inline {
                self.names.put_inline(&mut txn.batch, inode.ino, &bytes);
            }
            (done, None)
        } else {
            let blob = self.fresh_blob(&mut txn, file, &inode, keep)?;
            let done = edit.apply_to_blob(&blob.file, keep).map_err(name_full_disk)?;
            if matches!(edit, Edit::Write { data, .. } if done < data.len() as u64) {
                return Err(Error::NoSpace);
            }
            // Not before all of it is written: a sync that came between would take it for one that is on the disk.
            self.unsynced.note(blob.id);
            if inode.size > 0 {
                self.keep_promise_in_blob(inode.ino, blob.id, &blob.file)?;
            }
            inode.content = Content::Blob { id: blob.id, sealed: false };
            (done, Some(blob))
        };
        let was_empty = inode.size == 0;
        let ino = inode.ino;
        inode.size = edit.size_after(inode.size, done);
        let is_emptied = inode.size == 0;
        if was_empty {
            // Before the commit: a sync that comes between the two promises what is written.
            self.note_emptied(ino);
        }
        if (old, inode.content) != (Content::Inline, Content::Inline) {
            self.release_content(&mut txn, inode.ino, old);
        }
        self.commit_dirty(txn, file, inode, working)?;
        if is_emptied {
            // Behind it: refused, what was promised is still there.
            self.note_emptied(ino);
        }
        Ok(done)
    }

    /// The first `keep` bytes of the content.
    fn first_bytes(&self, file: &OpenFile, inode: &Inode, keep: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let Ok(keep) = usize::try_from(keep) else {
            return Err(Error::FileTooBig { got: keep, limit: FILE_MAX });
        };
        if keep > 0 {
            let read = self.read_content(file, inode, 0, keep, &mut bytes);
            read.map_err(|error| self.store.note_damage(error))?;
            // Shorter only when the store lost bytes: then they read as zeroes, as from a hole.
            bytes.resize(keep, 0);
        }
        Ok(bytes)
    }

    /// A new blob with the first `keep` bytes of the content.
    fn fresh_blob(&self, txn: &mut Txn<'_>, file: &OpenFile, inode: &Inode, keep: u64) -> Result<OpenBlob> {
        match inode.content {
            Content::Blob { id, sealed } if keep > 0 => {
                // The copy has no checksums: what is damaged would pass for sound.
                match sealed {
                    true => {
                        self.check_sealed(inode.ino, id, 0, usize::try_from(keep).unwrap_or(usize::MAX))?
                    }
                    false => self.compare_before_change(id, inode.size)?,
                }
                let (id, copy) = self.store.clone_blob(id).map_err(name_full_disk)?;
                txn.made_blob(id);
                Ok(OpenBlob::to_write(id, Arc::new(copy)))
            }
            _ => {
                let bytes = self.first_bytes(file, inode, keep)?;
                let (id, fresh) = self.store.create_blob().map_err(name_full_disk)?;
                txn.made_blob(id);
                fresh.write_all_at(&bytes, 0).map_err(|error| name_full_disk(error.into()))?;
                Ok(OpenBlob::to_write(id, Arc::new(fresh)))
            }
        }
    }

    /// Commits an inode whose content is being changed. From here on the content waits to be settled.
    fn commit_dirty(
        &self,
        mut txn: Box<Txn<'_>>,
        file: &OpenFile,
        mut inode: Inode,
        working: Option<OpenBlob>,
    ) -> Result<()> {
        inode.mtime = Time::now();
        inode.ctime = inode.mtime;
        self.names.put_inode(&mut txn.batch, &inode);
        if !self.has_mark(file) {
            self.names.put_mark(&mut txn.batch, Mark::Dirty, inode.ino);
        }
        // A snapshot that is taken from here on ends the writing in place, which begins below.
        self.commit_within(&mut txn)?;
        self.marked.forget(inode.ino);
        let mut state = file.state();
        state.dirty = true;
        state.set_working(working);
        state.privileged = is_privileged(inode.mode);
        Ok(())
    }

    /// Cutting off and punching holes work on a full disk: they are how it gets room again.
    fn need_room_for(&self, edit: &Edit<'_>, size: u64) -> Result<()> {
        match *edit {
            Edit::Resize { size: new } if new <= size => Ok(()),
            Edit::Zero { punch: true, .. } => Ok(()),
            _ => self.need_room(edit.added()),
        }
    }

    /// Commits times and mode of an inode whose bytes stay as they are.
    fn touch(&self, mut txn: Box<Txn<'_>>, mut inode: Inode) -> Result<u64> {
        inode.mtime = Time::now();
        inode.ctime = inode.mtime;
        self.names.put_inode(&mut txn.batch, &inode);
        self.commit(txn)?;
        Ok(0)
    }

    /// Whether the catalog has a dirty mark for this file.
    pub(super) fn has_mark(&self, file: &OpenFile) -> bool {
        file.state().dirty || self.marked.contains(file.ino)
    }
}

/// The blob that can be written without asking the catalog.
fn working_blob(file: &OpenFile, keep_privileges: bool) -> Option<OpenBlob> {
    let state = file.state();
    if state.privileged && !keep_privileges { None } else { state.working().cloned() }
}

/// Whether `mode` has bits that a write by an ordinary user takes away.
pub(super) fn is_privileged(mode: u16) -> bool {
    without_privileges(mode) != mode
}

/// `mode` as a write by an ordinary user leaves it: without the set-user-id bit, and without the set-group-id
/// bit where that means execution and not mandatory locking.
pub(super) fn without_privileges(mode: u16) -> u16 {
    let cleared = mode & !SET_UID;
    if mode & GROUP_EXECUTE == 0 { cleared } else { cleared & !SET_GID }
}

impl<'a> Edit<'a> {
    /// Refuses what ends beyond the largest file.
    fn check_end(&self) -> Result<()> {
        match self.end() {
            Some(end) if end <= FILE_MAX => Ok(()),
            end => Err(Error::FileTooBig { got: end.unwrap_or(u64::MAX), limit: FILE_MAX }),
        }
    }

    /// Offset behind the last byte that is touched.
    fn end(&self) -> Option<u64> {
        match *self {
            Edit::Write { offset, data } => offset.checked_add(data.len() as u64),
            Edit::Resize { size } => Some(size),
            Edit::Reserve { to, .. } | Edit::Zero { to, .. } => Some(to),
            Edit::Copy { offset, len, .. } => offset.checked_add(len),
        }
    }

    /// Bytes of space that it may take.
    fn added(&self) -> u64 {
        match *self {
            Edit::Write { data, .. } => data.len() as u64,
            Edit::Resize { .. } => 0,
            Edit::Reserve { from, to, .. } | Edit::Zero { from, to, .. } => to.saturating_sub(from),
            Edit::Copy { len, .. } => len,
        }
    }

    /// Bytes from the start of a content of `size` bytes that are still needed.
    fn keep(&self, size: u64) -> u64 {
        match *self {
            Edit::Write { offset: 0, data } if data.len() as u64 >= size => 0,
            Edit::Resize { size: new } => new.min(size),
            _ => size,
        }
    }

    /// Bytes that the content must have room for.
    fn reach(&self, size: u64) -> u64 {
        match *self {
            Edit::Reserve { to, .. } => to.max(size),
            Edit::Zero { keep_size: true, .. } => size,
            Edit::Resize { size: new } => new,
            _ => self.end().unwrap_or(u64::MAX).max(size),
        }
    }

    /// The size once `done` bytes of the data are in.
    fn size_after(&self, size: u64, done: u64) -> u64 {
        match *self {
            Edit::Write { offset, .. } | Edit::Copy { offset, .. } => match done {
                0 => size,
                done => size.max(offset.saturating_add(done)),
            },
            Edit::Resize { size: new } => new,
            Edit::Reserve { keep_size: true, .. } | Edit::Zero { keep_size: true, .. } => size,
            Edit::Reserve { to, .. } | Edit::Zero { to, .. } => size.max(to),
        }
    }

    /// Whether nothing of the bytes changes, nor of the space that they may count on.
    fn leaves_bytes(&self, inode: &Inode) -> bool {
        let is_in_place = matches!(inode.content, Content::Blob { sealed: false, .. });
        match *self {
            Edit::Write { data, .. } => data.is_empty(),
            Edit::Copy { len, .. } => len == 0,
            Edit::Resize { size } => size == inode.size,
            // Bytes outside an own blob have their space already.
            Edit::Reserve { to, .. } => to <= inode.size && !is_in_place,
            Edit::Zero { from, keep_size, .. } => keep_size && from >= inode.size && !is_in_place,
        }
    }

    /// Applies it to content in memory, whose length is its size.
    fn apply_to_memory(&self, bytes: &mut Vec<u8>) -> Result<u64> {
        let index = |offset: u64| {
            usize::try_from(offset).map_err(|_| Error::FileTooBig { got: offset, limit: FILE_MAX })
        };
        match *self {
            Edit::Write { offset, data } => {
                put(bytes, index(offset)?, data);
                Ok(data.len() as u64)
            }
            Edit::Resize { size } => {
                bytes.resize(index(size)?, 0);
                Ok(0)
            }
            Edit::Reserve { keep_size: true, .. } => Ok(0),
            Edit::Reserve { to, .. } => {
                bytes.resize(bytes.len().max(index(to)?), 0);
                Ok(0)
            }
            Edit::Zero { from, to, keep_size, .. } => {
                let (from, to) = (index(from)?, index(to)?);
                if !keep_size {
                    bytes.resize(bytes.len().max(to), 0);
                }
                let end = to.min(bytes.len());
                if from < end {
                    bytes[from..end].fill(0);
                }
                Ok(0)
            }
            Edit::Copy { source, from, offset, len } => {
                let mut data = Vec::new();
                read_blob(source, from, index(len)?, &mut data)?;
                put(bytes, index(offset)?, &data);
                Ok(data.len() as u64)
            }
        }
    }

    /// Applies it to a blob of `size` bytes.
    fn apply_to_blob(&self, blob: &File, size: u64) -> Result<u64> {
        match *self {
            Edit::Write { offset, data } => write_blob(blob, offset, data),
            Edit::Resize { size } => {
                blob.set_len(size)?;
                Ok(0)
            }
            Edit::Reserve { from, to, keep_size } => {
                let flags = if keep_size { FallocateFlags::FALLOC_FL_KEEP_SIZE } else { no_flags() };
                allocate(blob, flags, from, to)?;
                Ok(0)
            }
            Edit::Zero { from, to, keep_size, punch } => {
                zero(blob, size, (from, to), keep_size, punch)?;
                Ok(0)
            }
            Edit::Copy { source, from, offset, len } => copy(source, from, blob, offset, len),
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

/// Writes `data`; fewer bytes only when the disk filled up or failed on the way, which the next write tells.
fn write_blob(blob: &File, offset: u64, data: &[u8]) -> Result<u64> {
    let mut done = 0;
    while done < data.len() {
        match blob.write_at(&data[done..], offset + done as u64) {
            Ok(0) => return Err(Error::NoSpace),
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) if done > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done as u64)
}

fn no_flags() -> FallocateFlags {
    FallocateFlags::empty()
}

fn allocate(blob: &File, flags: FallocateFlags, from: u64, to: u64) -> Result<()> {
    let number =
        |value: u64| i64::try_from(value).map_err(|_| Error::FileTooBig { got: value, limit: FILE_MAX });
    match fallocate(blob, flags, number(from)?, number(to.saturating_sub(from))?) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP) => Err(Error::Unsupported("fallocate on the store's filesystem")),
        Err(errno) => Err(Error::Io(errno.into())),
    }
}

fn zero(blob: &File, size: u64, (from, to): (u64, u64), keep_size: bool, punch: bool) -> Result<()> {
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep;
    if punch {
        return allocate(blob, hole, from, to);
    }
    let size_flag = if keep_size { keep } else { no_flags() };
    match allocate(blob, FallocateFlags::FALLOC_FL_ZERO_RANGE | size_flag, from, to) {
        Err(Error::Unsupported(_)) => {
            allocate(blob, hole, from, to)?;
            if !keep_size && to > size {
                blob.set_len(to)?;
            }
            Ok(())
        }
        other => other,
    }
}

/// Copies up to `len` bytes between blobs, sharing extents where the filesystem can.
fn copy(source: &File, from: u64, target: &File, to: u64, len: u64) -> Result<u64> {
    let number =
        |value: u64| i64::try_from(value).map_err(|_| Error::FileTooBig { got: value, limit: FILE_MAX });
    let (mut from_at, mut to_at) = (number(from)?, number(to)?);
    let mut done: u64 = 0;
    while done < len {
        let count = usize::try_from(len - done).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut from_at), target, Some(&mut to_at), count) {
            Ok(0) => break,
            Ok(count) => done += count as u64,
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                return copy_in_pieces(source, from, target, to, len, done);
            }
            Err(_) if done > 0 => break,
            Err(errno) => return Err(Error::Io(errno.into())),
        }
    }
    Ok(done)
}

fn copy_in_pieces(source: &File, from: u64, target: &File, to: u64, len: u64, mut done: u64) -> Result<u64> {
    let mut piece = Vec::new();
    while done < len {
        piece.clear();
        let want = usize::try_from(len - done).unwrap_or(PIECE).min(PIECE);
        read_blob(source, from + done, want, &mut piece)?;
        if piece.is_empty() {
            break;
        }
        let written = match write_blob(target, to + done, &piece) {
            Err(_) if done > 0 => break,
            other => other?,
        };
        done += written;
        if written < piece.len() as u64 {
            break;
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::testing::{self, ROOT, held_up};

    #[test]
    fn privileges_go_with_a_write_except_the_locking_bit() {
        assert_eq!(without_privileges(0o4755), 0o755);
        assert_eq!(without_privileges(0o2755), 0o755);
        assert_eq!(without_privileges(0o2745), 0o2745);
        assert!(is_privileged(0o6711) && !is_privileged(0o2644) && !is_privileged(0o1777));
    }

    #[test]
    fn no_snapshot_is_taken_before_the_blob_is_known_that_writes_go_to() {
        use crate::namespace::Ino;
        use crate::volume::OpenFlags;
        let (_store, volume) = testing::volume();
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        let (attr, opened) = volume.create(&ROOT, Ino::ROOT, b"f", 0o644, flags).unwrap();
        // The write waits for this behind its commit.
        volume.marked.unsettled.insert(attr.ino);
        let unsettled = volume.marked.unsettled.get(&attr.ino);
        let before = volume.catalog.last_commit();
        std::thread::scope(|scope| {
            let write = || volume.write(&ROOT, opened.handle, 0, &[7; 20_000]).unwrap();
            let writing = held_up(scope, write, || volume.catalog.last_commit() != before);
            assert!(volume.life.has_changes(), "a snapshot would name the blob");
            drop(unsettled);
            writing.join().unwrap();
        });
        volume.release(opened.handle).unwrap();
        volume.close().unwrap();
    }

    #[test]
    fn edits_in_memory_and_in_a_blob_agree() {
        let data = [7u8; 5];
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(b"0123456789", 0).unwrap();
        let edits = [
            Edit::Write { offset: 2, data: &data },
            Edit::Write { offset: 40, data: &data },
            Edit::Resize { size: 3 },
            Edit::Resize { size: 33 },
            Edit::Reserve { from: 0, to: 50, keep_size: false },
            Edit::Reserve { from: 0, to: 50, keep_size: true },
            Edit::Zero { from: 3, to: 40, keep_size: true, punch: true },
            Edit::Zero { from: 3, to: 40, keep_size: true, punch: false },
            Edit::Zero { from: 3, to: 40, keep_size: false, punch: false },
            Edit::Copy { source: &source, from: 4, offset: 18, len: 4 },
            Edit::Copy { source: &source, from: 4, offset: 30, len: 100 },
        ];
        for edit in edits {
            let mut bytes: Vec<u8> = (1..=20).collect();
            let blob = tempfile::tempfile().unwrap();
            blob.write_all_at(&bytes, 0).unwrap();
            edit.check_end().unwrap();
            let done = edit.apply_to_memory(&mut bytes).unwrap();
            assert_eq!(edit.apply_to_blob(&blob, 20).unwrap(), done, "{edit:?}");
            assert_eq!(edit.size_after(20, done), bytes.len() as u64, "{edit:?}");
            let mut stored = Vec::new();
            read_blob(&blob, 0, 1000, &mut stored).unwrap();
            assert_eq!(stored, bytes, "{edit:?}");
        }
    }

    #[test]
    fn ends_beyond_the_largest_file_are_refused() {
        let data = [1];
        for edit in [
            Edit::Write { offset: FILE_MAX, data: &data },
            Edit::Write { offset: u64::MAX, data: &data },
            Edit::Resize { size: FILE_MAX + 1 },
        ] {
            assert!(matches!(edit.check_end(), Err(Error::FileTooBig { limit: FILE_MAX, .. })), "{edit:?}");
        }
        assert!(Edit::Resize { size: FILE_MAX }.check_end().is_ok());
    }

    #[test]
    fn an_overwrite_of_everything_needs_nothing_of_the_old() {
        let data = [0u8; 8];
        assert_eq!(Edit::Write { offset: 0, data: &data }.keep(8), 0);
        assert_eq!(Edit::Write { offset: 0, data: &data }.keep(9), 9);
        assert_eq!(Edit::Resize { size: 3 }.keep(9), 3);
        assert_eq!(Edit::Resize { size: 0 }.keep(9), 0);
    }
}
