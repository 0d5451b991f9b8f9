//! Archiving WAL and fetching it back: what PostgreSQL runs as `archive_command` and `restore_command`.
//!
//! `push` takes one segment and its waiting neighbours to the repositories: `source` reads and checks files in
//! `pg_wal`, `ready` finds the neighbours, `targets` says which repositories can take part. `get` brings one file
//! back, and `absence` says whether a file that is not there is proven absent; `fork` and `doubt` keep the server off
//! abandoned timelines meanwhile. `prefetch` fetches ahead of the server into the `spool`; `content` is how either reads
//! and verifies. What an outcome means as an exit code is decided in the shell.

mod absence;
mod content;
mod doubt;
mod fork;
mod get;
mod prefetch;
mod push;
mod ready;
mod source;
mod spool;
mod targets;

pub use get::{Fetched, GetOptions, get};
pub use prefetch::{PrefetchOptions, prefetch};
pub use push::{PushOptions, Pushed, push};
pub use source::{Origin, WalFile, system_identifier_beside};
pub use spool::Spool;
