//! The whole story on real servers: a backup taken under load, and recoveries to every kind of target, each of which
//! must hold exactly the transactions that it should. A ledger of commits decides.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::tools::{self, run_script};
use crate::support::{
    Cluster, ClusterOptions, Entry, Finished, Installation, Ledger, Site, SiteOptions, Stop, live_test,
    require, soak, user,
};

/// A cluster with a backup taken under load and entries in the ledger after it.
struct Story {
    site: Site,
    pg: Installation,
    /// Committed before the backup began.
    before: Vec<Entry>,
    /// Committed after it had ended.
    after: Vec<Entry>,
}

impl Story {
    fn tell(pg: &Installation, scale: u32) -> Self {
        Self::tell_with(pg, scale, &SiteOptions::default())
    }

    fn tell_with(pg: &Installation, scale: u32, options: &SiteOptions) -> Self {
        let site = Site::with(pg, options);
        Ledger::create(&site.cluster);
        site.cluster.pgbench(&["-i", "-s", &scale.to_string(), "-q"]).ok();
        let before = vec![Ledger::add(&site.cluster), Ledger::add(&site.cluster)];
        let load = site.cluster.pgbench_background(&["-c", "2", "-T", "3000", "-n"]);
        site.cluster.wait_until("the load runs", || {
            site.cluster.psql("select count(*) > 20 from pgbench_history") == "t"
        });
        site.walden.run(&["base-backup", "--fast"]).ok();
        let mut after = Vec::new();
        for number in 0..5 {
            after.push(Ledger::add(&site.cluster));
            if number == 2 {
                site.cluster.psql("select pg_create_restore_point('between')");
            }
        }
        site.cluster
            .psql("drop table if exists ledger_copy; create table ledger_copy as select * from ledger");
        load.signal(nix::sys::signal::Signal::SIGTERM);
        site.archive_a_segment();
        Self { site, pg: pg.clone(), before, after }
    }

    fn target(&self, name: &str) -> PathBuf {
        self.site.work.join(name)
    }

    fn recover(&self, name: &str, arguments: &[&str]) -> Finished {
        let dir = self.target(name).display().to_string();
        self.site.walden.run(&[&["recover", "--data-dir", &dir], arguments].concat())
    }

    /// Recovers and starts, returns the server.
    #[track_caller]
    fn recover_and_start(&self, name: &str, arguments: &[&str]) -> Cluster {
        self.recover(name, &[&["--start"], arguments].concat()).ok();
        Cluster::adopt(&self.pg, &self.target(name))
    }

    /// Recovers, and holds the ledger against what should be in it: everything before the backup and the first
    /// `expected` entries after it.
    #[track_caller]
    fn expect(&self, name: &str, arguments: &[&str], expected: usize) {
        let mut cluster = self.recover_and_start(name, arguments);
        let ids: Vec<i64> = self.before.iter().chain(&self.after[..expected]).map(|entry| entry.id).collect();
        assert_eq!(Ledger::ids(&cluster), ids, "{arguments:?}");
        assert_eq!(cluster.psql("select pg_is_in_recovery()"), "f");
        check_pgbench(&cluster);
        cluster.stop(Stop::Fast);
        fs::remove_dir_all(self.target(name)).expect("remove");
    }
}

/// The sums of pgbench's tables agree in every consistent state.
#[track_caller]
fn check_pgbench(cluster: &Cluster) {
    let sums = cluster.psql(
        "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
            and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)
            and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)",
    );
    assert_eq!(sums, "t");
}

