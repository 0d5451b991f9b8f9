//! The backups of a repository: each by its `backup.json`, which says what its objects are.

use super::content::BackupContent;
use super::objects::{Content, Target};
use super::report::{Subject, Wrong};
use super::visit::Visit;
use crate::kind::{Error, Result};
use crate::parallel::in_parallel;
use crate::repository::backup::{BACKUP_FORMAT, BackupSummary, SUMMARY_NAME};
use crate::repository::{parse_summary, read_stored};
use crate::storage::Object;
use std::collections::BTreeMap;

/// How many backups are listed and their summaries read at once.
const AT_ONCE: usize = 8;
/// The largest `backup.json` that is read, in bytes.
const LARGEST_SUMMARY: u64 = 256 << 20;

/// What a backup's folder holds.
enum Folder {
    /// A complete backup: its summary, and what is listed beside it, by name.
    Backup(Box<BackupSummary>, BTreeMap<String, Object>),
    /// No `backup.json`; what is listed.
    Unfinished(usize),
    /// A `backup.json` that is none.
    Unreadable(String),
}

/// Looks at the backups and returns the summaries of those that are complete, without their pieces, in the order of their ids.
pub(super) fn look(visit: &Visit<'_>) -> Result<Vec<BackupSummary>> {
    let failed = |error| visit.repository.error("list", &error);
    let store = visit.repository.storage();
    let mut ids = store.list_folders(&visit.keys.backups(), &visit.repository.deadline()).map_err(failed)?;
    ids.sort();
    if visit.request.backup.is_none() {
        visit.index.run(|index| index.forget_seen_backups(&visit.stamp.url, visit.sysid, &ids));
    }
    ids.retain(|id| visit.request.backup.is_none_or(|only| only == id));
    if let Some(only) = visit.request.backup
        && ids.is_empty()
    {
        tracing::info!("repository \"{}\" does not hold backup {only}", visit.repository.name());
    }
    let mut summaries = Vec::new();
    for part in ids.chunks(AT_ONCE) {
        for (id, folder) in part.iter().zip(in_parallel(part, AT_ONCE, |id| folder(visit, id))) {
            match folder {
                Ok(Folder::Backup(summary, listed)) => summaries.extend(one(visit, *summary, &listed)?),
                Ok(Folder::Unfinished(objects)) => unfinished(visit, id, objects)?,
                Ok(Folder::Unreadable(text)) => {
                    let key = format!("{}{SUMMARY_NAME}", visit.keys.backup(id));
                    visit.wrong(Wrong::Content, Subject::Backup(id.clone()), Some(&key), &text);
                }
                Err(error) => {
                    visit.failed(&error);
                }
            }
        }
    }
    visit.count(|report| report.backups = summaries.len());
    Ok(summaries)
}

fn folder(visit: &Visit<'_>, id: &str) -> Result<Folder> {
    let prefix = visit.keys.backup(id);
    let objects = visit
        .repository
        .storage()
        .list(&prefix, "", usize::MAX, &visit.repository.deadline())
        .map_err(|error| visit.repository.error("list", &error))?;
    let listed = Visit::by_name(&prefix, objects);
    let Some(summary) = listed.get(SUMMARY_NAME) else { return Ok(Folder::Unfinished(listed.len())) };
    if summary.size > LARGEST_SUMMARY {
        return Ok(Folder::Unreadable(format!("backup.json has {} bytes", summary.size)));
    }
    let text = match read_stored(visit.repository, &summary.key, summary.size) {
        Ok(text) => text,
        // Expired since it was listed.
        Err(_) if !visit.is_there(&summary.key)? => return Ok(Folder::Unfinished(0)),
        Err(error) => return Err(error),
    };
    let parsed = match parse_summary(&text) {
        Ok(parsed) => parsed,
        // A bad transfer is not a bad object.
        Err(_) => match parse_summary(&read_stored(visit.repository, &summary.key, summary.size)?) {
            Ok(parsed) => parsed,
            Err(error) => return Ok(Folder::Unreadable(format!("backup.json cannot be read: {error}"))),
        },
    };
    if parsed.format > BACKUP_FORMAT {
        return Err(Error::corrupt(format!(
            "backup {id} in repository \"{}\" has format {}, this version of walden knows up to {BACKUP_FORMAT}",
            visit.repository.name(),
            parsed.format
        )));
    }
    if parsed.id != id || parsed.system_identifier != visit.sysid {
        return Ok(Folder::Unreadable(format!(
            "backup.json is of backup {} of system identifier {}",
            parsed.id, parsed.system_identifier
        )));
    }
    Ok(Folder::Backup(Box::new(parsed), listed))
}

