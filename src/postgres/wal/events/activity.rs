//! What a transaction, or a subtransaction, has done so far.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use serde::{Deserialize, Serialize};

use super::super::RelFileLocator;
use super::catalogs::ClassRow;

/// Of a transaction that touches more relations than this, the rest is not kept.
const MAX_RELATIONS: usize = 4096;
/// Of a transaction that takes more steps than this, the rest is not kept.
const MAX_STEPS: usize = 100_000;
/// A page of a TOAST table hardly ever holds more tuples: what is moved out of line is seldom this short.
const MAX_TOAST_TUPLES: u16 = 60;

/// Rows that were changed in one relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rows {
    pub(super) file: RelFileLocator,
    #[serde(rename = "d")]
    pub(super) deleted: u64,
    #[serde(rename = "u")]
    pub(super) updated: u64,
    /// The relation that was changed just before each run of changes here.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    follows: Option<RelFileLocator>,
    /// Whether something was seen that does not happen in a TOAST table.
    #[serde(rename = "t", default, skip_serializing_if = "std::ops::Not::not")]
    is_no_toast: bool,
}

impl Rows {
    /// Returns whether this may be the TOAST table of the relation that was changed along with it: chunks go right
    /// before or after the row to which they belong.
    pub(super) fn may_be_toast(&self) -> bool {
        !self.is_no_toast && self.follows.is_some()
    }

    fn follow(&mut self, before: RelFileLocator) {
        self.is_no_toast |= *self.follows.get_or_insert(before) != before;
    }
}

/// A step that bears on dropped and emptied relations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// A relation got a file. `init` is that of an unlogged one, whose main fork is not logged.
    Create { file: RelFileLocator, init: bool },
    /// Something but rows was written into a file that was made by the transaction: it is an index, a sequence, or a copy.
    Filled { file: RelFileLocator },
    /// A row of pg_class was inserted at this place: a new relation.
    ClassInsert { at: u64, row: ClassRow },
    /// A row of pg_class was updated, and moved.
    ClassUpdate { from: u64, to: u64, row: ClassRow },
    /// A row of pg_class was deleted.
    ClassDelete { at: u64 },
    /// Rows of pg_attribute were deleted.
    AttributeDelete(u32),
    /// A row of pg_index was deleted.
    IndexDelete,
    /// A row of pg_type was deleted.
    TypeDelete,
    /// A row of pg_sequence was deleted.
    SequenceDelete,
    /// A database was marked as one that is being dropped, which no abort undoes.
    DatabaseInvalid,
    /// A row of pg_database was deleted.
    DatabaseDelete,
    /// The files of a database were removed.
    DatabaseFiles { database: u32 },
    /// A relation was locked exclusively.
    Lock { relation: u32 },
    /// Tables were emptied; told with `wal_level = logical` only.
    Truncate { relations: Vec<u32> },
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Activity {
    #[serde(rename = "r", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) rows: Vec<Rows>,
    /// With the position of each, since those of subtransactions come together at the end only.
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) steps: Vec<(u64, Step)>,
    /// Whether something is missing.
    #[serde(rename = "i", default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_incomplete: bool,
}

