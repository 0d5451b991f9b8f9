//! What the records that end a transaction say (`xact.h`, `xactdesc.c`).

use super::super::PgTimestamp;
use super::super::bytes::{array_at, u32_at};
use super::record::{Record, RelFileLocator, ResourceManager};

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionOutcome {
    /// Its changes count.
    Committed,
    /// They do not.
    Aborted,
}

/// The end of a transaction. The lists are read on demand, from the record's own bytes.
#[derive(Debug, Clone, Copy)]
pub struct TransactionEnd<'a> {
    /// How it ended.
    pub outcome: TransactionOutcome,
    /// The transaction. For a prepared one it is the transaction that was prepared, not the record's own.
    pub xid: u32,
    /// Whether it was prepared before.
    pub was_prepared: bool,
    /// When, by the server's clock just before the record was written: later records may have earlier times.
    pub time: PgTimestamp,
    /// The database in which it ran, where the record says so.
    pub database: Option<u32>,
    /// Whether all of the record was understood; if not, lists may be empty or cut short.
    pub is_complete: bool,
    subxids: &'a [u8],
    dropped: &'a [u8],
    statistics: &'a [u8],
    statistics_len: usize,
}

/// Bits of a record's `info`.
const OPERATION: u8 = 0x70;
const HAS_INFO: u8 = 0x80;

impl<'a> TransactionEnd<'a> {
    /// Returns the end of a transaction that the record tells of, or `None` if it tells of none, or is so short that
    /// it has no time.
    pub fn decode(record: &Record<'a>) -> Option<Self> {
        use TransactionOutcome::{Aborted, Committed};
        if record.rmid != ResourceManager::TRANSACTION {
            return None;
        }
        let (outcome, was_prepared) = match record.info & OPERATION {
            0x00 => (Committed, false),
            0x20 => (Aborted, false),
            0x30 => (Committed, true),
            0x40 => (Aborted, true),
            _ => return None,
        };
        let mut fields = Fields { bytes: record.main_data()? };
        let mut end = Self {
            outcome,
            xid: record.xid,
            was_prepared,
            time: PgTimestamp(fields.take::<8>().map(i64::from_le_bytes)?),
            database: None,
            is_complete: false,
            subxids: &[],
            dropped: &[],
            statistics: &[],
            statistics_len: if record.major_version >= 18 { 16 } else { 12 },
        };
        end.is_complete = record.info & HAS_INFO == 0 || end.details(fields, record.major_version).is_some();
        Some(end)
    }

    /// Returns the subtransactions that ended with it the same way.
    pub fn subxids(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.subxids.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// Returns the files of relations that it removes: those of dropped relations, and the old ones of relations
    /// that were given new files. An aborted transaction removes those that it had made.
    pub fn dropped_relations(&self) -> impl ExactSizeIterator<Item = RelFileLocator> + use<'a> {
        self.dropped.as_chunks::<12>().0.iter().map(RelFileLocator::read)
    }

    /// Returns the OIDs of the relations whose statistics it removes, in the order in which they were dropped: all
    /// relations that are no more, with or without a file, and temporary ones too (15 and later).
    pub fn dropped_statistics(&self) -> impl Iterator<Item = u32> + use<'a> {
        const RELATION: u32 = 2;
        let items = self.statistics.chunks_exact(self.statistics_len);
        items.filter(|item| u32_at(item, 0) == Some(RELATION)).filter_map(|item| u32_at(item, 8))
    }

    /// Reads what follows the time, in the order of `ParseCommitRecord` and `ParseAbortRecord`.
    fn details(&mut self, mut fields: Fields<'a>, major_version: u32) -> Option<()> {
        const DATABASE: u32 = 1 << 0;
        const SUBTRANSACTIONS: u32 = 1 << 1;
        const DROPPED_RELATIONS: u32 = 1 << 2;
        const INVALIDATIONS: u32 = 1 << 3;
        const PREPARED: u32 = 1 << 4;
        const DROPPED_STATISTICS: u32 = 1 << 8;
        let present = fields.take_u32()?;
        if present & DATABASE != 0 {
            self.database = Some(fields.take_u32()?);
            let _tablespace = fields.take_u32()?;
        }
        if present & SUBTRANSACTIONS != 0 {
            self.subxids = fields.take_list(4)?;
        }
        if present & DROPPED_RELATIONS != 0 {
            self.dropped = fields.take_list(12)?;
        }
        if present & DROPPED_STATISTICS != 0 && major_version >= 15 {
            self.statistics = fields.take_list(self.statistics_len)?;
        }
        if present & INVALIDATIONS != 0 {
            fields.take_list(16)?;
        }
        if present & PREPARED != 0 {
            self.xid = fields.take_u32()?;
        }
        // A global transaction id and a replication origin may follow.
        Some(())
    }
}

/// Bytes that are taken from the front.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let field = array_at(self.bytes, 0)?;
        self.bytes = &self.bytes[N..];
        Some(field)
    }

    fn take_u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// Takes a count and so many items.
    fn take_list(&mut self, item_len: usize) -> Option<&'a [u8]> {
        let count = u32_at(self.bytes, 0)? as usize;
        let (list, rest) = self.bytes.get(4..)?.split_at_checked(count.checked_mul(item_len)?)?;
        self.bytes = rest;
        Some(list)
    }
}