/// A folder without `backup.json` is a backup that is being taken, one that broke off, or what an expiry left. It is a damaged
/// one only where another repository knows it as complete and nothing here is to expire it.
fn unfinished(visit: &Visit<'_>, id: &str, objects: usize) -> Result<()> {
    if objects == 0 || visit.request.busy.contains(id) {
        return Ok(());
    }
    let key = format!("{}{SUMMARY_NAME}", visit.keys.backup(id));
    let mut others = visit.request.repositories.iter().filter(|(other, _)| other.url() != visit.stamp.url);
    let is_elsewhere = others
        .any(|(other, _)| other.storage().head(&key, &other.deadline()).is_ok_and(|found| found.size > 0));
    if is_elsewhere && visit.is_wanted(&key) && !visit.is_there(&key)? {
        let text = "backup.json is missing, although the other objects of the backup are there";
        visit.wrong(Wrong::Missing, Subject::Backup(id.to_owned()), Some(&key), text);
    }
    Ok(())
}

/// Looks at a backup's objects. Returns its summary without them; none if it is not to be looked at, or is gone meanwhile.
fn one(
    visit: &Visit<'_>,
    mut summary: BackupSummary,
    listed: &BTreeMap<String, Object>,
) -> Result<Option<BackupSummary>> {
    if visit.request.since.is_some_and(|since| summary.stop_time < since) {
        return Ok(None);
    }
    let folder = visit.keys.backup(&summary.id);
    let subject = || Subject::Backup(summary.id.clone());
    let mut targets = Vec::new();
    let mut stored = Vec::new();
    let mut missing = Vec::new();
    for object in summary.objects() {
        match listed.get(&object.name) {
            Some(found) => {
                let expected = Some((object.size, object.crc32));
                targets.push(Target {
                    object: found.clone(),
                    expected,
                    stored_size: None,
                    subject: subject(),
                });
                stored.push(object);
            }
            None => missing.push(format!("{folder}{}", object.name)),
        }
    }
    if let Some(object) = listed.get(SUMMARY_NAME) {
        targets.push(Target {
            object: object.clone(),
            expected: None,
            stored_size: None,
            subject: subject(),
        });
    }
    let content = BackupContent::new(visit, &summary, &folder, stored);
    visit.look(&folder, &targets, false, visit.request.deep.then_some(&content as &dyn Content))?;
    let vanished = visit.vanished();
    missing.extend(
        targets.iter().map(|target| &target.object.key).filter(|key| vanished.contains(*key)).cloned(),
    );
    // An expiry takes the summary first.
    if !missing.is_empty() && !visit.is_there(&format!("{folder}{SUMMARY_NAME}"))? {
        return Ok(None);
    }
    for key in missing {
        if !visit.is_there(&key)? {
            let text = format!("\"{}\" is missing", &key[folder.len()..]);
            visit.wrong(Wrong::Missing, subject(), Some(&key), &text);
        }
    }
    if summary.bad_pages > 0 {
        let text = format!("backup {}: {} pages", summary.id, summary.bad_pages);
        visit.count(|report| report.bad_pages.push(text));
    }
    summary.pieces = Vec::new();
    Ok(Some(summary))
}
