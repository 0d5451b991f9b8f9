//! What Walden notes down about every segment that it archives.

use serde::{Deserialize, Serialize};

use super::super::{Lsn, PgTimestamp, SystemIdentifier};
use super::carry::Carry;
use super::outcome::{ReadOutcome, ReaderOptions, SegmentEnd, WalVersion};
use super::reader::RecordReader;
use super::record::{Record, ResourceManager};
use super::stop::Stop;
use super::transaction::{TransactionEnd, TransactionOutcome};
use super::visitor::{Both, Nobody, RecordVisitor};
use super::xlog::{self, Checkpoint, EndOfRecovery, RestorePoint};

/// How many restore points, and how many ends of recovery, a summary lists at most.
const MAX_LISTED: usize = 10_000;

/// Where and when a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionPoint {
    /// When.
    pub time: PgTimestamp,
    /// The start of its record: a recovery to this LSN stops after it, an exclusive one before it.
    pub lsn: Lsn,
    /// The end of its record.
    pub end_lsn: Lsn,
    /// The transaction.
    pub xid: u32,
}

/// Where and why a segment's WAL cannot be read further.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRecord {
    /// The position of the record, which may be in the segment before.
    pub lsn: Lsn,
    /// What is wrong with it, in words.
    pub reason: String,
    /// Whether it looks like the place after a server's last record. In a partial segment, or in one that is being
    /// written, that is no fault; in one that PostgreSQL handed over as complete, WAL is missing.
    pub is_end_of_wal: bool,
}

impl From<Stop> for BadRecord {
    fn from(stop: Stop) -> Self {
        Self { lsn: stop.lsn, reason: stop.reason.to_string(), is_end_of_wal: stop.reason.is_end_of_wal() }
    }
}

/// What a segment's records tell. A record that crosses two segments counts in the second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentSummary {
    /// The magic number of the segment's pages; 0 if there was not one page.
    pub magic: u16,
    /// The server's major version; `None` stands for a version whose WAL cannot be read, and the rest is empty.
    pub major_version: Option<u32>,
    /// The cluster that wrote the segment.
    pub system_identifier: Option<SystemIdentifier>,
    /// Records that end in this segment.
    pub records: u64,
    /// The end of the last good record.
    pub valid_end: Lsn,
    /// Transactions committed.
    pub commits: u64,
    /// Transactions aborted.
    pub aborts: u64,
    /// The first commit in the order of the log.
    pub first_commit: Option<TransactionPoint>,
    /// The last commit in the order of the log.
    pub last_commit: Option<TransactionPoint>,
    /// The earliest time of a commit: times do not increase strictly with the log.
    pub min_commit_time: Option<PgTimestamp>,
    /// The latest time of a commit.
    pub max_commit_time: Option<PgTimestamp>,
    /// The latest time of a commit or an abort; a recovery to a time up to this one finds its end here.
    pub max_end_time: Option<PgTimestamp>,
    /// The restore points, at most 10,000.
    pub restore_points: Vec<RestorePoint>,
    /// Checkpoints.
    pub checkpoints: u64,
    /// The last of them.
    pub last_checkpoint: Option<Checkpoint>,
    /// Timelines that begin here, at most 10,000.
    pub timeline_switches: Vec<EndOfRecovery>,
    /// Whether the segment was ended early by a switch.
    pub switched: bool,
    /// What ended the reading before the segment's end, or is wrong with the record that the segment continues.
    pub bad_record: Option<BadRecord>,
}

impl SegmentSummary {
    fn transaction(&mut self, record: &Record<'_>) {
        let Some(end) = TransactionEnd::decode(record) else { return };
        self.max_end_time = self.max_end_time.max(Some(end.time));
        if end.outcome == TransactionOutcome::Aborted {
            self.aborts += 1;
            return;
        }
        let point =
            TransactionPoint { time: end.time, lsn: record.lsn, end_lsn: record.end_lsn, xid: end.xid };
        self.commits += 1;
        self.first_commit.get_or_insert(point);
        self.last_commit = Some(point);
        self.min_commit_time = Some(self.min_commit_time.map_or(end.time, |time| time.min(end.time)));
        self.max_commit_time = self.max_commit_time.max(Some(end.time));
    }

