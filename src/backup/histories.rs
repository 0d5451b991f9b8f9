//! Timeline histories that a repository lacks. A server that was promoted while it did not archive has none of its own
//! there; whoever looks for the way to a timeline finds a hole in the place of each.

use crate::codec::Sealer;
use crate::durable::at;
use crate::kind::{Context, Result};
use crate::postgres::{ArchiveFileName, TimelineHistory};
use crate::repository::{ClusterKeys, Repository, WalObject, list_histories};
use bytes::Bytes;
use std::path::Path;

/// The largest file that is taken for a history, in bytes.
const LARGEST: u64 = 1 << 20;

/// Archives each `pg_wal/*.history` that a repository lacks. Failures are warned of: the backup is good without them.
pub fn fill_up(data_dir: &Path, keys: &ClusterKeys, repositories: &[&Repository], sealer: &Sealer) {
    let histories = match read(&data_dir.join("pg_wal")) {
        Ok(histories) => histories,
        Err(error) => return tracing::warn!("{error}; timeline histories are not looked at"),
    };
    if histories.is_empty() {
        return;
    }
    for repository in repositories {
        if let Err(error) = fill_up_one(&histories, keys, repository, sealer) {
            tracing::warn!("{error}; timeline histories may be missing there");
        }
    }
}

fn fill_up_one(
    histories: &[(ArchiveFileName, Vec<u8>)],
    keys: &ClusterKeys,
    repository: &Repository,
    sealer: &Sealer,
) -> Result<()> {
    let held = list_histories(repository, keys, &repository.deadline())
        .map_err(|error| repository.error("list", &error))?;
    for (name, content) in histories {
        let crc = crc32fast::hash(content);
        let there: Vec<&WalObject> = held.iter().filter(|object| object.name == *name).collect();
        if there.iter().any(|object| object.crc != crc) {
            tracing::warn!(
                "repository \"{}\" holds another \"{name}\" than pg_wal: two servers were promoted to this timeline; \
                 hint: walden resolve {name} --keep CRC settles it",
                repository.name()
            );
        }
        if !there.is_empty() {
            continue;
        }
        let body = Bytes::from(sealer.seal(content)?);
        let key = keys.wal_object(*name, crc, sealer.ending());
        let put = repository.storage().put_new(&key, &body, &repository.deadline());
        put.map_err(|error| repository.error(&format!("put \"{key}\" to"), &error))?;
        tracing::info!("archived \"{name}\", which repository \"{}\" lacked", repository.name());
    }
    Ok(())
}

/// Returns the histories in `pg_wal`. What cannot be one is passed over.
fn read(pg_wal: &Path) -> Result<Vec<(ArchiveFileName, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(pg_wal).map_err(at(pg_wal)).context("list pg_wal")? {
        let path = entry.map_err(at(pg_wal)).context("list pg_wal")?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(name @ ArchiveFileName::History(timeline)) = name else { continue };
        let small = std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= LARGEST);
        let content =
            if small { std::fs::read(&path).map_err(at(&path)).context("read history")? } else { Vec::new() };
        match TimelineHistory::parse(timeline, &content) {
            Ok(_) if !content.is_empty() => found.push((name, content)),
            _ => tracing::warn!("\"{}\" is no timeline history", path.display()),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::SystemIdentifier;
    use crate::storage::FsStorage;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn what_a_repository_lacks_is_put_there_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (data, store) = (dir.path().join("data"), dir.path().join("store"));
        std::fs::create_dir_all(data.join("pg_wal/archive_status")).unwrap();
        std::fs::create_dir(&store).unwrap();
        std::fs::write(data.join("pg_wal/00000002.history"), "1\t0/5000000\tno recovery target specified\n")
            .unwrap();
        std::fs::write(data.join("pg_wal/00000003.history"), "").unwrap();
        std::fs::write(data.join("pg_wal/000000010000000000000001"), "x").unwrap();
        let repository = Repository::new("a", Arc::new(FsStorage::new(store)), Duration::from_secs(10));
        let (keys, sealer) = (ClusterKeys::new("main", SystemIdentifier(7)), Sealer::unencrypted());
        let held = || list_histories(&repository, &keys, &repository.deadline()).unwrap();
        fill_up(&data, &keys, &[&repository], &sealer);
        let first = held();
        assert_eq!(
            first.iter().map(|object| object.name.to_string()).collect::<Vec<_>>(),
            ["00000002.history"]
        );
        // Another content is said, not added: the operator decides.
        std::fs::write(data.join("pg_wal/00000002.history"), "1\t0/6000000\tno recovery target specified\n")
            .unwrap();
        fill_up(&data, &keys, &[&repository], &sealer);
        assert_eq!(held(), first);
    }
}
