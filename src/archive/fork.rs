//! The fork segment: the one in which a timeline leaves its parent.
//!
//! When the child's copy is absent, the server takes the parent's, and replays it to its end. That is right when the
//! parent's ends at the switch, as it does when the child's server died before it archived anything: the parent's last
//! segment is then a `.partial` one, for which recovery never asks. It is wrong when the parent went on: the server
//! would replay a branch that the timeline had left.

use crate::kind::{Error, Kind};
use crate::postgres::wal::{Nobody, SegmentSummary, Summarizer};
use crate::postgres::{Lsn, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize};
use std::io::{self, Write};

/// Where a timeline begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The timeline that owns the log up to it.
    pub parent: TimelineId,
    /// The first position that is the child's.
    pub switch: Lsn,
}

impl Fork {
    /// Returns where the timeline of `history` begins, if that is inside `segment`. At the segment's very start the
    /// parent's copy is not on the way to it.
    pub fn inside(history: &TimelineHistory, segment: WalSegmentName, size: WalSegmentSize) -> Option<Self> {
        let path = history.path();
        let [.., parent, child] = path.as_slice() else { return None };
        let switch = child.begin;
        let starts_here = WalSegmentName::containing(segment.timeline, switch, size) == segment;
        (child.timeline == segment.timeline && starts_here)
            .then_some(Self { parent: parent.timeline, switch })
    }

    /// Returns the parent's segment of the same place.
    pub fn parents(self, segment: WalSegmentName) -> WalSegmentName {
        WalSegmentName { timeline: self.parent, ..segment }
    }

    /// Returns the doubt about the absence of `segment`, if the parent's goes on beyond the switch, or if that cannot be
    /// told.
    pub fn judge(self, segment: WalSegmentName, parents: ParentsWal) -> Option<Error> {
        let (summary, _, Nobody) = parents.0.finish();
        let parents = self.parents(segment);
        let what = if summary.major_version.is_none() {
            format!("whether \"{parents}\" goes on beyond it cannot be told: its WAL version is not known")
        } else if reaches_beyond(&summary, self.switch) {
            format!("\"{parents}\" goes on beyond it, on a branch that was abandoned")
        } else {
            return None;
        };
        Some(
            Error::new(
                Kind::Doubt,
                format!(
                    "WAL segment \"{segment}\", in which timeline {} begins at {}, is missing from every repository, \
                     and {what}",
                    segment.timeline.0, self.switch
                ),
            )
            .with_hint(format!(
                "if a server's pg_wal still has \"{segment}\", archive it with walden archive-push; else recover \
                 along timeline {} with --timeline {}",
                self.parent.0, self.parent.0
            )),
        )
    }
}

/// Takes the bytes of the parent's segment.
pub struct ParentsWal(Summarizer);

impl Default for ParentsWal {
    fn default() -> Self {
        Self(Summarizer::new(crate::postgres::wal::ReaderOptions::default(), None))
    }
}

impl Write for ParentsWal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn reaches_beyond(summary: &SegmentSummary, switch: Lsn) -> bool {
    // Read to its last byte: the last record goes on in the next segment.
    let full = summary.bad_record.is_none() && !summary.switched && summary.records > 0;
    full || summary.valid_end > switch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(timeline: u32, text: &str, segment: &str) -> Option<(u32, u64)> {
        let history = TimelineHistory::parse(TimelineId(timeline), text).unwrap();
        let found = Fork::inside(&history, segment.parse().unwrap(), WalSegmentSize::DEFAULT);
        found.map(|fork| (fork.parent.0, fork.switch.0))
    }

    #[test]
    fn the_fork_segment_is_the_one_with_the_switch_in_it() {
        let text = "1\t0/5000100\t\n";
        assert_eq!(fork(2, text, "000000020000000000000005"), Some((1, 0x0500_0100)));
        assert_eq!(fork(2, text, "000000020000000000000004"), None);
        assert_eq!(fork(2, text, "000000020000000000000006"), None);
        assert_eq!(fork(2, text, "000000010000000000000005"), None, "that is the parent's");
    }

    #[test]
    fn the_parent_is_the_owner_before_the_switch_even_where_switches_decrease() {
        let text = "1\t0/5000000\t\n2\t0/3000148\t\n";
        assert_eq!(fork(3, text, "000000030000000000000003"), Some((1, 0x0300_0148)));
        assert_eq!(fork(3, text, "000000030000000000000005"), None);
    }

    #[test]
    fn wal_beyond_the_switch_is_what_counts() {
        let summary = |valid_end, switched, stopped: bool| SegmentSummary {
            records: 3,
            valid_end: Lsn(valid_end),
            switched,
            bad_record: stopped.then(|| crate::postgres::wal::BadRecord {
                lsn: Lsn(valid_end),
                reason: String::new(),
                is_end_of_wal: true,
            }),
            ..SegmentSummary::default()
        };
        assert!(!reaches_beyond(&summary(0x0500_0100, false, true), Lsn(0x0500_0100)));
        assert!(reaches_beyond(&summary(0x0500_0128, false, true), Lsn(0x0500_0100)));
        assert!(
            reaches_beyond(&summary(0x0500_0100, false, false), Lsn(0x0500_0100)),
            "a record without its end"
        );
    }

    #[test]
    fn what_is_no_wal_leaves_doubt() {
        let fork = Fork { parent: TimelineId(1), switch: Lsn(0x0500_0100) };
        let mut parents = ParentsWal::default();
        parents.write_all(&[0; 8192]).unwrap();
        let error = fork.judge("000000020000000000000005".parse().unwrap(), parents).unwrap();
        assert_eq!(error.kind(), Kind::Doubt);
        assert!(error.to_string().contains("000000010000000000000005"), "{error}");
    }
}
