//! What can be asked of a backup: label, note, rate, checkpoint, and how long its WAL is waited for.

use super::stored::{complete, folders, json};
use super::*;
use crate::support::{Site, SiteOptions};
use std::time::Instant;

live_test!(
    [14, 18]
    fn label_and_note_are_where_they_are_looked_for(pg: Installation) {
        let site = Site::new(&pg);
        let label = "it's \"before\" the ümlaut";
        let told = ["base-backup", "--fast", "--label", label, "--note", "a remark", "--output", "json"];
        let report = json(&site.walden.run(&told).ok());
        assert_eq!((&report["label"], &report["note"]), (&label.into(), &"a remark".into()));
        let listed = site.walden.run(&["list"]).ok().stdout;
        assert!(listed.contains(label) && listed.contains("a remark"), "{listed}");
        let dir = site.work.join("restored");
        site.archive_a_segment();
        let recover = ["recover", "--until", "immediate", "--data-dir", dir.to_str().unwrap()];
        site.walden.run(&recover).ok();
        let file = fs::read_to_string(dir.join("backup_label")).expect("backup_label");
        assert!(file.contains(&format!("LABEL: {label}\n")), "{file}");
        site.walden.run(&["base-backup", "--fast", "--label", "two\nlines"]).expect_code(2);
    }
);

live_test!(
    [14, 17]
    fn the_checkpoint_is_spread_unless_it_is_to_be_fast(pg: Installation) {
        let cluster = ClusterOptions::default()
            .setting("log_checkpoints", "on")
            .setting("checkpoint_timeout", "30s")
            .setting("checkpoint_completion_target", "0.01");
        let site = Site::with(&pg, &SiteOptions { cluster, ..SiteOptions::default() });
        let began = |at_once: bool| {
            let log = site.cluster.log();
            let begun = log.lines().filter(|line| line.contains("checkpoint starting: "));
            begun.filter(|line| line.contains("force wait") && line.contains("immediate") == at_once).count()
        };
        let (spread, at_once) = (began(false), began(true));
        site.walden.run(&["base-backup"]).ok();
        assert_eq!((began(false), began(true)), (spread + 1, at_once), "{}", site.cluster.log_tail());
        site.walden.run(&["base-backup", "--fast"]).ok();
        assert_eq!((began(false), began(true)), (spread + 1, at_once + 1), "{}", site.cluster.log_tail());
    }
);

live_test!(
    [15]
    fn reading_is_held_back_to_the_rate(pg: Installation) {
        let site = Site::new(&pg);
        let began = Instant::now();
        let report = json(&site.walden.run(&["base-backup", "--fast", "--max-rate", "8M", "--output", "json"]).ok());
        let at_least = report["size"].as_f64().unwrap() / f64::from(8 << 20) * 0.9;
        assert!(began.elapsed().as_secs_f64() > at_least, "{:?} for {at_least} s", began.elapsed());
    }
);

/// Makes the server archive by a script, which begins with `first`.
fn archive_by(site: &Site, first: &str) {
    let command = site.walden.command_line("archive-push %p").replace("%p", "\"$1\"");
    let script = site.work.write("walden.sh", format!("{first}\n{command}\n"));
    site.cluster.set("archive_command", format!("sh {} %p", script.display()));
}

live_test!(
    [15]
    fn the_wait_for_its_wal_is_told(pg: Installation) {
        let site = Site::new(&pg);
        archive_by(&site, "sleep 3");
        let report = json(&site.walden.run(&["base-backup", "--fast", "--output", "json"]).ok());
        let waited = report["wal_wait_seconds"].as_f64().expect("a number");
        assert!(waited > 1.0, "{report}");
        let text = site.walden.run(&["base-backup", "--fast"]).ok();
        assert!(text.stdout.contains("s of that were spent waiting for its last WAL segment"), "{text}");
        archive_by(&site, "");
        site.archive_a_segment();
        let text = site.walden.run(&["base-backup", "--fast"]).ok();
        assert!(!text.stdout.contains("spent waiting"), "{text}");
    }
);

