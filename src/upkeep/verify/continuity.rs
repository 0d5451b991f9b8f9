//! WAL without holes: from each backup to the newest segment, along the timelines.

use super::report::{Subject, Wrong};
use super::visit::Visit;
use super::wal::Held;
use crate::codec;
use crate::kind::{Kind, Result};
use crate::postgres::{ArchiveFileName, Lsn, TimelineHistory, TimelineId, WalSegmentName};
use crate::recovery::catalog::Catalog;
use crate::repository::backup::{BackupSummary, SUMMARY_NAME};
use crate::repository::{find_contents, list_wal_from};
use crate::upkeep::windows::{Reach, history_of};
use jiff::Timestamp;
use std::collections::BTreeSet;

/// How many more segments than are missing are listed again.
const MORE: usize = 1000;
/// How many segments behind the newest are asked for that were there once.
const TAIL: usize = 100_000;

/// Looks for histories and segments that are missing between what is there.
pub(super) fn look(visit: &Visit<'_>, backups: &[BackupSummary], held: &Held) -> Result<()> {
    let mut backups: Vec<&BackupSummary> = backups.iter().collect();
    backups.sort_by_key(|backup| (backup.stop_time, &backup.id));
    let catalog =
        Catalog::read_some(&[visit.repository], visit.request.cluster, visit.sysid, &|_| Vec::new())?;
    let of_backups = backups.iter().map(|backup| backup.timeline);
    let in_use: BTreeSet<TimelineId> = held.segments.keys().copied().chain(of_backups).collect();
    missing_histories(visit, &in_use, held)?;
    let timelines: BTreeSet<TimelineId> = in_use.union(&held.histories).copied().collect();
    let mut gaps = Gaps { visit, held, backups, known: BTreeSet::new() };
    for timeline in timelines.iter().rev() {
        let request = visit.request;
        let read = || history_of(&catalog, *timeline, request.opener, request.pg_wal, visit.index);
        // A bad transfer is not a bad object.
        let history =
            match read().or_else(|error| if error.kind() == Kind::Corrupt { read() } else { Err(error) }) {
                Ok(history) => history,
                Err(error) if error.kind() == Kind::Corrupt => {
                    visit.wrong(Wrong::Content, Subject::History(*timeline), None, error.message());
                    TimelineHistory::root(*timeline)
                }
                Err(error) => return Err(error),
            };
        gaps.along(&history)?;
    }
    if visit.request.backup.is_none() {
        gaps.behind_the_newest()?;
    }
    Ok(())
}

/// The lowest timeline may have begun before anything was archived; each above it forked from another.
fn missing_histories(visit: &Visit<'_>, in_use: &BTreeSet<TimelineId>, held: &Held) -> Result<()> {
    for timeline in in_use.iter().skip(1).filter(|timeline| !held.histories.contains(timeline)) {
        let name = ArchiveFileName::History(*timeline);
        let again = find_contents(visit.repository, &visit.keys, name, &visit.repository.deadline())
            .map_err(|error| visit.repository.error("list", &error))?;
        if again.is_empty() {
            let text = format!("the history of timeline {} is missing", timeline.0);
            visit.wrong(Wrong::Missing, Subject::History(*timeline), None, &text);
        }
    }
    Ok(())
}

struct Gaps<'g> {
    visit: &'g Visit<'g>,
    held: &'g Held,
    /// Oldest end first.
    backups: Vec<&'g BackupSummary>,
    /// The first segments of the gaps that were looked at.
    known: BTreeSet<WalSegmentName>,
}

