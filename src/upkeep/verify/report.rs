//! What a verification found.

use crate::kind::Error;
use crate::postgres::{SystemIdentifier, TimelineId, WalSegmentName};
use crate::repository::Repository;
use jiff::Timestamp;
use serde::Serialize;

/// How many problems of a repository are named; the others are counted.
pub const NAMED: usize = 1000;

/// What a verification found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// When it began.
    pub started: Timestamp,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Whether content was read and checked.
    pub deep: bool,
    /// The repositories, in the order of the configuration; one with several system identifiers once for each.
    pub repositories: Vec<RepositoryReport>,
}

/// What was found in one repository.
#[derive(Debug, Serialize)]
pub struct RepositoryReport {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The system identifier; none where the repository could not be looked into.
    pub system_identifier: Option<SystemIdentifier>,
    /// Complete backups that were looked at.
    pub backups: usize,
    /// WAL segments and histories that were looked at.
    pub wal: usize,
    /// Objects that were looked at, those included of which the listing said enough.
    pub objects: u64,
    /// Their bytes, as stored.
    pub bytes: u64,
    /// Objects that were read, or of which the store was asked for the checksum; the others were known already.
    pub looked_at: u64,
    /// The bytes that were read.
    pub bytes_read: u64,
    /// Objects of which the store keeps no checksum: only their size was compared.
    pub without_checksum: u64,
    /// Backups with pages whose checksum was wrong when they were taken: in the database, not in the repository.
    pub bad_pages: Vec<String>,
    /// How many things are wrong.
    pub problem_count: u64,
    /// They, at most a thousand.
    pub problems: Vec<Problem>,
    /// What could not be looked at, and why.
    pub failures: Vec<String>,
}

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrong {
    /// It is not there.
    Missing,
    /// It is not of the size that it had or should have.
    Size,
    /// Its bytes are not those that were stored.
    Checksum,
    /// Its content is not what it should be.
    Content,
    /// No identity that is configured opens it.
    Undecryptable,
    /// Two contents are stored under one name.
    Conflict,
    /// WAL is missing between what is there.
    Gap,
}

/// What something is wrong with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The cluster as a whole.
    Cluster,
    /// The backup of that id.
    Backup(String),
    /// A segment.
    Segment(WalSegmentName),
    /// Segments of one timeline, the first and the last that are missing.
    Segments(WalSegmentName, WalSegmentName),
    /// The history of a timeline.
    History(TimelineId),
    /// Another file beside the WAL, which no recovery needs.
    Other,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What.
    pub wrong: Wrong,
    /// With what.
    pub subject: Subject,
    /// The object's key, where there is one.
    pub key: Option<String>,
    /// What was found, in a line.
    pub text: String,
    /// What it means while it lasts.
    pub consequence: String,
    /// The repository that has a good copy.
    pub good_in: Option<String>,
    /// What mends it.
    pub remedy: String,
}

impl Report {
    /// Returns how many things are wrong in all repositories.
    pub fn problems(&self) -> u64 {
        self.repositories.iter().map(|repository| repository.problem_count).sum()
    }

    /// Returns the first failure to look at something.
    pub fn failure(&self) -> Option<&str> {
        self.repositories.iter().find_map(|repository| repository.failures.first()).map(String::as_str)
    }
}

impl RepositoryReport {
    /// Returns the report of a repository of which nothing was seen yet.
    pub(super) fn new(repository: &Repository, system_identifier: Option<SystemIdentifier>) -> Self {
        Self {
            name: repository.name().to_owned(),
            url: repository.url().to_owned(),
            system_identifier,
            backups: 0,
            wal: 0,
            objects: 0,
            bytes: 0,
            looked_at: 0,
            bytes_read: 0,
            without_checksum: 0,
            bad_pages: Vec::new(),
            problem_count: 0,
            problems: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub(super) fn failed(
        repository: &Repository,
        system_identifier: Option<SystemIdentifier>,
        error: &Error,
    ) -> Self {
        Self { failures: vec![error.to_string()], ..Self::new(repository, system_identifier) }
    }
}
