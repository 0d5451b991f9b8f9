//! The header of a WAL page (`XLogPageHeaderData` in `xlog_internal.h`).

use super::super::bytes::{u16_in, u32_in, u64_in};
use super::super::{BLOCK_SIZE, Lsn};
use super::StopReason;

/// A WAL page.
pub(super) type Page = [u8; BLOCK_SIZE];

const CONTINUES_RECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const OVERWRITES_RECORD: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// What a page says about itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageHeader {
    magic: u16,
    info: u16,
    address: Lsn,
    /// Bytes of the record under way that are still to come, this page included.
    pub(super) remaining: u32,
}

impl PageHeader {
    #[inline]
    pub(super) fn read(page: &Page) -> Self {
        Self {
            magic: u16_in(page, 0),
            info: u16_in(page, 2),
            address: Lsn(u64_in(page, 8)),
            remaining: u32_in(page, 16),
        }
    }

    /// Returns why the page cannot be the one at `lsn` in WAL of that version, or `None` if it can.
    #[inline]
    pub(super) fn fault(&self, magic: u16, lsn: Lsn) -> Option<StopReason> {
        if self.magic != magic {
            return Some(StopReason::PageMagic { found: self.magic, expected: magic });
        }
        if self.address != lsn {
            return Some(StopReason::PageAddress { found: self.address, expected: lsn });
        }
        (self.info & !ALL_FLAGS != 0).then_some(StopReason::PageFlags { found: self.info })
    }

    /// Returns the position at which the page says it stands.
    pub(super) fn address(&self) -> Lsn {
        self.address
    }

    /// Returns the length of the header in bytes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        if self.info & LONG_HEADER == 0 { 24 } else { 40 }
    }

    /// Returns whether the page begins with the continuation of a record.
    #[inline]
    pub(super) fn continues_record(&self) -> bool {
        self.info & CONTINUES_RECORD != 0
    }

    /// Returns whether the page begins with a new record where the continuation of one would have stood, which a
    /// crash cut off.
    #[inline]
    pub(super) fn overwrites_record(&self) -> bool {
        self.info & OVERWRITES_RECORD != 0
    }
}
