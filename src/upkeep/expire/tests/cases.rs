//! What stays and what goes, case by case.

use super::memory::Memory;
use super::world::{SIZE, World, repository};
use crate::index::{ArchivedRow, Fingerprint, IndexHandle, RepositoryStamp};
use crate::kind::Kind;
use crate::postgres::{ArchiveFileName, SystemIdentifier, TimelineId, WalSegmentName};
use crate::progress::Progress;
use crate::repository::{Repository, pin};
use crate::storage::faulty::{Fault, Faulty};
use crate::upkeep::expire::{Plan, Request, carry_out, plan, wanted};
use crate::upkeep::retention::Policy;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

fn time(hours: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + hours * 3600).unwrap()
}

fn last(count: u32) -> Policy {
    Policy { keep_last: Some(count), ..Policy::default() }
}

fn with_window(policy: Policy, hours: u64) -> Policy {
    Policy { window: Some(Duration::from_secs(hours * 3600)), ..policy }
}

/// A segment every hour and a backup every tenth, over `hours`, on timeline 1. Segment N is stored at hour N.
fn regular(world: &World, hours: i64) -> Vec<String> {
    let mut ids = Vec::new();
    for hour in 0..hours {
        world.segment(1, hour.cast_unsigned(), time(hour));
        if hour % 10 == 1 {
            ids.push(world.backup(1, hour.cast_unsigned() - 1, hour.cast_unsigned(), time(hour)));
        }
    }
    ids
}

fn segments(world: &World, timeline: u32) -> Vec<u64> {
    (0..200).filter(|number| world.has_segment(timeline, *number)).collect()
}

fn request(repositories: Vec<(&Repository, Policy)>, hours: i64) -> Request<'_> {
    Request {
        cluster: "main",
        repositories: repositories.into_iter().map(|(r, policy)| (r, Some(policy))).collect(),
        only: None,
        now: time(hours),
        busy: BTreeSet::new(),
    }
}

fn kept(plan: &Plan<'_>, repository: &str) -> BTreeSet<String> {
    let found = plan.repositories.iter().find(|plan| plan.name == repository).unwrap();
    let backups = found.systems.iter().flat_map(|system| &system.backups);
    backups.filter(|backup| backup.stays()).map(|backup| backup.id.clone()).collect()
}

#[test]
fn a_window_begins_at_the_newest_good_backup_that_ended_before_it() {
    let world = World::new();
    let ids = regular(&world, 50);
    // The window of 20 hours begins at hour 29; the backup before it ended at hour 21.
    world.expire(with_window(last(1), 20), time(49));
    assert_eq!(world.backups(), ids[2..].iter().cloned().collect());
    assert_eq!(segments(&world, 1), (20..50).collect::<Vec<_>>());
}

#[test]
fn a_broken_backup_is_no_beginning_of_a_window() {
    let world = World::new();
    let ids = regular(&world, 50);
    world.store.remove(&format!("{}data/0000001.lz4", world.keys.backup(&ids[2])));
    world.expire(with_window(last(1), 20), time(49));
    assert!(world.backups().contains(&ids[1]) && !world.backups().contains(&ids[0]));
    assert_eq!(segments(&world, 1), (10..50).collect::<Vec<_>>());
}

#[test]
fn without_a_window_wal_stays_from_the_oldest_kept_backup_on_and_a_pin_keeps_only_its_own() {
    let world = World::new();
    let ids = regular(&world, 50);
    pin(&world.repository(), &world.keys, &ids[0], time(0), &world.repository().deadline()).unwrap();
    world.expire(last(2), time(49));
    assert_eq!(world.backups(), [&ids[0], &ids[3], &ids[4]].into_iter().cloned().collect());
    assert_eq!(segments(&world, 1), [vec![0, 1], (30..50).collect()].concat());
    assert!(world.restores(&ids[0]));
}

