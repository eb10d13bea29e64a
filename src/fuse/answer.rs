//! One face for fuser's replies: each takes the value that its operation makes, or an error number.

use std::sync::Arc;

use fuser::{
    BackingId, Errno, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr,
};

use super::convert;
use crate::catalog::Value;
use crate::metrics::Op;
use crate::pool::Pooled;
use crate::store::Space;
use crate::volume::{Attr, Handle};
use crate::{Error, Result};

/// Inode numbers are never used twice, so one generation is enough.
pub(super) const GENERATION: Generation = Generation(0);

/// Longest name of an entry in bytes.
const NAME_MAX: u32 = 255;

/// Longest value of an extended attribute that the kernel passes on, in bytes; it turns a longer one into EIO.
const XATTR_MAX: usize = 65_536;

/// Whether an operation may have changed what is to be durable before it is answered, where that is asked. A release is
/// not waited for by anybody.
pub(super) fn is_change(op: Op) -> bool {
    match op {
        Op::Setattr
        | Op::Mknod
        | Op::Mkdir
        | Op::Unlink
        | Op::Rmdir
        | Op::Symlink
        | Op::Rename
        | Op::Link => true,
        Op::Open | Op::Create | Op::Write | Op::Flush | Op::Fsync | Op::Fsyncdir => true,
        Op::Setxattr | Op::Removexattr | Op::Fallocate | Op::CopyFileRange => true,
        Op::Lookup | Op::Getattr | Op::Readlink | Op::Read | Op::Release | Op::Statfs | Op::Lseek => false,
        Op::Opendir | Op::Readdir | Op::Releasedir | Op::Getxattr | Op::Listxattr | Op::Ioctl => false,
    }
}

/// A reply that an error can be sent with.
pub(super) trait Fail {
    fn error(self, errno: Errno);
}

/// A reply that is answered with a `V`.
pub(super) trait Answer<V>: Fail {
    fn ok(self, value: V);
}

macro_rules! fail {
    ($($reply:ty),* $(,)?) => {
        $(impl Fail for $reply {
            fn error(self, errno: Errno) {
                <$reply>::error(self, errno);
            }
        })*
    };
}

macro_rules! answer {
    ($reply:ty, $value:ty, |$this:ident, $v:pat_param| $ok:expr) => {
        impl Answer<$value> for $reply {
            fn ok($this, $v: $value) {
                $ok;
            }
        }
    };
}

fail!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr,
);

/// A file as `open` and `create` answer it.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) handle: Handle,
    pub(super) flags: FopenFlags,
    /// What the kernel reads and writes by itself.
    pub(super) backing: Option<Arc<BackingId>>,
}

answer!(ReplyEmpty, (), |self, ()| self.ok());
answer!(ReplyEntry, Attr, |self, attr| self.entry(&attr.ttl, &convert::attr(&attr), GENERATION));
answer!(ReplyAttr, Attr, |self, attr| self.attr(&attr.ttl, &convert::attr(&attr)));
answer!(ReplyOpen, Open, |self, open| {
    let handle = fuser::FileHandle(open.handle.0);
    match &open.backing {
        Some(backing) => self.opened_passthrough(handle, open.flags, backing),
        None => self.opened(handle, open.flags),
    }
});
answer!(ReplyCreate, (Attr, Open), |self, (attr, open)| {
    let (attr, ttl, handle) = (convert::attr(&attr), attr.ttl, fuser::FileHandle(open.handle.0));
    match &open.backing {
        Some(backing) => self.created_passthrough(&ttl, &attr, GENERATION, handle, open.flags, backing),
        None => self.created(&ttl, &attr, GENERATION, handle, open.flags),
    }
});
answer!(ReplyData, Pooled<Vec<u8>>, |self, bytes| self.data(&bytes));
answer!(ReplyData, Vec<u8>, |self, bytes| self.data(&bytes));
answer!(ReplyWrite, u32, |self, written| self.written(written));
answer!(ReplyDirectory, (), |self, ()| self.ok());
answer!(ReplyDirectoryPlus, (), |self, ()| self.ok());
answer!(ReplyIoctl, Vec<u8>, |self, bytes| {
    // What the system call returns. The kernel lets 16 KiB through.
    self.ioctl(i32::try_from(bytes.len()).unwrap_or(i32::MAX), &bytes)
});
answer!(ReplyLseek, i64, |self, offset| self.offset(offset));
answer!(ReplyXattr, XattrAnswer, |self, answer| match answer {
    XattrAnswer::Size(size) => self.size(size),
    XattrAnswer::Value(value) => self.data(&value),
});
answer!(ReplyStatfs, Space, |self, space| {
    // A block of 4 GiB or more does not exist.
    let block_bytes = u32::try_from(space.block_bytes).unwrap_or(u32::MAX);
    self.statfs(
        space.blocks,
        space.free,
        space.available,
        space.files,
        space.files_free,
        block_bytes,
        NAME_MAX,
        block_bytes,
    );
});

/// What `getxattr` and `listxattr` answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum XattrAnswer {
    /// The caller asked how long it is.
    Size(u32),
    /// The bytes.
    Value(Value),
}

/// The answer for a caller whose buffer has `room` bytes; 0 asks for the size.
///
/// # Errors
///
/// `AttributeRange` when the value does not fit, `AttributeTooBig` when it fits no attribute.
pub(super) fn xattr(value: Value, room: u32) -> Result<XattrAnswer> {
    let need = value.len();
    match u32::try_from(need) {
        Ok(size) if need <= XATTR_MAX => match room {
            0 => Ok(XattrAnswer::Size(size)),
            _ if size <= room => Ok(XattrAnswer::Value(value)),
            _ => Err(Error::AttributeRange { need, got: room as usize }),
        },
        _ => Err(Error::AttributeTooBig { got: need, limit: XATTR_MAX }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_measured_then_read() {
        assert_eq!(xattr(Value::from(vec![7; 3]), 0).unwrap(), XattrAnswer::Size(3));
        assert_eq!(xattr(Value::from(vec![7; 3]), 3).unwrap(), XattrAnswer::Value(Value::from(vec![7; 3])));
        assert_eq!(xattr(Value::empty(), 8).unwrap(), XattrAnswer::Value(Value::empty()));
    }

    #[test]
    fn an_attribute_that_does_not_fit_names_both_sizes() {
        let error = xattr(Value::from(vec![7; 3]), 2).unwrap_err();
        assert!(matches!(error, Error::AttributeRange { need: 3, got: 2 }), "{error:?}");
        let error = xattr(vec![7; XATTR_MAX + 1].into(), 0).unwrap_err();
        assert!(matches!(error, Error::AttributeTooBig { got: 65_537, limit: 65_536 }), "{error:?}");
        assert!(xattr(vec![7; XATTR_MAX].into(), 65_536).is_ok());
    }
}
