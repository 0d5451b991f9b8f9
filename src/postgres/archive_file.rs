//! The names of the files that PostgreSQL archives.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::wal_segment::hex8;
use super::{ParseError, TimelineId, WalSegmentName};

/// The name of a file that PostgreSQL hands to its archive command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArchiveFileName {
    /// A WAL segment.
    Segment(WalSegmentName),
    /// The history of a timeline: `00000002.history`.
    History(TimelineId),
    /// The history of a base backup: `000000010000000000000002.00000028.backup`.
    BackupHistory {
        /// The segment in which the backup starts.
        segment: WalSegmentName,
        /// Where in that segment, in bytes.
        offset: u32,
    },
    /// The last segment of a timeline that a promotion left in the middle: `….partial`. Recovery never asks for it.
    Partial(WalSegmentName),
}

impl ArchiveFileName {
    /// Returns the timeline to which the file belongs.
    pub fn timeline(self) -> TimelineId {
        match self {
            Self::History(timeline) => timeline,
            Self::Segment(segment) | Self::BackupHistory { segment, .. } | Self::Partial(segment) => {
                segment.timeline
            }
        }
    }

    /// Compares by the order in which the server archives: timeline histories first, then by name
    /// (`ready_file_comparator` in `pgarch.c`).
    pub fn cmp_for_archiving(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::History(a), Self::History(b)) => a.cmp(b),
            (Self::History(_), _) => Ordering::Less,
            (_, Self::History(_)) => Ordering::Greater,
            _ => self.segment_order().cmp(&other.segment_order()),
        }
    }

    /// Orders the names that begin with a segment's as `strcmp` does: the bare name, then the hexadecimal
    /// endings, then `.partial`.
    fn segment_order(self) -> Option<(WalSegmentName, u8, u32)> {
        match self {
            Self::History(_) => None,
            Self::Segment(segment) => Some((segment, 0, 0)),
            Self::BackupHistory { segment, offset } => Some((segment, 1, offset)),
            Self::Partial(segment) => Some((segment, 2, 0)),
        }
    }
}

impl fmt::Display for ArchiveFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => write!(f, "{segment}"),
            Self::History(timeline) => write!(f, "{timeline}.history"),
            Self::BackupHistory { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
        }
    }
}

impl FromStr for ArchiveFileName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = || match text.split_once('.') {
            None => text.parse().ok().map(Self::Segment),
            Some((timeline, "history")) => TimelineId::from_hex8(timeline).ok().map(Self::History),
            Some((segment, "partial")) => segment.parse().ok().map(Self::Partial),
            Some((segment, rest)) => {
                let offset = hex8(rest.strip_suffix(".backup")?)?;
                Some(Self::BackupHistory { segment: segment.parse().ok()?, offset })
            }
        };
        parse().ok_or_else(|| {
            ParseError::text(
                "WAL file name",
                text,
                "the name of a WAL segment, timeline history, backup history or partial segment",
            )
        })
    }
}

super::serde_text::serde_as_text!(ArchiveFileName);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_name() -> impl Strategy<Value = ArchiveFileName> {
        (0..4, 1u32..=4, 0u32..3, 0u32..3, any::<u32>()).prop_map(|(kind, timeline, log, segment, offset)| {
            let segment = WalSegmentName { timeline: TimelineId(timeline), log, segment };
            match kind {
                0 => ArchiveFileName::Segment(segment),
                1 => ArchiveFileName::History(segment.timeline),
                2 => ArchiveFileName::BackupHistory { segment, offset },
                _ => ArchiveFileName::Partial(segment),
            }
        })
    }

    #[test]
    fn reads_the_servers_names() {
        let backup: ArchiveFileName = "00000001000000000000000A.00000028.backup".parse().unwrap();
        let segment = WalSegmentName { timeline: TimelineId(1), log: 0, segment: 10 };
        assert_eq!(backup, ArchiveFileName::BackupHistory { segment, offset: 0x28 });
        assert_eq!("0000000B.history".parse(), Ok(ArchiveFileName::History(TimelineId(11))));
        assert_eq!("00000001000000000000000A.partial".parse(), Ok(ArchiveFileName::Partial(segment)));
    }

    #[test]
    fn refuses_other_names() {
        for bad in [
            "",
            ".",
            ".history",
            "1.history",
            "00000000.history",
            "0000000b.history",
            "00000001.history.tmp",
            "00000001000000000000000A.",
            "00000001000000000000000A.ready",
            "00000001000000000000000A.28.backup",
            "00000001000000000000000A.backup",
            "00000001000000000000000A.00000028.backup.x",
            "../00000001000000000000000A",
            "archive_status",
            "RECOVERYXLOG",
        ] {
            assert!(bad.parse::<ArchiveFileName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(name in any_name()) {
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }

        #[test]
        fn orders_as_the_archiver_does(a in any_name(), b in any_name()) {
            let key = |n: &ArchiveFileName| (!matches!(n, ArchiveFileName::History(_)), n.to_string());
            prop_assert_eq!(a.cmp_for_archiving(&b), key(&a).cmp(&key(&b)));
        }

        #[test]
        fn never_panics(text: String) {
            let _ = text.parse::<ArchiveFileName>();
        }
    }
}
