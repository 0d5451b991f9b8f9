//! What the repositories hold and what can be recovered from it, in a screenful.

use super::bad_pages::{BadPagesFound, bad_pages};
use super::flow::{Flow, flow};
use super::holdings::{Holdings, catalog, look};
use super::rebuild::fill_if_bare;
use super::unarchived::{LOOKED_AT, Unarchived, backlog, oldest_commit};
use super::windows::Sources;
pub use super::windows::Window;
use crate::codec::Opener;
use crate::index::{BadWal, Breaker, Damage, IndexHandle};
use crate::kind::Result;
use crate::postgres::{SegmentSet, SystemIdentifier, TimelineId, WalSegmentName};
use crate::repository::{Repository, ask_all};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// Everything that `status` shows.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The cluster's name.
    pub cluster: String,
    /// Its system identifier.
    pub system_identifier: SystemIdentifier,
    /// The repositories, in the order of the configuration.
    pub repositories: Vec<RepositoryStatus>,
    /// The backups, newest first.
    pub backups: Vec<BackupStatus>,
    /// To which moments the cluster can be recovered.
    pub windows: Vec<Window>,
    /// When the newest segment was archived, as the index knows it.
    pub newest_archived: Option<Timestamp>,
    /// Whether what is not archived yet could be looked at: `pg_wal` of the data directory is on this machine.
    pub pg_wal_read: bool,
    /// The time of the newest commit that is archived, as the index knows it.
    pub newest_commit: Option<Timestamp>,
    /// How fast the server writes WAL.
    pub wal: Option<Flow>,
    /// Records that no recovery can pass, since the newest backup.
    pub bad_wal: Vec<BadWal>,
    /// Objects that were found damaged and are not mended yet.
    pub damage: Vec<Damage>,
    /// Bad pages in the database itself that the newest backup found; none if it is clean.
    pub bad_pages: Option<BadPagesFound>,
}

/// One repository.
#[derive(Debug, Default, Serialize)]
pub struct RepositoryStatus {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// Whether it answers and knows the cluster.
    pub reachable: bool,
    /// Why it cannot be used; none if it can.
    pub problem: Option<String>,
    /// When the cluster was set up in it.
    pub created: Option<Timestamp>,
    /// The number of WAL segments in it.
    pub segments: u64,
    /// The bytes that they take there.
    pub stored_bytes: u64,
    /// The newest segment of the newest timeline.
    pub newest_segment: Option<WalSegmentName>,
    /// When that one was stored.
    pub newest_stored: Option<Timestamp>,
    /// How many segments it lacks that another repository holds; of one that cannot be asked, how many the index knows of.
    pub behind: u64,
    /// The time of the oldest commit that it does not hold, because it lacks the segment or because it is not archived
    /// yet. None: there is no such commit, or it is not known here.
    pub oldest_unarchived_commit: Option<Timestamp>,
    /// Its circuit breaker; none while calls to it go well.
    pub breaker: Option<BreakerStatus>,
    /// The number of complete backups in it.
    pub backups: usize,
}

/// The circuit breaker of a repository whose last call failed.
#[derive(Debug, Serialize)]
pub struct BreakerStatus {
    /// Whether `archive-push` leaves the repository alone now.
    pub open: bool,
    /// When the first of the failures was.
    pub since: Option<Timestamp>,
    /// Until when it is left alone; in the past it is tried again at the next call.
    pub until: Option<Timestamp>,
    /// How many calls failed in a row.
    pub failures: u32,
    /// What the last failure was.
    pub last_error: String,
}

impl From<Breaker> for BreakerStatus {
    fn from(breaker: Breaker) -> Self {
        let time = |us| Timestamp::from_microsecond(us).ok();
        Self {
            open: breaker.is_open(),
            since: breaker.since.and_then(time),
            until: time(breaker.open_until),
            failures: breaker.failures,
            last_error: breaker.last_error,
        }
    }
}

/// One backup.
#[derive(Debug, Serialize)]
pub struct BackupStatus {
    /// Its id.
    pub id: String,
    /// Its label.
    pub label: String,
    /// When it ended: the first moment that it can be recovered to.
    pub stop_time: Timestamp,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The bytes of the database.
    pub size: u64,
    /// The bytes that it takes in a repository.
    pub stored_size: u64,
    /// The repositories that hold it.
    pub repositories: Vec<String>,
    /// Pages whose checksum was wrong.
    pub bad_pages: u64,
}

