//! What a segment costs on its way through the codec, piece by piece: `cargo bench --bench codec`.

#![allow(clippy::expect_used)]

mod real_wal;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::io::Read;
use walden::codec::{Opener, Sealer, generate_identity};
use walden::postgres::wal::events::{EventOptions, EventScanner};
use walden::postgres::wal::{ReaderOptions, Summarizer};
use walden::postgres::{SegmentHeader, WalSegmentName};

/// The file is read and looked at in pieces of this size, in bytes.
const PIECE: usize = 256 * 1024;

fn keys() -> (Sealer, Opener) {
    let (identity, recipient) = generate_identity();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), identity).expect("write the identity");
    let opener = Opener::from_identity_file(file.path()).expect("read the identity");
    (Sealer::for_recipients(&[recipient]).expect("a recipient"), opener)
}

fn codec(c: &mut Criterion) {
    let segments = real_wal::segments(8);
    let (sealer, opener) = keys();
    let plain = Sealer::unencrypted();
    let mut at = 0;
    // Another segment each time: what a server archives was not looked at a moment ago.
    let mut next = move || {
        at += 1;
        at % 8
    };
    let mut group = c.benchmark_group("segment");
    group.throughput(Throughput::Bytes(segments[0].len() as u64)).sample_size(40);
    group.bench_function("crc32", |b| b.iter(|| crc32fast::hash(black_box(&segments[next()]))));
    group.bench_function("lz4", |b| b.iter(|| plain.seal(black_box(&segments[next()]))));
    group.bench_function("lz4 and age", |b| b.iter(|| sealer.seal(black_box(&segments[next()]))));
    for (name, check_crc) in [("read records", false), ("read records, check their CRC-32C", true)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut reader = Summarizer::new(ReaderOptions { check_crc }, None);
                segments[next()].chunks(PIECE).for_each(|piece| reader.push(piece));
                reader.finish().0
            });
        });
    }
    group.bench_function("read records with events, check their CRC-32C", |b| {
        b.iter(|| {
            let segment = &segments[next()];
            let scanner = EventScanner::new(EventOptions::default());
            let mut reader = Summarizer::with_visitor(ReaderOptions::default(), None, scanner);
            segment.chunks(PIECE).for_each(|piece| reader.push(piece));
            let (_, carry, scanner) = reader.finish();
            let header = SegmentHeader::parse(segment).expect("a segment");
            let size = header.segment_size;
            scanner
                .finish(WalSegmentName::containing(header.timeline, header.page_address, size), size, carry)
                .to_bytes()
        });
    });
    let sealed: Vec<Vec<u8>> = segments.iter().map(|s| sealer.seal(s).expect("seal")).collect();
    group.bench_function("open", |b| {
        b.iter(|| {
            let mut reader = opener.open("x.lz4.age", &sealed[next()][..]).expect("open");
            let mut buffer = vec![0; PIECE];
            while reader.read(&mut buffer).expect("read") > 0 {
                black_box(&buffer);
            }
        });
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
