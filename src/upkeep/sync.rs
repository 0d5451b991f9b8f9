//! `sync`: copies what a repository lacks from one that has it, as it is stored; no key is needed.
//!
//! What is to be copied follows from listings alone: the difference of keys. Histories go first, then the newest segment of
//! each timeline, so that at any point the repository shows what it still lacks as a gap, and never as the end of the
//! archive (`archive-get` relies on it). A backup's `backup.json` goes last, after all its objects and the WAL that it
//! needs, since it is what makes the objects a backup. Broken off at any point, the next run goes on where this one stopped. Objects that were found damaged are replaced by a good copy first.

use crate::index::{IndexHandle, RepositoryStamp};
use crate::kind::{Error, Kind, Result};
use crate::parallel::in_parallel;
use crate::postgres::{SystemIdentifier, TimelineId};
use crate::progress::Progress;
use crate::repository::backup::SUMMARY_NAME;
use crate::repository::{ClusterFile, ClusterKeys, Repository, WalObject, copy_object};
use crate::storage::Object;
use std::collections::{BTreeMap, BTreeSet};

/// What is to be copied to one repository.
#[derive(Debug)]
pub struct Task<'r> {
    /// The one that has it.
    pub from: &'r Repository,
    /// The one that lacks it.
    pub to: &'r Repository,
    /// The object.
    pub object: Object,
}

/// What a run did.
#[derive(Debug, Default, serde::Serialize)]
pub struct Outcome {
    /// Objects that were copied.
    pub copied: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What could not be copied, and why.
    #[serde(serialize_with = "as_text")]
    pub failed: Vec<Error>,
}

fn as_text<S: serde::Serializer>(errors: &[Error], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(errors.iter().map(ToString::to_string))
}

/// A repository that takes part, and what it holds.
struct Side<'r> {
    repository: &'r Repository,
    stamp: RepositoryStamp,
    objects: BTreeMap<String, Object>,
}

/// Returns what is lacking where. Fails when a repository cannot be asked, or does not know the cluster.
pub fn plan<'r>(
    cluster: &str,
    sysid: SystemIdentifier,
    repositories: &'r [Repository],
) -> Result<(Vec<Task<'r>>, BTreeMap<String, RepositoryStamp>)> {
    let keys = ClusterKeys::new(cluster, sysid);
    let sides =
        repositories.iter().map(|repository| side(repository, &keys, sysid)).collect::<Result<Vec<_>>>()?;
    let everywhere: BTreeSet<&String> = sides.iter().flat_map(|side| side.objects.keys()).collect();
    // A folder without a summary anywhere is a backup that broke off, or one that is being taken.
    let complete = |key: &str| is_of_whole_backup(&keys, key, |summary| everywhere.contains(summary));
    let mut tasks = Vec::new();
    for to in &sides {
        for key in &everywhere {
            if to.objects.contains_key(*key) || !complete(key) {
                continue;
            }
            let holder = sides.iter().find_map(|side| Some((side.repository, side.objects.get(*key)?)));
            if let Some((from, object)) = holder {
                tasks.push(Task { from, to: to.repository, object: object.clone() });
            }
        }
    }
    bring_in_order(&mut tasks);
    let stamps = sides.into_iter().map(|side| (side.repository.name().to_owned(), side.stamp)).collect();
    Ok((tasks, stamps))
}

/// Returns whether the object is of no backup, or of one whose `backup.json` is there, as `has` says of its key.
pub(super) fn is_of_whole_backup(keys: &ClusterKeys, key: &str, has: impl Fn(&String) -> bool) -> bool {
    let Some(rest) = key.strip_prefix(&keys.backups()) else { return true };
    let Some((id, _)) = rest.split_once('/') else { return false };
    has(&format!("{}{SUMMARY_NAME}", keys.backup(id)))
}

