//! WAL segments: their size and their names (`xlog_internal.h`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Lsn, ParseError, TimelineId};

/// The size of a cluster's WAL segments (`wal_segment_size`): a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct WalSegmentSize(u32);

impl WalSegmentSize {
    /// What `initdb` chooses unless told otherwise: 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);
    const MIN: u32 = 1 << 20;
    const MAX: u32 = 1 << 30;

    /// Returns the size of so many bytes, or an error if no cluster can have it.
    pub fn new(bytes: u32) -> Result<Self, ParseError> {
        if bytes.is_power_of_two() && (Self::MIN..=Self::MAX).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(ParseError::mismatch("WAL segment size", bytes, "a power of two from 1048576 to 1073741824"))
        }
    }

    /// Returns the size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Returns how many segments share the middle eight digits of a name (`XLogSegmentsPerXLogId`).
    pub fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl Default for WalSegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u32> for WalSegmentSize {
    type Error = ParseError;

    fn try_from(bytes: u32) -> Result<Self, ParseError> {
        Self::new(bytes)
    }
}

impl From<WalSegmentSize> for u32 {
    fn from(size: WalSegmentSize) -> Self {
        size.0
    }
}

/// The name of a WAL segment: `TTTTTTTTLLLLLLLLSSSSSSSS`, timeline, log and segment in hexadecimal.
///
/// Only with the segment size does a name tell a position, so the methods that relate the two ask for it. Names
/// order by timeline, then by position, which is also the order of their text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegmentName {
    /// The timeline on which the segment was written.
    pub timeline: TimelineId,
    /// The upper 32 bits of the segment's LSN.
    pub log: u32,
    /// The segment's number within the log.
    pub segment: u32,
}

impl WalSegmentName {
    /// Length of a name's text.
    pub const LEN: usize = 24;

    /// Returns the segment's number, counted from LSN zero (`XLogSegNo`).
    pub fn number(self, size: WalSegmentSize) -> u64 {
        u64::from(self.log) * size.segments_per_log() + u64::from(self.segment)
    }

    /// Returns the name of the segment with that number (`XLogFileName`).
    pub fn from_number(timeline: TimelineId, number: u64, size: WalSegmentSize) -> Self {
        let per_log = size.segments_per_log();
        Self { timeline, log: (number / per_log) as u32, segment: (number % per_log) as u32 }
    }

    /// Returns the name of the segment that holds the byte at `lsn` (`XLByteToSeg`).
    pub fn containing(timeline: TimelineId, lsn: Lsn, size: WalSegmentSize) -> Self {
        Self::from_number(timeline, lsn.0 / size.bytes(), size)
    }

    /// Returns the position of the segment's first byte.
    pub fn start(self, size: WalSegmentSize) -> Lsn {
        Lsn(self.number(size).saturating_mul(size.bytes()))
    }

    /// Returns the position just after the segment's last byte.
    pub fn end(self, size: WalSegmentSize) -> Lsn {
        self.start(size) + size.bytes()
    }

    /// Returns the segment that follows on the same timeline.
    #[must_use]
    pub fn next(self, size: WalSegmentSize) -> Self {
        Self::from_number(self.timeline, self.number(size) + 1, size)
    }

    /// Returns the segment before it on the same timeline, or `None` before the first.
    pub fn previous(self, size: WalSegmentSize) -> Option<Self> {
        let number = self.number(size).checked_sub(1)?;
        Some(Self::from_number(self.timeline, number, size))
    }

    /// Returns digits 9 to 16 of the name, by which repositories group segments.
    pub fn hi(self) -> String {
        format!("{:08X}", self.log)
    }

    /// Returns whether a cluster with that segment size can write a segment of this name.
    pub fn is_valid_for(self, size: WalSegmentSize) -> bool {
        u64::from(self.segment) < size.segments_per_log()
    }
}

impl fmt::Display for WalSegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

