//! `walden init`: what it writes, what it refuses, what it adds later.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::user::WorkDir;
use crate::support::{Cluster, ClusterOptions, Site, Walden, live_test, tools};

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

live_test!(
    [15, 18]
    fn on_a_terminal_it_asks_tries_each_repository_out_and_says_what_is_next(pg: Installation) {
        let mut cluster = Cluster::start_new(&pg, &ClusterOptions::default());
        let work = WorkDir::new();
        let config = work.join("walden.toml");
        let walden = Walden::new(&config);
        let command = walden.command_line(&format!("init --state-dir {}", work.join("state").display()));
        let (data_dir, repository) = (cluster.data_dir().display(), work.join("repo"));
        // Two answers that do not go, then good ones; no second repository; yes.
        let answers =
            format!("/nonexistent\n{data_dir}\nfile:///nonexistent/a/b\n{}\n\ny\n", repository.display());
        let answers = work.write("answers", answers);
        let script = format!("script -qec '{command}' /dev/null <{}", answers.display());
        let finished = tools::run_script(&script).ok();
        for part in [
            &format!("PostgreSQL {}, port {}, {data_dir} (runs)", pg.major, cluster.port()),
            "That does not go",
            "above it must be there",
            "is ready for cluster \"main\"",
            "A second place",
            "must be restarted before archiving works",
            "1. restart the server: pg_ctl -D",
            "2. take a base backup: ",
        ] {
            assert!(finished.stdout.contains(part), "{part}: {finished}");
        }
        let questions = finished.stdout.matches("]: ").count() + finished.stdout.matches("for none: ").count();
        assert_eq!(questions, 6, "four questions, two of them twice: {finished}");
        cluster.restart();
        let segment = cluster.switch_wal();
        cluster.wait_archived(&segment);
        walden.run(&["base-backup", "--fast"]).ok();
        assert!(fs::read_to_string(&config).expect("read").contains("port="), "it knows how to reach the server");
    }
);

live_test!(
    [15]
    fn without_answers_nothing_is_changed(pg: Installation) {
        let cluster = Cluster::start_new(&pg, &ClusterOptions::default());
        let work = WorkDir::new();
        let config = work.join("walden.toml");
        let command = Walden::new(&config).command_line("init");
        let answers = work.write("answers", format!("{}\n", cluster.data_dir().display()));
        // The end of the file comes where the second answer should.
        let script = format!("script -qec '{command}' /dev/null <{} || echo code $?", answers.display());
        let finished = tools::run_script(&script);
        assert!(finished.stdout.contains("were not answered") && finished.stdout.contains("code 2"), "{finished}");
        assert!(!config.exists());
        assert_eq!(cluster.psql("SHOW archive_command"), "(disabled)");
    }
);
