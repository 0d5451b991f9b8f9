//! What the repositories hold of one cluster, as a recovery sees it: backups, histories, WAL.

use crate::codec::Opener;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{
    ArchiveFileName, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize,
};
use crate::repository::backup::BackupSummary;
use crate::repository::{
    ClusterFile, ClusterKeys, Repository, WalObject, ask_all, clusters, list_backups, list_histories,
    list_wal_from, read_summary, read_wal_object,
};
use std::collections::{BTreeMap, BTreeSet};

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
    /// Where each archived history is.
    histories: BTreeMap<TimelineId, Vec<(&'r Repository, WalObject)>>,
}

/// Returns the system identifiers that any of `repositories` knows for `cluster`. Fails with the first repository
/// that cannot be asked: what only that one holds is not known.
pub fn system_identifiers(
    repositories: &[&Repository],
    cluster: &str,
) -> Result<BTreeMap<SystemIdentifier, Vec<String>>> {
    let answers = ask_all(
        repositories,
        usize::MAX,
        |repository, deadline| (repository, clusters(repository, cluster, deadline)),
        |_| false,
    );
    let mut found: BTreeMap<SystemIdentifier, Vec<String>> = BTreeMap::new();
    for (repository, answer) in answers {
        let known = answer.map_err(|error| repository.error("look into", &error))?;
        if known.is_empty() {
            return Err(Error::new(
                Kind::Repository,
                format!("repository \"{}\" holds no cluster \"{cluster}\"", repository.name()),
            )
            .with_hint("not mounted, a wrong prefix, or never initialised"));
        }
        for sysid in known {
            found.entry(sysid).or_default().push(repository.name().to_owned());
        }
    }
    Ok(found)
}

impl<'r> Catalog<'r> {
    /// Reads what `repositories` hold of `sysid`: `cluster.json`, the summaries of backups, the list of histories.
    pub fn read(repositories: &[&'r Repository], cluster: &str, sysid: SystemIdentifier) -> Result<Self> {
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
                let ids =
                    list_backups(repository, &keys).map_err(|error| repository.error("list", &error))?;
                let histories = list_histories(repository, &keys, deadline)
                    .map_err(|error| repository.error("list", &error))?;
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
            histories: BTreeMap::new(),
        };
        let mut backups: BTreeMap<String, HeldBackup<'r>> = BTreeMap::new();
        for answer in answers {
            let Some((repository, file, ids, histories)) = answer? else { continue };
            catalog.repositories.push(repository);
            catalog.segment_size = file.wal_segment_size;
            for id in ids {
                if let Some(known) = backups.get_mut(&id) {
                    known.held_by.push(repository);
                    continue;
                }
                let summary = read_summary(repository, &keys, &id)
                    .map_err(|error| repository.error("read a backup's summary in", &error))?;
                backups.insert(id, HeldBackup { summary, held_by: vec![repository] });
            }
            for object in histories {
                if let ArchiveFileName::History(timeline) = object.name {
                    catalog.histories.entry(timeline).or_default().push((repository, object));
                }
            }
        }
        catalog.backups = backups.into_values().collect();
        catalog
            .backups
            .sort_by(|a, b| (a.summary.stop_time, &a.summary.id).cmp(&(b.summary.stop_time, &b.summary.id)));
        Ok(catalog)
    }

    /// Returns the timelines that are known: 1, those with a history, and those of backups.
    pub fn timelines(&self) -> BTreeSet<TimelineId> {
        let of_backups = self.backups.iter().map(|backup| backup.summary.timeline);
        self.histories.keys().copied().chain(of_backups).collect()
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
