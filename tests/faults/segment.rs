//! Made-up WAL segments that Walden takes for real ones: right headers and page addresses, random content.

use walden::postgres::{SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};

pub const SYSID: SystemIdentifier = SystemIdentifier(7_301_234_567_890_123_456);
pub const SIZE: usize = 1 << 20;
const PAGE: usize = 8192;
/// Pages with content; the others hold a header only, which keeps compression and encryption short.
const FILLED: usize = 4;

pub fn segment_size() -> WalSegmentSize {
    WalSegmentSize::new(SIZE as u32).unwrap()
}

/// Returns the name of segment `number` of timeline 1.
pub fn name(number: u32) -> String {
    WalSegmentName::from_number(TimelineId(1), number.into(), segment_size()).to_string()
}

/// Returns a segment of that name; the same seed gives the same content.
pub fn segment(name: &str, seed: u64) -> Vec<u8> {
    let name: WalSegmentName = name.parse().unwrap();
    let start = name.start(segment_size()).0;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut content = vec![0; SIZE];
    // All of it is the middle of one long record, which is nothing to warn of.
    let mut rest = 1u32 << 24;
    for (page, number) in content.chunks_mut(PAGE).zip(0u64..) {
        if number < FILLED as u64 {
            random.fill(page);
        }
        page[..2].copy_from_slice(&0xD110u16.to_le_bytes());
        page[2..4].copy_from_slice(&(if number == 0 { 3u16 } else { 1 }).to_le_bytes());
        page[4..8].copy_from_slice(&name.timeline.0.to_le_bytes());
        page[8..16].copy_from_slice(&(start + number * PAGE as u64).to_le_bytes());
        page[16..20].copy_from_slice(&rest.to_le_bytes());
        page[20..24].fill(0);
        rest -= (PAGE - if number == 0 { 40 } else { 24 }) as u32;
        if number == 0 {
            page[24..32].copy_from_slice(&SYSID.0.to_le_bytes());
            page[32..36].copy_from_slice(&(SIZE as u32).to_le_bytes());
            page[36..40].copy_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }
    content
}
