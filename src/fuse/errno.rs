//! The numbers of the errors that system calls return. Which one an [`Error`] is, [`Error::code`] says.

use fuser::Errno;

use crate::Error;

/// The number for an error.
///
/// Never `ENOSYS`: the kernel remembers it and stops asking for the operation altogether.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        Error::Io(error) => match error.raw_os_error() {
            Some(libc::ENOSYS) => Errno::EOPNOTSUPP,
            Some(code) => Errno::from_i32(code),
            None => Errno::EIO,
        },
        other => number(other.code()),
    }
}

fn number(code: &str) -> Errno {
    match code {
        "ENOENT" => Errno::ENOENT,
        "EEXIST" => Errno::EEXIST,
        "ENOTDIR" => Errno::ENOTDIR,
        "EISDIR" => Errno::EISDIR,
        "ENOTEMPTY" => Errno::ENOTEMPTY,
        "ENAMETOOLONG" => Errno::ENAMETOOLONG,
        "EACCES" => Errno::EACCES,
        "EPERM" => Errno::EPERM,
        "EROFS" => Errno::EROFS,
        "EBUSY" => Errno::EBUSY,
        "EXDEV" => Errno::EXDEV,
        "EMLINK" => Errno::EMLINK,
        "ENODATA" => Errno::ENODATA,
        "ERANGE" => Errno::ERANGE,
        "E2BIG" => Errno::E2BIG,
        "ENOSPC" => Errno::ENOSPC,
        "EDQUOT" => Errno::from_i32(libc::EDQUOT),
        "EFBIG" => Errno::EFBIG,
        "EBADF" => Errno::EBADF,
        "ENXIO" => Errno::ENXIO,
        "EINVAL" => Errno::EINVAL,
        "EOPNOTSUPP" => Errno::EOPNOTSUPP,
        "EDOM" => Errno::from_i32(libc::EDOM),
        "EMSGSIZE" => Errno::EMSGSIZE,
        "ETIMEDOUT" => Errno::ETIMEDOUT,
        "EINTR" => Errno::EINTR,
        "EUCLEAN" => Errno::from_i32(libc::EUCLEAN),
        // The tests construct every variant, so that no other name comes here.
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Every variant with its number. A variant that is missing here is noticed by `every_variant_is_listed`.
    fn all() -> Vec<(Error, i32)> {
        let path = std::path::PathBuf::from("/store");
        vec![
            (Error::NotFound, libc::ENOENT),
            (Error::Missing { path: "a.f32".into() }, libc::ENOENT),
            (Error::Exists, libc::EEXIST),
            (Error::NotDirectory, libc::ENOTDIR),
            (Error::IsDirectory, libc::EISDIR),
            (Error::NotEmpty, libc::ENOTEMPTY),
            (Error::NameTooLong { got: 256 }, libc::ENAMETOOLONG),
            (Error::PermissionDenied, libc::EACCES),
            (Error::NotPermitted, libc::EPERM),
            (Error::ReadOnly, libc::EROFS),
            (Error::Busy, libc::EBUSY),
            (Error::CrossDimension { expected: 4, got: 3 }, libc::EXDEV),
            (Error::TooManyLinks, libc::EMLINK),
            (Error::NoAttribute, libc::ENODATA),
            (Error::AttributeRange { need: 9, got: 8 }, libc::ERANGE),
            (Error::AttributeTooBig { got: 65_537, limit: 65_536 }, libc::E2BIG),
            (Error::NoSpace, libc::ENOSPC),
            (Error::FileTooBig { got: 2, limit: 1 }, libc::EFBIG),
            (Error::BadHandle, libc::EBADF),
            (Error::NoSuchOffset, libc::ENXIO),
            (Error::Invalid("offset"), libc::EINVAL),
            (Error::Unsupported("this"), libc::EOPNOTSUPP),
            (Error::Dimension { expected: 384, got: 383 }, libc::EINVAL),
            (Error::Format("short".into()), libc::EINVAL),
            (Error::NotFinite { row: 0, column: 1, value: f64::NAN }, libc::EDOM),
            (Error::Norm { row: 0, norm: 1e20, bound: 4.6e18 }, libc::EDOM),
            (Error::ZeroVector { row: 0 }, libc::EDOM),
            (Error::TooLarge { what: "k", got: 10_001, limit: 10_000 }, libc::EMSGSIZE),
            (Error::OverBudget { what: "bytes", got: 2, limit: 1 }, libc::EDQUOT),
            (Error::Config("unknown key".into()), libc::EINVAL),
            (Error::Request("unknown field".into()), libc::EINVAL),
            (Error::NotAVector { path: "a".into(), why: "plain".into() }, libc::EINVAL),
            (Error::NoEmbedder, libc::EOPNOTSUPP),
            (Error::Deadline { limit_ms: 1000 }, libc::ETIMEDOUT),
            (Error::Interrupted, libc::EINTR),
            (Error::Corrupt { file: "s".into(), offset: 0, what: "sum".into() }, libc::EUCLEAN),
            (Error::Version { path: path.clone(), expected: 1, got: 2 }, libc::EINVAL),
            (Error::StoreLocked { path: path.clone(), holder: "1".into() }, libc::EBUSY),
            (Error::Store { path, why: "symlink".into() }, libc::EINVAL),
            (Error::Poisoned { reason: "fsync".into() }, libc::EROFS),
            (Error::Catalog("journal".into()), libc::EIO),
            (Error::Io(io::Error::from_raw_os_error(libc::EDQUOT)), libc::EDQUOT),
        ]
    }

    #[test]
    fn every_variant_has_its_number() {
        for (error, code) in all() {
            assert_eq!(errno(&error).code(), code, "{error:?}");
        }
    }

    #[test]
    fn every_variant_is_listed() {
        let source = include_str!("../error.rs");
        let (_, variants) = source.split_once("pub enum Error {").unwrap();
        let listed: Vec<String> = all().iter().map(|(error, _)| format!("{error:?}")).collect();
        let names = variants.lines().filter_map(|line| {
            let name = line.strip_prefix("    ")?.split([' ', '(', ',']).next()?;
            name.starts_with(|first: char| first.is_ascii_uppercase()).then_some(name)
        });
        let mut count = 0;
        for name in names {
            assert!(listed.iter().any(|shown| shown.split([' ', '(']).next() == Some(name)), "{name}");
            count += 1;
        }
        assert_eq!(count, listed.len());
    }

    #[test]
    fn nothing_answers_enosys() {
        let unknown_call = Error::Io(io::Error::from_raw_os_error(libc::ENOSYS));
        assert_eq!(errno(&unknown_call).code(), libc::EOPNOTSUPP);
        assert_eq!(errno(&Error::Io(io::Error::other("text only"))).code(), libc::EIO);
        assert!(all().iter().all(|(error, _)| errno(error) != Errno::ENOSYS));
    }
}
