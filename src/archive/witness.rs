//! One repository that knows of every archived file, where each file had to be in all of them.
//!
//! With `acknowledge = "all"` the server heard "archived" only when every repository held the file. So what one of them
//! lacks was never archived, even if the others cannot be asked. That holds for the time in which the repository was one of
//! them; one that was added later, and perhaps filled from the others in part, knows nothing of what was before. A listing
//! tells so much:
//!
//! - A segment that the repository holds shows that it was there when later ones of the timeline were archived. It may have
//!   been copied there later instead, by `sync` or from a backlog; these copy the newest segment of each timeline first, and
//!   histories before them, so that a copying that broke off leaves a gap, and no false end.
//! - For a history it must hold segments of a lower timeline, and none of this timeline or a higher one, which had the
//!   history before them.
//!
//! What no listing tells is that fewer repositories were enough at an earlier time. Where the index knows of files that the
//! repository lacks, it is no witness.

use crate::index::Index;
use crate::postgres::{ArchiveFileName, TimelineId, WalSegmentName};
use crate::repository::{ClusterKeys, Repository, WalObject, timelines};
use std::path::Path;

/// How many of a timeline's first objects are looked at: among them may be some that are no WAL.
const FIRST: usize = 20;

/// Returns whether `repository`, which answered that it does not hold `name`, would hold it if it had been archived.
/// `index` is the path of the index, if there is one here.
pub fn knows_of_all(
    repository: &Repository,
    keys: &ClusterKeys,
    name: ArchiveFileName,
    index: Option<&Path>,
) -> bool {
    let lacking = index
        .filter(|path| path.exists())
        .and_then(|path| Index::open(path).ok())
        .and_then(|index| index.backlog_count(repository.url()).ok());
    lacking.unwrap_or(0) == 0 && took_part(repository, keys, name)
}

fn took_part(repository: &Repository, keys: &ClusterKeys, name: ArchiveFileName) -> bool {
    let holds = |timeline: TimelineId, which: &dyn Fn(WalSegmentName) -> bool| {
        let first =
            repository.storage().list(&keys.wal_timeline(timeline), "", FIRST, &repository.deadline());
        let mut first = first.unwrap_or_default().into_iter().filter_map(WalObject::parse);
        first.any(|object| object.segment().is_some_and(which))
    };
    match name {
        ArchiveFileName::Segment(wanted) => holds(wanted.timeline, &|segment| segment < wanted),
        ArchiveFileName::History(wanted) => timelines(repository, keys).is_ok_and(|folders| {
            // A directory keeps the folders of what was removed from it.
            folders.iter().all(|timeline| *timeline < wanted)
                && folders.iter().any(|timeline| holds(*timeline, &|_| true))
        }),
        _ => false,
    }
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
    fn a_repository_knows_of_all_that_came_after_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Arc::new(FsStorage::new(dir.path().to_owned()));
        let repository = Repository::new("r", storage, Duration::from_secs(5));
        let keys = ClusterKeys::new("main", SystemIdentifier(7));
        let knows = |name: &str| knows_of_all(&repository, &keys, name.parse().unwrap(), None);
        assert!(!knows("000000010000000000000005") && !knows("00000002.history"), "it is empty");
        let put = |name: &str| {
            let key = keys.wal_object(name.parse().unwrap(), 1, ".lz4");
            repository.storage().put_new(&key, &Bytes::from_static(b"x"), &repository.deadline()).unwrap();
        };
        put("000000010000000000000005");
        assert!(knows("000000010000000000000006") && knows("00000002.history"));
        assert!(!knows("000000010000000000000004"), "it began later");
        assert!(!knows("000000020000000000000006"), "of this timeline it has seen nothing");
        put("000000030000000000000006");
        assert!(!knows("00000002.history"), "it has WAL of a higher timeline and lacks the history");
        let index = dir.path().join("index");
        let open = Index::open(&index).unwrap();
        let by_index =
            || knows_of_all(&repository, &keys, "000000010000000000000006".parse().unwrap(), Some(&index));
        assert!(by_index());
        open.note_missing(repository.url(), SystemIdentifier(7), "000000010000000000000006", 1).unwrap();
        assert!(!by_index(), "the index knows that it lacks something");
    }
}
