//! The row table: row number -> file and row within it, read without a lock.
//!
//! Rows lie in chunks that are never moved. A chunk whose rows are all of one file, as nearly all of a large file's
//! are, says so once; others have a place for each row. Either is filled once; the list of chunks is immutable, behind
//! an atomic pointer. Rows of dead files are dropped by exchanging their chunk for a copy without them
//! ([`Table::sweep`]), or for none when nothing is left; a reader keeps the chunks that it began with. So numbers that
//! are not in use cost a word for each 512, and no search looks at them.

use std::ops::Range;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};

use super::file::VectorFile;
use crate::distance;
use crate::index::{RowId, VectorSource};
use crate::sync::{ArcSwap, AtomicU64, Mutex, Ordering};

/// Rows of a chunk.
const CHUNK: usize = 512;

/// Bits of the state that are the dimension: no dimension is above 16384.
const DIM_BITS: u32 = 16;

fn dim_of(state: u64) -> u32 {
    u32::from(state.to_le_bytes()[0]) | u32::from(state.to_le_bytes()[1]) << 8
}

/// Marks an inverse norm that has not been computed: no vector has it.
const UNKNOWN: u32 = f32::NAN.to_bits();

/// A file and a row of it.
#[derive(Clone, Debug)]
struct Place {
    file: Arc<VectorFile>,
    index: u32,
}

#[derive(Debug)]
struct Chunk {
    /// Where the first row is, of a chunk whose rows are all of one file; they follow it there. Then `each` stays empty.
    whole: OnceLock<Place>,
    /// Where each row is.
    each: OnceLock<Box<[OnceLock<Place>]>>,
    /// Bits of 1 / |v|.
    inverse_norms: Box<[AtomicU32]>,
}

impl Chunk {
    fn new() -> Self {
        Self {
            whole: OnceLock::new(),
            each: OnceLock::new(),
            inverse_norms: (0..CHUNK).map(|_| AtomicU32::new(UNKNOWN)).collect(),
        }
    }

    /// The row at `at`.
    #[inline]
    fn row(&self, at: usize) -> Option<RowRef<'_>> {
        if let Some(Place { file, index }) = self.whole.get() {
            #[expect(clippy::cast_possible_truncation, reason = "a chunk has 512 rows")]
            return Some(RowRef { file, index: index + at as u32 });
        }
        let Place { file, index } = self.each.get()?[at].get()?;
        Some(RowRef { file, index: *index })
    }

    /// Places the rows of `file` from its row `index` on at the numbers `rows`. Says no if one of them was taken.
    fn place(&self, rows: Range<usize>, file: &Arc<VectorFile>, mut index: u32) -> bool {
        let mut place = || {
            let place = Place { file: Arc::clone(file), index };
            index += 1;
            place
        };
        if rows.len() == CHUNK {
            return self.each.get().is_none() && self.whole.set(place()).is_ok();
        }
        let each = self.each.get_or_init(|| (0..CHUNK).map(|_| OnceLock::new()).collect());
        self.whole.get().is_none() && each[rows].iter().all(|free| free.set(place()).is_ok())
    }

    /// Its files, one after the other; some more than once.
    fn files(&self) -> impl Iterator<Item = &Arc<VectorFile>> {
        let each = self.each.get().into_iter().flatten().filter_map(OnceLock::get);
        self.whole.get().into_iter().chain(each).map(|place| &place.file)
    }

    /// A copy without the rows of files that are over at `version`; none when there are no others.
    fn without_dead(&self, version: u64) -> Option<Self> {
        if self.files().all(|file| file.is_over(version)) {
            return None;
        }
        let copy = Self::new();
        for at in 0..CHUNK {
            let Some(row) = self.row(at).filter(|row| !row.file.is_over(version)) else { continue };
            assert!(copy.place(at..at + 1, row.file, row.index), "the copy is empty");
            let norm = self.inverse_norms[at].load(Ordering::Relaxed);
            copy.inverse_norms[at].store(norm, Ordering::Relaxed);
        }
        Some(copy)
    }
}

/// The chunks of a table by their numbers.
#[derive(Debug, Default)]
struct Chunks {
    list: Vec<Option<Arc<Chunk>>>,
    /// The numbers of those that there are, in order, as few ranges as can be.
    present: Vec<Range<usize>>,
}

impl Chunks {
    fn new(list: Vec<Option<Arc<Chunk>>>) -> Self {
        let mut present: Vec<Range<usize>> = Vec::new();
        for (number, _) in list.iter().enumerate().filter(|(_, chunk)| chunk.is_some()) {
            match present.last_mut() {
                Some(last) if last.end == number => last.end += 1,
                _ => present.push(number..number + 1),
            }
        }
        Self { list, present }
    }

