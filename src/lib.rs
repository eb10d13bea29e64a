//! VexFS: a filesystem in which a directory is a vector collection and a file is a vector.
//!
//! The package is one library and a thin binary. Rooms use the rooms below them, never above:
//!
//! ```text
//! doors      cli          fuse
//! desk       volume
//! rooms      namespace    search
//!            collection
//! workshops  catalog      store      index
//! ground     distance  format  pool  metrics  random  error
//! ```
//!
//! `docs/ARCHITECTURE.md` says what lives where and which invariants hold between the rooms.

pub mod catalog;
pub mod cli;
pub mod collection;
pub mod distance;
pub mod error;
pub mod format;
pub mod fuse;
pub mod index;
pub mod metrics;
pub mod namespace;
pub mod pool;
pub mod random;
pub mod search;
pub mod store;
mod sync;
pub mod volume;

pub use error::{Error, Result};
