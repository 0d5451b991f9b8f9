//! Looks at the records of one segment.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasherDefault;

use super::super::super::bytes::u32_in;
use super::super::super::{Lsn, WalSegmentName, WalSegmentSize};
use super::super::{
    Carry, Record, RecordVisitor, RelFileLocator, ResourceManager, RestorePoint, TransactionEnd,
    TransactionOutcome,
};
use super::activity::{Activity, FastHasher, Slot, Step};
use super::contribution::{Contribution, End, Findings, Frame, precedes};
use super::decide::decide;
use super::event::{Event, EventKind, EventOptions};
use super::{catalogs, steps};

/// So many transactions with the lowest numbers, of those that end in a segment, may have begun before it. There can be no
/// more than are open at one moment.
const MAX_OPEN_BEFORE: usize = 256;
/// The activities of no more transactions and subtransactions are kept at a time.
const MAX_SLOTS: usize = 1 << 16;
/// A contribution holds no more items than this.
const MAX_ITEMS: usize = 16 << 10;
/// Of a record that was begun in the segment before, no more is kept, in bytes.
const MAX_HEAD: usize = 64 << 10;
const MAX_EVENTS: usize = 10_000;
const MAX_TOAST: usize = 1024;
const MAX_NEW_FILES: usize = 100_000;

/// Finds events in the records of one segment. The segments before it are not needed: what depends on them is left to the
/// [`Tracker`](super::Tracker).
#[derive(Debug)]
pub struct EventScanner {
    options: EventOptions,
    slots: Vec<Slot>,
    free: Vec<usize>,
    places: HashMap<u32, usize, BuildHasherDefault<FastHasher>>,
    /// The transaction of the last row, and its slot.
    last: (u32, usize),
    /// The first transaction that was seen: numbers are compared with it.
    base: Option<u32>,
    /// Ends of transactions that may have begun before, by how far their numbers are from `base`.
    ends: BTreeMap<i32, End>,
    settled: Vec<u32>,
    events: Vec<Event>,
    toast: HashSet<RelFileLocator>,
    last_toast: Option<RelFileLocator>,
    /// Files made by transactions that are open, into which nothing was written yet.
    new_files: HashMap<RelFileLocator, u32>,
    fresh_from: Option<u32>,
    oldest_running: Option<u32>,
    /// The row of pg_database that was changed in place last, and where.
    invalid_database: Option<(Lsn, u64)>,
    is_incomplete: bool,
    major_version: u32,
    first_lsn: Option<Lsn>,
    head: Vec<u8>,
    head_len: u64,
}

impl EventScanner {
    /// Returns a scanner for one segment.
    pub fn new(options: EventOptions) -> Self {
        Self {
            options,
            slots: Vec::new(),
            free: Vec::new(),
            places: HashMap::default(),
            last: (0, 0),
            base: None,
            ends: BTreeMap::new(),
            settled: Vec::new(),
            events: Vec::new(),
            toast: HashSet::new(),
            last_toast: None,
            new_files: HashMap::new(),
            fresh_from: None,
            oldest_running: None,
            invalid_database: None,
            is_incomplete: false,
            major_version: 0,
            first_lsn: None,
            head: Vec::new(),
            head_len: 0,
        }
    }

    /// Returns what was found in the segment `name`. `carry` is what its reader left ([`ReadOutcome::carry`]); `None`
    /// means that the segment was not read to its end.
    ///
    /// [`ReadOutcome::carry`]: super::super::ReadOutcome::carry
    pub fn finish(self, name: WalSegmentName, size: WalSegmentSize, carry: Option<Carry>) -> Contribution {
        let (start, end) = (name.start(size), name.end(size));
        // All of it may belong to one record, which begins before and ends after it.
        let is_middle = self.first_lsn.is_none() && self.head_len > 0 && carry.is_none();
        let (major_version, first_lsn) = (self.major_version, self.first_lsn);
        let (head, head_len) = (self.head.clone(), self.head_len);
        let frame = Frame {
            timeline: name.timeline,
            start,
            end,
            major_version,
            head_len,
            has_head_record: first_lsn.is_some_and(|first| first < start),
            is_whole: carry.is_some() || is_middle,
            findings: self.into_findings(),
        };
        Contribution { frame, head, carry }
    }

