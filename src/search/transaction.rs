//! The protocol of the `query` file: requests written, answers read, on one handle, split at any byte.
//!
//! ```text
//! write* ──▶ incoming ──▶ requests ──▶ (first read: search) ──▶ answer ──▶ read* ──▶ the next write
//! ```
//!
//! A JSON request ends with its newline, or where a read finds that what was written is a whole JSON object. A
//! binary request ends after the bytes that its header line announced. Writes only collect: the kernel lets one
//! write to the file through at a time, and reads side by side. What a line asks is looked at when it is answered: a
//! request in memory can be many times as large as its line.
//!
//! [`answer_one`] is all of it in one step, for who asks about one vector and would rather not wait twice.

use super::Answer;
use super::render;
use super::request::{Header, Line, Request, RequestLimits};
use crate::{Error, Result};

/// Answers requests. An `Err` of a JSON request becomes its answer line; of a binary one, the error of the read.
pub trait Answers {
    /// Searches for each query vector of the request.
    ///
    /// # Errors
    ///
    /// Those of a search.
    fn answer(&mut self, request: &Request) -> Result<Vec<Answer>>;
}

/// A request that has arrived whole.
#[derive(Debug)]
enum Arrived {
    Json(Box<[u8]>),
    Binary { request: Request, k: usize },
}

/// One handle's state.
#[derive(Debug, Default)]
pub struct Transaction {
    incoming: Vec<u8>,
    /// A binary request whose body has not arrived whole.
    header: Option<Header>,
    /// Requests that wait for a read, and how many bytes they take.
    arrived: Vec<Arrived>,
    arrived_bytes: u64,
    answer: Vec<u8>,
    /// File offset of the answer's first byte: where the first read of it was.
    begin: Option<u64>,
}

impl Transaction {
    /// Takes written bytes. What was left of an earlier answer is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] when a request outgrows its limit; those of a bad binary header. The handle then begins
    /// anew.
    pub fn write(&mut self, bytes: &[u8], limits: &RequestLimits) -> Result<()> {
        empty(&mut self.answer);
        self.begin = None;
        let waiting = self.incoming.len() + bytes.len();
        self.check_room(waiting, limits).inspect_err(|_| *self = Self::default())?;
        let taken = if self.incoming.is_empty() {
            // What is whole is taken from where it lies: a batch is some hundred kilobytes.
            self.advance(bytes, limits).map(|rest| self.incoming.extend_from_slice(rest))
        } else {
            self.incoming.extend_from_slice(bytes);
            let mut incoming = std::mem::take(&mut self.incoming);
            self.advance(&incoming, limits).map(|rest| rest.len()).map(|rest| {
                match rest {
                    0 => empty(&mut incoming),
                    _ => drop(incoming.drain(..incoming.len() - rest)),
                }
                self.incoming = incoming;
            })
        };
        taken.inspect_err(|_| *self = Self::default())
    }

    /// Appends at most `size` bytes of the answer to `into`; nothing while no request is complete or when the
    /// answer has been read. The first read after a request searches.
    ///
    /// The answer begins at the `offset` of the first read, wherever writing has left the descriptor, so that
    /// readers that read ahead and seek back, as shells do for a line, find what they left.
    ///
    /// # Errors
    ///
    /// Whatever a binary request fails with; the handle then begins anew.
    pub fn read(
        &mut self,
        offset: u64,
        size: usize,
        into: &mut Vec<u8>,
        limits: &RequestLimits,
        answers: &mut dyn Answers,
    ) -> Result<()> {
        if self.header.is_none() && is_whole_request(&self.incoming) {
            let line = std::mem::take(&mut self.incoming);
            self.take_line(&line, limits)?;
        }
        if !self.arrived.is_empty() {
            self.answer_all(limits, answers).inspect_err(|_| *self = Self::default())?;
        }
        if self.answer.is_empty() {
            return Ok(());
        }
        let begin = *self.begin.get_or_insert(offset);
        let from = offset.checked_sub(begin).and_then(|from| usize::try_from(from).ok());
        let rest = from.and_then(|from| self.answer.get(from..)).unwrap_or_default();
        into.extend_from_slice(&rest[..size.min(rest.len())]);
        Ok(())
    }

