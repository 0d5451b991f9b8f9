//! Doubt on real servers: whatever cannot be answered stops a recovery or lets a standby wait; nothing ever ends early, and
//! no branch is replayed that was abandoned.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Cluster, Installation, Ledger, Site, Stop, Walden, live_test, user, wait_until};

fn fill(site: &Site, count: usize) -> Vec<String> {
    (0..count)
        .map(|_| {
            Ledger::add(&site.cluster);
            site.archive_a_segment()
        })
        .collect()
}

fn take_away(site: &Site) {
    for name in ["primary", "replica"] {
        fs::rename(site.repository(name), site.work.join(format!("{name}-away"))).expect("rename");
    }
}

fn bring_back(site: &Site) {
    for name in ["primary", "replica"] {
        fs::rename(site.work.join(format!("{name}-away")), site.repository(name)).expect("rename");
    }
}

/// Restores without starting; returns the directory.
#[track_caller]
fn restore(site: &Site, name: &str, more: &[&str]) -> PathBuf {
    let dir = site.work.join(name);
    let target = dir.display().to_string();
    site.walden.run(&[&["recover", "--data-dir", &target], more].concat()).ok();
    dir
}

/// Appends settings to postgresql.auto.conf; they win over those before them.
fn set(dir: &Path, lines: &str) {
    let path = dir.join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, format!("{text}{lines}\n")).expect("write");
}

/// Runs a restored server until it stops by itself; returns its log.
#[track_caller]
fn run_to_its_end(pg: &Installation, dir: &Path) -> String {
    let mut cluster = Cluster::open(pg, dir);
    cluster.launch();
    wait_until("the server has stopped by itself", || !cluster.is_running());
    cluster.log()
}

