//! A file's content on its way out of a repository, verified to the end: age, LZ4, length and CRC by the repository,
//! name and cluster by the segment's header. Nothing is held in memory but a buffer.

use crate::codec::Opener;
use crate::kind::{Error, Result};
use crate::postgres::{SegmentHeader, SystemIdentifier, WalSegmentName, WalSegmentSize};
use crate::repository::{Repository, WalObject, copy_wal_object};
use std::io::{self, Read, Write};

/// What a segment's file must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The name.
    pub segment: WalSegmentName,
    /// The size.
    pub size: WalSegmentSize,
    /// The cluster that wrote it.
    pub sysid: SystemIdentifier,
}

impl Expected {
    /// Checks a segment's first bytes and its length. Fails with [`crate::kind::Kind::Corrupt`].
    pub fn check(&self, head: &[u8], length: u64) -> Result<()> {
        if length != self.size.bytes() {
            return Err(Error::corrupt(format!("has {length} bytes, expected {}", self.size.bytes())));
        }
        let header = SegmentHeader::parse(head)
            .and_then(|header| header.check(self.segment, length).map(|()| header))
            .map_err(|error| Error::corrupt(error.to_string()))?;
        if header.system_identifier != self.sysid {
            return Err(Error::corrupt(format!(
                "belongs to system identifier {}, wanted {}",
                header.system_identifier, self.sysid
            )));
        }
        Ok(())
    }

    /// Checks the whole of a file that should have the CRC-32 `crc`.
    pub fn check_content(&self, mut file: impl Read, crc: u32) -> Result<()> {
        let mut tee = Tee { out: &mut io::sink(), head: Vec::new(), length: 0 };
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read =
                file.read(&mut buffer).map_err(|error| Error::other(format!("read a segment: {error}")))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            let _ = tee.write(&buffer[..read]);
        }
        self.check(&tee.head, tee.length)?;
        let found = hasher.finalize();
        if found == crc {
            Ok(())
        } else {
            Err(Error::corrupt(format!("CRC-32 is {found:08x}, expected {crc:08x}")))
        }
    }
}

/// Writes an object's plaintext to `out`. What was written counts only when this returns without an error.
pub fn copy_checked(
    repository: &Repository,
    object: &WalObject,
    expected: Option<Expected>,
    opener: &Opener,
    out: &mut dyn Write,
) -> Result<()> {
    let mut tee = Tee { out, head: Vec::new(), length: 0 };
    copy_wal_object(repository, object, expected.map(|e| e.size.bytes()), opener, &mut tee)?;
    let Some(expected) = expected else { return Ok(()) };
    expected.check(&tee.head, tee.length).map_err(|error| {
        error.context(format!("object \"{}\" in repository \"{}\"", object.object.key, repository.name()))
    })
}

/// Passes bytes on, and keeps the first of them and their number.
struct Tee<'a> {
    out: &'a mut dyn Write,
    head: Vec<u8>,
    length: u64,
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        let missing = SegmentHeader::LEN.saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..written.min(missing)]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
