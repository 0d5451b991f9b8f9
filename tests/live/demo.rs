//! `walden demo`: the whole story, and that nothing of it is left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::user::{WorkDir, unprivileged};
use crate::support::{Finished, Installation, Walden, live_test, run, wait_until};

/// Returns a runner whose demos make their directories in `work`.
fn walden(work: &WorkDir) -> Walden {
    Walden::bare().env("TMPDIR", work.path().display())
}

fn arguments(pg: &Installation) -> [String; 3] {
    ["demo".into(), "--bin-dir".into(), pg.bin.display().to_string()]
}

/// Returns what demos have left in `work`.
fn directories(work: &WorkDir) -> Vec<PathBuf> {
    fs::read_dir(work.path()).expect("list").flatten().map(|entry| entry.path()).collect()
}

/// Returns the processes that work below `dir` or name it in their arguments.
fn processes(dir: &Path) -> Vec<String> {
    let wanted = dir.display().to_string();
    fs::read_dir("/proc")
        .expect("list processes")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().chars().all(|c| c.is_ascii_digit()))
        .filter_map(|entry| {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            (arguments.contains(&wanted) || cwd.starts_with(dir)).then_some(arguments)
        })
        .collect()
}

#[track_caller]
fn assert_nothing_is_left(work: &WorkDir) {
    assert_eq!(directories(work), Vec::<PathBuf>::new());
    assert_eq!(processes(work.path()), Vec::<String>::new());
}

#[track_caller]
fn assert_the_story_is_told(finished: &Finished, major: u32) {
    for line in [
        &format!("PostgreSQL {major}."),
        "$ walden init --data-dir data",
        "Repository \"primary\"",
        "$ walden base-backup --fast",
        "is complete in primary, replica",
        "postgres=# DROP TABLE orders;",
        "ERROR:  relation \"orders\" does not exist",
        "$ walden status",
        "any moment from ",
        "$ walden events --kind drop --table orders",
        "public.orders in database postgres",
        "$ walden recover --until lsn:",
        "The same count, the same checksum, the same last order.",
        "7000 orders, dropped at ",
    ] {
        assert!(finished.stdout.contains(line), "no {line:?} in\n{finished}");
    }
    assert!(!finished.stdout.contains('\x1b'), "colours off a terminal: {finished}");
    assert_eq!(finished.stderr, "", "{finished}");
    let last = finished.stdout.lines().last().expect("a last line");
    assert!(last.contains("are back by --until lsn:") && last.contains("Total time: "), "{last}");
}

live_test!(
    [14, 18]
    fn it_tells_the_whole_story_and_leaves_nothing_behind(pg: Installation) {
        let work = WorkDir::new();
        let finished = walden(&work).run(&arguments(&pg).each_ref().map(String::as_str)).ok();
        assert_the_story_is_told(&finished, pg.major);
        assert_nothing_is_left(&work);
    }
);

live_test!(
    [15]
    fn root_hands_it_to_an_unprivileged_user(pg: Installation) {
        let Some(user) = unprivileged() else {
            eprintln!("skipped: this is not root");
            return;
        };
        let work = WorkDir::new();
        // The binary as it was built: it may lie where that user cannot execute it.
        let mut command = Command::new(env!("CARGO_BIN_EXE_walden"));
        command.args(arguments(&pg)).env("TMPDIR", work.path()).env("PGPORT", "1").env("WALDEN_CONFIG", "/nonexistent");
        let finished = run(&mut command).ok();
        assert_the_story_is_told(&finished, pg.major);
        assert!(finished.stdout.contains(&format!(", as user {}", user.name)), "{finished}");
        assert_nothing_is_left(&work);
    }
);

live_test!(
    [15]
    fn keep_leaves_the_directory_with_the_servers_stopped(pg: Installation) {
        let work = WorkDir::new();
        let [demo, flag, bin_dir] = &arguments(&pg);
        let finished = walden(&work).run(&[demo, flag, bin_dir, "--keep"]).ok();
        assert_the_story_is_told(&finished, pg.major);
        let kept = directories(&work);
        assert_eq!(kept.len(), 1, "{kept:?}");
        let dir = &kept[0];
        assert_eq!(fs::metadata(dir).expect("metadata").permissions().mode() & 0o777, 0o700);
        assert!(finished.stdout.contains(&format!("{} is kept", dir.display())), "{finished}");
        assert!(finished.stdout.contains("$ pg_ctl -D restored -l restored.log start"), "{finished}");
        for name in ["walden.toml", "primary/main", "replica/main", "data/PG_VERSION", "restored/PG_VERSION"] {
            assert!(dir.join(name).exists(), "{name}");
        }
        for name in ["data", "restored"] {
            assert!(!dir.join(name).join("postmaster.pid").exists(), "the server of {name} runs");
        }
        assert_eq!(processes(dir), Vec::<String>::new());
    }
);

live_test!(
    [15]
    fn a_signal_at_any_step_stops_the_servers_and_removes_the_directory(pg: Installation) {
        let moments = [
            ("$ initdb", Signal::SIGINT, 130),
            ("$ pg_ctl -D data -l server.log -s start", Signal::SIGTERM, 143),
            ("$ walden base-backup", Signal::SIGTERM, 143),
            ("$ walden recover", Signal::SIGINT, 130),
            ("  Restored backup", Signal::SIGTERM, 143),
        ];
        for (line, signal, code) in moments {
            let work = WorkDir::new();
            let mut demo = walden(&work).spawn(&arguments(&pg).each_ref().map(String::as_str));
            wait_until(format!("it says {line}"), || demo.stdout().contains(line) || !demo.is_running());
            // Also some way into the step.
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
            demo.signal(signal);
            let began = Instant::now();
            let finished = demo.wait(Duration::from_mins(1)).expect_code(code);
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
            assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
            assert!(finished.stderr.contains("interrupted: stopping the servers and removing "), "{finished}");
            assert_nothing_is_left(&work);
        }
    }
);

live_test!(
    [15]
    fn a_reader_that_goes_away_ends_it_cleanly(pg: Installation) {
        let work = WorkDir::new();
        let mut command = walden(&work).command(arguments(&pg));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("run walden");
        let mut heading = [0; 16];
        std::io::Read::read_exact(&mut child.stdout.take().expect("stdout"), &mut heading).expect("read");
        let output = child.wait_with_output().expect("wait");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("ERROR: write to standard output: ") && stderr.lines().count() == 1, "{stderr}");
        assert_nothing_is_left(&work);
    }
);

#[test]
fn what_is_wrong_is_said_in_one_line_with_the_right_code() {
    let work = WorkDir::new();
    let empty = work.create_dir("empty").display().to_string();
    for (more, code, says) in [
        (["--bin-dir", &empty], 7, "no PostgreSQL server, version 14 to 18"),
        (["--bin-dir", "/nonexistent"], 7, "no PostgreSQL server, version 14 to 18"),
        (["--config", "/etc/walden/walden.toml"], 2, "--config does not go with demo"),
        (["--keep", "--nonsense"], 2, "--nonsense"),
    ] {
        let finished = walden(&work).run(&[&["demo"][..], &more].concat()).expect_code(code);
        assert!(finished.stderr.starts_with("ERROR: ") && finished.stderr.contains(says), "{finished}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
        assert_eq!(finished.stdout, "", "{finished}");
    }
}