    fn xlog(&mut self, record: &Record<'_>) {
        if let Some(checkpoint) = Checkpoint::decode(record) {
            self.checkpoints += 1;
            self.last_checkpoint = Some(checkpoint);
        }
        if self.timeline_switches.len() < MAX_LISTED {
            self.timeline_switches.extend(EndOfRecovery::decode(record));
        }
        if self.restore_points.len() < MAX_LISTED {
            self.restore_points.extend(RestorePoint::decode(record));
        }
    }

    fn conclude(mut self, outcome: ReadOutcome) -> (Self, Option<Carry>) {
        (self.magic, self.major_version) = match outcome.version {
            Some(WalVersion::Known { magic, major_version }) => (magic, Some(major_version)),
            Some(WalVersion::Unknown { magic }) => (magic, None),
            None => (0, None),
        };
        self.system_identifier = outcome.header.map(|header| header.system_identifier);
        self.records = outcome.records;
        self.valid_end = outcome.valid_end;
        self.switched = outcome.end == SegmentEnd::Switched;
        let stop = match outcome.end {
            SegmentEnd::Stopped(stop) => Some(stop),
            SegmentEnd::Full | SegmentEnd::Switched | SegmentEnd::UnknownVersion => None,
        };
        // The first of the two in the order of the log.
        self.bad_record = outcome.broken_carry.or(stop).map(BadRecord::from);
        (self, outcome.carry)
    }
}

impl RecordVisitor for SegmentSummary {
    #[inline]
    fn visit(&mut self, record: &Record<'_>) {
        match record.rmid {
            ResourceManager::TRANSACTION => self.transaction(record),
            ResourceManager::XLOG if xlog::is_decoded(record.rmid, record.info) => self.xlog(record),
            _ => {}
        }
    }

    fn wants(&self, rmid: u8, info: u8) -> bool {
        rmid == ResourceManager::TRANSACTION || xlog::is_decoded(rmid, info)
    }
}

/// Summarises a segment whose bytes are pushed in chunks, and lets another visitor see the records too.
#[derive(Debug)]
pub struct Summarizer<V = Nobody> {
    reader: RecordReader,
    visitors: Both<SegmentSummary, V>,
}

impl Summarizer {
    /// Returns a summarizer; `carry` is what the summary of the segment before left, if that is at hand.
    pub fn new(options: ReaderOptions, carry: Option<Carry>) -> Self {
        Self::with_visitor(options, carry, Nobody)
    }
}

impl<V: RecordVisitor> Summarizer<V> {
    /// Returns a summarizer that shows every record to `visitor` too.
    pub fn with_visitor(options: ReaderOptions, carry: Option<Carry>, visitor: V) -> Self {
        let visitors = Both(SegmentSummary::default(), visitor);
        Self { reader: RecordReader::new(options, carry), visitors }
    }

    /// Reads on.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reader.push(bytes, &mut self.visitors);
    }

    /// Returns the summary, what to hand to the summary of the next segment, and the visitor.
    pub fn finish(self) -> (SegmentSummary, Option<Carry>, V) {
        let Both(summary, visitor) = self.visitors;
        let (summary, carry) = summary.conclude(self.reader.finish());
        (summary, carry, visitor)
    }
}

/// Returns the summary of a segment, and what to hand to the summary of the next.
pub fn summarize(segment: &[u8], carry: Option<Carry>) -> (SegmentSummary, Option<Carry>) {
    let mut summarizer = Summarizer::new(ReaderOptions::default(), carry);
    summarizer.push(segment);
    let (summary, carry, Nobody) = summarizer.finish();
    (summary, carry)
}
