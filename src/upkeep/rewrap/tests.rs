//! Every call of either store fails once, in every way: what is in the new repository is good at any moment, and the next
//! run ends what one began.

use super::*;
use crate::codec::generate_identity;
use crate::postgres::{WalSegmentName, WalSegmentSize};
use crate::repository::digest_key;
use crate::storage::Storage;
use crate::storage::faulty::{Fault, Faults, Faulty, Moment};
use crate::upkeep::expire::tests::memory::Memory;
use std::sync::Arc;
use std::time::Duration;

const SYSID: SystemIdentifier = SystemIdentifier(7);
const ID: &str = "20261120T133000Z-00000001-5f0c2a91";

fn repository(name: &str, storage: impl Storage + 'static) -> Repository {
    Repository::new(name, Arc::new(storage), Duration::from_secs(5))
}

fn opener(identity: &str) -> Opener {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), identity).unwrap();
    Opener::from_identity_file(file.path()).unwrap()
}

/// Returns a repository over `store` that fails as `faults` say.
fn faulty(name: &str, store: &Arc<Memory>, faults: &Faults) -> Repository {
    repository(name, Faulty::with(Arc::clone(store), faults.clone()))
}

fn plain(name: &str, store: &Arc<Memory>) -> Repository {
    faulty(name, store, &Faults::default())
}

/// Returns what is stored under `key`.
fn body(store: &Memory, key: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let deadline = storage::Deadline::stall(Duration::from_secs(5));
    store.get(key, None, &deadline).unwrap().read_to_end(&mut body).unwrap();
    body
}

/// The old repository, and what opens and wraps.
struct World {
    store: Arc<Memory>,
    keys: ClusterKeys,
    old: Opener,
    old_sealer: Sealer,
    new: Opener,
    sealer: Sealer,
}

impl World {
    /// Returns one with WAL, a history, a digest, a pin, a whole backup and one that broke off.
    fn new() -> Self {
        let [(identity, recipient), (new, to)] = [(); 2].map(|()| generate_identity());
        let store = Arc::new(Memory::default());
        let keys = ClusterKeys::new("main", SYSID);
        let from = plain("old", &store);
        ClusterFile::new("main", SYSID, WalSegmentSize::DEFAULT, 17).write(&from, &keys).unwrap();
        let sealer = Sealer::for_recipients(&[recipient]).unwrap();
        let put = |key: &str, body: Vec<u8>| store.put(key, body);
        for (number, name) in
            ["000000010000000000000001", "000000010000000000000002", "00000002.history"].iter().enumerate()
        {
            let plaintext = vec![number as u8; 10_000];
            let key = keys.wal_object(name.parse().unwrap(), crc32fast::hash(&plaintext), LZ4_AGE);
            put(&key, sealer.seal(&plaintext).unwrap());
        }
        put(&digest_key(&keys, jiff::Timestamp::UNIX_EPOCH, b"{}", LZ4_AGE), sealer.seal(b"{}").unwrap());
        put(&format!("{}{ID}.json", keys.pins()), b"{}".to_vec());
        put(&format!("{}broken/data/0000000.lz4.age", keys.backups()), sealer.seal(b"x").unwrap());
        let object = |name: &str, size: usize| {
            let mut body = vec![0; size];
            fastrand::Rng::with_seed(size as u64).fill(&mut body);
            let stored = sealer.seal(&body).unwrap();
            let object = StoredObject::of(name.to_owned(), &stored);
            put(&format!("{}{name}", keys.backup(ID)), stored);
            serde_json::to_value(object).unwrap()
        };
        let pieces = [object("data/0000000.lz4.age", 20_000), object("data/0000001.lz4.age", 10)];
        let summary = serde_json::json!({
            "format": 1, "id": ID, "cluster": "main", "system_identifier": SYSID, "major_version": 17,
            "server_version": "17.0", "walden_version": "0", "label": "l", "from_standby": false, "timeline": 1,
            "start_lsn": "0/1000028", "stop_lsn": "0/1000100", "checkpoint_lsn": "0/1000060",
            "start_time": "2026-11-20T13:30:00Z", "stop_time": "2026-11-20T13:31:00Z",
            "wal_segment_size": 16 << 20, "data_checksums": true, "encrypted": true, "ending": LZ4_AGE,
            "data_dir": "/d", "size": 20_010, "stored_size": 1, "files": 2,
            "manifest": object("manifest.jsonl.lz4.age", 300), "pieces": pieces,
        });
        put(&format!("{}{SUMMARY_NAME}", keys.backup(ID)), serde_json::to_vec(&summary).unwrap());
        Self {
            store,
            keys,
            old: opener(&identity),
            old_sealer: sealer,
            new: opener(&new),
            sealer: Sealer::for_recipients(&[to]).unwrap(),
        }
    }

