//! What reading archived segments again has found.

use super::events::EventRow;
use super::facts::SegmentFacts;
use super::{Index, ListedFile, now_us, sql};
use crate::kind::Result;
use crate::postgres::{Lsn, SystemIdentifier, TimelineId};
use rusqlite::params;

/// Segments that follow each other and were read.
#[derive(Debug)]
pub struct Found<'a> {
    /// Each with what its records tell.
    pub segments: &'a [(ListedFile, Option<SegmentFacts>)],
    /// What happened in them.
    pub events: &'a [EventRow],
    /// Their timeline, where they begin and where they end.
    pub stretch: (TimelineId, Lsn, Lsn),
}

impl Index {
    /// Writes what was found.
    pub fn record_found(&self, sysid: SystemIdentifier, found: &Found<'_>) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            for (file, facts) in found.segments {
                self.insert_found(sysid, file, facts.as_ref())?;
            }
            for event in found.events {
                // What was known in part is known now.
                self.connection
                    .prepare_cached(
                        "DELETE FROM event WHERE sysid = ? AND timeline = ? AND lsn = ? AND kind = ? AND uncertain",
                    )?
                    .execute(params![
                        sysid.to_string(),
                        event.timeline.0,
                        event.lsn.0.cast_signed(),
                        event.kind.name()
                    ])?;
                self.insert_event(sysid, event, false)?;
            }
            let (timeline, start, finish) = found.stretch;
            self.extend_read(sysid, timeline, start, finish)?;
            transaction.commit()
        };
        sql(write(), "record what was found")
    }

    fn insert_found(
        &self,
        sysid: SystemIdentifier,
        file: &ListedFile,
        facts: Option<&SegmentFacts>,
    ) -> rusqlite::Result<()> {
        let id: i64 = self
            .connection
            .prepare_cached(
                "INSERT INTO wal (sysid, name, crc, size, stored_size, archived_at) VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT (sysid, name, crc) DO UPDATE SET stored_size = coalesce(stored_size, excluded.stored_size)
                 RETURNING id",
            )?
            .query_row(
                params![
                    sysid.to_string(),
                    file.name,
                    file.crc,
                    file.size.cast_signed(),
                    file.stored_size.cast_signed(),
                    file.stored_at.unwrap_or_else(now_us)
                ],
                |row| row.get(0),
            )?;
        let Some(facts) = facts else { return Ok(()) };
        self.replace_facts(id, facts)?;
        facts.switches.iter().try_for_each(|switch| self.write_switch(sysid, switch))
    }
}
