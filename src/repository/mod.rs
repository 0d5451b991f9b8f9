//! What a repository holds and under which keys, over one or several stores.
//!
//! Lives here: the layout of keys (`keys`), the file that says which cluster a prefix belongs to (`cluster`), WAL
//! objects (`wal`), backups (`backup`, `backups`, and `backup_leftovers` of those that broke off), what an index found out
//! (`digest`), listings of many prefixes at once (`prefixes`), and doing the same in several repositories at once (`several`,
//! `stream`).
//! Does not live here: when something is archived or restored, and what a failure means to PostgreSQL (the engines).

pub mod backup;
mod backup_leftovers;
mod backups;
mod cluster;
mod copy;
mod digest;
mod keys;
mod pins;
mod prefixes;
mod recovery_text;
mod several;
mod stored;
mod stream;
mod wal;

pub use backup_leftovers::{Leftover, is_complete, list_backup_objects, list_leftovers, remove_leftovers};
pub use backups::{list_backups, parse_summary, read_summary, summary_text};
pub use cluster::{CLUSTER_FORMAT, ClusterFile, ClusterState, clusters};
pub use copy::{Change, LARGEST_WHOLE, copy_changed, copy_object};
pub use digest::{digest_key, list_digests, read_digest};
pub use keys::{ClusterKeys, WalObject};
pub use pins::{is_pinned, list_pins, pin, unpin};
pub use prefixes::list_prefixes;
pub use recovery_text::recovery_text;
pub use several::{Outcome, ask_all, ship};
pub use stored::{checksum_stored, read_stored};
pub use stream::{Parts, STREAM_MEMORY, ship_stream};
pub use wal::{
    WalListing, copy_wal_object, find_contents, list_histories, list_wal_from, list_wal_timeline,
    read_wal_object, timelines, wal_prefixes,
};

use crate::kind::{Error, Kind};
use crate::storage::{self, Deadline, Storage};
use std::sync::Arc;
use std::time::Duration;

/// One repository: a name, a store, and how long the store may stand still.
#[derive(Debug, Clone)]
pub struct Repository {
    name: String,
    storage: Arc<dyn Storage>,
    stall: Duration,
}

impl Repository {
    /// Returns the repository `name` over `storage`. Does no I/O.
    pub fn new(name: impl Into<String>, storage: Arc<dyn Storage>, stall: Duration) -> Self {
        Self { name: name.into(), storage, stall }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the URL.
    pub fn url(&self) -> &str {
        self.storage.url()
    }

    /// Returns whether asking the store costs no network.
    pub fn is_local(&self) -> bool {
        self.url().starts_with("file://")
    }

    /// Returns the store.
    pub fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    /// Returns a fresh deadline for calls to the store.
    pub fn deadline(&self) -> Deadline {
        Deadline::stall(self.stall)
    }

    /// Turns a store's failure into an error that names the repository and what was tried.
    pub fn error(&self, what: &str, error: &storage::Error) -> Error {
        let base = Error::new(Kind::Repository, format!("{what} repository \"{}\": {error}", self.name));
        match error {
            storage::Error::Refused(_) if self.is_local() => {
                base.with_hint(format!("check the rights and the free space of {}", self.url()))
            }
            storage::Error::Refused(_) => {
                base.with_hint(format!("check the rights and the address of {}", self.url()))
            }
            storage::Error::Unreachable(why) if self.is_local() && why.contains("not mounted?") => {
                base.with_hint("mount it, or mend its url; only walden init creates a repository's directory")
            }
            _ => base,
        }
    }
}
