//! Reading zip archives: the members of an `.npz`, as they are or compressed by deflate.
//!
//! Source: APPNOTE 6.3.10 and RFC 1951. Lengths and offsets are those of the directory at the end; a member's bytes are
//! compared with its checksum when the last of them is read.

use std::io::{self, Read, Seek, SeekFrom, Take};

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

use super::zip::{CENTRAL, ELSEWHERE, END, END_64, EXTRA_64, LOCAL, LOCATOR_64};
use crate::{Error, Result};

/// The record at the end, without the comment that may follow, and the longest comment.
const END_LEN: usize = 22;
const MAX_COMMENT: usize = u16::MAX as usize;

/// Longest directory that is read: an archive of arrays has a few members.
const MAX_DIRECTORY: u64 = 16 << 20;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// A member, as the directory has it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name in the archive.
    pub name: String,
    /// Its length when it is not compressed.
    pub len: u64,
    method: u16,
    crc: u32,
    packed_len: u64,
    offset: u64,
}

/// The members of an archive.
///
/// # Errors
///
/// [`Error::Format`] for what is no archive, or one whose directory is not inside it; what `archive` answers.
pub fn members(archive: &mut (impl Read + Seek)) -> Result<Vec<Member>> {
    let archive_len = archive.seek(SeekFrom::End(0))?;
    let tail_len = archive_len.min((END_LEN + MAX_COMMENT) as u64);
    archive.seek(SeekFrom::Start(archive_len - tail_len))?;
    let mut tail = Vec::new();
    archive.take(tail_len).read_to_end(&mut tail)?;
    let at = tail.windows(END_LEN).rposition(|bytes| bytes.starts_with(&END.to_le_bytes()));
    let Some(end) = at.map(|at| &tail[at..]) else {
        return Err(Error::Format("no zip archive: it has no directory at its end".into()));
    };
    let (mut len, mut start) = (u64::from(u32_at(end, 12)?), u64::from(u32_at(end, 16)?));
    let locator = at.and_then(|at| at.checked_sub(20)).map(|at| &tail[at..]);
    if let Some(locator) = locator.filter(|bytes| bytes.starts_with(&LOCATOR_64.to_le_bytes())) {
        archive.seek(SeekFrom::Start(u64_at(locator, 8)?))?;
        let mut wide = [0; 56];
        archive.read_exact(&mut wide)?;
        if !wide.starts_with(&END_64.to_le_bytes()) {
            return Err(bad("its 64-bit end is not where it says"));
        }
        (len, start) = (u64_at(&wide, 40)?, u64_at(&wide, 48)?);
    }
    if len > MAX_DIRECTORY || start.checked_add(len).is_none_or(|end| end > archive_len) {
        return Err(bad("its directory is not inside it, or too long"));
    }
    archive.seek(SeekFrom::Start(start))?;
    let mut directory = Vec::new();
    archive.take(len).read_to_end(&mut directory)?;
    let mut members = Vec::new();
    let mut rest = &directory[..];
    while !rest.is_empty() {
        let (member, next) = member(rest)?;
        members.push(member);
        rest = next;
    }
    Ok(members)
}

/// A member at the beginning of the directory, and what follows it.
fn member(entry: &[u8]) -> Result<(Member, &[u8])> {
    if u32_at(entry, 0)? != CENTRAL {
        return Err(bad("its directory has something else than members"));
    }
    let [name_len, extra_len, comment_len] = [28, 30, 32].map(|at| u16_at(entry, at));
    let (name_len, extra_len, comment_len) =
        (usize::from(name_len?), usize::from(extra_len?), usize::from(comment_len?));
    let part =
        |from: usize, len: usize| entry.get(from..from + len).ok_or_else(|| bad("its directory is cut"));
    let name = String::from_utf8_lossy(part(46, name_len)?).into_owned();
    let mut wide = wide_fields(part(46 + name_len, extra_len)?);
    let mut field = |at: usize| -> Result<u64> {
        match u32_at(entry, at)? {
            ELSEWHERE => {
                let (first, rest) =
                    wide.split_first_chunk().ok_or_else(|| bad("a 64-bit length is missing"))?;
                wide = rest;
                Ok(u64::from_le_bytes(*first))
            }
            short => Ok(short.into()),
        }
    };
    // In the order in which the extra field has them.
    let len = field(24)?;
    let packed_len = field(20)?;
    let offset = field(42)?;
    let member =
        Member { name, len, method: u16_at(entry, 10)?, crc: u32_at(entry, 16)?, packed_len, offset };
    let next = 46 + name_len + extra_len + comment_len;
    Ok((member, entry.get(next..).ok_or_else(|| bad("its directory is cut"))?))
}

/// The 64-bit fields of an extra field.
fn wide_fields(mut extra: &[u8]) -> &[u8] {
    while let Some((head, rest)) = extra.split_first_chunk::<4>() {
        let len = usize::from(u16::from_le_bytes([head[2], head[3]])).min(rest.len());
        if head[..2] == EXTRA_64.to_le_bytes() {
            return &rest[..len];
        }
        extra = &rest[len..];
    }
    &[]
}

