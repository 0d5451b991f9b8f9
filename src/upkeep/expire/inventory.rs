//! What one repository holds of a cluster, by listings and the summaries of backups.

use super::needs::{Span, TimelineFacts};
use crate::kind::{Error, Kind, Result};
use crate::parallel::in_parallel;
use crate::postgres::{ArchiveFileName, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use crate::repository::backup::{BACKUP_FORMAT, BackupSummary, SUMMARY_NAME};
use crate::repository::{
    ClusterFile, ClusterKeys, Repository, WalObject, clusters, list_pins, list_prefixes, read_summary,
    timelines, wal_prefixes,
};
use crate::storage::{self, Object};
use crate::upkeep::retention::{Branch, Candidate};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// How many listings and summaries are asked for at once.
const PARALLEL: usize = 8;
/// A complete backup.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) span: Span,
    /// Objects in its folder.
    pub(super) objects: usize,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Why it is not usable.
    pub(super) problem: Option<String>,
}

/// A backup's folder without `backup.json`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Leftover {
    /// The id.
    pub id: String,
    /// Objects in its folder.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// When the newest was stored; none where the store does not say.
    pub newest: Option<Timestamp>,
}

/// Everything of one system identifier.
#[derive(Debug)]
pub(super) struct Inventory {
    pub(super) sysid: SystemIdentifier,
    pub(super) keys: ClusterKeys,
    pub(super) size: WalSegmentSize,
    /// The complete backups, in the order of their ids.
    pub(super) backups: Vec<Held>,
    pub(super) leftovers: Vec<Leftover>,
    /// Everything below `wal/` whose name is understood, in the order of keys.
    pub(super) wal: Vec<WalObject>,
    /// The names of the segments.
    pub(super) segments: HashSet<WalSegmentName>,
    pub(super) timelines: BTreeMap<TimelineId, TimelineFacts>,
    pub(super) pins: BTreeSet<String>,
    /// When the newest object was stored, by the store's clock.
    pub(super) newest_stored: Option<Timestamp>,
    /// When the newest backup ended.
    pub(super) newest_backup: Option<Timestamp>,
}

/// Reads what `repository` holds of `cluster`, for every system identifier. Fails where anything is not understood:
/// what is not understood may be needed.
pub(super) fn read(repository: &Repository, cluster: &str) -> Result<Vec<Inventory>> {
    let failed = |error: storage::Error| repository.error("look into", &error);
    let known = clusters(repository, cluster, &repository.deadline()).map_err(failed)?;
    if known.is_empty() {
        return Err(Error::new(
            Kind::Repository,
            format!("repository \"{}\" holds no cluster \"{cluster}\"", repository.name()),
        )
        .with_hint("not mounted, a wrong prefix, or never initialised"));
    }
    known.into_iter().map(|sysid| read_one(repository, cluster, sysid)).collect()
}

fn read_one(repository: &Repository, cluster: &str, sysid: SystemIdentifier) -> Result<Inventory> {
    let failed = |error: storage::Error| repository.error("look into", &error);
    let keys = ClusterKeys::new(cluster, sysid);
    let file = ClusterFile::read(repository, &keys, &repository.deadline()).map_err(failed)?;
    let pins = list_pins(repository, &keys).map_err(failed)?;
    // Backups first: the WAL of one that becomes complete meanwhile is then in the listing of WAL.
    let ids = repository.storage().list_folders(&keys.backups(), &repository.deadline()).map_err(failed)?;
    let folders = in_parallel(&ids, PARALLEL, |id| folder(repository, &keys, id));
    let wal = list_wal(repository, &keys).map_err(failed)?;
    let mut inventory = Inventory {
        sysid,
        size: file.wal_segment_size,
        backups: Vec::new(),
        leftovers: Vec::new(),
        segments: wal
            .iter()
            .filter(|object| !is_aside(&keys, object))
            .filter_map(WalObject::segment)
            .collect(),
        timelines: BTreeMap::new(),
        pins,
        newest_stored: wal.iter().filter_map(|object| object.object.modified).max(),
        newest_backup: None,
        wal,
        keys,
    };
    for folder in folders {
        match folder? {
            Folder::Backup(summary, listed) => inventory.add(*summary, &listed)?,
            Folder::Leftover(leftover) => inventory.leftovers.push(leftover),
        }
    }
    inventory.find_timelines();
    Ok(inventory)
}

enum Folder {
    Backup(Box<BackupSummary>, BTreeMap<String, Object>),
    Leftover(Leftover),
}

fn folder(repository: &Repository, keys: &ClusterKeys, id: &str) -> Result<Folder> {
    let prefix = keys.backup(id);
    let objects = repository
        .storage()
        .list(&prefix, "", usize::MAX, &repository.deadline())
        .map_err(|error| repository.error("list", &error))?;
    let newest = objects.iter().map(|object| object.modified).collect::<Option<Vec<_>>>();
    let leftover = Leftover {
        id: id.to_owned(),
        objects: objects.len(),
        bytes: objects.iter().map(|object| object.size).sum(),
        newest: newest.and_then(|times| times.into_iter().max()),
    };
    let name = |object: Object| (object.key[prefix.len()..].to_owned(), object);
    let listed: BTreeMap<String, Object> = objects.into_iter().map(name).collect();
    if !listed.contains_key(SUMMARY_NAME) {
        return Ok(Folder::Leftover(leftover));
    }
    let doubt = |text: String| {
        Error::corrupt(format!("backup {id} in repository \"{}\": {text}", repository.name()))
            .with_hint("nothing is removed from this repository, since what the backup needs is not known")
    };
    let summary = match read_summary(repository, keys, id) {
        Ok(summary) => summary,
        Err(storage::Error::Refused(text)) => return Err(doubt(text)),
        Err(error) => return Err(repository.error("read a backup's summary in", &error)),
    };
    if summary.format > BACKUP_FORMAT {
        let format = summary.format;
        return Err(doubt(format!("its format is {format}, this version knows up to {BACKUP_FORMAT}")));
    }
    if summary.id != id {
        return Err(doubt(format!("its backup.json is of backup {}", summary.id)));
    }
    Ok(Folder::Backup(Box::new(summary), listed))
}

