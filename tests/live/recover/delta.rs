//! `--delta`: over an existing directory only what differs is written, what does not belong goes, and nothing that
//! belongs to somebody else is touched.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::story::{Story, check_pgbench, verify};
use crate::support::tools::run_script;
use crate::support::{Cluster, Finished, Ledger, Site, Stop, live_test, user, wait_until};

/// Inode, change time and content of each file below a directory.
fn fingerprints(dir: &Path) -> HashMap<PathBuf, (u64, i64, u32)> {
    let mut files = Vec::new();
    crate::support::site::walk(dir, &mut files);
    let look = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).expect("metadata");
        let content = fs::read(&path).unwrap_or_default();
        (path, (meta.ino(), meta.mtime_nsec(), crc32fast::hash(&content)))
    };
    files.into_iter().map(look).collect()
}

fn delta(story: &Story, dir: &Path, arguments: &[&str]) -> Finished {
    let dir = dir.display().to_string();
    story.site.walden.run(&[&["recover", "--delta", "--data-dir", &dir], arguments].concat())
}

#[track_caller]
fn refused(finished: Finished, says: &str) {
    let finished = finished.expect_code(7);
    assert!(finished.stderr.contains(says), "{says}: {finished}");
}

live_test!(
    [14, 15, 18]
    fn only_what_differs_is_written_and_what_does_not_belong_goes(pg: Installation) {
        let story = Story::tell(&pg, 4);
        let dir = story.target("copy");
        let mut copy = story.recover_and_start("copy", &["--until", "latest"]);
        copy.psql("create table only_here as select generate_series(1, 1000); update pgbench_branches set bbalance = 1");
        refused(delta(&story, &dir, &["--until", "latest"]), "a server runs in");
        copy.stop(Stop::Fast);

        let log = dir.join("base/stranger");
        fs::write(&log, "x").expect("write");
        // The same size and time, other content.
        let table = dir.join(story.site.cluster.psql("select pg_relation_filepath('pgbench_accounts')"));
        let (mut content, time) = (fs::read(&table).expect("read"), fs::metadata(&table).expect("metadata"));
        content[5_000_000] ^= 1;
        fs::write(&table, content).expect("write");
        let time = fs::FileTimes::new().set_modified(time.modified().expect("time"));
        fs::File::options().write(true).open(&table).and_then(|file| file.set_times(time)).expect("set time");

        refused(story.recover("copy", &["--until", "latest"]), "--delta restores over it");
        let third = &story.after[2];
        let finished = delta(&story, &dir, &["--until", &third.after]).ok();
        assert!(finished.stderr.contains("not belong to the backup"), "{finished}");
        assert!(finished.stderr.contains("from pg_wal"), "{finished}");
        assert!(!log.exists());
        verify(&pg, &dir);
        let again = delta(&story, &dir, &["--until", &third.after, "--start"]).ok();
        let mut cluster = Cluster::adopt(&pg, &dir);
        let ids: Vec<i64> = story.before.iter().chain(&story.after[..3]).map(|entry| entry.id).collect();
        assert_eq!(Ledger::ids(&cluster), ids);
        check_pgbench(&cluster);
        assert!(cluster.try_psql("select 1 from only_here").is_err());
        cluster.stop(Stop::Fast);
        assert!(again.stdout.contains("wrote ") && again.stdout.contains(" MiB in "), "{again}");
    }
);

live_test!(
    [15]
    fn over_an_intact_copy_next_to_nothing_is_written(pg: Installation) {
        let story = Story::tell(&pg, 4);
        let dir = story.target("copy");
        story.recover("copy", &["--until", "latest"]).ok();
        let before = fingerprints(&dir);
        let finished = delta(&story, &dir, &["--until", "latest", "--output", "json"]).ok();
        assert!(!finished.stderr.contains("WARNING"), "{finished}");
        let report: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        assert_eq!(report["restored"]["over_existing"], true, "{report}");
        assert!(report["restored"]["bytes"].as_u64().is_some_and(|bytes| bytes < 100_000), "{report}");
        let after = fingerprints(&dir);
        let mut changed: Vec<&Path> = before
            .iter()
            .filter(|(path, print)| after.get(*path) != Some(print))
            .map(|(path, _)| path.strip_prefix(&dir).expect("below"))
            .collect();
        changed.sort();
        for path in &changed {
            let name = path.to_string_lossy();
            assert!(["global/pg_control", "postgresql.auto.conf", "recovery.signal"].contains(&&*name), "{changed:?}");
        }
        assert_eq!(before.len(), after.len());
    }
);

