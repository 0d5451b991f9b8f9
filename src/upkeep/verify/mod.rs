//! `verify`: is what is archived still there and still what it was?
//!
//! Of each repository everything is listed anew. An object's size is in the listing; its CRC-32 is what the store keeps (S3),
//! or is computed of the bytes (a directory), and is compared with `backup.json`, or with what was seen before. With
//! the identity the content is read, too. What was looked at is remembered in the index, so that the next run looks at what is
//! new. `objects` looks, `visit` notes what is found, `backups` and `wal` know what an object should be,
//! `content` reads it, `continuity` finds what is missing in between, `settle` asks the other repositories for a good copy and notes damage.
//!
//! Whoever removes objects meanwhile (`expire`) is no damage: what is missing is looked for again, and counts only while
//! something that needs it is there.

mod backups;
mod content;
mod continuity;
mod objects;
mod report;
mod settle;
#[cfg(test)]
mod tests;
mod visit;
mod wal;

pub use report::{Problem, Report, RepositoryReport, Subject, Wrong};

use super::retention::Policy;
use crate::codec::Opener;
use crate::index::{IndexHandle, RepositoryStamp, Verification};
use crate::kind::{Error, Kind, Result};
use crate::postgres::{SystemIdentifier, WalSegmentName, WalSegmentSize};
use crate::progress::Progress;
use crate::repository::{ClusterFile, ClusterKeys, Repository};
use jiff::Timestamp;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use visit::Visit;

/// How many questions for checksums are under way at once where nobody says so: far below what a store takes from one client
/// (S3: 5500 a second and prefix), and enough to keep this side busy at 20 ms an answer.
pub const QUESTIONS: usize = 32;

/// What is to be verified, and how.
#[derive(Debug)]
pub struct Request<'r> {
    /// The cluster's name.
    pub cluster: &'r str,
    /// All repositories, each with the policy by which it expires: what is not there because of it is no damage.
    pub repositories: Vec<(&'r Repository, Option<Policy>)>,
    /// The only one that is verified; none for all.
    pub only: Option<&'r str>,
    /// The only system identifier that is verified; none for all that there are.
    pub system_identifier: Option<SystemIdentifier>,
    /// The server's own, where it is known: no repository may lack it.
    pub current: Option<SystemIdentifier>,
    /// Decrypts, if there is an identity.
    pub opener: &'r Opener,
    /// Whether content is read and checked.
    pub deep: bool,
    /// Backups that ended before it and WAL that was stored before it are not looked at.
    pub since: Option<Timestamp>,
    /// The only backup that is looked at, with the WAL that it needs.
    pub backup: Option<&'r str>,
    /// After how long what was read is read again.
    pub reread: Duration,
    /// Whether everything is read again.
    pub all: bool,
    /// How many objects are read at once.
    pub parallel: usize,
    /// How many questions for an object's checksum are under way at once. Such a question waits for the network and takes no memory.
    pub questions: usize,
    /// How long after a later segment an earlier one may still be on its way.
    pub in_flight: Duration,
    /// Backups that are being taken.
    pub busy: BTreeSet<String>,
    /// The server's directory of WAL, which may have histories.
    pub pg_wal: &'r Path,
    /// From how many rows on a deletion is an event.
    pub event_rows: u64,
}

impl Request<'_> {
    /// Returns whether everything is looked at.
    fn is_whole(&self) -> bool {
        self.since.is_none() && self.backup.is_none()
    }
}

/// Verifies the repositories one after the other, and returns what was found. A repository that cannot be asked is said to be
/// so; the others are verified nevertheless.
pub fn verify(request: &Request<'_>, index: &IndexHandle, progress: &Progress) -> Report {
    let began = Timestamp::now();
    let mut report = Report { started: began, repositories: Vec::new(), seconds: 0.0, deep: request.deep };
    let mut contents = Contents::default();
    for (repository, _) in &request.repositories {
        if request.only.is_some_and(|only| only != repository.name()) {
            continue;
        }
        progress.set_phase(repository.name());
        match systems(request, repository) {
            Ok((systems, lacking)) => {
                for (sysid, start) in systems {
                    let made = one(request, (repository, sysid, start), index, progress, &mut contents);
                    report.repositories.push(made);
                }
                let failed = lacking.map(|error| RepositoryReport::failed(repository, None, &error));
                report.repositories.extend(failed);
            }
            Err(error) => report.repositories.push(RepositoryReport::failed(repository, None, &error)),
        }
    }
    settle::settle(request, &mut report, index);
    for made in &report.repositories {
        let Some(sysid) = made.system_identifier else { continue };
        index.run(|index| index.record_verification(&made.url, sysid, &run(request, began, made)));
    }
    report.seconds = Timestamp::now().duration_since(began).as_secs_f64();
    report
}

