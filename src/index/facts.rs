//! What the records of an archived segment tell.

use super::{Index, sql};
use crate::kind::Result;
use crate::postgres::wal::SegmentSummary;
use crate::postgres::{Lsn, PgTimestamp, SystemIdentifier, WalSegmentName};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

pub(super) const COLUMNS: &str = "
ALTER TABLE wal ADD COLUMN aborts INTEGER;
ALTER TABLE wal ADD COLUMN last_end INTEGER;
ALTER TABLE wal ADD COLUMN first_commit_lsn INTEGER;
ALTER TABLE wal ADD COLUMN last_commit_end_lsn INTEGER;
ALTER TABLE wal ADD COLUMN checkpoints INTEGER;
ALTER TABLE wal ADD COLUMN last_checkpoint_lsn INTEGER;
ALTER TABLE wal ADD COLUMN bad_lsn INTEGER;
ALTER TABLE wal ADD COLUMN bad_reason TEXT;
ALTER TABLE wal ADD COLUMN digested INTEGER NOT NULL DEFAULT 0;
CREATE INDEX wal_undigested ON wal (sysid) WHERE digested = 0 AND aborts IS NOT NULL;
CREATE INDEX wal_commits ON wal (sysid, name) WHERE commits > 0;
CREATE INDEX wal_archived ON wal (archived_at);
CREATE INDEX wal_bad ON wal (sysid, name) WHERE bad_reason IS NOT NULL;
CREATE TABLE timeline_switch (
    sysid    TEXT NOT NULL,
    timeline INTEGER NOT NULL,
    previous INTEGER NOT NULL,
    lsn      INTEGER NOT NULL,
    time     INTEGER NOT NULL,
    PRIMARY KEY (sysid, timeline, lsn)
) WITHOUT ROWID;
";

/// What the index keeps of a segment's records. Times are µs since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SegmentFacts {
    /// Transactions committed.
    pub commits: u64,
    /// Transactions aborted.
    pub aborts: u64,
    /// The earliest time of a commit.
    pub first_commit: Option<i64>,
    /// The latest time of a commit.
    pub last_commit: Option<i64>,
    /// The latest time of a commit or an abort: a recovery to a time before it finds its end here.
    pub last_end: Option<i64>,
    /// Where the first commit's record begins, in the order of the log.
    pub first_commit_lsn: Option<Lsn>,
    /// Where the last commit's record begins.
    pub last_commit_lsn: Option<Lsn>,
    /// Where it ends.
    pub last_commit_end_lsn: Option<Lsn>,
    /// Checkpoints.
    pub checkpoints: u64,
    /// The last of them.
    pub last_checkpoint_lsn: Option<Lsn>,
    /// Timelines that begin in it.
    #[serde(skip)]
    pub switches: Vec<TimelineSwitch>,
    /// The record that cannot be read, if there is one.
    pub bad: Option<BadWal>,
}

/// The beginning of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSwitch {
    /// The new timeline.
    pub timeline: u32,
    /// The one before.
    pub previous: u32,
    /// The position of the record.
    pub lsn: Lsn,
    /// When, in µs since 1970.
    pub time: i64,
}

/// A record that no recovery can pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadWal {
    /// The segment in which it was found.
    pub segment: String,
    /// The position of the record.
    pub lsn: Lsn,
    /// What is wrong with it.
    pub reason: String,
}

fn us(time: PgTimestamp) -> i64 {
    jiff::Timestamp::from(time).as_microsecond()
}

impl SegmentFacts {
    /// Returns what is kept of a segment's summary; none where the version of its WAL is not known.
    pub fn of(segment: &str, summary: &SegmentSummary) -> Option<Self> {
        summary.major_version?;
        Some(Self::read(segment, summary))
    }

    /// Returns what a single record tells; none if that is nothing.
    pub fn of_record(summary: &SegmentSummary) -> Option<Self> {
        let facts = Self::read("", summary);
        (facts != Self::default()).then_some(facts)
    }