/// Sorts the tasks by when their turn is.
pub(super) fn bring_in_order(tasks: &mut [Task<'_>]) {
    let newest = newest_lacking(tasks);
    tasks.sort_by_cached_key(|task| (rank(&newest, task), task.object.key.clone()));
}

/// Returns the key of the newest segment of each timeline that each repository lacks.
fn newest_lacking(tasks: &[Task<'_>]) -> BTreeSet<(String, String)> {
    let mut newest: BTreeMap<(&str, TimelineId), &str> = BTreeMap::new();
    for task in tasks {
        if let Some(segment) = WalObject::parse(task.object.clone()).and_then(|object| object.segment()) {
            let best = newest.entry((task.to.name(), segment.timeline)).or_default();
            *best = (*best).max(task.object.key.as_str());
        }
    }
    newest.into_iter().map(|((to, _), key)| (to.to_owned(), key.to_owned())).collect()
}

/// In which part of a run a task's turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    History,
    NewestSegment,
    Segment,
    Backup,
    Summary,
}

const RANKS: [Rank; 5] = [Rank::History, Rank::NewestSegment, Rank::Segment, Rank::Backup, Rank::Summary];

fn rank(newest: &BTreeSet<(String, String)>, task: &Task<'_>) -> Rank {
    let key = &task.object.key;
    if key.ends_with(SUMMARY_NAME) {
        Rank::Summary
    } else if key.contains("/backup/") {
        Rank::Backup
    } else if newest.contains(&(task.to.name().to_owned(), key.clone())) {
        Rank::NewestSegment
    } else if WalObject::parse(task.object.clone()).is_some_and(|object| object.segment().is_some()) {
        Rank::Segment
    } else {
        Rank::History
    }
}

fn side<'r>(repository: &'r Repository, keys: &ClusterKeys, sysid: SystemIdentifier) -> Result<Side<'r>> {
    let deadline = repository.deadline();
    let file = ClusterFile::read(repository, keys, &deadline).map_err(|error| {
        if error.is_not_found() {
            Error::new(
                Kind::Repository,
                format!(
                    "repository \"{}\" is not initialised for system identifier {sysid}",
                    repository.name()
                ),
            )
            .with_hint("walden init creates what is missing")
        } else {
            repository.error("look into", &error)
        }
    })?;
    // Backups first: the WAL of one that becomes complete meanwhile is then in the listing of WAL.
    let objects = objects_in(repository, &[keys.backups(), keys.wal()])?;
    let stamp = RepositoryStamp { url: repository.url().to_owned(), cluster_id: file.id };
    Ok(Side { repository, stamp, objects })
}

/// Returns what is in the folders and is not put aside as damaged, by keys.
pub(super) fn objects_in(repository: &Repository, folders: &[String]) -> Result<BTreeMap<String, Object>> {
    let mut objects = BTreeMap::new();
    for folder in folders {
        let list = repository
            .storage()
            .list(folder, "", usize::MAX, &repository.deadline())
            .map_err(|error| repository.error("list", &error))?;
        let kept = list.into_iter().filter(|object| !object.key.contains(".damaged-"));
        objects.extend(kept.map(|object| (object.key.clone(), object)));
    }
    Ok(objects)
}

/// Carries out the tasks, several at once, one part of the run after the other.
pub fn run(
    tasks: &[Task<'_>],
    stamps: &BTreeMap<String, RepositoryStamp>,
    sysid: SystemIdentifier,
    parallel: usize,
    index: &IndexHandle,
    progress: &Progress,
) -> Outcome {
    run_with(tasks, parallel, progress, |task| {
        copy_object(task.from, task.to, &task.object.key)?;
        note(task, stamps, sysid, index);
        Ok(Copied::There)
    })
}

/// What became of a task that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// The object is there.
    There,
    /// It was left out, and what follows does not depend on it.
    LeftOut,
    /// It was left out, and may be brought later: without the newest segment of a timeline older ones would look like its
    /// end.
    Later,
}

