//! Rows of one size in memory that never moves: where a graph lies.
//!
//! [`WordRows`] hold words that change while others read them; [`CodeRows`] hold bytes that are written once before
//! anyone reads them. Both lie in blocks of [`BLOCK_ROWS`] rows. A block is anonymous memory, or private pages of an
//! [`Image`]: a file as it was saved. What is written to such pages stays in this process, so the file never changes,
//! and nothing of it is read before it is used.
//!
//! **Invariant:** a block of an image is compared with its checksum when it is first touched, and never handed out
//! if it differs. Then `damage` tells where.
//!
//! **Invariant:** memory that was handed out under a [`Guard`] stays as it is until that guard is dropped.

#![allow(unsafe_code)]

mod codes;
#[cfg(test)]
mod tests;
mod words;

use std::alloc::{Layout, handle_alloc_error};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use xxhash_rust::xxh3::xxh3_64;

pub use self::codes::{BATCH, Code, CodeBatch, CodeRows, Codes};
pub use self::words::WordRows;
use super::watch::{Watch, damages};
use crate::sync::{AtomicBool, AtomicPtr, Mutex, Ordering};
pub use crate::sync::{Guard, pin};
use crate::{Error, Result, distance};

/// Rows of a block.
pub const BLOCK_ROWS: usize = 1 << BLOCK_BITS;
const BLOCK_BITS: u32 = 12;
/// Blocks that the numbers of 32 bits can need.
const MAX_BLOCKS: usize = 1 << (32 - BLOCK_BITS);

/// A file that rows are read from: mapped privately, as a whole.
#[derive(Debug)]
pub struct Image {
    watch: Watch,
    /// Keeps the mapping; its bytes are reached through `base` only.
    _map: MmapMut,
    base: *mut u8,
    len: usize,
    path: PathBuf,
}

// SAFETY: `base` points into the mapping, which may be read and written from any thread; who may do so when is
// settled by `Blocks`, which hands out atomics and bytes that no longer change.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    /// Maps `file`, which lies at `path`. It must not be cut while the image lives; replacing it by a rename is safe.
    ///
    /// # Errors
    ///
    /// I/O errors.
    pub fn map(file: &File, path: &Path) -> Result<Self> {
        // SAFETY: the mapping is private, so what is written through it goes nowhere. Checkpoints are only ever
        // replaced by renames within a locked store, never written in place or cut.
        let mut map = unsafe { MmapOptions::new().map_copy(file)? };
        let (base, len) = (map.as_mut_ptr(), map.len());
        Ok(Image { watch: Watch::over(base, len, true), base, len, _map: map, path: path.to_owned() })
    }
}

/// Where in an image the rows of one kind lie.
#[derive(Clone, Debug)]
pub struct Section {
    /// Offset of the first row, a multiple of 64.
    pub offset: usize,
    /// How many rows.
    pub rows: usize,
    /// XXH3-64 of each block, the last one cut to the rows that it has.
    pub checksums: Vec<u64>,
}

/// First byte of each block, null at first. A mapping of its own, of which only pages with blocks take memory: an
/// allocator that has 8 MB at hand would write zeros to them.
struct Table {
    map: MmapRaw,
}

impl Table {
    fn new() -> Self {
        let layout = Layout::new::<[AtomicPtr<u8>; MAX_BLOCKS]>();
        let map = MmapMut::map_anon(layout.size()).unwrap_or_else(|_| handle_alloc_error(layout));
        // One page is enough for 2 million rows. A kernel that knows no huge pages refuses, and all is well.
        let _ = map.advise(Advice::NoHugePage);
        Table { map: map.into() }
    }
}

impl Deref for Table {
    type Target = [AtomicPtr<u8>; MAX_BLOCKS];

    #[inline]
    fn deref(&self) -> &Self::Target {
        // SAFETY: the mapping has this size, is page-aligned and lives as long as `self`. All bits zero is a null
        // pointer, which is a valid `AtomicPtr`, and all access is through this.
        unsafe { &*self.map.as_mut_ptr().cast() }
    }
}

/// Blocks of rows, found by number without a lock.
struct Blocks {
    row_bytes: usize,
    /// First byte of each block; null while there is none, or while it has not been compared with its checksum.
    table: Table,
    /// The anonymous blocks. Locked by whoever makes a block.
    anonymous: Mutex<Vec<MmapMut>>,
    source: ArcSwapOption<Source>,
    /// Whether a block was found damaged.
    is_damaged: AtomicBool,
}

