//! Digests: what an index found out about the archive beyond listings, kept in the repositories, so that a new index can
//! be made from them without reading the WAL.

use super::{ClusterKeys, Repository, stored};
use crate::codec::{self, Opener, reading_failed};
use crate::kind::{Error, Result};
use crate::storage::{self, Deadline, Object};
use jiff::Timestamp;
use std::io::Read;

/// The longest digest that is read, in bytes of plaintext.
const LONGEST: u64 = 1 << 30;

/// Returns the key of a digest with this plaintext, made `now`. Keys sort by time.
pub fn digest_key(keys: &ClusterKeys, now: Timestamp, plaintext: &[u8], ending: &str) -> String {
    let crc = crc32fast::hash(plaintext);
    format!("{}{}-{crc:08x}.jsonl{ending}", keys.digests(), now.strftime("%Y%m%dT%H%M%SZ"))
}

/// Returns the digests in `repository`, oldest first.
pub fn list_digests(
    repository: &Repository,
    keys: &ClusterKeys,
    deadline: &Deadline,
) -> storage::Result<Vec<Object>> {
    let mut objects = repository.storage().list(&keys.digests(), "", usize::MAX, deadline)?;
    objects.retain(|object| crc_in(&object.key).is_some());
    Ok(objects)
}

fn crc_in(key: &str) -> Option<u32> {
    let stem = key.strip_suffix(codec::LZ4_AGE).or_else(|| key.strip_suffix(codec::LZ4))?;
    u32::from_str_radix(stem.strip_suffix(".jsonl")?.rsplit_once('-')?.1, 16).ok()
}

/// Returns the plaintext of a digest, checked against the CRC in its key. Failures are of
/// [`crate::kind::Kind`] Repository (the store), Config (the identity) or Corrupt.
pub fn read_digest(repository: &Repository, object: &Object, opener: &Opener) -> Result<Vec<u8>> {
    let key = &object.key;
    let named =
        |error: Error| error.context(format!("get \"{key}\" from repository \"{}\"", repository.name()));
    let stored = stored::open(repository, key, object.size)
        .map_err(|error| repository.error(&format!("get \"{key}\" from"), &error))?;
    let mut plaintext = Vec::new();
    opener
        .open(key, stored)
        .map_err(named)?
        .take(LONGEST)
        .read_to_end(&mut plaintext)
        .map_err(|error| named(reading_failed(&error)))?;
    if Some(crc32fast::hash(&plaintext)) != crc_in(key) {
        return Err(named(Error::corrupt("its content is not what its key says")));
    }
    Ok(plaintext)
}
