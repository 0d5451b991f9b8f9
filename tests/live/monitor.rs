//! status as a judge and metrics: each rule driven to its levels by what really causes it.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::tools::{promtool, run_program};
use crate::support::{Finished, Ledger, Site, live_test, wait_until};

/// Replaces the sections [status] and [retention] of the site's configuration.
fn configure(site: &Site, sections: &str) {
    const MARK: &str = "\n# of the test\n";
    let text = fs::read_to_string(&site.config).expect("read");
    let text = text.split(MARK).next().expect("a part");
    fs::write(&site.config, format!("{text}{MARK}{sections}\n")).expect("write");
}

/// Returns what `status` says of one rule, by its level; none where it is silent.
fn level(site: &Site, rule: &str, more: &[&str]) -> Option<String> {
    let finished = site.walden.run(&[&["status", "--output", "json"], more].concat());
    let status: serde_json::Value =
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"));
    let reasons = status["reasons"].as_array().expect("reasons");
    let found = reasons.iter().find(|reason| reason["rule"] == rule)?;
    assert!(found["text"].is_string() && found["hint"].is_string(), "{found}");
    found["level"].as_str().map(str::to_owned)
}

fn monitor(site: &Site) -> Finished {
    site.walden.run(&["status", "--monitor"])
}

/// Returns a time so many hours ahead, as `--now` takes it.
fn ahead(hours: i64) -> String {
    jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(hours)).expect("a time").to_string()
}

const ENOUGH: &str = "[status]\nfree_warning = 0\nfree_critical = 0\n";

live_test!(
    [14, 17]
    fn the_verdict_is_one_line_with_an_exit_code_for_monitoring(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        configure(&site, ENOUGH);
        let none = monitor(&site).expect_code(2);
        assert!(none.stdout.starts_with("CRITICAL: there is no base backup"), "{none}");
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.archive_a_segment();
        let good = monitor(&site).expect_code(0);
        assert!(good.stdout.starts_with("OK | backup_age="), "{good}");
        assert_eq!(site.walden.run(&["status"]).ok().stdout.lines().last(), Some("OK"));

        // One repository away is a warning, both are critical, and so is one that all have to hold.
        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        let down = monitor(&site).expect_code(1);
        assert!(down.stdout.starts_with("WARNING: repository \"replica\" cannot be used"), "{down}");
        configure(&site, &format!("{ENOUGH}[archive]\nacknowledge = \"all\""));
        monitor(&site).expect_code(2);
        configure(&site, ENOUGH);
        fs::rename(site.repository("primary"), site.work.join("away-too")).expect("rename");
        monitor(&site).expect_code(2);
        assert_eq!(level(&site, "repository-down", &[]).as_deref(), Some("critical"));

        // Where it cannot judge at all it says so.
        configure(&site, "[status]\nnonsense = 1");
        let unknown = monitor(&site).expect_code(3);
        assert!(unknown.stdout.starts_with("UNKNOWN: "), "{unknown}");
        site.walden.run(&["status"]).expect_code(3);
    }
);

live_test!(
    [15]
    fn backups_that_are_old_or_small_or_hold_bad_pages_are_told(pg: Installation) {
        let mut site = Site::new(&pg);
        site.cluster.psql("create table big as select repeat('x', 500) || g as a from generate_series(1, 200000) g");
        assert_eq!(level(&site, "backup-age", &[]).as_deref(), Some("critical"), "there is none");
        site.walden.run(&["base-backup", "--fast"]).ok();
        assert_eq!(level(&site, "backup-age", &[]), None);
        assert_eq!(level(&site, "backup-age", &["--now", &ahead(24)]), None);
        assert_eq!(level(&site, "backup-age", &["--now", &ahead(26)]).as_deref(), Some("critical"));

        site.cluster.psql("drop table big");
        site.cluster.psql("checkpoint");
        site.walden.run(&["base-backup", "--fast"]).ok();
        configure(&site, "[status]\nbackup_size = 90");
        assert_eq!(level(&site, "backup-size", &[]).as_deref(), Some("warning"));
        configure(&site, "[status]\nbackup_size = 1");
        assert_eq!(level(&site, "backup-size", &[]), None);

        site.cluster.psql("create table t as select generate_series(1, 10000) a; checkpoint");
        let file = site.cluster.data_dir().join(site.cluster.psql("select pg_relation_filepath('t')"));
        site.cluster.stop(crate::support::Stop::Fast);
        let mut file = fs::OpenOptions::new().read(true).write(true).open(file).expect("open");
        let mut byte = [0];
        file.seek(SeekFrom::Start(8192 + 4000)).and_then(|_| file.read_exact(&mut byte)).expect("read");
        file.seek(SeekFrom::Start(8192 + 4000)).and_then(|_| file.write_all(&[byte[0] ^ 1])).expect("write");
        site.cluster.start();
        site.walden.run(&["base-backup", "--fast"]).expect_code(6);
        assert_eq!(level(&site, "bad-pages", &[]).as_deref(), Some("critical"));
    }
);

