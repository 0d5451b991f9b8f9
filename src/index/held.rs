//! What each repository holds, as it was last listed: the segments as bits, the complete backups with their summaries.
//!
//! A listing of everything takes long where there is much. So `status` lists only what is new, and trusts these rows for
//! the rest, which are made anew once a day. A change by another host may be missed until then.

use super::{Index, RepositoryStamp, now_us, sql};
use crate::kind::Result;
use crate::postgres::{CHUNK, ChunkBits, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use rusqlite::{OptionalExtension, params};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const SCHEMA: &str = "
CREATE TABLE held_wal (
    repository_id INTEGER NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    sysid         TEXT NOT NULL,
    timeline      INTEGER NOT NULL,
    chunk         INTEGER NOT NULL,
    bits          BLOB NOT NULL,
    stored_bytes  INTEGER NOT NULL,
    newest_stored INTEGER,
    PRIMARY KEY (repository_id, sysid, timeline, chunk)
) WITHOUT ROWID;
CREATE TABLE held_look (
    repository_id INTEGER NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    sysid         TEXT NOT NULL,
    looked        INTEGER NOT NULL,
    changes       INTEGER NOT NULL,
    PRIMARY KEY (repository_id, sysid)
) WITHOUT ROWID;
CREATE TABLE held_backup (
    repository_id INTEGER NOT NULL REFERENCES repository (id) ON DELETE CASCADE,
    sysid         TEXT NOT NULL,
    id            TEXT NOT NULL,
    PRIMARY KEY (repository_id, sysid, id)
) WITHOUT ROWID;
CREATE TABLE backup_summary (
    sysid   TEXT NOT NULL,
    id      TEXT NOT NULL,
    summary TEXT NOT NULL,
    PRIMARY KEY (sysid, id)
) WITHOUT ROWID;
CREATE INDEX wal_newest ON wal (sysid, last_commit);
";

/// The segments of a chunk that a repository holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldChunk {
    /// Their timeline.
    pub timeline: TimelineId,
    /// Which chunk: the number of its first segment by [`CHUNK`].
    pub chunk: u64,
    /// Which of them.
    pub bits: ChunkBits,
    /// The bytes that they take there.
    pub stored_bytes: u64,
    /// When the one with the highest number was stored, in µs since 1970, where that is known.
    pub newest_stored: Option<i64>,
}

impl HeldChunk {
    /// Returns the chunks of these segments: timeline, number, bytes as stored, when (µs since 1970); in any order.
    pub fn of(segments: impl IntoIterator<Item = (TimelineId, u64, u64, Option<i64>)>) -> Vec<Self> {
        let mut chunks: BTreeMap<(TimelineId, u64), (Self, u64)> = BTreeMap::new();
        for (timeline, number, bytes, stored) in segments {
            let chunk = number / CHUNK;
            let (held, highest) = chunks.entry((timeline, chunk)).or_insert_with(|| {
                let bits = ChunkBits::default();
                (Self { timeline, chunk, bits, stored_bytes: 0, newest_stored: stored }, number)
            });
            held.bits.insert(number);
            held.stored_bytes += bytes;
            if number >= *highest {
                (*highest, held.newest_stored) = (number, stored);
            }
        }
        chunks.into_values().map(|(held, _)| held).collect()
    }
}

/// What was held when it was last looked at.
#[derive(Debug, Clone, Default)]
pub struct HeldWal {
    /// When all of it was listed, in µs since 1970; none: never.
    pub looked: Option<i64>,
    /// How often it was changed by copies and removals: a listing that began before such a change is out of date.
    pub changes: i64,
    /// The chunks, in order.
    pub chunks: Vec<HeldChunk>,
}

