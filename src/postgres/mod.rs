//! PostgreSQL's own vocabulary: log positions, timelines, WAL file names, and the files and records whose bytes
//! Walden reads.
//!
//! Everything here is pure: bytes or text in, values out. Nothing opens a file, talks to a server, logs, or knows
//! that Walden exists; byte order is little-endian, as on every platform that Walden supports. Where a fact comes
//! from PostgreSQL's sources, the doc comment names the file.
//!
//! What does not belong here: repository keys, SQL, target times as users type them, anything that needs a clock.

mod archive_file;
mod backup_label;
mod bytes;
mod catalog;
mod control_file;
mod error;
mod lsn;
mod page_checksum;
mod segment_set;
mod serde_text;
mod system_identifier;
mod tablespace;
mod timeline;
mod timestamp;
pub mod wal;
mod wal_header;
mod wal_segment;

pub use archive_file::ArchiveFileName;
pub use backup_label::BackupLabel;
pub use catalog::{Catalog, CatalogRelation, RelationKind};
pub use control_file::{ClusterState, ControlFile};
pub use error::ParseError;
pub use lsn::Lsn;
pub use page_checksum::{BLOCK_SIZE, PageCheck, check_page, page_checksum};
pub use segment_set::{CHUNK, ChunkBits, SegmentSet};
pub use system_identifier::SystemIdentifier;
pub use tablespace::{Tablespace, TablespaceMap};
pub use timeline::{HistoryEntry, TimelineHistory, TimelineId, TimelineSpan};
pub use timestamp::PgTimestamp;
pub use wal_header::SegmentHeader;
pub use wal_segment::{WalSegmentName, WalSegmentSize};