    #[inline]
    fn get(&self, number: usize) -> Option<&Arc<Chunk>> {
        self.list.get(number)?.as_ref()
    }

    /// The first chunk that there is from `number` on.
    fn next(&self, number: usize) -> Option<usize> {
        let behind = self.present.partition_point(|range| range.end <= number);
        self.present.get(behind).map(|range| range.start.max(number))
    }
}

/// The rows of a collection.
#[derive(Debug)]
pub(super) struct Table {
    chunks: ArcSwap<Chunks>,
    /// Version and dimension, which change together: `version << DIM_BITS | dim`.
    state: AtomicU64,
    /// Behind the last row that was placed. The last chunk has room for many more, which no search is to look at.
    end: AtomicU64,
    /// Whoever exchanges the list of chunks holds this.
    exchange: Mutex<()>,
}

impl Table {
    /// An empty table. `dim` is 0 while nothing fixes it.
    pub(super) fn new(dim: u32) -> Self {
        Self {
            chunks: ArcSwap::default(),
            state: AtomicU64::new(u64::from(dim)),
            end: AtomicU64::new(0),
            exchange: Mutex::default(),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.state.load(Ordering::Acquire) >> DIM_BITS
    }

    pub(super) fn dim(&self) -> u32 {
        dim_of(self.state.load(Ordering::Acquire))
    }

    pub(super) fn set(&self, version: u64, dim: u32) {
        self.state.store(version << DIM_BITS | u64::from(dim), Ordering::Release);
    }

    /// Empties the table; readers keep what they have.
    pub(super) fn reset(&self) {
        let _exchange = self.exchange.lock();
        self.chunks.store(Arc::default());
        self.end.store(0, Ordering::Release);
    }

    /// Fills the places of a file's rows.
    pub(super) fn place(&self, file: &Arc<VectorFile>) {
        let _exchange = self.exchange.lock();
        let first = file.first_row().0 as usize;
        let end = first + usize::try_from(file.rows()).expect("row numbers are u32");
        let mut chunks = self.chunks.load_full();
        let wanted = first / CHUNK..end.div_ceil(CHUNK);
        if wanted.clone().any(|number| chunks.get(number).is_none()) {
            let mut list = Vec::with_capacity(chunks.list.len().max(wanted.end));
            list.extend(chunks.list.iter().cloned());
            list.resize(list.len().max(wanted.end), None);
            for chunk in &mut list[wanted] {
                chunk.get_or_insert_with(|| Arc::new(Chunk::new()));
            }
            chunks = Arc::new(Chunks::new(list));
            self.chunks.store(Arc::clone(&chunks));
        }
        let (mut row, mut index) = (first, 0);
        while row < end {
            let rows = row % CHUNK..CHUNK.min(row % CHUNK + end - row);
            let count = rows.len();
            let chunk = chunks.get(row / CHUNK).expect("those of the file were made");
            assert!(chunk.place(rows, file, index), "one of {count} rows from {row} was given twice");
            row += count;
            index += u32::try_from(count).expect("a chunk has 512 rows");
        }
        // Before the version at which the rows are visible, so whoever reads at that version has it.
        if self.end.load(Ordering::Relaxed) < end as u64 {
            self.end.store(end as u64, Ordering::Release);
        }
    }

    /// Drops the rows of dead files, so that their space can be used again. Returns how many chunks changed.
    pub(super) fn sweep(&self) -> usize {
        let _exchange = self.exchange.lock();
        // What dies with a version that is not published yet is still to be seen.
        let version = self.version();
        let chunks = self.chunks.load_full();
        let has_dead = |chunk: &Chunk| chunk.files().any(|file| file.is_over(version));
        let mut swept = chunks.list.clone();
        let mut dirty = 0;
        for chunk in &mut swept {
            if let Some(dead) = chunk.take_if(|chunk| has_dead(chunk)) {
                *chunk = dead.without_dead(version).map(Arc::new);
                dirty += 1;
            }
        }
        if dirty > 0 {
            self.chunks.store(Arc::new(Chunks::new(swept)));
        }
        dirty
    }

    /// How many chunks there are.
    #[cfg(test)]
    pub(super) fn chunks(&self) -> usize {
        self.chunks.load().list.iter().flatten().count()
    }

    pub(super) fn reader(&self) -> Reader {
        loop {
            // The state first: every row that is visible at its version is in the chunks loaded after it, unless
            // the next version took it out and a sweep dropped it in between.
            let state = self.state.load(Ordering::Acquire);
            let chunks = self.chunks.load_full();
            let end = self.end.load(Ordering::Acquire);
            if self.state.load(Ordering::Acquire) == state {
                let end = RowId(u32::try_from(end).unwrap_or(super::MAX_ROWS));
                return Reader { version: state >> DIM_BITS, chunks, end, dim: dim_of(state) as usize };
            }
        }
    }
}

/// The rows of a collection at one version.
#[derive(Clone, Debug)]
pub struct Reader {
    version: u64,
    chunks: Arc<Chunks>,
    end: RowId,
    dim: usize,
}

/// A row and the file that it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct RowRef<'a> {
    /// The file version.
    pub file: &'a Arc<VectorFile>,
    /// Row within the file.
    pub index: u32,
}