    /// Query vectors that the next read searches for, as far as is known without parsing.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let arrived = self.arrived.iter().map(|arrived| match arrived {
            Arrived::Json(_) => 1,
            Arrived::Binary { request, .. } => request.target.vectors(),
        });
        arrived.sum::<usize>() + usize::from(!self.incoming.is_empty())
    }

    /// What requests and answers take in memory, in bytes.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let arrived = self.arrived.iter().map(|arrived| match arrived {
            Arrived::Json(line) => line.len(),
            Arrived::Binary { request, .. } => request.target.held_bytes(),
        });
        let arrived = arrived.sum::<usize>() + self.arrived.capacity() * size_of::<Arrived>();
        (self.incoming.capacity() + arrived + self.answer.capacity()) as u64
    }

    /// Whether `bytes` begin a binary request, so that taking them in is little more than copying them.
    #[must_use]
    pub fn is_all_values(&self, bytes: &[u8]) -> bool {
        let line = bytes.iter().take(HEADER_MAX).position(|&byte| byte == b'\n');
        self.incoming.is_empty() && self.header.is_none() && line.is_some_and(|end| has_dtype(&bytes[..end]))
    }

    #[inline(never)]
    fn answer_all(&mut self, limits: &RequestLimits, answers: &mut dyn Answers) -> Result<()> {
        self.arrived_bytes = 0;
        for arrived in &std::mem::take(&mut self.arrived) {
            let got = self.answer.len() as u64;
            match arrived {
                // Small requests can have large answers.
                Arrived::Json(_) if got > ANSWER_MAX => {
                    let error = Error::TooLarge { what: "answer of bytes", got, limit: ANSWER_MAX };
                    self.answer.extend(render::json_error(&error));
                }
                Arrived::Json(line) => match parse_request(line, limits).and_then(|it| answers.answer(&it)) {
                    Ok(answer) => self.answer.extend(render::json(&answer)),
                    Err(error @ Error::Interrupted) => return Err(error),
                    Err(error) => self.answer.extend(render::json_error(&error)),
                },
                Arrived::Binary { request, k } => {
                    self.answer.extend(render::records(&answers.answer(request)?, *k));
                }
            }
        }
        Ok(())
    }

    /// Takes the requests that `bytes` has whole, and returns what is left.
    fn advance<'b>(&mut self, bytes: &'b [u8], limits: &RequestLimits) -> Result<&'b [u8]> {
        let mut rest = bytes;
        loop {
            if let Some(header) = self.header.take() {
                let Some(after) = self.take_body(header, rest, limits)? else { break };
                rest = after;
            } else {
                let Some(end) = rest.iter().position(|&byte| byte == b'\n') else { break };
                let (line, after) = (&rest[..end], &rest[end + 1..]);
                rest = after;
                self.take_line(line, limits)?;
            }
        }
        Ok(rest)
    }

    /// Takes what its header announced, if `bytes` has all of it, and returns what is behind.
    fn take_body<'b>(
        &mut self,
        header: Header,
        bytes: &'b [u8],
        limits: &RequestLimits,
    ) -> Result<Option<&'b [u8]>> {
        let Some((body, after)) = bytes.split_at_checked(header.body_bytes()) else {
            self.header = Some(header);
            return Ok(None);
        };
        let k = header.k as usize;
        self.keep(Arrived::Binary { request: header.with_body(body), k }, body.len(), limits)?;
        Ok(Some(after))
    }

    #[inline(never)]
    fn take_line(&mut self, line: &[u8], limits: &RequestLimits) -> Result<()> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        // What follows a bad header is no text: the write fails.
        if has_dtype(line)
            && let Line::Header(header) = Line::parse(line, limits)?
        {
            self.header = Some(header);
            return Ok(());
        }
        self.keep(Arrived::Json(line.into()), line.len(), limits)
    }

    /// Has a request of so many bytes wait. Many small ones take more room than what was written.
    fn keep(&mut self, arrived: Arrived, bytes: usize, limits: &RequestLimits) -> Result<()> {
        self.arrived.push(arrived);
        self.arrived_bytes += (size_of::<Arrived>() + bytes) as u64;
        self.check_room(0, limits)
    }

    /// Whether so many bytes may wait beside the requests that do.
    fn check_room(&self, more: usize, limits: &RequestLimits) -> Result<()> {
        let got = self.arrived_bytes + more as u64;
        // A header line comes on top of the largest body.
        match got > limits.max_bytes + HEADER_MAX as u64 {
            true => Err(Error::TooLarge { what: "request of bytes", got, limit: limits.max_bytes }),
            false => Ok(()),
        }
    }
}

