//! What the generated files say.

use std::io::Write as _;
use std::sync::Arc;

use serde::Serialize;

use crate::collection::{Collection, RecallEstimate};
use crate::metrics::Gauge;
use crate::namespace::{Ino, Time};
use crate::pool::shallow::aside;
use crate::search::render;
use crate::volume::Volume;
use crate::volume::scrub::Progress;
use crate::volume::types::Caller;
use crate::{Error, Result};

/// What an agent or a person who finds the mount needs to know.
const README: &str = "\
This is VexFS: a directory is a vector collection, a file is a vector.

Put vectors in     cp a.f32 DIR/        (.f32 .f16 .bf16 .f64 .i8 .u8 .vec .npy .fvecs .bvecs .ivecs
                                         .fbin .f16bin .u8bin .i8bin)
Neighbours of one  ls DIR/.vexfs/similar/a.f32/
                   cat DIR/.vexfs/similar/a.f32/results.json
                   getfattr --only-values -n user.vexfs.similar DIR/a.f32
Neighbours of any  cp query.npy DIR/.vexfs/queries/q1 && cat DIR/.vexfs/results/q1/results.json
Options            ls DIR/.vexfs/@k=20,exact/similar/a.f32/
What went wrong    getfattr --only-values -n user.vexfs.status DIR/a.f32
                   cat DIR/.vexfs/errors.jsonl
Only some files    ls 'DIR/.vexfs/@where=lang=en and year>2020/similar/a.f32/'
                   (their attributes: setfattr -n user.lang -v en DIR/b.f32)
Settings           cat DIR/.vexfs/config
Wait until indexed cat .vexfs/sync
Keep a view        mkdir .vexfs/snapshots/NAME (of the mount's root; rmdir drops it)

.vexfs is in every directory and is never listed. A search covers the directory and everything below it.
";

#[derive(Serialize)]
struct StoreStats<'a> {
    schema: u32,
    version: &'a str,
    store: String,
    mountpoint: Option<String>,
    pid: u32,
    uptime_s: u64,
    files: u64,
    directories: u64,
    vectors: u64,
    pending: u64,
    collections: Vec<CollectionStats>,
    read_only: Option<String>,
    scrub: Progress,
}

#[derive(Serialize)]
struct CollectionStats {
    path: String,
    dim: Option<u32>,
    metric: &'static str,
    count: u64,
    pending: u64,
    invalid: usize,
    graph_nodes: usize,
    quant: &'static str,
    recall: RecallStats,
}

/// What searches have that name neither `recall` nor `ef`, for k = 10.
#[derive(Serialize)]
struct RecallStats {
    asked: f64,
    /// Null while it is not measured.
    estimate: Option<f64>,
    /// Null where every row is compared.
    ef: Option<usize>,
    /// Rows when it was measured.
    measured_on: Option<u64>,
}

#[derive(Serialize)]
struct Stats {
    schema: u32,
    #[serde(flatten)]
    collection: CollectionStats,
}

#[derive(Serialize)]
struct SnapshotList {
    schema: u32,
    /// Space that is taken for snapshots alone.
    held_bytes: u64,
    snapshots: Vec<SnapshotLine>,
}

#[derive(Serialize)]
struct SnapshotLine {
    name: String,
    taken: f64,
}

#[derive(Serialize)]
struct Health {
    schema: u32,
    status: &'static str,
    reason: Option<String>,
    /// What was found damaged since the mount.
    damage: Vec<Place>,
    /// Places that are not listed.
    more_damage: u64,
    /// Requests that ended in a panic since the mount.
    panics: u64,
}

#[derive(Serialize)]
struct Place {
    file: String,
    offset: u64,
    what: String,
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    path: &'a str,
    error: &'a str,
    at: f64,
}

/// A value as a line of JSON.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("the keys are strings");
    bytes.push(b'\n');
    bytes
}

/// Seconds since 1970, with milliseconds.
fn seconds(time: Time) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "milliseconds are shown")]
    let seconds = time.secs as f64 + f64::from(time.nanos / 1_000_000) / 1e3;
    seconds
}

/// As `user.vexfs.recall` shows it.
fn thousandths(share: f64) -> f64 {
    (share * 1e3).round() / 1e3
}

impl Volume {
    /// The content of a generated file of a control directory.
    pub(super) fn generated(&self, caller: &Caller, base: Ino, name: &[u8]) -> Result<Vec<u8>> {
        match name {
            b"README" if base == Ino::ROOT => Ok(README.into()),
            b"version" if base == Ino::ROOT => Ok(concat!(env!("CARGO_PKG_VERSION"), "\n").into()),
            b"errors.jsonl" | b"health" | b"ids.tsv" | b"index.json" | b"metrics" | b"snapshots.json"
            | b"stats.json" => aside(|| self.reported(caller, base, name)),
            _ => Err(Error::NotFound),
        }
    }

