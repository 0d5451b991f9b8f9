//! The log of operations: who did what, when, and how it ended.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Ledger, Site, live_test, wait_until};

fn log(site: &Site, more: &[&str]) -> Vec<serde_json::Value> {
    let finished = site.walden.run(&[&["log", "--output", "json"], more].concat()).ok();
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
}

fn kinds(log: &[serde_json::Value]) -> Vec<&str> {
    log.iter().filter_map(|entry| entry["kind"].as_str()).collect()
}

live_test!(
    [14, 17]
    fn every_restore_and_every_expiry_is_in_the_log_with_who_and_how_it_ended(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        for _ in 0..2 {
            site.walden.run(&["base-backup", "--fast"]).ok();
            site.fill(1);
        }
        let dir = site.restore("copy", &["--until", "latest"]);
        let no = site.work.join("no").display().to_string();
        site.walden.run(&["recover", "--until", "lsn:F/0", "--data-dir", &no]).expect_code(8);
        site.walden.run(&["recover", "--until", "latest", "--plan"]).ok();
        let text = fs::read_to_string(&site.config).expect("read");
        fs::write(&site.config, format!("{text}\n[retention]\nkeep_last = 1\n")).expect("write");
        site.walden.run(&["expire", "--dry-run"]).ok();
        site.walden.run(&["expire"]).ok();
        site.walden.run(&["expire"]).ok();
        site.walden.run(&["sync"]).ok();
        site.walden.run(&["index", "rebuild"]).ok();

        let all = log(&site, &[]);
        let expected =
            ["init", "base-backup", "base-backup", "recover", "restore", "recover", "expire", "sync", "index rebuild"];
        assert_eq!(kinds(&all), expected, "{all:?}");
        for entry in &all {
            assert!(entry["user"].is_string() && entry["host"].is_string(), "{entry}");
            assert!(entry["finished"].is_string() && entry["started"].is_string(), "{entry}");
        }
        assert_eq!(all[3]["details"]["data_dir"], dir.display().to_string());
        assert_eq!((&all[3]["state"], &all[3]["exit_code"]), (&"done".into(), &0.into()));
        assert_eq!((&all[5]["state"], &all[5]["exit_code"]), (&"failed".into(), &8.into()));
        assert!(all[5]["detail"].as_str().is_some_and(|detail| detail.contains("lsn:F/0")), "{}", all[5]);
        let removed = &all[6]["details"]["removed"];
        assert_eq!(removed.as_array().map(Vec::len), Some(2), "{removed}");
        assert!(removed[0]["objects"].as_u64() > Some(0), "{removed}");

        assert_eq!(kinds(&log(&site, &["--kind", "recover"])), ["recover", "recover"]);
        assert_eq!(log(&site, &["--since", "1 hour ago"]).len(), expected.len());
        assert!(log(&site, &["--until", "1 hour ago"]).is_empty());
        site.walden.run(&["log", "--since", "latest"]).expect_code(2);
        let text = site.walden.run(&["log"]).ok();
        for part in ["recover --until latest", "FAILED (8):", "base-backup", "done"] {
            assert!(text.stdout.contains(part), "{part}: {text}");
        }
    }
);

live_test!(
    [16]
    fn what_was_killed_did_not_end_and_without_an_index_nothing_fails(pg: Installation) {
        let site = Site::new(&pg);
        site.cluster.psql("create table t as select repeat('x', 500) from generate_series(1, 100000)");
        let mut backup = site.walden.spawn(&["base-backup", "--fast", "--max-rate", "100k"]);
        wait_until("it runs", || {
            assert!(backup.is_running());
            log(&site, &["--kind", "base-backup"]).first().is_some_and(|entry| entry["state"] == "runs")
        });
        backup.signal(Signal::SIGKILL);
        backup.wait(crate::support::PATIENCE);
        assert_eq!(log(&site, &["--kind", "base-backup"])[0]["state"], "did not end");
        assert!(site.walden.run(&["log"]).ok().stdout.contains("did not end"));

        // An index that cannot be had costs a warning.
        let index = site.work.join("state/main/index.sqlite");
        for ending in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{ending}", index.display()));
        }
        fs::create_dir(&index).expect("create");
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.restore("copy", &["--until", "immediate"]);
        site.walden.run(&["metrics"]).ok();
        site.walden.run(&["log"]).expect_code(1);
    }
);
