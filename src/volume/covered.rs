//! Which collections a directory covers: its own, and those of the directories below it.

use std::collections::HashMap;
use std::sync::Arc;

use super::Volume;
use super::permission::EVERYBODY;
use super::types::Caller;
use crate::collection::Collection;
use crate::namespace::Ino;
use crate::sync::ArcSwapOption;
use crate::{Error, Result};

/// The collections below each directory, as they lay in one state of the tree.
#[derive(Debug, Default)]
pub(super) struct Below {
    known: ArcSwapOption<Known>,
}

#[derive(Debug)]
struct Known {
    tree: u64,
    /// Directories of collections by each directory above them but the root of the mount, in order of their numbers.
    roots: HashMap<Ino, Vec<Ino>>,
}

impl Volume {
    /// The collections with vectors in the subtree of `base` whose directories the caller may traverse to. Its own is the
    /// first: it decides the metric where several have vectors.
    pub(super) fn covered(&self, caller: &Caller, base: Ino) -> Result<Vec<Arc<Collection>>> {
        let own = self.collection_root(base)?;
        let mut covered = Vec::new();
        covered.extend(self.vectors.existing(own));
        if base == Ino::ROOT {
            covered.extend(self.vectors.all().into_iter().filter(|collection| collection.root() != own.0));
        } else {
            let below = self.below()?;
            let roots = below.roots.get(&base).into_iter().flatten().filter(|&&root| root != own);
            covered.extend(roots.filter_map(|&root| self.vectors.existing(root)));
        }
        covered
            .retain(|collection| !collection.is_empty() && self.may_traverse(caller, Ino(collection.root())));
        Ok(covered)
    }

    /// What a change of would make an answer about `base` another one.
    pub(super) fn search_version(&self, base: Ino) -> Result<Vec<(u64, u64)>> {
        let covered = self.covered(&EVERYBODY, base)?;
        let mut version: Vec<(u64, u64)> =
            covered.iter().map(|collection| (collection.root(), collection.version())).collect();
        version.push((self.vectors.tree(), self.vectors.names()));
        Ok(version)
    }

    /// Whether `dir` is `base` or lies below it; not when it is gone.
    pub(super) fn lies_below(&self, dir: Ino, base: Ino) -> Result<bool> {
        match self.names.is_below(dir, base) {
            Err(Error::NotFound) => Ok(false),
            known => known,
        }
    }

    fn below(&self) -> Result<Arc<Known>> {
        // Taken before the tree is read: what is found during a change is not kept for long.
        let tree = self.vectors.tree();
        match self.below.known.load_full() {
            Some(known) if known.tree == tree => Ok(known),
            _ => self.find_below(tree),
        }
    }

    /// Looks where every collection lies. Not only those that are collections by their configuration: the vectors of a
    /// directory that has just moved below another are in its own until they are settled.
    #[cold]
    #[inline(never)]
    fn find_below(&self, tree: u64) -> Result<Arc<Known>> {
        let mut roots: HashMap<Ino, Vec<Ino>> = HashMap::new();
        for collection in self.vectors.all() {
            let root = Ino(collection.root());
            match self.names.above(root) {
                Ok(above) => above.into_iter().for_each(|dir| roots.entry(dir).or_default().push(root)),
                // Removed meanwhile: it has no vectors.
                Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        let known = Arc::new(Known { tree, roots });
        self.below.known.store(Some(Arc::clone(&known)));
        Ok(known)
    }
}
