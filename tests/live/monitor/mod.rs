//! status as a judge, and metrics: each rule is driven to each of its states by what really causes it.
//!
//! `backups`, `wal`, `repositories` and `disks` hold what drives the rules; [`STATES`] says which there are.

mod backups;
mod disks;
mod metrics;
mod repositories;
mod wal;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use walden::upkeep::verdict::RULES;

use crate::support::site::walk;
use crate::support::{Finished, Ledger, Site, live_test, wait_until};

/// The state of a rule that has nothing to say.
const SILENT: &str = "silent";

/// Every rule with the levels that it knows.
const STATES: [(&str, &[&str]); 15] = [
    ("backup-age", &["critical"]),
    ("backup-size", &["warning"]),
    ("bad-pages", &["critical"]),
    ("unarchived", &["warning", "critical"]),
    ("gap", &["critical", "warning", "info"]),
    ("bad-wal", &["critical"]),
    ("repository-down", &["warning", "critical"]),
    ("repository-behind", &["warning"]),
    ("damaged-objects", &["warning"]),
    ("verify-failed", &["critical"]),
    ("verify-age", &["warning"]),
    ("free-space", &["warning", "critical"]),
    ("wal-disk", &["warning"]),
    ("retention", &["warning"]),
    ("expire-overdue", &["info"]),
];

/// Thresholds by which the disks of the machine that runs the tests are large enough.
const ENOUGH: &str = "[status]\nfree_warning = 0\nfree_critical = 0\n";

#[test]
fn every_rule_is_in_the_table_and_in_the_documentation_with_its_levels() {
    assert_eq!(STATES.map(|(rule, _)| rule), RULES);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/monitoring.md")).expect("read");
    for (rule, levels) in STATES {
        let row = format!("| `{rule}` | {} | ", levels.join(", "));
        assert!(page.contains(&row), "docs/monitoring.md has no row {row}");
    }
}

#[test]
fn every_rule_is_driven_to_each_of_its_states_and_back() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/live/monitor");
    let files = fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path());
    let text: String = files.map(|path| fs::read_to_string(path).expect("read")).collect();
    for (rule, levels) in STATES {
        let mut states: Vec<String> = levels.iter().map(|level| format!("{level:?}")).collect();
        states.push("SILENT".to_owned());
        for state in states {
            let says = format!("(&site, \"{rule}\", {state}");
            assert!(text.contains(&says), "no test drives {rule} to {state}: none has {says}");
        }
    }
}

/// Replaces the sections [status], [retention] and [notify] of the site's configuration.
fn configure(site: &Site, sections: &str) {
    const MARK: &str = "\n# of the test\n";
    let text = fs::read_to_string(&site.config).expect("read");
    let text = text.split(MARK).next().expect("a part");
    fs::write(&site.config, format!("{text}{MARK}{sections}\n")).expect("write");
}

/// Returns what `status` says of one rule: its level, or [`SILENT`]. With `about` only reasons whose text has that in it count.
fn state(site: &Site, rule: &str, about: &str, more: &[&str]) -> String {
    let finished = site.walden.run(&[&["status", "--output", "json"], more].concat());
    let status: serde_json::Value =
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"));
    let reasons = status["reasons"].as_array().expect("reasons");
    let is = |reason: &&serde_json::Value| {
        assert!(reason["hint"].is_string(), "{reason}");
        reason["rule"] == rule && reason["text"].as_str().expect("a text").contains(about)
    };
    // The worst comes first.
    let found = reasons.iter().find(is);
    found.map_or(SILENT, |reason| reason["level"].as_str().expect("a level")).to_owned()
}

/// Asserts what a rule says.
#[track_caller]
fn says(site: &Site, rule: &str, expected: &str) {
    assert_eq!(state(site, rule, "", &[]), expected, "{rule}");
}

/// As [`says`], by the reasons whose text names `about`.
#[track_caller]
fn says_of(site: &Site, rule: &str, expected: &str, about: &str) {
    assert_eq!(state(site, rule, about, &[]), expected, "{rule} {about}");
}

/// Waits until a rule says so.
#[track_caller]
fn comes_to_say(site: &Site, rule: &str, expected: &str) {
    wait_until(format!("{rule} is {expected}"), || state(site, rule, "", &[]) == expected);
}

/// Asserts what a rule would say so many hours from now: for what only days bring about.
#[track_caller]
fn would_say_after_hours(site: &Site, hours: i64, rule: &str, expected: &str) {
    let then = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
    assert_eq!(state(site, rule, "", &["--now", &then.to_string()]), expected, "{rule}");
}

fn monitor(site: &Site) -> Finished {
    site.walden.run(&["status", "--monitor"])
}

fn back_up(site: &Site) {
    site.walden.run(&["base-backup", "--fast"]).ok();
}

/// Takes a repository away or, if it is away, brings it back.
fn take_away(site: &Site, repository: &str) {
    let (here, away) = (site.repository(repository), site.work.join(format!("{repository}-away")));
    let (from, to) = if here.exists() { (here, away) } else { (away, here) };
    fs::rename(from, to).expect("rename");
}

/// Returns the directories of a repository's backups, oldest first.
fn backups_in(site: &Site, repository: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(&site.repository(repository), &mut files);
    files.retain(|path| path.ends_with("backup.json"));
    let mut dirs: Vec<PathBuf> = files.iter().filter_map(|path| Some(path.parent()?.to_path_buf())).collect();
    dirs.sort();
    dirs
}

/// Returns the ids of the backups, oldest first.
fn backups(site: &Site) -> Vec<String> {
    let name = |dir: &PathBuf| Some(dir.file_name()?.to_string_lossy().into_owned());
    backups_in(site, "primary").iter().filter_map(name).collect()
}

live_test!(
    [14, 17]
    fn the_verdict_is_one_line_with_an_exit_code_for_monitoring(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        configure(&site, ENOUGH);
        let none = monitor(&site).expect_code(2);
        assert!(none.stdout.starts_with("CRITICAL: there is no base backup"), "{none}");
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.archive_a_segment();
        let good = monitor(&site).expect_code(0);
        assert!(good.stdout.starts_with("OK | backup_age="), "{good}");
        assert_eq!(site.walden.run(&["status"]).ok().stdout.lines().last(), Some("OK"));

        // One repository away is a warning, both are critical, and so is one that all have to hold.
        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        let down = monitor(&site).expect_code(1);
        assert!(down.stdout.starts_with("WARNING: repository \"replica\" cannot be used"), "{down}");
        let text = fs::read_to_string(&site.config).expect("read");
        assert!(text.contains("acknowledge = 1 "), "{text}");
        fs::write(&site.config, text.replace("acknowledge = 1 ", "acknowledge = 2 ")).expect("write");
        monitor(&site).expect_code(2);
        fs::write(&site.config, text).expect("write");
        fs::rename(site.repository("primary"), site.work.join("away-too")).expect("rename");
        monitor(&site).expect_code(2);
        says(&site, "repository-down", "critical");

        // Where it cannot judge at all it says so.
        configure(&site, "[status]\nnonsense = 1");
        let unknown = monitor(&site).expect_code(3);
        assert!(unknown.stdout.starts_with("UNKNOWN: "), "{unknown}");
        site.walden.run(&["status"]).expect_code(3);
    }
);
