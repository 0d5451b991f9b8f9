//! Walden: a WAL archiver and point-in-time-recovery agent for PostgreSQL.
pub mod codec;
pub mod config;
pub mod durable;
pub mod kind;
pub mod postgres;
pub mod shutdown;
pub mod storage;
