//! One repository down for a while: the breaker, the backlog, and sync; and two contents settled by resolve.

use std::fs;
use std::path::Path;

use crate::support::{Site, live_test, user, wait_until};

live_test!(
    [15]
    fn what_a_repository_missed_is_sent_by_later_calls_or_by_sync(pg: Installation) {
        let site = Site::new(&pg);
        let away = site.work.join("away");
        let take_away = || fs::rename(site.repository("replica"), &away).expect("rename");
        let bring_back = || fs::rename(&away, site.repository("replica")).expect("rename");

        take_away();
        let missed: Vec<String> = (0..3).map(|_| site.archive_a_segment()).collect();
        let warnings = site.cluster.log().lines().filter(|line| line.starts_with("WARNING")).count();
        assert!((1..3).contains(&warnings), "the breaker keeps it from being asked each time: {}", site.cluster.log());
        let status = site.walden.run(&["status"]).ok();
        assert!(status.stdout.contains("UNUSABLE"), "{status}");
        bring_back();

        // Once its rest is over, calls with time to spare send what is lacking.
        wait_until("the backlog is sent", || {
            site.archive_a_segment();
            missed.iter().all(|name| site.wal_objects("replica", name).len() == 1)
        });
        // What only sync knows of: the index is gone, and a backup was taken meanwhile.
        take_away();
        let name = site.archive_a_segment();
        let backup = site.walden.run(&["base-backup", "--fast"]).expect_code(4);
        assert!(backup.stderr.contains("replica"), "{backup}");
        bring_back();
        fs::remove_file(site.work.join("state/main/index.sqlite")).expect("remove");
        let plan = site.walden.run(&["sync", "--dry-run"]).ok();
        assert!(plan.stdout.contains(&name) && plan.stdout.contains("backup.json"), "{plan}");
        assert!(site.wal_objects("replica", &name).is_empty());
        fs::remove_file(site.work.join("identity.txt")).expect("no key is needed");
        site.walden.run(&["sync"]).ok();
        assert_eq!(site.wal_objects("replica", &name).len(), 1);
        let again = site.walden.run(&["sync"]).ok();
        assert!(again.stdout.contains("Every repository has everything"), "{again}");
        let list = site.walden.run(&["list"]).ok();
        assert!(list.stdout.contains("primary,replica"), "{list}");
    }
);

live_test!(
    [15]
    fn a_call_with_a_dead_repository_is_quick_while_its_breaker_is_open(pg: Installation) {
        let site = Site::new(&pg);
        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        site.archive_a_segment();
        let began = std::time::Instant::now();
        site.archive_a_segment();
        // Two tries of a dead repository, with their pauses, take longer than this.
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(Path::new(&site.work.join("away")).exists());
    }
);

live_test!(
    [15]
    fn damage_that_a_fetch_found_is_shown_by_status_and_mended_by_sync(pg: Installation) {
        let site = Site::new(&pg);
        let name = site.archive_a_segment();
        let object = site.wal_objects("primary", &name).remove(0);
        let good = fs::read(&object).expect("read");
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&object, &bad).expect("write");
        site.get(&name, &[]).0.ok();
        let status = site.walden.run(&["status"]).ok();
        assert!(status.stdout.contains("DAMAGED") && status.stdout.contains(&name), "{status}");
        assert!(status.stdout.contains("WARNING damaged-objects: 1 object is damaged"), "{status}");
        site.walden.run(&["sync"]).ok();
        assert!(fs::read(&object).expect("read") == good, "the copy of the other repository");
        let status = site.walden.run(&["status"]).ok();
        assert!(!status.stdout.contains("DAMAGED"), "{status}");
        assert_eq!(site.wal_objects("primary", &name).len(), 2, "the damaged one is kept aside");
        site.get(&name, &["--without", "replica"]).0.ok();
    }
);

live_test!(
    [15]
    fn resolve_keeps_one_content_and_puts_the_other_aside(pg: Installation) {
        let site = Site::new(&pg);
        let name = site.archive_a_segment();
        let good = site.wal_objects("primary", &name).remove(0);
        let crc = good.file_name().expect("name").to_string_lossy()[25..33].to_owned();
        let other = good.with_file_name(format!("{name}-0badc0de.lz4.age"));
        fs::copy(&good, &other).expect("copy");
        user::give(&other);
        site.get(&name, &[]).0.expect_code(200);
        site.walden.run(&["resolve", &name, "--keep", "12345678"]).expect_code(2);
        site.walden.run(&["resolve", &name, "--keep", "xyz"]).expect_code(2);
        site.walden.run(&["resolve", "nonsense", "--keep", &crc]).expect_code(2);
        let settled = site.walden.run(&["resolve", &name, "--keep", &crc]).ok();
        assert!(settled.stdout.contains("wal/aside/"), "{settled}");
        site.get(&name, &[]).0.ok();
        assert!(!other.exists() && good.exists());
        let aside = site.wal_objects("primary", &name);
        assert_eq!(aside.len(), 2, "both contents survive: {aside:?}");
        site.walden.run(&["status"]).ok();
    }
);
