//! Taking a configuration for a directory: for its collection, or to make it a collection of its own.

use crate::collection::Schema;
use crate::namespace::{Ino, Mark};
use crate::volume::Volume;
use crate::{Error, Result};

impl Volume {
    /// The text of a directory's `config`.
    pub(super) fn config_text(&self, base: Ino) -> Result<Vec<u8>> {
        let collection = self.vectors.existing_or_empty(self.collection_root(base)?);
        Ok(collection.schema().render(collection.dim()).into_bytes())
    }

    /// Gives `dir` a configuration. A directory inside another one's collection becomes a collection of its own,
    /// and the vectors below it move there.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config) when dimension or metric of a collection with vectors would change;
    /// `NotFound` for a directory that was removed and is still open.
    pub(in crate::volume) fn configure(&self, dir: Ino, schema: Schema) -> Result<()> {
        // Everything below may be settled anew: nobody else changes names or content meanwhile.
        let _all = self.names.lock_all();
        // Its record would outlive it.
        self.names.directory(dir)?;
        let root = self.collection_root(dir)?;
        let mut txn = self.begin()?;
        if root == dir {
            let collection = self.vectors.collection(dir);
            collection.check_schema(&schema)?;
            self.put_schema(&mut txn, &collection, &schema);
            self.commit(txn)?;
            collection.set_schema(schema)?;
        } else {
            self.vectors.nest(dir);
            let moved = self.begin_nested(&mut txn, dir, schema).and_then(|()| self.commit(txn));
            if let Err(error) = moved {
                self.vectors.unnest(dir);
                self.vectors.begin_empty(dir);
                return Err(error);
            }
        }
        self.vectors.tree_changed();
        self.indexer.wake();
        Ok(())
    }

    fn begin_nested(&self, txn: &mut crate::volume::Txn<'_>, dir: Ino, schema: Schema) -> Result<()> {
        let collection = self.vectors.collection(dir);
        collection.set_schema(schema.clone())?;
        self.settle_below(txn, dir)?;
        // Behind it, because it may begin a numbering.
        self.put_schema(txn, &collection, &schema);
        Ok(())
    }

    /// Whether moving directory `dir` to `new_parent` changes which collection the files below it belong to.
    pub(in crate::volume) fn move_changes_collection(
        &self,
        dir: Ino,
        old_parent: Ino,
        new_parent: Ino,
    ) -> Result<bool> {
        if old_parent == new_parent || self.vectors.is_nested(dir) {
            return Ok(false);
        }
        let root_under =
            |parent: Ino| if parent == Ino::ROOT { Ok(dir) } else { self.collection_root(parent) };
        Ok(root_under(old_parent)? != root_under(new_parent)?)
    }

    /// Settles the files below a directory that has moved into another collection, in a transaction of its
    /// own that also takes back the mark which the move left for recovery. The caller holds every inode.
    pub(in crate::volume) fn resettle(&self, dir: Ino) -> Result<()> {
        let mut txn = self.begin_repair();
        let inode = match self.names.inode(dir) {
            Ok(inode) => inode,
            // Removed since: there is nothing below it.
            Err(Error::NotFound) => {
                self.names.remove_mark(&mut txn.batch, Mark::Moved, dir);
                return self.commit(txn);
            }
            Err(error) => return Err(error),
        };
        let moved_down = inode.parent != Ino::ROOT;
        // As opening the volume decides.
        if moved_down && self.collection_record(dir.0)?.schema.is_some() {
            // It brings its configuration along and stays a collection of its own.
            self.vectors.nest(dir);
        } else {
            self.settle_below(&mut txn, dir)?;
        }
        self.names.remove_mark(&mut txn.batch, Mark::Moved, dir);
        self.commit(txn)?;
        self.vectors.tree_changed();
        self.indexer.wake();
        Ok(())
    }
}
