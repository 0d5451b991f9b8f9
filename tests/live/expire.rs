//! Expiry on real clusters: what stays can be recovered from, whatever stood in the way.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;

use crate::support::cluster::Stop;
use crate::support::postgres::Installation;
use crate::support::restored::start_and_promote;
use crate::support::s3_store::{Fault, Operation, Rule};
use crate::support::site::{SiteOptions, walk};
use crate::support::{Ledger, Moto, PATIENCE, S3Store, Site, live_test, run, soak, wait_until};

/// Adds a retention to the site's configuration: for all, or for one repository.
fn retain(site: &Site, repository: Option<&str>, toml: &str) {
    let text = fs::read_to_string(&site.config).expect("read");
    let text = match repository {
        None => format!("{text}\n[retention]\n{toml}\n"),
        Some(name) => {
            let line = format!("name = \"{name}\"\n");
            assert!(text.contains(&line), "{text}");
            text.replace(&line, &format!("{line}retention = {{ {toml} }}\n"))
        }
    };
    fs::write(&site.config, text).expect("write");
}

/// Returns a site whose only repository, "primary", is in a bucket of the store at `endpoint`.
fn in_bucket(pg: &Installation, url: &str, endpoint: &str, env: Vec<(String, String)>) -> Site {
    let init = [format!("endpoint={endpoint}"), "path_style=true".to_owned(), "region=us-east-1".to_owned()];
    Site::with(
        pg,
        &SiteOptions {
            repositories: vec![format!("primary={url}")],
            init: init
                .iter()
                .flat_map(|option| ["--repository-option".to_owned(), format!("primary.{option}")])
                .collect(),
            env,
            ..SiteOptions::default()
        },
    )
}

/// Takes a backup with an entry of the ledger and a segment before it and after it; returns its id.
fn backup(site: &Site, more: &[&str]) -> String {
    site.fill(1);
    let finished = site.walden.run(&[&["base-backup", "--fast", "--output", "json"], more].concat()).ok();
    let summary: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    site.fill(1);
    summary["id"].as_str().expect("an id").to_owned()
}

/// Returns the ids of the backups in a directory repository.
fn backups(site: &Site, repository: &str) -> BTreeSet<String> {
    let mut files = Vec::new();
    walk(&site.repository(repository), &mut files);
    let of_backup = files.iter().filter(|path| path.ends_with("backup.json"));
    let id = |path: &PathBuf| Some(path.parent()?.file_name()?.to_string_lossy().into_owned());
    of_backup.filter_map(id).collect()
}

fn set(ids: &[String]) -> BTreeSet<String> {
    ids.iter().cloned().collect()
}

/// Brings a backup up by itself and returns the ledger's ids.
fn bring_up(pg: &Installation, site: &Site, id: &str, more: &[&str]) -> Vec<i64> {
    let name = format!("restored-{id}-{}", fastrand::u32(..));
    let dir = site.restore(&name, &[&["--until", "immediate", "--backup", id, "--take-over"], more].concat());
    let settings = dir.join("postgresql.auto.conf");
    let text = fs::read_to_string(&settings).expect("read");
    fs::write(&settings, format!("{text}archive_mode = off\nrecovery_target_action = promote\n"))
        .expect("write");
    let mut restored = start_and_promote(pg, &dir);
    let ids = Ledger::ids(&restored);
    restored.stop(Stop::Fast);
    ids
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(dir, &mut found);
    found.sort();
    found
}