    /// Returns these facts with those of a record right before them.
    #[must_use]
    pub fn after(self, before: &Self) -> Self {
        let earlier = |a: Option<i64>, b: Option<i64>| a.into_iter().chain(b).min();
        Self {
            commits: self.commits + before.commits,
            aborts: self.aborts + before.aborts,
            first_commit: earlier(self.first_commit, before.first_commit),
            last_commit: self.last_commit.max(before.last_commit),
            last_end: self.last_end.max(before.last_end),
            first_commit_lsn: before.first_commit_lsn.or(self.first_commit_lsn),
            last_commit_lsn: self.last_commit_lsn.or(before.last_commit_lsn),
            last_commit_end_lsn: self.last_commit_end_lsn.or(before.last_commit_end_lsn),
            checkpoints: self.checkpoints + before.checkpoints,
            last_checkpoint_lsn: self.last_checkpoint_lsn.or(before.last_checkpoint_lsn),
            switches: before.switches.iter().chain(&self.switches).copied().collect(),
            bad: self.bad,
        }
    }

    fn read(segment: &str, summary: &SegmentSummary) -> Self {
        let switches = summary.timeline_switches.iter().map(|switch| TimelineSwitch {
            timeline: switch.timeline.0,
            previous: switch.previous.0,
            lsn: switch.lsn,
            time: us(switch.time),
        });
        // Also where it looks like the end of all WAL: the server handed the segment over as complete.
        let bad = summary.bad_record.as_ref();
        Self {
            commits: summary.commits,
            aborts: summary.aborts,
            first_commit: summary.min_commit_time.map(us),
            last_commit: summary.max_commit_time.map(us),
            last_end: summary.max_end_time.map(us),
            first_commit_lsn: summary.first_commit.map(|commit| commit.lsn),
            last_commit_lsn: summary.last_commit.map(|commit| commit.lsn),
            last_commit_end_lsn: summary.last_commit.map(|commit| commit.end_lsn),
            checkpoints: summary.checkpoints,
            last_checkpoint_lsn: summary.last_checkpoint.map(|checkpoint| checkpoint.lsn),
            switches: switches.collect(),
            bad: bad.map(|bad| BadWal {
                segment: segment.to_owned(),
                lsn: bad.lsn,
                reason: bad.reason.clone(),
            }),
        }
    }
}

impl Index {
    /// Writes what the records of an archived file tell, unless that is known: the same content tells the same, and what
    /// is known may have been completed since by a record that began in the segment before.
    pub(super) fn write_facts(
        &self,
        wal_id: i64,
        sysid: SystemIdentifier,
        facts: &SegmentFacts,
    ) -> rusqlite::Result<()> {
        self.update_facts("id = ?1 AND aborts IS NULL", facts, &[&wal_id])?;
        facts.switches.iter().try_for_each(|switch| self.write_switch(sysid, switch))
    }

    /// Writes facts that are more than what was known.
    pub(super) fn replace_facts(&self, wal_id: i64, facts: &SegmentFacts) -> rusqlite::Result<()> {
        self.update_facts("id = ?1", facts, &[&wal_id])?;
        self.connection.prepare_cached("UPDATE wal SET digested = 0 WHERE id = ?")?.execute([wal_id])?;
        Ok(())
    }

    /// Takes over what somebody else found out about a content; what was found out later counts.
    pub(super) fn take_facts(
        &self,
        sysid: SystemIdentifier,
        name: &str,
        crc: u32,
        facts: &SegmentFacts,
    ) -> rusqlite::Result<()> {
        let which = "sysid = ?1 AND name = ?14 AND crc = ?15";
        self.update_facts(which, facts, &[&sysid.to_string(), &name, &crc])?;
        self.connection
            .prepare_cached("UPDATE wal SET digested = 1 WHERE sysid = ? AND name = ? AND crc = ?")?
            .execute(params![sysid.to_string(), name, crc])?;
        Ok(())
    }

