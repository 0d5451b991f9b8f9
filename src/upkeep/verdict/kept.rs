//! Whether the retention is met: the window, the numbers of backups, and that what it does not keep goes.

use super::rules::{Case, reason};
use super::{Level, Reason, age, span};
use crate::upkeep::retention::{Branch, Candidate, Policy, Reason as Why, decide, reference_time};
use crate::upkeep::status::{BackupStatus, Status};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);

impl Case<'_> {
    /// Returns when a window of that length begins.
    pub(super) fn window_start(&self, window: Duration) -> Timestamp {
        before(reference(self.status, self.now), window)
    }

    pub(super) fn retention(&self) -> Vec<Reason> {
        let mut found = Vec::new();
        let created = self.status.repositories.iter().filter_map(|repository| repository.created).min();
        // Somebody has to come round to the first backup.
        let grace = self.promises.thresholds.backup_age;
        if let Some(created) = created {
            let live = age(self.now, created).saturating_sub(grace);
            found.extend(self.window(created, grace));
            for repository in self.status.repositories.iter().filter(|r| r.problem.is_none()) {
                if let Some(policy) = self.promises.retention.get(&repository.name) {
                    found.extend(self.numbers(&repository.name, policy, live));
                }
            }
        }
        for overdue in &self.circumstances.overdue {
            let text = format!(
                "repository \"{}\" holds {} that the retention has not kept for {}, the oldest {}",
                overdue.repository,
                match overdue.backups.len() {
                    1 => "a backup".to_owned(),
                    n => format!("{n} backups"),
                },
                span(self.promises.thresholds.expire_overdue),
                overdue.backups.first().map_or("", String::as_str)
            );
            found.push(reason("expire-overdue", Level::Info, text, "run walden expire from a timer"));
        }
        found
    }

    /// Whether any moment of the window can be reached, of a cluster that is old enough.
    fn window(&self, created: Timestamp, grace: Duration) -> Option<Reason> {
        let window = self.promises.retention.values().filter_map(|policy| policy.window).max()?;
        let start = self.window_start(window);
        if before(start, grace) < created {
            return None;
        }
        let whole = |end: &super::super::status::Window| {
            (end.gap.is_none() && end.bad_wal.is_none()) || end.to.is_some_and(|to| to >= start)
        };
        if self.status.windows.iter().any(|found| found.from <= start && whole(found)) {
            return None;
        }
        let oldest = self.status.windows.iter().filter(|found| whole(found)).map(|found| found.from).min();
        let reach =
            oldest.map_or("no moment can be reached".to_owned(), |from| format!("it begins at {from}"));
        let text = format!("the window is shorter than {}: {reach}", span(window));
        let hint = "a backup or WAL went, or was never made; from now on it grows again by itself while backups are taken";
        Some(reason("retention", Level::Warning, text, hint))
    }

    /// Whether there are as many backups as the rules that count can have kept in the time that the cluster is `live`.
    fn numbers(&self, repository: &str, policy: &Policy, live: Duration) -> Vec<Reason> {
        let candidates = candidates(self.status, repository);
        let kept = decide(policy, &candidates, reference(self.status, self.now));
        let have = |of: fn(&Why) -> bool| -> usize {
            kept.iter().flatten().copied().filter(of).collect::<BTreeSet<Why>>().len()
        };
        let rules: [(&str, Option<u32>, u32, usize); 4] = [
            ("keep_daily", policy.keep_daily, 1, have(|why| matches!(why, Why::Daily(_)))),
            ("keep_weekly", policy.keep_weekly, 7, have(|why| matches!(why, Why::Weekly(..)))),
            ("keep_monthly", policy.keep_monthly, 31, have(|why| matches!(why, Why::Monthly(..)))),
            ("keep_yearly", policy.keep_yearly, 366, have(|why| matches!(why, Why::Yearly(_)))),
        ];
        let mut found = Vec::new();
        for (key, asked, days, have) in rules {
            let passed =
                usize::try_from(live.as_secs() / (DAY.as_secs() * u64::from(days))).unwrap_or(usize::MAX);
            let expected = passed.min(asked.unwrap_or(0) as usize);
            if have < expected {
                let text = format!(
                    "repository \"{repository}\" has backups for {have} of the {expected} periods that {key} asks for by now"
                );
                let hint = "backups were not taken so often, or went; walden list shows them";
                found.push(reason("retention", Level::Warning, text, hint));
            }
        }
        found
    }
}

/// Returns the ids of the backups in a repository that its policy had not kept any more at a time so long ago, oldest first;
/// pins are not looked at.
pub(super) fn not_kept(
    status: &Status,
    repository: &str,
    policy: &Policy,
    now: Timestamp,
    ago: Duration,
) -> Vec<String> {
    let then = before(reference(status, now), ago);
    let mut candidates = candidates(status, repository);
    candidates.retain(|candidate| candidate.stop_time <= then);
    let reasons = decide(policy, &candidates, then);
    // The WAL of the window begins with the newest backup before it.
    let start = policy.window_start(then).unwrap_or(Timestamp::MIN);
    let first = candidates.iter().filter(|c| c.stop_time < start).map(|c| c.stop_time).max();
    let mut left: Vec<&Candidate> = candidates
        .iter()
        .zip(&reasons)
        .filter(|(candidate, reasons)| reasons.is_empty() && Some(candidate.stop_time) != first)
        .map(|(candidate, _)| candidate)
        .collect();
    left.sort_by_key(|candidate| candidate.stop_time);
    left.into_iter().map(|candidate| candidate.id.clone()).collect()
}

fn candidates(status: &Status, repository: &str) -> Vec<Candidate> {
    let held = |backup: &&BackupStatus| backup.repositories.iter().any(|name| name == repository);
    let candidate = |backup: &BackupStatus| Candidate {
        id: backup.id.clone(),
        branch: Branch { sysid: status.system_identifier, timeline: backup.timeline },
        stop_time: backup.stop_time,
        usable: true,
        clean: backup.bad_pages == 0,
        pinned: false,
    };
    status.backups.iter().filter(held).map(candidate).collect()
}

/// The time at which the window ends, as `expire` has it.
fn reference(status: &Status, now: Timestamp) -> Timestamp {
    let stored = status.repositories.iter().filter_map(|repository| repository.newest_stored).max();
    reference_time(now, stored)
}

fn before(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| time.checked_sub(span).ok()).unwrap_or(Timestamp::MIN)
}
