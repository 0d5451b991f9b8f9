//! The WAL between a backup and a target: which segments of which timelines, and up to where they are all there.

use super::catalog::Catalog;
use crate::kind::Result;
use crate::postgres::{Lsn, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize};
use crate::repository::{Repository, WalObject};
use std::collections::BTreeMap;

/// The segments from a backup's start along one branch, as far as they are archived without a hole.
#[derive(Debug)]
pub struct WalPath<'r> {
    /// The segments in the order of replay, and who holds them.
    pub segments: Vec<(WalSegmentName, Vec<(&'r Repository, WalObject)>)>,
    /// The first missing one, where something later of its timeline is archived.
    pub gap: Option<WalSegmentName>,
}

impl WalPath<'_> {
    /// Returns the last segment before the end or the gap.
    pub fn last(&self) -> Option<WalSegmentName> {
        self.segments.last().map(|(name, _)| *name)
    }
}

/// Returns the number of bytes that the repositories hold of these segments, from one copy each.
pub fn stored_bytes(segments: &[(WalSegmentName, Vec<(&Repository, WalObject)>)]) -> u64 {
    segments.iter().filter_map(|(_, copies)| copies.first()).map(|(_, object)| object.object.size).sum()
}

/// Walks from `start` (on the timeline that owns it in `history`) to the end of the archive of `history.timeline`.
/// The segment in which a timeline ends is read from its child: the server asks for the newest timeline's first, and
/// that file begins with a copy of the parent's part.
pub fn walk<'r>(catalog: &Catalog<'r>, history: &TimelineHistory, start: Lsn) -> Result<WalPath<'r>> {
    let mut held: Option<(TimelineId, BTreeMap<_, _>)> = None;
    let (segments, gap) = trace(catalog.segment_size, history, start, |name| {
        if held.as_ref().is_none_or(|(timeline, _)| *timeline != name.timeline) {
            held = Some((name.timeline, catalog.wal_from(name)?));
        }
        let Some((_, listed)) = &mut held else { return Ok(Found::Absent { later: false }) };
        Ok(match listed.remove(&name) {
            Some(copies) => Found::Held(copies),
            None => Found::Absent { later: listed.keys().any(|later| *later > name) },
        })
    })?;
    Ok(WalPath { segments, gap })
}

/// What there is of a segment.
#[derive(Debug)]
pub enum Found<T> {
    /// It is there.
    Held(T),
    /// It is not.
    Absent {
        /// Whether a later segment of its timeline is there.
        later: bool,
    },
}

/// Follows the path of [`walk`] through what `look` finds, which is asked for one segment after the other. Returns the
/// segments up to the end or the gap, and the gap.
pub fn trace<T>(
    size: WalSegmentSize,
    history: &TimelineHistory,
    start: Lsn,
    mut look: impl FnMut(WalSegmentName) -> Result<Found<T>>,
) -> Result<(Vec<(WalSegmentName, T)>, Option<WalSegmentName>)> {
    let mut segments = Vec::new();
    let spans: Vec<_> = history
        .path()
        .into_iter()
        .filter(|span| span.end.is_none_or(|end| end > start) && span.end.is_none_or(|end| end > span.begin))
        .collect();
    let mut next = WalSegmentName::containing(TimelineId(1), start, size).number(size);
    for (at, span) in spans.iter().enumerate() {
        let is_last = at + 1 == spans.len();
        let stop = match span.end {
            Some(end) if !is_last => Some(WalSegmentName::containing(span.timeline, end, size).number(size)),
            _ => None,
        };
        if stop.is_some_and(|stop| stop <= next) {
            continue;
        }
        loop {
            if stop.is_some_and(|stop| next >= stop) {
                break;
            }
            let name = WalSegmentName::from_number(span.timeline, next, size);
            match look(name)? {
                Found::Held(found) => segments.push((name, found)),
                Found::Absent { later } => return Ok((segments, (later || !is_last).then_some(name))),
            }
            next += 1;
        }
    }
    Ok((segments, None))
}
