//! Bytes as a collection's configuration: what is accepted reads back alike after it was rendered.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vexfs::collection::Schema;

fuzz_target!(|input: &[u8]| {
    if let Ok(schema) = Schema::parse(input) {
        assert_eq!(Schema::parse(schema.render(None).as_bytes()).ok(), Some(schema));
    }
});
