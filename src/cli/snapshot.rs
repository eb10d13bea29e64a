//! `vexfs snapshot`: taking, listing and dropping snapshots through a mount, and bringing a store back to one.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Component, Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Deserialize;

use super::control::{self, ControlFile};
use super::exit::{Code, Failure, Outcome};
use super::output::{put, shown};
use super::release;
use crate::volume::restore_snapshot;

#[derive(Args, Debug)]
pub(super) struct Snapshot {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Take a snapshot of everything in a mount
    Create {
        /// The mount, or any directory in it
        dir: PathBuf,
        /// Its name: it is seen as .vexfs/snapshots/NAME of the mount
        name: OsString,
    },
    /// List the snapshots, the oldest first
    List {
        /// The mount, or any directory in it
        dir: PathBuf,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring a store that is not mounted back to a snapshot; what was changed since is given up
    Restore {
        /// The store's directory
        store: PathBuf,
        /// The snapshot, which stays
        name: OsString,
    },
    /// Drop a snapshot
    Drop {
        /// The mount, or any directory in it
        dir: PathBuf,
        /// Its name
        name: OsString,
    },
}

/// Why no snapshot is taken now.
const BUSY: &str = "a file of 128 KiB or more is open or mapped that the kernel reads or writes by itself; \
                    close it and try again";

/// What `.vexfs/snapshots.json` says.
#[derive(Debug, Deserialize)]
struct List {
    held_bytes: u64,
    snapshots: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    name: String,
    taken: f64,
}

impl Snapshot {
    pub(super) fn run(&self) -> Outcome {
        match &self.what {
            What::Create { dir, name } => create(dir, name),
            What::List { dir, json } => list(dir, *json),
            What::Restore { store, name } => restore(store, name),
            What::Drop { dir, name } => remove(dir, name),
        }
    }
}

/// The file that lists the snapshots, and their directory, of the mount that `dir` is in: its root alone has them.
fn locate(dir: &Path) -> Result<(ControlFile, PathBuf), Failure> {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let mut refused = None;
    for above in real.ancestors() {
        match control::open(above, "snapshots.json", File::options().read(true)) {
            Ok(list) => {
                let snapshots = list.dir.join(".vexfs/snapshots");
                return Ok((list, snapshots));
            }
            Err(failure) if failure.code == Code::NotMounted => refused = refused.or(Some(failure)),
            Err(failure) => return Err(failure),
        }
    }
    Err(refused.unwrap_or_else(|| Failure::new(Code::Usage, "no directory")))
}

/// The path of a snapshot, which is one name.
fn of_name(snapshots: &Path, name: &OsStr) -> Result<PathBuf, Failure> {
    match Path::new(name).components().next() {
        Some(Component::Normal(only)) if only == name => Ok(snapshots.join(name)),
        _ => Err(Failure::new(
            Code::Invalid,
            format!("'{}' is no name of a snapshot", shown(&name.to_string_lossy())),
        )),
    }
}

fn create(dir: &Path, name: &OsStr) -> Outcome {
    let (list, snapshots) = locate(dir)?;
    let path = of_name(&snapshots, name)?;
    // Pages that were written through mappings and that the daemon has not seen yet.
    nix::unistd::syncfs(&list.file).map_err(|errno| Failure::io(&list.path, &errno.into()))?;
    fs::create_dir(&path).map_err(|error| match error.kind() {
        ErrorKind::ResourceBusy => Failure::new(Code::NotReady, format!("{}: {BUSY}", path.display())),
        _ => Failure::io(&path, &error),
    })?;
    Ok(Code::Ok)
}

fn remove(dir: &Path, name: &OsStr) -> Outcome {
    let path = of_name(&locate(dir)?.1, name)?;
    fs::remove_dir(&path).map_err(|error| Failure::io(&path, &error))?;
    Ok(Code::Ok)
}

fn list(dir: &Path, json: bool) -> Outcome {
    let (ControlFile { mut file, path, .. }, _) = locate(dir)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| Failure::io(&path, &error))?;
    if json {
        put(text.as_bytes())?;
        return Ok(Code::Ok);
    }
    let list: List = serde_json::from_str(&text)
        .map_err(|error| Failure::new(Code::FAILED, format!("{}: {error}", path.display())))?;
    let mut out = String::new();
    for line in &list.snapshots {
        let _ = writeln!(out, "{}  {}", utc(line.taken), shown(&line.name));
    }
    let _ = writeln!(out, "{} bytes are held for snapshots alone", list.held_bytes);
    put(out.as_bytes())?;
    Ok(Code::Ok)
}

fn restore(store: &Path, name: &OsStr) -> Outcome {
    release::wait_for_unmounted(store);
    restore_snapshot(store, name).map_err(|error| match error {
        crate::Error::NotFound => {
            Failure::new(Code::Invalid, format!("{}: no snapshot {}", store.display(), name.display()))
        }
        error => Failure::from(error),
    })?;
    Ok(Code::Ok)
}

/// A time as `2026-11-21T16:05:02Z`.
fn utc(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "times of files are far below 2^53 seconds")]
    let seconds = seconds.floor() as i64;
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years: Howard Hinnant, "chrono-compatible low-level date algorithms".
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + carry;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_one_name() {
        let path = |name: &str| of_name(Path::new("s"), OsStr::new(name)).map_err(|failure| failure.message);
        assert_eq!(path("a b").unwrap(), Path::new("s/a b"));
        for name in ["", ".", "..", "/", "/a", "a/", "a/b", "./a"] {
            assert_eq!(path(name).unwrap_err(), format!("'{name}' is no name of a snapshot"));
        }
    }

    #[test]
    fn a_time_is_shown_in_utc() {
        for (seconds, shown) in [
            (0.0, "1970-01-01T00:00:00Z"),
            (951_782_400.9, "2000-02-29T00:00:00Z"),
            (1_704_067_199.0, "2023-12-31T23:59:59Z"),
            (4_107_542_400.0, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), shown);
        }
    }
}
