//! One version of one vector file: where its rows lie, which numbers they have, from when until when they live.

use std::ops::Range;
use std::sync::Arc;

use super::attributes::Attributes;
use super::condition::Condition;
use crate::Result;
use crate::distance;
use crate::format::Layout;
use crate::index::RowId;
use crate::store::{BlobMap, Slot};
use crate::sync::{ArcSwapOption, AtomicU32, AtomicU64, Ordering};

/// Number of a file, given by the namespace. Opaque here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileNumber(pub u64);

/// The bytes that rows are read from.
#[derive(Clone, Debug)]
pub enum RowBytes {
    /// A slot of a segment.
    Slot(Arc<Slot>),
    /// A sealed blob.
    Blob(Arc<BlobMap>),
}

impl RowBytes {
    /// The bytes.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            RowBytes::Slot(slot) => slot.bytes(),
            RowBytes::Blob(map) => map.bytes(),
        }
    }

    /// Whether what was read of them up to now is what was written: asked after reading.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`](crate::Error::Corrupt) when the disk failed to read a page of them.
    pub fn check_read(&self) -> Result<()> {
        match self {
            RowBytes::Slot(slot) => slot.check_read(),
            RowBytes::Blob(map) => map.check_read(),
        }
    }
}

const NEVER: u64 = u64::MAX;

/// One version of one vector file.
#[derive(Debug)]
pub struct VectorFile {
    number: FileNumber,
    layout: Layout,
    bytes: RowBytes,
    first_row: RowId,
    group: AtomicU32,
    /// Those of the file, once they are known.
    attributes: ArcSwapOption<Attributes>,
    born: AtomicU64,
    died: AtomicU64,
}

impl VectorFile {
    /// A version whose rows have no numbers yet. `layout` must fit `bytes`.
    #[must_use]
    pub fn new(number: FileNumber, layout: Layout, bytes: RowBytes, group: u32) -> Self {
        Self {
            number,
            layout,
            bytes,
            first_row: RowId(0),
            group: AtomicU32::new(group),
            attributes: ArcSwapOption::empty(),
            born: AtomicU64::new(NEVER),
            died: AtomicU64::new(NEVER),
        }
    }

    /// The same with the number of its first row, as the catalog has it.
    #[must_use]
    pub fn with_first_row(mut self, first_row: RowId) -> Self {
        self.first_row = first_row;
        self
    }

    /// The same with the attributes of its file.
    #[must_use]
    pub fn with_attributes(self, attributes: Option<Arc<Attributes>>) -> Self {
        self.attributes.store(attributes);
        self
    }

    pub(super) fn set_first_row(&mut self, first_row: RowId) {
        self.first_row = first_row;
    }

    /// The file.
    #[must_use]
    pub fn number(&self) -> FileNumber {
        self.number
    }

    /// Where the rows lie in the bytes.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &RowBytes {
        &self.bytes
    }

    /// Number of the first row; the others follow it.
    #[must_use]
    pub fn first_row(&self) -> RowId {
        self.first_row
    }

    /// Elements of a row.
    #[inline]
    #[must_use]
    pub fn dim(&self) -> u32 {
        self.layout.dim
    }

    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.layout.rows
    }

    /// Numbers of its rows.
    pub(super) fn row_range(&self) -> Range<u32> {
        let rows = u32::try_from(self.layout.rows).unwrap_or(u32::MAX);
        self.first_row.0..self.first_row.0.saturating_add(rows)
    }

    /// The group that decides who may find it.
    #[must_use]
    pub fn group(&self) -> u32 {
        self.group.load(Ordering::Relaxed)
    }

    pub(super) fn set_group(&self, group: u32) -> u32 {
        self.group.swap(group, Ordering::Relaxed)
    }

    /// The attributes of the file, if they are known: as they were at the version's end, after that.
    #[must_use]
    pub fn attributes(&self) -> Option<Arc<Attributes>> {
        self.attributes.load_full()
    }

    /// Whether its attributes are as `condition` wants them, if they are known.
    pub(super) fn fulfils(&self, condition: &Condition) -> Option<bool> {
        self.attributes.load().as_ref().map(|attributes| condition.holds(attributes))
    }

    pub(super) fn set_attributes(&self, attributes: Option<Arc<Attributes>>) {
        self.attributes.store(attributes);
    }

    /// Compares the bytes of a row with their checksum, when they are first used.
    ///
    /// # Errors
    ///
    /// [`Corrupt`](crate::Error::Corrupt) naming file and offset.
    #[inline]
    pub fn check_row(&self, index: u64) -> Result<()> {
        match &self.bytes {
            RowBytes::Slot(slot) => slot.check(),
            RowBytes::Blob(map) => {
                let range = self.layout.row_range(index);
                map.check(range.start, range.end)
            }
        }
    }

    /// The `index`-th row as f32, unless its bytes are damaged; see [`row`](Self::row).
    ///
    /// # Errors
    ///
    /// As [`check_row`](Self::check_row).
    #[inline]
    pub fn sound_row<'a>(&'a self, index: u64, scratch: &'a mut [f32]) -> Result<&'a [f32]> {
        self.check_row(index)?;
        Ok(self.row(index, scratch))
    }

    /// The `index`-th row as f32, decoded into `scratch` where it is not stored as such.
    #[inline]
    #[must_use]
    pub fn row<'a>(&'a self, index: u64, scratch: &'a mut [f32]) -> &'a [f32] {
        self.layout.vector(self.bytes.bytes(), index, scratch)
    }

    /// Brings a row that is stored as f32 towards the processor.
    #[inline]
    pub(super) fn prefetch(&self, index: u64) {
        if let Some(row) = self.layout.f32_row(self.bytes.bytes(), index) {
            distance::prefetch(row);
        }
    }

    /// Whether the version is part of the collection at `version`.
    #[inline]
    #[must_use]
    pub fn is_visible(&self, version: u64) -> bool {
        self.born.load(Ordering::Acquire) <= version && version < self.died.load(Ordering::Acquire)
    }

    /// Whether it has been published and not removed.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.born.load(Ordering::Acquire) != NEVER && self.died.load(Ordering::Acquire) == NEVER
    }

    /// Whether no search that begins at `version` or later can see it.
    pub(super) fn is_over(&self, version: u64) -> bool {
        self.died.load(Ordering::Acquire) <= version
    }

    pub(super) fn be_born(&self, version: u64) {
        self.born.store(version, Ordering::Release);
    }

    pub(super) fn die(&self, version: u64) {
        self.died.store(version, Ordering::Release);
    }
}
