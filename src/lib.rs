//! Walden: a WAL archiver and point-in-time-recovery agent for PostgreSQL.
pub mod durable;
pub mod kind;
pub mod shutdown;
pub mod storage;
