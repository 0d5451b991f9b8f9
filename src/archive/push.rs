//! `archive-push`: one segment, and its waiting neighbours, to the repositories.
//!
//! The order of things is what keeps the promise: the content is read and checked, compared with what the
//! repositories hold under its name, stored durably in enough of them, looked for once more (of two hosts that
//! race, at least one sees the other's), and only then written into the index and acknowledged.

use super::batch::{Batch, Done, Written};
use super::memory::Memory;
use super::outgoing::MEMORY;
use super::source::{Origin, WalFile};
use super::targets::{self, Targets};
use super::{backlog, ready};
use crate::codec::Sealer;
use crate::index::{ArchivedRow, IndexHandle, Reading, RepositoryStamp, Seen, below_cluster};
use crate::kind::{Error, Kind, Result};
use crate::postgres::wal::events::EventOptions;
use crate::postgres::{ArchiveFileName, SystemIdentifier};
use crate::repository::{ClusterKeys, Repository};
use crate::upkeep::digest::write_digest;
use std::path::Path;
use std::sync::Mutex;

/// How much one call archives besides its own segment, in bytes.
const LOOK_AHEAD_BYTES: u64 = 1 << 30;

/// How to archive.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// The cluster's name in the repositories.
    pub cluster: String,
    /// Where the system identifier of files without a header comes from.
    pub origin: Origin,
    /// How many repositories must hold a file.
    pub acknowledge: usize,
    /// How many files are sent at once.
    pub parallel: usize,
    /// How many waiting files a call may archive besides its own.
    pub look_ahead: usize,
    /// From how many rows on, per transaction and table, a DELETE or an UPDATE is an event.
    pub event_rows: u64,
}

/// How a file came to be archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// An earlier call had archived it; the index says so.
    KnownByIndex,
    /// Every repository that counts held it already.
    HeldAlready,
    /// This call stored it.
    Stored,
}

/// Archives the file at `path`, and others that wait beside it. Only the file's own outcome is returned; those of
/// the others are written into the index, or warned of and left to their own calls. Errors: [`Kind::Usage`] (not a
/// WAL file), [`Kind::Corrupt`] (bad header, another cluster), [`Kind::Conflict`], [`Kind::Repository`] (too few
/// repositories have it), [`Kind::Other`].
pub fn push(
    path: &Path,
    options: &PushOptions,
    repositories: &[Repository],
    sealer: &Sealer,
    index: &IndexHandle,
) -> Result<Pushed> {
    let own = WalFile::open(path, &options.origin)?;
    if known_by_index(&own, options, repositories, index) {
        return Ok(Pushed::KnownByIndex);
    }
    let pg_wal = path.parent().unwrap_or(Path::new(""));
    let mut files = vec![own];
    files.extend(neighbours(pg_wal, &files[0], options, index));
    let names: Vec<ArchiveFileName> = files.iter().map(|file| file.name).collect();

    let sysid = files[0].sysid;
    let keys = ClusterKeys::new(&options.cluster, sysid);
    let targets = open_targets(repositories, options, sysid, &names, index)?;
    let memory = Memory::new(MEMORY);
    let events = index.run(|index| index.event_options(sysid, options.event_rows)).unwrap_or_default();
    let batch = Batch {
        keys,
        pg_wal,
        options,
        sealer,
        targets: &targets,
        index,
        events: &events,
        memory,
        histories: Mutex::default(),
    };
    let outcomes = batch.archive_all(&mut files);
    batch.warn_of_failed_repositories(&files, &outcomes);
    for (url, error) in outcomes.iter().flatten().flatten().flat_map(|done| &done.failed) {
        index.run(|index| index.breaker_failed(url, error.message()));
    }
    record(index, &files, &outcomes, repositories, &events);
    let holding: Vec<&Repository> = targets.ready.iter().map(|target| target.repository).collect();
    write_digest(&batch.keys, sysid, &holding, sealer, index, false);
    if files.len() == 1 && matches!(outcomes[0], Some(Ok(_))) {
        // Nothing else waits: there is time for what a repository missed while it was down.
        backlog::send_some(&batch.keys, sysid, &targets, index);
    }
    let mut outcomes = outcomes.into_iter();
    match outcomes.next().flatten() {
        Some(Ok(done)) => Ok(if done.stored { Pushed::Stored } else { Pushed::HeldAlready }),
        Some(Err(error)) => Err(error),
        None => Err(Error::other("the file was not archived")),
    }
}

