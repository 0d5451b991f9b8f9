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
    /// Notes that the repository at `url` lacks a file.
    pub fn backlog_add(&self, sysid: SystemIdentifier, name: &str, crc: u32, url: &str) -> Result<()> {
        let statement = "INSERT OR IGNORE INTO backlog (url, sysid, name, crc) VALUES (?, ?, ?, ?)";
        sql(self.connection.execute(statement, params![url, sysid.to_string(), name, crc]), "note a backlog")?;
        Ok(())
    }

    /// Notes that it has the file now.
    pub fn backlog_remove(&self, sysid: SystemIdentifier, name: &str, crc: u32, url: &str) -> Result<()> {
        let statement = "DELETE FROM backlog WHERE url = ? AND sysid = ? AND name = ? AND crc = ?";
        sql(self.connection.execute(statement, params![url, sysid.to_string(), name, crc]), "clear a backlog")?;
        Ok(())
    }

    /// Returns what the repository at `url` lacks, oldest names first, at most `limit`.
    pub fn backlog(&self, sysid: SystemIdentifier, url: &str, limit: usize) -> Result<Vec<Missing>> {
        let read = || -> rusqlite::Result<Vec<Missing>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT name, crc FROM backlog WHERE url = ? AND sysid = ? ORDER BY name LIMIT ?",
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_listed_until_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let sysid = SystemIdentifier(7);
        for name in ["b", "a", "a"] {
            index.backlog_add(sysid, name, 1, "url").unwrap();
        }
        let names = |limit| -> Vec<String> {
            index.backlog(sysid, "url", limit).unwrap().into_iter().map(|missing| missing.name).collect()
        };
        assert_eq!(names(10), ["a", "b"]);
        assert_eq!(names(1), ["a"]);
        assert!(index.backlog(sysid, "other", 10).unwrap().is_empty());
        index.backlog_remove(sysid, "a", 1, "url").unwrap();
        assert_eq!((names(10), index.backlog_count("url").unwrap()), (vec!["b".to_owned()], 1));
    }
}
