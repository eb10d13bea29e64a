//! Sets of results: what a query found, in every form, fixed when somebody first looks into the set.

use std::sync::{Arc, OnceLock};

use super::{Access, Node, SavedQuery, What};
use crate::namespace::{Ino, Inode, Kind};
use crate::search::{Answer, Hit, Options, Request, render};
use crate::volume::Volume;
use crate::volume::permission::permits;
use crate::volume::query::again;
use crate::volume::types::Caller;
use crate::volume::vector_attrs::split_row;
use crate::{Error, Result};

/// A query, and what it found once somebody has looked.
#[derive(Debug)]
pub(super) struct ResultSet {
    /// The state of the query and of the collections when the set was made.
    version: (u64, Vec<(u64, u64)>),
    base: Ino,
    options: Options,
    source: Source,
    found: OnceLock<Arc<FoundSet>>,
    /// What the set that this one replaced had found: a listing that is under way may still ask for its names.
    previous: Option<Arc<FoundSet>>,
}

impl ResultSet {
    /// How many hits it holds, once somebody has looked.
    pub(super) fn hits(&self) -> usize {
        let sets = [self.found.get(), self.previous.as_ref()];
        sets.into_iter().flatten().flat_map(|set| &set.answers).map(|answer| answer.hits.len()).sum()
    }
}

/// What the neighbours are wanted of.
#[derive(Debug)]
enum Source {
    /// The file, or the row of it, that `name` stands for: what has the name `file` in `dir` when somebody looks.
    File {
        dir: Ino,
        file: Vec<u8>,
        row: Option<u32>,
        name: Vec<u8>,
    },
    Query(Arc<SavedQuery>, Request),
}

impl Source {
    /// Whether both ask for the neighbours of the same, as far as names tell.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Source::File { dir, file, row, name }, Source::File { dir: d, file: f, row: r, name: n }) => {
                (dir, file, row, name) == (d, f, r, n)
            }
            (Source::Query(query, _), Source::Query(other, _)) => Arc::ptr_eq(query, other),
            (Source::File { .. }, Source::Query(..)) | (Source::Query(..), Source::File { .. }) => false,
        }
    }
}

/// What a query found, with names for it.
#[derive(Debug)]
pub(super) struct FoundSet {
    answers: Vec<Answer>,
    k: u32,
    /// Names of the ranked links, in order; only of a single query.
    links: Vec<Vec<u8>>,
    previous: Option<Arc<FoundSet>>,
}

/// What a name in a set is.
pub(super) enum Opened {
    /// A symbolic link to a hit.
    Link(Vec<u8>),
    /// A file.
    Bytes(Vec<u8>),
}

impl FoundSet {
    fn new(answers: Vec<Answer>, previous: Option<Arc<FoundSet>>) -> Self {
        let links = match answers.as_slice() {
            [answer] => (1..).zip(&answer.hits).map(|(rank, hit)| render::link_name(rank, hit)).collect(),
            _ => Vec::new(),
        };
        let k = answers.first().map_or(0, |answer| answer.k);
        Self { answers, k, links, previous }
    }

    /// The same without the one before it, so that sets do not chain.
    fn alone(&self) -> Arc<Self> {
        let (answers, links) = (self.answers.clone(), self.links.clone());
        Arc::new(Self { answers, k: self.k, links, previous: None })
    }

    /// Every name and its kind.
    pub(super) fn names(&self) -> Vec<(Vec<u8>, Kind)> {
        let links = self.links.iter().map(|name| (name.clone(), Kind::Symlink));
        let files = ["results.json", "results.tsv", "ids.ivecs", "distances.fvecs"];
        links.chain(files.map(|name| (name.as_bytes().to_vec(), Kind::File))).collect()
    }

