//! What the records about files, locks and system catalogs say.

use super::super::super::bytes::{u16_at, u32_at};
use super::super::{Record, RelFileLocator};
use super::activity::Step;
use super::catalogs::{self, ClassRow};

/// Operations on rows (`heapam_xlog.h`).
pub(super) const OPERATION: u8 = 0x70;
pub(super) const INSERT: u8 = 0x00;
pub(super) const DELETE: u8 = 0x10;
pub(super) const UPDATE: u8 = 0x20;
pub(super) const TRUNCATE: u8 = 0x30;
pub(super) const HOT_UPDATE: u8 = 0x40;
pub(super) const INPLACE: u8 = 0x70;

/// How far behind the mark of a database that is dropped the deletion of its row is at most, in bytes of log: what other
/// sessions write between the two.
pub(super) const MAX_TO_DELETION: u64 = 1 << 20;

/// Returns the place of the row that a deletion or a change in place is about.
pub(super) fn row_of(record: &Record<'_>) -> Option<u64> {
    let data = record.main_data()?;
    let at = if record.info & OPERATION == INPLACE { 0 } else { 4 };
    let block = record.block_references().find(|block| block.fork == 0)?.block_number;
    Some(u64::from(block) << 16 | u64::from(u16_at(data, at)?))
}

/// Returns whether a change of a row of pg_database in place marks the database as one that is being dropped
/// (`DATCONNLIMIT_INVALID_DB`). One that holds the page instead of the row may.
pub(super) fn may_be_invalid_database(record: &Record<'_>) -> bool {
    let limit_at = if record.major_version >= 15 { 80 } else { 208 };
    match record.first_block_data() {
        Some(row) if !row.is_empty() => u32_at(row, limit_at).is_none_or(|limit| limit.cast_signed() == -2),
        _ => true,
    }
}

/// Returns the step that a change of a row of a system catalog is.
#[cold]
pub(super) fn of_catalog_row(record: &Record<'_>, catalog: u32) -> Option<Step> {
    let operation = record.info & OPERATION;
    match (catalog, operation) {
        (catalogs::PG_CLASS, INSERT | DELETE | UPDATE | HOT_UPDATE) => of_class_row(record, operation),
        (catalogs::PG_ATTRIBUTE, DELETE) => Some(Step::AttributeDelete(1)),
        (catalogs::PG_INDEX, DELETE) => Some(Step::IndexDelete),
        (catalogs::PG_TYPE, DELETE) => Some(Step::TypeDelete),
        (catalogs::PG_SEQUENCE, DELETE) => Some(Step::SequenceDelete),
        (catalogs::PG_DATABASE, DELETE) => Some(Step::DatabaseDelete),
        _ => None,
    }
}

fn of_class_row(record: &Record<'_>, operation: u8) -> Option<Step> {
    let data = record.main_data()?;
    let mut blocks = record.block_references().filter(|block| block.fork == 0);
    let new_block = blocks.next()?.block_number;
    let old_block = blocks.next().map_or(new_block, |block| block.block_number);
    let place = |block: u32, offset: u16| u64::from(block) << 16 | u64::from(offset);
    Some(match operation {
        INSERT => {
            Step::ClassInsert { at: place(new_block, u16_at(data, 0)?), row: ClassRow::decode(record, 0) }
        }
        DELETE => Step::ClassDelete { at: place(new_block, u16_at(data, 4)?) },
        _ => Step::ClassUpdate {
            from: place(old_block, u16_at(data, 4)?),
            to: place(new_block, u16_at(data, 12)?),
            row: ClassRow::decode(record, *data.get(7)?),
        },
    })
}

/// Returns the tables that are emptied (`xl_heap_truncate`).
pub(super) fn of_truncate(record: &Record<'_>) -> Option<Step> {
    let data = record.main_data()?;
    let count = u32_at(data, 4)? as usize;
    let list = data.get(12..)?.as_chunks::<4>().0;
    Some(Step::Truncate { relations: list.iter().take(count).map(|oid| u32::from_le_bytes(*oid)).collect() })
}

/// Returns the file that is made (`xl_smgr_create`), but for free space and visibility maps.
pub(super) fn of_storage(record: &Record<'_>) -> Option<Step> {
    const CREATE: u8 = 0x10;
    const MAIN: u32 = 0;
    const INIT: u32 = 3;
    if record.info & 0xF0 != CREATE {
        return None;
    }
    let data = record.main_data()?;
    let file = RelFileLocator::read(data.first_chunk()?);
    let fork = u32_at(data, 12)?;
    (fork == MAIN || fork == INIT).then_some(Step::Create { file, init: fork == INIT })
}

/// Returns the database whose files are removed (`xl_dbase_drop_rec`).
pub(super) fn of_database(record: &Record<'_>) -> Option<Step> {
    let drop = if record.major_version >= 15 { 0x20 } else { 0x10 };
    let data = (record.info & 0xF0 == drop).then(|| record.main_data()).flatten()?;
    Some(Step::DatabaseFiles { database: u32_at(data, 0)? })
}

/// Returns the exclusive locks that are logged for standbys (`xl_standby_locks`): transaction and step.
pub(super) fn of_locks<'a>(record: &Record<'a>) -> impl Iterator<Item = (u32, Step)> + use<'a> {
    let data = record.main_data().unwrap_or_default();
    let count = u32_at(data, 0).unwrap_or_default() as usize;
    let locks = data.get(4..).unwrap_or_default().as_chunks::<12>().0;
    locks
        .iter()
        .take(count)
        .filter_map(|lock| Some((u32_at(lock, 0)?, Step::Lock { relation: u32_at(lock, 8)? })))
}

/// What the server writes down about the transactions that are open (`xl_running_xacts`).
pub(super) struct RunningTransactions {
    /// The number that the next transaction gets.
    pub(super) next: u32,
    /// The lowest number of one that is open, prepared ones included.
    pub(super) oldest: u32,
}

impl RunningTransactions {
    pub(super) fn decode(record: &Record<'_>) -> Option<Self> {
        let data = record.main_data()?;
        Some(Self { next: u32_at(data, 12)?, oldest: u32_at(data, 16)? })
    }
}
