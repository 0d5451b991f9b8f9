//! Questions that only the WAL itself answers: the last commit, a restore point, when a timeline was born.

use super::catalog::Catalog;
use super::path::{WalPath, walk};
use crate::codec::Opener;
use crate::kind::Result;
use crate::postgres::wal::{
    ReaderOptions, Record, RecordVisitor, ResourceManager, SegmentSummary, Summarizer, TransactionEnd,
    TransactionOutcome, summarize,
};
use crate::postgres::{Lsn, TimelineHistory, TimelineId, WalSegmentName};
use jiff::Timestamp;

/// The last commit of a stretch of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct LastCommit {
    /// When the last record says it was committed.
    pub time: Timestamp,
    /// The greatest commit time in its segment: times are taken before records are written, so they are not in
    /// order.
    pub latest: Timestamp,
    /// Where its record begins.
    pub lsn: Lsn,
}

/// A restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePoint {
    /// When it was made.
    pub time: Timestamp,
    /// Where its record begins.
    pub lsn: Lsn,
}

fn summary_of(content: &[u8]) -> SegmentSummary {
    summarize(content, None).0
}

fn commit_in(summary: &SegmentSummary) -> Option<LastCommit> {
    let (last, latest) = (summary.last_commit.as_ref()?, summary.max_commit_time?);
    Some(LastCommit { time: last.time.into(), latest: latest.into(), lsn: last.lsn })
}

/// Returns the last commit on `path`; none if there is no commit on all of it.
pub fn last_commit(catalog: &Catalog<'_>, path: &WalPath<'_>, opener: &Opener) -> Result<Option<LastCommit>> {
    let mut following: Option<Vec<u8>> = None;
    for (_, copies) in path.segments.iter().rev() {
        let content = catalog.read_segment(copies, opener)?;
        let (summary, carry) = summarize(&content, None);
        // A commit record that begins here may end in the segment that follows.
        if let (Some(following), Some(carry)) = (&following, carry)
            && let Some(commit) = commit_in(&summarize(following, Some(carry)).0)
        {
            return Ok(Some(commit));
        }
        if let Some(commit) = commit_in(&summary) {
            return Ok(Some(commit));
        }
        following = Some(content);
    }
    Ok(None)
}

/// A commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Commit {
    /// When, as its record says.
    pub time: Timestamp,
    /// Where its record begins.
    pub lsn: Lsn,
    /// The transaction.
    pub xid: u32,
}

/// The commits on both sides of the place where recovery stops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Around {
    /// The last one that is kept; none if there is none after the backup.
    pub kept: Option<Commit>,
    /// The first one that is lost.
    pub lost: Option<Commit>,
}

/// Collects the ends of transactions.
#[derive(Default)]
struct Ends(Vec<(Commit, bool)>);

impl RecordVisitor for Ends {
    fn visit(&mut self, record: &Record<'_>) {
        if let Some(end) = TransactionEnd::decode(record) {
            let committed = end.outcome == TransactionOutcome::Committed;
            self.0.push((Commit { time: end.time.into(), lsn: record.lsn, xid: end.xid }, committed));
        }
    }

    fn wants(&self, rmid: u8, _: u8) -> bool {
        rmid == ResourceManager::TRANSACTION
    }
}

/// Returns the ends of transactions in segment `at` of `path`, in the order of the log, with the one that began in the
/// segment before.
fn ends_in(
    catalog: &Catalog<'_>,
    path: &WalPath<'_>,
    at: usize,
    opener: &Opener,
) -> Result<Vec<(Commit, bool)>> {
    let carry = match at.checked_sub(1).and_then(|before| path.segments.get(before)) {
        Some((_, copies)) => summarize(&catalog.read_segment(copies, opener)?, None).1,
        None => None,
    };
    let content = catalog.read_segment(&path.segments[at].1, opener)?;
    let mut reader = Summarizer::with_visitor(ReaderOptions::default(), carry, Ends::default());
    reader.push(&content);
    Ok(reader.finish().2.0)
}