    /// What is found out for its reader.
    fn reported(&self, caller: &Caller, base: Ino, name: &[u8]) -> Result<Vec<u8>> {
        match name {
            b"stats.json" if base == Ino::ROOT => self.store_stats(caller),
            b"stats.json" => {
                let collection = self.vectors.existing_or_empty(self.collection_root(base)?);
                let invalid = self.vectors.invalid(Ino(collection.root())).len();
                Ok(json(&Stats { schema: 1, collection: self.collection_stats(&collection, invalid) }))
            }
            b"index.json" => self.index_json(caller, base),
            b"errors.jsonl" => self.errors(caller, base),
            b"ids.tsv" => self.ids(caller, base),
            b"health" if base == Ino::ROOT => Ok(self.health()),
            b"snapshots.json" if self.has_snapshots(base) => Ok(self.snapshots_json()),
            b"metrics" if base == Ino::ROOT => Ok(self.metrics_text().into_bytes()),
            _ => Err(Error::NotFound),
        }
    }

    fn store_stats(&self, caller: &Caller) -> Result<Vec<u8>> {
        let collections: Vec<_> = self.vectors.all();
        let mut shown = Vec::new();
        for collection in &collections {
            let is_used = !collection.is_empty() || collection.dim().is_some();
            if is_used && self.is_told_of(caller, Ino::ROOT, collection)? {
                shown.push(collection);
            }
        }
        let (files, directories) = self.names.counts();
        let invalid = self.vectors.invalid_counts();
        let stats = |collection: &Arc<Collection>| {
            let invalid = invalid.get(&Ino(collection.root())).copied().unwrap_or_default();
            self.collection_stats(collection, invalid)
        };
        Ok(json(&StoreStats {
            schema: 1,
            version: env!("CARGO_PKG_VERSION"),
            store: self.store.dir().display().to_string(),
            mountpoint: self.mountpoint.as_ref().map(|path| path.display().to_string()),
            pid: std::process::id(),
            uptime_s: self.opened.elapsed().as_secs(),
            files,
            directories,
            vectors: collections.iter().map(|collection| collection.len()).sum(),
            pending: collections.iter().map(|collection| collection.pending()).sum(),
            collections: shown.into_iter().map(stats).collect(),
            read_only: self.refusal(),
            scrub: self.scrub.progress(),
        }))
    }

    fn collection_stats(&self, collection: &Collection, invalid: usize) -> CollectionStats {
        let RecallEstimate { asked, estimate, ef, measured_on } = collection.recall();
        CollectionStats {
            path: self.directory_path(Ino(collection.root())),
            dim: collection.dim(),
            metric: collection.schema().metric.name(),
            count: collection.len(),
            pending: collection.pending(),
            invalid,
            graph_nodes: collection.graph().map_or(0, |graph| graph.hnsw.len()),
            quant: collection.schema().quant.name(),
            recall: RecallStats { asked, estimate: estimate.map(thousandths), ef, measured_on },
        }
    }

    /// A directory's path from the root of the mount, which is `/`.
    pub(in crate::volume) fn directory_path(&self, dir: Ino) -> String {
        let path = self.names.directory_name(dir).and_then(|link| self.names.path_below(&link, Ino::ROOT));
        let mut shown = String::from("/");
        if let Ok(Some(path)) = path {
            shown.push_str(&String::from_utf8_lossy(&path));
        }
        shown
    }

    fn health(&self) -> Vec<u8> {
        let reason = self.refusal();
        let (damage, more) = self.store.damage();
        let status = match &reason {
            Some(_) => "read-only",
            None if damage.is_empty() => "ok",
            None => "damaged",
        };
        let damage = damage.into_iter().map(|(file, offset, what)| Place { file, offset, what }).collect();
        json(&Health {
            schema: 1,
            status,
            reason,
            damage,
            more_damage: more,
            panics: self.metrics().panics(),
        })
    }

    fn snapshots_json(&self) -> Vec<u8> {
        let times = self.snapshot_times();
        let snapshots = times.iter().map(|(name, taken)| SnapshotLine {
            name: name.to_string_lossy().into_owned(),
            taken: seconds(*taken),
        });
        let held_bytes = self.store.held_bytes();
        json(&SnapshotList { schema: 1, held_bytes, snapshots: snapshots.collect() })
    }

