//! Any bytes at all, as a segment and as the state of a reader: no panic, no endless loop, no read out of bounds.
//!
//! The first two bytes choose how the rest is read. Headers that are wrong in their first bytes would end most runs
//! before they begin, so on request the pages get the headers that they should have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walden::postgres::wal::{
    Carry, Checkpoint, EndOfRecovery, ReaderOptions, Record, RecordReader, RestorePoint, TransactionEnd,
    summarize,
};

const PAGE: usize = 8192;
const MAGICS: [u16; 6] = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];

fuzz_target!(|data: &[u8]| {
    let Some((&[how, chunk], rest)) = data.split_first_chunk::<2>() else { return };
    let _ = Carry::from_bytes(rest);
    let mut segment = rest.to_vec();
    if how & 1 != 0 {
        repair_headers(&mut segment, MAGICS[usize::from(how >> 4) % MAGICS.len()]);
    }
    let options = ReaderOptions { check_crc: how & 2 != 0 };
    let mut carry = None;
    for _ in 0..2 {
        let mut reader = RecordReader::new(options, carry.take());
        let mut visitor = |record: &Record<'_>| look_into(record);
        for chunk in segment.chunks(usize::from(chunk) * 97 + 1) {
            reader.push(chunk, &mut visitor);
        }
        let outcome = reader.finish();
        carry = outcome.carry.and_then(|carry| Carry::from_bytes(&carry.to_bytes()).ok());
    }
    let _ = summarize(&segment, carry);
});

fn look_into(record: &Record<'_>) {
    let _ = (record.main_data(), record.block_references().count());
    let _ = (Checkpoint::decode(record), RestorePoint::decode(record), EndOfRecovery::decode(record));
    let _ =
        TransactionEnd::decode(record).map(|end| (end.subxids().count(), end.dropped_relations().count()));
}

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
