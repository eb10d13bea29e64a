//! `vexfs bench`: measurements on this machine. Each answers one question and prints what a reader needs to judge
//! the figure.
//!
//! - `ann` measures the index without a mount: `dataset` reads the files, `engine` is all that knows the index,
//!   `measure` takes times, `report` prints.
//! - `mount` measures operations on a mount, beside a bare filesystem on the same library and a disk.

mod ann;
mod dataset;
mod engine;
mod measure;
mod mount;
mod report;

use clap::{Args, Subcommand};

use super::exit::Outcome;

#[derive(Args, Debug)]
pub(super) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Build a graph over the vectors of a file, and search it: rates, memory, and recall against speed
    Ann(ann::Ann),
    /// Time operations on a mount: names, attributes, small files, trees, a large file
    Mount(mount::Mount),
    /// Serve the yardstick of `bench mount`, a bare in-memory filesystem, until it is unmounted
    Floor(mount::Floor),
}

impl Bench {
    pub(super) fn run(&self) -> Outcome {
        match &self.what {
            What::Ann(ann) => ann.run(),
            What::Mount(mount) => mount.run(),
            What::Floor(floor) => floor.run(),
        }
    }
}
