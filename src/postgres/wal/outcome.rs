//! How to read a segment, and what is known when it was read.

use super::super::{Lsn, SegmentHeader};
use super::carry::Carry;
use super::stop::Stop;

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct ReaderOptions {
    /// Whether to verify the CRC-32C of every record.
    pub check_crc: bool,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self { check_crc: true }
    }
}

/// Whether a segment's WAL version is one that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalVersion {
    /// The WAL of this major version.
    Known {
        /// The magic number of its pages.
        magic: u16,
        /// The server's major version.
        major_version: u32,
    },
    /// WAL of another version, or no WAL at all: nothing was read.
    Unknown {
        /// What stands where the magic number would be.
        magic: u16,
    },
}

/// How the reading of a segment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentEnd {
    /// At the segment's last byte.
    Full,
    /// At a segment switch: nothing follows it in the segment.
    Switched,
    /// Before the segment's end.
    Stopped(Stop),
    /// At the first byte, for the version is not known.
    UnknownVersion,
}

/// What is known at the end of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOutcome {
    /// The WAL's version; `None` if there was not even a page.
    pub version: Option<WalVersion>,
    /// The segment's header; `None` if the version is unknown or the header damaged.
    pub header: Option<SegmentHeader>,
    /// The records that were visited.
    pub records: u64,
    /// The position up to which the WAL is good and whole: the end of the last complete record.
    pub valid_end: Lsn,
    /// How the reading ended.
    pub end: SegmentEnd,
    /// A record that was begun in the segment before and does not end in this one as it should. Reading went on
    /// behind it; replay would not.
    pub broken_carry: Option<Stop>,
    /// What to hand to the reader of the next segment; `None` if this one was not read to its end.
    pub carry: Option<Carry>,
}
