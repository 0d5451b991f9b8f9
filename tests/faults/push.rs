//! A push whose stores fail at call number N, for every N and in every way.

use std::time::Duration;

use walden::archive::Pushed;
use walden::kind::Kind;
use walden::storage::faulty::{Fault, Moment};

use crate::segment::{name, segment};
use crate::site::{EVERYWHERE, Site, Where};

/// The calls of one push are far fewer; a loop that never ends is a bug of the test.
const MOST_CALLS: u64 = 200;

/// Fails one call, or all from one onward.
#[derive(Debug, Clone, Copy)]
enum Extent {
    Once,
    FromThenOn,
}

/// One push of a segment with two waiting neighbours and a history, with `fault` at call `call`. Returns whether there
/// was such a call.
fn try_one(fault: Fault, extent: Extent, place: Where, acknowledge: usize, attempts: u32, call: u64) -> bool {
    let when = format!("{fault:?} {extent:?} at call {call} in {place:?}, acknowledge {acknowledge}");
    let site = Site::new(acknowledge, attempts);
    site.add_segment(&name(1), 1);
    site.push(&name(1)).unwrap();
    let history = b"1\t0/100000\tno recovery target specified\n".to_vec();
    let mut waiting: Vec<(String, Vec<u8>)> =
        (2..4).map(|number| (name(number), segment(&name(number), u64::from(number)))).collect();
    waiting.push(("00000002.history".to_owned(), history));
    for (name, content) in &waiting {
        site.add(name, content);
    }
    let before = site.snapshot();
    site.reset_faults();
    let faults = site.faults_in(place);
    for faults in &faults {
        match extent {
            Extent::Once => faults.fail_at(call, fault),
            Extent::FromThenOn => faults.fail_from(call, fault),
        }
    }

    let outcome = site.push(&name(2));
    let there_was_one = match extent {
        Extent::Once => faults.iter().any(|faults| faults.calls() >= call),
        Extent::FromThenOn => faults.iter().any(|faults| faults.fired() > 0),
    };
    if outcome.is_ok() {
        site.assert_archived(&name(2), &waiting[0].1, &when);
    }
    // One good repository is enough where one must acknowledge.
    if acknowledge == 1 && place != Where::Both {
        assert!(outcome.is_ok(), "{when}: {}", outcome.unwrap_err());
    }
    if let Err(error) = &outcome {
        assert_eq!(error.kind(), Kind::Repository, "{when}: {error}");
    }
    site.assert_only_added(&before, &when);

    // Whatever was left undone is done by the next calls, and what the index says is true.
    site.reset_faults();
    let before = site.snapshot();
    for (name, content) in &waiting {
        site.push(name).unwrap_or_else(|error| panic!("{when}: again: {error}"));
        site.assert_archived(name, content, &when);
    }
    site.assert_only_added(&before, &when);
    assert_eq!(site.push(&name(2)).unwrap(), Pushed::KnownByIndex, "{when}");
    there_was_one
}

fn at_every_call(fault: Fault, extent: Extent, attempts: u32) {
    // A failure in one repository is the same to all of them where all must acknowledge.
    let cases = EVERYWHERE.map(|place| (place, 1)).into_iter().chain([(Where::Second, 2), (Where::Both, 2)]);
    for (place, acknowledge) in cases {
        let mut call = 1;
        while try_one(fault, extent, place, acknowledge, attempts, call) {
            call += 1;
            assert!(call < MOST_CALLS);
        }
    }
}

#[test]
fn a_call_that_fails_without_effect() {
    at_every_call(Fault::Error(Moment::Before), Extent::Once, 1);
}

#[test]
fn a_call_whose_answer_is_lost() {
    at_every_call(Fault::Error(Moment::After), Extent::Once, 1);
}

#[test]
fn a_store_that_dies_after_its_last_deed() {
    at_every_call(Fault::Error(Moment::After), Extent::FromThenOn, 1);
}

#[test]
fn a_store_that_stops_answering() {
    at_every_call(Fault::Timeout(Moment::Before), Extent::FromThenOn, 1);
}

#[test]
fn a_store_that_begins_to_refuse() {
    at_every_call(Fault::Refusal, Extent::FromThenOn, 1);
}

#[test]
fn reads_that_are_cut_broken_or_wrong() {
    for fault in [Fault::Truncate, Fault::Break, Fault::BitFlip] {
        at_every_call(fault, Extent::FromThenOn, 1);
    }
}

#[test]
fn a_call_that_is_slow() {
    at_every_call(Fault::Slow(Duration::from_millis(20)), Extent::Once, 1);
}

/// Every single failure that may pass is ridden out: the archiver never hears of it.
#[test]
fn one_failure_that_may_pass_is_ridden_out() {
    for moment in [Moment::Before, Moment::After] {
        for call in 1..MOST_CALLS {
            let site = Site::new(2, 2);
            let path = site.add_segment(&name(1), 1);
            site.faults[0].fail_at(call, Fault::Error(moment));
            site.push(&name(1)).unwrap_or_else(|error| panic!("{moment:?} {call}: {error}"));
            site.assert_archived(&name(1), &std::fs::read(path).unwrap(), "ridden out");
            if site.faults[0].calls() < call {
                break;
            }
        }
    }
}

