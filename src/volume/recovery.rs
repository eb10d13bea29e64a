//! The first moments of a volume: telling the store what is live, and finishing what an unclean end left.

use super::Volume;
use super::ingest::{Found, Why};
use crate::catalog::{Catalog, Table};
use crate::namespace::{Content, Ino, Inode, Kind, Mark, Namespace, Time};
use crate::store::Store;
use crate::{Error, Result};

/// Under this name in `Table::Meta` while the volume is closed and nothing is left to finish.
pub(super) const CLEAN: &[u8] = b"clean";

/// Under this name in `Table::Meta` while a catalog that has lost commits is being repaired: what nobody names was not
/// saved yet, and must not be swept.
pub(super) const SHORTENED: &[u8] = b"shortened";

/// Whether the last end was a `close`.
pub(super) fn was_closed(catalog: &Catalog) -> Result<bool> {
    Ok(catalog.get(Table::Meta, CLEAN)?.is_some())
}

/// Whether a catalog has lost commits and its repair has not ended.
pub(super) fn is_half_repaired(catalog: &Catalog) -> Result<bool> {
    Ok(catalog.get(Table::Meta, SHORTENED)?.is_some())
}

/// Refuses a catalog whose repair has not ended.
///
/// # Errors
///
/// [`Error::Corrupt`]; I/O errors.
pub(super) fn refuse_half_repaired(catalog: &Catalog) -> Result<()> {
    if !is_half_repaired(catalog)? {
        return Ok(());
    }
    let what = "commits are lost, and the repair has not ended; run vexfs fsck --repair again".into();
    Err(Error::Corrupt { file: "catalog".into(), offset: 0, what })
}

/// Tells the store every slot and blob that inodes name. After an unclean end also compares the blobs' lengths,
/// and returns the inodes whose blob has another one: a power cut can take bytes that nobody synced.
pub(super) fn adopt_content(names: &Namespace, store: &Store, was_closed: bool) -> Result<Vec<Ino>> {
    let mut torn = Vec::new();
    for inode in names.inodes() {
        let inode = inode?;
        names.count(&inode);
        match inode.content {
            Content::Empty | Content::Inline => {}
            Content::Slot(at) => {
                // One damaged file must not keep the others away: its reads say what is wrong.
                if let Err(error) = store.adopt(at) {
                    tracing::error!("inode {}: {error}", inode.ino.0);
                }
            }
            Content::Blob { id, .. } => {
                store.adopt_blob(id);
                if !was_closed && blob_len(store, &inode)? != Some(inode.size) {
                    torn.push(inode.ino);
                }
            }
        }
    }
    Ok(torn)
}

