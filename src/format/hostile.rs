//! Tests: files that nobody meant to be vectors, and files that somebody meant to be harm.

use std::io::{Cursor, Read, Write};

use super::*;
use crate::Error;
use crate::random::splitmix64;

/// Inputs for each parser.
const INPUTS: u32 = 10_000;

/// The same inputs in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        splitmix64(&mut self.0)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// Random bytes, or a good file with a few bytes changed, cut, doubled or appended.
    fn input(&mut self, good: &[Vec<u8>]) -> Vec<u8> {
        if self.below(4) == 0 {
            let len = self.below(200);
            return self.bytes(len);
        }
        let mut bytes = good[self.below(good.len())].clone();
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len().max(1)).min(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => {
                    let part = self.below(20);
                    let more = self.bytes(part);
                    bytes.splice(at..at, more);
                }
                2 => bytes.extend_from_within(at..),
                // Into the headers, where it matters most.
                3 if !bytes.is_empty() => {
                    let at = self.below(bytes.len().min(16));
                    bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'9'][self.below(6)];
                }
                4 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ if at < bytes.len() => {
                    bytes.remove(at);
                }
                _ => {}
            }
        }
        bytes
    }
}

fn kinds() -> Vec<FileKind> {
    let mut kinds: Vec<FileKind> = Dtype::ALL.into_iter().map(FileKind::Raw).collect();
    kinds.extend([Dtype::F32, Dtype::U8, Dtype::I32].map(FileKind::Vecs));
    kinds.extend([Dtype::F32, Dtype::F16, Dtype::U8, Dtype::I8].map(FileKind::Bin));
    kinds.push(FileKind::Npy);
    kinds
}

/// Small files that their parser accepts.
fn good(kind: FileKind) -> Vec<Vec<u8>> {
    let shapes = [(1usize, 1usize), (1, 5), (4, 3), (9, 8)];
    let mut files = Vec::new();
    for (rows, dim) in shapes {
        let data: Vec<f32> = (0..rows * dim).map(|i| i as f32 + 1.0).collect();
        let dim32 = u32::try_from(dim).unwrap();
        match kind {
            FileKind::Raw(dtype) => files.push(vec![1; dim * dtype.size_bytes()]),
            FileKind::Vecs(dtype) if dtype.size_bytes() == 4 => files.push(fvecs(dim32, &data)),
            FileKind::Vecs(_) => {
                let row = [&dim32.to_le_bytes()[..], &vec![1; dim]].concat();
                files.push(row.repeat(rows));
            }
            FileKind::Bin(dtype) => {
                let header = [u32::try_from(rows).unwrap().to_le_bytes(), dim32.to_le_bytes()].concat();
                files.push([header, vec![1; rows * dim * dtype.size_bytes()]].concat());
            }
            FileKind::Npy => files.push(npy_f32(rows, dim, &data)),
            FileKind::Text => files.push(format!("{data:?}").into_bytes()),
        }
    }
    files
}

fn assert_sound(layout: &Layout, bytes: &[u8], limits: &Limits, name: &str) {
    assert!(layout.fits(bytes.len() as u64), "{name}: {layout:?}");
    assert!((1..=limits.max_dim).contains(&layout.dim), "{name}: {layout:?}");
    assert!((1..=limits.max_rows).contains(&layout.rows), "{name}: {layout:?}");
    let mut end = 0;
    for row in 0..layout.rows {
        let range = layout.row_range(row);
        assert!(range.start >= end && range.end <= bytes.len(), "{name}: row {row} of {layout:?}");
        assert_eq!(range.len(), layout.dim as usize * layout.dtype.size_bytes(), "{name}");
        end = range.end;
    }
    assert_eq!(end, bytes.len(), "{name}: bytes after the last row");
    for cosine in [false, true] {
        let mut seen = 0;
        let result = validate(layout, bytes, cosine, |_, vector| {
            assert!(vector.len() == layout.dim as usize && vector.iter().all(|v| v.is_finite()), "{name}");
            seen += 1;
        });
        assert_eq!(result.is_ok(), seen == layout.rows, "{name}: {result:?}");
    }
}

