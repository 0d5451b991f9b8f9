//! Bringing a cluster back: the target as typed, the plan, the files, the settings, the start.
//!
//! `target` parses what the operator typed. `catalog` is what the repositories hold, `path` the WAL between a backup and
//! a target, `scan` answers what only the WAL itself can tell, and `plan` chooses the backup and the branch and says what
//! can be reached. `restore`, with `layout`, `places`, `delta`, `pieces`, `restored_config` and `source`, puts a backup's files
//! into place; `settings` makes the directory recover and keeps the copy harmless; `start` follows the server to the target.

pub mod catalog;
mod delta;
mod layout;
pub mod path;
mod pieces;
pub mod places;
pub mod plan;
pub mod restore;
mod restored_config;
pub mod scan;
pub mod settings;
pub mod source;
pub mod start;
pub mod target;
