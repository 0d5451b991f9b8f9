//! Bringing a cluster back: the target as typed, the plan, the files, the settings, the start.
//!
//! `target` parses what the operator typed. `catalog` is what the repositories hold, `plan` chooses the backup and the
//! branch and says what can be reached. `restore` and what it uses put a backup's files into place, `settings`
//! makes the directory recover and keeps the copy harmless, `start` follows the server to the target.

mod layout;
mod pieces;
mod places;
pub mod restore;
mod restored_config;
pub mod target;