/// The image that blocks come from, and which of them are damaged.
struct Source {
    image: Arc<Image>,
    section: Section,
    damaged: Vec<AtomicBool>,
}

impl Source {
    fn new(image: &Arc<Image>, section: Section, row_bytes: usize) -> Result<Self> {
        let blocks = section.rows.div_ceil(BLOCK_ROWS);
        let end = section.rows.checked_mul(row_bytes).and_then(|len| len.checked_add(section.offset));
        let fits = end.is_some_and(|end| end <= image.len)
            && section.offset.is_multiple_of(64)
            && section.checksums.len() == blocks;
        if !fits {
            return Err(Error::Corrupt {
                file: image.path.display().to_string(),
                offset: section.offset as u64,
                what: format!("{} rows of {row_bytes} bytes, the file has {} bytes", section.rows, image.len),
            });
        }
        let damaged = (0..blocks).map(|_| AtomicBool::new(false)).collect();
        Ok(Source { image: Arc::clone(image), section, damaged })
    }

    /// First byte and rows of a block that is in the image.
    fn block(&self, block: usize, row_bytes: usize) -> Option<(*mut u8, usize)> {
        let rows = self.section.rows.checked_sub(block << BLOCK_BITS).filter(|&rows| rows > 0)?;
        let offset = self.section.offset + (block << BLOCK_BITS) * row_bytes;
        // SAFETY: `new` found that all rows of the section lie within the image.
        Some((unsafe { self.image.base.add(offset) }, rows.min(BLOCK_ROWS)))
    }
}

impl Blocks {
    /// No blocks. Rows that hold atomics have a multiple of their size.
    fn new(row_bytes: usize) -> Self {
        Blocks {
            row_bytes,
            table: Table::new(),
            anonymous: Mutex::default(),
            source: ArcSwapOption::empty(),
            is_damaged: AtomicBool::new(false),
        }
    }

    /// Takes the rows of `section` from `image`, each block when it is first touched. There are no blocks yet.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the section is not within the image.
    fn attach(&self, image: &Arc<Image>, section: Section) -> Result<()> {
        self.source.store(Some(Arc::new(Source::new(image, section, self.row_bytes)?)));
        Ok(())
    }

    /// Exchanges the memory of whole blocks for that of an image to which they have just been written, so that
    /// their pages belong to the file's cache. Nobody writes rows meanwhile; readers may go on.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the section is not within the image.
    fn settle(&self, image: &Arc<Image>, section: Section, guard: &Guard) -> Result<()> {
        let source = Arc::new(Source::new(image, section, self.row_bytes)?);
        let mut anonymous = self.anonymous.lock();
        let mut replaced = Vec::new();
        for (block, place) in self.table.iter().enumerate().take(source.damaged.len()) {
            if let Some((base, BLOCK_ROWS)) = source.block(block, self.row_bytes) {
                replaced.push(place.swap(base, Ordering::AcqRel));
            }
        }
        replaced.sort_unstable();
        // The last block stays when it has room for more rows, and so does one whose rows nobody counts yet.
        let (go, stay): (Vec<_>, Vec<_>) =
            anonymous.drain(..).partition(|map| replaced.binary_search(&map.as_ptr().cast_mut()).is_ok());
        *anonymous = stay;
        let before = self.source.swap(Some(source));
        // Whoever reads now may still look at the old memory.
        guard.defer(move || drop((go, before)));
        Ok(())
    }

    /// Makes sure that `row` has memory. New rows are zero.
    ///
    /// # Errors
    ///
    /// When the system has no more memory; [`Error::Corrupt`] when the row's block is damaged.
    fn ensure(&self, row: u32) -> Result<()> {
        let block = row as usize >> BLOCK_BITS;
        if !self.table[block].load(Ordering::Acquire).is_null() || self.first_touch(block).is_some() {
            return Ok(());
        }
        if let Some(damage) = self.damage() {
            return Err(damage);
        }
        let mut anonymous = self.anonymous.lock();
        if self.table[block].load(Ordering::Acquire).is_null() {
            let base = self.new_block(&mut anonymous)?;
            self.table[block].store(base, Ordering::Release);
        }
        Ok(())
    }

    fn new_block(&self, anonymous: &mut Vec<MmapMut>) -> Result<*mut u8> {
        let mut map = MmapMut::map_anon((self.row_bytes << BLOCK_BITS).max(1))?;
        let base = map.as_mut_ptr();
        anonymous.push(map);
        Ok(base)
    }

