//! Segment headers, control files, backup labels, timeline histories; any bytes at all.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../tests/faults/anything.rs"]
mod anything;

fuzz_target!(|data: &[u8]| anything::header(data));
