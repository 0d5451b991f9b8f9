//! The files: whole or not there at all, wherever an object is missing and whenever a restore breaks off.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::story::{Story, verify};
use crate::support::{Cluster, ClusterOptions, Ledger, Site, SiteOptions, Stop, live_test, user};

live_test!(
    [15, 18]
    fn tablespaces_go_where_they_are_told_and_never_onto_the_original(pg: Installation) {
        let site = Site::new(&pg);
        let space = site.work.create_dir("space");
        site.cluster.psql(&format!("create tablespace fast location '{}'", space.display()));
        site.cluster.psql("create table spread (a int) tablespace fast; insert into spread select generate_series(1, 5000)");
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.cluster.psql("insert into spread values (0)");
        site.archive_a_segment();
        let target = site.work.join("restored");
        let dir = target.display().to_string();
        let refused = site.walden.run(&["recover", "--until", "latest", "--data-dir", &dir]);
        assert!(refused.code == 7 && refused.stderr.contains("tablespace"), "{refused}");
        assert!(!target.join("PG_VERSION").exists(), "nothing was written");
        let root = site.work.join("spaces");
        fs::create_dir(&root).expect("create");
        user::give(&root);
        let arguments =
            ["recover", "--until", "latest", "--data-dir", &dir, "--tablespace-root", &root.display().to_string(), "--start"];
        site.walden.run(&arguments).ok();
        let mut cluster = Cluster::adopt(&pg, &target);
        assert_eq!(cluster.psql("select count(*) from spread"), "5001");
        let location = cluster.psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'");
        assert!(Path::new(&location).starts_with(&root), "{location}");
        cluster.stop(Stop::Fast);
        assert_eq!(site.cluster.psql("select count(*) from spread"), "5001");
    }
);

live_test!(
    [15]
    fn with_a_repository_gone_recover_says_what_cannot_be_proven_and_works_without_it(pg: Installation) {
        let story = Story::tell(&pg, 1);
        for gone in ["primary", "replica"] {
            fs::rename(story.site.repository(gone), story.site.work.join("away")).expect("rename");
            let refused = story.recover("refused", &["--until", "latest"]).expect_code(4);
            assert!(refused.stderr.contains(&format!("--without {gone}")), "{refused}");
            assert!(!story.target("refused").exists());
            story.expect(gone, &["--until", "latest", "--without", gone], 5);
            fs::rename(story.site.work.join("away"), story.site.repository(gone)).expect("rename");
        }
        story.recover("none", &["--until", "latest", "--without", "primary", "--without", "replica"]).expect_code(2);
        story.recover("none", &["--until", "latest", "--without", "nonsense"]).expect_code(2);
    }
);

live_test!(
    [15]
    fn a_damaged_piece_is_taken_from_the_other_repository(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let mut pieces = Vec::new();
        crate::support::site::walk(&story.site.repository("primary"), &mut pieces);
        pieces.retain(|path| path.parent().is_some_and(|dir| dir.ends_with("data")));
        for piece in &pieces {
            let mut bytes = fs::read(piece).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(piece, bytes).expect("write");
        }
        story.expect("mended", &["--until", "latest"], 5);
        let refused = story.recover("refused", &["--until", "latest", "--without", "replica"]).expect_code(6);
        assert!(refused.stderr.contains("data/"), "{refused}");
        let refused = Cluster::open(&pg, &story.target("refused")).try_start();
        assert!(refused.is_err(), "half a restore does not start");
    }
);

