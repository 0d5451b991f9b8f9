//! `walden check`: nothing FAILED on a healthy installation, and each thing that is wrong is told by itself.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walden::index::Index;

use crate::support::s3_store::{Conditions, Fault, Operation, Rule};
use crate::support::site::walk;
use crate::support::tools::run;
use crate::support::user::{self, WorkDir};
use crate::support::{
    Cluster, ClusterOptions, Finished, Installation, PATIENCE, S3Store, Site, SiteOptions, Stop, Walden,
    live_test,
};

/// What a check said.
struct Report {
    json: serde_json::Value,
    finished: Finished,
}

impl Report {
    /// Returns the item of that name; `repository item` for that of a repository.
    #[track_caller]
    fn item(&self, name: &str) -> &serde_json::Value {
        let is = |item: &&serde_json::Value| match item["repository"].as_str() {
            Some(repository) => format!("{repository} {}", item["name"].as_str().unwrap()) == name,
            None => item["name"] == name,
        };
        let items = self.json["items"].as_array().expect("items");
        items.iter().find(is).unwrap_or_else(|| panic!("no item {name}: {}", self.finished))
    }

    /// Checks what an item is, and that its text or hint says something.
    #[track_caller]
    fn says(&self, name: &str, state: &str, part: &str) -> &Self {
        let item = self.item(name);
        assert_eq!(item["state"], state, "{name}: {item}");
        let text =
            format!("{} {}", item["found"].as_str().unwrap_or(""), item["hint"].as_str().unwrap_or(""));
        assert!(text.contains(part), "{name} does not say {part}: {text}");
        self
    }
}

/// Runs a check and reads its JSON; the exit code must be the one that it says, and as expected.
#[track_caller]
fn check_with(walden: &Walden, more: &[&str], code: i32) -> Report {
    let finished = walden.run(&[&["check", "--output", "json"], more].concat()).expect_code(code);
    let json: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(json["exit_code"], code, "{finished}");
    Report { json, finished }
}

#[track_caller]
fn check(site: &Site, code: i32) -> Report {
    check_with(&site.walden, &[], code)
}

/// As [`check`], without a round trip.
#[track_caller]
fn look(site: &Site, code: i32) -> Report {
    check_with(&site.walden, &["--no-round-trip"], code)
}

/// Changes the configuration.
#[track_caller]
fn edit(site: &Site, from: &str, to: &str) {
    let text = fs::read_to_string(&site.config).expect("read");
    assert!(text.contains(from), "no {from} in {text}");
    fs::write(&site.config, text.replace(from, to)).expect("write");
}

fn on_s3(pg: &Installation, store: &S3Store) -> Site {
    let init = ["endpoint=", "path_style=true", "region="].map(|option| match option {
        "endpoint=" => format!("bucket.endpoint={}", store.endpoint),
        "region=" => format!("bucket.region={}", store.region),
        other => format!("bucket.{other}"),
    });
    let options = SiteOptions {
        repositories: vec![format!("bucket={}", store.url("prod"))],
        init: init.into_iter().flat_map(|option| ["--repository-option".to_owned(), option]).collect(),
        env: store.env(),
        ..SiteOptions::default()
    };
    Site::with(pg, &options)
}

live_test!(
    fn a_fresh_installation_has_nothing_failed(pg: Installation) {
        let mut cluster = Cluster::start_new(&pg, &ClusterOptions::default());
        let work = WorkDir::new();
        let walden = Walden::new(&work.join("walden.toml"));
        let repository = format!("primary=file://{}", work.join("repo").display());
        let (data_dir, state) =
            (cluster.data_dir().display().to_string(), work.join("state").display().to_string());
        let connection = cluster.connection_string();
        let init = ["init", "--data-dir", &data_dir, "--state-dir", &state, "--repository", &repository];
        walden.run(&[&init[..], &["--connection", &connection, "--apply"]].concat()).ok();
        let before = check_with(&walden, &[], 7);
        before.says("archive_mode", "failed", "restart").says("round trip", "skipped", "archive_mode");
        cluster.restart();
        cluster.psql("create table told (i int)");

        let text = walden.run(&["check"]).ok();
        assert!(text.stdout.lines().last().unwrap().ends_with(" 0 FAILED"), "{text}");
        assert!(text.stdout.contains("OK      primary round trip: 0"), "{text}");
        let report = check_with(&walden, &[], 0);
        report.says("primary round trip", "ok", "restore point \"walden check ");
        report.says("names", "ok", " databases").says("keys", "ok", "1 recipient");
        report.says("identity", "risk", "on the host of the database");
        report.says("primary delete", "risk", "second repository").says("primary list", "ok", "");
        report.says("archive_timeout", "warning", "1min");
        let mut left = Vec::new();
        walk(&work.join("repo"), &mut left);
        assert!(!left.iter().any(|path| path.to_string_lossy().contains("/check/")), "{left:?}");
        let operations = Index::open(&work.join("state/main/index.sqlite")).unwrap().operations(9).unwrap();
        let checks: Vec<_> = operations.iter().filter(|operation| operation.command == "check").collect();
        assert_eq!(checks.len(), 3);
        assert_eq!(checks[0].outcome.as_deref(), Some("done"));
        assert!(checks[2].outcome.as_deref().unwrap().contains("archive_mode"), "{checks:?}");
    }
);