#[test]
fn a_clock_that_is_wrong_removes_no_more_than_a_right_one() {
    let right = World::new();
    let ids = regular(&right, 50);
    let (ahead, back) = (right.copy(), right.copy());
    let policy = with_window(last(1), 20);
    right.expire(policy, time(49));
    ahead.expire(policy, time(24 * 365 * 30));
    assert_eq!(ahead.store.keys(), right.store.keys());
    let before = back.store.keys();
    back.expire(policy, time(-24 * 365));
    assert_eq!(back.store.keys(), before, "before the first backup: nothing goes");
    // The cluster rests: nothing ages.
    let rested = right.copy();
    rested.expire(policy, time(24 * 300));
    assert_eq!(rested.store.keys(), right.store.keys());
    assert!(rested.backups().contains(&ids[2]));
}

#[test]
fn what_belongs_to_a_segment_goes_with_it_and_histories_stay() {
    let world = World::new();
    regular(&world, 50);
    world.history(2, "1\t0/1E000000\tx\n", time(30));
    let mut expected = BTreeSet::new();
    for number in [5, 35] {
        let segment = WalSegmentName::from_number(TimelineId(1), number, SIZE);
        let names =
            [ArchiveFileName::Partial(segment), ArchiveFileName::BackupHistory { segment, offset: 40 }];
        let mut keys: Vec<String> =
            names.iter().map(|name| world.keys.wal_object(*name, 1, ".lz4")).collect();
        keys.push(format!("{}{segment}-00000002.lz4", world.keys.aside()));
        keys.push(format!("{}.damaged-1790000000", world.segment_key(1, number)));
        for key in keys {
            world.store.put(&key, "x");
            expected.extend((number == 35).then_some(key));
        }
    }
    world.store.put(&format!("{}somebody-elses", world.keys.histories()), "x");
    world.expire(with_window(last(1), 10), time(49));
    let keys = world.store.keys();
    assert!(expected.is_subset(&keys));
    assert_eq!(keys.iter().filter(|key| key.contains("0000000100000000000000005")).count(), 0);
    assert!(keys.iter().any(|key| key.contains("00000002.history")));
    assert!(keys.iter().any(|key| key.contains("somebody-elses")), "what is not understood stays");
}

#[test]
fn leftovers_go_when_they_are_old_and_nobody_works_on_them() {
    let world = World::new();
    regular(&world, 100);
    let put = |id: &str, stored: i64| {
        world.store.set_now(time(stored));
        world.store.put(&format!("{}data/0000000.lz4", world.keys.backup(id)), "piece");
    };
    put("old", 10);
    put("young", 60);
    put("busy", 10);
    let repository = world.repository();
    let mut request = request(vec![(&repository, last(50))], 100);
    request.busy.insert("busy".to_owned());
    let plan = plan(&request);
    let system = &plan.repositories[0].systems[0];
    assert_eq!(system.leftovers.iter().map(|l| l.id.as_str()).collect::<Vec<_>>(), ["old"]);
    carry_out(&plan.repositories[0], &IndexHandle::absent(), &Progress::new());
    let left = |id: &str| world.store.keys().iter().any(|key| key.contains(&format!("/{id}/")));
    assert!(!left("old") && left("young") && left("busy"));
}

#[test]
fn what_another_repository_holds_whole_waits_for_sync_if_it_would_be_kept() {
    let (primary, replica, ids) = two();
    for id in [&ids[0], &ids[4]] {
        primary.store.remove(&format!("{}backup.json", primary.keys.backup(id)));
    }
    for number in 50..120 {
        primary.segment(1, number, time(number.cast_signed()));
    }
    let (a, b) = (primary.repository(), repository("replica", Arc::clone(&replica.store) as _));
    let made = plan(&request(vec![(&a, last(2)), (&b, last(50))], 120));
    let system = &made.repositories[0].systems[0];
    assert_eq!(system.leftovers.iter().map(|l| &l.id).collect::<Vec<_>>(), [&ids[0]]);
    assert_eq!(system.leftovers_kept.iter().map(|l| &l.id).collect::<Vec<_>>(), [&ids[4]]);
}

