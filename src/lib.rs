//! Walden: a WAL archiver and point-in-time-recovery agent for PostgreSQL.
pub mod archive;
pub mod backup;
pub mod codec;
pub mod config;
pub mod durable;
pub mod index;
pub mod kind;
pub mod postgres;
pub mod progress;
pub mod recovery;
pub mod repository;
pub mod server;
pub mod shutdown;
pub mod storage;
