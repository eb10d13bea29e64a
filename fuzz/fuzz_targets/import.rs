//! Bytes as an archive, as the header of tensors, and as lines of fields: the first byte picks it.
//!
//! What is accepted must lie inside the file, and reading it must end.

#![no_main]

use std::io::{Cursor, Read};

use libfuzzer_sys::fuzz_target;
use vexfs::format::{CsvReader, Limits, safetensors, unzip};

fuzz_target!(|input: &[u8]| {
    let Some((first, bytes)) = input.split_first() else { return };
    match first % 3 {
        0 => archive(bytes),
        1 => tensors(bytes),
        _ => records(bytes),
    }
});

fn archive(bytes: &[u8]) {
    let mut archive = Cursor::new(bytes);
    let Ok(members) = unzip::members(&mut archive) else { return };
    for member in members.iter().take(8) {
        let Ok(reader) = member.open(&mut archive) else { continue };
        let mut read = Vec::new();
        let _ = reader.take(1 << 20).read_to_end(&mut read);
        assert!(read.len() as u64 <= member.len);
    }
}

fn tensors(bytes: &[u8]) {
    let Ok(tensors) = safetensors::tensors(bytes) else { return };
    let len = (safetensors::PREFIX + bytes.len() + 100) as u64;
    for tensor in tensors.values() {
        if let Ok(layout) = tensor.layout(bytes.len() as u64, len, &Limits::default()) {
            assert!(layout.fits(len));
        }
    }
}

fn records(bytes: &[u8]) {
    let mut reader = CsvReader::new(bytes);
    let mut read = 0;
    while let Ok(true) = reader.advance() {
        read += reader.fields().map(<[u8]>::len).sum::<usize>();
    }
    assert!(read <= bytes.len());
}
