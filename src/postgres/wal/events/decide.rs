//! What a committed transaction comes to.
//!
//! Whether a relation was dropped or only got a new file is seen by the rows of pg_class: those that were deleted and
//! had not been inserted by the same transaction are relations that are no more. `VACUUM FULL`, `CLUSTER` and all
//! others that write a table anew make a transient relation and delete that. TRUNCATE gives a relation that stays a
//! file into which nothing is written, whereas an index is never without a page.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::super::super::{Lsn, PgTimestamp};
use super::super::RelFileLocator;
use super::activity::{Activity, Step};
use super::align::{Costs, align};
use super::contribution::End;
use super::event::{Event, EventKind, EventOptions, EventRelation};

/// A thing after which a file is removed at commit.
enum Call {
    /// A relation's row was deleted from pg_class.
    Gone { class: Class, attributes: u32 },
    /// A relation got a new file, into which something but rows was written or not.
    NewFile(NewFile),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Index,
    ToastIndex,
    /// A partitioned or a foreign table.
    WithoutFile,
    Toast,
    Sequence,
    /// A table, a view, anything else.
    Other,
}

struct NewFile {
    file: RelFileLocator,
    init: bool,
    kind: Option<u8>,
    oid: Option<u32>,
    is_filled: bool,
    /// Whether a lock came right before it: that of the relation itself, or of the table whose TOAST table it is.
    after_lock: bool,
    /// Whether a record of TRUNCATE listed it.
    is_listed: bool,
    is_table: bool,
}

struct Entry {
    call: Call,
    /// Whether the relation was there before the transaction.
    was_there: bool,
    /// Its OID, where that is known.
    oid: Option<u32>,
    /// Whether it was a partition, or an index of one.
    is_partition: bool,
}

/// Returns the events of a transaction that did `activity`; none if it was aborted.
pub(super) fn decide(
    end: &End,
    mut activity: Activity,
    options: &EventOptions,
    toast: &HashSet<RelFileLocator>,
) -> Vec<Event> {
    if end.is_aborted {
        return Vec::new();
    }
    activity.steps.sort_by_key(|(lsn, _)| *lsn);
    let new = |kind, database| Event {
        kind,
        database,
        relations: Vec::new(),
        without_file: Vec::new(),
        rows: 0,
        xid: end.xid,
        time: PgTimestamp(end.time),
        lsn: Lsn(end.lsn),
        end_lsn: Lsn(end.next_record),
        name: None,
        is_uncertain: activity.is_incomplete,
    };
    let mut events = Vec::new();
    let files = if activity.steps.is_empty() && end.dropped.is_empty() {
        Files::default()
    } else {
        Files::of(end, &activity, options)
    };
    for (kind, relations) in [(EventKind::DropTable, files.dropped), (EventKind::Truncate, files.emptied)] {
        let Some(first) = relations.first() else { continue };
        let without_file = if kind == EventKind::DropTable { files.without_file.clone() } else { Vec::new() };
        let mut event = new(kind, first.file.database);
        event.is_uncertain |= files.is_uncertain;
        events.push(Event { relations, without_file, ..event });
    }
    for (kind, rows) in rows(&activity, options, toast, &files.made) {
        let (Some(first), count) = (rows.first(), rows.iter().map(|relation| relation.rows).sum()) else {
            continue;
        };
        let database = first.file.database;
        events.push(Event { rows: count, relations: rows, ..new(kind, database) });
    }
    let steps = || activity.steps.iter().map(|(_, step)| step);
    if steps().any(|step| *step == Step::DatabaseDelete) {
        let databases: BTreeSet<u32> = steps()
            .filter_map(|step| match step {
                Step::DatabaseFiles { database } => Some(*database),
                _ => None,
            })
            .collect();
        // What was done before the commit is done for good.
        let is_about = |step: &Step| {
            matches!(step, Step::DatabaseInvalid | Step::DatabaseDelete | Step::DatabaseFiles { .. })
        };
        let first = activity.steps.iter().find(|(_, step)| is_about(step)).map_or(end.lsn, |(lsn, _)| *lsn);
        events.extend(
            databases
                .into_iter()
                .map(|database| Event { lsn: Lsn(first), ..new(EventKind::DropDatabase, database) }),
        );
    }
    events
}

