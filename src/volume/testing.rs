//! What unit tests of this room share.

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Caller, Volume, VolumeOptions};

/// Who may do everything.
pub(super) const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// A volume with a store of its own, which goes with the directory.
pub(super) fn volume() -> (TempDir, Arc<Volume>) {
    let store = tempfile::tempdir().unwrap();
    let options = VolumeOptions { store: store.path().to_path_buf(), mountpoint: None, read_only: false };
    let volume = Volume::open(options).unwrap();
    (store, volume)
}

/// Does `work` on a thread of its own, and returns when that waits for something behind the point that `has_come` tells
/// of.
pub(super) fn held_up<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
    has_come: impl Fn() -> bool,
) -> ScopedJoinHandle<'scope, T> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let working = scope.spawn(move || {
        sender.send(nix::unistd::gettid().as_raw()).unwrap();
        work()
    });
    let thread = receiver.recv().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !has_come() || !sleeps(thread) {
        assert!(!working.is_finished(), "it waits for nothing");
        assert!(Instant::now() < deadline, "it does not come to where it waits");
    }
    working
}

/// Whether a thread waits for something, and has for a while.
fn sleeps(thread: i32) -> bool {
    let state = || {
        // It may have ended.
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
        stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('S')))
    };
    (0..20).all(|_| {
        std::thread::sleep(Duration::from_millis(1));
        state()
    })
}
