//! What was verified when: the runs of `verify`, and each object with what was seen of it.

use super::{Index, RepositoryStamp, now_us, sql};
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};
use std::collections::HashMap;

/// The tables, a version of the schema by itself.
pub(super) const SCHEMA: &str = "
CREATE TABLE verification (
    id       INTEGER PRIMARY KEY,
    url      TEXT NOT NULL,
    sysid    TEXT NOT NULL,
    started  INTEGER NOT NULL,
    finished INTEGER NOT NULL,
    deep     INTEGER NOT NULL,
    complete INTEGER NOT NULL,
    problems INTEGER NOT NULL,
    objects  INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    failure  TEXT
);
CREATE INDEX verification_of ON verification (url, sysid, id);
CREATE TABLE verified_store (
    id    INTEGER PRIMARY KEY,
    url   TEXT NOT NULL,
    sysid TEXT NOT NULL,
    UNIQUE (url, sysid)
);
CREATE TABLE verified (
    store    INTEGER NOT NULL REFERENCES verified_store (id) ON DELETE CASCADE,
    key      TEXT NOT NULL,
    size     INTEGER NOT NULL,
    modified INTEGER,
    crc      INTEGER,
    seen_at  INTEGER NOT NULL,
    deep_at  INTEGER,
    PRIMARY KEY (store, key)
) WITHOUT ROWID;
";

/// One run of `verify` over one repository, as it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Whether content was decrypted and checked.
    pub deep: bool,
    /// Whether all was looked at: not limited to a backup or a time, and nothing was in the way.
    pub complete: bool,
    /// How much was found to be wrong.
    pub problems: u64,
    /// The objects that were looked at.
    pub objects: u64,
    /// The bytes that were read of them.
    pub bytes: u64,
    /// What was in the way, as text: the repository could not be reached.
    pub failure: Option<String>,
}

impl Verification {
    /// Returns whether all was looked at and nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.complete && self.problems == 0 && self.failure.is_none()
    }
}

/// What was seen of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The size as stored, in bytes.
    pub size: u64,
    /// When it was written, by the store's clock, in µs since 1970.
    pub modified: Option<i64>,
    /// The CRC-32 of the stored bytes; none where the store keeps none and they were not read.
    pub crc: Option<u32>,
    /// When that was found out, in µs since 1970.
    pub seen_at: i64,
    /// When its content was checked, in µs since 1970.
    pub deep_at: Option<i64>,
}

impl Index {
    /// Writes how a run over the repository at `url` ended.
    pub fn record_verification(&self, url: &str, sysid: SystemIdentifier, run: &Verification) -> Result<()> {
        let statement = "INSERT INTO verification
            (url, sysid, started, finished, deep, complete, problems, objects, bytes, failure)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let row = params![
            url,
            sysid.to_string(),
            run.started.as_microsecond(),
            run.finished.as_microsecond(),
            run.deep,
            run.complete,
            run.problems.cast_signed(),
            run.objects.cast_signed(),
            run.bytes.cast_signed(),
            run.failure
        ];
        sql(self.connection.execute(statement, row), "record a verification")?;
        Ok(())
    }

    /// Returns when the repository at `url` was last found to be whole and clean, in µs since 1970: the end of the last run
    /// that looked at all and found nothing wrong.
    pub fn verified_at(&self, url: &str, sysid: SystemIdentifier) -> Result<Option<i64>> {
        sql(
            self.connection.query_row(
                "SELECT max(finished) FROM verification
                 WHERE url = ? AND sysid = ? AND complete AND problems = 0 AND failure IS NULL",
                params![url, sysid.to_string()],
                |row| row.get(0),
            ),
            "read the last clean verification",
        )
    }

    /// Returns the last run over the repository at `url`, whatever it looked at and however it ended.
    pub fn last_verification(&self, url: &str, sysid: SystemIdentifier) -> Result<Option<Verification>> {
        let read = self
            .connection
            .query_row(
                "SELECT started, finished, deep, complete, problems, objects, bytes, failure FROM verification
                 WHERE url = ? AND sysid = ? ORDER BY id DESC LIMIT 1",
                params![url, sysid.to_string()],
                verification,
            )
            .optional();
        sql(read, "read the last verification")
    }