impl Inventory {
    fn add(&mut self, summary: BackupSummary, listed: &BTreeMap<String, Object>) -> Result<()> {
        let id = &summary.id;
        if summary.wal_segment_size != self.size || summary.system_identifier != self.sysid {
            return Err(Error::corrupt(format!(
                "backup {id} is of another cluster than its folder says: nothing is removed from this repository"
            )));
        }
        let lacking = summary
            .objects()
            .find(|object| listed.get(&object.name).is_none_or(|found| found.size != object.size))
            .map(|object| format!("\"{}\" is missing or of another size", object.name));
        let problem = lacking.or_else(|| {
            let missing = summary.wal_segments().find(|segment| !self.segments.contains(segment))?;
            Some(format!("WAL segment {missing} is missing"))
        });
        let stored = listed.values().filter_map(|object| object.modified).max();
        self.newest_stored = self.newest_stored.max(stored);
        self.newest_backup = self.newest_backup.max(Some(summary.stop_time));
        let candidate = Candidate {
            id: id.clone(),
            branch: Branch { sysid: self.sysid, timeline: summary.timeline },
            stop_time: summary.stop_time,
            usable: problem.is_none(),
            clean: summary.bad_pages == 0,
            pinned: self.pins.contains(id),
        };
        self.backups.push(Held {
            span: Span {
                candidate,
                first: summary.start_segment().number(self.size),
                last: summary.stop_segment().number(self.size),
            },
            objects: listed.len(),
            bytes: listed.values().map(|object| object.size).sum(),
            problem,
        });
        Ok(())
    }

    /// Adds what another repository holds of the same system.
    pub(super) fn merge(&mut self, other: Self) {
        for backup in other.backups {
            let id = &backup.span.candidate.id;
            match self.backups.iter_mut().find(|ours| ours.span.candidate.id == *id) {
                Some(ours) if ours.span.candidate.usable => {}
                Some(ours) => *ours = backup,
                None => self.backups.push(backup),
            }
        }
        self.segments.extend(other.segments);
        for (timeline, theirs) in other.timelines {
            let ours = self.timelines.entry(timeline).or_default();
            ours.first = ours.first.into_iter().chain(theirs.first).min();
            ours.newest = ours.newest.max(theirs.newest);
        }
        self.newest_stored = self.newest_stored.max(other.newest_stored);
        self.newest_backup = self.newest_backup.max(other.newest_backup);
        self.pins.extend(other.pins);
    }

    fn find_timelines(&mut self) {
        for object in self.wal.iter().filter(|object| !is_aside(&self.keys, object)) {
            let facts = self.timelines.entry(object.name.timeline()).or_default();
            let stored = object.object.modified.unwrap_or(Timestamp::MAX);
            if let Some(segment) = object.segment() {
                let number = segment.number(self.size);
                facts.first = Some(facts.first.map_or(number, |first| first.min(number)));
                facts.newest = facts.newest.max(Some(stored));
            } else if let ArchiveFileName::History(_) = object.name {
                facts.newest = facts.newest.max(Some(stored));
            }
        }
        for backup in &self.backups {
            let candidate = &backup.span.candidate;
            let facts = self.timelines.entry(candidate.branch.timeline).or_default();
            facts.newest = facts.newest.max(Some(candidate.stop_time));
        }
    }
}

/// Returns whether the object is a content that `resolve` or `sync` put aside.
pub(super) fn is_aside(keys: &ClusterKeys, object: &WalObject) -> bool {
    object.object.key.starts_with(&keys.aside()) || object.object.key.contains(DAMAGED)
}

/// What `sync` writes behind the key of a damaged object that it moves aside.
const DAMAGED: &str = ".damaged-";

/// Lists everything below `wal/`, several folders of segments at once.
fn list_wal(repository: &Repository, keys: &ClusterKeys) -> storage::Result<Vec<WalObject>> {
    let mut prefixes = BTreeSet::from([keys.histories(), keys.aside()]);
    for timeline in timelines(repository, keys)? {
        prefixes.extend(wal_prefixes(repository, keys, timeline)?);
    }
    Ok(list_prefixes(repository, prefixes)?.into_iter().filter_map(parse).collect())
}

/// Lists everything in the folder of a timeline, in the order of keys, several folders of segments at once.
pub(in crate::upkeep) fn list_timeline(
    repository: &Repository,
    keys: &ClusterKeys,
    timeline: TimelineId,
) -> storage::Result<Vec<Object>> {
    list_prefixes(repository, wal_prefixes(repository, keys, timeline)?)
}

/// Returns what a key says, that of a damaged object too.
pub(super) fn parse(object: Object) -> Option<WalObject> {
    let Some((original, _)) = object.key.split_once(DAMAGED) else { return WalObject::parse(object) };
    let original = Object { key: original.to_owned(), ..object.clone() };
    Some(WalObject { object, ..WalObject::parse(original)? })
}
