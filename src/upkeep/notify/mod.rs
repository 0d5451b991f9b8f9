//! Telling somebody what happened: a command, a webhook.
//!
//! An event becomes one row of the index for each channel ([`queue`]). [`deliver`] takes rows whose time has come, within a
//! bound of time, and leaves those that fail for a later call. Archiving has no part in it.

mod channel;

pub use channel::{Channels, Webhook, send};

use crate::index::{IndexHandle, Notification};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::time::{Duration, Instant};

/// What somebody may want to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// A base backup is complete.
    BackupDone,
    /// A base backup failed, or is not in every repository.
    BackupFailed,
    /// `verify` found something wrong.
    VerifyFailed,
    /// The verdict is another than before, or has other reasons.
    VerdictChanged,
    /// `expire` failed.
    ExpireFailed,
    /// A recovery is done.
    RestoreDone,
    /// A recovery failed.
    RestoreFailed,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::BackupDone,
        Self::BackupFailed,
        Self::VerifyFailed,
        Self::VerdictChanged,
        Self::ExpireFailed,
        Self::RestoreDone,
        Self::RestoreFailed,
    ];

    /// Returns the name in the configuration and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::BackupDone => "backup-done",
            Self::BackupFailed => "backup-failed",
            Self::VerifyFailed => "verify-failed",
            Self::VerdictChanged => "verdict-changed",
            Self::ExpireFailed => "expire-failed",
            Self::RestoreDone => "restore-done",
            Self::RestoreFailed => "restore-failed",
        }
    }
}

/// What is sent, as JSON: `text` is what Slack and its likes show.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// One line for people.
    pub text: String,
    /// The event's name.
    pub event: String,
    /// `ok`, `warning` or `critical`.
    pub level: &'static str,
    /// The cluster.
    pub cluster: String,
    /// The machine that says so.
    pub host: String,
    /// When.
    pub time: Timestamp,
    /// More.
    pub details: Value,
}

/// For how long one attempt keeps a notification from other processes, in µs: longer than any attempt takes.
const LEASE_US: i64 = 60_000_000;
/// After the first failure a notification rests so long, and twice as long after each further one.
const FIRST_REST: Duration = Duration::from_secs(5);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_hours(1);
/// After so long a notification is given up.
const GIVEN_UP: Duration = Duration::from_hours(24);
/// After so long in one call no further delivery begins, but the first of a channel.
const BUDGET: Duration = Duration::from_secs(20);

/// Writes an event into the index, for each channel; without an index it is sent right away, once.
pub fn queue(channels: &Channels, index: &IndexHandle, event: &Event) {
    let Ok(body) = serde_json::to_string(event) else { return };
    for channel in channels.names() {
        if index.run(|index| index.queue_notification(channel, &body)).is_none()
            && let Err(error) = send(channels, channel, &body)
        {
            tracing::warn!(
                "could not notify by {channel}: {error}; hint: there is no index to keep it for later"
            );
        }
    }
}

/// Delivers what waits and whose time has come. Bounded in time, and leaves a channel alone once it failed.
/// Failures are warned of.
pub fn deliver(channels: &Channels, index: &IndexHandle) {
    let began = Instant::now();
    for channel in channels.names() {
        // One that hangs does not starve the other: each gets an attempt.
        let mut tried = false;
        while !tried || began.elapsed() < BUDGET {
            tried = true;
            let Some(taken) = index.run(|index| index.take_notification(channel, LEASE_US)).flatten() else {
                break;
            };
            let result = send(channels, channel, &taken.body);
            if !settle(index, &taken, result) {
                break;
            }
        }
    }
}

/// Writes down how an attempt ended; returns whether it went well.
fn settle(index: &IndexHandle, taken: &Notification, result: Result<(), String>) -> bool {
    let channel = &taken.channel;
    let Err(error) = result else {
        index.run(|index| index.drop_notification(taken.id));
        return true;
    };
    let age = Timestamp::now().as_microsecond().saturating_sub(taken.created);
    if age > micros(GIVEN_UP) {
        index.run(|index| index.drop_notification(taken.id));
        let tries = taken.attempts + 1;
        tracing::warn!(
            "a notification by {channel} is given up after a day and {tries} attempts: {error}; hint: walden notify test"
        );
    } else {
        let rest = rest(taken.attempts);
        index.run(|index| index.notification_failed(taken.id, &error, micros(rest)));
        tracing::warn!(
            "could not notify by {channel}: {error}; hint: a later command tries again, from {} s on",
            rest.as_secs()
        );
    }
    false
}

/// Returns how long a notification rests that failed so often before.
fn rest(attempts: u32) -> Duration {
    FIRST_REST.saturating_mul(1_u32.checked_shl(attempts).unwrap_or(u32::MAX)).min(LONGEST_REST)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_rests_twice_as_long_each_time_up_to_an_hour() {
        assert_eq!([0, 1, 2, 3].map(|n| rest(n).as_secs()), [5, 10, 20, 40]);
        assert_eq!([12, 31, 32, u32::MAX].map(rest), [LONGEST_REST; 4]);
    }

    #[test]
    fn what_fails_is_kept_and_after_a_day_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let index = IndexHandle::open(&dir.path().join("i"));
        index.run(|index| index.queue_notification("command", "{}")).unwrap();
        let waiting = || index.run(crate::index::Index::waiting_notifications).unwrap();
        let taken = index.run(|index| index.take_notification("command", 0)).flatten().unwrap();
        assert!(!settle(&index, &taken, Err("503".into())));
        assert_eq!(waiting(), 1);
        let old = Notification { created: taken.created - micros(GIVEN_UP) - 1, ..taken.clone() };
        assert!(!settle(&index, &old, Err("503".into())));
        assert_eq!(waiting(), 0);
    }
}
