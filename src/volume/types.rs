//! What passes between the volume and its doors.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use crate::namespace::{Ino, Kind, Time};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process, for its supplementary groups; 0 when there is none.
    pub pid: u32,
}

/// Attributes of a node, as `stat` shows them. `ino` may be that of a node of a control directory, which has the
/// highest bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits (07777).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// How long the kernel may keep these attributes.
    pub ttl: Duration,
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// This one.
    To(Time),
    /// The time of the operation.
    Now,
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncates or extends with zeroes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
}

/// When changes are made to survive a power cut. Process death loses nothing in any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// Before the call that made a change returns: see [`acknowledge`](super::Volume::acknowledge).
    Always,
    /// When a sync asks for it, and every few seconds.
    #[default]
    Normal,
    /// Every few seconds; a sync of a file or directory returns at once.
    Off,
}

/// Number of an open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenFlags {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// `O_APPEND`: what is written goes to the end.
    pub append: bool,
    /// Truncate to zero first.
    pub truncate: bool,
    /// `O_EXCL`: with create, an existing name is an error.
    pub exclusive: bool,
}

/// An open file, and how the kernel is to treat it.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its handle.
    pub handle: Handle,
    /// The kernel bypasses its page cache.
    pub direct_io: bool,
    /// The kernel keeps what its page cache has of the file.
    pub keep_cache: bool,
    /// The kernel reads and writes this file by itself, or the door says
    /// [`refuse_backing`](super::Volume::refuse_backing).
    pub backing: Option<Arc<File>>,
}

/// A listed directory entry.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Cookie after this entry.
    pub offset: u64,
    /// Number.
    pub ino: Ino,
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: &'a [u8],
}

/// How a rename treats the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces what is there.
    Replace,
    /// Fails with `Exists` when something is there.
    NoReplace,
    /// Exchanges the two names.
    Exchange,
}

/// How an extended attribute is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Created or replaced.
    Either,
    /// Only created (`Exists` otherwise).
    Create,
    /// Only replaced (`NoAttribute` otherwise).
    Replace,
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next data at or after the offset.
    Data,
    /// The next hole at or after the offset.
    Hole,
}

/// What `fallocate` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Reserves space; extends the file unless `keep_size`.
    Reserve {
        /// The size stays.
        keep_size: bool,
    },
    /// Makes the range read as zero and frees its space; the size stays.
    PunchHole,
    /// Makes the range read as zero.
    ZeroRange {
        /// The size stays.
        keep_size: bool,
    },
}