    /// Writes `facts` into the row that `which` chooses by `key`: ?1, and ?14 onward.
    fn update_facts(
        &self,
        which: &str,
        facts: &SegmentFacts,
        key: &[&dyn rusqlite::ToSql],
    ) -> rusqlite::Result<()> {
        let lsn = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.0.cast_signed());
        let mut statement = self.connection.prepare_cached(&format!(
            "UPDATE wal SET commits = ?2, aborts = ?3, first_commit = ?4, last_commit = ?5, last_end = ?6,
                first_commit_lsn = ?7, last_commit_lsn = ?8, last_commit_end_lsn = ?9, checkpoints = ?10,
                last_checkpoint_lsn = ?11, bad_lsn = ?12, bad_reason = ?13
             WHERE {which}"
        ))?;
        let values: [&dyn rusqlite::ToSql; 12] = [
            &facts.commits.cast_signed(),
            &facts.aborts.cast_signed(),
            &facts.first_commit,
            &facts.last_commit,
            &facts.last_end,
            &lsn(facts.first_commit_lsn),
            &lsn(facts.last_commit_lsn),
            &lsn(facts.last_commit_end_lsn),
            &facts.checkpoints.cast_signed(),
            &lsn(facts.last_checkpoint_lsn),
            &lsn(facts.bad.as_ref().map(|bad| bad.lsn)),
            &facts.bad.as_ref().map(|bad| &bad.reason),
        ];
        for (at, value) in key.iter().take(1).chain(&values).chain(key.iter().skip(1)).enumerate() {
            statement.raw_bind_parameter(at + 1, value)?;
        }
        statement.raw_execute()?;
        Ok(())
    }

    pub(super) fn write_switch(
        &self,
        sysid: SystemIdentifier,
        switch: &TimelineSwitch,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO timeline_switch (sysid, timeline, previous, lsn, time) VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![
                sysid.to_string(),
                switch.timeline,
                switch.previous,
                switch.lsn.0.cast_signed(),
                switch.time
            ])?;
        Ok(())
    }

    /// Returns the records that no recovery can pass, in the order of the log; at most `limit`.
    pub fn bad_wal(&self, sysid: SystemIdentifier, limit: usize) -> Result<Vec<BadWal>> {
        let read = || -> rusqlite::Result<Vec<BadWal>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT name, bad_lsn, bad_reason FROM wal WHERE sysid = ? AND bad_reason IS NOT NULL
                 ORDER BY name LIMIT ?",
            )?;
            let rows = statement.query_map(params![sysid.to_string(), limit as i64], |row| {
                Ok(BadWal {
                    segment: row.get(0)?,
                    lsn: lsn_at(row, 1)?.unwrap_or_default(),
                    reason: row.get(2)?,
                })
            })?;
            rows.collect()
        };
        sql(read(), "look for bad records")
    }

    /// Returns the last commit in the segments `first` to `last` of one timeline. None: no commit is known in them.
    pub fn last_commit_within(
        &self,
        sysid: SystemIdentifier,
        first: WalSegmentName,
        last: WalSegmentName,
    ) -> Result<Option<KnownCommit>> {
        let read = self
            .connection
            .prepare_cached(
                "SELECT name, last_commit, last_commit_lsn FROM wal INDEXED BY wal_commits
                 WHERE sysid = ? AND name BETWEEN ? AND ? AND commits > 0 ORDER BY name DESC LIMIT 1",
            )
            .and_then(|mut statement| {
                let key = params![sysid.to_string(), first.to_string(), last.to_string()];
                let read = |row: &Row<'_>| {
                    let name: String = row.get(0)?;
                    Ok((name, row.get(1)?, lsn_at(row, 2)?.unwrap_or_default()))
                };
                statement.query_row(key, read).optional()
            });
        let found: Option<(String, i64, Lsn)> = sql(read, "look for the last commit")?;
        Ok(found.and_then(|(name, time, lsn)| Some(KnownCommit { segment: name.parse().ok()?, time, lsn })))
    }

    /// Returns how many of the segments `first` to `last` of one timeline were read.
    pub fn segments_read(
        &self,
        sysid: SystemIdentifier,
        first: WalSegmentName,
        last: WalSegmentName,
    ) -> Result<u64> {
        let read = self
            .connection
            .prepare_cached(
                "SELECT count(DISTINCT name) FROM wal
                 WHERE sysid = ? AND name BETWEEN ? AND ? AND length(name) = 24 AND aborts IS NOT NULL",
            )
            .and_then(|mut statement| {
                let key = params![sysid.to_string(), first.to_string(), last.to_string()];
                statement.query_row(key, |row| row.get::<_, i64>(0))
            });
        Ok(sql(read, "count segments that were read")?.cast_unsigned())
    }

    /// Returns how many segments were archived since `since` (µs since 1970), and when the first of them was.
    pub fn archived_since(&self, sysid: SystemIdentifier, since: i64) -> Result<(u64, Option<i64>)> {
        let read = self
            .connection
            .prepare_cached(
                "SELECT count(*), min(archived_at) FROM wal
                 WHERE archived_at >= ? AND sysid = ? AND length(name) = 24",
            )
            .and_then(|mut statement| {
                statement.query_row(params![since, sysid.to_string()], |row| {
                    Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?))
                })
            });
        sql(read, "count what was archived lately")
    }
}

