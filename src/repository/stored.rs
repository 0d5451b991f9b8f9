//! An object's stored bytes, read on where a connection broke off: over a slow line a large object is long under way.

use super::Repository;
use crate::kind::{Error, Kind, Result};
use crate::storage;
use std::io::{self, Read};
use std::time::Duration;

/// How often reading is taken up again without one more byte having come.
const ATTEMPTS: u32 = 4;
/// The longest wait before that; each further wait is twice as long.
const WAIT: Duration = Duration::from_millis(200);

/// How much is read at a time, in bytes.
const BUFFER: usize = 256 << 10;

/// Reads an object of a known size.
struct Stored<'a> {
    repository: &'a Repository,
    key: &'a str,
    size: u64,
    reader: Box<dyn Read + Send>,
    at: u64,
    in_vain: u32,
}

/// Returns a reader over the object `key`, which a listing showed with `size` bytes.
pub(super) fn open<'a>(
    repository: &'a Repository,
    key: &'a str,
    size: u64,
) -> storage::Result<impl Read + Send + use<'a>> {
    let reader = repository.storage().get(key, None, &repository.deadline())?;
    Ok(Stored { repository, key, size, reader, at: 0, in_vain: 0 })
}

/// Returns the stored bytes of an object of a known size, at most one more than that: whoever checks sees one that is too
/// long.
pub fn read_stored(repository: &Repository, key: &str, size: u64) -> Result<Vec<u8>> {
    let what = format!("get \"{key}\" from");
    let reader = open(repository, key, size).map_err(|error| repository.error(&what, &error))?;
    let mut body = Vec::with_capacity(size as usize);
    reader.take(size + 1).read_to_end(&mut body).map_err(|error| {
        let kind = if error.kind() == io::ErrorKind::InvalidData { Kind::Corrupt } else { Kind::Repository };
        Error::new(kind, format!("{what} repository \"{}\": {error}", repository.name()))
    })?;
    Ok(body)
}

/// Returns size and CRC-32 of an object's stored bytes, which a listing showed with `size` bytes, and its first `head` bytes.
/// Nothing but these is held in memory.
pub fn checksum_stored(
    repository: &Repository,
    key: &str,
    size: u64,
    head: usize,
) -> storage::Result<(u64, u32, Vec<u8>)> {
    let mut stored = open(repository, key, size)?;
    let (mut crc, mut length, mut buffer) = (crc32fast::Hasher::new(), 0, vec![0; BUFFER]);
    let mut start = Vec::new();
    loop {
        let read = match stored.read(&mut buffer) {
            Ok(0) => return Ok((length, crc.finalize(), start)),
            Ok(read) => read,
            Err(error) => return Err(storage::Error::Unreachable(format!("read \"{key}\": {error}"))),
        };
        crc.update(&buffer[..read]);
        start.extend_from_slice(&buffer[..read.min(head.saturating_sub(start.len()))]);
        length += read as u64;
    }
}

/// Returns a small object that is read whole, at most `limit` bytes of it. A transfer that breaks off is begun again: one
/// lost connection must not end a recovery.
pub(super) fn read_small(
    repository: &Repository,
    key: &str,
    limit: u64,
    deadline: &storage::Deadline,
) -> storage::Result<Vec<u8>> {
    let mut in_vain = 0;
    loop {
        let mut body = Vec::new();
        // The store's own retries cover the opening.
        let stored = repository.storage().get(key, None, deadline)?;
        match stored.take(limit).read_to_end(&mut body) {
            Ok(_) => return Ok(body),
            Err(error) if in_vain == ATTEMPTS || deadline.is_over() => {
                return Err(storage::Error::Unreachable(format!("read \"{key}\": {error}")));
            }
            Err(_) => in_vain += 1,
        }
    }
}

impl Stored<'_> {
    /// Opens the rest again. Fails with the error that made it necessary.
    fn take_up(&mut self, error: io::Error) -> io::Result<()> {
        // Nothing of it is left, or it was never of that size: a range would be refused.
        if self.at >= self.size {
            return Err(error);
        }
        self.in_vain += 1;
        if self.in_vain > ATTEMPTS {
            return Err(error);
        }
        tracing::debug!(key = self.key, at = self.at, %error, "reading on");
        std::thread::sleep(WAIT.saturating_mul(1 << (self.in_vain - 1)).mul_f64(fastrand::f64()));
        let rest = Some(self.at..self.size);
        // A store that cannot even be asked is tried again by its own retries.
        self.reader =
            self.repository.storage().get(self.key, rest, &self.repository.deadline()).map_err(|_| error)?;
        Ok(())
    }
}

impl Read for Stored<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.reader.read(buffer) {
                Ok(read) => {
                    self.at += read as u64;
                    if read > 0 {
                        self.in_vain = 0;
                    }
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.take_up(error)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faulty::{Fault, Faulty, Moment};
    use crate::storage::{FsStorage, Storage};
    use bytes::Bytes;
    use std::sync::Arc;

    #[test]
    fn a_broken_connection_is_taken_up_where_it_broke() {
        let dir = tempfile::tempdir().unwrap();
        let store = Faulty::new(FsStorage::new(dir.path().to_owned()));
        let faults = store.faults();
        let content: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let deadline = storage::Deadline::stall(Duration::from_secs(10));
        store.put_new("key", &Bytes::from(content.clone()), &deadline).unwrap();
        let repository = Repository::new("a", Arc::new(store), Duration::from_secs(10));
        let read = || {
            let mut found = Vec::new();
            open(&repository, "key", 100_000).unwrap().read_to_end(&mut found).map(|_| found)
        };
        faults.reset();
        for call in [1, 2, 4] {
            faults.fail_at(call, Fault::Break);
        }
        faults.fail_at(3, Fault::Break);
        assert!(read().unwrap() == content);
        // One that answers no more fails with what broke it.
        faults.reset();
        faults.fail_at(1, Fault::Break);
        faults.fail_from(2, Fault::Error(Moment::Before));
        assert!(read().unwrap_err().to_string().contains("mid-stream"));
    }
}
