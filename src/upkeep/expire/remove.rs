//! Carrying a plan out. The order is what makes it safe to be broken off: a backup's `backup.json` goes first, so that what
//! is left of it is no backup; then its pieces, then WAL that nothing needs any more, oldest first.

use super::inventory::is_aside;
use super::plan::{RepositoryPlan, SystemPlan, keeps};
use crate::index::{IndexHandle, Removed};
use crate::kind::{Error, Result};
use crate::parallel::in_parallel;
use crate::postgres::ArchiveFileName;
use crate::progress::Progress;
use crate::repository::backup::SUMMARY_NAME;
use crate::repository::{Repository, WalObject, is_pinned};
use crate::storage::{self, Object};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many objects are deleted at once.
const PARALLEL: usize = 8;
/// How many are deleted before the next, in the order of their names, are begun.
const CHUNK: usize = 256;
/// After so many refusals and not one success the right to delete is taken to be missing.
const REFUSALS: usize = 10;
/// How many keys are named that could not be removed.
const NAMED: usize = 10;

/// What was removed from one repository.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// The repository.
    pub name: String,
    /// Backups that are gone.
    pub backups: Vec<String>,
    /// Objects that are gone.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that the store refused to delete (Object Lock, no right to delete), or that were not tried after that.
    pub refused: usize,
    /// The first of them, and why.
    pub refusals: Vec<String>,
    /// What ended the work before its end.
    #[serde(serialize_with = "as_text")]
    pub failed: Option<Error>,
}

#[allow(clippy::ref_option, reason = "serde passes references")]
fn as_text<S: serde::Serializer>(error: &Option<Error>, serializer: S) -> Result<S::Ok, S::Error> {
    match error {
        Some(error) => serializer.collect_str(error),
        None => serializer.serialize_none(),
    }
}

/// Removes what `plan` says. What the store refuses is counted and left; another failure ends the work here, and the next
/// run goes on. A backup that was pinned since, or whose `backup.json` stays, stays whole with its WAL.
pub fn carry_out(plan: &RepositoryPlan<'_>, index: &IndexHandle, progress: &Progress) -> Outcome {
    let deleter = Deleter {
        repository: plan.repository,
        progress,
        objects: AtomicUsize::new(0),
        bytes: AtomicU64::new(0),
        refused: AtomicUsize::new(0),
        refusals: Mutex::default(),
    };
    let mut backups = Vec::new();
    let result = plan.systems.iter().try_for_each(|system| one(plan, system, &deleter, index, &mut backups));
    Outcome {
        name: plan.name.clone(),
        backups,
        objects: deleter.objects.into_inner(),
        bytes: deleter.bytes.into_inner(),
        refused: deleter.refused.into_inner(),
        refusals: deleter.refusals.into_inner().unwrap_or_else(PoisonError::into_inner),
        failed: result.err(),
    }
}

fn one(
    plan: &RepositoryPlan<'_>,
    system: &SystemPlan,
    deleter: &Deleter<'_>,
    index: &IndexHandle,
    gone: &mut Vec<String>,
) -> Result<()> {
    check(plan)?;
    let repository = deleter.repository;
    let mut needs = system.needs.clone();
    let mut folders = Vec::new();
    for backup in system.backups.iter().filter(|backup| !backup.stays()) {
        let pinned = is_pinned(repository, &system.keys, &backup.id, &repository.deadline())
            .map_err(|error| repository.error("look into", &error))?;
        let summary = format!("{}{SUMMARY_NAME}", system.keys.backup(&backup.id));
        if !pinned && deleter.delete(&summary, 0)? {
            index.run(|index| index.forget_backup(repository.url(), system.system_identifier, &backup.id));
            folders.push(backup.id.clone());
            gone.push(backup.id.clone());
        } else {
            needs.add(&backup.span);
        }
    }
    folders.extend(system.leftovers.iter().map(|leftover| leftover.id.clone()));
    for id in folders {
        let folder = system.keys.backup(&id);
        let objects = repository
            .storage()
            .list(&folder, "", usize::MAX, &repository.deadline())
            .map_err(|error| repository.error("list", &error))?;
        // A backup that became complete meanwhile is none of ours.
        if !objects.iter().any(|object| object.key.ends_with(SUMMARY_NAME)) {
            deleter.delete_all(&objects, |_| {})?;
            tidy(repository, &folder);
        }
    }
    let going: Vec<&WalObject> = system.wal.iter().filter(|object| !keeps(&needs, object.name)).collect();
    let (histories, mut segments): (Vec<&WalObject>, Vec<&WalObject>) =
        going.into_iter().partition(|object| matches!(object.name, ArchiveFileName::History(_)));
    segments.sort_by_key(|object| (object.name.timeline(), object.name.to_string()));
    for part in [segments, histories] {
        let objects: Vec<Object> = part.iter().map(|object| object.object.clone()).collect();
        deleter.delete_all(&objects, |done| {
            let removed: Vec<Removed> = done.iter().filter_map(|object| row(system, object)).collect();
            index.run(|index| index.forget_expired(repository.url(), system.system_identifier, &removed));
        })?;
    }
    for folder in &system.emptied {
        tidy(repository, folder);
    }
    Ok(())
}

