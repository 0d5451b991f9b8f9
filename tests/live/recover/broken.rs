//! Restores under faults: a store that fails at any of its calls, a process that is killed at any moment. What is left
//! never starts as if it were right, and the same command goes on with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use walden::codec::Opener;
use walden::index::IndexHandle;
use walden::kind::Kind;
use walden::progress::Progress;
use walden::recovery::plan::{Plan, Request};
use walden::recovery::restore::{RestoreOptions, restore};
use walden::recovery::source::RepositorySource;
use walden::recovery::target::{Target, TimelineChoice};
use walden::repository::{ClusterKeys, Repository};
use walden::storage::FsStorage;
use walden::storage::faulty::{Fault, Faults, Faulty, Moment};

use super::story::{Story, check_pgbench, make_plan, verify};
use crate::support::site::walk;
use crate::support::{Cluster, Finished, Ledger, Site, Stop, live_test, soak, user};

/// A repository of the site whose calls are counted, and fail on demand.
fn faulty(site: &Site, name: &str) -> (Repository, Faults) {
    let store = Faulty::new(FsStorage::new(site.repository(name)));
    let faults = store.faults();
    (Repository::new(name, Arc::new(store), Duration::from_secs(10)), faults)
}

fn request() -> Request {
    Request {
        cluster: "main".into(),
        target: Target::Latest,
        exclusive: false,
        timeline: TimelineChoice::Fitting,
        backup: None,
        through: vec![],
    }
}

fn options(site: &Site, name: &str) -> RestoreOptions {
    RestoreOptions {
        data_dir: site.work.join(name),
        parallel: 1,
        tablespaces: BTreeMap::new(),
        owner: user::unprivileged().map(|user| (user.uid.as_raw(), user.gid.as_raw())),
        ..RestoreOptions::default()
    }
}

fn restore_to(site: &Site, plan: &Plan<'_>, opener: &Opener, name: &str) -> walden::kind::Result<()> {
    let keys = ClusterKeys::new(&plan.cluster, plan.system_identifier);
    let source = RepositorySource::new(plan.backup_from.clone(), keys.backup(&plan.backup));
    restore(&plan.summary, &source, opener, &options(site, name), &Progress::new())
}

/// The server of a directory that is not whole does not start.
#[track_caller]
fn does_not_start(pg: &crate::support::Installation, dir: &Path) {
    assert!(!dir.join("global/pg_control").exists());
    if dir.join("PG_VERSION").exists() {
        assert!(Cluster::open(pg, dir).try_start().is_err(), "a partial cluster started");
    }
}

live_test!(
    [15]
    fn a_store_that_fails_at_any_call_leaves_nothing_that_starts_and_the_same_restore_goes_on(pg: Installation) {
        let site = Site::new(&pg);
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.archive_a_segment();
        let opener = Opener::from_identity_file(&site.work.join("identity.txt")).expect("identity");
        let (primary, faults) = faulty(&site, "primary");
        let (replica, _) = faulty(&site, "replica");
        let index = IndexHandle::absent();
        let planned = make_plan(&request(), &[&primary], &opener, &index).expect("plan");
        faults.reset();
        restore_to(&site, &planned, &opener, "whole").expect("restore");
        let calls = faults.calls();
        assert!(calls >= 2, "the manifest and a piece: {calls}");
        let kinds =
            [Fault::Error(Moment::Before), Fault::Timeout(Moment::Before), Fault::Truncate, Fault::BitFlip, Fault::Refusal];
        for call in 1..=calls {
            for (at, kind) in kinds.into_iter().enumerate() {
                let name = format!("broken-{call}-{at}");
                faults.reset();
                faults.fail_at(call, kind);
                let error = restore_to(&site, &planned, &opener, &name).expect_err("the only copy is bad");
                assert!(matches!(error.kind(), Kind::Corrupt | Kind::Repository), "{error}");
                let dir = site.work.join(&name);
                does_not_start(&pg, &dir);
                faults.reset();
                restore_to(&site, &planned, &opener, &name).expect("the same once more");
                verify(&pg, &dir);
                fs::remove_dir_all(&dir).expect("remove");
            }
        }
        // With another copy no single fault is felt.
        let both = make_plan(&request(), &[&primary, &replica], &opener, &index).expect("plan");
        for call in 1..=calls {
            faults.reset();
            faults.fail_at(call, Fault::BitFlip);
            restore_to(&site, &both, &opener, "either").expect("the other copy is good");
            assert_eq!(faults.fired(), 1);
            fs::remove_dir_all(site.work.join("either")).expect("remove");
        }
    }
);

