//! `index rebuild`: an index from what the repositories hold.

use super::digest::take_digests;
use crate::codec::Opener;
use crate::index::{Index, IndexHandle, ListedFile, RepositoryStamp};
use crate::kind::{Error, Kind, Result};
use crate::postgres::SystemIdentifier;
use crate::repository::{
    ClusterFile, ClusterKeys, Repository, WalObject, clusters, list_histories, list_wal_timeline, timelines,
};
use jiff::Timestamp;
use serde::Serialize;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Rebuilt {
    /// The system identifiers.
    pub system_identifiers: Vec<SystemIdentifier>,
    /// WAL files, of all repositories.
    pub files: usize,
    /// Digests that were read.
    pub digests: usize,
    /// Why digests could not be read.
    pub without_digests: Option<String>,
}

/// Takes everything that `repositories` list of `cluster` into `index`, and what their digests tell. Without the identity
/// that is the listings alone. Fails with [`Kind::Repository`] when one cannot be asked.
pub fn rebuild(
    cluster: &str,
    repositories: &[&Repository],
    opener: &Opener,
    index: &Index,
) -> Result<Rebuilt> {
    let mut done = Rebuilt::default();
    for repository in repositories {
        let known = clusters(repository, cluster, &repository.deadline())
            .map_err(|error| repository.error("look into", &error))?;
        if known.is_empty() {
            return Err(Error::new(
                Kind::Repository,
                format!("repository \"{}\" holds no cluster \"{cluster}\"", repository.name()),
            )
            .with_hint("not mounted, or a wrong prefix; --without NAME leaves it out"));
        }
        for sysid in known {
            done.files += take_listing(cluster, sysid, repository, index)?;
            if !done.system_identifiers.contains(&sysid) {
                done.system_identifiers.push(sysid);
            }
        }
    }
    for sysid in &done.system_identifiers {
        let keys = ClusterKeys::new(cluster, *sysid);
        match take_digests(&keys, *sysid, repositories, opener, index) {
            Ok(read) => done.digests += read,
            Err(error) if error.kind() == Kind::Config => {
                done.without_digests = Some(error.message().to_owned());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Fills an index that knows no segment of `sysid` from the digests, where they can be read: on another machine than the
/// one that archives. A failure is warned of.
pub fn fill_if_bare(
    cluster: &str,
    sysid: SystemIdentifier,
    repositories: &[&Repository],
    opener: &Opener,
    index: &IndexHandle,
) {
    if index.run(|index| index.is_bare(sysid)) != Some(true) {
        return;
    }
    let keys = ClusterKeys::new(cluster, sysid);
    // Without the identity there is no more to be known.
    let read = index.run(|index| Ok(take_digests(&keys, sysid, repositories, opener, index)));
    match read {
        Some(Ok(read)) if read > 0 => {
            tracing::info!("no index here; read instead what {read} of its digests in the repositories tell");
        }
        Some(Err(error)) if error.kind() != Kind::Config => tracing::warn!("{error}"),
        _ => {}
    }
}

fn take_listing(cluster: &str, sysid: SystemIdentifier, from: &Repository, index: &Index) -> Result<usize> {
    let keys = ClusterKeys::new(cluster, sysid);
    let deadline = from.deadline();
    let failed = |error| from.error("list", &error);
    let file = ClusterFile::read(from, &keys, &deadline).map_err(failed)?;
    let mut objects = list_histories(from, &keys, &deadline).map_err(failed)?;
    for timeline in timelines(from, &keys).map_err(failed)? {
        objects.extend(list_wal_timeline(from, &keys, timeline, &from.deadline()).map_err(failed)?);
    }
    let listed = |object: &WalObject| ListedFile {
        name: object.name.to_string(),
        crc: object.crc,
        size: object.segment().map_or(0, |_| file.wal_segment_size.bytes()),
        stored_size: object.object.size,
        stored_at: object.object.modified.map(Timestamp::as_microsecond),
    };
    let files: Vec<ListedFile> = objects.iter().map(listed).collect();
    let stamp = RepositoryStamp { url: from.url().to_owned(), cluster_id: file.id };
    index.record_listed(sysid, &stamp, &files)?;
    Ok(files.len())
}