impl Gaps<'_> {
    fn along(&mut self, history: &TimelineHistory) -> Result<()> {
        let size = self.visit.size;
        let mut reached: Option<Lsn> = None;
        for at in 0..self.backups.len() {
            let backup = self.backups[at];
            let before_stop = Lsn(backup.stop_lsn.0.saturating_sub(1));
            if !history.contains(backup.timeline, backup.start_lsn)
                || !history.contains(backup.timeline, before_stop)
                || reached.is_some_and(|reached| reached >= backup.stop_lsn)
            {
                continue;
            }
            let reach = Reach::of(&self.held.set, size, history, backup.start_lsn);
            let (last, gap) = (reach.last(), reach.gap);
            let end = last.map_or(backup.start_lsn, |last| last.end(size));
            reached = Some(end);
            let first = match (gap, last) {
                (Some(gap), _) => gap,
                // Nothing follows: what the backup needs is missing nevertheless.
                (None, Some(last)) if end < backup.stop_lsn => last.next(size),
                (None, None) => backup.start_segment(),
                (None, Some(_)) => continue,
            };
            if self.known.insert(first) {
                self.gap(history, (first, last), at)?;
            }
        }
        Ok(())
    }

    /// Reports the gap that begins with `first`, unless it is none after all.
    fn gap(
        &self,
        history: &TimelineHistory,
        (first, before): (WalSegmentName, Option<WalSegmentName>),
        backup: usize,
    ) -> Result<()> {
        let (visit, size) = (self.visit, self.visit.size);
        let backup = self.backups[backup];
        let number = first.number(size);
        let there = self.held.segments.get(&first.timeline);
        let later = there.and_then(|there| there.range(number..).next());
        let last = match (later, history.switch_from(first.timeline)) {
            (Some((later, _)), _) => later - 1,
            (None, Some(switch)) => (switch.0 / size.bytes()).saturating_sub(1),
            (None, None) => backup.stop_segment().number(size),
        };
        let missing: Vec<u64> =
            (number..=last.max(number)).filter(|number| self.is_wanted(first.timeline, *number)).collect();
        let missing = self.still_missing(first.timeline, &missing)?;
        let (Some(from), Some(to)) = (missing.first(), missing.last()) else { return Ok(()) };
        let name = |number: &u64| WalSegmentName::from_number(first.timeline, *number, size);
        let (from, to) = (name(from), name(to));
        let stored = later.and_then(|(_, stored)| *stored);
        if self.is_in_flight((from, to), stored) {
            tracing::info!(
                "WAL segment {from} may still be on its way to repository \"{}\"",
                visit.repository.name()
            );
            return Ok(());
        }
        // It may have expired since.
        if !visit.is_there(&format!("{}{SUMMARY_NAME}", visit.keys.backup(&backup.id)))? {
            return Ok(());
        }
        let reaches_stop = before.is_some_and(|before| before.end(size) >= backup.stop_lsn);
        let next = self.backups.iter().find(|other| {
            other.start_lsn >= to.end(size) && history.contains(other.timeline, other.start_lsn)
        });
        let consequence = consequence(
            self.end_of(before).filter(|_| reaches_stop),
            next.map(|next| next.stop_time),
            (!reaches_stop).then_some(&backup.id),
        );
        visit.gap(Subject::Segments(from, to), &missing_text(missing.len(), from, to), consequence);
        Ok(())
    }

    /// Segments that this host archived there behind the newest that is there now.
    fn behind_the_newest(&self) -> Result<()> {
        let (visit, size) = (self.visit, self.visit.size);
        for (timeline, there) in &self.held.segments {
            let Some((newest, _)) = there.last_key_value() else { continue };
            let newest = WalSegmentName::from_number(*timeline, *newest, size);
            let (first, last) = (newest.to_string(), format!("{timeline}FFFFFFFFFFFFFFFF"));
            let once =
                visit.index.run(|index| index.held_between(&visit.stamp, visit.sysid, (&first, &last), TAIL));
            let once = once.unwrap_or_default().into_iter().filter_map(|(name, _)| name.parse().ok());
            let numbers: BTreeSet<u64> = once
                .filter(|name: &WalSegmentName| *name > newest)
                .map(|name| name.number(size))
                .filter(|number| self.is_wanted(*timeline, *number))
                .collect();
            let missing = self.still_missing(*timeline, &Vec::from_iter(numbers))?;
            let (Some(from), Some(to)) = (missing.first(), missing.last()) else { continue };
            let name = |number: &u64| WalSegmentName::from_number(*timeline, *number, size);
            let text =
                format!("{}, which were archived here", missing_text(missing.len(), name(from), name(to)));
            let consequence = consequence(self.end_of(Some(newest)), None, None);
            visit.gap(Subject::Segments(name(from), name(to)), &text, consequence);
        }
        Ok(())
    }

    fn is_wanted(&self, timeline: TimelineId, number: u64) -> bool {
        let name = WalSegmentName::from_number(timeline, number, self.visit.size);
        self.visit.is_wanted(&self.visit.keys.wal_object(ArchiveFileName::Segment(name), 0, codec::LZ4))
    }

    /// Returns which of the numbers are still missing: segments arrive while others are looked at.
    fn still_missing(&self, timeline: TimelineId, numbers: &[u64]) -> Result<Vec<u64>> {
        let Some(first) = numbers.first() else { return Ok(Vec::new()) };
        let (visit, size) = (self.visit, self.visit.size);
        let first = WalSegmentName::from_number(timeline, *first, size);
        let limit = numbers.len().saturating_add(MORE);
        let listing =
            list_wal_from(visit.repository, &visit.keys, first, limit, &visit.repository.deadline())
                .map_err(|error| visit.repository.error("list", &error))?;
        let there: BTreeSet<u64> =
            listing.objects.iter().filter_map(|object| Some(object.segment()?.number(size))).collect();
        Ok(numbers.iter().copied().filter(|number| !there.contains(number)).collect())
    }

    /// Returns whether the segments may be on their way: what follows them was stored a moment ago, and nobody has them.
    fn is_in_flight(&self, (from, to): (WalSegmentName, WalSegmentName), later: Option<Timestamp>) -> bool {
        let visit = self.visit;
        let Some(later) = later else { return false };
        let age = Timestamp::now().duration_since(later).unsigned_abs();
        if age >= visit.request.in_flight {
            return false;
        }
        let range = (from.to_string(), to.to_string());
        let once = visit
            .index
            .run(|index| index.held_between(&visit.stamp, visit.sysid, (&range.0, &range.1), 1))
            .is_some_and(|once| !once.is_empty());
        if once {
            return false;
        }
        for (other, _) in &visit.request.repositories {
            let name = ArchiveFileName::Segment(from);
            if other.url() != visit.stamp.url
                && find_contents(other, &visit.keys, name, &other.deadline())
                    .is_ok_and(|found| !found.is_empty())
            {
                return false;
            }
        }
        true
    }

    /// Returns until when can be recovered with the WAL up to that segment: the last commit, as far as the index knows it,
    /// else when the segment was stored.
    fn end_of(&self, segment: Option<WalSegmentName>) -> Option<Timestamp> {
        let segment = segment?;
        let visit = self.visit;
        let commit = visit.index.run(|index| {
            let first = WalSegmentName::from_number(segment.timeline, 0, visit.size);
            index.last_commit_within(visit.sysid, first, segment)
        });
        let commit = commit.flatten().and_then(|commit| Timestamp::from_microsecond(commit.time).ok());
        let stored = || *self.held.segments.get(&segment.timeline)?.get(&segment.number(visit.size))?;
        commit.or_else(stored)
    }
}

fn missing_text(count: usize, from: WalSegmentName, to: WalSegmentName) -> String {
    if from == to {
        format!("WAL segment {from} is missing")
    } else {
        format!("{count} WAL segments are missing, {from} to {to}")
    }
}

fn consequence(from: Option<Timestamp>, to: Option<Timestamp>, backup: Option<&String>) -> String {
    let span = match (from, to) {
        (Some(from), Some(to)) => format!("no moment from {from:.0} to {to:.0} can be recovered"),
        (Some(from), None) => format!("nothing after {from:.0} can be recovered"),
        (None, Some(to)) => format!("nothing before {to:.0} can be recovered by way of it"),
        (None, None) => "nothing can be recovered by way of it".to_owned(),
    };
    match backup {
        Some(id) => format!("backup {id} cannot become consistent, {span}"),
        None => span,
    }
}
