//! `resolve`: settles which of two contents archived under one name is the right one. The other is kept aside.

use crate::kind::{Error, Kind, Result};
use crate::postgres::{ArchiveFileName, SystemIdentifier};
use crate::repository::{ClusterKeys, Repository, WalObject, find_contents};
use crate::storage::Put;
use bytes::Bytes;
use std::io::Read;

/// Keeps the content of `name` with the CRC-32 `keep`, and moves every other one aside, in every repository. Returns
/// a line for each that was moved. Nothing is lost: the copy aside is durable before the original goes. Fails with
/// [`Kind::Usage`] when no repository holds that content.
pub fn resolve(
    cluster: &str,
    sysid: SystemIdentifier,
    name: ArchiveFileName,
    keep: u32,
    repositories: &[Repository],
) -> Result<Vec<String>> {
    let keys = ClusterKeys::new(cluster, sysid);
    let mut held: Vec<(&Repository, WalObject)> = Vec::new();
    for repository in repositories {
        let contents = find_contents(repository, &keys, name, &repository.deadline())
            .map_err(|error| repository.error("list", &error))?;
        held.extend(contents.into_iter().map(|object| (repository, object)));
    }
    if !held.iter().any(|(_, object)| object.crc == keep) {
        let known: Vec<String> = held
            .iter()
            .map(|(repository, object)| format!("{:08x} in \"{}\"", object.crc, repository.name()))
            .collect();
        let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
        return Err(Error::usage(format!("no repository holds \"{name}\" with CRC-32 {keep:08x}"))
            .with_hint(format!("archived under that name: {known}")));
    }
    let mut moved = Vec::new();
    for (repository, object) in held.iter().filter(|(_, object)| object.crc != keep) {
        let aside = move_aside(repository, &keys, object)?;
        moved.push(format!("repository \"{}\": {} is now {aside}", repository.name(), object.object.key));
    }
    Ok(moved)
}

fn move_aside(repository: &Repository, keys: &ClusterKeys, object: &WalObject) -> Result<String> {
    let key = &object.object.key;
    let file = key.rsplit('/').next().unwrap_or(key);
    let aside = format!("{}{file}", keys.aside());
    let failed = |what: &str, error: &crate::storage::Error| repository.error(what, error);
    let deadline = repository.deadline();
    let mut body = Vec::new();
    repository
        .storage()
        .get(key, None, &deadline)
        .map_err(|error| failed("get from", &error))?
        .read_to_end(&mut body)
        .map_err(|error| Error::new(Kind::Repository, format!("get \"{key}\": {error}")))?;
    let size = body.len() as u64;
    let put = repository
        .storage()
        .put_new(&aside, &Bytes::from(body), &deadline)
        .map_err(|error| failed("put to", &error))?;
    if put == Put::Existed {
        let there =
            repository.storage().head(&aside, &deadline).map_err(|error| failed("look into", &error))?;
        if there.size != size {
            return Err(Error::new(
                Kind::Conflict,
                format!("\"{aside}\" is taken by an object of another size"),
            ));
        }
    }
    repository.storage().delete(key, &deadline).map_err(|error| failed("delete from", &error))?;
    Ok(aside)
}
