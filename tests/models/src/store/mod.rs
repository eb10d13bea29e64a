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

/// Stands in for mappings whose disk fails: here none does.
mod watch {
    pub(super) struct Watch;

    impl Watch {
        pub(super) fn over(_start: *const u8, _len: usize, _writable: bool) -> Self {
            Self
        }

        pub(super) fn damage(&self) -> Option<u64> {
            None
        }
    }

    impl std::fmt::Debug for Watch {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Watch")
        }
    }

    pub(super) fn damages() -> u64 {
        0
    }
}

mod codes;
mod words;

/// Models of rows.
pub(crate) const MODELS: [&[crate::Model]; 2] = [codes::MODELS, words::MODELS];
