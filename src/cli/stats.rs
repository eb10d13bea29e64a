//! What a mount says of itself: its file `.vexfs/stats.json`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

/// How long a mount may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(3);

/// The fields of `stats.json` that are shown to people. Further ones are left for `--json`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(super) struct Stats {
    pub(super) version: String,
    pub(super) store: PathBuf,
    pub(super) pid: u32,
    pub(super) uptime_s: f64,
    pub(super) files: Option<u64>,
    pub(super) directories: Option<u64>,
    pub(super) vectors: u64,
    pub(super) pending: u64,
    pub(super) collections: Vec<Collection>,
    /// Why changes are refused, when they are.
    pub(super) read_only: Option<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(super) struct Collection {
    pub(super) path: String,
    /// Unknown while the collection is empty and not configured.
    pub(super) dim: Option<u32>,
    pub(super) metric: String,
    pub(super) count: u64,
    pub(super) pending: u64,
}

/// Reads the file. A daemon that does not answer keeps its reader for ever, so that waits on a thread of its own.
///
/// # Errors
///
/// `NotConnected` for a dead mount, `TimedOut` for a stuck one, others as the mount answers.
pub(super) fn read(mountpoint: &Path) -> io::Result<String> {
    let path = mountpoint.join(".vexfs/stats.json");
    let (answer, answered) = mpsc::channel();
    std::thread::Builder::new().name("stats".into()).spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = answer.send(std::fs::read_to_string(path));
    })?;
    answered.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// # Errors
///
/// `InvalidData` when the text is not what this program knows.
pub(super) fn parse(text: &str) -> io::Result<Stats> {
    serde_json::from_str(text)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!(".vexfs/stats.json: {error}")))
}

#[cfg(test)]
pub(super) const SAMPLE: &str = r#"{"schema":1,"version":"0.1.0","store":"/data/v","mountpoint":"/mnt/v",
    "pid":4711,"uptime_s":93784,"files":12,"vectors":10,"pending":2,"later":[],
    "collections":[{"path":"/docs","dim":384,"metric":"cosine","count":10,"pending":2},
                   {"path":"/empty","dim":null,"metric":"l2","count":0,"pending":0}],"read_only":null}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_later_version_are_passed_over() {
        let stats = parse(SAMPLE).unwrap();
        assert_eq!((stats.pid, stats.vectors, stats.pending), (4711, 10, 2));
        assert_eq!(stats.store, Path::new("/data/v"));
        assert_eq!(stats.collections[0].dim, Some(384));
        assert_eq!(stats.collections[1].dim, None);
        assert_eq!(stats.read_only, None);
    }

    #[test]
    fn a_directory_without_the_file_is_not_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(parse("{}").unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
