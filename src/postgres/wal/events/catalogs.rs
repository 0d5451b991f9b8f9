//! Which file is which system catalog, and what a record about pg_class says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::super::bytes::{u16_at, u32_at};
use super::super::{Record, RelFileLocator};

/// The first number that a relation can get which initdb did not make (`FirstNormalObjectId`).
pub(super) const FIRST_NORMAL: u32 = 16_384;

pub(super) const PG_TYPE: u32 = 1247;
pub(super) const PG_ATTRIBUTE: u32 = 1249;
pub(super) const PG_CLASS: u32 = 1259;
pub(super) const PG_DATABASE: u32 = 1262;
pub(super) const PG_SEQUENCE: u32 = 2224;
pub(super) const PG_INDEX: u32 = 2610;

/// The files of system catalogs that were written anew since initdb (`VACUUM FULL`, `CLUSTER`): the file no longer
/// has the number that is the catalog's OID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogFiles {
    #[serde(with = "pairs")]
    moved: BTreeMap<(u32, u32), u32>,
}

impl CatalogFiles {
    /// Takes note that in `database` (0 for a shared one) the catalog with that OID is in that file. What is no
    /// system catalog, or is where initdb put it, is ignored.
    pub fn insert(&mut self, database: u32, oid: u32, file: u32) {
        const MAX_MOVED: usize = 1_000_000;
        if oid < FIRST_NORMAL && file >= FIRST_NORMAL && self.moved.len() < MAX_MOVED {
            self.moved.insert((database, file), oid);
        }
    }

    /// Returns the OID of the system catalog that is in the file, or `None` if it is no system catalog's.
    #[inline]
    pub(super) fn oid(&self, file: RelFileLocator) -> Option<u32> {
        if file.relation < FIRST_NORMAL {
            return Some(file.relation);
        }
        if self.moved.is_empty() {
            return None;
        }
        self.moved.get(&(file.database, file.relation)).copied()
    }

    /// Takes note of what a change of the map of catalogs says (`xl_relmap_update`, `RelMapFile`).
    pub(super) fn learn(&mut self, record: &Record<'_>) {
        let Some(data) = record.main_data() else { return };
        let (Some(database), Some(count)) = (u32_at(data, 0), u32_at(data, 16)) else { return };
        let entries = data.get(20..).unwrap_or_default().as_chunks::<8>().0;
        for entry in entries.iter().take((count as usize).min(64)) {
            if let (Some(oid), Some(file)) = (u32_at(entry, 0), u32_at(entry, 4)) {
                self.insert(database, oid, file);
            }
        }
    }
}

/// JSON has no maps with such keys.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<(u32, u32), u32>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.iter().map(|((database, file), oid)| (database, file, oid)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<(u32, u32), u32>, D::Error> {
        let list = Vec::<(u32, u32, u32)>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|(database, file, oid)| ((database, file), oid)).collect())
    }
}

/// What a record tells of a row of pg_class. It holds only what is not the same as in the row before, and nothing
/// where it holds the page instead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClassRow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) oid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<u8>,
}

impl ClassRow {
    /// Reads the row that an insertion or an update makes. `flags` are an update's, 0 for an insertion
    /// (`log_heap_insert`, `log_heap_update`, `pg_class.h`).
    pub(super) fn decode(record: &Record<'_>, flags: u8) -> Self {
        Self::read(record, flags).unwrap_or_default()
    }

    fn read(record: &Record<'_>, flags: u8) -> Option<Self> {
        const PREFIX_FROM_OLD: u8 = 1 << 5;
        const SUFFIX_FROM_OLD: u8 = 1 << 6;
        const HEADER_LEN: usize = 23;
        const FILE_AT: usize = 88;
        let kind_at: usize = if record.major_version >= 18 { 119 } else { 115 };
        let mut data = record.first_block_data()?;
        let mut prefix = 0;
        if flags & PREFIX_FROM_OLD != 0 {
            prefix = usize::from(u16_at(data, 0)?);
            data = data.get(2..)?;
        }
        if flags & SUFFIX_FROM_OLD != 0 {
            data = data.get(2..)?;
        }
        // xl_heap_header: two masks, then where the data begins; bitmap and padding stand before it.
        let bitmap = usize::from(*data.get(4)?).checked_sub(HEADER_LEN)?;
        let data = data.get(5 + bitmap..)?;
        let field = |at: usize| u32_at(data, at.checked_sub(prefix)?);
        let kind = kind_at.checked_sub(prefix).and_then(|at| data.get(at)).copied();
        let kind = kind.filter(u8::is_ascii_alphabetic);
        Some(Self { oid: field(0), file: field(FILE_AT), kind })
    }
}
