//! What each repository holds: from the index as far as it was listed before, and from listings of what is new.
//!
//! Once a day, and where something does not fit, everything is listed. Without an index that is each time.

use crate::index::{HeldChunk, HeldWal, IndexHandle, RepositoryStamp};
use crate::parallel::in_parallel;
use crate::postgres::{CHUNK, SegmentSet, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use crate::recovery::catalog::{Catalog, HeldBackup};
use crate::repository::backup::{BackupSummary, SUMMARY_NAME};
use crate::repository::{
    ClusterFile, ClusterKeys, ClusterState, Repository, WalObject, list_histories, list_prefixes,
    list_wal_from, list_wal_timeline, read_summary, timelines, wal_prefixes,
};
use crate::storage::{self, Deadline};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// For how long a listing of everything is believed.
const BELIEVED: SignedDuration = SignedDuration::from_hours(24);
/// How many calls to a repository are made at once.
const PARALLEL: usize = 8;

/// What one repository holds of a system identifier.
#[derive(Debug)]
pub struct Holdings {
    /// Its `cluster.json`.
    pub file: ClusterFile,
    /// The segments, in chunks.
    pub chunks: Vec<HeldChunk>,
    /// The same as a set.
    pub segments: SegmentSet,
    /// The ids of the complete backups.
    pub backups: BTreeSet<String>,
    /// Histories, and what else is in their folder.
    pub histories: Vec<WalObject>,
}

impl Holdings {
    /// Returns the bytes that the segments take.
    pub fn stored_bytes(&self) -> u64 {
        self.chunks.iter().map(|held| held.stored_bytes).sum()
    }

    /// Returns the newest segment of the newest timeline, and when it was stored.
    pub fn newest(&self) -> Option<(WalSegmentName, Option<Timestamp>)> {
        let held = self.chunks.last()?;
        let number = self.segments.last(held.timeline)?;
        let name = WalSegmentName::from_number(held.timeline, number, self.file.wal_segment_size);
        Some((name, held.newest_stored.and_then(|us| Timestamp::from_microsecond(us).ok())))
    }
}

/// Looks into a repository. Fails with the reason why it cannot be used, as text.
pub fn look(
    repository: &Repository,
    cluster: &str,
    sysid: SystemIdentifier,
    index: &IndexHandle,
    deadline: &Deadline,
) -> Result<Holdings, String> {
    let text = |error: storage::Error| error.to_string();
    let file = match ClusterState::ask(repository, cluster, sysid, deadline).map_err(text)? {
        ClusterState::Known(file) => file,
        ClusterState::OtherOnly(_) => return Err(format!("not initialised for system identifier {sysid}")),
        ClusterState::Nothing => {
            return Err(format!("holds no cluster \"{cluster}\" (not mounted, or wrong prefix)"));
        }
    };
    let look = Look {
        repository,
        keys: ClusterKeys::new(cluster, sysid),
        sysid,
        stamp: RepositoryStamp { url: repository.url().to_owned(), cluster_id: file.id.clone() },
        size: file.wal_segment_size,
        index,
    };
    let known = index.run(|index| index.held_wal(sysid, &look.stamp)).unwrap_or_default();
    let is_believed =
        known.looked.and_then(|us| Timestamp::from_microsecond(us).ok()).is_some_and(|looked| {
            let age = Timestamp::now().duration_since(looked);
            age >= SignedDuration::ZERO && age < BELIEVED
        });
    // Backups first: the WAL of one that becomes complete meanwhile is then in the listing of WAL.
    let backups = look.backups(is_believed).map_err(text)?;
    let chunks = look.wal(&known, is_believed).map_err(text)?;
    let histories = list_histories(repository, &look.keys, deadline).map_err(text)?;
    let mut segments = SegmentSet::default();
    for held in &chunks {
        segments.insert_chunk(held.timeline, held.chunk, held.bits);
    }
    Ok(Holdings { file, chunks, segments, backups, histories })
}

struct Look<'a> {
    repository: &'a Repository,
    keys: ClusterKeys,
    sysid: SystemIdentifier,
    stamp: RepositoryStamp,
    size: WalSegmentSize,
    index: &'a IndexHandle,
}