    pub(super) fn into_findings(mut self) -> Findings {
        self.settled.sort_unstable();
        let mut settled: Vec<(u32, u32)> = Vec::new();
        for xid in &self.settled {
            match settled.last_mut() {
                Some((_, last)) if *xid <= last.saturating_add(1) => *last = *xid,
                _ => settled.push((*xid, *xid)),
            }
        }
        let mut open: Vec<(u32, Activity)> = Vec::new();
        for at in self.places.values() {
            let slot = self.slots.get_mut(*at).map(take);
            open.extend(slot.filter(|(_, activity)| !activity.is_empty()));
        }
        open.sort_by_key(|(xid, activity)| (std::cmp::Reverse(activity.weight()), *xid));
        let mut ends: Vec<End> = std::mem::take(&mut self.ends).into_values().collect();
        let mut room = MAX_ITEMS;
        for end in &mut ends {
            let len = end.activity.len() + end.subxids.len() + end.dropped.len() + end.statistics.len();
            if len > room && len > 1 {
                self.is_incomplete = true;
                *end =
                    End { activity: Activity { is_incomplete: true, ..Activity::default() }, ..end.bare() };
            } else {
                room -= len.min(room);
            }
        }
        let mut kept = 0;
        for (_, activity) in &open {
            if activity.len() > room {
                break;
            }
            room -= activity.len();
            kept += 1;
        }
        self.is_incomplete |= kept < open.len();
        open.truncate(kept);
        Findings {
            ends,
            settled,
            open,
            events: self.events,
            toast: self.toast.into_iter().collect(),
            fresh_from: self.fresh_from,
            oldest_running: self.oldest_running,
            is_incomplete: self.is_incomplete,
        }
    }

    /// Returns the slot of a transaction.
    #[inline]
    fn slot(&mut self, xid: u32) -> Option<&mut Slot> {
        if self.last.0 != xid {
            self.last = (xid, self.find_slot(xid));
        }
        self.slots.get_mut(self.last.1)
    }

