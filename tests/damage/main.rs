//! Every file of a store, truncated and with bytes changed: what a volume then serves is right or an error, never
//! wrong, never a panic, never a hang; and a repair leaves a store that is sound.
//!
//! `VEXFS_DAMAGE_CASES` is how many cases each test tries, 24 unless it is told; with another `VEXFS_SEED` they are
//! others.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic, and its modules share their support"
)]

mod store;
mod sweep;
