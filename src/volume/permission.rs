//! What a caller sees: what it may read, below directories that it may traverse from the root of the mount on.
//!
//! The kernel checks the way to what a path names. What a search, a table or a mirror tells of other files and
//! directories is told by this rule, whichever door it comes through.

use std::sync::Arc;

use dashmap::DashMap;

use super::Volume;
use super::ingest::GroupKey;
use super::types::Caller;
use crate::collection::{Allowed, Collection};
use crate::namespace::{Ino, Inode, Kind};
use crate::{Error, Result};

/// What a caller may find below a directory, and in which [`sight`](Volume::sight) that was found out.
pub(super) type AllowedCache = DashMap<(u32, u32, Ino, Ino), ((u64, usize), Arc<Allowed>)>;

/// Answers of [`Volume::allowed`] that are kept.
const ALLOWED: usize = 1024;

/// Whoever sees everything: what there is does not depend on who asks.
pub(super) const EVERYBODY: Caller = Caller { uid: 0, gid: 0, pid: 0 };

impl Volume {
    /// Whether the caller sees a file, by one of its recognised names, or a directory.
    ///
    /// # Errors
    ///
    /// `NotFound` when it is gone, `Corrupt`.
    pub(super) fn sees(&self, caller: &Caller, ino: Ino) -> Result<bool> {
        let inode = self.inode(ino)?;
        let group = match inode.kind {
            Kind::Directory => GroupKey::of_directory(&inode),
            _ => GroupKey::of(&inode, &self.names.links(ino)?),
        };
        Ok(self.sees_group(caller, &group, |_| true))
    }

    /// Refuses a caller that does not see it. To be asked after what is to be shown was read: who took the
    /// permission away before changing it is certain then that the change is not shown.
    ///
    /// # Errors
    ///
    /// `PermissionDenied`; those of [`sees`](Self::sees).
    pub(super) fn check_sees(&self, caller: &Caller, ino: Ino) -> Result<()> {
        if self.sees(caller, ino)? { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// Whether the caller sees what is in a group, in one of those of its directories that are `meant`.
    fn sees_group(&self, caller: &Caller, group: &GroupKey, meant: impl Fn(Ino) -> bool) -> bool {
        permits_bits((group.uid, group.gid, group.mode), caller, 4)
            && group.dirs.iter().any(|&dir| meant(dir) && self.may_traverse(caller, dir))
    }

    /// Whether the caller may search every directory from the root to `dir`. One that is gone, or cannot be read, only
    /// root may.
    #[inline(never)]
    pub(super) fn may_traverse(&self, caller: &Caller, dir: Ino) -> bool {
        if caller.uid == 0 {
            return true;
        }
        let mut at = dir;
        loop {
            match self.names.inode(at) {
                Ok(inode) if !permits(&inode, caller, 1) => return false,
                Ok(_) if at == Ino::ROOT => return true,
                Ok(inode) => at = inode.parent,
                Err(_) => return false,
            }
        }
    }

    /// Whether the caller is told of a collection in the `.vexfs` of `base`: of the directory's own, which it has come
    /// to, and of those whose directories it sees.
    pub(super) fn is_told_of(&self, caller: &Caller, base: Ino, collection: &Collection) -> Result<bool> {
        let root = Ino(collection.root());
        if root == self.collection_root(base)? {
            return Ok(true);
        }
        match self.sees(caller, root) {
            Err(Error::NotFound) => Ok(false),
            told => told,
        }
    }

    /// What `path`, relative to `base`, names for a caller that may traverse to it. Symbolic links are not followed.
    ///
    /// # Errors
    ///
    /// `PermissionDenied`, whether or not there is something behind the directory that the caller may not traverse;
    /// `NotFound`, `NotDirectory`.
    pub(super) fn walk(&self, caller: &Caller, base: Ino, path: &[u8]) -> Result<Ino> {
        let mut at = if path.first() == Some(&b'/') { Ino::ROOT } else { base };
        if !self.may_traverse(caller, at) {
            return Err(Error::PermissionDenied);
        }
        for component in path.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => at = self.names.inode(at)?.parent,
                name => {
                    let dir = self.names.inode(at)?;
                    if dir.kind != Kind::Directory {
                        return Err(Error::NotDirectory);
                    }
                    if !permits(&dir, caller, 1) {
                        return Err(Error::PermissionDenied);
                    }
                    at = self.names.lookup(at, name)?.ok_or(Error::NotFound)?.ino;
                }
            }
        }
        Ok(at)
    }

