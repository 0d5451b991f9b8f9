//! What the log's records about itself say: checkpoints, restore points, ends of recovery (`pg_control.h`,
//! `xlog_internal.h`).

use serde::{Deserialize, Serialize};

use super::super::bytes::{array_at, u32_at, u64_at};
use super::super::{Lsn, PgTimestamp, TimelineId};
use super::record::{Record, ResourceManager};

/// Bits of a record's `info` that tell the operation.
const OPERATION: u8 = 0xF0;
const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const RESTORE_POINT: u8 = 0x70;
const END_OF_RECOVERY: u8 = 0x90;

/// Returns whether one of this file's decoders understands such a record.
pub(super) fn is_decoded(rmid: u8, info: u8) -> bool {
    rmid == ResourceManager::XLOG
        && matches!(
            info & OPERATION,
            CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE | RESTORE_POINT | END_OF_RECOVERY
        )
}

fn main_data<'a>(record: &Record<'a>, operations: &[u8]) -> Option<&'a [u8]> {
    let wanted = record.rmid == ResourceManager::XLOG && operations.contains(&(record.info & OPERATION));
    wanted.then(|| record.main_data()).flatten()
}

/// A checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The position of its record.
    pub lsn: Lsn,
    /// Where replay from it starts.
    pub redo: Lsn,
    /// The timeline on which it was made.
    pub timeline: TimelineId,
    /// The timeline before it, the same unless it begins a timeline.
    pub previous: TimelineId,
    /// When it began, to the second.
    pub time: PgTimestamp,
    /// Whether the server was shut down, or had just ended its recovery.
    pub shutdown: bool,
}

impl Checkpoint {
    /// Returns the checkpoint of which the record tells, or `None` if it tells of none.
    pub fn decode(record: &Record<'_>) -> Option<Self> {
        let data = main_data(record, &[CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE])?;
        let seconds = i64::from_le_bytes(array_at(data, 64)?);
        Some(Self {
            lsn: record.lsn,
            redo: Lsn(u64_at(data, 0)?),
            timeline: TimelineId::try_from(u32_at(data, 8)?).ok()?,
            previous: TimelineId::try_from(u32_at(data, 12)?).ok()?,
            time: PgTimestamp::from_unix_seconds(seconds),
            shutdown: record.info & OPERATION == CHECKPOINT_SHUTDOWN,
        })
    }
}

/// A restore point (`pg_create_restore_point`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name. One that is not UTF-8 is read as well as possible.
    pub name: String,
    /// When it was made.
    pub time: PgTimestamp,
    /// The position of its record.
    pub lsn: Lsn,
}

impl RestorePoint {
    /// Returns the restore point of which the record tells, or `None` if it tells of none.
    pub fn decode(record: &Record<'_>) -> Option<Self> {
        let data = main_data(record, &[RESTORE_POINT])?;
        let name = data.get(8..72)?.split(|&byte| byte == 0).next()?;
        Some(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            time: PgTimestamp(i64::from_le_bytes(array_at(data, 0)?)),
            lsn: record.lsn,
        })
    }
}

/// The beginning of a timeline, by a promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndOfRecovery {
    /// When recovery ended.
    pub time: PgTimestamp,
    /// The timeline that begins.
    pub timeline: TimelineId,
    /// The timeline that it leaves.
    pub previous: TimelineId,
    /// The position of the record.
    pub lsn: Lsn,
}

impl EndOfRecovery {
    /// Returns the beginning of a timeline of which the record tells, or `None` if it tells of none. Promotions
    /// that are not hurried write a checkpoint in place of the end-of-recovery record.
    pub fn decode(record: &Record<'_>) -> Option<Self> {
        if let Some(data) = main_data(record, &[END_OF_RECOVERY]) {
            return Some(Self {
                time: PgTimestamp(i64::from_le_bytes(array_at(data, 0)?)),
                timeline: TimelineId::try_from(u32_at(data, 8)?).ok()?,
                previous: TimelineId::try_from(u32_at(data, 12)?).ok()?,
                lsn: record.lsn,
            });
        }
        let checkpoint = Checkpoint::decode(record)?;
        let Checkpoint { time, timeline, previous, lsn, .. } = checkpoint;
        (timeline != previous).then_some(Self { time, timeline, previous, lsn })
    }
}
