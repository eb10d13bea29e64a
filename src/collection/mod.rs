//! A collection: the vectors of the files below one directory, numbered as rows, searchable while they change.
//!
//! This room knows a schema, vector files and rows. It does not know names, permissions or the kernel: a
//! file is an opaque number, and what may be returned to whom is a set of opaque *groups* that the volume gives
//! to files ([`Allowed`]).
//!
//! **How a change becomes visible.** [`Collection::stage`] numbers the rows of a new file version and puts them
//! into the row table, unborn. The volume commits the catalog. [`Collection::publish`] then gives every
//! added and removed file of the transaction one new version number and moves the collection to it, so a
//! search, which reads the version once, sees all of the change or nothing.
//!
//! **Invariant:** the rows of a file version never change. A rewritten file is a new version with new rows.
//!
//! **Invariant:** searches take no lock. Writers of one collection take turns for the time of a few stores.

mod attributes;
mod builder;
mod calibration;
mod check;
mod checkpoint;
mod condition;
mod file;
mod filter;
mod fit;
mod graph;
mod schema;
mod table;

use std::collections::BTreeSet;
use std::sync::Arc;

use dashmap::DashMap;

use builder::PendingRepair;

pub use attributes::{Attributes, Kept, VALUE_SEEN};
pub use builder::{GRAPH_SEED, Snapshot};
pub use calibration::{Calibration, Effort, RecallEstimate};
pub use check::{Check, Coverage, IndexState, Phase};
pub use checkpoint::checkpoint_root;
pub use condition::{Condition, Glob, Is, Literal, Set, Step, TESTS_MAX, Test};
pub use file::{FileNumber, RowBytes, VectorFile};
pub use filter::{Allowed, Filter, NoRows};
pub use graph::Graph;
pub use schema::{OnInvalid, Schema};
pub use table::{Reader, RowRef, Run};