live_test!(
    [14, 17]
    fn each_backup_that_stays_is_recovered_from_and_each_moment_of_the_window(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        let first = backup(&site, &["--keep"]);
        let second = backup(&site, &[]);
        let third = backup(&site, &[]);
        let target = Ledger::add(&site.cluster);
        let fourth = backup(&site, &[]);
        let refused = site.walden.run(&["expire"]).expect_code(3);
        assert!(refused.stderr.contains("no retention is configured"), "{refused}");
        retain(&site, None, "keep_last = 2");
        let list = site.walden.run(&["list"]).ok();
        assert!(list.stdout.contains(&format!("{first} (pinned)")), "{list}");

        let before = files(&site.repository("primary"));
        let plan = site.walden.run(&["expire", "--dry-run"]).ok();
        for part in [format!("keep    backup {first}"), format!("REMOVE  backup {second}")] {
            assert!(plan.stdout.contains(&part), "{part}: {plan}");
        }
        assert!(plan.stdout.contains("pinned") && plan.stdout.contains("last good backup"), "{plan}");
        assert_eq!(files(&site.repository("primary")), before);
        let json = site.walden.run(&["expire", "--dry-run", "--output", "json"]).ok();
        let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
        assert_eq!(json["repositories"][0]["systems"][0]["backups"][0]["reasons"][0], "pinned", "{json}");

        let ahead = ["expire", "--dry-run", "--output", "json", "--now", "2090-01-01T00:00:00Z"];
        let ahead: serde_json::Value = serde_json::from_str(&site.walden.run(&ahead).ok().stdout).expect("JSON");
        assert_eq!(ahead, json, "a clock that is far ahead changes nothing");

        site.walden.run(&["expire"]).ok();
        for repository in ["primary", "replica"] {
            assert_eq!(backups(&site, repository), set(&[first.clone(), third.clone(), fourth.clone()]));
        }
        let again = site.walden.run(&["expire"]).ok();
        assert!(!again.stdout.contains("REMOVE"), "{again}");
        // What is left is whole: each by itself, and every moment from the oldest that a rule keeps.
        let all = Ledger::ids(&site.cluster);
        for (id, without) in [(&first, "replica"), (&third, "primary"), (&fourth, "replica")] {
            let ids = bring_up(&pg, &site, id, &["--without", without]);
            assert!(all.starts_with(&ids) && !ids.is_empty(), "{id}: {ids:?}");
        }
        let lsn = format!("lsn:{}", target.lsn);
        let dir = site.restore("at-target", &["--until", &lsn, "--take-over"]);
        let mut restored = start_and_promote(&pg, &dir);
        assert_eq!(Ledger::ids(&restored).last(), Some(&target.id));
        restored.stop(Stop::Fast);

        site.walden.run(&["unpin", &first]).ok();
        site.walden.run(&["expire"]).ok();
        assert_eq!(backups(&site, "primary"), set(&[third, fourth]));
        site.walden.run(&["pin", &first]).expect_code(2);
        site.walden.run(&["pin", "../x"]).expect_code(2);
    }
);

live_test!(
    [17]
    fn two_repositories_have_a_retention_each_and_one_that_is_down_is_skipped(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        let ids: Vec<String> = (0..4).map(|_| backup(&site, &[])).collect();
        retain(&site, None, "keep_last = 3");
        retain(&site, Some("primary"), "keep_last = 1");
        // No key is needed.
        let identity = site.work.join("identity.txt");
        fs::rename(&identity, site.work.join("away.txt")).expect("rename");
        fs::rename(site.repository("replica"), site.work.join("replica-away")).expect("rename");
        let down = site.walden.run(&["expire"]).expect_code(4);
        assert!(down.stdout.contains("is left alone") && down.stderr.contains("replica"), "{down}");
        assert_eq!(backups(&site, "primary"), set(&ids[3..]));
        fs::rename(site.work.join("replica-away"), site.repository("replica")).expect("rename");
        site.walden.run(&["expire", "--repository", "primary"]).ok();
        assert_eq!(backups(&site, "replica"), set(&ids));
        site.walden.run(&["expire"]).ok();
        assert_eq!(backups(&site, "replica"), set(&ids[1..]));
        site.walden.run(&["expire", "--repository", "nonsense"]).expect_code(2);
        // sync brings nothing back that was let go.
        let sync = site.walden.run(&["sync"]).ok();
        assert_eq!(backups(&site, "primary"), set(&ids[3..]), "{sync}");
        fs::rename(site.work.join("away.txt"), &identity).expect("rename");
        for id in &ids[1..] {
            assert!(!bring_up(&pg, &site, id, &[]).is_empty());
        }
    }
);