    /// What `name` is, seen from a set `depth` directories below `.vexfs`.
    pub(super) fn open(&self, name: &[u8], depth: usize) -> Option<Opened> {
        Some(match name {
            b"results.json" => Opened::Bytes(render::json(&self.answers)),
            b"results.tsv" => Opened::Bytes(render::tsv(&self.answers)),
            b"ids.ivecs" => Opened::Bytes(render::ids(&self.answers, self.k)),
            b"distances.fvecs" => Opened::Bytes(render::distances(&self.answers, self.k)),
            _ => match self.links.iter().position(|link| link == name) {
                Some(rank) => Opened::Link(target(self.answers.first()?.hits.get(rank)?, depth)),
                None => return self.previous.as_ref()?.open(name, depth),
            },
        })
    }
}

/// Where a hit's link points: the file, or the row of a file with several.
fn target(hit: &Hit, depth: usize) -> Vec<u8> {
    let mut target = Vec::new();
    if hit.multi {
        target.extend(b"../".repeat(depth));
        target.extend(b"rows/");
        target.extend_from_slice(&hit.path);
        target.extend(format!("/{:06}.f32", hit.row).bytes());
    } else {
        target.extend(b"../".repeat(depth + 1));
        target.extend_from_slice(&hit.path);
    }
    target
}

impl Volume {
    /// `similar/…/NAME`: a directory that is mirrored, or the neighbours of a file or `FILE#ROW`.
    #[inline(never)]
    pub(super) fn lookup_similar(
        &self,
        caller: &Caller,
        parent: &Node,
        dir: Ino,
        name: &[u8],
    ) -> Result<Arc<Node>> {
        let (inode, file, row) = self.mirrored(caller, dir, name)?;
        if inode.kind == Kind::Directory && row.is_none() {
            let what = What::Similar { dir: inode.ino };
            return Ok(self.same(caller, parent, name, what, Access::listing(&inode)));
        }
        let source = Source::File { dir, file: file.to_vec(), row, name: name.to_vec() };
        self.set(caller, parent, name, 0, source)
    }

    /// `results/NAME`: what the dropped query finds.
    #[inline(never)]
    pub(super) fn lookup_results(&self, caller: &Caller, parent: &Node, name: &[u8]) -> Result<Arc<Node>> {
        let query = self
            .control
            .saved
            .get(&(parent.base, name.to_vec()))
            .map(|query| Arc::clone(&query))
            .ok_or(Error::NotFound)?;
        if caller.uid != 0 && caller.uid != query.uid {
            return Err(Error::PermissionDenied);
        }
        let (generation, request) = query.request.lock().clone();
        let request = request.ok_or(Error::Invalid("the query is not complete"))?;
        // A small file can have a million vectors, whose answers are large.
        let limits = self.request_limits(parent.base)?;
        let k = limits.k(merged(&request.options, &parent.options).k);
        let checked = limits.check_answer(request.target.vectors() as u64, k);
        if checked.is_err() {
            self.noted(parent.base, &query.path(), query.uid, checked)?;
        }
        self.set(caller, parent, name, generation, Source::Query(query, request))
    }

