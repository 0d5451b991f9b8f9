//! How fast the server writes WAL, and for how long its disk takes it when nothing is archived.

use crate::index::Index;
use crate::kind::Result;
use crate::postgres::{SystemIdentifier, WalSegmentSize};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::path::Path;

/// Over which time the rate is measured.
const SPAN: SignedDuration = SignedDuration::from_hours(1);

/// The WAL of a server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flow {
    /// Bytes a second, of full segments archived during the last hour.
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
    let since = now.checked_sub(SPAN).unwrap_or(Timestamp::MIN).as_microsecond();
    let (segments, _) = index.archived_since(sysid, since)?;
    let stat = nix::sys::statvfs::statvfs(pg_wal).ok();
    let free = stat.map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size()));
    Ok(Flow::of(segments.saturating_mul(size.bytes()) / SPAN.as_secs().unsigned_abs(), free))
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
    fn a_server_that_writes_nothing_fills_no_disk() {
        assert_eq!(Flow::of(0, Some(100)).full_after_seconds, None);
        assert_eq!(Flow::of(10, Some(100)).full_after_seconds, Some(10));
        assert_eq!(Flow::of(10, None).full_after_seconds, None);
    }
}
