//! Which WAL a repository must keep of one system identifier: what each kept backup needs to be consistent, and all that
//! the window needs. Pure, and without histories: a host without the identity cannot read them, so a timeline may be the
//! child of any lower one, and more is kept where that is not known.

use crate::postgres::{TimelineId, WalSegmentName, WalSegmentSize};
use crate::upkeep::retention::{Candidate, Reason};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// A timeline that got something within this time is alive, however short the window is: a backup may be running there.
pub(super) const GRACE: SignedDuration = SignedDuration::from_hours(48);

/// A backup and the WAL that it needs, as numbers of segments.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) candidate: Candidate,
    /// The first segment.
    pub(super) first: u64,
    /// The last one.
    pub(super) last: u64,
}

/// What listings tell of a timeline.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TimelineFacts {
    /// The number of the first segment that is there. As the first segment of a timeline is always kept, it is the one in
    /// which the timeline began, unless that was never archived.
    pub(super) first: Option<u64>,
    /// When something was last stored there; the end of time where the store does not say.
    pub(super) newest: Option<Timestamp>,
}

/// The WAL to keep.
#[derive(Debug, Clone)]
pub(super) struct Needs {
    size: WalSegmentSize,
    /// Segments of each timeline that kept backups need, first and last.
    spans: BTreeMap<TimelineId, Vec<(u64, u64)>>,
    /// From which number on everything is kept.
    cuts: BTreeMap<TimelineId, u64>,
    /// Those cuts that are the start of a backup.
    anchored: BTreeMap<TimelineId, u64>,
    /// The first segments of timelines: they tell when the timeline was made.
    births: BTreeSet<(TimelineId, u64)>,
    /// The backups at which the WAL of the window begins.
    pub(super) anchors: BTreeSet<String>,
}

/// How the window is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// When it ends ([`crate::upkeep::retention::reference_time`]).
    pub(super) reference: Timestamp,
    /// When it begins; none: no window is configured, and WAL is kept from the oldest kept backup on.
    pub(super) start: Option<Timestamp>,
    /// Whether the cluster lives under this system identifier now, as far as the repository knows.
    pub(super) is_current: bool,
}

impl Needs {
    /// Finds out what is needed. `reasons` says why each of `backups` is kept, none for those that are not.
    pub(super) fn new(
        size: WalSegmentSize,
        backups: &[Span],
        reasons: &[BTreeSet<Reason>],
        timelines: &BTreeMap<TimelineId, TimelineFacts>,
        moment: Moment,
    ) -> Self {
        let mut needs = Self {
            size,
            spans: BTreeMap::new(),
            cuts: BTreeMap::new(),
            anchored: BTreeMap::new(),
            births: BTreeSet::new(),
            anchors: BTreeSet::new(),
        };
        match moment.start {
            Some(start) => needs.for_window(backups, timelines, moment, start),
            None => {
                needs.for_kept(backups, reasons, timelines, moment.is_current);
                // What lives keeps its newest way in, whatever others have taken since.
                needs.for_window(backups, timelines, moment, moment.reference);
            }
        }
        for (backup, reasons) in backups.iter().zip(reasons) {
            if !reasons.is_empty() || needs.anchors.contains(&backup.candidate.id) {
                needs.add(backup);
            }
        }
        let kept: BTreeSet<TimelineId> = needs.spans.keys().chain(needs.cuts.keys()).copied().collect();
        // Of timelines above the lowest kept one: recovery asks each of them when it was made.
        let Some(lowest) = kept.first().copied() else { return needs };
        let births = timelines.iter().filter(|(timeline, _)| **timeline > lowest);
        needs.births = births.filter_map(|(timeline, facts)| Some((*timeline, facts.first?))).collect();
        needs
    }

    /// Returns the size of a segment.
    pub(super) fn segment_size(&self) -> WalSegmentSize {
        self.size
    }

    /// Adds what a backup needs to be consistent.
    pub(super) fn add(&mut self, backup: &Span) {
        self.spans.entry(backup.candidate.branch.timeline).or_default().push((backup.first, backup.last));
    }

    /// Without a window: from the oldest backup on that a rule keeps. A pin alone keeps no more than the backup.
    fn for_kept(
        &mut self,
        backups: &[Span],
        reasons: &[BTreeSet<Reason>],
        timelines: &BTreeMap<TimelineId, TimelineFacts>,
        is_current: bool,
    ) {
        for (backup, reasons) in backups.iter().zip(reasons) {
            if reasons.iter().any(|reason| *reason != Reason::Pinned) {
                self.cut_at(backup);
            }
        }
        let lowest = self.cuts.keys().next().copied();
        for timeline in timelines.keys() {
            let reachable = lowest.map_or(is_current, |lowest| *timeline > lowest);
            if reachable && !self.cuts.contains_key(timeline) {
                self.cuts.insert(*timeline, 0);
            }
        }
    }

