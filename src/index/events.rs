//! What happened to the data, as the log told it: dropped and emptied tables, mass changes, restore points.

use super::facts::lsn_at;
use super::{Index, sql};
use crate::kind::Result;
use crate::postgres::wal::events::{self as wal, Event};
use crate::postgres::{Lsn, SystemIdentifier, TimelineId};
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

pub(super) const SCHEMA: &str = "
CREATE TABLE event (
    id        INTEGER PRIMARY KEY,
    sysid     TEXT NOT NULL,
    timeline  INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    time      INTEGER NOT NULL,
    lsn       INTEGER NOT NULL,
    end_lsn   INTEGER NOT NULL,
    xid       INTEGER NOT NULL,
    database  INTEGER NOT NULL,
    rows      INTEGER NOT NULL,
    name      TEXT NOT NULL,
    relations TEXT NOT NULL,
    uncertain INTEGER NOT NULL,
    digested  INTEGER NOT NULL DEFAULT 0,
    UNIQUE (sysid, timeline, lsn, kind, database, name, relations)
);
CREATE INDEX event_time ON event (sysid, time);
CREATE INDEX event_undigested ON event (sysid) WHERE digested = 0;
";

/// What kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// DROP TABLE, or whatever else dropped a table.
    Drop,
    /// TRUNCATE.
    Truncate,
    /// A transaction deleted many rows.
    Delete,
    /// A transaction updated many rows.
    Update,
    /// DROP DATABASE.
    DropDatabase,
    /// A restore point was made.
    RestorePoint,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Drop, Self::Truncate, Self::Delete, Self::Update, Self::DropDatabase, Self::RestorePoint];

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Truncate => "truncate",
            Self::Delete => "delete",
            Self::Update => "update",
            Self::DropDatabase => "drop-database",
            Self::RestorePoint => "restore-point",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for EventKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("no such kind of event; there are {}", names.join(", "))
        })
    }
}

/// A relation that an event touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventRelation {
    /// Its OID, where the log tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oid: Option<u32>,
    /// The OID of its tablespace; 0 where the log does not tell.
    pub tablespace: u32,
    /// The name of its file, `relfilenode`; 0 where the log does not tell, or it has none.
    pub filenode: u32,
    /// The name of the new file of a table that was emptied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_filenode: Option<u32>,
    /// How many rows.
    pub rows: u64,
    /// Whether the log leaves open that it is no table: names tell.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_be_no_table: bool,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    /// The timeline of the segment in which it stands.
    pub timeline: TimelineId,
    /// Which kind.
    pub kind: EventKind,
    /// When it was committed, in µs since 1970.
    pub time: i64,
    /// A recovery that stops before this position stops before the event.
    pub lsn: Lsn,
    /// The end of that record.
    pub end_lsn: Lsn,
    /// The transaction; 0 for a restore point.
    pub xid: u32,
    /// The OID of the database; 0 where there is none.
    pub database: u32,
    /// How many rows, of all relations.
    pub rows: u64,
    /// The name of a restore point; else empty.
    #[serde(default)]
    pub name: String,
    /// The relations.
    pub relations: Vec<EventRelation>,
    /// Whether a part of the transaction was not read, so that rows or relations may be missing.
    #[serde(default)]
    pub uncertain: bool,
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Not before, in µs since 1970.
    pub since: Option<i64>,
    /// Not after, in µs since 1970.
    pub until: Option<i64>,
    /// Of these kinds; all, if empty.
    pub kinds: Vec<EventKind>,
    /// With so many rows at least, of mass changes.
    pub min_rows: u64,
}

impl EventRow {
    /// Returns an event of the log as the index keeps it.
    pub fn of(event: &Event, timeline: TimelineId) -> Self {
        let relations = event.relations.iter().map(|relation| EventRelation {
            oid: relation.oid,
            tablespace: relation.file.tablespace,
            filenode: relation.file.relation,
            new_filenode: relation.new_file.map(|file| file.relation),
            rows: relation.rows,
            may_be_no_table: relation.may_be_no_table,
        });
        let without_file = event.without_file.iter().map(|oid| EventRelation {
            oid: Some(*oid),
            may_be_no_table: true,
            ..EventRelation::default()
        });
        Self {
            timeline,
            kind: match event.kind {
                wal::EventKind::DropTable => EventKind::Drop,
                wal::EventKind::Truncate => EventKind::Truncate,
                wal::EventKind::Delete => EventKind::Delete,
                wal::EventKind::Update => EventKind::Update,
                wal::EventKind::DropDatabase => EventKind::DropDatabase,
                wal::EventKind::RestorePoint => EventKind::RestorePoint,
            },
            time: jiff::Timestamp::from(event.time).as_microsecond(),
            lsn: event.lsn,
            end_lsn: event.end_lsn,
            xid: event.xid,
            database: event.database,
            rows: event.rows,
            name: event.name.clone().unwrap_or_default(),
            relations: relations.chain(without_file).collect(),
            uncertain: event.is_uncertain,
        }
    }
}