live_test!(
    [15]
    fn root_sees_the_same_and_leaves_nothing_of_its_own(pg: Installation) {
        let site = Site::new(&pg);
        let mut command = Command::new(Walden::binary());
        command.arg("--config").arg(&site.config).arg("check").env_remove("WALDEN_CONFIG");
        let finished = run(&mut command).ok();
        assert!(finished.stdout.contains(" 0 FAILED"), "{finished}");
        check(&site, 0).says("state_dir", "ok", "writable");
        site.archive_a_segment();
    }
);

live_test!(
    [15]
    fn keys_that_do_not_fit_and_keys_that_are_too_near(pg: Installation) {
        let site = Site::new(&pg);
        let identity = site.work.join("identity.txt");
        let right = fs::read(&identity).expect("read");
        let (other, _) = walden::codec::generate_identity();
        fs::write(&identity, other).expect("write");
        look(&site, 3).says("keys", "failed", "belongs to none of the recipients");
        fs::write(&identity, "nonsense").expect("write");
        let report = look(&site, 3);
        report.says("keys", "failed", "identity").says("primary delete", "risk", "");
        fs::write(&identity, right).expect("write");
        fs::set_permissions(&identity, fs::Permissions::from_mode(0o644)).expect("chmod");
        look(&site, 0).says("identity", "risk", "chmod 600");

        // As on a host that only archives: what comes back cannot be read there, and is whole.
        let line = format!("identity_file = \"{}\"", identity.display());
        edit(&site, &line, "");
        let report = check(&site, 0);
        report.says("keys", "ok", "no identity here").says("replica round trip", "ok", "as ciphertext");

        let text = fs::read_to_string(&site.config).expect("read");
        let (before, after) = text.split_once("[encryption]").expect("encryption");
        let after = after.split_once("[archive]").expect("archive").1;
        fs::write(&site.config, format!("encryption = \"none\"\n{before}[archive]{after}")).expect("write");
        let report = check(&site, 0);
        report.says("keys", "risk", "not encrypted").says("primary round trip", "ok", "restore point");
    }
);

live_test!(
    [15]
    fn a_configuration_that_cannot_be_read_or_that_others_can_write(pg: Installation) {
        let site = Site::new(&pg);
        fs::set_permissions(&site.config, fs::Permissions::from_mode(0o666)).expect("chmod");
        look(&site, 0).says("config", "risk", "chmod 640");
        edit(&site, "acknowledge", "aknowledge");
        let report = look(&site, 3);
        report.says("config", "failed", "nearest known key is \"acknowledge\"");
        assert_eq!(report.json["failed"], 1);
    }
);

