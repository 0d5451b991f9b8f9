//! Puts together what the segments contribute, in the order of the log.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::super::super::{BLOCK_SIZE, Lsn, ParseError, TimelineId};
use super::super::record::align;
use super::super::{Carry, Record, RecordVisitor, RelFileLocator, ResourceManager, SegmentSummary};
use super::activity::Activity;
use super::contribution::{Contribution, Findings, precedes};
use super::decide::decide;
use super::event::{Event, EventOptions};
use super::scan::EventScanner;
use super::sealed;

/// A tracker holds no more items than this.
const MAX_ITEMS: usize = 64 << 10;
const MAX_TOAST: usize = 4096;

/// A contribution does not begin where the one before it ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "events are known up to {expected} on timeline {expected_timeline}, and the next segment begins at {found} on timeline {found_timeline}"
)]
pub struct OutOfOrder {
    /// Where the next contribution has to begin.
    pub expected: Lsn,
    /// Its timeline, or a later one.
    pub expected_timeline: TimelineId,
    /// Where the contribution begins.
    pub found: Lsn,
    /// Its timeline.
    pub found_timeline: TimelineId,
}

/// Which transactions may have done things that were not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Unseen {
    None,
    /// Those with a lower number.
    Below(u32),
    Any,
}

/// Takes the contributions of segments in the order of the log and returns the events.
///
/// A new timeline begins with the state that its parent's tracker had at the start of the segment in which they part.
#[derive(Debug, Clone)]
pub struct Tracker {
    options: EventOptions,
    timeline: TimelineId,
    position: Lsn,
    unseen: Unseen,
    /// What transactions did that are open.
    open: HashMap<u32, Activity>,
    /// Files of TOAST tables.
    toast: HashSet<RelFileLocator>,
    /// What the reader of the last segment left.
    carry: Option<Carry>,
    /// What the record told that the last two segments share.
    shared: Option<SegmentSummary>,
}

/// What is kept of a tracker as JSON.
#[derive(Serialize, Deserialize)]
struct State {
    timeline: TimelineId,
    position: Lsn,
    unseen: Unseen,
    open: Vec<(u32, Activity)>,
    toast: Vec<RelFileLocator>,
}

impl Tracker {
    const TAG: [u8; 4] = *b"WLT1";
    const WHAT: &'static str = "state of the search for events";

    /// Returns a tracker that begins at `position`, the start of a segment. Of the transactions that are open there
    /// nothing is known: their events will be uncertain.
    pub fn new(timeline: TimelineId, position: Lsn, options: EventOptions) -> Self {
        Self {
            options,
            timeline,
            position,
            unseen: Unseen::Any,
            open: HashMap::new(),
            toast: HashSet::new(),
            carry: None,
            shared: None,
        }
    }

    /// Returns the timeline of the last segment.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Returns where the next segment begins.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Returns whether transactions that are open may have done things that were not seen.
    pub fn is_uncertain(&self) -> bool {
        self.unseen != Unseen::None || self.open.values().any(|activity| activity.is_incomplete)
    }

    /// Goes on at another place, the start of a segment, over segments that are missing or cannot be read.
    pub fn jump(&mut self, timeline: TimelineId, position: Lsn) {
        (self.timeline, self.position) = (timeline, position);
        self.carry = None;
        self.forget();
    }

    /// Returns what the record tells that began in the segment before the last one and ended in that: its summary does
    /// not count it. None if there is none, or the record tells nothing.
    pub fn shared_record(&self) -> Option<&SegmentSummary> {
        self.shared.as_ref()
    }

    /// Takes note that something was not seen.
    fn forget(&mut self) {
        self.unseen = Unseen::Any;
        for activity in self.open.values_mut() {
            activity.is_incomplete = true;
        }
    }

    /// Takes the next segment. Returns the events whose commits, or whose own records, end in it, in the order of the log.
    /// A contribution that begins elsewhere than at [`Tracker::position`], or on an earlier timeline, changes nothing.
    pub fn advance(&mut self, contribution: &Contribution) -> Result<Vec<Event>, OutOfOrder> {
        let frame = &contribution.frame;
        if frame.start != self.position || frame.timeline < self.timeline {
            return Err(OutOfOrder {
                expected: self.position,
                expected_timeline: self.timeline,
                found: frame.start,
                found_timeline: frame.timeline,
            });
        }
        let mut events = Vec::new();
        self.shared = None;
        self.toast
            .extend(frame.findings.toast.iter().take(MAX_TOAST.saturating_sub(self.toast.len())).copied());
        if let Some(findings) = self.head(contribution) {
            self.apply(&findings, &mut events);
        }
        self.apply(&frame.findings, &mut events);
        events.sort_by_key(|event| (event.lsn, event.kind));
        self.carry.clone_from(&contribution.carry);
        if !frame.is_whole {
            self.forget();
        }
        (self.timeline, self.position) = (frame.timeline, frame.end);
        Ok(events)
    }

