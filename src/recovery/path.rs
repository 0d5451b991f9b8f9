//! The WAL between a backup and a target: which segments of which timelines, and up to where they are all there.

use super::catalog::Catalog;
use crate::kind::Result;
use crate::postgres::{Lsn, TimelineHistory, TimelineId, WalSegmentName};
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
    let size = catalog.segment_size;
    let mut path = WalPath { segments: Vec::new(), gap: None };
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
        let first = WalSegmentName::from_number(span.timeline, next, size);
        let mut held: BTreeMap<_, _> = catalog.wal_from(first)?;
        loop {
            if stop.is_some_and(|stop| next >= stop) {
                break;
            }
            let name = WalSegmentName::from_number(span.timeline, next, size);
            if let Some(copies) = held.remove(&name) {
                path.segments.push((name, copies));
                next += 1;
            } else {
                let later = held.keys().any(|later| *later > name);
                if later || !is_last {
                    path.gap = Some(name);
                }
                return Ok(path);
            }
        }
    }
    Ok(path)
}