live_test!(
    [15]
    fn a_state_directory_that_is_missing_full_read_only_or_of_another_owner(pg: Installation) {
        let site = Site::new(&pg);
        let state = site.work.join("state");
        site.archive_a_segment();
        let index = state.join("main/index.sqlite");
        let content = fs::read(&index).expect("read");
        fs::write(&index, vec![7; 50_000]).expect("write");
        look(&site, 0).says("index", "warning", "walden index rebuild").says("names", "skipped", "index");
        fs::write(&index, content).expect("write");

        fs::rename(&state, site.work.join("away")).expect("rename");
        let report = check(&site, 3);
        report.says("state_dir", "failed", "does not exist").says("primary round trip", "ok", "");
        let _ = fs::remove_dir_all(&state);
        fs::rename(site.work.join("away"), &state).expect("rename back");
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not root: other owners and filesystems are left out");
            return;
        }
        chown(&state, Some(0), Some(0)).expect("chown");
        look(&site, 3).says("state_dir", "failed", "chown -R");
        user::give(&state);
        let mount = |options: &str| {
            run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&state)).code == 0
        };
        let unmount = || run(Command::new("umount").arg(&state)).ok();
        if !mount("size=4m,mode=0777") {
            eprintln!("nothing can be mounted here: a full disk is left out");
            return;
        }
        user::give(&state);
        look(&site, 1).says("state_dir", "failed", "make room").says("server", "ok", "");
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(&state)).ok();
        look(&site, 3).says("state_dir", "failed", "cannot be written to").says("index", "skipped", "");
        unmount();
        look(&site, 0).says("state_dir", "ok", "writable");
    }
);

live_test!(
    [15]
    fn a_repository_that_is_gone_or_of_another_cluster(pg: Installation) {
        let site = Site::new(&pg);
        let replica = site.repository("replica");
        fs::rename(&replica, site.work.join("away")).expect("rename");
        let report = check(&site, 4);
        report.says("replica cluster", "failed", "mounted").says("primary round trip", "ok", "arrived");
        check_with(&site.walden, &["--repository", "primary"], 0);
        site.walden.run(&["check", "--repository", "nonsense"]).expect_code(2);
        fs::create_dir(&replica).expect("mkdir");
        user::give(&replica);
        look(&site, 4).says("replica cluster", "failed", "walden init");
        fs::remove_dir(&replica).expect("rmdir");

        let other = Site::prepare(&pg, &SiteOptions::default());
        fs::rename(other.repository("primary"), &replica).expect("rename");
        let report = look(&site, 6);
        report.says("replica cluster", "failed", "system identifier").says("primary cluster", "ok", "");
    }
);

live_test!(
    [15]
    fn a_repository_that_belongs_to_somebody_else_or_that_hides_what_was_written(pg: Installation) {
        let site = Site::new(&pg);
        let own = site.repository("primary").join("main");
        if nix::unistd::geteuid().is_root() {
            chown(&own, Some(0), Some(0)).expect("chown");
            look(&site, 4).says("primary owner", "failed", "chown -R").says("replica owner", "ok", "");
            user::give(&own);
        }
        look(&site, 0).says("primary place", "risk", "one disk").says("primary space", "ok", "");
    }
);

live_test!(
    [15]
    fn rights_and_habits_of_a_store_are_found_out(pg: Installation) {
        let store = S3Store::start();
        let site = on_s3(&pg, &store);
        let report = check(&site, 0);
        report.says("bucket delete", "risk", "\"Resource\": \"arn:aws:s3:::walden/prod/*\"");
        report.says("bucket conditional write", "ok", "refused").says("bucket round trip", "ok", "restore point");
        assert!(store.objects_matching("/check/").is_empty());

        // Without the right to delete the probe stays, one for all checks. It goes with the first that may, an hour later.
        store.fail(Rule::new(Fault::Status(403, "AccessDenied")).on(Operation::DeleteObject));
        store.set_clock_behind(Duration::from_hours(2));
        look(&site, 1).says("bucket delete", "ok", "cannot be removed from here");
        store.set_clock_behind(Duration::ZERO);
        for _ in 0..3 {
            look(&site, 0).says("bucket delete", "ok", "cannot be removed from here");
        }
        assert_eq!(store.objects_matching("/check/").len(), 1);
        check(&site, 0).says("bucket clock", "ok", "agrees");
        site.walden.run(&["base-backup", "--fast"]).ok();
        for command in [&["sync"][..], &["status"], &["list"], &["index", "rebuild"]] {
            site.walden.run(command).ok();
        }
        store.heal();
        look(&site, 0);
        assert!(store.objects_matching("/check/").is_empty());

        store.fail(Rule::new(Fault::Status(403, "AccessDenied")).on(Operation::PutObject));
        look(&site, 4).says("bucket write", "failed", "AccessDenied").says("bucket cluster", "ok", "");
        store.heal();
        store.fail(Rule::new(Fault::WrongBytes).on(Operation::GetObject).key("/check/"));
        look(&site, 4).says("bucket read", "failed", "get the probe").says("bucket list", "ok", "");
        store.heal();
        store.set_down(true);
        look(&site, 4).says("bucket cluster", "failed", "");
        store.heal();
    }
);

