//! How long the plan of `expire` and a `verify` take over 100,000 segments and 500 backups in an S3 store in memory, over
//! loopback: `cargo bench --bench expire`. The plan goes by listings and the summaries of backups. The first `verify` asks for
//! the checksum of each object; the others remember it.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::result_large_err)]

mod rows;
#[path = "../tests/live/support/s3_store/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    clippy::wildcard_imports,
    clippy::doc_markdown,
    clippy::needless_pass_by_value
)]
mod s3_store;

use s3_store::{BUCKET, S3Store};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use walden::codec::Opener;
use walden::index::IndexHandle;
use walden::postgres::WalSegmentSize;
use walden::progress::Progress;
use walden::repository::{ClusterFile, ClusterKeys, Repository};
use walden::storage::{Retry, S3Options, S3Storage};
use walden::upkeep::expire::{Request, plan};
use walden::upkeep::holdings::{catalog, look};
use walden::upkeep::rebuild::rebuild;
use walden::upkeep::retention::Policy;
use walden::upkeep::verify::{QUESTIONS, Request as VerifyRequest, verify};

const SEGMENTS: u64 = 100_000;
const BACKUPS: u64 = 500;
/// Pieces of each backup: a database of 1 GiB and more.
const PIECES: u64 = 40;

fn main() {
    let store = S3Store::start();
    fill(&store);
    let options = S3Options {
        bucket: BUCKET.to_owned(),
        region: Some("us-east-1".to_owned()),
        endpoint: Some(store.endpoint.clone()),
        path_style: true,
        ..S3Options::default()
    };
    let policy = Policy {
        keep_daily: Some(30),
        keep_weekly: Some(12),
        keep_monthly: Some(12),
        window: Some(Duration::from_hours(7 * 24)),
        ..Policy::default()
    };
    println!("{:<32}{:>12}{:>12}{:>12}", "", "plan, s", "requests", "removed");
    for _ in 0..3 {
        let storage = S3Storage::with_credentials(options.clone(), &store.access_key, &store.secret_key);
        let repository = Repository::new("s3", Arc::new(Retry::new(storage, 4)), Duration::from_mins(1));
        let request = Request {
            cluster: "main",
            repositories: vec![(&repository, Some(policy))],
            only: None,
            now: jiff::Timestamp::now(),
            busy: BTreeSet::new(),
        };
        store.forget_requests();
        let began = Instant::now();
        let made = plan(&request);
        let took = began.elapsed().as_secs_f64();
        assert!(made.skipped.is_empty(), "{:?}", made.skipped);
        let removed = made.repositories[0].removed().objects;
        assert!(removed > 1000, "{removed}");
        let name = format!("{SEGMENTS} segments, {BACKUPS} backups");
        println!("{name:<32}{took:>12.2}{:>12}{removed:>12}", store.requests().len());
    }
    rebuild_run(&store, &options);
    verify_runs(&store, &options);
}

/// An index from listings alone, and what `status` looks at without and with it.
fn rebuild_run(store: &S3Store, options: &S3Options) {
    let dir = tempfile::tempdir().expect("a directory");
    let index = IndexHandle::open(&dir.path().join("index.sqlite"));
    let storage = S3Storage::with_credentials(options.clone(), &store.access_key, &store.secret_key);
    let repository = Repository::new("s3", Arc::new(Retry::new(storage, 4)), Duration::from_mins(1));
    println!("{:<32}{:>12}{:>12}", "", "s", "requests");
    let timed = |name: &str, work: &dyn Fn()| {
        store.forget_requests();
        let began = Instant::now();
        work();
        println!("{name:<32}{:>12.3}{:>12}", began.elapsed().as_secs_f64(), store.requests().len());
    };
    let looked = || {
        let held = look(&repository, "main", rows::SYSID, &index, &repository.deadline()).expect("look");
        assert_eq!((held.segments.len(), held.backups.len() as u64), (SEGMENTS, BACKUPS));
        let catalog = catalog(&[(&repository, &held)], "main", rows::SYSID, &index);
        assert_eq!(catalog.backups.len() as u64, BACKUPS);
    };
    timed("status, index without anything", &looked);
    timed("status again", &looked);
    timed("index rebuild", &|| {
        let opener = Opener::without_identity();
        let done = index.run(|index| rebuild("main", &[&repository], &opener, index)).expect("rebuild");
        assert_eq!(done.files as u64, SEGMENTS);
    });
}

fn verify_runs(store: &S3Store, options: &S3Options) {
    let dir = tempfile::tempdir().expect("a directory");
    let index = IndexHandle::open(&dir.path().join("index.sqlite"));
    let opener = Opener::without_identity();
    println!("{:<32}{:>12}{:>12}{:>12}", "", "verify, s", "requests", "looked at");
    for name in ["first", "second", "third"] {
        let storage = S3Storage::with_credentials(options.clone(), &store.access_key, &store.secret_key);
        let repository = Repository::new("s3", Arc::new(Retry::new(storage, 4)), Duration::from_mins(1));
        let request = VerifyRequest {
            cluster: "main",
            repositories: vec![(&repository, None)],
            only: None,
            system_identifier: None,
            current: None,
            opener: &opener,
            deep: false,
            since: None,
            backup: None,
            reread: Duration::from_hours(30 * 24),
            all: false,
            parallel: 4,
            questions: QUESTIONS,
            in_flight: Duration::from_mins(2),
            busy: BTreeSet::new(),
            pg_wal: dir.path(),
            event_rows: 1000,
        };
        store.forget_requests();
        let began = Instant::now();
        let report = verify(&request, &index, &Progress::new());
        let took = began.elapsed().as_secs_f64();
        assert!(report.problems() == 0 && report.failure().is_none(), "{:?}", report.repositories);
        let looked_at = report.repositories[0].looked_at;
        println!("{name:<32}{took:>12.2}{:>12}{looked_at:>12}", store.requests().len());
    }
}

/// Makes up an archive of 500 days: a backup and two hundred segments a day.
fn fill(store: &S3Store) {
    let keys = ClusterKeys::new("main", rows::SYSID);
    let file = ClusterFile::new("main", rows::SYSID, WalSegmentSize::DEFAULT, 17);
    store.put_raw(&keys.cluster_file(), serde_json::to_vec(&file).expect("JSON"));
    store.put_raw(&keys.recovery_text(), "x");
    for at in 0..SEGMENTS {
        let key = format!("{}00000001/{:08X}/{}-{at:08x}.lz4.age", keys.wal(), at >> 8, rows::name(at));
        store.put_raw(&key, "x");
    }
    let now = jiff::Timestamp::now().as_second();
    for day in 0..BACKUPS {
        let stop = jiff::Timestamp::from_second(now - (BACKUPS - day).cast_signed() * 86400).expect("a time");
        let first = day * (SEGMENTS / BACKUPS);
        let id = format!("{}-00000001-{day:08x}", stop.strftime("%Y%m%dT%H%M%SZ"));
        let (pieces, summary) = rows::backup_summary(rows::SYSID, &id, first, stop, PIECES);
        let folder = keys.backup(&id);
        for name in pieces.iter().map(String::as_str).chain(["manifest.jsonl.lz4.age"]) {
            store.put_raw(&format!("{folder}{name}"), "x");
        }
        store.put_raw(&format!("{folder}backup.json"), summary);
    }
}
