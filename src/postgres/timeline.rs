//! Timelines and their histories.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::wal_segment::hex8;
use super::{Lsn, ParseError};

/// The number of a timeline. A cluster begins on 1, and each promotion begins a new, higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// Returns the timeline that a file name gives as exactly eight upper-case hexadecimal digits.
    pub fn from_hex8(digits: &str) -> Result<Self, ParseError> {
        hex8(digits).filter(|&id| id != 0).map(Self).ok_or_else(|| {
            ParseError::text("timeline", digits, "eight upper-case hexadecimal digits, not all zero")
        })
    }
}

impl TryFrom<u32> for TimelineId {
    type Error = ParseError;

    fn try_from(id: u32) -> Result<Self, ParseError> {
        if id == 0 { Err(ParseError::mismatch("timeline", id, "at least 1")) } else { Ok(Self(id)) }
    }
}

impl From<TimelineId> for u32 {
    fn from(id: TimelineId) -> Self {
        id.0
    }
}

impl fmt::Display for TimelineId {
    /// Prints eight hexadecimal digits, as file names have them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0)
    }
}

impl FromStr for TimelineId {
    type Err = ParseError;

    /// Reads a decimal number, as users and `recovery_target_timeline` write it.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        decimal(text)
            .filter(|&id| id != 0)
            .map(Self)
            .ok_or_else(|| ParseError::text("timeline", text, "a decimal number from 1"))
    }
}

/// A line of a timeline history file: where the path to the timeline left an ancestor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The first position that is no longer the ancestor's.
    pub switch: Lsn,
    /// Why, in the server's words.
    pub reason: String,
}

/// The part of a path to a timeline that one of its timelines owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSpan {
    /// The owner.
    pub timeline: TimelineId,
    /// The first position that it owns.
    pub begin: Lsn,
    /// The first position after it, or `None` for the timeline itself, which has no end.
    pub end: Option<Lsn>,
}

/// The ancestry of a timeline: which timeline owns which part of the log on the way to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineHistory {
    /// The timeline to which the history leads.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first.
    pub ancestors: Vec<HistoryEntry>,
}

impl TimelineHistory {
    /// Returns the history of a timeline without ancestors. That is also how the server takes a timeline whose
    /// history file it does not find.
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Returns the history that the file `<timeline>.history` tells, by the rules of `readTimeLineHistory`:
    /// lines of timeline, switch position and reason; blank lines and lines that begin with `#` do not count; ids
    /// must increase. A reason that is not UTF-8 (it may quote a restore point in the server's encoding) is read
    /// as well as possible.
    pub fn parse(timeline: TimelineId, text: impl AsRef<[u8]>) -> Result<Self, ParseError> {
        let text = String::from_utf8_lossy(text.as_ref());
        let mut history = Self::root(timeline);
        let mut previous = 0;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let entry = parse_line(line).ok_or_else(|| {
                ParseError::text("timeline history line", line, "a timeline, a switch position and a reason")
            })?;
            if entry.timeline.0 <= previous {
                let expected = format!("above {previous}, the line before it");
                return Err(ParseError::mismatch("timeline in history file", entry.timeline.0, expected));
            }
            previous = entry.timeline.0;
            history.ancestors.push(entry);
        }
        if timeline.0 <= previous {
            let expected = format!("above {previous}, the last of its ancestors");
            return Err(ParseError::mismatch("timeline of history file", timeline.0, expected));
        }
        Ok(history)
    }

    /// Returns the timeline that owns the position on the way to this one (`tliOfPointInHistory`).
    ///
    /// Switch positions may decrease, because the parent is whatever timeline a recovery aimed at, even when it
    /// stopped before that timeline began. So the newest timeline that begins at or before the position is it.
    pub fn owner_of(&self, lsn: Lsn) -> TimelineId {
        self.beginnings().find(|&(_, begin)| begin <= lsn).map_or(self.timeline, |(timeline, _)| timeline)
    }

    /// Returns whether the timeline owns the position on the way to this one.
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.owner_of(lsn) == timeline
    }

    /// Returns where the path leaves an ancestor, or `None` if the timeline is not one. Where switch positions
    /// decrease, that may be before the ancestor begins: [`TimelineHistory::path`] then does not show it.
    pub fn switch_from(&self, timeline: TimelineId) -> Option<Lsn> {
        self.ancestors.iter().find(|entry| entry.timeline == timeline).map(|entry| entry.switch)
    }

    /// Returns the path from position zero to this timeline: the parts of the log with their owners, end to end,
    /// oldest first. Ancestors that own nothing on this path are left out.
    pub fn path(&self) -> Vec<TimelineSpan> {
        let mut path: Vec<TimelineSpan> = Vec::new();
        for (timeline, begin) in self.beginnings() {
            let end = path.last().map(|span| span.begin);
            if end.is_none_or(|end| begin < end) {
                path.push(TimelineSpan { timeline, begin, end });
            }
        }
        path.reverse();
        path
    }

    /// Returns the timelines and where the history says that they begin, newest first.
    fn beginnings(&self) -> impl Iterator<Item = (TimelineId, Lsn)> + '_ {
        let newest_first = self.ancestors.iter().rev();
        let timelines =
            std::iter::once(self.timeline).chain(newest_first.clone().map(|entry| entry.timeline));
        let begins = newest_first.map(|entry| entry.switch).chain(std::iter::once(Lsn(0)));
        timelines.zip(begins)
    }
}

