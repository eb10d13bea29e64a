//! A collection of vectors from a file, and the recall of searches in it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vexfs::collection::{Collection, FileNumber, Filter, RowBytes, Schema, Staged, VectorFile};
use vexfs::format::{self, FileKind, Layout};
use vexfs::search::nearest::{Near, Scratch};
use vexfs::search::{Context, Limits, Options, Way, nearest};
use vexfs::store::Store;

/// Vectors as a file has them.
pub struct Rows {
    pub bytes: Vec<u8>,
    pub layout: Layout,
}

impl Rows {
    pub fn parse(kind: FileKind, bytes: Vec<u8>) -> Self {
        let layout = format::layout(kind, &bytes, &format::Limits::default()).unwrap();
        Self { bytes, layout }
    }

    pub fn vector(&self, row: u64) -> Vec<f32> {
        let mut scratch = vec![0.0; self.layout.dim as usize];
        self.layout.vector(&self.bytes, row, &mut scratch).to_vec()
    }

    pub fn vectors(&self, limit: u64) -> Vec<Vec<f32>> {
        (0..self.layout.rows.min(limit)).map(|row| self.vector(row)).collect()
    }
}

/// A collection in a temporary store.
pub struct Bed {
    pub collection: Collection,
    pub store: Arc<Store>,
    _dir: TempDir,
}

impl Bed {
    pub fn new(schema: Schema) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), "a test").unwrap();
        Self { collection: Collection::new(7, schema, 1), store, _dir: dir }
    }

    /// Measures the graph's recall. Returns how long the longest step took.
    pub fn calibrate(&self) -> Duration {
        let stop = AtomicBool::new(false);
        let mut longest = Duration::ZERO;
        loop {
            let begun = Instant::now();
            if !self.collection.calibrate_step(&stop) {
                return longest;
            }
            longest = longest.max(begun.elapsed());
        }
    }

    /// Adds a file of vectors and links them.
    pub fn link(&self, number: u64, rows: &Rows) {
        let (id, mut file) = self.store.create_blob().unwrap();
        file.write_all(&rows.bytes).unwrap();
        let bytes = RowBytes::Blob(self.store.map_blob(id).unwrap());
        let file = VectorFile::new(FileNumber(number), rows.layout, bytes, 0);
        let (file, _) = self.collection.stage(file).unwrap();
        self.collection.publish(&Staged { added: vec![file], removed: vec![] });
        let stop = AtomicBool::new(false);
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        while self.collection.index_step(threads, &stop).unwrap() {}
    }

    pub fn search(
        &self,
        filter: &Filter,
        query: &[f32],
        k: usize,
        options: Options,
        scratch: &mut Scratch,
    ) -> (Vec<Near>, bool) {
        let mut context = Context { scratch, limits: Limits::within(Duration::from_secs(60)) };
        let found = nearest(&self.collection, query, k, &options, filter, None, &mut context).unwrap();
        (found.near, found.way != Way::Walk)
    }

    /// Mean share of the true `k` nearest that searches with `options` find, and whether they compared every row.
    pub fn recall(&self, queries: &[Vec<f32>], k: usize, options: Options) -> (f64, bool) {
        self.recall_under(&Filter::all(), queries, k, options)
    }

    /// The same of searches that return what `filter` lets pass.
    pub fn recall_under(
        &self,
        filter: &Filter,
        queries: &[Vec<f32>],
        k: usize,
        options: Options,
    ) -> (f64, bool) {
        let mut scratch = Scratch::default();
        let (mut right, mut scanned) = (0, false);
        for query in queries {
            let (truth, _) =
                self.search(filter, query, k, Options { exact: true, ..Options::default() }, &mut scratch);
            let (found, exact) = self.search(filter, query, k, options.clone(), &mut scratch);
            scanned |= exact;
            let last = truth[truth.len().min(k) - 1].distance;
            right += found.iter().take(k).filter(|near| near.distance <= last).count();
        }
        (right as f64 / (queries.len() * k) as f64, scanned)
    }
}