#[test]
fn a_repository_in_which_anything_is_not_understood_is_left_alone() {
    for (what, body) in [("cut", "{\"format\":1"), ("newer", "{\"format\":2}")] {
        let world = World::new();
        let ids = regular(&world, 50);
        world.store.put(&format!("{}backup.json", world.keys.backup(&ids[4])), body);
        let before = world.store.keys();
        let outcome = world.expire(last(1), time(49));
        assert_eq!(outcome.failed.map(|error| error.kind()), Some(Kind::Corrupt), "{what}");
        assert_eq!(world.store.keys(), before);
    }
}

#[test]
fn a_backup_that_is_pinned_after_the_plan_was_made_stays_whole() {
    let world = World::new();
    let ids = regular(&world, 50);
    let repository = world.repository();
    let plan = plan(&request(vec![(&repository, with_window(last(1), 5))], 49));
    assert!(!kept(&plan, "primary").contains(&ids[1]));
    pin(&repository, &world.keys, &ids[1], time(49), &repository.deadline()).unwrap();
    let outcome = carry_out(&plan.repositories[0], &IndexHandle::absent(), &Progress::new());
    assert!(outcome.failed.is_none());
    assert!(world.restores(&ids[1]) && !world.backups().contains(&ids[0]));
}

/// The same archive in two repositories.
fn two() -> (World, World, Vec<String>) {
    let primary = World::new();
    let ids = regular(&primary, 50);
    let replica = primary.copy();
    (primary, replica, ids)
}

#[test]
fn each_repository_has_its_own_retention_and_a_pin_in_one_counts_in_all() {
    let (primary, replica, ids) = two();
    let (a, b) = (primary.repository(), repository("replica", Arc::clone(&replica.store) as _));
    pin(&b, &replica.keys, &ids[0], time(0), &b.deadline()).unwrap();
    let mut request = request(vec![(&a, last(1)), (&b, last(3))], 49);
    let made = plan(&request);
    assert_eq!(kept(&made, "primary"), [&ids[0], &ids[4]].into_iter().cloned().collect());
    assert_eq!(kept(&made, "replica"), [&ids[0], &ids[2], &ids[3], &ids[4]].into_iter().cloned().collect());
    request.only = Some("replica");
    let only = plan(&request);
    assert_eq!(only.repositories.len(), 1);
    request.only = None;
    request.repositories[0].1 = None;
    assert_eq!(plan(&request).repositories.len(), 1, "without a retention nothing is removed");
}

#[test]
fn what_another_repository_needs_and_lacks_stays() {
    let (primary, replica, ids) = two();
    replica.store.remove(&replica.segment_key(1, 25));
    replica.store.remove(&replica.segment_key(1, 3));
    let (a, b) = (primary.repository(), repository("replica", Arc::clone(&replica.store) as _));
    let made = plan(&request(vec![(&a, with_window(last(1), 5)), (&b, with_window(last(1), 28))], 49));
    let outcome = carry_out(&made.repositories[0], &IndexHandle::absent(), &Progress::new());
    assert!(outcome.failed.is_none());
    // The replica's window begins with segment 20; it has no use for segment 3.
    assert_eq!(made.repositories[0].systems[0].wal_kept_for["replica"], 1);
    assert!(primary.has_segment(1, 25) && !primary.has_segment(1, 24) && !primary.has_segment(1, 3));
    assert!(kept(&made, "replica").contains(&ids[2]));
}

