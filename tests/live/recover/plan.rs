//! The plan: what it says, what it costs, and what is refused before anything is restored.

use std::fs;

use super::story::Story;
use crate::support::live_test;

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
