//! `vexfs bench mount`: what operations on a mount cost, beside a yardstick and a disk, in one run.
//!
//! `targets` mounts and places what is measured, `small`, `trees`, `large` and `search` do the work, `tally` keeps the
//! times.
//! Rounds are interleaved: each part runs on every target before the next begins, so that what else the machine
//! does meets all of them. Client and daemons are on one CPU, because a wake-up on another CPU costs more than
//! what is measured, by up to ten times and differently each time.

mod large;
mod search;
mod small;
mod tally;
mod targets;
mod trees;

use std::fmt::Write as _;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::super::exit::{Code, Failure, Outcome};
use super::super::output::put;
use crate::fuse::{self, MountOptions};
use tally::{Line, Tally};
use targets::{Placement, Target};

/// Clients of the rows in which several work at once, beside rows of one on the same CPUs.
const CLIENTS: usize = 4;

#[derive(Args, Debug)]
pub(super) struct Mount {
    /// A directory to measure; when left out, a fresh VexFS in a temporary directory. The process that serves a
    /// given directory stays on the CPUs that it has
    dir: Option<PathBuf>,
    /// Beside it, a bare in-memory filesystem on the same library: what FUSE itself costs here
    #[arg(long)]
    floor: bool,
    /// Beside it, a directory of a disk; a fresh VexFS has its store there
    #[arg(long, value_name = "DIR")]
    backing: Option<PathBuf>,
    /// Parts to measure
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum, default_values_t = Part::ALL)]
    only: Vec<Part>,
    /// Vectors for searches through the mount and in this process, which are measured where they are given: .npy
    /// .fvecs .fbin and the like
    #[arg(long, value_name = "FILE", requires = "query")]
    base: Option<PathBuf>,
    /// The vectors that are searched for
    #[arg(long, value_name = "FILE", requires = "base")]
    query: Option<PathBuf>,
    /// Width of the searches through `query`, the same on both sides
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    ef: u16,
    /// Rounds, whose median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Operations of each kind in a round
    #[arg(long, value_name = "N", default_value = "2000")]
    ops: NonZeroUsize,
    /// Entries of the directory that is listed
    #[arg(long, value_name = "N", default_value = "100000")]
    entries: NonZeroUsize,
    /// Files of the tree that is copied, unpacked and removed
    #[arg(long, value_name = "N", default_value = "20000")]
    files: NonZeroUsize,
    /// Size of the large file
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    mib: u32,
    /// Threads of each daemon that is started
    #[arg(
        long,
        default_value_t = MountOptions::default().threads as u16,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    threads: u16,
    /// Leave client and daemons on the CPUs that the kernel chooses
    #[arg(long)]
    no_pin: bool,
    /// The answer as one JSON object
    #[arg(long)]
    json: bool,
}

/// Serve the yardstick of `bench mount` on a directory, until it is unmounted.
#[derive(Args, Debug)]
pub(super) struct Floor {
    mountpoint: PathBuf,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Operations on names, attributes and small files
    Small,
    /// Some of them by one client and by four at once, on all CPUs
    Clients,
    /// Listing a large directory
    List,
    /// cp -r, rm -r, tar x
    Trees,
    /// A large file
    Large,
    /// Searches, where vectors are given for them
    Search,
}

impl Part {
    const ALL: [Part; 6] = [Part::Small, Part::Clients, Part::List, Part::Trees, Part::Large, Part::Search];
}

/// The whole answer. Its fields are those of the JSON object.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    /// Program and version.
    engine: &'static str,
    targets: Vec<&'static str>,
    /// The CPU that everything was on, except where several clients are.
    pinned_cpu: Option<usize>,
    rounds: u16,
    ops: usize,
    /// Recall@10 of the searches through the mount and in this process, against an exact scan.
    #[serde(skip_serializing_if = "Option::is_none")]
    recall: Option<(f64, f64)>,
    rows: Vec<Line>,
}

impl Floor {
    pub(super) fn run(&self) -> Outcome {
        fuse::serve_floor(&self.mountpoint, self.threads.into())
            .map_err(|error| Failure::io(&self.mountpoint, &error))?;
        Ok(Code::Ok)
    }
}

impl Mount {
    pub(super) fn run(&self) -> Outcome {
        let failed = |error: io::Error| Failure::new(Code::FAILED, format!("bench mount: {error}"));
        let placement = Placement::new().map_err(failed)?;
        let targets = self.targets()?;
        let mut columns: Vec<&'static str> = targets.iter().map(|target| target.name).collect();
        columns.extend(self.vectors().is_some().then_some("in process"));
        let mut tally = Tally::new(columns.clone());
        self.measure(&placement, &targets, &mut tally).map_err(failed)?;
        let recall = self.search(&placement, &targets, &mut tally)?;
        let report = Report {
            schema: 1,
            engine: concat!("vexfs ", env!("CARGO_PKG_VERSION")),
            targets: columns,
            recall,
            pinned_cpu: (!self.no_pin).then_some(placement.cpu),
            rounds: self.rounds,
            ops: self.ops.get(),
            rows: tally.lines(),
        };
        put(if self.json { report.json()? } else { report.table() }.as_bytes())?;
        Ok(Code::Ok)
    }

