//! The log read in order. Segments are archived several at once and in any order, and what a transaction did may lie in
//! many of them: each leaves its contribution here, and a tracker goes over them one after the other.

use super::events::EventRow;
use super::facts::{FACTS, SegmentFacts, facts_at};
use super::{ArchivedRow, Index, sql};
use crate::kind::Result;
use crate::postgres::wal::events::{CatalogFiles, Contribution, EventOptions, Tracker};
use crate::postgres::{Lsn, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeMap;

pub(super) const SCHEMA: &str = "
CREATE TABLE wal_unread (
    sysid        TEXT NOT NULL,
    timeline     INTEGER NOT NULL,
    start        INTEGER NOT NULL,
    contribution BLOB NOT NULL,
    PRIMARY KEY (sysid, timeline, start)
) WITHOUT ROWID;
CREATE TABLE wal_tracker (
    sysid    TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    position INTEGER NOT NULL,
    state    BLOB NOT NULL,
    PRIMARY KEY (sysid, timeline)
) WITHOUT ROWID;
CREATE TABLE wal_read (
    sysid    TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    start    INTEGER NOT NULL,
    finish   INTEGER NOT NULL,
    PRIMARY KEY (sysid, timeline, start)
) WITHOUT ROWID;
";

/// Segments that were read.
#[derive(Debug)]
pub struct Reading<'a> {
    /// What each contributes.
    pub contributions: Vec<&'a Contribution>,
    /// The timeline and the start of a segment before which nothing is to come any more: the server asks in order.
    pub in_order_up_to: Option<(TimelineId, Lsn)>,
    /// What is looked for.
    pub options: &'a EventOptions,
}

