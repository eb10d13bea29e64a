//! Searching: in which collections, what the caller may see of them, and the paths of hits.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;

use super::Volume;
use super::awaited::Awaited;
use super::ingest::{Member, State};
use super::pace::other_cpus;
use super::permission::permits;
use super::types::Caller;
use crate::collection::{Collection, FileNumber, Filter};
use crate::distance::{self, Metric};
use crate::format;
use crate::index::flat::Matrix;
use crate::index::{Neighbor, Query, RowId};
use crate::metrics::SearchKind;
use crate::namespace::{Content, Ino};
use crate::search::explain::Explained;
use crate::search::nearest::Near;
use crate::search::request::RequestLimits;
use crate::search::{Answer, Context, Hit, Limits, Options, Request, Target, Way, nearest};
use crate::store;
use crate::{Error, Result};

/// How long one request may take.
pub(super) const ALLOWANCE: Duration = Duration::from_secs(30);

/// How long a search is run again when a hit has lost its name: a change is committed, and about to be visible.
pub(super) const CATCH_UP: Duration = Duration::from_millis(500);

/// How often a name is looked up that leads to a file which is gone by the time it is looked at.
const LOOKS: usize = 8;

/// Paths of hits that are kept.
const PATHS: usize = 16 << 10;

/// Paths of vector files by directory asked, file, user and group, and the state of names and directories that each was
/// found in.
pub(super) type Paths = DashMap<(Ino, Ino, u32, u32), ((u64, u64), Arc<[u8]>)>;

/// A query vector, who asks about it and in which directory, and what is known about it.
struct Asked<'a> {
    caller: &'a Caller,
    base: Ino,
    vector: &'a [f32],
    /// The file that is asked about: it is not its own neighbour.
    exclude: Option<(FileNumber, u32)>,
    /// How many hits are wanted.
    k: u32,
}

/// What was found for a query vector, before it has names.
struct Candidates {
    near: Vec<Near>,
    is_exact: bool,
    pending: u64,
    /// For each part, where that is asked for.
    explained: Vec<Option<Box<Explained>>>,
}

impl Default for Candidates {
    fn default() -> Self {
        Self { near: Vec::new(), is_exact: true, pending: 0, explained: Vec::new() }
    }
}

/// The collections that are searched, in the [`sight`](Volume::sight) in which that was judged.
#[derive(Clone)]
struct Judged {
    sight: (u64, usize),
    parts: Vec<Part>,
}

/// A collection, and what of it may be returned.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) collection: Arc<Collection>,
    pub(super) filter: Filter,
}

impl Volume {
    /// Answers a request asked in directory `base`: one answer for each query vector. The search covers the
    /// subtree of `base`, and returns only files that the caller may read.
    ///
    /// # Errors
    ///
    /// [`Error::Dimension`], [`Error::NotFinite`], [`Error::ZeroVector`], [`Error::NotAVector`],
    /// [`Error::Missing`], [`Error::Request`], [`Error::TooLarge`], [`Error::Deadline`], [`Error::Interrupted`],
    /// [`Error::NoEmbedder`].
    pub fn search(&self, caller: &Caller, base: Ino, request: &Request) -> Result<Vec<Answer>> {
        let k = self.checked_k(base, &request.options)?;
        match &request.target {
            Target::Text(_) => Err(Error::NoEmbedder),
            Target::Nothing => self.explain_without_a_query(caller, base, k, &request.options),
            Target::Vectors { dim, values } => {
                self.neighbors_of_all(caller, base, (*dim, values), k, &request.options)
            }
            Target::Like { path, row } => {
                let member = self.member_at(caller, base, path.as_bytes()).map_err(|error| match error {
                    Error::NotFound | Error::NotDirectory => Error::Missing { path: path.clone() },
                    other => other,
                })?;
                self.neighbors_of(caller, base, member, *row, path.as_bytes(), &request.options)
                    .map(|answer| vec![answer])
            }
        }
    }

