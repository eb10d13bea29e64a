//! Bytes as a condition of `where`, and its verdict about attributes that are made of what is left.
//!
//! What is accepted is read alike after it was shown, says the same of every file then, and of a negation the opposite.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vexfs::collection::Attributes;
use vexfs::search::condition::{parse, parse_option};

fuzz_target!(|input: &[u8]| {
    let (text, values) = match input.iter().position(|&byte| byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, &[][..]),
    };
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok((condition, len)) = parse_option(text) {
        assert!(text[len..].is_empty() || text[len..].starts_with(','));
        assert_eq!(parse(&text[..len]).ok().as_ref(), Some(&condition));
    }
    let Ok(condition) = parse(text) else { return };
    let again = parse(&condition.to_string()).expect("what is shown can be read");
    assert_eq!(again, condition);
    let names = [&b"a"[..], b"b", b"lang", b"year"];
    let values = values.split(|&byte| byte == b'\n');
    let attributes = Attributes::new(names.into_iter().zip(values), &Arc::default()).expect("they are few");
    let holds = condition.holds(&attributes);
    assert_eq!(again.holds(&attributes), holds);
    if let Ok(negation) = parse(&format!("!({text})")) {
        assert_ne!(negation.holds(&attributes), holds);
    }
});