live_test!(
    [14, 18]
    fn wal_that_does_not_come_ends_the_wait_and_there_is_no_backup(pg: Installation) {
        let site = Site::new(&pg);
        // The archiver neither succeeds nor fails, as when a store hangs.
        let gate = site.work.write("closed", "");
        archive_by(&site, &format!("while test -e '{}'; do sleep 0.1; done", gate.display()));
        let failed = site.walden.run(&["base-backup", "--fast", "--wait", "2s"]).expect_code(7);
        assert!(failed.stderr.contains("was not archived to repository \"primary\" within 2s"), "{failed}");
        assert!(failed.stderr.contains("hint: "), "{failed}");
        for repository in ["primary", "replica"] {
            assert!(complete(&site, repository).is_empty());
        }
        // All of it is stored: going on with it costs next to nothing.
        fs::remove_file(&gate).expect("open the gate");
        let half: Vec<String> = folders(&site, "primary").into_keys().collect();
        let report = json(&site.walden.run(&["base-backup", "--fast", "--resume", "--output", "json"]).ok());
        assert_eq!(half, [report["id"].as_str().unwrap()]);
        for repository in ["primary", "replica"] {
            assert_eq!(complete(&site, repository).len(), 1);
        }
    }
);

live_test!(
    [14, 18]
    fn wal_that_is_archived_elsewhere_is_found_out_first(pg: Installation) {
        let site = Site::new(&pg);
        let elsewhere = site.work.create_dir("elsewhere");
        // The name of the program in it proves nothing.
        site.cluster.set("archive_command", format!("cp %p {}/%f # walden", elsewhere.display()));
        let name = site.archive_a_segment();
        let refused = site.walden.run(&["base-backup", "--fast"]).expect_code(7);
        let words = format!("archived \"{name}\" at ");
        assert!(refused.stderr.contains(&words) && refused.stderr.contains("no repository holds it"), "{refused}");
        assert!(folders(&site, "primary").is_empty(), "{refused}");
        // What an earlier configuration did does not matter.
        site.cluster.set("archive_command", site.walden.command_line("archive-push %p"));
        site.walden.run(&["base-backup", "--fast"]).ok();
    }
);

live_test!(
    [14, 18]
    fn histories_from_before_archiving_go_along(pg: Installation) {
        let mut site = Site::new(&pg);
        site.archive_a_segment();
        // Promoted while it does not archive: nobody asks for the history to be archived, ever.
        site.cluster.append_config("archive_mode = off\nrestore_command = 'false'\n");
        site.cluster.stop(Stop::Fast);
        let signal = site.cluster.data_dir().join("recovery.signal");
        fs::write(&signal, "").expect("write recovery.signal");
        user::give(&signal);
        site.cluster.start();
        site.cluster.wait_until("it is promoted", || site.cluster.psql("select pg_is_in_recovery()") == "f");
        site.cluster.append_config("archive_mode = on\n");
        site.cluster.restart();
        assert!(site.wal_objects("primary", "00000002.history").is_empty());

        let taken = site.walden.run(&["base-backup", "--fast"]).ok();
        assert!(taken.stderr.contains("archived \"00000002.history\", which repository \"primary\" lacked"), "{taken}");
        for repository in ["primary", "replica"] {
            assert_eq!(site.wal_objects(repository, "00000002.history").len(), 1);
        }
        let (fetched, path) = site.get("00000002.history", &[]);
        fetched.ok();
        let own = fs::read(site.cluster.data_dir().join("pg_wal/00000002.history")).expect("read");
        assert_eq!(fs::read(path).expect("read"), own);
        let again = site.walden.run(&["base-backup", "--fast"]).ok();
        assert!(!again.stderr.contains("lacked"), "{again}");
    }
);
