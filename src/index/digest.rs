//! What goes from the index into the repositories, and comes back into a new index: everything that cannot be told from
//! listings.

use super::events::{self, EventRow, event_at};
use super::facts::{FACTS, SegmentFacts, TimelineSwitch, facts_at};
use super::names::{DatabaseName, RELATION, RelationName, relation_at};
use super::{Index, sql};
use crate::kind::Result;
use crate::postgres::{Lsn, SystemIdentifier};
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};

/// One thing that a digest tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DigestLine {
    /// What the records of a segment tell.
    Segment {
        /// Its name.
        name: String,
        /// The CRC-32 of its content.
        crc: u32,
        /// What they tell.
        #[serde(flatten)]
        facts: SegmentFacts,
    },
    /// The beginning of a timeline.
    Timeline(TimelineSwitch),
    /// An event.
    Event(EventRow),
    /// A database's name.
    Database(DatabaseName),
    /// A relation's name.
    Relation(RelationName),
}

/// How many names of relations one digest tells at most: a million must not fill memory.
const NAMES: usize = 50_000;

/// What no digest tells yet.
#[derive(Debug, Default)]
pub struct Undigested {
    /// What is to be told.
    pub lines: Vec<DigestLine>,
    /// Whether there are more names than one digest takes.
    pub more: bool,
    /// The last of the rows, which are marked once it is told.
    events: i64,
    segments: Vec<i64>,
}

impl Index {
    /// Returns how many segments were read of which no digest tells yet.
    pub fn undigested_segments(&self, sysid: SystemIdentifier) -> Result<u64> {
        let read = self
            .connection
            .prepare_cached(
                "SELECT count(*) FROM wal WHERE sysid = ? AND digested = 0 AND aborts IS NOT NULL",
            )
            .and_then(|mut statement| statement.query_row([sysid.to_string()], |row| row.get::<_, i64>(0)));
        Ok(sql(read, "count what is not digested")?.cast_unsigned())
    }

    /// Returns what no digest tells yet, with at most 50,000 names of relations; nothing while no segment was read since
    /// the last digest.
    pub fn undigested(&self, sysid: SystemIdentifier) -> Result<Undigested> {
        let read = || -> rusqlite::Result<Undigested> {
            let transaction = self.connection.unchecked_transaction()?;
            let mut found = Undigested::default();
            let id = sysid.to_string();
            let segments = self.lines(
                &format!("SELECT id, name, crc, {FACTS} FROM wal WHERE sysid = ? AND digested = 0 AND aborts IS NOT NULL"),
                &id,
                |row| {
                    let name: String = row.get(1)?;
                    let facts = facts_at(row, 3, &name)?;
                    Ok((row.get(0)?, DigestLine::Segment { name, crc: row.get(2)?, facts }))
                },
            )?;
            for (id, line) in segments {
                found.segments.push(id);
                found.lines.push(line);
            }
            if found.segments.is_empty() {
                return Ok(found);
            }
            // There are few: all of them, each time.
            found.lines.extend(self.lines(
                "SELECT timeline, previous, lsn, time FROM timeline_switch WHERE sysid = ?",
                &id,
                |row| {
                    Ok(DigestLine::Timeline(TimelineSwitch {
                        timeline: row.get(0)?,
                        previous: row.get(1)?,
                        lsn: Lsn(row.get::<_, i64>(2)?.cast_unsigned()),
                        time: row.get(3)?,
                    }))
                },
            )?);
            let columns = events::COLUMNS;
            found.events =
                self.connection.query_row("SELECT coalesce(max(id), 0) FROM event", [], |row| row.get(0))?;
            found.lines.extend(self.lines(
                &format!("SELECT {columns} FROM event WHERE sysid = ? AND digested = 0"),
                &id,
                |row| event_at(row).map(DigestLine::Event),
            )?);
            found.lines.extend(self.lines(
                "SELECT oid, name, first_seen, last_seen FROM database_name WHERE sysid = ? AND digested = 0",
                &id,
                |row| {
                    let seen = (row.get(2)?, row.get(3)?);
                    Ok(DigestLine::Database(DatabaseName { oid: row.get(0)?, name: row.get(1)?, seen }))
                },
            )?);
            self.add_names(&mut found, &id)?;
            transaction.commit()?;
            Ok(found)
        };
        sql(read(), "read what is not digested")
    }

    /// Returns the names of relations that no digest tells yet, at most 50,000.
    pub fn undigested_names(&self, sysid: SystemIdentifier) -> Result<Undigested> {
        let mut found = Undigested::default();
        sql(self.add_names(&mut found, &sysid.to_string()), "read what is not digested")?;
        Ok(found)
    }

    fn add_names(&self, found: &mut Undigested, sysid: &str) -> rusqlite::Result<()> {
        let names = self.lines(
            &format!("SELECT {RELATION} FROM relation_name WHERE sysid = ? AND digested = 0 LIMIT {NAMES}"),
            sysid,
            |row| relation_at(row).map(DigestLine::Relation),
        )?;
        found.more = names.len() == NAMES;
        found.lines.extend(names);
        Ok(())
    }

    fn lines<T>(
        &self,
        statement: &str,
        sysid: &str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.connection.prepare_cached(statement)?.query_map([sysid], read)?.collect()
    }

