//! Backups while tables come and go: what is restored is what was committed.

use super::stored::{amcheck, complete, verify_by_hand};
use super::*;
use crate::support::{Ledger, PATIENCE, Site, soak};
use nix::sys::signal::Signal;

/// What the churning sessions do over and over. A session's tables bear its number.
const CHURN: &str = "
create table c:client_id as select g, md5(g::text) as t from generate_series(1, 3000) g;
create index on c:client_id (t);
create unlogged table u:client_id as select * from c:client_id;
create table s:client_id tablespace elsewhere as select * from c:client_id;
truncate c:client_id;
insert into c:client_id select g, 'x' from generate_series(1, 500) g;
vacuum full c:client_id;
alter table s:client_id set tablespace pg_default;
drop table s:client_id;
drop table u:client_id;
drop table c:client_id;
insert into churned (client) values (:client_id);
";

live_test!(
    fn under_load_and_churn_the_restored_server_holds_what_was_committed(pg: Installation) {
        let site = Site::new(&pg);
        let cluster = &site.cluster;
        Ledger::create(cluster);
        let space = site.work.create_dir("space");
        cluster.psql(&format!("create tablespace elsewhere location '{}'", space.display()));
        cluster.psql(
            "create table churned (id bigserial primary key, client int) tablespace elsewhere;
             create unlogged table volatile as select g from generate_series(1, 5000) g",
        );
        cluster.pgbench(&["-i", "-s", if soak() { "30" } else { "3" }, "-q"]);
        let script = site.work.write("churn.sql", CHURN).display().to_string();
        let churn = cluster.pgbench_background(&["-n", "-c", "2", "-T", "3600", "-f", &script]);
        let load = cluster.pgbench_background(&["-n", "-c", "2", "-T", "3600"]);
        cluster.wait_until("tables come and go", || cluster.psql("select count(*) > 2 from churned") == "t");
        let mut entries = vec![Ledger::add(cluster)];
        // Slow enough that every file sees some of it.
        site.walden.run(&["base-backup", "--fast", "--max-rate", "25M"]).ok();
        entries.push(Ledger::add(cluster));
        let target = entries[1].after.clone();
        let later = Ledger::add(cluster);
        for background in [churn, load] {
            background.signal(Signal::SIGTERM);
            let ended = background.wait(PATIENCE);
            assert!(!ended.stderr.contains("ERROR"), "{ended}");
        }
        site.archive_a_segment();
        assert!(later.id > entries[1].id);

        let (dir, spaces) = (site.work.join("restored"), site.work.join("spaces"));
        let (dir_text, spaces_text) = (dir.display().to_string(), spaces.display().to_string());
        let recover = [
            "recover",
            "--until",
            &target,
            "--data-dir",
            &dir_text,
            "--tablespace-root",
            &spaces_text,
            "--start",
        ];
        site.walden.run(&recover).ok();
        let mut copy = Cluster::adopt(&pg, &dir);
        let rows: Vec<_> = Ledger::rows(cluster).into_iter().filter(|row| row.id <= entries[1].id).collect();
        assert_eq!(Ledger::rows(&copy), rows);
        // Every transfer of the load is there in all four of its tables, or in none.
        for table in ["pgbench_accounts", "pgbench_tellers", "pgbench_branches"] {
            let column = format!("{}balance", &table[8..9]);
            let sum = copy.psql(&format!("select sum({column}) from {table}"));
            assert_eq!(sum, copy.psql("select sum(delta) from pgbench_history"), "{table}");
        }
        let (last, count) =
            ("select max(id) from churned", "select count(*), sum(client) from churned where id <= ");
        let last = copy.psql(last);
        assert_eq!(copy.psql(&format!("{count}{last}")), cluster.psql(&format!("{count}{last}")));
        assert_eq!(copy.psql("select count(*) from volatile"), "0", "unlogged tables come back empty");
        amcheck(&copy);
        copy.stop(Stop::Fast);
        for (_, folder) in complete(&site, "replica") {
            verify_by_hand(&site, &pg, &folder);
        }
    }
);
