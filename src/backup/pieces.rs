//! Building one piece: read, check, compress and encrypt in one pass over the bytes.

use super::pages::{self, Findings, PageChecks};
use super::plan::{Content, Item, Part, Piece};
use super::throttle::Throttle;
use crate::codec::{SealedWriter, Sealer};
use crate::durable::at;
use crate::kind::{Context, Error, Result};
use crate::progress::Progress;
use crate::repository::backup::{Extent, StoredObject, piece_name};
use bytes::Bytes;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// How much is read at a time; a multiple of the page size, and small enough for the processor's caches.
const CHUNK: usize = 128 * 1024;

/// What all pieces of a backup have in common.
pub struct Builder<'a> {
    /// Compresses and encrypts.
    pub sealer: &'a Sealer,
    /// How pages are checked; none if the cluster has no checksums.
    pub checks: Option<PageChecks>,
    /// Counts the bytes that were read.
    pub progress: &'a Progress,
    /// Slows reading down.
    pub throttle: &'a Throttle,
    /// How much higher the numbers in the names of pieces are than their places in the backup: names of an earlier attempt
    /// are not used again.
    pub names_ahead: u32,
}

/// A part that was read, and where it was put.
pub struct PartDone {
    /// The item.
    pub item: Arc<Item>,
    /// Where the part is; none for directories and empty files.
    pub extent: Option<Extent>,
    /// Which of the item's parts it is.
    pub index: u32,
    /// Whether it is the item's last.
    pub last: bool,
    /// What checking its pages found.
    pub findings: Findings,
}

/// A piece as it is to be stored.
pub struct Built {
    /// The piece's place in the backup.
    pub number: u32,
    /// Its name, size and CRC-32.
    pub object: StoredObject,
    /// Its bytes.
    pub body: Bytes,
    /// What is in it.
    pub parts: Vec<PartDone>,
}

impl Builder<'_> {
    /// Builds a piece.
    pub fn build(&self, piece: Piece) -> Result<Built> {
        // Room that is not used costs no memory: the kernel gives pages as they are touched.
        let mut writer = self.sealer.writer(piece.length as usize + CHUNK)?;
        let mut buffer = vec![0; CHUNK];
        let mut parts = Vec::with_capacity(piece.parts.len());
        let mut position = 0;
        for part in piece.parts {
            let length = part.header.len() as u64 + part.length + part.padding;
            parts.push(self.write_part(part, piece.number, position, &mut writer, &mut buffer)?);
            position += length;
        }
        zeros(&mut writer, piece.end)?;
        let mut body = writer.finish()?;
        body.shrink_to_fit();
        let body = Bytes::from(body);
        let name = piece_name(piece.number + self.names_ahead, self.sealer.ending());
        let object = StoredObject::of(name, &body);
        Ok(Built { number: piece.number, object, body, parts })
    }

    fn write_part(
        &self,
        part: Part,
        piece: u32,
        position: u64,
        writer: &mut SealedWriter,
        buffer: &mut [u8],
    ) -> Result<PartDone> {
        let mut findings = Findings::default();
        let mut extent = None;
        if part.length == 0 {
            writer.write_all(&part.header).context("compress")?;
        } else {
            let frame = writer.end_frame()?;
            writer.write_all(&part.header).context("compress")?;
            let crc32c = self.write_content(&part, writer, buffer, &mut findings)?;
            zeros(writer, part.padding)?;
            let frame_length = writer.end_frame()? - frame;
            let skip = part.header.len() as u64;
            let (at, length) = (position + skip, part.length);
            extent = Some(Extent { backup: None, piece, at, length, crc32c, frame, frame_length, skip });
        }
        Ok(PartDone { item: part.item, extent, index: part.index, last: part.last, findings })
    }

    /// Writes the part's bytes and returns their CRC-32C. Where the file has become shorter, zeros take the place of
    /// what is missing: replay puts right what the server changed meanwhile.
    fn write_content(
        &self,
        part: &Part,
        writer: &mut SealedWriter,
        buffer: &mut [u8],
        findings: &mut Findings,
    ) -> Result<u32> {
        let (mut offset, end, mut crc) = (part.offset, part.offset + part.length, 0);
        while offset < end {
            let wanted = (end - offset).min(buffer.len() as u64) as usize;
            let chunk = &mut buffer[..wanted];
            match &part.item.content {
                Content::Disk(file) => {
                    self.throttle.wait(wanted as u64);
                    let read = fill(file, offset, chunk).map_err(at(&part.item.path)).context("read file")?;
                    if let (Some(checks), Some(relation)) = (self.checks, part.item.relation) {
                        pages::check(checks, relation, file, offset, &mut chunk[..read], findings);
                    }
                    chunk[read..].fill(0);
                }
                Content::Memory(bytes) => chunk.copy_from_slice(&bytes[offset as usize..][..wanted]),
                Content::Stream(stream) => {
                    let mut stream = stream.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    stream.read_exact(chunk).context("read temporary file")?;
                }
                Content::Empty => return Err(Error::other("an empty file has content")),
            }
            crc = crc32c::crc32c_append(crc, chunk);
            writer.write_all(chunk).context("compress")?;
            self.progress.add(wanted as u64);
            offset += wanted as u64;
        }
        Ok(crc)
    }
}

/// Reads until the buffer is full or the file ends; returns how much there was.
fn fill(file: &File, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn zeros(writer: &mut SealedWriter, count: u64) -> Result<()> {
    std::io::copy(&mut std::io::repeat(0).take(count), writer).context("compress").map(drop)
}
