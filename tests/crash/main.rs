//! What a store is after the power was cut, and what a volume says when its disk fails.
//!
//! The tests run a volume on a directory whose system calls are recorded ([`interpose`]), work out what a disk may
//! have kept of them ([`image`], [`survivors`]), and open that. `docs/RELIABILITY.md` says what is tried and how to
//! run more of it.
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
mod recording;