    fn request<'r>(&'r self, from: &'r Repository, to: &'r Repository, opener: &'r Opener) -> Request<'r> {
        let sealer = &self.sealer;
        Request { cluster: "main", sysid: SYSID, from, to, opener, sealer, recipients: "ours" }
    }

    fn run(&self, from: &Repository, to: &Repository, opener: &Opener) -> Result<Outcome> {
        let request = self.request(from, to, opener);
        let tasks = plan(&request)?;
        // One after the other, so that call number N is the same in every run.
        run(&request, &tasks, 1, &Progress::new())
    }

    /// Checks that all that is in the new store opens with the new identity and has the old payload, and that a backup is whole. Returns the
    /// keys.
    fn assert_good(&self, new: &Arc<Memory>) -> Vec<String> {
        let all: Vec<String> = new.keys().into_iter().collect();
        let read = |key: &str| body(new, key);
        for key in all.iter().filter(|key| key.ends_with(LZ4_AGE)) {
            let old = body(&self.store, key);
            self.new
                .open_whole(key, &read(key)[..], 1 << 20)
                .unwrap_or_else(|error| panic!("{key}: {error}"));
            let payload = |body: &[u8]| body[header_length(body).unwrap() as usize..].to_vec();
            assert!(payload(&read(key)) == payload(&old), "{key}: the payload is as it was");
        }
        if all.iter().any(|key| key.ends_with(SUMMARY_NAME)) {
            let summary = read_summary(&plain("new", new), &self.keys, ID).unwrap();
            for object in summary.objects() {
                assert!(
                    object.matches(&read(&format!("{}{}", self.keys.backup(ID), object.name))),
                    "{object:?}"
                );
            }
            let sum: u64 = summary.objects().map(|object| object.size).sum();
            assert_eq!(summary.stored_size, sum);
            let segment: WalSegmentName = "000000010000000000000001".parse().unwrap();
            let contents = self.keys.wal_contents(ArchiveFileName::Segment(segment));
            assert!(all.iter().any(|key| key.starts_with(&contents)), "its WAL was there before it");
        }
        all
    }
}

#[test]
fn broken_off_at_any_call_the_next_run_ends_it() {
    let world = World::new();
    let faults = [Faults::default(), Faults::default()];
    let new = Arc::new(Memory::default());
    let run = || {
        world
            .run(&faulty("old", &world.store, &faults[0]), &faulty("new", &new, &faults[1]), &world.old)
            .unwrap()
    };
    let done = run();
    assert_eq!((done.copied, done.unreadable.len(), done.failed.len()), (9, 0, 0), "{done:?}");
    let calls = [faults[0].calls(), faults[1].calls()];
    assert!(calls.iter().all(|calls| *calls > 10), "{calls:?}");
    assert_eq!(run().copied, 0, "nothing is left");
    let whole = world.assert_good(&new);
    for key in whole.iter().filter(|key| key.ends_with(LZ4_AGE)) {
        let error = world.old.open_whole(key, &body(&new, key)[..], 1 << 20).unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "the old identity does not open {key}");
    }
    assert_eq!(whole.len(), 9 + 2, "and cluster.json and RECOVERY.md, without what broke off: {whole:#?}");
    let kinds = [
        Fault::Error(Moment::Before),
        Fault::Error(Moment::After),
        Fault::Refusal,
        Fault::Truncate,
        Fault::Break,
        Fault::BitFlip,
    ];
    for kind in kinds {
        for (side, calls) in calls.iter().enumerate() {
            for call in 1..=*calls {
                let faults = [Faults::default(), Faults::default()];
                faults[side].fail_at(call, kind);
                let new = Arc::new(Memory::default());
                let (from, to) = (faulty("old", &world.store, &faults[0]), faulty("new", &new, &faults[1]));
                let first = world.run(&from, &to, &world.old);
                if faults[side].fired() == 0 {
                    continue; // a call that reads nothing, and is not harmed by it
                }
                world.assert_good(&new);
                let second = world.run(&plain("old", &world.store), &plain("new", &new), &world.old).unwrap();
                assert!(second.failed.is_empty(), "{kind:?} at {call}: {first:?}, then {second:?}");
                assert_eq!(world.assert_good(&new), whole, "{kind:?} at {call}: {first:?}");
            }
        }
    }
}

