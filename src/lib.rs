//! Walden: a WAL archiver and point-in-time-recovery agent for PostgreSQL.
pub mod backup;
pub mod codec;
pub mod durable;
pub mod kind;
pub mod postgres;
pub mod progress;
pub mod recovery;
pub mod repository {
    //! The formats alone, until the storage is there.
    pub mod backup;
}
pub mod server;
pub mod shutdown;
