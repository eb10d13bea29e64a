//! Between the protocol's numbers and the volume's types.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, FopenFlags, INodeNo, RenameFlags, Request, TimeOrNow};

use crate::namespace::{Kind, Time};
use crate::volume::{
    Allocate, Attr, Caller, OpenFlags, Opened, RenameMode, Seek, SetAttr, SetTime, XattrMode,
};
use crate::{Error, Result};

/// Preferred size of a read or write, as `stat` shows it.
const BLOCK_BYTES: u32 = 4096;

pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system_time(attr.atime),
        mtime: to_system_time(attr.mtime),
        ctime: to_system_time(attr.ctime),
        crtime: to_system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Attributes of `.` and `..` in a listing, of which the kernel reads the number and the type.
pub(super) fn dot(ino: INodeNo) -> FileAttr {
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in the mode of `mknod`.
///
/// # Errors
///
/// `Invalid` for a type that `mknod` does not make.
pub(super) fn kind_of_mode(mode: u32) -> Result<Kind> {
    match mode & libc::S_IFMT {
        // mknod(2): a type of zero is a regular file.
        0 | libc::S_IFREG => Ok(Kind::File),
        libc::S_IFIFO => Ok(Kind::Fifo),
        libc::S_IFSOCK => Ok(Kind::Socket),
        libc::S_IFCHR => Ok(Kind::CharDevice),
        libc::S_IFBLK => Ok(Kind::BlockDevice),
        _ => Err(Error::Invalid("mknod of this file type")),
    }
}

/// The permission bits of a mode.
///
/// The umask is in them already: the kernel applies it, because `FUSE_DONT_MASK` is not asked for.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// Every `Time` fits a `SystemTime`, which counts seconds in 64 bits as well.
fn to_system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::new(0, time.nanos))).unwrap_or(UNIX_EPOCH)
}

/// A time from a request.
///
/// For times before 1970, fuser turns the kernel's pair (-2 s, +0.8 s), which means -1.2 s, into 2.8 s before
/// 1970. The parts are all there, so they are put together again as the kernel sent them.
fn from_request_time(time: SystemTime) -> Time {
    let (distance, before) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (after, false),
        Err(error) => (error.duration(), true),
    };
    let nanos = distance.subsec_nanos();
    let secs = if before {
        0i64.checked_sub_unsigned(distance.as_secs()).unwrap_or(i64::MIN)
    } else {
        i64::try_from(distance.as_secs()).unwrap_or(i64::MAX)
    };
    Time { secs, nanos }
}

/// What `setattr` is to set. It is made here and on the heap: each frame between the library and the work would have a
/// copy.
#[inline(never)]
pub(super) fn set_attr(
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
) -> Box<SetAttr> {
    let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
    Box::new(SetAttr { mode: mode.map(permissions), uid, gid, size, atime, mtime })
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(from_request_time(time)),
    }
}

pub(super) fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access == libc::O_RDONLY || access == libc::O_RDWR,
        write: access == libc::O_WRONLY || access == libc::O_RDWR,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
        exclusive: flags & libc::O_EXCL != 0,
    }
}

/// Whether a write with these flags is to be durable when it returns: with `O_SYNC`, which has this bit too, or
/// `RWF_DSYNC` as well.
pub(super) fn is_synchronous(flags: i32) -> bool {
    flags & libc::O_DSYNC != 0
}

/// How the kernel treats a file that was opened with `flags`.
pub(super) fn fopen_flags(opened: &Opened, flags: OpenFlags) -> FopenFlags {
    let mut fopen = FopenFlags::empty();
    if opened.keep_cache {
        fopen |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    if opened.direct_io {
        fopen |= FopenFlags::FOPEN_DIRECT_IO;
    }
    if !flags.write {
        // Nothing was written, so close has nothing to report: one request less for each reader.
        fopen |= FopenFlags::FOPEN_NOFLUSH;
    }
    fopen
}

/// # Errors
///
/// `Invalid` for `RENAME_WHITEOUT`, which only overlays need, and for combinations.
pub(super) fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else {
        Err(Error::Invalid("rename with these flags"))
    }
}

