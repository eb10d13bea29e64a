//! Lines of comma-separated fields (RFC 4180). A byte order mark in front is no part of the first.

use std::io::{self, BufRead};

use super::without_mark;
use crate::{Error, Result};

/// Longest record that is read: 16,384 numbers take a fiftieth of it.
const MAX_RECORD: usize = 16 << 20;

/// Reads records one after the other into one buffer.
#[derive(Debug)]
pub struct CsvReader<R> {
    input: R,
    /// The fields of a record behind one another, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    line: u64,
    next_line: u64,
}

impl<R: BufRead> CsvReader<R> {
    /// Records from the input's first byte on.
    pub fn new(input: R) -> Self {
        Self { input, bytes: Vec::new(), ends: Vec::new(), line: 0, next_line: 1 }
    }

    /// The line that the record begins in, from 1 on.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The fields of the record, without their quotes.
    pub fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }

    /// Reads the next record; false after the last. Empty lines are no records.
    ///
    /// # Errors
    ///
    /// [`Error::Format`] for a quote that is not closed or stands within a field, [`Error::TooLarge`] for a record of
    /// more than 16 MiB, both naming the line; what the input answers.
    pub fn advance(&mut self) -> Result<bool> {
        let mut text = Vec::new();
        loop {
            text.clear();
            self.line = self.next_line;
            if !self.read_record(&mut text)? {
                return Ok(false);
            }
            if self.line == 1 {
                let mark = text.len() - without_mark(&text).len();
                text.drain(..mark);
            }
            if !text.is_empty() {
                break;
            }
        }
        self.bytes.clear();
        self.ends.clear();
        let mut rest = &text[..];
        loop {
            let (len, has_more) = self.field(rest)?;
            self.ends.push(self.bytes.len());
            if !has_more {
                return Ok(true);
            }
            rest = &rest[len + 1..];
        }
    }

    /// The bytes of a record without its end. A quoted field may have line ends.
    fn read_record(&mut self, text: &mut Vec<u8>) -> Result<bool> {
        let mut quotes = 0;
        loop {
            let from = text.len();
            let most = (MAX_RECORD - from) as u64 + 1;
            if io::Read::take(&mut self.input, most).read_until(b'\n', text)? == 0 {
                return match quotes % 2 {
                    0 => Ok(from > 0),
                    _ => Err(Error::Format(format!("line {}: a quote that is not closed", self.line))),
                };
            }
            if text.len() > MAX_RECORD {
                let (got, limit) = (text.len() as u64, MAX_RECORD as u64);
                return Err(Error::TooLarge { what: "record of bytes", got, limit });
            }
            self.next_line += 1;
            quotes += text[from..].iter().filter(|&&byte| byte == b'"').count();
            if quotes % 2 == 0 {
                let end = text.strip_suffix(b"\n").unwrap_or(text);
                let len = end.strip_suffix(b"\r").unwrap_or(end).len();
                text.truncate(len);
                return Ok(true);
            }
        }
    }

    /// Appends the first field of `text`. Returns its length there, and whether another follows.
    fn field(&mut self, text: &[u8]) -> Result<(usize, bool)> {
        let Some(quoted) = text.strip_prefix(b"\"") else {
            let len = text.iter().position(|&byte| byte == b',').unwrap_or(text.len());
            if text[..len].contains(&b'"') {
                return Err(Error::Format(format!("line {}: a quote within a field", self.line)));
            }
            self.bytes.extend_from_slice(&text[..len]);
            return Ok((len, len < text.len()));
        };
        let mut at = 0;
        while let Some(&byte) = quoted.get(at) {
            if byte != b'"' {
                self.bytes.push(byte);
            } else if quoted.get(at + 1) == Some(&b'"') {
                self.bytes.push(b'"');
                at += 1;
            } else {
                return match quoted.get(at + 1) {
                    None => Ok((at + 2, false)),
                    Some(b',') => Ok((at + 2, true)),
                    Some(_) => Err(Error::Format(format!("line {}: text behind a quoted field", self.line))),
                };
            }
            at += 1;
        }
        Err(Error::Format(format!("line {}: a quote that is not closed", self.line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &[u8]) -> Result<Vec<(u64, Vec<String>)>> {
        let mut reader = CsvReader::new(text);
        let mut all = Vec::new();
        while reader.advance()? {
            let fields = reader.fields().map(|field| field.escape_ascii().to_string()).collect();
            all.push((reader.line(), fields));
        }
        Ok(all)
    }

    #[test]
    fn fields_are_those_between_commas_and_in_quotes() {
        let text = b"id,path\r\n1,\"a,\"\"b\"\"\nc\"\n\n2,\n,\n\"\"\n3,x";
        let want: [(u64, &[&str]); 6] = [
            (1, &["id", "path"]),
            (2, &["1", "a,\\\"b\\\"\\nc"]),
            (5, &["2", ""]),
            (6, &["", ""]),
            (7, &[""]),
            (8, &["3", "x"]),
        ];
        let got = records(text).unwrap();
        let want = want.map(|(line, fields)| (line, fields.iter().map(|&field| field.to_owned()).collect()));
        assert_eq!(got, Vec::from(want));
        assert!(records(b"").unwrap().is_empty());
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_field() {
        for text in [&b"\xef\xbb\xbf1,2\n3,4"[..], b"\xef\xbb\xbf\"1\",2\n3,4", b"\xef\xbb\xbf\n1,2\n3,4\n"] {
            let got: Vec<Vec<String>> =
                records(text).unwrap().into_iter().map(|(_, fields)| fields).collect();
            assert_eq!(got, [["1", "2"], ["3", "4"]], "{}", text.escape_ascii());
        }
        assert_eq!(records(b"1\n\xef\xbb\xbf2").unwrap()[1].1, ["\\xef\\xbb\\xbf2"]);
    }

    #[test]
    fn quotes_that_say_nothing_are_refused_with_their_line() {
        for (text, message) in [
            (&b"a\n\"b"[..], "line 2: a quote that is not closed"),
            (b"a\n\"b\nc\n", "line 2: a quote that is not closed"),
            (b"a\"b\"\n", "line 1: a quote within a field"),
            (b"\"a\"b\n", "line 1: text behind a quoted field"),
        ] {
            assert_eq!(records(text).unwrap_err().to_string(), message);
        }
        assert!(matches!(records(&vec![b'1'; MAX_RECORD + 2]), Err(Error::TooLarge { .. })));
    }
}