#[test]
fn a_repository_that_cannot_be_reached_is_skipped_and_the_others_are_done() {
    let (primary, replica, _) = two();
    let down = Faulty::new(Memory::default());
    down.faults().fail_from(1, Fault::Error(crate::storage::faulty::Moment::Before));
    let (a, b) =
        (repository("primary", Arc::new(down)), repository("replica", Arc::clone(&replica.store) as _));
    let made = plan(&request(vec![(&a, last(1)), (&b, last(1))], 49));
    assert_eq!((made.skipped.len(), made.skipped[0].error.kind()), (1, Kind::Repository));
    assert_eq!((made.skipped[0].name.as_str(), kept(&made, "replica").len()), ("primary", 1));
    // An empty place is a disk that is not mounted, not an archive without backups.
    let empty = repository("empty", Arc::new(Memory::default()));
    assert_eq!(plan(&request(vec![(&empty, last(1))], 49)).skipped.len(), 1);
    drop(primary);
}

#[test]
fn after_an_upgrade_the_old_system_goes_by_and_by_and_never_before_the_new_one_has_a_backup() {
    let old = World::new();
    let ids = regular(&old, 50);
    let new = old.upgraded(SystemIdentifier(8));
    for hour in 50..90 {
        new.segment(1, hour, time(hour.cast_signed()));
    }
    let policy = with_window(last(2), 10);
    old.expire(policy, time(89));
    assert_eq!(old.backups(), ids[3..].iter().cloned().collect(), "the new one has nothing yet");
    assert_eq!(segments(&old, 1), [vec![30, 31], (40..50).collect()].concat());
    assert_eq!(segments(&new, 1), (50..90).collect::<Vec<_>>());
    for hour in (90..200).step_by(10) {
        for number in hour..hour + 10 {
            new.segment(1, number, time(number.cast_signed()));
        }
        new.backup(1, hour, hour + 1, time(hour.cast_signed() + 1));
        old.expire(policy, time(hour.cast_signed() + 10));
    }
    assert!(old.backups().is_empty() && segments(&old, 1).is_empty());
    let keys = old.store.keys();
    let of_old: Vec<&String> = keys.iter().filter(|key| key.starts_with("main/7/")).collect();
    assert_eq!(of_old, ["main/7/cluster.json"]);
    assert!(new.backups().len() >= 2);
}

#[test]
fn a_backup_that_ended_in_the_segment_of_a_fork_is_a_way_in_for_the_child() {
    let world = World::new();
    for number in 0..12 {
        world.segment(1, number, time(number.cast_signed()));
    }
    let before = world.backup(1, 2, 4, time(5));
    let after = world.backup(1, 8, 9, time(10));
    // The fork lies behind the end of the first backup, in the same segment.
    world.history(2, &format!("1\t{}\tx\n", crate::postgres::Lsn(4 * SIZE.bytes() + 4096)), time(12));
    for number in 4..80 {
        world.segment(2, number, time(number.cast_signed() + 8));
    }
    assert!(world.reaches(2, 70 * SIZE.bytes()));
    world.expire(with_window(last(1), 10), time(90));
    assert_eq!(world.backups(), BTreeSet::from([before, after]));
    assert!(world.reaches(2, 70 * SIZE.bytes()));
}

#[test]
fn of_two_that_live_side_by_side_neither_loses_its_last_backup() {
    let quiet = World::new();
    let ids = regular(&quiet, 20);
    let chatty = quiet.upgraded(SystemIdentifier(8));
    for hour in 20..60 {
        quiet.segment(1, hour, time(hour.cast_signed()));
        chatty.segment(1, hour, time(hour.cast_signed()));
        chatty.backup(1, hour, hour, time(hour.cast_signed()));
    }
    quiet.expire(last(2), time(60));
    assert_eq!(quiet.backups(), BTreeSet::from([ids[1].clone()]));
    assert_eq!(segments(&quiet, 1), (10..60).collect::<Vec<_>>());
    assert_eq!(chatty.backups().len(), 2);
}

