//! The retention policy: which backups are kept, and why. Pure; what follows for the WAL is in `expire/needs.rs`.
//!
//! The `keep_*` rules count backups and look at no clock: the newest backup of each of the last N days *that have one*.
//! So a clock that is wrong, or a cluster that rests, ages nothing out. Only the window is a time, and it ends at
//! [`reference_time`].

use crate::postgres::{SystemIdentifier, TimelineId};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// How far a backup's time may be ahead of the reference time, before its clock is not believed.
const AHEAD: SignedDuration = SignedDuration::from_hours(1);

/// What is to be kept. Days, weeks (ISO 8601, from Monday), months and years are those of UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest backups, by number.
    pub keep_last: Option<u32>,
    /// The newest backup of each of so many days that have one.
    pub keep_daily: Option<u32>,
    /// Likewise weeks.
    pub keep_weekly: Option<u32>,
    /// Likewise months.
    pub keep_monthly: Option<u32>,
    /// Likewise years.
    pub keep_yearly: Option<u32>,
    /// For how long any moment is to be reachable.
    pub window: Option<Duration>,
}

impl Policy {
    /// Returns whether no rule is given. Nothing is removed then.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn counts(&self) -> [Option<u32>; 5] {
        [self.keep_last, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly]
    }

    /// Returns when the window that ends at `reference` begins.
    pub fn window_start(&self, reference: Timestamp) -> Option<Timestamp> {
        self.window.map(|window| reference.checked_sub(window).unwrap_or(Timestamp::MIN))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["last", "daily", "weekly", "monthly", "yearly"];
        let counts = names.iter().zip(self.counts());
        let mut parts: Vec<String> =
            counts.filter_map(|(name, count)| Some(format!("{} {name}", count?))).collect();
        parts.extend(self.window.map(|window| format!("window {}", humantime::format_duration(window))));
        f.write_str(&parts.join(", "))
    }
}

/// Returns the time at which the window ends: now, but never later than the newest thing that was stored, as the store
/// has it. A clock that is far ahead, and an archive to which nothing comes any more, let nothing age.
pub fn reference_time(now: Timestamp, newest_stored: Option<Timestamp>) -> Timestamp {
    // Stores tell whole seconds: what was stored within that one has its time too.
    let end = |newest: Timestamp| match newest.subsec_nanosecond() {
        0 => newest.checked_add(SignedDuration::from_secs(1)).unwrap_or(newest),
        _ => newest,
    };
    newest_stored.map_or(now, |newest| end(newest).min(now))
}

/// Where a backup was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Branch {
    /// The system identifier.
    pub sysid: SystemIdentifier,
    /// The timeline.
    pub timeline: TimelineId,
}

/// A backup, as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The id.
    pub id: String,
    /// Where it was taken.
    pub branch: Branch,
    /// When it ended.
    pub stop_time: Timestamp,
    /// Whether all its objects and the WAL that it needs are in the repository.
    pub usable: bool,
    /// Whether no page had a wrong checksum.
    pub clean: bool,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// Why a backup is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// One of the newest, by `keep_last`.
    Last,
    /// The newest of its day.
    Daily(Date),
    /// The newest of its week, by ISO 8601.
    Weekly(i16, i8),
    /// The newest of its month.
    Monthly(i16, i8),
    /// The newest of its year.
    Yearly(i16),
    /// A moment of the window is recovered from it.
    Window,
    /// It is pinned.
    Pinned,
    /// The newest that is usable, or the newest without bad pages.
    LastGood,
    /// Its time lies in the future.
    Ahead,
}

impl Reason {
    /// Returns whether a rule of the policy that counts backups is the reason.
    pub fn is_count(self) -> bool {
        matches!(self, Self::Last | Self::Daily(_) | Self::Weekly(..) | Self::Monthly(..) | Self::Yearly(_))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last => f.write_str("last"),
            Self::Daily(day) => write!(f, "daily {day}"),
            Self::Weekly(year, week) => write!(f, "weekly {year}-W{week:02}"),
            Self::Monthly(year, month) => write!(f, "monthly {year}-{month:02}"),
            Self::Yearly(year) => write!(f, "yearly {year}"),
            Self::Window => f.write_str("window"),
            Self::Pinned => f.write_str("pinned"),
            Self::LastGood => f.write_str("last good backup"),
            Self::Ahead => f.write_str("its time is in the future"),
        }
    }
}

