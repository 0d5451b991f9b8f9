//! What backups that broke off left in a repository: folders without a `backup.json`, and removing them.

use super::backup::SUMMARY_NAME;
use super::{ClusterKeys, Repository};
use crate::kind::{Error, Result};
use crate::storage::{self, Deadline, Object};
use jiff::Timestamp;
use std::collections::BTreeSet;

/// A backup's folder that holds no `backup.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The id, which is the name of the folder.
    pub id: String,
    /// The number of objects in it.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// When the newest of them was stored, by the store's clock; none where the store does not say of each.
    pub newest: Option<Timestamp>,
}

/// Returns the folders of `repository` without a `backup.json`: backups that broke off, and those that are being taken
/// right now.
pub fn list_leftovers(repository: &Repository, keys: &ClusterKeys) -> storage::Result<Vec<Leftover>> {
    let deadline = repository.deadline();
    let mut found = Vec::new();
    for id in repository.storage().list_folders(&keys.backups(), &deadline)? {
        if is_complete(repository, keys, &id, &deadline)? {
            continue;
        }
        let objects = list_backup_objects(repository, keys, &id)?;
        found.push(Leftover {
            objects: objects.len(),
            bytes: objects.iter().map(|object| object.size).sum(),
            newest: objects
                .iter()
                .map(|object| object.modified)
                .min()
                .flatten()
                .and(objects.iter().filter_map(|object| object.modified).max()),
            id,
        });
    }
    Ok(found)
}

/// Returns whether the backup `id` has its `backup.json` in `repository`.
pub fn is_complete(
    repository: &Repository,
    keys: &ClusterKeys,
    id: &str,
    deadline: &Deadline,
) -> storage::Result<bool> {
    match repository.storage().head(&format!("{}{SUMMARY_NAME}", keys.backup(id)), deadline) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the objects in the folder of the backup `id`.
pub fn list_backup_objects(
    repository: &Repository,
    keys: &ClusterKeys,
    id: &str,
) -> storage::Result<Vec<Object>> {
    repository.storage().list(&keys.backup(id), "", usize::MAX, &repository.deadline())
}

/// Removes the objects in the folder of the backup `id` but those whose names within it are in `keep`, and returns how
/// many there were. Refuses a backup that is complete in this repository. Whoever calls this knows that it is complete
/// in no other either, and that nobody is taking it.
pub fn remove_leftovers(
    repository: &Repository,
    keys: &ClusterKeys,
    id: &str,
    keep: &BTreeSet<&str>,
) -> Result<usize> {
    let failed = |what: &'static str| move |error: storage::Error| repository.error(what, &error);
    if is_complete(repository, keys, id, &repository.deadline()).map_err(failed("look into"))? {
        return Err(Error::other(format!(
            "backup {id} is complete in repository \"{}\": nothing of it is removed",
            repository.name()
        )));
    }
    let folder = keys.backup(id);
    let mut removed = 0;
    for object in list_backup_objects(repository, keys, id).map_err(failed("list"))? {
        let kept = object.key.strip_prefix(&folder).is_none_or(|name| keep.contains(name));
        if !kept {
            let deleted = repository.storage().delete(&object.key, &repository.deadline());
            deleted.map_err(|error| {
                let key = &object.key;
                repository.error(&format!("remove \"{key}\" from"), &error).with_hint(
                    "removing what a broken-off backup left takes the right to delete (S3: s3:DeleteObject)",
                )
            })?;
            removed += 1;
        }
    }
    repository.storage().tidy(&folder, &repository.deadline()).map_err(failed("tidy"))?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::SystemIdentifier;
    use crate::storage::FsStorage;
    use bytes::Bytes;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn what_is_left_is_found_and_removed_and_a_backup_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(FsStorage::new(dir.path().to_owned()));
        let repository = Repository::new("a", store, Duration::from_secs(10));
        let keys = ClusterKeys::new("main", SystemIdentifier(7));
        let put = |key: String| {
            let body = Bytes::from_static(b"12345");
            repository.storage().put_new(&key, &body, &repository.deadline()).unwrap();
        };
        for id in ["half", "whole"] {
            put(format!("{}data/0000000.lz4", keys.backup(id)));
            put(format!("{}data/0000001.lz4", keys.backup(id)));
        }
        put(format!("{}backup.json", keys.backup("whole")));
        let half = dir.path().join(keys.backup("half"));
        std::fs::write(half.join("data/.0000002.lz4.1.00000000.tmp"), "x").unwrap();

        let found = list_leftovers(&repository, &keys).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].id.as_str(), found[0].objects, found[0].bytes), ("half", 2, 10));
        assert!(found[0].newest.is_some());

        let keep = BTreeSet::from(["data/0000001.lz4"]);
        assert_eq!(remove_leftovers(&repository, &keys, "half", &keep).unwrap(), 1);
        assert_eq!(std::fs::read_dir(half.join("data")).unwrap().count(), 1);
        assert_eq!(remove_leftovers(&repository, &keys, "half", &BTreeSet::new()).unwrap(), 1);
        assert!(!half.exists() && list_leftovers(&repository, &keys).unwrap().is_empty());
        assert!(remove_leftovers(&repository, &keys, "whole", &BTreeSet::new()).is_err());
        assert_eq!(list_backup_objects(&repository, &keys, "whole").unwrap().len(), 3);
    }
}
