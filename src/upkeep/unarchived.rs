//! The oldest commit that a repository would lose: of what it lacks of the archive, and of what is not archived at all.
//!
//! What is not archived is read from `pg_wal` on this machine: segments with a `.ready`, and the one that is being written.
//! What a repository lacks of the archive the index knows, or `pg_wal` still has it.

use crate::index::IndexHandle;
use crate::postgres::wal::{Nobody, ReaderOptions, SegmentSummary, Summarizer};
use crate::postgres::{ControlFile, PgTimestamp, SegmentHeader, SystemIdentifier, WalSegmentName};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// How much of `pg_wal` is read at most, in bytes. The first commit is nearly always in the first segment.
const MOST: u64 = 512 << 20;
/// How many segments of a backlog are looked at.
pub const LOOKED_AT: usize = 1000;
const BUFFER: usize = 256 << 10;

/// What is not archived on this machine.
#[derive(Debug)]
pub struct Unarchived {
    pg_wal: PathBuf,
    sysid: SystemIdentifier,
    /// In the order of names: those with a `.ready`, and those that the server has not finished.
    waiting: BTreeSet<WalSegmentName>,
}

impl Unarchived {
    /// Looks into `pg_wal` of the data directory. Returns none where there is none, or it is another cluster's.
    pub fn look(data_dir: &Path, sysid: SystemIdentifier) -> Option<Self> {
        let control = ControlFile::parse(&std::fs::read(data_dir.join("global/pg_control")).ok()?).ok()?;
        if control.system_identifier != sysid {
            return None;
        }
        let pg_wal = data_dir.join("pg_wal");
        let names = |dir: PathBuf| -> Option<Vec<String>> {
            let entries = std::fs::read_dir(dir).ok()?.flatten();
            Some(entries.filter_map(|entry| entry.file_name().into_string().ok()).collect())
        };
        let status: BTreeSet<String> = names(pg_wal.join("archive_status"))?.into_iter().collect();
        let redo = WalSegmentName::containing(control.timeline, control.redo, control.wal_segment_size);
        let is_waiting = |segment: &WalSegmentName| {
            let has = |ending: &str| status.contains(&format!("{segment}.{ending}"));
            // Recycled files, which are there for later, come after the one that is written; see `is_of`.
            has("ready") || (!has("done") && *segment >= redo)
        };
        let segments = names(pg_wal.clone())?.into_iter().filter_map(|name| name.parse().ok());
        Some(Self { pg_wal, sysid, waiting: segments.filter(is_waiting).collect() })
    }

    /// Returns how many bytes were read of a segment in `pg_wal`, and the time of the earliest commit in it. A recycled file
    /// that is there for later still holds the records of the segment that it was: that is none.
    fn first_commit_in(&self, segment: WalSegmentName) -> (u64, Option<PgTimestamp>) {
        let Ok(mut file) = File::open(self.pg_wal.join(segment.to_string())) else { return (0, None) };
        let mut summarizer = Summarizer::new(ReaderOptions::default(), None);
        let mut buffer = vec![0; BUFFER];
        let mut length = 0;
        while let Ok(read @ 1..) = file.read(&mut buffer) {
            if length == 0 && !is_of(segment, &buffer[..read]) {
                return (read as u64, None);
            }
            summarizer.push(&buffer[..read]);
            length += read as u64;
        }
        let (summary, _, Nobody): (SegmentSummary, _, _) = summarizer.finish();
        let own = summary.system_identifier == Some(self.sysid);
        (length, summary.min_commit_time.filter(|_| own))
    }
}

/// Returns whether a segment's file that begins so holds its own WAL: one that the server recycled has the new name and the
/// old content until it is written (`xlog.c`, `InstallXLogFileSegment`).
fn is_of(segment: WalSegmentName, head: &[u8]) -> bool {
    SegmentHeader::parse(head).is_ok_and(|header| header.page_address == segment.start(header.segment_size))
}

/// Returns the time of the oldest commit that a repository does not hold; none if there is no such commit. It lacks
/// `lacking` of the archive, holds what `holds` says, and what is not archived waits `here`, if that can be looked at.
pub fn oldest_commit(
    here: Option<&Unarchived>,
    lacking: &BTreeSet<WalSegmentName>,
    holds: &dyn Fn(WalSegmentName) -> bool,
    sysid: SystemIdentifier,
    index: &IndexHandle,
) -> Option<Timestamp> {
    let mut read = 0;
    // What look-ahead has archived keeps its .ready until the server asks for it.
    let waiting = here.into_iter().flat_map(|here| &here.waiting).filter(|segment| !holds(**segment));
    for segment in lacking.iter().take(LOOKED_AT).chain(waiting) {
        let known = index.run(|index| index.first_commit(sysid, &segment.to_string())).flatten();
        let found = match (known.filter(|_| lacking.contains(segment)), here) {
            (Some(first), _) => first.and_then(|us| Timestamp::from_microsecond(us).ok()),
            (None, Some(here)) if read < MOST => {
                let (length, first) = here.first_commit_in(*segment);
                read += length;
                first.map(Timestamp::from)
            }
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Returns the segments in the backlog that the index knows of the repository at `url`.
pub fn backlog(url: &str, sysid: SystemIdentifier, index: &IndexHandle) -> BTreeSet<WalSegmentName> {
    let missing = index.run(|index| index.backlog(sysid, url, usize::MAX)).unwrap_or_default();
    missing.into_iter().filter_map(|file| file.name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_segment_is_not_that_of_its_name() {
        let page = include_bytes!("../../tests/golden/wal-15-first-page");
        let header = SegmentHeader::parse(page).unwrap();
        let own = WalSegmentName::containing(header.timeline, header.page_address, header.segment_size);
        assert!(is_of(own, page));
        assert!(!is_of(own.next(header.segment_size), page));
        assert!(!is_of(own, &[0; 8192]));
    }
}
