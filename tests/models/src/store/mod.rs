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

mod codes;
#[path = "../../../../src/store/watch.rs"]
mod watch;
mod watches;
mod words;

/// Models of rows, and of mappings whose disk fails.
pub(crate) const MODELS: [&[crate::Model]; 3] = [codes::MODELS, words::MODELS, watches::MODELS];
