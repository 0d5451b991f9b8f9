//! Each rule by itself. That each is driven by a real cause is in tests/live/monitor.rs.

use super::*;
use crate::index::{BadWal, Damage};
use crate::postgres::{Lsn, SystemIdentifier, TimelineId};
use crate::upkeep::bad_pages::BadPagesFound;
use crate::upkeep::status::{BackupStatus, RepositoryStatus, Window};
use jiff::SignedDuration;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now().checked_sub(SignedDuration::from_secs(seconds)).unwrap()
}

fn repository(name: &str) -> RepositoryStatus {
    RepositoryStatus {
        name: name.into(),
        url: format!("file:///{name}"),
        reachable: true,
        problem: None,
        created: Some(ago(400 * DAY)),
        segments: 5,
        stored_bytes: 5,
        newest_segment: None,
        newest_stored: Some(now()),
        behind: 0,
        oldest_unarchived_commit: None,
        breaker: None,
        backups: 1,
    }
}

fn backup(seconds: i64, size: u64) -> BackupStatus {
    BackupStatus {
        id: format!("b{seconds}"),
        label: String::new(),
        stop_time: ago(seconds),
        timeline: TimelineId(1),
        size,
        stored_size: size,
        repositories: vec!["a".into(), "b".into()],
        bad_pages: 0,
    }
}

fn window(from: i64, to: i64) -> Window {
    Window {
        timeline: TimelineId(1),
        from: ago(from),
        to: Some(ago(to)),
        to_is_commit: true,
        end_lsn: Lsn(5),
        gap: None,
        bad_wal: None,
        resumes: None,
        backups: 1,
    }
}

/// Two repositories, a fresh backup, nothing wrong.
fn healthy() -> Status {
    Status {
        cluster: "main".into(),
        system_identifier: SystemIdentifier(7),
        repositories: vec![repository("a"), repository("b")],
        backups: vec![backup(HOUR, 1000), backup(25 * HOUR, 1000)],
        windows: vec![window(25 * HOUR, 0)],
        newest_archived: Some(now()),
        pg_wal_read: true,
        newest_commit: Some(now()),
        wal: None,
        bad_wal: vec![],
        damage: vec![],
        bad_pages: None,
    }
}

/// Judges with thresholds as they are unless configured, and with the retention given for both repositories.
fn verdict_with(
    status: &Status,
    circumstances: &Circumstances,
    policy: Policy,
    acknowledge: usize,
) -> Verdict {
    let retention = if policy.is_empty() {
        BTreeMap::new()
    } else {
        BTreeMap::from([("a".to_owned(), policy), ("b".to_owned(), policy)])
    };
    let promises = Promises { thresholds: &Thresholds::default(), retention: &retention, acknowledge };
    judge(status, circumstances, &promises, now())
}

fn verdict(status: &Status) -> Verdict {
    verdict_with(status, &Circumstances::default(), Policy::default(), 1)
}

/// Returns the rules that spoke, with their levels.
fn said(verdict: &Verdict) -> Vec<(&'static str, Level)> {
    assert!(verdict.reasons.iter().all(|reason| RULES.contains(&reason.rule)), "{verdict:?}");
    verdict.reasons.iter().map(|reason| (reason.rule, reason.level)).collect()
}

fn days(n: i64) -> Duration {
    Duration::from_secs(u64::try_from(n * DAY).unwrap())
}

#[test]
fn a_healthy_cluster_is_ok_in_a_word() {
    let verdict = verdict(&healthy());
    assert_eq!((verdict.to_string().as_str(), verdict.verdict.exit_code()), ("OK", 0));
}

