//! A backup that breaks off at I/O number N, for every N, and again while it is continued, comes out whole.

use super::stored::{complete, folders};
use super::*;
use crate::support::site::walk;
use crate::support::{Installation, Site, SiteOptions, soak, wait_until};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use walden::backup::{Destinations, Head, Journal, Journals, preflight, run as run_backup};
use walden::repository::{ClusterKeys, Repository};
use walden::storage::faulty::{Fault, Faulty, Moment};
use walden::storage::{FsStorage, Retry};

/// Begins a backup through the library, or goes on with the one whose journal is in `journals`. The repository's call
/// number `fails_from` and all that follow fail. Returns the outcome, and how many calls there were.
fn attempt(site: &Site, journals: &Path, fails_from: Option<u64>) -> (Result<BackupSummary>, u64) {
    let store = Faulty::new(FsStorage::new(site.repository("only")));
    let faults = store.faults();
    if let Some(call) = fails_from {
        let what = [Fault::Refusal, Fault::Timeout(Moment::After), Fault::Error(Moment::Before)];
        faults.fail_from(call, what[call as usize % what.len()]);
    }
    let repository = Repository::new("only", Arc::new(Retry::new(store, 2)), Duration::from_secs(10));
    let take = || {
        let mut server = Server::connect(&site.cluster.connection_string())?;
        let mut found = Journals::read(journals)?;
        assert!(found.running.is_empty() && found.broken_off.len() <= 1, "{found:?}");
        let earlier = found.broken_off.pop();
        let new_id = || new_backup_id(jiff::Timestamp::now(), walden::postgres::TimelineId(1));
        let id = earlier.as_ref().map_or_else(new_id, |earlier| earlier.id.clone());
        let options = BackupOptions {
            id: id.clone(),
            cluster: "main".into(),
            data_dir: site.cluster.data_dir().into(),
            label: "continued".into(),
            note: None,
            fast: true,
            // Small pieces, and many of them.
            parallel: 64,
            max_rate: None,
            temp_dir: std::env::temp_dir(),
        };
        let found = preflight(&options, &mut server)?;
        let control = &found.control;
        let keys = ClusterKeys::new("main", control.system_identifier);
        let head =
            Head::new(id.clone(), control.system_identifier, control.timeline, found.data_dir.clone(), &[]);
        let mut journal = Journal::create(journals, head)?;
        if earlier.is_none() {
            journal.publish()?;
        }
        let mut attempt = Attempt { earlier, journal: Some(journal) };
        let destinations = Destinations::new(keys, &id, vec![&repository], vec![]);
        let sealer = Sealer::unencrypted();
        let progress = Progress::new();
        let taken =
            run_backup(&options, found, &mut server, &sealer, &destinations, &progress, &mut attempt)?;
        destinations.complete(&taken.summary, Duration::from_secs(30))?;
        attempt.journal.take().expect("journal").finish();
        Ok(taken.summary)
    };
    (take(), faults.calls())
}

/// Unpacks a backup that is not encrypted by hand, and lets `pg_verifybackup` judge it.
fn verify(site: &Site, pg: &Installation, folder: &Path) {
    let (Some(_), Some(_)) = (tools::lz4(), tools::tar()) else { return };
    let hand = site.work.create_dir("hand");
    let unpack = format!("cat '{}'/data/* | lz4 -d | tar x -C '{}'", folder.display(), hand.display());
    tools::run_script(&unpack).ok();
    if let Some(verify) = tools::pg_verifybackup(pg.major) {
        run(user::command(&verify).arg("-n").arg(&hand)).ok();
    }
    fs::remove_dir_all(&hand).expect("remove");
}

live_test!(
    [15, 18]
    fn broken_off_at_any_call_and_once_more_it_is_continued_to_a_whole_backup(pg: Installation) {
        let only = |dir: &Path| vec![format!("only=file://{}", dir.display())];
        let work = user::WorkDir::new();
        let site = Site::with(&pg, &SiteOptions { repositories: only(&work.join("only")), ..SiteOptions::default() });
        std::os::unix::fs::symlink(work.join("only"), site.repository("only")).expect("link");
        site.cluster.psql("create table t as select g, md5(g::text) from generate_series(1, 100000) g; checkpoint");
        let path = site.cluster.data_dir().join(site.cluster.psql("select pg_relation_filepath('t')"));
        wait_until("the table is settled", || {
            let changed = fs::metadata(&path).and_then(|meta| meta.modified()).expect("relation");
            SystemTime::now().duration_since(changed).is_ok_and(|age| age > Duration::from_secs(7))
        });
        let journals = site.work.join("journals");
        let (whole, calls) = attempt(&site, &journals, None);
        whole.expect("without faults");
        let (mut continued, mut reused) = (0, 0);
        for call in (1..calls).step_by(if soak() { 1 } else { 2 }) {
            for (_, folder) in folders(&site, "only") {
                fs::remove_dir_all(folder).expect("remove");
            }
            // What changes between the attempts is read again.
            site.cluster.psql("create table if not exists later (a int); insert into later values (1)");
            attempt(&site, &journals, Some(call)).0.expect_err("it breaks off");
            let mut stored = Vec::new();
            walk(&site.repository("only").join("main"), &mut stored);
            let second = attempt(&site, &journals, Some(call * 7 % calls + 1)).0;
            let summary = if second.is_err() { attempt(&site, &journals, None).0 } else { second };
            let summary = summary.unwrap_or_else(|error| panic!("call {call}: {error}"));
            let there = complete(&site, "only");
            assert_eq!((there.len(), folders(&site, "only").len()), (1, 1), "call {call}");
            assert_eq!(there[0].0.id, summary.id, "call {call}");
            let kept = |object: &&StoredObject| stored.contains(&there[0].1.join(&object.name));
            reused += summary.pieces.iter().filter(kept).count();
            continued += 1;
            verify(&site, &pg, &there[0].1);
            assert!(Journals::read(&journals).expect("journals").broken_off.is_empty(), "call {call}");
        }
        eprintln!("{continued} were continued, with {reused} pieces of before");
        assert!(continued > 3 && reused > continued, "{continued} were continued, with {reused} pieces of before");
    }
);
