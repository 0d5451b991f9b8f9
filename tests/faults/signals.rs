//! The program told to end, or killed, at any moment; and a log that cannot be written to.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::segment::{name, segment};
use crate::site::{Site, collect, is_temporary, walden};

const ROUNDS: u32 = 40;

/// Runs a push with neighbours and sends it `signal` at a random moment; returns whether it ended by that signal.
fn push_interrupted(site: &Site, round: u32, within: Duration, signal: Signal) -> bool {
    let config = site.config("host");
    let own = name(round * 10);
    for number in 0..4 {
        site.add_segment(&name(round * 10 + number), u64::from(number));
    }
    let path = site.pg_wal().join(&own);
    let mut child =
        walden(&config, &["archive-push", path.to_str().unwrap()]).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(within.mul_f64(fastrand::f64()));
    let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal);
    let status = child.wait().unwrap();
    let by_signal = status.signal() == Some(signal as i32);
    assert!(by_signal || status.code() == Some(0), "round {round}: {status:?}");
    if !by_signal {
        site.assert_archived(&own, &segment(&own, 0), "acknowledged");
    }
    for number in 0..4 {
        let name = name(round * 10 + number);
        for held in site.held(&name).iter().flatten() {
            assert!(*held == segment(&name, u64::from(number)), "{name} is not whole");
        }
    }
    by_signal
}

fn time_of_a_push(site: &Site) -> Duration {
    let began = Instant::now();
    push_interrupted(site, 1000, Duration::from_secs(1), Signal::SIGWINCH);
    began.elapsed().min(Duration::from_secs(1)) / 2
}

#[test]
fn told_to_end_at_any_moment_it_dies_by_the_signal_and_leaves_nothing() {
    let site = Site::new(2, 1);
    let within = time_of_a_push(&site);
    let mut by_signal = 0;
    for round in 1..ROUNDS {
        by_signal += u32::from(push_interrupted(&site, round, within, Signal::SIGTERM));
        site.assert_only_added(&std::collections::BTreeMap::new(), &format!("SIGTERM in round {round}"));
    }
    assert!(by_signal > 0);
    finish_all(&site);
}

#[test]
fn killed_at_any_moment_nothing_half_done_counts() {
    let site = Site::new(2, 1);
    let within = time_of_a_push(&site);
    let mut by_signal = 0;
    for round in 1..ROUNDS {
        by_signal += u32::from(push_interrupted(&site, round, within, Signal::SIGKILL));
    }
    assert!(by_signal > 0);
    finish_all(&site);
}

/// What was interrupted is archived by the calls that follow.
fn finish_all(site: &Site) {
    for round in 1..ROUNDS {
        for number in 0..4 {
            let name = name(round * 10 + number);
            site.push(&name).unwrap();
            site.assert_archived(&name, &segment(&name, u64::from(number)), "the next call");
        }
    }
}

#[test]
fn a_get_told_to_end_leaves_the_whole_file_or_none() {
    let site = Site::new(2, 1);
    let config = site.config("host");
    site.add_segment(&name(1), 1);
    site.push(&name(1)).unwrap();
    let dir = site.path("data/pg_wal");
    fs::create_dir_all(&dir).unwrap();
    let target = dir.join("RECOVERYXLOG");
    for _ in 0..ROUNDS {
        let _ = fs::remove_file(&target);
        let mut child =
            walden(&config, &["archive-get", &name(1), target.to_str().unwrap()]).spawn().unwrap();
        thread::sleep(Duration::from_millis(fastrand::u64(0..60)));
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM);
        let status = child.wait().unwrap();
        assert!(status.signal() == Some(15) || status.code() == Some(0), "{status:?}");
        if let Ok(content) = fs::read(&target) {
            assert!(content == segment(&name(1), 1));
        }
        assert!(status.code() != Some(0) || target.exists(), "0 without the file");
        let mut found = std::collections::BTreeMap::new();
        collect(&dir, &mut found);
        assert!(found.keys().all(|path| !is_temporary(path)), "a temporary file is left");
    }
}

/// A full disk under the server's log, or a log collector that died, must not change what PostgreSQL hears: not the
/// panic of a failed print, and never an abort.
#[test]
fn a_log_that_cannot_be_written_changes_no_exit_code() {
    let site = Site::new(1, 1);
    let config = site.config("host");
    let path = site.add_segment(&name(1), 1);
    let target = site.path("RECOVERYXLOG");
    // One repository is gone: that is warned of.
    fs::rename(site.path("b"), site.path("away")).unwrap();
    let run = |arguments: &[&str]| {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        walden(&config, arguments).stdout(Stdio::null()).stderr(full).status().unwrap()
    };
    let push = run(&["archive-push", path.to_str().unwrap()]);
    assert_eq!(push.code(), Some(0), "{push:?}");
    let strange = run(&["archive-push", "/nonexistent/postgresql.conf"]);
    assert_eq!(strange.code(), Some(2), "{strange:?}");
    let unproven = run(&["archive-get", &name(9), target.to_str().unwrap()]);
    assert_eq!(unproven.code(), Some(200), "{unproven:?}");
    let wrong = run(&["archive-get", "--nonsense"]);
    assert_eq!(wrong.code(), Some(200), "{wrong:?}");
    let wrong = run(&["archive-push", "--nonsense"]);
    assert_eq!(wrong.code(), Some(2), "{wrong:?}");
}