live_test!(
    [16]
    fn what_is_not_archived_or_lacks_somewhere_or_is_missing_is_told(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.archive_a_segment();
        let short = "[status]\nunarchived_warning = \"1s\"\nunarchived_critical = \"90m\"\nrepository_behind = \"1s\"";
        configure(&site, short);
        assert_eq!(level(&site, "unarchived", &[]), None, "an idle server has nothing to archive");
        Ledger::add(&site.cluster);
        assert_eq!(level(&site, "unarchived", &["--now", &ahead(1)]).as_deref(), Some("warning"));
        assert_eq!(level(&site, "unarchived", &["--now", &ahead(2)]).as_deref(), Some("critical"));

        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        let missed = site.archive_a_segment();
        fs::rename(site.work.join("away"), site.repository("replica")).expect("rename");
        assert_eq!(level(&site, "unarchived", &["--now", &ahead(2)]), None, "one repository has it");
        assert_eq!(level(&site, "repository-behind", &["--now", &ahead(2)]).as_deref(), Some("warning"));
        site.walden.run(&["sync"]).ok();
        assert_eq!(level(&site, "repository-behind", &["--now", &ahead(2)]), None);

        // A segment that is lost everywhere is a gap: critical with nothing behind it, then by the window.
        site.archive_a_segment();
        for repository in ["primary", "replica"] {
            for object in site.wal_objects(repository, &missed) {
                fs::remove_file(object).expect("remove");
            }
        }
        assert_eq!(level(&site, "gap", &[]).as_deref(), Some("critical"));
        site.walden.run(&["base-backup", "--fast"]).ok();
        assert_eq!(level(&site, "gap", &[]).as_deref(), Some("warning"));
        configure(&site, "[retention]\nwindow = \"7d\"");
        assert_eq!(level(&site, "gap", &[]).as_deref(), Some("critical"));
    }
);

live_test!(
    [17]
    fn a_promise_of_the_retention_that_is_not_kept_is_told(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.fill(1);
        let month = ahead(24 * 30);
        configure(&site, "[retention]\nkeep_daily = 30");
        assert_eq!(level(&site, "retention", &[]), None, "the cluster is young");
        assert_eq!(level(&site, "retention", &["--now", &month]).as_deref(), Some("warning"));
        configure(&site, "[retention]\nkeep_last = 3");
        assert_eq!(level(&site, "retention", &["--now", &month]), None);

        // A backup that reached back far enough is lost: what is left reaches less far than the window.
        configure(&site, "[status]\nbackup_age = \"1s\"\n[retention]\nwindow = \"10s\"");
        let id = backups(&site).remove(0);
        wait_until("it reaches back", || {
            site.fill(1);
            level(&site, "retention", &[]).is_none()
        });
        site.walden.run(&["base-backup", "--fast"]).ok();
        for repository in ["primary", "replica"] {
            for dir in backups_in(&site, repository).into_iter().filter(|dir| dir.ends_with(&id)) {
                fs::remove_dir_all(dir).expect("remove");
            }
        }
        assert_eq!(level(&site, "retention", &[]).as_deref(), Some("warning"));
        wait_until("the new backup reaches as far back", || {
            site.fill(1);
            level(&site, "retention", &[]).is_none()
        });
    }
);

live_test!(
    [15]
    fn backups_that_expire_left_for_long_are_mentioned_and_pinned_ones_are_not(pg: Installation) {
        let site = Site::new(&pg);
        for _ in 0..3 {
            site.fill(1);
            site.walden.run(&["base-backup", "--fast"]).ok();
        }
        let first = backups(&site).remove(0);
        configure(&site, &format!("{ENOUGH}expire_overdue = \"1s\"\n[retention]\nkeep_last = 1"));
        // Another segment makes a second pass for the store too, whose times are the ones that count.
        wait_until("they are left for a second", || {
            site.fill(1);
            level(&site, "expire-overdue", &[]).as_deref() == Some("info")
        });
        assert_eq!(monitor(&site).code, 0, "an info leaves the verdict");
        site.walden.run(&["pin", &first]).ok();
        site.walden.run(&["expire"]).ok();
        assert_eq!(level(&site, "expire-overdue", &[]), None);
    }
);

