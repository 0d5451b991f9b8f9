//! Verification on real archives: each kind of damage is done for real, found, and mended where another copy is good.
//!
//! `expiry` has what expires meanwhile, `facts` what the index learns on the way.

mod expiry;
mod facts;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::s3_store::{Fault, Operation, Request, Rule};
use crate::support::site::{SiteOptions, walk};
use crate::support::{Fork, Moto, PATIENCE, S3Store, Site, live_test, user, wait_until};

/// Verifies and returns what was found wrong, each with the name of its repository; checks the exit code.
#[track_caller]
fn problems(site: &Site, more: &[&str], code: i32) -> Vec<(String, Value)> {
    let report = report(site, more, code);
    let repositories = report["repositories"].as_array().expect("repositories");
    repositories
        .iter()
        .flat_map(|made| {
            let name = made["name"].as_str().expect("a name").to_owned();
            let problems = made["problems"].as_array().expect("problems").clone();
            problems.into_iter().map(move |problem| (name.clone(), problem))
        })
        .collect()
}

#[track_caller]
fn report(site: &Site, more: &[&str], code: i32) -> Value {
    let finished = site.walden.run(&[&["verify", "--output", "json"], more].concat()).expect_code(code);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
}

/// What is done to which file, and as what it is found.
type Case<'c> = (&'c str, PathBuf, fn(&Path), &'c str);

/// Returns the only problem as (repository, kind, whether another copy is good).
#[track_caller]
fn only(problems: &[(String, Value)]) -> (&str, &str, bool) {
    let [(repository, problem)] = problems else { panic!("expected one problem: {problems:#?}") };
    (repository, problem["wrong"].as_str().expect("a kind"), problem["good_in"].is_string())
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("write");
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).expect("read");
    fs::write(path, &bytes[..bytes.len() / 2]).expect("write");
}

/// Puts the object of the newest segment beside it, which is longer, in its place.
fn exchange(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    let other = bytes.clone();
    bytes.extend(other);
    fs::write(path, bytes).expect("write");
}

/// Puts other bytes of the same length in its place.
fn replace(path: &Path) {
    let length = fs::metadata(path).expect("stat").len() as usize;
    fs::write(path, vec![0x5a; length]).expect("write");
}

/// Returns a file of a repository whose path ends so.
#[track_caller]
fn file(site: &Site, repository: &str, part: &str) -> PathBuf {
    let mut files = Vec::new();
    walk(&site.repository(repository), &mut files);
    files.sort();
    files
        .into_iter()
        .find(|path| path.display().to_string().contains(part))
        .unwrap_or_else(|| panic!("no {part}"))
}

/// Returns how many objects a run looked at that were not known already.
fn looked_at(report: &Value) -> u64 {
    let repositories = report["repositories"].as_array().expect("repositories");
    repositories.iter().map(|made| made["looked_at"].as_u64().expect("a number")).sum()
}

live_test!(
    fn a_healthy_archive_is_clean_and_looked_at_once(pg: Installation) {
        let site = Site::with_backup(&pg);
        site.fill(2);
        let text = site.walden.run(&["verify"]).ok();
        assert!(text.stdout.contains("everything is as it should be"), "{text}");
        let first = report(&site, &["--all"], 0);
        assert!(looked_at(&first) > 10, "{first:#}");
        assert_eq!(looked_at(&report(&site, &[], 0)), 0, "nothing is new");
        let deep = report(&site, &["--deep"], 0);
        assert!(looked_at(&deep) > 10, "{deep:#}");
        assert_eq!(looked_at(&report(&site, &["--deep"], 0)), 0);
        site.fill(1);
        let new = looked_at(&report(&site, &[], 0));
        assert!((2..10).contains(&new), "only what is new: {new}");
    }
);