    /// What is wrong with a request as things are now. Nothing is searched for; whether a file is there that `like`
    /// names is left to the search.
    ///
    /// # Errors
    ///
    /// As [`search`](Self::search).
    pub(super) fn check_request(&self, caller: &Caller, base: Ino, request: &Request) -> Result<()> {
        self.checked_k(base, &request.options)?;
        match &request.target {
            Target::Text(_) => Err(Error::NoEmbedder),
            Target::Like { .. } | Target::Nothing => Ok(()),
            Target::Vectors { dim, values } => {
                let parts = self.parts(caller, base, *dim, (None, &request.options))?;
                let mut vectors = (0..).zip(values.chunks_exact((*dim as usize).max(1)));
                vectors.try_for_each(|(row, vector)| check_query(row, vector, &parts))
            }
        }
    }

    /// The neighbours of vectors of `dim` elements. A batch that takes long is shared with idle cores. Apart, because a
    /// search like a file does not pay for this frame.
    #[inline(never)]
    fn neighbors_of_all(
        &self,
        caller: &Caller,
        base: Ino,
        (dim, values): (u32, &[f32]),
        k: u32,
        options: &Options,
    ) -> Result<Vec<Answer>> {
        let judge = || self.judge(caller, base, dim, (None, options));
        let first = judge()?;
        let vectors = values.chunks_exact((dim as usize).max(1));
        let helpers = match self.pace.helpers(base, vectors.len()) {
            0 => 0,
            helpers => helpers.min(other_cpus()),
        };
        self.crew.share(vectors.len(), helpers, |left| {
            let awaited = Awaited::by(caller);
            let is_awaited = |now| awaited.check(now);
            let limits = Limits::within(ALLOWANCE).while_awaited(&is_awaited);
            let mut context = Context { scratch: &mut self.scratch.take(), limits };
            let mut answers = Vec::with_capacity(vectors.len());
            let mut judged = first.clone();
            for number in left.take() {
                let Some(vector) = vectors.clone().nth(number) else { break };
                // What comes next is on its way meanwhile.
                vectors.clone().nth(number + 1).into_iter().for_each(distance::prefetch);
                let asked = Asked { caller, base, vector, exclude: None, k };
                answers.push((number, self.answer(&asked, options, (&judge, &mut judged), &mut context)?));
            }
            Ok(answers)
        })
    }

    /// The neighbours of a file's vector: of what was [`member`](Self::member) when it was looked at. `path` is how the
    /// caller named it, for messages.
    ///
    /// # Errors
    ///
    /// As [`search`](Self::search).
    pub(super) fn neighbors_of(
        &self,
        caller: &Caller,
        base: Ino,
        member: Option<Box<Member>>,
        row: Option<u32>,
        path: &[u8],
        options: &Options,
    ) -> Result<Answer> {
        let k = self.checked_k(base, options)?;
        let (file, metric, row) = self.vector_row(member, row, path)?;
        let mut scratch = vec![0.0; file.dim() as usize];
        let vector = file.sound_row(row.into(), &mut scratch)?;
        let asked = Asked { caller, base, vector, exclude: Some((file.number(), row)), k };
        let judge = || self.judge(caller, base, file.dim(), (Some(metric), options));
        let mut judged = judge()?;
        let awaited = Awaited::by(caller);
        let is_awaited = |now| awaited.check(now);
        let limits = Limits::within(ALLOWANCE).while_awaited(&is_awaited);
        let mut context = Context { scratch: &mut self.scratch.take(), limits };
        let answer = self.answer(&asked, options, (&judge, &mut judged), &mut context);
        file.bytes().check_read().and(answer)
    }

