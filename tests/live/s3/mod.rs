//! The S3 store against real servers: the suite that all stores pass, and how it takes what servers do.

mod credentials;
mod faults;
mod scripted;
mod servers;
mod stalls;
mod uploads;

use std::path::PathBuf;
use std::time::Duration;

use walden::storage::{Deadline, S3Options, S3Storage};

use crate::support::S3Store;
use crate::support::s3_store::BUCKET;

fn deadline() -> Deadline {
    Deadline::stall(Duration::from_secs(20))
}

/// Returns the options for a server with path-style addresses.
fn options(endpoint: &str, bucket: &str, prefix: &str) -> S3Options {
    S3Options {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        region: Some("us-east-1".to_owned()),
        endpoint: Some(endpoint.to_owned()),
        path_style: true,
        ..S3Options::default()
    }
}

fn storage(store: &S3Store, prefix: &str) -> S3Storage {
    let options = options(&store.endpoint, BUCKET, prefix);
    S3Storage::with_credentials(options, &store.access_key, &store.secret_key)
}

/// Makes the errors of all kinds readable in assertions, and checks that they are fit for the server's log.
#[track_caller]
fn one_line<T>(result: walden::storage::Result<T>) -> walden::storage::Error {
    let Err(error) = result else { panic!("succeeded") };
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 600, "{text}");
    error
}

fn missing_file() -> PathBuf {
    PathBuf::from("/nowhere/authority.pem")
}