live_test!(
    [15]
    fn without_an_identity_all_but_the_content_is_verified(pg: Installation) {
        let site = Site::with_backup(&pg);
        let identity = site.work.join("identity.txt");
        let away = site.work.join("away.txt");
        fs::rename(&identity, &away).expect("rename");
        site.walden.run(&["verify"]).ok();
        let refused = site.walden.run(&["verify", "--deep"]).expect_code(3);
        assert!(refused.stderr.contains("identity"), "{refused}");
        // Another key opens nothing: that is no damage, and nothing is replaced because of it.
        let other = site.walden.clone();
        let made = crate::support::tools::run_program("age-keygen", ["-o", &identity.display().to_string()]);
        assert_eq!(made.code, 0, "{made}");
        let found = problems(&site, &["--deep"], 6);
        assert!(found.len() > 5 && found.iter().all(|(_, problem)| problem["wrong"] == "undecryptable"), "{found:#?}");
        let status = other.run(&["status"]).ok();
        assert!(!status.stdout.contains("DAMAGED"), "{status}");
        fs::rename(&away, &identity).expect("rename");
        site.walden.run(&["verify", "--deep"]).ok();
    }
);

live_test!(
    [14, 17]
    fn damage_of_every_kind_is_found_and_mended_from_the_other_repository(pg: Installation) {
        let site = Site::with_backup(&pg);
        let names = site.fill(4);
        site.walden.run(&["verify"]).ok();
        let segment = |at: usize| site.wal_objects("primary", &names[at]).remove(0);
        let piece = || file(&site, "primary", "data/0000000");
        let cases: Vec<Case<'_>> = vec![
            ("a segment with a wrong bit", segment(1), flip, "checksum"),
            ("other bytes of a segment's size", segment(0), replace, "checksum"),
            ("another segment's object", segment(0), |path| exchange(path), "size"),
            ("a segment that was cut", segment(2), truncate, "size"),
            ("a segment that is empty", segment(2), |path| fs::write(path, "").expect("write"), "size"),
            ("a segment that is gone", segment(1), |path| fs::remove_file(path).expect("remove"), "gap"),
            ("the newest segment is gone", segment(3), |path| fs::remove_file(path).expect("remove"), "gap"),
            ("a piece with a wrong bit", piece(), flip, "checksum"),
            ("other bytes of a piece's size", piece(), replace, "checksum"),
            ("a piece that was cut", piece(), truncate, "size"),
            ("a piece that is gone", piece(), |path| fs::remove_file(path).expect("remove"), "missing"),
            ("a manifest that is gone", file(&site, "primary", "manifest.jsonl"),
                |path| fs::remove_file(path).expect("remove"), "missing"),
            ("a summary that is gone", file(&site, "primary", "backup.json"),
                |path| fs::remove_file(path).expect("remove"), "missing"),
            ("a summary that is none", file(&site, "primary", "backup.json"),
                |path| fs::write(path, "{").expect("write"), "content"),
        ];
        for (what, path, harm, kind) in cases {
            let good = fs::read(&path).expect("read");
            harm(&path);
            let found = problems(&site, &[], 6);
            assert_eq!(only(&found), ("primary", kind, true), "{what}: {found:#?}");
            if let Some(key) = found[0].1["key"].as_str() {
                assert!(path.ends_with(key), "{what}: {key} is not {}", path.display());
            }
            let again = problems(&site, &[], 6);
            assert_eq!(only(&again), ("primary", kind, true), "{what}: it is not forgotten");
            if kind != "gap" {
                let status = site.walden.run(&["status"]).ok();
                assert!(status.stdout.contains("DAMAGED"), "{what}: {status}");
            }
            let text = site.walden.run(&["verify"]).expect_code(6);
            assert!(text.stdout.contains("walden sync mends it from repository \"replica\""), "{what}: {text}");
            site.walden.run(&["sync"]).ok();
            assert!(fs::read(&path).expect("read") == good, "{what}: the other copy");
            site.walden.run(&["verify"]).ok();
            let status = site.walden.run(&["status"]).ok();
            assert!(!status.stdout.contains("DAMAGED"), "{what}: {status}");
        }
        // What was put aside is in nobody's way, nor what somebody else put there.
        for folder in [segment(1), piece(), file(&site, "primary", "cluster.json")] {
            let foreign = folder.with_file_name("notes.txt");
            fs::write(&foreign, "not Walden's").expect("write");
            user::give(&foreign);
        }
        site.walden.run(&["verify", "--deep", "--all"]).ok();
        site.restore("restored", &["--until", "latest", "--without", "replica"]);
    }
);

