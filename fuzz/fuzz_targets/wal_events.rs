//! Any bytes at all, as segments and as what segments leave behind: no panic, no endless loop, no unbounded memory.
//!
//! The first byte chooses how the rest is read; on request the pages get the headers that they should have, and
//! serialised states their checksum.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walden::postgres::wal::events::{Contribution, EventOptions, EventScanner, Tracker};
use walden::postgres::wal::{ReaderOptions, RecordReader};
use walden::postgres::{TimelineId, WalSegmentName, WalSegmentSize};

const PAGE: usize = 8192;
const MAGICS: [u16; 6] = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];

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

fn repair_headers(segment: &mut [u8], magic: u16) {
    for (page, number) in segment.chunks_mut(PAGE).zip(0u64..) {
        if page.len() < 40 {
            return;
        }
        page[..2].copy_from_slice(&magic.to_le_bytes());
        page[2] = (page[2] & 0x0D) | u8::from(number == 0) << 1;
        page[3] = 0;
        page[4..8].copy_from_slice(&1u32.to_le_bytes());
        page[8..16].copy_from_slice(&((3 << 20) + number * PAGE as u64).to_le_bytes());
        if number == 0 {
            page[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
            page[36..40].copy_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }
}
