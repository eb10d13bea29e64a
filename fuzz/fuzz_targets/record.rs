//! Bytes as catalog records of several shapes: the first byte picks one, the rest is the record.
//!
//! A record that is accepted must be the bytes that encoding it gives: no two records mean the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vexfs::format::Layout;
use vexfs::format::record::{decode, encode};

fn check<T: bincode::Encode + bincode::Decode<()>>(bytes: &[u8]) {
    if let Ok(record) = decode::<T>("fuzz", bytes) {
        assert_eq!(encode(&record), bytes);
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((first, bytes)) = input.split_first() else { return };
    match first % 5 {
        0 => check::<(u32, i64)>(bytes),
        1 => check::<Vec<u8>>(bytes),
        2 => check::<Option<String>>(bytes),
        3 => check::<Vec<(String, Option<Vec<u32>>)>>(bytes),
        _ => check::<Layout>(bytes),
    }
});
