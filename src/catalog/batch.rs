//! Changes that are put together and applied at once.
//!
//! A batch owns what it changes: it is kept in the [tail](super::tail) until the engine is given it, and can be applied
//! again when the engine was [opened anew](super::revival) meanwhile. Before that the journal has blocks for it: on a full
//! disk a batch is refused whole.

use super::engine::{Catalog, Value};
use super::{COMMITS, Table};
use crate::Result;

/// Bytes that the journal takes for a commit without items, and for an item beside its key and value.
const COMMIT_BYTES: usize = 26;
const ITEM_BYTES: usize = 21;

/// Changes that are applied together or not at all.
pub struct Batch<'a> {
    catalog: &'a Catalog,
    items: Vec<Item>,
}

/// One change; without a value the key is removed.
pub(super) struct Item {
    pub(super) table: Table,
    pub(super) key: Value,
    pub(super) value: Option<Value>,
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("items", &self.items.len()).finish_non_exhaustive()
    }
}

impl<'a> Batch<'a> {
    pub(super) fn new(catalog: &'a Catalog) -> Self {
        Self { catalog, items: Vec::new() }
    }

    /// Puts `value` under `key`, replacing what is there.
    pub fn put(&mut self, table: Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let value = Some(value.as_ref().into());
        self.items.push(Item { table, key: key.as_ref().into(), value });
    }

    /// Removes `key`; a missing key is no error.
    pub fn remove(&mut self, table: Table, key: impl AsRef<[u8]>) {
        self.items.push(Item { table, key: key.as_ref().into(), value: None });
    }

    /// Whether nothing has been put or removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Applies the batch. When this returns, process death does not undo it.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`](crate::Error::NoSpace) when the disk is full: nothing of the batch is applied, and when there is room again, commits
    /// are. After any other error the engine takes no commit before the catalog is opened again, and whether this one
    /// was applied shows only then.
    pub fn commit(self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.catalog.append(&self.items)
    }
}

/// Bytes that the journal takes for a commit of `items`, at most.
pub(super) fn journal_bytes(items: &[Item]) -> usize {
    let number = ITEM_BYTES + COMMITS.len() + size_of::<u64>() + 1;
    let of_item =
        |item: &Item| ITEM_BYTES + item.key.len() + item.value.as_ref().map_or(0, |value| value.len());
    COMMIT_BYTES + number + items.iter().map(of_item).sum::<usize>()
}
