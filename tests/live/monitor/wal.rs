//! The rules about WAL: what is not archived yet, what is missing, what cannot be read.

use super::*;

live_test!(
    [16]
    fn commits_that_are_not_archived_are_told_and_so_is_a_record_that_cannot_be_read(pg: Installation) {
        let site = Site::with_backup(&pg);
        site.archive_a_segment();
        configure(&site, "[status]\nunarchived_warning = \"1s\"\nunarchived_critical = \"90m\"");
        says(&site, "unarchived", SILENT);
        says(&site, "bad-wal", SILENT);
        archive(&site, false);
        Ledger::add(&site.cluster);
        comes_to_say(&site, "unarchived", "warning");
        configure(&site, "[status]\nunarchived_warning = \"1s\"\nunarchived_critical = \"2s\"");
        comes_to_say(&site, "unarchived", "critical");

        // A bit of a segment that waits flips, as on a bad disk.
        site.cluster.psql("create table t as select generate_series(1, 1000)");
        let segment = site.cluster.switch_wal();
        let path = site.cluster.data_dir().join("pg_wal").join(&segment);
        let mut bytes = fs::read(&path).expect("read");
        bytes[60_000] ^= 1;
        fs::write(&path, bytes).expect("write");
        archive(&site, true);
        site.cluster.wait_archived(&segment);
        says(&site, "unarchived", SILENT);
        says(&site, "bad-wal", "critical");
        back_up(&site);
        says(&site, "bad-wal", SILENT);
    }
);

/// Lets the server archive, or makes every attempt fail.
pub(super) fn archive(site: &Site, works: bool) {
    let command = if works { site.walden.command_line("archive-push %p") } else { "false".to_owned() };
    site.cluster.set("archive_command", command);
    site.cluster.reload();
}

live_test!(
    [16]
    fn a_segment_that_is_lost_everywhere_is_a_gap_and_how_bad_depends_on_the_window(pg: Installation) {
        let site = Site::with_backup(&pg);
        let lost = site.fill(3).remove(1);
        says(&site, "gap", SILENT);
        site.lose(&lost);
        // Nothing behind it can be reached. A later backup is a way past it.
        says(&site, "gap", "critical");
        back_up(&site);
        says(&site, "gap", "warning");
        configure(&site, "[retention]\nwindow = \"7d\"");
        says(&site, "gap", "critical");
        // The window moves on with what is archived, and leaves the gap behind.
        configure(&site, "[retention]\nwindow = \"1s\"");
        wait_until("the gap lies behind the window", || {
            site.fill(1);
            state(&site, "gap", "", &[]) == "info"
        });
        says(&site, "gap", "info");
    }
);
