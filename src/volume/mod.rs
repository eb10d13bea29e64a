//! The desk: one API for the kernel's door, the command line and the tests. It decides the order of things.
//!
//! - `names`, `files`, `dirs`, `attrs`, `xattrs`: the ordinary filesystem, one method for each system call.
//! - `content`, `edits`, `ranges`: where the bytes of a file are, and how they change.
//! - `backing`: large ordinary files that the kernel reads and writes by itself.
//! - `life`, `txn`, `durability`, `flushes`, `marked`, `recovery`, `space`: what may be changed, commits, syncs, what
//!   they are to settle, the first moments after an unclean end, a full disk.
//! - `ingest`: what a change of names or content means for vectors.
//! - `query`, `attributes`, `pace`, `vector_attrs`, `indexer`: searches and their paths, the attributes that they are
//!   restricted by, how long they take, computed attributes, the graph's thread.
//! - `rest`: large ordinary files get checksums when nobody writes them, and lose them before somebody does.
//! - `check`, `scrub`: a store that nobody has open, checked and repaired; one that is in use, read to find damage.
//! - `snapshots`: read-only volumes of an earlier state on the same store; `views`: the volume and its snapshots as
//!   the one tree that the kernel sees.
//! - `control`: the `.vexfs` directories, whose nodes exist only while somebody looks.
//!
//! **Order of locks:** the lock of snapshots, the namespace's ancestry lock, its inode locks, an open file's `io`
//! lock, the gate, an open file's state. Only the last three are held by a write to a blob that is already being
//! written.

pub mod check;
pub mod types;

mod attributes;
mod attrs;
mod awaited;
mod backing;
mod content;
mod control;
mod covered;
mod dirs;
mod durability;
mod edits;
mod explain;
mod files;
mod flushes;
mod gone;
mod indexer;
mod ingest;
mod life;
mod marked;
mod names;
mod open_files;
mod pace;
mod permission;
mod query;
mod ranges;
mod recovery;
mod rest;
mod scrub;
mod snapshots;
mod space;
#[cfg(test)]
mod testing;
mod thread;
mod txn;
mod vector_attrs;
mod views;
mod xattrs;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use dashmap::DashSet;
use parking_lot::Mutex;

use life::Writes;
pub use snapshots::restore_snapshot;
pub(in crate::volume) use txn::Txn;
pub use types::*;
pub use views::Views;

use crate::Result;
use crate::catalog::Catalog;
use crate::metrics::Metrics;
use crate::namespace::{Ino, Namespace};
use crate::pool::crew::Crew;
use crate::pool::{BufferPool, Pool};
use crate::search::Scratch;
use crate::store::{BlobId, Store};

/// The control directory's name in every directory.
const CONTROL_NAME: &[u8] = b".vexfs";

/// Search scratches that are kept: one for each thread that may search.
const SCRATCHES: usize = 16;

/// Buffers of each size that are kept.
const IDLE_BUFFERS: usize = 16;

/// What a volume is opened with.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// The store directory; made on first use.
    pub store: PathBuf,
    /// Where it is mounted, for the message that a second opener reads.
    pub mountpoint: Option<PathBuf>,
    /// Every change is refused.
    pub read_only: bool,
}

/// A filesystem on a store. Shared by every thread that serves it.
///
/// Dropping it without [`close`](Self::close) is what the death of the process is: nothing that a method
/// returned for is lost, and the next [`open`](Self::open) finishes what was under way.
pub struct Volume {
    pub(in crate::volume) catalog: Arc<Catalog>,
    pub(in crate::volume) store: Arc<Store>,
    pub(in crate::volume) names: Namespace,
    pub(in crate::volume) vectors: ingest::Vectors,
    metrics: Arc<Metrics>,
    files: open_files::OpenFiles,
    dirs: dirs::OpenDirs,
    gone: gone::Gone,
    pub(in crate::volume) unsynced: durability::Unsynced,
    room: space::Room,
    marked: marked::Marked,
    /// Files that were empty at some moment since the last sync and were not fsynced since: nothing of their
    /// content was promised to anybody.
    volatile: DashSet<Ino>,
    /// Whether the kernel takes files to read and write by itself.
    passthrough: AtomicBool,
    /// Blobs that it has had for writing, and that may still be mapped.
    lent: DashSet<BlobId>,
    life: life::Life,
    /// Where the checkpoints of graphs are.
    index_dir: PathBuf,
    snapshots: snapshots::Snapshots,
    syncing: Mutex<()>,
    sync_mode: OnceLock<SyncMode>,
    flushes: flushes::Flushes,
    background: durability::Background,
    control: control::Control,
    indexer: indexer::Indexer,
    scrub: scrub::Scrub,
    rest: Arc<rest::Rest>,
    scratch: Pool<Scratch>,
    buffers: BufferPool,
    pace: pace::Pace,
    crew: Crew,
    allowed_below: permission::AllowedCache,
    below: covered::Below,
    paths: query::Paths,
    similar_answers: vector_attrs::SimilarAnswers,
    mountpoint: Option<PathBuf>,
    opened: Instant,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("store", &self.store.dir()).finish_non_exhaustive()
    }
}