/// Asks the repositories, without those that failed lately unless they are needed, and notes how each did.
fn open_targets<'r>(
    repositories: &'r [Repository],
    options: &PushOptions,
    sysid: SystemIdentifier,
    names: &[ArchiveFileName],
    index: &IndexHandle,
) -> Result<Targets<'r>> {
    let breaker = |repository: &Repository| index.run(|index| index.breaker(repository.url())).flatten();
    let (rested, tried): (Vec<&Repository>, Vec<&Repository>) = repositories
        .iter()
        .partition(|repository| breaker(repository).is_some_and(|breaker| breaker.is_open()));
    let mut targets = Targets::default();
    if tried.len() >= options.acknowledge {
        targets = targets::open(&tried, &options.cluster, sysid, names, options.acknowledge);
    }
    if targets.ready.len() < options.acknowledge && !rested.is_empty() {
        let all: Vec<&Repository> = repositories.iter().collect();
        targets = targets::open(&all, &options.cluster, sysid, names, options.acknowledge);
    }
    for (repository, error) in &targets.failed {
        if error.kind() == Kind::Repository {
            index.run(|index| index.breaker_failed(repository.url(), error.message()));
        }
    }
    for target in &targets.ready {
        if breaker(target.repository).is_some() {
            index.run(|index| index.breaker_succeeded(target.repository.url()));
        }
    }
    targets.check(options.acknowledge)?;
    Ok(targets)
}

/// Returns whether the index says that this very file is durable in enough of the repositories that are configured
/// now.
fn known_by_index(
    file: &WalFile,
    options: &PushOptions,
    repositories: &[Repository],
    index: &IndexHandle,
) -> bool {
    let name = file.name.to_string();
    let Some(copies) = index.run(|index| index.copies_of(file.sysid, &name, &file.fingerprint)) else {
        return false;
    };
    if copies.is_empty() {
        return false;
    }
    let keys = ClusterKeys::new(&options.cluster, file.sysid);
    let holding = repositories
        .iter()
        .filter(|repository| {
            let newest = || {
                index
                    .run(|index| index.cluster_ids_of(repository.url()))
                    .and_then(|ids| ids.into_iter().next())
            };
            let id = if repository.is_local() {
                // A look at a local directory is cheap, and shows one that was unmounted or made anew.
                crate::repository::ClusterFile::read(repository, &keys, &repository.deadline())
                    .ok()
                    .map(|file| file.id)
            } else {
                newest()
            };
            id.is_some_and(|id| {
                copies.contains(&RepositoryStamp { url: repository.url().to_owned(), cluster_id: id })
            })
        })
        .count();
    holding >= options.acknowledge && file.is_unchanged()
}

/// Opens the files that wait beside `own`, within the bounds of one call, without those that are archived already.
fn neighbours(pg_wal: &Path, own: &WalFile, options: &PushOptions, index: &IndexHandle) -> Vec<WalFile> {
    let mut files = Vec::new();
    let mut bytes = 0;
    if options.look_ahead == 0 {
        return files;
    }
    for name in ready::waiting(pg_wal, own.name) {
        // What is wrong with a neighbour is said when the server asks for it.
        let Ok(file) = WalFile::open(&pg_wal.join(name.to_string()), &options.origin) else { continue };
        if file.sysid != own.sysid {
            continue;
        }
        let copies = index.run(|index| index.copies_of(file.sysid, &name.to_string(), &file.fingerprint));
        if copies.is_some_and(|copies| copies.len() >= options.acknowledge) {
            continue;
        }
        bytes += file.fingerprint.size;
        if files.len() >= options.look_ahead || bytes > LOOK_AHEAD_BYTES {
            break;
        }
        files.push(file);
    }
    files
}

fn record(
    index: &IndexHandle,
    files: &[WalFile],
    outcomes: &[Option<Result<Done>>],
    repositories: &[Repository],
    events: &EventOptions,
) {
    let names: Vec<String> = files.iter().map(|file| file.name.to_string()).collect();
    let rows: Vec<ArchivedRow<'_>> = files
        .iter()
        .zip(&names)
        .zip(outcomes)
        .filter_map(|((file, name), outcome)| match outcome {
            Some(Ok(done)) => Some(ArchivedRow {
                sysid: file.sysid,
                name,
                crc: done.crc,
                fingerprint: done.fingerprint,
                stored_size: done.stored_size,
                facts: done.facts.as_ref(),
                copies: &done.copies,
                lacking: repositories
                    .iter()
                    .map(Repository::url)
                    .filter(|url| !done.copies.iter().any(|copy| copy.url == *url))
                    .collect(),
            }),
            _ => None,
        })
        .collect();
    let (Some(own), false) = (files.first(), rows.is_empty()) else { return };
    let done = || outcomes.iter().map(|outcome| outcome.as_ref().and_then(|outcome| outcome.as_ref().ok()));
    let reading = Reading {
        contributions: done().flatten().filter_map(|done| done.contribution.as_ref()).collect(),
        // What came before was archived before: the server asks for one segment after the other.
        in_order_up_to: done()
            .next()
            .flatten()
            .and_then(|done| done.contribution.as_ref())
            .map(|own| (own.timeline(), own.start())),
        options: events,
    };
    index.run(|index| index.record_read(own.sysid, &rows, &reading));
    // What verify holds against what it finds there.
    let written: Vec<&Written> = done().flatten().filter_map(|done| done.written.as_ref()).collect();
    for repository in repositories {
        let here = written.iter().filter(|written| written.urls.iter().any(|url| url == repository.url()));
        let seen: Vec<(String, Seen)> = here
            .map(|written| (below_cluster(&written.key).to_owned(), Seen::written(written.size, written.crc)))
            .collect();
        if !seen.is_empty() {
            index.run(|index| index.record_seen(repository.url(), own.sysid, &seen));
        }
    }
}
