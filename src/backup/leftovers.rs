//! Removing what earlier backups of the cluster left when they broke off.

use super::journal::Journals;
use crate::repository::{ClusterKeys, Leftover, Repository, list_leftovers, remove_leftovers};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// How old all objects of a folder must be where nobody here knows of the backup: another host may be taking it. The
/// longest pauses between two objects of a backup that goes on are far shorter.
pub const ABANDONED_AFTER: SignedDuration = SignedDuration::from_hours(48);

/// Removes the objects of backups that broke off for certain, from all of `repositories`, which must be all that there
/// are: a backup that is complete in one of them is none. `journals` tells which were taken on this machine; their
/// journals go too. Failures are warned of: nothing here is worth failing for. Returns how many backups were removed.
pub fn remove(
    repositories: &[&Repository],
    keys: &ClusterKeys,
    journals: Journals,
    keep: Option<&str>,
) -> usize {
    let found = match leftovers(repositories, keys) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!("{error}; what broken-off backups left is not looked for");
            return 0;
        }
    };
    let now = Timestamp::now();
    let (mut removed, mut left) = (0, BTreeSet::new());
    for (id, places) in &found {
        if keep == Some(id.as_str()) || !is_dead(id, places, &journals, now) {
            continue;
        }
        let (objects, bytes) =
            places.iter().fold((0, 0), |(n, sum), (_, left)| (n + left.objects, sum + left.bytes));
        let mut whole = true;
        for (repository, _) in places {
            if let Err(error) = remove_leftovers(repository, keys, id, &BTreeSet::new()) {
                tracing::warn!("{error}");
                whole = false;
                left.insert(id.as_str());
            }
        }
        if whole {
            tracing::info!("removed what the broken-off backup {id} left: {objects} objects, {bytes} bytes");
            removed += 1;
        }
    }
    for journal in journals.broken_off {
        if keep != Some(journal.id.as_str()) && !left.contains(journal.id.as_str()) {
            journal.remove();
        }
    }
    removed
}

type Places<'r> = Vec<(&'r Repository, Leftover)>;

/// Returns what has no `backup.json` in any repository, by id.
fn leftovers<'r>(
    repositories: &[&'r Repository],
    keys: &ClusterKeys,
) -> crate::kind::Result<BTreeMap<String, Places<'r>>> {
    let mut found: BTreeMap<String, Places<'r>> = BTreeMap::new();
    for repository in repositories {
        let left = list_leftovers(repository, keys).map_err(|error| repository.error("list", &error))?;
        for leftover in left {
            found.entry(leftover.id.clone()).or_default().push((repository, leftover));
        }
    }
    // Complete elsewhere: sync fills it up.
    for repository in repositories {
        let complete = crate::repository::list_backups(repository, keys)
            .map_err(|error| repository.error("list", &error))?;
        for id in complete {
            found.remove(&id);
        }
    }
    Ok(found)
}

fn is_dead(id: &str, places: &Places<'_>, journals: &Journals, now: Timestamp) -> bool {
    if journals.running.iter().any(|running| running == id) {
        return false;
    }
    if journals.broken_off.iter().any(|journal| journal.id == id) {
        return true;
    }
    // An empty folder may hold the first object in the making.
    let old = |time: Timestamp| now.duration_since(time) > ABANDONED_AFTER;
    begun(id).is_some_and(old)
        && places.iter().all(|(_, left)| left.objects == 0 || left.newest.is_some_and(old))
}

/// Returns when a backup was begun, from its id.
fn begun(id: &str) -> Option<Timestamp> {
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", id.split('-').next()?).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::TimelineId;
    use crate::repository::backup::new_backup_id;

    #[test]
    fn what_another_host_may_be_writing_is_left_alone() {
        let now = Timestamp::now();
        let dir = tempfile::tempdir().unwrap();
        let store = crate::storage::FsStorage::new(dir.path().to_owned());
        let repository = Repository::new("a", std::sync::Arc::new(store), std::time::Duration::from_secs(1));
        let dead = |begun: Timestamp, objects, newest| {
            let id = new_backup_id(begun, TimelineId(1));
            let left = Leftover { id: id.clone(), objects, bytes: 1, newest };
            let places = vec![(&repository, left)];
            let running = Journals { running: vec![id.clone()], ..Journals::default() };
            assert!(!is_dead(&id, &places, &running, now));
            is_dead(&id, &places, &Journals::default(), now)
        };
        let (old, young) = (now - SignedDuration::from_hours(60), now - SignedDuration::from_hours(1));
        assert!(dead(old, 1, Some(old)) && dead(old, 0, None));
        assert!(!dead(old, 1, Some(young)) && !dead(old, 1, None));
        assert!(!dead(young, 0, None) && !dead(young, 1, Some(young)));
        assert_eq!(begun("nonsense"), None);
    }
}