/// Returns the commits on both sides of `time`, where the server stops: before the first end of a transaction that is
/// later (or, exclusive, not earlier). Reads a number of segments that grows with the logarithm of theirs.
pub fn around(
    catalog: &Catalog<'_>,
    path: &WalPath<'_>,
    time: Timestamp,
    exclusive: bool,
    opener: &Opener,
) -> Result<Around> {
    let stops = |end: Timestamp| if exclusive { end >= time } else { end > time };
    // The first segment with an end that stops recovery lies in low..=high.
    let (mut low, mut high) = (0, path.segments.len());
    while low < high {
        let middle = low.midpoint(high);
        let mut at = middle;
        let latest = loop {
            if at >= high {
                break None;
            }
            let summary = summary_of(&catalog.read_segment(&path.segments[at].1, opener)?);
            match summary.max_end_time {
                Some(latest) => break Some(Timestamp::from(latest)),
                None => at += 1,
            }
        };
        match latest {
            Some(latest) if !stops(latest) => low = at + 1,
            _ => high = middle,
        }
    }
    let mut around = Around::default();
    for at in low..path.segments.len() {
        for (end, committed) in ends_in(catalog, path, at, opener)? {
            if stops(end.time) {
                around.lost = Some(end);
                break;
            }
            if committed {
                around.kept = Some(end);
            }
        }
        if around.lost.is_some() {
            break;
        }
    }
    for at in (0..low).rev() {
        if around.kept.is_some() {
            break;
        }
        let ends = ends_in(catalog, path, at, opener)?;
        around.kept = ends.into_iter().rev().find(|(_, committed)| *committed).map(|(commit, _)| commit);
    }
    Ok(around)
}

/// Returns the first restore point called `name` on the branch `history`, which is where the server would stop. Looks
/// from the oldest backup of the branch onward.
pub fn restore_point(
    catalog: &Catalog<'_>,
    history: &TimelineHistory,
    name: &str,
    opener: &Opener,
) -> Result<Option<RestorePoint>> {
    let on_branch = catalog.backups.iter().map(|backup| &backup.summary);
    let oldest = on_branch
        .filter(|summary| history.contains(summary.timeline, summary.start_lsn))
        .map(|s| s.start_lsn)
        .min();
    let Some(oldest) = oldest else { return Ok(None) };
    for (_, copies) in &walk(catalog, history, oldest)?.segments {
        let summary = summary_of(&catalog.read_segment(copies, opener)?);
        if let Some(point) = summary.restore_points.iter().find(|point| point.name == name) {
            return Ok(Some(RestorePoint { time: point.time.into(), lsn: point.lsn }));
        }
    }
    Ok(None)
}

/// Returns the timeline on which the cluster lived at `time`: of those born by then, the one born last.
pub fn live_timeline(catalog: &Catalog<'_>, time: Timestamp, opener: &Opener) -> Result<TimelineId> {
    let known = catalog.timelines();
    let mut live = *known.first().unwrap_or(&TimelineId(1));
    let mut born = Timestamp::MIN;
    for timeline in known.into_iter().skip(1) {
        let birth = birth(catalog, timeline, opener)?;
        if birth <= time && birth >= born {
            (live, born) = (timeline, birth);
        }
    }
    Ok(live)
}

/// Returns when `timeline` was made: what the end-of-recovery record in its first segment says, else when its history
/// was archived.
fn birth(catalog: &Catalog<'_>, timeline: TimelineId, opener: &Opener) -> Result<Timestamp> {
    let archived = catalog.history_archived(timeline).unwrap_or(Timestamp::MIN);
    let history = catalog.history(timeline, opener)?;
    let Some(begin) = history.ancestors.last().map(|entry| entry.switch) else { return Ok(archived) };
    let first = WalSegmentName::containing(timeline, begin, catalog.segment_size);
    let Some(copies) = catalog.wal_from(first)?.remove(&first) else { return Ok(archived) };
    let summary = summary_of(&catalog.read_segment(&copies, opener)?);
    let record = summary.timeline_switches.iter().find(|record| record.timeline == timeline);
    Ok(record.map_or(archived, |record| record.time.into()))
}
