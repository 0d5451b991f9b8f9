//! The local index: what was archived, by which call, to which repositories; backups; a log of operations.
//!
//! The bucket is the truth and the index only makes things fast: every method here may fail, and no caller lets
//! that stop archiving or recovery. [`IndexHandle`] is what engines use: it warns once and goes on without.

mod backlog;
mod bad_pages;
mod breaker;
mod damage;
mod digest;
mod events;
mod expired;
mod facts;
mod found;
mod held;
mod listed;
mod lookup;
mod names;
mod notifications;
mod operations;
mod reading;
mod schema;
mod verified;
mod wal;

pub use backlog::Missing;
pub use bad_pages::BadPagesRow;
pub use breaker::Breaker;
pub use damage::Damage;
pub use digest::{DigestLine, Undigested};
pub use events::{EventFilter, EventKind, EventRelation, EventRow};
pub use expired::Removed;
pub use facts::{BadWal, KnownCommit, SegmentFacts, TimelineSwitch};
pub use found::Found;
pub use held::{HeldChunk, HeldWal};
pub use listed::ListedFile;
pub use names::{DatabaseName, RelationName, nearest};
pub use notifications::Notification;
pub use operations::{Operation, OperationFilter, host};
pub use reading::Reading;
pub use verified::{Seen, Verification, below_cluster};
pub use wal::{ArchivedRow, Fingerprint, RepositoryStamp, WalTotals};

use crate::kind::{Context, Error, Kind, Result};
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a call waits for another process that writes to the index.
const BUSY: Duration = Duration::from_secs(1);

/// An open index.
#[derive(Debug)]
pub struct Index {
    connection: Connection,
}

impl Index {
    /// Opens the index at `path`, or makes a new one. Fails when it is locked, corrupt, of a newer version, or when
    /// its directory cannot be written to.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> rusqlite::Result<Connection> {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(BUSY)?;
            Ok(connection)
        };
        let connection = open().context(format!("open index \"{}\"", path.display()))?;
        let index = Self { connection };
        index.prepare().map_err(|error| error.context(format!("open index \"{}\"", path.display())))?;
        Ok(index)
    }
}

/// Returns whether the file at `path` is damaged: no SQLite database, or one with damaged pages. A file that is locked or of
/// a newer version is not.
pub fn is_damaged(path: &Path) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let check = || -> rusqlite::Result<String> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(BUSY)?;
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
    };
    match check() {
        Ok(found) => found != "ok",
        Err(error) => matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)),
    }
}

/// The index as engines see it: perhaps not there. The first failure is warned of and ends its use for the life
/// of this value, so that one broken index costs one line in the server's log, and one wait, not many.
#[derive(Debug)]
pub struct IndexHandle {
    index: Mutex<Option<Index>>,
    in_memory: bool,
}

impl IndexHandle {
    /// Opens the index at `path`, creating its directory. A failure is warned of.
    pub fn open(path: &Path) -> Self {
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let opened = made.context("create the directory of the index").and_then(|()| Index::open(path));
        match opened {
            Ok(index) => Self { index: Mutex::new(Some(index)), in_memory: false },
            Err(error) => {
                warn(&error);
                Self::absent()
            }
        }
    }

    /// Returns an index that is gone with this value, and empty.
    pub fn in_memory() -> Self {
        match Index::open(Path::new(":memory:")) {
            Ok(index) => Self { index: Mutex::new(Some(index)), in_memory: true },
            Err(error) => {
                warn(&error);
                Self::absent()
            }
        }
    }

    /// Returns whether it is gone with this value.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Returns a handle without an index.
    pub fn absent() -> Self {
        Self { index: Mutex::new(None), in_memory: false }
    }

    /// Runs `work` on the index and returns its result, or none where there is no index or `work` failed.
    pub fn run<T>(&self, work: impl FnOnce(&Index) -> Result<T>) -> Option<T> {
        let mut guard = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        match work(guard.as_ref()?) {
            Ok(value) => Some(value),
            Err(error) => {
                warn(&error);
                *guard = None;
                None
            }
        }
    }

    /// Writes into the log of operations that one begins, and returns its number.
    pub fn log_start(&self, command: &str, detail: &str) -> Option<i64> {
        self.run(|index| index.log_start(command, detail))
    }

    /// Writes how the operation ended.
    pub fn log_end<T>(&self, operation: Option<i64>, result: &Result<T>) {
        if let Some(operation) = operation {
            let outcome = result.as_ref().map_or_else(ToString::to_string, |_| "done".to_owned());
            self.run(|index| index.log_end(operation, &outcome));
        }
    }

    /// Returns whether there is an index to ask.
    pub fn is_present(&self) -> bool {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

fn warn(error: &Error) {
    let text = error.message();
    let what = if ["disk is full", "No space left"].iter().any(|full| text.contains(full)) {
        "make room on the disk of state_dir"
    } else {
        "if the file is damaged, move it away and a new one is made"
    };
    let error = error.clone().with_hint(format!("archiving and recovery go on without the index; {what}"));
    tracing::warn!("index not used: {error}");
}

/// Adds a context to an error of SQLite.
fn sql<T>(result: rusqlite::Result<T>, what: &str) -> Result<T> {
    result.kind(Kind::Other, format!("index: {what}"))
}

/// Returns the present time in µs since 1970, as the index keeps times.
fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_made_and_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/index.sqlite");
        assert!(IndexHandle::open(&path).is_present());
        assert!(IndexHandle::open(&path).is_present());
    }

    #[test]
    fn garbage_a_newer_version_and_a_lock_are_failures_not_panics() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = dir.path().join("garbage");
        std::fs::write(&garbage, vec![7; 5000]).unwrap();
        assert!(!IndexHandle::open(&garbage).is_present());

        let newer = dir.path().join("newer");
        drop(Index::open(&newer).unwrap());
        Connection::open(&newer).unwrap().execute_batch("PRAGMA user_version = 1000").unwrap();
        assert!(Index::open(&newer).unwrap_err().to_string().contains("newer"));

        let locked = dir.path().join("locked");
        let index = Index::open(&locked).unwrap();
        let other = Connection::open(&locked).unwrap();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        assert!(index.log_start("test", "").is_err());
        assert!(is_damaged(&garbage) && !is_damaged(&newer) && !is_damaged(&locked));
    }
}