impl Member {
    /// The member's bytes, which are compared with its checksum.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for another compression, or encryption that hides as one; [`Error::Format`] when the
    /// member is not where the directory says; what `archive` answers.
    pub fn open<R: Read + Seek>(&self, mut archive: R) -> Result<MemberReader<R>> {
        archive.seek(SeekFrom::Start(self.offset))?;
        let mut header = [0; 30];
        archive.read_exact(&mut header)?;
        if u32_at(&header, 0)? != LOCAL || u16_at(&header, 6)? & 1 != 0 {
            return Err(bad("a member is encrypted or not where the directory says"));
        }
        let skip = i64::from(u16_at(&header, 26)?) + i64::from(u16_at(&header, 28)?);
        archive.seek(SeekFrom::Current(skip))?;
        let inflating = match self.method {
            STORED if self.packed_len == self.len => None,
            DEFLATED => {
                Some(Inflating { state: InflateState::new_boxed(DataFormat::Raw), input: Vec::new(), at: 0 })
            }
            _ => return Err(Error::Unsupported("this compression of a zip archive")),
        };
        let packed = archive.take(self.packed_len);
        let crc = crc32fast::Hasher::new();
        Ok(MemberReader { packed, inflating, left: self.len, crc, expected: self.crc })
    }
}

/// Reads a member from its beginning to its end.
pub struct MemberReader<R> {
    packed: Take<R>,
    inflating: Option<Inflating>,
    /// Bytes that are still to come.
    left: u64,
    crc: crc32fast::Hasher,
    expected: u32,
}

struct Inflating {
    state: Box<InflateState>,
    input: Vec<u8>,
    at: usize,
}

impl<R: Read> Read for MemberReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        if most == 0 {
            return Ok(0);
        }
        let out = &mut out[..most];
        let got = match &mut self.inflating {
            None => self.packed.read(out)?,
            Some(inflating) => inflating.read(&mut self.packed, out)?,
        };
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a member of the archive ends early"));
        }
        self.crc.update(&out[..got]);
        self.left -= got as u64;
        if self.left == 0 && std::mem::take(&mut self.crc).finalize() != self.expected {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a member of the archive has another checksum",
            ));
        }
        Ok(got)
    }
}

impl Inflating {
    /// Bytes that are read of the archive at a time.
    const INPUT: usize = 64 << 10;

    fn read(&mut self, packed: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.at == self.input.len() {
                self.input.resize(Self::INPUT, 0);
                let got = packed.read(&mut self.input)?;
                self.input.truncate(got);
                self.at = 0;
            }
            let done = inflate(&mut self.state, &self.input[self.at..], out, MZFlush::None);
            self.at += done.bytes_consumed;
            match done.status {
                Ok(MZStatus::Ok) | Err(MZError::Buf) if done.bytes_written == 0 && !self.input.is_empty() => {
                }
                Ok(_) | Err(MZError::Buf) => return Ok(done.bytes_written),
                Err(_) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "what is compressed is damaged"));
                }
            }
        }
    }
}

fn bad(why: &str) -> Error {
    Error::Format(format!("zip archive: {why}"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let field = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    field.map(|field| u16::from_le_bytes(*field)).ok_or_else(|| bad("a field is cut"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let field = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    field.map(|field| u32::from_le_bytes(*field)).ok_or_else(|| bad("a field is cut"))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let field = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    field.map(|field| u64::from_le_bytes(*field)).ok_or_else(|| bad("a field is cut"))
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;
    use crate::format::zip::ZipWriter;

    fn read_all(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut archive = Cursor::new(archive);
        let mut all = Vec::new();
        for member in members(&mut archive)? {
            let mut bytes = Vec::new();
            member.open(&mut archive)?.take(1 << 20).read_to_end(&mut bytes)?;
            all.push((member.name, bytes));
        }
        Ok(all)
    }

    fn written(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in members {
            zip.start(name, bytes.len() as u64).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    /// What Python's zipfile made of 2000 times `abcdefgh` under the name `a.npy`, compressed.
    const DEFLATED_BY_PYTHON: &[u8] = include_bytes!("../../tests/data/deflated.zip");

    #[test]
    fn members_are_what_was_written() {
        let long: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        let members = [("a.npy", &b"123"[..]), ("empty", b""), ("long", &long)];
        let read = read_all(&written(&members)).unwrap();
        assert!(read.iter().map(|(name, bytes)| (&name[..], &bytes[..])).eq(members));
    }

    #[test]
    fn a_compressed_member_is_read() {
        let read = read_all(DEFLATED_BY_PYTHON).unwrap();
        assert_eq!(read, [("a.npy".to_owned(), b"abcdefgh".repeat(2000))]);
    }

    #[test]
    fn changed_bytes_are_found_or_change_nothing_and_nothing_is_read_without_end() {
        for archive in [written(&[("a.npy", &[7; 300]), ("b", b"xyz")]), DEFLATED_BY_PYTHON.to_vec()] {
            let good = read_all(&archive).unwrap();
            for at in 0..archive.len() {
                for bit in [0, 3, 7] {
                    let mut bad = archive.clone();
                    bad[at] ^= 1 << bit;
                    if let Ok(read) = read_all(&bad) {
                        let same = read.iter().zip(&good).all(|(read, good)| read.1 == good.1);
                        assert!(same, "byte {at}, bit {bit}");
                    }
                }
                let _ = read_all(&archive[..at]);
                assert!(read_all(&archive[..at]).is_err(), "cut at {at}");
            }
        }
    }
}
