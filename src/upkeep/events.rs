//! When did it happen? Destructive events and restore points, with names, from the index.

use crate::index::{
    DatabaseName, EventFilter, EventKind, EventRelation, EventRow, Index, RelationName, nearest,
};
use crate::kind::Result;
use crate::postgres::{Lsn, SystemIdentifier, TimelineId};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// By time, kind and number of rows.
    pub filter: EventFilter,
    /// Only those that touched this table: a name with or without schema, or database and schema, or an OID.
    pub table: Option<String>,
}

/// One event, with names.
#[derive(Debug, Serialize)]
pub struct EventReport {
    /// When it was committed.
    pub time: Timestamp,
    /// Which kind.
    pub kind: EventKind,
    /// The name of a restore point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_point: Option<String>,
    /// The database's name, where it is known.
    pub database: Option<String>,
    /// The database's OID; 0 where there is none.
    pub database_oid: u32,
    /// The tables.
    pub tables: Vec<TableReport>,
    /// Rows deleted or updated, of all tables.
    pub rows: u64,
    /// Whether a part of the transaction was not read, so that tables or rows may be missing.
    pub uncertain: bool,
    /// The transaction; 0 for a restore point.
    pub xid: u32,
    /// The timeline.
    pub timeline: TimelineId,
    /// A recovery that stops before this position stops before the event.
    pub lsn: Lsn,
    /// The command that brings back what was before it.
    pub recover: String,
}

/// A table that an event touched.
#[derive(Debug, Serialize)]
pub struct TableReport {
    /// Its name with the schema, where it is known.
    pub name: Option<String>,
    /// Its OID, where it is known.
    pub oid: Option<u32>,
    /// Its tablespace, database and file: `1663/5/16384`, as pg_waldump shows them.
    pub file: Option<String>,
    /// Rows deleted or updated.
    pub rows: u64,
}

impl TableReport {
    /// Returns how to call it.
    pub fn label(&self) -> String {
        match (&self.name, self.oid, &self.file) {
            (Some(name), _, _) => name.clone(),
            (None, Some(oid), _) => format!("table with OID {oid}"),
            (None, None, Some(file)) => format!("table with file {file}"),
            (None, None, None) => "a table".to_owned(),
        }
    }
}

/// Returns the events of `sysid` that are asked for, oldest first. `recover` makes the command that stops before an event.
pub fn events(
    index: &Index,
    sysid: SystemIdentifier,
    query: &Query,
    recover: impl Fn(&EventRow) -> String,
) -> Result<Vec<EventReport>> {
    let mut found: Vec<EventReport> = Vec::new();
    let mut seen = HashSet::new();
    let mut names = Names { index, sysid, databases: HashMap::new(), relations: HashMap::new() };
    for row in index.events(sysid, &query.filter)? {
        let database = match row.database {
            0 => None,
            oid => names.database(oid, row.time)?,
        };
        let Some(tables) = tables(&mut names, &row)? else { continue };
        // The segment in which a timeline forks stands on both.
        let is_new = seen.insert((row.lsn, row.xid, row.kind, row.database));
        if !is_new && row.kind != EventKind::RestorePoint {
            continue;
        }
        let report = EventReport {
            time: Timestamp::from_microsecond(row.time).unwrap_or_default(),
            kind: row.kind,
            restore_point: (row.kind == EventKind::RestorePoint).then(|| row.name.clone()),
            database,
            database_oid: row.database,
            tables,
            rows: row.rows,
            uncertain: row.uncertain,
            xid: row.xid,
            timeline: row.timeline,
            lsn: row.lsn,
            recover: recover(&row),
        };
        if query.table.as_ref().is_none_or(|table| touches(&report, table)) {
            found.push(report);
        }
    }
    Ok(found)
}

/// Returns the tables of an event; none where all its relations are known to be something else.
fn tables(names: &mut Names<'_>, row: &EventRow) -> Result<Option<Vec<TableReport>>> {
    let mut found = Vec::new();
    let mut doubtful = Vec::new();
    for relation in &row.relations {
        let known = names.relation(row, relation)?;
        // Tables, partitioned tables, materialized views, foreign tables.
        if known.as_ref().is_some_and(|known| !['r', 'p', 'm', 'f'].contains(&known.kind)) {
            continue;
        }
        let EventRelation { tablespace, filenode, rows, .. } = *relation;
        let list = if known.is_none() && relation.may_be_no_table { &mut doubtful } else { &mut found };
        list.push(TableReport {
            oid: relation.oid.or(known.as_ref().map(|known| known.oid)),
            name: known.map(|known| known.name),
            file: (filenode != 0).then(|| format!("{tablespace}/{}/{filenode}", row.database)),
            rows,
        });
    }
    // Nothing is known for certain: rather an index too many than a table too few.
    if found.is_empty() {
        found = doubtful;
    }
    Ok((row.relations.is_empty() || !found.is_empty()).then_some(found))
}

