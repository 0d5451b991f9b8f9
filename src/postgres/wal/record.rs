//! A WAL record and the parts of its body (`xlogrecord.h`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::super::Lsn;
use super::super::bytes::{u16_at, u32_at, u32_in, u64_in};

/// The resource managers whose records Walden looks into (`rmgrlist.h`).
pub struct ResourceManager;

impl ResourceManager {
    /// Checkpoints, restore points, segment switches.
    pub const XLOG: u8 = 0;
    /// Ends of transactions.
    pub const TRANSACTION: u8 = 1;
    /// Files of relations.
    pub const STORAGE: u8 = 2;
    /// Databases.
    pub const DATABASE: u8 = 4;
    /// Tablespaces.
    pub const TABLESPACE: u8 = 5;
    /// The map of the system catalogs' files.
    pub const RELMAP: u8 = 7;
    /// Locks and running transactions, for standbys.
    pub const STANDBY: u8 = 8;
    /// Multi-row inserts, pruning, freezing.
    pub const HEAP2: u8 = 9;
    /// Inserts, updates, deletes.
    pub const HEAP: u8 = 10;
}

/// The header of a record, as it stands in the WAL (`XLogRecord`).
pub(super) struct RecordHeader<'a>(pub(super) &'a [u8; RecordHeader::LEN]);

impl RecordHeader<'_> {
    pub(super) const LEN: usize = 24;
    /// Bytes of the header that the CRC covers; the CRC itself follows.
    pub(super) const CRC_AT: usize = 20;
    /// No record is longer, whatever its version (`XLogRecordMaxSize`, `MaxAllocSize`).
    pub(super) const MAX_TOTAL_LEN: u32 = 1 << 30;

    #[inline]
    pub(super) fn total_len(&self) -> u32 {
        u32_in(self.0, 0)
    }

    #[inline]
    pub(super) fn xid(&self) -> u32 {
        u32_in(self.0, 4)
    }

    #[inline]
    pub(super) fn previous(&self) -> Lsn {
        Lsn(u64_in(self.0, 8))
    }

    #[inline]
    pub(super) fn info(&self) -> u8 {
        self.0[16]
    }

    #[inline]
    pub(super) fn rmid(&self) -> u8 {
        self.0[17]
    }

    #[inline]
    pub(super) fn crc(&self) -> u32 {
        u32_in(self.0, Self::CRC_AT)
    }

    /// Returns whether the record ends its segment (`XLOG_SWITCH`).
    #[inline]
    pub(super) fn is_switch(&self) -> bool {
        self.rmid() == ResourceManager::XLOG && self.info() & 0xF0 == 0x40
    }
}

/// Returns the next position, from this one on, at which a record can begin (`MAXALIGN`).
#[inline]
pub(super) fn align(at: usize) -> usize {
    at.next_multiple_of(8)
}

/// A relation's file, apart from fork and segment (`RelFileLocator`, before 16 `RelFileNode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelFileLocator {
    /// OID of the tablespace.
    pub tablespace: u32,
    /// OID of the database, 0 for shared relations.
    pub database: u32,
    /// Number of the file, which is not the relation's OID.
    pub relation: u32,
}

impl RelFileLocator {
    pub(in crate::postgres::wal) fn read(bytes: &[u8; 12]) -> Self {
        Self { tablespace: u32_in(bytes, 0), database: u32_in(bytes, 4), relation: u32_in(bytes, 8) }
    }
}

impl fmt::Display for RelFileLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.relation)
    }
}

/// A record that has been read. Its body is looked into only on demand.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Where the record begins. `pg_waldump` calls it `lsn`, and a recovery to an LSN compares with it.
    pub lsn: Lsn,
    /// Where the next record can begin at the earliest (`EndRecPtr`).
    pub end_lsn: Lsn,
    /// The transaction to which the record belongs, 0 for none.
    pub xid: u32,
    /// The resource manager, see [`ResourceManager`].
    pub rmid: u8,
    /// The resource manager's own bits.
    pub info: u8,
    /// The length of the record with its header, in bytes.
    pub total_len: u32,
    /// The server's major version.
    pub major_version: u32,
    /// What follows the header, or as much of its beginning as was kept.
    pub(super) body: &'a [u8],
}

impl<'a> Record<'a> {
    /// Returns whether the whole record is at hand. Of very long records, and of those that the visitor did not
    /// want, only the beginning is kept.
    pub fn is_complete(&self) -> bool {
        self.body.len() + RecordHeader::LEN == self.total_len as usize
    }

