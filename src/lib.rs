//! Walden: a WAL archiver and point-in-time-recovery agent for PostgreSQL.
pub mod archive;
pub mod codec;
pub mod config;
pub mod durable;
pub mod index;
pub mod kind;
pub mod postgres;
pub mod recovery;
pub mod repository;
pub mod shutdown;
pub mod storage;