    /// Marks that a repository holds a digest that tells this.
    pub fn mark_digested(&self, sysid: SystemIdentifier, told: &Undigested) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            for segment in &told.segments {
                self.connection
                    .prepare_cached("UPDATE wal SET digested = 1 WHERE id = ?")?
                    .execute([segment])?;
            }
            let id = sysid.to_string();
            self.connection.execute(
                "UPDATE event SET digested = 1 WHERE sysid = ? AND digested = 0 AND id <= ?",
                params![id, told.events],
            )?;
            for line in &told.lines {
                match line {
                    DigestLine::Database(database) => self.connection.execute(
                        "UPDATE database_name SET digested = 1 WHERE sysid = ? AND oid = ? AND name = ?",
                        params![id, database.oid, database.name],
                    )?,
                    DigestLine::Relation(relation) => self
                        .connection
                        .prepare_cached(
                            "UPDATE relation_name SET digested = 1 WHERE sysid = ? AND database = ? AND oid = ?
                                AND tablespace = ? AND filenode = ? AND name = ?",
                        )?
                        .execute(params![
                            id,
                            relation.database,
                            relation.oid,
                            relation.tablespace,
                            relation.filenode,
                            relation.name
                        ])?,
                    _ => 0,
                };
            }
            transaction.commit()
        };
        sql(write(), "mark what is digested")
    }

    /// Takes over what a digest tells. What it says of a segment counts only where the index knows that very content.
    pub fn take_digest(&self, sysid: SystemIdentifier, lines: &[DigestLine]) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            for line in lines {
                match line {
                    DigestLine::Segment { name, crc, facts } => self.take_facts(sysid, name, *crc, facts)?,
                    DigestLine::Timeline(switch) => self.write_switch(sysid, switch)?,
                    DigestLine::Event(event) => self.insert_event(sysid, event, true)?,
                    DigestLine::Database(database) => self.insert_database(sysid, database, true)?,
                    DigestLine::Relation(relation) => self.insert_relation(sysid, relation, true)?,
                }
            }
            transaction.commit()
        };
        sql(write(), "take over a digest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{ArchivedRow, EventKind, EventRelation, Fingerprint};
    use crate::postgres::TimelineId;

    #[test]
    fn what_one_index_tells_another_one_knows() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) =
            (Index::open(&dir.path().join("old")).unwrap(), Index::open(&dir.path().join("new")).unwrap());
        let sysid = SystemIdentifier(7);
        let facts = SegmentFacts {
            commits: 3,
            last_commit: Some(30),
            last_commit_lsn: Some(Lsn(u64::MAX)),
            switches: vec![TimelineSwitch { timeline: 2, previous: 1, lsn: Lsn(5), time: 6 }],
            ..SegmentFacts::default()
        };
        let name = "000000020000000000000001";
        let row = |facts| ArchivedRow {
            sysid,
            name,
            crc: 9,
            fingerprint: Fingerprint { device: 1, inode: 1, size: 16, mtime_ns: 5, ctime_ns: 6 },
            stored_size: None,
            facts,
            copies: &[],
            lacking: Vec::new(),
        };
        old.record_archived(&[row(Some(&facts))]).unwrap();
        new.record_archived(&[row(None)]).unwrap();
        let event = EventRow {
            timeline: TimelineId(2),
            kind: EventKind::Drop,
            time: 25,
            lsn: Lsn(1),
            end_lsn: Lsn(2),
            xid: 700,
            database: 5,
            rows: 0,
            name: String::new(),
            relations: vec![EventRelation {
                oid: Some(1),
                tablespace: 2,
                filenode: 3,
                ..EventRelation::default()
            }],
            uncertain: true,
        };
        old.record_events(sysid, std::slice::from_ref(&event)).unwrap();
        let database = DatabaseName { oid: 5, name: "app".into(), seen: (1, 2) };
        let relation = RelationName {
            database: 5,
            oid: 1,
            tablespace: 2,
            filenode: 3,
            kind: 'r',
            name: "public.t".into(),
            seen: (1, 2),
        };
        old.record_names(sysid, &[database], std::slice::from_ref(&relation)).unwrap();

        assert_eq!(old.undigested_segments(sysid).unwrap(), 1);
        let told = old.undigested(sysid).unwrap();
        assert_eq!(told.lines.len(), 5);
        let text: Vec<String> = told.lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        let read: Vec<DigestLine> = text.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, told.lines, "{text:#?}");
        old.mark_digested(sysid, &told).unwrap();
        assert_eq!(old.undigested_segments(sysid).unwrap(), 0);
        assert!(old.undigested(sysid).unwrap().lines.is_empty());

        new.take_digest(sysid, &read).unwrap();
        assert_eq!(new.events(sysid, &crate::index::EventFilter::default()).unwrap(), [event]);
        let segment = name.parse().unwrap();
        assert_eq!(new.last_commit_within(sysid, segment, segment).unwrap().unwrap().lsn, Lsn(u64::MAX));
        assert_eq!(new.relations_of_oid(sysid, 5, 1).unwrap(), [relation]);
        assert_eq!(new.database_names(sysid, 5).unwrap()[0].name, "app");
        assert_eq!(new.undigested_segments(sysid).unwrap(), 0, "it is told already");
    }
}
