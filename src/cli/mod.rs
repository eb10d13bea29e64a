//! The command line. Data goes to stdout, messages to stderr as `vexfs: ...`.
//!
//! One file for each command. `mount` serves a store, `fsck` checks one that is not mounted, `snapshot restore` brings
//! one back, and `bench` runs the engine in a store of its own, which vanishes; the others work through the files of a
//! mount, as any program could, and never open a store. Under the name `mount.fuse.vexfs` the program is a helper of
//! mount(8).

mod bench;
mod control;
mod daemon;
mod exit;
mod export;
mod fsck;
mod helper;
mod import;
mod index;
mod mount;
mod notify;
mod output;
mod release;
mod search;
mod snapshot;
mod stats;
mod status;
mod target;
mod umount;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use exit::{Code, Outcome};

/// Names what is logged, in the syntax of `tracing_subscriber`: `debug`, `vexfs=debug,fuser=warn`.
const LOG_VARIABLE: &str = "VEXFS_LOG";

/// What is logged when it is not set: the libraries only when something is wrong.
const LOG_DEFAULT: &str = "warn,vexfs=info";

/// A filesystem in which a directory is a vector collection and a file is a vector.
#[derive(Debug, Parser)]
#[command(name = "vexfs", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a store on a directory
    Mount(mount::Mount),
    /// End a mount
    Umount(umount::Umount),
    /// Show the mounts, or the state of one
    Status(status::Status),
    /// Find the nearest neighbours of a file or a vector
    Search(search::Search),
    /// Show the graphs of a directory, check them, build them anew
    Index(index::Index),
    /// Check a store that is not mounted, and repair it
    Fsck(fsck::Fsck),
    /// Make vector files of the files of other programs
    Import(import::Import),
    /// Write the vectors below a directory to one file for other programs
    Export(export::Export),
    /// Keep read-only views of everything as it was, and go back to one
    Snapshot(snapshot::Snapshot),
    /// Measure on this machine
    Bench(bench::Bench),
}

/// Runs the program and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    if helper::is_named(std::env::args_os().next().as_deref()) {
        return helper::main();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error).into(),
    };
    start_log();
    let outcome = match &cli.command {
        Command::Mount(command) => command.run(),
        Command::Umount(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Search(command) => command.run(),
        Command::Index(command) => command.run(),
        Command::Fsck(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Snapshot(command) => command.run(),
        Command::Bench(command) => command.run(),
    };
    finish(outcome).into()
}

/// Says why the command line is refused; help and version, which clap hands out in the same way, go to stdout.
fn refuse(error: &clap::Error) -> Code {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to be told when stdout is closed.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Code::Ok
        }
        _ => {
            say(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
            Code::Usage
        }
    }
}

fn finish(outcome: Outcome) -> Code {
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                say(&failure.message);
            }
            failure.code
        }
    }
}

/// Tells the person at the terminal, or the log that has taken its place.
fn say(message: &str) {
    // When stderr is closed there is nowhere left to say it.
    let _ = writeln!(std::io::stderr(), "vexfs: {message}");
}

fn start_log() {
    let words = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| LOG_DEFAULT.into());
    let filter = EnvFilter::builder().parse_lossy(words);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
