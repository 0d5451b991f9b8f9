//! What happened to the data.

use serde::{Deserialize, Serialize};

use super::super::super::{Lsn, PgTimestamp};
use super::super::RelFileLocator;
use super::catalogs::CatalogFiles;

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventOptions {
    /// From how many rows on, per transaction and relation, a DELETE or an UPDATE is an event.
    pub min_rows: u64,
    /// System catalogs whose files no longer bear the numbers that initdb gave them (`VACUUM FULL`).
    pub catalogs: CatalogFiles,
}

impl EventOptions {
    /// From how many rows on a DELETE or an UPDATE is an event, unless told otherwise.
    pub const DEFAULT_MIN_ROWS: u64 = 1000;
}

impl Default for EventOptions {
    fn default() -> Self {
        Self { min_rows: Self::DEFAULT_MIN_ROWS, catalogs: CatalogFiles::default() }
    }
}

/// What kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// Tables that were there before the transaction are gone.
    DropTable,
    /// Tables that were there before the transaction were emptied.
    Truncate,
    /// Many rows were deleted.
    Delete,
    /// Many rows were updated.
    Update,
    /// A database is gone.
    DropDatabase,
    /// A restore point was made.
    RestorePoint,
}

/// A relation that an event touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventRelation {
    /// Its OID, where the log tells it.
    pub oid: Option<u32>,
    /// Its file: that of a dropped relation, or that of a table before it was emptied.
    pub file: RelFileLocator,
    /// The new, empty file of a table that was emptied.
    pub new_file: Option<RelFileLocator>,
    /// Rows that were deleted or updated.
    pub rows: u64,
    /// Whether the log leaves open that it is no table, but an index or a table's TOAST table. Names tell.
    pub may_be_no_table: bool,
}

/// One thing that a transaction did, or a restore point. A transaction that did several kinds of things is several
/// events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What kind.
    pub kind: EventKind,
    /// The OID of the database; 0 for a restore point, and where it is not known.
    pub database: u32,
    /// The relations, each of which reached the threshold if the event is about rows.
    pub relations: Vec<EventRelation>,
    /// OIDs of other relations that were dropped and had no file of their own, where the log tells them: partitioned
    /// tables, foreign tables, temporary tables. Names tell.
    pub without_file: Vec<u32>,
    /// Rows that were deleted or updated, of all relations.
    pub rows: u64,
    /// The top-level transaction; 0 for a restore point.
    pub xid: u32,
    /// When it was committed, or the restore point made.
    pub time: PgTimestamp,
    /// The start of the record of the commit, or of the restore point: a recovery that stops just before it stops before
    /// the event. Of a database that was dropped, the first record that no abort would have undone.
    pub lsn: Lsn,
    /// The end of that record.
    pub end_lsn: Lsn,
    /// The name of a restore point.
    pub name: Option<String>,
    /// Whether something of the transaction was not seen, or was too much to be kept: there may be more rows and more
    /// relations.
    pub is_uncertain: bool,
}
