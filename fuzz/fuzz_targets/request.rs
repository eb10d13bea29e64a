//! Bytes as a search request: a line of the `query` file, a dropped query file, and an option element.
//!
//! What is accepted is within the limits, and an option element is read alike after it was written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vexfs::search::request::{Line, RequestLimits, parse_query_file};
use vexfs::search::transaction::Transaction;
use vexfs::search::{Options, Target};

const LIMITS: RequestLimits = RequestLimits { max_k: 100, max_dim: 64, max_bytes: 1 << 16 };

fuzz_target!(|input: &[u8]| {
    if let Ok(Line::Header(header)) = Line::parse(input, &LIMITS) {
        assert!(header.body_bytes() as u64 <= LIMITS.max_bytes && header.dim <= LIMITS.max_dim);
    }
    for name in [&b"q"[..], b"q.npy", b"q.f32", b"q.fvecs", b"q.u8bin", b"q.vec"] {
        if let Ok(request) = parse_query_file(name, input, Some(4), &LIMITS)
            && let Target::Vectors { dim, values } = request.target
        {
            assert!(dim > 0 && values.len() % dim as usize == 0);
        }
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(options) = Options::parse_element(text)
        && options.max.is_none_or(|max| !max.is_nan())
    {
        let element = options.element();
        // Without options there is nothing between the commas to read.
        assert!(element == "@" || Options::parse_element(&element).ok() == Some(options));
    }
    let mut transaction = Transaction::default();
    let (first, second) = input.split_at(input.len() / 2);
    let _ = transaction.write(first, &LIMITS).and_then(|()| transaction.write(second, &LIMITS));
});
