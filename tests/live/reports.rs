//! status and list: what they tell, and that they tell it when things are down.

use std::fs;

use crate::support::site::walk;
use crate::support::{Entry, Ledger, Site, live_test};

live_test!(
    [15]
    fn status_and_list_tell_what_there_is_and_what_is_missing(pg: Installation) {
        let site = Site::new(&pg);
        let json = |arguments: &[&str]| -> serde_json::Value {
            let finished = site.walden.run(&[arguments, &["--output", "json"]].concat()).ok();
            serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
        };
        let empty = site.walden.run(&["status"]).ok();
        assert!(empty.stdout.contains("take one with walden base-backup"), "{empty}");
        assert!(site.walden.run(&["list"]).ok().stdout.contains("There is no backup"));

        site.walden.run(&["base-backup", "--fast", "--label", "first", "--note", "before it all"]).ok();
        site.cluster.psql("create table t (a int)");
        let last = site.archive_a_segment();
        let status = json(&["status"]);
        assert_eq!(status["backups"].as_array().map(Vec::len), Some(1));
        assert_eq!(status["windows"].as_array().map(Vec::len), Some(1), "{status}");
        assert_eq!(status["windows"][0]["to_is_commit"], true);
        assert_eq!(status["repositories"][0]["newest_segment"], last.as_str());
        assert_eq!(status["repositories"][1]["behind"], 0);
        let backups = json(&["list"]);
        assert_eq!(backups[0]["label"], "first");
        assert_eq!(backups[0]["note"], "before it all");
        assert_eq!(backups[0]["repositories"], serde_json::json!(["primary", "replica"]));
        let ranges = json(&["list", "wal"]);
        assert_eq!(ranges.as_array().map(Vec::len), Some(2), "one range in each repository: {ranges}");

        // One repository down, and one segment gone from the other one's middle.
        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        site.archive_a_segment();
        let text = site.walden.run(&["status"]).ok();
        assert!(text.stdout.contains("UNUSABLE") && text.stdout.contains("not mounted"), "{text}");
        fs::rename(site.work.join("away"), site.repository("replica")).expect("rename");
        let status = json(&["status"]);
        assert_eq!(status["repositories"][1]["behind"], 1, "{status}");
        for repository in ["primary", "replica"] {
            for object in site.wal_objects(repository, &last) {
                fs::remove_file(object).expect("remove");
            }
        }
        let text = site.walden.run(&["status"]).ok();
        assert!(text.stdout.contains(&format!("GAP: WAL segment {last} is missing")), "{text}");

        // Without the identity a host that only archives still gets its status.
        fs::remove_file(site.work.join("identity.txt")).expect("remove");
        let text = site.walden.run(&["status"]).ok();
        assert!(text.stdout.contains("any moment from"), "{text}");
    }
);

live_test!(
    [15]
    fn recycled_files_hold_nothing_that_is_not_archived(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        site.fill(3);
        // Files of archived segments get the names of segments to come, and keep their content until then.
        site.cluster.psql("CHECKPOINT");
        let last = site.archive_a_segment();
        let names = fs::read_dir(site.cluster.data_dir().join("pg_wal")).expect("read").flatten();
        let later = names.filter(|entry| entry.file_name().to_string_lossy().as_ref() > last.as_str());
        assert!(later.count() > 1, "nothing was recycled");
        let finished = site.walden.run(&["status", "--output", "json"]).ok();
        let status: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        for at in 0..2 {
            assert!(status["repositories"][at]["oldest_unarchived_commit"].is_null(), "{status}");
        }
    }
);

