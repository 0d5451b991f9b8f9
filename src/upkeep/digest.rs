//! Digests on their way out and back: what the index found out goes into the repositories from time to time, and into a
//! new index from there.

use crate::codec::{Opener, Sealer};
use crate::index::{DigestLine, Index, IndexHandle, Undigested};
use crate::kind::{Context, Error, Result};
use crate::parallel::in_parallel;
use crate::postgres::SystemIdentifier;
use crate::repository::{ClusterKeys, Repository, digest_key, list_digests, read_digest, ship};
use crate::storage::Object;
use bytes::Bytes;
use std::collections::BTreeMap;

/// After how many segments that no digest tells of another one is written.
const SEGMENTS: u64 = 256;
/// How many digests are read at once.
const AT_ONCE: usize = 8;

/// Writes a digest if there is enough to tell; always, with `now`. It needs no more than one repository to succeed; a failure
/// is warned of, and the next call tries again.
pub fn write_digest(
    keys: &ClusterKeys,
    sysid: SystemIdentifier,
    to: &[&Repository],
    sealer: &Sealer,
    index: &IndexHandle,
    now: bool,
) {
    let waiting = index.run(|index| index.undigested_segments(sysid)).unwrap_or(0);
    if to.is_empty() || waiting < if now { 1 } else { SEGMENTS } {
        return;
    }
    if let Err(error) = try_write(keys, sysid, to, sealer, index) {
        tracing::warn!("could not keep what the index knows in a repository: {error}");
    }
}

fn try_write(
    keys: &ClusterKeys,
    sysid: SystemIdentifier,
    to: &[&Repository],
    sealer: &Sealer,
    index: &IndexHandle,
) -> Result<()> {
    let mut next = index.run(|index| index.undigested(sysid));
    while let Some(told) = next.filter(|told| !told.lines.is_empty()) {
        write_one(keys, sysid, to, sealer, index, &told)?;
        next = if told.more { index.run(|index| index.undigested_names(sysid)) } else { None };
    }
    Ok(())
}

fn write_one(
    keys: &ClusterKeys,
    sysid: SystemIdentifier,
    to: &[&Repository],
    sealer: &Sealer,
    index: &IndexHandle,
    told: &Undigested,
) -> Result<()> {
    let mut text = Vec::new();
    for line in &told.lines {
        serde_json::to_writer(&mut text, line).context("write a digest")?;
        text.push(b'\n');
    }
    let key = digest_key(keys, jiff::Timestamp::now(), &text, sealer.ending());
    let outcome = ship(to, &key, &Bytes::from(sealer.seal(&text)?), 1);
    if let (true, Some((_, error))) = (outcome.stored.is_empty(), outcome.failed.into_iter().next()) {
        return Err(error);
    }
    // Else the same would be told again and again.
    index
        .run(|index| index.mark_digested(sysid, told))
        .ok_or_else(|| Error::other("the index took no note of it"))
}

/// Takes what the digests in `repositories` tell into the index, oldest first, each from the first repository that has a
/// good copy. Returns how many were read. A digest that nobody can read is warned of. Fails with
/// [`crate::kind::Kind::Config`] without the identity, where there is a digest that is encrypted.
pub fn take_digests(
    keys: &ClusterKeys,
    sysid: SystemIdentifier,
    repositories: &[&Repository],
    opener: &Opener,
    index: &Index,
) -> Result<usize> {
    let mut known: BTreeMap<String, Vec<(&Repository, Object)>> = BTreeMap::new();
    for repository in repositories {
        let listed = list_digests(repository, keys, &repository.deadline())
            .map_err(|error| repository.error("list", &error))?;
        for object in listed {
            known.entry(object.key.clone()).or_default().push((repository, object));
        }
    }
    let known: Vec<_> = known.into_values().collect();
    let mut read = 0;
    for some in known.chunks(AT_ONCE) {
        for (text, problem) in in_parallel(some, AT_ONCE, |copies| first_good(copies, opener)) {
            match (text, problem) {
                (Some(text), _) => {
                    index.take_digest(sysid, &parse(&text)?)?;
                    read += 1;
                }
                (None, Some(error)) if error.kind() == crate::kind::Kind::Config => return Err(error),
                (None, error) => tracing::warn!("{}", error.unwrap_or_else(|| Error::other("no copy"))),
            }
        }
    }
    Ok(read)
}

fn first_good(copies: &[(&Repository, Object)], opener: &Opener) -> (Option<Vec<u8>>, Option<Error>) {
    let mut problem = None;
    let text = copies.iter().find_map(|(repository, object)| {
        read_digest(repository, object, opener).map_err(|error| problem = Some(error)).ok()
    });
    (text, problem)
}