    /// Returns what was seen of the objects in the repository at `url` whose key begins with `prefix`, by the rest of the key.
    pub fn seen(&self, url: &str, sysid: SystemIdentifier, prefix: &str) -> Result<HashMap<String, Seen>> {
        let read = || -> rusqlite::Result<HashMap<String, Seen>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT substr(v.key, length(?3) + 1), v.size, v.modified, v.crc, v.seen_at, v.deep_at
                 FROM verified v JOIN verified_store s ON s.id = v.store
                 WHERE s.url = ?1 AND s.sysid = ?2 AND v.key >= ?3 AND v.key < ?3 || char(1114111)",
            )?;
            let rows = statement.query_map(params![url, sysid.to_string(), prefix], |row| {
                let seen = Seen {
                    size: row.get::<_, i64>(1)?.cast_unsigned(),
                    modified: row.get(2)?,
                    crc: row.get(3)?,
                    seen_at: row.get(4)?,
                    deep_at: row.get(5)?,
                };
                Ok((row.get(0)?, seen))
            })?;
            rows.collect()
        };
        sql(read(), "read what was verified")
    }

    /// Writes what was seen of objects in the repository at `url`, in one transaction.
    pub fn record_seen(&self, url: &str, sysid: SystemIdentifier, objects: &[(String, Seen)]) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            let store = self.verified_store(url, sysid)?;
            let mut insert = self.connection.prepare_cached(
                "INSERT OR REPLACE INTO verified (store, key, size, modified, crc, seen_at, deep_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?;
            for (key, seen) in objects {
                insert.execute(params![
                    store,
                    key,
                    seen.size.cast_signed(),
                    seen.modified,
                    seen.crc,
                    seen.seen_at,
                    seen.deep_at
                ])?;
            }
            drop(insert);
            transaction.commit()
        };
        sql(write(), "record what was verified")
    }

    /// Forgets objects of the repository at `url`: they are gone, or must be looked at anew.
    pub fn forget_seen(&self, url: &str, sysid: SystemIdentifier, keys: &[String]) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            let store = self.verified_store(url, sysid)?;
            let mut delete =
                self.connection.prepare_cached("DELETE FROM verified WHERE store = ? AND key = ?")?;
            for key in keys {
                delete.execute(params![store, key])?;
            }
            drop(delete);
            transaction.commit()
        };
        sql(write(), "forget what was verified")
    }

    /// Forgets the objects of backups that the repository at `url` does not hold any more: all but those of `ids`.
    pub fn forget_seen_backups(&self, url: &str, sysid: SystemIdentifier, ids: &[String]) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            let store = self.verified_store(url, sysid)?;
            let mut after = "backup/".to_owned();
            let mut next = self.connection.prepare_cached(
                "SELECT key FROM verified WHERE store = ? AND key > ? AND key < 'backup0' ORDER BY key LIMIT 1",
            )?;
            let mut delete = self
                .connection
                .prepare_cached("DELETE FROM verified WHERE store = ? AND key > ? AND key < ?")?;
            // From backup to backup, however many objects each has.
            while let Some(key) =
                next.query_row(params![store, after], |row| row.get::<_, String>(0)).optional()?
            {
                let Some(id) = key.split('/').nth(1) else { break };
                let (begin, end) = (format!("backup/{id}/"), format!("backup/{id}0"));
                if !ids.iter().any(|known| known == id) {
                    delete.execute(params![store, begin, end])?;
                }
                after = end;
            }
            drop((next, delete));
            transaction.commit()
        };
        sql(write(), "forget backups that were verified")
    }

    /// Returns name and CRC-32 of the WAL files from `first` to `last` that the repository held, as far as this host knows; at
    /// most `limit`, in the order of names.
    pub fn held_between(
        &self,
        repository: &RepositoryStamp,
        sysid: SystemIdentifier,
        (first, last): (&str, &str),
        limit: usize,
    ) -> Result<Vec<(String, u32)>> {
        let read = || -> rusqlite::Result<Vec<(String, u32)>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT w.name, w.crc FROM wal w WHERE w.sysid = ?1 AND w.name BETWEEN ?2 AND ?3
                 AND EXISTS (SELECT 1 FROM wal_copy c JOIN repository r ON r.id = c.repository_id
                             WHERE c.wal_id = w.id AND r.url = ?4 AND r.cluster_id = ?5)
                 ORDER BY w.name LIMIT ?6",
            )?;
            let key = params![
                sysid.to_string(),
                first,
                last,
                repository.url,
                repository.cluster_id,
                i64::try_from(limit).unwrap_or(i64::MAX)
            ];
            let rows = statement.query_map(key, |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        sql(read(), "look up what a repository held")
    }

    /// Returns with which sizes in bytes the WAL files from `first` to `last` were stored, by name and CRC-32.
    pub fn stored_sizes(
        &self,
        sysid: SystemIdentifier,
        first: &str,
        last: &str,
    ) -> Result<HashMap<(String, u32), u64>> {
        let read = || -> rusqlite::Result<HashMap<(String, u32), u64>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT name, crc, stored_size FROM wal
                 WHERE sysid = ? AND name BETWEEN ? AND ? AND stored_size IS NOT NULL",
            )?;
            let rows = statement.query_map([&sysid.to_string(), first, last], |row| {
                Ok(((row.get(0)?, row.get(1)?), row.get::<_, i64>(2)?.cast_unsigned()))
            })?;
            rows.collect()
        };
        sql(read(), "read stored sizes")
    }

    fn verified_store(&self, url: &str, sysid: SystemIdentifier) -> rusqlite::Result<i64> {
        let id = sysid.to_string();
        self.connection
            .prepare_cached("INSERT OR IGNORE INTO verified_store (url, sysid) VALUES (?, ?)")?
            .execute([url, &id])?;
        self.connection
            .prepare_cached("SELECT id FROM verified_store WHERE url = ? AND sysid = ?")?
            .query_row([url, &id], |row| row.get(0))
    }
}

