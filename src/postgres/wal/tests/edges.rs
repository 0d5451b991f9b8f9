//! Records on the edges of pages and segments, and the ways in which a segment ends.

use proptest::prelude::*;

use super::super::super::{Lsn, PgTimestamp};
use super::super::{ReadOutcome, SegmentEnd, Stop, StopReason, summarize};
use super::writer::{SEGMENT, Writer};
use super::{lsns, read, read_all};

const COMMIT: (u8, u8) = (1, 0);

fn commit(writer: &mut Writer, xid: u32, time: i64) -> Lsn {
    writer.main_data(COMMIT.0, COMMIT.1, xid, &time.to_le_bytes())
}

#[test]
fn headers_split_between_pages_and_segments() {
    for left in [8, 16, 24, 32] {
        let mut writer = Writer::new();
        writer.fill_page(left);
        commit(&mut writer, 1, 10);
        writer.fill_segment(left);
        let split = commit(&mut writer, 2, 20);
        commit(&mut writer, 3, 30);
        let segments = writer.segments();
        assert_eq!(split, Lsn(4 * SEGMENT as u64 - left as u64));
        let (records, outcome) = read_all(&segments, 1000);
        assert_eq!(records, writer.written, "{left} bytes left");
        assert!(matches!(outcome.end, SegmentEnd::Stopped(Stop { reason: StopReason::Zeros, .. })));
    }
}

#[test]
fn a_commit_that_crosses_segments_counts_in_the_second() {
    let mut writer = Writer::new();
    commit(&mut writer, 1, 10);
    writer.fill_segment(16);
    let split = commit(&mut writer, 2, 20);
    commit(&mut writer, 3, 15);
    let segments = writer.segments();

    let (first, carry) = summarize(&segments[0], None);
    assert_eq!((first.commits, first.bad_record), (1, None));
    let carry = carry.unwrap();
    assert_eq!(carry.unfinished_record(), Some(split));
    assert_eq!(carry.position(), Lsn(4 * SEGMENT as u64));

    let (second, _) = summarize(&segments[1], Some(carry));
    assert_eq!(second.commits, 2);
    let (first, last) = (second.first_commit.unwrap(), second.last_commit.unwrap());
    assert_eq!((first.lsn, first.xid, first.time), (split, 2, PgTimestamp(20)));
    assert_eq!((last.xid, last.time), (3, PgTimestamp(15)));
    assert_eq!(second.min_commit_time, Some(PgTimestamp(15)));
    assert_eq!(second.max_commit_time, Some(PgTimestamp(20)));

    let (alone, _) = summarize(&segments[1], None);
    assert_eq!(alone.commits, 1, "without the carry the rest of the record is skipped");
}

#[test]
fn a_record_longer_than_a_segment() {
    let mut writer = Writer::new();
    commit(&mut writer, 1, 10);
    let long = writer.main_data(21, 0, 7, &vec![0xA5; 2 * SEGMENT + 12345]);
    let after = commit(&mut writer, 2, 20);
    let segments = writer.segments();
    let mut seen = Vec::new();
    let mut carry = None;
    for segment in &segments {
        let (summary, next) = summarize(segment, carry);
        seen.push((summary.records, summary.commits));
        carry = next;
    }
    assert_eq!(seen, [(1, 1), (0, 0), (2, 1)]);

    let (records, outcome) = read(&segments[1], usize::MAX, None);
    assert_eq!((records.len(), outcome.end, outcome.carry), (0, SegmentEnd::Full, None));
    let (records, _) = read(&segments[2], usize::MAX, None);
    assert_eq!(lsns(&records), [after]);
    assert!(long < after);
}

#[test]
fn a_transaction_with_many_subtransactions_is_kept_whole() {
    let mut writer = Writer::new();
    let mut data = 99i64.to_le_bytes().to_vec();
    data.extend(2u32.to_le_bytes());
    data.extend(400_000u32.to_le_bytes());
    data.extend((0..400_000u32).flat_map(u32::to_le_bytes));
    writer.main_data(1, 0x80, 5, &data);
    let (records, _) = read_all(&writer.segments(), 12_345);
    assert_eq!(records, writer.written);
}

