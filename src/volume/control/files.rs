//! Opening, reading and writing what is in a control directory.

use std::sync::Arc;

use parking_lot::Mutex;

use super::held::Share;
use super::{Access, CONFIG_PATH, Node, SAVED_BYTES, SAVED_QUERIES, SavedQuery, What};
use crate::collection::Schema;
use crate::namespace::{Ino, Kind};
use crate::pool::shallow::aside;
use crate::search::request::{RequestLimits, parse_query_file};
use crate::search::transaction::{Answers, Transaction, answer_one};
use crate::search::{Answer, Request};
use crate::volume::Volume;
use crate::volume::types::{Attr, Caller, DirEntry, Handle, OpenFlags, Opened};
use crate::{Error, Result};

/// Longest part of a request that is taken in, and may be parsed, by the worker that receives it.
const SHORT_BYTES: usize = 64 << 10;

/// What reading `sync` gives once everything before it is indexed and durable.
pub(super) const SYNCED: &[u8] = b"ok\n";

/// An open control node.
#[derive(Debug)]
pub(in crate::volume) enum OpenControl {
    /// A generated file, as it was looked up.
    Bytes(Arc<Vec<u8>>),
    /// The configuration of a directory.
    Config { base: Ino, text: Mutex<Draft> },
    /// One client's conversation.
    Query { base: Ino, conversation: Mutex<(Transaction, Share)> },
    /// A query that is dropped or read back.
    Saved { base: Ino, query: Arc<SavedQuery>, changed: Mutex<bool> },
    /// The barrier.
    Sync,
    /// What has the graphs of a directory built anew.
    Rebuild { base: Ino },
    /// A directory, listed once.
    Directory(Vec<(Vec<u8>, Kind, Ino)>),
}

/// A file that is taken whole at its close.
#[derive(Debug)]
pub(in crate::volume) struct Draft {
    bytes: Vec<u8>,
    /// What is written goes to its end. The kernel puts it at the end of what is in force.
    appends: bool,
    /// Since a close has taken it.
    changed: bool,
    /// The size that it would have after a write that was refused.
    beyond_limit: Option<u64>,
}

impl Draft {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let limit = Schema::MAX_CONFIG as u64;
        let offset = if self.appends { self.bytes.len() as u64 } else { offset };
        let written = put_part(&mut self.bytes, offset, data, limit);
        match written {
            Err(Error::TooLarge { got, .. }) => self.beyond_limit = Some(got),
            _ => self.changed = true,
        }
        written
    }

    fn truncate(&mut self, size: usize) {
        self.bytes.truncate(size);
        self.changed = true;
        if size == 0 {
            self.beyond_limit = None;
        }
    }

    /// What a close takes: none when nothing has changed, or nothing is there.
    ///
    /// A shell opens a file, which cuts it off, closes a copy of the descriptor, and writes then. So at a close an
    /// empty file says that nothing was written yet, by a program that will write or by one that has failed.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] when some of what was written is missing.
    fn take(&mut self) -> Result<Option<Vec<u8>>> {
        if let Some(got) = self.beyond_limit {
            return Err(too_large(got, Schema::MAX_CONFIG as u64));
        }
        if self.bytes.is_empty() || !std::mem::take(&mut self.changed) {
            return Ok(None);
        }
        Ok(Some(self.bytes.clone()))
    }
}

/// Answers the requests of one handle.
struct Conversation<'a> {
    volume: &'a Volume,
    caller: &'a Caller,
    base: Ino,
}

impl Answers for Conversation<'_> {
    fn answer(&mut self, request: &Request) -> Result<Vec<Answer>> {
        self.volume.search(self.caller, self.base, request)
    }
}

impl Volume {
    pub(in crate::volume) fn control_open(
        &self,
        caller: &Caller,
        ino: Ino,
        flags: OpenFlags,
    ) -> Result<Opened> {
        let node = self.control.node(ino)?;
        let base = node.base;
        let mut opened = Opened { handle: Handle(0), direct_io: true, keep_cache: false, backing: None };
        let open = match &node.what {
            What::Bytes(bytes) => {
                if flags.write {
                    return Err(Error::ReadOnly);
                }
                OpenControl::Bytes(bytes.load_full())
            }
            What::Config(text) => {
                if flags.write {
                    self.check_writable()?;
                }
                let bytes = if flags.truncate { Vec::new() } else { text.load().to_vec() };
                let draft =
                    Draft { bytes, appends: flags.append, changed: flags.truncate, beyond_limit: None };
                OpenControl::Config { base, text: Mutex::new(draft) }
            }
            What::Query => {
                let share = Share::new(&self.control.held, caller.uid);
                OpenControl::Query { base, conversation: Mutex::new((Transaction::default(), share)) }
            }
            What::Saved(query) => {
                if flags.truncate {
                    query.bytes.lock().clear();
                }
                // One that was made and never written is told so as well.
                let is_new = flags.write && query.request.lock().0 == 0;
                let changed = Mutex::new(flags.truncate || is_new);
                OpenControl::Saved { base, query: Arc::clone(query), changed }
            }
            What::Sync | What::Verify if flags.write => return Err(Error::ReadOnly),
            What::Sync => OpenControl::Sync,
            What::Verify => OpenControl::Bytes(Arc::new(aside(|| self.verify_json(caller, base))?)),
            What::Rebuild => {
                self.check_rebuild(caller, base)?;
                OpenControl::Rebuild { base }
            }
            What::Link(_) => return Err(Error::Invalid("a symbolic link is not opened")),
            _ => return Err(Error::IsDirectory),
        };
        opened.handle = self.control.handle(open);
        Ok(opened)
    }

