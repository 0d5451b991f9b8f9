//! Whether all is well: the rules that judge what `status` found, each with its level, its text and its remedy.
//!
//! [`judge`] is pure. What it needs beside [`Status`] is gathered by [`Circumstances`]; the rules stand in `rules.rs`
//! and, as far as they are about the retention, in `kept.rs`.

mod circumstances;
mod kept;
mod rules;

pub use circumstances::{Circumstances, Space, Verified};

use super::retention::Policy;
use super::status::Status;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to say.
    Ok,
    /// Good to know; the verdict stays OK.
    Info,
    /// Somebody should look, today.
    Warning,
    /// Somebody should look now.
    Critical,
}

impl Level {
    /// Returns the exit code that Nagios and its likes expect.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Ok | Self::Info => 0,
            Self::Warning => 1,
            Self::Critical => 2,
        }
    }

    /// Returns the word that people see.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        }
    }
}

/// The stable names of the rules, in the order of docs/monitoring.md.
pub const RULES: [&str; 15] = [
    "backup-age",
    "backup-size",
    "bad-pages",
    "unarchived",
    "gap",
    "bad-wal",
    "repository-down",
    "repository-behind",
    "damaged-objects",
    "verify-failed",
    "verify-age",
    "free-space",
    "wal-disk",
    "retention",
    "expire-overdue",
];

/// Why the verdict is not simply OK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The rule, one of [`RULES`].
    pub rule: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What is the matter.
    pub text: String,
    /// What to do.
    pub hint: String,
}

/// What the rules came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The worst level, `ok` where there are only infos.
    pub verdict: Level,
    /// The reasons, the worst first.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    fn of(mut reasons: Vec<Reason>) -> Self {
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level));
        let worst = reasons.first().map_or(Level::Ok, |reason| reason.level);
        Self { verdict: if worst == Level::Info { Level::Ok } else { worst }, reasons }
    }

    /// Returns the names of the rules that make the verdict, each once, in order.
    pub fn rules(&self) -> Vec<&'static str> {
        let mut rules: Vec<&'static str> = self
            .reasons
            .iter()
            .filter(|reason| reason.level > Level::Info)
            .map(|reason| reason.rule)
            .collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// Returns how bad it is by that rule.
    pub fn level_of(&self, rule: &str) -> Level {
        let of_rule = self.reasons.iter().filter(|reason| reason.rule == rule);
        of_rule.map(|reason| reason.level).max().unwrap_or(Level::Ok)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verdict.word())?;
        let mut separator = ": ";
        for reason in self.reasons.iter().filter(|reason| reason.level > Level::Info) {
            write!(f, "{separator}{}", reason.text)?;
            separator = "; ";
        }
        Ok(())
    }
}

/// From where on a rule speaks.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// The newest base backup may be so old.
    pub backup_age: Duration,
    /// In percent: the newest backup is at least so large as the one before.
    pub backup_size: u8,
    /// The oldest commit that is not archived is younger, or it is a warning.
    pub unarchived_warning: Duration,
    /// Likewise, or it is critical.
    pub unarchived_critical: Duration,
    /// For so long a repository may lack what another one holds.
    pub repository_behind: Duration,
    /// The last clean verification may be so old.
    pub verify_age: Duration,
    /// In percent of a disk: less free space is a warning.
    pub free_warning: u8,
    /// In percent of a disk: less free space is critical.
    pub free_critical: u8,
    /// While archiving stands still, the disk of pg_wal lasts at least so long.
    pub wal_disk: Duration,
    /// For so long `expire` may leave what the retention does not keep.
    pub expire_overdue: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            backup_age: Duration::from_hours(25),
            backup_size: 50,
            unarchived_warning: Duration::from_mins(5),
            unarchived_critical: Duration::from_mins(15),
            repository_behind: Duration::from_mins(5),
            verify_age: Duration::from_hours(7 * 24),
            free_warning: 20,
            free_critical: 5,
            wal_disk: Duration::from_hours(24),
            expire_overdue: Duration::from_hours(7 * 24),
        }
    }
}

/// What was promised, against which the rules judge.
#[derive(Debug, Clone)]
pub struct Promises<'a> {
    /// From where on a rule speaks.
    pub thresholds: &'a Thresholds,
    /// What `expire` keeps, by the repository's name.
    pub retention: &'a BTreeMap<String, Policy>,
    /// How many repositories must hold a segment.
    pub acknowledge: usize,
}

/// Judges what was found, at `now`.
pub fn judge(
    status: &Status,
    circumstances: &Circumstances,
    promises: &Promises<'_>,
    now: Timestamp,
) -> Verdict {
    let case = rules::Case { status, circumstances, promises, now };
    Verdict::of(case.reasons())
}

/// Returns the time of the oldest commit that fewer than `acknowledge` repositories hold; none if there is none, or if it is
/// not known.
pub fn oldest_unarchived(status: &Status, acknowledge: usize) -> Option<Timestamp> {
    // Commits are archived in order: a repository holds what is older than the oldest that it lacks.
    let mut lacks: Vec<Option<Timestamp>> =
        status.repositories.iter().map(|repository| repository.oldest_unarchived_commit).collect();
    // Those that lack nothing first, then by the latest.
    lacks.sort_by_key(|oldest| std::cmp::Reverse(oldest.unwrap_or(Timestamp::MAX)));
    lacks.get(acknowledge.max(1) - 1).copied().flatten()
}

/// Returns how long ago `time` was; zero if it lies ahead.
pub fn age(now: Timestamp, time: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(time)).unwrap_or_default()
}

/// Returns a number of things: `1 backup`, `2 backups`.
pub fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// Returns a duration for people: its largest two units.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut left = seconds;
    let mut words = Vec::new();
    for (unit, word) in parts {
        let count = left / unit;
        left %= unit;
        if count > 0 {
            words.push(format!("{count} {word}"));
        }
    }
    words.truncate(2);
    if words.is_empty() { "0 s".to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests;
