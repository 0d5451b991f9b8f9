//! The backups in a repository: those that have a `backup.json`.

use super::backup::BackupSummary;
use super::{ClusterKeys, Repository};
use crate::storage;

/// The largest `backup.json` that is read, in bytes.
const LARGEST_SUMMARY: u64 = 256 << 20;

/// Returns the ids of the complete backups in `repository`, oldest first, by listings alone.
pub fn list_backups(repository: &Repository, keys: &ClusterKeys) -> storage::Result<Vec<String>> {
    let deadline = repository.deadline();
    let mut complete = Vec::new();
    for id in repository.storage().list_folders(&keys.backups(), &deadline)? {
        let key = format!("{}backup.json", keys.backup(&id));
        match repository.storage().head(&key, &deadline) {
            Ok(_) => complete.push(id),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    complete.sort();
    Ok(complete)
}

/// Returns the summary of a backup.
pub fn read_summary(repository: &Repository, keys: &ClusterKeys, id: &str) -> storage::Result<BackupSummary> {
    let key = format!("{}backup.json", keys.backup(id));
    let text = super::stored::read_small(repository, &key, LARGEST_SUMMARY, &repository.deadline())?;
    serde_json::from_slice(&text)
        .map_err(|error| storage::Error::Refused(format!("\"{key}\" is not a backup's summary: {error}")))
}
