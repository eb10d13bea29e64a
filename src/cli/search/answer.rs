//! Answer lines, and how they are shown.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Deserialize;

use super::super::exit::{Code, Failure};
use super::super::output::shown;
use crate::format::{self, FileKind};

/// How hits are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Rank, distance and path, for people.
    Table,
    /// The answer as it came.
    Json,
    /// Each path once, a line each.
    Paths,
    /// Each path once, ended by a NUL.
    PathsNul,
}

/// An answer line: hits, or an error.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) hits: Option<Vec<Hit>>,
    pub(super) complete: Option<bool>,
    pub(super) error: Option<AnswerError>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Hit {
    rank: u64,
    path: String,
    row: u64,
    distance: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct AnswerError {
    pub(super) code: String,
    pub(super) message: String,
}

impl Answer {
    /// # Errors
    ///
    /// `FAILED` when the line is not an answer.
    pub(super) fn parse(line: &str) -> Result<Self, Failure> {
        let failed = |why: String| Failure::new(Code::FAILED, format!("answer: {why}"));
        let answer: Self = serde_json::from_str(line).map_err(|error| failed(error.to_string()))?;
        if answer.hits.is_none() && answer.error.is_none() {
            return Err(failed("neither hits nor an error".into()));
        }
        Ok(answer)
    }
}

/// The bytes to print for an answer. Paths of hits are relative to `dir`, and shown below it as it was given.
pub(super) fn render(line: &str, hits: &[Hit], style: Style, dir: &Path) -> Vec<u8> {
    match style {
        Style::Json => [line.as_bytes(), b"\n"].concat(),
        Style::Paths => paths(hits, dir, b'\n'),
        Style::PathsNul => paths(hits, dir, 0),
        Style::Table => table(hits).into_bytes(),
    }
}

fn paths(hits: &[Hit], dir: &Path, end: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    for hit in hits {
        bytes.extend_from_slice(dir.join(&hit.path).as_os_str().as_bytes());
        bytes.push(end);
    }
    bytes
}

fn table(hits: &[Hit]) -> String {
    let line = |hit: &Hit| {
        let row = if has_rows(&hit.path) { format!("#{}", hit.row) } else { String::new() };
        format!("{:>4}  {:>11.6}  {}{row}\n", hit.rank, hit.distance, shown(&hit.path))
    };
    hits.iter().map(line).collect()
}

/// Whether a file of this name can have several rows, so that its row belongs to its name.
fn has_rows(path: &str) -> bool {
    let name = Path::new(path).file_name().and_then(|name| format::recognise(name.as_bytes()));
    match name {
        Some(FileKind::Npy | FileKind::Vecs(_) | FileKind::Bin(_)) => true,
        Some(FileKind::Raw(_) | FileKind::Text) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"schema":1,"k":3,"metric":"ip","exact":false,"complete":true,"pending":0,"took_us":143,
        "hits":[{"rank":1,"path":"sub/b.npy","row":123,"id":4711,"distance":-0.91,"score":0.91},
                {"rank":2,"path":"a\nc.f32","row":0,"id":2,"distance":0.25},
                {"rank":3,"path":"sub/b.npy","row":7,"id":12,"distance":12.5}]}"#;

    fn rendered(style: Style) -> String {
        let answer = Answer::parse(LINE).unwrap();
        String::from_utf8(render(LINE, &answer.hits.unwrap(), style, Path::new("mnt/docs"))).unwrap()
    }

    #[test]
    fn the_table_has_rank_distance_and_place() {
        let want = "   1    -0.910000  sub/b.npy#123\n   2     0.250000  a\\nc.f32\n   3    12.500000  sub/b.npy#7\n";
        assert_eq!(rendered(Style::Table), want);
    }

    #[test]
    fn paths_lie_below_the_directory_asked_one_for_each_hit() {
        let want = "mnt/docs/sub/b.npy\0mnt/docs/a\nc.f32\0mnt/docs/sub/b.npy\0";
        assert_eq!(rendered(Style::PathsNul), want);
        assert_eq!(rendered(Style::Paths).lines().next(), Some("mnt/docs/sub/b.npy"));
        assert_eq!(rendered(Style::Json), format!("{LINE}\n"));
    }

    #[test]
    fn an_error_answer_is_not_an_empty_one() {
        let line = r#"{"schema":1,"error":{"code":"EINVAL","message":"dimension 3, collection has 4"}}"#;
        let error = Answer::parse(line).unwrap().error.unwrap();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("EINVAL", "dimension 3, collection has 4")
        );
        assert!(Answer::parse("{\"schema\":1}").is_err());
        assert!(Answer::parse("half a li").is_err());
        assert!(Answer::parse("{\"schema\":1,\"hits\":[]}").unwrap().hits.unwrap().is_empty());
    }
}
