//! Expiry over made-up archives. `year` simulates a year against an oracle, `histories` random histories against the
//! recovery planner, `faults` breaks it off at every call, `cases` has what happens by itself.

mod cases;
mod faults;
mod histories;
mod memory;
mod world;
mod year;
