//! `walden events`: when did it happen, and does the printed command bring it back?

use std::fs;

use crate::support::{Cluster, ClusterOptions, Site, SiteOptions, Stop, Walden, live_test, run, tools, user};

/// Returns what `walden events` says as JSON.
fn events(walden: &Walden, arguments: &[&str]) -> Vec<serde_json::Value> {
    let finished = walden.run(&[&["events", "--output", "json"], arguments].concat()).ok();
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
}

/// Runs a command that Walden printed, as it stands, with this build as `walden`.
fn run_as_printed(command: &str) {
    let arguments = command.strip_prefix("walden ").expect("a command of walden");
    let line = format!("{} {arguments}", Walden::binary().display());
    run(user::command("sh").args(["-c", &line])).ok();
}

live_test!(
    fn a_table_dropped_under_load_is_named_and_the_printed_command_brings_it_back(pg: Installation) {
        let site = Site::new(&pg);
        let cluster = &site.cluster;
        cluster.psql(
            "create table orders as select id, md5(id::text) as text from generate_series(1, 5000) id;
             create table commits (id bigserial primary key, at timestamptz not null default clock_timestamp())",
        );
        site.walden.run(&["base-backup", "--fast"]).ok();
        let script = site.work.write("load.sql", "insert into commits default values;\n");
        let script = script.display().to_string();
        let mut load =
            cluster.pgbench_background(&["-n", "-c", "4", "-R", "500", "-T", "3000", "-f", &script]);
        let commits = |more: usize| {
            let wanted =
                cluster.psql("select count(*) from commits").parse::<usize>().expect("a number") + more;
            cluster.wait_until("commits go on", || {
                cluster.psql("select count(*) from commits").parse::<usize>().expect("a number") >= wanted
            });
        };
        commits(fastrand::usize(200..1500));
        // Nobody else commits between the count and the end of the transaction.
        let told = cluster.psql(
            "begin; drop table orders; lock table commits in exclusive mode;
             select count(*), sum(id), pg_current_xact_id()::xid from commits; commit",
        );
        commits(300);
        assert!(load.is_running(), "{}", load.stderr());
        drop(load);
        site.archive_a_segment();

        let (rows, xid) = told.rsplit_once('|').expect("three columns");
        let found = events(&site.walden, &["--table", "orders"]);
        assert_eq!(found.len(), 1, "{found:?}");
        let event = &found[0];
        assert_eq!(event["kind"], "drop");
        assert_eq!(event["xid"].to_string(), xid);
        assert_eq!(
            (&event["database"], &event["tables"][0]["name"]),
            (&"postgres".into(), &"public.orders".into())
        );
        assert_eq!(event["uncertain"], false);
        let text = site.walden.run(&["events", "--kind", "drop", "--since", "1 hour ago"]).ok();
        assert!(text.stdout.contains("public.orders in database postgres"), "{text}");

        run_as_printed(event["recover"].as_str().expect("a command"));
        let dir = format!("{}.recovered", cluster.data_dir().display());
        let mut copy = Cluster::adopt(&pg, dir.as_ref());
        assert_eq!(copy.psql("select count(*) from orders"), "5000");
        assert_eq!(copy.psql("select count(*), sum(id) from commits"), rows);
        copy.stop(Stop::Fast);
        fs::remove_dir_all(dir).expect("remove");
    }
);

