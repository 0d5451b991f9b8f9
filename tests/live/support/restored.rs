//! Directories that were restored from a site's archive, and what may happen to the archive meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::cluster::{Cluster, Stop};
use super::ledger::Ledger;
use super::postgres::Installation;
use super::site::{Site, SiteOptions};
use super::{user, wait_until};

const REPOSITORIES: [&str; 2] = ["primary", "replica"];

impl Site {
    /// Returns a site with a ledger and a base backup.
    #[track_caller]
    pub fn with_backup(pg: &Installation) -> Self {
        Self::with_backup_and(pg, &SiteOptions::default())
    }

    /// Returns a site as asked, with a ledger of one entry and a base backup.
    #[track_caller]
    pub fn with_backup_and(pg: &Installation, options: &SiteOptions) -> Self {
        let site = Self::with(pg, options);
        Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        site
    }

    /// Archives `count` segments with an entry of the ledger in each; returns the segments' names.
    pub fn fill(&self, count: usize) -> Vec<String> {
        let one = |_| {
            Ledger::add(&self.cluster);
            self.archive_a_segment()
        };
        (0..count).map(one).collect()
    }

    /// Restores without starting, unless told to; returns the directory.
    #[track_caller]
    pub fn restore(&self, name: &str, more: &[&str]) -> PathBuf {
        let dir = self.work.join(name);
        let target = dir.display().to_string();
        self.walden.run(&[&["recover", "--data-dir", &target], more].concat()).ok();
        dir
    }

    /// Restores a standby that takes its WAL from the archive and follows the latest timeline.
    #[track_caller]
    pub fn standby(&self, pg: &Installation, name: &str) -> Cluster {
        let dir = self.restore(name, &["--until", "latest"]);
        fs::remove_file(dir.join("recovery.signal")).expect("remove");
        make_standby(&dir);
        set(&dir, "recovery_target_timeline = 'latest'\nwal_retrieve_retry_interval = '200ms'");
        Cluster::open(pg, &dir)
    }

    /// Takes both repositories away.
    pub fn take_away(&self) {
        for name in REPOSITORIES {
            fs::rename(self.repository(name), self.work.join(format!("{name}-away"))).expect("rename");
        }
    }

    /// Brings them back.
    pub fn bring_back(&self) {
        for name in REPOSITORIES {
            fs::rename(self.work.join(format!("{name}-away")), self.repository(name)).expect("rename");
        }
    }

    /// Returns every object whose name begins with `name`.
    pub fn copies(&self, name: &str) -> Vec<PathBuf> {
        REPOSITORIES.into_iter().flat_map(|repository| self.wal_objects(repository, name)).collect()
    }

    /// Renames what is archived under names that begin with `name` out of the way.
    pub fn hide(&self, name: &str) {
        for object in self.copies(name) {
            fs::rename(&object, format!("{}.aside", object.display())).expect("rename");
        }
    }

    /// Brings back what was hidden.
    pub fn show(&self, name: &str) {
        for object in self.copies(name) {
            fs::rename(&object, object.display().to_string().replace(".aside", "")).expect("rename");
        }
    }

    /// Removes what is archived under names that begin with `name`.
    pub fn lose(&self, name: &str) {
        for object in self.copies(name) {
            fs::remove_file(object).expect("remove");
        }
    }

    /// Makes a segment look as if it had been archived an hour ago: it is no longer in flight.
    pub fn make_old(&self, name: &str) {
        for object in self.copies(name) {
            let file = fs::File::options().write(true).open(&object).expect("open");
            file.set_modified(SystemTime::now() - Duration::from_hours(1)).expect("set time");
        }
    }

    /// Flips a bit in the middle of a segment's copy in a repository. A second time it is as it was.
    pub fn damage(&self, repository: &str, name: &str) {
        for object in self.wal_objects(repository, name) {
            let mut bytes = fs::read(&object).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&object, bytes).expect("write");
        }
    }

    /// Writes a restore command of which `script` is a part: it runs before the real one, which it may prevent.
    pub fn restore_script(&self, name: &str, script: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let get = self.walden.command_line("archive-get \"$1\" \"$2\"");
        let path = self.work.write(name, format!("#!/bin/sh\n{script}\nexec {get}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    }
}

/// Appends settings to postgresql.auto.conf; they win over those before them.
pub fn set(dir: &Path, lines: &str) {
    let path = dir.join("postgresql.auto.conf");
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, format!("{text}{lines}\n")).expect("write");
}

/// Makes a standby of the server in this directory at its next start.
pub fn make_standby(dir: &Path) {
    fs::write(dir.join("standby.signal"), "").expect("write");
    user::give(&dir.join("standby.signal"));
}

/// Starts a server and waits until it has left recovery.
#[track_caller]
pub fn start_and_promote(pg: &Installation, dir: &Path) -> Cluster {
    let mut cluster = Cluster::open(pg, dir);
    cluster.start();
    cluster.wait_until("the server has promoted", || !in_recovery(&cluster));
    cluster
}

/// Returns whether the server is in recovery.
pub fn in_recovery(cluster: &Cluster) -> bool {
    cluster.psql("select pg_is_in_recovery()") == "t"
}

/// Runs a restored server until it stops by itself; returns what it said meanwhile.
#[track_caller]
pub fn run_to_its_end(pg: &Installation, dir: &Path) -> String {
    let mut cluster = Cluster::open(pg, dir);
    cluster.launch();
    wait_until("the server has stopped by itself", || !cluster.is_running());
    cluster.log()
}

/// A cluster that was recovered to the middle of a segment and went on as timeline 2, while timeline 1 went on too.
pub struct Fork {
    pub site: Site,
    /// The segment of the fork, on timeline 1.
    pub parents: String,
    /// And on timeline 2.
    pub childs: String,
    /// What timeline 2 has in its ledger.
    pub ids: Vec<i64>,
}

impl Fork {
    #[track_caller]
    pub fn make(pg: &Installation) -> Self {
        let site = Site::with_backup(pg);
        site.fill(1);
        let target = Ledger::add(&site.cluster);
        Ledger::add(&site.cluster);
        let parents = site.archive_a_segment();
        let dir = site.restore("promoted", &["--until", &format!("lsn:{}", target.lsn), "--take-over"]);
        let mut promoted = start_and_promote(pg, &dir);
        Ledger::add(&promoted);
        let childs = promoted.switch_wal();
        promoted.wait_archived(&childs);
        let ids = Ledger::ids(&promoted);
        promoted.stop(Stop::Fast);
        assert_eq!(childs, parents.replacen("00000001", "00000002", 1), "the fork is in one segment");
        site.fill(1);
        Self { site, parents, childs, ids }
    }
}