/// Returns the directories of a repository's backups, oldest first.
fn backups_in(site: &Site, repository: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    crate::support::site::walk(&site.repository(repository), &mut files);
    files.retain(|path| path.ends_with("backup.json"));
    let mut dirs: Vec<PathBuf> = files.iter().filter_map(|path| Some(path.parent()?.to_path_buf())).collect();
    dirs.sort();
    dirs
}

/// Returns the ids of the backups, oldest first.
fn backups(site: &Site) -> Vec<String> {
    let name = |dir: &PathBuf| Some(dir.file_name()?.to_string_lossy().into_owned());
    backups_in(site, "primary").iter().filter_map(name).collect()
}

live_test!(
    [16]
    fn verification_that_is_old_or_found_something_is_told_and_notified(pg: Installation) {
        let site = Site::new(&pg);
        site.walden.run(&["base-backup", "--fast"]).ok();
        let name = site.archive_a_segment();
        let heard = site.work.join("heard");
        let hear = format!("[notify]\ncommand = \"cat >> '{}'\"\nevents = [\"verify-failed\"]", heard.display());
        configure(&site, &format!("[status]\nverify_age = \"1h\"\n{hear}"));
        assert_eq!(level(&site, "verify-age", &[]), None, "the backups are young");
        assert_eq!(level(&site, "verify-age", &["--now", &ahead(2)]).as_deref(), Some("warning"));
        site.walden.run(&["verify"]).ok();
        configure(&site, &format!("[status]\nverify_age = \"3h\"\n{hear}"));
        assert_eq!(level(&site, "verify-age", &["--now", &ahead(2)]), None);
        assert_eq!(level(&site, "verify-age", &["--now", &ahead(4)]).as_deref(), Some("warning"));
        assert!(!heard.exists());
        for object in site.wal_objects("replica", &name) {
            fs::remove_file(object).expect("remove");
        }
        site.walden.run(&["verify"]).expect_code(6);
        assert_eq!(level(&site, "verify-failed", &[]).as_deref(), Some("critical"));
        assert!(fs::read_to_string(&heard).expect("read").contains("verify-failed"));
        site.walden.run(&["sync"]).ok();
        site.walden.run(&["verify"]).ok();
        assert_eq!(level(&site, "verify-failed", &[]), None);
    }
);

/// A small filesystem in memory, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).expect("create");
        let mounted = nix::unistd::geteuid().is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=20m,mode=0777", "tmpfs"])
                .arg(&at)
                .status()
                .is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("skipped: only root can mount a small disk, and not everywhere");
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

live_test!(
    [18]
    fn a_disk_that_fills_up_is_told(pg: Installation) {
        let site = Site::new(&pg);
        let Some(disk) = Disk::mount(site.work.join("small")) else { return };
        let text = fs::read_to_string(&site.config).expect("read");
        let state = site.work.join("state").display().to_string();
        fs::write(&site.config, text.replace(&state, &disk.0.join("state").display().to_string())).expect("write");
        // The other disks of this machine are as they are: only the small one is looked at.
        let of_state = || -> Option<String> {
            let finished = site.walden.run(&["status", "--output", "json"]).ok();
            let status: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
            let reasons = status["reasons"].as_array().expect("reasons").clone();
            let found = reasons.into_iter().find(|reason| {
                reason["rule"] == "free-space" && reason["text"].as_str().is_some_and(|text| text.contains("state_dir"))
            })?;
            found["level"].as_str().map(str::to_owned)
        };
        fs::create_dir(disk.0.join("state")).expect("create");
        crate::support::user::give(&disk.0.join("state"));
        assert_eq!(of_state(), None);
        fs::write(disk.0.join("filler"), vec![1; 17 << 20]).expect("fill");
        assert_eq!(of_state().as_deref(), Some("warning"));
        fs::write(disk.0.join("more"), vec![1; 5 << 19]).ok();
        assert_eq!(of_state().as_deref(), Some("critical"));
    }
);

