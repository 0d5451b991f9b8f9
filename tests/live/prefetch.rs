//! Fetching ahead of the server: all of the WAL is replayed, nothing foreign is ever served, and the process that does it
//! is in nobody's way.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::restored::{make_standby, set, start_and_promote};
use crate::support::{
    Cluster, Installation, Ledger, Site, Stop, live_test, tools, user, wait_for, wait_until,
};

fn spool(site: &Site) -> PathBuf {
    let spools = site.work.join("state/main/spool");
    let mut dirs = fs::read_dir(&spools).expect("the spools").flatten();
    dirs.next().expect("a spool").path()
}

/// Returns the files of the spool that are segments.
fn spooled(site: &Site) -> Vec<PathBuf> {
    let files = fs::read_dir(spool(site)).expect("the spool").flatten().map(|file| file.path());
    let mut files: Vec<_> = files
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("0000")))
        .collect();
    files.sort();
    files
}

/// Returns the id in a repository's `cluster.json`.
fn cluster_id(site: &Site, repository: &str) -> String {
    let folder = fs::read_dir(site.repository(repository).join("main")).expect("read").flatten().next();
    let text = fs::read(folder.expect("a folder").path().join("cluster.json")).expect("read");
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    json["id"].as_str().expect("an id").to_owned()
}

/// Returns the prefetchers that run with this site's configuration.
fn prefetchers(site: &Site) -> Vec<i32> {
    let config = site.config.display().to_string();
    let pids = fs::read_dir("/proc").expect("proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("archive-prefetch") && line.contains(&config)
        })
        .collect()
}

/// Empties the spool, and returns the lock without which no prefetcher works.
fn kill_prefetcher_and_take_its_lock(site: &Site) -> fs::File {
    for pid in prefetchers(site) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    wait_until("the prefetcher is gone", || prefetchers(site).is_empty());
    let path = spool(site).join("lock");
    let lock = fs::File::options().write(true).create(true).truncate(false).open(&path).expect("open");
    user::give(&path);
    lock.try_lock().expect("lock");
    for file in spooled(site) {
        fs::remove_file(file).expect("remove");
    }
    lock
}

#[track_caller]
fn recover(site: &Site, pg: &Installation, name: &str) -> Cluster {
    let dir = site.work.join(name);
    site.walden
        .run(&["recover", "--until", "latest", "--start", "--data-dir", &dir.display().to_string()])
        .ok();
    Cluster::adopt(pg, &dir)
}

live_test!(
    fn recovery_replays_everything_and_leaves_an_empty_spool(pg: Installation) {
        let site = Site::with_backup(&pg);
        site.fill(24);
        let all = Ledger::ids(&site.cluster);
        let mut cluster = recover(&site, &pg, "restored");
        assert_eq!(Ledger::ids(&cluster), all);
        cluster.stop(Stop::Fast);
        assert!(spool(&site).join("wanted").exists(), "the prefetcher was at work");
        // It ends by itself and leaves nothing.
        wait_until("the prefetcher has ended", || prefetchers(&site).is_empty());
        assert_eq!(spooled(&site), Vec::<PathBuf>::new());
    }
);

live_test!(
    [15]
    fn segments_are_ready_before_they_are_asked_for_and_one_prefetcher_does_it(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        let names = site.fill(12);
        // One file is one file; two in a row are a recovery.
        site.get(&names[0], &[]).0.ok();
        assert!(prefetchers(&site).is_empty());
        site.get(&names[1], &[]).0.ok();
        wait_until("eight segments are ready", || spooled(&site).len() == 8);
        assert_eq!(prefetchers(&site).len(), 1);
        // What is ready needs no repository.
        site.take_away();
        let (finished, path) = site.get(&names[2], &[]);
        finished.ok();
        assert_eq!(fs::metadata(path).expect("the file").len(), 16 << 20);
        site.get("0000000100000000000000F0", &[]).0.expect_code(200);
        site.bring_back();
        // Out of order, as pg_rewind asks, everything comes too.
        for name in names.iter().rev() {
            site.get(name, &[]).0.ok();
        }
        for name in &names {
            let (finished, path) = site.get(name, &[]);
            finished.ok();
            let object = &site.wal_objects("primary", name)[0];
            let crc = format!("{:08x}", crc32fast::hash(&fs::read(path).expect("read")));
            assert!(object.display().to_string().contains(&crc), "{name}");
        }
        assert!(prefetchers(&site).len() <= 1);
    }
);

