//! The rules about base backups: how old, how large, how sound, how many.

use std::io::{Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use super::*;
use crate::support::Stop;

live_test!(
    [15]
    fn backups_that_are_old_or_small_or_hold_bad_pages_are_told(pg: Installation) {
        let mut site = Site::new(&pg);
        site.cluster.psql("create table big as select repeat('x', 500) || g as a from generate_series(1, 200000) g");
        says(&site, "backup-age", "critical");
        back_up(&site);
        says(&site, "backup-age", SILENT);
        configure(&site, "[status]\nbackup_age = \"1s\"");
        comes_to_say(&site, "backup-age", "critical");

        configure(&site, ENOUGH);
        says(&site, "backup-size", SILENT);
        site.cluster.psql("drop table big");
        site.cluster.psql("checkpoint");
        back_up(&site);
        says(&site, "backup-age", SILENT);
        says(&site, "backup-size", "warning");
        configure(&site, "[status]\nbackup_size = 1");
        says(&site, "backup-size", SILENT);

        site.cluster.psql("create table t as select generate_series(1, 10000) a; checkpoint");
        says(&site, "bad-pages", SILENT);
        let file = site.cluster.data_dir().join(site.cluster.psql("select pg_relation_filepath('t')"));
        site.cluster.stop(Stop::Fast);
        flip(&file, 8192 + 4000);
        site.cluster.start();
        site.walden.run(&["base-backup", "--fast"]).expect_code(6);
        says(&site, "bad-pages", "critical");
        // A sound backup is what ends it.
        site.cluster.psql("drop table t; checkpoint");
        back_up(&site);
        says(&site, "bad-pages", SILENT);
    }
);

/// Flips a bit of a file.
fn flip(file: &Path, at: u64) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(file).expect("open");
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut byte)).expect("read");
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&[byte[0] ^ 1])).expect("write");
}

live_test!(
    [17]
    fn a_promise_of_the_retention_that_is_not_kept_is_told(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        back_up(&site);
        site.fill(1);
        let month = 24 * 30;
        configure(&site, "[retention]\nkeep_daily = 30");
        says(&site, "retention", SILENT);
        would_say_after_hours(&site, month, "retention", "warning");
        configure(&site, "[retention]\nkeep_last = 3");
        would_say_after_hours(&site, month, "retention", SILENT);

        // A backup that reached back far enough is lost: what is left reaches less far than the window.
        configure(&site, "[status]\nbackup_age = \"1s\"\n[retention]\nwindow = \"5s\"");
        let began = Instant::now();
        let id = backups(&site).remove(0);
        wait_until("the cluster is old enough for a window, and has one", || {
            site.fill(1);
            began.elapsed() > Duration::from_secs(8) && state(&site, "retention", "", &[]) == SILENT
        });
        back_up(&site);
        for repository in ["primary", "replica"] {
            for dir in backups_in(&site, repository).into_iter().filter(|dir| dir.ends_with(&id)) {
                fs::remove_dir_all(dir).expect("remove");
            }
        }
        says(&site, "retention", "warning");
        wait_until("the new backup reaches as far back", || {
            site.fill(1);
            state(&site, "retention", "", &[]) == SILENT
        });
    }
);

live_test!(
    [15]
    fn backups_that_expire_left_for_long_are_mentioned_and_pinned_ones_are_not(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        for _ in 0..3 {
            site.fill(1);
            back_up(&site);
        }
        let first = backups(&site).remove(0);
        configure(&site, &format!("{ENOUGH}expire_overdue = \"1s\"\n[retention]\nkeep_last = 1"));
        // Another segment makes a second pass for the store too, whose times are the ones that count.
        wait_until("they are left for a second", || {
            site.fill(1);
            state(&site, "expire-overdue", "", &[]) == "info"
        });
        says(&site, "expire-overdue", "info");
        assert_eq!(monitor(&site).code, 0, "an info leaves the verdict");
        site.walden.run(&["pin", &first]).ok();
        site.walden.run(&["expire"]).ok();
        says(&site, "expire-overdue", SILENT);
    }
);