impl Volume {
    /// The store directory.
    #[must_use]
    pub fn store_dir(&self) -> &Path {
        self.store.dir()
    }

    /// Opens the volume on a store, making it on first use, and finishes what an unclean end left.
    ///
    /// On a read-only filesystem the volume shows what is there and finishes nothing: see [`refusal`](Self::refusal).
    ///
    /// # Errors
    ///
    /// Those of [`Store::open`], `Corrupt`, the catalog's errors.
    pub fn open(options: VolumeOptions) -> Result<Arc<Volume>> {
        let store = Store::open(&options.store, &holder(&options))?;
        let writes = match (store.is_read_only(), options.read_only) {
            (true, _) => Writes::Nothing("the store's filesystem is read-only".to_owned()),
            (false, true) => Writes::Upkeep("mounted read-only".to_owned()),
            (false, false) => Writes::All,
        };
        store.check_has_catalog()?;
        let dir = store.catalog_dir();
        let catalog = match writes.is_frozen() {
            true => Catalog::open_copy(&dir, &store.scratch_dir())?,
            false => Catalog::open(&dir)?,
        };
        if !writes.is_frozen() {
            recovery::refuse_half_repaired(&catalog)?;
        }
        let index_dir = store.index_dir();
        let metrics = Arc::new(Metrics::new());
        let ground = Ground { store, catalog, index_dir, metrics, writes };
        let (mut volume, was_closed, torn) = Self::on(ground)?;
        volume.mountpoint = options.mountpoint;
        let found = volume.restore_vectors(!was_closed)?;
        volume.snapshots = snapshots::Snapshots::open(&volume.store)?;
        if !volume.life.is_frozen() {
            volume.snapshots.hold(&volume.store)?;
            volume.store.sweep()?;
            volume.recover(torn, found)?;
        }
        if !volume.life.is_read_only() {
            volume.store.upgrade()?;
        }
        let volume = Arc::new(volume);
        if !volume.life.is_frozen() {
            volume.start_background()?;
        }
        volume.start_rest()?;
        volume.start_indexer()?;
        Ok(volume)
    }

    fn restore_vectors(&self, verify: bool) -> Result<ingest::Found> {
        self.vectors.restore(&self.catalog, &self.names, &self.index_dir, verify)
    }

    /// A volume without vectors and threads. Also says whether the last end was a close, and which inodes have blobs
    /// of another length.
    fn on(ground: Ground) -> Result<(Volume, bool, Vec<Ino>)> {
        let Ground { store, catalog, index_dir, metrics, writes } = ground;
        let catalog = Arc::new(catalog);
        let names = Namespace::open(catalog.clone())?;
        let was_closed = recovery::was_closed(&catalog)?;
        let torn = recovery::adopt_content(&names, &store, was_closed || writes.is_frozen())?;
        let vectors = ingest::Vectors::new(Arc::clone(&store), Arc::clone(&metrics));
        let volume = Volume {
            catalog,
            store,
            names,
            vectors,
            metrics,
            files: open_files::OpenFiles::default(),
            dirs: dirs::OpenDirs::default(),
            gone: gone::Gone::default(),
            unsynced: durability::Unsynced::default(),
            room: space::Room::default(),
            marked: marked::Marked::default(),
            volatile: DashSet::new(),
            passthrough: AtomicBool::new(false),
            lent: DashSet::new(),
            life: life::Life::new(writes),
            index_dir,
            snapshots: snapshots::Snapshots::default(),
            syncing: Mutex::new(()),
            sync_mode: OnceLock::new(),
            flushes: flushes::Flushes::default(),
            background: durability::Background::default(),
            control: control::Control::default(),
            indexer: indexer::Indexer::default(),
            scrub: scrub::Scrub::default(),
            rest: Arc::default(),
            scratch: Pool::new(SCRATCHES, Scratch::default),
            buffers: BufferPool::new(IDLE_BUFFERS),
            pace: pace::Pace::default(),
            crew: Crew::new(std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1)),
            allowed_below: permission::AllowedCache::new(),
            below: covered::Below::default(),
            paths: query::Paths::new(),
            similar_answers: vector_attrs::SimilarAnswers::new(),
            mountpoint: None,
            opened: Instant::now(),
        };
        Ok((volume, was_closed, torn))
    }

    /// What the doors count.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Buffers for what passes through the doors.
    pub fn buffers(&self) -> &BufferPool {
        &self.buffers
    }
}

/// What a volume lies on.
struct Ground {
    store: Arc<Store>,
    catalog: Catalog,
    index_dir: PathBuf,
    metrics: Arc<Metrics>,
    writes: Writes,
}

/// Who a second opener is told to ask.
fn holder(options: &VolumeOptions) -> String {
    let process = holder_of_process();
    match &options.mountpoint {
        Some(mountpoint) => format!("{process}, mounted on {}", mountpoint.display()),
        None => process,
    }
}

fn holder_of_process() -> String {
    format!("process {}", std::process::id())
}