live_test!(
    fn a_repository_that_dies_in_mid_recovery_stops_the_server_and_never_promotes_it(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        let names = fill(&site, 14);
        let all = Ledger::ids(&site.cluster);
        let dir = restore(&site, "restored", &["--until", "latest"]);
        // The repositories go when the third segment is asked for.
        let script = site.work.write(
            "restore.sh",
            format!(
                "#!/bin/sh\nif [ \"$1\" = {} ] && [ -d {work}/primary ]; then\n  mv {work}/primary {work}/primary-away\n  \
                 mv {work}/replica {work}/replica-away\nfi\nexec {}\n",
                names[2],
                site.walden.command_line("archive-get \"$1\" \"$2\""),
                work = site.work.path().display(),
            ),
        );
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
        set(&dir, &format!("restore_command = '{} %f %p'", script.display()));
        let log = run_to_its_end(&pg, &dir);
        assert!(log.contains("FATAL") && log.contains("absence is not proven"), "{log}");
        assert!(!log.contains("selected new timeline"), "{log}");
        assert!(dir.join("recovery.signal").exists());

        fs::write(
            &script,
            format!("#!/bin/sh\nexec {}\n", site.walden.command_line("archive-get \"$1\" \"$2\"")),
        )
        .expect("write");
        bring_back(&site);
        let mut cluster = Cluster::open(&pg, &dir);
        cluster.start();
        cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
        assert_eq!(Ledger::ids(&cluster), all);
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    [15, 18]
    fn a_standby_rides_out_an_outage_and_catches_up(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        fill(&site, 3);
        let dir = restore(&site, "standby", &["--until", "latest"]);
        fs::remove_file(dir.join("recovery.signal")).expect("remove");
        fs::write(dir.join("standby.signal"), "").expect("write");
        user::give(&dir.join("standby.signal"));
        set(&dir, "recovery_target_timeline = 'latest'\nwal_retrieve_retry_interval = '200ms'");
        let mut standby = Cluster::open(&pg, &dir);
        standby.start();
        let caught_up = |standby: &Cluster| {
            standby.try_psql("select count(*) from ledger").is_ok()
                && Ledger::ids(standby) == Ledger::ids(&site.cluster)
        };
        standby.wait_until("the standby has caught up", || caught_up(&standby));
        take_away(&site);
        Ledger::add(&site.cluster);
        site.cluster.switch_wal();
        std::thread::sleep(Duration::from_secs(5));
        assert!(standby.is_running(), "{}", standby.log_tail());
        assert!(standby.log().contains("absence is not proven"), "{}", standby.log_tail());
        bring_back(&site);
        Ledger::add(&site.cluster);
        site.archive_a_segment();
        standby.wait_until("the standby has caught up again", || caught_up(&standby));
        assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
        standby.stop(Stop::Fast);
    }
);

/// A cluster that was recovered to the middle of a segment and went on as timeline 2, while timeline 1 went on too.
struct Fork {
    site: Site,
    /// The segment of the fork, on timeline 1 and 2.
    parents: String,
    childs: String,
    /// What timeline 2 has in its ledger.
    ids: Vec<i64>,
}

impl Fork {
    #[track_caller]
    fn make(pg: &Installation) -> Self {
        let site = Site::new(pg);
        Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        fill(&site, 1);
        let target = Ledger::add(&site.cluster);
        Ledger::add(&site.cluster);
        let parents = site.archive_a_segment();
        let dir = restore(&site, "promoted", &["--until", &format!("lsn:{}", target.lsn), "--take-over"]);
        let mut promoted = Cluster::open(pg, &dir);
        promoted.start();
        promoted.wait_until("the server has promoted", || promoted.psql("select pg_is_in_recovery()") == "f");
        Ledger::add(&promoted);
        let childs = promoted.switch_wal();
        promoted.wait_archived(&childs);
        let ids = Ledger::ids(&promoted);
        promoted.stop(Stop::Fast);
        assert_eq!(childs, parents.replacen("00000001", "00000002", 1), "the fork is in one segment");
        fill(&site, 1);
        Self { site, parents, childs, ids }
    }

    /// Renames what is archived under a name, out of the way or back.
    fn hide(&self, name: &str, hidden: bool) {
        for repository in ["primary", "replica"] {
            for object in self.site.wal_objects(repository, name) {
                let text = object.display().to_string();
                let to = if hidden { format!("{text}.aside") } else { text.replace(".aside", "") };
                fs::rename(&object, to).expect("rename");
            }
        }
    }
}

live_test!(
    [15, 18]
    fn without_the_fork_segment_the_abandoned_branch_is_not_replayed(pg: Installation) {
        let fork = Fork::make(&pg);
        let site = &fork.site;
        // Whole as it is, timeline 2 can be followed.
        let dir = restore(site, "whole", &["--until", "latest", "--timeline", "2", "--start"]);
        let mut cluster = Cluster::adopt(&pg, &dir);
        assert_eq!(Ledger::ids(&cluster), fork.ids);
        cluster.stop(Stop::Fast);

        // All of timeline 2's WAL is lost; its history is not.
        fork.hide("00000002000000", true);
        let dir = restore(site, "refused", &["--until", "latest", "--timeline", "1"]);
        set(&dir, "recovery_target_timeline = '2'");
        let log = run_to_its_end(&pg, &dir);
        assert!(log.contains("FATAL") && log.contains("branch that was abandoned"), "{log}");
        assert!(!log.contains("selected new timeline"), "{log}");

        // The parent's segment is refused as long as the child's is in doubt.
        let (finished, _) = site.get(&fork.childs, &["--on-error", "retry"]);
        assert!(finished.stderr.contains(&fork.parents), "{finished}");
        finished.expect_code(4);
        let (finished, _) = site.get(&fork.parents, &[]);
        assert!(finished.stderr.contains("is refused while"), "{finished}");
        finished.expect_code(200);
        fork.hide("00000002000000", false);
        site.get(&fork.parents, &[]).0.ok();

        // The promoted server died before it archived anything: its parent ended in a partial segment, and absence is right.
        fork.hide("00000002000000", true);
        site.get(&fork.childs, &[]).0.expect_code(200);
        fork.hide(&fork.parents, true);
        for repository in ["primary", "replica"] {
            for later in site.wal_objects(repository, "00000001000000") {
                if later.file_name().is_some_and(|name| *name.to_string_lossy() > *fork.parents)
                    && !later.display().to_string().ends_with(".aside")
                {
                    fs::remove_file(later).expect("remove");
                }
            }
        }
        site.get(&fork.childs, &[]).0.expect_code(1);
        site.get(&fork.parents, &[]).0.expect_code(1);
    }
);

live_test!(
    [15]
    fn a_doubt_on_a_timeline_covers_its_parents_until_it_is_settled(pg: Installation) {
        let fork = Fork::make(&pg);
        let site = &fork.site;
        let damage = |repository: &str| {
            for object in site.wal_objects(repository, &fork.childs) {
                let mut bytes = fs::read(&object).expect("read");
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&object, bytes).expect("write");
            }
        };
        // A server that asks, as its postmaster.pid tells.
        let data = site.work.create_dir("standby");
        for name in ["pg_wal", "global"] {
            fs::create_dir(data.join(name)).expect("create");
            user::give(&data.join(name));
        }
        fs::copy(site.cluster.data_dir().join("global/pg_control"), data.join("global/pg_control")).expect("copy");
        user::give(&data.join("global/pg_control"));
        fs::write(data.join("standby.signal"), "").expect("write");
        let started = |number: u32| {
            fs::write(data.join("postmaster.pid"), format!("4711\n{}\n{number}\n", data.display())).expect("write");
            user::give(&data.join("postmaster.pid"));
        };
        let walden = site.walden.clone().dir(&data);
        let get = |name: &str| walden.run(&["archive-get", name, "pg_wal/RECOVERYXLOG"]);

        started(1);
        take_away(site);
        get(&fork.childs).expect_code(4);
        bring_back(site);
        // It is there again, but this server was refused it a moment ago: it has to ask again, and does.
        let finished = get(&fork.parents).expect_code(4);
        assert!(finished.stderr.contains("must be asked for first"), "{finished}");
        get(&fork.childs).ok();
        get(&fork.parents).ok();

        // A server that was started anew begins with its newest timeline, whatever that is.
        take_away(site);
        get(&fork.childs).expect_code(4);
        bring_back(site);
        started(2);
        get(&fork.parents).ok();

        // Damage in one repository is noted, in all it is a doubt.
        damage("primary");
        get(&fork.childs).ok();
        let index = rusqlite::Connection::open(site.work.join("state/main/index.sqlite")).expect("open index");
        let noted: i64 = index.query_row("select count(*) from damage", [], |row| row.get(0)).expect("count");
        assert_eq!(noted, 1);
        damage("replica");
        get(&fork.childs).expect_code(6);
        // What is known to be there is not handed out on the parent either.
        get(&fork.parents).expect_code(4);

        // Where no note can be written, not even a standby may go on.
        let text = fs::read_to_string(&site.config).expect("read");
        let blocked = site.work.write("blocked", "a file").display().to_string();
        let state = site.work.join("state").display().to_string();
        fs::write(&site.config, text.replace(&state, &blocked)).expect("write");
        let finished = get(&fork.childs).expect_code(200);
        assert!(finished.stderr.contains("could not be noted"), "{finished}");
    }
);

