//! What rows need of the store, and models of them.

#[path = "../../../../src/store/rows/mod.rs"]
pub mod rows;

/// Stands in for the bytes of a file.
#[derive(Debug)]
pub(crate) struct Slot(pub(crate) Vec<u8>);

/// Stands in for the bytes of a large file: there is none.
#[derive(Debug)]
pub(crate) enum BlobMap {}

impl Slot {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn check_read(&self) -> crate::Result<()> {
        Ok(())
    }

    pub(crate) fn check(&self) -> crate::Result<()> {
        Ok(())
    }
}

impl BlobMap {
    pub(crate) fn bytes(&self) -> &[u8] {
        match *self {}
    }

    pub(crate) fn check_read(&self) -> crate::Result<()> {
        match *self {}
    }

    pub(crate) fn check(&self, _from: usize, _end: usize) -> crate::Result<()> {
        match *self {}
    }
}

/// The number of a blob, of which models have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlobId(u64);

mod codes;
#[path = "../../../../src/store/quarantine.rs"]
mod quarantine;
mod slots;
#[path = "../../../../src/store/taken.rs"]
mod taken;
#[path = "../../../../src/store/watch.rs"]
mod watch;
mod watches;
mod words;

/// Models of rows, of slots, and of mappings whose disk fails.
pub(crate) const MODELS: [&[crate::Model]; 4] =
    [codes::MODELS, words::MODELS, slots::MODELS, watches::MODELS];
