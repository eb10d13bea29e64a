//! Keys of the namespace's tables. Integers are big-endian, so that byte order is number order.

use std::cell::RefCell;

use super::{Ino, Link};
use crate::{Error, Result};

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;

/// Bytes of an inode number in a key.
const INO_BYTES: usize = 8;

/// Refuses names that no directory can hold.
///
/// # Errors
///
/// `NameTooLong`; `Invalid` for the empty name, `.`, `..` and names with `/` or NUL.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong { got: name.len() });
    }
    match name {
        b"" => Err(Error::Invalid("empty name")),
        b"." | b".." => Err(Error::Invalid("'.' and '..' are not names of entries")),
        name if name.iter().any(|&byte| byte == b'/' || byte == 0) => {
            Err(Error::Invalid("a name holds neither '/' nor NUL"))
        }
        _ => Ok(()),
    }
}

/// Key of an inode; also the prefix of everything that belongs to it.
pub(super) fn ino(ino: Ino) -> [u8; INO_BYTES] {
    ino.0.to_be_bytes()
}

/// Calls `read` with the key of [`named`], in memory that this thread uses for the next one too: looking up allocates
/// nothing and takes little stack.
pub(super) fn with_named<T>(owner: Ino, name: &[u8], read: impl FnOnce(&[u8]) -> T) -> T {
    thread_local! {
        static KEY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let mut key = KEY.take();
    key.clear();
    key.extend_from_slice(&ino(owner));
    key.extend_from_slice(name);
    let value = read(&key);
    KEY.set(key);
    value
}

/// `ino, name`: a dentry (with the directory's number) or an extended attribute.
pub(super) fn named(owner: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(INO_BYTES + name.len());
    key.extend(ino(owner));
    key.extend(name);
    key
}

/// `ino, parent, name`: one name of a file.
pub(super) fn link(of: Ino, link: &Link) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 * INO_BYTES + link.name.len());
    key.extend(ino(of));
    key.extend(ino(link.parent));
    key.extend(&link.name);
    key
}

/// Reads what [`link`] wrote after the owner's number.
pub(super) fn parse_link(rest: &[u8]) -> Result<Link> {
    let (parent, name) = split_ino("links", rest)?;
    check_name(name).map_err(|_| corrupt("links", "a link without a name".into()))?;
    Ok(Link { parent, name: name.to_vec() })
}

/// Splits the leading inode number off a key of `table`.
pub(super) fn split_ino<'a>(table: &str, key: &'a [u8]) -> Result<(Ino, &'a [u8])> {
    match key.split_first_chunk::<INO_BYTES>() {
        Some((number, rest)) => Ok((Ino(u64::from_be_bytes(*number)), rest)),
        None => Err(corrupt(table, format!("key of {} bytes, want at least {INO_BYTES}", key.len()))),
    }
}

/// Damage in a table of the catalog.
pub(super) fn corrupt(table: &str, what: String) -> Error {
    Error::Corrupt { file: format!("catalog/{table}"), offset: 0, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_never_path_syntax() {
        assert!(check_name(&[b'a'; 255]).is_ok());
        assert!(check_name("d\u{e9}j\u{e0} vu\n\\".as_bytes()).is_ok());
        assert!(matches!(check_name(&[b'a'; 256]), Err(Error::NameTooLong { got: 256 })));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(matches!(check_name(bad), Err(Error::Invalid(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_link_comes_back_from_its_key() {
        let original = Link { parent: Ino(7), name: b"x".to_vec() };
        let key = link(Ino(u64::MAX >> 1), &original);
        let (owner, rest) = split_ino("links", &key).unwrap();
        assert_eq!((owner, parse_link(rest).unwrap()), (Ino(u64::MAX >> 1), original));
        assert!(matches!(parse_link(&rest[..8]), Err(Error::Corrupt { .. })));
        assert!(matches!(split_ino("links", &key[..7]), Err(Error::Corrupt { .. })));
    }
}
