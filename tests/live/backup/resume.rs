//! Backups that broke off and are continued.

use super::stored::{
    amcheck, complete, folders, journal_lines, journaled_bytes, json, verify_by_hand, wait_for_no_session,
};
use super::*;
use crate::support::{Background, Ledger, PATIENCE, Site, wait_for, wait_until};
use nix::sys::signal::Signal;
use std::time::{Duration, SystemTime};

/// Fills a table that nobody touches any more, in partitions that each fit into a small piece, and waits until its files
/// are settled.
pub fn fill(site: &Site, partitions: u32) {
    let rows = partitions * 5_000;
    site.cluster.psql(&format!(
        "create table quiet (g int, t text) partition by hash (g);
         select format('create table quiet_%s partition of quiet for values with (modulus {partitions}, remainder %s)', n, n)
         from generate_series(0, {partitions} - 1) n \\gexec
         insert into quiet select g, repeat(md5(g::text), 8) from generate_series(1, {rows}) g;
         create index on quiet_0 (g);
         vacuum (freeze, analyze) quiet;
         checkpoint;"
    ));
    let paths = site.cluster.psql("select pg_relation_filepath(oid) from pg_class where relname ~ '^quiet_'");
    let is_settled = |path: &str| {
        let changed = fs::metadata(site.cluster.data_dir().join(path)).and_then(|meta| meta.modified());
        changed.is_ok_and(|at| {
            SystemTime::now().duration_since(at).is_ok_and(|age| age > Duration::from_secs(7))
        })
    };
    wait_until("the table is settled", || paths.lines().all(is_settled));
}

/// Begins a backup of small pieces and kills it once so many of them are stored.
pub fn kill_at(site: &Site, pieces: usize, more: &[&str]) {
    let before = journal_lines(site);
    kill_when(site, more, || journal_lines(site) > before + pieces);
}

/// Begins a backup of small pieces and kills it once `is_time`.
fn kill_when(site: &Site, more: &[&str], is_time: impl Fn() -> bool) {
    let arguments = [&["base-backup", "--fast", "--parallel", "64", "--max-rate", "20M"], more].concat();
    let mut backup: Background = site.walden.spawn(&arguments);
    let reached = wait_for(PATIENCE, || is_time() || !backup.is_running());
    assert!(reached && backup.is_running(), "{}", backup.stderr());
    backup.signal(Signal::SIGKILL);
    backup.wait(PATIENCE);
}

const RESUME: [&str; 7] = ["base-backup", "--fast", "--parallel", "64", "--resume", "--output", "json"];

live_test!(
    fn a_killed_backup_goes_on_with_what_has_not_changed(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        fill(&site, 40);
        let first = Ledger::add(&site.cluster);
        // More than all that is not of the quiet table, and so may be read again.
        kill_when(&site, &["--note", "kept"], || journaled_bytes(&site) > 8 << 20);
        wait_for_no_session(&site.cluster);
        assert!(complete(&site, "primary").is_empty());
        let half: Vec<String> = folders(&site, "primary").into_keys().collect();
        assert_eq!(half.len(), 1);
        let listed = site.walden.run(&["list"]).ok();
        assert!(listed.stdout.contains("There is no backup"), "{listed}");

        // What is changed meanwhile is read again.
        site.cluster.psql("create table later as select 1; update ledger set at = at");
        let second = Ledger::add(&site.cluster);
        let resumed = json(&site.walden.run(&RESUME).ok());
        assert_eq!(resumed["id"], half[0].as_str());
        assert_eq!(resumed["note"], "kept");
        let (reused, stored) =
            (resumed["reused"].as_u64().unwrap(), resumed["stored_size"].as_u64().unwrap());
        assert!(reused * 5 > stored, "{reused} of {stored} bytes are reused");
        assert_eq!(journal_lines(&site), 0, "the journal is gone");

        let third = Ledger::add(&site.cluster);
        site.archive_a_segment();
        for repository in ["primary", "replica"] {
            let [(summary, folder)] = &complete(&site, repository)[..] else { panic!("one backup") };
            assert_eq!(summary.id, half[0]);
            verify_by_hand(&site, &pg, folder);
        }
        let target = site.work.join("restored");
        let dir = target.display().to_string();
        site.walden.run(&["recover", "--until", "latest", "--data-dir", &dir, "--start"]).ok();
        let mut copy = Cluster::adopt(&pg, &target);
        assert_eq!(Ledger::ids(&copy), [first.id, second.id, third.id]);
        let sum = "select count(*), sum(g), count(distinct t) from quiet";
        assert_eq!(copy.psql(sum), site.cluster.psql(sum));
        assert_eq!(copy.psql("select * from later"), "1");
        amcheck(&copy);
        copy.stop(Stop::Fast);
    }
);

