//! A get whose stores fail at call number N, for every N and in every way: never "absent" by mistake, never a wrong or
//! half file.

use std::fs;
use std::time::{Duration, SystemTime};

use walden::archive::GetOptions;
use walden::kind::{Error, Kind};
use walden::storage::faulty::{Fault, Moment};

use crate::segment::{name, segment};
use crate::site::{EVERYWHERE, Site, Where, collect, is_temporary, opener};

const MOST_CALLS: u64 = 100;
const HISTORY: &str = "00000002.history";
const HISTORY_TEXT: &[u8] = b"1\t0/100000\tno recovery target specified\n";

const FAULTS: [Fault; 9] = [
    Fault::Error(Moment::Before),
    Fault::Error(Moment::After),
    Fault::Timeout(Moment::Before),
    Fault::Timeout(Moment::After),
    Fault::Refusal,
    Fault::Truncate,
    Fault::Break,
    Fault::BitFlip,
    Fault::Slow(Duration::from_millis(10)),
];

/// Returns a host whose repositories hold segments 1, 2 and 4, an hour old, and a history.
fn site() -> Site {
    let site = Site::new(2, 1);
    for number in [1, 2, 4] {
        site.add_segment(&name(number), u64::from(number));
    }
    site.add(HISTORY, HISTORY_TEXT);
    for number in [1, 2, 4] {
        site.push(&name(number)).unwrap();
    }
    site.push(HISTORY).unwrap();
    set_age(&site, SystemTime::now() - Duration::from_hours(1));
    site
}

/// Sets when every object was written, by the store's clock.
fn set_age(site: &Site, time: SystemTime) {
    for path in site.snapshot().keys() {
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
}

/// What a get found, and the file that it wrote.
struct Got {
    outcome: Result<(), Error>,
    file: Option<Vec<u8>>,
}

fn get(site: &Site, name: &str, when: &str) -> Got {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("RECOVERYXLOG");
    let outcome = walden::archive::get(name, &path, &site.get_options(), &site.repositories(), &opener());
    let mut found = std::collections::BTreeMap::new();
    collect(dir.path(), &mut found);
    assert!(found.keys().all(|path| !is_temporary(path)), "{when}: a temporary file is left");
    let file = found.remove(&path);
    assert!(found.is_empty(), "{when}: more files than one");
    Got { outcome: outcome.map(drop), file }
}

/// Gets `wanted`, of which `content` is known (none: it is nowhere), with each fault at each call.
fn at_every_call(wanted: &str, content: Option<&[u8]>, kinds: &[Kind]) {
    let site = site();
    for (fault, place, lasting) in FAULTS
        .into_iter()
        .flat_map(|fault| EVERYWHERE.map(|place| (fault, place)))
        .flat_map(|(fault, place)| [(fault, place, false), (fault, place, true)])
    {
        for call in 1..MOST_CALLS {
            let when = format!("{wanted}: {fault:?} at call {call} (lasting: {lasting}) in {place:?}");
            site.reset_faults();
            let faults = site.faults_in(place);
            for faults in &faults {
                if lasting { faults.fail_from(call, fault) } else { faults.fail_at(call, fault) }
            }
            let before = site.snapshot();
            let got = get(&site, wanted, &when);
            assert!(site.snapshot() == before, "{when}: a get changes nothing");
            let fired = faults.iter().any(|faults| faults.fired() > 0);
            match (&got.outcome, content) {
                (Ok(()), Some(content)) => {
                    assert!(got.file.as_deref() == Some(content), "{when}: wrong file");
                }
                (Ok(()), None) => panic!("{when}: found what is not there"),
                (Err(error), _) => {
                    assert!(got.file.is_none(), "{when}: failed and left a file");
                    let unproven = fired && !is_spoiled_or_slow(fault);
                    if error.kind() == Kind::Absent {
                        assert!(content.is_none() && !unproven, "{when}: absent");
                    }
                    let expected = if fired { &[Kind::Repository, Kind::Corrupt][..] } else { &[] };
                    assert!(
                        expected.contains(&error.kind()) || kinds.contains(&error.kind()),
                        "{when}: {error}"
                    );
                }
            }
            // With one good repository what is there is found.
            if content.is_some() && place != Where::Both {
                assert!(got.outcome.is_ok(), "{when}: {}", got.outcome.unwrap_err());
            }
            if faults.iter().all(|faults| faults.calls() < call) {
                break;
            }
        }
    }
}

/// Such faults leave the answer of a listing as it is.
fn is_spoiled_or_slow(fault: Fault) -> bool {
    matches!(fault, Fault::Truncate | Fault::Break | Fault::BitFlip | Fault::Slow(_))
}

#[test]
fn a_segment_that_is_there() {
    at_every_call(&name(2), Some(&segment(&name(2), 2)), &[]);
}

#[test]
fn a_segment_past_the_end() {
    at_every_call(&name(5), None, &[Kind::Absent]);
}

#[test]
fn a_segment_in_a_gap_is_never_absent() {
    at_every_call(&name(3), None, &[Kind::Doubt]);
}

#[test]
fn histories_that_are_there_and_are_not() {
    at_every_call(HISTORY, Some(HISTORY_TEXT), &[]);
    at_every_call("00000003.history", None, &[Kind::Absent]);
}

#[test]
fn without_faults_each_question_has_its_answer() {
    let site = site();
    let kind = |wanted: &str| get(&site, wanted, wanted).outcome.err().map(|error| error.kind());
    assert_eq!(kind(&name(1)), None);
    assert_eq!(kind(&name(3)), Some(Kind::Doubt));
    assert_eq!(kind(&name(5)), Some(Kind::Absent));
    assert_eq!(kind(HISTORY), None);
    assert_eq!(kind("00000003.history"), Some(Kind::Absent));
    assert_eq!(kind("00000001.history"), Some(Kind::Absent));
}

/// A host whose clock was set back sees objects from the future. A hole before one of them is looked at for twice the
/// deadline, and is then a gap, never the end.
#[test]
fn with_the_clock_set_back_a_gap_is_still_a_gap() {
    let site = site();
    set_age(&site, SystemTime::now() + Duration::from_hours(24));
    let began = std::time::Instant::now();
    let got = get(&site, &name(3), "clock set back");
    assert_eq!(got.outcome.unwrap_err().kind(), Kind::Doubt);
    let limit = site.get_options().deadline * 2;
    assert!((limit..limit * 3).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(get(&site, &name(5), "the end").outcome.unwrap_err().kind(), Kind::Absent);
    assert!(get(&site, &name(4), "there").outcome.is_ok());
}

/// A segment that comes while a get waits for it is fetched.
#[test]
fn a_segment_in_flight_is_waited_for() {
    let site = site();
    set_age(&site, SystemTime::now());
    site.add_segment(&name(3), 3);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get(&site, &name(3), "in flight"));
        std::thread::sleep(Duration::from_millis(300));
        site.push(&name(3)).unwrap();
        let got = waiting.join().unwrap();
        got.outcome.unwrap();
        assert!(got.file.unwrap() == segment(&name(3), 3));
    });
}

