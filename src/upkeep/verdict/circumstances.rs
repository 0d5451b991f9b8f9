//! What a verdict needs beside the status: disks, verifications, and what `expire` left.

use super::{Promises, kept};
use crate::durable::{DiskSpace, disk_space};
use crate::index::IndexHandle;
use crate::repository::{ClusterKeys, Repository};
use crate::upkeep::status::Status;
use jiff::Timestamp;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What a verdict needs beside the status.
#[derive(Debug, Default, Serialize)]
pub struct Circumstances {
    /// The disks of state_dir, of pg_wal, and of repositories that are directories.
    pub spaces: Vec<Space>,
    /// What the index knows of verifications, by repository. Empty without an index.
    pub verified: Vec<Verified>,
    /// The repositories with backups that should have expired long ago.
    pub overdue: Vec<Overdue>,
}

/// The space on the disk of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Space {
    /// `state_dir`, `pg_wal`, or the repository as messages name it.
    pub name: String,
    /// The directory.
    pub path: PathBuf,
    /// Bytes that an ordinary user may still write.
    pub free: u64,
    /// Bytes of the whole disk.
    pub size: u64,
}

impl Space {
    fn of(name: impl Into<String>, path: &Path) -> Option<Self> {
        let DiskSpace { free, size } = disk_space(path).ok()?;
        (size > 0).then(|| Self { name: name.into(), path: path.to_path_buf(), free, size })
    }

    /// Returns how much of it is free, in percent.
    pub fn free_percent(&self) -> f64 {
        self.free as f64 * 100.0 / self.size as f64
    }
}

/// When a repository was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The repository's name.
    pub repository: String,
    /// The end of the last verification that looked at all and found nothing wrong.
    pub at: Option<Timestamp>,
    /// How much the last one found to be wrong.
    pub last_problems: u64,
}

/// Backups that `expire` should have removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Overdue {
    /// The repository's name.
    pub repository: String,
    /// Their ids, oldest first.
    pub backups: Vec<String>,
}

impl Circumstances {
    /// Gathers them. What cannot be found out is left out.
    pub fn gather(
        status: &Status,
        repositories: &[Repository],
        (state_dir, data_dir): (&Path, &Path),
        promises: &Promises<'_>,
        index: &IndexHandle,
        now: Timestamp,
    ) -> Self {
        let mut spaces: Vec<Space> = Space::of("state_dir", state_dir).into_iter().collect();
        if status.pg_wal_read {
            spaces.extend(Space::of("pg_wal", &data_dir.join("pg_wal")));
        }
        let sysid = status.system_identifier;
        let mut verified = Vec::new();
        let mut overdue = Vec::new();
        for repository in &status.repositories {
            if let Some(path) = repository.url.strip_prefix("file://")
                && repository.problem.is_none()
            {
                spaces.extend(Space::of(format!("repository \"{}\"", repository.name), Path::new(path)));
            }
            let url = &repository.url;
            verified.extend(index.run(|index| {
                let at = index.verified_at(url, sysid)?.and_then(|us| Timestamp::from_microsecond(us).ok());
                let last = index.last_verification(url, sysid)?;
                let last_problems = last.map_or(0, |last| last.problems);
                Ok(Verified { repository: repository.name.clone(), at, last_problems })
            }));
            if let Some(policy) = promises.retention.get(&repository.name) {
                let ago = promises.thresholds.expire_overdue;
                let mut backups = kept::not_kept(status, &repository.name, policy, now, ago);
                if !backups.is_empty() {
                    let known = repositories.iter().find(|known| known.name() == repository.name);
                    let keys = ClusterKeys::new(&status.cluster, sysid);
                    // Where pins cannot be read, nothing is said.
                    match known.map(|known| crate::repository::list_pins(known, &keys)) {
                        Some(Ok(pins)) => backups.retain(|id| !pins.contains(id)),
                        _ => backups.clear(),
                    }
                }
                if !backups.is_empty() {
                    overdue.push(Overdue { repository: repository.name.clone(), backups });
                }
            }
        }
        Self { spaces, verified, overdue }
    }
}
