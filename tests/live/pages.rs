//! The commands of the pages of reference, run as they stand; those of the runbook and of what is like it are in `docs`.

use std::fs;

use crate::docs::Shell;
use crate::support::cluster::Stop;
use crate::support::restored::in_recovery;
use crate::support::site::SiteOptions;
use crate::support::tools;
use crate::support::user::WorkDir;
use crate::support::{Ledger, Site, live_test, run, user};

/// Adds sections to the configuration.
fn configure(site: &Site, sections: &str) {
    let text = fs::read_to_string(&site.config).expect("read");
    fs::write(&site.config, format!("{text}\n{sections}")).expect("write");
}

fn oldest_backup(site: &Site) -> String {
    let list = site.walden.run(&["list", "--output", "json"]).ok();
    let list: serde_json::Value = serde_json::from_str(&list.stdout).expect("JSON");
    list.as_array().and_then(|list| list.last()?["id"].as_str().map(str::to_owned)).expect("a backup")
}

live_test!(
    [15]
    fn backups_retention_verification_and_monitoring(pg: Installation) {
        let places = WorkDir::new();
        let repository = |name| format!("{name}=file://{}", places.join(name).display());
        let site = Site::with_backup_and(&pg, &SiteOptions {
            repositories: ["replica", "archive"].map(repository).to_vec(),
            ..SiteOptions::default()
        });
        let got = site.work.write("got", "");
        configure(&site, &format!(
            "[retention]\nkeep_last = 9\nwindow = \"7d\"\n\n[notify]\ncommand = \"cat >> '{}'\"\n",
            got.display()
        ));
        let mut shell = Shell::new(&site);
        let id = oldest_backup(&site);
        shell.set("ID", &id);

        // First, while there is one backup to read.
        let finished = shell.run("verify.md", "verify");
        assert!(finished.stdout.contains("\"problems\""), "{finished}");
        shell.run("backup.md", "backup");
        assert_eq!(site.walden.run(&["list"]).ok().stdout.matches("before the migration").count(), 1);
        let finished = shell.run("retention.md", "expire");
        assert!(finished.stdout.contains("window"), "each backup with the reasons why it stays: {finished}");

        let finished = shell.try_run("monitoring.md", "monitor");
        assert!((0..3).contains(&finished.code), "{finished}");
        assert!(finished.stdout.lines().next().is_some_and(|line| line.contains(" | ")), "{finished}");
        // What is asked about nothing says so.
        let events = site.walden.run(&["events", "--kind", "drop"]).ok();
        assert!(events.stdout.contains("the last archived commit"), "{events}");
        let nobodys = "20260101T000000Z-00000001-00000000";
        site.walden.run(&["unpin", nobodys]).expect_code(2);
        assert_eq!(site.walden.run(&["verify", "--backup", nobodys]).expect_code(2).stdout, "");

        shell.set("TEXTFILES", site.work.create_dir("textfiles").display());
        shell.run("monitoring.md", "metrics");
        let metrics = fs::read_to_string(site.work.join("textfiles/walden.prom")).expect("read");
        assert!(metrics.contains("walden_verdict{"), "{metrics}");
        assert!(shell.run("monitoring.md", "notify").stdout.contains("command: delivered"));
        assert!(fs::read_to_string(got).expect("read").contains("\"event\""));
        let finished = shell.run("monitoring.md", "log");
        for kind in ["base-backup", "pin", "unpin", "verify", "notify test"] {
            assert!(finished.stdout.contains(kind), "{kind}: {finished}");
        }

        if tools::age().is_none() || tools::lz4().is_none() {
            return;
        }
        shell.set("REPOSITORY", places.join("replica").display());
        let dir = site.work.create_dir("by-hand");
        shell.set("PGDATA", dir.display());
        shell.in_dir(site.work.path()).run("README.md", "by-hand");
        if let Some(judge) = tools::pg_verifybackup(pg.major) {
            run(user::command(judge).arg("-n").arg(&dir)).ok();
        }
    }
);

live_test!(
    [15]
    fn recoveries_of_every_form(pg: Installation) {
        let mut site = Site::with_backup(&pg);
        let earlier = Ledger::add(&site.cluster);
        site.fill(1);
        let until = Ledger::add(&site.cluster);
        let segments = site.fill(3);
        let all = Ledger::ids(&site.cluster);
        // The copies come up where it was.
        site.cluster.stop(Stop::Fast);
        let copy = site.work.join("copy");
        let mut shell = Shell::new(&site);
        shell.set("UNTIL", &until.after);
        shell.set("EARLIER", &earlier.after);
        let ids_of_the_copy = |shell: &Shell| {
            let mut back = shell.server(&site, &copy);
            back.wait_until("the server has promoted", || !in_recovery(&back));
            let ids = Ledger::ids(&back);
            back.stop(Stop::Fast);
            ids
        };
        let away = |more: &str| shell.bash(&format!("rm -r \"$COPY\" {more}"));

        shell.run("recovery.md", "recover");
        assert_eq!(ids_of_the_copy(&shell).last(), Some(&until.id));
        shell.run("recovery.md", "delta");
        assert_eq!(ids_of_the_copy(&shell).last(), Some(&earlier.id));
        away("");

        fs::rename(site.repository("primary"), site.work.join("away")).expect("rename");
        shell.run("recovery.md", "without");
        fs::rename(site.work.join("away"), site.repository("primary")).expect("rename");
        assert_eq!(ids_of_the_copy(&shell), all);
        away("");

        site.hide(&segments[1]);
        let mut through = shell.clone();
        through.set("SEGMENT", &segments[0]);
        through.run("recovery.md", "through");
        through.run("recovery.md", "start");
        assert_eq!(ids_of_the_copy(&shell), all[..all.len() - 2]);
        site.show(&segments[1]);
        away("");

        site.work.create_dir("fast");
        let mut faster = shell.clone();
        faster.set("WAL_DIR", site.work.join("fast/pg_wal").display());
        faster.run("recovery.md", "wal-dir");
        assert_eq!(fs::read_link(copy.join("pg_wal")).expect("a link"), site.work.join("fast/pg_wal"));
        away("");

        site.cluster.start();
        let space = site.work.create_dir("space");
        site.cluster.psql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
        site.cluster.psql("CREATE TABLE spread TABLESPACE fast AS SELECT generate_series(1, 100) id");
        let oid = site.cluster.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'");
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.cluster.stop(Stop::Fast);
        let elsewhere = site.work.join("elsewhere");
        let mut spaces = shell.clone();
        spaces.set("OID", &oid);
        spaces.set("SPACE", elsewhere.display());
        spaces.run("recovery.md", "tablespace");
        let link = |oid: &str| fs::read_link(copy.join("pg_tblspc").join(oid)).expect("a link");
        assert_eq!(link(&oid), elsewhere);
        away("");
        spaces.run("recovery.md", "tablespace-root");
        assert_eq!(link(&oid), site.work.join("copy.tablespaces").join(&oid));
    }
);
