//! What the index knows of archived WAL.

use super::facts::SegmentFacts;
use super::{Index, now_us, sql};
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use rusqlite::{OptionalExtension, params};
use std::os::unix::fs::MetadataExt;

/// What tells a file in `pg_wal` from another one of the same name. A recycled segment is renamed (ctime changes)
/// and written to (mtime changes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// The device.
    pub device: u64,
    /// The inode.
    pub inode: u64,
    /// The size in bytes.
    pub size: u64,
    /// When the content was last modified, in ns since 1970.
    pub mtime_ns: i64,
    /// When the inode was last changed, in ns since 1970.
    pub ctime_ns: i64,
}

impl From<&std::fs::Metadata> for Fingerprint {
    fn from(meta: &std::fs::Metadata) -> Self {
        let ns = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A repository as it was when a row was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepositoryStamp {
    /// The URL.
    pub url: String,
    /// The id in its `cluster.json`.
    pub cluster_id: String,
}

/// One archived file.
#[derive(Debug, Clone)]
pub struct ArchivedRow<'a> {
    /// The system identifier.
    pub sysid: SystemIdentifier,
    /// The name.
    pub name: &'a str,
    /// The CRC-32 of the plaintext.
    pub crc: u32,
    /// What the file in `pg_wal` was.
    pub fingerprint: Fingerprint,
    /// The size as stored, where this call stored it.
    pub stored_size: Option<u64>,
    /// What its records tell, where they were read.
    pub facts: Option<&'a SegmentFacts>,
    /// The repositories that hold it durably.
    pub copies: &'a [RepositoryStamp],
    /// The URLs of the configured repositories that do not: their backlog.
    pub lacking: Vec<&'a str>,
}

/// What the index knows of all WAL of a cluster.
#[derive(Debug, Clone, Default)]
pub struct WalTotals {
    /// When the newest was archived, in µs since 1970.
    pub newest_archived: Option<i64>,
    /// The time of the newest commit that is archived, in µs since 1970.
    pub newest_commit: Option<i64>,
}

impl Index {
    /// Returns the repositories that held this very file when it was archived; none if it was not.
    pub fn copies_of(
        &self,
        sysid: SystemIdentifier,
        name: &str,
        file: &Fingerprint,
    ) -> Result<Vec<RepositoryStamp>> {
        let read = || -> rusqlite::Result<Vec<RepositoryStamp>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT r.url, r.cluster_id FROM wal w JOIN wal_copy c ON c.wal_id = w.id
                 JOIN repository r ON r.id = c.repository_id
                 WHERE w.sysid = ? AND w.name = ? AND w.device = ? AND w.inode = ? AND w.size = ?
                   AND w.mtime_ns = ? AND w.ctime_ns = ?",
            )?;
            let key = params![
                sysid.to_string(),
                name,
                file.device.cast_signed(),
                file.inode.cast_signed(),
                file.size.cast_signed(),
                file.mtime_ns,
                file.ctime_ns
            ];
            let rows = statement
                .query_map(key, |row| Ok(RepositoryStamp { url: row.get(0)?, cluster_id: row.get(1)? }))?;
            rows.collect()
        };
        sql(read(), "look up a segment")
    }

    /// Writes that files were archived, in one transaction.
    pub fn record_archived(&self, rows: &[ArchivedRow<'_>]) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            self.insert_archived(rows)?;
            transaction.commit()
        };
        sql(write(), "record archived WAL")
    }

    pub(super) fn insert_archived(&self, rows: &[ArchivedRow<'_>]) -> rusqlite::Result<()> {
        for row in rows {
            self.record_one(row)?;
            for url in &row.lacking {
                self.add_to_backlog(row, url)?;
            }
        }
        Ok(())
    }

    fn record_one(&self, row: &ArchivedRow<'_>) -> rusqlite::Result<()> {
        let file = &row.fingerprint;
        let id: i64 = self
            .connection
            .prepare_cached(
                "INSERT INTO wal (sysid, name, crc, size, stored_size, device, inode, mtime_ns, ctime_ns, archived_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT (sysid, name, crc) DO UPDATE SET
                    device = ?6, inode = ?7, mtime_ns = ?8, ctime_ns = ?9, size = ?4,
                    stored_size = coalesce(?5, stored_size)
                 RETURNING id",
            )?
            .query_row(
                params![
                    row.sysid.to_string(),
                    row.name,
                    row.crc,
                    file.size.cast_signed(),
                    row.stored_size.map(u64::cast_signed),
                    file.device.cast_signed(),
                    file.inode.cast_signed(),
                    file.mtime_ns,
                    file.ctime_ns,
                    now_us()
                ],
                |found| found.get(0),
            )?;
        if let Some(facts) = row.facts {
            self.write_facts(id, row.sysid, facts)?;
        }
        for copy in row.copies {
            let repository = self.repository_id(copy)?;
            self.connection
                .prepare_cached("INSERT OR IGNORE INTO wal_copy (wal_id, repository_id) VALUES (?, ?)")?
                .execute([id, repository])?;
        }
        Ok(())
    }

    fn add_to_backlog(&self, row: &ArchivedRow<'_>, url: &str) -> rusqlite::Result<()> {
        let statement = "INSERT OR IGNORE INTO backlog (url, sysid, name, crc) VALUES (?, ?, ?, ?)";
        self.connection.prepare_cached(statement)?.execute(params![
            url,
            row.sysid.to_string(),
            row.name,
            row.crc
        ])?;
        Ok(())
    }

    /// Writes that the repository holds a file that it lacked: out of its backlog, and one more copy.
    pub fn record_copied(
        &self,
        sysid: SystemIdentifier,
        name: &str,
        crc: u32,
        copy: &RepositoryStamp,
    ) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            self.connection.execute(
                "DELETE FROM backlog WHERE url = ? AND sysid = ? AND name = ? AND crc = ?",
                params![copy.url, sysid.to_string(), name, crc],
            )?;
            let repository = self.repository_id(copy)?;
            self.connection.execute(
                "INSERT OR IGNORE INTO wal_copy (wal_id, repository_id)
                 SELECT id, ?1 FROM wal WHERE sysid = ?2 AND name = ?3 AND crc = ?4",
                params![repository, sysid.to_string(), name, crc],
            )?;
            let row = self
                .connection
                .query_row(
                    "SELECT size, coalesce(stored_size, 0) FROM wal WHERE sysid = ? AND name = ? AND crc = ?",
                    params![sysid.to_string(), name, crc],
                    |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned())),
                )
                .optional()?;
            if let Some((size, stored)) = row {
                self.change_held(repository, &sysid.to_string(), (name, size), stored, true)?;
            }
            transaction.commit()
        };
        sql(write(), "record a copy")
    }

    pub(super) fn repository_id(&self, stamp: &RepositoryStamp) -> rusqlite::Result<i64> {
        let known = self
            .connection
            .prepare_cached("SELECT id FROM repository WHERE url = ? AND cluster_id = ?")?
            .query_row([&stamp.url, &stamp.cluster_id], |row| row.get(0))
            .optional()?;
        if let Some(id) = known {
            return Ok(id);
        }
        self.connection.execute(
            "INSERT INTO repository (url, cluster_id) VALUES (?, ?)",
            [&stamp.url, &stamp.cluster_id],
        )?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Returns the ids that were seen in the `cluster.json` of the repository at `url`, newest first.
    pub fn cluster_ids_of(&self, url: &str) -> Result<Vec<String>> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self
                .connection
                .prepare_cached("SELECT cluster_id FROM repository WHERE url = ? ORDER BY id DESC")?;
            let rows = statement.query_map([url], |row| row.get(0))?;
            rows.collect()
        };
        sql(read(), "look up a repository")
    }

    /// Returns how many files only the repository at `url` holds, and the newest of their names.
    pub fn only_in(&self, url: &str) -> Result<(u64, Option<String>)> {
        sql(
            self.connection.query_row(
                "SELECT count(*), max(w.name) FROM wal w
                 WHERE EXISTS (SELECT 1 FROM wal_copy c JOIN repository r ON r.id = c.repository_id
                               WHERE c.wal_id = w.id AND r.url = ?1)
                   AND NOT EXISTS (SELECT 1 FROM wal_copy c JOIN repository r ON r.id = c.repository_id
                                   WHERE c.wal_id = w.id AND r.url <> ?1)",
                [url],
                |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?)),
            ),
            "count what only one repository holds",
        )
    }

    /// Returns the time of the newest commit that is archived, in µs since 1970.
    pub fn newest_commit(&self, sysid: SystemIdentifier) -> Result<Option<i64>> {
        sql(
            self.connection.query_row(
                "SELECT max(last_commit) FROM wal WHERE sysid = ?",
                [sysid.to_string()],
                |row| row.get(0),
            ),
            "read the newest commit",
        )
    }

    /// Returns name and CRC-32 of the segments of `sysid` that hold no commit.
    pub fn without_commits(&self, sysid: SystemIdentifier) -> Result<Vec<(String, u32)>> {
        let read = || -> rusqlite::Result<Vec<(String, u32)>> {
            let mut statement = self
                .connection
                .prepare_cached("SELECT name, crc FROM wal WHERE sysid = ? AND commits = 0")?;
            let rows = statement.query_map([sysid.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        sql(read(), "look for segments without commits")
    }

    /// Returns what the index knows of all WAL of `sysid`.
    pub fn wal_totals(&self, sysid: SystemIdentifier) -> Result<WalTotals> {
        sql(
            self.connection.query_row(
                "SELECT (SELECT archived_at FROM wal INDEXED BY wal_archived
                         WHERE sysid = ?1 ORDER BY archived_at DESC LIMIT 1),
                        (SELECT max(last_commit) FROM wal INDEXED BY wal_newest WHERE sysid = ?1)",
                [sysid.to_string()],
                |row| Ok(WalTotals { newest_archived: row.get(0)?, newest_commit: row.get(1)? }),
            ),
            "look for the newest WAL",
        )
    }

    #[cfg(test)]
    pub(crate) fn wal_files(&self, sysid: SystemIdentifier) -> i64 {
        let count = "SELECT count(*) FROM wal WHERE sysid = ?";
        self.connection.query_row(count, [sysid.to_string()], |row| row.get(0)).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::Lsn;

    fn stamp(url: &str) -> RepositoryStamp {
        RepositoryStamp { url: url.into(), cluster_id: "1".into() }
    }

    #[test]
    fn a_row_answers_only_for_the_very_file_that_was_archived() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let file = Fingerprint { device: 1, inode: u64::MAX, size: 16, mtime_ns: 5, ctime_ns: 6 };
        let sysid = SystemIdentifier(u64::MAX);
        let facts = SegmentFacts {
            commits: 2,
            first_commit: Some(1),
            last_commit: Some(9),
            last_commit_lsn: Some(Lsn(u64::MAX)),
            ..SegmentFacts::default()
        };
        let row = ArchivedRow {
            sysid,
            name: "000000010000000000000001",
            crc: u32::MAX,
            fingerprint: file,
            stored_size: Some(3),
            facts: Some(&facts),
            copies: &[stamp("a"), stamp("b")],
            lacking: vec!["d"],
        };
        index.record_archived(std::slice::from_ref(&row)).unwrap();
        index.record_archived(&[row.clone(), ArchivedRow { copies: &[stamp("c")], ..row.clone() }]).unwrap();
        let copies = |file| index.copies_of(sysid, "000000010000000000000001", &file).unwrap().len();
        assert_eq!(copies(file), 3);
        assert_eq!(index.backlog_count("d").unwrap(), 1);
        index.record_copied(sysid, "000000010000000000000001", u32::MAX, &stamp("d")).unwrap();
        assert_eq!((copies(file), index.backlog_count("d").unwrap()), (4, 0));
        for other in [
            Fingerprint { device: 2, ..file },
            Fingerprint { inode: 2, ..file },
            Fingerprint { size: 2, ..file },
            Fingerprint { mtime_ns: 2, ..file },
            Fingerprint { ctime_ns: 2, ..file },
        ] {
            assert_eq!(copies(other), 0, "{other:?}");
        }
        assert!(index.copies_of(SystemIdentifier(1), "000000010000000000000001", &file).unwrap().is_empty());
        assert_eq!(index.newest_commit(sysid).unwrap(), Some(9));
        assert_eq!(index.without_commits(sysid).unwrap(), []);
        let nothing = SegmentFacts::default();
        let idle = ArchivedRow { name: "000000010000000000000002", facts: Some(&nothing), ..row.clone() };
        let unread = ArchivedRow { name: "000000010000000000000003", facts: None, ..row };
        index.record_archived(&[idle, unread]).unwrap();
        let idle = ("000000010000000000000002".to_owned(), u32::MAX);
        assert_eq!(index.without_commits(sysid).unwrap(), [idle]);
        assert!(index.without_commits(SystemIdentifier(1)).unwrap().is_empty());
        assert_eq!(index.wal_files(sysid), 3);
    }
}