impl Look<'_> {
    fn wal(&self, known: &HeldWal, is_believed: bool) -> storage::Result<Vec<HeldChunk>> {
        let there = timelines(self.repository, &self.keys)?;
        let vanished = known.chunks.iter().any(|held| !there.contains(&held.timeline));
        if !is_believed || vanished {
            return self.all(known, &there);
        }
        let tails = in_parallel(&there, PARALLEL, |timeline| self.tail(known, *timeline));
        let mut chunks = Vec::new();
        for (timeline, tail) in there.iter().zip(tails) {
            let Some((from, tail)) = tail? else { return self.all(known, &there) };
            let mut before =
                known.chunks.iter().filter(|held| held.timeline == *timeline).cloned().collect::<Vec<_>>();
            let changed = before.split_off(before.partition_point(|held| held.chunk < from)) != tail;
            if changed {
                let from = (*timeline, from);
                self.index.run(|index| index.replace_held_tail(self.sysid, &self.stamp, known, from, &tail));
            }
            chunks.extend(before);
            chunks.extend(tail);
        }
        Ok(chunks)
    }

    /// Lists a timeline from the last known chunk but one on, and returns from which. None where the beginning is not what
    /// is known: something has expired.
    fn tail(&self, known: &HeldWal, timeline: TimelineId) -> storage::Result<Option<(u64, Vec<HeldChunk>)>> {
        let of_this: Vec<&HeldChunk> = known.chunks.iter().filter(|held| held.timeline == timeline).collect();
        let (Some(first), Some(last)) = (of_this.first(), of_this.last()) else {
            let all = list_wal_timeline(self.repository, &self.keys, timeline, &self.repository.deadline())?;
            return Ok(Some((0, self.chunks(&all))));
        };
        let front = self.repository.storage().list(
            &self.keys.wal_timeline(timeline),
            "",
            1,
            &self.repository.deadline(),
        )?;
        let front = front.into_iter().find_map(WalObject::parse).and_then(|object| object.segment());
        let is_first = front.is_some_and(|segment| {
            let number = segment.number(self.size);
            number / CHUNK == first.chunk
                && (first.chunk * CHUNK..number).all(|lower| !first.bits.contains(lower))
                && first.bits.contains(number)
        });
        if !is_first {
            return Ok(None);
        }
        let from = last.chunk.saturating_sub(1);
        let name = WalSegmentName::from_number(timeline, from * CHUNK, self.size);
        let listed =
            list_wal_from(self.repository, &self.keys, name, usize::MAX, &self.repository.deadline())?;
        Ok(Some((from, self.chunks(&listed.objects))))
    }

    fn all(&self, known: &HeldWal, there: &[TimelineId]) -> storage::Result<Vec<HeldChunk>> {
        let mut prefixes = Vec::new();
        for timeline in there {
            prefixes.extend(wal_prefixes(self.repository, &self.keys, *timeline)?);
        }
        let listed = list_prefixes(self.repository, prefixes)?;
        let objects: Vec<WalObject> = listed.into_iter().filter_map(WalObject::parse).collect();
        let chunks = self.chunks(&objects);
        self.index.run(|index| index.replace_held_wal(self.sysid, &self.stamp, known, &chunks));
        Ok(chunks)
    }

    fn chunks(&self, objects: &[WalObject]) -> Vec<HeldChunk> {
        HeldChunk::of(objects.iter().filter_map(|object| {
            let segment = object.segment()?;
            let stored = object.object.modified.map(Timestamp::as_microsecond);
            Some((segment.timeline, segment.number(self.size), object.object.size, stored))
        }))
    }

    /// Asks of folders that are new whether they have a `backup.json`; of all when one has gone, and where that costs nothing.
    fn backups(&self, is_believed: bool) -> storage::Result<BTreeSet<String>> {
        let storage = self.repository.storage();
        let folders = storage.list_folders(&self.keys.backups(), &self.repository.deadline())?;
        let known = self.index.run(|index| index.held_backups(self.sysid, &self.stamp)).unwrap_or_default();
        let has_gone = known.iter().any(|id| !folders.contains(id));
        let (mut complete, asked): (BTreeSet<String>, Vec<String>) =
            if is_believed && !has_gone && !self.repository.is_local() {
                let asked = folders.into_iter().filter(|id| !known.contains(id)).collect();
                (known.clone(), asked)
            } else {
                (BTreeSet::new(), folders)
            };
        let answers = in_parallel(&asked, PARALLEL, |id| {
            let key = format!("{}{SUMMARY_NAME}", self.keys.backup(id));
            match storage.head(&key, &self.repository.deadline()) {
                Ok(_) => Ok(true),
                Err(error) if error.is_not_found() => Ok(false),
                Err(error) => Err(error),
            }
        });
        for (id, answer) in asked.into_iter().zip(answers) {
            if answer? {
                complete.insert(id);
            }
        }
        if complete != known {
            self.index.run(|index| index.replace_held_backups(self.sysid, &self.stamp, &complete));
        }
        Ok(complete)
    }
}

