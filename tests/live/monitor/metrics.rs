//! Metrics: all that the rules judge, in the format of Prometheus, at any moment whole.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::support::tools::{promtool, run_program};

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
        back_up(&site);
        back_up(&site);
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
            let named: BTreeSet<&str> = text
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .filter(|word| word.starts_with("walden_"))
                .collect();
            assert!(named.len() >= 8, "{file}: {named:?}");
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
