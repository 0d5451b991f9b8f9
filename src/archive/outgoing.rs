//! A file on its way out: read, checked, summarised, sealed and shipped, without its plaintext ever being in memory.
//!
//! The key holds the CRC of the content, so nothing can be sent before all was read. Up to [`LARGEST_IN_MEMORY`] the
//! object is built in memory while the file is read, piece by piece: one pass over warm caches. A larger file is read
//! twice: first for CRC and records, then to be sent in parts. An object is completed only if both passes saw the same.

use super::memory::{Memory, Taken};
use super::source::WalFile;
use crate::codec::Sealer;
use crate::kind::{Context, Error, Result};
use crate::postgres::wal::events::{Contribution, EventOptions, EventScanner};
use crate::postgres::wal::{ReaderOptions, SegmentSummary, Summarizer};
use crate::postgres::{ArchiveFileName, WalSegmentSize};
use crate::repository::{Outcome, Repository, STREAM_MEMORY, ship, ship_stream};
use bytes::Bytes;
use std::io::Write;

/// The largest file whose object is held in memory, in bytes.
const LARGEST_IN_MEMORY: u64 = 64 << 20;

/// How much memory all files of a call take together, in bytes: three segments of 16 MiB before it is known what LZ4 makes
/// of them, and any number of objects that turned out smaller. A single file of up to 64 MiB may exceed it.
pub const MEMORY: u64 = 56 << 20;

/// A file that was read.
#[derive(Debug)]
pub struct Outgoing<'m> {
    /// The CRC-32 of the content.
    pub crc: u32,
    /// What a segment's records tell.
    pub records: Option<Records>,
    /// The object, where it was built already.
    object: Option<Bytes>,
    memory: &'m Memory,
}

/// What a segment's records tell.
#[derive(Debug)]
pub struct Records {
    /// Commits and more.
    pub summary: SegmentSummary,
    /// What happened to the data, as far as the segment alone tells.
    pub contribution: Contribution,
}

/// Returns how much memory [`Outgoing::read`] and [`Outgoing::ship`] take for a file, in bytes.
pub fn memory_for(file: &WalFile) -> u64 {
    let size = file.fingerprint.size;
    if size <= LARGEST_IN_MEMORY { size } else { STREAM_MEMORY }
}

impl<'m> Outgoing<'m> {
    /// Reads and checks the file; fails when it changed meanwhile. With `at_once` its object is built in the same pass,
    /// if it is to be held in memory at all.
    pub fn read(
        file: &mut WalFile,
        sealer: &Sealer,
        at_once: bool,
        events: &EventOptions,
        taken: &mut Taken<'m>,
    ) -> Result<Self> {
        let size = file.fingerprint.size;
        let mut crc = crc32fast::Hasher::new();
        let segment = match file.name {
            ArchiveFileName::Segment(segment) => Some(segment),
            _ => None,
        };
        let mut reader = segment.map(|_| {
            Summarizer::with_visitor(ReaderOptions::default(), None, EventScanner::new(events.clone()))
        });
        let seals = at_once && size <= LARGEST_IN_MEMORY;
        let mut writer =
            if seals { Some(sealer.writer_to(taken.memory().buffer(room_for(size)))?) } else { None };
        let stray = file.pass(|piece| {
            crc.update(piece);
            if let Some(reader) = &mut reader {
                reader.push(piece);
            }
            writer.as_mut().map_or(Ok(()), |writer| writer.write_all(piece).context("compress"))
        })?;
        let crc = crc.finalize();
        if let Some(stray) = stray {
            look_again(file, crc, stray)?;
        }
        let object = writer.map(|writer| writer.finish().map(Bytes::from)).transpose()?;
        if let Some(object) = &object {
            taken.shrink_to(object.len() as u64);
        }
        let mut records = None;
        if let (Some(reader), Some(segment)) = (reader, segment)
            && let Ok(size) = WalSegmentSize::new(u32::try_from(size).unwrap_or(0))
        {
            let (summary, carry, scanner) = reader.finish();
            warn_of_records(file.name, &summary);
            records = Some(Records { summary, contribution: scanner.finish(segment, size, carry) });
        }
        Ok(Self { crc, records, object, memory: taken.memory() })
    }