live_test!(
    [15, 17]
    fn a_poisoned_spool_is_never_served(pg: Installation) {
        let site = Site::with_backup(&pg);
        let names = site.fill(8);
        let all = Ledger::ids(&site.cluster);
        // A fetch makes the spool. The test takes the place of its prefetcher, so that the poison stays.
        site.get(&names[0], &[]).0.ok();
        let _lock = kill_prefetcher_and_take_its_lock(&site);
        let id = cluster_id(&site, "primary");
        let good = |name: &str| {
            let (finished, path) = site.get(name, &["--without", "replica"]);
            finished.ok();
            fs::read(path).expect("read")
        };
        let put = |name: &str, crc: u32, id: &str, content: &[u8]| {
            let path = spool(&site).join(format!("{name}-{crc:08x}-{id}"));
            fs::write(&path, content).expect("write");
            user::give(&path);
        };
        let contents: Vec<Vec<u8>> = names.iter().map(|name| good(name)).collect();
        let poison = || {
            let mut foreign = contents[1].clone();
            foreign[24] ^= 1;
            put(&names[1], crc32fast::hash(&foreign), &id, &foreign);
            put(&names[2], crc32fast::hash(&contents[2]), &id, &contents[2][..1 << 20]);
            let mut flipped = contents[3].clone();
            flipped[5000] ^= 1;
            put(&names[3], crc32fast::hash(&contents[3]), &id, &flipped);
            // Another segment's content, zeros, nothing, and good content that says it is of a repository nobody knows.
            put(&names[4], crc32fast::hash(&contents[5]), &id, &contents[5]);
            put(&names[5], crc32fast::hash(&vec![0; 16 << 20]), &id, &vec![0; 16 << 20]);
            put(&names[6], 0, &id, b"");
            let mut unknown = contents[7].clone();
            let last = unknown.len() - 1;
            unknown[last] ^= 1;
            put(&names[7], crc32fast::hash(&unknown), "feedfeedfeed", &unknown);
        };
        poison();
        assert_eq!(spooled(&site).len(), 7);
        for (name, content) in names.iter().zip(&contents).skip(1).rev() {
            let (finished, path) = site.get(name, &[]);
            assert!(finished.stderr.contains("is not used"), "{finished}");
            finished.ok();
            assert!(fs::read(path).expect("read") == *content, "{name}");
        }
        assert!(spooled(&site).is_empty());
        poison();
        let mut cluster = recover(&site, &pg, "restored");
        assert_eq!(Ledger::ids(&cluster), all);
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    fn the_log_collector_ends_when_the_server_is_stopped(pg: Installation) {
        let site = Site::with_backup(&pg);
        site.fill(12);
        site.cluster.psql("select pg_create_restore_point('here')");
        site.archive_a_segment();
        // Paused, the server goes on recovering, and a prefetcher works for it until it has been idle for a while.
        let dir = site.restore("restored", &["--until", "name:here", "--action", "pause"]);
        let target = dir.display().to_string();
        let socket = user::WorkDir::short();
        set(
            &dir,
            &format!(
                "logging_collector = 'on'\nport = '{}'\nunix_socket_directories = '{}'\nlisten_addresses = ''",
                crate::support::free_port(),
                socket.path().display()
            ),
        );
        let pg_ctl = |arguments: &[&str]| {
            let mut command = user::command(pg.program("pg_ctl"));
            command.args(["-D", &target, "-w", "-l", &site.work.join("start.log").display().to_string()]);
            crate::support::run(command.args(arguments))
        };
        user::give(&site.work.write("start.log", ""));
        pg_ctl(&["start"]).ok();
        // One that was only just started has still to let go of the server; then it leads a session of its own.
        let detached = || {
            let leads = |pid: &i32| {
                let pid = nix::unistd::Pid::from_raw(*pid);
                nix::unistd::getsid(Some(pid)) == Ok(pid)
            };
            prefetchers(&site).into_iter().filter(leads).collect::<Vec<i32>>()
        };
        wait_until("a prefetcher runs", || !detached().is_empty());
        let collectors = || logger_of(&dir);
        assert_eq!(collectors().len(), 1, "the log collector runs");
        let running = detached();
        assert!(!running.is_empty(), "it is looked at while it runs");
        for pid in running {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            for fd in fds {
                let to = fs::read_link(fd.path()).unwrap_or_default().display().to_string();
                assert!(
                    !to.starts_with("pipe:") && !to.starts_with(&target),
                    "{} is {to}",
                    fd.path().display()
                );
            }
            assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default(), Path::new("/"));
        }
        pg_ctl(&["stop", "-m", "fast"]).ok();
        assert!(wait_for(Duration::from_secs(5), || collectors().is_empty()), "the log collector ends");
        wait_until("the prefetcher ends with the server", || prefetchers(&site).is_empty());
    }
);

