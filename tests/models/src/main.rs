//! Does the source that is read without a lock keep its promises in every order in which threads can meet?
//!
//! The files below are those of the package, compiled with another `sync`, under which loom runs each model in every
//! order of its threads' steps that is told from the others by what is read and written, and has each load return every
//! value that the memory model lets it return. Where a bound of preemptions is given, orders with more are left out.
//!
//! A model that cannot fail shows nothing. So each runs again with one thing less than the source says, for each line
//! that it answers for: a load that does not acquire, a store that does not release, guards that protect nothing. The
//! run fails if a model does not notice.
//!
//! `vexfs-models [PART OF A NAME]` runs the models whose names have it; with `--every-fault` behind it, it says of every
//! ordering that they met whether it is noticed. Most are not: what is written under a lock, or checked again where a
//! link leads, is right with less.

#![expect(dead_code, unused_imports, reason = "of the source that is compiled here, models use a part")]

mod changes;
mod pools;
mod store;
mod sync;
mod volume;

#[path = "../../../src/collection/mod.rs"]
mod collection;
#[path = "../../../src/distance/mod.rs"]
mod distance;
#[path = "../../../src/error.rs"]
mod error;
#[path = "../../../src/format/mod.rs"]
mod format;
mod graph;
#[path = "../../../src/index/mod.rs"]
mod index;
#[path = "../../../src/pool/mod.rs"]
mod pool;
#[path = "../../../src/random.rs"]
mod random;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

pub(crate) use error::{Error, Result};
use sync::{Fault, Kind};

/// A few threads, and what holds whenever they meet.
struct Model {
    /// What holds.
    name: &'static str,
    /// How often a thread is interrupted where it would not have to wait, at most; `None` for any number.
    preemptions: Option<usize>,
    /// The faults that it notices at least: which, and a part of the line.
    notices: &'static [(Kind, &'static str)],
    run: fn(),
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let wanted = args.next().unwrap_or_default();
    let rooms =
        store::MODELS.into_iter().chain([pools::MODELS, changes::MODELS, graph::MODELS, volume::MODELS]);
    let models: Vec<&Model> = rooms.flatten().filter(|model| model.name.contains(&wanted)).collect();
    let option = args.next();
    if let Some(fault) = option.as_deref().and_then(Fault::parse) {
        // One model with one fault, in a process of its own: it may end in any way.
        sync::explore(Some(fault), models[0].preemptions, models[0].run);
        return ExitCode::SUCCESS;
    }
    let every = option.as_deref() == Some("--every-fault");
    let (mut orders, mut noticed, mut missed) = (0, 0, 0);
    for model in models {
        let begun = Instant::now();
        let runs = sync::explore(None, model.preemptions, model.run);
        orders += runs;
        println!("{runs:>7} orders {:>6.2} s  {}", begun.elapsed().as_secs_f64(), model.name);
        let met: Vec<(Fault, String)> = sync::take_met()
            .into_iter()
            .map(|fault| (line_of(&fault), fault))
            .map(|(line, fault)| (fault, line))
            .collect();
        let mut open: Vec<_> = model.notices.iter().collect();
        for (fault, line) in &met {
            let answers = |(kind, part): &(Kind, &str)| *kind == fault.kind && line.contains(part);
            if !every && !model.notices.iter().any(answers) {
                continue;
            }
            let is_noticed = !passes(model.name, fault);
            if is_noticed {
                noticed += 1;
                open.retain(|notice| !answers(notice));
            }
            if is_noticed || every {
                let verdict = if is_noticed { "noticed" } else { "not noticed" };
                println!("        {verdict}: {fault}: {line}");
            }
        }
        for (kind, part) in &open {
            println!("        NOT NOTICED: {kind:?} of a line with {part}");
        }
        missed += open.len();
    }
    println!("{orders} orders, {noticed} faults noticed, {missed} missed");
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether a model does not notice a fault.
fn passes(model: &str, fault: &Fault) -> bool {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([model, &fault.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().expect("it can be run again").success()
}

/// The line of the source that a fault is in.
fn line_of(fault: &Fault) -> String {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&fault.file)).unwrap_or_default();
    text.lines().nth((fault.line as usize).saturating_sub(1)).unwrap_or_default().trim().to_owned()
}