/// Carries out the tasks in their order by `copy`.
pub(super) fn run_with(
    tasks: &[Task<'_>],
    parallel: usize,
    progress: &Progress,
    copy: impl Fn(&Task<'_>) -> Result<Copied> + Sync,
) -> Outcome {
    progress.set_total(tasks.iter().map(|task| task.object.size).sum());
    progress.set_phase("copy objects");
    let mut outcome = Outcome::default();
    let newest = newest_lacking(tasks);
    let mut newest_failed = false;
    for rank_now in RANKS {
        // What would promise what is not there: older segments the end of a timeline, a summary its backup.
        let failed = !outcome.failed.is_empty();
        if (rank_now == Rank::Segment && newest_failed) || (rank_now == Rank::Summary && failed) {
            continue;
        }
        let part: Vec<&Task<'_>> = tasks.iter().filter(|task| rank(&newest, task) == rank_now).collect();
        let results = in_parallel(&part, parallel, |task| {
            let result = copy(task);
            progress.add(task.object.size);
            result
        });
        for (task, result) in part.iter().zip(results) {
            newest_failed |= rank_now == Rank::NewestSegment && matches!(result, Ok(Copied::Later) | Err(_));
            match result {
                Ok(Copied::There) => {
                    outcome.copied += 1;
                    outcome.bytes += task.object.size;
                }
                Ok(Copied::LeftOut | Copied::Later) => {}
                Err(error) => outcome.failed.push(error),
            }
        }
    }
    outcome
}

/// Replaces objects that were found damaged by the copy of another repository in which no damage was found, and returns
/// their keys. The damaged one is moved aside first: what it held survives.
pub fn mend(repositories: &[Repository], index: &IndexHandle) -> Result<Vec<String>> {
    let damages = index.run(crate::index::Index::damages).unwrap_or_default();
    let mut mended = Vec::new();
    for damage in &damages {
        let Some(target) = repositories.iter().find(|repository| repository.url() == damage.url) else {
            continue;
        };
        let is_damaged = |repository: &Repository| {
            damages.iter().any(|other| other.key == damage.key && other.url == repository.url())
        };
        let good = repositories
            .iter()
            .filter(|repository| !is_damaged(repository))
            .find(|repository| repository.storage().head(&damage.key, &repository.deadline()).is_ok());
        let Some(good) = good else {
            tracing::warn!("no good copy of the damaged \"{}\" is known", damage.key);
            continue;
        };
        let aside = aside_key(&damage.key);
        match copy_within(target, &damage.key, &aside) {
            Ok(()) => {}
            Err(error) if error.is_not_found() => {} // removed by hand, or by a run that broke off here
            Err(error) => return Err(target.error("move damage aside in", &error)),
        }
        let deleted = target.storage().delete(&damage.key, &target.deadline());
        deleted.map_err(|error| target.error("delete from", &error))?;
        copy_object(good, target, &damage.key)?;
        index.run(|index| index.forget_damage(&damage.url, &damage.key));
        mended.push(damage.key.clone());
    }
    Ok(mended)
}

/// Returns where a damaged object is kept: beside it, under a name that no reader looks for. A piece of a backup goes into
/// another folder, since a restore by hand takes all that is in `data/`.
fn aside_key(key: &str) -> String {
    let aside = match key.rsplit_once("/data/") {
        Some((backup, piece)) if key.contains("/backup/") => format!("{backup}/damaged/{piece}"),
        _ => key.to_owned(),
    };
    format!("{aside}.damaged-{}", jiff::Timestamp::now().as_second())
}

fn copy_within(repository: &Repository, from: &str, to: &str) -> crate::storage::Result<()> {
    use std::io::Read;
    let deadline = repository.deadline();
    let mut body = Vec::new();
    repository
        .storage()
        .get(from, None, &deadline)?
        .read_to_end(&mut body)
        .map_err(|error| crate::storage::Error::Unreachable(format!("read \"{from}\": {error}")))?;
    repository.storage().put_new(to, &bytes::Bytes::from(body), &deadline).map(drop)
}

fn note(
    task: &Task<'_>,
    stamps: &BTreeMap<String, RepositoryStamp>,
    sysid: SystemIdentifier,
    index: &IndexHandle,
) {
    let (Some(wal), Some(stamp)) = (WalObject::parse(task.object.clone()), stamps.get(task.to.name())) else {
        return;
    };
    index.run(|index| index.record_copied(sysid, &wal.name.to_string(), wal.crc, stamp));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::WalSegmentSize;
    use crate::storage::FsStorage;
    use bytes::Bytes;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn what_would_look_like_an_end_is_never_copied_before_what_comes_after_it() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let repositories: Vec<Repository> = dirs
            .iter()
            .zip(["full", "new"])
            .map(|(dir, name)| {
                let storage = Arc::new(FsStorage::new(dir.path().to_owned()));
                Repository::new(name, storage, Duration::from_secs(5))
            })
            .collect();
        let sysid = SystemIdentifier(7);
        let keys = ClusterKeys::new("main", sysid);
        for repository in &repositories {
            ClusterFile::new("main", sysid, WalSegmentSize::DEFAULT, 17).write(repository, &keys).unwrap();
        }
        let full = &repositories[0];
        let put = |key: &str| {
            full.storage().put_new(key, &Bytes::from_static(b"x"), &full.deadline()).unwrap();
        };
        let names = [
            "000000010000000000000001",
            "000000010000000000000002",
            "000000010000000000000003",
            "000000020000000000000003",
            "000000020000000000000004",
            "00000002.history",
        ];
        for name in names {
            put(&keys.wal_object(name.parse().unwrap(), 1, ".lz4"));
        }
        put(&format!("{}data/0000001.lz4", keys.backup("b")));
        put(&format!("{}{SUMMARY_NAME}", keys.backup("b")));
        let (tasks, _) = plan("main", sysid, &repositories).unwrap();
        let files = tasks.iter().map(|task| task.object.key.rsplit('/').next().unwrap_or_default());
        let files: Vec<&str> = files.map(|file| file.split('-').next().unwrap_or_default()).collect();
        assert_eq!(
            files,
            [
                "00000002.history",
                "000000010000000000000003",
                "000000020000000000000004",
                "000000010000000000000001",
                "000000010000000000000002",
                "000000020000000000000003",
                "0000001.lz4",
                SUMMARY_NAME,
            ]
        );
    }
}
