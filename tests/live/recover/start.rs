//! `--start`: the server is followed to its target, and what it says there is the truth.

use std::fs;

use walden::postgres::{WalSegmentName, WalSegmentSize};
use walden::progress::Progress;
use walden::recovery::settings::Action;
use walden::recovery::start::{StartOptions, Way, start_and_follow};

use super::story::Story;
use crate::support::restored::set;
use crate::support::tools::run_program;
use crate::support::{Cluster, Ledger, PATIENCE, Site, Stop, free_port, live_test, user, wait_for};

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
    [14, 15, 18]
    fn a_pause_can_be_looked_at_stepped_on_from_and_ended(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let dir = story.target("pause");
        let arguments = ["--until", &story.after[1].after, "--action", "pause", "--start"];
        let finished = story.recover("pause", &arguments).ok();
        for says in ["Replay is paused", "pg_wal_replay_resume()", "ALTER SYSTEM SET recovery_target_time", "recovery stopping before"] {
            assert!(finished.stdout.contains(says), "{says}: {finished}");
        }
        let cluster = Cluster::adopt(&pg, &dir);
        assert_eq!(Ledger::ids(&cluster).len(), 4);
        // As it was told.
        let restart = finished.stdout.lines().find_map(|line| line.split_once(", then: ")).expect("the command").1;
        cluster.psql(&format!("alter system set recovery_target_time = '{}'", story.after[3].after));
        run_program("sh", ["-c", &format!("{restart} -l {}/server.log >/dev/null", dir.display())]).ok();
        let mut cluster = Cluster::adopt(&pg, &dir);
        cluster.wait_until("the server pauses again", || {
            cluster.try_psql("select pg_get_wal_replay_pause_state()").is_ok_and(|state| state == "paused")
        });
        assert_eq!(Ledger::ids(&cluster).len(), 6);
        cluster.psql("select pg_wal_replay_resume()");
        cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
        assert_eq!(Ledger::ids(&cluster).len(), 6);
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    [15, 17]
    fn the_end_is_told_by_the_server(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let third = &story.after[2];
        let arguments = ["--until", &third.committed, "--action", "shutdown", "--start", "--output", "json"];
        let finished = story.recover("shutdown", &arguments).ok();
        let report: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        let stopped = report["reached"]["stopped"].as_str().expect("the server's words");
        assert!(stopped.starts_with("recovery stopping before commit of transaction"), "{report}");
        assert_eq!(report["plan"]["around"]["kept"]["xid"], third.xid);

        // A transaction that there is, and WAL on the way to it that cannot be read: the plan does not read all of it.
        story.site.archive_a_segment();
        let late = Ledger::add(&story.site.cluster);
        let last = story.site.archive_a_segment();
        for repository in ["primary", "replica"] {
            let object = story.site.wal_objects(repository, &last).pop().expect("the object");
            let mut bytes = fs::read(&object).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&object, bytes).expect("write");
        }
        let refused = story.recover("latest", &["--until", "latest", "--start"]).expect_code(7);
        let error = refused.stderr.lines().find(|line| line.starts_with("ERROR: the server did not")).expect("an error");
        assert!(error.contains(&last) && error.contains("walden-recover.log"), "{refused}");
        assert_eq!(error.matches("; hint:").count(), 1, "{error}");
        let refused = story.recover("lsn", &["--until", &format!("lsn:{}", late.lsn), "--plan"]);
        assert!(!refused.stdout.contains("Reached"), "{refused}");
    }
);

live_test!(
    [14, 15, 18]
    fn a_pause_for_a_setting_that_is_too_low_is_told_and_not_waited_for(pg: Installation) {
        let mut story = Story::tell(&pg, 1);
        let lower = story.site.cluster.psql("show max_connections").parse::<u32>().expect("a number");
        story.site.cluster.set("max_connections", lower + 7);
        story.site.cluster.restart();
        let last = Ledger::add(&story.site.cluster);
        Ledger::add(&story.site.cluster);
        story.site.archive_a_segment();
        for action in ["promote", "pause"] {
            let arguments = ["--until", &last.after, "--start", "--delta", "--action", action];
            let refused = story.recover("copy", &arguments).expect_code(7);
            let says = format!("max_connections = {lower} is a lower setting than on the primary");
            assert!(refused.stderr.contains("paused before the target") && refused.stderr.contains(&says), "{refused}");
            // As the hint says.
            let dir = story.target("copy");
            let mut cluster = Cluster::adopt(&pg, &dir);
            cluster.stop(Stop::Fast);
            set(&dir, &format!("max_connections = {}", lower + 7));
            cluster.start();
            cluster.wait_until("the target is reached", || {
                let state = "select case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() else 'promoted' end";
                cluster.try_psql(state).is_ok_and(|state| state == if action == "pause" { "paused" } else { "promoted" })
            });
            assert_eq!(Ledger::ids(&cluster).len(), 8);
            cluster.stop(Stop::Fast);
        }
    }
);

live_test!(
    [14, 18]
    fn segment_clock_and_target_are_shown_while_the_server_replays(pg: Installation) {
        let site = Site::with_backup(&pg);
        let names = site.fill(4);
        let port = free_port().to_string();
        let dir = site.restore("copy", &["--until", "latest", "--port", &port]);
        // The third of the four is kept back until it was looked at.
        let gate = site.work.join("gate");
        let wait = format!("while [ $1 = {} ] && ! [ -e {} ]; do sleep 0.1; done", names[2], gate.display());
        let script = site.restore_script("slow.sh", &wait);
        set(&dir, &format!("restore_command = '{} %f %p'", script.display()));
        if pg.major >= 15 {
            // It would wait for the third with the end of the second not replayed.
            set(&dir, "recovery_prefetch = off");
        }
        let plan = site.walden.run(&["recover", "--until", "latest", "--plan", "--output", "json"]).ok();
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout).expect("JSON");
        let first: WalSegmentName = plan["first_segment"].as_str().and_then(|name| name.parse().ok()).expect("a name");
        let size = WalSegmentSize::DEFAULT;
        let way = Way {
            begin: first.start(size),
            segments: plan["segments"].as_u64().expect("a number") as usize,
            segment_size: size,
            target: "latest".into(),
            must_reach: None,
        };
        let before = names[2].parse::<WalSegmentName>().expect("a name").number(size) - first.number(size);
        let shown = format!("segment {} of {}, at 20", before + 1, way.segments);
        let options = StartOptions {
            data_dir: dir.clone(),
            bin_dir: pg.bin.clone(),
            owner: user::unprivileged().map(|user| (user.uid.as_raw(), user.gid.as_raw())),
            user: "postgres".into(),
            action: Action::Promote,
            way,
        };

        let (progress, total) = (Progress::new(), options.way.segments as u64 * size.bytes());
        let (shown_at, reached) = std::thread::scope(|scope| {
            let follower = scope.spawn(|| start_and_follow(&options, &progress));
            let was_shown = wait_for(PATIENCE, || progress.phase().starts_with(&shown));
            let bytes = (progress.done(), progress.total());
            fs::write(&gate, "").expect("write");
            (was_shown.then_some(bytes), follower.join().expect("no panic").expect("the end of the archive"))
        });
        assert_eq!(shown_at, Some((before * size.bytes(), total)), "{shown}");
        assert!(reached.last_transaction.is_some(), "{reached:?}");
        let mut cluster = Cluster::adopt(&pg, &dir);
        assert_eq!(Ledger::ids(&cluster).len(), 4);
        cluster.stop(Stop::Fast);
    }
);