impl Activity {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.steps.is_empty() && !self.is_incomplete
    }

    /// Returns how much there is to lose.
    pub(super) fn weight(&self) -> u64 {
        let rows = self.rows.iter().map(|rows| rows.deleted.saturating_add(rows.updated));
        let rows = rows.fold(0, u64::saturating_add);
        if self.steps.is_empty() { rows } else { u64::MAX }
    }

    /// Returns about how many items it holds.
    pub(super) fn len(&self) -> usize {
        1 + self.rows.len() + self.steps.len()
    }

    pub(super) fn add_step(&mut self, lsn: u64, step: Step) {
        let is_full = self.steps.len() >= MAX_STEPS;
        match (&step, self.steps.last_mut()) {
            (Step::AttributeDelete(more), Some((_, Step::AttributeDelete(count)))) => {
                *count = count.saturating_add(*more);
            }
            (step, Some((_, last))) if step == last => {}
            _ if is_full => self.is_incomplete = true,
            _ => self.steps.push((lsn, step)),
        }
    }

    /// Takes over what another one did, which may be later, or a subtransaction.
    pub(super) fn merge(&mut self, other: Self) {
        self.is_incomplete |= other.is_incomplete;
        if self.rows.is_empty() && self.steps.is_empty() {
            (self.rows, self.steps) = (other.rows, other.steps);
            return;
        }
        let mut known: HashMap<RelFileLocator, usize> =
            self.rows.iter().enumerate().map(|(at, rows)| (rows.file, at)).collect();
        for rows in other.rows {
            if let Some(mine) = known.get(&rows.file).and_then(|at| self.rows.get_mut(*at)) {
                mine.deleted = mine.deleted.saturating_add(rows.deleted);
                mine.updated = mine.updated.saturating_add(rows.updated);
                mine.is_no_toast |= rows.is_no_toast;
                if let Some(before) = rows.follows {
                    mine.follow(before);
                }
            } else if self.rows.len() < MAX_RELATIONS {
                known.insert(rows.file, self.rows.len());
                self.rows.push(rows);
            } else {
                self.is_incomplete = true;
            }
        }
        let room = MAX_STEPS.saturating_sub(self.steps.len());
        self.is_incomplete |= other.steps.len() > room;
        self.steps.extend(other.steps.into_iter().take(room));
    }
}

/// The activity of one transaction while a segment is read.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) xid: u32,
    pub(super) activity: Activity,
    /// Where in `activity.rows` the last change was counted.
    last: usize,
    /// Where which relation is counted, if they are many.
    places: HashMap<RelFileLocator, usize, BuildHasherDefault<FastHasher>>,
}

impl Slot {
    /// How many relations are looked for one by one.
    const FEW: usize = 16;

    pub(super) fn restart(&mut self, xid: u32) {
        self.xid = xid;
        self.activity.rows.clear();
        self.activity.steps.clear();
        self.activity.is_incomplete = false;
        self.last = usize::MAX;
        self.places.clear();
    }

    /// Counts a row. `offset` is its place in its page, 0 if that is not known.
    #[inline]
    pub(super) fn count(&mut self, file: RelFileLocator, is_update: bool, offset: u16) {
        let rows = match self.activity.rows.get_mut(self.last) {
            Some(rows) if rows.file == file => rows,
            _ => match self.turn_to(file) {
                Some(rows) => rows,
                None => return,
            },
        };
        if is_update {
            rows.updated += 1;
            rows.is_no_toast = true;
        } else {
            rows.deleted += 1;
            rows.is_no_toast |= offset > MAX_TOAST_TUPLES;
        }
    }

    /// Goes over to another relation.
    fn turn_to(&mut self, file: RelFileLocator) -> Option<&mut Rows> {
        let before = self.activity.rows.get(self.last).map(|rows| rows.file);
        let rows = &mut self.activity.rows;
        let found = if rows.len() <= Self::FEW {
            rows.iter().position(|rows| rows.file == file)
        } else {
            if self.places.len() < rows.len() {
                self.places = rows.iter().enumerate().map(|(at, rows)| (rows.file, at)).collect();
            }
            self.places.get(&file).copied()
        };
        let at = match found {
            Some(at) => at,
            None if rows.len() >= MAX_RELATIONS => {
                self.activity.is_incomplete = true;
                return None;
            }
            None => {
                rows.push(Rows { file, deleted: 0, updated: 0, follows: None, is_no_toast: false });
                rows.len() - 1
            }
        };
        self.last = at;
        let rows = rows.get_mut(at)?;
        if let Some(before) = before {
            rows.follow(before);
        }
        Some(rows)
    }
}

/// A hash of numbers that the server gives out in order.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct FastHasher(u64);

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
}
