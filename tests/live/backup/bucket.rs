//! Backups into a bucket that goes away, or that does not let objects be deleted.

use super::resume::{fill, kill_at};
use super::stored::{journal_lines, json, wait_for_no_session};
use super::*;
use crate::support::peak::peak_of;
use crate::support::s3_store::{Fault, Operation, Rule};
use crate::support::{Ledger, PATIENCE, S3Store, Site, SiteOptions, wait_until};

/// A site whose only repository is a bucket.
fn site_of(store: &S3Store, pg: &crate::support::Installation) -> Site {
    let options = [
        format!("endpoint={}", store.endpoint),
        "path_style=true".into(),
        format!("region={}", store.region),
    ];
    let init =
        options.iter().flat_map(|option| ["--repository-option".to_owned(), format!("bucket.{option}")]);
    let repositories = vec![format!("bucket={}", store.url("p"))];
    Site::with(
        pg,
        &SiteOptions { repositories, init: init.collect(), env: store.env(), ..SiteOptions::default() },
    )
}

/// Returns the objects of backups, by what follows "/backup/" in their keys.
fn objects(store: &S3Store) -> Vec<String> {
    let keys = store.objects_matching("/backup/");
    keys.into_iter().filter_map(|key| Some(key.split_once("/backup/")?.1.to_owned())).collect()
}

fn complete_ids(store: &S3Store) -> Vec<String> {
    objects(store).iter().filter_map(|key| Some(key.strip_suffix("/backup.json")?.to_owned())).collect()
}

/// Recovers the newest backup to the end of the archive and looks whether the ledger is whole.
fn assert_recovers(site: &Site, pg: &crate::support::Installation) {
    Ledger::add(&site.cluster);
    site.archive_a_segment();
    let target = site.work.join("restored");
    let dir = target.display().to_string();
    site.walden.run(&["recover", "--until", "latest", "--data-dir", &dir, "--start"]).ok();
    let mut copy = Cluster::adopt(pg, &target);
    assert_eq!(Ledger::rows(&copy), Ledger::rows(&site.cluster));
    let sum = "select count(*), sum(g) from quiet";
    assert_eq!(copy.psql(sum), site.cluster.psql(sum));
    super::stored::amcheck(&copy);
    copy.stop(Stop::Fast);
}

live_test!(
    [14, 17]
    fn a_bucket_that_goes_away_in_the_middle_leaves_what_resume_goes_on_with(pg: Installation) {
        let store = S3Store::start();
        let site = site_of(&store, &pg);
        Ledger::create(&site.cluster);
        fill(&site, 20);
        let backup = site.walden.spawn(&["base-backup", "--fast", "--parallel", "64", "--max-rate", "12M"]);
        wait_until("pieces are stored", || journal_lines(&site) > 6);
        store.set_down(true);
        let failed = backup.wait(PATIENCE).expect_code(4);
        assert!(failed.stderr.contains("\"bucket\"") && failed.stderr.contains("--resume goes on"), "{failed}");
        wait_for_no_session(&site.cluster);
        store.heal();
        assert!(complete_ids(&store).is_empty());
        let resumed = ["base-backup", "--fast", "--parallel", "64", "--resume", "--output", "json"];
        let report = json(&site.walden.run(&resumed).ok());
        assert!(report["reused"].as_u64() > Some(0), "{report}");
        let id = report["id"].as_str().unwrap();
        assert_eq!(complete_ids(&store), [id]);
        assert!(objects(&store).iter().all(|key| key.starts_with(id)), "{:?}", objects(&store));
        assert_recovers(&site, &pg);
    }
);

live_test!(
    [15]
    fn where_nothing_may_be_deleted_resume_begins_anew(pg: Installation) {
        let store = S3Store::start();
        let site = site_of(&store, &pg);
        Ledger::create(&site.cluster);
        fill(&site, 12);
        kill_at(&site, 3, &[]);
        let half = objects(&store);
        store.fail(Rule::new(Fault::Status(403, "AccessDenied")).on(Operation::DeleteObject));
        let taken = site.walden.run(&["base-backup", "--fast", "--resume"]).ok();
        assert!(taken.stderr.contains("beginning anew") && taken.stderr.contains("AccessDenied"), "{taken}");
        assert!(taken.stderr.contains("s3:DeleteObject"), "the operator is told: {taken}");
        assert_eq!(complete_ids(&store).len(), 1);
        assert!(half.iter().all(|key| objects(&store).contains(key)), "nothing is removed");
        // The next one that may removes it.
        store.heal();
        site.walden.run(&["base-backup", "--fast"]).ok();
        assert_eq!(complete_ids(&store).len(), 2);
        assert!(!half.iter().any(|key| objects(&store).contains(key)));
        assert_recovers(&site, &pg);
    }
);

live_test!(
    [18]
    fn memory_is_bounded_into_a_bucket_too(pg: Installation) {
        let store = S3Store::start();
        let site = site_of(&store, &pg);
        super::memory::write_random(&site, 192);
        for parallel in ["4", "64"] {
            let (finished, peak) = peak_of(&site.walden, &["base-backup", "--fast", "--parallel", parallel]);
            finished.ok();
            eprintln!("{parallel} workers: {} MB at most", peak / 1_000_000);
            assert!(peak < super::memory::BOUND, "{peak} bytes");
        }
    }
);