live_test!(
    fn every_kind_of_target_brings_up_exactly_its_transactions(pg: Installation) {
        // One version with a gigabyte in every run, all of them in `make soak`.
        let scale = if pg.major == 15 || soak() { 50 } else { 4 };
        let story = Story::tell(&pg, scale);
        let third = &story.after[2];

        // The judge looks at the files before the server does.
        story.recover("time", &["--until", &third.after]).ok();
        if let Some(judge) = tools::pg_verifybackup(pg.major) {
            run_script(&format!("{} -n {}", judge.display(), story.target("time").display())).ok();
        }
        let mut cluster = Cluster::open(&pg, &story.target("time"));
        cluster.start();
        cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
        let ids: Vec<i64> = story.before.iter().chain(&story.after[..3]).map(|entry| entry.id).collect();
        assert_eq!(Ledger::ids(&cluster), ids);
        check_pgbench(&cluster);
        // The copy is harmless: it does not write into the archive that it came from.
        assert_eq!(cluster.psql("show archive_mode"), "off");
        assert_eq!(cluster.psql("show max_logical_replication_workers"), "0");
        cluster.stop(Stop::Fast);
        fs::remove_dir_all(story.target("time")).expect("remove");

        story.expect("time-exact", &["--until", &third.committed], 3);
        story.expect("time-exclusive", &["--until", &third.committed, "--exclusive"], 2);
        story.expect("lsn", &["--until", &format!("lsn:{}", third.lsn)], 3);
        story.expect("xid", &["--until", &format!("xid:{}", third.xid)], 3);
        story.expect("xid-exclusive", &["--until", &format!("xid:{}", third.xid), "--exclusive"], 2);
        story.expect("name", &["--until", "name:between"], 3);
        story.expect("latest", &["--until", "latest"], 5);
        story.expect("immediate", &["--until", "immediate"], 0);
    }
);

