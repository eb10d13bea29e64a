//! Rows of bytes that are written once before they are read: the codes of vectors.
//!
//! A code is a *head* of 8 bytes, *near* bytes that every comparison reads, and *far* bytes that few do. The head lies
//! behind the near bytes, and a row of both begins with a cache line where that wastes little. Where codes would be
//! larger than they may be, heads have rows of their own and nothing is filled up.
//!
//! **Invariant:** a head is [`VACANT`] or [`CLAIMED`], or else the code is complete and its bytes do not change. A code
//! that is retired stays readable, because the way to others may lead past it, and becomes vacant when every guard of
//! that time is gone.

use std::collections::HashSet;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use super::{Blocks, Guard, Image, Section};
use crate::sync::{self, AtomicU64, Mutex, Ordering, RwLock, RwLockWriteGuard};
use crate::{Error, Result, distance};

/// There is no code.
const VACANT: u64 = 0;
/// A code is being written.
const CLAIMED: u64 = 1;
/// Heads up to here are no codes. Graphs that earlier versions saved have this one for a code that was gone.
const RESERVED: u64 = 2;

/// Most bytes that head and padding may take beside the near bytes.
const MOST_BESIDE: usize = 16;

const HEAD_BYTES: usize = 8;

/// How long the rows of the parts of a code are.
#[derive(Clone, Copy)]
struct Layout {
    /// With the head, unless that lies apart.
    near: usize,
    heads_apart: bool,
    far: usize,
}

impl Layout {
    /// The fastest layout of at most `most` bytes; where there is none, the fastest that wastes little.
    fn choose(near_bytes: usize, far_bytes: usize, most: usize) -> Self {
        let far = far_bytes.next_multiple_of(4);
        let with_head = near_bytes.next_multiple_of(8) + HEAD_BYTES;
        let lines =
            if with_head < 64 { with_head.next_power_of_two() } else { with_head.next_multiple_of(64) };
        let in_lines = Layout { near: lines, heads_apart: false, far };
        // Crossing into another cache line of the same page costs less than a head somewhere else.
        let packed = Layout { near: with_head, heads_apart: false, far };
        let gapless = Layout { near: near_bytes, heads_apart: true, far: far_bytes };
        let wastes_little = |layout: &&Layout| layout.bytes() <= near_bytes + MOST_BESIDE + far;
        let layouts = [in_lines, packed, gapless];
        let fits = layouts.iter().filter(wastes_little).find(|layout| layout.bytes() <= most);
        *fits.or(layouts.iter().find(wastes_little)).unwrap_or(&packed)
    }

    fn bytes(&self) -> usize {
        self.near + if self.heads_apart { HEAD_BYTES } else { 0 } + self.far
    }
}

/// A code as it is read.
#[derive(Clone, Copy, Debug)]
pub struct Code<'g> {
    /// What was given as the head.
    pub head: u64,
    /// The near bytes.
    pub near: &'g [u8],
}

/// Memory for the codes of a batch: a kilobyte, to be kept on the heap.
pub struct CodeBatch {
    rows: [MaybeUninit<u32>; BATCH],
    heads: [MaybeUninit<u64>; BATCH],
    near: [MaybeUninit<*const [u8]>; BATCH],
}

// SAFETY: the pointers are followed through `Codes` only, which has the memory for as long as what they point to.
unsafe impl Send for CodeBatch {}

/// The codes of up to [`BATCH`] rows: see [`CodeRows::read`].
pub struct Codes<'g> {
    /// Rows that have a code: they have a number, a head, and near bytes that can be read for `'g`.
    found: usize,
    batch: &'g mut CodeBatch,
}

/// Most codes that are read at a time.
pub const BATCH: usize = 32;

impl Default for CodeBatch {
    #[inline]
    fn default() -> Self {
        CodeBatch {
            rows: [MaybeUninit::uninit(); BATCH],
            heads: [MaybeUninit::uninit(); BATCH],
            near: [MaybeUninit::uninit(); BATCH],
        }
    }
}

impl std::fmt::Debug for CodeBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CodeBatch").finish_non_exhaustive()
    }
}

