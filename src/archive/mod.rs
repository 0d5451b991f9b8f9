//! Archiving WAL and fetching it back: what PostgreSQL runs as `archive_command` and `restore_command`.
//!
//! `push` takes one segment and its waiting neighbours to the repositories: `source` reads and checks files in
//! `pg_wal`, `ready` finds the neighbours, `targets` says which repositories can take part, `batch` does the work on each
//! file, which `outgoing` seals and ships within the bounds of `memory`; `whole` looks at objects that are there already;
//! `backlog` spends spare time on what a repository missed. `get` brings one file, for which `request` asks the
//! repositories; its `content` is verified on its way. `absence`, with the help of a `witness`, says whether a file that is
//! not there is proven absent; `fork` and `doubt` keep the server off abandoned timelines meanwhile. `prefetch` fetches ahead
//! of the server into the `spool`. What an outcome means as an exit code is decided in the shell.

mod absence;
mod backlog;
mod batch;
mod content;
mod doubt;
mod fork;
mod get;
mod memory;
mod outgoing;
mod prefetch;
mod push;
mod ready;
mod request;
mod source;
mod spool;
mod targets;
mod whole;
mod witness;

pub use content::{Expected, copy_checked};
pub use get::{Fetched, GetOptions, get};
pub use prefetch::{PrefetchOptions, is_recovering, prefetch};
pub use push::{PushOptions, Pushed, push};
pub use source::{Origin, WalFile, system_identifier_beside};
pub use spool::Spool;
