//! The WAL reader: the bytes of a segment in, its records out.
//!
//! - `page`: the headers of pages.
//! - `reader`: the state machine that walks pages and puts records together; `visitor`: who looks at them; `crc`: their
//!   checksums; `outcome`: how it ended; `stop`: why it stopped early.
//! - `carry`: what it hands from one segment to the next.
//! - `record`: a record and its block references, and `transaction`, `xlog`: what some records say.
//! - `events`: what happened to the data, out of the records of many segments.
//! - `summary`: what Walden notes down about every segment that it archives.
//!
//! The reader checks what the server checks when it replays (`xlogreader.c`): page addresses, lengths, the link to
//! the record before, the CRC-32C. It holds for every input: no panic, no endless loop, memory within bounds. It
//! knows no files and no names, and nothing of what recovery would do with a record.

mod carry;
mod crc;
pub mod events;
mod outcome;
mod page;
mod reader;
mod record;
mod stop;
mod summary;
#[cfg(test)]
mod tests;
mod transaction;
mod visitor;
mod xlog;

pub use carry::Carry;
pub use outcome::{ReadOutcome, ReaderOptions, SegmentEnd, WalVersion};
pub use reader::RecordReader;
pub use record::{BlockReference, BlockReferences, Record, RelFileLocator, ResourceManager};
pub use stop::{Stop, StopReason};
pub use summary::{BadRecord, SegmentSummary, Summarizer, TransactionPoint, summarize};
pub use transaction::{TransactionEnd, TransactionOutcome};
pub use visitor::{Nobody, RecordVisitor};
pub use xlog::{Checkpoint, EndOfRecovery, RestorePoint};