fn check_metrics(text: &str, dir: &Path) {
    let file = dir.join("metrics.prom");
    fs::write(&file, text).expect("write");
    let Some(promtool) = promtool() else { return };
    let command = format!("'{}' check metrics < '{}'", promtool.display(), file.display());
    let checked = crate::support::tools::run_script(&command);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""), "{checked}");
}

/// Returns the value of a metric whose labels contain `labels`.
fn value(text: &str, name: &str, labels: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(labels))?;
    line.rsplit(' ').next()?.parse().ok()
}

live_test!(
    [14, 18]
    fn metrics_say_what_status_judges_also_of_a_repository_that_is_down(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        configure(&site, ENOUGH);
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.archive_a_segment();
        let good = site.walden.run(&["metrics"]).ok().stdout;
        check_metrics(&good, site.work.path());
        assert_eq!(value(&good, "walden_verdict", ""), Some(0.0), "{good}");
        assert_eq!(value(&good, "walden_backups", ""), Some(2.0));
        assert_eq!(value(&good, "walden_oldest_unarchived_commit_seconds", ""), Some(0.0));
        for repository in ["primary", "replica"] {
            assert_eq!(value(&good, "walden_repository_up", &format!("repository=\"{repository}\"")), Some(1.0));
        }

        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        let down = site.walden.run(&["metrics"]).ok().stdout;
        check_metrics(&down, site.work.path());
        assert_eq!(value(&down, "walden_repository_up", "repository=\"replica\""), Some(0.0), "{down}");
        assert_eq!(value(&down, "walden_rule", "rule=\"repository-down\""), Some(1.0));
        assert_eq!(value(&down, "walden_verdict", ""), Some(1.0));

        // What rules and dashboard ask for is there, with HELP and TYPE, and the rules are ones.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
        for file in ["prometheus/walden.rules.yml", "grafana/walden.json"] {
            let text = fs::read_to_string(root.join(file)).expect("read");
            let named: std::collections::BTreeSet<&str> = text
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .filter(|word| word.starts_with("walden_"))
                .collect();
            assert!(named.len() > 8, "{file}: {named:?}");
            for name in named {
                // Only a server that writes has a rate at which its disk fills, only a verified repository an age.
                let sometimes = ["walden_wal_disk_full_seconds", "walden_verified_age_seconds"];
                let known = good.contains(&format!("# TYPE {name} gauge")) && good.contains(&format!("# HELP {name} "));
                assert!(known || sometimes.contains(&name), "{file}: {name} is none of the metrics");
            }
        }
        let dashboard = fs::read_to_string(root.join("grafana/walden.json")).expect("read");
        let dashboard: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
        assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 5));
        if let Some(promtool) = promtool() {
            let rules = site.work.join("walden.rules.yml");
            fs::copy(root.join("prometheus/walden.rules.yml"), &rules).expect("copy");
            run_program(&promtool, ["check", "rules", &rules.display().to_string()]).ok();
        }
    }
);

live_test!(
    [17]
    fn a_textfile_is_whole_at_any_moment_and_readable_by_all(pg: Installation) {
        let site = Site::new(&pg);
        let dir = site.work.create_dir("collector");
        let file = dir.join("walden.prom");
        let path = file.display().to_string();
        site.walden.run(&["metrics", "--textfile", &path]).ok();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let text = fs::read_to_string(&file).expect("there is always one");
                    let ends = text.lines().last().is_some_and(|line| line.starts_with("walden_disk_size_bytes{"));
                    assert!(ends && text.ends_with('\n'), "{text}");
                }
            });
            for _ in 0..10 {
                site.walden.run(&["metrics", "--textfile", &path]).ok();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::metadata(&file).expect("stat").permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(&dir).expect("list").count(), 1, "nothing else is left");
        // Where nothing can be found out at all there are still metrics.
        fs::rename(site.cluster.data_dir().join("global/pg_control"), site.work.join("control")).expect("rename");
        fs::rename(site.repository("primary"), site.work.join("away")).expect("rename");
        fs::rename(site.repository("replica"), site.work.join("away-too")).expect("rename");
        site.walden.run(&["metrics", "--textfile", &path]).ok();
        let text = fs::read_to_string(&file).expect("read");
        assert_eq!((value(&text, "walden_up", ""), value(&text, "walden_verdict", "")), (Some(0.0), Some(3.0)));
        fs::rename(site.work.join("control"), site.cluster.data_dir().join("global/pg_control")).expect("rename");
    }
);
