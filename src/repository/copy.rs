//! Copies of objects as they are stored: no key is needed.

use super::Repository;
use crate::kind::{Error, Kind, Result};
use crate::storage::PART_SIZE;
use bytes::Bytes;
use std::io::Read;

/// The largest object that is copied by a single write, in bytes: pieces of backups are never written in parts.
const LARGEST_WHOLE: u64 = 40 << 20;

/// Copies an object as it is stored from one repository to another, with memory bounded.
pub fn copy_object(from: &Repository, to: &Repository, key: &str) -> Result<()> {
    let reading = format!("get \"{key}\" from");
    let writing = format!("put \"{key}\" to");
    let put_failed = |error| to.error(&writing, &error);
    let broke_off = |error: std::io::Error| {
        Error::new(Kind::Repository, format!("{reading} repository \"{}\": {error}", from.name()))
    };
    let size = from.storage().head(key, &from.deadline()).map_err(|error| from.error(&reading, &error))?.size;
    let mut stored = super::stored::open(from, key, size).map_err(|error| from.error(&reading, &error))?;
    let mut rest = size;
    let mut next = |length: u64| -> Result<Bytes> {
        let mut bytes = Vec::with_capacity(length as usize);
        (&mut stored).take(length).read_to_end(&mut bytes).map_err(broke_off)?;
        if (bytes.len() as u64) < length {
            return Err(broke_off(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
        }
        Ok(Bytes::from(bytes))
    };
    let deadline = to.deadline();
    if size <= LARGEST_WHOLE {
        to.storage().put_new(key, &next(size)?, &deadline).map_err(put_failed)?;
        return Ok(());
    }
    let mut upload = to.storage().upload_new(key, &deadline).map_err(put_failed)?;
    for index in 0.. {
        if rest == 0 {
            break;
        }
        let part = next(rest.min(PART_SIZE as u64))?;
        rest -= part.len() as u64;
        upload.part(index, &part).map_err(put_failed)?;
    }
    upload.complete().map_err(put_failed)?;
    Ok(())
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
        }
    }
}
