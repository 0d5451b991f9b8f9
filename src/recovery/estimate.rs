//! How long a recovery will take, by what earlier ones took.

use super::plan::Plan;
use crate::index::{Index, Operation};
use std::time::Duration;

/// Bytes of a backup's files restored in a second, where none were restored before.
pub const RESTORE_RATE: u64 = 100 << 20;
/// Bytes of WAL replayed in a second, where none were replayed before.
pub const REPLAY_RATE: u64 = 50 << 20;

/// The name of a restore in the log of operations, whose detail begins with the number of bytes.
pub const RESTORE: &str = "restore";
/// The name of a replay in the log of operations, likewise.
pub const REPLAY: &str = "replay";

/// How many operations of the log are looked through.
const LOOKED_AT: usize = 1000;
/// From so many of them, the newest, the rate is taken.
const MEASURED: usize = 5;
/// Shorter ones say more about the time to begin than about a rate.
const SHORTEST: f64 = 0.5;

/// How long a recovery will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Estimate {
    /// The files, in seconds.
    pub restore_seconds: u64,
    /// The WAL, in seconds, at most.
    pub replay_seconds: u64,
    /// Bytes of files in a second.
    pub restore_rate: u64,
    /// Bytes of WAL in a second.
    pub replay_rate: u64,
    /// Whether the first of them was measured here.
    pub restore_measured: bool,
    /// Whether the second was.
    pub replay_measured: bool,
}

impl Estimate {
    /// Returns the estimate for a plan, by the log of operations in the index where there is one.
    pub fn of(plan: &Plan<'_>, index: &crate::index::IndexHandle) -> Self {
        let log = index.run(|index: &Index| index.operations(LOOKED_AT)).unwrap_or_default();
        let (restore, replay) = (rate(&log, RESTORE), rate(&log, REPLAY));
        let (restore_rate, replay_rate) = (restore.unwrap_or(RESTORE_RATE), replay.unwrap_or(REPLAY_RATE));
        Self {
            restore_seconds: plan.summary.size.div_ceil(restore_rate),
            replay_seconds: plan.wal_content_bytes().div_ceil(replay_rate),
            restore_rate,
            replay_rate,
            restore_measured: restore.is_some(),
            replay_measured: replay.is_some(),
        }
    }

    /// Returns the whole time.
    pub fn total(&self) -> Duration {
        Duration::from_secs(self.restore_seconds + self.replay_seconds)
    }
}

/// Returns the rate of the newest operations of that name that were done, in bytes a second.
fn rate(log: &[Operation], name: &str) -> Option<u64> {
    let done = log
        .iter()
        .filter(|operation| operation.command == name && operation.outcome.as_deref() == Some("done"));
    let measured = done.filter_map(|operation| {
        let bytes = operation.detail.split(' ').next()?.parse::<u64>().ok()?;
        let seconds = operation.finished?.duration_since(operation.started).as_secs_f64();
        (seconds >= SHORTEST).then_some((bytes, seconds))
    });
    let (bytes, seconds) =
        measured.take(MEASURED).reduce(|all, one| (all.0.saturating_add(one.0), all.1 + one.1))?;
    Some(((bytes as f64 / seconds) as u64).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn operation(command: &str, detail: &str, seconds: i64, outcome: &str) -> Operation {
        let started = Timestamp::UNIX_EPOCH;
        Operation {
            command: command.into(),
            detail: detail.into(),
            started,
            finished: Some(Timestamp::from_second(seconds).unwrap()),
            outcome: Some(outcome.into()),
            ..Operation::default()
        }
    }

    #[test]
    fn the_rate_is_that_of_the_newest_that_were_done() {
        let mut log = vec![
            operation(RESTORE, "3000 bytes", 1, "done"),
            operation(RESTORE, "9000 bytes", 3, "killed"),
            operation(REPLAY, "10 bytes", 1, "done"),
            operation(RESTORE, "3000 bytes", 2, "done"),
            operation(RESTORE, "1 bytes", 0, "done"),
            operation(RESTORE, "nonsense", 5, "done"),
        ];
        assert_eq!(rate(&log, RESTORE), Some(2000));
        log.extend((0..10).map(|_| operation(RESTORE, "1 byte", 1000, "done")));
        assert_eq!(rate(&log, RESTORE), Some(6003 / 3003));
        assert_eq!(rate(&log, "verify"), None);
    }
}
