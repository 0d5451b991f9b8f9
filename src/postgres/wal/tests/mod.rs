//! Tests of the reader as a whole, on WAL whose every edge is known. The live tests compare with `pg_waldump`.

mod damage;
mod decode;
mod edges;
pub(super) mod writer;

use super::super::Lsn;
use super::{Carry, ReadOutcome, ReaderOptions, Record, RecordReader, RecordVisitor};
use writer::Written;

/// Keeps the records that it sees.
#[derive(Default)]
struct Collector(Vec<Written>);

impl RecordVisitor for Collector {
    fn visit(&mut self, record: &Record<'_>) {
        assert!(record.is_complete());
        let Record { lsn, xid, rmid, info, .. } = *record;
        self.0.push(Written { lsn, xid, rmid, info, body: record.body.to_vec() });
    }
}

/// Returns the records of a segment, pushed in chunks of that size.
fn read(segment: &[u8], chunk: usize, carry: Option<Carry>) -> (Vec<Written>, ReadOutcome) {
    let mut reader = RecordReader::new(ReaderOptions::default(), carry);
    let mut collector = Collector::default();
    for chunk in segment.chunks(chunk.max(1)) {
        reader.push(chunk, &mut collector);
    }
    (collector.0, reader.finish())
}

/// Returns the records of several segments, each read with what the one before left, and the last outcome.
fn read_all(segments: &[Vec<u8>], chunk: usize) -> (Vec<Written>, ReadOutcome) {
    let mut all = Vec::new();
    let mut last = None;
    for segment in segments {
        let carry = last.take().and_then(|outcome: ReadOutcome| outcome.carry);
        let carry = carry.map(|carry| Carry::from_bytes(&carry.to_bytes()).unwrap());
        let (records, outcome) = read(segment, chunk, carry);
        assert_eq!(outcome.broken_carry, None);
        all.extend(records);
        last = Some(outcome);
    }
    (all, last.unwrap())
}

/// Returns where the records begin.
fn lsns(records: &[Written]) -> Vec<Lsn> {
    records.iter().map(|record| record.lsn).collect()
}
