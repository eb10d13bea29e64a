//! Extended attributes and inline content: the values that hang on an inode.
//!
//! The inode's record counts the bytes of its attributes' names, so that the many inodes without attributes
//! are never searched for them.

use super::{Ino, Inode, Namespace, keys};
use crate::catalog::{Batch, Table, Value};
use crate::{Error, Result};

/// Attributes of other inodes that are passed by rather than looking for those of the next.
const PASSED_MAX: usize = 64;

impl Namespace {
    /// The value of an extended attribute.
    ///
    /// # Errors
    ///
    /// The catalog's errors.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Value>> {
        keys::with_named(ino, name, |key| self.catalog.get(Table::Xattrs, key))
    }

    /// Names of the extended attributes of an inode, in order.
    ///
    /// # Errors
    ///
    /// The catalog's errors.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for pair in self.catalog.scan(Table::Xattrs, &keys::ino(ino), None) {
            names.push(pair?.0.to_vec());
        }
        Ok(names)
    }

    /// Visits the extended attributes of inodes, which come in ascending order: by inode, which is told as its place
    /// in `inos`, and by name. What many inodes have is read in one pass.
    ///
    /// # Errors
    ///
    /// The catalog's errors and those of `visit`.
    pub fn xattrs_of(
        &self,
        inos: &[Ino],
        mut visit: impl FnMut(usize, &[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while let Some(&first) = inos.get(at) {
            let mut passed = 0;
            for pair in self.catalog.scan(Table::Xattrs, &[], Some(&keys::ino(first))) {
                let (key, value) = pair?;
                let (ino, name) = keys::split_ino("xattrs", &key)?;
                at += inos[at..].iter().take_while(|&&wanted| wanted < ino).count();
                match inos.get(at) {
                    None => return Ok(()),
                    Some(&wanted) if wanted == ino => visit(at, name, &value)?,
                    Some(_) if passed < PASSED_MAX => passed += 1,
                    // The next is far away.
                    Some(_) => break,
                }
                if inos.get(at) == Some(&ino) {
                    passed = 0;
                }
            }
            if passed < PASSED_MAX {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Stages an extended attribute and counts its name in `inode`, which the caller then stages.
    ///
    /// `exists` says whether the attribute is there already. `list_max` bounds the list of all names.
    ///
    /// # Errors
    ///
    /// [`Error::AttributeTooBig`] when the list would be longer than `list_max`; nothing is staged.
    pub fn put_xattr(
        &self,
        batch: &mut Batch<'_>,
        inode: &mut Inode,
        (name, value): (&[u8], &[u8]),
        exists: bool,
        list_max: usize,
    ) -> Result<()> {
        if !exists {
            let names = usize::try_from(inode.xattrs).unwrap_or(usize::MAX).saturating_add(name.len() + 1);
            let too_big = Error::AttributeTooBig { got: names, limit: list_max };
            inode.xattrs = match u32::try_from(names) {
                Ok(bytes) if names <= list_max => bytes,
                _ => return Err(too_big),
            };
        }
        batch.put(Table::Xattrs, keys::named(inode.ino, name), value);
        Ok(())
    }

    /// Stages the removal of an extended attribute that exists; the caller then stages `inode`.
    pub fn remove_xattr(&self, batch: &mut Batch<'_>, inode: &mut Inode, name: &[u8]) {
        let bytes = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        inode.xattrs = inode.xattrs.saturating_sub(bytes);
        batch.remove(Table::Xattrs, keys::named(inode.ino, name));
    }

    /// The inline content of a file, or the target of a symbolic link.
    ///
    /// # Errors
    ///
    /// The catalog's errors.
    pub fn inline(&self, ino: Ino) -> Result<Option<Value>> {
        self.catalog.get(Table::Inline, &keys::ino(ino))
    }

    /// Stages inline content, replacing what is there.
    pub fn put_inline(&self, batch: &mut Batch<'_>, ino: Ino, content: &[u8]) {
        batch.put(Table::Inline, keys::ino(ino), content);
    }

    /// Stages the removal of inline content.
    pub fn remove_inline(&self, batch: &mut Batch<'_>, ino: Ino) {
        batch.remove(Table::Inline, keys::ino(ino));
    }

    /// Stages the removal of every extended attribute.
    pub(super) fn remove_xattrs(&self, batch: &mut Batch<'_>, inode: &Inode) -> Result<()> {
        if inode.xattrs > 0 {
            for name in self.xattr_names(inode.ino)? {
                batch.remove(Table::Xattrs, keys::named(inode.ino, &name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::Error;
    use crate::namespace::testing::Tree;
    use crate::namespace::{Ino, Kind};

    #[test]
    fn attributes_are_listed_in_order_and_their_names_counted() {
        let tree = Tree::new();
        let mut file = tree.make(Ino::ROOT, b"f", Kind::File);
        for (name, value) in [(&b"user.b"[..], &b"2"[..]), (b"user.a", b"1")] {
            tree.change(|names, batch| {
                names.put_xattr(batch, &mut file, (name, value), false, 100).unwrap();
                names.put_inode(batch, &file);
            });
        }
        assert_eq!(tree.names.xattr_names(file.ino).unwrap(), [b"user.a", b"user.b"]);
        assert_eq!(tree.names.inode(file.ino).unwrap().xattrs, 14);
        assert_eq!(tree.names.xattr(file.ino, b"user.a").unwrap().as_deref(), Some(&b"1"[..]));
        tree.change(|names, batch| {
            names.put_xattr(batch, &mut file, (b"user.a", b"new"), true, 100).unwrap();
            names.remove_xattr(batch, &mut file, b"user.b");
        });
        assert_eq!(file.xattrs, 7);
        assert_eq!(tree.names.xattr(file.ino, b"user.a").unwrap().as_deref(), Some(&b"new"[..]));
        assert_eq!(tree.names.xattr(file.ino, b"user.b").unwrap(), None);
    }

    #[test]
    fn a_list_longer_than_the_limit_is_refused_and_nothing_is_staged() {
        let tree = Tree::new();
        let mut file = tree.make(Ino::ROOT, b"f", Kind::File);
        tree.change(|names, batch| {
            let result = names.put_xattr(batch, &mut file, (b"user.abc", b""), false, 8);
            assert!(matches!(result, Err(Error::AttributeTooBig { got: 9, limit: 8 })));
            assert!(batch.is_empty());
        });
        assert_eq!(file.xattrs, 0);
    }
}
