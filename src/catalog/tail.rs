//! The newest commits, which the engine has not been given yet.
//!
//! A file that is created, written and given its attributes is several commits to the same records, and a directory has
//! one for each of its files. So a commit is written to the [log](super::log), which makes it outlive the process, and
//! kept here. When the log is full, or somebody wants everything on disk, all of it becomes one commit of the engine, in
//! which each key has its last value.
//!
//! ```text
//! commit ──▶ log ──▶ tail ──▶ return
//!             │ full       ▲
//! persist ────┴──▶ give: the engine takes one batch ──▶ tail and log are empty
//! read ──▶ tail, and what it does not have from the engine
//! open ──▶ engine ──▶ what the log has beyond it, given and durable
//! ```
//!
//! **Promise.** What the tail has is newer than what the engine has, and is let go of when the engine has it: a reader
//! that asks the tail first never sees a commit without those before it. Commits are given in their order and all
//! together, so after a power cut there are all up to some commit, and none beyond.
//!
//! The engine goes deep in the stack, so its part is done [aside](aside).
//!
//! What the log does not take, a large batch, or any where there is no room for a log, is given to the engine at once,
//! behind what is here.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::path::Path;

use super::Table;
use super::batch::{Item, journal_bytes};
use super::engine::{Catalog, Value};
use super::log::{self, Log};
use crate::pool::shallow::aside;
use crate::{Error, Result};

/// What is in the tail: of each table the keys that were put, and with `None` those that were removed.
#[derive(Debug, Default)]
pub(super) struct Tail {
    tables: [BTreeMap<Value, Option<Value>>; Table::ALL.len()],
}

/// Who commits: held during a commit, so that numbers are in the order of log and journal.
#[derive(Debug)]
pub(super) struct Commits {
    /// The number of the last commit.
    pub(super) last: u64,
    /// The number of the last that the engine has.
    given: u64,
    /// Bytes that the journal takes for the tail, at most.
    bytes: usize,
    log: Begun,
}

#[derive(Debug)]
enum Begun {
    /// Nothing was committed yet.
    NotYet,
    Log(Log),
    /// It could not be made or written: every commit is given to the engine at once.
    Failed,
}

impl Tail {
    /// What was last put under `key`; `Some(None)` when it was removed.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Value>> {
        self.tables[table as usize].get(key)
    }

    /// The keys of a range in their order, at most `limit`.
    pub(super) fn range(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        limit: usize,
    ) -> VecDeque<(Value, Option<Value>)> {
        let range = self.tables[table as usize].range::<[u8], _>(range);
        range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn put(&mut self, items: &[Item]) {
        for Item { table, key, value } in items {
            self.tables[*table as usize].insert(key.clone(), value.clone());
        }
    }

    fn items(&self) -> Vec<Item> {
        let mut items = Vec::with_capacity(self.tables.iter().map(BTreeMap::len).sum());
        for (&table, keys) in Table::ALL.iter().zip(&self.tables) {
            items.extend(keys.iter().map(|(key, value)| Item {
                table,
                key: key.clone(),
                value: value.clone(),
            }));
        }
        items
    }
}

impl Commits {
    pub(super) fn from(last: u64) -> Self {
        Self { last, given: last, bytes: 0, log: Begun::NotYet }
    }

    /// Appends a commit to the log; false when there is no room left in it, or no log.
    fn append(&mut self, dir: &Path, items: &[Item]) -> bool {
        if let Begun::NotYet = self.log {
            self.log = match aside(|| Ok(Log::begin(dir)?)) {
                Ok(log) => Begun::Log(log),
                Err(error) => failed(&error),
            };
        }
        let Begun::Log(log) = &mut self.log else { return false };
        log.append(self.last + 1, items).unwrap_or_else(|error| {
            self.log = failed(&error.into());
            false
        })
    }
}

#[cold]
fn failed(error: &Error) -> Begun {
    tracing::warn!(%error, "changes of names and attributes take longer: the log of the newest commits failed");
    Begun::Failed
}

impl Catalog {
    /// Applies `items` as the next commit. See [`Batch::commit`](super::Batch::commit).
    #[inline(never)]
    pub(super) fn append(&self, items: &[Item]) -> Result<()> {
        let mut held = self.commits.lock();
        let commits = &mut *held;
        let bytes = journal_bytes(items);
        self.active.make_room(&self.dir, commits.bytes + bytes)?;
        let takes = log::takes(items);
        let mut is_logged = takes && commits.append(&self.dir, items);
        if !is_logged {
            self.give_aside(commits)?;
            is_logged = takes && commits.append(&self.dir, items);
        }
        // Opened when it is what a reader finds: after a failure by the next commit of the same records.
        self.recent.close(items);
        if is_logged {
            self.tail.write().put(items);
            commits.bytes += bytes;
        } else {
            let number = commits.last + 1;
            aside(|| self.give_items(commits, items, bytes, number))?;
            commits.given = number;
        }
        self.recent.open(items);
        commits.last += 1;
        Ok(())
    }

    /// [`give`](Self::give), from where the stack is deep already.
    pub(super) fn give_aside(&self, commits: &mut Commits) -> Result<()> {
        if commits.given == commits.last { Ok(()) } else { aside(|| self.give(commits)) }
    }

    /// Gives the engine what is in the tail. When this returns, the tail is empty.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`]: all is as it was. After other errors the engine takes no commit any more.
    #[inline(never)]
    pub(super) fn give(&self, commits: &mut Commits) -> Result<()> {
        if commits.given == commits.last {
            return Ok(());
        }
        let items = self.tail.read().items();
        let bytes = journal_bytes(&items);
        self.give_items(commits, &items, bytes, commits.last)?;
        commits.given = commits.last;
        commits.bytes = 0;
        // Nobody waits while it is freed.
        let given = std::mem::take(&mut *self.tail.write());
        drop(given);
        if let Begun::Log(log) = &mut commits.log {
            log.rewind();
        }
        Ok(())
    }

    /// Has the engine apply `items` as what makes the commit `number` its last.
    fn give_items(&self, commits: &Commits, items: &[Item], bytes: usize, number: u64) -> Result<()> {
        self.active.make_room(&self.dir, bytes)?;
        self.active.take(bytes);
        // Let go of before it may have to be opened anew.
        let committed = self.engine()?.commit(items, number);
        match committed {
            Ok(()) => Ok(()),
            Err(error) => self.commit_anew(error, items, bytes, commits.given, number),
        }
    }

    /// Gives the engine what the log has beyond it, durably: whoever opens the catalog may take space that only older
    /// commits name.
    pub(super) fn recover_tail(&self) -> Result<()> {
        let mut commits = self.commits.lock();
        let found = log::read(&self.dir, commits.last)?;
        let Some(&(last, _)) = found.last() else { return Ok(()) };
        tracing::info!(commits = found.len(), "commits that the engine did not have yet");
        let mut tail = Tail::default();
        found.iter().for_each(|(_, items)| tail.put(items));
        let items = tail.items();
        self.give_items(&commits, &items, journal_bytes(&items), last)?;
        *commits = Commits::from(last);
        self.engine()?.persist()
    }
}
