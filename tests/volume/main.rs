//! The volume without a kernel: names, content, attributes, reopening and sudden ends.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic, and its modules share their support"
)]

mod allocations;
mod attributes;
mod checking;
mod conditions;
mod contents;
mod covered;
mod fixtures;
mod names;
mod passthrough;
mod permissions;
mod random;
mod reopening;
mod resting;
mod support;
