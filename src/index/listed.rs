//! What repositories list, taken into the index: of a repository's content the repository is the judge.

use super::{HeldChunk, Index, RepositoryStamp, now_us, sql};
use crate::kind::Result;
use crate::postgres::{SystemIdentifier, WalSegmentName, WalSegmentSize};
use rusqlite::params;
use std::collections::BTreeSet;

/// A WAL file that a repository listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Its name.
    pub name: String,
    /// The CRC-32 of its content.
    pub crc: u32,
    /// The size of its content in bytes, where the name tells it.
    pub size: u64,
    /// The size as stored, in bytes.
    pub stored_size: u64,
    /// When it was stored, in µs since 1970.
    pub stored_at: Option<i64>,
}

impl Index {
    /// Writes that the repository holds these files of `sysid`, and no others.
    pub fn record_listed(
        &self,
        sysid: SystemIdentifier,
        repository: &RepositoryStamp,
        files: &[ListedFile],
    ) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            let repository = self.repository_id(repository)?;
            self.connection.execute_batch(
                "CREATE TEMP TABLE IF NOT EXISTS listed (wal_id INTEGER PRIMARY KEY); DELETE FROM listed",
            )?;
            let id = sysid.to_string();
            {
                let mut insert = self.connection.prepare_cached(
                    "INSERT INTO wal (sysid, name, crc, size, stored_size, archived_at) VALUES (?, ?, ?, ?, ?, ?)
                     ON CONFLICT (sysid, name, crc) DO UPDATE SET stored_size = coalesce(stored_size, excluded.stored_size)
                     RETURNING id",
                )?;
                let mut copy = self
                    .connection
                    .prepare_cached("INSERT OR IGNORE INTO wal_copy (wal_id, repository_id) VALUES (?, ?)")?;
                let mut listed =
                    self.connection.prepare_cached("INSERT OR IGNORE INTO listed (wal_id) VALUES (?)")?;
                for file in files {
                    let row = params![
                        id,
                        file.name,
                        file.crc,
                        file.size.cast_signed(),
                        file.stored_size.cast_signed(),
                        file.stored_at.unwrap_or_else(now_us)
                    ];
                    let wal: i64 = insert.query_row(row, |row| row.get(0))?;
                    copy.execute([wal, repository])?;
                    listed.execute([wal])?;
                }
            }
            self.connection.execute(
                "DELETE FROM wal_copy WHERE repository_id = ?1 AND wal_id NOT IN (SELECT wal_id FROM listed)
                    AND wal_id IN (SELECT id FROM wal WHERE sysid = ?2)",
                params![repository, id],
            )?;
            transaction.commit()
        };
        sql(write(), "take over a listing")?;
        let before = self.held_wal(sysid, repository)?;
        let chunks = HeldChunk::of(files.iter().filter_map(|file| {
            let segment: WalSegmentName = file.name.parse().ok()?;
            let size = WalSegmentSize::new(u32::try_from(file.size).ok()?).ok()?;
            Some((segment.timeline, segment.number(size), file.stored_size, file.stored_at))
        }));
        self.replace_held_wal(sysid, repository, &before, &chunks)?;
        // Of these it was not told; they are looked for anew.
        self.replace_held_backups(sysid, repository, &BTreeSet::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{ArchivedRow, Fingerprint};

    #[test]
    fn a_listing_adds_what_is_there_and_takes_away_what_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let sysid = SystemIdentifier(7);
        let stamp = |url: &str| RepositoryStamp { url: url.into(), cluster_id: "1".into() };
        let fingerprint = Fingerprint { device: 1, inode: 1, size: 16, mtime_ns: 5, ctime_ns: 6 };
        let archived = ["000000010000000000000001", "000000010000000000000002"];
        for name in archived {
            let row = ArchivedRow {
                sysid,
                name,
                crc: 1,
                fingerprint,
                stored_size: Some(8),
                facts: None,
                copies: &[stamp("a"), stamp("b")],
                lacking: Vec::new(),
            };
            index.record_archived(&[row]).unwrap();
        }
        let listed = |name: &str| ListedFile {
            name: name.into(),
            crc: 1,
            size: 16,
            stored_size: 9,
            stored_at: Some(5),
        };
        let files = [listed(archived[1]), listed("000000010000000000000003")];
        index.record_listed(sysid, &stamp("a"), &files).unwrap();
        index.record_listed(sysid, &stamp("a"), &files).unwrap();
        let copies = |name: &str| {
            let held = index.copies_of(sysid, name, &fingerprint).unwrap();
            held.into_iter().map(|copy| copy.url).collect::<Vec<_>>()
        };
        assert_eq!(copies(archived[0]), ["b"]);
        assert_eq!(copies(archived[1]).len(), 2);
        assert_eq!(index.stored_size(sysid, archived[1], 1).unwrap(), Some(8), "as it was known");
        assert_eq!(index.stored_size(sysid, "000000010000000000000003", 1).unwrap(), Some(9));
        assert_eq!(copies("000000010000000000000003"), [""; 0], "it is of no file here");
        assert_eq!(index.wal_files(sysid), 3);
    }
}
