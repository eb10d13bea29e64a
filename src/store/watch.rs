//! Mappings whose disk may fail: what would kill the process becomes a page of zeros and a note.
//!
//! Reading a mapped page that the disk cannot read, or that lies behind the end of a file that somebody cut, raises
//! SIGBUS in the thread that reads. For mappings that are watched, a handler puts an anonymous page in the place of
//! the one that failed, and notes it; the read then goes on and sees zeros. **Whoever has read from a watched mapping
//! believes it only when the note is not there afterwards** ([`Watch::damage`], and [`damages`] for many mappings at
//! once), or when a checksum agrees. Any other SIGBUS goes where it went before.
//!
//! The page stays replaced until the mapping ends: the store is opened again when its disk is well.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use crate::sync::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Mutex, Ordering};

/// The places of this process.
static PLACES: Places = Places::new();

/// No page failed.
const NONE: usize = usize::MAX;

/// Which ranges of addresses are watched, and how many pages failed in them.
pub(super) struct Places {
    /// All places that were ever made, for the handler. They are never freed, only used again.
    first: AtomicPtr<Place>,
    /// Places that watch nothing at the moment.
    free: Mutex<Vec<&'static Place>>,
    /// How many pages failed so far.
    damages: AtomicU64,
}

/// One watched range of addresses.
struct Place {
    /// Odd while it watches, and never again the same: whoever finds it before and after the rest has read the range of
    /// one watch.
    turn: AtomicU64,
    start: AtomicUsize,
    len: AtomicUsize,
    writable: AtomicBool,
    /// Offset of the last page that failed, or [`NONE`].
    failed: AtomicUsize,
    next: AtomicPtr<Place>,
}

/// A page that could not be read and that somebody watches.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// Its address.
    pub(super) at: usize,
    /// Whether its mapping can be written.
    pub(super) writable: bool,
}

/// Counts pages of watched mappings that could not be read, in this process. While it stays the same, what was read
/// meanwhile is what the disk has.
#[must_use]
pub fn damages() -> u64 {
    PLACES.damages()
}

/// Watches a mapping for as long as it lives. It is dropped before the mapping is: in a struct it stands above it.
pub(super) struct Watch {
    place: &'static Place,
    of: &'static Places,
}

impl Watch {
    /// Watches `len` bytes from `start`, a mapping of whole pages. `writable` says whether the mapping can be written:
    /// then a page that is put in its place can be, too.
    pub(super) fn over(start: *const u8, len: usize, writable: bool) -> Self {
        install();
        PLACES.watch(start as usize, len, writable)
    }

    /// Where in the mapping a page could not be read, in bytes; the last one of several.
    pub(super) fn damage(&self) -> Option<u64> {
        let failed = self.place.failed.load(Ordering::Acquire);
        (failed != NONE).then_some(failed as u64)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.place.end();
        self.of.free.lock().push(self.place);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("damage", &self.damage()).finish()
    }
}

impl Places {
    pub(super) const fn new() -> Self {
        Self {
            first: AtomicPtr::new(ptr::null_mut()),
            free: Mutex::new(Vec::new()),
            damages: AtomicU64::new(0),
        }
    }

    /// Watches a range that nobody watches.
    pub(super) fn watch(&'static self, start: usize, len: usize, writable: bool) -> Watch {
        let mut free = self.free.lock();
        let place = free.pop().unwrap_or_else(|| self.make());
        place.begin(start, len, writable);
        Watch { place, of: self }
    }

    /// A new place, at the head of the list. The caller holds the lock: nobody else changes the list.
    fn make(&self) -> &'static Place {
        let made = Box::leak(Box::new(Place::new()));
        made.next.store(self.first.load(Ordering::Relaxed), Ordering::Relaxed);
        self.first.store(made, Ordering::Release);
        made
    }

    /// Notes that the page of `address` could not be read; `None` when nobody watches it. Called from the handler, in
    /// the thread that was reading the page: nothing but atomics.
    pub(super) fn note(&self, address: usize, page_bytes: usize) -> Option<Failed> {
        let mut place = self.first.load(Ordering::Acquire);
        // SAFETY: places are never freed, and each was whole before it came into the list.
        while let Some(here) = unsafe { place.as_ref() } {
            if let Some(failed) = here.note(address, page_bytes) {
                self.damages.fetch_add(1, Ordering::AcqRel);
                return Some(failed);
            }
            place = here.next.load(Ordering::Relaxed);
        }
        None
    }

    pub(super) fn damages(&self) -> u64 {
        self.damages.load(Ordering::Acquire)
    }
}