/// Returns deletions and updates that reach the threshold. What became of rows in a file that the transaction itself had
/// made is nobody's loss.
fn rows(
    activity: &Activity,
    options: &EventOptions,
    toast: &HashSet<RelFileLocator>,
    made: &HashSet<u32>,
) -> [(EventKind, Vec<EventRelation>); 2] {
    let min_rows = options.min_rows.max(1);
    let (mut deleted, mut updated) = (Vec::new(), Vec::new());
    for rows in &activity.rows {
        if rows.deleted.max(rows.updated) < min_rows
            || toast.contains(&rows.file)
            || options.catalogs.oid(rows.file).is_some()
            || made.contains(&rows.file.relation)
        {
            continue;
        }
        let may_be_no_table = rows.may_be_toast();
        let relation = |rows_of: u64| EventRelation { rows: rows_of, may_be_no_table, ..relation(rows.file) };
        if rows.deleted >= min_rows {
            deleted.push(relation(rows.deleted));
        }
        if rows.updated >= min_rows {
            updated.push(relation(rows.updated));
        }
    }
    [(EventKind::Delete, deleted), (EventKind::Update, updated)]
}

fn relation(file: RelFileLocator) -> EventRelation {
    EventRelation { oid: None, file, new_file: None, rows: 0, may_be_no_table: false }
}

/// What became of relations and their files.
#[derive(Default)]
struct Files {
    dropped: Vec<EventRelation>,
    without_file: Vec<u32>,
    emptied: Vec<EventRelation>,
    /// Numbers of the files that the transaction made.
    made: HashSet<u32>,
    is_uncertain: bool,
}

impl Files {
    fn of(end: &End, activity: &Activity, options: &EventOptions) -> Self {
        let mut entries = entries(activity);
        let old: Vec<RelFileLocator> = end.dropped.iter().rev().copied().collect();
        let steps = || activity.steps.iter().map(|(_, step)| step);
        let mut files = Self {
            made: steps()
                .filter_map(|step| match step {
                    Step::Create { file, .. } => Some(file.relation),
                    Step::ClassInsert { row, .. } => row.file,
                    _ => None,
                })
                .filter(|file| *file != 0)
                .collect(),
            ..Self::default()
        };
        let locks: HashSet<u32> = steps()
            .filter_map(|step| match step {
                Step::Lock { relation } => Some(*relation),
                _ => None,
            })
            .collect();
        if !entries.iter().any(|entry| matches!(entry.call, Call::Gone { .. })) {
            files.guess(end, &old);
        }
        name_gone(&mut entries, &end.statistics);
        let numbers: HashSet<u32> = old.iter().map(|file| file.relation).collect();
        let has_fileless =
            entries.iter().any(|entry| matches!(entry.call, Call::Gone { class: Class::WithoutFile, .. }));
        let costs = Costs {
            matched: |i: usize, j: usize| entries[i].cost(&old[j], &numbers),
            without: |i: usize| entries[i].cost_of_none(&numbers, has_fileless),
            pair: |i: usize, j: usize| {
                let pair = [&entries[i], &entries[i + 1]];
                let is_toast = matches!(pair[1].call, Call::Gone { class: Class::Toast, .. });
                // The OID of the index comes right after that of the TOAST table, and so do the numbers of their files.
                let is_first = old[j].relation == old[j + 1].relation.wrapping_add(1);
                let cost = pair[0].cost(&old[j], &numbers) + pair[1].cost(&old[j + 1], &numbers);
                is_toast.then(|| cost.saturating_sub(2 * APART) + 2 * u32::from(!is_first))
            },
        };
        let found = align(entries.len(), old.len(), &costs).unwrap_or_else(|| {
            files.is_uncertain = true;
            let places: HashMap<u32, usize> =
                old.iter().enumerate().map(|(at, file)| (file.relation, at)).collect();
            let place = |entry: &Entry| entry.oid.and_then(|oid| places.get(&oid).copied());
            let found: Vec<_> = entries.iter().map(place).collect();
            if found.iter().all(Option::is_none) {
                files.guess(end, &old);
            }
            found
        });
        let removed: Vec<Option<RelFileLocator>> =
            found.into_iter().map(|found| found.and_then(|at| old.get(at)).copied()).collect();
        let origins = files.origins(&entries, &removed);
        for (entry, file) in entries.iter().zip(removed).filter(|(entry, _)| entry.was_there) {
            // A relation's first file bears the number that is its OID.
            let oid = |file: RelFileLocator| {
                entry.oid.or_else(|| locks.contains(&file.relation).then_some(file.relation))
            };
            match (&entry.call, file) {
                (Call::Gone { class: Class::Other, .. }, Some(file)) => {
                    let file = origins.get(&file).copied().unwrap_or(file);
                    files.dropped.push(EventRelation { oid: oid(file), ..relation(file) });
                }
                (Call::Gone { class: Class::WithoutFile, .. }, _) => files.without_file.extend(entry.oid),
                (Call::Gone { class: Class::Other, attributes }, None) if *attributes > SYSTEM_ATTRIBUTES => {
                    files.without_file.extend(entry.oid);
                }
                (Call::NewFile(new), Some(file)) if new.is_emptied_table(file) => {
                    let file = origins.get(&file).copied().unwrap_or(file);
                    files.emptied.push(EventRelation {
                        oid: oid(file),
                        new_file: Some(new.file),
                        may_be_no_table: !new.is_table,
                        ..relation(file)
                    });
                }
                _ => {}
            }
        }
        // Emptied several times, or emptied and dropped: once is enough.
        let mut seen: HashSet<RelFileLocator> = HashSet::new();
        let is_catalog = |file: RelFileLocator| options.catalogs.oid(file).is_some();
        let mut is_new = |relation: &EventRelation| seen.insert(relation.file) && !is_catalog(relation.file);
        files.dropped.retain(&mut is_new);
        files.emptied.retain(&mut is_new);
        files
    }