fn run(request: &Request<'_>, started: Timestamp, made: &RepositoryReport) -> Verification {
    Verification {
        started,
        finished: Timestamp::now(),
        deep: request.deep,
        complete: request.is_whole() && made.failures.is_empty(),
        problems: made.problem_count,
        objects: made.objects,
        bytes: made.bytes_read,
        failure: made.failures.first().cloned(),
    }
}

/// Which content each segment has in the repositories that were verified so far: elsewhere it must have the same.
#[derive(Debug, Default)]
struct Contents(HashMap<(SystemIdentifier, WalSegmentName), (u32, Arc<str>)>);

/// How the verification of a system identifier begins.
enum Start {
    /// With its `cluster.json`.
    Known(Box<ClusterFile>),
    /// There are objects of it, and no `cluster.json`.
    Nameless,
}

/// Returns the system identifiers that there are in a repository, and what is wrong where the one that must be there is not.
#[allow(clippy::type_complexity, reason = "what there is, and what there is not")]
fn systems(
    request: &Request<'_>,
    repository: &Repository,
) -> Result<(Vec<(SystemIdentifier, Start)>, Option<Error>)> {
    let failed = |error: crate::storage::Error| repository.error("look into", &error);
    let folder = format!("{}/", request.cluster);
    let folders = repository.storage().list_folders(&folder, &repository.deadline()).map_err(failed)?;
    let mut found = Vec::new();
    for sysid in folders.iter().filter_map(|name| name.parse::<SystemIdentifier>().ok()) {
        if request.system_identifier.is_some_and(|only| only != sysid) {
            continue;
        }
        let keys = ClusterKeys::new(request.cluster, sysid);
        match ClusterFile::read(repository, &keys, &repository.deadline()) {
            Ok(file) => found.push((sysid, Start::Known(Box::new(file)))),
            Err(error) if error.is_not_found() => {
                let parts = repository.storage().list_folders(keys.root(), &repository.deadline());
                if !parts.map_err(failed)?.is_empty() {
                    found.push((sysid, Start::Nameless));
                }
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let wanted = request.system_identifier.or(request.current);
    let lacks = wanted.is_some_and(|wanted| !found.iter().any(|(sysid, _)| *sysid == wanted));
    let lacking = (found.is_empty() || lacks).then(|| {
        let what = match wanted {
            Some(sysid) if !folders.is_empty() => format!("is not initialised for system identifier {sysid}"),
            _ => format!("holds no cluster \"{}\"", request.cluster),
        };
        Error::new(Kind::Repository, format!("repository \"{}\" {what}", repository.name()))
            .with_hint("not mounted, a wrong prefix, or never initialised")
    });
    Ok((found, lacking))
}

fn one(
    request: &Request<'_>,
    (repository, sysid, start): (&Repository, SystemIdentifier, Start),
    index: &IndexHandle,
    progress: &Progress,
    contents: &mut Contents,
) -> RepositoryReport {
    let keys = ClusterKeys::new(request.cluster, sysid);
    let (size, id) = match &start {
        Start::Known(file) => (file.wal_segment_size, file.id.clone()),
        Start::Nameless => (WalSegmentSize::DEFAULT, String::new()),
    };
    let stamp = RepositoryStamp { url: repository.url().to_owned(), cluster_id: id };
    let visit = Visit::new(request, repository, (sysid, keys, size), stamp, (index, progress));
    if let Start::Nameless = start {
        let key = visit.keys.cluster_file();
        visit.wrong(Wrong::Missing, Subject::Cluster, Some(&key), "\"cluster.json\" is missing");
        return visit.into_report();
    }
    let result = look(&visit, contents);
    if let Err(error) = result {
        visit.failed(&error);
    }
    visit.flush();
    if visit.may_forget() {
        visit.forget_stale_damage();
    }
    visit.into_report()
}

fn look(visit: &Visit<'_>, contents: &mut Contents) -> Result<()> {
    recovery_text(visit)?;
    // Backups first: the WAL of one that becomes complete meanwhile is then in the listing of WAL.
    let backups = backups::look(visit)?;
    let held = wal::look(visit, &backups, contents)?;
    continuity::look(visit, &backups, &held)
}

fn recovery_text(visit: &Visit<'_>) -> Result<()> {
    let key = visit.keys.recovery_text();
    match visit.repository.storage().head(&key, &visit.repository.deadline()) {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => {
            visit.wrong(Wrong::Missing, Subject::Cluster, Some(&key), "\"RECOVERY.md\" is missing");
            Ok(())
        }
        Err(error) => Err(visit.repository.error("look into", &error)),
    }
}
