//! What the repositories hold of one cluster, as a recovery sees it: backups, histories, WAL.

use crate::codec::Opener;
use crate::kind::{Error, Kind, Result};
use crate::parallel::each_in_parallel;
use crate::postgres::{
    ArchiveFileName, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize,
};
use crate::repository::backup::{BackupSummary, SUMMARY_NAME};
use crate::repository::{
    ClusterFile, ClusterKeys, Repository, WalObject, ask_all, clusters, list_histories, list_wal_from,
    read_summary, read_wal_object,
};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

/// How many summaries are read at once.
const AT_ONCE: usize = 8;

/// A backup and the repositories that hold it whole.
#[derive(Debug, Clone)]
pub struct HeldBackup<'r> {
    /// Its `backup.json`.
    pub summary: BackupSummary,
    /// Who holds it, in the order of the configuration.
    pub held_by: Vec<&'r Repository>,
}

/// What the repositories hold of one system identifier.
#[derive(Debug)]
pub struct Catalog<'r> {
    /// The system identifier.
    pub sysid: SystemIdentifier,
    /// The keys of its objects.
    pub keys: ClusterKeys,
    /// The repositories that know it.
    pub repositories: Vec<&'r Repository>,
    /// The size of a segment.
    pub segment_size: WalSegmentSize,
    /// The backups, oldest end first.
    pub backups: Vec<HeldBackup<'r>>,
    /// Segments without commits, by name and CRC-32, as far as the index knows them: they need not be read to look for one.
    pub idle: HashSet<(String, u32)>,
    /// The timelines of backups whose summaries were not read.
    unread: BTreeSet<TimelineId>,
    /// Where each archived history is.
    histories: BTreeMap<TimelineId, Vec<(&'r Repository, WalObject)>>,
}

/// Returns the system identifiers that any of `repositories` knows for `cluster`. Fails with the first repository
/// that cannot be asked: what only that one holds is not known.
pub fn system_identifiers(repositories: &[&Repository], cluster: &str) -> Result<BTreeSet<SystemIdentifier>> {
    let answers = ask_all(
        repositories,
        usize::MAX,
        |repository, deadline| (repository, clusters(repository, cluster, deadline)),
        |_| false,
    );
    let mut found = BTreeSet::new();
    for (repository, answer) in answers {
        let known = answer.map_err(|error| repository.error("look into", &error))?;
        if known.is_empty() {
            return Err(Error::new(
                Kind::Repository,
                format!("repository \"{}\" holds no cluster \"{cluster}\"", repository.name()),
            )
            .with_hint("not mounted, a wrong prefix, or never initialised"));
        }
        found.extend(known);
    }
    Ok(found)
}

/// Returns the timeline on which the backup of that id began; none where the id does not say it.
fn timeline_of_backup(id: &str) -> Option<TimelineId> {
    TimelineId::from_hex8(id.split('-').nth(1)?).ok()
}

/// Returns when the backup of that id began, by the clock of the machine that took it.
pub fn start_of_backup(id: &str) -> Option<jiff::Timestamp> {
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", id.split('-').next()?).ok()?;
    jiff::tz::TimeZone::UTC.to_timestamp(time).ok()
}

/// Reads a backup's summary from the first repository that has a good one, and asks the others whether they have it.
/// None if it is complete nowhere.
fn read_backup<'r>(
    holders: &[&'r Repository],
    keys: &ClusterKeys,
    id: &str,
) -> Result<Option<HeldBackup<'r>>> {
    let mut found: Option<HeldBackup<'r>> = None;
    let mut bad = None;
    for repository in holders {
        let failed = |error| repository.error("read a backup's summary in", &error);
        if let Some(known) = &mut found {
            let key = format!("{}{SUMMARY_NAME}", keys.backup(id));
            match repository.storage().head(&key, &repository.deadline()) {
                Ok(_) => known.held_by.push(repository),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(failed(error)),
            }
            continue;
        }
        match read_summary(repository, keys, id) {
            Ok(summary) => found = Some(HeldBackup { summary, held_by: vec![repository] }),
            Err(error) if error.is_not_found() => {}
            // One that is damaged here may be good elsewhere.
            Err(error @ crate::storage::Error::Refused(_)) => bad = Some(failed(error)),
            Err(error) => return Err(failed(error)),
        }
    }
    match (bad, &found) {
        (Some(error), None) => return Err(error),
        (Some(error), Some(_)) => tracing::warn!("{error}; using another copy"),
        (None, _) => {}
    }
    Ok(found)
}