live_test!(
    [16]
    fn it_may_break_off_again_over_a_restart_of_the_server_and_with_an_empty_repository(pg: Installation) {
        let mut site = Site::new(&pg);
        Ledger::create(&site.cluster);
        fill(&site, 50);
        kill_at(&site, 8, &[]);
        let id = folders(&site, "primary").into_keys().next().expect("a folder");
        // What one repository lacks of the first attempt, the other one gives.
        fs::remove_dir_all(&folders(&site, "replica")[&id]).expect("remove");
        site.cluster.stop(Stop::Immediate);
        site.cluster.start();
        Ledger::add(&site.cluster);
        kill_at(&site, 8, &["--resume"]);
        assert!(folders(&site, "primary").into_keys().eq([id.clone()]));
        site.cluster.psql("delete from quiet where g < 10; checkpoint");
        let resumed = json(&site.walden.run(&RESUME).ok());
        assert_eq!(resumed["id"], id.as_str());
        site.archive_a_segment();
        for repository in ["primary", "replica"] {
            let [(summary, folder)] = &complete(&site, repository)[..] else { panic!("one backup") };
            assert_eq!(summary.id, id);
            verify_by_hand(&site, &pg, folder);
        }
        let target = site.work.join("restored");
        let dir = target.display().to_string();
        site.walden.run(&["recover", "--until", "latest", "--data-dir", &dir, "--start"]).ok();
        let mut copy = Cluster::adopt(&pg, &target);
        let sum = "select count(*), min(g), sum(g) from quiet";
        assert_eq!(copy.psql(sum), site.cluster.psql(sum));
        amcheck(&copy);
        copy.stop(Stop::Fast);
    }
);

live_test!(
    [15]
    fn what_cannot_be_continued_is_begun_anew_and_removed(pg: Installation) {
        let site = Site::new(&pg);
        fill(&site, 12);
        // There is none.
        let fresh = site.walden.run(&["base-backup", "--fast", "--resume"]).ok();
        assert!(fresh.stderr.contains("no broken-off backup can be continued: there is none"), "{fresh}");
        // It would not be the newest.
        kill_at(&site, 3, &[]);
        let half = folders(&site, "primary").into_iter().filter(|(_, folder)| !folder.join("backup.json").exists());
        let half: Vec<String> = half.map(|(id, _)| id).collect();
        assert_eq!(half.len(), 1);
        let whole = site.walden.run(&["base-backup", "--fast"]).ok();
        assert!(whole.stderr.contains(&format!("removed what the broken-off backup {} left", half[0])), "{whole}");
        for repository in ["primary", "replica"] {
            assert!(!folders(&site, repository).contains_key(&half[0]));
            assert_eq!(complete(&site, repository).len(), 2);
        }
        assert_eq!(journal_lines(&site), 0);
        // Nobody may delete: nothing but a warning.
        kill_at(&site, 3, &[]);
        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        let alone = site.walden.run(&["base-backup", "--fast"]);
        assert_eq!(alone.code, 4, "{alone}");
        assert_eq!(folders(&site, "primary").len(), 4, "with a repository away nothing is removed");
    }
);