/// Returns the catalog of what these repositories hold. The summaries of backups come without the lists of pieces. One
/// that cannot be read anywhere is left out, with a warning.
pub fn catalog<'r>(
    holdings: &[(&'r Repository, &Holdings)],
    cluster: &str,
    sysid: SystemIdentifier,
    index: &IndexHandle,
) -> Catalog<'r> {
    let keys = ClusterKeys::new(cluster, sysid);
    let known = index.run(|index| index.backup_summaries(sysid)).unwrap_or_default();
    let mut holders: BTreeMap<&String, Vec<&'r Repository>> = BTreeMap::new();
    for (repository, held) in holdings {
        held.backups.iter().for_each(|id| holders.entry(id).or_default().push(repository));
    }
    let holders: Vec<(&String, Vec<&'r Repository>)> = holders.into_iter().collect();
    let parse = |id: &String| serde_json::from_str::<BackupSummary>(known.get(id)?).ok();
    let (old, new): (Vec<_>, Vec<_>) = holders
        .into_iter()
        .map(|(id, held_by)| (parse(id), id, held_by))
        .partition(|(old, _, _)| old.is_some());
    let read = in_parallel(&new, PARALLEL, |(_, id, held_by)| read_from_one(held_by, &keys, id));
    let mut backups = Vec::new();
    for ((_, id, held_by), summary) in new.into_iter().zip(read) {
        let Some(summary) = summary else { continue };
        if let Ok(text) = serde_json::to_string(&summary) {
            index.run(|index| index.record_backup_summary(sysid, id, &text));
        }
        backups.push(HeldBackup { summary, held_by });
    }
    backups.extend(
        old.into_iter().filter_map(|(summary, _, held_by)| Some(HeldBackup { summary: summary?, held_by })),
    );
    let histories = holdings
        .iter()
        .flat_map(|(repository, held)| held.histories.iter().map(|object| (*repository, object.clone())));
    let size = holdings.first().map_or(WalSegmentSize::DEFAULT, |(_, held)| held.file.wal_segment_size);
    let repositories = holdings.iter().map(|(repository, _)| *repository).collect();
    Catalog::of(sysid, keys, repositories, size, backups, histories)
}

fn read_from_one(held_by: &[&Repository], keys: &ClusterKeys, id: &str) -> Option<BackupSummary> {
    let mut problem = None;
    for repository in held_by {
        match read_summary(repository, keys, id) {
            Ok(mut summary) => {
                summary.pieces.clear();
                return Some(summary);
            }
            Err(error) => problem = Some(repository.error("read a backup's summary in", &error)),
        }
    }
    if let Some(problem) = problem {
        tracing::warn!("{problem}; backup {id} is left out");
    }
    None
}
