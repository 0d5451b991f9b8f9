//! Archiving when things go wrong: stores that fail at every call, hosts that race, files that change under the reader,
//! disks that are full. No server is needed; segments are made up.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod anything;
mod disks;
mod garbage;
mod get;
mod orphan;
mod push;
mod races;
mod segment;
mod signals;
mod site;