/// Returns the key as this table has it: without the cluster and the system identifier that it begins with.
pub fn below_cluster(key: &str) -> &str {
    key.splitn(3, '/').nth(2).unwrap_or(key)
}

impl Seen {
    /// Returns what is known of an object that was written just now, and was not looked at since.
    pub fn written(size: u64, crc: u32) -> Self {
        Self { size, modified: None, crc: Some(crc), seen_at: 0, deep_at: None }
    }

    /// Returns what is seen now of an object that the store lists with this size and time.
    pub fn now(size: u64, modified: Option<Timestamp>, crc: Option<u32>) -> Self {
        let modified = modified.map(Timestamp::as_microsecond);
        Self { size, modified, crc, seen_at: now_us(), deep_at: None }
    }
}

fn verification(row: &Row<'_>) -> rusqlite::Result<Verification> {
    let time =
        |at: usize| Ok::<_, rusqlite::Error>(Timestamp::from_microsecond(row.get(at)?).unwrap_or_default());
    Ok(Verification {
        started: time(0)?,
        finished: time(1)?,
        deep: row.get(2)?,
        complete: row.get(3)?,
        problems: row.get::<_, i64>(4)?.cast_unsigned(),
        objects: row.get::<_, i64>(5)?.cast_unsigned(),
        bytes: row.get::<_, i64>(6)?.cast_unsigned(),
        failure: row.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSID: SystemIdentifier = SystemIdentifier(7);

    fn index() -> (tempfile::TempDir, Index) {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        (dir, index)
    }

    #[test]
    fn only_a_run_over_all_that_found_nothing_counts_as_verified() {
        let (_dir, index) = index();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let clean = Verification {
            started: at(1),
            finished: at(2),
            deep: false,
            complete: true,
            problems: 0,
            objects: 5,
            bytes: 6,
            failure: None,
        };
        let put = |run: &Verification| index.record_verification("a", SYSID, run).unwrap();
        let verified = || index.verified_at("a", SYSID).unwrap();
        assert_eq!((verified(), index.last_verification("a", SYSID).unwrap()), (None, None));
        put(&clean);
        for worse in [
            Verification { complete: false, finished: at(3), ..clean.clone() },
            Verification { problems: 1, finished: at(4), ..clean.clone() },
            Verification { failure: Some("unreachable".into()), finished: at(5), ..clean.clone() },
        ] {
            put(&worse);
            assert!(clean.is_clean() && !worse.is_clean());
            assert_eq!(index.last_verification("a", SYSID).unwrap(), Some(worse));
            assert_eq!(verified(), Some(2_000_000));
        }
        put(&Verification { finished: at(9), ..clean });
        assert_eq!(verified(), Some(9_000_000));
        assert_eq!(index.verified_at("b", SYSID).unwrap(), None);
        assert_eq!(index.verified_at("a", SystemIdentifier(8)).unwrap(), None);
    }

    #[test]
    fn objects_are_remembered_by_store_and_prefix_as_they_were_seen_last() {
        let (_dir, index) = index();
        let seen = |size| Seen { size, modified: Some(1), crc: Some(u32::MAX), seen_at: 5, deep_at: None };
        let put = |url: &str, key: &str, size| {
            index.record_seen(url, SYSID, &[(key.to_owned(), seen(size))]).unwrap();
        };
        put("a", "wal/1/x", 1);
        put("a", "wal/1/x", 2);
        put("a", "wal/2/y", 3);
        put("b", "wal/1/x", 4);
        let found = index.seen("a", SYSID, "wal/1/").unwrap();
        assert_eq!(found, HashMap::from([("x".to_owned(), seen(2))]));
        assert_eq!(index.seen("a", SYSID, "").unwrap().len(), 2);
        index.forget_seen("a", SYSID, &["wal/1/x".to_owned()]).unwrap();
        assert!(index.seen("a", SYSID, "wal/1/").unwrap().is_empty());
        assert_eq!(index.seen("b", SYSID, "wal/1/").unwrap().len(), 1);
        assert!(index.seen("a", SystemIdentifier(8), "").unwrap().is_empty());
        for key in ["backup/1/data/0", "backup/1/m", "backup/2/m", "backup/3/m"] {
            put("a", key, 1);
        }
        index.forget_seen_backups("a", SYSID, &["2".to_owned()]).unwrap();
        assert_eq!(index.seen("a", SYSID, "backup/").unwrap().into_keys().collect::<Vec<_>>(), ["2/m"]);
        assert_eq!(index.seen("a", SYSID, "wal/").unwrap().len(), 1);
    }
}
