//! Objects: age and LZ4 frames; any bytes at all.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use walden::codec::{Opener, generate_identity};

#[allow(dead_code)]
#[path = "../../tests/faults/anything.rs"]
mod anything;

static OPENER: LazyLock<Opener> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("walden-fuzz-identity-{}", std::process::id()));
    std::fs::write(&path, generate_identity().0).expect("write an identity");
    let opener = Opener::from_identity_file(&path).expect("read it");
    std::fs::remove_file(&path).expect("remove it");
    opener
});

fuzz_target!(|data: &[u8]| anything::object(data, &OPENER));