live_test!(
    [15]
    fn a_store_that_fails_at_any_call_never_makes_another_plan(pg: Installation) {
        let story = Story::tell(&pg, 1);
        story.site.walden.run(&["base-backup", "--fast"]).ok();
        story.site.fill(2);
        let opener = Opener::from_identity_file(&story.site.work.join("identity.txt")).expect("identity");
        let (primary, faults) = faulty(&story.site, "primary");
        let (replica, _) = faulty(&story.site, "replica");
        let third = &story.after[2];
        let kinds = [
            Fault::Error(Moment::Before),
            Fault::Timeout(Moment::Before),
            Fault::Refusal,
            Fault::Truncate,
            Fault::Break,
        ];
        let (mut same, mut refused) = (0, 0);
        let xid = format!("xid:{}", third.xid);
        let alone = ["latest", "immediate", "name:between", &third.after, &xid];
        let with_another = ["latest", &third.after];
        let (alone, with_another) = ((vec![&primary], &alone[..]), (vec![&primary, &replica], &with_another[..]));
        for (repositories, targets) in [alone, with_another] {
            for until in targets {
                let target = Target::parse(until, &jiff::Zoned::now()).expect("target");
                let request = Request { target, ..request() };
                let made = || {
                    make_plan(&request, &repositories, &opener, &IndexHandle::absent()).map(|plan| {
                        let mut plan = serde_json::to_value(plan).expect("JSON");
                        // One whose summary cannot be read is left out.
                        plan["backup_repositories"] = serde_json::Value::Null;
                        plan
                    })
                };
                faults.reset();
                let healthy = made().expect("plan");
                for (call, kind) in (1..=faults.calls()).flat_map(|call| kinds.map(|kind| (call, kind))) {
                    faults.reset();
                    faults.fail_at(call, kind);
                    match made() {
                        Ok(plan) => {
                            assert_eq!(plan, healthy, "{until}, {kind:?} at call {call}");
                            same += 1;
                        }
                        Err(error) => {
                            let doubts = matches!(error.kind(), Kind::Repository | Kind::Corrupt);
                            assert!(doubts, "{until}, {kind:?} at call {call}: {error}");
                            refused += 1;
                        }
                    }
                }
            }
        }
        eprintln!("{same} times the same plan, {refused} times none");
        assert!(same > 0 && refused > 0);
    }
);

live_test!(
    [15]
    fn killed_at_any_moment_it_leaves_nothing_that_starts_and_the_same_command_goes_on(pg: Installation) {
        let story = Story::tell(&pg, 4);
        let began = Instant::now();
        story.recover("whole", &["--until", "latest"]).ok();
        let whole = began.elapsed();
        let finish = |name: &str, arguments: &[&str]| -> Finished {
            let finished = story.recover(name, arguments).ok();
            verify(&pg, &story.target(name));
            let mut cluster = Cluster::open(&pg, &story.target(name));
            cluster.start();
            cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
            assert_eq!(Ledger::ids(&cluster).len(), 7);
            check_pgbench(&cluster);
            cluster.stop(Stop::Fast);
            finished
        };
        let (mut into_empty, mut over) = (0, 0);
        for round in 0..if soak() { 60 } else { 6 } {
            // Into an empty directory, and then over what a server has made of it.
            for delta in [false, true] {
                let arguments: &[&str] = if delta { &["--until", "latest", "--delta"] } else { &["--until", "latest"] };
                let recovering = story.recovering("killed", arguments);
                std::thread::sleep(whole.mul_f64(fastrand::f64()));
                recovering.signal(Signal::SIGKILL);
                let ended = recovering.wait(crate::support::PATIENCE);
                let dir = story.target("killed");
                let marker = dir.join("WALDEN_RESTORE_INCOMPLETE").exists();
                if ended.code != 0 && marker && !dir.join("global/pg_control").exists() {
                    does_not_start(&pg, &dir);
                    *(if delta { &mut over } else { &mut into_empty }) += 1;
                    // Not even --delta has to be said again.
                    let finished = finish("killed", &["--until", "latest"]);
                    assert!(finished.stderr.contains("broke off"), "{finished}");
                } else {
                    finish("killed", &["--until", "latest", "--delta"]);
                }
            }
            fs::remove_dir_all(story.target("killed")).expect("remove");
            eprintln!("round {round}: {into_empty} killed in an empty directory, {over} over an existing one");
        }
    }
);

