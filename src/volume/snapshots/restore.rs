//! Bringing a store back to a snapshot, while nobody has it open.

use std::ffi::OsStr;
use std::path::Path;

use super::super::holder_of_process;
use crate::catalog;
use crate::store::Store;
use crate::{Error, Result};

/// Brings the store in `store` back to its snapshot `name`, which stays. What was changed since is given up, unless
/// another snapshot has it. Whenever this ends before its time, the store is what it was or what the snapshot has.
///
/// The graphs go first: one that was saved later would know rows whose numbers are given out anew.
///
/// # Errors
///
/// `NotFound` for the snapshot; those of [`Store::open`]; I/O errors.
pub fn restore_snapshot(store: &Path, name: &OsStr) -> Result<()> {
    let store = Store::open(store, &holder_of_process())?;
    if store.is_read_only() {
        return Err(Error::ReadOnly);
    }
    if !store.snapshot_names()?.iter().any(|known| known == name) {
        return Err(Error::NotFound);
    }
    catalog::copy(&store.snapshot_dir(name).join("catalog"), &store.new_catalog_dir())?;
    store.restore_graphs(name)?;
    store.exchange_catalogs()?;
    store.close()
}
