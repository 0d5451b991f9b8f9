//! Tests against real servers: PostgreSQL of every supported major version, and S3 servers.
//!
//! All of them are one crate, so that it links once. `tests/install.sh` installs what they need; a test whose server
//! is missing is skipped with a message, and fails where `CI` is set. What they share lives in `support`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]
// Documentation here is full of program names, and helpers take what is short at the call.
#![allow(clippy::doc_markdown, clippy::needless_pass_by_value, clippy::result_large_err)]

mod archive;
mod backup;
mod check;
mod cli;
mod crash;
mod demo;
mod docs;
mod doubt;
mod events;
mod expire;
mod histories;
mod init;
mod keys;
mod large;
#[path = "../markdown/mod.rs"]
mod markdown;
mod monitor;
mod notify;
mod oplog;
mod packaging;
mod pages;
mod prefetch;
mod recipients;
mod recover;
mod reports;
mod s3;
mod smoke;
mod stores;
mod support;
mod sync;
mod verify;
mod wal_events;
mod wal_reader;
