//! Bytes as a vector file of any kind: the first byte picks it, the rest is the file.
//!
//! A layout that is accepted must lie inside the file and cover it, and each of its rows must be readable, also block by block.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vexfs::format::{Dtype, FileKind, Limits, RowReader, layout, validate};

const KINDS: [FileKind; 14] = [
    FileKind::Npy,
    FileKind::Raw(Dtype::F32),
    FileKind::Raw(Dtype::F16),
    FileKind::Raw(Dtype::Bf16),
    FileKind::Raw(Dtype::F64),
    FileKind::Raw(Dtype::I8),
    FileKind::Raw(Dtype::U8),
    FileKind::Vecs(Dtype::F32),
    FileKind::Vecs(Dtype::U8),
    FileKind::Vecs(Dtype::I32),
    FileKind::Bin(Dtype::F32),
    FileKind::Bin(Dtype::F16),
    FileKind::Bin(Dtype::U8),
    FileKind::Bin(Dtype::I8),
];

fuzz_target!(|input: &[u8]| {
    let Some((first, bytes)) = input.split_first() else { return };
    let limits = Limits { max_dim: 64, ..Limits::default() };
    let kind = KINDS[usize::from(*first) % KINDS.len()];
    let Ok(layout) = layout(kind, bytes, &limits) else { return };
    assert!(layout.fits(bytes.len() as u64) && layout.dim <= limits.max_dim);
    let mut end = 0;
    for row in 0..layout.rows {
        let range = layout.row_range(row);
        assert!(range.start >= end && range.len() == layout.row_len_bytes());
        end = range.end;
    }
    assert_eq!(end, bytes.len());
    let mut reader = RowReader::new(bytes, kind, layout).expect("the rows are there");
    let mut read = 0;
    while reader.advance().expect("the rows are there") {
        read += reader.block().layout.rows;
    }
    assert_eq!(read, layout.rows);
    for cosine in [false, true] {
        let mut seen = 0;
        let result = validate(&layout, bytes, cosine, |row, vector| {
            assert!(row == seen && vector.iter().all(|value| value.is_finite()));
            seen += 1;
        });
        assert_eq!(result.is_ok(), seen == layout.rows);
    }
});
