//! Slowing reading down to a rate, over all threads together.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How far ahead of the rate a burst may get.
const BURST: Duration = Duration::from_millis(100);

/// A limit on bytes per second, shared by threads.
#[derive(Debug)]
pub struct Throttle {
    /// None for no limit.
    bytes_per_second: Option<u64>,
    /// When all bytes admitted so far will have had their time.
    due: Mutex<Instant>,
}

impl Throttle {
    /// Returns a limit of so many bytes per second, or none.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|&rate| rate > 0), due: Mutex::new(Instant::now()) }
    }

    /// Returns when so many bytes more may be read.
    pub fn wait(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let cost = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        let pause = {
            let mut due = self.due.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let now = Instant::now();
            // Time in which nothing was read is not made up for.
            *due = (*due).max(now.checked_sub(BURST).unwrap_or(now)) + cost;
            due.saturating_duration_since(now)
        };
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_the_rate() {
        let throttle = Throttle::new(Some(1_000_000));
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| throttle.wait(10_000)));
            }
        });
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(250), "{took:?}");
        Throttle::new(None).wait(u64::MAX);
    }
}