#[test]
fn backups_are_judged_by_age_size_and_pages() {
    let mut status = healthy();
    status.backups = vec![backup(26 * HOUR, 499), backup(50 * HOUR, 1000)];
    assert_eq!(said(&verdict(&status)), [("backup-age", Level::Critical), ("backup-size", Level::Warning)]);
    status.backups = vec![backup(24 * HOUR, 500), backup(50 * HOUR, 1000)];
    assert_eq!(said(&verdict(&status)), []);
    status.backups.clear();
    let none = verdict(&status);
    assert_eq!(none.to_string(), "CRITICAL: there is no base backup");
    let mut status = healthy();
    status.bad_pages = Some(BadPagesFound { backup: "b".into(), pages: 3, files: vec![], last_clean: None });
    assert_eq!(said(&verdict(&status)), [("bad-pages", Level::Critical)]);
}

#[test]
fn a_commit_counts_as_archived_once_as_many_repositories_hold_it_as_have_to() {
    let mut status = healthy();
    let at = |status: &Status, acknowledge: usize| {
        said(&verdict_with(status, &Circumstances::default(), Policy::default(), acknowledge))
            .into_iter()
            .find(|(rule, _)| *rule == "unarchived")
            .map(|(_, level)| level)
    };
    status.repositories[0].oldest_unarchived_commit = Some(ago(20 * MINUTE));
    assert_eq!((at(&status, 1), at(&status, 2)), (None, Some(Level::Critical)));
    status.repositories[1].oldest_unarchived_commit = Some(ago(6 * MINUTE));
    assert_eq!((at(&status, 1), at(&status, 2)), (Some(Level::Warning), Some(Level::Critical)));
    status.repositories[1].oldest_unarchived_commit = Some(ago(4 * MINUTE));
    assert_eq!(at(&status, 1), None);
}

#[test]
fn repositories_that_are_down_are_critical_when_too_few_are_left() {
    let down = |down: &[usize], acknowledge: usize| {
        let mut status = healthy();
        for at in down {
            status.repositories[*at].problem = Some("timed out".into());
        }
        said(&verdict_with(&status, &Circumstances::default(), Policy::default(), acknowledge))
    };
    assert_eq!(down(&[0], 1), [("repository-down", Level::Warning)]);
    assert_eq!(down(&[0], 2), [("repository-down", Level::Critical)]);
    assert_eq!(down(&[0, 1], 1), [("repository-down", Level::Critical); 2]);
    let mut status = healthy();
    status.repositories[1].behind = 2;
    status.repositories[1].oldest_unarchived_commit = Some(ago(MINUTE));
    assert_eq!(said(&verdict(&status)), [], "it may be on its way");
    status.repositories[1].oldest_unarchived_commit = Some(ago(6 * MINUTE));
    assert_eq!(said(&verdict(&status)), [("repository-behind", Level::Warning)]);
}

#[test]
fn a_gap_is_as_bad_as_the_moments_that_it_takes() {
    let level = |resumes: Option<i64>, policy: Policy| {
        let mut status = healthy();
        status.windows.push(Window {
            gap: Some("000000010000000000000007".parse().unwrap()),
            resumes: resumes.map(ago),
            ..window(300 * DAY, 200 * DAY)
        });
        verdict_with(&status, &Circumstances::default(), policy, 1).level_of("gap")
    };
    let none = Policy::default();
    let week = Policy { window: Some(days(7)), ..none };
    assert_eq!(level(None, none), Level::Critical);
    assert_eq!(level(Some(100 * DAY), none), Level::Warning);
    assert_eq!(level(Some(DAY), week), Level::Critical);
    assert_eq!(level(Some(100 * DAY), week), Level::Info, "expire took it on purpose");
}

#[test]
fn wal_and_objects_that_are_bad_are_told() {
    let mut status = healthy();
    status.bad_wal =
        vec![BadWal { segment: "000000010000000000000007".into(), lsn: Lsn(7), reason: "CRC".into() }];
    status.damage =
        vec![Damage { url: "file:///a".into(), key: "k".into(), what: "cut off".into(), found: now() }];
    assert_eq!(said(&verdict(&status)), [("bad-wal", Level::Critical), ("damaged-objects", Level::Warning)]);
}

