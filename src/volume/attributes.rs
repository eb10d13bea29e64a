//! The attributes of vector files that conditions of searches are about: read from the catalog when a search meets a
//! file of which they are not known, and kept up to date by every change from then on.
//!
//! ```text
//! first search with `where` ──▶ files that are not known ──▶ one pass over the catalog's attributes ──▶ known
//! setxattr, removexattr     ──▶ commit ──▶ the file's attributes, and a new version of its collection
//! close, rename             ──▶ a new version of the file takes them over
//! ```
//!
//! **Invariant:** what is known is what the last change has committed whose call has returned, or a later one. Whoever
//! reads says so first ([`Collection::keep_attributes`]) and reads then; whoever changes commits first and asks then
//! whether it was said: one of them sees the other.
//!
//! A collection that was never searched under a condition knows nothing, and its files' attributes cost nothing.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::Volume;
use super::ingest::State;
use crate::collection::{Attributes, Collection, VectorFile};
use crate::namespace::Ino;
use crate::pool::shallow::aside;
use crate::{Error, Result};

/// What the name of every stored attribute begins with.
const PREFIX: &[u8] = b"user.";

/// What was read of a file: names and values, one after the other.
type Read = Vec<(Box<[u8]>, Box<[u8]>)>;

impl Volume {
    /// Makes the attributes of files of a collection known. Those of a file that was just removed are not there any
    /// more: the next version of the collection is without it. When that takes longer than it can (`is_late`), the file
    /// has none.
    ///
    /// # Errors
    ///
    /// The catalog's errors.
    #[cold]
    #[inline(never)]
    pub(super) fn learn_attributes(
        &self,
        collection: &Collection,
        files: Vec<Arc<VectorFile>>,
        is_late: bool,
    ) -> Result<()> {
        // A pass over many records, and a list of the engine: neither is for the stack of a search.
        aside(|| self.read_attributes(collection, files, is_late))
    }

    fn read_attributes(
        &self,
        collection: &Collection,
        mut files: Vec<Arc<VectorFile>>,
        is_late: bool,
    ) -> Result<()> {
        collection.keep_attributes();
        fence(Ordering::SeqCst);
        files.sort_unstable_by_key(|file| file.number());
        let inos: Vec<Ino> = files.iter().map(|file| Ino(file.number().0)).collect();
        let learn = |at: usize, read: &mut Read| -> Result<()> {
            // A file without attributes may be one that is gone with its attributes.
            if read.is_empty() && !is_late && !self.is_there(inos[at])? {
                return Ok(());
            }
            let pairs = read.iter().map(|(name, value)| (&name[..], &value[..]));
            match Attributes::new(pairs, &self.vectors.kept) {
                Some(attributes) => collection.learn_attributes(&files[at], attributes),
                None => collection.refuse_attributes(),
            }
            read.clear();
            Ok(())
        };
        let (mut reading, mut read) = (0, Read::new());
        self.names.xattrs_of(&inos, |at, name, value| {
            while reading < at {
                learn(reading, &mut read)?;
                reading += 1;
            }
            read.extend(name.strip_prefix(PREFIX).map(|name| (name.into(), value.into())));
            Ok(())
        })?;
        (reading..files.len()).try_for_each(|at| learn(at, &mut read))
    }

    fn is_there(&self, ino: Ino) -> Result<bool> {
        match self.names.inode(ino) {
            Ok(_) => Ok(true),
            Err(Error::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An attribute of a file has been set or removed, and that is committed. The caller holds the file's lock.
    pub(super) fn attribute_changed(&self, ino: Ino, name: &[u8], value: Option<&[u8]>) {
        fence(Ordering::SeqCst);
        if self.vectors.knows_attributes(ino) {
            self.tell_change(ino, name, value);
        }
    }

    /// Apart: most files are no vectors, or nobody has asked for their attributes.
    #[cold]
    #[inline(never)]
    fn tell_change(&self, ino: Ino, name: &[u8], value: Option<&[u8]>) {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        for member in self.vectors.members(ino) {
            let State::Valid { file, .. } = &member.state else { continue };
            let Some(collection) = self.vectors.existing(member.root) else { continue };
            if !collection.keeps_attributes() {
                continue;
            }
            let Some(before) = file.attributes() else {
                // Somebody is just reading them, maybe from before the change.
                if let Err(error) = aside(|| self.reread_attributes(&collection, file)) {
                    // A search that needs them gets the error.
                    tracing::warn!(ino = ino.0, %error, "attributes of a vector file are not known");
                }
                continue;
            };
            match before.with(name, value, &self.vectors.kept) {
                Some(attributes) => collection.set_attributes(file, attributes),
                None => collection.refuse_attributes(),
            }
        }
    }

    fn reread_attributes(&self, collection: &Collection, file: &VectorFile) -> Result<()> {
        let mut read = Read::new();
        self.names.xattrs_of(&[Ino(file.number().0)], |_, name, value| {
            read.extend(name.strip_prefix(PREFIX).map(|name| (name.into(), value.into())));
            Ok(())
        })?;
        match Attributes::new(read.iter().map(|(name, value)| (&name[..], &value[..])), &self.vectors.kept) {
            Some(attributes) => collection.set_attributes(file, attributes),
            None => collection.refuse_attributes(),
        }
        Ok(())
    }
}
