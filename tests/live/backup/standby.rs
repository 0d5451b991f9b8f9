//! Backups from a standby, and standbys that stop being one.

use super::stored::{amcheck, complete, folders, journal_lines, json, reconfigured};
use super::*;
use crate::support::{Installation, Ledger, PATIENCE, Site, Walden, wait_until};

live_test!(
    fn a_backup_from_a_standby_is_as_good(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let summary = scene.back_up().expect("backup");
        let options = scene.restore_options("standby");
        scene.restore(&summary, &scene.source(), &options).expect("restore");
        let mut standby = Cluster::open(&pg, &options.data_dir);
        standby.append_config(&format!(
            "primary_conninfo = '{}'\nfull_page_writes = on\n",
            scene.cluster.connection_string()
        ));
        fs::write(options.data_dir.join("standby.signal"), "").expect("write standby.signal");
        user::give(&options.data_dir.join("standby.signal"));
        standby.start();
        scene.cluster.psql("insert into plain select 1, 'later'");
        standby.wait_until("the standby caught up", || standby.psql("select count(*) from plain") == "50001");

        let folder = Folder::new(scene.cluster.work().create_dir("from-standby"));
        let mut server = Server::connect(&standby.connection_string()).expect("connect");
        let options = BackupOptions { data_dir: options.data_dir.clone(), ..scene.options() };
        let summary = take(&mut server, &options, &scene.sealer, &folder, &Progress::new());
        let summary = summary.expect("backup from the standby");
        assert!(summary.from_standby && summary.bad_pages == 0, "{summary:?}");
        scene.cluster.psql("insert into plain select 2, 'last'");
        scene.cluster.wait_archived(&scene.cluster.switch_wal());

        let options = scene.restore_options("again");
        scene.restore(&summary, &Folders(vec![folder.dir.clone()]), &options).expect("restore");
        assert!(!options.data_dir.join("standby.signal").exists(), "a copy is no standby by itself");
        if let Some(verify) = tools::pg_verifybackup(pg.major) {
            // The map of tablespaces is the copy's own.
            let verify =
                run(user::command(&verify).arg("-n").args(["-i", "tablespace_map"]).arg(&options.data_dir));
            verify.ok();
        }
        let mut copy = scene.start_copy(&options.data_dir);
        assert_eq!(copy.psql("select count(*) from plain"), "50002");
        copy.stop(Stop::Fast);
        standby.stop(Stop::Fast);
    }
);

/// Makes a standby of the site's cluster from its newest backup, started, and a program that backs it up.
fn standby_of(site: &Site, pg: &Installation) -> (Cluster, Walden) {
    site.walden.run(&["base-backup", "--fast"]).ok();
    let dir = site.work.join("standby");
    let text = dir.display().to_string();
    site.walden.run(&["recover", "--until", "latest", "--data-dir", &text]).ok();
    fs::rename(dir.join("recovery.signal"), dir.join("standby.signal")).expect("rename");
    let mut standby = Cluster::open(pg, &dir);
    standby.append_config(&format!("primary_conninfo = '{}'\n", site.cluster.connection_string()));
    standby.start();
    let primary_dir = site.cluster.data_dir().display().to_string();
    let (from, to) = (site.cluster.connection_string(), standby.connection_string());
    let walden = reconfigured(
        site,
        "standby.toml",
        &[(primary_dir.as_str(), text.as_str()), (from.as_str(), to.as_str())],
    );
    (standby, walden)
}

/// Waits until the standby has replayed everything that the primary wrote.
fn catch_up(site: &Site, standby: &Cluster) {
    let position = site.cluster.psql("select pg_current_wal_insert_lsn()");
    let behind = format!("select pg_last_wal_replay_lsn() >= '{position}'");
    standby.wait_until("the standby has caught up", || standby.psql(&behind) == "t");
}