/// Lines of a kind that a later version made are passed over.
fn parse(text: &[u8]) -> Result<Vec<DigestLine>> {
    let text = std::str::from_utf8(text).map_err(|_| Error::corrupt("a digest is not text"))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{ArchivedRow, DatabaseName, EventFilter, Fingerprint, RelationName, SegmentFacts};
    use crate::storage::FsStorage;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_digest_goes_through_a_repository_and_a_damaged_copy_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let repositories: Vec<Repository> = ["a", "b"]
            .iter()
            .map(|name| {
                let storage = Arc::new(FsStorage::new(dir.path().join(name)));
                std::fs::create_dir(dir.path().join(name)).unwrap();
                Repository::new(*name, storage, Duration::from_secs(5))
            })
            .collect();
        let repositories: Vec<&Repository> = repositories.iter().collect();
        let identity = age::x25519::Identity::generate();
        let sealer = Sealer::for_recipients(&[identity.to_public().to_string()]).unwrap();
        let sysid = SystemIdentifier(7);
        let keys = ClusterKeys::new("main", sysid);
        let old = IndexHandle::open(&dir.path().join("old"));
        let segment = ArchivedRow {
            sysid,
            name: "000000010000000000000001",
            crc: 1,
            fingerprint: Fingerprint { device: 1, inode: 1, size: 16, mtime_ns: 5, ctime_ns: 6 },
            stored_size: None,
            facts: Some(&SegmentFacts::default()),
            copies: &[],
            lacking: Vec::new(),
        };
        let digests = || list_digests(repositories[1], &keys, &repositories[1].deadline()).unwrap();
        write_digest(&keys, sysid, &repositories, &sealer, &old, true);
        assert!(digests().is_empty(), "there is nothing to tell");
        old.run(|index| {
            index.record_names(sysid, &[DatabaseName { oid: 5, name: "app".into(), seen: (1, 1) }], &[])?;
            index.record_archived(&[segment])
        })
        .unwrap();
        write_digest(&keys, sysid, &repositories, &sealer, &old, false);
        assert!(digests().is_empty(), "not for one segment");
        write_digest(&keys, sysid, &repositories, &sealer, &old, true);
        let key = digests()[0].key.clone();
        std::fs::write(dir.path().join("a").join(&key), "garbage").unwrap();

        let new = Index::open(&dir.path().join("new")).unwrap();
        let without = take_digests(&keys, sysid, &repositories, &Opener::without_identity(), &new);
        assert_eq!(without.unwrap_err().kind(), crate::kind::Kind::Config);
        let file = dir.path().join("identity");
        let secret = age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned();
        std::fs::write(&file, secret).unwrap();
        let opener = Opener::from_identity_file(&file).unwrap();
        assert_eq!(take_digests(&keys, sysid, &repositories, &opener, &new).unwrap(), 1);
        assert_eq!(new.database_names(sysid, 5).unwrap()[0].name, "app");
        assert!(new.events(sysid, &EventFilter::default()).unwrap().is_empty());
        assert_eq!(parse(b"{\"later\":1}\n").unwrap(), []);
    }

    #[test]
    fn very_many_names_go_into_several_digests() {
        let dir = tempfile::tempdir().unwrap();
        let repository =
            Repository::new("a", Arc::new(FsStorage::new(dir.path().to_owned())), Duration::from_secs(5));
        let sysid = SystemIdentifier(7);
        let keys = ClusterKeys::new("main", sysid);
        let index = IndexHandle::open(&dir.path().join("index/i"));
        let named = |oid: u32| RelationName {
            database: 5,
            oid,
            tablespace: 1663,
            filenode: oid,
            kind: 'r',
            name: format!("public.t{oid}"),
            seen: (1, 1),
        };
        let relations: Vec<RelationName> = (20_000..70_001).map(named).collect();
        index.run(|index| index.record_names(sysid, &[], &relations)).unwrap();
        let write = |name| {
            let segment = ArchivedRow {
                sysid,
                name,
                crc: 1,
                fingerprint: Fingerprint { device: 1, inode: 1, size: 16, mtime_ns: 5, ctime_ns: 6 },
                stored_size: None,
                facts: Some(&SegmentFacts::default()),
                copies: &[],
                lacking: Vec::new(),
            };
            index.run(|index| index.record_archived(&[segment])).unwrap();
            write_digest(&keys, sysid, &[&repository], &Sealer::unencrypted(), &index, true);
            list_digests(&repository, &keys, &repository.deadline()).unwrap().len()
        };
        assert_eq!(write("000000010000000000000001"), 2, "50,001 names");
        assert_eq!(write("000000010000000000000002"), 3, "they are told once");

        let new = Index::open(&dir.path().join("new")).unwrap();
        take_digests(&keys, sysid, &[&repository], &Opener::without_identity(), &new).unwrap();
        for oid in [20_000, 70_000] {
            assert_eq!(new.relations_of_oid(sysid, 5, oid).unwrap(), [named(oid)]);
        }
    }
}
