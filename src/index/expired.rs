//! Forgetting what a repository no longer holds because it expired there.

use super::{Index, sql};
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use rusqlite::params;

/// A WAL object that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The name under which it was archived.
    pub name: String,
    /// The CRC-32 of the plaintext.
    pub crc: u32,
    /// The object's key.
    pub key: String,
    /// The size of a segment of the cluster in bytes; none for other files, and for a content that was put aside.
    pub segment_size: Option<u64>,
    /// The size as stored, in bytes.
    pub stored_size: u64,
}

impl Index {
    /// Forgets that the repository at `url` holds, or should hold, these objects, in one transaction. A row that no
    /// repository is left for goes, too.
    pub fn forget_expired(&self, url: &str, sysid: SystemIdentifier, removed: &[Removed]) -> Result<()> {
        let sysid = sysid.to_string();
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            {
                let mut copy = transaction.prepare_cached(
                    "DELETE FROM wal_copy WHERE wal_id = (SELECT id FROM wal WHERE sysid = ?1 AND name = ?2 AND crc = ?3)
                     AND repository_id IN (SELECT id FROM repository WHERE url = ?4)",
                )?;
                let mut row = transaction.prepare_cached(
                    "DELETE FROM wal WHERE sysid = ?1 AND name = ?2 AND crc = ?3
                     AND NOT EXISTS (SELECT 1 FROM wal_copy WHERE wal_id = wal.id)",
                )?;
                let mut backlog = transaction.prepare_cached(
                    "DELETE FROM backlog WHERE sysid = ?1 AND name = ?2 AND crc = ?3 AND url = ?4",
                )?;
                let mut damage =
                    transaction.prepare_cached("DELETE FROM damage WHERE key = ?1 AND url = ?2")?;
                let mut seen = transaction.prepare_cached(
                    "DELETE FROM verified WHERE key = ?1
                     AND store IN (SELECT id FROM verified_store WHERE url = ?2 AND sysid = ?3)",
                )?;
                let mut statement = transaction.prepare_cached("SELECT id FROM repository WHERE url = ?")?;
                let repositories: Vec<i64> =
                    statement.query_map([url], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
                for Removed { name, crc, key, segment_size, stored_size } in removed {
                    for repository in repositories.iter().filter(|_| segment_size.is_some()) {
                        let segment = (name.as_str(), segment_size.unwrap_or_default());
                        self.change_held(*repository, &sysid, segment, *stored_size, false)?;
                    }
                    copy.execute(params![sysid, name, crc, url])?;
                    row.execute(params![sysid, name, crc])?;
                    backlog.execute(params![sysid, name, crc, url])?;
                    damage.execute(params![key, url])?;
                    seen.execute(params![super::below_cluster(key), url, sysid])?;
                }
            }
            transaction.commit()
        };
        sql(write(), "forget what expired")
    }
}