#[test]
fn verification_is_asked_for_once_backups_are_old_enough() {
    let of = |at: Option<i64>, last_problems: u64, oldest: i64| {
        let mut status = healthy();
        status.backups[1].stop_time = ago(oldest);
        let verified = Verified { repository: "a".into(), at: at.map(ago), last_problems };
        let circumstances = Circumstances { verified: vec![verified], ..Circumstances::default() };
        said(&verdict_with(&status, &circumstances, Policy::default(), 1))
    };
    assert_eq!(of(None, 0, 6 * DAY), []);
    assert_eq!(of(None, 0, 8 * DAY), [("verify-age", Level::Warning)]);
    assert_eq!(of(Some(8 * DAY), 0, 9 * DAY), [("verify-age", Level::Warning)]);
    assert_eq!(of(Some(6 * DAY), 0, 9 * DAY), []);
    assert_eq!(of(Some(DAY), 1, DAY), [("verify-failed", Level::Critical)]);
}

#[test]
fn disks_are_judged_by_what_is_free_and_how_long_it_lasts() {
    let of = |free: u64| {
        let space = Space { name: "pg_wal".into(), path: "/x".into(), free, size: 1000 };
        let circumstances = Circumstances { spaces: vec![space], ..Circumstances::default() };
        said(&verdict_with(&healthy(), &circumstances, Policy::default(), 1))
    };
    assert_eq!(of(200), []);
    assert_eq!(of(199), [("free-space", Level::Warning)]);
    assert_eq!(of(49), [("free-space", Level::Critical)]);
    let mut status = healthy();
    status.wal = Some(serde_flow(23 * 3600));
    assert_eq!(said(&verdict(&status)), [], "archiving works");
    for repository in &mut status.repositories {
        repository.oldest_unarchived_commit = Some(ago(6 * MINUTE));
    }
    assert_eq!(said(&verdict(&status)), [("unarchived", Level::Warning), ("wal-disk", Level::Warning)]);
    status.wal = Some(serde_flow(25 * 3600));
    assert_eq!(said(&verdict(&status)), [("unarchived", Level::Warning)]);
}

fn serde_flow(full: u64) -> crate::upkeep::flow::Flow {
    crate::upkeep::flow::Flow { bytes_per_second: 1, free_bytes: Some(full), full_after_seconds: Some(full) }
}

#[test]
fn the_retention_is_met_when_the_window_and_the_backups_are_there() {
    let week = Policy { window: Some(days(7)), ..Policy::default() };
    let judged = |status: &Status, policy| said(&verdict_with(status, &Circumstances::default(), policy, 1));
    let mut status = healthy();
    assert_eq!(judged(&status, week), [("retention", Level::Warning)]);
    status.windows = vec![window(8 * DAY, 0)];
    assert_eq!(judged(&status, week), []);
    // A cluster that is young has not had the time.
    status.windows = vec![window(2 * DAY, 0)];
    for repository in &mut status.repositories {
        repository.created = Some(ago(3 * DAY));
    }
    assert_eq!(judged(&status, week), []);
    let daily = Policy { keep_daily: Some(30), ..Policy::default() };
    status.backups = (0..3).map(|day| backup(HOUR + day * DAY, 1000)).collect();
    assert_eq!(judged(&status, daily), []);
    for repository in &mut status.repositories {
        repository.created = Some(ago(8 * DAY));
    }
    assert_eq!(judged(&status, daily), [("retention", Level::Warning); 2]);
}

#[test]
fn what_expire_should_have_removed_long_ago_is_found() {
    let policy = Policy { keep_last: Some(2), window: Some(days(1)), ..Policy::default() };
    let mut status = healthy();
    status.backups = (0..20).map(|day| backup(HOUR + day * DAY, 1000)).collect();
    let left = kept::not_kept(&status, "a", &policy, now(), days(7));
    // Seven days ago the newest two were those of seven and eight days ago, and the window began with the latter.
    assert_eq!(left.len(), 11, "{left:?}");
    assert_eq!(left.first(), Some(&format!("b{}", HOUR + 19 * DAY)));
    assert!(kept::not_kept(&status, "a", &policy, now(), days(30)).is_empty());
}