    /// What is measured; what the others are compared with comes first.
    fn targets(&self) -> Result<Vec<Target>, Failure> {
        let threads = usize::from(self.threads);
        let temp = self.backing.clone().unwrap_or_else(std::env::temp_dir);
        let mut targets = vec![match &self.dir {
            Some(dir) => Target::directory("given", dir)?,
            None => Target::fresh(&temp, threads)?,
        }];
        if self.floor {
            targets.push(Target::floor(threads)?);
        }
        if let Some(backing) = &self.backing {
            targets.push(Target::directory("backing", backing)?);
        }
        Ok(targets)
    }

    /// The vectors that are searched and searched for, where that is wanted.
    fn vectors(&self) -> Option<(&Path, &Path)> {
        let vectors = self.base.as_deref().zip(self.query.as_deref());
        vectors.filter(|_| self.only.contains(&Part::Search))
    }

    /// Searches, where vectors were given. Returns what they find.
    fn search(
        &self,
        placement: &Placement,
        targets: &[Target],
        tally: &mut Tally,
    ) -> Result<Option<(f64, f64)>, Failure> {
        let Some((base, query)) = self.vectors() else { return Ok(None) };
        let failed = |error: io::Error| Failure::new(Code::FAILED, format!("bench mount: {error}"));
        placement.place(false, targets).map_err(failed)?;
        let data = search::Data::read(base, query, self.ef.into())?;
        let search = search::Search::prepare(&data, base, targets[0].dir())?;
        placement.place(!self.no_pin, targets).map_err(failed)?;
        for round in 0..usize::from(self.rounds) {
            search.round(tally, (0, targets.len()), round).map_err(failed)?;
        }
        Ok(Some(search.recall))
    }

    fn measure(&self, placement: &Placement, targets: &[Target], tally: &mut Tally) -> io::Result<()> {
        let wants = |part| self.only.contains(&part);
        let pinned = !self.no_pin;
        placement.place(pinned, targets)?;
        let small: Vec<_> =
            targets.iter().map(|it| small::Small::prepare(it.dir())).collect::<Result<_, _>>()?;
        let lists = match wants(Part::List) {
            true => targets
                .iter()
                .map(|it| trees::Large::prepare(it.dir(), self.entries.get()))
                .collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        let source = if wants(Part::Trees) { Some(trees::Source::make(self.files.get())?) } else { None };
        for round in 0..usize::from(self.rounds) {
            // Each target is the first in its turn.
            let order = || (0..targets.len()).map(|at| (at + round) % targets.len());
            for target in order().filter(|_| wants(Part::Small)) {
                small[target].round(tally, target, self.ops.get())?;
            }
            if wants(Part::Clients) {
                placement.place(false, targets)?;
                for clients in [1, CLIENTS] {
                    for target in order() {
                        let each = self.ops.get().div_ceil(clients);
                        small[target].together(tally, target, (clients, each))?;
                    }
                }
                placement.place(pinned, targets)?;
            }
            for target in order().filter(|_| wants(Part::List)) {
                lists[target].round(tally, target)?;
            }
            if let Some(source) = &source {
                for target in order() {
                    source.round(targets[target].dir(), tally, target)?;
                }
            }
            for target in order().filter(|_| wants(Part::Large)) {
                large::Big::new(targets[target].dir(), (self.mib as usize) << 20).round(tally, target)?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string(self);
        let mut text = text.map_err(|error| Failure::new(Code::FAILED, format!("answer: {error}")))?;
        text.push('\n');
        Ok(text)
    }

    /// Lines for people.
    fn table(&self) -> String {
        let mut text = String::new();
        let place = self.pinned_cpu.map_or("all CPUs".to_owned(), |cpu| format!("CPU {cpu}"));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}, on {place}, medians of {} rounds", self.engine, self.rounds);
        let _ =
            writeln!(text, "ratio: speed of {} by that of the other; above 1 it is faster", self.targets[0]);
        let _ = write!(text, "\n{:<36}", "");
        for target in &self.targets {
            let _ = write!(text, "{target:>26}");
        }
        let _ = write!(text, "\n{:<36}", "");
        for (number, _) in self.targets.iter().enumerate() {
            let ratio = if number == 0 { String::new() } else { "ratio".to_owned() };
            let _ = write!(text, "{:>18}{ratio:>8}", "median");
        }
        text.push('\n');
        for line in &self.rows {
            let _ = write!(text, "{:<36}", line.op);
            for (number, target) in self.targets.iter().enumerate() {
                let Some(shown) = line.results.iter().find(|shown| shown.target == *target) else {
                    let _ = write!(text, "{:>26}", "");
                    continue;
                };
                let value = match shown.p50_us {
                    Some(p50) => format!("{p50:.1} us"),
                    None => format!("{:.0} {}", shown.rate, line.unit),
                };
                let ratio = if number == 0 { String::new() } else { format!("{:.2}", shown.ratio) };
                let _ = write!(text, "{value:>18}{ratio:>8}");
            }
            text.push('\n');
        }
        if let Some((mount, process)) = self.recall {
            let _ = writeln!(text, "recall@10: {mount:.4} through the mount, {process:.4} in process");
        }
        text
    }
}
