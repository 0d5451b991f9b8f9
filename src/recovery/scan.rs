//! Questions that only the WAL itself answers: the last commit, a restore point, when a timeline was born.

use super::catalog::Catalog;
use super::path::{WalPath, walk};
use crate::codec::Opener;
use crate::kind::Result;
use crate::parallel::each_in_parallel;
use crate::postgres::wal::{
    Carry, ReaderOptions, Record, RecordVisitor, ResourceManager, SegmentSummary, Summarizer, TransactionEnd,
    TransactionOutcome, summarize,
};
use crate::postgres::{Lsn, TimelineHistory, TimelineId, WalSegmentName};
use jiff::Timestamp;
use std::sync::{Mutex, PoisonError};

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
    // The segment behind, and its content unless it was passed over.
    let mut behind: Option<(usize, Option<Vec<u8>>)> = None;
    for (at, (_, copies)) in path.segments.iter().enumerate().rev() {
        if catalog.is_idle(copies) {
            behind = Some((at, None));
            continue;
        }
        let content = catalog.read_segment(copies, opener)?;
        let (summary, carry) = summarize(&content, None);
        // A commit record that begins here may end in the segment that follows.
        if let (Some((next, following)), Some(carry)) = (behind, carry) {
            let following = match following {
                Some(following) => following,
                None => catalog.read_segment(&path.segments[next].1, opener)?,
            };
            if let Some(commit) = commit_in(&summarize(&following, Some(carry)).0) {
                return Ok(Some(commit));
            }
        }
        if let Some(commit) = commit_in(&summary) {
            return Ok(Some(commit));
        }
        behind = Some((at, Some(content)));
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
            if catalog.is_idle(&path.segments[at].1) {
                at += 1;
                continue;
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
    // One that crosses into an idle segment began in the one before.
    let idle = |at: usize| {
        catalog.is_idle(&path.segments[at].1) && (at == 0 || catalog.is_idle(&path.segments[at - 1].1))
    };
    for at in (low..path.segments.len()).filter(|at| !idle(*at)) {
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
    for at in (0..low).rev().filter(|at| !idle(*at)) {
        if around.kept.is_some() {
            break;
        }
        let ends = ends_in(catalog, path, at, opener)?;
        around.kept = ends.into_iter().rev().find(|(_, committed)| *committed).map(|(commit, _)| commit);
    }
    Ok(around)
}

/// How many segments in a row one thread searches.
const IN_A_ROW: usize = 4;
/// How many threads search, where segments are small.
const SEARCHERS: usize = 4;
/// Up to which size of a segment several are in memory at once, in bytes.
const SMALL: u64 = 64 << 20;

/// Looks for something in segments `from` and on, and returns the first find in the order of the log, with the number of
/// its segment. `look` gets a segment and what the one before left unfinished, and returns its own find and rest.
fn search<T: Send>(
    catalog: &Catalog<'_>,
    path: &WalPath<'_>,
    from: usize,
    opener: &Opener,
    look: impl Fn(&[u8], Option<Carry>) -> (Option<T>, Option<Carry>) + Sync,
) -> Result<Option<(usize, T)>> {
    let workers = if catalog.segment_size.bytes() > SMALL { 1 } else { SEARCHERS };
    let found: Mutex<Option<(usize, T)>> = Mutex::new(None);
    let best = || found.lock().unwrap_or_else(PoisonError::into_inner);
    let runs = path.segments.len().saturating_sub(from).div_ceil(IN_A_ROW);
    let search_run = |run: usize| {
        let first = from + run * IN_A_ROW;
        let is_late = |at: usize| best().as_ref().is_some_and(|(found, _)| *found < at);
        if is_late(first) {
            return Ok(());
        }
        let mut carry = match first.checked_sub(1) {
            Some(before) => summarize(&catalog.read_segment(&path.segments[before].1, opener)?, None).1,
            None => None,
        };
        for at in first..path.segments.len().min(first + IN_A_ROW) {
            if is_late(at) {
                break;
            }
            let content = catalog.read_segment(&path.segments[at].1, opener)?;
            let find;
            (find, carry) = look(&content, carry.take());
            if let Some(find) = find {
                let mut best = best();
                if best.as_ref().is_none_or(|(found, _)| *found > at) {
                    *best = Some((at, find));
                }
                break;
            }
        }
        Ok(())
    };
    // What is near is found without reading ahead.
    each_in_parallel(1, runs.min(1), search_run)?;
    if best().is_none() {
        each_in_parallel(workers, runs.saturating_sub(1), |run| search_run(run + 1))?;
    }
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Returns where transaction `xid` ended, looking from segment `from` of `path` onward, and whether it committed.
pub fn transaction_end(
    catalog: &Catalog<'_>,
    path: &WalPath<'_>,
    from: usize,
    xid: u32,
    opener: &Opener,
) -> Result<Option<(Commit, bool)>> {
    let found = search(catalog, path, from, opener, |content, carry| {
        let mut reader = Summarizer::with_visitor(ReaderOptions::default(), carry, Ends::default());
        reader.push(content);
        let (_, carry, ends) = reader.finish();
        (ends.0.into_iter().find(|(end, _)| end.xid == xid), carry)
    })?;
    Ok(found.map(|(_, end)| end))
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
    let path = walk(catalog, history, oldest)?;
    let found = search(catalog, &path, 0, opener, |content, carry| {
        let (summary, carry) = summarize(content, carry);
        (summary.restore_points.into_iter().find(|point| point.name == name), carry)
    })?;
    Ok(found.map(|(_, point)| RestorePoint { time: point.time.into(), lsn: point.lsn }))
}

/// Finds the first record from a position onward.
struct FirstFrom(Lsn, Option<Lsn>);

impl RecordVisitor for FirstFrom {
    fn visit(&mut self, record: &Record<'_>) {
        if record.lsn >= self.0 && self.1.is_none() {
            self.1 = Some(record.lsn);
        }
    }
}

/// Returns the first record that begins at `lsn` or later, where it can be found near it: with that one the server stops.
pub fn first_record(
    catalog: &Catalog<'_>,
    path: &WalPath<'_>,
    lsn: Lsn,
    opener: &Opener,
) -> Result<Option<Lsn>> {
    let Some(at) = segment_of(catalog, path, lsn) else { return Ok(None) };
    // A record counts where it ends.
    for at in at..path.segments.len().min(at + 2) {
        let carry = match at.checked_sub(1) {
            Some(before) => summarize(&catalog.read_segment(&path.segments[before].1, opener)?, None).1,
            None => None,
        };
        let content = catalog.read_segment(&path.segments[at].1, opener)?;
        let mut reader = Summarizer::with_visitor(ReaderOptions::default(), carry, FirstFrom(lsn, None));
        reader.push(&content);
        if let FirstFrom(_, Some(found)) = reader.finish().2 {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn segment_of(catalog: &Catalog<'_>, path: &WalPath<'_>, lsn: Lsn) -> Option<usize> {
    let size = catalog.segment_size;
    path.segments.iter().position(|(name, _)| lsn < name.end(size))
}

/// How many segments on either side are searched for a commit that is only shown.
const NEARBY: usize = 4;

/// Returns the commits on both sides of a position: those whose records begin before `boundary` are kept. Looks through a
/// few segments only.
pub fn around_lsn(
    catalog: &Catalog<'_>,
    path: &WalPath<'_>,
    boundary: Lsn,
    opener: &Opener,
) -> Result<Around> {
    let mut around = Around::default();
    let Some(middle) = segment_of(catalog, path, boundary) else { return Ok(around) };
    for at in middle..path.segments.len().min(middle + NEARBY) {
        for (end, _) in ends_in(catalog, path, at, opener)?.into_iter().filter(|(_, committed)| *committed) {
            if end.lsn < boundary {
                around.kept = Some(end);
            } else {
                around.lost.get_or_insert(end);
            }
        }
        if around.lost.is_some() {
            break;
        }
    }
    for at in (middle.saturating_sub(NEARBY)..middle).rev() {
        if around.kept.is_some() {
            break;
        }
        let ends = ends_in(catalog, path, at, opener)?;
        around.kept = ends.into_iter().rev().find(|(_, committed)| *committed).map(|(commit, _)| commit);
    }
    Ok(around)
}

/// Returns the timeline on which the cluster lived at `time`: of those born by then, the one born last. Each promotion
/// takes a higher number, so that is the highest of them.
pub fn live_timeline(catalog: &Catalog<'_>, time: Timestamp, opener: &Opener) -> Result<TimelineId> {
    let known = catalog.timelines();
    for timeline in known.iter().skip(1).rev() {
        if birth(catalog, *timeline, opener)? <= time {
            return Ok(*timeline);
        }
    }
    Ok(known.first().copied().unwrap_or(TimelineId(1)))
}

/// Returns when `timeline` was made: what the end-of-recovery record in its first segment says, else when its history
/// was archived, else when
/// the first backup on it began.
fn birth(catalog: &Catalog<'_>, timeline: TimelineId, opener: &Opener) -> Result<Timestamp> {
    let of_backups = catalog.backups.iter().map(|backup| &backup.summary);
    let first_backup = of_backups.filter(|summary| summary.timeline == timeline).map(|s| s.start_time).min();
    let archived = catalog.history_archived(timeline).or(first_backup).unwrap_or(Timestamp::MIN);
    let history = catalog.history(timeline, opener)?;
    let Some(begin) = history.ancestors.last().map(|entry| entry.switch) else { return Ok(archived) };
    let first = WalSegmentName::containing(timeline, begin, catalog.segment_size);
    let Some(copies) = catalog.wal_from(first)?.remove(&first) else { return Ok(archived) };
    let summary = summary_of(&catalog.read_segment(&copies, opener)?);
    let record = summary.timeline_switches.iter().find(|record| record.timeline == timeline);
    Ok(record.map_or(archived, |record| record.time.into()))
}
