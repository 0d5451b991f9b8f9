//! What a repository lacks although it is archived: files that were acknowledged by others while it was down.

use super::{Index, sql};
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use rusqlite::params;

/// A file that a repository lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The name.
    pub name: String,
    /// The CRC-32 of the plaintext.
    pub crc: u32,
}

impl Index {
    /// Returns what the repository at `url` lacks, newest names first, at most `limit`. A repository that has the newest
    /// segment of a timeline shows by it that the ones before are missing.
    pub fn backlog(&self, sysid: SystemIdentifier, url: &str, limit: usize) -> Result<Vec<Missing>> {
        let read = || -> rusqlite::Result<Vec<Missing>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT name, crc FROM backlog WHERE url = ? AND sysid = ? ORDER BY name DESC LIMIT ?",
            )?;
            let rows = statement.query_map(
                params![url, sysid.to_string(), i64::try_from(limit).unwrap_or(i64::MAX)],
                |row| Ok(Missing { name: row.get(0)?, crc: row.get(1)? }),
            )?;
            rows.collect()
        };
        sql(read(), "read a backlog")
    }

    /// Returns how many files the repository at `url` lacks.
    pub fn backlog_count(&self, url: &str) -> Result<u64> {
        let read = self
            .connection
            .query_row("SELECT count(*) FROM backlog WHERE url = ?", [url], |row| row.get::<_, i64>(0));
        Ok(sql(read, "count a backlog")?.cast_unsigned())
    }

    /// Notes that the repository at `url` lacks a file.
    pub fn note_missing(&self, url: &str, sysid: SystemIdentifier, name: &str, crc: u32) -> Result<()> {
        let statement = "INSERT OR IGNORE INTO backlog (url, sysid, name, crc) VALUES (?, ?, ?, ?)";
        let written = self
            .connection
            .prepare_cached(statement)
            .and_then(|mut statement| statement.execute(params![url, sysid.to_string(), name, crc]));
        sql(written, "note what a repository lacks")?;
        Ok(())
    }
}
