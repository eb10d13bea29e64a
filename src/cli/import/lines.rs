//! Lines of JSON as they are imported.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufRead, Read};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::format::without_mark;
use crate::{Error, Result};

/// Longest line that is read. 16,384 numbers take a hundredth of it, the attributes of a file at most a half.
const MAX_LINE: usize = 64 << 20;

/// A row. Keys that are not named here are left alone.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    /// The text of the list, whose numbers serde_json would not read to the last bit.
    #[serde(borrow, alias = "embedding")]
    vector: &'a RawValue,
    #[serde(borrow)]
    pub(super) path: Option<Cow<'a, str>>,
    pub(super) path_hex: Option<String>,
    pub(super) row: Option<u64>,
    pub(super) dtype: Option<String>,
    #[serde(default)]
    pub(super) attributes: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) attributes_hex: BTreeMap<String, String>,
}

impl<'a> Line<'a> {
    /// A line: an object with a `vector`, or the list alone.
    pub(super) fn parse(text: &'a [u8]) -> Result<Self> {
        let bad = |error: serde_json::Error| Error::Format(error.to_string());
        if !text.trim_ascii_start().starts_with(b"[") {
            return serde_json::from_slice(text).map_err(bad);
        }
        Ok(Line {
            vector: serde_json::from_slice(text).map_err(bad)?,
            path: None,
            path_hex: None,
            row: None,
            dtype: None,
            attributes: BTreeMap::new(),
            attributes_hex: BTreeMap::new(),
        })
    }

    /// The list of numbers as it is written.
    pub(super) fn numbers(&self) -> &'a [u8] {
        self.vector.get().as_bytes()
    }
}

/// Shows every line that is not empty, with its number from 1 on. A byte order mark is no part of the first.
///
/// # Errors
///
/// The first that `on_line` returns, after its number; [`Error::TooLarge`] for a line of more than 64 MiB; what the input
/// answers.
pub(super) fn each(mut input: impl BufRead, mut on_line: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if input.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.len() > MAX_LINE {
            let error =
                Error::TooLarge { what: "line of bytes", got: line.len() as u64, limit: MAX_LINE as u64 };
            return Err(at(number, error));
        }
        let text = if number == 1 { without_mark(&line) } else { &line };
        if !text.trim_ascii().is_empty() {
            on_line(number, text)?;
        }
    }
    Ok(())
}

/// An error with the line that it is about.
pub(super) fn at(line: u64, error: Error) -> Error {
    match error {
        error if error.is_about_content() => Error::Format(format!("line {line}: {error}")),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_or_a_list() {
        let line =
            Line::parse(br#"{"id":3,"path":"a\u00e9","row":0,"vector":[1, 2e-3],"attributes":{"a":"b"}}"#);
        let line = line.unwrap();
        assert_eq!(
            (line.numbers(), line.path.as_deref(), line.row),
            (&b"[1, 2e-3]"[..], Some("a\u{e9}"), Some(0))
        );
        assert_eq!(line.attributes["a"], "b");
        assert_eq!(Line::parse(b" [0.1,2]\n").unwrap().numbers(), b"[0.1,2]");
        assert_eq!(Line::parse(br#"{"embedding":[7]}"#).unwrap().numbers(), b"[7]");
        for bad in [&b"{}"[..], b"{\"vector\":[1}", b"[1", b"[1] 2", b"7", b"{\"vector\":[1],\"vector\":[2]}"]
        {
            assert!(Line::parse(bad).is_err() || bad == b"7", "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn lines_are_counted_with_those_that_are_empty() {
        let mut seen = Vec::new();
        each(&b"\xef\xbb\xbfa\n\n  \nb"[..], |number, line| {
            seen.push((number, line.to_vec()));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(1, b"a\n".to_vec()), (4, b"b".to_vec())]);
    }
}