    /// Makes a file in `queries/`; there is no other place for one.
    pub(in crate::volume) fn control_create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        _mode: u16,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        let queries = self.control.node(parent)?;
        if !matches!(queries.what, What::Queries) {
            return Err(Error::ReadOnly);
        }
        crate::namespace::check_name(name)?;
        let base = queries.base;
        self.names.directory(base)?;
        let key = (base, name.to_vec());
        if self.saved_by(caller.uid).count() >= SAVED_QUERIES {
            return Err(Error::NoSpace);
        }
        if self.control.saved.contains_key(&key) {
            return Err(Error::Exists);
        }
        let query = Arc::new(SavedQuery {
            name: name.to_vec(),
            uid: caller.uid,
            gid: caller.gid,
            bytes: Mutex::default(),
            request: Mutex::new((0, None)),
        });
        self.control.saved.insert(key, Arc::clone(&query));
        if let Err(gone) = self.names.directory(base) {
            // It was removed meanwhile, maybe before this one was there to go with it.
            self.control.directory_removed(base);
            return Err(gone);
        }
        let access = Access::private(caller.uid, caller.gid, 0o600);
        let node = self.same(caller, &queries, name, What::Saved(query), access);
        let opened = self.control_open(caller, node.ino, flags)?;
        Ok((node.attr(), opened))
    }

    pub(in crate::volume) fn control_unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        let queries = self.control.node(parent)?;
        if !matches!(queries.what, What::Queries) {
            return Err(Error::ReadOnly);
        }
        let key = (queries.base, name.to_vec());
        let query = self.control.saved.get(&key).map(|query| Arc::clone(&query)).ok_or(Error::NotFound)?;
        if caller.uid != 0 && caller.uid != query.uid {
            return Err(Error::NotPermitted);
        }
        self.control.saved.remove(&key);
        self.control.forget_note(queries.base, &query.path());
        self.control.known.retain(|(ino, known, ..), _| *ino != parent || known != name);
        Ok(())
    }

    pub(in crate::volume) fn control_read(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        size: u32,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        let size = size as usize;
        match &*self.control.opened(handle)? {
            OpenControl::Bytes(bytes) => copy_part(bytes, offset, size, into),
            OpenControl::Config { text, .. } => copy_part(&text.lock().bytes, offset, size, into),
            OpenControl::Saved { query, .. } => copy_part(&query.bytes.lock(), offset, size, into),
            OpenControl::Query { base, conversation } => {
                let mut answers = Conversation { volume: self, caller, base: *base };
                let limits = self.request_limits(*base)?;
                let (transaction, share) = &mut *conversation.lock();
                let read = transaction.read(offset, size, into, &limits, &mut answers);
                // An answer that is there is given: it is the next write that is refused.
                let _ = share.set(transaction.held_bytes());
                read?;
            }
            OpenControl::Sync => {
                if offset == 0 {
                    self.barrier()?;
                }
                copy_part(SYNCED, offset, size, into);
            }
            OpenControl::Rebuild { .. } => {}
            OpenControl::Directory(_) => return Err(Error::IsDirectory),
        }
        Ok(())
    }

    pub(in crate::volume) fn control_write(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        data: &[u8],
    ) -> Result<u32> {
        match &*self.control.opened(handle)? {
            OpenControl::Config { text, .. } => text.lock().write(offset, data)?,
            OpenControl::Saved { base, query, changed } => {
                let limit = self.request_limits(*base)?.max_bytes;
                let end = usize::try_from(offset.saturating_add(data.len() as u64)).unwrap_or(usize::MAX);
                let growth = end.saturating_sub(query.bytes.lock().len());
                let held: usize = self.saved_by(query.uid).map(|query| query.held_bytes()).sum();
                if held.saturating_add(growth.min(usize::try_from(limit).unwrap_or(usize::MAX))) > SAVED_BYTES
                {
                    return Err(Error::NoSpace);
                }
                put_part(&mut query.bytes.lock(), offset, data, limit)?;
                *changed.lock() = true;
            }
            OpenControl::Query { base, conversation } => {
                let limits = self.request_limits(*base)?;
                let (transaction, share) = &mut *conversation.lock();
                let written = transaction.write(data, &limits);
                if let Err(over) = share.set(transaction.held_bytes()) {
                    // As after any write that fails, the handle begins anew.
                    *transaction = Transaction::default();
                    let _ = share.set(0);
                    return written.and(Err(over));
                }
                written?;
            }
            OpenControl::Rebuild { base } => self.rebuild_indexes(caller, *base)?,
            OpenControl::Bytes(_) | OpenControl::Sync | OpenControl::Directory(_) => {
                return Err(Error::BadHandle);
            }
        }
        Ok(u32::try_from(data.len()).unwrap_or(u32::MAX))
    }

    /// Whether reading an open control node takes a worker's moment only: a conversation that has nothing to search
    /// for, or so little that searches here lately took no longer.
    pub(in crate::volume) fn control_read_is_short(&self, handle: Handle) -> bool {
        let Ok(open) = self.control.opened(handle) else { return true };
        match &*open {
            OpenControl::Bytes(_) => true,
            // Locked while it is being answered: that may take long.
            OpenControl::Query { base, conversation } => conversation
                .try_lock()
                .is_some_and(|conversation| self.pace.is_short(*base, conversation.0.waiting())),
            OpenControl::Config { .. }
            | OpenControl::Saved { .. }
            | OpenControl::Sync
            | OpenControl::Rebuild { .. }
            | OpenControl::Directory(_) => false,
        }
    }

    /// Answers the request for one vector that `request` begins with, in at most `room` bytes.
    pub(in crate::volume) fn control_ask(
        &self,
        caller: &Caller,
        handle: Handle,
        request: &[u8],
        room: usize,
    ) -> Result<Vec<u8>> {
        let open = self.control.opened(handle)?;
        let OpenControl::Query { base, .. } = &*open else { return Err(Error::BadHandle) };
        let mut answers = Conversation { volume: self, caller, base: *base };
        answer_one(request, room, &self.request_limits(*base)?, &mut answers)
    }

    /// Whether asking through an open control node takes a worker's moment only; none where it cannot be asked.
    pub(in crate::volume) fn control_ask_is_short(&self, handle: Handle) -> Option<bool> {
        match &*self.control.opened(handle).ok()? {
            OpenControl::Query { base, .. } => Some(self.pace.is_short(*base, 1)),
            _ => None,
        }
    }

    /// Whether writing `data` to an open control node takes a worker's moment only: a conversation collects.
    pub(in crate::volume) fn control_write_is_short(&self, handle: Handle, data: &[u8]) -> bool {
        let Ok(open) = self.control.opened(handle) else { return true };
        match &*open {
            // To hand values to another thread they would be copied, which takes as long as taking them in.
            OpenControl::Query { conversation, .. } => conversation
                .try_lock()
                .is_some_and(|conversation| data.len() <= SHORT_BYTES || conversation.0.is_all_values(data)),
            _ => false,
        }
    }

    /// Whether closing an open control node takes a worker's moment only: nothing is parsed then.
    pub(in crate::volume) fn control_close_is_short(&self, handle: Handle) -> bool {
        let open = self.control.opened(handle);
        open.is_ok_and(|open| matches!(&*open, OpenControl::Query { .. } | OpenControl::Bytes(_)))
    }

    /// The queries that a user has dropped.
    fn saved_by(&self, uid: u32) -> impl Iterator<Item = Arc<SavedQuery>> {
        let saved = self.control.saved.iter();
        saved.filter(move |query| query.uid == uid).map(|query| Arc::clone(&query))
    }

    /// The close of a draft: a configuration is taken or refused, a query parsed or refused.
    pub(in crate::volume) fn control_flush(&self, caller: &Caller, handle: Handle) -> Result<()> {
        match &*self.control.opened(handle)? {
            OpenControl::Config { base, text } => {
                let taken = text.lock().take().transpose();
                let Some(taken) = taken else { return Ok(()) };
                let applied = taken.and_then(|bytes| aside(|| self.configure(*base, Schema::parse(&bytes)?)));
                self.noted(*base, CONFIG_PATH, caller.uid, applied)
            }
            OpenControl::Saved { base, query, changed } => {
                if !std::mem::take(&mut *changed.lock()) {
                    return Ok(());
                }
                self.take_query(caller, *base, query)
            }
            _ => Ok(()),
        }
    }

    /// Takes what was written into a query. An empty one is refused, but no close fails for it: a shell leaves it empty
    /// at a close before it writes.
    fn take_query(&self, caller: &Caller, base: Ino, query: &SavedQuery) -> Result<()> {
        let bytes = query.bytes.lock().clone();
        let parsed = self.parse_query(caller, base, &query.name, &bytes);
        let mut request = query.request.lock();
        request.0 += 1;
        request.1 = None;
        let taken = self.noted(base, &query.path(), query.uid, parsed.map(|parsed| request.1 = Some(parsed)));
        if bytes.is_empty() { Ok(()) } else { taken }
    }

    /// The request of a dropped query.
    fn parse_query(&self, caller: &Caller, base: Ino, name: &[u8], bytes: &[u8]) -> Result<Request> {
        if bytes.is_empty() {
            return Err(Error::Format("empty file".into()));
        }
        let limits: RequestLimits = self.request_limits(base)?;
        let dim = self.vectors.existing(self.collection_root(base)?).and_then(|known| known.dim());
        let request = parse_query_file(name, bytes, dim, &limits)?;
        self.check_request(caller, base, &request)?;
        Ok(request)
    }

    /// Notes what is wrong with a control node, or that nothing is any more.
    pub(super) fn noted<T>(&self, base: Ino, path: &str, uid: u32, result: Result<T>) -> Result<T> {
        match &result {
            Ok(_) => self.control.forget_note(base, path),
            Err(error) => self.control.note(base, path, uid, error),
        }
        result
    }

    /// A file is truncated before it is written anew; what a handle has is cut with it.
    pub(super) fn control_truncate(
        &self,
        caller: &Caller,
        node: &Node,
        size: u64,
        handle: Option<Handle>,
    ) -> Result<()> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let open = handle.map(|handle| self.control.opened(handle)).transpose()?;
        match (&node.what, open.as_deref()) {
            (What::Saved(query), open) => {
                query.bytes.lock().truncate(size);
                match open {
                    Some(OpenControl::Saved { changed, .. }) => *changed.lock() = true,
                    // By its path, so there is no close to come. Its content is what it was cut to, whatever that is.
                    _ => drop(self.take_query(caller, node.base, query)),
                }
            }
            (What::Config(_), Some(OpenControl::Config { text, .. })) => text.lock().truncate(size),
            _ => {}
        }
        Ok(())
    }

    pub(in crate::volume) fn control_release(&self, handle: Handle) -> Result<()> {
        self.control.open.remove(&handle).map(|_| ()).ok_or(Error::BadHandle)
    }

    pub(in crate::volume) fn control_fsync(&self, handle: Handle) -> Result<()> {
        self.control.opened(handle).map(|_| ())
    }

    pub(in crate::volume) fn control_open_dir(&self, caller: &Caller, ino: Ino) -> Result<Handle> {
        let node = self.control.node(ino)?;
        let mut entries = vec![(b".".to_vec(), Kind::Directory, node.ino)];
        entries.push((b"..".to_vec(), Kind::Directory, node.parent));
        for (name, kind) in self.control_names(caller, &node)? {
            // A listed name has no node yet: any number that is no ordinary inode's will do.
            let ino = Ino(super::BIT | xxhash_rust::xxh3::xxh3_64_with_seed(&name, node.ino.0));
            entries.push((name, kind, ino));
        }
        Ok(self.control.handle(OpenControl::Directory(entries)))
    }

    pub(in crate::volume) fn control_read_dir(
        &self,
        _caller: &Caller,
        handle: Handle,
        offset: u64,
        emit: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let open = self.control.opened(handle)?;
        let OpenControl::Directory(entries) = &*open else { return Err(Error::NotDirectory) };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (name, kind, ino)) in entries.iter().enumerate().skip(from) {
            if !emit(&DirEntry { offset: at as u64 + 1, ino: *ino, kind: *kind, name }) {
                break;
            }
        }
        Ok(())
    }

    pub(in crate::volume) fn control_release_dir(&self, handle: Handle) {
        self.control.open.remove(&handle);
    }
}

fn copy_part(bytes: &[u8], offset: u64, size: usize, into: &mut Vec<u8>) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    into.extend_from_slice(&bytes[from..][..size.min(bytes.len() - from)]);
}

fn put_part(bytes: &mut Vec<u8>, offset: u64, data: &[u8], limit: u64) -> Result<()> {
    let end = offset.saturating_add(data.len() as u64);
    if end > limit {
        return Err(too_large(end, limit));
    }
    let (from, end) = (usize::try_from(offset).unwrap_or(0), usize::try_from(end).unwrap_or(0));
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[from..end].copy_from_slice(data);
    Ok(())
}

fn too_large(got: u64, limit: u64) -> Error {
    Error::TooLarge { what: "file of bytes", got, limit }
}
