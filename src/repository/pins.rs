//! Pins: marker objects that keep a backup from being expired. A pin lies beside the backups, not in the backup's folder:
//! what is in there goes with it.

use super::{ClusterKeys, Repository};
use crate::storage::{self, Deadline, Put};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// What ends the names of pins.
const ENDING: &str = ".json";

fn key(keys: &ClusterKeys, id: &str) -> String {
    format!("{}{id}{ENDING}", keys.pins())
}

/// Returns the ids of the pinned backups.
pub fn list_pins(repository: &Repository, keys: &ClusterKeys) -> storage::Result<BTreeSet<String>> {
    let folder = keys.pins();
    let objects = repository.storage().list(&folder, "", usize::MAX, &repository.deadline())?;
    let id =
        |object: &storage::Object| Some(object.key.strip_prefix(&folder)?.strip_suffix(ENDING)?.to_owned());
    Ok(objects.iter().filter_map(id).collect())
}

/// Returns whether the backup `id` is pinned.
pub fn is_pinned(
    repository: &Repository,
    keys: &ClusterKeys,
    id: &str,
    deadline: &Deadline,
) -> storage::Result<bool> {
    match repository.storage().head(&key(keys, id), deadline) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Pins the backup `id`. Returns whether it was not pinned before.
pub fn pin(
    repository: &Repository,
    keys: &ClusterKeys,
    id: &str,
    now: Timestamp,
    deadline: &Deadline,
) -> storage::Result<bool> {
    let body = serde_json::json!({ "backup": id, "pinned": now }).to_string();
    let put = repository.storage().put_new(&key(keys, id), &Bytes::from(body), deadline)?;
    Ok(put == Put::Created)
}

/// Removes the pin of the backup `id`. Returns whether it was pinned.
pub fn unpin(
    repository: &Repository,
    keys: &ClusterKeys,
    id: &str,
    deadline: &Deadline,
) -> storage::Result<bool> {
    let was = is_pinned(repository, keys, id, deadline)?;
    if was {
        repository.storage().delete(&key(keys, id), deadline)?;
    }
    Ok(was)
}
