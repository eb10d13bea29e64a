//! Extended attributes: `user.*` is the user's metadata, `user.vexfs.*` is computed from vectors.

use super::permission::permits;
use super::vector_attrs::PREFIX;
use super::{Caller, Volume, XattrMode, control};
use crate::catalog::Value;
use crate::namespace::{Ino, Inode, Kind, Time};
use crate::{Error, Result};

/// Longest name of an attribute, in bytes.
const NAME_MAX: usize = 255;

/// Largest value of an attribute, in bytes.
pub(super) const VALUE_MAX: usize = 64 << 10;

/// Longest list of the names of an inode's attributes, in bytes.
const LIST_MAX: usize = 64 << 10;

/// Computed attributes that run a search.
const SEARCHES: [&[u8]; 3] = [b"user.vexfs.similar", b"user.vexfs.distance.", b"user.vexfs.q."];

/// Whose an attribute is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    User,
    Computed,
    Security,
    Other,
}

impl Volume {
    /// The value of an attribute.
    ///
    /// # Errors
    ///
    /// `NoAttribute`, `NotFound`, `Unsupported` outside `user.` and `security.`, those of a search.
    pub fn getxattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Value> {
        if control::is_control(ino) {
            return self.control_getxattr(caller, ino, name).map(Value::from);
        }
        let value = match space(name) {
            Space::Computed => self.vector_xattr(caller, ino, name).map(Value::from),
            // Answered without a look: the kernel asks for it before every write.
            Space::Security => return Err(Error::NoAttribute),
            Space::Other => return Err(Error::Unsupported("this attribute namespace")),
            Space::User => self.stored_xattr(ino, name),
        };
        value.map_err(|error| self.without_attribute(ino, error))
    }

    /// A file that was just replaced has no attribute either, and that is something else.
    #[cold]
    #[inline(never)]
    fn without_attribute(&self, ino: Ino, error: Error) -> Error {
        match error {
            Error::NoAttribute => self.names.inode(ino).err().unwrap_or(error),
            other => other,
        }
    }

    #[inline(never)]
    fn stored_xattr(&self, ino: Ino, name: &[u8]) -> Result<Value> {
        self.names.xattr(ino, check_name(name)?)?.ok_or(Error::NoAttribute)
    }

    /// Sets an attribute.
    ///
    /// # Errors
    ///
    /// `Exists` and `NoAttribute` as `mode` says, `AttributeTooBig`, `NameTooLong`, `NotPermitted` where
    /// attributes cannot be, `Unsupported` outside `user.`.
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        if control::is_control(ino) {
            return Err(Error::NotPermitted);
        }
        match space(name) {
            Space::Computed => return self.set_vector_xattr(caller, ino, name, value),
            Space::Security | Space::Other => {
                return Err(Error::Unsupported("this attribute namespace"));
            }
            Space::User => {}
        }
        check_name(name)?;
        if value.len() > VALUE_MAX {
            return Err(Error::AttributeTooBig { got: value.len(), limit: VALUE_MAX });
        }
        self.check_writable()?;
        self.need_room(value.len() as u64)?;
        let _locked = self.names.lock(&[ino]);
        let mut txn = self.begin()?;
        let mut inode = self.inode_for(&mut txn, ino)?;
        check_kind(&inode)?;
        let exists = self.names.xattr(ino, name)?.is_some();
        match mode {
            XattrMode::Create if exists => return Err(Error::Exists),
            XattrMode::Replace if !exists => return Err(Error::NoAttribute),
            XattrMode::Either | XattrMode::Create | XattrMode::Replace => {}
        }
        self.names.put_xattr(&mut txn.batch, &mut inode, (name, value), exists, LIST_MAX)?;
        inode.ctime = Time::now();
        self.names.put_inode(&mut txn.batch, &inode);
        self.commit(txn)?;
        self.attribute_changed(ino, name, Some(value));
        Ok(())
    }

    /// Names of the stored attributes, each with a NUL behind it. The kernel does not check this call.
    ///
    /// # Errors
    ///
    /// `NotFound`; `PermissionDenied` for who may not read the file.
    pub fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        if control::is_control(ino) {
            return Ok(Vec::new());
        }
        let inode = self.names.inode(ino)?;
        if inode.xattrs == 0 {
            return Ok(Vec::new());
        }
        if caller.uid != inode.uid && !permits(&inode, caller, 4) {
            return Err(Error::PermissionDenied);
        }
        let mut list = Vec::new();
        for name in self.names.xattr_names(ino)? {
            list.extend(name);
            list.push(0);
        }
        Ok(list)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    ///
    /// `NoAttribute`, `NotPermitted` for computed attributes, `Unsupported` outside `user.`.
    pub fn removexattr(&self, _caller: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        if control::is_control(ino) {
            return Err(Error::NotPermitted);
        }
        match space(name) {
            Space::Computed => return Err(Error::NotPermitted),
            Space::Security => return Err(Error::NoAttribute),
            Space::Other => return Err(Error::Unsupported("this attribute namespace")),
            Space::User => {}
        }
        check_name(name)?;
        let _locked = self.names.lock(&[ino]);
        let mut txn = self.begin()?;
        let mut inode = self.inode_for(&mut txn, ino)?;
        if self.names.xattr(ino, name)?.is_none() {
            return Err(Error::NoAttribute);
        }
        self.names.remove_xattr(&mut txn.batch, &mut inode, name);
        inode.ctime = Time::now();
        self.names.put_inode(&mut txn.batch, &inode);
        self.commit(txn)?;
        self.attribute_changed(ino, name, None);
        Ok(())
    }

    /// Whether reading this attribute may run a search that a worker must not: see
    /// [`may_search`](Self::may_search).
    pub fn xattr_may_search(&self, ino: Ino, name: &[u8]) -> bool {
        let searches = || SEARCHES.iter().any(|prefix| name.starts_with(prefix));
        let is_short = || {
            let members = self.vectors.members(ino);
            members.first().is_none_or(|member| self.pace.is_short(member.root, 1))
        };
        control::is_control(ino) || (searches() && !is_short())
    }
}

fn space(name: &[u8]) -> Space {
    if name.starts_with(PREFIX) {
        Space::Computed
    } else if name.starts_with(b"user.") {
        Space::User
    } else if name.starts_with(b"security.") {
        Space::Security
    } else {
        Space::Other
    }
}

fn check_name(name: &[u8]) -> Result<&[u8]> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong { got: name.len() });
    }
    if name.len() <= b"user.".len() || name.contains(&0) {
        return Err(Error::Invalid("an attribute's name is empty or has a NUL"));
    }
    Ok(name)
}

/// As everywhere on Linux, users' attributes are on files and directories only.
fn check_kind(inode: &Inode) -> Result<()> {
    match inode.kind {
        Kind::File | Kind::Directory => Ok(()),
        Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
            Err(Error::NotPermitted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_belong_to_one_space_by_their_prefix() {
        assert_eq!(space(b"user.vexfs.similar"), Space::Computed);
        assert_eq!(space(b"user.vexfs"), Space::User);
        assert_eq!(space(b"security.capability"), Space::Security);
        assert_eq!(space(b"system.posix_acl_access"), Space::Other);
        assert!(check_name(b"user.").is_err() && check_name(b"user.a").is_ok());
        assert!(matches!(check_name(&[b'u'; 256]), Err(Error::NameTooLong { got: 256 })));
    }
}