/// Looks names up, each once.
struct Names<'a> {
    index: &'a Index,
    sysid: SystemIdentifier,
    databases: HashMap<u32, Vec<DatabaseName>>,
    relations: HashMap<(u32, Sought), Vec<RelationName>>,
}

/// By what a relation of a database is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sought {
    Oid(u32),
    /// Tablespace and number.
    File(u32, u32),
}

impl Names<'_> {
    fn database(&mut self, oid: u32, time: i64) -> Result<Option<String>> {
        let known = match self.databases.entry(oid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.index.database_names(self.sysid, oid)?),
        };
        Ok(nearest(known, |database| database.seen, time).map(|database| database.name.clone()))
    }

    fn relation(&mut self, row: &EventRow, relation: &EventRelation) -> Result<Option<RelationName>> {
        let files = [Some(relation.filenode), relation.new_filenode].into_iter().flatten();
        let files = files.filter(|file| *file != 0).map(|file| Sought::File(relation.tablespace, file));
        for sought in relation.oid.map(Sought::Oid).into_iter().chain(files) {
            let known = match self.relations.entry((row.database, sought)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(match sought {
                    Sought::Oid(oid) => self.index.relations_of_oid(self.sysid, row.database, oid)?,
                    Sought::File(tablespace, file) => {
                        self.index.relations_of_file(self.sysid, row.database, tablespace, file)?
                    }
                }),
            };
            if let Some(found) = nearest(known, |relation| relation.seen, row.time) {
                return Ok(Some(found.clone()));
            }
        }
        Ok(None)
    }
}

fn touches(event: &EventReport, wanted: &str) -> bool {
    event.tables.iter().any(|table| {
        let names = |name: &str| {
            let bare = name.rsplit_once('.').map_or(name, |(_, bare)| bare);
            let full = event.database.as_ref().map(|database| format!("{database}.{name}"));
            wanted == name || wanted == bare || Some(wanted) == full.as_deref()
        };
        table.name.as_deref().is_some_and(names) || table.oid.is_some_and(|oid| oid.to_string() == wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_bear_names_and_are_found_by_them() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let sysid = SystemIdentifier(7);
        let relation = |oid, kind, name: &str| RelationName {
            database: 5,
            oid,
            tablespace: 1663,
            filenode: oid + 1000,
            kind,
            name: name.into(),
            seen: (1, 2),
        };
        index
            .record_names(
                sysid,
                &[DatabaseName { oid: 5, name: "app".into(), seen: (1, 2) }],
                &[relation(10, 'r', "public.orders"), relation(11, 'i', "public.orders_pkey")],
            )
            .unwrap();
        let touched = |oid, filenode| EventRelation {
            oid,
            tablespace: 1663,
            filenode,
            may_be_no_table: oid == Some(98),
            ..EventRelation::default()
        };
        let event = |kind, time: i64, relations: &[EventRelation]| EventRow {
            timeline: TimelineId(1),
            kind,
            time,
            lsn: Lsn(time.cast_unsigned()),
            end_lsn: Lsn(time.cast_unsigned() + 1),
            xid: 700,
            database: 5,
            rows: 0,
            name: String::new(),
            relations: relations.to_vec(),
            uncertain: false,
        };
        let all = [
            event(EventKind::Drop, 100, &[touched(Some(10), 0), touched(Some(11), 0)]),
            event(EventKind::Delete, 200, &[touched(None, 1010)]),
            event(EventKind::Drop, 300, &[touched(None, 1011)]),
            event(EventKind::Truncate, 400, &[touched(Some(98), 0), touched(Some(99), 0)]),
            event(EventKind::Drop, 500, &[touched(Some(98), 0)]),
        ];
        index.record_events(sysid, &all).unwrap();
        let found = |table: Option<&str>| {
            let query = Query { table: table.map(str::to_owned), ..Query::default() };
            let found = events(&index, sysid, &query, |row| row.lsn.to_string()).unwrap();
            let label = |event: &EventReport| {
                let tables: Vec<String> = event.tables.iter().map(TableReport::label).collect();
                format!("{} {}", event.kind, tables.join(", "))
            };
            found.iter().map(label).collect::<Vec<_>>()
        };
        assert_eq!(
            found(None),
            [
                "drop public.orders",
                "delete public.orders",
                "truncate table with OID 99",
                "drop table with OID 98"
            ],
            "a dropped index is no event, and what may be one is shown where there is nothing else"
        );
        for name in ["orders", "public.orders", "app.public.orders", "10"] {
            assert_eq!(found(Some(name)), ["drop public.orders", "delete public.orders"], "{name}");
        }
        assert_eq!(found(Some("99")), ["truncate table with OID 99"]);
        assert!(found(Some("order")).is_empty());
    }
}
