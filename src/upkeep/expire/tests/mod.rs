//! Expiry over made-up archives. `year` simulates a year against an oracle, `histories` random histories against the
//! recovery planner, `faults` breaks it off at every call, `cases` has what happens by itself.

mod cases;
mod faults;
mod histories;
pub(in crate::upkeep) mod memory;
pub(in crate::upkeep) mod world;
mod year;