live_test!(
    [15]
    fn with_every_other_object_gone_from_each_repository_all_is_there(pg: Installation) {
        let story = Story::tell(&pg, 10);
        let objects = |name: &str| {
            let mut found = Vec::new();
            walk(&story.site.repository(name), &mut found);
            let is_piece = |path: &Path| path.parent().is_some_and(|dir| dir.ends_with("data"));
            found.retain(|path| is_piece(path) || path.to_string_lossy().contains("manifest.jsonl"));
            found.sort();
            found
        };
        let (primary, replica) = (objects("primary"), objects("replica"));
        assert!(primary.len() > 4 && primary.len() == replica.len(), "{primary:?}");
        for (number, (one, other)) in primary.iter().zip(&replica).enumerate() {
            let victim = if number % 2 == 0 { one } else { other };
            if number % 4 < 2 {
                fs::remove_file(victim).expect("remove");
            } else {
                let mut bytes = fs::read(victim).expect("read");
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(victim, bytes).expect("write");
            }
        }
        story.expect("whole", &["--until", "latest"], 5);
        let refused = story.recover("refused", &["--until", "latest", "--without", "replica"]);
        assert!([4, 6].contains(&refused.code), "{refused}");
        does_not_start(&pg, &story.target("refused"));
    }
);

/// A small filesystem in memory, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// Mounts one; none, with a message, where this user may not.
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).expect("create");
        let disk = Self(at);
        if nix::unistd::geteuid().is_root() && disk.try_mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"]) {
            return Some(disk);
        }
        eprintln!("skipped: only root can mount a small disk, and not everywhere");
        None
    }

    fn resize(&self, megabytes: u64) {
        assert!(self.try_mount(&["-o", &format!("remount,size={megabytes}m")]));
    }

    fn try_mount(&self, arguments: &[&str]) -> bool {
        Command::new("mount").args(arguments).arg(&self.0).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

live_test!(
    [15]
    fn a_disk_that_is_full_leaves_nothing_that_starts_and_with_space_the_same_command_goes_on(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let Some(disk) = Disk::mount(story.target("disk")) else { return };
        let dir = story.target("disk/copy");
        let mut failed = 0;
        for megabytes in (2..).step_by(7) {
            disk.resize(megabytes);
            let finished = story.recover("disk/copy", &["--until", "latest"]);
            if finished.code == 0 {
                break;
            }
            assert!(finished.code == 1 && finished.stderr.contains("No space left on device"), "{finished}");
            assert!(finished.stderr.contains("the same command goes on with it"), "{finished}");
            does_not_start(&pg, &dir);
            failed += 1;
        }
        assert!(failed > 3, "{failed}");
        verify(&pg, &dir);
        disk.resize(500);
        let mut cluster = Cluster::open(&pg, &dir);
        cluster.start();
        cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
        assert_eq!(Ledger::ids(&cluster).len(), 7);
        check_pgbench(&cluster);
        cluster.stop(Stop::Fast);
    }
);
