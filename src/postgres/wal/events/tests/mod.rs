//! What transactions come to, on WAL made here, whose edges are anywhere. The live tests have that of real servers.

mod model;

use proptest::prelude::*;

use super::super::super::{Lsn, PgTimestamp, TimelineId, WalSegmentName, WalSegmentSize};
use super::super::tests::writer::{SEGMENT, Writer, main_data};
use super::super::{ReaderOptions, RecordReader, RelFileLocator};
use super::{Contribution, Event, EventKind, EventOptions, EventScanner, Tracker};

const HEAP: u8 = 10;
const TRANSACTION: u8 = 1;
const DELETE: u8 = 0x10;
const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const WITH_LISTS: u8 = 0x80;

fn options() -> EventOptions {
    EventOptions::default()
}

fn size() -> WalSegmentSize {
    WalSegmentSize::new(SEGMENT as u32).unwrap()
}

fn name(number: usize) -> WalSegmentName {
    WalSegmentName::from_number(TimelineId(1), 3 + number as u64, size())
}

fn table(relation: u32) -> RelFileLocator {
    RelFileLocator { tablespace: 1663, database: 5, relation }
}

/// Returns the body of a record that changes a row: one block, then the main data.
fn row(relation: u32, data: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0];
    for word in [1663, 5, relation, 42] {
        body.extend(u32::to_le_bytes(word));
    }
    body.extend([255, data.len() as u8]);
    body.extend(data);
    body
}

fn delete(wal: &mut Writer, xid: u32, relation: u32) {
    wal.record(HEAP, DELETE, xid, &row(relation, &[0, 0, 0, 0, 7, 0, 0, 0]));
}

/// Ends a transaction with these subtransactions and files.
fn end(wal: &mut Writer, operation: u8, xid: u32, time: i64, subxids: &[u32], dropped: &[u32]) -> Lsn {
    let mut data = time.to_le_bytes().to_vec();
    let mut words = vec![u32::from(!subxids.is_empty()) << 1 | u32::from(!dropped.is_empty()) << 2];
    if !subxids.is_empty() {
        words.push(subxids.len() as u32);
        words.extend(subxids);
    }
    if !dropped.is_empty() {
        words.push(dropped.len() as u32);
        words.extend(dropped.iter().flat_map(|relation| [1663, 5, *relation]));
    }
    data.extend(words.into_iter().flat_map(u32::to_le_bytes));
    wal.record(TRANSACTION, operation | WITH_LISTS, xid, &main_data(&data))
}

/// Reads a segment by itself.
fn contribution(number: usize, segment: &[u8], check_crc: bool) -> Contribution {
    let mut reader = RecordReader::new(ReaderOptions { check_crc }, None);
    let mut scanner = EventScanner::new(options());
    reader.push(segment, &mut scanner);
    scanner.finish(name(number), size(), reader.finish().carry)
}

/// Returns the events of segments that were each read by itself.
fn each_by_itself(segments: &[Vec<u8>]) -> Vec<Event> {
    let mut tracker = Tracker::new(TimelineId(1), name(0).start(size()), options());
    let mut events = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let bytes = contribution(number, segment, true).to_bytes();
        events.extend(tracker.advance(&Contribution::from_bytes(&bytes).unwrap()).unwrap());
        tracker = Tracker::from_bytes(&tracker.to_bytes(), options()).unwrap();
    }
    events
}

fn in_one_pass(segments: &[Vec<u8>]) -> Vec<Event> {
    let mut scanner = EventScanner::new(options());
    let mut carry = None;
    for segment in segments {
        let mut reader = RecordReader::new(ReaderOptions::default(), carry);
        reader.push(segment, &mut scanner);
        carry = reader.finish().carry;
    }
    let all = scanner.finish(name(0), size(), carry);
    Tracker::new(TimelineId(1), name(0).start(size()), options()).advance(&all).unwrap()
}

#[test]
fn a_commit_that_is_split_over_two_segments_counts_once_both_are_known() {
    let many: Vec<u32> = (1000..8000).collect();
    for (left, subxids) in
        (0..=80).step_by(8).map(|left| (left, &[][..])).chain([(24, &many[..]), (4000, &many)])
    {
        let mut wal = Writer::new();
        (0..1200).for_each(|_| delete(&mut wal, 700, 20_000));
        wal.fill_segment(left);
        let lsn = end(&mut wal, COMMIT, 700, 99, subxids, &[]);
        let after = wal.main_data(HEAP, 0, 9, &[]);
        let events = each_by_itself(&wal.segments());
        let [event] = &events[..] else { panic!("{left}: {events:?}") };
        assert_eq!((event.kind, event.rows, event.xid), (EventKind::Delete, 1200, 700), "{left}");
        assert_eq!((event.lsn, event.time), (lsn, PgTimestamp(99)), "{left}");
        assert!(event.end_lsn <= after && after.0 - event.end_lsn.0 <= 40, "{left}: {event:?}, {after}");
        assert_eq!(events, in_one_pass(&wal.segments()), "{left}");
    }
}

