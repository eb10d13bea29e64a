//! Search: from a request to hits, without I/O. One parser and one renderer serve every door.
//!
//! - [`request`]: what is asked, from JSON lines, binary headers and `@k=20` path elements.
//! - [`condition`]: the language of `where`, from text to a [`Condition`](crate::collection::Condition).
//! - [`nearest`](mod@nearest): rows of collections in order of distance, by graph or by scan.
//! - [`plan`]: whether the graph is walked or the rows that may be returned are scanned.
//! - [`explain`]: which of these it was and why, for who asks.
//! - [`answer`], [`render`]: what was found, and the forms in which the doors show it.
//! - [`transaction`]: the protocol of the `query` file, at any split of its bytes.
//!
//! This room does not know inodes or permissions: what may be returned is a
//! [`Filter`](crate::collection::Filter), and hits get their paths from the volume.

pub mod answer;
pub mod condition;
pub mod explain;
pub mod nearest;
pub mod plan;
pub mod render;
pub mod request;
pub mod transaction;

pub use answer::{Answer, Hit};
pub use explain::Explanation;
pub use nearest::{Context, Found, Limits, Scratch, Way, nearest};
pub use request::{Options, Request, Target};
