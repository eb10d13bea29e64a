//! Which rows a search may return, and the row sets that come of it.
//!
//! A set belongs to one version of the collection. Sets of recent filters are kept; when the collection has moved
//! on, a set is brought to the new version by the changes since, so that a filtered search beside a writer does
//! not look at every file.
//!
//! A filter with a condition needs the attributes of files. Where they are not known there is no set, but the list of
//! those files ([`NoRows::Unknown`]); whoever searches makes them known and asks again.
//!
//! **Invariant:** a change is in the log before its version is published, so a reader of a version finds there
//! everything that led to it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use super::condition::Condition;
use super::file::VectorFile;
use super::table::Reader;
use crate::index::{RowId, RowSet};
use crate::sync::{ArcSwap, Mutex};

/// Filters whose sets are kept: at most this many times one bit for each row number.
const MAX_SETS: usize = 64;

/// Changes that are kept. A set older than these is built from the files.
const MAX_CHANGES: usize = 1024;

/// Which files a search may return: those whose group is in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Every file.
    All,
    /// Files of the first groups, as many as this: every file, when it was decided. Groups that came later have not
    /// been judged.
    First(u32),
    /// Files whose group number is set; longer numbers are not.
    Groups(Vec<bool>),
}

static ALL: LazyLock<Arc<Allowed>> = LazyLock::new(|| Arc::new(Allowed::All));

impl Allowed {
    /// Whether files of `group` may be returned.
    #[must_use]
    pub fn contains(&self, group: u32) -> bool {
        match self {
            Allowed::All => true,
            Allowed::First(first) => group < *first,
            Allowed::Groups(set) => set.get(group as usize).copied().unwrap_or(false),
        }
    }

    /// Whether every file of the first `groups` groups may be returned, as far as that is plain.
    fn has_all(&self, groups: u32) -> bool {
        match *self {
            Allowed::All => true,
            Allowed::First(first) => groups <= first,
            Allowed::Groups(_) => false,
        }
    }
}

/// Which rows a search may return: those of allowed files that fulfil a condition and are in a set, where one is given.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The files.
    pub allowed: Arc<Allowed>,
    /// Rows of any origin, `None` for all. Rows of it that are not live are not returned. Hand in the same set
    /// again, not an equal one: what is derived of it is kept for as long as it is the same.
    pub within: Option<Arc<RowSet>>,
    /// What the attributes of their file are to be like.
    pub condition: Option<Arc<Condition>>,
}

/// Why there is no set of rows.
#[derive(Debug)]
pub enum NoRows {
    /// The attributes of these files are not known.
    Unknown(Vec<Arc<VectorFile>>),
    /// More attributes would have to be kept than may be.
    TooMany,
    /// It took too long.
    Stopped,
}

/// Files between two looks whether the search goes on.
const BETWEEN_LOOKS: usize = 64;

impl Filter {
    /// Every row of the allowed files.
    #[must_use]
    pub fn files(allowed: Arc<Allowed>) -> Self {
        Self { allowed, within: None, condition: None }
    }

    /// Every row.
    #[must_use]
    pub fn all() -> Self {
        Self::files(Arc::new(Allowed::All))
    }

    /// Whether it lets every row of a collection pass whose files are of the first `groups` groups.
    #[must_use]
    pub fn is_all(&self, groups: u32) -> bool {
        self.within.is_none() && self.condition.is_none() && self.allowed.has_all(groups)
    }

    /// The same for a collection whose files are of the first `groups` groups. Where all of them are allowed it does
    /// not depend on how many others there were, so its rows are found again when there are more.
    pub(super) fn among(&self, groups: u32) -> Self {
        let allowed = if self.allowed.has_all(groups) { &ALL } else { &self.allowed };
        Self { allowed: Arc::clone(allowed), ..self.clone() }
    }

    fn is(&self, other: &Filter) -> bool {
        let same_rows = match (&self.within, &other.within) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        let same_files = || Arc::ptr_eq(&self.allowed, &other.allowed) || self.allowed == other.allowed;
        same_rows && self.condition == other.condition && same_files()
    }

    /// Whether the condition holds for a file. One whose attributes are not known is added to `unknown`.
    fn holds_for(&self, file: &Arc<VectorFile>, unknown: &mut Vec<Arc<VectorFile>>) -> bool {
        let Some(condition) = &self.condition else { return true };
        file.fulfils(condition).unwrap_or_else(|| {
            unknown.push(Arc::clone(file));
            false
        })
    }

    fn add(&self, set: &mut RowSet, rows: Range<u32>) {
        match &self.within {
            None => set.insert_range(rows),
            Some(within) => {
                set.extend(within.iter_from(RowId(rows.start)).take_while(|row| row.0 < rows.end));
            }
        }
    }
}

/// What happened to the rows of one file.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    rows: Range<u32>,
    /// The group in which the rows are from then on, `None` when they are gone.
    group: Option<u32>,
}

