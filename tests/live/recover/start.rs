//! `--start`: the server is followed to its target, and what it says there is the truth.

use super::story::Story;
use crate::support::{Cluster, Ledger, Stop, live_test};

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
