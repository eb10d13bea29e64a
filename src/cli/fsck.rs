//! `vexfs fsck`: a store that is not mounted, checked and repaired.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::exit::{Code, Outcome};
use super::output::{put, shown};
use super::release;
use crate::volume::check::{Fate, Finding, Repair, Report, fsck};

#[derive(Args, Debug)]
pub(super) struct Fsck {
    /// The store directory
    store: PathBuf,
    /// Repair what is found: from what is there, and never by guessing
    #[arg(long)]
    repair: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl Fsck {
    pub(super) fn run(&self) -> Outcome {
        let repair = if self.repair { Repair::Yes } else { Repair::No };
        release::wait_for_unmounted(&self.store);
        let report = fsck(&self.store, repair)?;
        let answer = if self.json { format!("{}\n", as_json(&report)) } else { as_text(&report) };
        put(answer.as_bytes())?;
        Ok(if report.is_sound() { Code::Ok } else { Code::Damaged })
    }
}

fn as_text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", shown(&finding.to_string()));
    }
    let counted = &report.counted;
    let _ = writeln!(
        text,
        "{} inodes, {} directories, {} vectors in {} collections, {} slots and {} blobs checked",
        counted.inodes,
        counted.directories,
        counted.vectors,
        counted.collections,
        counted.slots,
        counted.blobs
    );
    let leftovers = counted.leftover_blobs + counted.leftover_graphs;
    if report.ended_uncleanly || counted.unfinished > 0 || leftovers > 0 {
        let _ = writeln!(
            text,
            "left for the next mount: {} files to settle, {} blobs and {} files of graphs to remove",
            counted.unfinished, counted.leftover_blobs, counted.leftover_graphs
        );
    }
    let _ = match (report.damaged(), report.repaired()) {
        (0, 0) => writeln!(text, "clean"),
        (0, repaired) => writeln!(text, "{repaired} repaired"),
        (damaged, 0) => writeln!(text, "{damaged} damaged"),
        (damaged, repaired) => writeln!(text, "{repaired} repaired, {damaged} damaged"),
    };
    text
}

fn as_json(report: &Report) -> Value {
    let counted = &report.counted;
    json!({
        "schema": 1,
        "sound": report.is_sound(),
        "damaged": report.damaged(),
        "repaired": report.repaired(),
        "ended_uncleanly": report.ended_uncleanly,
        "findings": report.findings.iter().map(finding_as_json).collect::<Vec<_>>(),
        "checked": {
            "inodes": counted.inodes,
            "directories": counted.directories,
            "collections": counted.collections,
            "vectors": counted.vectors,
            "slots": counted.slots,
            "blobs": counted.blobs,
            "bytes": counted.bytes_read,
        },
        "left_for_mount": {
            "inodes": counted.unfinished,
            "blobs": counted.leftover_blobs,
            "graphs": counted.leftover_graphs,
        },
    })
}

fn finding_as_json(finding: &Finding) -> Value {
    let (state, done) = match &finding.fate {
        Fate::Damaged => ("damaged", None),
        Fate::Repaired(how) => ("repaired", Some(how)),
        Fate::Harmless => ("harmless", None),
    };
    json!({
        "file": finding.file,
        "offset": finding.offset,
        "path": finding.path,
        "what": finding.what,
        "state": state,
        "done": done,
    })
}