    /// First byte of a row, `None` if the row has no memory or its block is damaged. The memory stays until the
    /// guard is dropped.
    #[inline]
    fn row(&self, row: u32, _guard: &Guard) -> Option<*mut u8> {
        let mut base = self.table[row as usize >> BLOCK_BITS].load(Ordering::Acquire);
        if base.is_null() {
            base = self.first_touch(row as usize >> BLOCK_BITS)?;
        }
        // SAFETY: a block has BLOCK_ROWS rows of `row_bytes` each, and the remainder is below BLOCK_ROWS.
        Some(unsafe { base.add((row as usize & (BLOCK_ROWS - 1)) * self.row_bytes) })
    }

    /// Asks the CPU for the first `lines` cache lines of a row, unless its block was never touched.
    #[inline]
    fn prefetch(&self, row: u32, lines: usize) {
        distance::prefetch_lines(self.hint(row), lines);
    }

    /// Where a row begins, for hints: any address if its block was never touched.
    #[inline]
    fn hint(&self, row: u32) -> *const u8 {
        let base = self.table[row as usize >> BLOCK_BITS].load(Ordering::Relaxed);
        base.wrapping_add((row as usize & (BLOCK_ROWS - 1)) * self.row_bytes)
    }

    /// Compares a block of the image with its checksum, and keeps it if it is sound.
    #[cold]
    fn first_touch(&self, block: usize) -> Option<*mut u8> {
        let mut anonymous = self.anonymous.lock();
        let known = self.table[block].load(Ordering::Acquire);
        if !known.is_null() {
            return Some(known);
        }
        let source = self.source.load();
        let source = source.as_ref()?;
        let (start, rows) = source.block(block, self.row_bytes)?;
        if source.damaged[block].load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: the rows lie within the image, and nobody else knows them before they are in the table.
        let bytes = unsafe { std::slice::from_raw_parts(start, rows * self.row_bytes) };
        if xxh3_64(bytes) != source.section.checksums[block] {
            source.damaged[block].store(true, Ordering::Release);
            self.is_damaged.store(true, Ordering::Release);
            return None;
        }
        let base = if rows == BLOCK_ROWS {
            start
        } else {
            // There has to be room for more rows.
            let base = self.new_block(&mut anonymous).ok()?;
            // SAFETY: the new block has room for BLOCK_ROWS rows, and nobody else knows it yet.
            unsafe { ptr::copy_nonoverlapping(start, base, bytes.len()) };
            base
        };
        self.table[block].store(base, Ordering::Release);
        Some(base)
    }

    /// Whether a block was found damaged, or a page of the image could not be read since.
    fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::Acquire) || (damages() > 0 && self.unreadable().is_some())
    }

    /// Where the image could not be read.
    fn unreadable(&self) -> Option<u64> {
        self.source.load().as_ref()?.image.watch.damage()
    }

    /// The first block that was found damaged.
    fn damage(&self) -> Option<Error> {
        let source = self.source.load();
        let source = source.as_ref()?;
        if let Some(offset) = source.image.watch.damage() {
            let file = source.image.path.display().to_string();
            return Some(Error::Corrupt { file, offset, what: "the page cannot be read".into() });
        }
        let block = source.damaged.iter().position(|damaged| damaged.load(Ordering::Acquire))?;
        let first = block << BLOCK_BITS;
        Some(Error::Corrupt {
            file: source.image.path.display().to_string(),
            offset: (source.section.offset + first * self.row_bytes) as u64,
            what: format!("rows from {first} on differ from their checksum"),
        })
    }

    /// Writes the first `rows` rows, and returns the checksum of each block. Nobody writes rows meanwhile.
    fn write(&self, rows: usize, guard: &Guard, out: &mut dyn Write) -> io::Result<Vec<u64>> {
        let mut checksums = Vec::with_capacity(rows.div_ceil(BLOCK_ROWS));
        for first in (0..rows).step_by(BLOCK_ROWS) {
            let number = u32::try_from(first).map_err(io::Error::other)?;
            let base =
                self.row(number, guard).ok_or_else(|| io::Error::other("a block is missing or damaged"))?;
            let len = (rows - first).min(BLOCK_ROWS) * self.row_bytes;
            // SAFETY: the block has this many bytes, which nobody writes while they are copied out.
            let bytes = unsafe { std::slice::from_raw_parts(base, len) };
            checksums.push(xxh3_64(bytes));
            out.write_all(bytes)?;
        }
        // The checksums would be right for what was not read.
        if self.unreadable().is_some() {
            return Err(io::Error::other("a page cannot be read"));
        }
        Ok(checksums)
    }
}