/// Returns the log collectors that work in this data directory.
fn logger_of(data_dir: &Path) -> Vec<i32> {
    let pids = fs::read_dir("/proc").expect("proc").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).starts_with("postgres: logger")
                && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data_dir)
        })
        .collect()
}

live_test!(
    [15]
    fn without_a_writable_state_dir_and_with_prefetch_off_everything_comes(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        let names = site.fill(3);
        let text = fs::read_to_string(&site.config).expect("read");
        let blocked = site.work.write("blocked", "a file");
        let state = site.work.join("state").display().to_string();
        fs::write(&site.config, text.replace(&state, &blocked.display().to_string())).expect("write");
        for name in &names {
            let (finished, _) = site.get(name, &[]);
            assert!(!finished.stderr.contains("WARNING"), "{finished}");
            finished.ok();
        }
        let (finished, _) = site.get("00000002.history", &[]);
        assert_eq!(finished.stderr.lines().filter(|line| line.starts_with("WARNING")).count(), 1, "{finished}");
        finished.expect_code(1);
        site.get("0000000100000000000000F0", &[]).0.expect_code(1);

        fs::write(&site.config, format!("{text}\n")).expect("write");
        let off = if text.contains("[archive]") {
            text.replace("[archive]", "[archive]\nprefetch = 0")
        } else {
            format!("{text}\n[archive]\nprefetch = 0\n")
        };
        fs::write(&site.config, off).expect("write");
        for name in &names {
            site.get(name, &[]).0.ok();
        }
        assert!(prefetchers(&site).is_empty());
    }
);

live_test!(
    // 14 and 16 come without pg_rewind.
    [15, 17, 18]
    fn pg_rewind_finds_the_wal_that_it_needs(pg: Installation) {
        let tools = user::WorkDir::new();
        let Some(program) = tools::pg_rewind(&pg, &tools) else { return };
        let mut site = Site::with_backup(&pg);
        site.fill(2);
        let dir = site.restore("promoted", &["--until", "latest", "--take-over"]);
        let mut promoted = start_and_promote(&pg, &dir);
        Ledger::add(&promoted);
        promoted.wait_archived(&promoted.switch_wal());
        let ids = Ledger::ids(&promoted);
        promoted.stop(Stop::Fast);
        // The old primary went on by itself for a while, and has not kept its WAL.
        site.fill(4);
        site.cluster.stop(Stop::Fast);
        let old = site.cluster.data_dir().to_owned();
        let away = site.work.create_dir("away");
        let mut segments: Vec<PathBuf> = fs::read_dir(old.join("pg_wal"))
            .expect("read")
            .flatten()
            .map(|file| file.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.len() == 24 && !site.wal_objects("primary", &name).is_empty()
            })
            .collect();
        segments.sort();
        for segment in &segments {
            fs::rename(segment, away.join(segment.file_name().expect("a name"))).expect("rename");
        }
        site.cluster.append_config(&format!("restore_command = '{}'\n", site.walden.command_line("archive-get %f %p")));
        let rewind = || {
            let mut command = user::command(&program);
            command.args(["-c", "-D"]).arg(&old).arg("--source-pgdata").arg(&dir);
            crate::support::run(&mut command).ok()
        };
        rewind();
        // It follows the new timeline now.
        make_standby(&old);
        let port = site.cluster.port();
        site.cluster.append_config(&format!(
            "archive_mode = off\nrestore_command = '{}'\nport = {port}\nunix_socket_directories = '{}'\n",
            site.walden.command_line("archive-get %f %p"),
            site.cluster.socket_dir().display()
        ));
        fs::remove_file(old.join("postgresql.auto.conf")).expect("remove");
        site.cluster.start();
        site.cluster.wait_until("the rewound server has caught up", || Ledger::ids(&site.cluster) == ids);
        site.cluster.stop(Stop::Fast);
    }
);