/// Finds out the status of `sysid`, whose server's data directory may be at `data_dir`. Repositories that cannot be asked
/// are said to be so; the rest is told from the others.
pub fn status(
    cluster: &str,
    sysid: SystemIdentifier,
    data_dir: &Path,
    repositories: &[Repository],
    opener: &Opener,
    index: &IndexHandle,
) -> Result<Status> {
    let all: Vec<&Repository> = repositories.iter().collect();
    let looks = ask_all(
        &all,
        usize::MAX,
        |repository, deadline| (repository, look(repository, cluster, sysid, index, deadline)),
        |_| false,
    );
    let mut everywhere = SegmentSet::default();
    for held in looks.iter().filter_map(|(_, look)| look.as_ref().ok()) {
        everywhere.extend(&held.segments);
    }
    let usable: Vec<(&Repository, &Holdings)> =
        looks.iter().filter_map(|(repository, look)| Some((*repository, look.as_ref().ok()?))).collect();
    let asked: Vec<&Repository> = usable.iter().map(|(repository, _)| *repository).collect();
    fill_if_bare(cluster, sysid, &asked, opener, index);
    let here = Unarchived::look(data_dir, sysid);
    let mut list = Vec::new();
    for (repository, look) in &looks {
        let breaker = index.run(|index| index.breaker(repository.url())).flatten().map(BreakerStatus::from);
        let mut row = RepositoryStatus {
            name: repository.name().to_owned(),
            url: repository.url().to_owned(),
            reachable: look.is_ok(),
            problem: look.as_ref().err().cloned(),
            breaker,
            ..RepositoryStatus::default()
        };
        let (lacking, holds): (BTreeSet<WalSegmentName>, Box<dyn Fn(WalSegmentName) -> bool>) = match look {
            Ok(held) => {
                row.created = Some(held.file.created);
                let size = held.file.wal_segment_size;
                row.behind = everywhere.difference_len(&held.segments);
                row.segments = held.segments.len();
                row.stored_bytes = held.stored_bytes();
                row.newest_segment = held.newest().map(|(name, _)| name);
                row.newest_stored = held.newest().and_then(|(_, time)| time);
                row.backups = held.backups.len();
                let name = |(timeline, number)| WalSegmentName::from_number(timeline, number, size);
                let lacking = everywhere.difference(&held.segments).take(LOOKED_AT).map(name);
                (
                    lacking.collect(),
                    Box::new(move |name| held.segments.contains(name.timeline, name.number(size))),
                )
            }
            Err(_) => {
                let lacking = backlog(repository.url(), sysid, index);
                row.behind = lacking.len() as u64;
                (lacking, Box::new(|_| false))
            }
        };
        row.oldest_unarchived_commit = oldest_commit(here.as_ref(), &lacking, &*holds, sysid, index);
        list.push(row);
    }
    let time = |us| Timestamp::from_microsecond(us).ok();
    let totals = index.run(|index| index.wal_totals(sysid)).unwrap_or_default();
    let pg_wal = data_dir.join("pg_wal");
    let mut status = Status {
        cluster: cluster.to_owned(),
        system_identifier: sysid,
        repositories: list,
        backups: Vec::new(),
        windows: Vec::new(),
        newest_archived: totals.newest_archived.and_then(time),
        newest_commit: totals.newest_commit.and_then(time),
        wal: None,
        bad_wal: Vec::new(),
        pg_wal_read: here.is_some(),
        damage: index.run(crate::index::Index::damages).unwrap_or_default(),
        bad_pages: None,
    };
    if usable.is_empty() {
        return Ok(status);
    }
    let catalog = catalog(&usable, cluster, sysid, index);
    status.backups = catalog
        .backups
        .iter()
        .rev()
        .map(|backup| BackupStatus {
            id: backup.summary.id.clone(),
            label: backup.summary.label.clone(),
            stop_time: backup.summary.stop_time,
            timeline: backup.summary.timeline,
            size: backup.summary.size,
            stored_size: backup.summary.stored_size,
            repositories: backup.held_by.iter().map(|repository| repository.name().to_owned()).collect(),
            bad_pages: backup.summary.bad_pages,
        })
        .collect();
    status.bad_pages = bad_pages(catalog.backups.iter().map(|backup| &backup.summary), index);
    status.wal = index.run(|index| flow(index, sysid, catalog.segment_size, &pg_wal, Timestamp::now()));
    status.windows =
        Sources { catalog: &catalog, held: &everywhere, pg_wal: &pg_wal, opener, index }.windows()?;
    // A backup that began behind it needs nothing of it.
    let newest = catalog.backups.iter().map(|backup| backup.summary.start_lsn).max();
    status.bad_wal = index.run(|index| index.bad_wal(sysid, usize::MAX)).unwrap_or_default();
    status.bad_wal.retain(|bad| newest.is_none_or(|newest| bad.lsn >= newest));
    Ok(status)
}
