//! Reading content: what is decrypted and decompressed must be what was archived.

use super::objects::Content;
use super::visit::Visit;
use crate::archive::{Expected, copy_checked};
use crate::kind::{Error, Result};
use crate::postgres::wal::events::{EventOptions, Tracker};
use crate::postgres::{ArchiveFileName, Lsn, TimelineHistory, TimelineId, WalSegmentName};
use crate::recovery::layout::Layout;
use crate::recovery::pieces::check_piece;
use crate::recovery::restore::parse_manifest;
use crate::repository::backup::{BackupSummary, StoredObject};
use crate::repository::{WalObject, read_stored, read_wal_object};
use crate::upkeep::deep::{Read, Scan, record};
use bytes::{Buf, Bytes};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The objects of one backup.
pub(super) struct BackupContent<'c> {
    visit: &'c Visit<'c>,
    summary: &'c BackupSummary,
    folder: &'c str,
    objects: Vec<&'c StoredObject>,
    /// None inside where the manifest cannot be read.
    layout: OnceLock<Option<Layout>>,
}

impl<'c> BackupContent<'c> {
    pub(super) fn new(
        visit: &'c Visit<'c>,
        summary: &'c BackupSummary,
        folder: &'c str,
        objects: Vec<&'c StoredObject>,
    ) -> Self {
        Self { visit, summary, folder, objects, layout: OnceLock::new() }
    }

    fn read(&self, object: &StoredObject) -> Result<Bytes> {
        let key = format!("{}{}", self.folder, object.name);
        let stored = read_stored(self.visit.repository, &key, object.size)?;
        if object.matches(&stored) {
            Ok(Bytes::from(stored))
        } else {
            Err(Error::corrupt("the stored bytes are not those that backup.json tells"))
        }
    }

    /// Returns which piece the object is; none if it is another object.
    fn number(&self, object: &StoredObject) -> Option<u32> {
        let number: u32 = object.name.strip_prefix("data/")?.split('.').next()?.parse().ok()?;
        (self.summary.pieces.get(number as usize)? == object).then_some(number)
    }

    fn manifest(&self) -> Result<Layout> {
        parse_manifest(self.summary, self.read(&self.summary.manifest)?, self.visit.request.opener)
    }
}

impl Content for BackupContent<'_> {
    fn check(&self, at: usize) -> Result<()> {
        // The summary itself is behind them, and was read already.
        let Some(object) = self.objects.get(at) else { return Ok(()) };
        if **object == self.summary.manifest {
            return self.manifest().map(drop);
        }
        let opener = self.visit.request.opener;
        let stored = self.read(object)?;
        let layout = self.layout.get_or_init(|| self.manifest().ok());
        if let (Some(layout), Some(number)) = (layout, self.number(object)) {
            return check_piece(layout, number, object, stored, opener);
        }
        let mut reader = opener.open(&object.name, stored.reader())?;
        io::copy(&mut reader, &mut io::sink()).map_err(|error| crate::codec::reading_failed(&error))?;
        Ok(())
    }
}

/// WAL objects. What the records of segments tell goes into the index where it is not known yet.
pub(super) struct WalContent<'c> {
    visit: &'c Visit<'c>,
    objects: Vec<WalObject>,
    known: Vec<(TimelineId, Lsn, Lsn)>,
    /// None without an index.
    options: Option<EventOptions>,
    found: Mutex<(BTreeMap<WalSegmentName, Read>, Option<Tracker>)>,
}

impl<'c> WalContent<'c> {
    pub(super) fn new(visit: &'c Visit<'c>, objects: Vec<WalObject>) -> Self {
        let index = visit.index;
        let known = index.run(|index| index.stretches_read(visit.sysid)).unwrap_or_default();
        let options = index.run(|index| index.event_options(visit.sysid, visit.request.event_rows));
        Self { visit, objects, known, options, found: Mutex::default() }
    }

    fn is_known(&self, segment: WalSegmentName) -> bool {
        let (start, end) = (segment.start(self.visit.size), segment.end(self.visit.size));
        self.known
            .iter()
            .any(|(timeline, from, to)| *timeline == segment.timeline && *from <= start && end <= *to)
    }
}

impl Content for WalContent<'_> {
    fn check(&self, at: usize) -> Result<()> {
        let object = &self.objects[at];
        let Visit { repository, size, sysid, request, .. } = *self.visit;
        let expected = |segment| Some(Expected { segment, size, sysid });
        match (object.name, &self.options) {
            (ArchiveFileName::Segment(segment), Some(options)) if !self.is_known(segment) => {
                let mut scan = Scan::new(options);
                copy_checked(repository, object, expected(segment), request.opener, &mut scan)?;
                let read = scan.finish(segment, size, object);
                self.found.lock().unwrap_or_else(PoisonError::into_inner).0.insert(segment, read);
                Ok(())
            }
            (ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment), _) => {
                copy_checked(repository, object, expected(segment), request.opener, &mut io::sink())
            }
            (ArchiveFileName::History(timeline), _) => {
                let text = read_wal_object(repository, object, None, request.opener)?;
                TimelineHistory::parse(timeline, text).map_err(|error| Error::corrupt(error.to_string()))?;
                Ok(())
            }
            _ => copy_checked(repository, object, None, request.opener, &mut io::sink()),
        }
    }

    fn done(&self) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (reads, tracker) = &mut *found;
        let size = self.visit.size;
        let mut runs: Vec<(WalSegmentName, Vec<Read>)> = Vec::new();
        let mut last: Option<WalSegmentName> = None;
        for (segment, read) in std::mem::take(reads) {
            match runs.last_mut() {
                Some((_, run)) if last.is_some_and(|last| last.next(size) == segment) => run.push(read),
                _ => runs.push((segment, vec![read])),
            }
            last = Some(segment);
        }
        for (first, run) in runs {
            let start = first.start(size);
            let goes_on = tracker
                .as_ref()
                .is_some_and(|tracker| tracker.timeline() == first.timeline && tracker.position() == start);
            if !goes_on {
                let Some(options) = &self.options else { return };
                *tracker = Some(Tracker::new(first.timeline, start, options.clone()));
            }
            let Some(tracker) = tracker.as_mut() else { return };
            self.visit.index.run(|index| record(self.visit.sysid, run, tracker, index));
        }
    }
}