    /// Returns for files that the transaction made and removed again the ones that their relations had before.
    fn origins(
        &self,
        entries: &[Entry],
        removed: &[Option<RelFileLocator>],
    ) -> HashMap<RelFileLocator, RelFileLocator> {
        let is_made = |file: &RelFileLocator| self.made.contains(&file.relation);
        let mut origins = HashMap::new();
        let (mut transient, mut heirs) = (Vec::new(), Vec::new());
        for (entry, file) in entries.iter().zip(removed) {
            let Some(file) = *file else { continue };
            match &entry.call {
                Call::NewFile(new) => {
                    let origin = origins.get(&file).copied().unwrap_or(file);
                    origins.insert(new.file, origin);
                }
                // The transient relation of a table that was written anew takes the table's old file with it.
                Call::Gone { class: Class::Other, .. } if !entry.was_there && !is_made(&file) => {
                    transient.push(file);
                }
                Call::Gone { class: Class::Other, .. }
                    if entry.was_there && is_made(&file) && !origins.contains_key(&file) =>
                {
                    heirs.push(file);
                }
                Call::Gone { .. } => {}
            }
        }
        if transient.len() == heirs.len() {
            origins.extend(heirs.into_iter().zip(transient));
        }
        origins
    }

    /// Makes the best of a transaction whose changes to pg_class were not recognised: the catalog was written anew, and
    /// nobody told where it is.
    fn guess(&mut self, end: &End, old: &[RelFileLocator]) {
        let gone: HashSet<u32> = end.statistics.iter().copied().collect();
        for file in old.iter().filter(|file| !self.made.contains(&file.relation)) {
            let is_gone =
                if end.statistics.is_empty() { self.made.is_empty() } else { gone.contains(&file.relation) };
            if is_gone {
                self.dropped.push(EventRelation { may_be_no_table: true, ..relation(*file) });
                self.is_uncertain = true;
            }
        }
    }
}