/// Reads a file block by block, and compares the rows with where the layout says they are.
fn by_blocks(kind: FileKind, layout: Layout, bytes: &[u8]) -> crate::Result<u64> {
    let mut reader = RowReader::new(bytes, kind, layout)?;
    let mut seen = 0;
    while reader.advance()? {
        let block = reader.block();
        for row in 0..block.layout.rows {
            let want = &bytes[layout.row_range(block.first_row + row)];
            assert_eq!(&block.bytes[block.layout.row_range(row)], want);
        }
        seen += block.layout.rows;
    }
    Ok(seen)
}

#[test]
fn no_bytes_make_a_layout_that_leaves_the_file() {
    let tight = Limits { max_dim: 6, max_rows: 5 };
    for kind in kinds() {
        let files = good(kind);
        for bytes in &files {
            assert!(layout(kind, bytes, &Limits::default()).is_ok(), "{kind:?}");
        }
        let mut accepted = 0;
        for seed in 0..INPUTS {
            let bytes = Random(seed.into()).input(&files);
            let limits = if seed % 5 == 0 { tight } else { Limits::default() };
            if let Ok(layout) = layout(kind, &bytes, &limits) {
                accepted += 1;
                assert_sound(&layout, &bytes, &limits, &format!("{kind:?}, seed {seed}"));
                assert_eq!(by_blocks(kind, layout, &bytes).unwrap(), layout.rows, "{kind:?}, seed {seed}");
            } else if let Ok(layout) =
                layout_of_head(kind, &bytes[..bytes.len().min(20)], bytes.len() as u64, &limits)
            {
                // Nothing but the header of a row beyond the head can be wrong.
                assert!(by_blocks(kind, layout, &bytes).is_err(), "{kind:?}, seed {seed}");
            }
        }
        // Both ways must have been taken, else the inputs show nothing.
        assert!((INPUTS / 50..INPUTS).contains(&accepted), "{kind:?}: {accepted} accepted");
    }
}

#[test]
fn no_bytes_make_more_text_values_than_the_limit() {
    let files = good(FileKind::Text);
    let limits = Limits { max_dim: 14, ..Limits::default() };
    let mut accepted = 0;
    for seed in 0..INPUTS {
        let bytes = Random(seed.into()).input(&files);
        if let Ok(values) = parse_text(&bytes, &limits) {
            assert!((1..=14).contains(&values.len()), "seed {seed}");
            accepted += 1;
        }
    }
    assert!((INPUTS / 50..INPUTS).contains(&accepted), "{accepted} accepted");
}

#[test]
fn names_and_first_bytes_of_any_kind_are_judged() {
    let parts = [&b"."[..], b"f32", b"npy", b"a", b"~", b"#", b".f32", b".tmp", b"\xff", b"bin", b"/"];
    for seed in 0..u64::from(INPUTS) {
        let mut random = Random(seed);
        let name: Vec<u8> =
            (0..random.below(5)).flat_map(|_| parts[random.below(parts.len())].to_vec()).collect();
        let suffix = [&b".f32"[..], b".npy"].iter().any(|suffix| name.ends_with(suffix));
        let want = suffix && !name.starts_with(b".");
        assert_eq!(recognise(&name).is_some(), want, "{}", name.escape_ascii());
        let bytes = random.input(&good(FileKind::Text));
        assert!(sniff(&bytes) != Some(FileKind::Text) || bytes.is_ascii(), "seed {seed}");
    }
}