live_test!(
    [15]
    fn a_dropped_table_comes_back_by_a_time_before_the_drop(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let before = story.site.cluster.psql("set timezone = 'UTC'; select clock_timestamp()");
        story.site.cluster.psql("drop table ledger");
        story.site.archive_a_segment();
        let mut cluster = story.recover_and_start("drop", &["--until", &before]);
        assert_eq!(Ledger::ids(&cluster).len(), 7);
        cluster.stop(Stop::Fast);
        let mut cluster = story.recover_and_start("gone", &["--until", "latest"]);
        assert!(cluster.try_psql("select 1 from ledger").is_err(), "the drop is part of the whole story");
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    [15]
    fn taking_over_keeps_archiving_and_the_port_and_waits_for_the_original_to_go(pg: Installation) {
        let mut story = Story::tell(&pg, 1);
        let refused = story.recover("new", &["--until", "latest", "--take-over", "--start"]).expect_code(7);
        assert!(refused.stderr.contains("is taken by another server"), "{refused}");
        story.site.cluster.stop(Stop::Fast);
        let start = pg.program("pg_ctl").display().to_string();
        let new = story.target("new");
        assert!(refused.stderr.contains(&format!("{start} -D {} start", new.display())), "{refused}");
        let mut cluster = Cluster::open(&pg, &new);
        cluster.start();
        cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
        assert_eq!(Ledger::ids(&cluster).len(), 7);
        assert_eq!(cluster.psql("show archive_mode"), "on");
        // It writes into the archive that it came from, on a timeline of its own.
        let segment = cluster.switch_wal();
        assert!(segment.starts_with("00000002"), "{segment}");
        cluster.wait_archived(&segment);
        assert_eq!(story.site.wal_objects("primary", "00000002.history").len(), 1);
        assert_eq!(story.site.wal_objects("replica", &segment).len(), 1);
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    [15]
    fn actions_other_than_promote(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let third = &story.after[2];
        let mut cluster = story.recover_and_start("pause", &["--until", &third.after, "--action", "pause"]);
        assert_eq!(cluster.psql("select pg_is_in_recovery(), pg_get_wal_replay_pause_state()"), "t|paused");
        assert_eq!(Ledger::ids(&cluster).len(), 5);
        cluster.stop(Stop::Fast);
        let finished =
            story.recover("shutdown", &["--until", &third.after, "--action", "shutdown", "--start"]).ok();
        assert!(finished.stdout.contains("has shut down at the target"), "{finished}");
        assert!(story.target("shutdown").join("recovery.signal").exists());
        story.recover("latest", &["--until", "latest", "--action", "pause"]).expect_code(2);
        let finished = story.recover("json", &["--until", &third.after, "--plan", "--output", "json"]).ok();
        let plan: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        assert_eq!(plan["timeline"], 1);
        let finished =
            story.recover("json", &["--until", &third.committed, "--plan", "--output", "json"]).ok();
        let plan: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        assert_eq!(plan["around"]["kept"]["xid"], third.xid, "the last commit that is kept: {plan}");
        let time = |which: &str| plan["around"][which]["time"].as_str().expect("a time").to_owned();
        assert!(time("lost") > time("kept"), "the first that is lost: {plan}");
        assert!(!story.target("json").exists(), "a plan restores nothing");
    }
);

live_test!(
    [15, 18]
    fn tablespaces_go_where_they_are_told_and_never_onto_the_original(pg: Installation) {
        let site = Site::new(&pg);
        let space = site.work.create_dir("space");
        site.cluster.psql(&format!("create tablespace fast location '{}'", space.display()));
        site.cluster.psql("create table spread (a int) tablespace fast; insert into spread select generate_series(1, 5000)");
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.cluster.psql("insert into spread values (0)");
        site.archive_a_segment();
        let target = site.work.join("restored");
        let dir = target.display().to_string();
        let refused = site.walden.run(&["recover", "--until", "latest", "--data-dir", &dir]);
        assert!(refused.code == 7 && refused.stderr.contains("tablespace"), "{refused}");
        assert!(!target.join("PG_VERSION").exists(), "nothing was written");
        let root = site.work.join("spaces");
        fs::create_dir(&root).expect("create");
        user::give(&root);
        let arguments =
            ["recover", "--until", "latest", "--data-dir", &dir, "--tablespace-root", &root.display().to_string(), "--start"];
        site.walden.run(&arguments).ok();
        let mut cluster = Cluster::adopt(&pg, &target);
        assert_eq!(cluster.psql("select count(*) from spread"), "5001");
        let location = cluster.psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'");
        assert!(Path::new(&location).starts_with(&root), "{location}");
        cluster.stop(Stop::Fast);
        assert_eq!(site.cluster.psql("select count(*) from spread"), "5001");
    }
);

live_test!(
    [15]
    fn with_a_repository_gone_recover_says_what_cannot_be_proven_and_works_without_it(pg: Installation) {
        let story = Story::tell(&pg, 1);
        for gone in ["primary", "replica"] {
            fs::rename(story.site.repository(gone), story.site.work.join("away")).expect("rename");
            let refused = story.recover("refused", &["--until", "latest"]).expect_code(4);
            assert!(refused.stderr.contains(&format!("--without {gone}")), "{refused}");
            assert!(!story.target("refused").exists());
            story.expect(gone, &["--until", "latest", "--without", gone], 5);
            fs::rename(story.site.work.join("away"), story.site.repository(gone)).expect("rename");
        }
        story.recover("none", &["--until", "latest", "--without", "primary", "--without", "replica"]).expect_code(2);
        story.recover("none", &["--until", "latest", "--without", "nonsense"]).expect_code(2);
    }
);

live_test!(
    [15]
    fn a_damaged_piece_is_taken_from_the_other_repository(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let mut pieces = Vec::new();
        crate::support::site::walk(&story.site.repository("primary"), &mut pieces);
        pieces.retain(|path| path.parent().is_some_and(|dir| dir.ends_with("data")));
        for piece in &pieces {
            let mut bytes = fs::read(piece).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(piece, bytes).expect("write");
        }
        story.expect("mended", &["--until", "latest"], 5);
        let refused = story.recover("refused", &["--until", "latest", "--without", "replica"]).expect_code(6);
        assert!(refused.stderr.contains("data/"), "{refused}");
        let refused = Cluster::open(&pg, &story.target("refused")).try_start();
        assert!(refused.is_err(), "half a restore does not start");
    }
);

live_test!(
    [15]
    fn what_cannot_be_reached_is_refused_before_anything_is_restored(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let site = &story.site;
        let early = &story.before[0].at;
        let cases = [
            (vec!["--until", early.as_str()], 8, "no backup ended before it"),
            (vec!["--until", "2099-01-01 00:00:00+00"], 8, "the last archived commit is of"),
            (vec!["--until", "lsn:F00/0"], 8, "the archived WAL ends"),
            (vec!["--until", "name:nonsense"], 8, "no such restore point"),
            (vec!["--until", "latest", "--timeline", "7"], 8, "timeline 7 is not archived"),
            (vec!["--until", "latest", "--backup", "nonsense"], 8, "there is no backup"),
            (vec!["--until", "yesterday-ish"], 2, "is not understood"),
            (vec!["--until", "latest", "--exclusive"], 2, "--exclusive does not go"),
            (vec!["--until", "latest", "--timeline", "x"], 2, "timeline"),
            (vec!["--until", "latest", "--tablespace", "x"], 2, "OID=DIR"),
            (vec!["--until", "latest", "--through", "x"], 2, "through"),
        ];
        for (arguments, code, says) in cases {
            let finished = story.recover("refused", &arguments);
            assert_eq!(finished.code, code, "{finished}");
            assert!(finished.stderr.contains(says), "{says}: {finished}");
            assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
            assert!(!story.target("refused").join("PG_VERSION").exists());
        }
        // A directory that is not empty, and the running server's own.
        let own = site.cluster.data_dir().display().to_string();
        site.walden.run(&["recover", "--until", "latest", "--data-dir", &own]).expect_code(7);
        let full = site.work.create_dir("full");
        fs::write(full.join("file"), "x").expect("write");
        site.walden.run(&["recover", "--until", "latest", "--data-dir", &full.display().to_string()]).expect_code(7);

        // The last commit pins a target in the idle tail, where the server would die of it.
        let last = story.after.last().expect("an entry");
        site.cluster.psql("checkpoint; select pg_switch_wal()");
        let idle = site.cluster.psql("set timezone = 'UTC'; select clock_timestamp()");
        assert!(*last.after < *idle);
        site.cluster.psql("select pg_create_restore_point('tail')");
        site.archive_a_segment();
        story.expect("idle", &["--until", &idle], 5);
    }
);

live_test!(
    [15]
    fn a_key_that_is_missing_or_wrong_is_said_before_anything_is_written(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let identity = story.site.work.join("identity.txt");
        let good = fs::read(&identity).expect("read");
        fs::remove_file(&identity).expect("remove");
        let finished = story.recover("refused", &["--until", "latest"]).expect_code(3);
        assert!(finished.stderr.contains("identity"), "{finished}");
        // Archiving needs no identity.
        story.site.archive_a_segment();
        let other = walden::codec::generate_identity().0;
        fs::write(&identity, other).expect("write");
        user::give(&identity);
        story.recover("refused", &["--until", &story.after[2].after]).expect_code(3);
        fs::write(&identity, good).expect("write");
        story.expect("good", &["--until", "latest"], 5);
    }
);

live_test!(
    fn by_hand_with_age_lz4_and_tar_following_recovery_md(pg: Installation) {
        let tools =
            (require(tools::age(), "age"), require(tools::lz4(), "lz4"), require(tools::tar(), "tar"));
        let (Some(_), Some(_), Some(_)) = tools else { return };
        let story = Story::tell(&pg, 1);
        let site = &story.site;
        let folder = fs::read_dir(site.repository("primary").join("main")).expect("read").flatten().next();
        let text = fs::read_to_string(folder.expect("a folder").path().join("RECOVERY.md")).expect("read");
        // The commands as they stand; only the two paths that a person fills in are ours.
        let script: String =
            text.split("```sh\n").skip(1).map(|part| part.split("```").next().unwrap_or("")).collect();
        let script =
            script.replace("/path/to/identity.txt", &site.work.join("identity.txt").display().to_string());
        let target = story.target("by-hand");
        let file = site.work.write(
            "by-hand.sh",
            format!(
                "set -e\nexport PGDATA='{}'\n{script}\nenv > '{}'",
                target.display(),
                story.target("env").display()
            ),
        );
        run_script(&format!("bash {}", file.display())).ok();
        if let Some(judge) = tools::pg_verifybackup(pg.major) {
            // The script that RECOVERY.md puts there is not part of the backup.
            run_script(&format!("{} -n -i fetch-wal.sh {}", judge.display(), target.display())).ok();
        }
        let mut cluster = Cluster::open(&pg, &target);
        let env = fs::read_to_string(story.target("env")).expect("read");
        for line in env.lines() {
            if let Some((name @ ("REPO" | "KEY"), value)) = line.split_once('=') {
                cluster.env(name, value);
            }
        }
        cluster.start();
        cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
        assert_eq!(Ledger::ids(&cluster).len(), 7);
        check_pgbench(&cluster);
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    [15]
    fn other_segment_sizes_no_checksums_and_no_encryption(pg: Installation) {
        let cluster = ClusterOptions { checksums: false, ..ClusterOptions::default() }.wal_segment_size_mb(1);
        let options = SiteOptions { cluster, init: vec!["--no-encryption".to_owned()], ..SiteOptions::default() };
        let story = Story::tell_with(&pg, 1, &options);
        story.expect("time", &["--until", &story.after[2].after], 3);
        let finished = story.site.walden.run(&["status"]).ok();
        assert!(finished.stdout.contains("any moment from"), "{finished}");
    }
);
