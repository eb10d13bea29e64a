//! What the real Linux kernel and ordinary programs see of a mounted store.

#![allow(clippy::unwrap_used, reason = "clippy knows the functions marked as tests, not what they call")]

mod clock;
mod conformance;
mod damage;
mod doors;
mod explain;
mod export;
mod files;
mod formats;
mod harness;
mod import;
mod index;
mod lifecycle;
mod manners;
mod names;
mod passthrough;
mod readonly;
mod real_data;
mod snapshots;
mod stack;
mod stress;
mod tools;
mod updates;