/// A commit that the index knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownCommit {
    /// Its segment.
    pub segment: WalSegmentName,
    /// The latest time of a commit in the segment, in µs since 1970.
    pub time: i64,
    /// Where the last commit's record begins.
    pub lsn: Lsn,
}

/// The columns of [`SegmentFacts`].
pub(super) const FACTS: &str =
    "commits, aborts, first_commit, last_commit, last_end, first_commit_lsn, last_commit_lsn,
    last_commit_end_lsn, checkpoints, last_checkpoint_lsn, bad_lsn, bad_reason";

/// Reads the [`FACTS`] of a segment from column `at` onward.
pub(super) fn facts_at(row: &Row<'_>, at: usize, segment: &str) -> rusqlite::Result<SegmentFacts> {
    let count = |column: usize| row.get::<_, i64>(at + column).map(i64::cast_unsigned);
    let bad = match (lsn_at(row, at + 10)?, row.get::<_, Option<String>>(at + 11)?) {
        (Some(lsn), Some(reason)) => Some(BadWal { segment: segment.to_owned(), lsn, reason }),
        _ => None,
    };
    Ok(SegmentFacts {
        commits: count(0)?,
        aborts: count(1)?,
        first_commit: row.get(at + 2)?,
        last_commit: row.get(at + 3)?,
        last_end: row.get(at + 4)?,
        first_commit_lsn: lsn_at(row, at + 5)?,
        last_commit_lsn: lsn_at(row, at + 6)?,
        last_commit_end_lsn: lsn_at(row, at + 7)?,
        checkpoints: count(8)?,
        last_checkpoint_lsn: lsn_at(row, at + 9)?,
        switches: Vec::new(),
        bad,
    })
}

pub(super) fn lsn_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Lsn>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|lsn| Lsn(lsn.cast_unsigned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{ArchivedRow, Fingerprint};

    #[test]
    fn bad_records_and_the_last_commit_of_a_range_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let sysid = SystemIdentifier(7);
        let fingerprint = Fingerprint { device: 1, inode: 1, size: 16, mtime_ns: 5, ctime_ns: 6 };
        let put = |name: &str, facts: &SegmentFacts| {
            let row = ArchivedRow {
                sysid,
                name,
                crc: 1,
                fingerprint,
                stored_size: None,
                facts: Some(facts),
                copies: &[],
                lacking: Vec::new(),
            };
            index.record_archived(&[row]).unwrap();
        };
        let with = |commits, time: i64| SegmentFacts {
            commits,
            last_commit: (commits > 0).then_some(time),
            last_commit_lsn: (commits > 0).then_some(Lsn(time.cast_unsigned())),
            ..SegmentFacts::default()
        };
        put("000000010000000000000001", &with(2, 10));
        put("000000010000000000000002", &with(1, 20));
        put("000000010000000000000003", &with(0, 0));
        let bad = BadWal { segment: "000000010000000000000004".into(), lsn: Lsn(40), reason: "torn".into() };
        put("000000010000000000000004", &SegmentFacts { bad: Some(bad.clone()), ..with(0, 0) });
        let last = |first: &str, last: &str| {
            let found =
                index.last_commit_within(sysid, first.parse().unwrap(), last.parse().unwrap()).unwrap();
            found.map(|commit| (commit.time, commit.lsn))
        };
        assert_eq!(last("000000010000000000000001", "000000010000000000000004"), Some((20, Lsn(20))));
        assert_eq!(last("000000010000000000000001", "000000010000000000000001"), Some((10, Lsn(10))));
        assert_eq!(last("000000010000000000000003", "000000010000000000000004"), None);
        assert_eq!(index.bad_wal(sysid, 10).unwrap(), [bad]);
        let read = |first: &str, last: &str| {
            index.segments_read(sysid, first.parse().unwrap(), last.parse().unwrap()).unwrap()
        };
        assert_eq!(read("000000010000000000000002", "000000010000000000000009"), 3);
        assert_eq!(index.archived_since(sysid, 0).unwrap().0, 4);
        assert_eq!(index.archived_since(sysid, i64::MAX).unwrap(), (0, None));
        put("000000010000000000000002", &with(9, 90));
        assert_eq!(
            last("000000010000000000000001", "000000010000000000000004"),
            Some((20, Lsn(20))),
            "as first read"
        );
    }
}
