//! Configuration files; any bytes at all.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../tests/faults/anything.rs"]
mod anything;

fuzz_target!(|data: &[u8]| anything::config(data));
