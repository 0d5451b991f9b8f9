//! Verification of made-up archives in a directory that fails at any call; `expiry` has what goes meanwhile.

mod expiry;

use super::{Report, Request, Wrong, verify};
use crate::codec::Opener;
use crate::index::{Index, IndexHandle};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::storage::faulty::{Fault, Faults, Faulty, Moment};
use crate::storage::{Deadline, FsStorage, Storage};
use crate::upkeep::expire::tests::world::{SIZE, World, repository};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// A directory with an archive, and an index beside it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// Two timelines, a backup on the first, no hole.
    fn new() -> Self {
        let world = World::new();
        let stored = Timestamp::from_second(1_790_000_000).unwrap();
        (1..6).for_each(|number| world.segment(1, number, stored));
        (5..8).for_each(|number| world.segment(2, number, stored));
        let fork = crate::postgres::Lsn(5 * SIZE.bytes() + 100);
        world.history(2, &format!("1\t{fork}\tpromoted\n"), stored);
        world.backup(1, 1, 2, stored);
        world.store.put(&world.keys.recovery_text(), "text");
        let place = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(place.root()).unwrap();
        let (store, deadline) = (FsStorage::new(place.root()), Deadline::stall(Duration::from_secs(5)));
        for key in world.store.keys() {
            let mut body = Vec::new();
            world.store.get(&key, None, &deadline).unwrap().read_to_end(&mut body).unwrap();
            store.put_new(&key, &Bytes::from(body), &deadline).unwrap();
        }
        place
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    /// Returns a file whose path has this in it.
    fn file(&self, part: &str) -> PathBuf {
        let mut found = Vec::new();
        walk(&self.root(), &mut found);
        found.into_iter().find(|path| path.display().to_string().contains(part)).unwrap()
    }

    /// Returns a fresh index.
    fn index(&self) -> IndexHandle {
        IndexHandle::open(&self.dir.path().join(format!("index-{}", fastrand::u64(..))))
    }

    /// Verifies it, with faults.
    fn verify(&self, faults: &Faults, index: &IndexHandle) -> Report {
        let store = Faulty::with(FsStorage::new(self.root()), faults.clone());
        run(&[&repository("primary", Arc::new(store))], index)
    }
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() { walk(&entry.path(), found) } else { found.push(entry.path()) }
    }
}

fn run(repositories: &[&Repository], index: &IndexHandle) -> Report {
    verify(&request(repositories), index, &Progress::new())
}

/// Returns a request for all that there is, without the identity.
fn request<'r>(repositories: &[&'r Repository]) -> Request<'r> {
    static OPENER: LazyLock<Opener> = LazyLock::new(Opener::without_identity);
    Request {
        cluster: "main",
        repositories: repositories.iter().map(|repository| (*repository, None)).collect(),
        only: None,
        system_identifier: None,
        current: None,
        opener: &OPENER,
        deep: false,
        since: None,
        backup: None,
        reread: Duration::from_secs(3600),
        all: false,
        parallel: 1,
        questions: 1,
        in_flight: Duration::ZERO,
        busy: BTreeSet::new(),
        pg_wal: Path::new("/nowhere"),
        event_rows: 1000,
    }
}

fn is_clean(report: &Report) -> bool {
    report.problems() == 0 && report.failure().is_none()
}

/// Returns when the index last knew the repository to be whole.
fn verified(index: &IndexHandle, place: &Place) -> Option<i64> {
    let url = format!("file://{}", place.root().display());
    let sysid = crate::upkeep::expire::tests::world::SYSID;
    index.run(|index: &Index| index.verified_at(&url, sysid)).unwrap()
}

const FAULTS: [Fault; 7] = [
    Fault::Error(Moment::Before),
    Fault::Error(Moment::After),
    Fault::Timeout(Moment::Before),
    Fault::Refusal,
    Fault::Break,
    Fault::Truncate,
    Fault::BitFlip,
];

