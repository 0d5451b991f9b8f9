//! What the cores can do: CRC-32, LZ4 and age over segments that lie in memory, on as many threads as there are cores.
//! Prints segments a second. `archive-push` is measured against it by `benches/peers.sh`.

#![allow(clippy::expect_used)]

mod real_wal;

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use walden::codec::{Sealer, generate_identity};

/// How many segments are gone through, again and again.
const SEGMENTS: usize = 48;

/// How long each round takes.
const ROUND: Duration = Duration::from_secs(2);

fn main() {
    let segments = real_wal::segments(SEGMENTS);
    let (_, recipient) = generate_identity();
    let sealer = Sealer::for_recipients(&[recipient]).expect("a recipient");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let best = (0..3).map(|_| round(&segments, &sealer, cores)).fold(0.0, f64::max);
    println!("{best:.1}");
}

fn round(segments: &[Vec<u8>], sealer: &Sealer, cores: usize) -> f64 {
    let done = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut buffer = Vec::with_capacity(20 << 20);
                while began.elapsed() < ROUND {
                    let segment = &segments[done.fetch_add(1, Ordering::Relaxed) % segments.len()];
                    buffer.clear();
                    let mut writer = sealer.writer_to(buffer).expect("age");
                    let mut crc = crc32fast::Hasher::new();
                    for piece in segment.chunks(256 * 1024) {
                        crc.update(piece);
                        writer.write_all(piece).expect("compress");
                    }
                    std::hint::black_box(crc.finalize());
                    buffer = writer.finish().expect("finish");
                }
            });
        }
    });
    done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}
