//! The computed attributes `user.vexfs.*`: a file's status and vector, its neighbours, a collection's settings.

use std::time::Instant;

use dashmap::DashMap;

use super::Volume;
use super::ingest::{Member, Problem, State, last_row};
use super::permission::permits;
use super::types::Caller;
use super::xattrs::VALUE_MAX;
use crate::collection::RowBytes;
use crate::namespace::{Ino, Kind};
use crate::pool::shallow::aside;
use crate::search::{Options, render};
use crate::{Error, Result};

/// What every name of a computed attribute begins with.
pub(super) const PREFIX: &[u8] = b"user.vexfs.";

/// Answers that are kept between the two calls that read an attribute.
const ANSWERS: usize = 256;

/// Values of `user.vexfs.similar` by file, k and caller, and the state of the collections that they are true for.
pub(super) type SimilarAnswers = DashMap<(Ino, Option<u32>, u32, u32), (Vec<(u64, u64)>, Vec<u8>)>;

impl Volume {
    /// The value of a computed attribute. `name` begins with `user.vexfs.`.
    #[inline(never)]
    pub(super) fn vector_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let name = name.strip_prefix(PREFIX).ok_or(Error::NoAttribute)?;
        match self.kind(ino)? {
            Kind::File => self.file_attribute(caller, ino, name),
            Kind::Directory => self.directory_attribute(ino, name),
            _ => Err(Error::NoAttribute),
        }
    }

    /// Checks that a file that is a member of nothing still has a name. Another may have taken that, and is asked
    /// about when it is looked up again.
    #[inline(never)]
    fn check_has_name(&self, ino: Ino) -> Result<()> {
        if self.inode(ino)?.nlink == 0 { Err(Error::NotFound) } else { Ok(()) }
    }

    /// Apart, so that the inode's record is not on the stack of a search.
    #[inline(never)]
    fn kind(&self, ino: Ino) -> Result<Kind> {
        Ok(self.inode(ino)?.kind)
    }

    /// Sets a setting of a directory's collection. `name` begins with `user.vexfs.`.
    pub(super) fn set_vector_xattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
    ) -> Result<()> {
        let key = name.strip_prefix(PREFIX).ok_or(Error::NotPermitted)?;
        let inode = self.inode(ino)?;
        if inode.kind != Kind::Directory {
            return Err(Error::NotPermitted);
        }
        if !permits(&inode, caller, 2) {
            return Err(Error::PermissionDenied);
        }
        let root = self.collection_root(ino)?;
        let schema = self.vectors.schema(root).with_attribute(key, value)?;
        // As writing the config does: the directory becomes a collection of its own.
        aside(|| self.configure(ino, schema))
    }

    fn file_attribute(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let member = self.member(ino)?;
        if member.is_none() {
            self.check_has_name(ino)?;
        }
        match name {
            b"status" => return Ok(self.status(ino)?.into_bytes()),
            b"error" => {
                let status = self.status(ino)?;
                let reason = status.strip_prefix("invalid: ").ok_or(Error::NoAttribute)?;
                return Ok(reason.into());
            }
            _ => {}
        }
        if let Some(path) = name.strip_prefix(b"distance.") {
            let base = self.directory_of(caller, ino)?;
            let (path, row) = split_row(path);
            let other = self.member_at(caller, base, path).map_err(|error| match error {
                Error::NotFound => Error::Missing { path: String::from_utf8_lossy(path).into_owned() },
                other => other,
            })?;
            let distance = self.distance_between(member, (other, row, path))?;
            return Ok(distance.to_string().into_bytes());
        }
        let Some(Member { state: State::Valid { file, .. }, .. }) = member.as_deref() else {
            return Err(Error::NoAttribute);
        };
        match name {
            b"dim" => Ok(file.dim().to_string().into_bytes()),
            b"rows" => Ok(file.rows().to_string().into_bytes()),
            b"dtype" => Ok(file.layout().dtype.name().into()),
            b"vector" => {
                let (file, _, row) = self.vector_row(member, None, b"the file")?;
                let mut scratch = vec![0.0; file.dim() as usize];
                let values = file.sound_row(row.into(), &mut scratch)?.iter().map(f32::to_string);
                let text = values.collect::<Vec<_>>().join(",");
                file.bytes().check_read()?;
                if text.len() > VALUE_MAX {
                    return Err(Error::AttributeTooBig { got: text.len(), limit: VALUE_MAX });
                }
                Ok(text.into_bytes())
            }
            b"similar" => self.similar(caller, ino, member, Options::default()),
            _ => match name.strip_prefix(b"similar.").map(std::str::from_utf8) {
                Some(Ok(k)) => {
                    let k = k.parse().map_err(|_| Error::NoAttribute)?;
                    self.similar(caller, ino, member, Options { k: Some(k), ..Options::default() })
                }
                _ => Err(Error::NoAttribute),
            },
        }
    }

    /// The neighbours below the directory that the file is in.
    ///
    /// Reading an attribute takes two calls, for its size and for its value: the second finds the answer of the
    /// first, unless something has changed that could change it.
    fn similar(
        &self,
        caller: &Caller,
        ino: Ino,
        member: Option<Box<Member>>,
        options: Options,
    ) -> Result<Vec<u8>> {
        let base = self.directory_of(caller, ino)?;
        let version = self.search_version(base)?;
        let key = (ino, options.k, caller.uid, caller.gid);
        if let Some(known) = self.similar_answers.get(&key)
            && known.0 == version
        {
            return Ok(known.1.clone());
        }
        let started = Instant::now();
        let root = member.as_ref().map(|member| member.root);
        let answer = self.neighbors_of(caller, base, member, None, b"the file", &options)?;
        if let Some(root) = root {
            self.pace.note(root, started.elapsed());
        }
        let value = render::attribute(&answer, VALUE_MAX);
        if self.similar_answers.len() >= ANSWERS {
            self.similar_answers.clear();
        }
        self.similar_answers.insert(key, (version, value.clone()));
        Ok(value)
    }

    /// The directory of a file's first name that the caller may traverse to; of its first where there is none.
    fn directory_of(&self, caller: &Caller, ino: Ino) -> Result<Ino> {
        // A vector's is in memory.
        if let Some(Member { state: State::Valid { file, .. }, .. }) = self.vectors.members(ino).first()
            && let Some(dir) = self.vectors.groups.directory(file.group())
            && self.may_traverse(caller, dir)
        {
            return Ok(dir);
        }
        let links = self.names.links(ino)?;
        let seen = links.iter().find(|link| self.may_traverse(caller, link.parent));
        seen.or(links.first()).map(|link| link.parent).ok_or(Error::NotFound)
    }

    /// `indexed`, `pending`, `invalid: REASON` or `plain`: the worst of what the collections say in which the file has
    /// names.
    ///
    /// # Errors
    ///
    /// `NotFound` when it has none any more.
    fn status(&self, ino: Ino) -> Result<String> {
        let members = self.vectors.members(ino);
        let wants_vectors = self.wants_vectors(ino);
        if members.is_empty() {
            // After the names were looked at: what it is without any is not what it was with them.
            self.check_has_name(ino)?;
        }
        if (self.is_busy(ino) || members.is_empty()) && wants_vectors {
            // Made by mknod, or the daemon died before the close: nothing was ever written.
            return Ok(if self.is_busy(ino) { "pending" } else { "invalid: empty file" }.into());
        }
        let mut status = if members.is_empty() { "plain" } else { "indexed" };
        for member in &members {
            match &member.state {
                State::Invalid(problem) => return Ok(format!("invalid: {}", problem.reason)),
                State::Valid { file, .. } => {
                    // Searches do not find it. A blob may be too large to be compared for this.
                    if let RowBytes::Slot(slot) = file.bytes()
                        && let Err(error) = slot.check()
                    {
                        return Ok(format!("invalid: {}", Problem::of(&error).reason));
                    }
                    if !self.vectors.existing_or_empty(member.root).is_indexed(last_row(file)) {
                        status = "pending";
                    }
                }
            }
        }
        Ok(status.into())
    }

    /// Whether one of a file's names is that of a vector file.
    pub(super) fn wants_vectors(&self, ino: Ino) -> bool {
        self.names
            .links(ino)
            .is_ok_and(|links| links.iter().any(|link| crate::format::recognise(&link.name).is_some()))
    }

    fn directory_attribute(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if name.starts_with(b"q.") {
            return Err(Error::NoEmbedder);
        }
        let collection = self.vectors.existing_or_empty(self.collection_root(ino)?);
        let text = match name {
            b"dim" => collection.dim().ok_or(Error::NoAttribute)?.to_string(),
            b"metric" => collection.schema().metric.name().to_owned(),
            b"quant" => collection.schema().quant.name().to_owned(),
            b"recall" => format!("{:.3}", collection.recall().estimate.ok_or(Error::NoAttribute)?),
            b"count" => collection.len().to_string(),
            b"pending" => collection.pending().to_string(),
            _ => return Err(Error::NoAttribute),
        };
        Ok(text.into_bytes())
    }
}

/// Splits `FILE#ROW`. A `#` that is not followed by a number alone belongs to the name.
pub(super) fn split_row(path: &[u8]) -> (&[u8], Option<u32>) {
    let Some(at) = path.iter().rposition(|&byte| byte == b'#') else { return (path, None) };
    let row = std::str::from_utf8(&path[at + 1..]).ok().filter(|row| !row.starts_with('+'));
    match row.and_then(|row| row.parse().ok()) {
        Some(row) => (&path[..at], Some(row)),
        None => (path, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_split_off_only_where_it_is_one() {
        assert_eq!(split_row(b"big.npy#17"), (&b"big.npy"[..], Some(17)));
        assert_eq!(split_row(b"a#b.f32"), (&b"a#b.f32"[..], None));
        assert_eq!(split_row(b"a.f32#"), (&b"a.f32#"[..], None));
        assert_eq!(split_row(b"a.f32#+1"), (&b"a.f32#+1"[..], None));
        assert_eq!(split_row(b"a.f32#99999999999"), (&b"a.f32#99999999999"[..], None));
    }
}
