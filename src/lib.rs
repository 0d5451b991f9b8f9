//! Walden: a WAL archiver and point-in-time-recovery agent for PostgreSQL.
pub mod codec;
pub mod durable;
pub mod kind;
pub mod shutdown;
#[cfg(any())]
pub mod storage;