/// Consecutive visible rows of one file.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// The file version.
    pub file: &'a Arc<VectorFile>,
    /// Their numbers in the collection.
    pub rows: Range<u32>,
}

impl Reader {
    /// One more than the largest row number there is.
    #[must_use]
    pub fn end(&self) -> RowId {
        self.end
    }

    /// The version that is read.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The chunk of a row, and the row's place in it.
    #[inline]
    fn chunk(&self, row: RowId) -> Option<(&Chunk, usize)> {
        let row = row.0 as usize;
        Some((self.chunks.get(row / CHUNK)?, row % CHUNK))
    }

    /// The first number behind `row` that a chunk has.
    fn next_number(&self, row: u32) -> u32 {
        let behind = row as usize + 1;
        let first = self.chunks.next(behind / CHUNK).map(|number| behind.max(number * CHUNK));
        first.and_then(|first| u32::try_from(first).ok()).unwrap_or(u32::MAX)
    }

    /// Where the row lies. A collection that has changed its dimension may still have rows of the old one: they are
    /// none of this reader's.
    #[inline]
    fn place(&self, row: RowId) -> Option<RowRef<'_>> {
        let (chunk, at) = self.chunk(row)?;
        chunk.row(at).filter(|place| place.file.dim() as usize == self.dim)
    }

    /// The row, when it is visible.
    #[inline]
    #[must_use]
    pub fn row(&self, row: RowId) -> Option<RowRef<'_>> {
        self.place(row).filter(|row| row.file.is_visible(self.version))
    }

    /// The visible rows from `first` on as runs, one for each file: a file is looked at once, not row by row.
    pub fn runs_from(&self, first: RowId) -> impl Iterator<Item = Run<'_>> {
        let mut next = first.0;
        let end = self.end().0;
        std::iter::from_fn(move || {
            while next < end {
                let Some(place) = self.place(RowId(next)) else {
                    next = self.next_number(next);
                    continue;
                };
                let rows = next..place.file.row_range().end.min(end);
                next = rows.end;
                if place.file.is_visible(self.version) {
                    return Some(Run { file: place.file, rows });
                }
            }
            None
        })
    }

    /// The visible rows from `first` on.
    pub fn live_from(&self, first: RowId) -> impl Iterator<Item = RowId> {
        self.runs_from(first).flat_map(|run| run.rows.map(RowId))
    }

    /// How many rows from `first` on are visible.
    #[must_use]
    pub fn count_live_from(&self, first: RowId) -> u64 {
        self.runs_from(first).map(|run| run.rows.len() as u64).sum()
    }
}

impl Reader {
    /// At the first use, so that opening a store does not read every vector.
    #[cold]
    fn compute_inverse_norm(&self, row: RowId, keep: &AtomicU32) -> f32 {
        let mut scratch = vec![0.0; self.dim];
        let norm = self.vector(row, &mut scratch).map_or(0.0, distance::inverse_norm);
        keep.store(norm.to_bits(), Ordering::Relaxed);
        norm
    }
}

impl VectorSource for Reader {
    fn dim(&self) -> usize {
        self.dim
    }

    #[inline]
    fn vector<'a>(&'a self, row: RowId, scratch: &'a mut [f32]) -> Option<&'a [f32]> {
        let place = self.place(row)?;
        // What is damaged is as good as gone: no search finds it, and it is noted where it was met.
        place.file.sound_row(place.index.into(), scratch).ok()
    }

    #[inline]
    fn prefetch(&self, row: RowId) {
        if let Some(place) = self.place(row) {
            place.file.prefetch(place.index.into());
        }
    }

    #[inline]
    fn announce(&self, row: RowId) {
        let Some((chunk, at)) = self.chunk(row) else { return };
        distance::prefetch_lines(chunk.inverse_norms.as_ptr().wrapping_add(at).cast(), 1);
        if let Some(each) = chunk.each.get() {
            distance::prefetch_lines(each.as_ptr().wrapping_add(at).cast(), 1);
        }
    }

    #[inline]
    fn inverse_norm(&self, row: RowId) -> f32 {
        let Some((chunk, at)) = self.chunk(row) else { return 0.0 };
        match chunk.inverse_norms[at].load(Ordering::Relaxed) {
            UNKNOWN => self.compute_inverse_norm(row, &chunk.inverse_norms[at]),
            known => f32::from_bits(known),
        }
    }
}