live_test!(
    [15]
    fn checks_at_the_same_time_do_not_meet(pg: Installation) {
        let store = S3Store::start();
        let (bucket, directories) = (on_s3(&pg, &store), Site::new(&pg));
        // Every call on a probe takes its time, so that all of one meet all of the others.
        store.fail(Rule::new(Fault::Delay(Duration::from_millis(100))).key("/check/"));
        for (site, names) in [(&bucket, &["bucket"][..]), (&directories, &["primary", "replica"])] {
            let look = || site.walden.spawn(&["check", "--no-round-trip", "--output", "json"]);
            let running = [look(), look(), look(), look()];
            for finished in running.map(|check| check.wait(PATIENCE).ok()) {
                let report = Report { json: serde_json::from_str(&finished.stdout).expect("JSON"), finished };
                for name in names {
                    for (item, text) in [("write", "/probe\""), ("read", ""), ("list", ""), ("conditional write", "refused")] {
                        report.says(&format!("{name} {item}"), "ok", text);
                    }
                    report.says(&format!("{name} delete"), "risk", "this host may delete");
                }
            }
        }
        assert!(store.objects_matching("/check/").is_empty());
        // Round trips send their segments at the same time, or the same one.
        let check = || directories.walden.spawn(&["check", "--output", "json"]);
        for finished in [check(), check(), check()].map(|check| check.wait(PATIENCE).ok()) {
            let report = Report { json: serde_json::from_str(&finished.stdout).expect("JSON"), finished };
            report.says("primary round trip", "ok", "restore point").says("replica round trip", "ok", "restore point");
        }
        let mut left = Vec::new();
        walk(directories.work.path(), &mut left);
        assert!(!left.iter().any(|path| path.to_string_lossy().contains("/check/")), "{left:?}");

        // Nor do those that may not delete, and share one.
        store.heal();
        store.fail(Rule::new(Fault::Status(403, "AccessDenied")).on(Operation::DeleteObject));
        let look = || bucket.walden.spawn(&["check", "--no-round-trip"]);
        for check in [look(), look(), look()] {
            check.wait(PATIENCE).ok();
        }
        assert_eq!(store.objects_matching("/check/").len(), 1);
    }
);

live_test!(
    [15]
    fn a_store_without_conditional_writes_or_with_a_wrong_clock(pg: Installation) {
        let store = S3Store::start();
        let site = on_s3(&pg, &store);
        store.set_conditions(Conditions::Ignored);
        look(&site, 0).says("bucket conditional write", "risk", "overwrote");
        store.set_conditions(Conditions::Refused);
        look(&site, 0).says("bucket conditional write", "risk", "does not know");
        edit(&site, "path_style = true", "path_style = true\nconditional_writes = false");
        for conditions in [Conditions::Ignored, Conditions::Refused, Conditions::Enforced] {
            store.set_conditions(conditions);
            look(&site, 0).says("bucket conditional write", "ok", "conditional_writes = false");
        }
        assert!(store.objects_matching("/check/").is_empty());
        store.set_clock_behind(Duration::from_mins(10));
        look(&site, 1).says("bucket clock", "failed", "behind").says("clock", "ok", "agrees");
        store.set_clock_behind(Duration::from_secs(30));
        look(&site, 0).says("bucket clock", "ok", "behind");
    }
);