impl Place {
    const fn new() -> Self {
        Self {
            turn: AtomicU64::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            writable: AtomicBool::new(false),
            failed: AtomicUsize::new(NONE),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Begins to watch. Nobody else has the place.
    fn begin(&self, start: usize, len: usize, writable: bool) {
        // Whoever reads one of these finds that the turn before has ended.
        self.start.store(start, Ordering::Release);
        self.len.store(len, Ordering::Release);
        self.writable.store(writable, Ordering::Release);
        self.failed.store(NONE, Ordering::Release);
        self.turn.fetch_add(1, Ordering::Release);
    }

    /// Ends what was begun.
    fn end(&self) {
        self.turn.fetch_add(1, Ordering::Release);
    }

    /// Notes that the page of `address` failed, if it is watched here.
    fn note(&self, address: usize, page_bytes: usize) -> Option<Failed> {
        let turn = self.turn.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Acquire);
        if turn.is_multiple_of(2) || address < start || address - start >= len {
            return None;
        }
        // Another watch may have begun here, and the range be the start of one and the length of the other.
        if self.turn.load(Ordering::Relaxed) != turn {
            return None;
        }
        // It is the watch of the mapping that is just being read: nobody ends that.
        let at = address & !(page_bytes - 1);
        self.failed.store(at.saturating_sub(start), Ordering::Release);
        Some(Failed { at, writable: self.writable.load(Ordering::Acquire) })
    }
}

impl Failed {
    /// Puts a page of zeros where it was. Only a system call.
    fn replace(&self, page_bytes: usize) -> bool {
        let write = if self.writable { libc::PROT_WRITE } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the page lies within a mapping that lives: a thread is just reading it, and its watch is dropped
        // before it. Nobody can have seen the page's content, because there is none.
        let mapped =
            unsafe { libc::mmap(self.at as *mut c_void, page_bytes, libc::PROT_READ | write, flags, -1, 0) };
        mapped != libc::MAP_FAILED
    }
}

/// What happened at a SIGBUS before this module came, and the size of a page.
struct Before {
    action: UnsafeCell<MaybeUninit<libc::sigaction>>,
    page: AtomicUsize,
}

// SAFETY: `action` is written once, under `INSTALLED`, before the handler that reads it is in place.
unsafe impl Sync for Before {}

static BEFORE: Before =
    Before { action: UnsafeCell::new(MaybeUninit::zeroed()), page: AtomicUsize::new(4096) };
static INSTALLED: OnceLock<()> = OnceLock::new();

fn install() {
    INSTALLED.get_or_init(|| {
        // SAFETY: sysconf has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        BEFORE.page.store(usize::try_from(page).unwrap_or(4096), Ordering::Release);
        // SAFETY: all zeros is a valid `sigaction`: no flags, no handler.
        let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
        ours.sa_sigaction = on_bus_error as *const () as usize;
        // On the thread's alternative stack, as the standard library's own handler: the fault may come deep down.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: asks for the action in force and stores it into memory that nobody reads yet; then puts a handler
        // in place that does nothing but what a handler may do.
        let failed = unsafe {
            libc::sigaction(libc::SIGBUS, ptr::null(), (*BEFORE.action.get()).as_mut_ptr()) != 0
                || libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) != 0
        };
        if failed {
            tracing::warn!("no handler for SIGBUS: an unreadable page of the store will end this process");
        }
    });
}

/// Replaces the page that could not be read, or does what was done before.
extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a siginfo that is valid for the call, and SIGBUS has an address in it.
    let address = unsafe { (*info).si_addr() } as usize;
    // SAFETY: the location of this thread's errno is always valid. The code that was interrupted may be about to read it.
    let errno = unsafe { &mut *libc::__errno_location() };
    let saved = *errno;
    let page = BEFORE.page.load(Ordering::Acquire);
    // First the note: another thread may read the zeros as soon as they are there, and looks for it then.
    let replaced = PLACES.note(address, page).is_some_and(|failed| failed.replace(page));
    *errno = saved;
    if !replaced {
        pass_on(signal, info, context);
    }
}

fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the action was stored before the handler was put in place.
    let before = unsafe { (*BEFORE.action.get()).assume_init_ref() };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The fault comes again when this returns, and then ends the process.
            // SAFETY: the default action is always a valid one.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO the value is a function of this type.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO the value is a function of this type.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use memmap2::MmapOptions;

    use super::*;

    #[test]
    fn a_page_behind_the_end_reads_as_zeros_and_is_noted() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * 4096).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 3 * 4096], 0).unwrap();
        // SAFETY: the file is cut under the mapping on purpose; the watch answers for that.
        let map = unsafe { MmapOptions::new().map(&file) }.unwrap();
        let watch = Watch::over(map.as_ptr(), map.len(), false);
        assert_eq!((map[5000], watch.damage()), (7, None));
        file.set_len(4096).unwrap();
        let before = damages();
        assert_eq!(map[5000], 0);
        assert_eq!(watch.damage(), Some(4096));
        assert_eq!(map[2 * 4096], 0);
        assert_eq!(watch.damage(), Some(2 * 4096));
        assert!(damages() >= before + 2);
        assert_eq!(map[10], 7, "the rest of the mapping is as it was");
    }

    #[test]
    fn whoever_reads_zeros_finds_the_note() {
        let file = tempfile::tempfile().unwrap();
        // Whether the two meet is chance, so there are many pages.
        for round in 0..3000 {
            file.set_len(4096).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 0).unwrap();
            // SAFETY: as above.
            let map = unsafe { MmapOptions::new().map(&file) }.unwrap();
            let watch = Watch::over(map.as_ptr(), map.len(), false);
            file.set_len(0).unwrap();
            let ready = AtomicUsize::new(0);
            let read = || {
                ready.fetch_add(1, Ordering::AcqRel);
                while ready.load(Ordering::Acquire) < 2 {
                    std::hint::spin_loop();
                }
                (map[100], watch.damage())
            };
            let both = std::thread::scope(|scope| {
                [scope.spawn(read), scope.spawn(read)].map(|one| one.join().unwrap())
            });
            assert_eq!(both, [(0, Some(0)); 2], "round {round}");
        }
    }

    #[test]
    fn a_place_is_used_again_and_forgets() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        // SAFETY: as above.
        let map = unsafe { MmapOptions::new().map(&file) }.unwrap();
        let watch = Watch::over(map.as_ptr(), map.len(), false);
        file.set_len(0).unwrap();
        assert_eq!((map[0], watch.damage()), (0, Some(0)));
        drop(watch);
        let again = Watch::over(map.as_ptr(), map.len(), false);
        assert_eq!(again.damage(), None);
    }
}