live_test!(
    [14, 18]
    fn one_command_backs_up_a_standby(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        let (mut standby, walden) = standby_of(&site, &pg);
        let first = Ledger::add(&site.cluster);
        catch_up(&site, &standby);
        // The wait is for the segment with the end of the backup, which the primary sends when it is full.
        let backup = walden.spawn(&["base-backup", "--fast", "--output", "json"]);
        let waits = || backup.stderr().contains("waiting for WAL segment");
        wait_until("the backup has ended on the server", waits);
        let second = Ledger::add(&site.cluster);
        site.archive_a_segment();
        let taken = json(&backup.wait(PATIENCE).ok());
        assert_eq!(taken["from_standby"], true);
        assert!(taken["wal_wait_seconds"].as_f64() > Some(5.0), "{taken}");
        let third = Ledger::add(&site.cluster);
        site.archive_a_segment();
        let dir = site.work.join("restored");
        let (text, id) = (dir.display().to_string(), taken["id"].as_str().unwrap().to_owned());
        site.walden
            .run(&["recover", "--until", "latest", "--backup", &id, "--data-dir", &text, "--start"])
            .ok();
        let mut copy = Cluster::adopt(&pg, &dir);
        assert_eq!(Ledger::ids(&copy), [first.id, second.id, third.id]);
        amcheck(&copy);
        copy.stop(Stop::Fast);
        standby.stop(Stop::Fast);
    }
);

live_test!(
    [14, 18]
    fn promoted_in_the_middle_it_fails_and_leaves_nothing_to_use(pg: Installation) {
        let site = Site::new(&pg);
        let (mut standby, walden) = standby_of(&site, &pg);
        catch_up(&site, &standby);
        // It has a state of its own, and so a journal.
        let before = journal_lines(&site);
        let backup = walden.spawn(&["base-backup", "--fast", "--parallel", "32", "--max-rate", "4M"]);
        wait_until("pieces are stored", || journal_lines(&site) > before + 1);
        standby.psql("select pg_promote()");
        let failed = backup.wait(PATIENCE).expect_code(7);
        assert!(failed.stderr.contains("promoted"), "{failed}");
        crate::backup::stored::wait_for_no_session(&standby);
        for repository in ["primary", "replica"] {
            assert_eq!(complete(&site, repository).len(), 1, "only the primary's");
        }
        // On its own timeline nothing of it can be continued.
        standby.stop(Stop::Fast);
        let again = site.walden.run(&["base-backup", "--fast", "--resume"]).ok();
        assert!(again.stderr.contains("beginning anew"), "{again}");
        for repository in ["primary", "replica"] {
            assert_eq!(complete(&site, repository).len(), 2);
            assert_eq!(folders(&site, repository).len(), 2);
        }
    }
);

live_test!(
    [14, 18]
    fn full_page_writes_off_on_the_primary_is_refused_before_and_after(pg: Installation) {
        let site = Site::new(&pg);
        site.cluster.psql("create table t (a int)");
        let (mut standby, walden) = standby_of(&site, &pg);
        let turn = |value: &str| {
            site.cluster.set("full_page_writes", value);
            site.cluster.psql("insert into t values (1); checkpoint; insert into t values (1)");
            catch_up(&site, &standby);
        };
        turn("off");
        let refused = walden.run(&["base-backup", "--fast"]).expect_code(7);
        assert!(refused.stderr.contains("full_page_writes") && refused.stderr.contains("hint: "), "{refused}");
        turn("on");
        let before = journal_lines(&site);
        let backup = walden.spawn(&["base-backup", "--fast", "--parallel", "32", "--max-rate", "8M"]);
        wait_until("pieces are stored", || journal_lines(&site) > before + 1);
        turn("off");
        let failed = backup.wait(PATIENCE).expect_code(7);
        assert!(failed.stderr.contains("full_page_writes") && failed.stderr.contains("hint: "), "{failed}");
        assert_eq!(complete(&site, "primary").len(), 1, "only the primary's");
        standby.stop(Stop::Fast);
    }
);