#[test]
fn headers_that_promise_the_world_are_refused() {
    let most = u32::MAX.to_le_bytes();
    let npy = |shape: &str| {
        let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n");
        let len = u16::try_from(text.len()).unwrap().to_le_bytes();
        [npy::MAGIC, &[1, 0], &len, text.as_bytes(), &[0; 64]].concat()
    };
    let half = (1u32 << 31).to_le_bytes();
    let one = 1u32.to_le_bytes();
    let table: Vec<(FileKind, Vec<u8>)> = vec![
        (FileKind::Npy, npy("(18446744073709551615, 18446744073709551615)")),
        (FileKind::Npy, npy("(4611686018427387904, 4)")),
        (FileKind::Npy, npy("(2305843009213693952, 1)")),
        (FileKind::Npy, npy("(4294967294, 16384)")),
        (FileKind::Npy, npy("(99999999999999999999999999, 1)")),
        (FileKind::Npy, npy("(0, 0)")),
        (FileKind::Npy, npy(&"(".repeat(20_000))),
        (FileKind::Bin(Dtype::F32), [most, most].concat()),
        (FileKind::Bin(Dtype::F32), [half, half].concat()),
        (FileKind::Bin(Dtype::F32), [half, one].concat()),
        (FileKind::Bin(Dtype::F32), [one, half].concat()),
        (FileKind::Vecs(Dtype::F32), most.to_vec()),
        (FileKind::Vecs(Dtype::F32), half.to_vec()),
        (FileKind::Vecs(Dtype::U8), [16_384u32.to_le_bytes(); 9].concat()),
        (FileKind::Vecs(Dtype::U8), vec![0; 1 << 16]),
    ];
    let unlimited = Limits { max_dim: u32::MAX, max_rows: u64::MAX };
    for (kind, bytes) in table {
        for limits in [Limits::default(), unlimited] {
            let result = layout(kind, &bytes, &limits);
            assert!(
                matches!(result, Err(Error::Format(_) | Error::TooLarge { .. })),
                "{kind:?} {}: {result:?}",
                shown(&bytes)
            );
        }
    }
}

#[test]
fn no_bytes_make_an_archive_without_end_or_beyond_its_file() {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, len) in [("vectors.npy", 300), ("ids.npy", 40)] {
        zip.start(name, len).unwrap();
        zip.write_all(&vec![7; len.try_into().unwrap()]).unwrap();
    }
    let deflated = include_bytes!("../../tests/data/deflated.zip").to_vec();
    let good = [zip.finish().unwrap().into_inner(), deflated];
    let mut accepted = 0;
    for seed in 0..INPUTS {
        let mut archive = Cursor::new(Random(seed.into()).input(&good));
        let Ok(members) = unzip::members(&mut archive) else { continue };
        accepted += 1;
        for member in members {
            let Ok(reader) = member.open(&mut archive) else { continue };
            let mut bytes = Vec::new();
            // A member may be said to be long, and deflate can make much of little.
            let read = reader.take(1 << 20).read_to_end(&mut bytes);
            assert!(bytes.len() as u64 <= member.len, "seed {seed}: {read:?}");
        }
    }
    assert!((INPUTS / 50..INPUTS).contains(&accepted), "{accepted} accepted");
}

#[test]
fn no_header_makes_a_tensor_that_leaves_its_file() {
    let good = [
        br#"{"__metadata__":{"a":"b"},"v":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#.to_vec(),
        br#"{"v":{"dtype":"U8","shape":[9],"data_offsets":[3,12]}} "#.to_vec(),
    ];
    let mut accepted = 0;
    for seed in 0..INPUTS {
        let header = Random(seed.into()).input(&good);
        let len = (safetensors::PREFIX + header.len() + 24) as u64;
        let Ok(tensors) = safetensors::tensors(&header) else { continue };
        for tensor in tensors.values() {
            if let Ok(layout) = tensor.layout(header.len() as u64, len, &Limits::default()) {
                assert!(layout.fits(len), "seed {seed}: {layout:?}");
                accepted += 1;
            }
        }
    }
    assert!((INPUTS / 50..INPUTS).contains(&accepted), "{accepted} accepted");
}

#[test]
fn every_record_of_any_text_is_read_once() {
    let good = [b"id,path,v0\n1,\"a,\"\"b\",0.5\n".to_vec(), b"1,2\r\n3,4".to_vec()];
    for seed in 0..INPUTS {
        let text = Random(seed.into()).input(&good);
        let mut reader = CsvReader::new(&text[..]);
        let (mut records, mut bytes) = (0, 0);
        while let Ok(true) = reader.advance() {
            records += 1;
            bytes += reader.fields().map(<[u8]>::len).sum::<usize>();
            assert!(reader.fields().count() >= 1);
        }
        let lines = text.iter().filter(|&&byte| byte == b'\n').count() + 1;
        assert!(records <= lines && bytes <= text.len(), "seed {seed}");
    }
}
