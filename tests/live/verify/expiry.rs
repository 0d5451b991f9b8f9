//! What expires while `verify` runs, or has expired before.

use std::time::Duration;

use super::*;

fn retain(site: &Site, toml: &str) {
    let text = fs::read_to_string(&site.config).expect("read");
    fs::write(&site.config, format!("{text}\n[retention]\n{toml}\n")).expect("write");
}

live_test!(
    [17]
    fn what_expires_meanwhile_or_has_expired_is_no_damage(pg: Installation) {
        let site = Site::with_backup(&pg);
        for _ in 0..3 {
            site.fill(3);
            site.walden.run(&["base-backup", "--fast"]).ok();
        }
        site.fill(2);
        retain(&site, "keep_last = 3\nwindow = \"1s\"");
        site.walden.run(&["verify"]).ok();
        let verifying = site.walden.spawn(&["verify", "--deep", "--parallel", "1"]);
        site.walden.run(&["expire"]).ok();
        let verified = verifying.wait(PATIENCE);
        assert_eq!(verified.code, 0, "{verified}");
        // Between the backups that stay there is no WAL any more, and none is missed.
        site.walden.run(&["verify"]).ok();
        site.walden.run(&["verify", "--all"]).ok();
    }
);

live_test!(
    [17]
    fn what_expires_between_the_listing_and_the_look_is_no_damage(pg: Installation) {
        let store = S3Store::start();
        let site = Site::with(&pg, &on_s3(&store.endpoint, store.env()));
        crate::support::Ledger::create(&site.cluster);
        let first = site.fill(2).remove(0);
        for _ in 0..2 {
            site.walden.run(&["base-backup", "--fast"]).ok();
            site.fill(3);
        }
        retain(&site, "keep_last = 1");
        let before = store.objects_matching("/wal/").len();
        // Each way to look at an object is held up by itself: what was listed before is gone then.
        for (more, operation, held_up) in [
            (&[][..], Operation::HeadObject, first.as_str()),
            (&["--deep", "--all"], Operation::GetObject, "/data/0000000"),
        ] {
            store.forget_requests();
            store.fail(Rule::new(Fault::Delay(Duration::from_secs(3))).on(operation).key(held_up).times(1));
            let arguments = [&["verify", "--parallel", "1"], more].concat();
            let verifying = site.walden.spawn(&arguments);
            let is_held_up = || store.requests().iter().any(|request| request.operation == operation && request.key.contains(held_up));
            wait_until("verify looks at what it listed", is_held_up);
            site.walden.run(&["expire"]).ok();
            verifying.wait(PATIENCE).ok();
            store.heal();
            site.walden.run(&["verify"]).ok();
            site.walden.run(&["base-backup", "--fast"]).ok();
            site.fill(1);
        }
        assert!(store.objects_matching(&first).is_empty() && store.objects_matching("/wal/").len() < before);
    }
);