live_test!(
    fn status_tells_what_each_repository_would_lose_and_needs_no_key(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        fs::remove_file(site.work.join("identity.txt")).expect("remove");
        let status = || -> serde_json::Value {
            let finished = site.walden.run(&["status", "--output", "json"]).ok();
            serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
        };
        let oldest = |status: &serde_json::Value, at: usize| -> Option<jiff::Timestamp> {
            let time = status["repositories"][at]["oldest_unarchived_commit"].as_str()?;
            Some(time.parse().expect("a time"))
        };
        let committed = |entry: &Entry| -> jiff::Timestamp {
            let text = entry.committed.replace(' ', "T");
            text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
        };

        // An idle server has nothing that is not archived.
        site.archive_a_segment();
        let idle = status();
        assert_eq!((oldest(&idle, 0), oldest(&idle, 1)), (None, None), "{idle}");
        for repository in idle["repositories"].as_array().expect("a list") {
            assert_eq!(repository["reachable"], true);
            assert!(repository["breaker"].is_null(), "{repository}");
        }

        // A commit in the segment that is being written is in no repository.
        let first = Ledger::add(&site.cluster);
        Ledger::add(&site.cluster);
        let writing = status();
        assert_eq!(oldest(&writing, 0), Some(committed(&first)), "{writing}");
        assert_eq!(oldest(&writing, 1), Some(committed(&first)), "{writing}");

        // While one repository is away, its oldest commit stays and the other one's moves on.
        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        let missed = site.archive_a_segment();
        let second = Ledger::add(&site.cluster);
        let away = status();
        assert_eq!(away["repositories"][1]["reachable"], false, "{away}");
        assert_eq!(away["repositories"][1]["behind"], 1, "{away}");
        assert_eq!(oldest(&away, 0), Some(committed(&second)), "{away}");
        assert_eq!(oldest(&away, 1), Some(committed(&first)), "{away}");
        let breaker = &away["repositories"][1]["breaker"];
        assert!(breaker["failures"].as_u64() >= Some(1) && breaker["since"].is_string(), "{breaker}");
        assert!(breaker["until"].is_string() && breaker["open"].is_boolean(), "{breaker}");
        let text = site.walden.run(&["status"]).ok();
        for part in
            ["is UNUSABLE", "lacks 1 segment", "the oldest commit that is not archived there", "failed since"]
        {
            assert!(text.stdout.contains(part), "{part}: {text}");
        }
        fs::rename(site.work.join("away"), site.repository("replica")).expect("rename");
        let back = status();
        assert_eq!(back["repositories"][1]["behind"], 1, "{missed}: {back}");
        assert_eq!(oldest(&back, 1), Some(committed(&first)), "{back}");
        // Without the index it is read from pg_wal, as long as the segment is there.
        for ending in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(site.work.join(format!("state/main/index.sqlite{ending}")));
        }
        let pg_wal = site.cluster.data_dir().join("pg_wal").join(&missed);
        if pg_wal.exists() {
            let unknown = status();
            assert_eq!(oldest(&unknown, 1), Some(committed(&first)), "{unknown}");
        }
        site.walden.run(&["sync"]).ok();
        site.archive_a_segment();
        let synced = status();
        assert_eq!((oldest(&synced, 0), oldest(&synced, 1)), (None, None), "{synced}");
    }
);

live_test!(
    [15, 18]
    fn on_a_machine_without_an_index_the_repositories_tell_it_all(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        Ledger::add(&site.cluster);
        site.archive_a_segment();
        let reports = || {
            let run = |arguments: &[&str]| -> serde_json::Value {
                let finished = site.walden.run(&[arguments, &["--output", "json"]].concat()).ok();
                serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
            };
            let status = run(&["status"]);
            (status["windows"].clone(), status["repositories"].clone(), run(&["list"]), run(&["list", "wal"]))
        };
        let with = reports();
        assert_eq!(with.0[0]["to_is_commit"], true, "{with:?}");
        fs::rename(site.work.join("state/main"), site.work.join("another-host")).expect("rename");
        assert_eq!(reports(), with);
        assert!(!site.work.join("state/main").exists(), "nothing is left behind");
        let plan = site.walden.run(&["recover", "--until", "latest", "--plan"]).ok();
        assert!(plan.stderr.contains("no index here"), "{plan}");
    }
);

live_test!(
    [15]
    fn what_another_host_removes_at_the_beginning_and_of_backups_is_noticed(pg: Installation) {
        let site = Site::new(&pg);
        let first = site.archive_a_segment();
        for _ in 0..2 {
            site.walden.run(&["base-backup", "--fast"]).ok();
        }
        site.archive_a_segment();
        let status = || -> serde_json::Value {
            let finished = site.walden.run(&["status", "--output", "json"]).ok();
            serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
        };
        let before = status();
        for part in ["repositories", "backups", "windows"] {
            assert_eq!(before[part], status()[part], "asked again it says the same");
        }
        for object in site.wal_objects("replica", &first) {
            fs::remove_file(object).expect("remove");
        }
        let oldest = before["backups"][1]["id"].as_str().expect("an id").to_owned();
        let mut files = Vec::new();
        walk(&site.repository("replica"), &mut files);
        for file in files.iter().filter(|file| file.to_string_lossy().contains(&oldest)) {
            fs::remove_file(file).expect("remove");
        }
        let after = status();
        assert_eq!(after["repositories"][1]["behind"], 1, "{after}");
        assert_eq!(after["repositories"][1]["backups"], 1, "{after}");
        assert_eq!(after["backups"][1]["repositories"], serde_json::json!(["primary"]), "{after}");
    }
);
