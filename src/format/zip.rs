//! Writing zip archives of members that are not compressed: what an `.npz` is.
//!
//! Source: APPNOTE 6.3.10. Lengths are known before a member is written, so that no data descriptor is needed; fields
//! of 64 bits are written only where 32 are too few, because not every reader of small archives knows them.

use std::io::{self, Seek, SeekFrom, Write};

pub(super) const LOCAL: u32 = 0x0403_4b50;
pub(super) const CENTRAL: u32 = 0x0201_4b50;
pub(super) const END: u32 = 0x0605_4b50;
pub(super) const END_64: u32 = 0x0606_4b50;
pub(super) const LOCATOR_64: u32 = 0x0706_4b50;

/// Identifies the extra field of 64-bit lengths and offsets.
pub(super) const EXTRA_64: u16 = 1;

/// In a 32-bit field: the value is in the extra field. 65535 says the same in one of 16 bits.
pub(super) const ELSEWHERE: u32 = u32::MAX;

/// Readers must know version 4.5, that of the 64-bit fields.
const NEEDS: u16 = 45;

/// 1 January 1980, the earliest day there is: archives of the same vectors are the same bytes.
const DATE: u16 = 0x21;

/// Where the checksum stands in a local header.
const CRC_OFFSET: u64 = 14;

/// Writes an archive. The bytes of a member are written to it between two calls of [`start`](Self::start).
#[derive(Debug)]
pub struct ZipWriter<W> {
    out: W,
    at: u64,
    crc: crc32fast::Hasher,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    offset: u64,
    /// Of the member's first byte.
    start: u64,
    len: u64,
    crc: u32,
}

impl<W: Write + Seek> ZipWriter<W> {
    /// An archive that begins where `out` does.
    pub fn new(out: W) -> Self {
        Self { out, at: 0, crc: crc32fast::Hasher::new(), members: Vec::new() }
    }

    /// Begins the next member, of exactly `len` bytes.
    ///
    /// # Errors
    ///
    /// What `out` answers.
    ///
    /// # Panics
    ///
    /// When the member before has not got all its bytes.
    pub fn start(&mut self, name: &str, len: u64) -> io::Result<()> {
        self.close_member()?;
        let offset = self.at;
        let mut header = Vec::with_capacity(64);
        let short = narrow(len);
        let mut extra = Vec::new();
        if short == ELSEWHERE {
            extra.extend(EXTRA_64.to_le_bytes());
            extra.extend(16u16.to_le_bytes());
            extra.extend([len.to_le_bytes(), len.to_le_bytes()].concat());
        }
        header.extend(LOCAL.to_le_bytes());
        header.extend(common(0, short, name, &extra));
        header.extend(name.as_bytes());
        header.extend(extra);
        self.put(&header)?;
        self.crc = crc32fast::Hasher::new();
        self.members.push(Member { name: name.into(), offset, start: self.at, len, crc: 0 });
        Ok(())
    }