live_test!(
    [17]
    fn what_no_other_repository_has_is_told_with_what_it_means(pg: Installation) {
        let site = Site::with_backup(&pg);
        let names = site.fill(4);
        for repository in ["primary", "replica"] {
            for name in &names[1..3] {
                fs::remove_file(site.wal_objects(repository, name).remove(0)).expect("remove");
            }
            flip(&file(&site, repository, "data/0000000"));
        }
        let text = site.walden.run(&["verify"]).expect_code(6);
        let gap = format!("2 WAL segments are missing, {} to {}", names[1], names[2]);
        for part in [&gap, "nothing after 20", "no other repository has", "take a base backup now", "no recovery from backup"] {
            assert!(text.stdout.contains(part), "{part}: {text}");
        }
        // A later backup is a way past the gap.
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.fill(1);
        let text = site.walden.run(&["verify"]).expect_code(6);
        assert!(text.stdout.contains("no moment from 20"), "{text}");
        let log = fs::read(site.work.join("state/main/index.sqlite")).expect("read");
        assert!(log.windows(6).any(|six| six == b"verify"), "the log of operations has it");
    }
);

live_test!(
    [17]
    fn only_deep_finds_what_was_damaged_before_it_was_first_seen(pg: Installation) {
        let site = Site::with_backup(&pg);
        let names = site.fill(2);
        let object = site.wal_objects("replica", &names[0]).remove(0);
        flip(&object);
        // An archive whose content was never seen has no other witness than its content.
        fs::remove_file(site.work.join("state/main/index.sqlite")).expect("remove");
        site.walden.run(&["verify"]).ok();
        let found = problems(&site, &["--deep"], 6);
        assert_eq!(only(&found), ("replica", "content", true), "{found:#?}");
        let still = problems(&site, &[], 6);
        assert_eq!(only(&still), ("replica", "content", true), "known damage is not taken back unread: {still:#?}");
        let facts = site.walden.run(&["events", "--output", "json"]).ok();
        assert!(facts.stderr.is_empty() || !facts.stderr.contains("not read"), "{facts}");
        site.walden.run(&["sync"]).ok();
        site.walden.run(&["verify", "--deep"]).ok();
    }
);

live_test!(
    [15]
    fn what_was_damaged_before_the_first_run_is_found_where_this_host_stored_it(pg: Installation) {
        let site = Site::with_backup(&pg);
        let names = site.fill(3);
        flip(&site.wal_objects("replica", &names[0]).remove(0));
        let found = problems(&site, &[], 6);
        assert_eq!(only(&found), ("replica", "checksum", true), "{found:#?}");
        let cut = site.wal_objects("primary", &names[1]).remove(0);
        let bytes = fs::read(&cut).expect("read");
        fs::write(&cut, &bytes[..bytes.len() - 1]).expect("write");
        let found = problems(&site, &["--repository", "primary"], 6);
        assert_eq!(only(&found), ("primary", "size", true), "{found:#?}");
        site.walden.run(&["sync"]).ok();
        site.walden.run(&["verify", "--deep"]).ok();
    }
);

live_test!(
    [17]
    fn two_contents_of_one_name_are_a_conflict_here_and_across_repositories(pg: Installation) {
        let site = Site::with_backup(&pg);
        let name = site.fill(2).remove(0);
        let good = site.wal_objects("primary", &name).remove(0);
        let other = good.with_file_name(format!("{name}-0badc0de.lz4.age"));
        fs::copy(&good, &other).expect("copy");
        user::give(&other);
        let found = problems(&site, &["--repository", "primary"], 6);
        assert_eq!(only(&found).1, "conflict");
        assert!(found[0].1["remedy"].as_str().expect("a text").contains("walden resolve"), "{found:#?}");
        fs::remove_file(&good).expect("remove");
        let found = problems(&site, &[], 6);
        assert_eq!(only(&found).1, "conflict", "{found:#?}");
    }
);

