//! Single facts about an archived file.

use super::{Index, sql};
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
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
}
