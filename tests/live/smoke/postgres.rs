//! Servers of every version start, stop, crash and come back.

use std::time::Duration;

use crate::support::{Cluster, ClusterOptions, Ledger, Postgres, Stop, Walden, live_test, user};

live_test!(
    fn a_server_starts_and_stops_and_comes_back(pg: Installation) {
        let mut cluster = Cluster::start_new(&pg, &ClusterOptions::default());
        assert_eq!(cluster.psql("show server_version_num").get(..2), Some(pg.major.to_string().as_str()));
        cluster.psql("create table t (a int); insert into t values (1); checkpoint");
        cluster.restart();
        cluster.psql("insert into t values (2)");
        cluster.kill();
        cluster.start();
        assert_eq!(cluster.psql("select a from t order by a"), "1\n2");
        cluster.set("work_mem", "5MB");
        cluster.wait_until("the reload is done", || cluster.psql("show work_mem") == "5MB");
        assert!(cluster.try_psql("select nonsense").expect_err("an error").contains("nonsense"));
        cluster.stop(Stop::Immediate);
        assert!(!cluster.is_running());
    }
);

live_test!(
    fn segment_size_and_checksums_are_as_asked(pg: Installation) {
        let options = ClusterOptions { checksums: false, ..ClusterOptions::default() }
            .wal_segment_size_mb(1)
            .setting("work_mem", "6MB");
        let cluster = Cluster::start_new(&pg, &options);
        let found = cluster.psql("show wal_segment_size; show data_checksums; show work_mem");
        assert_eq!(found, "1MB\noff\n6MB");
        assert_eq!(cluster.switch_wal().len(), 24);
    }
);

live_test!(
    fn the_ledger_notes_each_commit(pg: Installation) {
        let cluster = Cluster::start_new(&pg, &ClusterOptions::default());
        Ledger::create(&cluster);
        let entries: Vec<_> = (0..3).map(|_| Ledger::add(&cluster)).collect();
        for pair in entries.windows(2) {
            assert!(pair[0].at <= pair[0].committed && pair[0].committed <= pair[0].after);
            assert!(pair[0].after < pair[1].at && pair[0].xid < pair[1].xid, "{pair:?}");
        }
        let rows = Ledger::rows(&cluster);
        assert_eq!(rows.iter().map(|row| (row.id, row.xid, &row.at)).collect::<Vec<_>>(), {
            entries.iter().map(|entry| (entry.id, entry.xid, &entry.at)).collect::<Vec<_>>()
        });
    }
);

live_test!(
    fn pgbench_runs_beside_the_test(pg: Installation) {
        let cluster = Cluster::start_new(&pg, &ClusterOptions::default());
        cluster.pgbench(&["-i", "-s", "1", "-q"]);
        let mut load = cluster.pgbench_background(&["-c", "2", "-T", "60"]);
        cluster.wait_until("some transactions are done", || {
            cluster.psql("select count(*) > 5 from pgbench_history") == "t"
        });
        assert!(load.is_running());
    }
);

live_test!([15] fn a_copy_runs_beside_its_original(pg: Installation) {
    let mut original = Cluster::start_new(&pg, &ClusterOptions::default());
    original.psql("create table t as select 1 as a");
    original.stop(Stop::Fast);
    let copy = original.work().join("copy");
    crate::support::tools::run_program("cp", ["-a".as_ref(), original.data_dir().as_os_str(), copy.as_os_str()]).ok();
    original.start();
    let mut opened = Cluster::open(&pg, &copy);
    opened.start();
    opened.psql("insert into t values (2)");
    assert_eq!(original.psql("select count(*) from t"), "1");
    assert_eq!(opened.psql("select count(*) from t"), "2");

    let mut adopted = Cluster::adopt(&pg, original.data_dir());
    assert_eq!(adopted.psql("select count(*) from t"), "1");
    adopted.stop(Stop::Fast);
    assert!(!original.is_running());
});

live_test!([15] fn a_session_keeps_its_transaction(pg: Installation) {
    let cluster = Cluster::start_new(&pg, &ClusterOptions::default());
    cluster.psql("create table t (a int)");
    let mut session = cluster.session();
    session.run("begin");
    session.run("insert into t values (1), (2)");
    assert_eq!(session.run("select a from t order by a"), "1\n2");
    assert_eq!(cluster.psql("select count(*) from t"), "0");
    drop(session);
    cluster.wait_until("the session is gone", || {
        cluster.psql("select count(*) from pg_stat_activity where state like 'idle in%'") == "0"
    });
    assert_eq!(cluster.psql("select count(*) from t"), "0");
});

live_test!([15] fn an_archive_command_archives(pg: Installation) {
    let cluster = Cluster::create(&pg, &ClusterOptions::default().setting("archive_mode", "on"));
    let archive = cluster.work().create_dir("archive");
    cluster.append_config(&format!("archive_command = 'test -n \"$SMOKE\" && cp %p {}/%f'\n", archive.display()));
    let mut cluster = cluster;
    cluster.env("SMOKE", "yes");
    cluster.start();
    let segment = cluster.switch_wal();
    cluster.wait_archived(&segment);
    assert!(archive.join(segment).is_file());
});

#[test]
fn a_server_that_cannot_start_says_why() {
    let Some(pg) = Postgres::any() else { return };
    let mut cluster = Cluster::create(&pg, &ClusterOptions::default().setting("max_connections", "nonsense"));
    let log = cluster.try_start().expect_err("it cannot start");
    assert!(log.contains("max_connections"), "{log}");
}

#[test]
fn walden_runs_as_the_unprivileged_user() {
    let finished = Walden::bare().spawn(&["--version"]).wait(Duration::from_secs(30));
    assert_ne!(finished.code, -1, "{finished}");
    let me = crate::support::tools::run_program("id", ["-u"]).ok().stdout;
    let expected = user::unprivileged().map_or_else(nix::unistd::geteuid, |user| user.uid);
    assert_eq!(me.trim(), expected.to_string());
    assert_ne!(me.trim(), "0");
}