#[inline(never)]
fn parse_request(line: &[u8], limits: &RequestLimits) -> Result<Box<Request>> {
    match Line::parse(line, limits)? {
        // In a box: what is on the stack here is below the search for it.
        Line::Request(request) => Ok(Box::new(request)),
        Line::Header(_) => Err(Error::Request("a header's dtype is written without escapes".into())),
    }
}

/// The answer to the request for one vector that `bytes` begins with; the rest of them is zero. It has at most `room`
/// bytes.
///
/// # Errors
///
/// [`Error::Request`] when it is not one request, whole and for one vector; [`Error::TooLarge`] when its answer is;
/// else as [`Transaction::write`] and [`Transaction::read`].
pub fn answer_one(
    bytes: &[u8],
    room: usize,
    limits: &RequestLimits,
    answers: &mut dyn Answers,
) -> Result<Vec<u8>> {
    let (line, mut rest) = match bytes.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (without_zeros(bytes), &[][..]),
    };
    let mut asked = Transaction::default();
    asked.take_line(line, limits)?;
    if let Some(header) = asked.header.take() {
        if header.rows != 1 {
            return Err(Error::Request(format!("{} vectors, want 1", header.rows)));
        }
        let (got, want) = (rest.len(), header.body_bytes());
        rest = asked
            .take_body(header, rest, limits)?
            .ok_or_else(|| Error::Request(format!("{got} bytes of values, the header announces {want}")))?;
    }
    if asked.arrived.is_empty() {
        return Err(Error::Request("0 requests, want 1".into()));
    }
    let behind = without_zeros(rest).len();
    if behind > 0 {
        return Err(Error::Request(format!("{behind} bytes behind the first line's request, want 0")));
    }
    asked.answer_all(limits, answers)?;
    match asked.answer.len() {
        got if got > room => {
            Err(Error::TooLarge { what: "answer of bytes", got: got as u64, limit: room as u64 })
        }
        _ => Ok(asked.answer),
    }
}

/// The bytes up to the last that is not zero.
fn without_zeros(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

/// Empties a buffer for the next use, which is likely as small as most are: what a large one took is given back.
fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(KEPT_BYTES);
}

/// Bytes that the buffers of a handle keep between requests, each.
const KEPT_BYTES: usize = 64 << 10;

/// Bytes of answers after which the further requests of one conversation are refused.
const ANSWER_MAX: u64 = 256 << 20;

/// Longest header line, in bytes.
const HEADER_MAX: usize = 4096;

/// Whether a line has the key that tells a header from a request.
fn has_dtype(line: &[u8]) -> bool {
    line.windows(7).any(|window| window == b"\"dtype\"")
}

