//! `walden events`: when did it happen, and does the printed command bring it back?

use std::fs;

use crate::support::{Cluster, Site, SiteOptions, Stop, Walden, live_test, run, user};

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
