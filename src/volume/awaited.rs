//! Whether somebody still waits for an answer.
//!
//! The kernel tells a filesystem of a request's end by `FUSE_INTERRUPT`, which fuser 0.18 does not know: a caller that
//! was killed, or whose user has pressed Ctrl-C, stays until its answer comes. So a search that takes long looks
//! itself at the signals that wait for its caller.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::types::Caller;

/// How often the caller is looked at: opening a file of `/proc` costs some microseconds.
const INTERVAL: Duration = Duration::from_millis(20);

/// Signals that say that the answer is not wanted any more: HUP, INT, QUIT, KILL, TERM. Bit 0 is signal 1.
const ENDING: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 8 | 1 << 14;

/// A caller that waits.
pub(super) struct Awaited {
    caller: u32,
    next: Cell<Instant>,
}

impl Awaited {
    pub(super) fn by(caller: &Caller) -> Self {
        Self { caller: caller.pid, next: Cell::new(Instant::now() + INTERVAL) }
    }

    /// Whether it still waits at the moment `now`. Where that cannot be known, it does.
    pub(super) fn check(&self, now: Instant) -> bool {
        if self.caller == 0 || now < self.next.get() {
            return true;
        }
        self.next.set(now + INTERVAL);
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.caller));
        !status.is_ok_and(|status| is_ending(&status))
    }
}

/// Whether a signal waits that the process neither blocks nor ignores.
fn is_ending(status: &str) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    };
    let pending = field("SigPnd:") | field("ShdPnd:");
    pending & !field("SigBlk:") & !field("SigIgn:") & ENDING != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_signal_counts_unless_it_is_blocked_or_ignored() {
        let status = |pending: &str, blocked: &str, ignored: &str| {
            format!("Name:\tcat\nSigPnd:\t{pending}\nShdPnd:\t0\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\n")
        };
        assert!(is_ending(&status("0000000000000100", "0", "0")));
        assert!(is_ending(&status("0000000000000002", "0", "0")));
        assert!(!is_ending(&status("0000000000000002", "2", "0")));
        assert!(!is_ending(&status("0000000000000002", "0", "2")));
        assert!(!is_ending(&status("0000000000010000", "0", "0")), "a child's end says nothing");
        assert!(!is_ending(""));
    }

    #[test]
    fn this_process_waits_for_itself() {
        let caller = Caller { uid: 0, gid: 0, pid: std::process::id() };
        let awaited = Awaited::by(&caller);
        awaited.next.set(Instant::now());
        assert!(awaited.check(Instant::now()));
    }
}
