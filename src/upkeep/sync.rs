//! `sync`: copies what a repository lacks from one that has it, as it is stored; no key is needed.
//!
//! What is to be copied follows from listings alone: the difference of keys. A backup's `backup.json` goes last, after
//! all its objects and the WAL that it needs, since it is what makes the objects a backup. Broken off at any point, the
//! next run goes on where this one stopped.

use crate::index::{IndexHandle, RepositoryStamp};
use crate::kind::{Error, Kind, Result};
use crate::postgres::SystemIdentifier;
use crate::progress::Progress;
use crate::repository::backup::SUMMARY_NAME;
use crate::repository::{ClusterFile, ClusterKeys, Repository, WalObject, copy_object};
use crate::storage::Object;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    let complete = |key: &str| {
        let Some(rest) = key.strip_prefix(&keys.backups()) else { return true };
        let Some((id, _)) = rest.split_once('/') else { return false };
        everywhere.contains(&format!("{}{SUMMARY_NAME}", keys.backup(id)))
    };
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
    tasks.sort_by(|a, b| (rank(&a.object.key), &a.object.key).cmp(&(rank(&b.object.key), &b.object.key)));
    let stamps = sides.into_iter().map(|side| (side.repository.name().to_owned(), side.stamp)).collect();
    Ok((tasks, stamps))
}

/// WAL first, then the objects of backups, and what makes them backups last.
fn rank(key: &str) -> u8 {
    match key {
        key if key.ends_with(SUMMARY_NAME) => 2,
        key if key.contains("/backup/") => 1,
        _ => 0,
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
    let mut objects = BTreeMap::new();
    for folder in [keys.wal(), keys.backups()] {
        let list = repository
            .storage()
            .list(&folder, "", usize::MAX, &deadline)
            .map_err(|error| repository.error("list", &error))?;
        objects.extend(list.into_iter().map(|object| (object.key.clone(), object)));
    }
    let stamp = RepositoryStamp { url: repository.url().to_owned(), cluster_id: file.id };
    Ok(Side { repository, stamp, objects })
}

/// Carries out the tasks, several at once, the summaries of backups after everything else.
pub fn run(
    tasks: &[Task<'_>],
    stamps: &BTreeMap<String, RepositoryStamp>,
    sysid: SystemIdentifier,
    parallel: usize,
    index: &IndexHandle,
    progress: &Progress,
) -> Outcome {
    progress.set_total(tasks.iter().map(|task| task.object.size).sum());
    progress.set_phase("copy objects");
    let outcome = Mutex::new(Outcome::default());
    let split = tasks.partition_point(|task| rank(&task.object.key) < 2);
    for part in [&tasks[..split], &tasks[split..]] {
        let lost = outcome.lock().is_ok_and(|outcome| !outcome.failed.is_empty());
        if lost {
            break; // a summary must not stand before all that it promises
        }
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..parallel.min(part.len()) {
                scope.spawn(|| {
                    while let Some(task) = part.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = copy_object(task.from, task.to, &task.object.key);
                        progress.add(task.object.size);
                        if result.is_ok() {
                            note(task, stamps, sysid, index);
                        }
                        let Ok(mut outcome) = outcome.lock() else { return };
                        match result {
                            Ok(()) => {
                                outcome.copied += 1;
                                outcome.bytes += task.object.size;
                            }
                            Err(error) => outcome.failed.push(error),
                        }
                    }
                });
            }
        });
    }
    outcome.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
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