    /// Looks at the record that the segment before began and this one ends.
    fn head(&mut self, contribution: &Contribution) -> Option<Findings> {
        let frame = &contribution.frame;
        let mut partial = self.carry.take()?.partial?;
        if frame.has_head_record || frame.head_len == 0 {
            return None;
        }
        let head = &contribution.head[..];
        if frame.head_len != u64::from(partial.remaining()) || head.len() as u64 != frame.head_len {
            // Too long to be kept. Whether it matters is known only if its header is.
            if !partial.has_header() || partial.header().rmid() == ResourceManager::TRANSACTION {
                self.forget();
            }
            return None;
        }
        let body = partial.add_to_header(head);
        let body_len = body.len();
        partial.add_to_body(body, true, true);
        let header = partial.header();
        if !partial.has_header() || partial.crc() != header.crc() {
            self.forget();
            return None;
        }
        debug_assert!(body_len <= head.len());
        let mut scanner = EventScanner::new(self.options.clone());
        let mut summary = SegmentSummary::default();
        let record = Record {
            lsn: partial.start,
            end_lsn: end_of_head(frame.start, head.len()),
            xid: header.xid(),
            rmid: header.rmid(),
            info: header.info(),
            total_len: header.total_len(),
            major_version: frame.major_version,
            body: &partial.kept,
        };
        scanner.visit(&record);
        if summary.wants(record.rmid, record.info) {
            summary.visit(&record);
            self.shared = Some(summary);
        }
        Some(scanner.into_findings())
    }

    fn apply(&mut self, findings: &Findings, events: &mut Vec<Event>) {
        if findings.is_incomplete {
            self.forget();
        }
        if let (Unseen::Any, Some(first)) = (self.unseen, findings.fresh_from) {
            self.unseen = Unseen::Below(first);
        }
        let mut ends: Vec<_> = findings.ends.iter().collect();
        ends.sort_by_key(|end| end.lsn);
        for end in ends {
            let mut activity = end.activity.clone();
            for xid in std::iter::once(&end.xid).chain(&end.subxids) {
                if let Some(before) = self.open.remove(xid) {
                    let after = std::mem::replace(&mut activity, before);
                    activity.merge(after);
                }
            }
            activity.is_incomplete |= match self.unseen {
                Unseen::None => false,
                Unseen::Below(first) => precedes(end.xid, first),
                Unseen::Any => true,
            };
            events.extend(decide(end, activity, &self.options, &self.toast));
        }
        events.extend(findings.events.iter().cloned());
        let is_settled =
            |xid: u32| findings.settled.iter().any(|(first, last)| (*first..=*last).contains(&xid));
        let before = self.open.len();
        self.open.retain(|xid, _| !is_settled(*xid));
        // More transactions were open than a segment's contribution allows for.
        let mut is_lost = self.open.len() < before;
        for (xid, activity) in &findings.open {
            self.open.entry(*xid).or_default().merge(activity.clone());
        }
        if let Some(oldest) = findings.oldest_running {
            // What a crash ended has no record.
            self.open.retain(|xid, _| !precedes(*xid, oldest));
            if let Unseen::Below(first) = self.unseen
                && !precedes(oldest, first)
            {
                self.unseen = Unseen::None;
            }
        }
        is_lost |= self.shed();
        if is_lost || findings.is_incomplete {
            self.forget();
        }
    }

    /// Drops what did the least if there is too much.
    fn shed(&mut self) -> bool {
        let mut len: usize = self.open.values().map(Activity::len).sum();
        if len <= MAX_ITEMS {
            return false;
        }
        let mut by_weight: Vec<(u64, u32)> =
            self.open.iter().map(|(xid, activity)| (activity.weight(), *xid)).collect();
        by_weight.sort_unstable();
        for (_, xid) in by_weight {
            if len <= MAX_ITEMS {
                break;
            }
            len -= self.open.remove(&xid).map_or(0, |activity| activity.len());
        }
        true
    }

    /// Returns the state as bytes, with a checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut open: Vec<_> = self.open.iter().map(|(xid, activity)| (*xid, activity.clone())).collect();
        open.sort_by_key(|(xid, _)| *xid);
        let mut toast: Vec<_> = self.toast.iter().copied().collect();
        toast.sort_unstable();
        let Self { timeline, position, unseen, .. } = *self;
        let carry = self.carry.as_ref().map(Carry::to_bytes).unwrap_or_default();
        sealed::seal(Self::TAG, &State { timeline, position, unseen, open, toast }, &[&carry])
    }

    /// Returns the tracker whose state [`Tracker::to_bytes`] wrote, with options of now.
    pub fn from_bytes(bytes: &[u8], options: EventOptions) -> Result<Self, ParseError> {
        let (state, [carry]) = sealed::open::<State, 1>(Self::WHAT, Self::TAG, bytes)?;
        Ok(Self {
            options,
            timeline: state.timeline,
            position: state.position,
            unseen: state.unseen,
            open: state.open.into_iter().collect(),
            toast: state.toast.into_iter().collect(),
            carry: if carry.is_empty() { None } else { Some(Carry::from_bytes(&carry)?) },
            shared: None,
        })
    }
}

/// Returns where a record ends of which `len` bytes stand at the beginning of a segment.
fn end_of_head(start: Lsn, len: usize) -> Lsn {
    const FIRST_HEADER: usize = 40;
    const HEADER: usize = 24;
    let in_first = BLOCK_SIZE - FIRST_HEADER;
    if len <= in_first {
        return Lsn(start.0 + align(FIRST_HEADER + len) as u64);
    }
    let in_page = BLOCK_SIZE - HEADER;
    let pages = (len - in_first - 1) / in_page;
    let rest = len - in_first - pages * in_page;
    Lsn(start.0 + ((1 + pages) * BLOCK_SIZE + align(HEADER + rest)) as u64)
}
