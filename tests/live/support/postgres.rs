//! The PostgreSQL servers that are installed.

use std::path::{Path, PathBuf};

use super::{cached, require};

/// The major versions that Walden supports.
pub const MAJORS: [u32; 5] = [14, 15, 16, 17, 18];

/// The programs of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    pub major: u32,
    /// The directory of `initdb`, `pg_ctl` and `postgres`.
    pub bin: PathBuf,
}

impl Installation {
    /// Returns the path of one of its programs. Only Debian's has more than `initdb`, `pg_ctl` and `postgres`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// Finds installations.
#[derive(Debug)]
pub struct Postgres;

impl Postgres {
    /// Returns every supported version that is installed, the oldest first.
    pub fn versions() -> Vec<Installation> {
        MAJORS.into_iter().filter_map(Self::find).collect()
    }

    /// Returns the installation of a major version: the distribution's, else the one in the cache.
    pub fn find(major: u32) -> Option<Installation> {
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let bin = Some(debian).filter(|bin| bin.join("postgres").is_file()).or_else(|| {
            cached(format!("postgresql/{major}/bin")).filter(|bin| bin.join("postgres").is_file())
        })?;
        Some(Installation { major, bin })
    }

    /// Returns the installation that a test of this version needs, or says that the test is skipped.
    ///
    /// `WALDEN_TEST_MAJORS` (`15,17`) restricts a run by hand to some versions.
    pub fn for_test(major: u32) -> Option<Installation> {
        if let Ok(wanted) = std::env::var("WALDEN_TEST_MAJORS")
            && !wanted.split([',', ' ']).any(|word| word == major.to_string())
        {
            eprintln!("skipped: PostgreSQL {major} is not among WALDEN_TEST_MAJORS");
            return None;
        }
        require(Self::find(major), format!("PostgreSQL {major}"))
    }

    /// Returns one installation for tests that need any server: the distribution's, which has all the tools.
    pub fn any() -> Option<Installation> {
        require(Self::find(15).or_else(|| Self::versions().pop()), "PostgreSQL")
    }

    /// Returns a client program (`psql`, `pgbench`, `pg_amcheck`) of the distribution, 15's when it is there.
    #[track_caller]
    pub fn client(name: &str) -> PathBuf {
        let of = |major: u32| Path::new("/usr/lib/postgresql").join(major.to_string()).join("bin").join(name);
        std::iter::once(15)
            .chain((14..=30).rev())
            .map(of)
            .find(|path| path.is_file())
            .unwrap_or_else(|| panic!("{name} is missing; run tests/install.sh"))
    }
}