/// Oldest end first.
fn sort(backups: &mut [HeldBackup<'_>]) {
    backups.sort_by(|a, b| (a.summary.stop_time, &a.summary.id).cmp(&(b.summary.stop_time, &b.summary.id)));
}

impl<'r> Catalog<'r> {
    /// Reads what `repositories` hold of `sysid`: `cluster.json`, the summaries of all backups, the list of histories.
    pub fn read(repositories: &[&'r Repository], cluster: &str, sysid: SystemIdentifier) -> Result<Self> {
        Self::read_some(repositories, cluster, sysid, &<[String]>::to_vec)
    }

    /// Reads the same, but of the backups only those that `choose` takes from the ids of all, which come oldest first: so
    /// the number of calls does not grow with that of the backups.
    pub fn read_some(
        repositories: &[&'r Repository],
        cluster: &str,
        sysid: SystemIdentifier,
        choose: &dyn Fn(&[String]) -> Vec<String>,
    ) -> Result<Self> {
        let keys = ClusterKeys::new(cluster, sysid);
        let answers = ask_all(
            repositories,
            usize::MAX,
            |repository, deadline| {
                let file = match ClusterFile::read(repository, &keys, deadline) {
                    Ok(file) => file,
                    Err(error) if error.is_not_found() => return Ok(None),
                    Err(error) => return Err(repository.error("look into", &error)),
                };
                let failed = |error| repository.error("list", &error);
                let ids = repository.storage().list_folders(&keys.backups(), deadline).map_err(failed)?;
                let histories = list_histories(repository, &keys, deadline).map_err(failed)?;
                Ok(Some((repository, file, ids, histories)))
            },
            |_| false,
        );
        let mut catalog = Self {
            sysid,
            keys: keys.clone(),
            repositories: Vec::new(),
            segment_size: WalSegmentSize::DEFAULT,
            backups: Vec::new(),
            idle: HashSet::new(),
            unread: BTreeSet::new(),
            histories: BTreeMap::new(),
        };
        let mut folders: BTreeMap<String, Vec<&'r Repository>> = BTreeMap::new();
        for answer in answers {
            let Some((repository, file, ids, histories)) = answer? else { continue };
            catalog.repositories.push(repository);
            catalog.segment_size = file.wal_segment_size;
            for id in ids {
                folders.entry(id).or_default().push(repository);
            }
            for object in histories {
                catalog.add_history(repository, object);
            }
        }
        let ids: Vec<String> = folders.keys().cloned().collect();
        let chosen = choose(&ids);
        catalog.unread =
            ids.iter().filter(|id| !chosen.contains(id)).filter_map(|id| timeline_of_backup(id)).collect();
        let read = Mutex::new(Vec::new());
        each_in_parallel(AT_ONCE, chosen.len(), |at| {
            let Some(holders) = folders.get(&chosen[at]) else { return Ok(()) };
            if let Some(backup) = read_backup(holders, &keys, &chosen[at])? {
                read.lock().unwrap_or_else(PoisonError::into_inner).push(backup);
            }
            Ok(())
        })?;
        catalog.backups = read.into_inner().unwrap_or_else(PoisonError::into_inner);
        sort(&mut catalog.backups);
        Ok(catalog)
    }

    /// Returns a catalog of what was found out otherwise.
    pub fn of(
        sysid: SystemIdentifier,
        keys: ClusterKeys,
        repositories: Vec<&'r Repository>,
        segment_size: WalSegmentSize,
        mut backups: Vec<HeldBackup<'r>>,
        histories: impl IntoIterator<Item = (&'r Repository, WalObject)>,
    ) -> Self {
        sort(&mut backups);
        let mut catalog = Self {
            sysid,
            keys,
            repositories,
            segment_size,
            backups,
            idle: HashSet::new(),
            unread: BTreeSet::new(),
            histories: BTreeMap::new(),
        };
        for (repository, object) in histories {
            catalog.add_history(repository, object);
        }
        catalog
    }

    fn add_history(&mut self, repository: &'r Repository, object: WalObject) {
        if let ArchiveFileName::History(timeline) = object.name {
            self.histories.entry(timeline).or_default().push((repository, object));
        }
    }

    /// Returns the timelines that are known: 1, those with a history, and those of backups.
    pub fn timelines(&self) -> BTreeSet<TimelineId> {
        let of_backups = self.backups.iter().map(|backup| backup.summary.timeline);
        self.histories.keys().copied().chain(of_backups).chain(self.unread.iter().copied()).collect()
    }

    /// Returns when the history of `timeline` was archived, by the store's clock.
    pub fn history_archived(&self, timeline: TimelineId) -> Option<jiff::Timestamp> {
        self.histories.get(&timeline)?.iter().filter_map(|(_, object)| object.object.modified).min()
    }

    /// Reads the history of `timeline`. A timeline without one has no parents as far as the archive knows.
    pub fn history(&self, timeline: TimelineId, opener: &Opener) -> Result<TimelineHistory> {
        let Some(copies) = self.histories.get(&timeline) else { return Ok(TimelineHistory::root(timeline)) };
        let mut problem = None;
        for (repository, object) in copies {
            match read_wal_object(repository, object, None, opener) {
                Ok(content) => {
                    return TimelineHistory::parse(timeline, content).map_err(|error| {
                        Error::corrupt(format!("history of timeline {}: {error}", timeline.0))
                    });
                }
                Err(error) => problem = Some(error),
            }
        }
        Err(problem.unwrap_or_else(|| Error::other("no copy")))
    }

    /// Lists the WAL of a timeline from `from` onward: for each segment, who holds it.
    pub fn wal_from(
        &self,
        from: WalSegmentName,
    ) -> Result<BTreeMap<WalSegmentName, Vec<(&'r Repository, WalObject)>>> {
        let mut held: BTreeMap<WalSegmentName, Vec<(&'r Repository, WalObject)>> = BTreeMap::new();
        let answers = ask_all(
            &self.repositories,
            usize::MAX,
            |repository, deadline| {
                (repository, list_wal_from(repository, &self.keys, from, usize::MAX, deadline))
            },
            |_| false,
        );
        for (repository, answer) in answers {
            let listing = answer.map_err(|error| repository.error("list", &error))?;
            for object in listing.objects {
                if let Some(segment) = object.segment() {
                    held.entry(segment).or_default().push((repository, object));
                }
            }
        }
        Ok(held)
    }

    /// Returns whether a segment is known to hold no commit: every copy has content that the index knows.
    pub fn is_idle(&self, copies: &[(&Repository, WalObject)]) -> bool {
        let known = |object: &WalObject| self.idle.contains(&(object.name.to_string(), object.crc));
        !self.idle.is_empty() && copies.iter().all(|(_, object)| known(object))
    }

    /// Reads a segment from the first repository that has a good copy.
    pub fn read_segment(&self, copies: &[(&Repository, WalObject)], opener: &Opener) -> Result<Vec<u8>> {
        let mut problem = None;
        for (repository, object) in copies {
            match read_wal_object(repository, object, Some(self.segment_size.bytes()), opener) {
                Ok(content) => return Ok(content),
                Err(error) => problem = Some(error),
            }
        }
        Err(problem.unwrap_or_else(|| Error::other("no repository holds the segment")))
    }
}