    /// Distance between the vectors of two files of one collection's metric.
    ///
    /// # Errors
    ///
    /// [`Error::NotAVector`], [`Error::Dimension`].
    pub(super) fn distance_between(
        &self,
        member: Option<Box<Member>>,
        other: (Option<Box<Member>>, Option<u32>, &[u8]),
    ) -> Result<f32> {
        let (file, metric, row) = self.vector_row(member, None, b"the file")?;
        let (to, _, to_row) = self.vector_row(other.0, other.1, other.2)?;
        if to.dim() != file.dim() {
            return Err(Error::Dimension { expected: file.dim(), got: to.dim() });
        }
        let (mut a, mut b) = (vec![0.0; file.dim() as usize], vec![0.0; file.dim() as usize]);
        let other = Matrix::new(to.dim() as usize, to.sound_row(to_row.into(), &mut b)?.to_vec());
        let query = Query::new(metric, file.sound_row(row.into(), &mut a)?);
        let key = query.key(&other, RowId(0), &mut []).unwrap_or(f32::INFINITY);
        let distance = query.distance(&other, Neighbor { row: RowId(0), key }, &mut []);
        file.bytes().check_read().and(to.bytes().check_read())?;
        Ok(distance)
    }

    /// The version of a vector file, its metric, and the row meant.
    #[inline(never)]
    pub(super) fn vector_row(
        &self,
        member: Option<Box<Member>>,
        row: Option<u32>,
        path: &[u8],
    ) -> Result<(Arc<crate::collection::VectorFile>, Metric, u32)> {
        let not_a_vector =
            |why: String| Error::NotAVector { path: String::from_utf8_lossy(path).into_owned(), why };
        let Member { root, state, .. } = *member.ok_or_else(|| not_a_vector("has no vector".into()))?;
        match state {
            State::Invalid(problem) => Err(not_a_vector(format!("invalid: {}", problem.reason))),
            State::Valid { file, .. } => {
                let rows = file.rows();
                let row = match row {
                    None if rows == 1 => 0,
                    None => {
                        // In a request `FILE#0` is the name of a file.
                        let how = r#"FILE#0 in a path, "row":0 in a request"#;
                        return Err(not_a_vector(format!("has {rows} rows: name one of them, {how}")));
                    }
                    Some(row) if u64::from(row) < rows => row,
                    Some(row) => return Err(not_a_vector(format!("row {row}, the file has {rows}"))),
                };
                let metric = self.vectors.schema(root).metric;
                Ok((file, metric, row))
            }
        }
    }

    /// What a file is a member of, if of anything. Between a commit that gives it vectors and the moment in which they
    /// are to be seen it is waited for.
    ///
    /// # Errors
    ///
    /// `NotFound` when it is gone.
    #[inline(never)]
    pub(super) fn member(&self, ino: Ino) -> Result<Option<Box<Member>>> {
        let mut since = None;
        loop {
            if let Some(member) = self.vectors.members(ino).into_iter().next() {
                return Ok(Some(Box::new(member)));
            }
            let is_late = since.get_or_insert_with(Instant::now).elapsed() > CATCH_UP;
            if is_late || !self.is_about_to_be_member(ino)? {
                return Ok(None);
            }
            std::thread::yield_now();
        }
    }

    /// Whether a file has all that makes it a member, in a volume that changes.
    #[inline(never)]
    fn is_about_to_be_member(&self, ino: Ino) -> Result<bool> {
        let has_content = self.inode(ino)?.content != Content::Empty;
        let is_settled = has_content && !self.is_busy(ino) && !self.is_backed(ino);
        Ok(is_settled && !self.life.is_read_only() && self.wants_vectors(ino))
    }

    /// The [`member`](Self::member) that `path`, relative to `base`, names for the caller. A name leads to a file at
    /// every moment while others are renamed over it.
    #[inline(never)]
    pub(super) fn member_at(&self, caller: &Caller, base: Ino, path: &[u8]) -> Result<Option<Box<Member>>> {
        again(|| {
            let ino = self.resolve(caller, base, path)?;
            match self.member(ino)? {
                // Replaced, but still open.
                None if self.resolve(caller, base, path)? != ino => Err(Error::NotFound),
                member => Ok(member),
            }
        })
    }

    /// The bounds of requests asked in `base`.
    pub(super) fn request_limits(&self, base: Ino) -> Result<RequestLimits> {
        let schema = self.vectors.schema(self.collection_root(base)?);
        Ok(RequestLimits { max_k: schema.max_k, max_dim: schema.max_dim, max_bytes: schema.max_query })
    }

