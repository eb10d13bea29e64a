//! Ranges of open files: reserve and free space, find data and holes, copy from file to file.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::content::FILE_MAX;
use super::edits::Edit;
use super::open_files::OpenFile;
use super::{Allocate, Caller, Handle, Seek, Volume, control};
use crate::namespace::{Content, Inode};
use crate::store::BlobId;
use crate::{Error, Result};

/// Most bytes copied by one call: the caller asks again for the rest.
const COPY_MAX: u64 = 64 << 20;

impl Volume {
    /// Reserves, frees or zeroes a range. As with a write, a set-user-id bit stays when root does it.
    ///
    /// # Errors
    ///
    /// `Invalid` for an empty range, `FileTooBig`, `NoSpace`, `Unsupported` where the store's filesystem cannot.
    pub fn fallocate(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        len: u64,
        what: Allocate,
    ) -> Result<()> {
        if control::is_control_handle(handle) {
            return Err(Error::Unsupported("fallocate here"));
        }
        let open = self.writable(handle)?;
        if len == 0 {
            return Err(Error::Invalid("an empty range"));
        }
        let Some(to) = offset.checked_add(len).filter(|&to| to <= FILE_MAX) else {
            return Err(Error::FileTooBig { got: offset.saturating_add(len), limit: FILE_MAX });
        };
        let edit = match what {
            Allocate::Reserve { keep_size } => Edit::Reserve { from: offset, to, keep_size },
            Allocate::PunchHole => Edit::Zero { from: offset, to, keep_size: true, punch: true },
            Allocate::ZeroRange { keep_size } => Edit::Zero { from: offset, to, keep_size, punch: false },
        };
        self.edit(&open.file, edit, caller.uid == 0)?;
        Ok(())
    }

    /// The next data or hole at or after `offset`. The end of the file counts as a hole. While mapped pages may have bytes
    /// that nobody has sent us, all of it is data: a program that copies what is there must not pass over them.
    ///
    /// # Errors
    ///
    /// `NoSuchOffset` at or beyond the end, or when no data follows.
    pub fn seek(&self, handle: Handle, offset: u64, what: Seek) -> Result<u64> {
        if control::is_control_handle(handle) {
            return Err(Error::Unsupported("seeking for data or holes here"));
        }
        let open = self.files.handle(handle)?;
        let inode = self.inode(open.file.ino)?;
        if offset >= inode.size {
            return Err(Error::NoSuchOffset);
        }
        match (inode.content, what) {
            (Content::Blob { id, .. }, what) if !open.file.may_have_unsent_pages() => {
                self.seek_blob(&open.file, id, offset, what, inode.size)
            }
            (_, Seek::Data) => Ok(offset),
            (_, Seek::Hole) => Ok(inode.size),
        }
    }

    /// Apart, so that reading the record pays no stack for it.
    #[inline(never)]
    fn seek_blob(&self, file: &OpenFile, id: BlobId, offset: u64, what: Seek, size: u64) -> Result<u64> {
        let blob = self.blob_for_reading(file, id)?.file;
        let whence = match what {
            Seek::Data => Whence::SeekData,
            Seek::Hole => Whence::SeekHole,
        };
        let offset = i64::try_from(offset).map_err(|_| Error::NoSuchOffset)?;
        // Moves the position of the shared description, which nothing else uses.
        match lseek(&*blob, offset, whence) {
            Ok(found) => Ok(u64::try_from(found).unwrap_or(size).min(size)),
            Err(Errno::ENXIO) => Err(Error::NoSuchOffset),
            Err(errno) => Err(Error::Io(errno.into())),
        }
    }

    /// Copies up to `len` bytes from one open file to another, and returns how many: fewer at the end of the
    /// source, or when it is more than one call copies.
    ///
    /// # Errors
    ///
    /// `Invalid` for overlapping ranges of one file, `BadHandle`, and those of [`write`](Self::write).
    pub fn copy_range(
        &self,
        caller: &Caller,
        from: (Handle, u64),
        to: (Handle, u64),
        len: u64,
    ) -> Result<u32> {
        if control::is_control_handle(from.0) || control::is_control_handle(to.0) {
            return Err(Error::Unsupported("copying ranges here"));
        }
        let (source, target) = (self.files.handle(from.0)?.file, self.writable(to.0)?.file);
        let (content, len) = self.checked_content(&source, from.1, len.min(COPY_MAX))?;
        if source.ino == target.ino && from.1 < to.1.saturating_add(len) && to.1 < from.1.saturating_add(len)
        {
            return Err(Error::Invalid("the ranges overlap"));
        }
        if len == 0 {
            return Ok(0);
        }
        let keep_privileges = caller.uid == 0;
        let (blob, mut data);
        let edit = match content {
            Content::Blob { id, .. } => {
                blob = self.blob_for_reading(&source, id)?.file;
                Edit::Copy { source: &blob, from: from.1, offset: to.1, len }
            }
            Content::Empty | Content::Inline | Content::Slot(_) => {
                data = Vec::new();
                self.read_file(&source, from.1, usize::try_from(len).unwrap_or(usize::MAX), &mut data)?;
                Edit::Write { offset: to.1, data: &data }
            }
        };
        let done = self.edit(&target, edit, keep_privileges)?;
        Ok(u32::try_from(done).unwrap_or(u32::MAX))
    }

    /// Where the content of a file lies, and how many of `len` bytes from `from` on it has. What is copied within the
    /// kernel passes nobody else who compares it with its checksums. Not inlined: its records need not be on the stack
    /// while the target is changed.
    #[inline(never)]
    fn checked_content(&self, file: &OpenFile, from: u64, len: u64) -> Result<(Content, u64)> {
        let within = |inode: &Inode| len.min(inode.size.saturating_sub(from));
        let inode = self.checked_inode(file, |inode| from..from + within(inode))?;
        Ok((inode.content, within(&inode)))
    }
}
