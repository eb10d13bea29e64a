//! The indexer: one thread that links pending rows into graphs and drops dead rows, and the barrier that waits
//! for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Volume;
use super::thread::{Thread, outlive};
use crate::collection::Collection;
use crate::namespace::Ino;
use crate::pool::shallow::{aside, let_go};
use crate::{Error, Result, store};

/// How long the indexer sleeps when nothing wakes it. It also bounds how long dead rows keep their space.
const NAP: Duration = Duration::from_millis(500);

/// How long the barrier waits for the graph.
const BARRIER: Duration = Duration::from_secs(600);

/// How long it then waits until its recall is known, which nothing depends on.
const CALIBRATION: Duration = Duration::from_secs(60);

/// The indexer's side of the volume.
#[derive(Debug, Default)]
pub(super) struct Indexer {
    stop: Arc<AtomicBool>,
    thread: Thread,
    work: Mutex<bool>,
    wake: Condvar,
    /// Two writers of one checkpoint would mix its bytes.
    saving: Mutex<()>,
}

impl Indexer {
    /// Says that there may be something to do.
    pub(super) fn wake(&self) {
        *self.work.lock() = true;
        self.wake.notify_one();
    }

    /// Waits for work, a nap's length at most.
    fn rest(&self) {
        let mut work = self.work.lock();
        if !*work {
            self.wake.wait_for(&mut work, NAP);
        }
        *work = false;
    }

    /// Ends the thread after the batch that it is in.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        self.thread.join();
    }
}

impl Volume {
    /// Starts the indexer. The thread holds the volume only while it works, so that dropping the last handle
    /// of the volume ends it.
    pub(super) fn start_indexer(self: &Arc<Self>) -> Result<()> {
        let weak = Arc::downgrade(self);
        let stop = Arc::clone(&self.indexer.stop);
        let work = move || {
            // Asked once: the answer takes reading the files of a control group.
            let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            while !stop.load(Ordering::Acquire) {
                let Some(volume) = weak.upgrade() else { break };
                if !volume.index_round(threads) {
                    volume.indexer.rest();
                }
            }
        };
        Ok(self.indexer.thread.start("vexfs-indexer", work)?)
    }

    /// One batch for every collection, or a piece of measuring where no batch waits anywhere, and what is to be saved.
    /// Returns whether there was something to do. A panic over one collection leaves the others theirs.
    fn index_round(&self, threads: usize) -> bool {
        let collections = self.vectors.all();
        let each = |work: &dyn Fn(&Collection) -> bool| {
            let outlived = |collection| outlive(&self.metrics, "indexing", || work(collection));
            collections.iter().fold(false, |any, collection| any | outlived(collection).unwrap_or(false))
        };
        let worked = each(&|collection| self.index_step(collection, threads))
            || each(&|collection| collection.calibrate_step(&self.indexer.stop));
        each(&|collection| self.save_if_changed(collection, worked));
        worked
    }

    /// Links a batch, or whatever else its graph waits for. Returns whether there was something to do.
    fn index_step(&self, collection: &Collection, threads: usize) -> bool {
        let damages = store::damages();
        self.vectors.withdraw_unreadable(&self.names, damages);
        let worked = collection.index_step(threads, &self.indexer.stop).unwrap_or_else(|error| {
            tracing::error!(root = collection.root(), %error, "indexing failed");
            false
        });
        // What could not be read was linked as zeros.
        if store::damages() != damages
            && let Err(error) = self.abandon_graphs(collection)
        {
            tracing::error!(root = collection.root(), %error, "giving a graph up");
        }
        worked
    }

    /// Waits until every vector that is there is in its graph, and for a minute at most until the graphs' recall is
    /// known, then makes everything durable, graphs included.
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`] when the graphs take longer than ten minutes, and those of a sync.
    pub fn barrier(&self) -> Result<()> {
        // What graphs had in memory is freed when they are saved, if no operation is in the way.
        let_go();
        aside(|| self.wait_and_save())
    }

    fn wait_and_save(&self) -> Result<()> {
        // A snapshot has no indexer: there is nothing to wait for.
        if self.life.is_snapshot() {
            return Ok(());
        }
        let deadline = Instant::now() + BARRIER;
        let waiting = || self.vectors.all().iter().any(|collection| collection.pending() > 0);
        loop {
            while waiting() && !self.indexer.stop.load(Ordering::Acquire) {
                if Instant::now() > deadline {
                    return Err(Error::Deadline { limit_ms: 600_000 });
                }
                self.indexer.wake();
                std::thread::sleep(Duration::from_millis(5));
            }
            let patience = Instant::now() + CALIBRATION;
            let measuring = || self.vectors.all().iter().any(|collection| collection.wants_calibration());
            while measuring() && !self.indexer.stop.load(Ordering::Acquire) && Instant::now() < patience {
                self.indexer.wake();
                std::thread::sleep(Duration::from_millis(5));
            }
            self.save_graphs();
            // Saving reads all of a graph: it may be the first to meet damage.
            let damaged = self.vectors.all().iter().any(|collection| collection.is_damaged());
            if !damaged || self.indexer.stop.load(Ordering::Acquire) {
                return self.sync();
            }
        }
    }

    /// Gives a collection's graphs and their checkpoint up, and has another built.
    ///
    /// # Errors
    ///
    /// I/O errors of removing the checkpoint; the graphs are given up all the same.
    fn abandon_graphs(&self, collection: &Collection) -> Result<()> {
        // A checkpoint that is being written would bring the graph back at the next open.
        let _nobody_saves = self.indexer.saving.lock();
        collection.abandon_graphs();
        self.indexer.wake();
        collection.remove_checkpoint(&self.index_dir)
    }

    /// Writes the graphs to their checkpoints.
    pub(super) fn save_graphs(&self) {
        for collection in self.vectors.all() {
            self.save_graph(&collection);
        }
    }

    /// Writes a graph of which much is not on disk, while there is room for that; whether that was done.
    fn save_if_changed(&self, collection: &Collection, is_growing: bool) -> bool {
        let Some(bytes) = collection.wants_save(is_growing) else { return false };
        // It can be done without, unlike what the users need the room for.
        let saved = self.has_room_beside(bytes) && self.save_graph(collection);
        if !saved {
            collection.put_save_off();
        }
        saved
    }

    /// Writes a graph to its checkpoint; whether that was possible.
    fn save_graph(&self, collection: &Collection) -> bool {
        if self.life.is_frozen() {
            return false;
        }
        let _one_at_a_time = self.indexer.saving.lock();
        // Rows that the graph knows keep their numbers, and those that it has lost stay away, whatever happens next.
        let saved = self.sync().and_then(|()| collection.save_graph(&self.index_dir));
        if let Err(error) = &saved {
            tracing::warn!(root = collection.root(), %error, "graph not saved; what it lacks on disk will be built anew");
        }
        // Its directory may have been removed meanwhile, and the checkpoint with it.
        if self.vectors.existing(Ino(collection.root())).is_none()
            && let Err(error) = collection.remove_checkpoint(&self.index_dir)
        {
            tracing::warn!(root = collection.root(), %error, "a graph's checkpoint outlives its collection");
        }
        saved.is_ok()
    }
}
