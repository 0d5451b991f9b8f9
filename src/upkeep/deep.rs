//! `events --deep`: segments that the index has not read are fetched and read now.

use crate::codec::Opener;
use crate::index::{EventRow, Found, Index, ListedFile, SegmentFacts};
use crate::kind::Result;
use crate::parallel::each_in_parallel;
use crate::postgres::wal::events::{Contribution, EventOptions, EventScanner, Tracker};
use crate::postgres::wal::{ReaderOptions, Summarizer};
use crate::postgres::{Lsn, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use crate::progress::Progress;
use crate::recovery::catalog::Catalog;
use crate::repository::{Repository, WalObject};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How many segments are recorded at a time: what a run that is broken off has read is not lost.
const AT_A_TIME: usize = 64;
/// How many are fetched at once, where they are small.
const AT_ONCE: usize = 4;
/// Up to which size of a segment several are in memory, in bytes.
const SMALL: u64 = 64 << 20;

/// Which part of the archive is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Span {
    /// What was stored before holds no commit that is asked for.
    pub since: Option<Timestamp>,
    /// What follows a commit that is later is not asked for.
    pub until: Option<Timestamp>,
}

type Copies<'r> = Vec<(&'r Repository, WalObject)>;

/// A segment that was read.
pub(super) struct Read {
    file: ListedFile,
    facts: Option<SegmentFacts>,
    contribution: Contribution,
}

/// Takes a segment's content piece by piece.
pub(super) struct Scan(Summarizer<EventScanner>);

impl Scan {
    pub(super) fn new(options: &EventOptions) -> Self {
        Self(Summarizer::with_visitor(ReaderOptions::default(), None, EventScanner::new(options.clone())))
    }

    /// Returns what was in `segment`, which is stored as `object`.
    pub(super) fn finish(self, segment: WalSegmentName, size: WalSegmentSize, object: &WalObject) -> Read {
        let (summary, carry, scanner) = self.0.finish();
        let file = ListedFile {
            name: segment.to_string(),
            crc: object.crc,
            size: size.bytes(),
            stored_size: object.object.size,
            stored_at: object.object.modified.map(Timestamp::as_microsecond),
        };
        let facts = SegmentFacts::of(&file.name, &summary);
        Read { file, facts, contribution: scanner.finish(segment, size, carry) }
    }
}

impl std::io::Write for Scan {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads every archived segment of the span that the index has not read yet, and writes into the index what was in it.
/// Returns how many were read. Fails with [`crate::kind::Kind`] Config without the identity, Repository or Corrupt when a
/// segment cannot be fetched.
pub fn read_deep(
    catalog: &Catalog<'_>,
    span: Span,
    min_rows: u64,
    opener: &Opener,
    index: &Index,
    progress: &Progress,
) -> Result<usize> {
    let options = index.event_options(catalog.sysid, min_rows)?;
    let runs = runs(catalog, span, index)?;
    progress.set_total(runs.iter().flatten().map(|(_, copies)| stored_size(copies)).sum());
    let mut count = 0;
    for run in &runs {
        let Some((first, _)) = run.first() else { continue };
        let mut tracker = Tracker::new(first.timeline, first.start(catalog.segment_size), options.clone());
        for part in run.chunks(AT_A_TIME) {
            let read = read_part(catalog, part, &options, opener, progress)?;
            count += read.len();
            let last = record(catalog.sysid, read, &mut tracker, index)?;
            if span.until.zip(last).is_some_and(|(until, last)| last > until.as_microsecond()) {
                break;
            }
        }
    }
    Ok(count)
}

fn stored_size(copies: &Copies<'_>) -> u64 {
    copies.first().map_or(0, |(_, object)| object.object.size)
}

/// Returns the segments that were not read, each run without a hole.
fn runs<'r>(
    catalog: &Catalog<'r>,
    span: Span,
    index: &Index,
) -> Result<Vec<Vec<(WalSegmentName, Copies<'r>)>>> {
    let size = catalog.segment_size;
    let known = index.stretches_read(catalog.sysid)?;
    let is_known = |segment: WalSegmentName| {
        let (start, end) = (segment.start(size), segment.end(size));
        known.iter().any(|(timeline, from, to)| *timeline == segment.timeline && *from <= start && end <= *to)
    };
    let is_early = |copies: &Copies<'_>| {
        let stored = copies.iter().filter_map(|(_, object)| object.object.modified).max();
        span.since.zip(stored).is_some_and(|(since, stored)| stored < since)
    };
    let mut runs: Vec<Vec<(WalSegmentName, Copies<'r>)>> = Vec::new();
    for timeline in wal_timelines(catalog)? {
        let first = WalSegmentName::from_number(timeline, 0, size);
        for (segment, copies) in catalog.wal_from(first)? {
            if is_known(segment) || is_early(&copies) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|(last, _)| last.next(size) == segment) => {
                    run.push((segment, copies));
                }
                _ => runs.push(vec![(segment, copies)]),
            }
        }
    }
    Ok(runs)
}

fn wal_timelines(catalog: &Catalog<'_>) -> Result<Vec<TimelineId>> {
    let mut found = std::collections::BTreeSet::new();
    for repository in &catalog.repositories {
        let timelines = crate::repository::timelines(repository, &catalog.keys)
            .map_err(|error| repository.error("list", &error))?;
        found.extend(timelines);
    }
    Ok(found.into_iter().collect())
}

fn read_part(
    catalog: &Catalog<'_>,
    part: &[(WalSegmentName, Copies<'_>)],
    options: &EventOptions,
    opener: &Opener,
    progress: &Progress,
) -> Result<Vec<Read>> {
    let read: Mutex<BTreeMap<usize, Read>> = Mutex::default();
    let workers = if catalog.segment_size.bytes() > SMALL { 1 } else { AT_ONCE };
    each_in_parallel(workers, part.len(), |at| {
        let (segment, copies) = &part[at];
        let content = catalog.read_segment(copies, opener)?;
        let mut scan = Scan::new(options);
        scan.0.push(&content);
        let (_, object) = &copies[0];
        let found = scan.finish(*segment, catalog.segment_size, object);
        read.lock().unwrap_or_else(PoisonError::into_inner).insert(at, found);
        progress.add(object.object.size);
        Ok(())
    })?;
    Ok(read.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect())
}

/// Puts together what was read in order, and writes it down. Returns the time of the last commit.
pub(super) fn record(
    sysid: SystemIdentifier,
    read: Vec<Read>,
    tracker: &mut Tracker,
    index: &Index,
) -> Result<Option<i64>> {
    let start = tracker.position();
    let mut events = Vec::new();
    let mut segments = Vec::new();
    for Read { file, facts, contribution } in read {
        let found = tracker.advance(&contribution).unwrap_or_default();
        events.extend(found.iter().map(|event| EventRow::of(event, contribution.timeline())));
        let shared = tracker.shared_record().and_then(SegmentFacts::of_record);
        let facts = match (facts, shared) {
            (Some(facts), Some(shared)) => Some(facts.after(&shared)),
            (facts, _) => facts,
        };
        segments.push((file, facts));
    }
    let stretch: (TimelineId, Lsn, Lsn) = (tracker.timeline(), start, tracker.position());
    index.record_found(sysid, &Found { segments: &segments, events: &events, stretch })?;
    Ok(segments.iter().filter_map(|(_, facts)| facts.as_ref()?.last_commit).max())
}
