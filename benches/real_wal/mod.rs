//! The WAL that `benches/peers.sh` makes with pgbench.

#![allow(dead_code, clippy::expect_used)]

use std::path::PathBuf;

/// Returns the directory that holds it: `WALDEN_BENCH_WAL`, else where `make bench` keeps it.
pub fn directory() -> PathBuf {
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench/wal");
    std::env::var_os("WALDEN_BENCH_WAL").map_or_else(|| kept.into(), PathBuf::from)
}

/// Returns the paths of its segments, in order.
pub fn paths() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory()) else {
        eprintln!("there is no WAL to measure with: benches/peers.sh --only wal makes it");
        std::process::exit(2);
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.len() == 24))
        .collect();
    paths.sort();
    paths
}

/// Returns `count` segments from the middle of the load.
pub fn segments(count: usize) -> Vec<Vec<u8>> {
    let paths = paths();
    let first = paths.len().saturating_sub(count) / 2;
    let read = |path: &PathBuf| std::fs::read(path).expect("read a segment");
    paths[first..].iter().take(count).map(read).collect()
}
