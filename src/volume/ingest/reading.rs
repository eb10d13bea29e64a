//! What a collection demands of content, and reading large content to find out whether it is so.

use super::number;
use crate::collection::Collection;
use crate::distance::Metric;
use crate::format::{self, FileKind, Layout, RowReader};
use crate::namespace::Ino;
use crate::store::{BlobId, BlobReader, BlobSums};
use crate::volume::Volume;
use crate::{Error, Result};

/// What a collection demands of content.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) cosine: bool,
    pub(super) limits: format::Limits,
    /// The dimension that the file must have, if anything else decides it.
    dim: Option<u32>,
}

/// What reading a blob has shown.
#[derive(Debug)]
pub(super) struct Reading {
    /// Where its rows lie, if it is what was demanded.
    pub(super) layout: Result<Layout>,
    /// Those of all its bytes: none if reading ended where it was refused.
    pub(super) sums: Option<BlobSums>,
}

impl Check {
    pub(super) fn of(collection: &Collection, ino: Ino) -> Self {
        let schema = collection.schema();
        let limits = format::Limits { max_dim: schema.max_dim, ..format::Limits::default() };
        Self { cosine: schema.metric == Metric::Cosine, limits, dim: collection.dim_for(number(ino)) }
    }

    /// Checked before the values, so that a file of another dimension is told so whatever is in it.
    pub(super) fn dim(&self, got: u32) -> Result<()> {
        match self.dim {
            Some(expected) if expected != got => Err(Error::Dimension { expected, got }),
            _ => Ok(()),
        }
    }

    /// Checks the bytes of a whole file.
    pub(super) fn layout(&self, kind: FileKind, bytes: &[u8]) -> Result<Layout> {
        let layout = self.headers(kind, format::layout(kind, bytes, &self.limits), bytes.len() as u64)?;
        format::validate(&layout, bytes, self.cosine, |_, _| {})?;
        Ok(layout)
    }

    /// The same for a file that is read in pieces.
    fn read(&self, kind: FileKind, blob: &mut BlobReader) -> Result<Layout> {
        let head = blob.head(format::HEAD_BYTES)?;
        let found = format::layout_of_head(kind, &head, blob.len(), &self.limits);
        let layout = self.headers(kind, found, blob.len())?;
        let mut rows = RowReader::new(blob, kind, layout)?;
        let mut scratch = vec![0.0; layout.dim as usize];
        while rows.advance()? {
            let block = rows.block();
            for row in 0..block.layout.rows {
                let vector = block.layout.vector(block.bytes, row, &mut scratch);
                format::check_vector(block.first_row + row, vector, self.cosine)?;
            }
        }
        Ok(layout)
    }

    fn headers(&self, kind: FileKind, found: Result<Layout>, len: u64) -> Result<Layout> {
        let layout = found.map_err(|error| match (error, kind, self.dim) {
            // The bytes are no whole number of elements: what the collection wants says more.
            (Error::Format(_), FileKind::Raw(dtype), Some(dim)) if len > 0 => {
                let want = dim as usize * dtype.size_bytes();
                Error::Format(format!("{len} bytes, want {want} (dim {dim}, {})", dtype.name()))
            }
            (error, ..) => error,
        })?;
        self.dim(layout.dim)?;
        Ok(layout)
    }
}

impl Volume {
    /// Reads a blob as `kind`; also to its end when it is refused, if it `is_compared` with checksums.
    pub(super) fn read_through(
        &self,
        id: BlobId,
        is_compared: bool,
        kind: FileKind,
        check: &Check,
    ) -> Result<Reading> {
        let mut blob = self.store.read_blob(id)?;
        let layout = check.read(kind, &mut blob).map_err(|error| blob.failed(error));
        let sums = if layout.is_ok() || is_compared { Some(blob.sums()?) } else { None };
        Ok(Reading { layout, sums })
    }
}
