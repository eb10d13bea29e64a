//! `vexfs bench`: measurements on this machine. Each answers one question and prints what a reader needs to judge
//! the figure.
//!
//! - `ann` measures the index without a mount: `dataset` reads the files, `engine` is all that knows the index,
//!   `measure` takes times, `report` prints.

mod ann;
mod dataset;
mod engine;
mod measure;
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
}

impl Bench {
    pub(super) fn run(&self) -> Outcome {
        match &self.what {
            What::Ann(ann) => ann.run(),
        }
    }
}