    fn find_slot(&mut self, xid: u32) -> usize {
        if let Some(at) = self.places.get(&xid) {
            return *at;
        }
        if self.places.len() >= MAX_SLOTS {
            self.shed();
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        if let Some(slot) = self.slots.get_mut(at) {
            slot.restart(xid);
        }
        self.places.insert(xid, at);
        at
    }

    /// Forgets the half of the open transactions that did the least.
    #[cold]
    fn shed(&mut self) {
        self.is_incomplete = true;
        let mut weights: Vec<(u64, u32, usize)> = self
            .places
            .iter()
            .filter_map(|(xid, at)| Some((self.slots.get(*at)?.activity.weight(), *xid, *at)))
            .collect();
        weights.sort_unstable();
        for (_, xid, at) in weights.iter().take(MAX_SLOTS / 2) {
            self.places.remove(xid);
            self.free.push(*at);
        }
        self.last = (0, usize::MAX);
    }

    fn add_step(&mut self, xid: u32, lsn: Lsn, step: Step) {
        if xid != 0
            && let Some(slot) = self.slot(xid)
        {
            slot.activity.add_step(lsn.0, step);
        }
    }

    /// DROP DATABASE first marks its row, for good even if it fails (`dropdb`); the record need not bear its number.
    #[cold]
    fn in_place(&mut self, record: &Record<'_>) {
        let Some((file, _)) = first_block(record) else { return };
        if self.options.catalogs.oid(file) == Some(catalogs::PG_DATABASE)
            && steps::may_be_invalid_database(record)
        {
            self.invalid_database = steps::row_of(record).map(|row| (record.lsn, row));
        }
    }

    #[inline]
    fn heap(&mut self, record: &Record<'_>) {
        let operation = record.info & steps::OPERATION;
        if operation == steps::TRUNCATE {
            if let Some(step) = steps::of_truncate(record) {
                self.add_step(record.xid, record.lsn, step);
            }
            return;
        }
        if operation == steps::INPLACE {
            self.in_place(record);
            return;
        }
        if operation > steps::HOT_UPDATE || record.xid == 0 {
            return;
        }
        let Some((file, after)) = first_block(record) else { return };
        if let Some(catalog) = self.options.catalogs.oid(file) {
            if let Some(step) = steps::of_catalog_row(record, catalog) {
                if let (Step::DatabaseDelete, Some((lsn, row))) = (&step, self.invalid_database.take())
                    && record.lsn - lsn <= steps::MAX_TO_DELETION
                    && steps::row_of(record) == Some(row)
                {
                    self.add_step(record.xid, lsn, Step::DatabaseInvalid);
                }
                self.add_step(record.xid, record.lsn, step);
            }
            return;
        }
        match operation {
            steps::INSERT => {
                // xl_heap_insert is all of the main data, and its last byte the flags.
                const ON_TOAST_RELATION: u8 = 1 << 4;
                if record.body.last().is_some_and(|flags| flags & ON_TOAST_RELATION != 0) {
                    self.note_toast(record, file);
                }
            }
            steps::DELETE => {
                const IS_SUPER: u8 = 1 << 3;
                const IS_PARTITION_MOVE: u8 = 1 << 4;
                let (offset, flags) = deletion(record, after);
                // The end of an insertion that found a conflict.
                if flags & IS_SUPER == 0
                    && let Some(slot) = self.slot(record.xid)
                {
                    slot.count(file, flags & IS_PARTITION_MOVE != 0, offset);
                }
            }
            _ => {
                if let Some(slot) = self.slot(record.xid) {
                    slot.count(file, true, 0);
                }
            }
        }
    }

    #[cold]
    fn note_toast(&mut self, record: &Record<'_>, file: RelFileLocator) {
        if record.is_complete() && self.last_toast != Some(file) && self.toast.len() < MAX_TOAST {
            self.last_toast = Some(file);
            self.toast.insert(file);
        }
    }

    fn transaction(&mut self, record: &Record<'_>) {
        let Some(end) = TransactionEnd::decode(record) else { return };
        if end.xid == 0 {
            return;
        }
        let base = *self.base.get_or_insert(end.xid);
        let key = end.xid.wrapping_sub(base).cast_signed();
        let is_fresh = self.fresh_from.is_some_and(|first| !precedes(end.xid, first))
            || (self.ends.len() >= MAX_OPEN_BEFORE
                && self.ends.last_key_value().is_some_and(|(last, _)| *last < key));
        if is_fresh {
            self.settled.push(end.xid);
            if self.is_nothing(&end) {
                self.release(end.xid);
                return;
            }
        }
        let activity = self.take_activity(&end);
        let ended = End {
            xid: end.xid,
            is_aborted: end.outcome == TransactionOutcome::Aborted,
            lsn: record.lsn.0,
            next_record: record.end_lsn.0,
            time: end.time.0,
            database: end.database,
            subxids: end.subxids().collect(),
            dropped: end.dropped_relations().collect(),
            statistics: end.dropped_statistics().collect(),
            activity: Activity { is_incomplete: activity.is_incomplete || !end.is_complete, ..activity },
        };
        if is_fresh {
            self.settle(ended);
            return;
        }
        self.ends.insert(key, ended);
        if self.ends.len() > MAX_OPEN_BEFORE
            && let Some((_, highest)) = self.ends.pop_last()
        {
            self.settled.push(highest.xid);
            self.settle(highest);
        }
    }

    /// Returns whether a transaction that began in this segment did nothing that could be an event.
    fn is_nothing(&self, end: &TransactionEnd<'_>) -> bool {
        end.is_complete
            && end.subxids().len() == 0
            && end.dropped_relations().len() == 0
            && self.places.get(&end.xid).and_then(|at| self.slots.get(*at)).is_none_or(|slot| {
                slot.activity.steps.is_empty()
                    && slot
                        .activity
                        .rows
                        .iter()
                        .all(|rows| rows.deleted.max(rows.updated) < self.options.min_rows.max(1))
            })
    }

    fn release(&mut self, xid: u32) {
        self.free.extend(self.places.remove(&xid));
        if self.last.0 == xid {
            self.last = (0, usize::MAX);
        }
    }

    /// Takes what a transaction and its subtransactions did.
    fn take_activity(&mut self, end: &TransactionEnd<'_>) -> Activity {
        let mut all = Activity::default();
        for xid in std::iter::once(end.xid).chain(end.subxids()) {
            if let Some(at) = self.places.get(&xid).copied()
                && let Some(slot) = self.slots.get_mut(at)
            {
                let activity = std::mem::take(&mut slot.activity);
                self.release(xid);
                for (_, step) in &activity.steps {
                    if let Step::Create { file, .. } = step {
                        self.new_files.remove(file);
                    }
                }
                all.merge(activity);
            }
        }
        all
    }

    fn settle(&mut self, mut end: End) {
        let activity = std::mem::take(&mut end.activity);
        for event in decide(&end, activity, &self.options, &self.toast) {
            self.add_event(event);
        }
    }

    fn add_event(&mut self, event: Event) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        } else {
            self.is_incomplete = true;
        }
    }

    /// Looks at records that are few.
    fn other(&mut self, record: &Record<'_>) {
        const FULL_PAGE: u8 = 0xB0;
        const LOCK: u8 = 0x00;
        const RUNNING: u8 = 0x10;
        match (record.rmid, record.info & 0xF0) {
            (ResourceManager::XLOG, FULL_PAGE) => self.written(record, true),
            (ResourceManager::XLOG, _) => {
                if let Some(point) = RestorePoint::decode(record) {
                    self.add_event(restore_point(record, point));
                }
            }
            (ResourceManager::STORAGE, _) => {
                let Some(step) = steps::of_storage(record) else { return };
                if let Step::Create { file, init: false } = &step
                    && record.xid != 0
                    && self.new_files.len() < MAX_NEW_FILES
                {
                    self.new_files.insert(*file, record.xid);
                }
                self.add_step(record.xid, record.lsn, step);
            }
            (ResourceManager::DATABASE, _) => {
                if let Some(step) = steps::of_database(record) {
                    self.add_step(record.xid, record.lsn, step);
                }
            }
            (ResourceManager::RELMAP, _) => self.options.catalogs.learn(record),
            (ResourceManager::STANDBY, LOCK) => {
                for (xid, step) in steps::of_locks(record) {
                    self.add_step(xid, record.lsn, step);
                }
            }
            (ResourceManager::STANDBY, RUNNING) => {
                if let Some(running) = steps::RunningTransactions::decode(record) {
                    self.fresh_from.get_or_insert(running.next);
                    self.oldest_running = Some(running.oldest);
                }
            }
            _ => {}
        }
    }

    /// Takes note that something but rows was written into a file: at once into that of an index or a sequence, never
    /// into that of a table that was emptied.
    fn written(&mut self, record: &Record<'_>, is_page: bool) {
        let Some((file, _)) = first_block(record) else { return };
        let made_by = self.new_files.remove(&file);
        // The record that made the file may stand in the segment before.
        let page_of = (is_page && record.xid != 0).then_some(record.xid);
        if let Some(xid) = made_by.or(page_of)
            && self.options.catalogs.oid(file).is_none_or(|oid| oid >= catalogs::FIRST_NORMAL)
        {
            self.add_step(xid, record.lsn, Step::Filled { file });
        }
    }
}

