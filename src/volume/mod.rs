//! The desk: one API for the kernel's door, the command line and the tests. It decides the order of things.
//!
//! - `names`, `files`, `dirs`, `attrs`, `xattrs`: the ordinary filesystem, one method for each system call.
//! - `content`, `edits`, `ranges`: where the bytes of a file are, and how they change.
//! - `backing`: large ordinary files that the kernel reads and writes by itself.
//! - `txn`, `durability`, `flushes`, `recovery`, `space`: commits, syncs, the first moments after an unclean end, a full disk.
//! - `ingest`: what a change of names or content means for vectors.
//! - `query`, `pace`, `vector_attrs`, `indexer`: searches and their paths, how long they take, computed attributes,
//!   the graph's thread.
//! - `check`, `scrub`: a store that nobody has open, checked and repaired; one that is in use, read to find damage.
//! - `control`: the `.vexfs` directories, whose nodes exist only while somebody looks.
//!
//! **Order of locks:** the namespace's ancestry lock, its inode locks, an open file's `io` lock, an open file's
//! state. Only the last two are held by a write to a blob that is already being written.

pub mod check;
pub mod types;

mod attrs;
mod awaited;
mod backing;
mod content;
mod control;
mod dirs;
mod durability;
mod edits;
mod files;
mod flushes;
mod indexer;
mod ingest;
mod names;
mod open_files;
mod pace;
mod query;
mod ranges;
mod recovery;
mod scrub;
mod space;
mod txn;
mod vector_attrs;
mod xattrs;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use dashmap::DashSet;
use parking_lot::Mutex;

pub(in crate::volume) use txn::Txn;
pub use types::*;

use crate::Result;
use crate::catalog::{self, Catalog};
use crate::metrics::Metrics;
use crate::namespace::{Ino, Namespace};
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
    pub(in crate::volume) unsynced: durability::Unsynced,
    room: space::Room,
    /// Marked dirty on disk, but settled without a change: the mark goes with the next sync.
    stale_marks: DashSet<Ino>,
    /// Marked dirty on disk, closed, and not settled because of an error: tried again with the next sync.
    unsettled: DashSet<Ino>,
    /// Files that were empty at some moment since the last sync and were not fsynced since: nothing of their
    /// content was promised to anybody.
    volatile: DashSet<Ino>,
    read_only: bool,
    /// Whether the kernel takes files to read and write by itself.
    passthrough: AtomicBool,
    /// Blobs that it has had for writing.
    lent: DashSet<BlobId>,
    poisoned: OnceLock<String>,
    closing: AtomicBool,
    closed: AtomicBool,
    /// Changes under way, which `close` waits for.
    active: AtomicUsize,
    /// Whether something was committed or written since the last sync.
    changed: AtomicBool,
    syncing: Mutex<()>,
    sync_mode: OnceLock<SyncMode>,
    flushes: flushes::Flushes,
    background: durability::Background,
    control: control::Control,
    indexer: indexer::Indexer,
    scrub: scrub::Scrub,
    scratch: Pool<Scratch>,
    buffers: BufferPool,
    pace: pace::Pace,
    allowed_below: query::AllowedCache,
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
    /// # Errors
    ///
    /// Those of [`Store::open`], `Corrupt`, the catalog's errors.
    pub fn open(options: VolumeOptions) -> Result<Arc<Volume>> {
        let store = Store::open(&options.store, &holder(&options))?;
        if store.last_end_was_unclean() {
            catalog::drop_torn_tail(&store.catalog_dir())?;
        }
        let catalog = Arc::new(Catalog::open(&store.catalog_dir())?);
        let names = Namespace::open(catalog.clone())?;
        let was_closed = recovery::was_closed(&catalog)?;
        let torn = recovery::adopt_content(&names, &store, was_closed)?;
        let metrics = Arc::new(Metrics::new());
        let vectors = ingest::Vectors::new(Arc::clone(&store), Arc::clone(&metrics));
        let volume = Volume {
            catalog,
            store,
            names,
            vectors,
            metrics,
            files: open_files::OpenFiles::default(),
            dirs: dirs::OpenDirs::default(),
            unsynced: durability::Unsynced::default(),
            room: space::Room::default(),
            stale_marks: DashSet::new(),
            unsettled: DashSet::new(),
            volatile: DashSet::new(),
            read_only: options.read_only,
            passthrough: AtomicBool::new(false),
            lent: DashSet::new(),
            poisoned: OnceLock::new(),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            changed: AtomicBool::new(true),
            syncing: Mutex::new(()),
            sync_mode: OnceLock::new(),
            flushes: flushes::Flushes::default(),
            background: durability::Background::default(),
            control: control::Control::default(),
            indexer: indexer::Indexer::default(),
            scrub: scrub::Scrub::default(),
            scratch: Pool::new(SCRATCHES, Scratch::default),
            buffers: BufferPool::new(IDLE_BUFFERS),
            pace: pace::Pace::default(),
            allowed_below: query::AllowedCache::new(),
            paths: query::Paths::new(),
            similar_answers: vector_attrs::SimilarAnswers::new(),
            mountpoint: options.mountpoint,
            opened: Instant::now(),
        };
        let found = volume.vectors.restore(&volume.catalog, &volume.names, !was_closed)?;
        volume.store.sweep()?;
        volume.recover(torn, found.damaged)?;
        let volume = Arc::new(volume);
        volume.start_background()?;
        volume.start_indexer()?;
        Ok(volume)
    }

    /// What the doors count.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Buffers for what passes through the doors.
    pub fn buffers(&self) -> &BufferPool {
        &self.buffers
    }

    /// Why changes are refused, when they are.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        match self.poisoned.get() {
            Some(reason) => Some(reason.clone()),
            None => self.read_only.then(|| "mounted read-only".to_owned()),
        }
    }
}

/// Who a second opener is told to ask.
fn holder(options: &VolumeOptions) -> String {
    let process = std::process::id();
    match &options.mountpoint {
        Some(mountpoint) => format!("process {process}, mounted on {}", mountpoint.display()),
        None => format!("process {process}"),
    }
}