impl Index {
    /// Writes that files were archived and what was read in them, in one transaction.
    pub fn record_read(
        &self,
        sysid: SystemIdentifier,
        rows: &[ArchivedRow<'_>],
        reading: &Reading<'_>,
    ) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            self.insert_archived(rows)?;
            let mut by_timeline: BTreeMap<TimelineId, BTreeMap<Lsn, &Contribution>> = BTreeMap::new();
            for contribution in &reading.contributions {
                let of_timeline = by_timeline.entry(contribution.timeline()).or_default();
                of_timeline.insert(contribution.start(), contribution);
            }
            for (timeline, contributions) in by_timeline {
                let asked =
                    reading.in_order_up_to.filter(|(asked, _)| *asked == timeline).map(|(_, lsn)| lsn);
                self.read_on(sysid, timeline, contributions, asked, reading.options)?;
            }
            transaction.commit()
        };
        sql(write(), "record what was read")
    }

    /// Returns what is looked for in the log of `sysid`, with the catalogs that are not where initdb made them.
    pub fn event_options(&self, sysid: SystemIdentifier, min_rows: u64) -> Result<EventOptions> {
        let mut catalogs = CatalogFiles::default();
        for (database, oid, file) in self.moved_catalogs(sysid)? {
            catalogs.insert(database, oid, file);
        }
        Ok(EventOptions { min_rows, catalogs })
    }

    /// Goes on with a timeline as far as contributions follow each other. A hole before `asked` is passed over.
    fn read_on(
        &self,
        sysid: SystemIdentifier,
        timeline: TimelineId,
        mut contributions: BTreeMap<Lsn, &Contribution>,
        asked: Option<Lsn>,
        options: &EventOptions,
    ) -> rusqlite::Result<()> {
        let Some(first) = contributions.keys().next().copied() else { return Ok(()) };
        let mut tracker = match self.tracker(sysid, timeline, asked.unwrap_or(first), options)? {
            Some(tracker) => tracker,
            None => Tracker::new(timeline, asked.unwrap_or(first), options.clone()),
        };
        // What is left of segments that were passed over.
        let behind = |position: Lsn| params_of(sysid, timeline, position);
        loop {
            let position = tracker.position();
            let stored;
            let next = match contributions.remove(&position) {
                Some(next) => Some(next),
                None => {
                    stored = self.unread(sysid, timeline, position)?;
                    stored.as_ref()
                }
            };
            let Some(next) = next else {
                let Some(asked) = asked.filter(|asked| *asked > position) else { break };
                tracker.jump(timeline, asked);
                continue;
            };
            let Ok(events) = tracker.advance(next) else { break };
            for event in &events {
                self.insert_event(sysid, &EventRow::of(event, next.timeline()), false)?;
            }
            if let Some(shared) = tracker.shared_record().and_then(SegmentFacts::of_record) {
                self.add_facts(sysid, next, &shared)?;
            }
            self.extend_read(sysid, timeline, position, next.end())?;
        }
        let position = tracker.position();
        let statement = "DELETE FROM wal_unread WHERE sysid = ? AND timeline = ? AND start < ?";
        self.connection.prepare_cached(statement)?.execute(behind(position))?;
        for (start, contribution) in contributions.range(position..) {
            self.connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO wal_unread (sysid, timeline, start, contribution) VALUES (?, ?, ?, ?)",
                )?
                .execute(params![
                    sysid.to_string(),
                    timeline.0,
                    start.0.cast_signed(),
                    contribution.to_bytes()
                ])?;
        }
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO wal_tracker (sysid, timeline, position, state) VALUES (?, ?, ?, ?)",
            )?
            .execute(params![sysid.to_string(), timeline.0, position.0.cast_signed(), tracker.to_bytes()])?;
        Ok(())
    }

    /// Returns the tracker of a timeline; at its first segment, which begins at `start`, that of the timeline from which it
    /// forked there. None where there is none that can be used.
    fn tracker(
        &self,
        sysid: SystemIdentifier,
        timeline: TimelineId,
        start: Lsn,
        options: &EventOptions,
    ) -> rusqlite::Result<Option<Tracker>> {
        let state: Option<Vec<u8>> = self
            .connection
            .prepare_cached(
                "SELECT state FROM wal_tracker
                 WHERE sysid = ?1 AND (timeline = ?2 OR (timeline < ?2 AND position = ?3))
                 ORDER BY timeline DESC LIMIT 1",
            )?
            .query_row(params_of(sysid, timeline, start), |row| row.get(0))
            .optional()?;
        Ok(state.and_then(|state| Tracker::from_bytes(&state, options.clone()).ok()))
    }

    fn unread(
        &self,
        sysid: SystemIdentifier,
        timeline: TimelineId,
        start: Lsn,
    ) -> rusqlite::Result<Option<Contribution>> {
        let bytes: Option<Vec<u8>> = self
            .connection
            .prepare_cached(
                "SELECT contribution FROM wal_unread WHERE sysid = ? AND timeline = ? AND start = ?",
            )?
            .query_row(params_of(sysid, timeline, start), |row| row.get(0))
            .optional()?;
        Ok(bytes.and_then(|bytes| Contribution::from_bytes(&bytes).ok()))
    }

    /// Adds what the record tells that ends in a segment and began in the one before.
    fn add_facts(
        &self,
        sysid: SystemIdentifier,
        to: &Contribution,
        shared: &SegmentFacts,
    ) -> rusqlite::Result<()> {
        let Ok(size) = WalSegmentSize::new(u32::try_from(to.end() - to.start()).unwrap_or(0)) else {
            return Ok(());
        };
        let name = WalSegmentName::containing(to.timeline(), to.start(), size).to_string();
        let known: Vec<(i64, SegmentFacts)> = self
            .connection
            .prepare_cached(&format!(
                "SELECT id, {FACTS} FROM wal WHERE sysid = ? AND name = ? AND aborts IS NOT NULL"
            ))?
            .query_map([sysid.to_string(), name.clone()], |row| Ok((row.get(0)?, facts_at(row, 1, &name)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (id, facts) in known {
            self.replace_facts(id, &facts.after(shared))?;
        }
        shared.switches.iter().try_for_each(|switch| self.write_switch(sysid, switch))
    }

    /// Writes that the events from `start` to `finish` are known; what adjoins becomes one.
    pub(super) fn extend_read(
        &self,
        sysid: SystemIdentifier,
        timeline: TimelineId,
        start: Lsn,
        finish: Lsn,
    ) -> rusqlite::Result<()> {
        let (id, start, finish) = (sysid.to_string(), start.0.cast_signed(), finish.0.cast_signed());
        let (first, last): (Option<i64>, Option<i64>) = self
            .connection
            .prepare_cached(
                "SELECT min(start), max(finish) FROM wal_read
                 WHERE sysid = ? AND timeline = ? AND start <= ? AND finish >= ?",
            )?
            .query_row(params![id, timeline.0, finish, start], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.connection
            .prepare_cached(
                "DELETE FROM wal_read WHERE sysid = ? AND timeline = ? AND start <= ? AND finish >= ?",
            )?
            .execute(params![id, timeline.0, finish, start])?;
        let (first, last) = (first.unwrap_or(start).min(start), last.unwrap_or(finish).max(finish));
        self.connection
            .prepare_cached("INSERT INTO wal_read (sysid, timeline, start, finish) VALUES (?, ?, ?, ?)")?
            .execute(params![id, timeline.0, first, last])?;
        Ok(())
    }

    /// Returns the stretches of each timeline whose events are known.
    pub fn stretches_read(&self, sysid: SystemIdentifier) -> Result<Vec<(TimelineId, Lsn, Lsn)>> {
        let read = || -> rusqlite::Result<Vec<(TimelineId, Lsn, Lsn)>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT timeline, start, finish FROM wal_read WHERE sysid = ? ORDER BY timeline, start",
            )?;
            let lsn = |number: i64| Lsn(number.cast_unsigned());
            let rows = statement.query_map([sysid.to_string()], |row| {
                Ok((TimelineId(row.get(0)?), lsn(row.get(1)?), lsn(row.get(2)?)))
            })?;
            rows.collect()
        };
        sql(read(), "look for what was read")
    }
}

fn params_of(sysid: SystemIdentifier, timeline: TimelineId, lsn: Lsn) -> (String, u32, i64) {
    (sysid.to_string(), timeline.0, lsn.0.cast_signed())
}