#[test]
fn what_is_whole_is_clean_and_read_once() {
    let (place, faults) = (Place::new(), Faults::default());
    let index = place.index();
    let first = place.verify(&faults, &index);
    assert!(is_clean(&first), "{first:#?}");
    let read = |report: &Report| report.repositories[0].looked_at;
    assert!(read(&first) > 10);
    assert!(verified(&index, &place).is_some());
    faults.reset();
    let second = place.verify(&faults, &index);
    assert_eq!((is_clean(&second), read(&second)), (true, 0), "{second:#?}");
    assert!(faults.calls() < 20, "listings and the summary: {}", faults.calls());
}

#[test]
fn a_fault_at_any_call_is_neither_clean_nor_damage() {
    let (place, faults) = (Place::new(), Faults::default());
    place.verify(&faults, &place.index());
    let calls = faults.calls();
    assert!(calls > 20);
    for fault in FAULTS {
        for call in 1..=calls {
            let index = place.index();
            faults.reset();
            faults.fail_at(call, fault);
            let report = place.verify(&faults, &index);
            assert_eq!(report.problems(), 0, "{fault:?} at {call}: {report:#?}");
            // A read that broke off is read on, one that looked wrong is read again.
            let may_be_made_good = matches!(fault, Fault::Break | Fault::Truncate | Fault::BitFlip);
            let is_felt = faults.fired() > 0 && !may_be_made_good;
            assert!(!is_felt || report.failure().is_some(), "{fault:?} at {call}: {report:#?}");
            assert_eq!(verified(&index, &place).is_some(), is_clean(&report), "{fault:?} at {call}");
            faults.reset();
            let again = place.verify(&faults, &index);
            assert!(is_clean(&again), "{fault:?} at {call}, and then none: {again:#?}");
        }
    }
}

#[test]
fn damage_is_never_called_clean_whatever_fails_beside_it() {
    let (place, faults) = (Place::new(), Faults::default());
    std::fs::write(place.file("data/0000001"), "pIece").unwrap();
    std::fs::remove_file(place.file("000000010000000000000003")).unwrap();
    let index = place.index();
    let whole = place.verify(&faults, &index);
    let found: Vec<Wrong> = whole.repositories[0].problems.iter().map(|problem| problem.wrong).collect();
    assert_eq!(found, [Wrong::Checksum, Wrong::Gap], "{whole:#?}");
    let calls = faults.calls();
    // Reading on after a break waits: it is left to the test above.
    for fault in [Fault::Error(Moment::Before), Fault::Refusal, Fault::Truncate] {
        for call in 1..=calls {
            for from_then_on in [false, true] {
                let index = place.index();
                faults.reset();
                if from_then_on {
                    faults.fail_from(call, fault);
                } else {
                    faults.fail_at(call, fault);
                }
                let report = place.verify(&faults, &index);
                assert!(!is_clean(&report), "{fault:?} at {call}: {report:#?}");
                assert_eq!(verified(&index, &place), None, "{fault:?} at {call}");
            }
        }
    }
}

#[test]
fn the_good_copy_elsewhere_is_named_and_a_bad_one_is_not() {
    let places = [Place::new(), Place::new()];
    let repositories: Vec<Repository> = places
        .iter()
        .zip(["primary", "replica"])
        .map(|(place, name)| repository(name, Arc::new(FsStorage::new(place.root()))))
        .collect();
    let repositories: Vec<&Repository> = repositories.iter().collect();
    let harm = |at: usize| std::fs::write(places[at].file("data/0000002"), "PIECE").unwrap();
    let index = places[0].index();
    let good_in = |report: &Report| -> Vec<Option<String>> {
        let all = report.repositories.iter().flat_map(|made| &made.problems);
        all.map(|problem| problem.good_in.clone()).collect()
    };
    harm(0);
    assert_eq!(good_in(&run(&repositories, &index)), [Some("replica".to_owned())]);
    harm(1);
    let both = run(&repositories, &index);
    assert_eq!(good_in(&both), [None, None], "{both:#?}");
}