/// Returns why each of `candidates` is kept, in their order; no reason: it may go, unless the WAL of the window begins
/// with it. `reference` is [`reference_time`].
///
/// A backup that is not usable takes no other's place. It stays as long as the rules would keep it if it were usable,
/// because `sync` may mend it.
pub fn decide(policy: &Policy, candidates: &[Candidate], reference: Timestamp) -> Vec<BTreeSet<Reason>> {
    let mut reasons = vec![BTreeSet::new(); candidates.len()];
    let limit = reference.checked_add(AHEAD).unwrap_or(Timestamp::MAX);
    let mut newest_first: Vec<usize> = (0..candidates.len()).collect();
    newest_first.sort_by(|a, b| {
        let key = |at: &usize| (candidates[*at].stop_time, &candidates[*at].id);
        key(b).cmp(&key(a))
    });
    let (ahead, believed): (Vec<usize>, Vec<usize>) =
        newest_first.iter().partition(|at| candidates[**at].stop_time > limit);
    for at in ahead {
        reasons[at].insert(Reason::Ahead);
    }
    let usable: Vec<usize> = believed.iter().copied().filter(|at| candidates[*at].usable).collect();
    for (at, reason) in counted(policy, candidates, &usable) {
        reasons[at].insert(reason);
    }
    for (at, reason) in counted(policy, candidates, &believed) {
        if !candidates[at].usable {
            reasons[at].insert(reason);
        }
    }
    if let Some(start) = policy.window_start(reference) {
        for at in believed.iter().filter(|at| candidates[**at].stop_time >= start) {
            reasons[*at].insert(Reason::Window);
        }
    }
    // Of the system that was backed up last, and of all: after pg_upgrade the new one may have nothing usable yet.
    let current = newest_first.first().map(|at| candidates[*at].branch.sysid);
    let mut of_current = newest_first.clone();
    of_current.retain(|at| Some(candidates[*at].branch.sysid) == current);
    for list in [&usable, &newest_first, &of_current] {
        let newest = list.iter().find(|at| candidates[**at].usable);
        let clean = list.iter().find(|at| candidates[**at].usable && candidates[**at].clean);
        for at in newest.into_iter().chain(clean) {
            reasons[*at].insert(Reason::LastGood);
        }
    }
    for (reasons, _) in reasons.iter_mut().zip(candidates).filter(|(_, candidate)| candidate.pinned) {
        reasons.insert(Reason::Pinned);
    }
    reasons
}

/// Says in which period a day lies.
type PeriodOf = fn(Date) -> Reason;

/// Applies the rules that count to `newest_first`.
fn counted(policy: &Policy, candidates: &[Candidate], newest_first: &[usize]) -> Vec<(usize, Reason)> {
    let day = |time: Timestamp| time.to_zoned(TimeZone::UTC).date();
    let periods: [(Option<u32>, PeriodOf); 4] = [
        (policy.keep_daily, Reason::Daily),
        (policy.keep_weekly, |day| {
            let week = day.iso_week_date();
            Reason::Weekly(week.year(), week.week())
        }),
        (policy.keep_monthly, |day| Reason::Monthly(day.year(), day.month())),
        (policy.keep_yearly, |day| Reason::Yearly(day.year())),
    ];
    let last = newest_first.iter().take(policy.keep_last.unwrap_or(0) as usize);
    let mut kept: Vec<(usize, Reason)> = last.map(|at| (*at, Reason::Last)).collect();
    for (count, period_of) in periods {
        let mut left = count.unwrap_or(0);
        let mut period = None;
        // Two branches that live side by side do not take each other's place.
        let mut branches = BTreeSet::new();
        for at in newest_first {
            let of_this = period_of(day(candidates[*at].stop_time));
            if period != Some(of_this) {
                if left == 0 {
                    break;
                }
                left -= 1;
                period = Some(of_this);
                branches.clear();
            }
            if branches.insert(candidates[*at].branch) {
                kept.push((*at, of_this));
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests;