/// Tables have so many columns of which nobody speaks (`ctid`, `xmin`, …); indexes and views have none.
const SYSTEM_ATTRIBUTES: u32 = 6;
/// It costs so much if a TOAST table has a file and its index none, or the other way round.
const APART: u32 = 10;
/// The rows in pg_attribute of a TOAST table, and of its index.
const TOAST_ATTRIBUTES: u32 = SYSTEM_ATTRIBUTES + 3;
const TOAST_INDEX_ATTRIBUTES: u32 = 2;

/// Goes through the steps and returns what may have removed a file.
fn entries(activity: &Activity) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut made_rows: HashSet<u64> = HashSet::new();
    let filled: HashSet<RelFileLocator> = activity
        .steps
        .iter()
        .filter_map(|(_, step)| match step {
            Step::Filled { file } => Some(*file),
            _ => None,
        })
        .collect();
    let mut pending: Option<NewFile> = None;
    let (mut attributes, mut index, mut types, mut no_file) = (0u32, false, false, false);
    let mut locks = 0usize;
    let mut last_lock = None;
    for (_, step) in &activity.steps {
        let lock = last_lock.take();
        match step {
            Step::Create { file, init } => {
                // The only lock that there is, is its own.
                let oid = lock.filter(|_| locks == 1 && entries.is_empty());
                let (is_filled, after_lock) = (filled.contains(file), lock.is_some());
                let (file, init) = (*file, *init);
                let new = NewFile {
                    file,
                    init,
                    kind: None,
                    oid,
                    is_filled,
                    after_lock,
                    is_listed: false,
                    is_table: false,
                };
                pending = Some(new);
            }
            Step::ClassInsert { at, .. } => {
                pending = None;
                made_rows.insert(*at);
            }
            Step::ClassUpdate { from, to, row } => {
                let is_own = made_rows.remove(from);
                if is_own {
                    made_rows.insert(*to);
                }
                if let Some(new) = pending.take() {
                    let kind = row.kind;
                    let oid = row.oid.or(new.oid);
                    let call = Call::NewFile(NewFile { kind, oid, is_table: kind == Some(b'r'), ..new });
                    entries.push(Entry { call, was_there: !is_own, oid, is_partition: false });
                }
            }
            Step::AttributeDelete(count) => attributes = attributes.saturating_add(*count),
            Step::IndexDelete => index = true,
            Step::TypeDelete => types = true,
            Step::ClassDelete { at } => {
                let class = match entries.last().map(|entry| &entry.call) {
                    _ if index => Class::Index,
                    _ if no_file => Class::WithoutFile,
                    Some(Call::Gone { class: Class::Index, attributes: TOAST_INDEX_ATTRIBUTES })
                        if !types && attributes == TOAST_ATTRIBUTES =>
                    {
                        Class::Toast
                    }
                    _ => Class::Other,
                };
                if class == Class::Toast
                    && let Some(Entry { call: Call::Gone { class, .. }, .. }) = entries.last_mut()
                {
                    *class = Class::ToastIndex;
                }
                let call = Call::Gone { class, attributes };
                let was_there = !made_rows.remove(at);
                entries.push(Entry { call, was_there, oid: None, is_partition: false });
                (attributes, index, types, no_file) = (0, false, false, false);
            }
            Step::NoFileDelete => no_file = true,
            // Of an index it goes right after the row of pg_class.
            Step::InheritsDelete if attributes == 0 && !types => {
                if let Some(entry) = entries.last_mut() {
                    entry.is_partition = true;
                }
            }
            Step::SequenceDelete => {
                if let Some(Entry { call: Call::Gone { class, .. }, .. }) = entries.last_mut() {
                    *class = Class::Sequence;
                }
            }
            Step::Lock { relation } => {
                locks += 1;
                last_lock = Some(*relation);
            }
            Step::Truncate { relations } => name_emptied(&mut entries, relations),
            Step::InheritsDelete
            | Step::Filled { .. }
            | Step::DatabaseInvalid
            | Step::DatabaseDelete
            | Step::DatabaseFiles { .. } => {}
        }
    }
    find_tables(&mut entries);
    entries
}