/// Removes directories without objects.
fn tidy(repository: &Repository, folder: &str) {
    if let Err(error) = repository.storage().tidy(folder, &repository.deadline()) {
        tracing::warn!("{}", repository.error("tidy", &error));
    }
}

/// The promise, looked at once more from its other side: where there is a usable backup, one stays.
fn check(plan: &RepositoryPlan<'_>) -> Result<()> {
    let all = || plan.systems.iter().flat_map(|system| &system.backups);
    let usable = all().any(|backup| backup.problem.is_none());
    if usable && !all().any(|backup| backup.problem.is_none() && backup.stays()) {
        return Err(Error::other("the plan keeps no usable backup: nothing is removed"));
    }
    Ok(())
}

fn row(system: &SystemPlan, object: &Object) -> Option<Removed> {
    let parsed = WalObject::parse(object.clone())?;
    let in_place = parsed.segment().is_some() && !is_aside(&system.keys, &parsed);
    Some(Removed {
        name: parsed.name.to_string(),
        crc: parsed.crc,
        key: object.key.clone(),
        segment_size: in_place.then(|| system.needs.segment_size().bytes()),
        stored_size: object.size,
    })
}

struct Deleter<'a> {
    repository: &'a Repository,
    progress: &'a Progress,
    objects: AtomicUsize,
    bytes: AtomicU64,
    refused: AtomicUsize,
    refusals: Mutex<Vec<String>>,
}

impl Deleter<'_> {
    /// Deletes one object; returns false where the store refuses.
    fn delete(&self, key: &str, bytes: u64) -> Result<bool> {
        let refused = self.refused.load(Ordering::Relaxed);
        if refused >= REFUSALS && self.objects.load(Ordering::Relaxed) == 0 {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Ok(false);
        }
        let deleted = self.repository.storage().delete(key, &self.repository.deadline());
        match deleted {
            Ok(()) => {
                self.objects.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.progress.add(bytes);
                Ok(true)
            }
            Err(storage::Error::Refused(text)) => {
                if self.refused.fetch_add(1, Ordering::Relaxed) < NAMED {
                    let mut named = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
                    named.push(format!("{key}: {text}"));
                }
                Ok(false)
            }
            Err(error) => Err(self.repository.error(&format!("remove \"{key}\" from"), &error)),
        }
    }

    /// Deletes objects in their order, some at once. Tells `after` which are gone.
    fn delete_all(&self, objects: &[Object], after: impl Fn(&[&Object])) -> Result<()> {
        for chunk in objects.chunks(CHUNK) {
            let results = in_parallel(chunk, PARALLEL, |object| self.delete(&object.key, object.size));
            let gone: Vec<&Object> =
                chunk.iter().zip(&results).filter(|(_, r)| matches!(r, Ok(true))).map(|(o, _)| o).collect();
            if !gone.is_empty() {
                after(&gone);
            }
            results.into_iter().find_map(Result::err).map_or(Ok(()), Err)?;
        }
        Ok(())
    }
}
