//! Histories that went wrong, on real servers: forks, holes and expired WAL. What is recovered is the branch that was asked
//! for, to its end or to where the operator said, and never another.

use std::fs;

use crate::support::restored::{in_recovery, make_standby, run_to_its_end, set, start_and_promote};
use crate::support::{
    Cluster, ClusterOptions, Fork, Ledger, Site, SiteOptions, Stop, Walden, live_test, user, wait_until,
};

live_test!(
    fn without_the_fork_segment_the_abandoned_branch_is_not_replayed(pg: Installation) {
        let fork = Fork::make(&pg);
        let site = &fork.site;
        // Whole as it is, timeline 2 can be followed.
        let dir = site.restore("whole", &["--until", "latest", "--timeline", "2", "--start"]);
        let mut cluster = Cluster::adopt(&pg, &dir);
        assert_eq!(Ledger::ids(&cluster), fork.ids);
        cluster.stop(Stop::Fast);

        // All of timeline 2's WAL is lost; its history is not.
        site.hide("00000002000000");
        let dir = site.restore("refused", &["--until", "latest", "--timeline", "1"]);
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
        site.show("00000002000000");
        site.get(&fork.parents, &[]).0.ok();

        // The promoted server died before it archived anything: its parent ended in a partial segment, and absence is right.
        site.hide("00000002000000");
        site.get(&fork.childs, &[]).0.expect_code(200);
        site.hide(&fork.parents);
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
    fn histories_that_were_never_archived_are_no_obstacle_on_either_branch(pg: Installation) {
        let site = Site::with_backup(&pg);
        site.fill(2);
        let first_branch = Ledger::ids(&site.cluster);
        // Promoted with archiving off, and once more with archiving on: timeline 2 leaves no history behind.
        let dir = site.restore("again", &["--until", "latest"]);
        let mut again = start_and_promote(&pg, &dir);
        Ledger::add(&again);
        again.stop(Stop::Fast);
        make_standby(&dir);
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
        site.lose("00000002.history");
        for (name, timeline, ids) in [("third", "3", &last_branch), ("first", "1", &first_branch)] {
            let dir = site.restore(name, &["--until", "latest", "--timeline", timeline, "--start"]);
            let mut cluster = Cluster::adopt(&pg, &dir);
            assert_eq!(Ledger::ids(&cluster), *ids, "{name}");
            let new = cluster.psql("select timeline_id from pg_control_checkpoint()");
            eprintln!("{name} promoted to timeline {new}");
            cluster.stop(Stop::Fast);
        }
    }
);

live_test!(
    fn a_standby_never_replays_an_abandoned_branch(pg: Installation) {
        let fork = Fork::make(&pg);
        let site = &fork.site;
        let work = site.work.path().display().to_string();
        // The call for the child's segment fails once, and the one for the parent's, which follows at once, would not.
        let get = site.walden.command_line("archive-get \"$1\" \"$2\"");
        let outage = format!(
            "for name in primary replica; do mv {work}/$name {work}/$name-away; done\n{get}\ncode=$?\n\
             for name in primary replica; do mv {work}/$name-away {work}/$name; done\nexit $code"
        );
        // Nothing can be noted down by a call that does not find its configuration.
        let unconfigured = format!(
            "exec {} --config /nonexistent/walden.toml archive-get \"$1\" \"$2\"",
            Walden::binary().display()
        );
        for (name, failure) in [("outage", outage), ("unconfigured", unconfigured)] {
            let script =
                format!("if [ \"$1\" = {} ] && mkdir {work}/{name}.once; then\n{failure}\nfi", fork.childs);
            let script = site.restore_script(&format!("{name}.sh"), &script);
            user::give(site.work.path());
            let mut standby = site.standby(&pg, name);
            set(standby.data_dir(), &format!("restore_command = '{} %f %p'", script.display()));
            standby.start();
            standby.wait_until("the standby follows timeline 2", || {
                standby.try_psql("select count(*) from ledger").is_ok() && Ledger::ids(&standby) == fork.ids
            });
            let refused = format!("\"{}\" is refused while \"{}\"", fork.parents, fork.childs);
            assert!(standby.log().contains(&refused), "{name}: {}", standby.log_tail());
            assert!(in_recovery(&standby));
            standby.stop(Stop::Fast);
        }
    }
);

live_test!(
    fn a_hole_that_look_ahead_left_stops_recovery_until_its_loss_is_accepted(pg: Installation) {
        let mut site = Site::with_backup(&pg);
        let names = site.fill(6);
        let all = Ledger::ids(&site.cluster);
        let dir = site.restore("restored", &["--until", "latest"]);
        // The host is lost when segments five and six had been sent ahead of the fourth.
        site.cluster.kill();
        site.lose(&names[3]);
        site.make_old(&names[4]);
        site.make_old(&names[5]);
        let log = run_to_its_end(&pg, &dir);
        let missing = format!("WAL segment \"{}\" is missing from every repository", names[3]);
        assert!(log.contains("FATAL") && log.contains(&missing), "{log}");
        assert!(!log.contains("selected new timeline") && dir.join("recovery.signal").exists(), "{log}");

        let target = site.work.join("refused").display().to_string();
        let refused =
            site.walden.run(&["recover", "--until", "latest", "--data-dir", &target]).expect_code(8);
        assert!(refused.stderr.contains(&format!("--through {}", names[2])), "{refused}");
        let dir = site.restore("accepted", &["--until", "latest", "--through", &names[2], "--start"]);
        let mut cluster = Cluster::adopt(&pg, &dir);
        assert_eq!(Ledger::ids(&cluster), all[..3]);
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    fn a_kept_backup_is_good_although_the_wal_after_it_has_expired(pg: Installation) {
        let mut cluster = ClusterOptions::default();
        if pg.major >= 15 {
            // It looks ahead of the target, and dies of what it is refused there.
            cluster = cluster.setting("recovery_prefetch", "on");
        }
        let site = Site::with(&pg, &SiteOptions { cluster, ..SiteOptions::default() });
        Ledger::create(&site.cluster);
        let kept = [Ledger::add(&site.cluster).id, Ledger::add(&site.cluster).id];
        site.walden.run(&["base-backup", "--fast"]).ok();
        let names = site.fill(5);
        for name in &names[..4] {
            site.lose(name);
        }
        site.make_old(&names[4]);
        let dir = site.restore("restored", &["--until", "immediate", "--start"]);
        let mut cluster = Cluster::adopt(&pg, &dir);
        assert_eq!(Ledger::ids(&cluster), kept);
        cluster.stop(Stop::Fast);
    }
);