fn parse_line(line: &str) -> Option<HistoryEntry> {
    let (timeline, rest) = line.split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    let (switch, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    Some(HistoryEntry {
        timeline: TimelineId(decimal(timeline)?),
        switch: switch.parse().ok()?,
        reason: reason.trim().to_owned(),
    })
}

fn decimal(digits: &str) -> Option<u32> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As PostgreSQL 15 wrote it after two promotions, the second by a recovery that stopped before the first.
    const DECREASING: &str = "1\t0/5000000\tno recovery target specified\n\
        \n2\t0/3000148\tafter LSN 0/3000110\n";

    fn history(timeline: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(TimelineId(timeline), text).unwrap()
    }

    #[test]
    fn ids_have_two_spellings() {
        assert_eq!("26".parse(), Ok(TimelineId(26)));
        assert_eq!(TimelineId(26).to_string(), "0000001A");
        assert_eq!(TimelineId::from_hex8("0000001A"), Ok(TimelineId(26)));
        for bad in ["", "0", "-1", "+1", "1A", "4294967296", "latest"] {
            assert!(bad.parse::<TimelineId>().is_err(), "{bad:?}");
        }
        assert_eq!(serde_json::to_string(&TimelineId(26)).unwrap(), "26");
        assert!(serde_json::from_str::<TimelineId>("0").is_err());
    }

    #[test]
    fn reads_comments_blank_lines_and_missing_reasons() {
        let history =
            history(3, "# made by hand\n\n  1\t0/3000000\n2   0/5000000 \tbefore 2026 at noon \r\n");
        assert_eq!(history.ancestors.len(), 2);
        assert_eq!(history.ancestors[0].reason, "");
        assert_eq!(history.ancestors[1].reason, "before 2026 at noon");
        assert_eq!(history.switch_from(TimelineId(2)), Some(Lsn(0x0500_0000)));
        assert_eq!(history.switch_from(TimelineId(3)), None);
    }

    #[test]
    fn refuses_what_the_server_refuses() {
        for (timeline, bad) in [
            (3, "x\t0/1\t"),
            (3, "1"),
            (3, "1\t"),
            (3, "1\t01\tno slash"),
            (3, "2\t0/1\t\n1\t0/2\t"),
            (3, "1\t0/1\t\n1\t0/2\t"),
            (3, "3\t0/1\t"),
            (3, "0\t0/1\t"),
            (1, "1\t0/1\t"),
        ] {
            assert!(TimelineHistory::parse(TimelineId(timeline), bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_reason_in_another_encoding_is_no_obstacle() {
        let history =
            TimelineHistory::parse(TimelineId(2), b"1\t0/5000000\tat restore point \"f\xFCnf\"\n").unwrap();
        assert_eq!(history.owner_of(Lsn(0x0500_0000)), TimelineId(2));
    }

    #[test]
    fn a_switch_position_belongs_to_the_new_timeline() {
        let history = history(2, "1\t0/5000000\t\n");
        assert_eq!(history.owner_of(Lsn(0x04FF_FFFF)), TimelineId(1));
        assert_eq!(history.owner_of(Lsn(0x0500_0000)), TimelineId(2));
        assert!(history.contains(TimelineId(1), Lsn(0)));
        assert!(!history.contains(TimelineId(1), Lsn(0x0500_0000)));
    }

    #[test]
    fn switch_positions_may_decrease() {
        let history = history(3, DECREASING);
        assert_eq!(history.owner_of(Lsn(0x0300_0147)), TimelineId(1));
        assert_eq!(history.owner_of(Lsn(0x0300_0148)), TimelineId(3));
        assert_eq!(history.owner_of(Lsn(0x0600_0000)), TimelineId(3));
        let span =
            |timeline, begin, end| TimelineSpan { timeline: TimelineId(timeline), begin: Lsn(begin), end };
        assert_eq!(history.path(), [span(1, 0, Some(Lsn(0x0300_0148))), span(3, 0x0300_0148, None)]);
    }

    #[test]
    fn without_ancestors_a_timeline_owns_everything() {
        let root = TimelineHistory::root(TimelineId(7));
        assert_eq!(history(7, "\n# nothing\n"), root);
        assert_eq!(root.owner_of(Lsn(0)), TimelineId(7));
        assert_eq!(root.path(), [TimelineSpan { timeline: TimelineId(7), begin: Lsn(0), end: None }]);
    }

    proptest! {
        #[test]
        fn path_and_owner_agree(
            switches in proptest::collection::vec(0u64..50, 0..6),
            lsn in 0u64..60,
        ) {
            let lines = switches.iter().zip(1..).map(|(switch, id)| format!("{id}\t{}\treason", Lsn(*switch)));
            let text = lines.collect::<Vec<_>>().join("\n");
            let history = history(switches.len() as u32 + 1, &text);
            let path = history.path();
            prop_assert_eq!(path[0].begin, Lsn(0));
            prop_assert!(path.windows(2).all(|two| two[0].end == Some(two[1].begin)));
            let owners: Vec<_> = path
                .iter()
                .filter(|span| span.begin <= Lsn(lsn) && span.end.is_none_or(|end| Lsn(lsn) < end))
                .map(|span| span.timeline)
                .collect();
            prop_assert_eq!(owners, [history.owner_of(Lsn(lsn))]);
        }

        #[test]
        fn never_panics(timeline: u32, text in "[0-9A-F/\t\n #x]*") {
            let _ = TimelineHistory::parse(TimelineId(timeline), text);
        }
    }
}
