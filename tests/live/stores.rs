//! The whole story over S3: an in-memory store, and rclone's server over TLS with a certificate authority of its own.

use crate::support::{Cluster, Installation, Ledger, Rclone, S3Store, Site, SiteOptions, Stop, live_test};

/// Archives, backs up, commits more and recovers to between two commits.
#[track_caller]
fn tell(pg: &Installation, url: &str, options: &[String], env: Vec<(String, String)>) {
    let mut init = Vec::new();
    for option in options {
        init.extend(["--repository-option".to_owned(), format!("bucket.{option}")]);
    }
    let repositories = vec![format!("bucket={url}")];
    let site = Site::with(pg, &SiteOptions { repositories, init, env, ..SiteOptions::default() });
    Ledger::create(&site.cluster);
    let first = Ledger::add(&site.cluster);
    site.walden.run(&["base-backup", "--fast"]).ok();
    let second = Ledger::add(&site.cluster);
    Ledger::add(&site.cluster);
    site.archive_a_segment();
    let target = site.work.join("restored");
    let dir = target.display().to_string();
    site.walden.run(&["recover", "--until", &second.after, "--data-dir", &dir, "--start"]).ok();
    let mut cluster = Cluster::adopt(pg, &target);
    assert_eq!(Ledger::ids(&cluster), [first.id, second.id]);
    cluster.stop(Stop::Fast);
}

live_test!(
    [15, 18]
    fn archive_back_up_and_recover_over_s3(pg: Installation) {
        let store = S3Store::start();
        let options =
            [format!("endpoint={}", store.endpoint), "path_style=true".into(), format!("region={}", store.region)];
        tell(&pg, &store.url("a/prefix"), &options, store.env());
    }
);

live_test!(
    [15]
    fn archive_back_up_and_recover_over_tls_with_rclone(pg: Installation) {
        let Some(rclone) = Rclone::start() else { return };
        let options = [
            format!("endpoint={}", rclone.endpoint),
            "path_style=true".into(),
            "region=us-east-1".into(),
            format!("ca_file={}", rclone.ca_file.display()),
        ];
        tell(&pg, &rclone.url("prefix"), &options, rclone.env());
    }
);