    /// How many hits are wanted, by options within the bounds of requests asked in `base`.
    fn checked_k(&self, base: Ino, options: &Options) -> Result<u32> {
        let limits = self.request_limits(base)?;
        options.check(&limits)?;
        Ok(limits.k(options.k))
    }

    /// What is searched for vectors of `dim` elements, as [`parts`](Self::parts) says at this moment.
    fn judge(
        &self,
        caller: &Caller,
        base: Ino,
        dim: u32,
        wanted: (Option<Metric>, &Options),
    ) -> Result<Judged> {
        // Taken first: what changes meanwhile makes it another one.
        let sight = self.sight();
        Ok(Judged { sight, parts: self.parts(caller, base, dim, wanted)? })
    }

    /// The collections in which vectors of `dim` elements are looked for, with one metric: `metric` where one of them
    /// has it.
    #[inline(never)]
    fn parts(
        &self,
        caller: &Caller,
        base: Ino,
        dim: u32,
        (metric, options): (Option<Metric>, &Options),
    ) -> Result<Vec<Part>> {
        let covered = self.covered(caller, base)?;
        let own = self.vectors.existing(self.collection_root(base)?);
        let fitting: Vec<_> =
            covered.iter().filter(|collection| collection.dim() == Some(dim)).cloned().collect();
        if fitting.is_empty() {
            let declared = own.as_ref().and_then(|collection| collection.dim());
            return match declared.or_else(|| covered.first().and_then(|collection| collection.dim())) {
                Some(expected) if expected != dim => Err(Error::Dimension { expected, got: dim }),
                _ => Ok(Vec::new()),
            };
        }
        let of_own = own.filter(|own| own.dim() == Some(dim)).map(|own| own.schema().metric);
        // That of a file from elsewhere may be none of theirs: to leave all of them out would be no answer.
        let is_here = |metric: &Metric| fitting.iter().any(|here| here.schema().metric == *metric);
        let metric = match metric.filter(is_here).or(of_own) {
            Some(metric) => metric,
            None => common_metric(&fitting)?,
        };
        let mut parts = Vec::new();
        for collection in fitting {
            if collection.schema().metric == metric {
                let allowed = self.allowed(caller, base, &collection)?;
                let filter = Filter { condition: options.condition.clone(), ..Filter::files(allowed) };
                parts.push(Part { collection, filter });
            }
        }
        Ok(parts)
    }

    /// The answer about one vector, in what was `judged`, or is by `judge` once that is not so any more: a batch may take half
    /// a minute, and what is closed to the caller meanwhile is not found. It is not complete when a hit was lost.
    #[inline(never)]
    fn answer(
        &self,
        asked: &Asked<'_>,
        options: &Options,
        (judge, judged): (&dyn Fn() -> Result<Judged>, &mut Judged),
        context: &mut Context<'_>,
    ) -> Result<Answer> {
        let started = Instant::now();
        context.limits.check(started)?;
        let mut candidates = Candidates::default();
        let (metric, hits, complete) = loop {
            if self.sight() != judged.sight {
                *judged = judge()?;
            }
            check_query(0, asked.vector, &judged.parts)?;
            let metric = metric_of(&judged.parts).unwrap_or_default();
            while !self.find(asked, options, &judged.parts, context, started, &mut candidates)? {}
            let (hits, lost) = self.hits(asked, &mut candidates.near, asked.k as usize, metric)?;
            if !lost || started.elapsed() > CATCH_UP {
                break (metric, hits, !lost);
            }
            std::thread::yield_now();
        };
        let (exact, pending) = (candidates.is_exact, candidates.pending);
        let took = started.elapsed();
        self.metrics.search(if exact { SearchKind::Exact } else { SearchKind::Graph }, took);
        self.pace.note(asked.base, took);
        let explain = match options.explain {
            true => {
                let dim = u32::try_from(asked.vector.len()).unwrap_or(u32::MAX);
                let who = (asked.caller, asked.base);
                Some(self.explanation(who, &judged.parts, candidates.explained.into_iter().flatten(), dim)?)
            }
            false => None,
        };
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Ok(Answer { k: asked.k, metric, exact, complete, pending, took_us, hits, explain })
    }

