//! What the index costs an archived segment, with few rows and with many: `cargo bench --bench index`.

#![allow(clippy::expect_used)]

mod rows;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use walden::index::Index;

fn index(c: &mut Criterion) {
    for count in [100, 200_000] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("index.sqlite");
        let index = Index::open(&path).expect("open");
        rows::fill(&index, count);
        let mut group = c.benchmark_group(format!("{count} segments"));
        group.bench_function("open and look up", |b| {
            let mut at = 0;
            b.iter(|| {
                at = (at + 7919) % count;
                let index = Index::open(&path).expect("open");
                let copies = index.copies_of(rows::SYSID, &rows::name(at), &rows::fingerprint(at));
                assert_eq!(black_box(copies.expect("look up")).len(), 1);
            });
        });
        let mut next = count;
        group.bench_function("record a segment", |b| {
            b.iter_batched(
                || {
                    next += 1;
                    next
                },
                |at| rows::record(&index, at..at + 1),
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, index);
criterion_main!(benches);
