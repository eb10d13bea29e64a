//! `mount.fuse.vexfs`: what mount(8), and with it fstab and systemd, runs for the type `fuse.vexfs`.
//!
//! It is this program by another name. The arguments are those that mount(8) gives to every helper, the source is
//! the store's directory, and what is mounted is what `vexfs mount` mounts. An exit code is one of mount(8).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use super::exit::{Code, Failure, Outcome};
use super::mount::{Mount, parse_options};
use super::{say, stats, umount};
use crate::fuse;

/// The name that mount(8) looks for.
const NAME: &str = "mount.fuse.vexfs";

/// Exit codes of mount(8): the command line, or who may do this; everything else.
const MISUSE: u8 = 1;
const REFUSED: u8 = 32;

/// Mount a VexFS store: run by mount(8) for the type fuse.vexfs
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
struct Helper {
    /// Directory of the store, made on first use
    source: PathBuf,
    /// An existing directory
    mountpoint: PathBuf,
    /// Options of mount(8) and of vexfs mount
    #[arg(short, value_name = "OPT", value_delimiter = ',', action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Leave unknown options out
    #[arg(short)]
    sloppy: bool,
    /// Check the options, and mount nothing
    #[arg(short)]
    fake: bool,
    /// Accepted: there is no table of our own to write
    #[arg(short)]
    no_table: bool,
    /// Accepted: what goes wrong is said in any case
    #[arg(short)]
    verbose: bool,
    /// The type that mount(8) was asked for
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

/// Whether the program was started as the helper.
pub(super) fn is_named(program: Option<&OsStr>) -> bool {
    program.and_then(|path| Path::new(path).file_name()) == Some(OsStr::new(NAME))
}

/// Does what mount(8) asks for.
pub(super) fn main() -> ExitCode {
    let helper = match Helper::try_parse() {
        Ok(helper) => helper,
        Err(error) => {
            return match super::refuse(&error) {
                Code::Ok => ExitCode::SUCCESS,
                _ => ExitCode::from(MISUSE),
            };
        }
    };
    super::start_log();
    match super::finish(helper.run()) {
        Code::Ok => ExitCode::SUCCESS,
        Code::Usage => ExitCode::from(MISUSE),
        _ => ExitCode::from(REFUSED),
    }
}

impl Helper {
    fn run(mut self) -> Outcome {
        if self.options.iter().any(|word| word == "remount") {
            return self.remount();
        }
        if self.sloppy {
            self.options.retain(|word| parse_options(std::slice::from_ref(word)).is_ok());
        }
        if self.fake {
            return parse_options(&self.options).map(|_| Code::Ok);
        }
        // mount(8) makes a path of what exists. `none`, or a word that is left from another type, is no store.
        if !self.source.is_absolute() {
            let message =
                format!("{}: the source is the store's directory, from / on", self.source.display());
            return Err(Failure::new(Code::Usage, message));
        }
        Mount::of(self.source, self.mountpoint, self.options).run()
    }

    /// Of what mount(8) has collected from the table of mounts and from fstab, two things can be changed.
    fn remount(&self) -> Outcome {
        let mountpoint = umount::mounted(&self.mountpoint)?;
        let known = |word: &&String| matches!(word.as_str(), "ro" | "rw" | "exec" | "noexec");
        let words: Vec<String> = self.options.iter().filter(known).cloned().collect();
        let options = parse_options(&words)?;
        if self.fake {
            return Ok(Code::Ok);
        }
        fuse::remount(&mountpoint, options.read_only, options.mount.no_exec)
            .map_err(|error| Failure::io(&mountpoint, &error))?;
        // The kernel would let changes through that the volume refuses.
        let stats = stats::read(&mountpoint).and_then(|text| stats::parse(&text));
        let reason = stats.map_err(|error| Failure::io(&mountpoint, &error))?.read_only;
        if let Some(reason) = reason.filter(|_| !options.read_only) {
            say(&format!("{}: still read-only: {reason}", mountpoint.display()));
        }
        Ok(Code::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_known_by_its_name() {
        for (program, is) in [
            (Some("/sbin/mount.fuse.vexfs"), true),
            (Some("mount.fuse.vexfs"), true),
            (Some("/usr/bin/vexfs"), false),
            (Some("mount.fuse"), false),
            (None, false),
        ] {
            assert_eq!(is_named(program.map(OsStr::new)), is, "{program:?}");
        }
    }

    #[test]
    fn the_command_line_is_that_of_every_helper() {
        let words =
            [NAME, "/srv/store", "/mnt/v", "-sfnv", "-o", "rw,noatime", "-o", "x-a", "-t", "fuse.vexfs"];
        let helper = Helper::try_parse_from(words).unwrap();
        assert_eq!((helper.source, helper.mountpoint), ("/srv/store".into(), "/mnt/v".into()));
        assert_eq!(helper.options, ["rw", "noatime", "x-a"]);
        assert!(helper.sloppy && helper.fake && helper.no_table && helper.verbose);
        assert_eq!(helper.kind.as_deref(), Some("fuse.vexfs"));
    }

    #[test]
    fn a_source_is_a_path() {
        let helper = Helper::try_parse_from([NAME, "none", "/mnt"]).unwrap();
        let failure = helper.run().unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert!(failure.message.starts_with("none: "), "{}", failure.message);
    }

    #[test]
    fn sloppy_leaves_out_what_it_does_not_know_and_fake_mounts_nothing() {
        let run = |flags: &str| {
            Helper::try_parse_from([NAME, "/s", "/nowhere", flags, "-o", "rw,bogus"]).unwrap().run()
        };
        assert_eq!(run("-f").unwrap_err().code, Code::Usage);
        assert_eq!(run("-sf").unwrap(), Code::Ok);
    }
}
