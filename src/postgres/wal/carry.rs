//! What reading one segment leaves for reading the next.

use super::super::bytes::array_at;
use super::super::{Lsn, ParseError, SystemIdentifier};
use super::record::{RecordHeader, ResourceManager};

/// The state at the end of a segment: where the last record began, and the beginning of a record that the next
/// segment continues.
///
/// Handed to the reader of the next segment, it makes that record readable and the link between the two
/// segments checkable. Without it the reader skips the rest of the record. It is a few dozen bytes, plus what is
/// kept of the unfinished record: nothing in most cases, at most [`Carry::MAX_LEN`] bytes in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carry {
    pub(super) magic: u16,
    pub(super) system_identifier: SystemIdentifier,
    /// Where the next segment begins.
    pub(super) position: Lsn,
    /// Where the last complete record begins.
    pub(super) previous: Lsn,
    pub(super) partial: Option<PartialRecord>,
}

impl Carry {
    /// The length of the longest carry in bytes.
    pub const MAX_LEN: usize =
        Self::FIXED_LEN + PartialRecord::FIXED_LEN + PartialRecord::KEPT_MAX_TRANSACTION;
    const FIXED_LEN: usize = TAG.len() + 2 + 8 + 8 + 8 + 4;

    /// Returns where the segment begins that this carry is for.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Returns where the record begins that is not finished yet, if there is one.
    pub fn unfinished_record(&self) -> Option<Lsn> {
        self.partial.as_ref().map(|partial| partial.start)
    }

    /// Returns the carry as bytes, with a checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = TAG.to_vec();
        bytes.extend(self.magic.to_le_bytes());
        bytes.extend(self.system_identifier.0.to_le_bytes());
        bytes.extend(self.position.0.to_le_bytes());
        bytes.extend(self.previous.0.to_le_bytes());
        if let Some(partial) = &self.partial {
            bytes.extend(partial.start.0.to_le_bytes());
            bytes.extend(partial.received.to_le_bytes());
            bytes.extend(partial.crc.to_le_bytes());
            bytes.extend(partial.header);
            bytes.extend(&partial.kept);
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Returns the carry that [`Carry::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseError> {
        let Some((content, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(ParseError::too_short("WAL reader state", Self::FIXED_LEN, bytes.len()));
        };
        let (stored, computed) = (u32::from_le_bytes(*crc), crc32c::crc32c(content));
        if stored != computed {
            let [found, expected] = [stored, computed].map(|crc| format!("{crc:08X}"));
            return Err(ParseError::mismatch("checksum of WAL reader state", found, expected));
        }
        let mut fields = Fields { bytes: content };
        let parse = |fields: &mut Fields<'_>| {
            (fields.take()? == TAG).then_some(())?;
            Some(Self {
                magic: u16::from_le_bytes(fields.take()?),
                system_identifier: SystemIdentifier(u64::from_le_bytes(fields.take()?)),
                position: Lsn(u64::from_le_bytes(fields.take()?)),
                previous: Lsn(u64::from_le_bytes(fields.take()?)),
                partial: if fields.bytes.is_empty() { None } else { Some(PartialRecord::read(fields)?) },
            })
        };
        parse(&mut fields)
            .ok_or_else(|| ParseError::mismatch("format of WAL reader state", "another one", "WLR1"))
    }
}

/// What a serialised carry begins with: the format's name and version.
const TAG: [u8; 4] = *b"WLR1";

/// A record whose beginning was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartialRecord {
    pub(super) start: Lsn,
    /// Bytes read so far, the header included.
    pub(super) received: u32,
    /// The CRC of the body's bytes so far.
    crc: u32,
    pub(super) header: [u8; RecordHeader::LEN],
    /// The beginning of the body.
    pub(super) kept: Vec<u8>,
}

impl PartialRecord {
    /// What is kept of a record that the visitor wants: enough for the main data of any that modifies pages.
    const KEPT_MAX: usize = 64 << 10;
    /// What is kept of the end of a transaction, whose lists grow with what it did.
    const KEPT_MAX_TRANSACTION: usize = 8 << 20;
    const FIXED_LEN: usize = 8 + 4 + 4 + RecordHeader::LEN;

    /// Returns a record of which nothing was read yet.
    pub(super) fn new() -> Self {
        let header = [0; RecordHeader::LEN];
        Self { start: Lsn::INVALID, received: 0, crc: 0, header, kept: Vec::new() }
    }

    /// Begins another record; memory is used again.
    pub(super) fn restart(&mut self, start: Lsn) {
        self.start = start;
        self.received = 0;
        self.crc = 0;
        self.kept.clear();
    }

    pub(super) fn header(&self) -> RecordHeader<'_> {
        RecordHeader(&self.header)
    }

    pub(super) fn has_header(&self) -> bool {
        self.received as usize >= RecordHeader::LEN
    }

    /// Returns the bytes still to come. The length stands at the start of the header, which is never split.
    pub(super) fn remaining(&self) -> u32 {
        self.header().total_len().saturating_sub(self.received)
    }

    /// Takes bytes of the header, and returns the bytes after it.
    pub(super) fn add_to_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let missing = RecordHeader::LEN.saturating_sub(self.received as usize);
        let (header, body) = bytes.split_at(missing.min(bytes.len()));
        for (to, from) in self.header.iter_mut().skip(self.received as usize).zip(header) {
            *to = *from;
        }
        self.received += header.len() as u32;
        body
    }

    /// Takes bytes of the body. The visitor is asked by the caller whether it wants them.
    pub(super) fn add_to_body(&mut self, bytes: &[u8], check_crc: bool, wanted: bool) {
        if check_crc {
            self.crc = crc32c::crc32c_append(self.crc, bytes);
        }
        let max = match self.header().rmid() {
            _ if !wanted => 0,
            ResourceManager::TRANSACTION => Self::KEPT_MAX_TRANSACTION,
            _ => Self::KEPT_MAX,
        };
        // Only if nothing is missing so far.
        if self.kept.len() + RecordHeader::LEN == self.received as usize {
            let room = max.saturating_sub(self.kept.len());
            self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        self.received += bytes.len() as u32;
    }

    /// Returns the CRC of the record, once all of it was read.
    pub(super) fn crc(&self) -> u32 {
        crc32c::crc32c_append(self.crc, &self.header[..RecordHeader::CRC_AT])
    }

    /// Reads what [`Carry::to_bytes`] wrote, if a reader can go on from it.
    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let partial = Self {
            start: Lsn(u64::from_le_bytes(fields.take()?)),
            received: u32::from_le_bytes(fields.take()?),
            crc: u32::from_le_bytes(fields.take()?),
            header: fields.take()?,
            kept: fields.bytes.to_vec(),
        };
        let total_len = partial.header().total_len();
        let body_len = (partial.received as usize).saturating_sub(RecordHeader::LEN);
        let sound = total_len as usize >= RecordHeader::LEN
            && total_len <= RecordHeader::MAX_TOTAL_LEN
            && (8..total_len).contains(&partial.received)
            && partial.kept.len() <= body_len;
        sound.then_some(partial)
    }
}

/// Bytes that are taken from the front.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let field = array_at(self.bytes, 0)?;
        self.bytes = &self.bytes[N..];
        Some(field)
    }
}
