//! status and list: what they tell, and that they tell it when things are down.

use std::fs;

use crate::support::{Site, live_test};

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
