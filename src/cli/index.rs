//! `vexfs index`: the graphs of a directory and those below it, through the files of a mount.

mod explain;

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::control::{self, ControlFile};
use super::exit::{Code, Failure, Outcome};
use super::output::{put, shown};
use explain::Explain;

/// Time between two looks at how far the graphs have come.
const PAUSE: Duration = Duration::from_millis(100);

/// How long they may stand still.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Args, Debug)]
pub(super) struct Index {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What the graphs have, and what they lack yet
    Show {
        /// The directory; collections below it are shown as well
        dir: PathBuf,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Check that the graphs are sound and that every vector is found; what is not sound is built anew
    Verify {
        /// The directory; collections below it are checked as well
        dir: PathBuf,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Build other graphs; those that are there are searched until then
    Rebuild {
        /// The directory; collections below it are built anew as well
        dir: PathBuf,
        /// Return when the new graphs have every vector
        #[arg(long)]
        wait: bool,
    },
    /// How a search is answered, or was where one is given: the plan for each collection, why, and what it did
    Explain(Explain),
}

/// What `.vexfs/index.json` says. Further fields are left for `--json`.
#[derive(Debug, Deserialize)]
struct Indexes {
    collections: Vec<State>,
}

#[derive(Debug, Deserialize)]
struct State {
    path: String,
    state: String,
    vectors: u64,
    pending: u64,
    gone: u64,
    damage: Option<String>,
    graph: Option<Graph>,
}

#[derive(Debug, Deserialize)]
struct Graph {
    nodes: u64,
    watermark: u32,
    quant: String,
    m: u32,
    ef_construction: u32,
    code_bytes: u64,
    file_bytes: Option<u64>,
}

/// What `.vexfs/verify.json` says.
#[derive(Debug, Deserialize)]
struct Checks {
    sound: bool,
    collections: Vec<Checked>,
}

#[derive(Debug, Deserialize)]
struct Checked {
    path: String,
    sound: bool,
    vectors: u64,
    pending: u64,
    damage: Option<String>,
    graph: Option<CheckedGraph>,
}

#[derive(Debug, Deserialize)]
struct CheckedGraph {
    nodes: u64,
    links: u64,
    gone: u64,
    rows: Vec<u32>,
}

impl Index {
    pub(super) fn run(&self) -> Outcome {
        match &self.what {
            What::Show { dir, json } => show(dir, *json),
            What::Verify { dir, json } => verify(dir, *json),
            What::Rebuild { dir, wait } => rebuild(dir, *wait),
            What::Explain(explain) => explain.run(),
        }
    }
}

fn show(dir: &Path, json: bool) -> Outcome {
    let (text, indexes): (_, Indexes) = read(dir, "index.json")?;
    if json {
        put(text.as_bytes())?;
    } else {
        let described: Vec<String> = indexes.collections.iter().map(describe).collect();
        put(described.join("\n").as_bytes())?;
    }
    Ok(Code::Ok)
}

fn verify(dir: &Path, json: bool) -> Outcome {
    let (text, checks): (_, Checks) = read(dir, "verify.json")?;
    if json {
        put(text.as_bytes())?;
    } else {
        put(checks.collections.iter().map(verdict).collect::<String>().as_bytes())?;
    }
    Ok(if checks.sound { Code::Ok } else { Code::Damaged })
}

fn rebuild(dir: &Path, wait: bool) -> Outcome {
    let ControlFile { mut file, path, .. } = control::open(dir, "rebuild", File::options().write(true))?;
    file.write_all(b"rebuild\n").map_err(|error| Failure::io(&path, &error))?;
    if !wait {
        return Ok(Code::Ok);
    }
    wait_until_indexed(dir)
}

/// Returns when the graphs of a directory and those below it have every vector.
///
/// # Errors
///
/// `NotReady` when they do not grow any more.
pub(super) fn wait_until_indexed(dir: &Path) -> Outcome {
    let (mut before, mut since) = (Vec::new(), Instant::now());
    loop {
        let (_, indexes): (_, Indexes) = read(dir, "index.json")?;
        if indexes.collections.iter().all(|collection| collection.pending == 0) {
            return Ok(Code::Ok);
        }
        let watermark = |state: &State| state.graph.as_ref().map_or(0, |graph| graph.watermark);
        let now: Vec<_> = indexes.collections.iter().map(|state| (watermark(state), state.pending)).collect();
        if now != before {
            (before, since) = (now, Instant::now());
        } else if since.elapsed() > PATIENCE {
            let message =
                format!("{}: the graphs have not grown for {} seconds", dir.display(), PATIENCE.as_secs());
            return Err(Failure::new(Code::NotReady, message));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Reads a control file and what it says.
fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<(String, T), Failure> {
    let ControlFile { mut file, path, .. } = control::open(dir, name, OpenOptions::new().read(true))?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| Failure::io(&path, &error))?;
    let value = serde_json::from_str(&text)
        .map_err(|error| Failure::io(&path, &io::Error::new(io::ErrorKind::InvalidData, error)))?;
    Ok((text, value))
}

fn describe(state: &State) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line("collection", &shown(&state.path));
    line("vectors", &format_args!("{} ({} pending)", state.vectors, state.pending));
    let searches = match state.state.as_str() {
        "exact" => "compare every vector: too few for a graph",
        "building" => "compare what the graph does not have yet",
        "rebuilding" => "go through the graph, which another is about to follow",
        "ready" => "go through the graph",
        other => other,
    };
    line("searches", &shown(searches));
    if let Some(graph) = &state.graph {
        line("nodes", &format_args!("{} ({} gone)", graph.nodes, state.gone));
        line("built with", &format_args!("m {}, ef_construction {}", graph.m, graph.ef_construction));
        line("codes", &format_args!("{}, {} bytes a vector", shown(&graph.quant), graph.code_bytes));
        match graph.file_bytes {
            Some(bytes) => line("file", &format_args!("{bytes} bytes")),
            None => line("file", &"not saved yet"),
        }
    }
    if let Some(damage) = &state.damage {
        line("damage", &shown(damage));
    }
    text
}

/// One line for a collection.
fn verdict(checked: &Checked) -> String {
    let mut text = format!("{}  ", shown(&checked.path));
    let counts = format_args!("{} vectors, {} pending", checked.vectors, checked.pending);
    // Writing to a string does not fail.
    let _ = match (&checked.graph, checked.sound) {
        (None, true) => writeln!(text, "no graph: {counts}, every search is exact"),
        (Some(graph), true) => {
            let CheckedGraph { nodes, links, gone, .. } = graph;
            writeln!(text, "sound: {counts}, {nodes} nodes, {links} links, {gone} gone")
        }
        (graph, false) => {
            let damage = shown(checked.damage.as_deref().unwrap_or("no reason given"));
            let rows = graph.as_ref().map_or(&[][..], |graph| &graph.rows);
            let ids = match rows {
                [] => String::new(),
                rows => format!(" (ids {})", rows.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
            };
            writeln!(text, "damaged: {damage}{ids}; the graph is built anew, every search is exact meanwhile")
        }
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_is_described_line_by_line() {
        let state = r#"{"path":"/docs","state":"building","vectors":12,"pending":2,"gone":1,"damage":"block 3",
            "later":1,"graph":{"nodes":11,"watermark":11,"quant":"sq8","m":16,"ef_construction":200,
            "code_bytes":400,"file_bytes":null}}"#;
        let text = describe(&serde_json::from_str(state).unwrap());
        for line in [
            "collection   /docs",
            "vectors      12 (2 pending)",
            "searches     compare what the graph does not have yet",
            "nodes        11 (1 gone)",
            "built with   m 16, ef_construction 200",
            "codes        sq8, 400 bytes a vector",
            "file         not saved yet",
            "damage       block 3",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn a_verdict_names_the_damage_and_the_rows() {
        let checked = |sound: bool, graph: &str| {
            let text = format!(
                r#"{{"path":"/a","sound":{sound},"vectors":9,"pending":0,"damage":"2 rows are missing",
                "graph":{graph}}}"#
            );
            verdict(&serde_json::from_str(&text).unwrap())
        };
        let graph = r#"{"nodes":7,"links":40,"gone":1,"rows":[3,5]}"#;
        assert_eq!(checked(true, "null"), "/a  no graph: 9 vectors, 0 pending, every search is exact\n");
        assert_eq!(checked(true, graph), "/a  sound: 9 vectors, 0 pending, 7 nodes, 40 links, 1 gone\n");
        let damaged = checked(false, graph);
        assert!(damaged.starts_with("/a  damaged: 2 rows are missing (ids 3 5); "), "{damaged}");
    }
}
