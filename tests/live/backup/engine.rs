//! The engine against servers that work, that are under load, and that go away.

use super::*;

live_test!(
    fn a_backup_under_load_is_accepted_by_every_judge(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let cluster = &scene.cluster;
        cluster.pgbench(&["-i", "-s", "3", "-q"]).ok();
        let load = cluster.pgbench_background(&["-n", "-c", "2", "-T", "600"]);
        cluster.psql("create table churned as select g from generate_series(1, 9000) g");
        let summary = scene.back_up().expect("backup");
        assert!(load.pid() > 0);
        load.signal(nix::sys::signal::Signal::SIGTERM);
        let _ = load.wait(crate::support::PATIENCE);
        cluster.psql("insert into moved select 1");
        cluster.wait_archived(&cluster.switch_wal());

        assert_eq!(summary.major_version, pg.major);
        assert_eq!(summary.bad_pages, 0);
        assert!(summary.start_time < summary.stop_time && summary.start_lsn < summary.stop_lsn);
        assert_eq!((summary.tablespaces.len(), summary.timeline.0, summary.from_standby), (1, 1, false));
        let archived = |name: &str| cluster.work().join("archive").join(name).exists();
        assert!(summary.wal_segments().all(|segment| archived(&segment.to_string())));
        for object in summary.objects() {
            assert!(
                object.matches(&fs::read(scene.folder.dir.join(&object.name)).expect("object")),
                "{object:?}"
            );
        }

        // By hand.
        let (Some(age), Some(_), Some(_)) = (tools::age(), tools::lz4(), tools::tar()) else { return };
        let hand = cluster.work().create_dir("hand");
        tools::run_script(&format!(
            "cd '{}'; for o in ../backup/data/*; do '{}' -d -i ../identity $o || exit; done | lz4 -d | tar x",
            hand.display(),
            age.display()
        ))
        .ok();
        // By the engine.
        let options = scene.restore_options("restored");
        scene.restore(&summary, &scene.source(), &options).expect("restore");
        let restored = &options.data_dir;
        let (mut by_hand, mut by_engine) = (contents(&hand), contents(restored));
        let moved = Path::new("tablespace_map");
        assert_ne!(by_hand.remove(moved), by_engine.remove(moved));
        assert_eq!(by_hand.len(), by_engine.len());
        for (path, found) in &by_hand {
            assert_eq!(by_engine.get(path), Some(found), "{}", path.display());
        }
        assert!(!by_hand.contains_key(Path::new("pg_replslot/old")));
        assert!(by_hand.contains_key(Path::new("pg_wal/archive_status")));
        assert_eq!(by_hand.contains_key(Path::new("pg_wal/summaries")), pg.major >= 17);
        if let Some(verify) = tools::pg_verifybackup(pg.major) {
            run(user::command(&verify).arg("-n").arg(&hand)).ok();
        }

        let mut copy = scene.start_copy(restored);
        for (sql, expected) in [
            ("select count(*) from plain", "50000"),
            ("select count(*) from moved", "7001"),
            ("select count(*) from unlogged", "0"),
            ("select count(*) from churned", "9000"),
            ("select count(*) from pgbench_accounts", "300000"),
            (
                "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)",
                "t",
            ),
            ("select length(lo_get(oid)) from pg_largeobject_metadata", "100000"),
        ] {
            assert_eq!(copy.psql(sql), expected, "{sql}");
        }
        let space =
            copy.psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'elsewhere'");
        assert!(space.contains("restored-spaces"), "{space}");
        copy.stop(Stop::Fast);
    }
);

live_test!(
    [15, 18]
    fn pg_verifybackup_accepts_a_restored_directory_with_its_links(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let summary = scene.back_up().expect("backup");
        // To where they were: the original must have gone.
        fs::rename(scene.cluster.work().join("space"), scene.cluster.work().join("gone")).expect("move tablespace");
        let options = RestoreOptions { tablespace_root: None, ..scene.restore_options("restored") };
        scene.restore(&summary, &scene.source(), &options).expect("restore");
        if let Some(verify) = tools::pg_verifybackup(pg.major) {
            run(user::command(&verify).arg("-n").arg(&options.data_dir)).ok();
        }
        let refused = scene.restore(&summary, &scene.source(), &options).expect_err("not empty");
        assert_eq!(refused.kind(), Kind::Server);
        fs::rename(scene.cluster.work().join("space"), scene.cluster.work().join("unused")).expect("move tablespace");
        fs::rename(scene.cluster.work().join("gone"), scene.cluster.work().join("space")).expect("move it back");
    }
);

live_test!(
    [15]
    fn a_failed_backup_ends_on_the_server_too(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        *scene.folder.capacity.lock().expect("lock") = 0;
        let error = scene.back_up().expect_err("the store is full");
        assert_eq!(error.kind(), Kind::Repository);
        let sessions = "select count(*) from pg_stat_activity where application_name = 'walden'";
        scene.cluster.wait_until("the session ends", || scene.cluster.psql(sessions) == "0");
        assert!(scene.cluster.log().contains("aborting backup due to backend exiting"), "{}", scene.cluster.log_tail());
    }
);

live_test!(
    [15]
    fn a_server_that_goes_away_ends_the_backup(pg: Installation) {
        let mut scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let mut server = Server::connect(&scene.cluster.connection_string()).expect("connect");
        let slow = BackupOptions { max_rate: Some(4 << 20), ..scene.options() };
        let progress = Progress::new();
        let error = std::thread::scope(|scope| {
            let backup = scope.spawn(|| {
                take(&mut server, &slow, &scene.sealer, &scene.folder, &progress).expect_err("no server")
            });
            crate::support::wait_until("files are being read", || progress.done() > 0);
            scene.cluster.kill();
            backup.join().expect("join")
        });
        assert_eq!(error.kind(), Kind::Server, "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
);
