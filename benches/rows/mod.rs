//! Rows of segments that were never there.

#![allow(dead_code, clippy::expect_used)]

use std::ops::Range;
use walden::index::{ArchivedRow, Fingerprint, Index, RepositoryStamp, SegmentFacts};
use walden::postgres::{Lsn, SystemIdentifier};

pub const SYSID: SystemIdentifier = SystemIdentifier(7_000_000_000_000_000_001);

/// Returns the name of the segment number `at` of timeline 1, of 16 MiB each.
pub fn name(at: u64) -> String {
    format!("00000001{:08X}{:08X}", at >> 8, at & 0xff)
}

pub fn fingerprint(at: u64) -> Fingerprint {
    Fingerprint { device: 1, inode: at, size: 16 << 20, mtime_ns: at as i64, ctime_ns: at as i64 }
}

/// Records the segments as held by one repository.
pub fn record(index: &Index, segments: Range<u64>) {
    record_for(index, segments, SYSID, "file:///srv/walden", "id");
}

/// The same for a cluster and a repository of the caller's.
pub fn record_for(index: &Index, segments: Range<u64>, sysid: SystemIdentifier, url: &str, id: &str) {
    let copies = [RepositoryStamp { url: url.to_owned(), cluster_id: id.to_owned() }];
    let names: Vec<String> = segments.clone().map(name).collect();
    let facts: Vec<SegmentFacts> = segments
        .clone()
        .map(|at| SegmentFacts {
            commits: 1000,
            first_commit: Some(at as i64 * 1_000_000),
            last_commit: Some(at as i64 * 1_000_000 + 999_999),
            last_end: Some(at as i64 * 1_000_000 + 999_999),
            last_commit_lsn: Some(Lsn(at << 24)),
            ..SegmentFacts::default()
        })
        .collect();
    let rows: Vec<ArchivedRow<'_>> = segments
        .zip(names.iter().zip(&facts))
        .map(|(at, (name, facts))| ArchivedRow {
            sysid,
            name,
            crc: at as u32,
            fingerprint: fingerprint(at),
            stored_size: Some(4 << 20),
            facts: Some(facts),
            copies: &copies,
            lacking: Vec::new(),
        })
        .collect();
    index.record_archived(&rows).expect("record");
}

/// Records so many, a thousand in a transaction.
pub fn fill(index: &Index, count: u64) {
    fill_for(index, 0..count, SYSID, "file:///srv/walden", "id");
}

/// The same for a cluster and a repository of the caller's.
pub fn fill_for(index: &Index, segments: Range<u64>, sysid: SystemIdentifier, url: &str, id: &str) {
    let end = segments.end;
    for first in segments.step_by(1000) {
        record_for(index, first..(first + 1000).min(end), sysid, url, id);
    }
}
