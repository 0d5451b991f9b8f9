//! Backups that break off at any moment: nothing that anybody would use is left, and the next one cleans up.

use super::*;
use crate::backup::stored::{amcheck, complete, folders, wait_for_no_session};
use crate::support::{Ledger, PATIENCE, Site, soak, wait_until};
use nix::sys::signal::Signal;
use std::time::Duration;

live_test!(
    [14, 17]
    fn killed_at_any_moment_a_backup_is_whole_or_none(pg: Installation) {
        let rounds = if soak() { 100 } else { 6 };
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        site.cluster.pgbench(&["-i", "-s", "2", "-q"]);
        let load = site.cluster.pgbench_background(&["-n", "-c", "1", "-R", "50", "-T", "3600"]);
        let mut resumed = 0;
        for round in 0..rounds {
            let more: &[&str] = if fastrand::bool() { &["--resume"] } else { &[] };
            let arguments = [&["base-backup", "--fast", "--parallel", "32", "--max-rate", "40M"], more].concat();
            let backup = site.walden.spawn(&arguments);
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..1500)));
            let signal = if round % 3 == 0 { Signal::SIGTERM } else { Signal::SIGKILL };
            backup.signal(signal);
            let ended = backup.wait(PATIENCE);
            resumed += u32::from(ended.stderr.contains("going on with backup"));
            wait_for_no_session(&site.cluster);
            for repository in ["primary", "replica"] {
                complete(&site, repository);
            }
        }
        eprintln!("{resumed} of {rounds} attempts went on with another");
        site.walden.run(&["base-backup", "--fast"]).ok();
        for repository in ["primary", "replica"] {
            let whole = complete(&site, repository).len();
            assert_eq!(folders(&site, repository).len(), whole, "what broke off is gone");
        }
        load.signal(Signal::SIGTERM);
        let _ = load.wait(PATIENCE);
        let last = Ledger::add(&site.cluster);
        site.archive_a_segment();
        // Whatever backup is there can be recovered from.
        let (oldest, _) = complete(&site, "primary").remove(0);
        let target = site.work.join("restored");
        let dir = target.display().to_string();
        let recover = ["recover", "--until", "latest", "--backup", &oldest.id, "--data-dir", &dir, "--start"];
        site.walden.run(&recover).ok();
        let mut copy = Cluster::adopt(&pg, &target);
        assert_eq!(Ledger::ids(&copy), [last.id]);
        let balance = "select sum(abalance) from pgbench_accounts";
        assert_eq!(copy.psql(balance), copy.psql("select coalesce(sum(delta), 0) from pgbench_history"));
        amcheck(&copy);
        copy.stop(Stop::Fast);
    }
);

live_test!(
    [15]
    fn a_server_or_a_repository_that_goes_away_ends_it_with_its_code(pg: Installation) {
        let mut site = Site::new(&pg);
        crate::backup::resume::fill(&site, 12);
        let slow = ["base-backup", "--fast", "--parallel", "64", "--max-rate", "8M"];
        let begin = |site: &Site| {
            let lines = crate::backup::stored::journal_lines(site);
            let backup = site.walden.spawn(&slow);
            wait_until("pieces are stored", || crate::backup::stored::journal_lines(site) > lines + 2);
            backup
        };
        let backup = begin(&site);
        for name in ["primary", "replica"] {
            fs::rename(site.repository(name), site.work.join(format!("{name}-away"))).expect("rename");
        }
        let ended = backup.wait(PATIENCE).expect_code(4);
        assert!(ended.stderr.contains("--resume goes on"), "{ended}");
        wait_for_no_session(&site.cluster);
        for name in ["primary", "replica"] {
            fs::rename(site.work.join(format!("{name}-away")), site.repository(name)).expect("rename");
        }
        let backup = begin(&site);
        site.cluster.stop(Stop::Fast);
        backup.wait(PATIENCE).expect_code(7);
        site.cluster.start();
        assert!(complete(&site, "primary").is_empty() && complete(&site, "replica").is_empty());
        site.walden.run(&["base-backup", "--fast", "--resume"]).ok();
        assert_eq!((complete(&site, "primary").len(), folders(&site, "primary").len()), (1, 1));
    }
);
