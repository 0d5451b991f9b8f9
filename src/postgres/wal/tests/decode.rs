//! What records say: transactions, block references, the log's own records.

use proptest::prelude::*;

use super::super::super::{Lsn, PgTimestamp, TimelineId};
use super::super::{
    BlockReference, Checkpoint, EndOfRecovery, Record, RelFileLocator, RestorePoint, TransactionEnd,
    TransactionOutcome,
};
use super::writer::main_data;

fn record(major_version: u32, rmid: u8, info: u8, xid: u32, body: &[u8]) -> Record<'_> {
    let total_len = 24 + body.len() as u32;
    Record { lsn: Lsn(0x100), end_lsn: Lsn(0x200), xid, rmid, info, total_len, major_version, body }
}

/// Puts fields of four bytes end to end.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn transaction(time: i64, rest: &[u32]) -> Vec<u8> {
    main_data(&[time.to_le_bytes().to_vec(), words(rest)].concat())
}

#[test]
fn a_plain_commit_has_a_time_only() {
    let body = transaction(123, &[]);
    let end = TransactionEnd::decode(&record(15, 1, 0x00, 77, &body)).unwrap();
    assert_eq!((end.outcome, end.xid, end.was_prepared), (TransactionOutcome::Committed, 77, false));
    assert_eq!((end.time, end.database, end.is_complete), (PgTimestamp(123), None, true));
    assert_eq!((end.subxids().len(), end.dropped_relations().len()), (0, 0));
}

#[test]
fn a_commit_lists_subtransactions_and_dropped_relations() {
    // Database, two subtransactions, one relation, one item of statistics, one invalidation, prepared as 55.
    let statistics_15 = [1, 2, 3, 4];
    let statistics_18 = [1, 2, 3, 4, 5];
    for (major_version, statistics) in [(15, &statistics_15[..]), (17, &statistics_15), (18, &statistics_18)]
    {
        let mut rest = vec![0x11F, 5, 1663, 2, 78, 79, 1, 1663, 5, 16384];
        rest.extend(statistics);
        rest.extend([1, 9, 9, 9, 9, 55]);
        let body = transaction(-5, &rest);
        let end = TransactionEnd::decode(&record(major_version, 1, 0x80 | 0x30, 0, &body)).unwrap();
        assert!(end.is_complete, "{major_version}");
        assert_eq!((end.xid, end.was_prepared, end.database), (55, true, Some(5)));
        assert!(end.subxids().eq([78, 79]));
        let dropped = RelFileLocator { tablespace: 1663, database: 5, relation: 16384 };
        assert!(end.dropped_relations().eq([dropped]));
        assert_eq!(dropped.to_string(), "1663/5/16384");
    }
}

#[test]
fn a_count_beyond_the_record_leaves_time_and_outcome() {
    let body = transaction(9, &[0x02, u32::MAX, 78]);
    let end = TransactionEnd::decode(&record(15, 1, 0x80 | 0x20, 77, &body)).unwrap();
    assert_eq!((end.outcome, end.time), (TransactionOutcome::Aborted, PgTimestamp(9)));
    assert!(!end.is_complete);
    assert_eq!(end.subxids().len(), 0);
}

#[test]
fn other_records_end_no_transaction() {
    let body = transaction(9, &[]);
    for (rmid, info) in [(1, 0x10), (1, 0x50), (1, 0x60), (0, 0x00), (10, 0x00)] {
        assert!(TransactionEnd::decode(&record(15, rmid, info, 77, &body)).is_none(), "{rmid} {info}");
    }
}

#[test]
fn block_references_of_every_shape() {
    let relation = RelFileLocator { tablespace: 1663, database: 5, relation: 16384 };
    let locator = words(&[1663, 5, 16384]);
    // Compressed with a hole: a hole length follows; the flag that says so moved in 15.
    for (major_version, image_info) in [(14, 0x03), (15, 0x05), (18, 0x11)] {
        let mut body = vec![253, 1, 0, 252, 9, 0, 0, 0];
        body.extend([0, 0x20, 3, 0]);
        body.extend(&locator);
        body.extend(words(&[42]));
        body.extend([1, 0x80 | 0x40 | 0x10 | 2, 0, 0, 100, 0, 0, 0, image_info, 8, 0]);
        body.extend(words(&[7]));
        body.extend([255, 4]);
        body.extend([1, 2, 3]);
        body.extend([0; 100]);
        body.extend([0xDE, 0xAD, 0xBE, 0xEF]);
        let record = record(major_version, 10, 0x10, 77, &body);
        let mut references = record.block_references();
        let first = BlockReference {
            id: 0,
            relation,
            fork: 0,
            block_number: 42,
            has_image: false,
            will_init: false,
            data_len: 3,
        };
        assert_eq!(references.next(), Some(first));
        let second = BlockReference {
            id: 1,
            fork: 2,
            block_number: 7,
            has_image: true,
            will_init: true,
            data_len: 0,
            ..first
        };
        assert_eq!(references.next(), Some(second));
        assert_eq!(references.next(), None);
        assert_eq!((references.top_level_xid(), references.is_broken()), (Some(9), false));
        assert_eq!(record.main_data(), Some(&[0xDE, 0xAD, 0xBE, 0xEF][..]));
    }
}

