//! The C library's functions that change files, defined by this program in place of the library's own: what std,
//! nix, rustix and through them the catalog's engine call ends up here. Each passes its arguments to
//! [`recorder`](crate::recorder) together with the call of the kernel that it stands for.
#![expect(unsafe_code, reason = "these functions have the C library's signatures and call the kernel")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};

use libc::{iovec, mode_t, off_t, size_t, ssize_t};

use crate::recorder::{self, Old};

/// Calls the kernel by number; sets `errno` as the library's function would.
macro_rules! kernel {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments are those that the caller of the library's function answers for.
        unsafe { libc::syscall(libc::$number $(, $argument)*) }
    };
}

/// The bytes of a path.
///
/// # Safety
///
/// `path` is a C string, as for every function that takes a path.
unsafe fn bytes<'a>(path: *const c_char) -> &'a [u8] {
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(path) }.to_bytes()
}

fn unsigned(value: off_t) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

macro_rules! interpose {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty $body:block)*) => {$(
        $(#[$meta])*
        // SAFETY: the name and the signature are the C library's, and so is what the function does.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> $result $body
    )*};
}

interpose! {
    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        // SAFETY: as for the library's.
        unsafe { openat(libc::AT_FDCWD, path, flags, mode) }
    }
    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        // SAFETY: as for the library's.
        unsafe { openat(libc::AT_FDCWD, path, flags, mode) }
    }
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        // SAFETY: as for the library's.
        unsafe { openat(dir, path, flags, mode) }
    }
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        // SAFETY: as for the library's.
        let name = unsafe { bytes(path) };
        recorder::open(dir, name, flags, || kernel!(SYS_openat, dir, path, flags, mode)) as c_int
    }
    fn close(fd: c_int) -> c_int {
        recorder::close(fd, || kernel!(SYS_close, fd)) as c_int
    }
    fn dup(fd: c_int) -> c_int {
        recorder::duplicate(fd, || kernel!(SYS_dup, fd)) as c_int
    }
    fn dup3(fd: c_int, new: c_int, flags: c_int) -> c_int {
        recorder::duplicate(fd, || kernel!(SYS_dup3, fd, new, flags)) as c_int
    }
    fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
        match command {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
                recorder::duplicate(fd, || kernel!(SYS_fcntl, fd, command, argument)) as c_int
            }
            _ => kernel!(SYS_fcntl, fd, command, argument) as c_int,
        }
    }
    fn read(fd: c_int, into: *mut c_void, count: size_t) -> ssize_t {
        recorder::read(fd, || kernel!(SYS_read, fd, into, count)) as ssize_t
    }
    fn pread64(fd: c_int, into: *mut c_void, count: size_t, offset: off_t) -> ssize_t {
        recorder::read(fd, || kernel!(SYS_pread64, fd, into, count, offset)) as ssize_t
    }
    fn write(fd: c_int, from: *const c_void, count: size_t) -> ssize_t {
        // SAFETY: as for the library's. An empty write may pass no address.
        let data = if count == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(from.cast(), count) } };
        let tell = || unsigned(kernel!(SYS_lseek, fd, 0, libc::SEEK_CUR));
        let real = |data: &[u8]| kernel!(SYS_write, fd, data.as_ptr(), data.len());
        recorder::write(fd, data, None, tell, real) as ssize_t
    }
    fn writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
        // SAFETY: as for the library's: `count` pieces, each of readable memory.
        let data: Vec<u8> = unsafe {
            let pieces = std::slice::from_raw_parts(pieces, count as usize);
            let full = pieces.iter().filter(|piece| piece.iov_len > 0);
            full.flat_map(|piece| std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len))
                .copied()
                .collect()
        };
        let tell = || unsigned(kernel!(SYS_lseek, fd, 0, libc::SEEK_CUR));
        let real = |data: &[u8]| kernel!(SYS_write, fd, data.as_ptr(), data.len());
        recorder::write(fd, &data, None, tell, real) as ssize_t
    }
    fn pwrite64(fd: c_int, from: *const c_void, count: size_t, offset: off_t) -> ssize_t {
        // SAFETY: as for the library's.
        let data = if count == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(from.cast(), count) } };
        let real = |data: &[u8]| kernel!(SYS_pwrite64, fd, data.as_ptr(), data.len(), offset);
        recorder::write(fd, data, Some(unsigned(offset)), || 0, real) as ssize_t
    }
    fn copy_file_range(
        from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, count: size_t, flags: c_uint
    ) -> ssize_t {
        // SAFETY: as for the library's: null or an offset.
        let place = |fd: c_int, at: *mut off_t| match unsafe { at.as_ref() } {
            Some(at) => *at,
            None => kernel!(SYS_lseek, fd, 0, libc::SEEK_CUR),
        };
        let (start, offset) = (place(from, from_offset), place(to, to_offset));
        let real = || kernel!(SYS_copy_file_range, from, from_offset, to, to_offset, count, flags);
        let copied = |count: usize| {
            let mut data = vec![0; count];
            let read = kernel!(SYS_pread64, from, data.as_mut_ptr(), count, start);
            assert_eq!(usize::try_from(read), Ok(count), "what was copied can be read");
            data
        };
        recorder::copy(to, unsigned(offset), real, copied) as ssize_t
    }
    fn sendfile64(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
        recorder::refuse(to, libc::EINVAL, || kernel!(SYS_sendfile, to, from, offset, count)) as ssize_t
    }
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
        match request {
            libc::FICLONE | libc::FICLONERANGE => {
                recorder::refuse(fd, libc::EOPNOTSUPP, || kernel!(SYS_ioctl, fd, request, argument)) as c_int
            }
            _ => kernel!(SYS_ioctl, fd, request, argument) as c_int,
        }
    }
    fn fsync(fd: c_int) -> c_int {
        recorder::sync(fd, false, || kernel!(SYS_fsync, fd)) as c_int
    }
    fn fdatasync(fd: c_int) -> c_int {
        recorder::sync(fd, false, || kernel!(SYS_fdatasync, fd)) as c_int
    }
    fn syncfs(fd: c_int) -> c_int {
        recorder::sync(fd, true, || kernel!(SYS_syncfs, fd)) as c_int
    }
    fn ftruncate(fd: c_int, len: off_t) -> c_int {
        recorder::resize(fd, unsigned(len), || kernel!(SYS_ftruncate, fd, len)) as c_int
    }
    fn ftruncate64(fd: c_int, len: off_t) -> c_int {
        recorder::resize(fd, unsigned(len), || kernel!(SYS_ftruncate, fd, len)) as c_int
    }
    fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
        let real = || kernel!(SYS_fallocate, fd, mode, offset, len);
        recorder::allocate(fd, mode, unsigned(offset), unsigned(len), real) as c_int
    }
    fn rename(from: *const c_char, to: *const c_char) -> c_int {
        // SAFETY: as for the library's.
        let (old, new) = unsafe { (bytes(from), bytes(to)) };
        recorder::rename(old, new, Old::Goes, || kernel!(SYS_rename, from, to)) as c_int
    }
    fn renameat2(
        from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_uint
    ) -> c_int {
        // SAFETY: as for the library's.
        let (old, new) = unsafe { (bytes(from), bytes(to)) };
        let goes = if flags & libc::RENAME_EXCHANGE == 0 { Old::Goes } else { Old::IsExchanged };
        let real = || kernel!(SYS_renameat2, from_dir, from, to_dir, to, flags);
        recorder::rename(old, new, goes, real) as c_int
    }
    fn symlink(target: *const c_char, path: *const c_char) -> c_int {
        // SAFETY: as for the library's.
        let (old, new) = unsafe { (bytes(target), bytes(path)) };
        recorder::rename(old, new, Old::Stays, || kernel!(SYS_symlinkat, target, libc::AT_FDCWD, path)) as c_int
    }
    fn linkat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char, flags: c_int) -> c_int {
        // SAFETY: as for the library's.
        let (old, new) = unsafe { (bytes(from), bytes(to)) };
        recorder::rename(old, new, Old::Stays, || kernel!(SYS_linkat, from_dir, from, to_dir, to, flags)) as c_int
    }
    fn unlink(path: *const c_char) -> c_int {
        // SAFETY: as for the library's.
        unsafe { unlinkat(libc::AT_FDCWD, path, 0) }
    }
    fn rmdir(path: *const c_char) -> c_int {
        // SAFETY: as for the library's.
        unsafe { unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR) }
    }
    fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: as for the library's.
        let name = unsafe { bytes(path) };
        recorder::name(dir, name, false, || kernel!(SYS_unlinkat, dir, path, flags)) as c_int
    }
    fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
        // SAFETY: as for the library's.
        let name = unsafe { bytes(path) };
        recorder::name(libc::AT_FDCWD, name, true, || kernel!(SYS_mkdirat, libc::AT_FDCWD, path, mode)) as c_int
    }
    fn mmap64(
        at: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t
    ) -> *mut c_void {
        let is_shared_for_writing = flags & libc::MAP_SHARED != 0 && protection & libc::PROT_WRITE != 0;
        let real = || kernel!(SYS_mmap, at, len, protection, flags, fd, offset);
        recorder::map(fd, is_shared_for_writing, real) as *mut c_void
    }
}
