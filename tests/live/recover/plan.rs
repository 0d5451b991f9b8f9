//! The plan: what it says, what it costs, and what is refused before anything is restored.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use walden::codec::Opener;
use walden::index::IndexHandle;
use walden::recovery::plan::Request;
use walden::recovery::target::{Target, TimelineChoice};
use walden::repository::Repository;
use walden::storage::FsStorage;
use walden::storage::faulty::Faulty;

use super::story::{Story, make_plan};
use crate::support::site::walk;
use crate::support::{Ledger, Site, live_test};

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

/// Adds backups to a repository's listing that are older than `id` and otherwise like it.
fn pretend_older_backups(site: &Site, repository: &str, count: usize) {
    let mut found = Vec::new();
    walk(&site.repository(repository), &mut found);
    let summary = found.iter().find(|path| path.ends_with("backup.json")).expect("a backup").clone();
    let text = fs::read_to_string(&summary).expect("read");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let backups = summary.parent().and_then(Path::parent).expect("the folder of backups");
    for number in 0..count {
        let id = format!("20200101T0000{number:02}Z-00000001-00000000");
        value["id"] = id.clone().into();
        for time in ["start_time", "stop_time"] {
            value[time] = format!("2020-01-01T00:00:{number:02}Z").into();
        }
        fs::create_dir(backups.join(&id)).expect("create");
        fs::write(backups.join(&id).join("backup.json"), value.to_string()).expect("write");
    }
}

live_test!(
    [15]
    fn it_costs_a_few_calls_however_many_backups_there_are(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let site = &story.site;
        let opener = Opener::from_identity_file(&site.work.join("identity.txt")).expect("identity");
        let store = Faulty::new(FsStorage::new(site.repository("primary")));
        let calls = store.faults();
        let repository = Repository::new("primary", Arc::new(store), Duration::from_secs(10));
        let index = IndexHandle::open(&site.work.join("state/main/index.sqlite"));
        let cost = |until: &str| {
            let request = Request {
                cluster: "main".into(),
                target: Target::parse(until, &jiff::Zoned::now()).expect("target"),
                exclusive: false,
                timeline: TimelineChoice::Fitting,
                backup: None,
                through: vec![],
            };
            calls.reset();
            make_plan(&request, &[&repository], &opener, &index).expect("plan");
            calls.calls()
        };
        let third = &story.after[2];
        let targets = [third.after.clone(), "latest".to_owned(), format!("lsn:{}", third.lsn), format!("xid:{}", third.xid)];
        let busy: Vec<u64> = targets.iter().map(|target| cost(target)).collect();
        // A server that idles with an archive_timeout leaves such segments.
        for _ in 0..10 {
            site.archive_a_segment();
        }
        let few: Vec<u64> = targets.iter().map(|target| cost(target)).collect();
        pretend_older_backups(site, "primary", 50);
        let many: Vec<u64> = targets.iter().map(|target| cost(target)).collect();
        eprintln!("calls {busy:?}, with idle segments {few:?}, with 50 more backups {many:?}");
        for ((busy, few), many) in busy.iter().zip(&few).zip(&many) {
            assert!(*many <= few + 2, "two more summaries: {few} {many}");
            assert!(*few <= busy + 2, "idle segments are not read: {busy} {few}");
            assert!(*many <= 16, "{many}");
        }
    }
);