live_test!(
    [17]
    fn a_repository_that_is_down_is_told_and_the_other_verified(pg: Installation) {
        let site = Site::with_backup(&pg);
        let away = site.work.join("away");
        fs::rename(site.repository("replica"), &away).expect("rename");
        let text = site.walden.run(&["verify"]).expect_code(4);
        assert!(text.stdout.contains("Repository \"primary\": OK") && text.stdout.contains("NOT VERIFIED"), "{text}");
        // An empty disk is no damaged repository.
        fs::create_dir(site.repository("replica")).expect("create");
        user::give(&site.repository("replica"));
        site.walden.run(&["verify", "--repository", "replica"]).expect_code(4);
        site.walden.run(&["verify", "--repository", "primary"]).ok();
        site.walden.run(&["verify", "--repository", "nonsense"]).expect_code(2);
        fs::remove_dir(site.repository("replica")).expect("remove");
        fs::rename(&away, site.repository("replica")).expect("rename");
        fs::remove_file(file(&site, "replica", "cluster.json")).expect("remove");
        fs::remove_file(file(&site, "primary", "RECOVERY.md")).expect("remove");
        let found = problems(&site, &[], 6);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found.iter().all(|(_, problem)| problem["wrong"] == "missing"), "{found:#?}");
    }
);

live_test!(
    [17]
    fn a_history_that_is_gone_is_missed_and_brought_back(pg: Installation) {
        let fork = Fork::make(&pg);
        let site = &fork.site;
        site.walden.run(&["verify"]).ok();
        let history = site.wal_objects("primary", "00000002.history").remove(0);
        fs::remove_file(&history).expect("remove");
        let found = problems(site, &[], 6);
        assert_eq!(only(&found), ("primary", "missing", true), "{found:#?}");
        site.walden.run(&["sync"]).ok();
        site.walden.run(&["verify"]).ok();
        // Segments before the fork are on the way of both timelines.
        let identity = site.work.join("identity.txt");
        fs::rename(&identity, site.work.join("away.txt")).expect("rename");
        site.walden.run(&["verify"]).ok();
    }
);

live_test!(
    [17]
    fn one_backup_or_a_span_of_time_can_be_verified_by_itself(pg: Installation) {
        let site = Site::with_backup(&pg);
        site.fill(2);
        let made = site.walden.run(&["base-backup", "--fast", "--output", "json"]).ok();
        let id = serde_json::from_str::<Value>(&made.stdout).expect("JSON")["id"].as_str().expect("an id").to_owned();
        let one = report(&site, &["--backup", &id, "--deep"], 0);
        assert_eq!(one["repositories"][0]["backups"], 1, "{one:#}");
        let all = report(&site, &["--all"], 0);
        assert!(one["repositories"][0]["objects"].as_u64() < all["repositories"][0]["objects"].as_u64());
        flip(&file(&site, "primary", &format!("{id}/data/0000000")));
        let found = problems(&site, &["--backup", &id, "--all"], 6);
        assert_eq!(only(&found), ("primary", "checksum", true));
        site.walden.run(&["verify", "--backup", "20000101T000000Z-00000001-00000000"]).expect_code(2);
        let none = report(&site, &["--since", "2090-01-01 00:00:00Z"], 0);
        assert_eq!(none["repositories"][0]["backups"], 0, "{none:#}");
    }
);

live_test!(
    [17]
    fn a_store_answers_with_its_checksums_and_is_asked_once(pg: Installation) {
        let store = S3Store::start();
        let site = Site::with(&pg, &on_s3(&store.endpoint, store.env()));
        crate::support::Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        let names = site.fill(3);
        site.walden.run(&["verify"]).ok();
        store.forget_requests();
        site.walden.run(&["verify"]).ok();
        let heads = store.count(Operation::HeadObject);
        assert!(heads <= 4, "RECOVERY.md, one in each repository, and no object that is known: {heads}");

        // What was written over behind its back has another checksum.
        let key = store.objects_matching(&names[0]).remove(0);
        let mut other = store.object(&key).expect("the object");
        let middle = other.len() / 2;
        other[middle] ^= 1;
        store.put_raw(&key, other);
        let found = problems(&site, &["--repository", "s3"], 6);
        assert_eq!(only(&found), ("s3", "checksum", true), "{found:#?}");
        assert!(key.ends_with(found[0].1["key"].as_str().expect("a key")), "{found:#?}");
        let text = site.walden.run(&["verify", "--repository", "s3"]).expect_code(6);
        assert!(text.stdout.contains("walden sync mends it from repository \"replica\""), "{text}");
        site.walden.run(&["sync"]).ok();
        site.walden.run(&["verify"]).ok();

        // Rot below the store shows only to who reads.
        let piece = store.objects_matching("data/0000000").remove(0);
        store.damage(&piece, 100);
        site.walden.run(&["verify", "--all"]).ok();
        let found = problems(&site, &["--deep"], 6);
        assert_eq!(only(&found).0, "s3", "{found:#?}");

        // One that fails half-way is never called clean.
        store.fail(Rule::new(Fault::Status(403, "AccessDenied")).on(Operation::HeadObject).key("/wal/"));
        site.walden.run(&["verify", "--all"]).expect_code(6);
        store.heal();
        store.set_down(true);
        site.walden.run(&["verify", "--repository", "s3"]).expect_code(4);
    }
);