impl<'g> Codes<'g> {
    /// Numbers of the rows that have a code.
    #[must_use]
    #[inline]
    pub fn rows(&self) -> &[u32] {
        // SAFETY: `read` has written the first `found`.
        unsafe { self.batch.rows[..self.found].assume_init_ref() }
    }

    /// Their heads.
    #[must_use]
    #[inline]
    pub fn heads(&self) -> &[u64] {
        // SAFETY: as in `rows`.
        unsafe { self.batch.heads[..self.found].assume_init_ref() }
    }

    /// Their near bytes.
    #[must_use]
    #[inline]
    pub fn near(&self) -> &[&'g [u8]] {
        // SAFETY: `read` has written the first `found`, from a guard that `'g` says is still there.
        unsafe { &*(ptr::from_ref(&self.batch.near[..self.found]) as *const [&'g [u8]]) }
    }

    /// Exchanges two of the codes.
    ///
    /// # Panics
    ///
    /// When there are not so many.
    #[inline]
    pub fn swap(&mut self, a: usize, b: usize) {
        assert!(a.max(b) < self.found, "codes {a} and {b} of {}", self.found);
        self.batch.rows.swap(a, b);
        self.batch.heads.swap(a, b);
        self.batch.near.swap(a, b);
    }
}

/// Codes by row number.
pub struct CodeRows {
    near_bytes: usize,
    far_bytes: usize,
    near: Arc<Blocks>,
    /// `None` when heads lie in the padding of the near bytes, right after them.
    heads: Option<Arc<Blocks>>,
    far: Option<Blocks>,
    /// Rows that are retired and not vacant yet.
    retired: Arc<Mutex<HashSet<u32>>>,
    /// Held for writing while the rows are copied out and exchanged: no row becomes vacant in between.
    still: Arc<RwLock<()>>,
}

impl CodeRows {
    /// No rows. A code has `near_bytes` (at least 1) and `far_bytes` (0: none) beside its head. It takes at most
    /// `most` bytes in all where one of the layouts is that small.
    #[must_use]
    pub fn new(near_bytes: usize, far_bytes: usize, most: usize) -> Self {
        let layout = Layout::choose(near_bytes, far_bytes, most);
        CodeRows {
            near_bytes,
            far_bytes,
            near: Arc::new(Blocks::new(layout.near)),
            heads: layout.heads_apart.then(|| Arc::new(Blocks::new(HEAD_BYTES))),
            far: (layout.far > 0).then(|| Blocks::new(layout.far)),
            retired: Arc::default(),
            still: Arc::default(),
        }
    }

    /// Bytes of a row in each of the parts that a file has, in the order in which [`write`](Self::write) writes them.
    #[must_use]
    pub fn row_bytes(&self) -> Vec<usize> {
        self.parts().map(|part| part.row_bytes).collect()
    }

    fn parts(&self) -> impl Iterator<Item = &Blocks> {
        [Some(&*self.near), self.heads.as_deref(), self.far.as_ref()].into_iter().flatten()
    }

    fn head_offset(&self) -> usize {
        self.near_bytes.next_multiple_of(8)
    }

    #[inline]
    fn head<'g>(&'g self, row: u32, guard: &'g Guard) -> Option<&'g AtomicU64> {
        head(&self.near, self.heads.as_deref(), self.head_offset(), row, guard)
    }

    /// Makes sure that `row` has memory.
    ///
    /// # Errors
    ///
    /// When the system has no more memory; [`Error::Corrupt`] when the row's block is damaged.
    pub fn ensure(&self, row: u32) -> Result<()> {
        self.parts().try_for_each(|part| part.ensure(row))
    }

    /// The code of a row; `None` if there is none or it is damaged.
    #[inline]
    #[must_use]
    pub fn get<'g>(&'g self, row: u32, guard: &'g Guard) -> Option<Code<'g>> {
        let head = self.head(row, guard)?.load(Ordering::Acquire);
        if head <= RESERVED {
            return None;
        }
        let near = self.near.row(row, guard)?;
        sync::reads(near);
        // SAFETY: the head says that the code is complete, and so it stays until `guard` is dropped: `retire` makes
        // it vacant only after that. The row has `near_bytes` bytes.
        Some(Code { head, near: unsafe { std::slice::from_raw_parts(near, self.near_bytes) } })
    }

    /// The far bytes of a row; `None` if there is no code or it is damaged.
    #[inline]
    #[must_use]
    pub fn far<'g>(&'g self, row: u32, guard: &'g Guard) -> Option<&'g [u8]> {
        let far = self.far.as_ref()?.row(row, guard)?;
        if self.head(row, guard)?.load(Ordering::Acquire) <= RESERVED {
            return None;
        }
        sync::reads(far);
        // SAFETY: as in `get`; the row has `far_bytes` bytes.
        Some(unsafe { std::slice::from_raw_parts(far, self.far_bytes) })
    }

    /// A hint that all of a row's code is read soon.
    #[inline]
    pub fn prefetch(&self, row: u32) {
        self.parts().for_each(|part| part.prefetch(row, part.row_bytes.div_ceil(64) + 1));
    }

    /// A hint that a row's head and near bytes are read soon.
    #[inline]
    pub fn prefetch_near(&self, row: u32) {
        let lines = self.near_bytes.div_ceil(64);
        let start = self.near.hint(row);
        distance::prefetch_lines(start, lines);
        // Rows that do not begin with a cache line may end in one more.
        let row_bytes = self.near.row_bytes;
        if !row_bytes.is_multiple_of(64) && !64usize.is_multiple_of(row_bytes) {
            distance::prefetch_lines(start.wrapping_add(row_bytes - 1), 1);
        }
        if let Some(heads) = &self.heads {
            heads.prefetch(row, 1);
        }
    }

    /// The codes of up to [`BATCH`] rows. Rows without a code are left out.
    #[inline]
    pub fn read<'g>(&'g self, rows: &[u32], batch: &'g mut CodeBatch, guard: &'g Guard) -> Codes<'g> {
        let (near, heads, offset) = (&*self.near, self.heads.as_deref(), self.head_offset());
        let mut found = 0;
        for &row in rows.iter().take(BATCH) {
            let Some(state) = head(near, heads, offset, row, guard) else { continue };
            let Some(bytes) = near.row(row, guard) else { continue };
            let head = state.load(Ordering::Acquire);
            if head > RESERVED {
                sync::reads(bytes);
                batch.rows[found].write(row);
                batch.heads[found].write(head);
                batch.near[found].write(ptr::slice_from_raw_parts(bytes, self.near_bytes));
                found += 1;
            }
        }
        Codes { found, batch }
    }

    /// Writes the code of a row that has memory and no code. `head` is none of the three smallest numbers; `near` and
    /// `far` have as many bytes as were asked for.
    ///
    /// # Panics
    ///
    /// When the row has a code, or a length is another.
    pub fn put(&self, row: u32, head: u64, near: &[u8], far: &[u8], guard: &Guard) {
        assert_eq!((near.len(), far.len()), (self.near_bytes, self.far_bytes), "bytes of a code");
        assert!(head > RESERVED, "head {head} is reserved");
        let state = self.head(row, guard).expect("the row has memory");
        let claim = state.compare_exchange(VACANT, CLAIMED, Ordering::AcqRel, Ordering::Acquire);
        assert!(claim.is_ok(), "row {row} has a code");
        for (blocks, bytes) in [(Some(&*self.near), near), (self.far.as_ref(), far)] {
            let Some(start) = blocks.and_then(|blocks| blocks.row(row, guard)) else { continue };
            sync::writes(start);
            // SAFETY: the row has this many bytes. It was vacant, so nobody reads them, and the claim keeps other
            // writers away.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
        }
        state.store(head, Ordering::Release);
    }

    /// Takes the code of a row away, which nothing leads to any more. Those who are on their way to it still read it.
    /// The row is vacant when all guards that exist now are gone; then `done` is called with its number, from any
    /// thread.
    pub fn retire(&self, row: u32, guard: &Guard, done: impl FnOnce(u32) + Send + 'static) {
        let Some(state) = self.head(row, guard) else { return };
        if state.load(Ordering::Acquire) <= RESERVED || !self.retired.lock().insert(row) {
            return;
        }
        let vacate = Vacate {
            near: Arc::clone(&self.near),
            heads: self.heads.clone(),
            offset: self.head_offset(),
            retired: Arc::clone(&self.retired),
            still: Arc::clone(&self.still),
            row,
        };
        guard.defer(move || vacate.run(done));
    }

    /// Makes a row vacant whose code nobody needs, at open, when nobody reads yet.
    pub fn vacate(&mut self, row: u32) {
        let guard = super::pin();
        if let Some(state) = self.head(row, &guard) {
            state.store(VACANT, Ordering::Release);
        }
    }

    /// Keeps retired rows from becoming vacant, and [`put`](Self::put)'s users out, while the rows are written to an
    /// image and exchanged for it.
    pub fn hold_still(&self) -> RwLockWriteGuard<'_, ()> {
        self.still.write()
    }