/// Whether the bytes are a JSON request that lacks only its newline. A header is not: its newline separates it
/// from the values.
fn is_whole_request(bytes: &[u8]) -> bool {
    type Keys = std::collections::HashMap<String, serde::de::IgnoredAny>;
    bytes.trim_ascii_end().ends_with(b"}")
        && serde_json::from_slice::<Keys>(bytes).is_ok_and(|keys| !keys.contains_key("dtype"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distance::Metric;
    use crate::search::{Hit, Target};

    const LIMITS: RequestLimits = RequestLimits { max_k: 100, max_dim: 8, max_bytes: 1 << 12 };

    /// Answers each query vector with one hit whose id is the vector's first value.
    struct Echo;

    impl Answers for Echo {
        fn answer(&mut self, request: &Request) -> Result<Vec<Answer>> {
            let Target::Vectors { dim, values } = &request.target else { return Err(Error::NoEmbedder) };
            let answer = |vector: &[f32]| Answer {
                k: 1,
                metric: Metric::L2,
                exact: true,
                complete: true,
                pending: 0,
                took_us: 0,
                hits: vec![Hit {
                    path: (*b"a").into(),
                    row: 0,
                    multi: false,
                    id: vector[0].to_string().parse().unwrap(),
                    distance: 0.5,
                    score: -0.5,
                }],
                explain: None,
            };
            Ok(values.chunks(*dim as usize).map(answer).collect())
        }
    }

    fn read_all(transaction: &mut Transaction) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let before = out.len();
            // As a descriptor that has written 1000 bytes would.
            transaction.read(1000 + before as u64, 7, &mut out, &LIMITS, &mut Echo).unwrap();
            if out.len() == before {
                return out;
            }
        }
    }

    fn binary_request() -> Vec<u8> {
        let mut bytes = b"{\"dtype\":\"f32\",\"rows\":2,\"dim\":2,\"k\":2}\n".to_vec();
        // A newline byte inside the body must not end anything.
        for value in [3.0f32, f32::from_le_bytes(*b"\n\n\n\n"), 4.0, 0.0] {
            bytes.extend(value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_binary_request_may_be_split_at_every_byte_and_the_handle_takes_the_next() {
        let bytes = binary_request();
        let mut whole = Transaction::default();
        whole.write(&bytes, &LIMITS).unwrap();
        let want = read_all(&mut whole);
        assert_eq!(want.len(), 2 * 2 * 8);
        assert_eq!((&want[..4], &want[16..20]), (&3u32.to_le_bytes()[..], &4u32.to_le_bytes()[..]));
        for split in 1..bytes.len() {
            let mut transaction = Transaction::default();
            for _ in 0..2 {
                transaction.write(&bytes[..split], &LIMITS).unwrap();
                assert_eq!(read_all(&mut transaction), b"", "split {split}");
                transaction.write(&bytes[split..], &LIMITS).unwrap();
                assert_eq!(read_all(&mut transaction), want, "split {split}");
            }
        }
    }

    #[test]
    fn a_binary_request_is_known_by_its_beginning_and_text_is_not() {
        let bytes = binary_request();
        let mut transaction = Transaction::default();
        assert!(transaction.is_all_values(&bytes));
        assert!(!transaction.is_all_values(&bytes[..20]), "a header that is not whole");
        assert!(!transaction.is_all_values(b"{\"vector\":[1]}\n{\"dtype\":\"f32\"}\n"));
        let late = [&b" ".repeat(HEADER_MAX)[..], &bytes].concat();
        assert!(!transaction.is_all_values(&late));
        // What follows the beginning of a request may be anything.
        transaction.write(&bytes[..bytes.len() - 1], &LIMITS).unwrap();
        assert!(!transaction.is_all_values(&bytes));
    }

    #[test]
    fn each_json_line_has_one_answer_line_and_a_bad_one_has_an_error_line() {
        let mut transaction = Transaction::default();
        let lines = b"{\"vector\":[1]}\n\nnonsense\n{\"text\":\"x\"}\n{\"vector\":[2]}";
        transaction.write(lines, &LIMITS).unwrap();
        let text = String::from_utf8(read_all(&mut transaction)).unwrap();
        // The last line has no newline: its answer comes once the others have been read and it is seen whole.
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0]["hits"][0]["id"], 1);
        assert_eq!(lines[1]["error"]["code"], "EINVAL");
        assert!(lines[2]["error"]["message"].as_str().unwrap().contains("embedder"));
        assert_eq!(lines[3]["hits"][0]["id"], 2);
    }

    #[test]
    fn a_reader_that_seeks_back_finds_what_it_left() {
        let mut transaction = Transaction::default();
        let read = |offset: u64, transaction: &mut Transaction| {
            let mut out = Vec::new();
            transaction.read(offset, 1 << 20, &mut out, &LIMITS, &mut Echo).unwrap();
            out
        };
        transaction.write(b"{\"vector\":[1]}\n{\"vector\":[2]}\n", &LIMITS).unwrap();
        let both = read(30, &mut transaction);
        let line = both.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        assert_eq!(read(30 + line as u64, &mut transaction), both[line..]);
        assert_eq!(read(30 + both.len() as u64, &mut transaction), b"");
        assert_eq!(read(0, &mut transaction), b"", "before the answer there is nothing");
        transaction.write(b"{\"vector\":[3]}\n", &LIMITS).unwrap();
        assert_eq!(read(700, &mut transaction)[..13], b"{\"schema\":1,\""[..13]);
    }

    #[test]
    fn an_incomplete_request_reads_as_nothing_and_an_endless_one_is_refused() {
        let mut transaction = Transaction::default();
        transaction.write(b"{\"vector\":[1", &LIMITS).unwrap();
        assert_eq!(read_all(&mut transaction), b"");
        transaction.write(b"]}", &LIMITS).unwrap();
        assert!(!read_all(&mut transaction).is_empty());
        let mut refused = false;
        for _ in 0..20 {
            refused |= matches!(
                transaction.write(&[b'x'; 1000], &LIMITS),
                Err(Error::TooLarge { what: "request of bytes", limit: 4096, .. })
            );
        }
        assert!(refused);
        transaction.write(b"\n{\"vector\":[1]}\n", &LIMITS).unwrap();
    }

    #[test]
    fn small_lines_take_no_more_room_than_large_ones() {
        for line in [&b"x\n"[..], b"{\"like\":\"a\",\"where\":\"a in (1,2,3,4,5)\"}\n"] {
            let mut transaction = Transaction::default();
            let (mut taken, mut most) = (0, 0);
            while transaction.write(line, &LIMITS).is_ok() {
                taken += 1;
                let kept = transaction.arrived.iter().map(|arrived| match arrived {
                    Arrived::Json(line) => size_of::<Arrived>() + line.len(),
                    Arrived::Binary { .. } => unreachable!("no header was written"),
                });
                most = kept.sum();
                assert!(taken < 10_000, "lines without an end are taken");
            }
            assert!(taken > 10 && most <= (1 << 12) + HEADER_MAX, "{taken} lines take {most} bytes");
            assert!(transaction.arrived.is_empty(), "the handle begins anew");
            // As in many writes, so in one.
            let error = transaction.write(&line.repeat(taken + 1), &LIMITS).unwrap_err();
            assert!(
                matches!(error, Error::TooLarge { what: "request of bytes", limit: 4096, .. }),
                "{error}"
            );
            transaction.write(&line.repeat(10), &LIMITS).unwrap();
            assert_eq!(read_all(&mut transaction).iter().filter(|&&byte| byte == b'\n').count(), 10);
        }
    }

    #[test]
    fn a_bad_header_fails_the_write_and_the_handle_begins_anew() {
        let mut transaction = Transaction::default();
        let bad = b"{\"dtype\":\"f32\",\"rows\":2,\"dim\":99}\n";
        assert!(matches!(transaction.write(bad, &LIMITS), Err(Error::TooLarge { .. })));
        transaction.write(b"{\"vector\":[1]}\n", &LIMITS).unwrap();
        assert!(!read_all(&mut transaction).is_empty());
    }

    #[test]
    fn one_request_is_answered_as_in_a_conversation() {
        let one = |bytes: &[u8], room: usize| answer_one(bytes, room, &LIMITS, &mut Echo);
        let padded = |bytes: &[u8]| [bytes, &[0; 50]].concat();
        let mut binary = b"{\"dtype\":\"f32\",\"rows\":1,\"dim\":2,\"k\":2}\n".to_vec();
        // The last value is zero, as what follows is.
        binary.extend([7.0f32, 0.0].iter().flat_map(|value| value.to_le_bytes()));
        for request in [&binary[..], b"{\"vector\":[3]}\n", b"{\"text\":\"x\"}\n", b"nonsense\n"] {
            let mut conversation = Transaction::default();
            conversation.write(request, &LIMITS).unwrap();
            let want = read_all(&mut conversation);
            assert!(!want.is_empty());
            assert_eq!(one(request, want.len()).unwrap(), want);
            assert_eq!(one(&padded(request), want.len()).unwrap(), want);
            let refused = one(request, want.len() - 1).unwrap_err();
            let got = want.len() as u64;
            assert!(matches!(refused, Error::TooLarge { got: g, limit, .. } if (g, limit) == (got, got - 1)));
        }
        let line = b"{\"vector\":[3]}";
        assert_eq!(one(line, 1000).unwrap(), one(&padded(line), 1000).unwrap());
    }

    #[test]
    fn what_is_not_one_request_is_refused() {
        let vectors = b"{\"dtype\":\"i8\",\"rows\":2,\"dim\":1}\n\x01\x02";
        let short = b"{\"dtype\":\"f32\",\"rows\":1,\"dim\":2}\n\0\0\0";
        let no_body = b"{\"dtype\":\"f32\",\"rows\":1,\"dim\":2}";
        let two = b"{\"vector\":[1]}\n{\"vector\":[2]}\n";
        for (bytes, why) in [
            (&vectors[..], "2 vectors, want 1"),
            (short, "3 bytes of values, the header announces 8"),
            (no_body, "0 bytes of values, the header announces 8"),
            (two, "15 bytes behind the first line's request, want 0"),
            (b"\n", "0 requests, want 1"),
            (b"", "0 requests, want 1"),
            (&[0; 9], "0 requests, want 1"),
        ] {
            let error = answer_one(bytes, 1000, &LIMITS, &mut Echo).unwrap_err();
            assert!(matches!(&error, Error::Request(got) if got == why), "{error:?}, want {why}");
        }
    }
}
