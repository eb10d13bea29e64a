//! `index.json`, `verify.json` and `rebuild`: how the graphs of a directory and those below it are.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::generated::json;
use crate::collection::{Check, Collection, IndexState};
use crate::index::RowId;
use crate::namespace::Ino;
use crate::volume::Volume;
use crate::volume::permission::{EVERYBODY, permits};
use crate::volume::types::Caller;
use crate::{Error, Result};

/// Rows that are named of those that a graph lacks or cannot reach.
const ROWS_NAMED: usize = 10;

#[derive(Serialize)]
struct Indexes {
    schema: u32,
    collections: Vec<Index>,
}

#[derive(Serialize)]
struct Index {
    path: String,
    state: &'static str,
    vectors: u64,
    pending: u64,
    gone: u64,
    damage: Option<String>,
    graph: Option<Graph>,
}

#[derive(Serialize)]
struct Graph {
    nodes: usize,
    watermark: u32,
    quant: &'static str,
    m: u32,
    ef_construction: u32,
    code_bytes: usize,
    file_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Checks {
    schema: u32,
    sound: bool,
    took_us: u64,
    collections: Vec<Checked>,
}

#[derive(Serialize)]
struct Checked {
    path: String,
    sound: bool,
    vectors: u64,
    pending: u64,
    damage: Option<String>,
    graph: Option<CheckedGraph>,
}

#[derive(Serialize)]
struct CheckedGraph {
    nodes: usize,
    links: usize,
    free: usize,
    gone: u64,
    missing: usize,
    repeated: usize,
    unreachable: usize,
    dangling: usize,
    orphans: usize,
    rows: Vec<u32>,
}

impl CheckedGraph {
    fn new(check: &Check) -> Option<Self> {
        let (report, coverage) = (check.report.as_ref()?, &check.coverage);
        let rows = coverage.missing.iter().chain(&coverage.repeated).chain(&report.unreachable);
        Some(Self {
            nodes: report.nodes,
            links: report.links,
            free: report.free,
            gone: coverage.gone,
            missing: coverage.missing.len(),
            repeated: coverage.repeated.len(),
            unreachable: report.unreachable.len(),
            dangling: report.dangling,
            orphans: report.orphans,
            rows: rows.take(ROWS_NAMED).map(|&RowId(row)| row).collect(),
        })
    }
}

impl Volume {
    /// What the graphs at and below `base` have and lack that the caller is told of.
    pub(super) fn index_json(&self, caller: &Caller, base: Ino) -> Result<Vec<u8>> {
        let collections = self.told_of_below(caller, base)?;
        let collections = collections.iter().map(|collection| self.index_of(collection)).collect();
        Ok(json(&Indexes { schema: 1, collections }))
    }

    fn index_of(&self, collection: &Collection) -> Index {
        let IndexState { phase, vectors, pending, gone, damage, graph } = collection.index_state();
        let file = self.index_dir.join(collection.checkpoint_name());
        let graph = graph.map(|graph| {
            let params = graph.hnsw.params();
            Graph {
                nodes: graph.hnsw.len(),
                watermark: graph.watermark().0,
                quant: params.quant.name(),
                m: params.m,
                ef_construction: params.ef_construction,
                code_bytes: graph.hnsw.code_bytes(),
                file_bytes: std::fs::metadata(&file).ok().map(|found| found.len()),
            }
        });
        let path = self.directory_path(Ino(collection.root()));
        Index { path, state: phase.name(), vectors, pending, gone, damage, graph }
    }

    /// Checks the graphs at and below `base` that the caller is told of, whole. What is not sound is given up and built anew.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] while another check is running: each has a thread that searches lack.
    pub(super) fn verify_json(&self, caller: &Caller, base: Ino) -> Result<Vec<u8>> {
        let Some(_one_at_a_time) = self.control.verifying.try_lock() else { return Err(Error::Busy) };
        let started = Instant::now();
        let mut collections = Vec::new();
        for collection in self.told_of_below(caller, base)? {
            let check = collection.verify();
            let sound = check.is_sound();
            collections.push(Checked {
                path: self.directory_path(Ino(collection.root())),
                sound,
                vectors: collection.len(),
                pending: collection.pending(),
                damage: (!sound).then(|| check.to_string()),
                graph: CheckedGraph::new(&check),
            });
        }
        self.indexer.wake();
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let sound = collections.iter().all(|checked| checked.sound);
        Ok(json(&Checks { schema: 1, sound, took_us, collections }))
    }

    /// Whether the caller may have the graphs at and below `base` built anew.
    ///
    /// # Errors
    ///
    /// [`Error::PermissionDenied`] when one of the collections is in a directory that the caller may not write;
    /// [`Error::ReadOnly`], [`Error::Poisoned`].
    pub(super) fn check_rebuild(&self, caller: &Caller, base: Ino) -> Result<()> {
        self.check_writable()?;
        for collection in self.collections_below(base)? {
            let root = Ino(collection.root());
            if !self.may_traverse(caller, root) || !permits(&self.inode(root)?, caller, 2) {
                return Err(Error::PermissionDenied);
            }
        }
        Ok(())
    }

    /// Has the graphs at and below `base` built anew. Those that are there serve until then.
    ///
    /// # Errors
    ///
    /// Those of [`check_rebuild`](Self::check_rebuild): there may be others than when it was opened.
    pub(super) fn rebuild_indexes(&self, caller: &Caller, base: Ino) -> Result<()> {
        self.check_rebuild(caller, base)?;
        for collection in self.collections_below(base)? {
            collection.rebuild();
        }
        self.indexer.wake();
        Ok(())
    }

    /// The collection of `base` and those below it that have vectors, in order of their paths; that of `base` alone
    /// when none has.
    fn collections_below(&self, base: Ino) -> Result<Vec<Arc<Collection>>> {
        let mut collections = self.covered(&EVERYBODY, base)?;
        if collections.is_empty() {
            collections.push(self.vectors.existing_or_empty(self.collection_root(base)?));
        }
        collections.sort_by_cached_key(|collection| self.directory_path(Ino(collection.root())));
        Ok(collections)
    }

    /// Those that the caller is told of.
    fn told_of_below(&self, caller: &Caller, base: Ino) -> Result<Vec<Arc<Collection>>> {
        let mut told = Vec::new();
        for collection in self.collections_below(base)? {
            if self.is_told_of(caller, base, &collection)? {
                told.push(collection);
            }
        }
        Ok(told)
    }
}