    /// The file that `path`, relative to `base`, names for a caller that sees it there.
    ///
    /// # Errors
    ///
    /// Those of [`walk`](Self::walk).
    pub(super) fn resolve(&self, caller: &Caller, base: Ino, path: &[u8]) -> Result<Ino> {
        let ino = self.walk(caller, base, path)?;
        if permits(&self.names.inode(ino)?, caller, 4) { Ok(ino) } else { Err(Error::PermissionDenied) }
    }

    /// The state of directories, permissions and groups: in another one a caller may see something else.
    pub(super) fn sight(&self) -> (u64, usize) {
        (self.vectors.tree(), self.vectors.groups.len())
    }

    /// Which files of a collection the caller may find below `base`, in the present [`sight`](Self::sight).
    pub(super) fn allowed(
        &self,
        caller: &Caller,
        base: Ino,
        collection: &Collection,
    ) -> Result<Arc<Allowed>> {
        let root = Ino(collection.root());
        let whole = self.names.is_below(root, base)?;
        if whole && caller.uid == 0 {
            return Ok(Arc::new(Allowed::All));
        }
        let sight = self.sight();
        let key = (caller.uid, caller.gid, base, root);
        if let Some(known) = self.allowed_below.get(&key)
            && known.0 == sight
        {
            return Ok(Arc::clone(&known.1));
        }
        let is_here = |dir| whole || self.names.is_below(dir, base).unwrap_or(false);
        let judged = self.vectors.groups.judge(|group| self.sees_group(caller, group, is_here));
        let elsewhere = self.vectors.groups.judge(|group| self.is_elsewhere(root, group));
        let all = judged.iter().zip(&elsewhere).all(|(&may, &elsewhere)| may || elsewhere);
        // A group that came meanwhile was not judged in both.
        let all = all && judged.len() == elsewhere.len();
        let allowed = Arc::new(match u32::try_from(judged.len()) {
            Ok(first) if all => Allowed::First(first),
            _ => Allowed::Groups(judged),
        });
        if self.allowed_below.len() >= ALLOWED {
            self.allowed_below.clear();
        }
        self.allowed_below.insert(key, (sight, Arc::clone(&allowed)));
        Ok(allowed)
    }

    /// Whether no file of a group can be in the collection of `root`: what a caller may find of it does not matter there.
    fn is_elsewhere(&self, root: Ino, group: &GroupKey) -> bool {
        group.dirs.iter().all(|&dir| match self.collection_root(dir) {
            Ok(of) => of != root,
            // A directory that is gone has no files.
            Err(Error::NotFound) => true,
            Err(_) => false,
        })
    }
}

/// Whether the permission bits give the caller `want` (4 read, 2 write, 1 execute). Supplementary groups are not
/// known here: only the owner, the caller's own group and the others count.
pub(super) fn permits(inode: &Inode, caller: &Caller, want: u16) -> bool {
    permits_bits((inode.uid, inode.gid, inode.mode), caller, want)
}

fn permits_bits((uid, gid, mode): (u32, u32, u16), caller: &Caller, want: u16) -> bool {
    let bits = match () {
        () if caller.uid == 0 => 7,
        () if caller.uid == uid => mode >> 6,
        () if caller.gid == gid => mode >> 3,
        () => mode,
    };
    bits & want == want
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_is_the_owners_then_the_groups_then_the_others() {
        let caller = |uid, gid| Caller { uid, gid, pid: 0 };
        let file = (1000, 100, 0o640);
        assert!(permits_bits(file, &caller(1000, 5), 4));
        assert!(permits_bits(file, &caller(1001, 100), 4));
        assert!(!permits_bits(file, &caller(1001, 100), 2));
        assert!(!permits_bits(file, &caller(1001, 5), 4));
        assert!(permits_bits((1000, 100, 0), &caller(0, 0), 4));
        // The owner's bits decide for the owner even where the others have more.
        assert!(!permits_bits((1000, 100, 0o044), &caller(1000, 100), 4));
    }
}