live_test!(
    [17]
    fn killed_at_any_time_it_leaves_whole_backups(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        let ids: Vec<String> = (0..4).map(|_| backup(&site, &[])).collect();
        retain(&site, None, "keep_last = 1");
        let primary = site.repository("primary");
        let begin = files(&primary).len();
        let mut killed = 0;
        for removed in [1, 2, 8, 40] {
            let before = files(&primary).len();
            let mut running = site.walden.spawn(&["expire", "--repository", "primary"]);
            wait_until("some objects are gone, or the run is over", || {
                files(&primary).len() + removed <= before || !running.is_running()
            });
            running.signal(Signal::SIGKILL);
            running.wait(PATIENCE);
            killed += usize::from(files(&primary).len() + removed <= before);
            all_that_is_there_is_whole(&site, &primary);
        }
        assert!(killed > 0);
        site.walden.run(&["expire"]).ok();
        assert!(files(&primary).len() < begin);
        assert_eq!(backups(&site, "primary"), set(&ids[3..]));
        site.walden.run(&["verify", "--all"]).ok();
        assert!(!bring_up(&pg, &site, &ids[3], &["--without", "replica"]).is_empty());
    }
);

/// Checks each backup in the primary: it can be planned with, has all its objects, and `verify` misses nothing.
fn all_that_is_there_is_whole(site: &Site, primary: &Path) {
    for id in backups(site, "primary") {
        site.walden
            .run(&["recover", "--until", "immediate", "--backup", &id, "--without", "replica", "--plan"])
            .ok();
        let folder = walk_to(primary, &id);
        assert_eq!(files(&folder).len(), files(&walk_to(&site.repository("replica"), &id)).len(), "{id}");
    }
    site.walden.run(&["verify", "--all", "--repository", "primary"]).ok();
}

live_test!(
    [17]
    fn killed_at_any_moment_it_leaves_whole_backups_and_the_next_run_ends_it(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        let ids: Vec<String> = (0..4).map(|_| backup(&site, &[])).collect();
        retain(&site, None, "keep_last = 1");
        let (primary, begin) = (site.repository("primary"), site.work.join("begin"));
        let copy = |from: &Path, to: &Path| {
            let _ = fs::remove_dir_all(to);
            run(Command::new("cp").arg("-a").args([from, to])).ok();
        };
        // What an expiry left of a backup is no running one's after two days.
        let long_ago = SystemTime::now() - Duration::from_hours(72);
        for path in files(&primary).iter().filter(|path| path.to_string_lossy().contains("/backup/")) {
            let file = fs::File::options().write(true).open(path);
            file.and_then(|file| file.set_modified(long_ago)).expect("set time");
        }
        copy(&primary, &begin);
        let expire = || site.walden.spawn(&["expire", "--repository", "primary"]);
        let started = Instant::now();
        expire().wait(PATIENCE).ok();
        let (length, done) = (started.elapsed(), names(&primary));
        let moments = if soak() { 300 } else { 5 };
        let mut in_the_middle = 0;
        for moment in 0..moments {
            copy(&begin, &primary);
            let running = expire();
            // The moment is the matter: nothing is waited for.
            std::thread::sleep(length * moment / moments);
            running.signal(Signal::SIGKILL);
            running.wait(PATIENCE);
            let left = names(&primary);
            in_the_middle += usize::from(left != done && left != names(&begin));
            all_that_is_there_is_whole(&site, &primary);
            expire().wait(PATIENCE).ok();
            assert_eq!(names(&primary), done, "moment {moment} of {moments}");
        }
        eprintln!("{in_the_middle} of {moments} runs over {length:?} were killed between the first and the last removal");
        assert!(!soak() || in_the_middle > 10, "{in_the_middle}");
        site.walden.run(&["verify", "--all", "--repository", "primary"]).ok();
        assert!(!bring_up(&pg, &site, &ids[3], &["--without", "replica"]).is_empty());
    }
);

/// Returns the files of a directory, named from there.
fn names(dir: &Path) -> BTreeSet<PathBuf> {
    files(dir).iter().map(|path| path.strip_prefix(dir).expect("below it").to_owned()).collect()
}