    /// Ends the archive and returns what it was written to.
    ///
    /// # Errors
    ///
    /// What `out` answers.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn finish(mut self) -> io::Result<W> {
        self.close_member()?;
        let start = self.at;
        let mut directory = Vec::new();
        for member in &self.members {
            directory.extend(member.central());
        }
        let (len, count) = (directory.len() as u64, self.members.len() as u64);
        if start >= ELSEWHERE.into() {
            let end = start + len;
            directory.extend(END_64.to_le_bytes());
            directory.extend(44u64.to_le_bytes());
            directory.extend([NEEDS.to_le_bytes(), NEEDS.to_le_bytes()].concat());
            directory.extend([0; 8]);
            for value in [count, count, len, start] {
                directory.extend(value.to_le_bytes());
            }
            directory.extend(LOCATOR_64.to_le_bytes());
            directory.extend([0; 4]);
            directory.extend(end.to_le_bytes());
            directory.extend(1u32.to_le_bytes());
        }
        directory.extend(END.to_le_bytes());
        directory.extend([0; 4]);
        let count = u16::try_from(count).expect("an archive has a few members");
        directory.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
        directory.extend([narrow(len).to_le_bytes(), narrow(start).to_le_bytes()].concat());
        directory.extend([0; 2]);
        self.put(&directory)?;
        Ok(self.out)
    }

    /// Puts the checksum of what was written into the header before it.
    fn close_member(&mut self) -> io::Result<()> {
        let Some(member) = self.members.last_mut() else { return Ok(()) };
        assert_eq!(self.at - member.start, member.len, "bytes of {}", member.name);
        member.crc = std::mem::take(&mut self.crc).finalize();
        self.out.seek(SeekFrom::Start(member.offset + CRC_OFFSET))?;
        self.out.write_all(&member.crc.to_le_bytes())?;
        self.out.seek(SeekFrom::Start(self.at))?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl<W: Write> Write for ZipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        self.crc.update(&bytes[..len]);
        self.at += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Member {
    /// The member's entry in the directory at the end.
    fn central(&self) -> Vec<u8> {
        let (len, offset) = (narrow(self.len), narrow(self.offset));
        let mut wide = Vec::new();
        if len == ELSEWHERE {
            wide.extend([self.len.to_le_bytes(), self.len.to_le_bytes()].concat());
        }
        if offset == ELSEWHERE {
            wide.extend(self.offset.to_le_bytes());
        }
        let mut extra = Vec::new();
        if !wide.is_empty() {
            let wide_len = u16::try_from(wide.len()).expect("three numbers");
            extra.extend([EXTRA_64.to_le_bytes(), wide_len.to_le_bytes()].concat());
            extra.extend(wide);
        }
        let mut entry = CENTRAL.to_le_bytes().to_vec();
        entry.extend(NEEDS.to_le_bytes());
        entry.extend(common(self.crc, len, &self.name, &extra));
        // Comment, disk, and attributes: none.
        entry.extend([0; 10]);
        entry.extend(offset.to_le_bytes());
        entry.extend(self.name.as_bytes());
        entry.extend(extra);
        entry
    }
}

/// What a local header and an entry of the directory have in common.
fn common(crc: u32, len: u32, name: &str, extra: &[u8]) -> Vec<u8> {
    let mut fields = Vec::with_capacity(26);
    // No flags, stored, midnight.
    for field in [NEEDS, 0, 0, 0, DATE] {
        fields.extend(field.to_le_bytes());
    }
    for field in [crc, len, len] {
        fields.extend(field.to_le_bytes());
    }
    let name_len = u16::try_from(name.len()).expect("names of arrays are short");
    let extra_len = u16::try_from(extra.len()).expect("three numbers");
    fields.extend([name_len.to_le_bytes(), extra_len.to_le_bytes()].concat());
    fields
}

/// A 64-bit value in a 32-bit field, which may say that it is elsewhere.
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(ELSEWHERE)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
    }

    #[test]
    fn the_directory_leads_to_each_member_and_its_checksum() {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let members = [("a.npy", &b"123456789"[..]), ("empty", b""), ("b.npy", &[7; 1000])];
        for (name, bytes) in members {
            zip.start(name, bytes.len() as u64).unwrap();
            for part in bytes.chunks(400) {
                zip.write_all(part).unwrap();
            }
        }
        let file = zip.finish().unwrap().into_inner();
        let end = file.len() - 22;
        assert_eq!(u32_at(&file, end), END);
        assert_eq!((file[end + 8], file[end + 10]), (3, 3));
        let mut at = u32_at(&file, end + 16) as usize;
        assert_eq!(at + u32_at(&file, end + 12) as usize, end);
        for (name, bytes) in members {
            assert_eq!(u32_at(&file, at), CENTRAL);
            assert_eq!(u32_at(&file, at + 16), crc32fast::hash(bytes));
            assert_eq!(u32_at(&file, at + 24) as usize, bytes.len());
            assert_eq!(file[at + 46..][..name.len()], *name.as_bytes());
            let local = u32_at(&file, at + 42) as usize;
            assert_eq!((u32_at(&file, local), u32_at(&file, local + 14)), (LOCAL, crc32fast::hash(bytes)));
            assert_eq!(file[local + 30..][..name.len()], *name.as_bytes());
            assert_eq!(file[local + 30 + name.len()..][..bytes.len()], *bytes);
            at += 46 + name.len();
        }
        assert_eq!(at, end);
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_32_bits_cannot_hold_is_in_the_extra_field() {
        let (len, offset) = (5u64 << 30, 6u64 << 30);
        let member = Member { name: "v".into(), offset, start: offset + 31, len, crc: 9 };
        let entry = member.central();
        assert_eq!([20, 24, 42].map(|at| u32_at(&entry, at)), [ELSEWHERE; 3]);
        let extra =
            [&[1, 0, 24, 0][..], &len.to_le_bytes(), &len.to_le_bytes(), &offset.to_le_bytes()].concat();
        assert_eq!(entry[30..32], [28, 0]);
        assert_eq!(entry[47..], extra);

        let writer = ZipWriter {
            out: Cursor::new(Vec::new()),
            at: offset,
            crc: crc32fast::Hasher::new(),
            members: vec![],
        };
        let end = writer.finish().unwrap().into_inner();
        assert_eq!([0, 56, 76].map(|at| u32_at(&end, at)), [END_64, LOCATOR_64, END]);
        assert_eq!(end[48..56], offset.to_le_bytes(), "the directory");
        assert_eq!(end[64..72], offset.to_le_bytes(), "the record behind it");
        assert_eq!(u32_at(&end, 92), ELSEWHERE);
    }

    #[test]
    #[should_panic(expected = "bytes of a")]
    fn a_member_that_is_too_short_is_a_mistake() {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.start("a", 2).unwrap();
        zip.write_all(b"1").unwrap();
        let _ = zip.finish();
    }
}
