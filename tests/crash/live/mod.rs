//! Power cuts, kills and failing disks, met by a live mount.
//!
//! ```text
//! load ──▶ vexfs mount ──▶ ext4, xfs ──▶ loop device ──▶ device: a disk that remembers
//!   └─▶ model: what system calls returned, and when           └─▶ cuts: what a power cut left of it
//! ```
//!
//! - [`device`]: disks as files of a FUSE mount in this process. They record writes and flushes and fail on demand.
//! - [`machine`]: a mount namespace of the test's own, loop mounts, the daemon.
//! - [`load`]: what users do, each client in a collection of its own.
//! - [`model`]: which states of a collection the returned system calls allow.
//! - [`check`]: what a mounted store shows, compared with the model and with itself.
//! - [`snapshots`]: the same for what clients took snapshots of.
//! - `cuts`, `kills`, `faults`, `full`, `hygiene`: the tests.
//!
//! They need root, loop devices and FUSE, and fail with a sentence where these are missing.

mod check;
mod cuts;
mod device;
mod faults;
mod full;
mod hygiene;
mod kills;
mod load;
mod machine;
mod model;
mod snapshots;

use vexfs::random::splitmix64;

/// How many of something a long run asks for.
fn asked(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{variable}={value}: want a number")),
        Err(_) => default,
    }
}

/// The seed of this run: `CRASH_SEED`, or another one each time.
fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    asked("CRASH_SEED", now.subsec_nanos() as usize) as u64
}

/// A small generator, so that a failure can be run again from its seed.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is below a usize")
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    /// A value that is never 0, so that no vector is the zero vector.
    fn value(&mut self) -> f32 {
        (self.below(2001) as f32 - 1000.0) / 1000.0 + 0.0001
    }
}
