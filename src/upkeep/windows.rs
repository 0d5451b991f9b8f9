//! To which moments the cluster can be recovered.

use crate::codec::Opener;
use crate::index::{BadWal, Index, IndexHandle, TimelineSwitch};
use crate::kind::{Kind, Result};
use crate::postgres::{
    ArchiveFileName, HistoryEntry, Lsn, SegmentSet, TimelineHistory, TimelineId, WalSegmentName,
    WalSegmentSize,
};
use crate::recovery::catalog::Catalog;
use crate::recovery::path::walk;
use crate::recovery::scan;
use jiff::Timestamp;
use serde::Serialize;
use std::path::Path;

/// How many bad records are looked at.
const BAD_RECORDS: usize = 1000;

/// A span of time to any moment of which the cluster can be recovered.
#[derive(Debug, Serialize)]
pub struct Window {
    /// The timeline to recover along.
    pub timeline: TimelineId,
    /// The end of its first backup.
    pub from: Timestamp,
    /// The last commit in it, where the index knows it or the WAL was read for it, else when its last segment was stored.
    pub to: Option<Timestamp>,
    /// Whether `to` is the time of a commit.
    pub to_is_commit: bool,
    /// Where its WAL ends.
    pub end_lsn: Lsn,
    /// The first segment that is missing behind it, where later ones exist.
    pub gap: Option<WalSegmentName>,
    /// The record that no recovery can pass, where that is what ends it.
    pub bad_wal: Option<BadWal>,
    /// The first moment after it that can be reached: the end of a later backup on the same timeline.
    pub resumes: Option<Timestamp>,
    /// The backups in it.
    pub backups: usize,
}

/// What windows are found from.
pub struct Sources<'a, 'r> {
    /// Backups and histories.
    pub catalog: &'a Catalog<'r>,
    /// The segments that any of the repositories holds.
    pub held: &'a SegmentSet,
    /// The server's directory of WAL, which may be there and have histories that need no key.
    pub pg_wal: &'a Path,
    /// Decrypts, if there is an identity.
    pub opener: &'a Opener,
    /// Knows the commits of segments.
    pub index: &'a IndexHandle,
}

impl Sources<'_, '_> {
    /// Returns the windows, along each timeline that has backups of its own or is the latest; the latest first.
    pub fn windows(&self) -> Result<Vec<Window>> {
        let known = self.catalog.timelines();
        let bad = self.index.run(|index| index.bad_wal(self.catalog.sysid, BAD_RECORDS)).unwrap_or_default();
        let mut found: Vec<Window> = Vec::new();
        for timeline in known.iter().rev() {
            let mut along = self.along(&self.history(*timeline)?, &bad)?;
            // A parent's windows that end before its child's fork are shown by the child already.
            along.retain(|window| {
                !found.iter().any(|other| other.end_lsn >= window.end_lsn && other.from == window.from)
            });
            found.extend(along);
        }
        Ok(found)
    }

    fn history(&self, timeline: TimelineId) -> Result<TimelineHistory> {
        history_of(self.catalog, timeline, self.opener, self.pg_wal, self.index)
    }

    fn along(&self, history: &TimelineHistory, bad: &[BadWal]) -> Result<Vec<Window>> {
        let size = self.catalog.segment_size;
        let mut found: Vec<Window> = Vec::new();
        for backup in &self.catalog.backups {
            let summary = &backup.summary;
            let before_stop = Lsn(summary.stop_lsn.0.saturating_sub(1));
            if !history.contains(summary.timeline, summary.start_lsn)
                || !history.contains(summary.timeline, before_stop)
            {
                continue;
            }
            // The WAL of the window that is open reaches over this backup: it is one more way in.
            if let Some(open) = found.last_mut()
                && open.end_lsn >= summary.stop_lsn
            {
                open.backups += 1;
                continue;
            }
            let mut reach = Reach::of(self.held, size, history, summary.start_lsn);
            let bad = reach.cut_at(bad, summary.start_lsn);
            let Some(last) = reach.last() else { continue };
            let end_lsn = bad.as_ref().map_or(last.end(size), |bad| bad.lsn.min(last.end(size)));
            if end_lsn < summary.stop_lsn {
                continue;
            }
            let end = self.last_moment(history, summary.start_lsn, &reach, summary.encrypted)?;
            if let Some(before) = found.last_mut() {
                before.resumes = Some(summary.stop_time);
            }
            found.push(Window {
                timeline: history.timeline,
                from: summary.stop_time,
                to: end.map(|(time, _)| time),
                to_is_commit: end.is_some_and(|(_, is_commit)| is_commit),
                end_lsn,
                gap: reach.gap.filter(|_| bad.is_none()),
                bad_wal: bad,
                resumes: None,
                backups: 1,
            });
        }
        Ok(found)
    }

    /// Returns the time of the last commit as far as `reach` goes, as the index knows it, else as the WAL says, if it can
    /// be read; else when the last segment was stored; and whether it is a commit's.
    fn last_moment(
        &self,
        history: &TimelineHistory,
        start: Lsn,
        reach: &Reach,
        encrypted: bool,
    ) -> Result<Option<(Timestamp, bool)>> {
        let size = self.catalog.segment_size;
        let known = self.index.run(|index| known_commit(index, self.catalog, reach));
        if let Some(Known::Commit(time)) = known {
            return Ok(Some((time, true)));
        }
        let mut path = walk(self.catalog, history, start)?;
        if let Some(last) = reach.last() {
            path.segments.retain(|(segment, _)| segment.number(size) <= last.number(size));
        }
        let stored = path.segments.last().and_then(|(_, copies)| {
            copies.iter().find_map(|(_, object)| object.object.modified).map(|time| (time, false))
        });
        if matches!(known, Some(Known::NoCommit)) || (encrypted && !self.opener.has_identity()) {
            return Ok(stored);
        }
        let commit = scan::last_commit(self.catalog, &path, self.opener)?;
        Ok(commit.map(|commit| (commit.latest, true)).or(stored))
    }
}