/// # Errors
///
/// `Invalid` for flags other than `XATTR_CREATE` and `XATTR_REPLACE`, and for both.
pub(super) fn xattr_mode(flags: i32) -> Result<XattrMode> {
    match flags {
        0 => Ok(XattrMode::Either),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Error::Invalid("setxattr with these flags")),
    }
}

/// # Errors
///
/// `Unsupported` for what only some disk filesystems do: collapse, insert, unshare.
pub(super) fn allocate(mode: i32) -> Result<Allocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 => Ok(Allocate::Reserve { keep_size: false }),
        KEEP => Ok(Allocate::Reserve { keep_size: true }),
        PUNCH => Ok(Allocate::PunchHole),
        ZERO => Ok(Allocate::ZeroRange { keep_size: false }),
        ZERO_KEEP => Ok(Allocate::ZeroRange { keep_size: true }),
        _ => Err(Error::Unsupported("fallocate with this mode")),
    }
}

/// Only the two that need the file's content arrive; the kernel answers the others.
///
/// # Errors
///
/// `Invalid` for others.
pub(super) fn seek(whence: i32) -> Result<Seek> {
    match whence {
        libc::SEEK_DATA => Ok(Seek::Data),
        libc::SEEK_HOLE => Ok(Seek::Hole),
        _ => Err(Error::Invalid("lseek with this whence")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::Ino;
    use crate::volume::Handle;

    /// As fuser 0.18 reads a time from a request.
    fn as_fuser_reads(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    /// As fuser 0.18 writes a time into an answer.
    fn as_fuser_writes(time: SystemTime) -> (i64, u32) {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (i64::try_from(after.as_secs()).unwrap(), after.subsec_nanos()),
            Err(error) => {
                let before = error.duration();
                let secs = 0i64.checked_sub_unsigned(before.as_secs()).unwrap();
                match before.subsec_nanos() {
                    0 => (secs, 0),
                    nanos => (secs - 1, 1_000_000_000 - nanos),
                }
            }
        }
    }

    #[test]
    fn times_go_through_unchanged_on_both_sides_of_1970() {
        let seconds = [0, 1, -1, -2, 1_700_000_000, -1_700_000_000, i64::from(i32::MIN), 1 << 40, i64::MAX];
        for secs in seconds {
            for nanos in [0, 1, 800_000_000, 999_999_999] {
                let set = set_time(TimeOrNow::SpecificTime(as_fuser_reads(secs, nanos)));
                let SetTime::To(time) = set else { panic!("{set:?}") };
                assert_eq!(time, Time { secs, nanos });
                assert_eq!(as_fuser_writes(to_system_time(time)), (secs, nanos));
            }
        }
        assert!(matches!(set_time(TimeOrNow::Now), SetTime::Now));
    }

    #[test]
    fn the_earliest_time_is_kept() {
        let earliest = UNIX_EPOCH - Duration::from_secs(1 << 63);
        assert_eq!(from_request_time(earliest), Time { secs: i64::MIN, nanos: 0 });
        assert_eq!(to_system_time(Time { secs: i64::MIN, nanos: 0 }), earliest);
    }

    #[test]
    fn attributes_keep_every_field() {
        let time = |secs| Time { secs, nanos: 7 };
        let shown = attr(&Attr {
            ino: Ino(1 << 63 | 5),
            kind: Kind::Symlink,
            mode: 0o4777,
            uid: 1,
            gid: 2,
            nlink: 3,
            rdev: 4,
            size: 1500,
            blocks: 3,
            atime: time(10),
            mtime: time(11),
            ctime: time(12),
            btime: time(13),
            ttl: Duration::from_secs(1),
        });
        assert_eq!((shown.ino.0, shown.kind, shown.perm), (1 << 63 | 5, FileType::Symlink, 0o4777));
        assert_eq!((shown.uid, shown.gid, shown.nlink, shown.rdev), (1, 2, 3, 4));
        assert_eq!((shown.size, shown.blocks, shown.blksize), (1500, 3, 4096));
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(since(shown.atime), Duration::new(10, 7));
        assert_eq!(since(shown.mtime), Duration::new(11, 7));
        assert_eq!(since(shown.ctime), Duration::new(12, 7));
    }

    #[test]
    fn open_flags_say_what_open_said() {
        let flags = open_flags(libc::O_RDWR | libc::O_TRUNC);
        assert!(flags.read && flags.write && flags.truncate && !flags.exclusive);
        let flags = open_flags(libc::O_WRONLY | libc::O_EXCL);
        assert!(!flags.read && flags.write && flags.exclusive && !flags.truncate);
        let flags = open_flags(libc::O_RDONLY);
        assert!(flags.read && !flags.write && !flags.append);
        assert!(open_flags(libc::O_WRONLY | libc::O_APPEND).append);
    }

    #[test]
    fn direct_io_bypasses_the_page_cache() {
        let opened = Opened { handle: Handle(1), direct_io: true, keep_cache: false, backing: None };
        let fopen = fopen_flags(&opened, open_flags(libc::O_RDWR));
        assert_eq!(fopen, FopenFlags::FOPEN_DIRECT_IO);
    }

    #[test]
    fn only_a_writer_is_flushed() {
        let opened = Opened { handle: Handle(1), direct_io: false, keep_cache: true, backing: None };
        let reader = fopen_flags(&opened, open_flags(libc::O_RDONLY));
        assert_eq!(reader, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
        assert_eq!(fopen_flags(&opened, open_flags(libc::O_WRONLY)), FopenFlags::FOPEN_KEEP_CACHE);
    }

    #[test]
    fn rename_knows_two_flags_and_not_their_union() {
        assert_eq!(rename_mode(RenameFlags::empty()).unwrap(), RenameMode::Replace);
        assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE).unwrap(), RenameMode::NoReplace);
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE).unwrap(), RenameMode::Exchange);
        for refused in [
            RenameFlags::RENAME_WHITEOUT,
            RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE,
            RenameFlags::from_bits_retain(1 << 20),
        ] {
            assert!(matches!(rename_mode(refused), Err(Error::Invalid(_))), "{refused}");
        }
    }

    #[test]
    fn fallocate_refuses_what_it_does_not_do() {
        assert_eq!(allocate(0).unwrap(), Allocate::Reserve { keep_size: false });
        assert_eq!(allocate(1).unwrap(), Allocate::Reserve { keep_size: true });
        assert_eq!(allocate(3).unwrap(), Allocate::PunchHole);
        assert_eq!(allocate(16).unwrap(), Allocate::ZeroRange { keep_size: false });
        assert_eq!(allocate(17).unwrap(), Allocate::ZeroRange { keep_size: true });
        // Punching a hole without KEEP_SIZE, collapse, insert, unshare.
        for mode in [2, 8, 32, 64, -1] {
            assert!(matches!(allocate(mode), Err(Error::Unsupported(_))), "{mode}");
        }
    }

    #[test]
    fn other_flags_are_taken_one_by_one() {
        assert_eq!(xattr_mode(0).unwrap(), XattrMode::Either);
        assert_eq!(xattr_mode(libc::XATTR_CREATE).unwrap(), XattrMode::Create);
        assert_eq!(xattr_mode(libc::XATTR_REPLACE).unwrap(), XattrMode::Replace);
        assert!(xattr_mode(libc::XATTR_CREATE | libc::XATTR_REPLACE).is_err());
        assert_eq!(seek(libc::SEEK_DATA).unwrap(), Seek::Data);
        assert_eq!(seek(libc::SEEK_HOLE).unwrap(), Seek::Hole);
        assert!(seek(libc::SEEK_END).is_err());
        assert_eq!(kind_of_mode(0o644).unwrap(), Kind::File);
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o600).unwrap(), Kind::Fifo);
        assert!(kind_of_mode(libc::S_IFDIR).is_err());
        assert_eq!(permissions(libc::S_IFREG | 0o4755), 0o4755);
    }
}