/// An object that somebody's copy left empty has the right key and counts for nothing.
#[test]
fn an_empty_object_is_no_copy() {
    let site = Site::new(2, 1);
    let path = site.add_segment(&name(1), 1);
    site.push(&name(1)).unwrap();
    std::fs::remove_file(site.path("state/index.sqlite")).unwrap();
    let objects = site.snapshot().into_keys().filter(|path| path.to_string_lossy().contains("/wal/"));
    let empty = objects.into_iter().find(|path| path.starts_with(site.path("b")));
    let empty = empty.unwrap();
    std::fs::write(&empty, "").unwrap();
    assert_eq!(site.push(&name(1)).unwrap_err().kind(), Kind::Repository);
    std::fs::remove_file(&empty).unwrap();
    site.push(&name(1)).unwrap();
    site.assert_archived(&name(1), &std::fs::read(path).unwrap(), "stored anew");
}

/// An object that was cut, as by somebody's copy that ran out of space, has the right key and counts for nothing: it is
/// noted as damage, and once it is out of the way the next call stores the segment anew.
#[test]
fn a_cut_object_is_no_copy() {
    for (cut, what) in [(1, "by a byte"), (20_000, "at a chunk"), (usize::MAX - 100, "in its header")] {
        let mut site = Site::new(1, 1);
        let content = segment(&name(1), 1);
        site.add(&name(1), &content);
        site.push(&name(1)).unwrap();
        std::fs::remove_file(site.path("state/index.sqlite")).unwrap();
        // Whole, it is acknowledged, also by a host that does not know with which size it was stored.
        assert_eq!(site.push(&name(1)).unwrap(), Pushed::HeldAlready);
        std::fs::remove_file(site.path("state/index.sqlite")).unwrap();
        let objects: Vec<_> = site
            .snapshot()
            .into_iter()
            .filter(|(path, _)| path.to_string_lossy().contains("/wal/"))
            .collect();
        assert_eq!(objects.len(), 2);
        let (damaged, bytes) = &objects[0];
        let length = bytes.len().saturating_sub(cut).max(100);
        std::fs::write(damaged, &bytes[..length]).unwrap();
        // One whole copy is enough here, and the other one is known to be damaged.
        site.push(&name(1)).unwrap();
        let index = walden::index::Index::open(&site.path("state/index.sqlite")).unwrap();
        let damages = index.damages().unwrap();
        assert!(matches!(&damages[..], [one] if damaged.ends_with(&one.key)), "{what}: {damages:?}");

        site.acknowledge = 2;
        std::fs::remove_file(site.path("state/index.sqlite")).unwrap();
        assert_eq!(site.push(&name(1)).unwrap_err().kind(), Kind::Repository, "{what}");
        assert_eq!(std::fs::read(damaged).unwrap().len(), length, "{what}: nothing was overwritten");
        std::fs::rename(damaged, site.path("moved-away")).unwrap();
        site.push(&name(1)).unwrap();
        site.assert_archived(&name(1), &content, what);
    }
}

/// What a killed process left is removed by a later call once it is old; what somebody may be writing is not.
#[test]
fn what_killed_processes_left_is_removed_by_a_later_call() {
    let site = Site::new(2, 1);
    site.add_segment(&name(1), 1);
    site.push(&name(1)).unwrap();
    let object = site.snapshot().into_keys().find(|path| path.to_string_lossy().contains("/wal/")).unwrap();
    let leave = |random: &str, minutes: u64| {
        let file = object.file_name().unwrap().to_string_lossy().into_owned();
        let path = object.with_file_name(format!(".{file}.4711.{random}.tmp"));
        let then = std::time::SystemTime::now() - Duration::from_mins(minutes);
        std::fs::File::create(&path).unwrap().set_modified(then).unwrap();
        path
    };
    let (old, young) = (leave("0000000a", 90), leave("0000000b", 30));
    site.add_segment(&name(2), 2);
    site.push(&name(2)).unwrap();
    assert!(!old.exists() && young.exists());
    // And beside the file that a server asks for.
    let left = site.path(".RECOVERYXLOG.4711.0123abcd.tmp");
    let then = std::time::SystemTime::now() - Duration::from_mins(90);
    std::fs::File::create(&left).unwrap().set_modified(then).unwrap();
    let get = |target: &str| {
        let opener = crate::site::opener();
        let options = site.get_options();
        walden::archive::get(&name(1), &site.path(target), &options, &site.repositories(), &opener).unwrap();
    };
    get("other");
    assert!(left.exists(), "another file's");
    get("RECOVERYXLOG");
    assert!(!left.exists());
}
