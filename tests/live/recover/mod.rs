//! The whole story on real servers: backups, and recoveries from them. A ledger of commits decides whether a recovery
//! stopped at the right place.

mod broken;
mod delta;
mod harmless;
mod plan;
mod restore;
mod start;
mod story;
mod targets;
mod timelines;