fn blob_len(store: &Store, inode: &Inode) -> Result<Option<u64>> {
    let Content::Blob { id, .. } = inode.content else { return Ok(None) };
    match store.open_blob(id) {
        Ok(file) => Ok(Some(file.metadata()?.len())),
        Err(error @ Error::Corrupt { .. }) => {
            tracing::error!("inode {}: {error}", inode.ino.0);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Volume {
    /// Finishes what the last run left: orphans go, content that was being written is settled as it is.
    pub(super) fn recover(&self, torn: Vec<Ino>, found: Found) -> Result<()> {
        // Before any commit, and so before any row is numbered.
        self.vectors.remove_unused_checkpoints()?;
        let mut batch = self.catalog.batch();
        for (key, member) in found.damaged {
            batch.put(Table::Vectors, key, member);
        }
        for key in found.stray {
            batch.remove(Table::Collections, key);
        }
        batch.remove(Table::Meta, CLEAN);
        self.commit_batch(batch)?;
        // Before anything is written in place: a power cut must not find the old "clean" beside new bytes.
        self.catalog.persist()?;
        for ino in self.names.marked(Mark::Orphan)? {
            self.destroy_orphan(ino)?;
        }
        for dir in self.names.marked(Mark::Moved)? {
            self.resettle(dir)?;
        }
        let mut dirty = self.names.marked(Mark::Dirty)?;
        dirty.extend(torn);
        dirty.sort_unstable();
        dirty.dedup();
        for ino in dirty {
            if let Err(error) = self.settle_marked(ino) {
                tracing::warn!("settling inode {} is tried again later: {error}", ino.0);
                self.marked.unsettled.insert(ino);
            }
        }
        self.gone.clear();
        Ok(())
    }

    /// Tries again what failed for files that were closed, settling or removing them, and for directories that moved.
    pub(super) fn retry_unsettled(&self) {
        let unsettled: Vec<Ino> = self.marked.unsettled.iter().map(|ino| *ino).collect();
        for ino in unsettled {
            let is_directory = self.names.inode(ino).is_ok_and(|inode| inode.kind == Kind::Directory);
            let done = if is_directory { self.resettle_moved(ino) } else { self.settle_marked(ino) };
            if let Err(error) = done {
                tracing::debug!("settling inode {}: {error}", ino.0);
            }
        }
        let kept: Vec<Ino> = self.marked.kept.iter().map(|kept| *kept.key()).collect();
        for ino in kept {
            let _locked = self.names.lock(&[ino]);
            if !self.marked.unsettled.contains(&ino)
                && let Some((_, file)) = self.marked.kept.remove(&ino)
            {
                self.let_go(&file);
            }
        }
    }

    fn resettle_moved(&self, dir: Ino) -> Result<()> {
        let _all = self.names.lock_all();
        self.resettle(dir)?;
        self.marked.unsettled.remove(&dir);
        Ok(())
    }

    /// Settles a file with a dirty mark that no writer has open, with size and time from its blob.
    fn settle_marked(&self, ino: Ino) -> Result<()> {
        let _locked = self.names.lock(&[ino]);
        if let Some(file) = self.files.get(ino) {
            let (is_dirty, has_writers) = {
                let state = file.state();
                (state.dirty, state.has_writers())
            };
            // With a writer, its close settles; without, what failed at the last one is still in memory.
            if is_dirty && !has_writers {
                self.finish_locked(&file, super::content::Finish::Settle)?;
            }
            if is_dirty {
                self.marked.unsettled.remove(&ino);
                return Ok(());
            }
        }
        let mut txn = self.begin_repair();
        match self.names.inode(ino) {
            Ok(inode) if inode.nlink == 0 && self.files.get(ino).is_none() => {
                drop(txn);
                return self.destroy_orphan(ino);
            }
            Ok(mut inode) if inode.kind == Kind::File && inode.nlink > 0 => {
                match self.take_blob_facts(&mut inode) {
                    // A power cut has taken the blob: its vectors are damaged, which settling finds as well.
                    Ok(()) | Err(Error::Corrupt { .. }) => {}
                    Err(error) => return Err(error),
                }
                let links = self.names.links(ino)?;
                // A complaint is in the file's status.
                self.settle(&mut txn, &mut inode, &links, Why::Content)?;
                self.names.put_inode(&mut txn.batch, &inode);
                self.note_sealed(&inode);
            }
            Ok(_) | Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        let keeps_mark = txn.keeps_mark(ino);
        if !keeps_mark {
            self.names.remove_mark(&mut txn.batch, Mark::Dirty, ino);
        }
        self.commit(txn)?;
        self.marked.unsettled.remove(&ino);
        if !keeps_mark {
            self.marked.stale.remove(&ino);
        }
        Ok(())
    }

    /// While a blob is written in place its size and time are in the blob's own inode, and after a power cut its
    /// size is what it is.
    ///
    /// # Errors
    ///
    /// `Corrupt` when it was sealed with another length: then what is there is not what was closed.
    fn take_blob_facts(&self, inode: &mut Inode) -> Result<()> {
        let Content::Blob { id, sealed } = inode.content else { return Ok(()) };
        let metadata = self.store.open_blob(id)?.metadata()?;
        if sealed {
            self.store.map_blob(id)?.check(0, 0)?;
        } else if self.store.rested(id).is_some() && metadata.len() != inode.size {
            // Nobody has written it since it came to rest: it is damaged, which its readers are told.
            return Ok(());
        }
        let mtime = Time::from(metadata.modified()?);
        if metadata.len() != inode.size || !sealed && mtime > inode.mtime {
            inode.size = metadata.len();
            inode.mtime = mtime;
            inode.ctime = inode.ctime.max(mtime);
        }
        Ok(())
    }

    /// The last commit of a volume that is being closed.
    pub(super) fn mark_clean(&self) -> Result<()> {
        debug_assert!(self.life.has_ended(), "nothing is changed after the mark");
        let mut batch = self.catalog.batch();
        batch.put(Table::Meta, CLEAN, b"1");
        self.commit_batch(batch)?;
        self.persist_catalog()?;
        self.catalog.close();
        Ok(())
    }
}
