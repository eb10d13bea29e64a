//! What a store is worth when the power goes, the daemon dies or the disk fails.
//!
//! The simulation runs a volume on a directory whose system calls are recorded ([`interpose`]), works out what a disk
//! may have kept of them ([`image`], [`survivors`]), and opens that. [`live`] does it to a mount on a disk of its own.
//! `docs/RELIABILITY.md` says what is tried and how to run more of it.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic, and its modules share their support"
)]

mod check;
mod image;
mod interpose;
mod random;
mod recorder;
mod reference;
mod survivors;
mod workload;

mod cuts;
mod faults;
mod flushes;
mod live;
mod mutations;
mod promises;
mod recording;
mod refused;
mod snapshots;
