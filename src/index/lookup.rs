//! Single facts about an archived file.

use super::{EventKind, Index, TimelineSwitch, sql};
use crate::kind::Result;
use crate::postgres::{Lsn, SystemIdentifier, TimelineId};
use rusqlite::{OptionalExtension, params};

impl Index {
    /// Returns the size in bytes with which a file was stored last, where this host stored it.
    pub fn stored_size(&self, sysid: SystemIdentifier, name: &str, crc: u32) -> Result<Option<u64>> {
        let read = self
            .connection
            .query_row(
                "SELECT stored_size FROM wal WHERE sysid = ? AND name = ? AND crc = ?",
                params![sysid.to_string(), name, crc],
                |row| row.get::<_, Option<i64>>(0),
            )
            .optional();
        Ok(sql(read, "look up a stored size")?.flatten().map(i64::cast_unsigned))
    }

    /// Returns the time of the first commit in a file, in µs since 1970. None: the file is not known or was not read;
    /// none inside: it has no commit.
    pub fn first_commit(&self, sysid: SystemIdentifier, name: &str) -> Result<Option<Option<i64>>> {
        let read = self
            .connection
            .query_row(
                "SELECT min(first_commit) FROM wal WHERE sysid = ? AND name = ? AND commits IS NOT NULL
                 HAVING count(*) > 0",
                params![sysid.to_string(), name],
                |row| row.get::<_, Option<i64>>(0),
            )
            .optional();
        sql(read, "look up a first commit")
    }

    /// Returns whether the index knows no WAL file of `sysid`.
    pub fn is_bare(&self, sysid: SystemIdentifier) -> Result<bool> {
        let read = self.connection.query_row(
            "SELECT NOT EXISTS (SELECT 1 FROM wal WHERE sysid = ?)",
            [sysid.to_string()],
            |row| row.get(0),
        );
        sql(read, "look for WAL")
    }

    /// Returns the system identifiers that the index knows.
    pub fn system_identifiers(&self) -> Result<Vec<SystemIdentifier>> {
        // Each by one step in the index of the table, however many rows there are.
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection.prepare_cached(
                "WITH RECURSIVE known (sysid) AS (
                    SELECT min(sysid) FROM wal
                    UNION ALL SELECT (SELECT min(sysid) FROM wal WHERE sysid > known.sysid) FROM known
                        WHERE known.sysid IS NOT NULL)
                 SELECT sysid FROM known WHERE sysid IS NOT NULL",
            )?;
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect()
        };
        Ok(sql(read(), "look for clusters")?.iter().filter_map(|text| text.parse().ok()).collect())
    }

    /// Returns where timelines began, as far as their beginnings were read, in the order of the log.
    pub fn timeline_switches(&self, sysid: SystemIdentifier) -> Result<Vec<TimelineSwitch>> {
        let read = || -> rusqlite::Result<Vec<TimelineSwitch>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT timeline, previous, lsn, time FROM timeline_switch WHERE sysid = ? ORDER BY timeline, lsn",
            )?;
            let rows = statement.query_map([sysid.to_string()], |row| {
                Ok(TimelineSwitch {
                    timeline: row.get(0)?,
                    previous: row.get(1)?,
                    lsn: Lsn(row.get::<_, i64>(2)?.cast_unsigned()),
                    time: row.get(3)?,
                })
            })?;
            rows.collect()
        };
        sql(read(), "look for the beginnings of timelines")
    }

    /// Returns the highest timeline that anything tells of: what was archived here, listed in a repository, or read.
    pub fn newest_timeline(&self, sysid: SystemIdentifier) -> Result<Option<TimelineId>> {
        let read = self.connection.query_row(
            "SELECT max(name) FROM wal WHERE sysid = ?",
            [sysid.to_string()],
            |row| row.get::<_, Option<String>>(0),
        );
        let name = sql(read, "look for the newest timeline")?;
        let archived = name.and_then(|name| TimelineId::from_hex8(name.get(..8)?).ok());
        let read = self.connection.query_row(
            "SELECT max(newest) FROM (SELECT max(timeline) AS newest FROM event WHERE sysid = ?1
                           UNION ALL SELECT max(timeline) FROM timeline_switch WHERE sysid = ?1
                           UNION ALL SELECT max(timeline) FROM held_wal WHERE sysid = ?1)",
            [sysid.to_string()],
            |row| row.get::<_, Option<u32>>(0),
        );
        let told = sql(read, "look for the newest timeline")?.map(TimelineId);
        Ok(archived.max(told))
    }

    /// Returns whether a restore point of this name lies before `lsn`: recovery to the name would stop there.
    pub fn has_earlier_restore_point(&self, sysid: SystemIdentifier, name: &str, lsn: Lsn) -> Result<bool> {
        let read = self.connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM event WHERE sysid = ? AND kind = ? AND name = ? AND lsn < ?)",
            (sysid.to_string(), EventKind::RestorePoint.name(), name, lsn.0.cast_signed()),
            |row| row.get(0),
        );
        sql(read, "look for restore points")
    }
}
