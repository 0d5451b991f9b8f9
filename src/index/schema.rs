//! The tables of the index and their versions.

use super::{Index, sql};
use crate::kind::{Error, Result};

/// The version of the schema below, kept as `PRAGMA user_version`.
const VERSION: i64 = 1;

/// Times are µs since 1970; CRCs and sizes are integers; a repository is known by its URL together with the id in
/// its `cluster.json`, so that a store that was emptied and made anew is another one.
const SCHEMA: &str = "
CREATE TABLE repository (
    id         INTEGER PRIMARY KEY,
    url        TEXT NOT NULL,
    cluster_id TEXT NOT NULL,
    UNIQUE (url, cluster_id)
);
CREATE TABLE wal (
    id            INTEGER PRIMARY KEY,
    sysid         TEXT NOT NULL,
    name          TEXT NOT NULL,
    crc           INTEGER NOT NULL,
    size          INTEGER NOT NULL,
    stored_size   INTEGER,
    device        INTEGER,
    inode         INTEGER,
    mtime_ns      INTEGER,
    ctime_ns      INTEGER,
    commits       INTEGER,
    first_commit  INTEGER,
    last_commit   INTEGER,
    last_commit_lsn INTEGER,
    archived_at   INTEGER NOT NULL,
    UNIQUE (sysid, name, crc)
);
CREATE TABLE wal_copy (
    wal_id        INTEGER NOT NULL REFERENCES wal (id) ON DELETE CASCADE,
    repository_id INTEGER NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    PRIMARY KEY (wal_id, repository_id)
) WITHOUT ROWID;
CREATE TABLE operation (
    id       INTEGER PRIMARY KEY,
    command  TEXT NOT NULL,
    detail   TEXT NOT NULL,
    started  INTEGER NOT NULL,
    finished INTEGER,
    outcome  TEXT,
    process  INTEGER NOT NULL
);
";

impl Index {
    pub(super) fn prepare(&self) -> Result<()> {
        let version = self.version()?;
        if version == VERSION {
            return Ok(());
        }
        if version > VERSION {
            return Err(Error::other(format!(
                "schema version {version} is newer than this version of walden knows ({VERSION})"
            )));
        }
        // WAL mode is kept in the file. With synchronous = NORMAL the last rows may be lost in a crash of the
        // machine, which costs a second look at the repository.
        sql(self.connection.execute_batch("PRAGMA journal_mode = WAL"), "set the journal mode")?;
        let begun = self.connection.execute_batch("BEGIN IMMEDIATE");
        sql(begun, "create the tables")?;
        // Another process may have made them while this one waited for the lock.
        if self.version()? == VERSION {
            return sql(self.connection.execute_batch("COMMIT"), "create the tables");
        }
        let script = format!("{SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;");
        sql(self.connection.execute_batch(&script), "create the tables")
    }

    fn version(&self) -> Result<i64> {
        sql(self.connection.query_row("PRAGMA user_version", [], |row| row.get(0)), "read the schema version")
    }
}
