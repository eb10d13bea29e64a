//! The kernel's door: requests of the FUSE protocol are converted, handed to the volume, and answered.
//!
//! No policy lives here. The room knows numbers of system errors, flags and the lifecycle of a mount, and nothing
//! of vectors, stores or collections. [`mount()`] serves a volume on a directory until the returned [`Mounted`]
//! says that it ended; [`mounts`] reads the kernel's table of mounts.
//!
//! The daemon never touches its own mount: every path below it would wait for an answer of this very process.

mod answer;
pub mod ask;
mod attach;
mod convert;
mod dispatch;
mod errno;
mod floor;
mod job_pool;
mod mount;
pub mod mounts;
mod passthrough;
mod surplus;

pub use attach::{remount, unmount};
pub use floor::serve_floor;
pub use mount::{MountOptions, Mounted, mount};
