//! Archiving under load while its processes, and the server, are killed at random moments: what the server was told is
//! archived is there, whole.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::tools::{self, run_script};
use crate::support::{
    Background, ClusterOptions, Site, SiteOptions, Stop, live_test, require, soak, wait_for,
};

/// Returns the archive-push processes of this site.
fn pushes(site: &Site) -> Vec<i32> {
    let config = site.config.display().to_string();
    let is_push = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        // The program itself and not the shell around it, which has all of this in one word.
        words.contains(&config.as_bytes()) && words.contains(&&b"archive-push"[..])
    };
    let pids = fs::read_dir("/proc").expect("read /proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| is_push(*pid)).collect()
}

/// Sends a signal to a push at a random moment of its life; returns whether there was one.
fn strike(site: &Site, signal: Signal) -> bool {
    let mut found = Vec::new();
    let there = wait_for(Duration::from_secs(5), || {
        found = pushes(site);
        !found.is_empty()
    });
    thread::sleep(Duration::from_millis(fastrand::u64(0..80)));
    // It may have ended, and the next one runs.
    for pid in pushes(site) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
    there
}

fn load(site: &Site) -> Background {
    site.cluster.pgbench_background(&["-n", "-N", "-c", "2", "-R", "300", "-T", "3600"])
}

/// Returns the segments that the server takes for archived.
fn done(site: &Site) -> BTreeSet<String> {
    let dir = site.cluster.data_dir().join("pg_wal/archive_status");
    let names = fs::read_dir(dir).expect("read archive_status").flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_suffix(".done").map(str::to_owned))
        .filter(|name| name.len() == 24)
        .collect()
}

live_test!(
    [15, 18]
    fn killed_at_any_moment_what_is_acknowledged_is_there(pg: Installation) {
        let (Some(age), Some(lz4)) = (require(tools::age(), "age"), require(tools::lz4(), "lz4")) else { return };
        let rounds = if soak() { 200 } else { 10 };
        let mut site = Site::with(
            &pg,
            &SiteOptions {
                // Every segment stays in pg_wal, where the judge finds it.
                cluster: ClusterOptions::default().wal_segment_size_mb(1).setting("wal_keep_size", "100GB"),
                ..SiteOptions::default()
            },
        );
        // A death by signal would keep the archiver away for ten seconds each time.
        let command = format!("{} || exit 1", site.walden.command_line("archive-push %p"));
        site.cluster.set("archive_command", command);
        site.cluster.pgbench(&["-i", "-s", "2", "-q"]);
        let mut running = load(&site);
        let (mut struck, mut told) = (0, BTreeSet::new());
        for round in 1..=rounds {
            let signal = if round % 3 == 0 { Signal::SIGTERM } else { Signal::SIGKILL };
            struck += u32::from(strike(&site, signal));
            told.extend(done(&site));
            if round % 5 == 0 {
                // The push that runs goes on without its archiver.
                drop(running);
                site.cluster.stop(Stop::Immediate);
                site.cluster.start();
                running = load(&site);
            }
        }
        assert!(struck * 2 > rounds, "only {struck} of {rounds} rounds met a push");
        drop(running);
        let last = site.archive_a_segment();
        told.extend(done(&site));
        assert!(told.contains(&last) && told.len() > 10, "{told:?}");

        let pg_wal = site.cluster.data_dir().join("pg_wal");
        let restored = site.work.create_dir("restored");
        let identity = site.work.join("identity.txt");
        let mut script = String::new();
        for name in &told {
            let copies: Vec<_> = ["primary", "replica"].map(|r| site.wal_objects(r, name)).concat();
            let copies: Vec<_> = copies.iter().filter(|path| !is_temporary(path)).collect();
            assert!(!copies.is_empty(), "{name} was acknowledged and is nowhere");
            for copy in copies {
                let opened = format!("{}/{name}", restored.display());
                script += &format!(
                    "{} -d -i {} {} | {} -dc >{opened}; cmp {}/{name} {opened}\n",
                    age.display(),
                    identity.display(),
                    copy.display(),
                    lz4.display(),
                    pg_wal.display(),
                );
            }
        }
        let judge = site.work.write("judge.sh", script);
        run_script(&format!(". {}", judge.display())).ok();

        // And it is one piece of WAL, which the server's own program reads to the end.
        if let (Some(waldump), Some(first)) = (tools::pg_waldump(pg.major), told.first()) {
            let line = format!("{} -q -p {} {first} {last}", waldump.display(), restored.display());
            run_script(&line).ok();
        }
        // What the kills left behind disturbs nobody: all of it is hidden, and the next call works.
        let (finished, path) = site.get(&last, &[]);
        finished.ok();
        assert!(fs::read(path).expect("read") == fs::read(pg_wal.join(&last)).expect("read"));
    }
);

fn is_temporary(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|ending| ending == "tmp")
}
