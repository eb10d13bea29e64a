//! `vexfs status`: which mounts there are, and how one is.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::exit::{Code, Failure, Outcome, code_of_io};
use super::output::{put, shown};
use super::stats::{self, Stats};
use super::umount::mounted;
use crate::fuse::mounts::{self, Mount};

#[derive(Args, Debug)]
pub(super) struct Status {
    /// The directory that is mounted on; all mounts when left out
    mountpoint: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(&self) -> Outcome {
        match &self.mountpoint {
            Some(mountpoint) => one(mountpoint, self.json),
            None => all(self.json),
        }
    }
}

fn one(mountpoint: &Path, json: bool) -> Outcome {
    let mountpoint = mounted(mountpoint)?;
    let text = stats::read(&mountpoint).map_err(|error| {
        let (code, why) = unanswered(&error);
        Failure::new(code, format!("{}: {why}", mountpoint.display()))
    })?;
    if json {
        put(with_line_end(text).as_bytes())?;
    } else {
        let stats = stats::parse(&text).map_err(|error| Failure::io(&mountpoint, &error))?;
        put(describe(&mountpoint, &stats).as_bytes())?;
    }
    Ok(Code::Ok)
}

fn all(json: bool) -> Outcome {
    let mounts =
        mounts::vexfs().map_err(|error| Failure::new(Code::FAILED, format!("table of mounts: {error}")))?;
    let states: Vec<(&Mount, io::Result<String>)> =
        mounts.iter().map(|mount| (mount, stats::read(&mount.mountpoint))).collect();
    if json {
        put(with_line_end(as_json(&states).to_string()).as_bytes())?;
    } else if !states.is_empty() {
        put(as_table(&states).as_bytes())?;
    }
    if states.is_empty() {
        return Err(Failure::new(Code::NotMounted, "no VexFS mounts"));
    }
    Ok(Code::Ok)
}

/// Why a mount's state cannot be read, and what that is for a program.
fn unanswered(error: &io::Error) -> (Code, String) {
    match (error.kind(), error.raw_os_error()) {
        (_, Some(libc::ENOTCONN)) => {
            let what =
                "dead mount: its process has ended (vexfs umount takes it away, vexfs mount replaces it)";
            (Code::NotMounted, what.to_owned())
        }
        (io::ErrorKind::TimedOut, _) => (Code::NotReady, "no answer from its process".to_owned()),
        _ => (code_of_io(error), error.to_string()),
    }
}

fn describe(mountpoint: &Path, stats: &Stats) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line("mountpoint", &shown(&mountpoint.to_string_lossy()));
    line("store", &shown(&stats.store.to_string_lossy()));
    line("process", &format_args!("{}, up {}", stats.pid, duration(stats.uptime_s)));
    line("version", &shown(&stats.version));
    if let Some(reason) = &stats.read_only {
        line("read-only", &shown(reason));
    }
    for (name, count) in [("files", stats.files), ("directories", stats.directories)] {
        if let Some(count) = count {
            line(name, &count);
        }
    }
    line("vectors", &format_args!("{} ({} pending)", stats.vectors, stats.pending));
    for collection in &stats.collections {
        let dim = collection.dim.map_or_else(|| "?".to_owned(), |dim| dim.to_string());
        line(
            "collection",
            &format_args!(
                "{}: {} x {dim}, {}, {} pending",
                shown(&collection.path),
                collection.count,
                shown(&collection.metric),
                collection.pending
            ),
        );
    }
    text
}

/// Days, hours, minutes and seconds, the two largest that are not zero.
fn duration(seconds: f64) -> String {
    // A figure for people, from a clock that runs at most centuries.
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds, saturating")]
    #[expect(clippy::cast_sign_loss, reason = "negative saturates to zero")]
    let seconds = seconds as u64;
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(parts.len() - 1);
    let shown = parts[first..].iter().take(2).filter(|(count, _)| *count > 0 || first == parts.len() - 1);
    shown.map(|(count, unit)| format!("{count} {unit}")).collect::<Vec<_>>().join(" ")
}

fn as_table(states: &[(&Mount, io::Result<String>)]) -> String {
    let mut text = String::new();
    for (mount, state) in states {
        let state = match state.as_ref().map(|text| stats::parse(text)) {
            Ok(Ok(stats)) => format!(
                "store {}, {} vectors ({} pending), process {}",
                shown(&stats.store.to_string_lossy()),
                stats.vectors,
                stats.pending,
                stats.pid
            ),
            Ok(Err(error)) => error.to_string(),
            Err(error) => unanswered(error).1,
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}  {state}", shown(&mount.mountpoint.to_string_lossy()));
    }
    text
}

fn as_json(states: &[(&Mount, io::Result<String>)]) -> Value {
    let mounts: Vec<Value> = states
        .iter()
        .map(|(mount, state)| {
            let stats: Option<Value> = state.as_ref().ok().and_then(|text| serde_json::from_str(text).ok());
            let error = match state {
                Ok(_) => None,
                Err(error) => Some(unanswered(error).1),
            };
            json!({
                "mountpoint": mount.mountpoint.to_string_lossy(),
                "answers": state.is_ok(),
                "error": error,
                "stats": stats,
            })
        })
        .collect();
    json!({ "schema": 1, "mounts": mounts })
}

fn with_line_end(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount() -> Mount {
        Mount { mountpoint: "/mnt/v".into(), fstype: "fuse.vexfs".into(), source: "vexfs".into() }
    }

    #[test]
    fn a_mount_is_described_line_by_line() {
        let stats = stats::parse(stats::SAMPLE).unwrap();
        let text = describe(Path::new("/mnt/v"), &stats);
        for line in [
            "mountpoint   /mnt/v",
            "store        /data/v",
            "process      4711, up 1 d 2 h",
            "files        12",
            "vectors      10 (2 pending)",
            "collection   /docs: 10 x 384, cosine, 2 pending",
            "collection   /empty: 0 x ?, l2, 0 pending",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains("read-only") && !text.contains("directories"), "{text}");
    }

    #[test]
    fn durations_have_two_parts_at_most() {
        let texts = [0.4, 59.0, 60.0, 3725.0, 86_400.0, 93_784.0].map(duration);
        assert_eq!(texts, ["0 s", "59 s", "1 min", "1 h 2 min", "1 d", "1 d 2 h"]);
    }

    #[test]
    fn a_dead_mount_is_listed_as_dead() {
        let mount = mount();
        let dead = || Err(io::Error::from_raw_os_error(libc::ENOTCONN));
        let states = [(&mount, Ok(stats::SAMPLE.to_owned())), (&mount, dead())];
        let table = as_table(&states);
        assert!(table.lines().next().unwrap().contains("10 vectors (2 pending)"), "{table}");
        assert!(table.lines().nth(1).unwrap().starts_with("/mnt/v  dead mount"), "{table}");
        let json = as_json(&states);
        assert_eq!(json["schema"], 1);
        assert_eq!(json["mounts"][0]["stats"]["pid"], 4711);
        assert_eq!(json["mounts"][1]["answers"], false);
        assert_eq!(unanswered(&dead().unwrap_err()).0, Code::NotMounted);
        assert_eq!(unanswered(&io::ErrorKind::TimedOut.into()).0, Code::NotReady);
    }
}
