//! What happened to the data: dropped and emptied tables, mass changes, dropped databases, restore points.
//!
//! Segments are read one by one, in any order, and each by itself; what they tell is put together in their order.
//!
//! - `scan`: [`EventScanner`] looks at the records of one segment and leaves a [`Contribution`]. A transaction that
//!   certainly began and ended in the segment is settled there.
//! - `tracker`: [`Tracker`] takes contributions in the order of the log and returns the events; it keeps what
//!   transactions that are still open have done.
//! - `activity`: what a transaction has done so far. `decide`: what it comes to, once it is committed.
//! - `catalogs`: which file is which system catalog, and what the records about it say.
//! - `event`: the events; `sealed`: contributions and trackers as bytes.
//!
//! The log holds no names and seldom OIDs. What it leaves open is marked in the event, for someone who has names.

mod activity;
mod align;
mod catalogs;
mod contribution;
mod decide;
mod event;
mod scan;
mod sealed;
mod steps;
#[cfg(test)]
mod tests;
mod tracker;

pub use catalogs::CatalogFiles;
pub use contribution::Contribution;
pub use event::{Event, EventKind, EventOptions, EventRelation};
pub use scan::EventScanner;
pub use tracker::{OutOfOrder, Tracker};