use crate::index::{RowId, RowSet};
use crate::sync::{ArcSwap, ArcSwapOption, AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::{Error, Result, random};
use filter::FilterCache;
use table::Table;

/// Most rows that one collection can number; the last value marks "no row" in answers.
pub const MAX_ROWS: u32 = u32::MAX - 1;

/// A change that [`Collection::publish`] makes visible, or [`Collection::abandon`] takes back.
#[derive(Debug)]
pub struct Staged {
    /// New file versions, as [`Collection::stage`] returned them.
    pub added: Vec<Arc<VectorFile>>,
    /// File versions that end.
    pub removed: Vec<Arc<VectorFile>>,
}

/// What only one writer at a time may touch.
#[derive(Debug, Default)]
struct Writer {
    next_row: u32,
    /// First rows of files that are staged and neither published nor abandoned.
    staged: BTreeSet<u32>,
    /// Dimension of the staged files.
    staged_dim: u32,
}

/// The vectors of the files below one directory.
#[derive(Debug)]
pub struct Collection {
    root: u64,
    schema: ArcSwap<Schema>,
    /// Which numbering of rows this is: a random number, and another when an empty collection numbers from 0.
    numbering: AtomicU64,
    /// The numbering that the catalog has.
    numbering_committed: AtomicU64,
    table: Table,
    files: DashMap<FileNumber, Arc<VectorFile>>,
    rows: AtomicU64,
    writer: Mutex<Writer>,
    graph: ArcSwapOption<Graph>,
    /// Another that takes its place once it has as many rows.
    successor: ArcSwapOption<Graph>,
    /// Whether another is wanted although this one is built as the schema says.
    wants_another: AtomicBool,
    /// Every search holds the era in which it began.
    era: ArcSwap<()>,
    pending_repair: Mutex<Option<PendingRepair>>,
    filters: FilterCache,
    /// See [`groups`](Self::groups).
    groups: AtomicU32,
    /// Whether attributes of files are known here, or about to be, so that their changes are to be told.
    keeps_attributes: AtomicBool,
    /// Whether they are more than may be kept.
    refuses_attributes: AtomicBool,
    /// Held while a batch of rows is linked, so that a checkpoint has whole batches: what a loaded graph has ends at
    /// its last row, and nothing below is missing.
    linking: Mutex<()>,
    /// Why the last graph was given up, until another has every row.
    damage: Mutex<Option<String>>,
    /// Dead rows whose cells still hold their file.
    unswept: AtomicU64,
}

impl Collection {
    /// An empty collection. `root` is the number of its directory; `numbering` is kept in the catalog.
    #[must_use]
    pub fn new(root: u64, schema: Schema, numbering: u64) -> Self {
        Self {
            root,
            table: Table::new(schema.dim.unwrap_or(0)),
            schema: ArcSwap::from_pointee(schema),
            numbering: AtomicU64::new(numbering),
            numbering_committed: AtomicU64::new(numbering),
            files: DashMap::new(),
            rows: AtomicU64::new(0),
            writer: Mutex::default(),
            graph: ArcSwapOption::empty(),
            successor: ArcSwapOption::empty(),
            wants_another: AtomicBool::new(false),
            era: ArcSwap::default(),
            pending_repair: Mutex::default(),
            filters: FilterCache::default(),
            groups: AtomicU32::new(0),
            keeps_attributes: AtomicBool::new(false),
            refuses_attributes: AtomicBool::new(false),
            linking: Mutex::default(),
            damage: Mutex::default(),
            unswept: AtomicU64::new(0),
        }
    }

    /// Number of the directory.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.root
    }

    /// The schema in force.
    #[must_use]
    pub fn schema(&self) -> Arc<Schema> {
        self.schema.load_full()
    }

    /// The dimension in force: declared, or fixed by the vectors that are there.
    #[must_use]
    pub fn dim(&self) -> Option<u32> {
        Some(self.table.dim()).filter(|&dim| dim > 0)
    }

    /// Number of searchable rows.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.rows.load(Ordering::Acquire)
    }

    /// Whether no row is searchable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbering of rows in force.
    #[must_use]
    pub fn numbering(&self) -> u64 {
        self.numbering.load(Ordering::Acquire)
    }

    /// Number of the last published change. An answer computed at one version is right until the next.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.table.version()
    }

    /// The live version of a file.
    #[must_use]
    pub fn file(&self, number: FileNumber) -> Option<Arc<VectorFile>> {
        self.files.get(&number).map(|file| Arc::clone(&file))
    }

    /// Every live file, in order of their rows.
    #[must_use]
    pub fn files(&self) -> Vec<Arc<VectorFile>> {
        let mut files: Vec<_> = self.files.iter().map(|entry| Arc::clone(entry.value())).collect();
        files.sort_unstable_by_key(|file| file.first_row());
        files
    }

    /// The rows as they are now.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.table.reader()
    }

    /// One more than the largest number of a group that a file here has had: all of a snapshot that was taken before
    /// asking are smaller.
    #[must_use]
    pub fn groups(&self) -> u32 {
        self.groups.load(Ordering::Acquire)
    }

    /// Counts the group of a file that is about to be visible in it. The caller is the one writer.
    fn count_group(&self, group: u32) {
        self.groups.store(self.groups().max(group.saturating_add(1)), Ordering::Release);
    }

    /// The graph, when there is one.
    #[must_use]
    pub fn graph(&self) -> Option<Arc<Graph>> {
        self.graph.load_full()
    }

    /// The live rows that `filter` lets pass at the reader's version: exactly those, counted. The sets of the last
    /// 64 filters are kept, so a filter that comes again costs little, also while the collection changes.
    ///
    /// `goes_on` is asked at times, where there is a condition.
    ///
    /// # Errors
    ///
    /// [`NoRows`], of a filter with a condition.
    pub fn rows(
        &self,
        filter: &Filter,
        reader: &Reader,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Arc<RowSet>, NoRows> {
        if filter.condition.is_some() && self.refuses_attributes.load(Ordering::Acquire) {
            return Err(NoRows::TooMany);
        }
        self.filters.rows(&filter.among(self.groups()), reader, goes_on)
    }

    /// Whether changes of attributes are to be told by [`set_attributes`](Self::set_attributes).
    #[must_use]
    pub fn keeps_attributes(&self) -> bool {
        self.keeps_attributes.load(Ordering::Acquire)
    }

    /// From now on changes of attributes are to be told: the caller is about to read those that are not known.
    pub fn keep_attributes(&self) {
        self.keeps_attributes.store(true, Ordering::SeqCst);
    }

    /// From now on no filter with a condition has rows: the attributes are more than may be kept. What is known of
    /// them is given up.
    pub fn refuse_attributes(&self) {
        self.refuses_attributes.store(true, Ordering::Release);
        self.files.iter().for_each(|file| file.set_attributes(None));
    }

    /// Makes the attributes of a file known, unless a change of them was told meanwhile.
    pub fn learn_attributes(&self, file: &VectorFile, attributes: Arc<Attributes>) {
        let _writer = self.writer.lock();
        if file.attributes().is_none() {
            file.set_attributes(Some(attributes));
        }
    }

    /// Tells of a change of a file's attributes: these are in force.
    pub fn set_attributes(&self, file: &VectorFile, attributes: Arc<Attributes>) {
        let _writer = self.writer.lock();
        file.set_attributes(Some(attributes));
        if file.is_live() {
            let version = self.table.version() + 1;
            self.filters.note(version, file, Some(file.group()));
            self.table.set(version, self.table.dim());
        }
    }

    /// The dimension that a new version of file `number` must have: the declared one, else that of the other
    /// files. `None` while there are none.
    #[must_use]
    pub fn dim_for(&self, number: FileNumber) -> Option<u32> {
        let declared = self.schema.load().dim;
        declared.or_else(|| self.dim().filter(|_| !self.has_only(number)))
    }

    /// Whether no file but `number` has live rows.
    fn has_only(&self, number: FileNumber) -> bool {
        self.len() == self.files.get(&number).map_or(0, |file| file.rows())
    }

    /// Numbers the rows of a validated file version and puts them into the table, invisible. An empty
    /// collection begins at row 0, under a numbering that nothing has seen. The returned flag says that the
    /// catalog does not have the [`numbering`](Self::numbering) in force: it is to be committed with the file.
    ///
    /// # Errors
    ///
    /// [`Error::Dimension`]; [`Error::TooLarge`] when the row numbers are used up.
    pub fn stage(&self, mut file: VectorFile) -> Result<(Arc<VectorFile>, bool)> {
        let limit = self.schema.load().max_dim;
        if file.dim() > limit {
            return Err(Error::TooLarge { what: "dimension", got: file.dim().into(), limit: limit.into() });
        }
        let mut writer = self.writer.lock();
        let staged_dim = (!writer.staged.is_empty()).then_some(writer.staged_dim);
        // What is being added at this moment binds as much as what is there.
        for expected in [self.dim_for(file.number()), staged_dim].into_iter().flatten() {
            if expected != file.dim() {
                return Err(Error::Dimension { expected, got: file.dim() });
            }
        }
        if self.is_empty() && writer.staged.is_empty() {
            self.number_anew(&mut writer);
        }
        let first = writer.next_row;
        let end = u64::from(first) + file.rows();
        let next_row = u32::try_from(end).ok().filter(|&end| end <= MAX_ROWS).ok_or(Error::TooLarge {
            what: "row number",
            got: end,
            limit: MAX_ROWS.into(),
        })?;
        file.set_first_row(RowId(first));
        let file = Arc::new(file);
        self.table.place(&file);
        writer.next_row = next_row;
        writer.staged.insert(first);
        writer.staged_dim = file.dim();
        let committed = self.numbering_committed.load(Ordering::Acquire);
        Ok((file, self.numbering() != committed))
    }

    /// Begins at row 0, also where no row was numbered yet: what a collection that was opened empty had before is not
    /// known, and a graph of that may be on disk. Counting on would not tell numberings apart: a power cut may take one
    /// back.
    fn number_anew(&self, writer: &mut Writer) {
        writer.next_row = 0;
        self.table.reset();
        self.forget_graphs();
        self.unswept.store(0, Ordering::Relaxed);
        self.numbering.store(random::unlike_any(), Ordering::Release);
    }

    /// Makes a committed change visible, whole.
    pub fn publish(&self, staged: &Staged) {
        let mut writer = self.writer.lock();
        let version = self.table.version() + 1;
        if !staged.added.is_empty() {
            self.numbering_committed.store(self.numbering(), Ordering::Release);
        }
        for file in &staged.added {
            self.count_group(file.group());
            file.be_born(version);
            writer.staged.remove(&file.first_row().0);
            self.filters.note(version, file, Some(file.group()));
            self.rows.fetch_add(file.rows(), Ordering::AcqRel);
            self.files.insert(file.number(), Arc::clone(file));
        }
        for file in &staged.removed {
            file.die(version);
            self.filters.note(version, file, None);
            self.rows.fetch_sub(file.rows(), Ordering::AcqRel);
            self.files.remove_if(&file.number(), |_, now| Arc::ptr_eq(now, file));
        }
        let dim = match staged.added.first() {
            Some(file) => file.dim(),
            None if self.is_empty() => self.schema.load().dim.unwrap_or(0),
            None => self.table.dim(),
        };
        if self.table.dim() != dim {
            self.forget_graphs();
        }
        self.table.set(version, dim);
        // Not before the version: a sweep drops only what is over by then.
        self.unswept.fetch_add(staged.removed.iter().map(|file| file.rows()).sum(), Ordering::Relaxed);
    }

    /// Takes a staged change back: its rows stay unborn and their numbers unused.
    pub fn abandon(&self, staged: &Staged) {
        let mut writer = self.writer.lock();
        for file in &staged.added {
            writer.staged.remove(&file.first_row().0);
            // Never born, and over: the next sweep gives its bytes up.
            file.die(self.table.version());
            self.unswept.fetch_add(file.rows(), Ordering::Relaxed);
        }
    }

    /// Gives a live file another group.
    pub fn regroup(&self, file: &VectorFile, group: u32) {
        let _writer = self.writer.lock();
        self.count_group(group);
        let before = file.set_group(group);
        if before != group && file.is_live() {
            let version = self.table.version() + 1;
            self.filters.note(version, file, Some(group));
            self.table.set(version, self.table.dim());
        }
    }

    /// Puts back the files that the catalog names, at open. Their rows have their numbers already.
    pub fn restore(&self, files: &[Arc<VectorFile>]) {
        let mut writer = self.writer.lock();
        let version = self.table.version() + 1;
        let mut dim = self.table.dim();
        for file in files {
            dim = file.dim();
            self.table.place(file);
            self.count_group(file.group());
            file.be_born(version);
            let end = file.first_row().0.saturating_add(u32::try_from(file.rows()).unwrap_or(MAX_ROWS));
            writer.next_row = writer.next_row.max(end);
            self.rows.fetch_add(file.rows(), Ordering::AcqRel);
            self.files.insert(file.number(), Arc::clone(file));
        }
        self.filters.forget(version);
        self.table.set(version, dim);
    }

    /// Takes another schema.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] when it would change the dimension or metric of a collection that has vectors, or forbid their
    /// dimension.
    pub fn set_schema(&self, schema: Schema) -> Result<()> {
        let writer = self.writer.lock();
        self.check_schema(&schema)?;
        match schema.dim {
            Some(want) if !writer.staged.is_empty() && want != writer.staged_dim => {
                return Err(Error::Config(format!(
                    "dim cannot become {want}: a vector of {} is just being added",
                    writer.staged_dim
                )));
            }
            _ => {}
        }
        if self.is_empty() && writer.staged.is_empty() {
            self.table.set(self.table.version(), schema.dim.unwrap_or(0));
        }
        let is_another_metric = self.schema.load().metric != schema.metric;
        self.schema.store(Arc::new(schema));
        if is_another_metric {
            self.forget_graphs();
        }
        Ok(())
    }

    /// Whether [`set_schema`](Self::set_schema) would take `schema`.
    ///
    /// # Errors
    ///
    /// As [`set_schema`](Self::set_schema).
    pub fn check_schema(&self, schema: &Schema) -> Result<()> {
        let rows = self.len();
        if rows == 0 {
            return Ok(());
        }
        let now = self.schema.load();
        if schema.metric != now.metric {
            return Err(Error::Config(format!(
                "metric {} cannot become {}: the collection has {rows} vectors",
                now.metric.name(),
                schema.metric.name()
            )));
        }
        match (schema.dim, self.dim()) {
            (Some(want), Some(dim)) if want != dim => Err(Error::Config(format!(
                "dim {dim} cannot become {want}: the collection has {rows} vectors"
            ))),
            (_, Some(dim)) if dim > schema.max_dim => Err(Error::Config(format!(
                "limits.max_dim = {}: the collection has {rows} vectors of {dim}",
                schema.max_dim
            ))),
            _ => Ok(()),
        }
    }

    /// Whether there are enough rows for a graph.
    fn wants_graph(&self) -> bool {
        self.len() >= u64::from(self.schema.load().exact_below)
    }

    /// The graph, when there is one that is not known to be damaged.
    fn usable_graph(&self) -> Option<Arc<Graph>> {
        self.graph().filter(|graph| !graph.hnsw.is_damaged())
    }

    /// Rows that the graph does not have that is wanted: searches scan them, unless another serves until it has them. 0
    /// where no graph is wanted.
    #[must_use]
    pub fn pending(&self) -> u64 {
        if !self.wants_graph() {
            return 0;
        }
        let Some(graph) = self.usable_graph() else { return self.len() };
        let reader = self.reader();
        let lacking = reader.count_live_from(graph.watermark());
        if !self.wants_successor(&graph) {
            return lacking;
        }
        let successor = self.successor.load_full().map_or(RowId(0), |successor| successor.watermark());
        // Until it has its place, however far it is.
        lacking.max(reader.count_live_from(successor)).max(1)
    }

    /// Whether row `row` is found through the graph, or no graph is wanted.
    #[must_use]
    pub fn is_indexed(&self, row: RowId) -> bool {
        !self.wants_graph() || self.usable_graph().is_some_and(|graph| row < graph.watermark())
    }
}

#[cfg(test)]
mod tests;
