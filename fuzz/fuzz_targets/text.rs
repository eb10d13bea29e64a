//! Bytes as one vector of text numbers.
//!
//! What is accepted stays within the limit, and is parsed alike after it was printed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vexfs::format::{Limits, check_vector, parse_text};

fuzz_target!(|input: &[u8]| {
    let limits = Limits { max_dim: 100, ..Limits::default() };
    let Ok(values) = parse_text(input, &limits) else { return };
    assert!((1..=100).contains(&values.len()));
    if check_vector(0, &values, false).is_ok() {
        let printed = format!("{values:?}");
        assert_eq!(parse_text(printed.as_bytes(), &limits).ok(), Some(values));
    }
});
