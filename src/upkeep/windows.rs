//! To which moments the cluster can be recovered.

use crate::codec::Opener;
use crate::index::{BadWal, Index, IndexHandle, TimelineSwitch};
use crate::kind::{Kind, Result};
use crate::postgres::{ArchiveFileName, HistoryEntry, Lsn, TimelineHistory, TimelineId, WalSegmentName};
use crate::recovery::catalog::Catalog;
use crate::recovery::path::{WalPath, walk};
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
    /// Backups and WAL.
    pub catalog: &'a Catalog<'r>,
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
            let mut path = walk(self.catalog, history, summary.start_lsn)?;
            let bad = cut_at(&mut path, bad, summary.start_lsn);
            let Some((last, copies)) = path.segments.last() else { continue };
            let end_lsn = bad.as_ref().map_or(last.end(size), |bad| bad.lsn.min(last.end(size)));
            if end_lsn < summary.stop_lsn {
                continue;
            }
            let stored = copies.iter().find_map(|(_, object)| object.object.modified);
            let commit = self.last_commit(&path, summary.encrypted)?;
            if let Some(before) = found.last_mut() {
                before.resumes = Some(summary.stop_time);
            }
            found.push(Window {
                timeline: history.timeline,
                from: summary.stop_time,
                to: commit.or(stored),
                to_is_commit: commit.is_some(),
                end_lsn,
                gap: path.gap.filter(|_| bad.is_none()),
                bad_wal: bad,
                resumes: None,
                backups: 1,
            });
        }
        Ok(found)
    }

    /// Returns the time of the last commit on `path`: as the index knows it, else as the WAL says, if it can be read.
    fn last_commit(&self, path: &WalPath<'_>, encrypted: bool) -> Result<Option<Timestamp>> {
        match self.index.run(|index| known_commit(index, self.catalog, path)) {
            Some(Known::Commit(time)) => return Ok(Some(time)),
            Some(Known::NoCommit) => return Ok(None),
            Some(Known::NotRead) | None => {}
        }
        if encrypted && !self.opener.has_identity() {
            return Ok(None);
        }
        Ok(scan::last_commit(self.catalog, path, self.opener)?.map(|commit| commit.latest))
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

/// Ends the path with the first segment that has a bad record from `start` on, and returns that.
fn cut_at(path: &mut WalPath<'_>, bad: &[BadWal], start: Lsn) -> Option<BadWal> {
    let found = bad.iter().filter(|bad| bad.lsn >= start).find_map(|bad| {
        let name: WalSegmentName = bad.segment.parse().ok()?;
        Some((path.segments.iter().position(|(segment, _)| *segment == name)?, bad))
    });
    let (at, bad) = found?;
    path.segments.truncate(at + 1);
    Some(bad.clone())
}

/// What the index knows of the last commit on a path.
enum Known {
    Commit(Timestamp),
    NoCommit,
    /// It has not read the segments at the end.
    NotRead,
}

fn known_commit(index: &Index, catalog: &Catalog<'_>, path: &WalPath<'_>) -> Result<Known> {
    let size = catalog.segment_size;
    for run in path.segments.chunk_by(|(a, _), (b, _)| a.timeline == b.timeline).rev() {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { continue };
        let found = index.last_commit_within(catalog.sysid, *first, *last)?;
        let behind = found.as_ref().map_or(*first, |found| found.segment.next(size));
        let count = (last.number(size) + 1).saturating_sub(behind.number(size));
        if count > 0 && index.segments_read(catalog.sysid, behind, *last)? < count {
            return Ok(Known::NotRead);
        }
        if let Some(time) = found.and_then(|found| Timestamp::from_microsecond(found.time).ok()) {
            return Ok(Known::Commit(time));
        }
    }
    Ok(Known::NoCommit)
}
