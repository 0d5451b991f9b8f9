//! Where objects are kept: one trait, a directory and S3 behind it.
//!
//! Lives here: moving bytes to and from one store, create-only, with deadlines, and errors that keep "it is not
//! there" apart from "could not tell". Does not live here: what the keys mean, which stores there are, what to do
//! when one of them fails (`repository`).

mod forward;
mod fs;
mod retry;
mod s3;
mod upload;

#[doc(hidden)]
pub mod conformance;
#[doc(hidden)]
pub mod faulty;

pub use fs::FsStorage;
pub use retry::Retry;
pub use s3::{S3Options, S3Storage, post_json};
pub use upload::{PART_SIZE, Upload};

use bytes::Bytes;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One store of objects: a bucket with a prefix, or a directory. Keys are relative, `/`-separated, ASCII.
///
/// Calls block. They give up when no byte has moved for [`Deadline::stall`], or when the deadline was cut short;
/// a slow transfer that moves is let go on.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Returns the URL that names this store in messages and in the index.
    fn url(&self) -> &str;

    /// Writes a new object and returns only when it is durable. Never overwrites: where the key is taken the
    /// object there is left as it is, made durable, and [`Put::Existed`] is returned.
    fn put_new(&self, key: &str, body: &Bytes, deadline: &Deadline) -> Result<Put>;

    /// Begins a new object that is sent in parts, so that it need not be held in memory. Whether the key is taken is
    /// decided when the upload is completed.
    fn upload_new<'a>(&'a self, key: &str, deadline: &Deadline) -> Result<Box<dyn Upload + 'a>>;

    /// Returns a reader over the object's bytes, or those of `range`. The reader fails when the store delivers
    /// fewer bytes than it promised.
    fn get(&self, key: &str, range: Option<Range<u64>>, deadline: &Deadline) -> Result<Box<dyn Read + Send>>;

    /// Returns what the store says of an object.
    fn head(&self, key: &str, deadline: &Deadline) -> Result<Object>;

    /// Returns objects whose key begins with `prefix` and is greater than `start_after` (by bytes; "" for the
    /// first), in the order of keys, at most `limit` of them. No such object is an empty list, not an error.
    fn list(&self, prefix: &str, start_after: &str, limit: usize, deadline: &Deadline)
    -> Result<Vec<Object>>;

    /// Returns the names of the folders right below `prefix` (which is empty or ends in `/`), sorted, without
    /// the slash.
    fn list_folders(&self, prefix: &str, deadline: &Deadline) -> Result<Vec<String>>;

    /// Deletes an object; one that is not there is no error.
    fn delete(&self, key: &str, deadline: &Deadline) -> Result<()>;

    /// Makes sure that an object that a listing showed is durable before it is acknowledged. Stores that answer only
    /// when an object is durable have nothing to do.
    fn confirm(&self, _key: &str, _deadline: &Deadline) -> Result<()> {
        Ok(())
    }

    /// Removes what is no object below a folder that nobody writes to any more: temporary files of writers that were
    /// killed, and directories without objects. Stores without folders have nothing to do.
    fn tidy(&self, _prefix: &str, _deadline: &Deadline) -> Result<()> {
        Ok(())
    }

    /// Returns how many bytes can still be stored; none where the store sets no such bound, or does not say.
    fn free_space(&self) -> Option<u64> {
        None
    }

    /// Returns whether a write itself fails where its key is taken; else the store is asked first, and two writers may meet.
    /// It is known after the first write.
    fn writes_conditionally(&self) -> bool {
        true
    }

    /// Returns whether the root is there: the directory exists, the bucket answers. Does not say whether any
    /// cluster is in it.
    fn probe(&self, deadline: &Deadline) -> Result<()>;
}

/// What became of a create-only write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object was written by this call.
    Created,
    /// The key was taken already; nothing was written.
    Existed,
}

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The key, relative to the store's root.
    pub key: String,
    /// The size in bytes, as stored.
    pub size: u64,
    /// When it was written, by the store's clock; none where the store does not say.
    pub modified: Option<jiff::Timestamp>,
    /// The CRC-32 of the stored bytes, where the store keeps one and was asked for it ([`Storage::head`]).
    pub crc32: Option<u32>,
}

/// The failures of a store. "Not found" is said only when the store said so for certain.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The object is proven absent.
    #[error("object \"{0}\" does not exist")]
    NotFound(String),
    /// The store could not be reached, or broke off, or was busy; trying again may help.
    #[error("{0}")]
    Unreachable(String),
    /// The store refused: rights, credentials, no such bucket, no space. Trying again at once does not help.
    #[error("{0}")]
    Refused(String),
    /// No byte moved within the deadline, or the deadline was cut short.
    #[error("timed out: {0}")]
    TimedOut(String),
}

impl Error {
    /// Returns whether the same call may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::TimedOut(_))
    }

    /// Returns whether the object is proven absent.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}

/// The result of a storage call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How long a call may go without moving a byte, and whether somebody has cut the whole short. Clones share the
/// cut, so that one thread can hurry the others.
#[derive(Debug, Clone)]
pub struct Deadline {
    stall: Duration,
    started: Instant,
    /// Milliseconds after `started` at which all calls with this deadline end; `u64::MAX` for never.
    cut_ms: Arc<AtomicU64>,
}

impl Deadline {
    /// Returns a deadline that bounds stalls only.
    pub fn stall(stall: Duration) -> Self {
        Self { stall, started: Instant::now(), cut_ms: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// Returns how long a call may go without moving a byte, which is less when the cut is near.
    pub fn patience(&self) -> Duration {
        self.stall.min(self.remaining().unwrap_or(self.stall))
    }

    /// Ends every call that shares this deadline at the latest after `rest` from now.
    pub fn cut_after(&self, rest: Duration) {
        let at = self.started.elapsed().saturating_add(rest);
        let at = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        self.cut_ms.fetch_min(at, Ordering::Relaxed);
    }

    /// Returns the time left until the cut; none if there is no cut.
    pub fn remaining(&self) -> Option<Duration> {
        match self.cut_ms.load(Ordering::Relaxed) {
            u64::MAX => None,
            at => Some(Duration::from_millis(at).saturating_sub(self.started.elapsed())),
        }
    }

    /// Returns whether the cut has passed.
    pub fn is_over(&self) -> bool {
        self.remaining().is_some_and(|rest| rest.is_zero())
    }

    /// Fails with [`Error::TimedOut`] once the cut has passed.
    pub fn check(&self, what: &str) -> Result<()> {
        if self.is_over() { Err(Error::TimedOut(what.to_owned())) } else { Ok(()) }
    }
}
