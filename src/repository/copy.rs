//! Copies of objects as they are stored: no key is needed.

use super::Repository;
use crate::kind::{Error, Kind, Result};
use crate::storage::{PART_SIZE, Put};
use bytes::Bytes;
use std::io::Read;

/// The largest object that is copied by a single write, in bytes: pieces of backups are never written in parts.
pub const LARGEST_WHOLE: u64 = 40 << 20;

/// How much of an object's beginning a [`Change`] sees, in bytes: more than any age header.
const START: u64 = 1 << 20;

/// Given an object's first bytes returns what is to stand at the beginning instead, and how many bytes that replaces; none to
/// leave it as it is.
pub type Change<'c> = &'c dyn Fn(&[u8]) -> Result<Option<(Vec<u8>, usize)>>;

/// Copies an object as it is stored from one repository to another, with memory bounded.
pub fn copy_object(from: &Repository, to: &Repository, key: &str) -> Result<()> {
    copy_changed(from, to, key, &|_| Ok(None)).map(drop)
}

/// Copies an object with another beginning, with memory bounded. Returns size and CRC-32 (IEEE) of what was written; none
/// where there was an object of that key already.
pub fn copy_changed(
    from: &Repository,
    to: &Repository,
    key: &str,
    change: Change<'_>,
) -> Result<Option<(u64, u32)>> {
    let reading = format!("get \"{key}\" from");
    let writing = format!("put \"{key}\" to");
    let put_failed = |error| to.error(&writing, &error);
    let broke_off = |error: std::io::Error| {
        Error::new(Kind::Repository, format!("{reading} repository \"{}\": {error}", from.name()))
    };
    let size = from.storage().head(key, &from.deadline()).map_err(|error| from.error(&reading, &error))?.size;
    let mut stored = super::stored::open(from, key, size).map_err(|error| from.error(&reading, &error))?;
    let mut start = take(&mut stored, size.min(START)).map_err(broke_off)?;
    if let Some((instead, replaced)) = change(&start)? {
        start.splice(..replaced, instead);
    }
    let size = size - size.min(START) + start.len() as u64;
    let mut rest = std::io::Cursor::new(start).chain(stored);
    let mut crc = crc32fast::Hasher::new();
    let mut next = |length: u64| -> Result<Bytes> {
        let bytes = take(&mut rest, length).map_err(broke_off)?;
        crc.update(&bytes);
        Ok(Bytes::from(bytes))
    };
    let deadline = to.deadline();
    if size <= LARGEST_WHOLE {
        let put = to.storage().put_new(key, &next(size)?, &deadline).map_err(put_failed)?;
        return Ok((put == Put::Created).then(|| (size, crc.finalize())));
    }
    let mut upload = to.storage().upload_new(key, &deadline).map_err(put_failed)?;
    let mut left = size;
    for index in 0.. {
        if left == 0 {
            break;
        }
        let part = next(left.min(PART_SIZE as u64))?;
        left -= part.len() as u64;
        upload.part(index, &part).map_err(put_failed)?;
    }
    let put = upload.complete().map_err(put_failed)?;
    Ok((put == Put::Created).then(|| (size, crc.finalize())))
}

/// Reads exactly `length` bytes.
fn take(from: &mut impl Read, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length as usize);
    from.take(length).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < length {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::FsStorage;
    use crate::storage::faulty::{Fault, Faulty};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn small_and_large_objects_arrive_whole_or_not_at_all() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Faulty::new(FsStorage::new(source.path().to_owned()));
        let faults = store.faults();
        let from = Repository::new("from", Arc::new(store), Duration::from_secs(10));
        let to = Repository::new(
            "to",
            Arc::new(FsStorage::new(target.path().to_owned())),
            Duration::from_secs(10),
        );
        for (key, size) in [("empty", 0), ("small", 1000), ("large", LARGEST_WHOLE as usize + PART_SIZE + 5)]
        {
            let content: Vec<u8> = (0..size).map(|i| (i >> 4) as u8 ^ i as u8).collect();
            from.storage().put_new(key, &Bytes::from(content.clone()), &from.deadline()).unwrap();
            if size > 0 {
                faults.reset();
                faults.fail_at(2, Fault::Truncate); // the first asks for the size
                assert!(copy_object(&from, &to, key).is_err());
                assert!(to.storage().head(key, &to.deadline()).unwrap_err().is_not_found());
            }
            copy_object(&from, &to, key).unwrap();
            assert!(std::fs::read(target.path().join(key)).unwrap() == content, "{key}");
            // With another beginning, shorter or longer than what it replaces.
            for (number, instead) in [&b""[..], &[9; 3000]].into_iter().enumerate() {
                let dir = target.path().join(number.to_string());
                std::fs::create_dir_all(&dir).unwrap();
                let storage = Arc::new(FsStorage::new(dir.clone()));
                let other = Repository::new("other", storage, Duration::from_secs(10));
                let replaced = content.len().min(100);
                let change = |_: &[u8]| Ok(Some((instead.to_vec(), replaced)));
                let written = copy_changed(&from, &other, key, &change).unwrap();
                let expected = [instead, &content[replaced..]].concat();
                let found = std::fs::read(dir.join(key)).unwrap();
                assert!(found == expected, "{key}");
                assert_eq!(written, Some((expected.len() as u64, crc32fast::hash(&expected))));
                assert_eq!(copy_changed(&from, &other, key, &change).unwrap(), None, "it was there");
            }
        }
    }
}