/// Returns the history of a timeline. Without the identity an encrypted one cannot be read, and a host that only archives has
/// none; but it may have the history itself in `pg_wal`, or its index knows where the timeline began.
pub(super) fn history_of(
    catalog: &Catalog<'_>,
    timeline: TimelineId,
    opener: &Opener,
    pg_wal: &Path,
    index: &IndexHandle,
) -> Result<TimelineHistory> {
    match catalog.history(timeline, opener) {
        Err(error) if error.kind() == Kind::Config => {
            let file = pg_wal.join(ArchiveFileName::History(timeline).to_string());
            let local = std::fs::read(file).ok();
            let parsed = local.and_then(|text| TimelineHistory::parse(timeline, text).ok());
            let known = || {
                let switches = index.run(|index| index.timeline_switches(catalog.sysid)).unwrap_or_default();
                from_switches(timeline, &switches)
            };
            Ok(parsed.unwrap_or_else(known))
        }
        history => history,
    }
}

/// Returns the history of a timeline as the beginnings of timelines in the WAL tell it, as far back as they are known.
fn from_switches(timeline: TimelineId, switches: &[TimelineSwitch]) -> TimelineHistory {
    let mut history = TimelineHistory::root(timeline);
    let mut child = timeline.0;
    while let Some(switch) =
        switches.iter().find(|switch| switch.timeline == child && switch.previous < child)
    {
        let Ok(parent) = TimelineId::try_from(switch.previous) else { break };
        let entry = HistoryEntry { timeline: parent, switch: switch.lsn, reason: String::new() };
        history.ancestors.insert(0, entry);
        child = switch.previous;
    }
    history
}

/// The segments from a backup's start along one branch, as far as they are held without a hole: what
/// [`crate::recovery::path::walk`] finds, without asking who holds each.
#[derive(Debug)]
pub(super) struct Reach {
    size: WalSegmentSize,
    /// Timeline, first and last number, in the order of replay.
    pub(super) runs: Vec<(TimelineId, u64, u64)>,
    pub(super) gap: Option<WalSegmentName>,
}

impl Reach {
    pub(super) fn of(held: &SegmentSet, size: WalSegmentSize, history: &TimelineHistory, start: Lsn) -> Self {
        let mut reach = Self { size, runs: Vec::new(), gap: None };
        let spans: Vec<_> = history
            .path()
            .into_iter()
            .filter(|span| span.end.is_none_or(|end| end > start && end > span.begin))
            .collect();
        let mut next = start.0 / size.bytes();
        for (at, span) in spans.iter().enumerate() {
            let is_last = at + 1 == spans.len();
            let stop = span.end.filter(|_| !is_last).map(|end| end.0 / size.bytes());
            if stop.is_some_and(|stop| stop <= next) {
                continue;
            }
            let missing = held.first_missing(span.timeline, next);
            let end = stop.map_or(missing, |stop| stop.min(missing));
            if end > next {
                reach.runs.push((span.timeline, next, end - 1));
            }
            next = end;
            if stop.is_none_or(|stop| end < stop) {
                let is_gap = !is_last || held.last(span.timeline).is_some_and(|last| last > end);
                reach.gap = is_gap.then(|| WalSegmentName::from_number(span.timeline, end, size));
                return reach;
            }
        }
        reach
    }

    /// Returns the last of the segments.
    pub(super) fn last(&self) -> Option<WalSegmentName> {
        self.runs.last().map(|(timeline, _, last)| WalSegmentName::from_number(*timeline, *last, self.size))
    }

    /// Ends it with the first segment that has a bad record from `start` on, and returns that.
    fn cut_at(&mut self, bad: &[BadWal], start: Lsn) -> Option<BadWal> {
        let (at, number, bad) = bad.iter().filter(|bad| bad.lsn >= start).find_map(|bad| {
            let name: WalSegmentName = bad.segment.parse().ok()?;
            let number = name.number(self.size);
            let holds = |(timeline, first, last): &(TimelineId, u64, u64)| {
                *timeline == name.timeline && (*first..=*last).contains(&number)
            };
            Some((self.runs.iter().position(holds)?, number, bad))
        })?;
        self.runs.truncate(at + 1);
        self.runs[at].2 = number;
        Some(bad.clone())
    }
}

/// What the index knows of the last commit on a path.
enum Known {
    Commit(Timestamp),
    NoCommit,
    /// It has not read the segments at the end.
    NotRead,
}

fn known_commit(index: &Index, catalog: &Catalog<'_>, reach: &Reach) -> Result<Known> {
    let size = catalog.segment_size;
    for (timeline, first, last) in reach.runs.iter().rev() {
        let name = |number| WalSegmentName::from_number(*timeline, number, size);
        let found = index.last_commit_within(catalog.sysid, name(*first), name(*last))?;
        let behind = found.as_ref().map_or(*first, |found| found.segment.number(size) + 1);
        let count = (last + 1).saturating_sub(behind);
        if count > 0 && index.segments_read(catalog.sysid, name(behind), name(*last))? < count {
            return Ok(Known::NotRead);
        }
        if let Some(time) = found.and_then(|found| Timestamp::from_microsecond(found.time).ok()) {
            return Ok(Known::Commit(time));
        }
    }
    Ok(Known::NoCommit)
}
