//! WAL objects: finding and reading them.

use super::{ClusterKeys, Repository, WalObject};
use crate::codec::{Opener, reading_failed};
use crate::kind::{Error, Result};
use crate::postgres::{ArchiveFileName, TimelineId, WalSegmentName};
use crate::storage::{self, Deadline};
use std::collections::BTreeSet;
use std::io::{Read, Write};

/// The largest timeline history, backup history file that is read, in bytes.
const LARGEST_SMALL_FILE: u64 = 16 << 20;
/// How much of an object is in memory while it is copied, in bytes.
const COPY_BUFFER: usize = 256 << 10;

/// What a repository holds of a timeline from one segment onward.
#[derive(Debug, Clone, Default)]
pub struct WalListing {
    /// The objects in the order of names; several contents of one name stand side by side.
    pub objects: Vec<WalObject>,
    /// Whether the listing ended at its limit: there may be more.
    pub cut: bool,
}

impl WalListing {
    /// Returns every content archived under the segment's name.
    pub fn contents(&self, segment: WalSegmentName) -> Vec<&WalObject> {
        self.objects.iter().filter(|o| o.segment() == Some(segment)).collect()
    }
}

/// Returns every content that `repository` holds under `name`.
pub fn find_contents(
    repository: &Repository,
    keys: &ClusterKeys,
    name: ArchiveFileName,
    deadline: &Deadline,
) -> storage::Result<Vec<WalObject>> {
    let objects = repository.storage().list(&keys.wal_contents(name), "", 100, deadline)?;
    Ok(objects.into_iter().filter_map(WalObject::parse).filter(|o| o.name == name).collect())
}

/// Returns at most `limit` objects from `segment` onward on its timeline, by one listing.
pub fn list_wal_from(
    repository: &Repository,
    keys: &ClusterKeys,
    segment: WalSegmentName,
    limit: usize,
    deadline: &Deadline,
) -> storage::Result<WalListing> {
    let prefix = keys.wal_timeline(segment.timeline);
    let objects = repository.storage().list(&prefix, &keys.before_segment(segment), limit, deadline)?;
    let cut = objects.len() >= limit;
    Ok(WalListing { objects: objects.into_iter().filter_map(WalObject::parse).collect(), cut })
}

/// Returns all WAL objects of a timeline.
pub fn list_wal_timeline(
    repository: &Repository,
    keys: &ClusterKeys,
    timeline: TimelineId,
    deadline: &Deadline,
) -> storage::Result<Vec<WalObject>> {
    let objects = repository.storage().list(&keys.wal_timeline(timeline), "", usize::MAX, deadline)?;
    Ok(objects.into_iter().filter_map(WalObject::parse).collect())
}

/// Returns the timelines that have WAL in `repository`.
pub fn timelines(repository: &Repository, keys: &ClusterKeys) -> storage::Result<Vec<TimelineId>> {
    let folders = repository.storage().list_folders(&keys.wal(), &repository.deadline())?;
    Ok(folders.iter().filter_map(|folder| TimelineId::from_hex8(folder).ok()).collect())
}

/// How many digits of a segment's folder one listing of WAL shares: 16 folders, 4096 segments of 16 MiB.
const SHARED_DIGITS: usize = 7;

/// Returns prefixes below which all WAL of a timeline is, for listings at once.
pub fn wal_prefixes(
    repository: &Repository,
    keys: &ClusterKeys,
    timeline: TimelineId,
) -> storage::Result<BTreeSet<String>> {
    let prefix = keys.wal_timeline(timeline);
    let folders = repository.storage().list_folders(&prefix, &repository.deadline())?;
    let shared = |folder: &String| format!("{prefix}{}", folder.get(..SHARED_DIGITS).unwrap_or(folder));
    Ok(folders.iter().map(shared).collect())
}

/// Returns every object in the folder of histories: timeline and backup histories, partial segments.
pub fn list_histories(
    repository: &Repository,
    keys: &ClusterKeys,
    deadline: &Deadline,
) -> storage::Result<Vec<WalObject>> {
    let objects = repository.storage().list(&keys.histories(), "", usize::MAX, deadline)?;
    Ok(objects.into_iter().filter_map(WalObject::parse).collect())
}

/// Returns the plaintext of a WAL object, checked against the CRC in its key. `length` is the segment size for
/// segments. Failures are of [`crate::kind::Kind`] Repository (the store), Config (the identity) or Corrupt.
pub fn read_wal_object(
    repository: &Repository,
    object: &WalObject,
    length: Option<u64>,
    opener: &Opener,
) -> Result<Vec<u8>> {
    let mut plaintext = Vec::with_capacity(length.unwrap_or(0) as usize);
    copy_wal_object(repository, object, length, opener, &mut plaintext)?;
    Ok(plaintext)
}

/// Writes the plaintext of a WAL object to `out`, as [`read_wal_object`] returns it, without holding it in memory.
/// After an error what was written is worth nothing.
pub fn copy_wal_object(
    repository: &Repository,
    object: &WalObject,
    length: Option<u64>,
    opener: &Opener,
    out: &mut dyn Write,
) -> Result<()> {
    let key = &object.object.key;
    let named =
        |error: Error| error.context(format!("get \"{key}\" from repository \"{}\"", repository.name()));
    let stored = super::stored::open(repository, key, object.object.size)
        .map_err(|error| repository.error(&format!("get \"{key}\" from"), &error))?;
    let limit = length.unwrap_or(LARGEST_SMALL_FILE);
    let mut reader = opener.open(key, stored).map_err(named)?.take(limit + 1);
    let mut buffer = vec![0; COPY_BUFFER];
    let (mut total, mut hasher) = (0, crc32fast::Hasher::new());
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(named(reading_failed(&error))),
        };
        hasher.update(&buffer[..read]);
        total += read as u64;
        out.write_all(&buffer[..read]).map_err(|error| named(Error::other(format!("write: {error}"))))?;
    }
    if length.is_some_and(|length| total != length) || total > limit {
        return Err(named(Error::corrupt(format!("has {total} bytes, expected {limit}"))));
    }
    let crc = hasher.finalize();
    if crc != object.crc {
        return Err(Error::corrupt(format!("CRC-32 is {crc:08x}, its key says {:08x}", object.crc)));
    }
    Ok(())
}
