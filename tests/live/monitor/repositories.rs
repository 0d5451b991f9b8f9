//! The rules about repositories: down, behind, damaged, verified.

use super::*;
use crate::support::s3_store::{Fault, Rule};
use crate::support::{S3Store, SiteOptions};

live_test!(
    [16]
    fn a_repository_that_is_down_then_behind_and_damaged_is_told_and_mended(pg: Installation) {
        let site = Site::with_backup(&pg);
        site.fill(1);
        configure(&site, "[status]\nunarchived_warning = \"1s\"\nrepository_behind = \"1h\"");
        says(&site, "repository-down", SILENT);
        take_away(&site, "replica");
        says(&site, "repository-down", "warning");
        site.fill(1);
        says(&site, "unarchived", SILENT);
        take_away(&site, "replica");
        says(&site, "repository-down", SILENT);

        // It lacks a commit: for how long is what counts.
        says(&site, "repository-behind", SILENT);
        configure(&site, "[status]\nrepository_behind = \"1s\"");
        comes_to_say(&site, "repository-behind", "warning");
        site.walden.run(&["sync"]).ok();
        says(&site, "repository-behind", SILENT);

        let name = site.fill(1).remove(0);
        // The server may still leave the replica alone for a while.
        site.walden.run(&["sync"]).ok();
        says(&site, "damaged-objects", SILENT);
        site.damage("primary", &name);
        // A fetch that meets it takes the other copy, and notes it.
        site.get(&name, &[]).0.ok();
        says(&site, "damaged-objects", "warning");
        site.walden.run(&["sync"]).ok();
        says(&site, "damaged-objects", SILENT);
    }
);

live_test!(
    [15]
    fn a_bucket_that_cannot_be_reached_or_refuses_is_told(pg: Installation) {
        let store = S3Store::start();
        let bucket = [("endpoint", store.endpoint.as_str()), ("region", &store.region), ("path_style", "true")];
        let option = |(key, value): (&str, &str)| ["--repository-option".to_owned(), format!("bucket.{key}={value}")];
        let options = SiteOptions { init: bucket.into_iter().flat_map(option).collect(), env: store.env(), ..SiteOptions::default() };
        let site = Site::prepare(&pg, &SiteOptions { repositories: vec![format!("bucket={}", store.url("prod"))], ..options });
        says(&site, "repository-down", SILENT);
        store.set_down(true);
        says(&site, "repository-down", "critical");
        store.set_down(false);
        says(&site, "repository-down", SILENT);
        store.fail(Rule::new(Fault::Status(403, "AccessDenied")));
        says(&site, "repository-down", "critical");
        store.heal();
        says(&site, "repository-down", SILENT);
    }
);

live_test!(
    [16]
    fn verification_that_is_old_or_found_something_is_told_and_notified(pg: Installation) {
        let site = Site::with_backup(&pg);
        let name = site.archive_a_segment();
        let heard = site.work.join("heard");
        let hear = format!("[notify]\ncommand = \"cat >> '{}'\"\nevents = [\"verify-failed\"]", heard.display());
        let after = |age: &str| configure(&site, &format!("[status]\nverify_age = \"{age}\"\n{hear}"));
        after("1h");
        says(&site, "verify-age", SILENT);
        // Never verified; then not for as long.
        after("4s");
        comes_to_say(&site, "verify-age", "warning");
        wait_until("a verification is younger than that", || {
            site.walden.run(&["verify"]).ok();
            state(&site, "verify-age", "", &[]) == SILENT
        });
        comes_to_say(&site, "verify-age", "warning");
        after("1h");
        says(&site, "verify-failed", SILENT);
        assert!(!heard.exists());

        for object in site.wal_objects("replica", &name) {
            fs::remove_file(object).expect("remove");
        }
        site.walden.run(&["verify"]).expect_code(6);
        says(&site, "verify-failed", "critical");
        assert!(fs::read_to_string(&heard).expect("read").contains("verify-failed"));
        site.walden.run(&["sync"]).ok();
        site.walden.run(&["verify"]).ok();
        says(&site, "verify-failed", SILENT);
    }
);