    /// Takes the rows of `sections`, one for each of [`row_bytes`](Self::row_bytes), from `image`. There are no rows
    /// yet.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when a section is not within the image.
    pub fn attach(&self, image: &Arc<Image>, sections: &[Section]) -> Result<()> {
        self.parts().zip(sections).try_for_each(|(part, section)| part.attach(image, section.clone()))
    }

    /// Exchanges memory for that of an image to which the rows have just been written. Nobody writes meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when a section is not within the image.
    pub fn settle(&self, image: &Arc<Image>, sections: &[Section], guard: &Guard) -> Result<()> {
        self.parts().zip(sections).try_for_each(|(part, section)| part.settle(image, section.clone(), guard))
    }

    /// Whether rows were found damaged so far.
    #[inline]
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.parts().any(Blocks::is_damaged)
    }

    /// The first rows that were found damaged.
    #[must_use]
    pub fn damage(&self) -> Option<Error> {
        self.parts().find_map(Blocks::damage)
    }

    /// Writes part number `part` of the first `rows` rows and returns the checksums of its blocks. Nobody writes rows
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// I/O errors; a row that has no memory or is damaged.
    pub fn write(
        &self,
        part: usize,
        rows: usize,
        guard: &Guard,
        out: &mut dyn Write,
    ) -> io::Result<Vec<u64>> {
        let part = self.parts().nth(part).ok_or_else(|| io::Error::other("no such part"))?;
        part.write(rows, guard, out)
    }
}

