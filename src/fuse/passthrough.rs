//! Files that the kernel reads and writes by itself: their registrations, and what happens where it takes none.
//!
//! Every handle that is backed holds the registration of its inode, and all of them hold the same one: the kernel
//! demands it. A handle that has ended for the kernel may still be ending here when its file is opened again, and may
//! have another blob by then, because a snapshot has the old one. So a registration is of a blob, too.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
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

/// The registration of each inode that has one, and the file on the disk that it is of.
#[derive(Debug)]
struct Registrations<Id>(DashMap<u64, (Weak<Id>, u64)>);

impl<Id> Registrations<Id> {
    /// The registration of inode `ino` for `file`: the one that it has, or a new one.
    fn get(
        &self,
        ino: u64,
        file: &File,
        register: impl FnOnce(&File) -> io::Result<Id>,
    ) -> io::Result<Arc<Id>> {
        // While a registration lives its file does, so no other has this number.
        let number = file.metadata()?.ino();
        let mut known = self.0.entry(ino).or_insert_with(|| (Weak::new(), number));
        if let Some(id) = known.0.upgrade().filter(|_| known.1 == number) {
            return Ok(id);
        }
        let id = Arc::new(register(file)?);
        *known = (Arc::downgrade(&id), number);
        Ok(id)
    }

    /// Forgets the registration of an inode if no handle holds it any more.
    fn forget_unused(&self, ino: u64) {
        self.0.remove_if(&ino, |_, (id, _)| id.strong_count() == 0);
    }
}

impl<Id> Default for Registrations<Id> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

/// The registrations.
#[derive(Debug, Default)]
pub(super) struct Passthrough {
    inodes: Registrations<BackingId>,
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
    /// does not for want of a privilege or because of how the store's filesystem is made, it is not asked again.
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
        match self.inodes.get(ino, file, |file| reply.register(file)) {
            Ok(id) => {
                self.handles.insert(handle, Backed { id: Arc::clone(&id), writes: flags.write });
                // Nothing is told at a close that the release does not tell.
                Open { handle, flags: fopen | FopenFlags::FOPEN_NOFLUSH, backing: Some(id) }
            }
            Err(error) => {
                if is_for_now(&error) {
                    tracing::debug!("inode {ino} is read and written through the daemon: {error}");
                } else {
                    tracing::info!("large files are read and written through the daemon: {error}");
                    volume.set_passthrough(false);
                }
                volume.refuse_backing(handle);
                fopen |= FopenFlags::FOPEN_DIRECT_IO;
                Open { handle, flags: fopen, backing: None }
            }
        }
    }

    /// A handle has ended, and what it did is in the volume.
    pub(super) fn released(&self, ino: INodeNo, handle: Handle) {
        let Some((_, backed)) = self.handles.remove(&handle) else { return };
        drop(backed.id);
        self.inodes.forget_unused(ino.0);
        if backed.writes
            && let Some(notifier) = self.notifier.get()
            // What was stored into mapped pages, the kernel did not see. Attributes only: there are no pages.
            && let Err(error) = notifier.inval_inode(ino, -1, 0)
        {
            tracing::debug!("attributes of inode {} stay as the kernel knows them: {error}", ino.0);
        }
    }
}

/// Whether the kernel may take the next file that it is offered: it lacked memory or a number.
fn is_for_now(error: &io::Error) -> bool {
    use libc::{EAGAIN, EINTR, EMFILE, ENFILE, ENOMEM, ENOSPC};
    matches!(error.raw_os_error(), Some(EAGAIN | EINTR | EMFILE | ENFILE | ENOMEM | ENOSPC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_one_file_share_a_registration_and_another_blob_gets_its_own() {
        let registrations = Registrations::default();
        let (old, new) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let register = |number: u32| move |_: &File| Ok(number);
        let first = registrations.get(5, &old, register(1)).unwrap();
        let again = old.try_clone().unwrap();
        assert_eq!(*registrations.get(5, &again, register(2)).unwrap(), 1);
        // A snapshot has the old blob; the first handle has not quite ended.
        let second = registrations.get(5, &new, register(3)).unwrap();
        assert_eq!((*first, *second), (1, 3));
        drop(first);
        registrations.forget_unused(5);
        assert_eq!(*registrations.get(5, &new, register(4)).unwrap(), 3);
        drop(second);
        registrations.forget_unused(5);
        assert!(registrations.0.is_empty());
    }
}
