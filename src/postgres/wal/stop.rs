//! Why reading ended before the end of a segment.

use super::super::{Lsn, ParseError};

/// Where and why the WAL of a segment cannot be read further. The server's replay would end there too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The position of the record that cannot be read.
    pub lsn: Lsn,
    /// What is wrong with it.
    pub reason: StopReason,
}

/// What is wrong at the place where reading stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// The file does not begin with a WAL segment's header.
    #[error("invalid segment header: {0}")]
    Header(#[from] ParseError),
    /// The bytes end before the segment does.
    #[error("segment has {found} bytes, expected {expected}")]
    Truncated {
        /// Bytes that were there.
        found: u64,
        /// The segment size.
        expected: u64,
    },
    /// From here to the end of the page there are zeros.
    #[error("no record: zeros to the end of the page")]
    Zeros,
    /// A page of another WAL version, or none at all.
    #[error("page has magic number {found:04X}, expected {expected:04X}")]
    PageMagic {
        /// The page's.
        found: u16,
        /// The segment's.
        expected: u16,
    },
    /// A page of another place in the log: the file had a former life, and this page was not written in this one.
    #[error("page has address {found}, expected {expected}")]
    PageAddress {
        /// The page's.
        found: Lsn,
        /// Where the page stands.
        expected: Lsn,
    },
    /// A page with flags that do not exist.
    #[error("page has unknown flags {found:04X}")]
    PageFlags {
        /// The page's flags.
        found: u16,
    },
    /// The record's length is impossible.
    #[error("record has length {found}, expected 24 to 1073741824")]
    Length {
        /// The record's.
        found: u32,
    },
    /// The record does not follow the one before it.
    #[error("record says that the record before it is at {found}, expected {expected}")]
    Previous {
        /// The record's link.
        found: Lsn,
        /// Where the record before it is.
        expected: Lsn,
    },
    /// The first record of the segment claims to follow itself or a later one.
    #[error("record says that the record before it is at {found}, expected an earlier position")]
    PreviousNotEarlier {
        /// The record's link.
        found: Lsn,
    },
    /// The record's bytes are damaged.
    #[error("record has CRC {stored:08X}, computed {computed:08X}")]
    Checksum {
        /// The record's.
        stored: u32,
        /// That of its bytes.
        computed: u32,
    },
    /// The next page does not begin with the rest of the record.
    #[error("record is not continued on the page at {page}")]
    NotContinued {
        /// The page.
        page: Lsn,
    },
    /// The next page continues a record of another length.
    #[error("record has {expected} bytes left, the page at {page} continues one that has {found}")]
    ContinuationLength {
        /// The page.
        page: Lsn,
        /// Bytes left by the page's account.
        found: u32,
        /// Bytes left by the record's.
        expected: u32,
    },
    /// The page begins with the rest of a record where none is under way.
    #[error("page continues a record where none is under way")]
    Unexpected,
}

impl StopReason {
    /// Returns whether what was found is also what a server leaves after its last record: zeros, or pages of the
    /// file's former life. In a partial segment or one that is being written that is no fault. In a segment that
    /// PostgreSQL handed over as complete it is: WAL is missing.
    pub fn is_end_of_wal(&self) -> bool {
        matches!(
            self,
            Self::Zeros | Self::PageMagic { .. } | Self::PageAddress { .. } | Self::Truncated { .. }
        )
    }
}
