//! `expire`: removes what the policy of each repository does not keep.
//!
//! `inventory` reads what a repository holds, `needs` finds the WAL that must stay, `plan` puts both together with the
//! policy of [`super::retention`], and `remove` carries a plan out. `wanted` answers for `sync`, which copies nothing
//! that would be removed again.
//!
//! The rules, beside those of the policy:
//!
//! - A repository in which anything is not understood is left alone as a whole.
//! - The newest usable backup stays, and the newest without bad pages, whatever the policy says.
//! - A backup stays with the WAL from its start to its stop. The window begins at the newest usable backup that ended
//!   before it; from there on all WAL of its timeline stays.
//! - No time is believed that is later than what the store holds: the window ends at
//!   [`reference_time`](super::retention::reference_time), and backups from the future stay and take no other's place.
//! - What a kept backup of another repository needs and that one lacks stays, until `sync` has copied it.
//! - Histories stay while anything of their system identifier does.

mod inventory;
mod needs;
mod plan;
mod remove;

pub use inventory::Leftover;
pub(in crate::upkeep) use inventory::list_timeline;
pub use plan::{Amount, BackupPlan, Plan, RepositoryPlan, Request, Skipped, SystemPlan, plan, wanted};
pub use remove::{Outcome, carry_out};

#[cfg(test)]
pub(in crate::upkeep) mod tests;