impl fmt::Debug for WalSegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for WalSegmentName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = || {
            let (timeline, rest) = text.split_at_checked(8)?;
            let (log, segment) = rest.split_at_checked(8)?;
            Some(Self {
                timeline: TimelineId::from_hex8(timeline).ok()?,
                log: hex8(log)?,
                segment: hex8(segment)?,
            })
        };
        parse().ok_or_else(|| ParseError::text("WAL segment name", text, "24 upper-case hexadecimal digits"))
    }
}

super::serde_text::serde_as_text!(WalSegmentName);

/// Returns the value of exactly eight upper-case hexadecimal digits, as all of PostgreSQL's file names have them.
pub(super) fn hex8(digits: &str) -> Option<u32> {
    let valid = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    valid.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> WalSegmentName {
        text.parse().unwrap()
    }

    fn any_size() -> impl Strategy<Value = WalSegmentSize> {
        (20u32..=30).prop_map(|shift| WalSegmentSize::new(1 << shift).unwrap())
    }

    #[test]
    fn sizes_are_those_that_initdb_takes() {
        for bad in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, u32::MAX] {
            assert!(WalSegmentSize::new(bad).is_err(), "{bad}");
        }
        assert_eq!(WalSegmentSize::DEFAULT.segments_per_log(), 256);
        assert_eq!(WalSegmentSize::new(1 << 30).unwrap().segments_per_log(), 4);
        assert_eq!(serde_json::to_string(&WalSegmentSize::DEFAULT).unwrap(), "16777216");
        assert!(serde_json::from_str::<WalSegmentSize>("17").is_err());
    }

    #[test]
    fn a_name_crosses_into_the_next_log() {
        let size = WalSegmentSize::DEFAULT;
        let last = name("0000000100000001000000FF");
        assert_eq!(last.next(size), name("000000010000000200000000"));
        assert_eq!(last.next(size).previous(size), Some(last));
        assert_eq!(last.start(size), Lsn(0x1_FF00_0000));
        assert_eq!(last.end(size), Lsn(0x2_0000_0000));
        assert_eq!(last.hi(), "00000001");
        assert_eq!(name("000000010000000000000000").previous(size), None);
    }

    #[test]
    fn a_name_is_valid_for_some_sizes_only() {
        let of_16_mib = name("0000000100000000000000FF");
        assert!(of_16_mib.is_valid_for(WalSegmentSize::DEFAULT));
        assert!(!of_16_mib.is_valid_for(WalSegmentSize::new(32 << 20).unwrap()));
    }

    #[test]
    fn refuses_what_the_server_would_not_write() {
        for bad in [
            "",
            "00000001000000000000000",
            "0000000100000000000000011",
            "00000001000000000000000a",
            "000000000000000000000001",
            "+00000010000000000000001",
            "0000000100000000000000é",
            "é00000000000000000000001",
            "000000010000000000000001.partial",
        ] {
            assert!(bad.parse::<WalSegmentName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn names_round_trip_and_order_as_their_text(
            a in (1u32.., any::<u32>(), any::<u32>()),
            b in (1u32.., any::<u32>(), any::<u32>()),
        ) {
            let [a, b] = [a, b].map(|(t, log, segment)| WalSegmentName { timeline: TimelineId(t), log, segment });
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
            let json = serde_json::to_string(&a).unwrap();
            prop_assert_eq!(serde_json::from_str::<WalSegmentName>(&json).unwrap(), a);
        }

        #[test]
        fn positions_and_names_agree(lsn: u64, size in any_size()) {
            let name = WalSegmentName::containing(TimelineId(1), Lsn(lsn), size);
            prop_assert!(name.is_valid_for(size));
            prop_assert!(name.start(size) <= Lsn(lsn));
            prop_assert!(Lsn(lsn) < name.end(size) || name.end(size) == Lsn(u64::MAX));
            prop_assert_eq!(WalSegmentName::from_number(TimelineId(1), name.number(size), size), name);
        }

        #[test]
        fn never_panics(text: String, t: u32, log: u32, segment: u32, size in any_size()) {
            let _ = text.parse::<WalSegmentName>();
            let name = WalSegmentName { timeline: TimelineId(t), log, segment };
            let _ = (name.start(size), name.end(size), name.next(size), name.previous(size));
        }
    }
}