#[test]
fn a_switch_ends_the_segment_and_the_next_goes_on_from_it() {
    let mut writer = Writer::new();
    commit(&mut writer, 1, 10);
    writer.switch();
    commit(&mut writer, 2, 20);
    let segments = writer.segments();
    let (summary, carry) = summarize(&segments[0], None);
    assert!(summary.switched);
    assert_eq!((summary.bad_record, summary.valid_end), (None, Lsn(4 * SEGMENT as u64)));
    let (summary, _) = summarize(&segments[1], carry);
    assert_eq!(summary.commits, 1);
}

#[test]
fn a_switch_on_the_edge_ends_the_segment_in_which_it_ends() {
    let mut writer = Writer::new();
    writer.fill_segment(8);
    writer.switch();
    commit(&mut writer, 2, 20);
    let segments = writer.segments();
    assert_eq!(segments.len(), 3);
    let (records, _) = read_all(&segments, 4096);
    assert_eq!(records, writer.written);
}

#[test]
fn a_record_that_a_crash_cut_off_is_dropped() {
    for left in [16, 400] {
        let mut writer = Writer::new();
        commit(&mut writer, 1, 10);
        writer.fill_page(left);
        writer.main_data(10, 0, 7, &vec![1; 20_000]);
        writer.crash_in_last_record();
        commit(&mut writer, 2, 20);
        writer.fill_segment(left);
        writer.main_data(10, 0, 7, &vec![1; 20_000]);
        writer.crash_in_last_record();
        commit(&mut writer, 3, 30);
        let (records, outcome) = read_all(&writer.segments(), 8192);
        assert_eq!(records, writer.written);
        assert_eq!(outcome.broken_carry, None);
    }
}

#[test]
fn a_record_that_the_next_segment_does_not_continue_is_reported() {
    let mut writer = Writer::new();
    writer.fill_segment(64);
    let cut = writer.main_data(10, 0, 7, &vec![1; 20_000]);
    let (_, outcome) = read(&writer.segments()[0], usize::MAX, None);

    let mut other = Writer::new();
    other.fill_segment(0);
    commit(&mut other, 2, 20);
    let (records, outcome) = read(&other.segments()[1], usize::MAX, outcome.carry);
    let page = Lsn(4 * SEGMENT as u64);
    assert_eq!(outcome.broken_carry, Some(Stop { lsn: cut, reason: StopReason::NotContinued { page } }));
    assert_eq!(records.len(), 1, "reading goes on behind it");
}

#[test]
fn a_carry_of_another_place_is_ignored() {
    let mut writer = Writer::new();
    writer.fill_segment(64);
    writer.main_data(10, 0, 7, &vec![1; SEGMENT + 1000]);
    commit(&mut writer, 2, 20);
    let segments = writer.segments();
    let (_, ReadOutcome { carry, .. }) = read(&segments[0], usize::MAX, None);
    let (records, outcome) = read(&segments[2], usize::MAX, carry);
    assert_eq!((records.len(), outcome.broken_carry), (1, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_record_is_read_however_it_lies_and_however_it_comes(
        sizes in prop::collection::vec(
            prop_oneof![8 => 0usize..300, 3 => 7000usize..9000, 1 => 0usize..70_000],
            1..400,
        ),
        chunk in prop_oneof![1usize..100, 1usize..20_000, Just(8192), Just(usize::MAX)],
    ) {
        let mut writer = Writer::new();
        for (size, xid) in sizes.iter().zip(1..) {
            // Transactions' records are kept whole however long they are.
            writer.main_data(1, 0x50, xid, &vec![xid as u8; *size]);
        }
        let segments = writer.segments();
        let (records, outcome) = read_all(&segments, chunk);
        prop_assert_eq!(&records, &writer.written);
        let whole = read_all(&segments, usize::MAX);
        prop_assert_eq!(whole, (records, outcome));
    }
}

#[test]
fn byte_by_byte_is_the_same_as_whole() {
    let mut writer = Writer::new();
    for xid in 1..3000 {
        commit(&mut writer, xid, i64::from(xid));
        writer.main_data(10, 0x10, xid, &vec![0x77; xid as usize % 911]);
    }
    let segments = writer.segments();
    assert_eq!(read_all(&segments, 1), read_all(&segments, usize::MAX));
}