#[test]
fn what_no_identity_opens_and_what_is_damaged_is_left_out_with_what_needs_it() {
    let stranger = Sealer::for_recipients(&[generate_identity().1]).unwrap();
    let keys = ClusterKeys::new("main", SYSID);
    let summary = format!("{}{SUMMARY_NAME}", keys.backup(ID));
    let piece = format!("{}data/0000001.lz4.age", keys.backup(ID));
    let segment = |name: &str| keys.wal_object(name.parse().unwrap(), 1, LZ4_AGE);
    let (newest, needed) = (segment("000000010000000000000003"), segment("000000010000000000000001"));
    // What is put there, whether it is a stranger's or damaged, what is left out, and what is there nevertheless.
    let cases: [(&String, bool, Vec<&String>, bool); 4] = [
        (&piece, true, vec![&summary, &piece], false),
        (&piece, false, vec![&summary, &piece], false),
        (&needed, true, vec![&needed], true),
        (&newest, false, vec![&newest], true),
    ];
    for (key, is_strange, left_out, has_backup) in cases {
        let world = World::new();
        let mut body =
            if is_strange { stranger.seal(b"y").unwrap() } else { world.old_sealer.seal(b"y").unwrap() };
        if !is_strange {
            *body.last_mut().unwrap() ^= 1;
        }
        world.store.put(key, body);
        let new = Arc::new(Memory::default());
        let done = world.run(&plain("old", &world.store), &plain("new", &new), &world.old).unwrap();
        assert!(done.failed.is_empty() && !done.is_whole(), "{done:?}");
        let mut named: Vec<&String> =
            done.unreadable.iter().chain(done.damaged.iter().map(|(key, _)| key)).collect();
        named.sort();
        assert_eq!(named, left_out);
        assert_eq!(done.unreadable.is_empty(), !is_strange, "{done:?}");
        let found = world.assert_good(&new);
        assert_eq!((found.contains(key), found.contains(&summary)), (false, has_backup), "{found:?}");
    }
    // Without the newest segment older ones would look like the end of the archive.
    let world = World::new();
    world.store.put(&newest, stranger.seal(b"z").unwrap());
    let new = Arc::new(Memory::default());
    let done = world.run(&plain("old", &world.store), &plain("new", &new), &world.old).unwrap();
    assert_eq!(done.unreadable, [newest]);
    assert!(
        done.failed.len() == 1 && done.failed[0].to_string().contains("is not in repository"),
        "{done:?}"
    );
    let found = world.assert_good(&new);
    assert!(
        !found.iter().any(|key| key.contains("/wal/00000001/")) && !found.contains(&summary),
        "{found:?}"
    );
}

#[test]
fn what_expires_meanwhile_is_no_failure() {
    let world = World::new();
    let (from, new) = (plain("old", &world.store), Arc::new(Memory::default()));
    let to = plain("new", &new);
    let request = world.request(&from, &to, &world.old);
    let tasks = plan(&request).unwrap();
    for key in world.store.keys() {
        if key.contains("/backup/") {
            world.store.remove(&key);
        }
    }
    let done = run(&request, &tasks, 1, &Progress::new()).unwrap();
    assert!(done.is_whole() && done.copied == 5, "{done:?}");
    assert!(!world.assert_good(&new).iter().any(|key| key.contains("/backup/")));
}

#[test]
fn one_begun_for_others_or_set_up_otherwise_is_refused() {
    let world = World::new();
    let from = plain("old", &world.store);
    let to = plain("new", &Arc::new(Memory::default()));
    world.run(&from, &to, &world.old).unwrap();
    let request = Request { recipients: "others", ..world.request(&from, &to, &world.old) };
    let error = plan(&request).unwrap_err();
    assert!(error.kind() == Kind::Conflict && error.to_string().contains("for other recipients"), "{error}");
    let to = plain("new", &Arc::new(Memory::default()));
    ClusterFile::new("main", SYSID, WalSegmentSize::DEFAULT, 17).write(&to, &world.keys).unwrap();
    let error = world.run(&from, &to, &world.old).unwrap_err();
    assert!(error.kind() == Kind::Conflict && error.to_string().contains("walden init"), "{error}");
}

#[test]
fn what_only_another_repository_holds_is_counted() {
    let world = World::new();
    let (from, to) = (plain("old", &world.store), plain("new", &Arc::new(Memory::default())));
    let request = world.request(&from, &to, &world.old);
    let other = Arc::new(world.store.copy());
    assert_eq!(only_in(&request, &plain("replica", &other)).unwrap(), 0);
    other.put(&format!("{}x.json", world.keys.pins()), "{}");
    other.put(&format!("{}unfinished/data/0000000.lz4.age", world.keys.backups()), "x");
    assert_eq!(only_in(&request, &plain("replica", &other)).unwrap(), 1);
}

#[test]
fn a_repository_that_sync_filled_is_refused() {
    let world = World::new();
    let (from, to) = (plain("old", &world.store), plain("new", &Arc::new(Memory::default())));
    let key = objects_in(&from, &[world.keys.wal()]).unwrap().into_keys().next().unwrap();
    copy_object(&from, &to, &key).unwrap();
    let error = world.run(&from, &to, &world.old).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
}
