//! How much of its thread's stack a piece of work uses.
//!
//! The stack below the caller is painted, the work runs, and what lost its paint was used. The depth is counted from
//! the thread's first frame, so that what runs above the work is in it: the threads' start, the library's loop and
//! dispatch. It sees the paths that are run, and to the word; a word that is reserved and never written does not
//! count.

#![expect(unsafe_code, reason = "a stack is read below the frames that are in use")]

use std::ffi::{c_int, c_void};
use std::hint::black_box;

/// Bytes painted below the caller: more than any work may use, so that what exceeds its budget is seen to do so.
const PAINTED: usize = 64 << 10;

/// Bytes next to the caller that are not painted: the frames of what paints and looks are there.
const OWN: usize = 512;

/// Bytes above the stack's end that are left alone.
const MARGIN: usize = 4 << 10;

const PAINT: u64 = 0x9e37_79b9_7f4a_7c15;

/// Paints the stack below the caller, for what it does until it asks how much was [`used`]. Nothing of this is on the stack
/// meanwhile.
///
/// Painting takes some microseconds: for tests, and for who looks into it.
#[inline(never)]
pub fn paint() {
    let area = Area::below_here();
    if let Some(area) = area {
        area.paint();
    }
    PAINTED_AREA.set(area);
}

/// The bytes of this thread's stack that were in use at the deepest point since it was [painted](paint).
#[must_use]
#[inline(never)]
pub fn used() -> usize {
    PAINTED_AREA.get().map_or(0, |area| area.base - area.lowest_used())
}

/// The part of a stack that is painted.
#[derive(Clone, Copy, Debug)]
struct Area {
    low: usize,
    high: usize,
    /// Where the thread's first frame begins.
    base: usize,
}

impl Area {
    #[inline(never)]
    fn below_here() -> Option<Self> {
        let local = 0u64;
        let here = std::ptr::from_ref(black_box(&local)).addr();
        let high = (here - OWN) & !7;
        let (end, base) = thread_stack();
        let low = (here.checked_sub(PAINTED)?.max(end + MARGIN) + 7) & !7;
        (low < high && base > here).then_some(Self { low, high, base })
    }

    #[inline(never)]
    fn paint(self) {
        for at in (self.low..self.high).step_by(size_of::<u64>()) {
            // SAFETY: the word lies in this thread's stack, by `thread_stack`, and below every frame that is in
            // use: `high` is `OWN` bytes below a frame of the caller, and this function calls nothing. Below the
            // frames nobody keeps anything.
            unsafe { std::ptr::with_exposed_provenance_mut::<u64>(at).write_volatile(PAINT) };
        }
    }

    /// The lowest word without paint.
    #[inline(never)]
    fn lowest_used(self) -> usize {
        for at in (self.low..self.high).step_by(size_of::<u64>()) {
            // SAFETY: as in `paint`, which wrote this word; the stack is still this thread's.
            let word = unsafe { std::ptr::with_exposed_provenance::<u64>(at).read_volatile() };
            if word != PAINT {
                return at;
            }
        }
        self.high
    }
}

thread_local! {
    static PAINTED_AREA: std::cell::Cell<Option<Area>> = const { std::cell::Cell::new(None) };
    /// End and first frame of this thread's stack, or zeroes while they are not known.
    static STACK: std::cell::Cell<(usize, usize)> = const { std::cell::Cell::new((0, 0)) };
}

fn thread_stack() -> (usize, usize) {
    STACK.with(|known| {
        if known.get() == (0, 0) {
            known.set((stack_end(), first_frame()));
        }
        known.get()
    })
}

/// The lowest address of this thread's stack.
fn stack_end() -> usize {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut address, mut size) = (std::ptr::null_mut::<c_void>(), 0usize);
    // SAFETY: the first call fills the attributes of the calling thread, which the second reads into two live
    // variables and the third gives back; when the first fails the others are not made.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return usize::MAX - MARGIN;
        }
        libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut address, &raw mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
    }
    address.addr()
}

/// Where the outermost frame of this thread begins. Above it lie the thread's descriptor and its thread-local
/// storage, which no call uses.
fn first_frame() -> usize {
    extern "C" fn visit(context: *mut c_void, highest: *mut c_void) -> c_int {
        // SAFETY: the unwinder hands a live context, and `first_frame` a pointer to its own variable.
        unsafe {
            let highest = highest.cast::<usize>();
            *highest = (*highest).max(_Unwind_GetCFA(context));
        }
        0
    }
    let mut highest = 0usize;
    // SAFETY: the unwinder, which the standard library links, calls `visit` for each frame with the pointer given,
    // which outlives the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut highest).cast()) };
    highest
}

// SAFETY: the signatures are those of the Itanium C++ ABI's exception handling, level I.
unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How deep the stack is in `work`.
    fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
        paint();
        let value = work();
        (value, used())
    }

    #[inline(never)]
    fn use_stack<const BYTES: usize>() -> u8 {
        let mut space = [1u8; BYTES];
        black_box(&mut space)[BYTES / 2]
    }

    #[test]
    fn what_is_used_is_seen_and_what_was_used_before_is_not() {
        let (_, large) = measured(use_stack::<20_000>);
        let (_, small) = measured(use_stack::<3_000>);
        assert!((20_000..30_000).contains(&(large - small + 3_000)), "{large} and {small}");
        assert!(small > 3_000, "{small}");
    }

    #[test]
    fn a_thread_begins_near_its_first_frame() {
        let used = std::thread::spawn(|| measured(use_stack::<1_000>).1).join().unwrap();
        assert!((1_000..16_000).contains(&used), "{used}");
    }
}
