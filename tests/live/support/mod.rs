//! What the live tests share: throwaway PostgreSQL clusters, the `walden` binary, S3 servers, tools that judge.
//!
//! Nothing here knows how Walden works inside; it is driven as a user would drive it.
// Each helper is used by some test, not by all, and a helper may be there before its first test.
#![allow(dead_code, unused_imports, unused_macros)]

pub mod background;
pub mod certificates;
pub mod cluster;
pub mod http;
pub mod ledger;
pub mod moto;
pub mod peak;
pub mod postgres;
pub mod rclone;
pub mod restored;
pub mod s3_client;
pub mod s3_store;
pub mod session;
pub mod site;
pub mod tools;
pub mod user;
pub mod walden;

use std::fmt::Display;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use background::Background;
pub use cluster::{Cluster, ClusterOptions, Stop};
pub use ledger::{Entry, Ledger, Row};
pub use moto::Moto;
pub use postgres::{Installation, Postgres};
pub use rclone::Rclone;
pub use restored::Fork;
pub use s3_client::S3Client;
pub use s3_store::S3Store;
pub use site::{Site, SiteOptions};
pub use tools::{Finished, run};
pub use walden::{Config, Walden};

/// How long anything may take that a test waits for, unless it says otherwise.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Returns whether the tests run where everything has to be present.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false" && value != "0")
}

/// Returns whether long versions of tests were asked for (`make soak`).
pub fn soak() -> bool {
    std::env::var("WALDEN_SOAK").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// Passes on what was found. Without it the test cannot run: that is a failure in CI, and a message elsewhere.
#[track_caller]
pub fn require<T>(found: Option<T>, what: impl Display) -> Option<T> {
    if found.is_none() {
        assert!(!in_ci(), "{what} is missing; run tests/install.sh");
        eprintln!("skipped: {what} is missing; run tests/install.sh");
    }
    found
}

/// Returns the directories in which `tests/install.sh` may have put things, the preferred one first.
pub fn cache_dirs() -> Vec<PathBuf> {
    let mut dirs = vec![match std::env::var_os("WALDEN_TEST_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from("/var/cache/walden-tests"),
    }];
    dirs.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/walden-tests")));
    dirs
}

/// Returns the path of an installed file, given relative to the cache directory.
pub fn cached(relative: impl AsRef<Path>) -> Option<PathBuf> {
    cache_dirs().into_iter().map(|dir| dir.join(&relative)).find(|path| path.exists())
}

/// Polls until the condition holds, and panics when it does not within [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: impl Display, condition: impl FnMut() -> bool) {
    assert!(wait_for(PATIENCE, condition), "waited {PATIENCE:?} in vain until {what}");
}

/// Polls until the condition holds or the time is over; returns whether it holds.
pub fn wait_for(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns a port of 127.0.0.1 on which nothing listens.
///
/// It lies below the range from which the kernel takes ports for outgoing connections, so that none of those can
/// take it before the server does.
pub fn free_port() -> u16 {
    for _ in 0..200 {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port found on 127.0.0.1");
}

/// Defines a test that runs once for each supported PostgreSQL version, as `name::pg14` to `name::pg18`.
///
/// The body gets the [`Installation`]; where that is missing, the test is skipped (and fails in CI).
/// A list of versions in brackets restricts it: `live_test!([15, 17] fn name(pg: Installation) { … })`.
macro_rules! live_test {
    (fn $name:ident($pg:ident: Installation) $body:block) => {
        $crate::support::live_test!([14, 15, 16, 17, 18] fn $name($pg: Installation) $body);
    };
    ([$($major:tt),+ $(,)?] fn $name:ident($pg:ident: Installation) $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn body($pg: $crate::support::Installation) $body

            $($crate::support::live_test!(@version $major);)+
        }
    };
    (@version 14) => { $crate::support::live_test!(@test pg14 14); };
    (@version 15) => { $crate::support::live_test!(@test pg15 15); };
    (@version 16) => { $crate::support::live_test!(@test pg16 16); };
    (@version 17) => { $crate::support::live_test!(@test pg17 17); };
    (@version 18) => { $crate::support::live_test!(@test pg18 18); };
    (@test $test:ident $major:literal) => {
        #[test]
        fn $test() {
            if let Some(installation) = $crate::support::Postgres::for_test($major) {
                body(installation);
            }
        }
    };
}
pub(crate) use live_test;
