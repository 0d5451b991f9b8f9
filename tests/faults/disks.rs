//! Full and read-only disks: what the archiver hears, what is left behind, and that all is well once there is space.
//!
//! The disks are small tmpfs, which only root may mount; elsewhere these tests say that they are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::segment::{name, segment};
use crate::site::{Site, collect, is_temporary, walden};

/// A small filesystem in memory, unmounted when dropped.
struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Mounts a disk at `at`; none, with a message, where this user may not.
    fn mount(at: &Path, kilobytes: u32) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={kilobytes}k");
        let mounted = nix::unistd::geteuid().is_root() && mount(&["-t", "tmpfs", "-o", &size, "tmpfs"], at);
        if !mounted {
            eprintln!("skipped: only root can mount a small disk, and not everywhere");
            return None;
        }
        Some(Self { at: at.to_owned() })
    }

    fn fill(&self) {
        let _ = fs::write(self.at.join("ballast"), vec![1; 64 << 20]);
        let _ = fs::write(self.at.join("ballast2"), vec![1; 64 << 10]);
    }

    fn free(&self) {
        let _ = fs::remove_file(self.at.join("ballast"));
        let _ = fs::remove_file(self.at.join("ballast2"));
    }

    fn read_only(&self, yes: bool) {
        assert!(mount(&["-o", if yes { "remount,ro" } else { "remount,rw" }], &self.at));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn mount(arguments: &[&str], at: &Path) -> bool {
    Command::new("mount").args(arguments).arg(at).status().is_ok_and(|status| status.success())
}

/// What the program said and how it ended.
struct End {
    code: Option<i32>,
    stderr: String,
}

impl End {
    fn lines(&self, level: &str) -> usize {
        self.stderr.lines().filter(|line| line.starts_with(level)).count()
    }
}

fn run(site: &Site, arguments: &[&str]) -> End {
    let output = walden(&site.config("host"), arguments).output().unwrap();
    End { code: output.status.code(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
}

fn push(site: &Site, name: &str) -> End {
    run(site, &["archive-push", site.pg_wal().join(name).to_str().unwrap()])
}

/// Moves the first repository onto a small disk.
fn repository_on_disk(site: &Site) -> Option<Disk> {
    let [root, _] = site.roots();
    let aside = site.path("aside");
    fs::rename(&root, &aside).unwrap();
    let disk = Disk::mount(&root, 3 << 10)?;
    assert!(Command::new("cp").arg("-a").arg(aside.join(".")).arg(&root).status().unwrap().success());
    Some(disk)
}

#[test]
fn a_full_repository_is_said_in_one_line_and_takes_nothing_half() {
    let site = Site::new(2, 1);
    let Some(disk) = repository_on_disk(&site) else { return };
    let content = segment(&name(1), 1);
    site.add(&name(1), &content);
    disk.fill();
    let before = site.snapshot();
    let end = push(&site, &name(1));
    assert_eq!(end.code, Some(4), "{}", end.stderr);
    assert_eq!(end.lines("ERROR"), 1, "{}", end.stderr);
    assert!(end.stderr.contains("No space left") && end.stderr.contains("\"a\""), "{}", end.stderr);
    assert!(end.stderr.contains("free space"), "the hint fits: {}", end.stderr);
    site.assert_only_added(&before, "full");
    assert!(site.held(&name(1))[0].is_empty(), "nothing is in the full one");

    disk.free();
    let end = push(&site, &name(1));
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""));
    site.assert_archived(&name(1), &content, "with space again");
}

#[test]
fn one_full_repository_of_two_costs_a_warning_where_one_must_acknowledge() {
    let site = Site::new(1, 1);
    let Some(disk) = repository_on_disk(&site) else { return };
    let content = segment(&name(1), 1);
    site.add(&name(1), &content);
    disk.fill();
    let end = push(&site, &name(1));
    assert_eq!((end.code, end.lines("WARNING")), (Some(0), 1), "{}", end.stderr);
    site.assert_archived(&name(1), &content, "in the other one");
}

#[test]
fn a_read_only_repository_is_refused_and_nothing_more() {
    let site = Site::new(2, 1);
    let Some(disk) = repository_on_disk(&site) else { return };
    site.add_segment(&name(1), 1);
    site.add_segment(&name(2), 2);
    site.push(&name(1)).unwrap();
    fs::remove_file(site.path("state/index.sqlite")).unwrap();
    site.add_segment(&name(3), 3);
    disk.read_only(true);
    assert_eq!(push(&site, &name(3)).code, Some(4));
    let target = site.path("RECOVERYXLOG");
    let end = run(&site, &["archive-get", &name(1), target.to_str().unwrap()]);
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    disk.read_only(false);
    assert_eq!(push(&site, &name(3)).code, Some(0));
}

#[test]
fn a_full_or_read_only_state_dir_costs_a_warning_only() {
    let site = Site::new(2, 1);
    let Some(disk) = Disk::mount(&site.path("host-state"), 1 << 10) else { return };
    let mut number = 0;
    let mut push_next = |when: &str| {
        number += 1;
        let content = segment(&name(number), u64::from(number));
        site.add(&name(number), &content);
        let end = push(&site, &name(number));
        assert_eq!(end.code, Some(0), "{when}: {}", end.stderr);
        site.assert_archived(&name(number), &content, when);
        (end.lines("WARNING"), end.stderr)
    };
    let once = |(warnings, text): (usize, String)| assert_eq!(warnings, 1, "{text}");
    let silent = |(warnings, text): (usize, String)| assert_eq!(warnings, 0, "{text}");
    disk.fill();
    once(push_next("full from the start"));
    disk.free();
    silent(push_next("free"));
    disk.fill();
    let (warnings, text) = push_next("full later");
    assert!(warnings <= 1, "{text}");
    disk.free();
    silent(push_next("free again"));
    disk.read_only(true);
    once(push_next("read-only"));
    disk.read_only(false);
    silent(push_next("writable again"));
}

/// Without a note a doubt on a child timeline would be forgotten by the next call: then not even a standby may go on.
#[test]
fn with_a_state_dir_that_cannot_be_written_a_doubt_on_a_child_timeline_stops_a_standby_too() {
    let site = Site::new(2, 1);
    let Some(disk) = Disk::mount(&site.path("host-state"), 1 << 10) else { return };
    let data = site.path("data");
    fs::create_dir_all(data.join("pg_wal")).unwrap();
    fs::write(data.join("standby.signal"), "").unwrap();
    let child = name(2).replacen("00000001", "00000002", 1);
    for name in [name(1), child.clone()] {
        site.add(&name, &segment(&name, 1));
        site.push(&name).unwrap();
    }
    let get = |name: &str| {
        let config = site.config("host");
        let output = walden(&config, &["archive-get", name, "pg_wal/RECOVERYXLOG"])
            .current_dir(&data)
            .output()
            .unwrap();
        End { code: output.status.code(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    };
    let roots = site.roots().map(|root| (root.clone(), root.with_extension("away")));
    let take_away = || roots.iter().for_each(|(root, away)| fs::rename(root, away).unwrap());
    let bring_back = || roots.iter().for_each(|(root, away)| fs::rename(away, root).unwrap());
    // With and without anything in it from before.
    for round in ["nothing there", "a spool there"] {
        disk.read_only(true);
        assert_eq!((get(&name(1)).code, get(&child).code), (Some(0), Some(0)), "{round}");
        take_away();
        let end = get(&child);
        assert_eq!(end.code, Some(200), "{round}: {}", end.stderr);
        assert!(end.stderr.contains("could not be noted down"), "{round}: {}", end.stderr);
        assert_eq!(get(&name(1)).code, Some(4), "{round}: timeline 1 has no parent");
        bring_back();
        disk.read_only(false);
        assert_eq!(get(&name(1)).code, Some(0), "{round}");
        take_away();
        assert_eq!(get(&child).code, Some(4), "{round}: noted");
        bring_back();
        assert_eq!(get(&child).code, Some(0), "{round}: settled");
    }
}

#[test]
fn a_full_disk_under_the_target_stops_recovery_and_leaves_no_part_of_the_file() {
    let site = Site::new(2, 1);
    let Some(disk) = Disk::mount(&site.path("data"), 1 << 10) else { return };
    let pg_wal = site.path("data/pg_wal");
    fs::create_dir(&pg_wal).unwrap();
    site.add_segment(&name(1), 1);
    site.push(&name(1)).unwrap();
    let target = pg_wal.join("RECOVERYXLOG");
    let get = || run(&site, &["archive-get", &name(1), target.to_str().unwrap()]);
    disk.fill();
    let end = get();
    assert_eq!(end.code, Some(200), "{}", end.stderr);
    assert!(end.stderr.contains("No space left") && end.lines("ERROR") == 1, "{}", end.stderr);
    let mut left = std::collections::BTreeMap::new();
    collect(&pg_wal, &mut left);
    assert!(left.is_empty(), "{:?}", left.keys());
    let standby = run(&site, &["archive-get", "--on-error", "retry", &name(1), target.to_str().unwrap()]);
    assert!((2..=125).contains(&standby.code.unwrap()), "{}", standby.stderr);

    // A megabyte and no more: room for the file only where nothing else is left behind.
    disk.free();
    fs::write(pg_wal.join("other"), vec![1; 32 << 10]).unwrap();
    assert_eq!(get().code, Some(200));
    fs::remove_file(pg_wal.join("other")).unwrap();
    disk.read_only(true);
    assert_eq!(get().code, Some(200));
    disk.read_only(false);
    assert_eq!(get().code, Some(0));
    collect(&pg_wal, &mut left);
    assert!(left.len() == 1 && left.keys().all(|path| !is_temporary(path)));
    assert!(left[&target] == segment(&name(1), 1));
}

/// Whatever the index says of the future, of a clock that was set back since, it only ever answers for the very file.
#[test]
fn rows_from_the_future_answer_for_the_same_file_and_no_other() {
    let site = Site::new(2, 1);
    let path = site.add_segment(&name(1), 1);
    let later = std::time::SystemTime::now() + std::time::Duration::from_hours(48);
    let touch = || fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    touch();
    site.push(&name(1)).unwrap();
    assert_eq!(site.push(&name(1)).unwrap(), walden::archive::Pushed::KnownByIndex);
    // Other content with the same size, inode and modification time: the change time tells.
    fs::write(&path, segment(&name(1), 2)).unwrap();
    touch();
    assert_eq!(site.push(&name(1)).unwrap_err().kind(), walden::kind::Kind::Conflict);
}
