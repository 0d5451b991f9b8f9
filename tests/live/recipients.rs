//! A host that can only encrypt: it has recipients, and no identity at all.

use std::collections::BTreeSet;
use std::fs;

use crate::support::restored::start_and_promote;
use crate::support::site::walk;
use crate::support::{Finished, Ledger, Site, SiteOptions, Stop, Walden, live_test};

live_test!(
    [16]
    fn a_host_without_an_identity_archives_backs_up_checks_verifies_expires_and_syncs(pg: Installation) {
        let (identity, recipient) = walden::codec::generate_identity();
        let init = vec!["--recipient".to_owned(), recipient];
        let site = Site::with(&pg, &SiteOptions { init, ..SiteOptions::default() });
        let config = fs::read_to_string(&site.config).expect("read");
        assert!(!config.contains("\nidentity_file"), "{config}");
        fs::write(&site.config, format!("{config}\n[status]\nfree_warning = 0\nfree_critical = 0\n"))
            .expect("write");
        Ledger::create(&site.cluster);

        // It archives and backs up, and a check has nothing to complain of.
        let old = back_up(&site, 0);
        let first = site.fill(2).remove(0);
        let check = site.walden.run(&["check"]).ok();
        assert!(check.stdout.contains(" 0 FAILED") && check.stdout.contains("no identity here"), "{check}");

        // What the replica misses meanwhile sync brings.
        let (replica, away) = (site.repository("replica"), site.work.join("away"));
        fs::rename(&replica, &away).expect("rename");
        let missed = site.fill(2);
        let new = back_up(&site, 4);
        site.fill(1);
        fs::rename(&away, &replica).expect("rename");
        fs::remove_file(site.work.join("state/main/index.sqlite")).expect("no backlog is left either");
        assert!(site.wal_objects("replica", &missed[0]).is_empty());
        site.walden.run(&["sync"]).ok();
        for repository in ["primary", "replica"] {
            assert!(missed.iter().all(|name| site.wal_objects(repository, name).len() == 1), "{repository}");
            assert_eq!(backups(&site, repository), BTreeSet::from([old.clone(), new.clone()]));
        }

        // All is well, as far as it can be told without reading.
        let status = site.walden.run(&["status"]).ok();
        assert!(status.stdout.contains("any moment from"), "{status}");
        site.walden.run(&["status", "--monitor"]).ok();
        let clean = |finished: Finished| assert!(finished.stdout.contains("everything is as it should be"), "{finished}");
        clean(site.walden.run(&["verify"]).ok());
        let deep = site.walden.run(&["verify", "--deep"]).expect_code(3);
        assert!(deep.stderr.contains("identity"), "{deep}");
        site.get(&missed[0], &[]).0.expect_code(200);

        // The first backup goes, and its WAL.
        let config = fs::read_to_string(&site.config).expect("read");
        fs::write(&site.config, format!("{config}\n[retention]\nkeep_last = 1\n")).expect("write");
        site.walden.run(&["expire"]).ok();
        for repository in ["primary", "replica"] {
            assert_eq!(backups(&site, repository), BTreeSet::from([new.clone()]));
            assert!(site.wal_objects(repository, &first).is_empty(), "{repository}");
        }
        clean(site.walden.run(&["verify"]).ok());
        site.walden.run(&["status", "--monitor"]).ok();

        // Who has the identity gets everything back, from either repository.
        let ids = Ledger::ids(&site.cluster);
        let vault = site.work.create_dir("vault");
        let (key, elsewhere) = (vault.join("identity.txt"), vault.join("walden.toml"));
        site.work.write("vault/identity.txt", identity);
        let text = fs::read_to_string(&site.config).expect("read");
        let with_key = format!("[encryption]\nidentity_file = \"{}\"\n", key.display());
        site.work.write("vault/walden.toml", text.replace("[encryption]\n", &with_key));
        for without in ["primary", "replica"] {
            let dir = site.work.join(format!("without-{without}"));
            let target = dir.display().to_string();
            let recover = ["recover", "--until", "latest", "--without", without, "--data-dir", &target];
            Walden::new(&elsewhere).run(&recover).ok();
            let mut restored = start_and_promote(&pg, &dir);
            assert_eq!(Ledger::ids(&restored), ids, "without {without}");
            restored.stop(Stop::Fast);
        }
    }
);

/// Takes a base backup, which ends so; returns its id.
fn back_up(site: &Site, code: i32) -> String {
    let finished = site.walden.run(&["base-backup", "--fast"]).expect_code(code);
    let new = backups(site, "primary").pop_last();
    new.unwrap_or_else(|| panic!("there is no backup: {finished}"))
}

/// Returns the ids of the backups in a repository.
fn backups(site: &Site, repository: &str) -> BTreeSet<String> {
    let mut files = Vec::new();
    walk(&site.repository(repository), &mut files);
    let summaries = files.iter().filter(|path| path.ends_with("backup.json"));
    summaries.filter_map(|path| Some(path.parent()?.file_name()?.to_string_lossy().into_owned())).collect()
}