impl Index {
    /// Returns which segments of `sysid` the repository held when it was last listed.
    pub fn held_wal(&self, sysid: SystemIdentifier, repository: &RepositoryStamp) -> Result<HeldWal> {
        let read = || -> rusqlite::Result<HeldWal> {
            let (repository, sysid) = (self.repository_id(repository)?, sysid.to_string());
            let look = self
                .connection
                .prepare_cached(
                    "SELECT looked, changes FROM held_look WHERE repository_id = ? AND sysid = ?",
                )?
                .query_row(params![repository, sysid], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((looked, changes)) = look else { return Ok(HeldWal::default()) };
            let mut statement = self.connection.prepare_cached(
                "SELECT timeline, chunk, bits, stored_bytes, newest_stored FROM held_wal
                 WHERE repository_id = ? AND sysid = ? ORDER BY timeline, chunk",
            )?;
            let rows = statement.query_map(params![repository, sysid], |row| {
                let bits: Vec<u8> = row.get(2)?;
                Ok(HeldChunk {
                    timeline: TimelineId(row.get(0)?),
                    chunk: row.get::<_, i64>(1)?.cast_unsigned(),
                    bits: ChunkBits::from_bytes(&bits).unwrap_or_default(),
                    stored_bytes: row.get::<_, i64>(3)?.cast_unsigned(),
                    newest_stored: row.get(4)?,
                })
            })?;
            Ok(HeldWal { looked: Some(looked), changes, chunks: rows.collect::<rusqlite::Result<_>>()? })
        };
        sql(read(), "read what a repository holds")
    }

    /// Writes what a listing of the whole repository found, unless something was changed since `before` was read.
    pub fn replace_held_wal(
        &self,
        sysid: SystemIdentifier,
        repository: &RepositoryStamp,
        before: &HeldWal,
        chunks: &[HeldChunk],
    ) -> Result<()> {
        self.write_held(sysid, repository, before, |id, sysid| {
            self.connection
                .execute("DELETE FROM held_wal WHERE repository_id = ? AND sysid = ?", params![id, sysid])?;
            self.connection.execute(
                "INSERT INTO held_look (repository_id, sysid, looked, changes) VALUES (?, ?, ?, 0)
                 ON CONFLICT (repository_id, sysid) DO UPDATE SET looked = excluded.looked",
                params![id, sysid, now_us()],
            )?;
            chunks.iter().try_for_each(|chunk| self.insert_chunk(id, sysid, chunk))
        })
    }

    /// Writes what a listing of a timeline from a chunk on found, unless something was changed since `before` was read.
    pub fn replace_held_tail(
        &self,
        sysid: SystemIdentifier,
        repository: &RepositoryStamp,
        before: &HeldWal,
        from: (TimelineId, u64),
        chunks: &[HeldChunk],
    ) -> Result<()> {
        self.write_held(sysid, repository, before, |id, sysid| {
            self.connection.execute(
                "DELETE FROM held_wal WHERE repository_id = ? AND sysid = ? AND timeline = ? AND chunk >= ?",
                params![id, sysid, from.0.0, from.1.cast_signed()],
            )?;
            chunks.iter().try_for_each(|chunk| self.insert_chunk(id, sysid, chunk))
        })
    }

    fn write_held(
        &self,
        sysid: SystemIdentifier,
        repository: &RepositoryStamp,
        before: &HeldWal,
        work: impl FnOnce(i64, &str) -> rusqlite::Result<()>,
    ) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            let (id, sysid) = (self.repository_id(repository)?, sysid.to_string());
            let changes: Option<i64> = self
                .connection
                .query_row(
                    "SELECT changes FROM held_look WHERE repository_id = ? AND sysid = ?",
                    params![id, sysid],
                    |row| row.get(0),
                )
                .optional()?;
            if changes.unwrap_or(0) == before.changes {
                work(id, &sysid)?;
            }
            transaction.commit()
        };
        sql(write(), "write what a repository holds")
    }

    fn insert_chunk(&self, repository: i64, sysid: &str, chunk: &HeldChunk) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO held_wal
                    (repository_id, sysid, timeline, chunk, bits, stored_bytes, newest_stored)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                repository,
                sysid,
                chunk.timeline.0,
                chunk.chunk.cast_signed(),
                chunk.bits.to_bytes(),
                chunk.stored_bytes.cast_signed(),
                chunk.newest_stored
            ])
            .map(drop)
    }

    /// Changes the row of a segment's chunk: it was copied to the repository, or removed from it. What is not a segment,
    /// and a repository that was never listed, has no row.
    pub(super) fn change_held(
        &self,
        repository: i64,
        sysid: &str,
        (name, size): (&str, u64),
        stored_size: u64,
        is_held: bool,
    ) -> rusqlite::Result<()> {
        let size = u32::try_from(size).ok().and_then(|size| WalSegmentSize::new(size).ok());
        let (Ok(segment), Some(size)) = (name.parse::<WalSegmentName>(), size) else { return Ok(()) };
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE held_look SET changes = changes + 1 WHERE repository_id = ? AND sysid = ?",
            )?
            .execute(params![repository, sysid])?;
        if changed == 0 {
            return Ok(());
        }
        let (number, timeline) = (segment.number(size), segment.timeline);
        let chunk = number / CHUNK;
        let found: Option<(Vec<u8>, i64, Option<i64>)> = self
            .connection
            .prepare_cached(
                "SELECT bits, stored_bytes, newest_stored FROM held_wal
                 WHERE repository_id = ? AND sysid = ? AND timeline = ? AND chunk = ?",
            )?
            .query_row(params![repository, sysid, timeline.0, chunk.cast_signed()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        let (bits, bytes, newest) = found.unwrap_or_default();
        let mut held = HeldChunk {
            timeline,
            chunk,
            bits: ChunkBits::from_bytes(&bits).unwrap_or_default(),
            stored_bytes: bytes.cast_unsigned(),
            newest_stored: newest,
        };
        if is_held && held.bits.insert(number) {
            held.stored_bytes += stored_size;
        } else if !is_held && held.bits.remove(number) {
            held.stored_bytes = held.stored_bytes.saturating_sub(stored_size);
            // Which it was is not known.
            held.newest_stored = None;
        }
        if held.bits == ChunkBits::default() {
            return self
                .connection
                .prepare_cached(
                    "DELETE FROM held_wal WHERE repository_id = ? AND sysid = ? AND timeline = ? AND chunk = ?",
                )?
                .execute(params![repository, sysid, timeline.0, chunk.cast_signed()])
                .map(drop);
        }
        self.insert_chunk(repository, sysid, &held)
    }

    /// Returns the ids of the backups that the repository was seen to hold.
    pub fn held_backups(
        &self,
        sysid: SystemIdentifier,
        repository: &RepositoryStamp,
    ) -> Result<BTreeSet<String>> {
        let read = || -> rusqlite::Result<BTreeSet<String>> {
            let id = self.repository_id(repository)?;
            let mut statement = self
                .connection
                .prepare_cached("SELECT id FROM held_backup WHERE repository_id = ? AND sysid = ?")?;
            let rows = statement.query_map(params![id, sysid.to_string()], |row| row.get(0))?;
            rows.collect()
        };
        sql(read(), "read which backups a repository holds")
    }

    /// Writes which backups the repository holds.
    pub fn replace_held_backups(
        &self,
        sysid: SystemIdentifier,
        repository: &RepositoryStamp,
        ids: &BTreeSet<String>,
    ) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            let (repository, sysid) = (self.repository_id(repository)?, sysid.to_string());
            self.connection.execute(
                "DELETE FROM held_backup WHERE repository_id = ? AND sysid = ?",
                params![repository, sysid],
            )?;
            {
                let mut insert = self
                    .connection
                    .prepare_cached("INSERT INTO held_backup (repository_id, sysid, id) VALUES (?, ?, ?)")?;
                ids.iter().try_for_each(|id| insert.execute(params![repository, sysid, id]).map(drop))?;
            }
            self.connection.execute(
                "DELETE FROM backup_summary WHERE sysid = ?1
                    AND id NOT IN (SELECT id FROM held_backup WHERE sysid = ?1)",
                [&sysid],
            )?;
            transaction.commit()
        };
        sql(write(), "write which backups a repository holds")
    }

    /// Writes that the repository at `url` does not hold the backup any more.
    pub fn forget_backup(&self, url: &str, sysid: SystemIdentifier, id: &str) -> Result<()> {
        let write = self.connection.execute(
            "DELETE FROM held_backup WHERE sysid = ?1 AND id = ?2
                AND repository_id IN (SELECT id FROM repository WHERE url = ?3)",
            params![sysid.to_string(), id, url],
        );
        sql(write.map(drop), "forget a backup")
    }

    /// Returns the summaries of backups, by id.
    pub fn backup_summaries(&self, sysid: SystemIdentifier) -> Result<BTreeMap<String, String>> {
        let read = || -> rusqlite::Result<BTreeMap<String, String>> {
            let mut statement =
                self.connection.prepare_cached("SELECT id, summary FROM backup_summary WHERE sysid = ?")?;
            let rows = statement.query_map([sysid.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        sql(read(), "read the summaries of backups")
    }

    /// Writes the summary of a backup: nobody ever changes it.
    pub fn record_backup_summary(&self, sysid: SystemIdentifier, id: &str, summary: &str) -> Result<()> {
        let write = self
            .connection
            .prepare_cached("INSERT OR REPLACE INTO backup_summary (sysid, id, summary) VALUES (?, ?, ?)")
            .and_then(|mut statement| statement.execute(params![sysid.to_string(), id, summary]));
        sql(write.map(drop), "write the summary of a backup")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{ArchivedRow, Fingerprint, ListedFile, Removed};

    const SYSID: SystemIdentifier = SystemIdentifier(7);
    const ONE: TimelineId = TimelineId(1);

    fn stamp(url: &str) -> RepositoryStamp {
        RepositoryStamp { url: url.into(), cluster_id: "1".into() }
    }

    fn name(number: u64) -> String {
        WalSegmentName::from_number(ONE, number, WalSegmentSize::DEFAULT).to_string()
    }

    fn segments(chunks: &[HeldChunk]) -> Vec<u64> {
        let numbers = |held: &HeldChunk| {
            let (bits, first) = (held.bits, held.chunk * CHUNK);
            (first..first + CHUNK).filter(move |number| bits.contains(*number)).collect::<Vec<_>>()
        };
        chunks.iter().flat_map(numbers).collect()
    }

    #[test]
    fn a_listing_replaces_what_was_known_from_there_on() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        assert_eq!(index.held_wal(SYSID, &stamp("a")).unwrap().looked, None);
        let all = HeldChunk::of((3..600u64).map(|number| (ONE, number, 10, Some(number.cast_signed()))));
        index.replace_held_wal(SYSID, &stamp("a"), &HeldWal::default(), &all).unwrap();
        let held = index.held_wal(SYSID, &stamp("a")).unwrap();
        assert_eq!(held.chunks, all);
        assert!(held.looked.is_some());
        assert_eq!(segments(&held.chunks), (3..600).collect::<Vec<_>>());
        assert_eq!((all[0].stored_bytes, all[2].newest_stored), (2530, Some(599)));

        let tail = HeldChunk::of((512..700).filter(|n| *n != 650).map(|number| (ONE, number, 20, None)));
        index.replace_held_tail(SYSID, &stamp("a"), &held, (ONE, 2), &tail).unwrap();
        let held = index.held_wal(SYSID, &stamp("a")).unwrap();
        assert_eq!(segments(&held.chunks), (3..700).filter(|n| *n != 650).collect::<Vec<_>>());
        assert!(index.held_wal(SYSID, &stamp("b")).unwrap().chunks.is_empty());
        assert!(index.held_wal(SystemIdentifier(8), &stamp("a")).unwrap().chunks.is_empty());
    }

    #[test]
    fn copies_and_removals_change_it_and_outdate_a_listing_that_is_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let row = ArchivedRow {
            sysid: SYSID,
            name: &name(5),
            crc: 1,
            fingerprint: Fingerprint { device: 1, inode: 1, size: 16 << 20, mtime_ns: 5, ctime_ns: 6 },
            stored_size: Some(7),
            facts: None,
            copies: &[stamp("a")],
            lacking: vec!["b"],
        };
        index.record_archived(&[row]).unwrap();
        let listed = HeldChunk::of([(ONE, 4, 9, None)]);
        index.replace_held_wal(SYSID, &stamp("b"), &HeldWal::default(), &listed).unwrap();
        let before = index.held_wal(SYSID, &stamp("b")).unwrap();
        index.record_copied(SYSID, &name(5), 1, &stamp("b")).unwrap();
        index.replace_held_wal(SYSID, &stamp("b"), &before, &listed).unwrap();
        let held = index.held_wal(SYSID, &stamp("b")).unwrap();
        assert_eq!((segments(&held.chunks), held.chunks[0].stored_bytes), (vec![4, 5], 16));

        let removed = |number: u64| Removed {
            name: name(number),
            crc: 1,
            key: String::new(),
            segment_size: Some(16 << 20),
            stored_size: 9,
        };
        index.forget_expired("b", SYSID, &[removed(4)]).unwrap();
        let held = index.held_wal(SYSID, &stamp("b")).unwrap();
        assert_eq!((segments(&held.chunks), held.chunks[0].stored_bytes), (vec![5], 7));
        index.forget_expired("b", SYSID, &[removed(5)]).unwrap();
        assert!(index.held_wal(SYSID, &stamp("b")).unwrap().chunks.is_empty());

        let file = |number: u64| ListedFile {
            name: name(number),
            crc: 1,
            size: 16 << 20,
            stored_size: 3,
            stored_at: Some(5),
        };
        index.record_listed(SYSID, &stamp("c"), &[file(1), file(2)]).unwrap();
        let held = index.held_wal(SYSID, &stamp("c")).unwrap();
        assert_eq!((segments(&held.chunks), held.chunks[0].stored_bytes), (vec![1, 2], 6));
    }

    #[test]
    fn summaries_stay_while_a_repository_holds_the_backup() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
        index.record_backup_summary(SYSID, "x", "{}").unwrap();
        index.record_backup_summary(SYSID, "y", "{}").unwrap();
        index.replace_held_backups(SYSID, &stamp("a"), &ids(&["x", "y"])).unwrap();
        index.replace_held_backups(SYSID, &stamp("b"), &ids(&["x"])).unwrap();
        index.forget_backup("a", SYSID, "x").unwrap();
        assert_eq!(index.held_backups(SYSID, &stamp("a")).unwrap(), ids(&["y"]));
        index.replace_held_backups(SYSID, &stamp("a"), &ids(&[])).unwrap();
        assert_eq!(index.backup_summaries(SYSID).unwrap().into_keys().collect::<Vec<_>>(), ["x"]);
        assert_eq!(index.held_backups(SYSID, &stamp("b")).unwrap(), ids(&["x"]));
        assert!(index.held_backups(SYSID, &stamp("a")).unwrap().is_empty());
    }
}