live_test!(
    [15]
    fn more_questions_for_checksums_are_under_way_than_files_are_archived_at_once(pg: Installation) {
        let store = S3Store::start();
        let site = Site::with(&pg, &on_s3(&store.endpoint, store.env()));
        crate::support::Ledger::create(&site.cluster);
        let segments = site.fill(8).len();
        store.forget_requests();
        store.fail(Rule::new(Fault::Hang).on(Operation::HeadObject).key("/wal/"));
        let mut verifying = site.walden.spawn(&["verify", "--repository", "s3"]);
        wait_until("every segment is asked about, although there is no answer to any", || {
            let waits = |request: &&Request| request.key.contains("/wal/") && request.status.is_none();
            store.requests().iter().filter(waits).count() >= segments || !verifying.is_running()
        });
        assert!(verifying.is_running());
        verifying.signal(nix::sys::signal::Signal::SIGKILL);
        verifying.wait(PATIENCE);
    }
);

live_test!(
    [15]
    fn another_store_is_verified_as_well(pg: Installation) {
        let Some(moto) = Moto::start() else { return };
        moto.create_bucket("walden");
        let site = Site::with(&pg, &on_s3(&moto.endpoint, moto.env()));
        crate::support::Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.fill(2);
        site.walden.run(&["verify"]).ok();
        site.walden.run(&["verify", "--deep"]).ok();
    }
);

/// Returns a site with two prefixes of one bucket as repositories.
fn on_s3(endpoint: &str, env: Vec<(String, String)>) -> SiteOptions {
    let options = [("endpoint", endpoint), ("path_style", "true"), ("region", "us-east-1")];
    let init = ["s3", "replica"].iter().flat_map(|name| {
        let values = options.iter().map(move |(key, value)| format!("{name}.{key}={value}"));
        values.flat_map(|value| ["--repository-option".to_owned(), value])
    });
    SiteOptions {
        repositories: vec!["s3=s3://walden/x".to_owned(), "replica=s3://walden/y".to_owned()],
        init: init.collect(),
        env,
        ..SiteOptions::default()
    }
}

live_test!(
    [17]
    fn a_run_that_was_killed_is_gone_on_with(pg: Installation) {
        let site = Site::with_backup(&pg);
        site.fill(12);
        let mut running = site.walden.spawn(&["verify", "--deep", "--parallel", "1"]);
        wait_until("some of it is written down, or the run is over", || {
            seen(&site) > 3 || !running.is_running()
        });
        running.signal(nix::sys::signal::Signal::SIGKILL);
        running.wait(PATIENCE);
        let before = seen(&site);
        let all = report(&site, &["--deep"], 0);
        let objects: u64 = all["repositories"].as_array().expect("a list").iter()
            .map(|made| made["objects"].as_u64().expect("a number")).sum();
        assert!(before > 0 && seen(&site) as u64 == objects, "{before} of {objects}, then {}", seen(&site));
        assert_eq!(looked_at(&report(&site, &["--deep"], 0)), 0);
    }
);

/// Returns how many objects the index remembers.
fn seen(site: &Site) -> usize {
    let open = || rusqlite::Connection::open(site.work.join("state/main/index.sqlite")).ok();
    let count =
        open().and_then(|index| index.query_row("SELECT count(*) FROM verified", [], |row| row.get(0)).ok());
    count.map_or(0, |count: i64| count as usize)
}