live_test!(
    [15]
    fn wal_goes_where_it_is_told_with_a_link_in_its_place(pg: Installation) {
        let story = Story::tell(&pg, 1);
        let wal = story.target("wal");
        let option = wal.display().to_string();
        let inside = story.target("copy/pg_wal2").display().to_string();
        story.recover("copy", &["--until", "latest", "--wal-dir", &inside]).expect_code(2);
        let full = story.site.work.create_dir("full");
        fs::write(full.join("file"), "x").expect("write");
        story.recover("copy", &["--until", "latest", "--wal-dir", &full.display().to_string()]).expect_code(7);
        assert!(!story.target("copy").exists(), "nothing was written");

        let mut cluster = story.recover_and_start("copy", &["--until", "latest", "--wal-dir", &option]);
        assert_eq!(fs::read_link(story.target("copy/pg_wal")).expect("a link"), wal);
        let current = cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
        assert!(wal.join(current).exists());
        cluster.stop(Stop::Fast);
        let owner = |path: &Path| fs::metadata(path).map(|meta| (meta.uid(), meta.gid(), meta.mode() & 0o777));
        let of_original = owner(&story.site.cluster.data_dir().join("pg_wal")).expect("metadata");
        assert_eq!(owner(&wal).expect("metadata"), of_original);
        assert_eq!(owner(&story.target("copy")).expect("metadata"), owner(story.site.cluster.data_dir()).expect("metadata"));

        // It remains so: over a link to its own directory, and for one that is to be elsewhere.
        let other = story.target("other").display().to_string();
        story.recover("copy", &["--until", "latest", "--delta"]).expect_code(7);
        story.recover("copy", &["--until", "latest", "--delta", "--wal-dir", &option]).ok();
        let mut cluster = story.recover_and_start("copy", &["--until", "latest", "--delta", "--wal-dir", &other]);
        assert_eq!(fs::read_link(story.target("copy/pg_wal")).expect("a link"), story.target("other"));
        assert_eq!(Ledger::ids(&cluster).len(), 7);
        cluster.stop(Stop::Fast);
        story.recover("copy", &["--until", "latest", "--delta", "--wal-dir", &other]).ok();
        verify(&pg, &story.target("copy"));
    }
);

/// Returns owner, group and permissions of everything below a data directory whose name does not change while a server runs.
fn attributes(dir: &Path) -> BTreeMap<PathBuf, (u32, u32, u32)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).expect("metadata");
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("read").flatten().map(|entry| entry.path()));
        }
        let name = path.strip_prefix(dir).expect("below").to_path_buf();
        found.insert(name, (meta.uid(), meta.gid(), meta.mode()));
    }
    found
}

live_test!(
    fn owners_and_permissions_are_those_of_the_original(pg: Installation) {
        let cluster =
            ClusterOptions { initdb_args: vec!["--allow-group-access".into()], ..ClusterOptions::default() };
        let site = Site::with_backup_and(&pg, &SiteOptions { cluster, ..SiteOptions::default() });
        site.archive_a_segment();
        let dir = site.work.join("copy");
        site.restore("copy", &["--until", "latest"]);
        let (original, copy) = (attributes(site.cluster.data_dir()), attributes(&dir));
        assert_eq!(copy[Path::new("")].2 & 0o7777, 0o750);
        let same = |name: &Path| original.get(name) == Some(&copy[name]);
        let other: Vec<&PathBuf> =
            copy.keys().filter(|name| original.contains_key(*name) && !same(name)).collect();
        // Written for the copy.
        assert!(other.iter().all(|name| **name == Path::new("postgresql.auto.conf")), "{other:?}");
        assert!(
            copy.len() > 900
                && copy
                    .values()
                    .all(|(uid, gid, _)| (*uid, *gid) == (copy[Path::new("")].0, copy[Path::new("")].1))
        );
        verify(&pg, &dir);
    }
);

live_test!(
    [14, 18]
    fn tablespaces_come_back_where_they_were_once_the_original_is_gone(pg: Installation) {
        let mut site = Site::new(&pg);
        let space = site.work.create_dir("space");
        Ledger::create(&site.cluster);
        site.cluster.psql(&format!("create tablespace fast location '{}'", space.display()));
        site.cluster.psql("alter table ledger set tablespace fast");
        site.walden.run(&["base-backup", "--fast"]).ok();
        let kept = Ledger::add(&site.cluster);
        site.archive_a_segment();
        site.cluster.stop(Stop::Fast);
        fs::rename(&space, site.work.join("lost")).expect("rename");
        fs::rename(site.cluster.data_dir(), site.work.join("lost-data")).expect("rename");
        let dir = site.restore("copy", &["--until", "latest"]);
        verify(&pg, &dir);
        let mut cluster = Cluster::open(&pg, &dir);
        cluster.start();
        cluster.wait_until("the server has promoted", || cluster.psql("select pg_is_in_recovery()") == "f");
        assert_eq!(Ledger::ids(&cluster), [kept.id]);
        let location = cluster.psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'");
        assert_eq!(location, space.display().to_string());
        cluster.stop(Stop::Fast);
    }
);