live_test!(
    [14, 18]
    fn a_server_that_is_down_or_archives_nothing(pg: Installation) {
        let mut site = Site::new(&pg);
        site.cluster.set("archive_command", "/bin/true");
        let report = check(&site, 7);
        report.says("archive_command", "failed", "nowhere").says("primary round trip", "failed", "in no repository");
        site.cluster.set("archive_command", "exec test -z %p # walden archive-push");
        check(&site, 7).says("primary round trip", "failed", "the server's log");
        look(&site, 7).says("archiver", "failed", "log");
        site.cluster.set("archive_command", site.walden.command_line("archive-push %p").replace("walden.toml", "other.toml"));
        look(&site, 7).says("archive_command", "failed", "other.toml");
        site.cluster.set("archive_command", "");
        look(&site, 7).says("archive_command", "failed", "empty");
        site.cluster.psql("alter system set archive_mode = off");
        site.cluster.set("wal_level", "minimal");
        site.cluster.set("max_wal_senders", 0);
        site.cluster.set("fsync", "off");
        site.cluster.set("full_page_writes", "off");
        site.cluster.restart();
        let report = check(&site, 7);
        report.says("archive_mode", "failed", "take-over").says("round trip", "skipped", "archive_mode");
        report.says("wal_level", "failed", "minimal").says("fsync", "warning", "").says("full_page_writes", "warning", "");

        site.cluster.stop(Stop::Fast);
        let report = check(&site, 7);
        report.says("server", "failed", "connect").says("primary list", "ok", "").says("replica list", "ok", "");
        report.says("round trip", "skipped", "").says("names", "skipped", "").says("data_dir", "ok", "");
    }
);

live_test!(
    [14, 17]
    fn what_a_role_lacks_is_named_with_the_statements_that_give_it(pg: Installation) {
        let site = Site::new(&pg);
        site.cluster.psql("create role \"the backup\" login");
        edit(&site, "user=postgres", "user='the backup'");
        let wrote = || site.cluster.log().contains("restore point \"walden check ");
        let report = check(&site, 7);
        report.says("privileges", "failed", "GRANT pg_read_all_settings").says("round trip", "skipped", "privileges");
        let hint = report.item("privileges")["hint"].as_str().expect("a hint").to_owned();
        let (backup, round_trip): (Vec<&str>, Vec<&str>) =
            hint.split_inclusive(';').partition(|grant| !grant.contains("pg_create_") && !grant.contains("pg_switch_"));
        assert_eq!((backup.len(), round_trip.len()), (3, 2), "{hint}");
        site.cluster.psql(&backup.concat());
        check(&site, 0).says("privileges", "warning", "GRANT EXECUTE ON FUNCTION pg_switch_wal()");
        look(&site, 0).says("round trip", "skipped", "--no-round-trip");
        assert!(!wrote(), "{}", site.cluster.log_tail());
        site.cluster.psql(&round_trip.concat());
        check(&site, 0).says("privileges", "ok", "").says("replica round trip", "ok", "restore point");
        assert!(wrote());
    }
);

live_test!(
    [14, 18]
    fn names_of_very_many_relations_are_taken(pg: Installation) {
        let site = Site::new(&pg);
        let create = "select format('create table t%s ()', i) from generate_series(1, 10100) i";
        site.cluster.psql(&format!("set synchronous_commit = off;\n{create} \\gexec"));
        site.cluster.psql("create database other");
        look(&site, 0).says("names", "ok", "10,100 relations in 4 databases");
        let last: u32 = site.cluster.psql("select 't10100'::regclass::oid").parse().expect("an OID");
        let database: u32 = site.cluster.psql("select oid from pg_database where datname = 'postgres'").parse().unwrap();
        let sysid = site.cluster.psql("select system_identifier from pg_control_system()").parse().unwrap();
        let index = Index::open(&site.work.join("state/main/index.sqlite")).unwrap();
        let relations = index.relations_of_oid(sysid, database, last).unwrap();
        assert_eq!(relations[0].name, "public.t10100");
    }
);

live_test!(
    [15, 18]
    fn a_standby_reads_back_what_its_primary_archived(pg: Installation) {
        let site = Site::new(&pg);
        site.walden.run(&["base-backup", "--fast"]).ok();
        let newest = site.archive_a_segment();
        let mut standby = site.standby(&pg, "standby");
        standby.start();
        let config = standby_config(&site, &standby);
        let report = check_with(&Walden::new(&config), &[], 0);
        report.says("server", "ok", "a standby").says("primary round trip", "ok", &newest);
        report.says("restore_command", "ok", "archive-get");
        standby.stop(Stop::Fast);
    }
);

/// Writes a configuration for a standby of the site's cluster.
fn standby_config(site: &Site, standby: &Cluster) -> std::path::PathBuf {
    let text = fs::read_to_string(&site.config).expect("read");
    let text = text
        .replace(&site.cluster.data_dir().display().to_string(), &standby.data_dir().display().to_string())
        .replace(&site.cluster.connection_string(), &standby.connection_string());
    site.work.write(Path::new("standby.toml"), text)
}