impl Index {
    /// Writes events. Those that are there already stay as they are.
    pub fn record_events(&self, sysid: SystemIdentifier, events: &[EventRow]) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            for event in events {
                self.insert_event(sysid, event, false)?;
            }
            transaction.commit()
        };
        sql(write(), "record events")
    }

    pub(super) fn insert_event(
        &self,
        sysid: SystemIdentifier,
        event: &EventRow,
        digested: bool,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT OR IGNORE INTO event (sysid, timeline, kind, time, lsn, end_lsn, xid, database, rows, name,
                                              relations, uncertain, digested)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                sysid.to_string(),
                event.timeline.0,
                event.kind.name(),
                event.time,
                event.lsn.0.cast_signed(),
                event.end_lsn.0.cast_signed(),
                event.xid,
                event.database,
                event.rows.cast_signed(),
                event.name,
                serde_json::to_string(&event.relations).unwrap_or_default(),
                event.uncertain,
                digested,
            ])?;
        Ok(())
    }

    /// Returns the events that `filter` lets through, oldest first.
    pub fn events(&self, sysid: SystemIdentifier, filter: &EventFilter) -> Result<Vec<EventRow>> {
        let read = || -> rusqlite::Result<Vec<EventRow>> {
            let kinds = if filter.kinds.is_empty() { &EventKind::ALL[..] } else { &filter.kinds };
            let kinds: Vec<String> = kinds.iter().map(|kind| format!("'{}'", kind.name())).collect();
            let mut statement = self.connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM event WHERE sysid = ? AND time BETWEEN ? AND ? AND kind IN ({})
                    AND (kind NOT IN ('delete', 'update') OR rows >= ?)
                 ORDER BY time, lsn",
                kinds.join(", ")
            ))?;
            let key = params![
                sysid.to_string(),
                filter.since.unwrap_or(i64::MIN),
                filter.until.unwrap_or(i64::MAX),
                filter.min_rows.cast_signed()
            ];
            let rows = statement.query_map(key, event_at)?;
            rows.collect()
        };
        sql(read(), "read events")
    }
}

pub(super) const COLUMNS: &str =
    "timeline, kind, time, lsn, end_lsn, xid, database, rows, name, relations, uncertain";

/// Reads the [`COLUMNS`].
pub(super) fn event_at(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    let text = |column: usize, error: &dyn fmt::Display| {
        let error = error.to_string().into();
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error)
    };
    let (kind, relations): (String, String) = (row.get(1)?, row.get(9)?);
    Ok(EventRow {
        timeline: TimelineId(row.get(0)?),
        kind: kind.parse().map_err(|error| text(1, &error))?,
        time: row.get(2)?,
        lsn: lsn_at(row, 3)?.unwrap_or_default(),
        end_lsn: lsn_at(row, 4)?.unwrap_or_default(),
        xid: row.get(5)?,
        database: row.get(6)?,
        rows: row.get::<_, i64>(7)?.cast_unsigned(),
        name: row.get(8)?,
        relations: serde_json::from_str(&relations).map_err(|error| text(9, &error))?,
        uncertain: row.get(10)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_by_time_kind_and_number_of_rows_and_are_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let sysid = SystemIdentifier(u64::MAX);
        let relation = EventRelation {
            oid: Some(16_384),
            tablespace: 1663,
            filenode: 16_390,
            rows: 5,
            ..EventRelation::default()
        };
        let event = |kind, time: i64, rows| EventRow {
            timeline: TimelineId(1),
            kind,
            time,
            lsn: Lsn(u64::MAX - time.cast_unsigned()),
            end_lsn: Lsn(time.cast_unsigned()),
            xid: u32::MAX,
            database: 5,
            rows,
            name: String::new(),
            relations: vec![relation],
            uncertain: false,
        };
        let all = [
            event(EventKind::Drop, 10, 0),
            event(EventKind::Delete, 20, 1000),
            event(EventKind::Update, 30, 5000),
        ];
        index.record_events(sysid, &all).unwrap();
        index.record_events(sysid, &all).unwrap();
        let found = |filter| index.events(sysid, &filter).unwrap();
        assert_eq!(found(EventFilter::default()), all);
        assert_eq!(
            found(EventFilter { since: Some(20), until: Some(20), ..EventFilter::default() }),
            all[1..2]
        );
        assert_eq!(found(EventFilter { kinds: vec![EventKind::Drop], ..EventFilter::default() }), all[..1]);
        let many = found(EventFilter { min_rows: 2000, ..EventFilter::default() });
        assert_eq!(many, [all[0].clone(), all[2].clone()], "a drop has no rows to count");
        assert!("droop".parse::<EventKind>().unwrap_err().contains("drop-database"));
    }
}