live_test!(
    [15]
    fn in_place_of_the_original_with_its_tablespaces(pg: Installation) {
        let mut site = Site::new(&pg);
        let space = site.work.create_dir("space");
        Ledger::create(&site.cluster);
        site.cluster.psql(&format!("create tablespace fast location '{}'", space.display()));
        site.cluster.psql("create table spread (a int) tablespace fast; insert into spread select generate_series(1, 5000)");
        site.walden.run(&["base-backup", "--fast"]).ok();
        let kept = Ledger::add(&site.cluster);
        site.cluster.psql("drop table spread; create table later (a int) tablespace fast");
        site.archive_a_segment();
        let dir = site.cluster.data_dir().to_path_buf();
        let text = dir.display().to_string();
        // A copy of the directory has links to the original's tablespaces: they are not its own.
        let copied = site.work.join("copied");
        // The server has crashed: its control file says "in production", and its lock file is still there.
        site.cluster.kill();
        run_script(&format!("cp -a '{text}' '{}'", copied.display())).ok();
        let arguments = ["recover", "--delta", "--until", &kept.after, "--data-dir"];
        let run = |dir: &Path, more: &[&str]| site.walden.run(&[&arguments[..], &[&dir.display().to_string()], more].concat());
        wait_until("its processes have ended", || !run(&copied, &[]).stderr.contains("a server runs in"));
        refused(run(&copied, &[]), "directory of tablespace");
        fs::write(space.join("note"), "another version's directory").expect("write");

        run(&dir, &[]).ok();
        assert!(space.join("note").exists(), "beside the tablespace's own directory nothing is removed");
        fs::remove_file(space.join("note")).expect("remove");
        verify(&pg, &dir);
        run(&dir, &["--start"]).ok();
        let mut cluster = Cluster::adopt(&pg, &dir);
        assert_eq!(cluster.psql("select count(*) from spread"), "5000");
        assert!(cluster.try_psql("select 1 from later").is_err());
        assert_eq!(Ledger::ids(&cluster), [kept.id]);
        cluster.stop(Stop::Fast);
        let root = site.work.join("spaces").display().to_string();
        run(&copied, &["--tablespace-root", &root, "--start"]).ok();
        let mut cluster = Cluster::adopt(&pg, &copied);
        assert_eq!(cluster.psql("select count(*) from spread"), "5000");
        let location = cluster.psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'");
        assert!(location.starts_with(&root), "{location}");
        cluster.stop(Stop::Fast);
        // Once more, over its own tablespaces.
        run(&copied, &["--tablespace-root", &root]).ok();
    }
);

live_test!(
    [15]
    fn what_belongs_to_somebody_else_is_refused_or_left_alone(pg: Installation) {
        let mut story = Story::tell(&pg, 1);
        let other = Cluster::create(&pg, &crate::support::ClusterOptions::default());
        refused(delta(&story, other.data_dir(), &["--until", "latest"]), "holds another cluster");
        let home = story.site.work.create_dir("home");
        fs::write(home.join("letter"), "dear").expect("write");
        refused(delta(&story, &home, &["--until", "latest"]), "is not a data directory");
        assert_eq!(fs::read_to_string(home.join("letter")).expect("read"), "dear");
        let original = story.site.cluster.data_dir().to_path_buf();
        refused(delta(&story, &original, &["--until", "latest"]), "a server runs in");

        // WAL that was not archived may be all there is of the last commits.
        story.site.cluster.stop(Stop::Fast);
        let ready = original.join("pg_wal/archive_status/0000000100000000000000FE.ready");
        fs::write(&ready, "").expect("write");
        refused(delta(&story, &original, &["--until", "latest"]), "wait to be archived");
        fs::remove_file(&ready).expect("remove");

        // A copy by hard links: writing to it would write to the original.
        let linked = story.target("linked");
        run_script(&format!("cp -al '{}' '{}'", original.display(), linked.display())).ok();
        let before = fingerprints(&original);
        delta(&story, &linked, &["--until", "latest"]).ok();
        assert!(fingerprints(&original) == before, "the original is as it was");

        // The original's WAL directory behind a copied link.
        let wal = story.site.work.create_dir("wal");
        fs::remove_dir_all(linked.join("pg_wal")).expect("remove");
        symlink(&wal, linked.join("pg_wal")).expect("link");
        refused(delta(&story, &linked, &["--until", "latest"]), "--wal-dir");
        fs::write(wal.join("0000000100000000000000FF"), "x").expect("write");
        delta(&story, &linked, &["--until", "latest", "--wal-dir", &wal.display().to_string()]).ok();
        assert!(!wal.join("0000000100000000000000FF").exists() && wal.join("archive_status").is_dir());
        user::give(&linked);
        let mut cluster = Cluster::open(&pg, &linked);
        cluster.start();
        cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
        assert_eq!(Ledger::ids(&cluster).len(), 7);
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    [14, 15, 18]
    fn commits_that_only_the_directory_itself_holds_are_not_removed(pg: Installation) {
        let mut story = Story::tell(&pg, 1);
        Ledger::add(&story.site.cluster);
        let last = Ledger::add(&story.site.cluster);
        let segment = story.site.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
        let dir = story.site.cluster.data_dir().to_path_buf();
        story.site.cluster.kill();
        let stopped = || !delta(&story, &dir, &["--until", "latest"]).stderr.contains("a server runs in");
        wait_until("its processes have ended", stopped);
        let before = fingerprints(&dir);
        let finished = delta(&story, &dir, &["--until", "latest"]);
        assert!(finished.stderr.contains("archived nowhere"), "{finished}");
        let command = format!("walden archive-push {}", dir.join("pg_wal").join(&segment).display());
        assert!(finished.stderr.contains(&command), "{finished}");
        // To the microsecond: PostgreSQL leaves zeros at the end out.
        let committed: jiff::Timestamp = last.committed.parse().expect("a time");
        refused(finished, &format!("the last of {}", committed.strftime("%Y-%m-%d %H:%M:%S.%6f+00")));
        assert!(fingerprints(&dir) == before, "nothing was written");

        // As the hint says.
        story.site.walden.run(&["archive-push", &dir.join("pg_wal").join(&segment).display().to_string()]).ok();
        delta(&story, &dir, &["--until", "latest"]).ok();
        let mut cluster = Cluster::open(&pg, &dir);
        cluster.start();
        cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
        assert_eq!(Ledger::ids(&cluster).len(), 9);
        cluster.stop(Stop::Fast);
    }
);
