//! The repository fails at I/O number N, for every N.

use super::stored::complete;
use super::*;
use crate::support::{Site, SiteOptions};
use std::sync::Arc;
use std::time::Duration;
use walden::backup::Destinations;
use walden::repository::{ClusterKeys, Repository};
use walden::storage::faulty::{Fault, Faulty, Moment};
use walden::storage::{FsStorage, Retry};

/// Backs the site's cluster up through the library, into a repository whose calls number `call` and later fail as told.
/// Returns the outcome and how many calls there were.
fn back_up(site: &Site, call: u64, fault: Option<Fault>, lasting: bool) -> (Result<BackupSummary>, u64) {
    let (result, calls) = back_up_beside(site, &[], call, fault, lasting);
    (result.map(|(summary, _)| summary), calls)
}

/// As [`back_up`], with more repositories, which do not fail. Returns with the summary how many hold the backup.
fn back_up_beside(
    site: &Site,
    others: &[Repository],
    call: u64,
    fault: Option<Fault>,
    lasting: bool,
) -> (Result<(BackupSummary, usize)>, u64) {
    let store = Faulty::new(FsStorage::new(site.repository("only")));
    let faults = store.faults();
    // A single failure must be got over, a lasting one not.
    let repository = Repository::new("only", Arc::new(Retry::new(store, 2)), Duration::from_secs(10));
    let mut server = Server::connect(&site.cluster.connection_string()).expect("connect");
    let keys = ClusterKeys::new("main", server.system_identifier().expect("system identifier"));
    let options = BackupOptions {
        id: new_backup_id(jiff::Timestamp::now(), walden::postgres::TimelineId(1)),
        cluster: "main".into(),
        data_dir: site.cluster.data_dir().into(),
        label: "faults".into(),
        note: None,
        fast: true,
        parallel: 8,
        max_rate: None,
        temp_dir: std::env::temp_dir(),
    };
    let all = std::iter::once(&repository).chain(others).collect();
    let destinations = Destinations::new(keys, &options.id, all, vec![]);
    if let Some(fault) = fault {
        if lasting {
            faults.fail_from(call, fault);
        } else {
            faults.fail_at(call, fault);
        }
    }
    let taken = take(&mut server, &options, &Sealer::unencrypted(), &destinations, &Progress::new());
    let result = taken.and_then(|summary| {
        let completed = destinations.complete(&summary, Duration::from_secs(30))?;
        Ok((summary, completed.repositories.len()))
    });
    (result, faults.calls())
}

live_test!(
    [17]
    fn a_store_that_fails_at_any_call_leaves_a_whole_backup_or_none(pg: Installation) {
        let only = |dir: &Path| vec![format!("only=file://{}", dir.display())];
        let work = user::WorkDir::new();
        let site = Site::with(&pg, &SiteOptions { repositories: only(&work.join("only")), ..SiteOptions::default() });
        // The site looks for its repositories in its own directory.
        std::os::unix::fs::symlink(work.join("only"), site.repository("only")).expect("link");
        let (whole, calls) = back_up(&site, 0, None, false);
        whole.expect("without faults");
        let faults = [
            (Fault::Error(Moment::Before), false),
            (Fault::Error(Moment::After), false),
            (Fault::Refusal, true),
            (Fault::Timeout(Moment::After), true),
        ];
        let (mut failed, mut done) = (0, 1);
        for call in 1..=calls {
            let (fault, lasting) = faults[call as usize % faults.len()];
            let (result, _) = back_up(&site, call, Some(fault), lasting);
            match result {
                Ok(summary) => {
                    done += 1;
                    assert!(summary.stored_size > 0, "call {call}");
                }
                Err(error) => {
                    failed += 1;
                    assert_eq!(error.kind(), Kind::Repository, "call {call}: {error}");
                    assert!(lasting, "call {call}: a single failure is got over: {error}");
                }
            }
            // The last object may have arrived although its answer was lost: then the backup is whole.
            let there = complete(&site, "only").len();
            assert!(there == done || there == done + 1, "call {call}: {there} are complete, {done} expected");
            done = there;
        }
        assert!(failed > 0 && done > 1, "{failed} of {calls} failed");
    }
);

live_test!(
    [15]
    fn one_store_that_fails_at_any_call_does_not_keep_the_other_from_its_backup(pg: Installation) {
        let site = Site::new(&pg);
        // The failing one is called "only" here.
        std::os::unix::fs::symlink(site.repository("replica"), site.repository("only")).expect("link");
        let primary = Arc::new(FsStorage::new(site.repository("primary")));
        let other = [Repository::new("primary", primary, Duration::from_secs(10))];
        let (whole, calls) = back_up_beside(&site, &other, 0, None, false);
        whole.expect("without faults");
        let faults = [Fault::Refusal, Fault::Timeout(Moment::After), Fault::Error(Moment::Before)];
        let mut alone = 0;
        for call in 1..=calls {
            let fault = faults[call as usize % faults.len()];
            let (result, _) = back_up_beside(&site, &other, call, Some(fault), true);
            let (summary, held) = result.unwrap_or_else(|error| panic!("call {call}: {error}"));
            let in_primary = complete(&site, "primary");
            assert!(in_primary.iter().any(|(found, _)| found.id == summary.id), "call {call}");
            // The last object may have arrived although its answer was lost.
            let in_replica = complete(&site, "only").iter().any(|(found, _)| found.id == summary.id);
            assert!(in_replica || held == 1, "call {call}");
            alone += u64::from(held == 1);
        }
        assert_eq!(alone, calls, "a store that goes on failing is left out");
    }
);