    /// Looks for the nearest in each of `parts`; false when that has to be done again. Apart, so that what it needs is
    /// not on the stack while names are read.
    #[inline(never)]
    fn find(
        &self,
        asked: &Asked<'_>,
        options: &Options,
        parts: &[Part],
        context: &mut Context<'_>,
        started: Instant,
        candidates: &mut Candidates,
    ) -> Result<bool> {
        let damages = store::damages();
        let k = asked.k as usize;
        self.vectors.withdraw_unreadable(&self.names, damages);
        *candidates = Candidates::default();
        for part in parts {
            let found =
                nearest(&part.collection, asked.vector, k, options, &part.filter, asked.exclude, context)?;
            if !found.unknown.is_empty() {
                let is_late = started.elapsed() > CATCH_UP;
                self.learn_attributes(&part.collection, found.unknown, is_late)?;
                context.limits.check(Instant::now())?;
                return Ok(false);
            }
            let is_exact = found.way == Way::Scan;
            if is_exact && found.pending > 0 {
                // A graph was wanted and gave no answer: it may be damaged.
                self.indexer.wake();
            }
            candidates.is_exact &= is_exact;
            candidates.pending += found.pending;
            candidates.explained.push(found.explained);
            match candidates.near.is_empty() {
                true => candidates.near = found.near,
                false => candidates.near.extend(found.near),
            }
        }
        if parts.len() > 1 {
            // A file that is in several of them is one hit, with the number that it has in the first.
            candidates.near.sort_by_key(|near| (near.file, near.index));
            candidates.near.dedup_by_key(|near| (near.file, near.index));
        }
        // What could not be read was compared as zeros.
        Ok(store::damages() == damages)
    }

    /// The first `k` candidates with their paths, ties broken by path, then row. The flag says that one of them
    /// lost its name meanwhile.
    #[inline(never)]
    fn hits(
        &self,
        asked: &Asked<'_>,
        candidates: &mut Vec<Near>,
        k: usize,
        metric: Metric,
    ) -> Result<(Vec<Hit>, bool)> {
        candidates.sort_unstable_by(|a, b| a.distance.total_cmp(&b.distance));
        if let Some(last) = candidates.get(k.saturating_sub(1)).map(|last| last.distance) {
            let ties = candidates[k..].partition_point(|candidate| candidate.distance <= last);
            candidates.truncate(k + ties);
        }
        let mut hits = Vec::with_capacity(candidates.len());
        let mut lost = false;
        // Hits are often rows of one file: that of the last one.
        let mut last = None;
        for near in &*candidates {
            let path = match hits.last() {
                Some(Hit { path, .. }) if last == Some(near.file) => Some(Arc::clone(path)),
                _ => self.hit_path(asked.caller, asked.base, Ino(near.file.0))?,
            };
            let Some(path) = path else {
                lost = true;
                continue;
            };
            last = Some(near.file);
            hits.push(Hit {
                path,
                row: near.index,
                multi: near.multi,
                id: near.row.0,
                distance: near.distance,
                score: metric.score(near.distance),
            });
        }
        hits.sort_unstable_by(by_distance_path_row);
        hits.truncate(k);
        Ok((hits, lost))
    }

    /// The first of a file's recognised names below `base` by which the caller sees it, as a path relative to it.
    pub(super) fn hit_path(&self, caller: &Caller, base: Ino, ino: Ino) -> Result<Option<Arc<[u8]>>> {
        let key = (base, ino, caller.uid, caller.gid);
        // Taken before the names are read: what is read during a change is not kept.
        let version = (self.vectors.tree(), self.vectors.names());
        if let Some(known) = self.paths.get(&key)
            && known.0 == version
        {
            return Ok(Some(Arc::clone(&known.1)));
        }
        let Some(path) = self.find_path(caller, base, ino)?.map(Arc::from) else { return Ok(None) };
        if self.paths.len() >= PATHS {
            self.paths.clear();
        }
        self.paths.insert(key, (version, Arc::clone(&path)));
        Ok(Some(path))
    }

