//! Search: from a request to hits, without I/O. One parser and one renderer serve every door.
//!
//! - [`request`]: what is asked, from JSON lines, binary headers and `@k=20` path elements.
//! - [`nearest`](mod@nearest): rows of collections in order of distance, by graph or by scan.
//! - [`answer`], [`render`]: what was found, and the forms in which the doors show it.
//! - [`transaction`]: the protocol of the `query` file, at any split of its bytes.
//!
//! This room does not know inodes or permissions: which files may be returned is a set of groups, and hits
//! get their paths from the volume.

pub mod answer;
pub mod nearest;
pub mod render;
pub mod request;
pub mod transaction;

pub use answer::{Answer, Hit};
pub use nearest::{Context, Found, Limits, Scratch, nearest};
pub use request::{Options, Request, Target};
