//! Whether the supports of the live tests hold: each of them is tried by itself, without Walden.

mod postgres;
mod s3_servers;
mod s3_store;
mod tools;
