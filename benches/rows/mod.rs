//! Rows of segments that were never there.

#![allow(dead_code, clippy::expect_used)]

use std::ops::Range;
use walden::index::{
    ArchivedRow, DatabaseName, EventKind, EventRelation, EventRow, Fingerprint, Index, RelationName,
    RepositoryStamp, SegmentFacts,
};
use walden::postgres::{Lsn, SystemIdentifier, TimelineId};

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

/// Returns the names of the pieces of a made-up backup that begins and ends in the segment number `first`, and its
/// `backup.json`.
pub fn backup_summary(
    sysid: SystemIdentifier,
    id: &str,
    first: u64,
    stop: jiff::Timestamp,
    pieces: u64,
) -> (Vec<String>, String) {
    let object = |name: &str| serde_json::json!({ "name": name, "size": 1, "crc32": "8cdc1683" });
    let pieces: Vec<String> = (0..pieces).map(|piece| format!("data/{piece:07}.lz4.age")).collect();
    let lsn = |offset: u64| format!("{:X}/{:X}", first >> 8, ((first & 0xff) << 24) + offset);
    let summary = serde_json::json!({
        "format": 1, "id": id, "cluster": "main", "system_identifier": sysid, "major_version": 17,
        "server_version": "17.0", "walden_version": "0", "label": "l", "from_standby": false, "timeline": 1,
        "start_lsn": lsn(40), "stop_lsn": lsn(4000), "checkpoint_lsn": lsn(80),
        "start_time": stop, "stop_time": stop, "next_xid": 7, "wal_segment_size": 16 << 20,
        "data_checksums": true, "encrypted": true, "ending": ".lz4.age", "data_dir": "/d", "size": 1,
        "stored_size": 1, "files": 1, "manifest": object("manifest.jsonl.lz4.age"),
        "pieces": pieces.iter().map(|name| object(name)).collect::<Vec<_>>(),
    });
    (pieces, summary.to_string())
}

/// Records an event in every twentieth of the segments, and names of a hundred tables.
pub fn fill_events(index: &Index, segments: Range<u64>, sysid: SystemIdentifier) {
    const TABLES: u32 = 100;
    let relations: Vec<RelationName> = (0..TABLES)
        .map(|number| RelationName {
            database: 5,
            oid: 20_000 + number,
            tablespace: 1663,
            filenode: 20_000 + number,
            kind: 'r',
            name: format!("public.t{number}"),
            seen: (0, 1),
        })
        .collect();
    let databases = [DatabaseName { oid: 5, name: "app".to_owned(), seen: (0, 1) }];
    index.record_names(sysid, &databases, &relations).expect("record names");
    let event = |at: u64| EventRow {
        timeline: TimelineId(1),
        kind: EventKind::Delete,
        time: at as i64 * 1_000_000,
        lsn: Lsn((at << 24) + 4096),
        end_lsn: Lsn((at << 24) + 4200),
        xid: at as u32 + 1000,
        database: 5,
        rows: 5000,
        name: String::new(),
        relations: vec![EventRelation {
            tablespace: 1663,
            filenode: 20_000 + at as u32 / 20 % TABLES,
            rows: 5000,
            ..EventRelation::default()
        }],
        uncertain: false,
    };
    let events: Vec<EventRow> = segments.step_by(20).map(event).collect();
    index.record_events(sysid, &events).expect("record events");
}
