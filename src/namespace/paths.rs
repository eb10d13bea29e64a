//! Where things lie: the names of an inode, and paths between directories.

use super::{Ino, Kind, Link, Namespace, keys};
use crate::catalog::Table;
use crate::{Error, Result};

/// More directories above each other than any tree has: a longer chain is a cycle, so damage.
const DEPTH_MAX: usize = 1 << 20;

impl Namespace {
    /// Every name of an inode, in order. A directory has one, the root none.
    ///
    /// # Errors
    ///
    /// `Corrupt`, or the catalog's errors.
    pub fn links(&self, ino: Ino) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        for pair in self.catalog.scan(Table::Links, &keys::ino(ino), None) {
            links.push(keys::parse_link(&pair?.0)?);
        }
        Ok(links)
    }

    /// The name of a directory in its parent.
    ///
    /// # Errors
    ///
    /// `NotFound` for the root or a removed directory.
    pub fn directory_name(&self, dir: Ino) -> Result<Link> {
        let prefix = keys::ino(dir);
        let mut names = self.catalog.scan(Table::Links, &prefix, None);
        match names.next() {
            Some(pair) => keys::parse_link(&pair?.0),
            None => Err(Error::NotFound),
        }
    }

    /// Path of `link` relative to directory `base`, or `None` when it does not lie below it.
    ///
    /// # Errors
    ///
    /// `Corrupt` when the directories form a cycle.
    pub fn path_below(&self, link: &Link, base: Ino) -> Result<Option<Vec<u8>>> {
        let mut names = vec![link.name.clone()];
        let mut dir = link.parent;
        while dir != base {
            let above = match self.directory_name(dir) {
                Ok(above) => above,
                Err(Error::NotFound) => return Ok(None),
                Err(error) => return Err(error),
            };
            names.push(above.name);
            if names.len() > DEPTH_MAX {
                return Err(cycle(dir));
            }
            dir = above.parent;
        }
        names.reverse();
        Ok(Some(names.join(&b'/')))
    }

    /// Whether `dir` is `ancestor` or lies below it.
    ///
    /// # Errors
    ///
    /// `NotFound` when a directory on the way is gone, `NotDirectory`, `Corrupt` for a cycle.
    pub fn is_below(&self, dir: Ino, ancestor: Ino) -> Result<bool> {
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if at == ancestor {
                return Ok(true);
            }
            if at == Ino::ROOT {
                return Ok(false);
            }
            let inode = self.inode(at)?;
            if inode.kind != Kind::Directory {
                return Err(Error::NotDirectory);
            }
            at = inode.parent;
        }
        Err(cycle(dir))
    }

    /// The directories above `dir`, the nearest first, without the root.
    ///
    /// # Errors
    ///
    /// `NotFound` when a directory on the way is gone, `Corrupt` for a cycle.
    pub fn above(&self, dir: Ino) -> Result<Vec<Ino>> {
        let mut above = Vec::new();
        let mut at = dir;
        while at != Ino::ROOT {
            if above.len() > DEPTH_MAX {
                return Err(cycle(dir));
            }
            at = self.inode(at)?.parent;
            above.push(at);
        }
        above.pop();
        Ok(above)
    }
}

fn cycle(dir: Ino) -> Error {
    keys::corrupt("links", format!("directory {} lies below itself", dir.0))
}

#[cfg(test)]
mod tests {
    use crate::namespace::testing::Tree;
    use crate::namespace::{Ino, Kind, Link};

    #[test]
    fn paths_are_relative_to_any_directory_above() {
        let tree = Tree::new();
        let a = tree.make(Ino::ROOT, b"a", Kind::Directory).ino;
        let b = tree.make(a, b"b", Kind::Directory).ino;
        let other = tree.make(Ino::ROOT, b"other", Kind::Directory).ino;
        let link = Link { parent: b, name: b"f".to_vec() };
        assert_eq!(tree.names.path_below(&link, Ino::ROOT).unwrap().unwrap(), b"a/b/f");
        assert_eq!(tree.names.path_below(&link, a).unwrap().unwrap(), b"b/f");
        assert_eq!(tree.names.path_below(&link, b).unwrap().unwrap(), b"f");
        assert_eq!(tree.names.path_below(&link, other).unwrap(), None);
    }

    #[test]
    fn ancestry_includes_the_directory_itself_and_stops_at_the_root() {
        let tree = Tree::new();
        let a = tree.make(Ino::ROOT, b"a", Kind::Directory).ino;
        let b = tree.make(a, b"b", Kind::Directory).ino;
        assert!(tree.names.is_below(b, a).unwrap());
        assert!(tree.names.is_below(b, b).unwrap());
        assert!(tree.names.is_below(b, Ino::ROOT).unwrap());
        assert!(!tree.names.is_below(a, b).unwrap());
        let c = tree.make(b, b"c", Kind::Directory).ino;
        assert_eq!(tree.names.above(c).unwrap(), [b, a]);
        assert_eq!(tree.names.above(a).unwrap(), []);
        assert_eq!(tree.names.above(Ino::ROOT).unwrap(), []);
    }
}