#[test]
fn a_record_of_which_the_end_is_missing_still_names_its_blocks() {
    let mut body = vec![0, 0x20, 0xFF, 0];
    body.extend(words(&[1663, 5, 16384, 42]));
    body.extend([255, 8]);
    let mut record = record(15, 10, 0x10, 77, &body);
    record.total_len += 255 + 8;
    assert!(!record.is_complete());
    let mut references = record.block_references();
    assert_eq!(references.by_ref().count(), 1);
    assert!(!references.is_broken());
    assert_eq!(record.main_data(), Some(&[][..]));
}

#[test]
fn a_body_that_makes_no_sense_is_broken() {
    for body in
        [&[33][..], &[0, 0x80, 0, 0, 1, 0, 0, 0], &[255, 9, 1], &[0, 0x20], &[254, 0xFF, 0xFF, 0xFF, 0xFF]]
    {
        let record = record(15, 10, 0, 0, body);
        let mut references = record.block_references();
        assert_eq!(references.by_ref().count(), 0);
        assert!(references.is_broken(), "{body:?}");
        assert_eq!(record.main_data(), None);
    }
}

#[test]
fn restore_points_checkpoints_and_ends_of_recovery() {
    let mut data = 77i64.to_le_bytes().to_vec();
    data.extend(b"before migration");
    data.resize(72, 0);
    let body = main_data(&data);
    let point = RestorePoint::decode(&record(15, 0, 0x70, 0, &body)).unwrap();
    assert_eq!((point.name.as_str(), point.time), ("before migration", PgTimestamp(77)));

    let mut data = 0x1234u64.to_le_bytes().to_vec();
    data.extend(words(&[2, 1]));
    data.resize(64, 0);
    data.extend(946_684_801i64.to_le_bytes());
    data.resize(88, 0);
    let body = main_data(&data);
    let shutdown = record(15, 0, 0x00, 0, &body);
    let checkpoint = Checkpoint::decode(&shutdown).unwrap();
    assert_eq!((checkpoint.redo, checkpoint.time), (Lsn(0x1234), PgTimestamp(1_000_000)));
    assert!(checkpoint.shutdown);
    let end = EndOfRecovery::decode(&shutdown).unwrap();
    assert_eq!((end.timeline, end.previous), (TimelineId(2), TimelineId(1)));
    assert!(!Checkpoint::decode(&record(15, 0, 0x10, 0, &body)).unwrap().shutdown);
    assert!(Checkpoint::decode(&record(15, 10, 0x10, 0, &body)).is_none());

    let mut data = 5i64.to_le_bytes().to_vec();
    data.extend(words(&[3, 2]));
    let body = main_data(&data);
    let end = EndOfRecovery::decode(&record(15, 0, 0x90, 0, &body)).unwrap();
    assert_eq!((end.time, end.timeline, end.previous), (PgTimestamp(5), TimelineId(3), TimelineId(2)));
}

proptest! {
    #[test]
    fn decoding_never_panics(
        body in prop::collection::vec(prop_oneof![Just(0u8), Just(255), Just(254), any::<u8>()], 0..200),
        rmid in prop_oneof![Just(0u8), Just(1), any::<u8>()],
        info: u8,
        more in prop_oneof![3 => Just(0u32), 1 => any::<u32>()],
        major_version in 13u32..19,
    ) {
        for body in [body.clone(), main_data(&body)] {
            let mut record = record(major_version, rmid, info, 1, &body);
            record.total_len = record.total_len.saturating_add(more);
            let _ = (record.main_data(), record.block_references().count());
            let _ = TransactionEnd::decode(&record).map(|end| end.subxids().count() + end.dropped_relations().count());
            let _ = (Checkpoint::decode(&record), EndOfRecovery::decode(&record), RestorePoint::decode(&record));
        }
    }
}
