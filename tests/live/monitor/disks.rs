//! The rules about disks: small ones that really fill up.

use std::io::Write;
use std::process::Command;

use super::wal::archive;
use super::*;
use crate::support::tools::run;
use crate::support::user::{WorkDir, give};
use crate::support::{ClusterOptions, SiteOptions, require};

/// A small filesystem in memory, unmounted when dropped.
struct Disk(WorkDir);

impl Disk {
    /// Needs the right to mount.
    #[track_caller]
    fn mount(megabytes: u32) -> Option<Self> {
        let disk = Self(WorkDir::new());
        let options = format!("size={megabytes}m,mode=0777");
        let mut mount = Command::new("mount");
        let mounted = run(mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(disk.path()));
        require(
            (mounted.code == 0).then_some(disk),
            format_args!("the right to mount a small disk: {mounted}"),
        )
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it with a file until so many percent are free.
    fn fill(&self, percent: u64) {
        let space = walden::durable::disk_space(self.path()).expect("its space");
        let more = space.free.saturating_sub(space.size * percent / 100);
        let file = fs::File::options().append(true).create(true).open(self.filler());
        file.and_then(|mut file| file.write_all(&vec![1; more as usize])).expect("fill");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.path()));
    }
}

live_test!(
    [18]
    fn disks_that_fill_up_are_told(pg: Installation) {
        let disks = (Disk::mount(64), Disk::mount(64), Disk::mount(64));
        let (Some(wal), Some(repository), Some(state_dir)) = disks else { return };
        let url = format!("primary=file://{}", repository.path().join("primary").display());
        let waldir = wal.path().join("wal").display().to_string();
        let cluster = ClusterOptions {
            initdb_args: vec![format!("--waldir={waldir}")],
            ..ClusterOptions::default().wal_segment_size_mb(1)
        };
        let cluster = cluster.setting("min_wal_size", "2MB").setting("max_wal_size", "4MB");
        let site = Site::with(&pg, &SiteOptions { cluster, repositories: vec![url], ..SiteOptions::default() });
        let text = fs::read_to_string(&site.config).expect("read");
        let old = site.work.join("state").display().to_string();
        let state_there = state_dir.path().join("state");
        fs::write(&site.config, text.replace(&old, &state_there.display().to_string())).expect("write");
        fs::create_dir(&state_there).expect("create");
        give(&state_there);
        configure(&site, "[status]\nunarchived_warning = \"1s\"");
        Ledger::create(&site.cluster);
        back_up(&site);
        site.fill(2);

        let all = [("of state_dir", &state_dir), ("of repository \"primary\"", &repository)];
        for (about, disk) in all {
            says_of(&site, "free-space", SILENT, about);
            disk.fill(15);
            says_of(&site, "free-space", "warning", about);
            disk.fill(3);
            says_of(&site, "free-space", "critical", about);
            fs::remove_file(disk.filler()).expect("remove");
            says_of(&site, "free-space", SILENT, about);
        }

        // While archiving stands still the server fills the third by itself.
        says_of(&site, "free-space", SILENT, "of pg_wal");
        says(&site, "wal-disk", SILENT);
        archive(&site, false);
        let write_until = |percent: u64| {
            let is_full = || {
                let space = walden::durable::disk_space(wal.path()).expect("its space");
                space.free * 100 < space.size * percent
            };
            while !is_full() {
                Ledger::add(&site.cluster);
                site.cluster.switch_wal();
            }
        };
        write_until(50);
        comes_to_say(&site, "wal-disk", "warning");
        says_of(&site, "free-space", SILENT, "of pg_wal");
        write_until(20);
        says_of(&site, "free-space", "warning", "of pg_wal");
        write_until(5);
        says_of(&site, "free-space", "critical", "of pg_wal");

        archive(&site, true);
        wait_until("what waited is archived and removed", || {
            site.fill(1);
            site.cluster.psql("checkpoint");
            state(&site, "free-space", "of pg_wal", &[]) == SILENT
        });
        // What the server recycled has names that come later, and commits that are archived.
        says(&site, "unarchived", SILENT);
        says(&site, "wal-disk", SILENT);
    }
);
