//! A backup taken under load and a ledger of commits after it: what most of these tests begin with.

use std::fs;
use std::path::{Path, PathBuf};

use walden::codec::Opener;
use walden::index::IndexHandle;
use walden::recovery::catalog::system_identifiers;
use walden::recovery::plan::{Plan, Request, plan};
use walden::repository::Repository;

use crate::support::tools::{self, run_script};
use crate::support::{Background, Cluster, Entry, Finished, Installation, Ledger, Site, SiteOptions, Stop};

/// Plans as `recover` does, from the first listing on.
pub fn make_plan<'r>(
    request: &Request,
    repositories: &[&'r Repository],
    opener: &Opener,
    index: &IndexHandle,
) -> walden::kind::Result<Plan<'r>> {
    let known = system_identifiers(repositories, &request.cluster)?;
    plan(request, repositories, &known, opener, index)
}

/// A cluster with a backup taken under load and entries in the ledger after it.
pub struct Story {
    pub site: Site,
    pub pg: Installation,
    /// Committed before the backup began.
    pub before: Vec<Entry>,
    /// Committed after it had ended.
    pub after: Vec<Entry>,
}

impl Story {
    pub fn tell(pg: &Installation, scale: u32) -> Self {
        Self::tell_with(pg, scale, &SiteOptions::default())
    }

    pub fn tell_with(pg: &Installation, scale: u32, options: &SiteOptions) -> Self {
        let site = Site::with(pg, options);
        Ledger::create(&site.cluster);
        site.cluster.pgbench(&["-i", "-s", &scale.to_string(), "-q"]).ok();
        let before = vec![Ledger::add(&site.cluster), Ledger::add(&site.cluster)];
        let load = site.cluster.pgbench_background(&["-c", "2", "-T", "3000", "-n"]);
        site.cluster.wait_until("the load runs", || {
            site.cluster.psql("select count(*) > 20 from pgbench_history") == "t"
        });
        site.walden.run(&["base-backup", "--fast"]).ok();
        let mut after = Vec::new();
        for number in 0..5 {
            after.push(Ledger::add(&site.cluster));
            if number == 2 {
                site.cluster.psql("select pg_create_restore_point('between')");
            }
        }
        site.cluster
            .psql("drop table if exists ledger_copy; create table ledger_copy as select * from ledger");
        load.signal(nix::sys::signal::Signal::SIGTERM);
        site.archive_a_segment();
        Self { site, pg: pg.clone(), before, after }
    }

    pub fn target(&self, name: &str) -> PathBuf {
        self.site.work.join(name)
    }

    pub fn recover(&self, name: &str, arguments: &[&str]) -> Finished {
        let dir = self.target(name).display().to_string();
        self.site.walden.run(&[&["recover", "--data-dir", &dir], arguments].concat())
    }

    /// Starts a recovery beside the test.
    pub fn recovering(&self, name: &str, arguments: &[&str]) -> Background {
        let dir = self.target(name).display().to_string();
        self.site.walden.spawn(&[&["recover", "--data-dir", &dir], arguments].concat())
    }

    /// Recovers and starts, returns the server.
    #[track_caller]
    pub fn recover_and_start(&self, name: &str, arguments: &[&str]) -> Cluster {
        self.recover(name, &[&["--start"], arguments].concat()).ok();
        Cluster::adopt(&self.pg, &self.target(name))
    }

    /// Recovers, and holds the ledger against what should be in it: everything before the backup and the first
    /// `expected` entries after it.
    #[track_caller]
    pub fn expect(&self, name: &str, arguments: &[&str], expected: usize) {
        let mut cluster = self.recover_and_start(name, arguments);
        let ids: Vec<i64> = self.before.iter().chain(&self.after[..expected]).map(|entry| entry.id).collect();
        assert_eq!(Ledger::ids(&cluster), ids, "{arguments:?}");
        assert_eq!(cluster.psql("select pg_is_in_recovery()"), "f");
        check_pgbench(&cluster);
        cluster.stop(Stop::Fast);
        fs::remove_dir_all(self.target(name)).expect("remove");
    }
}

/// Has `pg_verifybackup` judge a restored directory in which no server has run yet.
#[track_caller]
pub fn verify(pg: &Installation, dir: &Path) {
    if let Some(judge) = tools::pg_verifybackup(pg.major) {
        run_script(&format!("{} -n {}", judge.display(), dir.display())).ok();
    }
}

/// The sums of pgbench's tables agree in every consistent state.
#[track_caller]
pub fn check_pgbench(cluster: &Cluster) {
    let sums = cluster.psql(
        "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
            and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)
            and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)",
    );
    assert_eq!(sums, "t");
}