    fn for_window(
        &mut self,
        backups: &[Span],
        timelines: &BTreeMap<TimelineId, TimelineFacts>,
        moment: Moment,
        start: Timestamp,
    ) {
        let quiet = moment.reference.checked_sub(GRACE).unwrap_or(Timestamp::MIN).min(start);
        let highest = timelines.keys().next_back().filter(|_| moment.is_current);
        let alive: BTreeSet<TimelineId> = timelines
            .iter()
            .filter(|(timeline, facts)| {
                facts.newest.is_some_and(|newest| newest >= quiet) || Some(*timeline) == highest
            })
            .map(|(timeline, _)| *timeline)
            .collect();
        let mut seen = BTreeSet::new();
        let mut open: Vec<(TimelineId, Option<u64>)> =
            alive.into_iter().map(|timeline| (timeline, None)).collect();
        while let Some((timeline, before)) = open.pop() {
            if !seen.insert((timeline, before)) {
                continue;
            }
            // Of those that ended in the segment of the fork it is not known on which side of it.
            let at_fork = backups.iter().filter(|backup| {
                let candidate = &backup.candidate;
                candidate.branch.timeline == timeline
                    && candidate.stop_time <= start
                    && Some(backup.last) == before
            });
            for backup in at_fork {
                self.anchors.insert(backup.candidate.id.clone());
                self.cut_at(backup);
            }
            // One that is not usable may be mended by sync: it stays, and so does the one before it.
            let mended = anchor(backups, timeline, start, before, |_| true);
            self.anchors.extend(mended.map(|backup| backup.candidate.id.clone()));
            if let Some(anchor) = anchor(backups, timeline, start, before, |backup| backup.usable) {
                self.anchors.insert(anchor.candidate.id.clone());
                self.cut_at(anchor);
                continue;
            }
            // No way in on this timeline: all of it is kept, and every lower one may be its parent. There the backup must
            // have ended before this timeline began.
            self.cuts.insert(timeline, 0);
            let first = timelines.get(&timeline).and_then(|facts| facts.first);
            let bound = first.into_iter().chain(before).min();
            open.extend(timelines.range(..timeline).map(|(parent, _)| (*parent, bound)));
        }
    }

    fn cut_at(&mut self, backup: &Span) {
        let timeline = backup.candidate.branch.timeline;
        for cuts in [&mut self.cuts, &mut self.anchored] {
            cuts.entry(timeline).and_modify(|cut| *cut = (*cut).min(backup.first)).or_insert(backup.first);
        }
    }

    /// Returns whether a segment is to be kept.
    pub(super) fn keeps(&self, name: WalSegmentName) -> bool {
        let number = name.number(self.size);
        self.cuts.get(&name.timeline).is_some_and(|cut| number >= *cut)
            || self.is_spanned(name.timeline, number)
            || self.births.contains(&(name.timeline, number))
    }

    /// Returns whether a backup that is kept here would lose something with the segment: if it is not here, another
    /// repository must not remove it.
    pub(super) fn claims(&self, name: WalSegmentName) -> bool {
        let number = name.number(self.size);
        self.anchored.get(&name.timeline).is_some_and(|cut| number >= *cut)
            || self.is_spanned(name.timeline, number)
    }

    fn is_spanned(&self, timeline: TimelineId, number: u64) -> bool {
        let spans = self.spans.get(&timeline);
        spans.is_some_and(|spans| spans.iter().any(|(first, last)| (*first..=*last).contains(&number)))
    }

    /// Returns whether nothing at all is kept.
    pub(super) fn is_nothing(&self) -> bool {
        self.spans.is_empty() && self.cuts.is_empty()
    }
}

/// Returns the newest backup of a timeline that is `good` and ended before `start`, and before segment `before`.
fn anchor(
    backups: &[Span],
    timeline: TimelineId,
    start: Timestamp,
    before: Option<u64>,
    good: impl Fn(&Candidate) -> bool,
) -> Option<&Span> {
    backups
        .iter()
        .filter(|backup| backup.candidate.branch.timeline == timeline && good(&backup.candidate))
        .filter(|backup| backup.candidate.stop_time <= start)
        .filter(|backup| before.is_none_or(|before| backup.last < before))
        .max_by_key(|backup| (backup.candidate.stop_time, backup.first))
}