live_test!(
    [14, 16, 18]
    fn every_kind_of_loss_comes_back_by_its_command(pg: Installation) {
        let site = Site::new(&pg);
        let cluster = &site.cluster;
        let psql = |sql: &str| cluster.psql_in("app", sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        cluster.psql("create database app");
        psql("create schema shop; create table shop.orders as select id, 'new' as state from generate_series(1, 3000) id;
              create table shop.lines as select * from shop.orders; alter table shop.lines add primary key (id)");
        site.walden.run(&["base-backup", "--fast"]).ok();
        psql("update shop.orders set state = 'paid' where id <= 1200");
        psql("delete from shop.orders where id <= 1500");
        psql("begin; savepoint a; drop table shop.lines; rollback to a; truncate shop.orders; commit");
        psql("drop table shop.lines");
        psql("select pg_create_restore_point('before the end')");
        cluster.psql("drop database app");
        cluster.psql("select pg_create_restore_point('before the end')");
        site.archive_a_segment();

        let found = events(&site.walden, &[]);
        let kinds: Vec<&str> = found.iter().filter_map(|event| event["kind"].as_str()).collect();
        let expected = ["update", "delete", "truncate", "drop", "restore-point", "drop-database"];
        // Switching to another segment makes a restore point too.
        assert_eq!(kinds[..expected.len()], expected, "{found:#?}");
        assert!(kinds[expected.len()..].iter().all(|kind| *kind == "restore-point"), "{kinds:?}");
        let before = [
            ("select count(*), count(*) filter (where state = 'paid') from shop.orders", "3000|0"),
            ("select count(*), count(*) filter (where state = 'paid') from shop.orders", "3000|1200"),
            ("select count(*) from shop.orders", "1500"),
            ("select (select count(*) from shop.orders), (select count(*) from shop.lines)", "0|3000"),
            ("select count(*) from pg_class where relname = 'lines'", "0"),
            ("select count(*) from shop.orders", "0"),
        ];
        let dir = format!("{}.recovered", cluster.data_dir().display());
        for (event, (sql, rows)) in found.iter().zip(before) {
            let database = (event["kind"] != "restore-point").then_some("app");
            assert_eq!(event["database"].as_str(), database, "{event}");
            run_as_printed(event["recover"].as_str().expect("a command"));
            let mut copy = Cluster::adopt(&pg, dir.as_ref());
            assert_eq!(copy.psql_in("app", sql).unwrap_or_else(|error| panic!("{event}: {error}")), rows, "{event}");
            copy.stop(Stop::Fast);
            fs::remove_dir_all(&dir).expect("remove");
        }
        // By its name recovery would stop at the first.
        let named = found.iter().filter(|event| event["restore_point"] == "before the end");
        let commands: Vec<&str> = named.filter_map(|event| event["recover"].as_str()).collect();
        assert!(commands[0].contains("'name:before the end'") && commands[1].contains("--until lsn:"), "{commands:?}");
        let rows = |kind: &str| found.iter().find(|event| event["kind"] == kind).expect("it")["rows"].clone();
        assert_eq!((rows("update"), rows("delete")), (1200.into(), 1500.into()));
    }
);

live_test!(
    [15]
    fn what_is_asked_wrongly_is_said_in_one_line(pg: Installation) {
        let site = Site::prepare(&pg, &SiteOptions::default());
        let refused = |arguments: &[&str], code, says: &str| {
            let finished = site.walden.run(&[&["events"], arguments].concat()).expect_code(code);
            assert!(finished.stderr.contains(says), "{finished}");
        };
        refused(&["--kind", "drpo"], 2, "there are drop, truncate");
        refused(&["--since", "yesterdayish"], 2, "--since \"yesterdayish\" is no time");
        refused(&["--since", "latest"], 2, "is no time");
        fs::remove_dir_all(site.work.join("state")).expect("remove");
        refused(&[], 1, "there is no index at");
    }
);

live_test!(
    [15, 18]
    fn every_commit_is_counted_also_where_two_segments_share_its_record(pg: Installation) {
        let cluster = ClusterOptions::default().wal_segment_size_mb(1).setting("synchronous_commit", "off");
        let site = Site::with(&pg, &SiteOptions { cluster, ..SiteOptions::default() });
        let script = site.work.write("commit.sql", "select pg_current_xact_id();\n");
        let first = site.cluster.switch_wal();
        site.cluster.pgbench(&["-n", "-c", "4", "-t", "30000", "-f", &script.display().to_string()]);
        let last = site.archive_a_segment();
        let Some(waldump) = tools::pg_waldump(pg.major) else { return };
        // All of them are still in pg_wal: there was no checkpoint.
        let dir = site.cluster.data_dir().join("pg_wal");
        let line = format!(
            "{} -r Transaction -p {} {first} {last} | grep -c COMMIT",
            waldump.display(),
            dir.display()
        );
        let expected: i64 = tools::run_script(&line).stdout.trim().parse().expect("a number");
        assert!(expected > 120_000, "{expected}");
        let index = rusqlite::Connection::open(site.work.join("state/main/index.sqlite")).expect("the index");
        let sum = "select sum(commits), count(*) from wal where name between ?1 and ?2 and length(name) = 24";
        let (commits, segments): (i64, i64) =
            index.query_row(sum, [&first, &last], |row| Ok((row.get(0)?, row.get(1)?))).expect("sum");
        assert!(segments > 4, "{segments}");
        assert_eq!(commits, expected);
    }
);

live_test!(
    [14, 17]
    fn a_new_index_knows_it_all_again_from_digests_and_what_they_lack_from_the_wal(pg: Installation) {
        let site = Site::new(&pg);
        let psql = |sql: &str| site.cluster.psql(sql);
        let told = |walden: &Walden, arguments: &[&str]| -> Vec<String> {
            let found = events(walden, &[&["--kind", "drop,delete"], arguments].concat());
            let line = |event: &serde_json::Value| {
                format!("{} {} {}", event["kind"], event["tables"][0]["name"], event["lsn"])
            };
            found.iter().map(line).collect()
        };
        psql("create table first as select 1; create table second as select generate_series(1, 2000) id; create table third (a int)");
        site.walden.run(&["base-backup", "--fast"]).ok();
        psql("drop table first");
        site.archive_a_segment();
        // It writes a digest that tells of what was archived before.
        site.walden.run(&["base-backup", "--fast"]).ok();
        psql("delete from second");
        site.archive_a_segment();
        psql("drop table third");
        site.archive_a_segment();
        let before = told(&site.walden, &[]);
        assert_eq!(before.len(), 3, "{before:?}");

        let index = site.work.join("state/main/index.sqlite");
        for ending in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{ending}", index.display()));
        }
        let rebuilt = site.walden.run(&["index", "rebuild"]).ok();
        assert!(rebuilt.stdout.contains("2 digests"), "{rebuilt}");
        assert_eq!(told(&site.walden, &[]), before[..1], "with the name, from the digest");
        assert_eq!(told(&site.walden, &["--deep", "--since", "1 hour ago"]), before, "names are known still");
        assert_eq!(told(&site.walden, &[]), before);
        let again = site.walden.run(&["events", "--deep"]).ok();
        assert!(again.stderr.contains("0 segments were read"), "{again}");

        // Damage is put aside; without the identity listings remain.
        fs::write(&index, "garbage").expect("write");
        fs::remove_file(site.work.join("identity.txt")).expect("remove");
        site.walden.run(&["index", "rebuild"]).expect_code(3);
        let status = site.walden.run(&["status"]).ok();
        assert!(status.stdout.contains("any moment from"), "{status}");
    }
);

live_test!(
    [15]
    fn a_record_that_cannot_be_read_is_archived_and_critical_until_the_next_backup(pg: Installation) {
        let site = Site::new(&pg);
        site.walden.run(&["base-backup", "--fast"]).ok();
        // The archiver finds the segment with a flipped bit, as a bad disk would have it.
        site.cluster.set("archive_command", "false");
        site.cluster.reload();
        site.cluster.psql("create table t as select generate_series(1, 1000)");
        let segment = site.cluster.switch_wal();
        let path = site.cluster.data_dir().join("pg_wal").join(&segment);
        let mut bytes = fs::read(&path).expect("read");
        bytes[60_000] ^= 1;
        fs::write(&path, bytes).expect("write");
        site.cluster.set("archive_command", site.walden.command_line("archive-push %p"));
        site.cluster.reload();
        site.cluster.wait_archived(&segment);
        assert!(site.cluster.log().contains(&format!("WAL segment \"{segment}\" has a bad record at ")), "{}", site.cluster.log());
        let status = site.walden.run(&["status"]).ok();
        assert!(status.stdout.contains(&format!("CRITICAL: WAL segment {segment} has a bad record")), "{status}");
        assert!(status.stdout.contains("CRITICAL bad-wal: "), "{status}");
        assert!(status.stdout.contains("BAD WAL"), "{status}");

        site.walden.run(&["base-backup", "--fast"]).ok();
        let status = site.walden.run(&["status"]).ok();
        // A test machine's disk may be full enough for a CRITICAL of its own.
        let is_ours = |line: &&str| line.contains("CRITICAL") && (line.contains("bad-wal") || line.contains(&segment));
        assert_eq!(status.stdout.lines().find(is_ours), None, "{status}");
        assert!(status.stdout.contains("no moment between that and"), "{status}");
    }
);