#[derive(Debug, Default)]
struct Log {
    changes: VecDeque<Change>,
    /// Every change after this version is there.
    since: u64,
}

/// The set of one filter at one version.
#[derive(Debug)]
struct Known {
    filter: Filter,
    version: u64,
    rows: Arc<RowSet>,
}

/// The sets of recent filters, and what they are kept up to date with.
#[derive(Debug, Default)]
pub(super) struct FilterCache {
    /// Newest last.
    known: ArcSwap<Vec<Arc<Known>>>,
    /// Held for a few stores, or by a search that meets a new version while it copies the changes since.
    log: Mutex<Log>,
}

impl FilterCache {
    /// Notes what becomes of a file's rows at `version`, before it is published.
    pub(super) fn note(&self, version: u64, file: &VectorFile, group: Option<u32>) {
        let mut log = self.log.lock();
        if log.changes.len() == MAX_CHANGES
            && let Some(dropped) = log.changes.pop_front()
        {
            log.since = dropped.version;
        }
        log.changes.push_back(Change { version, rows: file.row_range(), group });
    }

    /// Notes that at `version` more has happened than is worth noting, before it is published.
    pub(super) fn forget(&self, version: u64) {
        let mut log = self.log.lock();
        log.changes.clear();
        log.since = version;
    }

    /// The rows that `filter` lets pass at the reader's version. `goes_on` is asked at times, where it takes long.
    pub(super) fn rows(
        &self,
        filter: &Filter,
        reader: &Reader,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Arc<RowSet>, NoRows> {
        let version = reader.version();
        let known = self.known.load();
        let last = known.iter().rfind(|known| known.filter.is(filter));
        if let Some(last) = last
            && last.version == version
        {
            return Ok(Arc::clone(&last.rows));
        }
        let caught_up = last.and_then(|last| self.catch_up(last, reader)).transpose()?;
        let rows = Arc::new(match caught_up {
            Some(rows) => rows,
            None => build(filter, reader, goes_on)?,
        });
        if last.is_none_or(|last| last.version < version) {
            self.keep(&Arc::new(Known { filter: filter.clone(), version, rows: Arc::clone(&rows) }));
        }
        Ok(rows)
    }

    /// The set of `last` at the reader's later version, `None` when the log does not go back far enough.
    fn catch_up(&self, last: &Known, reader: &Reader) -> Option<Result<RowSet, NoRows>> {
        let changes = self.changes(last.version, reader.version())?;
        let filter = &last.filter;
        let mut rows = RowSet::clone(&last.rows);
        let mut unknown = Vec::new();
        for change in changes {
            // What has been removed since is not there any more, and its removal follows in the log.
            let holds = |unknown: &mut _| match &filter.condition {
                None => true,
                Some(_) => reader
                    .row(RowId(change.rows.start))
                    .is_some_and(|row| filter.holds_for(row.file, unknown)),
            };
            let is_allowed = change.group.is_some_and(|group| filter.allowed.contains(group));
            if is_allowed && holds(&mut unknown) {
                filter.add(&mut rows, change.rows);
            } else {
                rows.remove_range(change.rows);
            }
        }
        Some(if unknown.is_empty() { Ok(rows) } else { Err(NoRows::Unknown(unknown)) })
    }

    /// The changes after one version up to another. Copied, so that no writer waits for what is done with them.
    fn changes(&self, after: u64, until: u64) -> Option<Vec<Change>> {
        let log = self.log.lock();
        if after > until || after < log.since {
            return None;
        }
        let begin = log.changes.partition_point(|change| change.version <= after);
        let end = log.changes.partition_point(|change| change.version <= until);
        Some(log.changes.range(begin..end).cloned().collect())
    }

    fn keep(&self, new: &Arc<Known>) {
        self.known.rcu(|known| {
            let others = known.iter().filter(|known| !known.filter.is(&new.filter));
            let mut kept: Vec<_> = others.cloned().collect();
            kept.drain(..kept.len().saturating_sub(MAX_SETS - 1));
            kept.push(Arc::clone(new));
            kept
        });
    }
}

/// The set from the files, each looked at once.
fn build(filter: &Filter, reader: &Reader, goes_on: &mut dyn FnMut() -> bool) -> Result<RowSet, NoRows> {
    let mut rows = RowSet::new();
    let mut unknown = Vec::new();
    for (at, run) in reader.runs_from(RowId(0)).enumerate() {
        if filter.condition.is_some() && at % BETWEEN_LOOKS == 0 && !goes_on() {
            return Err(NoRows::Stopped);
        }
        if filter.allowed.contains(run.file.group()) && filter.holds_for(run.file, &mut unknown) {
            filter.add(&mut rows, run.rows);
        }
    }
    if unknown.is_empty() { Ok(rows) } else { Err(NoRows::Unknown(unknown)) }
}
