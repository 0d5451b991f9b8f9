//! A run that breaks off at any call leaves only whole backups, and the next one ends where an unbroken one does.

use super::world::{SIZE, World, expire, repository};
use crate::postgres::{Lsn, TimelineId, WalSegmentName};
use crate::repository::read_summary;
use crate::storage::faulty::{Fault, Faults, Faulty, Moment};
use crate::upkeep::retention::Policy;
use jiff::Timestamp;
use std::sync::Arc;

fn time(hours: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + hours * 3600).unwrap()
}

const POLICY: Policy = Policy {
    keep_last: Some(2),
    keep_daily: None,
    keep_weekly: None,
    keep_monthly: None,
    keep_yearly: None,
    window: Some(std::time::Duration::from_secs(60 * 3600)),
};
const NOW: i64 = 8 * 24;

/// Eight days with a backup each, two timelines, something broken off, something aside.
fn world() -> World {
    let world = World::new();
    let leftover = format!("{}data/0000000.lz4", world.keys.backup("20200101T000000Z-00000001-00000000"));
    world.store.set_now(time(0));
    world.store.put(&leftover, "piece");
    let text = format!("1\t{}\tpromoted\n", Lsn(16 * SIZE.bytes()));
    for number in 0..32 {
        let timeline = if number < 16 { 1 } else { 2 };
        world.segment(timeline, number, time(number.cast_signed() * 6));
        let name = WalSegmentName::from_number(TimelineId(timeline), number, SIZE);
        world.store.put(&format!("{}{name}-0badc0de.lz4", world.keys.aside()), "aside");
        if number == 16 {
            world.history(2, &text, time(96));
        }
        if number % 4 == 1 {
            world.backup(timeline, number - 1, number, time(number.cast_signed() * 6 + 1));
        }
    }
    world
}

/// Checks that every backup has all its objects and its WAL.
fn assert_whole(world: &World) {
    let repository = world.repository();
    let keys = world.store.keys();
    for id in world.backups() {
        let summary = read_summary(&repository, &world.keys, &id).unwrap();
        for object in summary.objects() {
            assert!(keys.contains(&format!("{}{}", world.keys.backup(&id), object.name)), "{id} {object:?}");
        }
        for segment in summary.wal_segments() {
            let found = world.has_segment(segment.timeline.0, segment.number(SIZE));
            assert!(found, "backup {id} lacks {segment}");
        }
        assert!(world.restores(&id), "{id}");
    }
}

#[test]
fn broken_off_at_any_call_it_leaves_whole_backups_and_the_next_run_ends_it() {
    let begin = world();
    assert_whole(&begin);
    let unbroken = begin.copy();
    let done = unbroken.expire(POLICY, time(NOW));
    assert!(done.failed.is_none() && done.backups.len() == 4 && done.objects > 40, "{done:?}");
    assert_whole(&unbroken);
    let kinds = [
        Fault::Error(Moment::Before),
        Fault::Error(Moment::After),
        Fault::Timeout(Moment::After),
        Fault::Refusal,
    ];
    for kind in kinds {
        for from_there_on in [false, true] {
            let mut call = 1;
            loop {
                let world = begin.copy();
                let faults = Faults::default();
                if from_there_on {
                    faults.fail_from(call, kind);
                } else {
                    faults.fail_at(call, kind);
                }
                let faulty = Faulty::with(Arc::clone(&world.store), faults.clone());
                expire(&repository("primary", Arc::new(faulty)), POLICY, time(NOW));
                assert_whole(&world);
                assert!(world.backups().is_superset(&unbroken.backups()), "{kind:?} at {call}");
                let again = world.expire(POLICY, time(NOW));
                assert!(again.failed.is_none(), "{again:?}");
                assert_eq!(world.store.keys(), unbroken.store.keys(), "{kind:?} at {call}");
                if faults.fired() == 0 {
                    break;
                }
                call += 1;
            }
            assert!(call > 60, "{call}");
        }
    }
}

#[test]
fn what_the_store_does_not_let_go_stays_whole_and_is_said() {
    let begin = world();
    let first = begin.backups().into_iter().next().unwrap();
    for (locked, what) in [
        (format!("{first}/backup.json"), "a summary under a lock"),
        (format!("{first}/data/0000001"), "a piece under a lock"),
        ("/wal/00000001/".to_owned(), "WAL under a lock"),
        ("main".to_owned(), "no right to delete"),
    ] {
        let world = begin.copy();
        world.store.lock(&locked);
        let outcome = world.expire(POLICY, time(NOW));
        assert!(outcome.failed.is_none() && outcome.refused > 0, "{what}: {outcome:?}");
        assert!(!outcome.refusals.is_empty() && outcome.refusals[0].contains("AccessDenied"), "{outcome:?}");
        assert_whole(&world);
        if locked == "main" {
            assert_eq!(world.store.keys(), begin.store.keys());
        } else {
            assert!(outcome.objects > 0, "{what}: the rest goes");
        }
        world.store.lock("");
        world.expire(POLICY, time(NOW + 60));
        assert_whole(&world);
        assert!(!world.backups().contains(&first), "{what}: gone once it may go");
    }
}