    /// Apart, so that the inode's record is not on the stack while names are read.
    #[inline(never)]
    fn may_read(&self, caller: &Caller, ino: Ino) -> Result<bool> {
        Ok(permits(&self.inode(ino)?, caller, 4))
    }

    #[inline(never)]
    fn find_path(&self, caller: &Caller, base: Ino, ino: Ino) -> Result<Option<Vec<u8>>> {
        if caller.uid != 0 && !self.may_read(caller, ino)? {
            return Ok(None);
        }
        for link in self.names.links(ino)? {
            if format::recognise(&link.name).is_none() {
                continue;
            }
            match self.names.path_below(&link, base) {
                Ok(Some(path)) if self.may_traverse(caller, link.parent) => return Ok(Some(path)),
                Ok(_) | Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// What `look` finds by a name. When that is nothing, another file may have taken the name since it was looked up, so it
/// is looked up again.
pub(super) fn again<T>(mut look: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..LOOKS {
        match look() {
            Err(Error::NotFound) => {}
            found => return found,
        }
    }
    look()
}

/// The metric of what is searched, if anything is.
fn metric_of(parts: &[Part]) -> Option<Metric> {
    parts.first().map(|part| part.collection.schema().metric)
}

/// Checks that a query vector has distances there.
fn check_query(row: u64, vector: &[f32], parts: &[Part]) -> Result<()> {
    format::check_vector(row, vector, metric_of(parts) == Some(Metric::Cosine))
}

fn common_metric(collections: &[Arc<Collection>]) -> Result<Metric> {
    let metric = collections[0].schema().metric;
    match collections.iter().map(|collection| collection.schema().metric).find(|&other| other != metric) {
        None => Ok(metric),
        Some(other) => Err(Error::Request(format!(
            "the collections below differ in metric ({} and {}): ask in one of them",
            metric.name(),
            other.name()
        ))),
    }
}

fn by_distance_path_row(a: &Hit, b: &Hit) -> Ordering {
    a.distance.total_cmp(&b.distance).then_with(|| a.path.cmp(&b.path)).then_with(|| a.row.cmp(&b.row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::OpenFlags;
    use crate::volume::testing::{self, ROOT};

    fn put(volume: &Volume, dir: Ino, name: &[u8], mode: u16, vector: [f32; 2]) {
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let handle = volume.create(&ROOT, dir, name, mode, flags).unwrap().1.handle;
        let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
        volume.write(&ROOT, handle, 0, &bytes).unwrap();
        volume.flush(&ROOT, handle).unwrap();
        volume.release(handle).unwrap();
    }

    #[test]
    fn a_file_that_came_after_the_judgement_is_not_found_by_it() {
        let (_store, volume) = testing::volume();
        let dir = volume.mkdir(&ROOT, Ino::ROOT, b"d", 0o755).unwrap().ino;
        put(&volume, dir, b"a.f32", 0o644, [1.0, 0.0]);
        let user = Caller { uid: 1000, gid: 1000, pid: 0 };
        let options = Options::default();
        let judged = volume.judge(&user, dir, 2, (None, &options)).unwrap();
        let found = |judged: &Judged| {
            let asked = Asked { caller: &user, base: dir, vector: &[0.0, 1.0], exclude: None, k: 10 };
            let mut context =
                Context { scratch: &mut volume.scratch.take(), limits: Limits::within(ALLOWANCE) };
            let mut candidates = Candidates::default();
            let now = Instant::now();
            volume.find(&asked, &options, &judged.parts, &mut context, now, &mut candidates).unwrap();
            candidates.near.iter().map(|near| near.row.0).collect::<Vec<_>>()
        };
        assert_eq!(found(&judged), [0]);
        put(&volume, dir, b"secret.f32", 0o600, [0.0, 1.0]);
        assert_eq!(found(&judged), [0]);
        let anew = volume.judge(&user, dir, 2, (None, &options)).unwrap();
        assert!(anew.sight != judged.sight);
        assert_eq!(found(&anew), [0]);
        volume.close().unwrap();
    }
}
