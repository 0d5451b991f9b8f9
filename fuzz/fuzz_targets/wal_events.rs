//! Any bytes at all, as segments and as what segments leave behind: no panic, no endless loop, no unbounded memory.
//!
//! The first byte chooses how the rest is read; on request the pages get the headers that they should have, and
//! serialised states their checksum.
#![no_main]

mod pages;

use libfuzzer_sys::fuzz_target;
use pages::{MAGICS, repair_headers};
use walden::postgres::wal::events::{Contribution, EventOptions, EventScanner, Tracker};
use walden::postgres::wal::{ReaderOptions, RecordReader};
use walden::postgres::{TimelineId, WalSegmentName, WalSegmentSize};

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let size = WalSegmentSize::new(1 << 20).expect("a size");
    let name = WalSegmentName::from_number(TimelineId(1), 3, size);
    let mut tracker = Tracker::new(TimelineId(1), name.start(size), EventOptions::default());
    let _ = Contribution::from_bytes(rest).map(|contribution| tracker.clone().advance(&contribution));
    let _ = Tracker::from_bytes(rest, EventOptions::default());
    let mut segment = rest.to_vec();
    if how & 1 != 0 {
        repair_headers(&mut segment, MAGICS[usize::from(how >> 4) % MAGICS.len()]);
    }
    let mut reader = RecordReader::new(ReaderOptions { check_crc: how & 2 != 0 }, None);
    let mut scanner = EventScanner::new(EventOptions { min_rows: 2, ..EventOptions::default() });
    segment.chunks(5000).for_each(|chunk| reader.push(chunk, &mut scanner));
    let found = scanner.finish(name, size, reader.finish().carry);
    let bytes = found.to_bytes();
    assert_eq!(Contribution::from_bytes(&bytes).as_ref(), Ok(&found));
    tracker.advance(&found).expect("in order");
    Tracker::from_bytes(&tracker.to_bytes(), EventOptions::default()).expect("what was written");
});
