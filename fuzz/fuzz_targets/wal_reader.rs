//! Any bytes at all, as a segment and as the state of a reader: no panic, no endless loop, no read out of bounds.
//!
//! The first two bytes choose how the rest is read. Headers that are wrong in their first bytes would end most runs
//! before they begin, so on request the pages get the headers that they should have.
#![no_main]

mod pages;

use libfuzzer_sys::fuzz_target;
use pages::{MAGICS, repair_headers};
use walden::postgres::wal::{
    Carry, Checkpoint, EndOfRecovery, ReaderOptions, Record, RecordReader, RestorePoint, TransactionEnd,
    summarize,
};

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