/// The last step of [`CodeRows::retire`].
struct Vacate {
    near: Arc<Blocks>,
    heads: Option<Arc<Blocks>>,
    offset: usize,
    retired: Arc<Mutex<HashSet<u32>>>,
    still: Arc<RwLock<()>>,
    row: u32,
}

impl Vacate {
    fn run(self, done: impl FnOnce(u32) + Send + 'static) {
        let guard = super::pin();
        let Some(_moving) = self.still.try_read() else {
            // Later. Whoever runs this is in the middle of something else and must not wait.
            guard.defer(move || self.run(done));
            return;
        };
        if let Some(state) = head(&self.near, self.heads.as_deref(), self.offset, self.row, &guard) {
            state.store(VACANT, Ordering::Release);
            self.retired.lock().remove(&self.row);
            done(self.row);
        }
    }
}

#[inline]
fn head<'g>(
    near: &'g Blocks,
    heads: Option<&'g Blocks>,
    offset: usize,
    row: u32,
    guard: &'g Guard,
) -> Option<&'g AtomicU64> {
    let place = match heads {
        Some(heads) => heads.row(row, guard)?,
        // SAFETY: rows of near bytes with heads in their padding have 8 bytes at this offset.
        None => unsafe { near.row(row, guard)?.add(offset) },
    };
    // SAFETY: blocks and sections begin at multiples of 64, rows with heads are multiples of 8 bytes and `offset` is
    // one, so the place is aligned. The memory stays until the guard is dropped, and is accessed as an atomic only.
    Some(unsafe { AtomicU64::from_ptr(place.cast()) })
}
