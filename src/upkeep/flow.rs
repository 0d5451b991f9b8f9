//! How fast the server writes WAL, and for how long its disk takes it when nothing is archived.

use crate::durable::disk_space;
use crate::index::Index;
use crate::kind::Result;
use crate::postgres::{SystemIdentifier, WalSegmentName, WalSegmentSize};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::path::Path;

/// Over which time the rate is measured.
const SPAN: SignedDuration = SignedDuration::from_hours(1);

/// The WAL of a server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flow {
    /// Bytes a second, of segments that were archived or became ready to be archived during the last hour.
    pub bytes_per_second: u64,
    /// The free bytes of pg_wal's disk; none if it is not on this machine.
    pub free_bytes: Option<u64>,
    /// After how many seconds the disk is full at this rate when nothing is archived; none at no rate.
    pub full_after_seconds: Option<u64>,
}

/// Measures the WAL of `sysid`, whose server's `pg_wal` may be on this machine.
pub fn flow(
    index: &Index,
    sysid: SystemIdentifier,
    size: WalSegmentSize,
    pg_wal: &Path,
    now: Timestamp,
) -> Result<Flow> {
    let since = now.checked_sub(SPAN).unwrap_or(Timestamp::MIN);
    let (archived, _) = index.archived_since(sysid, since.as_microsecond())?;
    // Where archiving stands still only the server's own marks tell.
    let segments = archived.max(ready_since(pg_wal, since));
    let free = disk_space(pg_wal).ok().map(|space| space.free);
    Ok(Flow::of(segments.saturating_mul(size.bytes()) / SPAN.as_secs().unsigned_abs(), free))
}

/// Returns how many segments the server has marked as ready since then.
fn ready_since(pg_wal: &Path, since: Timestamp) -> u64 {
    let entries = std::fs::read_dir(pg_wal.join("archive_status")).into_iter().flatten().flatten();
    let is_new = |entry: &std::fs::DirEntry| {
        let marked = entry.metadata().and_then(|meta| meta.modified()).ok()?;
        let name = entry.file_name();
        let segment = name.to_str()?.strip_suffix(".ready")?;
        Some(segment.parse::<WalSegmentName>().is_ok() && Timestamp::try_from(marked).ok()? >= since)
    };
    entries.filter(|entry| is_new(entry) == Some(true)).count() as u64
}

impl Flow {
    fn of(bytes_per_second: u64, free_bytes: Option<u64>) -> Self {
        let full = free_bytes.and_then(|free| free.checked_div(bytes_per_second));
        Self { bytes_per_second, free_bytes, full_after_seconds: full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_does_not_hide_what_the_server_writes() {
        let dir = tempfile::tempdir().unwrap();
        let marks = dir.path().join("pg_wal/archive_status");
        std::fs::create_dir_all(&marks).unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let measure = || {
            let pg_wal = dir.path().join("pg_wal");
            flow(&index, SystemIdentifier(7), WalSegmentSize::DEFAULT, &pg_wal, Timestamp::now()).unwrap()
        };
        assert_eq!(measure().bytes_per_second, 0);
        for name in
            ["000000010000000000000001.ready", "000000010000000000000002.ready", "00000002.history.ready"]
        {
            std::fs::write(marks.join(name), "").unwrap();
        }
        assert_eq!(measure().bytes_per_second, 2 * (16 << 20) / 3600);
    }

    #[test]
    fn a_server_that_writes_nothing_fills_no_disk() {
        assert_eq!(Flow::of(0, Some(100)).full_after_seconds, None);
        assert_eq!(Flow::of(10, Some(100)).full_after_seconds, Some(10));
        assert_eq!(Flow::of(10, None).full_after_seconds, None);
    }
}