    /// The child of an ordinary directory that a name below `similar/` or `rows/` stands for, its own name, and the row: a
    /// directory, or a file that the caller may read.
    pub(super) fn mirrored<'n>(
        &self,
        caller: &Caller,
        dir: Ino,
        name: &'n [u8],
    ) -> Result<(Inode, &'n [u8], Option<u32>)> {
        again(|| {
            let (ino, file, row) = match self.walk(caller, dir, name) {
                Err(Error::NotFound) => match split_row(name) {
                    (file, Some(row)) => (self.walk(caller, dir, file)?, file, Some(row)),
                    (_, None) => return Err(Error::NotFound),
                },
                found => (found?, name, None),
            };
            let inode = self.names.inode(ino)?;
            match inode.kind {
                Kind::Directory => Ok((inode, file, row)),
                _ if permits(&inode, caller, 4) => Ok((inode, file, row)),
                _ => Err(Error::PermissionDenied),
            }
        })
    }

    /// The set known under this name while nothing has changed, else a new one.
    fn set(
        &self,
        caller: &Caller,
        parent: &Node,
        name: &[u8],
        generation: u64,
        source: Source,
    ) -> Result<Arc<Node>> {
        let identity = (parent.ino, name.to_vec(), caller.uid, caller.gid);
        let version = (generation, self.search_version(parent.base)?);
        let is_current = |set: &ResultSet| set.version == version && set.source.is_same(&source);
        let fits = |node: &Node| matches!(&node.what, What::Set(set) if is_current(set));
        if let Some(node) = self.control.again(&identity, fits) {
            return Ok(node);
        }
        let last = self.control.last(&identity);
        let previous = last.as_ref().and_then(|node| match &node.what {
            What::Set(set) => set.found.get().map(|found| found.alone()),
            _ => None,
        });
        let set = ResultSet {
            version,
            base: parent.base,
            options: parent.options.clone(),
            source,
            found: OnceLock::new(),
            previous,
        };
        let access = Access::private(caller.uid, caller.gid, 0o500);
        Ok(self.control.add(parent, What::Set(Arc::new(set)), access, identity))
    }

    /// Whether the caller still sees what has the name `file` in `dir`.
    #[inline(never)]
    fn check_named(&self, caller: &Caller, dir: Ino, file: &[u8]) -> Result<()> {
        again(|| self.resolve(caller, dir, file)).map(drop)
    }

    #[inline(never)]
    fn found_by_query(
        &self,
        caller: &Caller,
        set: &ResultSet,
        query: &SavedQuery,
        request: &Request,
    ) -> Result<Vec<Answer>> {
        let options = merged(&request.options, &set.options);
        let request = Box::new(Request { target: request.target.clone(), options });
        match self.search(caller, set.base, &request) {
            Err(Error::Interrupted) => Err(Error::Interrupted),
            // What was right when it was dropped may fit no collection any more.
            answers => self.noted(set.base, &query.path(), query.uid, answers),
        }
    }

    /// What a set's query finds; it searches when it is asked first.
    pub(super) fn found(&self, caller: &Caller, set: &ResultSet) -> Result<Arc<FoundSet>> {
        if let Some(found) = set.found.get() {
            return Ok(Arc::clone(found));
        }
        let answers = match &set.source {
            Source::File { dir, file, row, name } => {
                let member = self.member_at(caller, *dir, file)?;
                let answer = self.neighbors_of(caller, set.base, member, *row, name, &set.options);
                // Behind the search: who took the permission away before a change is sure that it is not shown.
                self.check_named(caller, *dir, file)?;
                vec![answer?]
            }
            Source::Query(query, request) => self.found_by_query(caller, set, query, request)?,
        };
        let found = Arc::new(FoundSet::new(answers, set.previous.clone()));
        // Whoever was first has said what the set is.
        Ok(Arc::clone(set.found.get_or_init(|| found)))
    }
}

/// The options of a path element over those of the request itself.
fn merged(request: &Options, path: &Options) -> Options {
    // Of recall, ef and exact one is meant: what the path says of them stands for what the request says.
    let effort = if path.recall.is_some() || path.ef.is_some() || path.exact { path } else { request };
    Options {
        k: path.k.or(request.k),
        max: path.max.or(request.max),
        condition: path.condition.as_ref().or(request.condition.as_ref()).cloned(),
        ..effort.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paths_effort_stands_for_that_of_the_request() {
        let request = Options { k: Some(3), ef: Some(50), max: Some(1.0), ..Options::default() };
        let path = Options { recall: Some(0.9), max: Some(2.0), ..Options::default() };
        let both = Options { k: Some(3), recall: Some(0.9), max: Some(2.0), ..Options::default() };
        assert_eq!(merged(&request, &path), both);
        let path = Options { k: Some(4), ..Options::default() };
        assert_eq!(merged(&request, &path), Options { k: Some(4), ..request.clone() });
    }

    #[test]
    fn a_links_target_climbs_out_of_the_control_directory() {
        let mut hit =
            Hit { path: (*b"sub/b.npy").into(), row: 7, multi: false, id: 0, distance: 0.0, score: 0.0 };
        // .vexfs/similar/a.f32/LINK
        assert_eq!(target(&hit, 2), b"../../../sub/b.npy");
        hit.multi = true;
        assert_eq!(target(&hit, 3), b"../../../rows/sub/b.npy/000007.f32");
    }
}