live_test!(
    [17]
    fn killed_at_any_removal_from_a_bucket_it_leaves_whole_backups(pg: Installation) {
        let store = S3Store::start();
        let site = in_bucket(&pg, &store.url("x"), &store.endpoint, store.env());
        Ledger::create(&site.cluster);
        // What an expiry left of a backup is no running one's after two days.
        store.set_clock_behind(Duration::from_hours(72));
        for _ in 0..3 {
            backup(&site, &[]);
        }
        store.set_clock_behind(Duration::ZERO);
        site.fill(1);
        retain(&site, None, "keep_last = 1");
        let begin = store.snapshot();
        store.forget_requests();
        site.walden.run(&["expire"]).ok();
        let (removals, done) = (store.count(Operation::DeleteObject), store.objects());
        let moments: Vec<usize> = (0..removals).step_by(if soak() { 1 } else { removals / 4 }).collect();
        for removal in moments {
            store.restore(&begin);
            store.forget_requests();
            // From there on nothing is answered: some removals are under way when it is killed.
            store.fail(Rule::new(Fault::Hang).on(Operation::DeleteObject).after(removal));
            let running = site.walden.spawn(&["expire"]);
            wait_until("it hangs", || store.count(Operation::DeleteObject) > removal);
            running.signal(Signal::SIGKILL);
            running.wait(PATIENCE);
            store.heal();
            let left = store.objects();
            assert!(left.len() > done.len(), "it was killed before its end");
            site.walden.run(&["verify"]).ok();
            for summary in left.iter().filter(|key| key.ends_with("backup.json")) {
                let id = summary.rsplit('/').nth(1).expect("an id");
                site.walden.run(&["recover", "--until", "immediate", "--backup", id, "--plan"]).ok();
            }
            site.walden.run(&["expire"]).ok();
            assert_eq!(store.objects(), done, "killed at removal {removal} of {removals}");
        }
    }
);

/// Returns the folder of a backup.
fn walk_to(repository: &Path, id: &str) -> PathBuf {
    let summary = files(repository).into_iter().find(|path| path.ends_with(format!("{id}/backup.json")));
    summary.expect("the backup").parent().expect("its folder").to_owned()
}

live_test!(
    [17]
    fn a_store_that_lets_nothing_go_is_reported_and_not_failed_on(pg: Installation) {
        let store = S3Store::start();
        let site = in_bucket(&pg, &store.url("x"), &store.endpoint, store.env());
        Ledger::create(&site.cluster);
        let ids: Vec<String> = (0..3).map(|_| backup(&site, &[])).collect();
        retain(&site, None, "keep_last = 1");
        let before = store.objects();
        store.fail(Rule::new(Fault::Status(403, "AccessDenied")).on(Operation::DeleteObject).times(usize::MAX));
        let refused = site.walden.run(&["expire"]).ok();
        assert!(refused.stderr.contains("could not be removed") && refused.stderr.contains("AccessDenied"), "{refused}");
        assert_eq!(store.objects(), before);
        store.heal();
        site.walden.run(&["expire"]).ok();
        let left = store.objects_matching("backup.json");
        assert!(left.len() == 1 && left[0].contains(&ids[2]), "{left:?}");
        site.restore("restored", &["--until", "immediate", "--backup", &ids[2]]);
    }
);

live_test!(
    [17]
    fn under_object_lock_what_expires_is_hidden_and_its_versions_stay(pg: Installation) {
        let Some(moto) = Moto::start() else { return };
        moto.create_locked_bucket("locked");
        let site = in_bucket(&pg, "s3://locked/x", &moto.endpoint, moto.env());
        Ledger::create(&site.cluster);
        let ids: Vec<String> = (0..2).map(|_| backup(&site, &[])).collect();
        retain(&site, None, "keep_last = 1");
        site.walden.run(&["expire"]).ok();
        let list = site.walden.run(&["list"]).ok();
        assert!(!list.stdout.contains(&ids[0]) && list.stdout.contains(&ids[1]), "{list}");
        let client = crate::support::S3Client::new(&moto.endpoint, &moto.access_key, &moto.secret_key, None);
        let versions = client.wait(client.client.list_object_versions().bucket("locked").send()).expect("versions");
        let kept = versions.versions().iter().filter(|version| version.key().is_some_and(|key| key.contains(&ids[0])));
        assert!(kept.count() > 3, "every version is still there");
        assert!(!versions.delete_markers().is_empty());
        site.restore("restored", &["--until", "immediate", "--backup", &ids[1]]);
    }
);