    /// Returns the record's main data: all of it if [`Record::is_complete`], else as much of its beginning as was
    /// kept. `None` stands for a body that cannot be understood; a record without main data has an empty slice.
    pub fn main_data(&self) -> Option<&'a [u8]> {
        let mut headers = self.block_references();
        headers.by_ref().for_each(drop);
        let len = headers.main_data_len? as usize;
        let start = (self.total_len as usize).checked_sub(RecordHeader::LEN)?.checked_sub(len)?;
        if start < headers.at {
            return None;
        }
        Some(self.body.get(start..).unwrap_or_default())
    }

    /// Returns the data that the record holds for its first block; `None` if it holds the page instead, or if the
    /// body cannot be understood.
    pub(super) fn first_block_data(&self) -> Option<&'a [u8]> {
        let mut headers = self.block_references();
        let first = headers.next()?;
        headers.by_ref().for_each(drop);
        if first.has_image || headers.is_broken() {
            return None;
        }
        self.body.get(headers.at..)?.get(..usize::from(first.data_len))
    }

    /// Returns the blocks that the record changes. After the last, [`BlockReferences::is_broken`] tells whether it
    /// was the last.
    pub fn block_references(&self) -> BlockReferences<'a> {
        BlockReferences {
            body: self.body,
            at: 0,
            compression_flags: if self.major_version >= 15 { 0x1C } else { 0x02 },
            data_len: 0,
            body_len: (self.total_len as usize).saturating_sub(RecordHeader::LEN),
            relation: None,
            top_level_xid: None,
            main_data_len: None,
            ended: false,
        }
    }
}

/// A block that a record changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockReference {
    /// The reference's number within the record.
    pub id: u8,
    /// The relation.
    pub relation: RelFileLocator,
    /// The fork: 0 main, 1 free space map, 2 visibility map, 3 init.
    pub fork: u8,
    /// The block.
    pub block_number: u32,
    /// Whether the record holds the page as it was.
    pub has_image: bool,
    /// Whether replay makes the page anew.
    pub will_init: bool,
    /// Bytes of data for this block, the image not counted.
    pub data_len: u16,
}

/// An iterator over a record's block references.
#[derive(Debug, Clone)]
pub struct BlockReferences<'a> {
    body: &'a [u8],
    at: usize,
    compression_flags: u8,
    /// Bytes of data that the headers so far announced.
    data_len: usize,
    body_len: usize,
    relation: Option<RelFileLocator>,
    top_level_xid: Option<u32>,
    main_data_len: Option<u32>,
    ended: bool,
}

impl BlockReferences<'_> {
    /// Returns the top-level transaction that the record names, once the iterator has come to its end.
    pub fn top_level_xid(&self) -> Option<u32> {
        self.top_level_xid
    }

    /// Returns, once the iterator has come to its end, whether that was because the rest could not be understood.
    pub fn is_broken(&self) -> bool {
        self.ended && self.main_data_len.is_none()
    }

    fn take<T>(&mut self, len: usize, read: impl FnOnce(&[u8], usize) -> Option<T>) -> Option<T> {
        let value = read(self.body, self.at)?;
        self.at += len;
        Some(value)
    }

    fn take_u8(&mut self) -> Option<u8> {
        self.take(1, |body, at| body.get(at).copied())
    }

    fn take_u16(&mut self) -> Option<u16> {
        self.take(2, u16_at)
    }

    fn take_u32(&mut self) -> Option<u32> {
        self.take(4, u32_at)
    }

    /// Reads headers up to and including the next block's. Main data comes last; a record may have none.
    fn advance(&mut self) -> Option<BlockReference> {
        const ORIGIN: u8 = 253;
        const TOP_LEVEL_XID: u8 = 252;
        loop {
            if self.body_len <= self.at + self.data_len {
                self.main_data_len = (self.body_len == self.at + self.data_len).then_some(0);
                return None;
            }
            match self.take_u8()? {
                id @ 0..=32 => return self.block(id),
                TOP_LEVEL_XID => self.top_level_xid = Some(self.take_u32()?),
                ORIGIN => drop(self.take_u16()?),
                long @ (254 | 255) => {
                    let len = if long == 254 { self.take_u32()? } else { u32::from(self.take_u8()?) };
                    let fits = self.body_len == self.at + self.data_len + len as usize;
                    self.main_data_len = fits.then_some(len);
                    return None;
                }
                _ => return None,
            }
        }
    }

    fn block(&mut self, id: u8) -> Option<BlockReference> {
        const HAS_IMAGE: u8 = 0x10;
        const WILL_INIT: u8 = 0x40;
        const SAME_RELATION: u8 = 0x80;
        const IMAGE_HAS_HOLE: u8 = 0x01;
        let flags = self.take_u8()?;
        let data_len = self.take_u16()?;
        self.data_len += usize::from(data_len);
        if flags & HAS_IMAGE != 0 {
            self.data_len += usize::from(self.take_u16()?);
            let _hole_offset = self.take_u16()?;
            let image_info = self.take_u8()?;
            if image_info & self.compression_flags != 0 && image_info & IMAGE_HAS_HOLE != 0 {
                let _hole_len = self.take_u16()?;
            }
        }
        if flags & SAME_RELATION == 0 {
            self.relation = Some(RelFileLocator {
                tablespace: self.take_u32()?,
                database: self.take_u32()?,
                relation: self.take_u32()?,
            });
        }
        Some(BlockReference {
            id,
            relation: self.relation?,
            fork: flags & 0x0F,
            block_number: self.take_u32()?,
            has_image: flags & HAS_IMAGE != 0,
            will_init: flags & WILL_INIT != 0,
            data_len,
        })
    }
}

impl Iterator for BlockReferences<'_> {
    type Item = BlockReference;

    fn next(&mut self) -> Option<BlockReference> {
        if self.ended {
            return None;
        }
        let next = self.advance();
        self.ended = next.is_none();
        next
    }
}
