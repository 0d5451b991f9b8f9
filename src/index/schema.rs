//! The tables of the index and their versions.

use super::{Index, sql};
use crate::kind::{Error, Result};

/// What each version of the schema added, oldest first; the number of those that are there is kept as
/// `PRAGMA user_version`.
///
/// Times are µs since 1970; CRCs and sizes are integers; a repository is known by its URL together with the id in
/// its `cluster.json`, so that a store that was emptied and made anew is another one.
const VERSIONS: &[&str] = &[
    ARCHIVED,
    FAILURES,
    super::damage::SCHEMA,
    super::breaker::SINCE,
    super::bad_pages::SCHEMA,
    super::facts::COLUMNS,
    super::events::SCHEMA,
    super::names::SCHEMA,
    super::reading::SCHEMA,
    super::held::SCHEMA,
    super::verified::SCHEMA,
    super::operations::COLUMNS,
    super::notifications::SCHEMA,
];

const ARCHIVED: &str = "
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

const FAILURES: &str = "
CREATE TABLE breaker (
    url        TEXT PRIMARY KEY,
    failures   INTEGER NOT NULL,
    open_until INTEGER NOT NULL,
    last_error TEXT NOT NULL
);
CREATE TABLE backlog (
    url   TEXT NOT NULL,
    sysid TEXT NOT NULL,
    name  TEXT NOT NULL,
    crc   INTEGER NOT NULL,
    PRIMARY KEY (url, sysid, name, crc)
) WITHOUT ROWID;
";

impl Index {
    pub(super) fn prepare(&self) -> Result<()> {
        let known = VERSIONS.len();
        let version = self.version()?;
        if version == known {
            return Ok(());
        }
        if version > known {
            return Err(Error::other(format!(
                "schema version {version} is newer than this version of walden knows ({known})"
            )));
        }
        // WAL mode is kept in the file. With synchronous = NORMAL the last rows may be lost in a crash of the
        // machine, which costs a second look at the repository.
        sql(self.connection.execute_batch("PRAGMA journal_mode = WAL"), "set the journal mode")?;
        sql(self.connection.execute_batch("BEGIN IMMEDIATE"), "create the tables")?;
        // Another process may have made them while this one waited for the lock.
        let present = self.version()?.min(known);
        let script = format!("{} PRAGMA user_version = {known}; COMMIT;", VERSIONS[present..].concat());
        sql(self.connection.execute_batch(&script), "create the tables")
    }

    fn version(&self) -> Result<usize> {
        let read = self.connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
        Ok(usize::try_from(sql(read, "read the schema version")?).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_of_an_earlier_version_gains_the_tables_that_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i");
        for version in 0..=VERSIONS.len() {
            let _ = std::fs::remove_file(&path);
            let old = rusqlite::Connection::open(&path).unwrap();
            old.execute_batch(&VERSIONS[..version].concat()).unwrap();
            old.execute_batch(&format!("PRAGMA user_version = {version}")).unwrap();
            drop(old);
            let index = Index::open(&path).unwrap();
            assert_eq!(index.version().unwrap(), VERSIONS.len());
            assert!(index.breaker("x").unwrap().is_none() && index.operations(1).unwrap().is_empty());
        }
    }
}