#[test]
fn a_timeline_whose_parent_lives_on_keeps_the_way_in_through_the_parent() {
    let world = World::new();
    let ids = regular(&world, 60);
    // Timeline 2 left timeline 1 at segment 25 and has no backup; both live on.
    world.history(2, &format!("1\t{}\tx\n", crate::postgres::Lsn(25 * SIZE.bytes() + 8)), time(26));
    for number in 25..60 {
        world.segment(2, number, time(number.cast_signed()));
    }
    world.expire(with_window(last(1), 10), time(60));
    assert!(world.backups().contains(&ids[2]) && !world.backups().contains(&ids[1]), "{:?}", world.backups());
    assert!(world.reaches(2, 59 * SIZE.bytes() + 9) && world.reaches(1, 55 * SIZE.bytes()));
    // Once timeline 2 has a backup before the window, the parent need not be kept for it.
    let own = world.backup(2, 58, 59, time(61));
    for number in 60..120 {
        world.segment(2, number, time(number.cast_signed()));
    }
    world.expire(with_window(last(1), 10), time(120));
    assert_eq!(world.backups(), BTreeSet::from([own]));
    assert!(segments(&world, 1).is_empty(), "{:?}", segments(&world, 1));
    assert!(world.reaches(2, 88 * SIZE.bytes()));
}

#[test]
fn sync_wants_what_the_policy_of_the_target_keeps() {
    let (primary, replica, ids) = two();
    let policy = with_window(last(1), 10);
    primary.expire(policy, time(49));
    let (a, b) = (primary.repository(), repository("replica", Arc::clone(&replica.store) as _));
    let gone: Vec<String> = replica.store.keys().difference(&primary.store.keys()).cloned().collect();
    assert!(gone.len() > 20);
    let unwanted = wanted("main", (&a, policy), &[&b], time(49)).unwrap();
    assert!(gone.iter().all(|key| !unwanted(key)), "nothing of what expired comes back");
    // What was lost without having expired is wanted.
    primary.store.remove(&primary.segment_key(1, 41));
    primary.store.remove(&format!("{}backup.json", primary.keys.backup(&ids[4])));
    let again = wanted("main", (&a, policy), &[&b], time(49)).unwrap();
    assert!(again(&primary.segment_key(1, 41)) && !again(&primary.segment_key(1, 3)));
    assert!(again(&format!("{}backup.json", primary.keys.backup(&ids[4]))));
    assert!(again("main/7/cluster.json"));
    let whole = wanted("main", (&b, last(50)), &[&a], time(49)).unwrap();
    assert!(gone.iter().all(|key| whole(key)));
}

#[test]
fn the_index_forgets_what_is_gone_from_the_last_repository() {
    let dir = tempfile::tempdir().unwrap();
    let index = IndexHandle::open(&dir.path().join("index"));
    let world = World::new();
    regular(&world, 50);
    let name = |number| WalSegmentName::from_number(TimelineId(1), number, SIZE).to_string();
    let copy = |url: &str| RepositoryStamp { url: url.to_owned(), cluster_id: "id".to_owned() };
    let record = |number: u64, copies: &[RepositoryStamp], lacking: Vec<&str>| {
        let row = ArchivedRow {
            sysid: SystemIdentifier(7),
            name: &name(number),
            crc: number as u32,
            fingerprint: Fingerprint { device: 1, inode: 1, size: 1, mtime_ns: 1, ctime_ns: 1 },
            stored_size: Some(1),
            facts: None,
            copies,
            lacking,
        };
        index.run(|index| index.record_archived(&[row])).unwrap();
    };
    record(1, &[copy("memory:")], vec![]);
    record(2, &[copy("memory:"), copy("s3://other")], vec![]);
    record(3, &[copy("s3://other")], vec!["memory:"]);
    record(45, &[copy("memory:")], vec![]);
    let repository = world.repository();
    let made = plan(&request(vec![(&repository, with_window(last(1), 5))], 49));
    carry_out(&made.repositories[0], &index, &Progress::new());
    let files = index.run(|index| Ok(index.wal_files(SystemIdentifier(7)))).unwrap();
    assert_eq!(files, 3, "only the first had no other copy");
    let backlog = index.run(|index| index.backlog(SystemIdentifier(7), "memory:", 10)).unwrap();
    assert!(backlog.is_empty(), "{backlog:?}");
}
