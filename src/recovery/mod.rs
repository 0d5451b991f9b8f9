//! Bringing a cluster back: the target as typed, the plan, the files, the settings, the start.
//!
//! `target` parses what the operator typed. `catalog` is what the repositories hold, `path` the WAL between a backup and
//! a target, `scan` answers what only the WAL itself can tell, `plan` chooses the backup and the branch, and `reach` says what
//! can be reached from it; `estimate` says how long it will take. `restore`, with `layout`, `places`, `delta`, `pieces`, `restored_config` and `source`, puts a backup's files
//! into place, and `unarchived` keeps commits that nobody else has; `settings` makes the directory recover and keeps the copy harmless; `start` starts the server,
//! and `follow` follows it to the target.

pub mod catalog;
mod delta;
pub mod estimate;
mod follow;
pub mod layout;
pub mod path;
pub mod pieces;
pub mod places;
pub mod plan;
mod reach;
pub mod restore;
mod restored_config;
pub mod scan;
pub mod settings;
pub mod source;
pub mod start;
pub mod target;
pub mod unarchived;