/// A standby asks again by itself, and would keep a promotion waiting.
#[test]
fn a_standby_is_not_kept_waiting_for_a_segment_in_flight() {
    let site = site();
    set_age(&site, SystemTime::now());
    let options = GetOptions { standby: true, deadline: Duration::from_mins(5), ..site.get_options() };
    let path = site.path("RECOVERYXLOG");
    let get = || walden::archive::get(&name(3), &path, &options, &site.repositories(), &opener());
    let began = std::time::Instant::now();
    let error = get().unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(error.kind() == Kind::Doubt && error.to_string().contains("on its way"), "{error}");
    site.add_segment(&name(3), 3);
    site.push(&name(3)).unwrap();
    get().unwrap();
    // An old hole is a gap to a standby too.
    fs::remove_file(&path).unwrap();
    for object in site.snapshot().keys().filter(|path| path.to_string_lossy().contains(&name(3))) {
        fs::remove_file(object).unwrap();
    }
    set_age(&site, SystemTime::now() - Duration::from_hours(1));
    assert!(get().unwrap_err().to_string().contains("is missing"));
}

/// Where all repositories had to have each file, one of them proves absence, but only from where it took part onward.
#[test]
fn with_all_acknowledging_one_repository_proves_absence_from_where_it_took_part() {
    let site = site();
    let path = site.path("RECOVERYXLOG");
    let options = GetOptions { acknowledged_by_all: true, ..site.get_options() };
    let kind = |wanted: &str| {
        let outcome = walden::archive::get(wanted, &path, &options, &site.repositories(), &opener());
        outcome.err().map(|error| error.kind())
    };
    site.faults[0].fail_from(1, Fault::Refusal);
    assert_eq!(kind(&name(5)), Some(Kind::Absent));
    assert_eq!(kind("00000003.history"), Some(Kind::Absent));
    assert_eq!(kind(&name(3)), Some(Kind::Doubt), "a gap is one in this repository too");
    // The second one was added after segment 2: of what was before it knows nothing.
    let [_, second] = site.roots();
    for object in site.snapshot().keys().filter(|path| path.starts_with(&second)) {
        let text = object.to_string_lossy().into_owned();
        if text.contains("/wal/") && !text.contains(&name(2)) {
            fs::remove_file(object).unwrap();
        }
    }
    assert_eq!(kind(&name(2)), None);
    assert_eq!(kind(&name(3)), Some(Kind::Absent));
    for object in site.snapshot().keys().filter(|path| path.starts_with(&second)) {
        if object.to_string_lossy().contains(&name(2)) {
            fs::remove_file(object).unwrap();
        }
    }
    for wanted in [name(3), name(5), "00000003.history".to_owned()] {
        assert_eq!(kind(&wanted), Some(Kind::Repository), "{wanted}: it was added a moment ago");
    }
}

/// One connection that breaks in mid-transfer must not stop a recovery, also where there is no other repository.
#[test]
fn a_transfer_that_breaks_is_begun_again() {
    let site = site();
    let mut options = site.get_options();
    options.without = vec!["b".to_owned()];
    let path = site.path("RECOVERYXLOG");
    let mut broken = 0;
    for call in 2..6 {
        site.reset_faults();
        site.faults[0].fail_at(call, Fault::Break);
        walden::archive::get(&name(2), &path, &options, &site.repositories(), &opener()).unwrap();
        broken += site.faults[0].fired();
        assert!(fs::read(&path).unwrap() == segment(&name(2), 2));
    }
    assert_eq!(broken, 1);
}