live_test!(
    [15, 18]
    fn histories_that_were_never_archived_are_no_obstacle_on_either_branch(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        fill(&site, 2);
        let first_branch = Ledger::ids(&site.cluster);
        // Promoted with archiving off, and once more with archiving on: timeline 2 leaves no history behind.
        let dir = restore(&site, "again", &["--until", "latest"]);
        let mut again = Cluster::open(&pg, &dir);
        let in_recovery = |cluster: &Cluster| cluster.psql("select pg_is_in_recovery()") == "t";
        again.start();
        again.wait_until("the server has promoted", || !in_recovery(&again));
        Ledger::add(&again);
        again.stop(Stop::Fast);
        fs::write(dir.join("standby.signal"), "").expect("write");
        user::give(&dir.join("standby.signal"));
        set(&dir, "archive_mode = 'on'\nrestore_command = ''\nrecovery_target_timeline = 'latest'");
        again.start();
        again.psql("select pg_promote()");
        again.wait_until("the server has promoted again", || !in_recovery(&again));
        let text = fs::read_to_string(&site.config).expect("read");
        let text = text
            .replace(&site.cluster.data_dir().display().to_string(), &dir.display().to_string())
            .replace(&site.cluster.connection_string(), &again.connection_string());
        let config = site.work.write("again.toml", text);
        for repository in ["primary", "replica"] {
            wait_until("the history of timeline 3 is archived", || {
                !site.wal_objects(repository, "00000003.history").is_empty()
            });
            assert!(site.wal_objects(repository, "00000002.history").is_empty());
        }
        Walden::new(&config).run(&["base-backup", "--fast"]).ok();
        Ledger::add(&again);
        again.wait_archived(&again.switch_wal());
        let last_branch = Ledger::ids(&again);
        again.stop(Stop::Fast);
        // As if the base backup had not archived the missing history.
        for repository in ["primary", "replica"] {
            for object in site.wal_objects(repository, "00000002.history") {
                fs::remove_file(object).expect("remove");
            }
        }
        for (name, timeline, ids) in [("third", "3", &last_branch), ("first", "1", &first_branch)] {
            let dir = restore(&site, name, &["--until", "latest", "--timeline", timeline, "--start"]);
            let mut cluster = Cluster::adopt(&pg, &dir);
            assert_eq!(Ledger::ids(&cluster), *ids, "{name}");
            let new = cluster.psql("select timeline_id from pg_control_checkpoint()");
            eprintln!("{name} promoted to timeline {new}");
            cluster.stop(Stop::Fast);
        }
    }
);