live_test!(
    [15]
    fn it_says_in_a_screenful_what_will_be_done(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let third = &story.after[2];
        let finished = story.recover("plan", &["--until", &third.committed, "--plan"]).ok();
        assert!(finished.stdout.lines().count() <= 20, "{finished}");
        for says in [
            "Backup         2",
            "Chosen         the newest that ended before the target",
            " from primary or replica",
            "Timeline       1\n",
            "Last kept      the commit of",
            "First lost     the commit of",
            "Archived up to the commit of",
            "Expected time  ",
        ] {
            assert!(finished.stdout.contains(says), "{says}: {finished}");
        }
        let json = |until: &str| -> serde_json::Value {
            let finished = story.recover("plan", &["--until", until, "--plan", "--output", "json"]).ok();
            serde_json::from_str(&finished.stdout).expect("JSON")
        };
        // The commits on both sides are known for every kind of target that stops at one.
        for until in [&format!("xid:{}", third.xid), &third.committed] {
            let plan = json(until);
            assert_eq!(plan["around"]["kept"]["xid"], third.xid, "{until}: {plan}");
            assert!(plan["around"]["lost"]["lsn"].as_str() > plan["around"]["kept"]["lsn"].as_str(), "{until}: {plan}");
            assert!(plan["expected_time"]["restore_rate"].as_u64() > Some(0), "{plan}");
        }
        for until in ["name:between", &format!("lsn:{}", third.lsn)] {
            let plan = json(until);
            assert!(plan["around"]["kept"]["xid"].is_u64() && plan["around"]["lost"]["xid"].is_u64(), "{until}: {plan}");
        }
        let exclusive = story.recover("plan", &["--until", &format!("xid:{}", third.xid), "--exclusive", "--plan"]).ok();
        let lost = exclusive.stdout.lines().find(|line| line.contains("First lost")).expect("a line");
        assert!(lost.contains(&format!("transaction {},", third.xid)), "{exclusive}");
        // As far as the archive goes.
        assert_eq!(json("now")["target"], "latest");
        // What only one repository holds.
        let last = json("latest")["last_segment"].as_str().expect("a segment").to_owned();
        fs::remove_file(story.site.wal_objects("replica", &last).pop().expect("a segment")).expect("remove");
        let finished = story.recover("plan", &["--until", "latest", "--plan"]).ok();
        assert!(finished.stdout.contains("from primary or replica ("), "{finished}");
        assert!(!story.target("plan").exists());
    }
);

live_test!(
    [15]
    fn what_cannot_be_reached_is_refused_with_the_nearest_moments(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let site = &story.site;
        let last = Ledger::add(&site.cluster);
        site.archive_a_segment();
        Ledger::add(&site.cluster);
        let hole = site.archive_a_segment();
        let lost = Ledger::add(&site.cluster);
        site.archive_a_segment();
        site.walden.run(&["base-backup", "--fast"]).ok();
        for repository in ["primary", "replica"] {
            for object in site.wal_objects(repository, &hole) {
                fs::remove_file(object).expect("remove");
            }
        }
        let backups = site.walden.run(&["list", "--output", "json"]).ok();
        let backups: serde_json::Value = serde_json::from_str(&backups.stdout).expect("JSON");
        let after = backups[1]["id"].as_str().expect("an id");
        for until in [lost.after.clone(), format!("lsn:{}", lost.lsn)] {
            let refused = story.recover("refused", &["--until", &until]).expect_code(8);
            assert!(refused.stderr.contains(&format!(", the end of backup {after}")), "{refused}");
            assert!(refused.stderr.contains(", the last archived commit, and --until "), "{refused}");
            assert_eq!(refused.stderr.matches("; hint:").count(), 1, "{refused}");
            // Both are there, as they are written.
            for moment in refused.stderr.split("--until ").skip(1).take(2) {
                let moment = moment.split(", the ").next().expect("a moment").trim_matches('\'');
                story.recover("refused", &["--until", moment, "--plan"]).ok();
            }
        }
        let plan = story.recover("plan", &["--until", &last.committed, "--plan"]).ok();
        assert!(plan.stdout.contains(&format!("transaction {},", last.xid)), "{plan}");
    }
);

live_test!(
    [15, 18]
    fn a_transaction_that_is_nowhere_is_found_out_before_anything_is_restored(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let unknown = story.after[4].xid + 100_000;
        let refused = story.recover("refused", &["--until", &format!("xid:{unknown}")]).expect_code(8);
        assert!(refused.stderr.contains("no such transaction ended in the"), "{refused}");
        assert!(!story.target("refused").exists());
        // One that was rolled back is a moment too.
        let xid = story.site.cluster.psql("begin; select pg_current_xact_id(); create table never (a int); rollback");
        story.site.archive_a_segment();
        let finished = story.recover("plan", &["--until", &format!("xid:{}", xid.trim()), "--plan"]).ok();
        assert!(finished.stdout.contains("did not commit"), "{finished}");
        let refused = story.recover("refused", &["--until", "latest", "--timeline", "7"]).expect_code(8);
        assert!(refused.stderr.contains("the archive knows timeline 1; see "), "{refused}");
    }
);
