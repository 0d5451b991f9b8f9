//! What the records of one segment tell about events, as long as the segments before it are not known.

use serde::{Deserialize, Serialize};

use super::super::super::{Lsn, ParseError, TimelineId};
use super::super::{Carry, RelFileLocator};
use super::activity::Activity;
use super::event::Event;
use super::sealed;

/// The end of a transaction that may have begun before the segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    #[serde(rename = "x")]
    pub(super) xid: u32,
    #[serde(rename = "a")]
    pub(super) is_aborted: bool,
    #[serde(rename = "l")]
    pub(super) lsn: u64,
    #[serde(rename = "e")]
    pub(super) next_record: u64,
    #[serde(rename = "t")]
    pub(super) time: i64,
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub(super) database: Option<u32>,
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) subxids: Vec<u32>,
    /// Files that it removes, the last one first.
    #[serde(rename = "f", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) dropped: Vec<RelFileLocator>,
    /// OIDs of relations whose statistics it removes, the first one first.
    #[serde(rename = "o", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) statistics: Vec<u32>,
    /// What it did in this segment.
    #[serde(rename = "c", default, skip_serializing_if = "Activity::is_empty")]
    pub(super) activity: Activity,
}

impl End {
    /// Returns it without its lists.
    pub(super) fn bare(&self) -> Self {
        Self {
            subxids: Vec::new(),
            dropped: Vec::new(),
            statistics: Vec::new(),
            activity: Activity::default(),
            ..*self
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Findings {
    /// Ends of transactions that may have begun before: those with the lowest numbers.
    pub(super) ends: Vec<End>,
    /// Transactions whose ends were settled, from and up to which number.
    pub(super) settled: Vec<(u32, u32)>,
    /// What transactions did that had not ended.
    pub(super) open: Vec<(u32, Activity)>,
    /// Events that are certain.
    pub(super) events: Vec<Event>,
    /// Files of TOAST tables.
    pub(super) toast: Vec<RelFileLocator>,
    /// Transactions from this number on began in this segment, or after it.
    pub(super) fresh_from: Option<u32>,
    /// At the last look of the server there was no open transaction with a lower number.
    pub(super) oldest_running: Option<u32>,
    /// Whether there was too much to keep.
    pub(super) is_incomplete: bool,
}

/// What one segment contributes to the knowledge of events. A [`Tracker`](super::Tracker) takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contribution {
    pub(super) frame: Frame,
    /// Bytes that continue a record of the segment before.
    pub(super) head: Vec<u8>,
    /// The state of the reader at the segment's end.
    pub(super) carry: Option<Carry>,
}

/// The part of a contribution that is kept as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frame {
    pub(super) timeline: TimelineId,
    pub(super) start: Lsn,
    pub(super) end: Lsn,
    pub(super) major_version: u32,
    /// How many bytes continue a record of the segment before; `head` may hold fewer.
    pub(super) head_len: u64,
    /// Whether that record was at hand as a whole, and was looked at.
    pub(super) has_head_record: bool,
    /// Whether nothing of the segment was left unread.
    pub(super) is_whole: bool,
    pub(super) findings: Findings,
}

impl Contribution {
    const TAG: [u8; 4] = *b"WLC1";
    const WHAT: &'static str = "events of a WAL segment";

    /// Returns the timeline by the segment's name.
    pub fn timeline(&self) -> TimelineId {
        self.frame.timeline
    }

    /// Returns where the segment begins.
    pub fn start(&self) -> Lsn {
        self.frame.start
    }

    /// Returns where the segment ends.
    pub fn end(&self) -> Lsn {
        self.frame.end
    }

    /// Returns the events that are certain without the segments before it. A [`Tracker`](super::Tracker) returns them too.
    pub fn settled_events(&self) -> &[Event] {
        &self.frame.findings.events
    }

    /// Returns the contribution as bytes, with a checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let carry = self.carry.as_ref().map(Carry::to_bytes).unwrap_or_default();
        sealed::seal(Self::TAG, &self.frame, &[&self.head, &carry])
    }

    /// Returns the contribution that [`Contribution::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseError> {
        let (frame, [head, carry]) = sealed::open(Self::WHAT, Self::TAG, bytes)?;
        let carry = if carry.is_empty() { None } else { Some(Carry::from_bytes(&carry)?) };
        Ok(Self { frame, head, carry })
    }
}

/// Returns whether one number of a transaction is older than another: they go round.
pub(super) fn precedes(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}