#[test]
fn a_hole_makes_what_was_open_uncertain_and_nothing_else() {
    let mut wal = Writer::new();
    (0..1500).for_each(|_| delete(&mut wal, 700, 20_000));
    wal.switch();
    wal.switch();
    end(&mut wal, COMMIT, 700, 99, &[], &[]);
    // Transactions from 900 on are new.
    let running = [0u32, 0, 0, 900, 900, 899].map(u32::to_le_bytes).concat();
    wal.main_data(8, 0x10, 0, &running);
    (0..1500).for_each(|_| delete(&mut wal, 900, 20_000));
    end(&mut wal, COMMIT, 900, 100, &[], &[]);
    wal.switch();
    let segments = wal.segments();
    let mut tracker = Tracker::new(TimelineId(1), name(0).start(size()), options());
    assert!(tracker.advance(&contribution(0, &segments[0], true)).unwrap().is_empty());
    let last = contribution(2, &segments[2], true);
    let refused = tracker.clone().advance(&last).unwrap_err();
    assert_eq!((refused.expected, refused.found), (name(1).start(size()), name(2).start(size())));
    tracker.jump(TimelineId(1), name(2).start(size()));
    let found: Vec<_> = tracker
        .advance(&last)
        .unwrap()
        .into_iter()
        .map(|event| (event.xid, event.rows, event.is_uncertain))
        .collect();
    assert_eq!(found, [(700, 1500, true), (900, 1500, false)]);
    assert!(!tracker.is_uncertain());
}

#[test]
fn what_a_crash_ended_is_forgotten() {
    let mut wal = Writer::new();
    (0..1500).for_each(|_| delete(&mut wal, 700, 20_000));
    let running = [0u32, 0, 0, 701, 701, 700].map(u32::to_le_bytes).concat();
    wal.main_data(8, 0x10, 0, &running);
    let segments = wal.segments();
    let mut tracker = Tracker::new(TimelineId(1), name(0).start(size()), options());
    tracker.advance(&contribution(0, &segments[0], true)).unwrap();
    assert!(tracker.to_bytes().len() < 300, "{}", tracker.to_bytes().len());
}

#[test]
fn dropped_files_without_a_trace_in_the_catalogs_are_an_uncertain_event() {
    let mut wal = Writer::new();
    end(&mut wal, COMMIT, 700, 99, &[], &[20_000]);
    let events = each_by_itself(&wal.segments());
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].kind, events[0].is_uncertain), (EventKind::DropTable, true));
    assert_eq!(events[0].relations[0].file, table(20_000));
    assert!(events[0].relations[0].may_be_no_table);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_segments_and_states_never_panic(
        flips in prop::collection::vec((0..SEGMENT, any::<u8>()), 1..200),
        near in prop::collection::vec((0..400usize, any::<u8>()), 0..40),
    ) {
        let mut wal = Writer::new();
        (0..50).for_each(|xid| delete(&mut wal, 700 + xid % 7, 1259 + xid % 3));
        end(&mut wal, COMMIT, 700, 1, &[701, 702], &[20_000, 20_001]);
        wal.main_data(8, 0x00, 0, &[1, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0]);
        wal.main_data(7, 0x00, 0, &[7; 80]);
        wal.main_data(2, 0x10, 705, &[7; 16]);
        wal.fill_segment(24);
        end(&mut wal, ABORT, 703, 1, &[704], &[]);
        let mut segments = wal.segments();
        for (at, byte) in flips {
            segments[0][at] ^= byte;
        }
        for (at, byte) in near {
            segments[0][100 + at * 7] = byte;
        }
        let mut tracker = Tracker::new(TimelineId(1), name(0).start(size()), options());
        for (number, segment) in segments.iter().enumerate() {
            let contribution = contribution(number, segment, false);
            let mut bytes = contribution.to_bytes();
            prop_assert!(bytes.len() <= 256 << 10);
            let _ = tracker.advance(&contribution);
            // Bytes that are wrong in one place, with the right checksum.
            let (middle, end) = (bytes.len() / 2, bytes.len() - 4);
            bytes[middle] ^= 0x55;
            let crc = crc32c::crc32c(&bytes[..end]);
            bytes[end..].copy_from_slice(&crc.to_le_bytes());
            if let Ok(contribution) = Contribution::from_bytes(&bytes) {
                let _ = tracker.clone().advance(&contribution);
            }
        }
        let mut state = tracker.to_bytes();
        prop_assert!(Tracker::from_bytes(&state, options()).is_ok());
        let middle = state.len() / 2;
        state[middle] ^= 1;
        prop_assert!(Tracker::from_bytes(&state, options()).is_err());
    }

    #[test]
    fn any_bytes_are_a_contribution_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..300), tag: bool) {
        bytes.splice(0..0, if tag { *b"WLC1" } else { *b"WLT1" });
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let _ = Contribution::from_bytes(&bytes);
        let _ = Tracker::from_bytes(&bytes, options());
    }
}
