//! What `status` knows, as metrics in the text format of Prometheus.

use super::status::Status;
use super::verdict::{Circumstances, Level, RULES, Verdict, age, oldest_unarchived};
use jiff::Timestamp;
use std::fmt::Write as _;

/// Metrics, one family after the other.
struct Text {
    out: String,
    cluster: String,
}

/// Labels beside the cluster's.
type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Adds a family of gauges. One without samples is left out.
    fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, f64)>,
    ) {
        let mut lines = String::new();
        for (labels, value) in samples {
            let labels = self.labels(&labels);
            let _ = writeln!(lines, "{name}{{{labels}}} {value}");
        }
        if !lines.is_empty() {
            let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} gauge\n{lines}");
        }
    }

    /// Adds a family of one gauge, where there is a value.
    fn one(&mut self, name: &str, help: &str, value: impl Into<Option<f64>>) {
        self.gauge(name, help, value.into().map(|value| (vec![], value)));
    }

    fn labels(&self, more: Labels<'_>) -> String {
        let mut text = format!("cluster=\"{}\"", escape(&self.cluster));
        for (name, value) in more {
            let _ = write!(text, ",{name}=\"{}\"", escape(value));
        }
        text
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Returns the number that a level has in metrics: that of Nagios.
fn number(level: Level) -> f64 {
    f64::from(level.exit_code())
}

/// Returns the metrics of a cluster. `acknowledge` is as configured.
pub fn render(
    status: &Status,
    circumstances: &Circumstances,
    verdict: &Verdict,
    acknowledge: usize,
    now: Timestamp,
) -> String {
    let mut text = start(&status.cluster, true, now);
    text.one(
        "walden_verdict",
        "What status says: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.",
        number(verdict.verdict),
    );
    text.gauge(
        "walden_rule",
        "The level of each rule of the verdict: 0 OK, 1 WARNING, 2 CRITICAL.",
        RULES.map(|rule| (vec![("rule", rule)], number(verdict.level_of(rule)))),
    );
    backups(&mut text, status, now);
    wal(&mut text, status, acknowledge, now);
    repositories(&mut text, status, now);
    let verified = |verified: &super::verdict::Verified| verified.at.map(|at| age(now, at).as_secs_f64());
    text.gauge(
        "walden_verified_age_seconds",
        "Time since the last verification that looked at all and found nothing wrong.",
        circumstances
            .verified
            .iter()
            .filter_map(|one| Some((vec![("repository", one.repository.as_str())], verified(one)?))),
    );
    text.gauge(
        "walden_verify_problems",
        "Objects that the last verification found to be wrong.",
        circumstances
            .verified
            .iter()
            .map(|one| (vec![("repository", one.repository.as_str())], one.last_problems as f64)),
    );
    let path = |space: &super::verdict::Space| space.path.display().to_string();
    let spaces: Vec<(String, &super::verdict::Space)> =
        circumstances.spaces.iter().map(|space| (path(space), space)).collect();
    text.gauge(
        "walden_disk_free_bytes",
        "Free bytes on the disks of state_dir, pg_wal and repositories that are directories.",
        spaces
            .iter()
            .map(|(path, space)| (vec![("of", space.name.as_str()), ("path", path)], space.free as f64)),
    );
    text.gauge(
        "walden_disk_size_bytes",
        "Bytes of these disks as a whole.",
        spaces
            .iter()
            .map(|(path, space)| (vec![("of", space.name.as_str()), ("path", path)], space.size as f64)),
    );
    text.out
}

/// Returns the metrics where nothing could be found out.
pub fn unknown(cluster: &str, now: Timestamp) -> String {
    let mut text = start(cluster, false, now);
    text.one("walden_verdict", "What status says: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.", 3.0);
    text.out
}

fn start(cluster: &str, up: bool, now: Timestamp) -> Text {
    let mut text = Text { out: String::new(), cluster: cluster.to_owned() };
    text.gauge(
        "walden_info",
        "The version of walden.",
        [(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)],
    );
    text.one(
        "walden_up",
        "Whether the state of the cluster's archive could be found out.",
        f64::from(u8::from(up)),
    );
    text.one(
        "walden_collected_timestamp_seconds",
        "When these metrics were collected, in seconds since 1970.",
        now.as_microsecond() as f64 / 1e6,
    );
    text
}

fn backups(text: &mut Text, status: &Status, now: Timestamp) {
    if status.repositories.iter().all(|repository| repository.problem.is_some()) {
        return;
    }
    text.one("walden_backups", "Complete base backups in any repository.", status.backups.len() as f64);
    if let Some(newest) = status.backups.first() {
        text.one(
            "walden_backup_age_seconds",
            "Time since the newest base backup ended.",
            age(now, newest.stop_time).as_secs_f64(),
        );
        text.one(
            "walden_backup_size_bytes",
            "Size of the database in the newest base backup.",
            newest.size as f64,
        );
        text.one(
            "walden_backup_stored_bytes",
            "What the newest base backup takes in a repository.",
            newest.stored_size as f64,
        );
    }
    if let Some(before) = status.backups.get(1) {
        text.one(
            "walden_previous_backup_size_bytes",
            "Size of the database in the base backup before the newest.",
            before.size as f64,
        );
    }
    text.one(
        "walden_bad_pages",
        "Pages with wrong checksums that the newest base backup found.",
        status.bad_pages.as_ref().map_or(0, |bad| bad.pages) as f64,
    );
    let gaps = status.windows.iter().filter(|window| window.gap.is_some()).count();
    text.one("walden_gaps", "Windows behind which WAL is missing.", gaps as f64);
    if let Some(newest) = status.windows.iter().max_by_key(|window| window.end_lsn) {
        text.one(
            "walden_window_seconds",
            "For how long back from now the newest window reaches.",
            age(now, newest.from).as_secs_f64(),
        );
    }
}

fn wal(text: &mut Text, status: &Status, acknowledge: usize, now: Timestamp) {
    if status.pg_wal_read {
        text.one(
            "walden_oldest_unarchived_commit_seconds",
            "Age of the oldest commit that fewer repositories hold than have to; 0 if there is none.",
            oldest_unarchived(status, acknowledge).map_or(0.0, |oldest| age(now, oldest).as_secs_f64()),
        );
    }
    text.one(
        "walden_archived_age_seconds",
        "Time since a segment was last archived, as the index knows it.",
        status.newest_archived.map(|newest| age(now, newest).as_secs_f64()),
    );
    text.one(
        "walden_archived_commit_age_seconds",
        "Age of the newest commit that is archived, as the index knows it.",
        status.newest_commit.map(|newest| age(now, newest).as_secs_f64()),
    );
    if let Some(wal) = status.wal {
        text.one(
            "walden_wal_rate_bytes_per_second",
            "WAL that was archived over the last hour.",
            wal.bytes_per_second as f64,
        );
        text.one(
            "walden_wal_disk_full_seconds",
            "In how long the disk of pg_wal is full at this rate if nothing is archived.",
            wal.full_after_seconds.map(|seconds| seconds as f64),
        );
    }
    text.one(
        "walden_bad_wal_records",
        "WAL records since the newest base backup that no recovery can pass.",
        status.bad_wal.len() as f64,
    );
    text.one(
        "walden_damaged_objects",
        "Objects that were found damaged and are not mended yet.",
        status.damage.len() as f64,
    );
}

fn repositories(text: &mut Text, status: &Status, now: Timestamp) {
    let all = &status.repositories;
    let mut family = |name: &str, help: &str, value: &dyn Fn(usize) -> Option<f64>| {
        let samples =
            (0..all.len()).filter_map(|at| Some((vec![("repository", all[at].name.as_str())], value(at)?)));
        text.gauge(name, help, samples);
    };
    let usable = |at: usize| all[at].problem.is_none();
    let flag = |value: bool| Some(f64::from(u8::from(value)));
    family("walden_repository_up", "Whether the repository answers and knows the cluster.", &|at| {
        flag(usable(at))
    });
    family(
        "walden_repository_behind_segments",
        "Segments that the repository lacks and another one holds.",
        &|at| Some(all[at].behind as f64),
    );
    family(
        "walden_repository_oldest_unarchived_commit_seconds",
        "Age of the oldest commit that the repository does not hold; 0 if there is none.",
        &|at| Some(all[at].oldest_unarchived_commit.map_or(0.0, |oldest| age(now, oldest).as_secs_f64())),
    );
    family(
        "walden_repository_breaker_open",
        "Whether archive-push leaves the repository alone for now.",
        &|at| flag(all[at].breaker.as_ref().is_some_and(|breaker| breaker.open)),
    );
    family("walden_repository_segments", "WAL segments in the repository.", &|at| {
        usable(at).then_some(all[at].segments as f64)
    });
    family("walden_repository_wal_bytes", "What these take in the repository.", &|at| {
        usable(at).then_some(all[at].stored_bytes as f64)
    });
    family("walden_repository_backups", "Complete base backups in the repository.", &|at| {
        usable(at).then_some(all[at].backups as f64)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_still_has_a_verdict_and_labels_are_escaped() {
        let text = unknown("a\"b\\c", Timestamp::from_second(5).unwrap());
        assert!(text.contains("walden_verdict{cluster=\"a\\\"b\\\\c\"} 3\n"), "{text}");
        assert!(text.contains("walden_up{cluster=\"a\\\"b\\\\c\"} 0\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split('{').next().unwrap();
            assert!(
                text.contains(&format!("# HELP {name} ")) && text.contains(&format!("# TYPE {name} gauge"))
            );
        }
    }
}