    /// A line for each file below `base` whose content was refused, and for what failed lately.
    fn errors(&self, caller: &Caller, base: Ino) -> Result<Vec<u8>> {
        let mut lines: Vec<(Time, String, String)> = Vec::new();
        for collection in self.vectors.all() {
            let root = Ino(collection.root());
            if root != self.collection_root(base)? && !self.lies_below(root, base)? {
                continue;
            }
            for (ino, problem) in self.vectors.invalid(root) {
                if !self.sees(caller, ino).unwrap_or(false) {
                    continue;
                }
                if let Some(path) = self.hit_path(caller, base, ino)? {
                    lines.push((problem.at, String::from_utf8_lossy(&path).into_owned(), problem.reason));
                }
            }
        }
        for note in self.control.notes_for(caller, base) {
            lines.push((note.at, note.path, note.message));
        }
        lines.sort_unstable();
        let mut out = Vec::new();
        for (at, path, error) in &lines {
            out.extend(json(&ErrorLine { path, error, at: seconds(*at) }));
        }
        Ok(out)
    }

    /// `id<TAB>path<TAB>row` for every row below `base` that the caller may find.
    fn ids(&self, caller: &Caller, base: Ino) -> Result<Vec<u8>> {
        let collection = self.vectors.existing_or_empty(self.collection_root(base)?);
        let allowed = self.allowed(caller, base, &collection)?;
        let mut out = b"id\tpath\trow\n".to_vec();
        for file in collection.files() {
            if !allowed.contains(file.group()) {
                continue;
            }
            let Some(path) = self.hit_path(caller, base, Ino(file.number().0))? else { continue };
            let mut shown = b"\t".to_vec();
            render::escape_into(&mut shown, &path);
            for (row, id) in
                (file.first_row().0..).take(usize::try_from(file.rows()).unwrap_or(0)).enumerate()
            {
                // Writing to a vector does not fail.
                let _ = write!(out, "{id}");
                out.extend_from_slice(&shown);
                let _ = writeln!(out, "\t{row}");
            }
        }
        Ok(out)
    }

    /// The metrics as Prometheus reads them.
    fn metrics_text(&self) -> String {
        let collections = self.vectors.all();
        let (damage, more) = self.store.damage();
        let (scrub, rest) = (self.scrub.progress(), self.rest.progress());
        let (syncs_asked, syncs_run) = self.flushes.counts();
        let counts = [
            ("vexfs_up", u64::from(self.refusal().is_none())),
            ("vexfs_damaged_places", damage.len() as u64 + more),
            ("vexfs_scrub_bytes", scrub.bytes),
            ("vexfs_scrub_passes", scrub.passes),
            ("vexfs_rested_files", rest.files),
            ("vexfs_rested_bytes", rest.bytes),
            ("vexfs_woken_files", rest.woken),
            ("vexfs_syncs_asked", syncs_asked),
            ("vexfs_syncs_run", syncs_run),
            ("vexfs_snapshots", self.snapshot_names().len() as u64),
            ("vexfs_vectors", collections.iter().map(|collection| collection.len()).sum()),
            ("vexfs_vectors_pending", collections.iter().map(|collection| collection.pending()).sum()),
            ("vexfs_search_helpers", self.crew.helped()),
            ("vexfs_control_nodes", self.control.known_nodes()),
            ("vexfs_kept_attributes_bytes", self.vectors.kept.bytes()),
            ("vexfs_buffers_oversized", self.buffers.oversized()),
        ];
        let mut gauges: Vec<Gauge<'_>> = counts.map(|(name, count)| (name, None, gauge(count))).to_vec();
        gauges.push(("vexfs_buffers_fragmentation", None, self.buffers.fragmentation()));
        let buffers = self.buffers.used().map(|(size, used)| (format!("buffer_{}k", size >> 10), used));
        let pools: Vec<_> = buffers.chain([("search_scratch".to_owned(), self.scratch.used())]).collect();
        for (name, used) in &pools {
            let label = Some(("pool", name.as_str()));
            let counts = [used.hits, used.misses, used.in_use, used.most_in_use, used.idle];
            let of_pool = POOL_GAUGES.into_iter().zip(counts);
            gauges.extend(of_pool.map(|(name, count)| (name, label, gauge(count))));
        }
        self.metrics.render(&gauges)
    }
}

#[expect(clippy::cast_precision_loss, reason = "what is shown need not be exact beyond 2^53")]
fn gauge(count: u64) -> f64 {
    count as f64
}

/// What is shown of each pool, as [`PoolUse`](crate::pool::PoolUse) has it.
const POOL_GAUGES: [&str; 5] = [
    "vexfs_pool_hits",
    "vexfs_pool_misses",
    "vexfs_pool_in_use",
    "vexfs_pool_most_in_use",
    "vexfs_pool_idle",
];