impl RecordVisitor for EventScanner {
    #[inline]
    fn visit(&mut self, record: &Record<'_>) {
        if self.first_lsn.is_none() {
            self.first_lsn = Some(record.lsn);
            self.major_version = record.major_version;
        }
        match record.rmid {
            ResourceManager::HEAP => self.heap(record),
            ResourceManager::TRANSACTION => self.transaction(record),
            ResourceManager::HEAP2 => {}
            // From the lowest index to the last other kind of file.
            FIRST_INDEX..=LAST_FILE => {
                if !self.new_files.is_empty() {
                    self.written(record, false);
                }
            }
            _ => self.other(record),
        }
    }

    fn wants(&self, rmid: u8, _: u8) -> bool {
        match rmid {
            FIRST_INDEX..=LAST_FILE => !self.new_files.is_empty(),
            ResourceManager::HEAP2 => false,
            _ => rmid <= ResourceManager::HEAP,
        }
    }

    fn skip(&mut self, bytes: &[u8]) {
        self.head_len += bytes.len() as u64;
        let room = MAX_HEAD.saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// The kinds of indexes, sequences, and what extensions make (`rmgrlist.h`, from B-tree on).
const FIRST_INDEX: u8 = 11;
const LAST_FILE: u8 = 20;

fn take(slot: &mut Slot) -> (u32, Activity) {
    (slot.xid, std::mem::take(&mut slot.activity))
}

/// Returns the relation of the record's first block, if it is the main fork, and where in the body the next header is.
#[inline]
fn first_block(record: &Record<'_>) -> Option<(RelFileLocator, usize)> {
    let body = record.body;
    // Number, flags, length of data, relation, block; no page.
    if let Some(header) = body.first_chunk::<20>()
        && header[0] == 0
        && header[1] & 0x9F == 0
    {
        let file = RelFileLocator {
            tablespace: u32_in(header, 4),
            database: u32_in(header, 8),
            relation: u32_in(header, 12),
        };
        return Some((file, 20));
    }
    let first = record.block_references().next()?;
    (first.fork == 0).then_some((first.relation, 0))
}

/// Returns the row's place in its page and the flags of a deletion (`xl_heap_delete`); zeros if they are not at hand.
#[inline]
fn deletion(record: &Record<'_>, after: usize) -> (u16, u8) {
    let body = record.body;
    let short = || {
        let header = body.get(after..after + 2)?;
        let data = body.len().checked_sub(8)?;
        (after != 0 && *header == [255, 8] && record.is_complete()).then(|| &body[data..])
    };
    let data = short().or_else(|| record.main_data()).unwrap_or_default();
    match data {
        [_, _, _, _, low, high, _, flags, ..] => (u16::from_le_bytes([*low, *high]), *flags),
        _ => (0, 0),
    }
}

fn restore_point(record: &Record<'_>, point: RestorePoint) -> Event {
    Event {
        kind: EventKind::RestorePoint,
        database: 0,
        relations: Vec::new(),
        without_file: Vec::new(),
        rows: 0,
        xid: 0,
        time: point.time,
        lsn: point.lsn,
        end_lsn: record.end_lsn,
        name: Some(point.name),
        is_uncertain: false,
    }
}
