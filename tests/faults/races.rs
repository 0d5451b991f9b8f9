//! Several calls at once: on one host for the same file, on two hosts for one name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Barrier;
use std::thread;

use walden::archive::{Pushed, push};
use walden::index::IndexHandle;
use walden::kind::{Kind, Result};

use crate::segment::{name, segment};
use crate::site::{Site, sealer, walden};

const ROUNDS: u32 = 50;

#[test]
fn calls_for_the_same_file_at_once_all_succeed_and_store_it_once() {
    let site = Site::new(2, 1);
    for round in 1..10 {
        let own = name(round);
        let content = segment(&own, 1);
        site.add(&own, &content);
        site.add_segment(&name(round + 100), 2);
        let barrier = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    site.push(&own).unwrap();
                });
            }
        });
        site.assert_archived(&own, &content, "at once");
        assert_eq!(site.push(&own).unwrap(), Pushed::KnownByIndex);
    }
    site.assert_only_added(&site.snapshot(), "at the end");
}

#[test]
fn processes_for_the_same_file_at_once_all_succeed_and_store_it_once() {
    let site = Site::new(2, 1);
    let config = site.config("host");
    for round in 1..6 {
        let own = name(round);
        let content = segment(&own, 1);
        let path = site.add(&own, &content);
        let codes = run_at_once(&[(&config, &path), (&config, &path), (&config, &path)]);
        assert!(codes.iter().all(|(code, _)| *code == Some(0)), "{codes:?}");
        site.assert_archived(&own, &content, "at once");
    }
    site.assert_only_added(&site.snapshot(), "at the end");
}

/// Runs a push for each configuration and file at the same moment; returns exit codes and messages.
fn run_at_once(calls: &[(&Path, &Path)]) -> Vec<(Option<i32>, String)> {
    let barrier = Barrier::new(calls.len());
    thread::scope(|scope| {
        let runs: Vec<_> = calls
            .iter()
            .map(|(config, path)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut command = walden(config, &["archive-push", path.to_str().unwrap()]);
                    command.stdout(Stdio::null()).stderr(Stdio::piped());
                    barrier.wait();
                    let output = command.output().unwrap();
                    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

/// Two hosts: each with a `pg_wal` and an index of its own, and different content under one name.
fn contenders(site: &Site, name: &str, round: u32) -> [(PathBuf, Vec<u8>); 2] {
    [0, 1].map(|host| {
        let content = segment(name, u64::from(round * 2 + host));
        let dir = site.path(&format!("host{host}/pg_wal"));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(name);
        fs::write(&path, &content).unwrap();
        (path, content)
    })
}

/// What must hold after a race: not both were told "archived"; whoever was has its content there; nothing else is there.
fn judge(site: &Site, name: &str, contents: [&[u8]; 2], told: [bool; 2]) {
    assert!(!(told[0] && told[1]), "{name}: both hosts were told that theirs is archived");
    let held = site.held(name);
    for (content, told) in contents.into_iter().zip(told) {
        let copies = held.iter().filter(|held| held.iter().any(|one| one == content)).count();
        assert!(
            !told || copies >= site.acknowledge,
            "{name}: acknowledged, and held by {copies} repositories"
        );
    }
    for other in held.iter().flatten() {
        assert!(contents.contains(&&other[..]), "{name}: content of neither host");
    }
    assert!(held.iter().any(|held| !held.is_empty()), "{name}: nothing is there");
}

#[test]
fn of_two_hosts_with_different_content_at_least_one_hears_of_it() {
    for acknowledge in [1, 2] {
        let site = Site::new(acknowledge, 1);
        let mut both_refused = 0;
        for round in 0..ROUNDS {
            let name = name(round + 1);
            let [first, second] = contenders(&site, &name, round);
            let barrier = Barrier::new(2);
            let run = |path: &Path, host: usize| -> Result<Pushed> {
                let index = IndexHandle::open(&site.path(&format!("state{host}/index.sqlite")));
                let repositories = site.repositories();
                barrier.wait();
                push(path, &site.push_options(), &repositories, &sealer(), &index)
            };
            let [a, b] = thread::scope(|scope| {
                let runs =
                    [(&first.0, 0), (&second.0, 1)].map(|(path, host)| scope.spawn(move || run(path, host)));
                runs.map(|run| run.join().unwrap())
            });
            for refused in [&a, &b].into_iter().filter_map(|outcome| outcome.as_ref().err()) {
                assert_eq!(refused.kind(), Kind::Conflict, "{refused}");
            }
            both_refused += u32::from(a.is_err() && b.is_err());
            judge(&site, &name, [&first.1, &second.1], [a.is_ok(), b.is_ok()]);
        }
        eprintln!("acknowledge {acknowledge}: both hosts were refused in {both_refused} of {ROUNDS} rounds");
        site.assert_only_added(&site.snapshot(), "at the end");
    }
}

#[test]
fn of_two_processes_with_different_content_at_least_one_exits_with_5() {
    let site = Site::new(1, 1);
    let configs = [site.config("host0"), site.config("host1")];
    for round in 0..ROUNDS / 5 {
        let name = name(round + 1);
        let [first, second] = contenders(&site, &name, round);
        let ends = run_at_once(&[(&configs[0], &first.0), (&configs[1], &second.0)]);
        let codes: Vec<i32> = ends.iter().map(|(code, _)| code.unwrap()).collect();
        assert!(codes.contains(&5) && codes.iter().all(|code| [0, 5].contains(code)), "{ends:?}");
        judge(&site, &name, [&first.1, &second.1], [codes[0] == 0, codes[1] == 0]);
        for (path, content) in [&first, &second] {
            assert!(fs::read(path).unwrap() == *content, "the host still has its own");
        }
    }
}
