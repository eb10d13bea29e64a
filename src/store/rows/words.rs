//! Rows of words that change while others read them: links, row numbers.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use super::{BLOCK_ROWS, Blocks, Guard, Image, Section};
use crate::sync::AtomicU32;
use crate::{Error, Result};

/// Rows of `words` atomic words of 32 bits each. A row reads as zeros until it is written.
pub struct WordRows {
    words: usize,
    pub(super) blocks: Blocks,
}

impl WordRows {
    /// No rows.
    #[must_use]
    pub fn new(words: usize) -> Self {
        WordRows { words, blocks: Blocks::new(4 * words) }
    }

    /// Bytes of a row in a file.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.blocks.row_bytes
    }

    /// Makes sure that `row` has memory.
    ///
    /// # Errors
    ///
    /// When the system has no more memory; [`Error::Corrupt`] when the row's block is damaged.
    pub fn ensure(&self, row: u32) -> Result<()> {
        self.blocks.ensure(row)
    }

    /// The words of a row; `None` if it has no memory or is damaged.
    #[inline]
    #[must_use]
    pub fn get<'g>(&'g self, row: u32, guard: &'g Guard) -> Option<&'g [AtomicU32]> {
        let start = self.blocks.row(row, guard)?;
        // SAFETY: a row has `words` words; blocks and the sections of an image begin at multiples of 64 and rows are
        // whole words, so it is aligned; the memory stays until the guard is dropped; and all who access the row
        // after its block is in the table do so through these atomics, or while nobody writes.
        Some(unsafe { std::slice::from_raw_parts(start.cast(), self.words) })
    }

    /// The words of `rows`, which are of one block, one after the other; `None` if they have no memory or are damaged.
    ///
    /// # Panics
    ///
    /// When there are rows of two blocks among them.
    #[inline]
    #[must_use]
    pub fn get_range<'g>(&'g self, rows: Range<u32>, guard: &'g Guard) -> Option<&'g [AtomicU32]> {
        let within = rows.start as usize % BLOCK_ROWS;
        assert!(within + rows.len() <= BLOCK_ROWS, "rows of two blocks");
        let start = self.blocks.row(rows.start, guard)?;
        // SAFETY: as in `get`; a block has this many rows from the first one on.
        Some(unsafe { std::slice::from_raw_parts(start.cast(), rows.len() * self.words) })
    }

    /// A hint that a row is read soon.
    #[inline]
    pub fn prefetch(&self, row: u32) {
        self.blocks.prefetch(row, self.blocks.row_bytes.div_ceil(64));
    }

    /// Takes the rows of `section` from `image`. There are no rows yet.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the section is not within the image.
    pub fn attach(&self, image: &Arc<Image>, section: Section) -> Result<()> {
        self.blocks.attach(image, section)
    }

    /// Exchanges memory for that of an image to which the rows have just been written. Nobody writes meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the section is not within the image.
    pub fn settle(&self, image: &Arc<Image>, section: Section, guard: &Guard) -> Result<()> {
        self.blocks.settle(image, section, guard)
    }

    /// Whether rows were found damaged so far.
    #[inline]
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.blocks.is_damaged()
    }

    /// The first rows that were found damaged.
    #[must_use]
    pub fn damage(&self) -> Option<Error> {
        self.blocks.damage()
    }

    /// Writes the first `rows` rows and returns the checksums of their blocks. Nobody writes rows meanwhile.
    ///
    /// # Errors
    ///
    /// I/O errors; a row that has no memory or is damaged.
    pub fn write(&self, rows: usize, guard: &Guard, out: &mut dyn Write) -> io::Result<Vec<u64>> {
        self.blocks.write(rows, guard, out)
    }
}
