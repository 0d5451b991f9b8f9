//! Damaged WAL, WAL that ends, and bytes that are no WAL.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::super::{BLOCK_SIZE, Lsn};
use super::super::{
    Carry, ReaderOptions, Record, RecordReader, SegmentEnd, Stop, StopReason, WalVersion, summarize,
};
use super::writer::{MAGIC_15, SEGMENT, Writer};
use super::{lsns, read};

/// Two segments of records of many lengths.
static SOME_WAL: LazyLock<Writer> = LazyLock::new(|| {
    let mut writer = Writer::new();
    for xid in 1..1500 {
        writer.main_data(1, 0x50, xid, &vec![xid as u8; (xid as usize * 37) % 1500]);
    }
    writer
});

#[test]
fn a_flipped_bit_is_found_at_its_record() {
    let writer = &*SOME_WAL;
    for index in [0, 1, 17, 500] {
        let record = &writer.written[index];
        let mut segment = writer.segments().swap_remove(0);
        // In the last byte of the body, which may be on the next page, but for an empty one.
        let at = (record.lsn.0 as usize) % SEGMENT + 24 + 3;
        segment[at] ^= 4;
        let (records, outcome) = read(&segment, usize::MAX, None);
        assert_eq!(records, writer.written[..index]);
        let SegmentEnd::Stopped(stop) = outcome.end else { panic!("{:?}", outcome.end) };
        assert_eq!(stop.lsn, record.lsn);
        assert!(matches!(stop.reason, StopReason::Checksum { .. }));
        assert!(!stop.reason.is_end_of_wal());
        assert_eq!(outcome.carry, None);

        let mut reader = RecordReader::new(ReaderOptions { check_crc: false }, None);
        let mut count = 0;
        reader.push(&segment, &mut |_: &Record<'_>| count += 1);
        assert_eq!(reader.finish().end, SegmentEnd::Full);
        assert!(count > index);
    }
}

#[test]
fn a_wrong_link_is_found() {
    let writer = &*SOME_WAL;
    let mut segment = writer.segments().swap_remove(0);
    let record = &writer.written[40];
    segment[record.lsn.0 as usize % SEGMENT + 8] ^= 8;
    let (records, outcome) = read(&segment, 999, None);
    assert_eq!(records.len(), 40);
    let SegmentEnd::Stopped(stop) = outcome.end else { panic!("{:?}", outcome.end) };
    let expected = writer.written[39].lsn;
    assert_eq!(stop.reason, StopReason::Previous { found: Lsn(expected.0 ^ 8), expected });
}

#[test]
fn a_page_of_the_files_former_life_ends_the_wal() {
    let writer = &*SOME_WAL;
    let mut segment = writer.segments().swap_remove(0);
    let page = 5 * BLOCK_SIZE;
    segment[page + 8..page + 16].copy_from_slice(&(SEGMENT as u64 + page as u64).to_le_bytes());
    let (records, outcome) = read(&segment, usize::MAX, None);
    let SegmentEnd::Stopped(Stop { lsn, reason }) = outcome.end else { panic!("{:?}", outcome.end) };
    assert!(matches!(reason, StopReason::PageAddress { .. }));
    assert!(reason.is_end_of_wal());
    assert_eq!(lsn, writer.written[records.len()].lsn, "the record that is cut off");
    assert_eq!(outcome.valid_end, lsn);
}

#[test]
fn zeros_end_the_wal_and_garbage_is_a_bad_record() {
    let mut writer = Writer::new();
    writer.main_data(1, 0x50, 1, &[1; 100]);
    let mut segment = writer.segments().swap_remove(0);
    let (summary, carry) = summarize(&segment, None);
    let bad = summary.bad_record.unwrap();
    assert!(bad.is_end_of_wal);
    assert_eq!((bad.lsn, summary.valid_end, carry), (summary.valid_end, bad.lsn, None));
    assert_eq!(bad.reason, "no record: zeros to the end of the page");

    let end = summary.valid_end.0 as usize % SEGMENT;
    segment[end] = 23;
    let (summary, _) = summarize(&segment, None);
    let bad = summary.bad_record.unwrap();
    assert!(!bad.is_end_of_wal);
    assert_eq!(bad.reason, "record has length 23, expected 24 to 1073741824");
}

#[test]
fn a_short_file_is_reported_as_one() {
    let segment = SOME_WAL.segments().swap_remove(0);
    let (_, outcome) = read(&segment[..3 * BLOCK_SIZE + 100], 77, None);
    let SegmentEnd::Stopped(stop) = outcome.end else { panic!("{:?}", outcome.end) };
    let found = 3 * BLOCK_SIZE as u64 + 100;
    assert_eq!(stop.reason, StopReason::Truncated { found, expected: SEGMENT as u64 });
    let (records, outcome) = read(&segment[..8191], 77, None);
    assert_eq!((records.len(), outcome.version), (0, None));
    assert!(matches!(outcome.end, SegmentEnd::Stopped(Stop { reason: StopReason::Header(_), .. })));
}

#[test]
fn an_unknown_version_is_no_failure() {
    let mut writer = Writer::of_version(0xD1FE);
    writer.main_data(1, 0x50, 1, &[1; 100]);
    let segment = writer.segments().swap_remove(0);
    let (records, outcome) = read(&segment, 10_000, None);
    assert_eq!((records.len(), outcome.end), (0, SegmentEnd::UnknownVersion));
    assert_eq!(outcome.version, Some(WalVersion::Unknown { magic: 0xD1FE }));
    let (summary, _) = summarize(&segment, None);
    assert_eq!((summary.magic, summary.major_version, summary.bad_record), (0xD1FE, None, None));
}

#[test]
fn the_first_page_of_a_real_segment() {
    let page = include_bytes!("../../../../tests/golden/wal-15-first-page");
    let (records, outcome) = read(page, usize::MAX, None);
    // What pg_waldump 15.18 lists from this page on.
    assert_eq!(outcome.version, Some(WalVersion::Known { magic: MAGIC_15, major_version: 15 }));
    assert_eq!(lsns(&records), [0x270, 0x2B0, 0x1308, 0x1348].map(|at| Lsn(0x0300_0000 + at)));
}

proptest! {
    #[test]
    fn damage_never_yields_a_record_that_was_not_written(
        at in 0..SEGMENT,
        bytes in prop::collection::vec(any::<u8>(), 1..40),
        chunk in 1usize..50_000,
    ) {
        let writer = &*SOME_WAL;
        let mut segment = writer.segments().swap_remove(0);
        let len = bytes.len().min(SEGMENT - at);
        segment[at..at + len].copy_from_slice(&bytes[..len]);
        let (records, outcome) = read(&segment, chunk, None);
        prop_assert_eq!(&records[..], &writer.written[..records.len()]);
        prop_assert_eq!(outcome.records, records.len() as u64);
    }

    #[test]
    fn garbage_behind_a_good_header_never_panics(
        body in prop::collection::vec(prop_oneof![Just(0u8), Just(8), Just(0xD1), any::<u8>()], 0..4000),
        at in 0usize..9000,
        check_crc: bool,
    ) {
        let mut segment = SOME_WAL.segments().swap_remove(0);
        let at = at + 40;
        segment[at..at + body.len()].copy_from_slice(&body);
        let mut reader = RecordReader::new(ReaderOptions { check_crc }, None);
        reader.push(&segment, &mut |record: &Record<'_>| {
            let _ = (record.main_data(), record.block_references().count());
        });
        let carry = reader.finish().carry;
        let mut reader = RecordReader::new(ReaderOptions { check_crc }, carry);
        reader.push(&segment, &mut |_: &Record<'_>| ());
        reader.finish();
    }

    #[test]
    fn garbage_is_no_wal(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
        let (summary, carry) = summarize(&bytes, None);
        prop_assert_eq!((summary.records, carry), (0, None));
    }

    #[test]
    fn a_damaged_carry_is_refused(at in 0usize..200, bit in 0u8..8, cut in 0usize..200) {
        let mut writer = Writer::new();
        writer.fill_segment(120);
        writer.main_data(1, 0x50, 1, &[1; 500]);
        let (_, outcome) = read(&writer.segments()[0], usize::MAX, None);
        let bytes = outcome.carry.unwrap().to_bytes();
        let mut damaged = bytes.clone();
        let at = at % bytes.len();
        damaged[at] ^= 1 << bit;
        prop_assert!(Carry::from_bytes(&damaged).is_err());
        prop_assert!(Carry::from_bytes(&bytes[..cut % bytes.len()]).is_err());
    }
}
