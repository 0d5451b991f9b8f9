//! `walden init`: what it writes, what it refuses, what it adds later.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::user::WorkDir;
use crate::support::{Cluster, ClusterOptions, Site, Walden, live_test};

live_test!(
    fn init_reads_a_server_that_is_down_and_prints_settings_that_work(pg: Installation) {
        let cluster = Cluster::create(&pg, &ClusterOptions::default());
        let work = WorkDir::new();
        let config = work.join("etc/walden.toml");
        let walden = Walden::new(&config);
        let primary = format!("primary=file://{}", work.join("repo").display());
        let data_dir = cluster.data_dir().display().to_string();
        let state = work.join("state").display().to_string();
        let finished = walden
            .run(&["init", "--data-dir", &data_dir, "--state-dir", &state, "--repository", &primary])
            .ok();
        for line in ["archive_mode = 'on'", "archive_command = '/", "restore_command = '/", "base-backup"] {
            assert!(finished.stdout.contains(line), "{finished}");
        }
        let identity = work.join("etc/identity.txt");
        assert_eq!(fs::metadata(&identity).expect("identity").permissions().mode() & 0o777, 0o600);
        let sysid =
            fs::read_dir(work.join("repo/main")).expect("read").flatten().next().expect("a folder").path();
        for file in ["cluster.json", "RECOVERY.md"] {
            assert!(sysid.join(file).exists(), "{file}");
        }
        let before = fs::read(&config).expect("read");
        let again = walden.run(&["init"]).expect_code(3);
        assert!(again.stderr.contains("exists already"), "{again}");
        assert_eq!(fs::read(&config).expect("read"), before);
        walden.run(&["init", "--cluster", "other"]).expect_code(3);

        // What it printed is what a server takes.
        let mut cluster = cluster;
        let lines: String = finished
            .stdout
            .lines()
            .filter(|line| line.starts_with("    "))
            .flat_map(|line| [line.trim(), "\n"])
            .collect();
        cluster.append_config(&lines);
        cluster.start();
        let segment = cluster.switch_wal();
        cluster.wait_archived(&segment);
    }
);

live_test!(
    [15]
    fn apply_sets_the_server_and_says_that_it_must_be_restarted(pg: Installation) {
        let mut cluster = Cluster::start_new(&pg, &ClusterOptions::default());
        let work = WorkDir::new();
        let walden = Walden::new(&work.join("walden.toml"));
        let repository = format!("primary=file://{}", work.join("repo").display());
        let finished = walden
            .run(&[
                "init",
                "--data-dir",
                &cluster.data_dir().display().to_string(),
                "--state-dir",
                &work.join("state").display().to_string(),
                "--repository",
                &repository,
                "--connection",
                &cluster.connection_string(),
                "--apply",
            ])
            .ok();
        assert!(finished.stdout.contains("must be restarted") && finished.stdout.contains("archive_mode"), "{finished}");
        cluster.restart();
        assert_eq!(cluster.psql("show archive_mode"), "on");
        let segment = cluster.switch_wal();
        cluster.wait_archived(&segment);
    }
);

live_test!(
    [15]
    fn a_new_system_identifier_is_added_and_nothing_else_is_changed(pg: Installation) {
        let site = Site::new(&pg);
        let before = fs::read(&site.config).expect("read");
        site.walden.run(&["init"]).expect_code(3);
        // As after pg_upgrade: another cluster stands where the old one was.
        let other = Cluster::create(&pg, &ClusterOptions::default());
        let text = String::from_utf8(before).expect("text");
        let old_dir = site.cluster.data_dir().display().to_string();
        fs::write(&site.config, text.replace(&old_dir, &other.data_dir().display().to_string())).expect("write");
        let finished = site.walden.run(&["init"]).ok();
        assert!(finished.stdout.contains("is ready"), "{finished}");
        let folders = fs::read_dir(site.repository("primary").join("main")).expect("read").count();
        assert_eq!(folders, 2, "the new one stands beside the old");
    }
);

live_test!(
    [15]
    fn what_is_wrong_is_said_in_one_line_with_the_right_code(pg: Installation) {
        let cluster = Cluster::create(&pg, &ClusterOptions::default());
        let work = WorkDir::new();
        let walden = Walden::new(&work.join("walden.toml"));
        let data_dir = cluster.data_dir().display().to_string();
        let state = work.join("state").display().to_string();
        let good = format!("primary=file://{}", work.join("repo").display());
        let base = ["init", "--data-dir", data_dir.as_str(), "--state-dir", state.as_str()];
        let cases: [(&[&str], i32); 9] = [
            (&[], 2),
            (&["--repository", "nonsense"], 2),
            (&["--repository", "primary=ftp://x"], 3),
            (&["--repository", "primary=file:///nonexistent/deep/dir"], 4),
            (&["--repository", &good, "--recipient", "age1nonsense"], 3),
            (&["--repository", &good, "--cluster", "a/b"], 3),
            (&["--repository", &good, "--nonsense"], 2),
            (&["--repository", &good, "--recipient", "age1x", "--no-encryption"], 2),
            (&["--repository", &good, "--data-dir", "/nonexistent"], 2),
        ];
        for (more, code) in cases {
            let finished = walden.run(&[&base[..], more].concat());
            assert_eq!(finished.code, code, "{finished}");
            assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
            assert!(finished.stderr.starts_with("ERROR: "), "{finished}");
            assert!(!work.join("walden.toml").exists());
        }
        let elsewhere = ["init", "--data-dir", "/nonexistent", "--state-dir", &state, "--repository", &good];
        walden.run(&elsewhere).expect_code(7);
    }
);
