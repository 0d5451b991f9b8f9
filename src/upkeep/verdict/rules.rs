//! The rules about backups, WAL, repositories, objects and disks.

use super::{Circumstances, Level, Promises, Reason, age, count, oldest_unarchived, span};
use crate::upkeep::status::Status;
use jiff::Timestamp;
use std::time::Duration;

/// What is judged.
pub(super) struct Case<'a> {
    pub status: &'a Status,
    pub circumstances: &'a Circumstances,
    pub promises: &'a Promises<'a>,
    pub now: Timestamp,
}

pub(super) fn reason(
    rule: &'static str,
    level: Level,
    text: impl Into<String>,
    hint: impl Into<String>,
) -> Reason {
    Reason { rule, level, text: text.into(), hint: hint.into() }
}

impl Case<'_> {
    /// Returns what every rule has to say.
    pub fn reasons(&self) -> Vec<Reason> {
        let mut reasons = self.repositories();
        // With no repository to ask, nothing is known of what they hold.
        if self.status.repositories.iter().any(|repository| repository.problem.is_none()) {
            reasons.extend(self.backups());
            reasons.extend(self.gaps());
            reasons.extend(self.retention());
            reasons.extend(self.verification());
        }
        reasons.extend(self.unarchived());
        reasons.extend(self.objects());
        reasons.extend(self.disks());
        reasons
    }

    fn repositories(&self) -> Vec<Reason> {
        let all = &self.status.repositories;
        let usable = all.iter().filter(|repository| repository.problem.is_none()).count();
        let down =
            if usable == 0 || usable < self.promises.acknowledge { Level::Critical } else { Level::Warning };
        let mut found = Vec::new();
        for repository in all {
            let name = &repository.name;
            if let Some(problem) = &repository.problem {
                let text = format!("repository \"{name}\" cannot be used: {problem}");
                let hint = match down {
                    Level::Critical => "nothing is acknowledged to the server until it can be: pg_wal grows",
                    _ => "the others go on; once it is back, walden sync brings it what it missed",
                };
                found.push(reason("repository-down", down, text, hint));
                continue;
            }
            let oldest = repository.oldest_unarchived_commit.map(|oldest| age(self.now, oldest));
            let limit = self.promises.thresholds.repository_behind;
            if repository.behind > 0 && oldest.is_none_or(|oldest| oldest > limit) {
                let since = oldest.map_or(String::new(), |oldest| format!(", for {}", span(oldest)));
                let text = format!(
                    "repository \"{name}\" lacks {} that others hold{since}",
                    count(repository.behind as usize, "segment")
                );
                found.push(reason("repository-behind", Level::Warning, text, "walden sync copies them"));
            }
        }
        found
    }

    fn backups(&self) -> Vec<Reason> {
        let mut found = Vec::new();
        let thresholds = self.promises.thresholds;
        let take = "walden base-backup; does its timer still run, and what does it say?";
        match self.status.backups.first() {
            None => found.push(reason("backup-age", Level::Critical, "there is no base backup", take)),
            Some(newest) => {
                let old = age(self.now, newest.stop_time);
                if old > thresholds.backup_age {
                    let text = format!("the newest base backup is {} old", span(old));
                    found.push(reason("backup-age", Level::Critical, text, take));
                }
            }
        }
        if let [newest, before, ..] = self.status.backups.as_slice()
            && u128::from(newest.size) * 100 < u128::from(before.size) * u128::from(thresholds.backup_size)
        {
            let text = format!(
                "base backup {} holds {} bytes, and the one before it {}",
                newest.id, newest.size, before.size
            );
            let hint =
                "was a large table dropped? walden events tells; if not, keep the older one: walden pin";
            found.push(reason("backup-size", Level::Warning, text, hint));
        }
        if let Some(bad) = &self.status.bad_pages {
            let text = format!("{} wrong page checksums in backup {}", bad.pages, bad.backup);
            let hint = match &bad.last_clean {
                Some(id) => format!("the database is damaged: look with pg_amcheck, and walden pin {id}"),
                None => "the database is damaged: look with pg_amcheck".to_owned(),
            };
            found.push(reason("bad-pages", Level::Critical, text, hint));
        }
        found
    }

    fn unarchived(&self) -> Vec<Reason> {
        let Some(oldest) = oldest_unarchived(self.status, self.promises.acknowledge) else { return vec![] };
        let old = age(self.now, oldest);
        let thresholds = self.promises.thresholds;
        let level = if old > thresholds.unarchived_critical {
            Level::Critical
        } else if old > thresholds.unarchived_warning {
            Level::Warning
        } else {
            return vec![];
        };
        let text = format!("the oldest commit that is not archived is {} old", span(old));
        let hint = "the server's log says why archive_command fails; on a quiet server archive_timeout sends a segment \
                    before it is full";
        let mut found = vec![reason("unarchived", level, text, hint)];
        // Only what is not archived stays in pg_wal.
        if let Some(full) = self.status.wal.and_then(|wal| wal.full_after_seconds).map(Duration::from_secs)
            && full < thresholds.wal_disk
        {
            let text = format!(
                "archiving stands still, and the disk of pg_wal is full in {} at this rate",
                span(full)
            );
            let hint = "a server whose pg_wal cannot grow stops; make archiving work, or give it space";
            found.push(reason("wal-disk", Level::Warning, text, hint));
        }
        found
    }

    fn gaps(&self) -> Vec<Reason> {
        let mut found = Vec::new();
        let windows: Vec<Duration> =
            self.promises.retention.values().filter_map(|policy| policy.window).collect();
        let start = windows.iter().max().map(|window| self.window_start(*window));
        for window in &self.status.windows {
            let Some(gap) = window.gap else { continue };
            let (level, until) = match window.resumes {
                None => (Level::Critical, "nothing after it can be reached".to_owned()),
                Some(resumes) => {
                    let level = match start {
                        Some(start) if resumes > start => Level::Critical,
                        // Behind the window WAL goes on purpose: kept backups stand alone there.
                        Some(_) => Level::Info,
                        None => Level::Warning,
                    };
                    (level, format!("no moment until {resumes} can be reached"))
                }
            };
            let text = format!("WAL segment {gap} is missing on timeline {}: {until}", window.timeline.0);
            let hint = "if some server's pg_wal still has it, push it with walden archive-push; else take a base backup";
            found.push(reason("gap", level, text, hint));
        }
        found
    }

    fn objects(&self) -> Vec<Reason> {
        let mut found = Vec::new();
        for bad in &self.status.bad_wal {
            let text = format!("WAL segment {} has a bad record at {}: {}", bad.segment, bad.lsn, bad.reason);
            let hint =
                "no recovery can pass it: take a base backup now, and look at the server's disk and memory";
            found.push(reason("bad-wal", Level::Critical, text, hint));
        }
        if let Some(first) = self.status.damage.first() {
            let objects = count(self.status.damage.len(), "object");
            let verb = if self.status.damage.len() == 1 { "is" } else { "are" };
            let text = format!("{objects} {verb} damaged, first {} in {}", first.key, first.url);
            found.push(reason(
                "damaged-objects",
                Level::Warning,
                text,
                "walden sync mends what another repository holds",
            ));
        }
        found
    }

    fn verification(&self) -> Vec<Reason> {
        let mut found = Vec::new();
        let limit = self.promises.thresholds.verify_age;
        for verified in &self.circumstances.verified {
            let name = &verified.repository;
            if verified.last_problems > 0 {
                let text = format!(
                    "the last verification of repository \"{name}\" found {}",
                    count(verified.last_problems as usize, "problem")
                );
                found.push(reason(
                    "verify-failed",
                    Level::Critical,
                    text,
                    "walden verify lists them; walden sync mends what it can",
                ));
                continue;
            }
            let held = self.status.backups.iter().filter(|backup| backup.repositories.contains(name));
            let oldest = held.map(|backup| age(self.now, backup.stop_time)).max();
            if oldest.is_none_or(|oldest| oldest <= limit) {
                continue;
            }
            let since = verified.at.map(|at| age(self.now, at));
            if since.is_some_and(|since| since <= limit) {
                continue;
            }
            let text = match since {
                Some(since) => format!("repository \"{name}\" was last verified {} ago", span(since)),
                None => format!("repository \"{name}\" was never verified"),
            };
            found.push(reason("verify-age", Level::Warning, text, "run walden verify from a timer, weekly"));
        }
        found
    }

    fn disks(&self) -> Vec<Reason> {
        let thresholds = self.promises.thresholds;
        let mut found = Vec::new();
        for space in &self.circumstances.spaces {
            let percent = space.free_percent();
            let level = if percent < f64::from(thresholds.free_critical) {
                Level::Critical
            } else if percent < f64::from(thresholds.free_warning) {
                Level::Warning
            } else {
                continue;
            };
            let text = format!(
                "{percent:.1} % of the disk of {} ({}) is free, {} MB",
                space.name,
                space.path.display(),
                space.free >> 20
            );
            let hint = match space.name.as_str() {
                "pg_wal" => {
                    "the server stops when it is full: is WAL archived, does a replication slot hold it?"
                }
                "state_dir" => "the index and the spool are there; what else is on that disk?",
                _ => "walden expire removes what the retention does not keep; else give it space",
            };
            found.push(reason("free-space", level, text, hint));
        }
        found
    }
}