/// Tells tables from their TOAST tables, where nothing better is known: that of a table comes right after it.
fn find_tables(entries: &mut [Entry]) {
    let mut after_empty = false;
    for entry in entries {
        let Call::NewFile(new) = &mut entry.call else {
            after_empty = false;
            continue;
        };
        if new.kind.is_none() && !new.is_table {
            new.is_table = !(after_empty && new.after_lock);
        }
        after_empty = !new.is_filled && new.is_table;
    }
}

/// Gives the files that were made since the last time to the tables that a record of TRUNCATE lists, in the same order.
fn name_emptied(entries: &mut [Entry], relations: &[u32]) {
    let mut new: Vec<&mut Entry> = entries
        .iter_mut()
        .rev()
        .map_while(|entry| match &entry.call {
            Call::NewFile(new) if new.is_listed => None,
            _ => Some(entry),
        })
        .filter(|entry| match &entry.call {
            Call::NewFile(new) => !new.is_filled && !new.init && new.kind.is_none_or(|kind| kind == b'r'),
            Call::Gone { .. } => false,
        })
        .collect();
    new.reverse();
    if new.len() != relations.len() {
        // A TOAST table is locked right before it gets its file.
        let mut first = true;
        new.retain(|entry| {
            let Call::NewFile(new) = &entry.call else { return false };
            std::mem::take(&mut first) || !new.after_lock || new.kind.is_some()
        });
    }
    if new.len() == relations.len() {
        for (entry, oid) in new.into_iter().zip(relations) {
            entry.oid = Some(*oid);
            if let Call::NewFile(new) = &mut entry.call {
                (new.is_listed, new.is_table) = (true, true);
            }
        }
    }
}

/// Gives the OIDs whose statistics were dropped to the relations that are no more, in the same order.
fn name_gone(entries: &mut [Entry], statistics: &[u32]) {
    let gone = |entry: &&mut Entry| matches!(entry.call, Call::Gone { .. });
    if entries.iter_mut().filter(gone).count() == statistics.len() {
        for (entry, oid) in entries.iter_mut().filter(gone).zip(statistics) {
            entry.oid = Some(*oid);
        }
    }
}

impl Entry {
    /// Returns how unlikely it is that this removed that file.
    fn cost(&self, file: &RelFileLocator, numbers: &HashSet<u32>) -> u32 {
        match (&self.call, self.oid) {
            (_, Some(oid)) if oid == file.relation => 0,
            // Another file bears its number.
            (_, Some(oid)) if numbers.contains(&oid) => 100,
            (Call::NewFile(new), _)
                if (new.file.tablespace, new.file.database) != (file.tablespace, file.database) =>
            {
                5
            }
            (Call::NewFile(_), _) => 0,
            (Call::Gone { class: Class::WithoutFile, .. }, _) => 100,
            (Call::Gone { class: Class::Toast | Class::ToastIndex, .. }, _) => 1 + APART,
            (Call::Gone { class, attributes }, _) => {
                1 + u32::from(*class == Class::Other && *attributes <= SYSTEM_ATTRIBUTES) * 4
            }
        }
    }

    /// Returns how unlikely it is that this removed no file.
    fn cost_of_none(&self, numbers: &HashSet<u32>, has_fileless: bool) -> u32 {
        match (&self.call, self.oid) {
            (_, Some(oid)) if numbers.contains(&oid) => 100,
            (Call::NewFile(_), _) => 50,
            (Call::Gone { class: Class::Other, attributes }, _) if *attributes <= SYSTEM_ATTRIBUTES => 1,
            (Call::Gone { class: Class::WithoutFile, .. }, _) => 0,
            // That of a partition has one; another may be that of a partitioned table.
            (Call::Gone { class: Class::Index, .. }, _) if self.is_partition => 6,
            (Call::Gone { class: Class::Index, .. }, _) if has_fileless => 1,
            (Call::Gone { .. }, _) => 3,
        }
    }
}

impl NewFile {
    /// Returns whether a table was emptied that had `old`. What goes to another tablespace is not.
    fn is_emptied_table(&self, old: RelFileLocator) -> bool {
        let stays = (self.file.tablespace, self.file.database) == (old.tablespace, old.database);
        let may_be_table = self.kind.is_none_or(|kind| kind == b'r');
        stays && may_be_table && !self.is_filled && !self.init
    }
}