    /// Sends the object of the file that was read to every repository in `to` under `key`, as [`ship`] does, and
    /// returns with the outcome the object's length in bytes, and its CRC-32 where the object was in memory. Fails when the
    /// file changed since it was read.
    pub fn ship<'r>(
        &mut self,
        file: &mut WalFile,
        sealer: &Sealer,
        to: &[&'r Repository],
        key: &str,
        enough: usize,
    ) -> Result<(Outcome<'r>, u64, Option<u32>)> {
        if file.fingerprint.size > LARGEST_IN_MEMORY {
            let (outcome, length) =
                ship_stream(to, key, enough, |parts| seal_again(file, self.crc, sealer.writer_to(parts)?))?;
            return Ok((outcome, length, None));
        }
        let object = if let Some(object) = self.object.take() {
            object
        } else {
            let writer = sealer.writer_to(self.memory.buffer(room_for(file.fingerprint.size)))?;
            Bytes::from(seal_again(file, self.crc, writer)?)
        };
        if !file.is_unchanged() {
            return Err(changed());
        }
        let (outcome, length) = (ship(to, key, &object, enough), object.len() as u64);
        let stored_crc = crc32fast::hash(&object);
        self.memory.give_back(object);
        Ok((outcome, length, Some(stored_crc)))
    }
}

/// Returns a capacity that an object hardly exceeds: a buffer that grows would be copied, and for a moment be there
/// twice. What is not written to takes no memory.
fn room_for(size: u64) -> usize {
    (size + size / 256 + 4096) as usize
}

fn changed() -> Error {
    Error::other("the file changed while it was archived")
}

/// Seals a file whose content was read before, and vouches for its being the same.
fn seal_again<W: Write>(
    file: &mut WalFile,
    expected: u32,
    mut writer: crate::codec::SealedWriter<W>,
) -> Result<W> {
    let mut crc = crc32fast::Hasher::new();
    file.pass(|piece| {
        crc.update(piece);
        writer.write_all(piece).context("compress")
    })?;
    let out = writer.finish()?;
    if crc.finalize() != expected || !file.is_unchanged() {
        return Err(changed());
    }
    Ok(out)
}

/// A page bears another address than its own: either somebody is writing over the file, which another look shows, or
/// the server itself wrote a bad page, and there are no better bytes to be had.
fn look_again(file: &mut WalFile, expected: u32, stray: u64) -> Result<()> {
    if matches!(file.name, ArchiveFileName::Partial(_)) {
        return Ok(()); // its tail is what the recycled file held before
    }
    let mut crc = crc32fast::Hasher::new();
    file.pass(|piece| {
        crc.update(piece);
        Ok(())
    })?;
    if crc.finalize() != expected {
        return Err(Error::other("the file changed while it was read"));
    }
    tracing::warn!(
        "WAL segment \"{}\" has a page at offset {stray} that bears another address; archived as it is",
        file.name
    );
    Ok(())
}

/// What is wrong with the records is no reason not to archive a segment: the server has no better bytes.
fn warn_of_records(name: ArchiveFileName, summary: &SegmentSummary) {
    if summary.major_version.is_none() {
        tracing::warn!(
            "WAL segment \"{name}\" has the unknown page magic {:04X}; archived, but its commits are not known",
            summary.magic
        );
    } else if let Some(bad) = &summary.bad_record {
        tracing::warn!(
            "WAL segment \"{name}\" has a bad record at {}: {}; archived as it is; hint: recovery cannot pass it, take a \
             base backup now",
            bad.lsn,
            bad.reason
        );
    }
}
