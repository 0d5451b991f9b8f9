//! What a call costs when few segments are archived and when many are: `cargo bench --bench many`, with the program to
//! measure in `WALDEN` (a release build).
//!
//! The segments that are there already are rows in the index and files in a directory repository, made up; those that
//! are pushed and fetched are real.

#![allow(clippy::expect_used)]

mod real_wal;
mod rows;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use walden::index::Index;
use walden::postgres::ControlFile;

/// How many segments are pushed, each by a call of its own.
const PUSHED: usize = 40;

/// How often a call that answers from the index is timed.
const ANSWERS: usize = 300;

fn main() {
    let Some(program) = std::env::var_os("WALDEN").and_then(|path| std::path::absolute(path).ok()) else {
        eprintln!("say in WALDEN which program to measure");
        std::process::exit(2);
    };
    println!(
        "{:<16}{:>10}{:>10}{:>10}{:>10}{:>14}{:>14}{:>10}{:>10}{:>10}",
        "p50 ms, of",
        "push",
        "known",
        "get",
        "events",
        "of a table",
        "first status",
        "status",
        "list",
        "list wal"
    );
    for archived in [100, 200_000] {
        let site = Site::new(&program, archived);
        let segments = site.segments();
        let median = |mut took: Vec<Duration>| {
            took.sort();
            format!("{:.2}", took[took.len() / 2].as_secs_f64() * 1000.0)
        };
        let push = median(segments.iter().map(|name| site.push(name)).collect());
        let known = median((0..ANSWERS).map(|at| site.push(&segments[at % segments.len()])).collect());
        let get = median(segments.iter().map(|name| site.get(name)).collect());
        let events = median((0..20).map(|_| site.run(&["events"])).collect());
        let table = median((0..20).map(|_| site.run(&["events", "--table", "public.t7"])).collect());
        let first = median(vec![site.run(&["status"])]);
        let timed = |command: &[&str]| median((0..20).map(|_| site.run(command)).collect());
        let (status, list, wal) = (timed(&["status"]), timed(&["list"]), timed(&["list", "wal"]));
        println!(
            "{archived:<16}{push:>10}{known:>10}{get:>10}{events:>10}{table:>14}{first:>14}{status:>10}{list:>10}{wal:>10}"
        );
    }
}

/// A data directory with real segments, and an archive of so many others.
struct Site {
    dir: tempfile::TempDir,
    program: PathBuf,
}

impl Site {
    fn new(program: &Path, archived: u64) -> Self {
        let site = Self { dir: tempfile::tempdir().expect("a directory"), program: program.to_owned() };
        for part in ["data/global", "data/pg_wal", "repository"] {
            std::fs::create_dir_all(site.path(part)).expect("create a directory");
        }
        let wal = real_wal::directory();
        for (file, to) in [("pg_control", "data/global/pg_control"), ("PG_VERSION", "data/PG_VERSION")] {
            std::fs::copy(wal.join(file), site.path(to)).expect("copy");
        }
        for path in real_wal::paths().iter().take(PUSHED) {
            let name = path.file_name().expect("a name");
            std::fs::copy(path, site.path("data/pg_wal").join(name)).expect("copy");
        }
        let url = format!("file://{}", site.path("repository").display());
        let (data, state) = (site.path("data"), site.path("state"));
        let init = ["init", "--repository", &format!("primary={url}"), "--data-dir"];
        site.run(&[&init[..], &[text(&data), "--state-dir", text(&state)]].concat());
        site.archive_others(archived, &url);
        site
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    fn segments(&self) -> Vec<String> {
        real_wal::paths()
            .iter()
            .take(PUSHED)
            .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned())
            .collect()
    }

    /// Makes up what was archived before: after the real ones, and also in the directory that they go to.
    fn archive_others(&self, count: u64, url: &str) {
        let control = std::fs::read(self.path("data/global/pg_control")).expect("read");
        let sysid = ControlFile::parse(&control).expect("a control file").system_identifier;
        let cluster = self.path("repository").join("main").join(sysid.to_string());
        let file = std::fs::read(cluster.join("cluster.json")).expect("cluster.json");
        let file: serde_json::Value = serde_json::from_slice(&file).expect("JSON");
        let id = file["id"].as_str().expect("an id");
        let index = Index::open(&self.path("state/main/index.sqlite")).expect("open the index");
        let segments = 100..100 + count;
        rows::fill_for(&index, segments.clone(), sysid, url, id);
        rows::fill_events(&index, segments.clone(), sysid);
        // One a minute.
        rusqlite::Connection::open(self.path("state/main/index.sqlite"))
            .and_then(|connection| {
                connection.execute(
                    "UPDATE wal SET archived_at = archived_at - (1 + ?1 - id) * 60000000",
                    [count.cast_signed()],
                )
            })
            .expect("set times");
        for at in segments {
            let directory = cluster.join(format!("wal/00000001/{:08X}", at >> 8));
            std::fs::create_dir_all(&directory).expect("create a directory");
            let object = format!("{}-{at:08x}.lz4.age", rows::name(at));
            std::fs::write(directory.join(object), "x").expect("write");
        }
        // One backup for four hundred segments.
        let now = jiff::Timestamp::now().as_second();
        for number in 0..count / 400 {
            let stop = jiff::Timestamp::from_second(now - (count / 400 - number).cast_signed() * 3600)
                .expect("a time");
            let id = format!("{}-00000001-{number:08x}", stop.strftime("%Y%m%dT%H%M%SZ"));
            let (_, summary) = rows::backup_summary(sysid, &id, 100 + number * 400, stop, 40);
            let folder = cluster.join("backup").join(&id);
            std::fs::create_dir_all(&folder).expect("create a directory");
            std::fs::write(folder.join("backup.json"), summary).expect("write");
        }
    }

    fn push(&self, name: &str) -> Duration {
        self.run(&["archive-push", &format!("pg_wal/{name}")])
    }

    fn get(&self, name: &str) -> Duration {
        let took = self.run(&["archive-get", name, "pg_wal/RECOVERYXLOG"]);
        let fetched = std::fs::metadata(self.path("data/pg_wal/RECOVERYXLOG")).expect("the segment");
        assert_eq!(fetched.len(), 16 << 20);
        took
    }

    fn run(&self, arguments: &[&str]) -> Duration {
        let began = Instant::now();
        let status = Command::new(&self.program)
            .arg("--config")
            .arg(self.path("walden.toml"))
            .args(arguments)
            .current_dir(self.path("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .expect("run walden");
        let took = began.elapsed();
        assert!(status.success(), "{arguments:?}: {status}");
        took
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
