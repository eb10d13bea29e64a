//! Files that the kernel reads and writes by itself: their registrations, and what happens where it takes none.
//!
//! Every handle that is backed holds the registration of its inode, and all of them hold the same one: the kernel
//! demands it.

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock, Weak};

use dashmap::DashMap;
use fuser::{BackingId, FopenFlags, INodeNo, Notifier, ReplyCreate, ReplyOpen};

use super::answer::Open;
use super::convert;
use crate::volume::{Handle, OpenFlags, Opened, Views};

/// A reply that files can be registered through.
pub(super) trait Register {
    fn register(&self, file: &File) -> io::Result<BackingId>;
}

impl Register for ReplyOpen {
    fn register(&self, file: &File) -> io::Result<BackingId> {
        self.open_backing(file)
    }
}

impl Register for ReplyCreate {
    fn register(&self, file: &File) -> io::Result<BackingId> {
        self.open_backing(file)
    }
}

/// The registrations.
#[derive(Debug, Default)]
pub(super) struct Passthrough {
    inodes: DashMap<u64, Weak<BackingId>>,
    handles: DashMap<Handle, Backed>,
    notifier: OnceLock<Notifier>,
}

#[derive(Debug)]
struct Backed {
    id: Arc<BackingId>,
    writes: bool,
}

impl Passthrough {
    /// Where the kernel is told what it does not notice.
    pub(super) fn set_notifier(&self, notifier: Notifier) {
        // There is one session.
        let _ = self.notifier.set(notifier);
    }

    /// The answer to an open: with a registered file where the volume offers one and the kernel takes it. Where it
    /// does not, which is for want of a privilege or because of how the store's filesystem is made, it is not
    /// asked again.
    pub(super) fn answer(
        &self,
        volume: &Views,
        ino: u64,
        opened: Opened,
        flags: OpenFlags,
        reply: &impl Register,
    ) -> Open {
        let mut fopen = convert::fopen_flags(&opened, flags);
        let handle = opened.handle;
        let Some(file) = &opened.backing else { return Open { handle, flags: fopen, backing: None } };
        match self.registered(ino, file, reply) {
            Ok(id) => {
                self.handles.insert(handle, Backed { id: Arc::clone(&id), writes: flags.write });
                // Nothing is told at a close that the release does not tell.
                Open { handle, flags: fopen | FopenFlags::FOPEN_NOFLUSH, backing: Some(id) }
            }
            Err(error) => {
                tracing::info!("large files are read and written through the daemon: {error}");
                volume.set_passthrough(false);
                volume.refuse_backing(handle);
                fopen |= FopenFlags::FOPEN_DIRECT_IO;
                Open { handle, flags: fopen, backing: None }
            }
        }
    }

    fn registered(&self, ino: u64, file: &File, reply: &impl Register) -> io::Result<Arc<BackingId>> {
        let mut known = self.inodes.entry(ino).or_default();
        if let Some(id) = known.upgrade() {
            return Ok(id);
        }
        let id = Arc::new(reply.register(file)?);
        *known = Arc::downgrade(&id);
        Ok(id)
    }

    /// A handle has ended, and what it did is in the volume.
    pub(super) fn released(&self, ino: INodeNo, handle: Handle) {
        let Some((_, backed)) = self.handles.remove(&handle) else { return };
        drop(backed.id);
        self.inodes.remove_if(&ino.0, |_, id| id.strong_count() == 0);
        if backed.writes
            && let Some(notifier) = self.notifier.get()
            // What was stored into mapped pages, the kernel did not see. Attributes only: there are no pages.
            && let Err(error) = notifier.inval_inode(ino, -1, 0)
        {
            tracing::debug!("attributes of inode {} stay as the kernel knows them: {error}", ino.0);
        }
    }
}
