//! Recoveries to every kind of target, each of which must hold exactly the transactions that it should.

use std::fs;

use super::story::{Story, check_pgbench, verify};
use crate::support::tools::{self, run_script};
use crate::support::{
    Cluster, ClusterOptions, Ledger, Site, SiteOptions, Stop, live_test, require, soak, user,
};

live_test!(
    fn every_kind_of_target_brings_up_exactly_its_transactions(pg: Installation) {
        // One version with a gigabyte in every run, all of them in `make soak`.
        let scale = if pg.major == 15 || soak() { 50 } else { 4 };
        let story = Story::tell(&pg, scale);
        let third = &story.after[2];

        // The judge looks at the files before the server does.
        story.recover("time", &["--until", &third.after]).ok();
        verify(&pg, &story.target("time"));
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

/// Entries that follow each other within some ten milliseconds, with the exact times of their commits and what is a
/// microsecond earlier.
fn run_of_commits(site: &Site, count: usize) -> Vec<(i64, String, String)> {
    let mut session = site.cluster.session();
    for _ in 0..count {
        session.run("insert into ledger (xid, at) values (pg_current_xact_id()::text, clock_timestamp());");
        session.run("select pg_sleep(0.01);");
    }
    let rows = site.cluster.psql(&format!(
        "set timezone = 'UTC';
         select id, pg_xact_commit_timestamp(xid::xid), pg_xact_commit_timestamp(xid::xid) - interval '1 microsecond'
         from ledger order by id desc limit {count}"
    ));
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split('|').collect();
        (fields[0].parse().expect("id"), fields[1].to_owned(), fields[2].to_owned())
    };
    let mut run: Vec<_> = rows.lines().map(parse).collect();
    run.reverse();
    run
}

live_test!(
    [15]
    fn just_before_and_at_each_of_many_commits_ten_milliseconds_apart(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        let run = run_of_commits(&site, 50);
        Ledger::add(&site.cluster);
        site.archive_a_segment();
        let dir = site.work.join("copy");
        let tried: Vec<usize> = if soak() { (0..run.len()).collect() } else { vec![0, 23, 49] };
        for at in tried {
            let (_, committed, before) = &run[at];
            for (arguments, kept) in [
                (vec!["--until", committed.as_str()], at + 1),
                (vec!["--until", before.as_str()], at),
                (vec!["--until", committed.as_str(), "--exclusive"], at),
            ] {
                let arguments = [&["recover", "--delta", "--start", "--data-dir", &dir.display().to_string()], &arguments[..]];
                site.walden.run(&arguments.concat()).ok();
                let mut cluster = Cluster::adopt(&pg, &dir);
                let ids: Vec<i64> = run[..kept].iter().map(|(id, ..)| *id).collect();
                assert_eq!(Ledger::ids(&cluster), ids, "{arguments:?}");
                cluster.stop(Stop::Fast);
            }
        }
    }
);

live_test!(
    [14, 15, 18]
    fn server_machine_and_user_may_live_in_three_time_zones(pg: Installation) {
        let options = SiteOptions {
            cluster: ClusterOptions::default()
                .setting("timezone", "America/New_York")
                .setting("log_timezone", "America/New_York"),
            env: vec![("TZ".to_owned(), "Asia/Tokyo".to_owned())],
            ..SiteOptions::default()
        };
        let story = Story::tell_with(&pg, 1, &options);
        let third = &story.after[2];
        let written = |sql: &str| {
            story.site.cluster.psql(&sql.replace("TIME", &format!("pg_xact_commit_timestamp('{}'::xid)", third.xid)))
        };
        // The user's, with its offset; and the machine's, without one.
        let of_user = written("set timezone = 'Asia/Kolkata'; select TIME");
        assert!(of_user.ends_with("+05:30"), "{of_user}");
        let of_machine = written("select to_char(TIME at time zone 'Asia/Tokyo', 'YYYY-MM-DD HH24:MI:SS.US')");
        story.expect("user", &["--until", &of_user], 3);
        story.expect("machine", &["--until", &of_machine], 3);
        let finished = story.recover("plan", &["--until", &of_machine, "--plan"]).ok();
        let utc = written("set timezone = 'UTC'; select to_char(TIME, 'YYYY-MM-DD HH24:MI:SS.US+00')");
        assert!(finished.stdout.contains(&format!("Target         {utc}\n")), "{utc}: {finished}");
    }
);
