//! `archive-push`: one segment, and its waiting neighbours, to the repositories.
//!
//! The order of things is what keeps the promise: the content is read and checked, compared with what the
//! repositories hold under its name, stored durably in enough of them, looked for once more (of two hosts that
//! race, at least one sees the other's), and only then written into the index and acknowledged.

use super::ready;
use super::source::{Origin, WalFile};
use super::targets::{self, Target, Targets};
use crate::codec::Sealer;
use crate::index::{ArchivedRow, Commits, Fingerprint, IndexHandle, RepositoryStamp};
use crate::kind::{Error, Kind, Result};
use crate::postgres::wal::{SegmentSummary, summarize};
use crate::postgres::{ArchiveFileName, PgTimestamp, TimelineId};
use crate::repository::{ClusterKeys, Repository, WalObject, ask_all, find_contents, ship};
use bytes::Bytes;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How much one call archives besides its own segment, in bytes.
const LOOK_AHEAD_BYTES: u64 = 1 << 30;
/// After this long a call begins no further segment.
const LOOK_AHEAD_TIME: Duration = Duration::from_secs(10);

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

    let all: Vec<&Repository> = repositories.iter().collect();
    let sysid = files[0].sysid;
    let targets = targets::open(&all, &options.cluster, sysid, &names, options.acknowledge)?;
    let batch = Batch {
        keys: ClusterKeys::new(&options.cluster, sysid),
        pg_wal,
        options,
        sealer,
        targets: &targets,
        histories: Mutex::default(),
    };
    let outcomes = batch.archive_all(&mut files);
    batch.warn_of_failed_repositories(&files, &outcomes);
    record(index, &files, &outcomes);
    let mut outcomes = outcomes.into_iter();
    match outcomes.next().flatten() {
        Some(Ok(done)) => Ok(if done.stored { Pushed::Stored } else { Pushed::HeldAlready }),
        Some(Err(error)) => Err(error),
        None => Err(Error::other("the file was not archived")),
    }
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

/// A file that is archived.
#[derive(Debug)]
struct Done {
    crc: u32,
    fingerprint: Fingerprint,
    stored: bool,
    stored_size: Option<u64>,
    copies: Vec<RepositoryStamp>,
    summary: Option<SegmentSummary>,
}

/// What all files of one call share.
struct Batch<'a> {
    keys: ClusterKeys,
    pg_wal: &'a Path,
    options: &'a PushOptions,
    sealer: &'a Sealer,
    targets: &'a Targets<'a>,
    /// Timelines whose history was compared, and the outcome.
    histories: Mutex<Vec<(TimelineId, Option<Error>)>>,
}

impl Batch<'_> {
    /// Archives the files, several at once, the first one first. None: the call had no time for it.
    fn archive_all(&self, files: &mut [WalFile]) -> Vec<Option<Result<Done>>> {
        let count = files.len();
        let began = Instant::now();
        let next = AtomicUsize::new(0);
        let files: Vec<Mutex<&mut WalFile>> = files.iter_mut().map(Mutex::new).collect();
        let results: Vec<Mutex<Option<Result<Done>>>> = (0..count).map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..self.options.parallel.min(count) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= count || (at > 0 && began.elapsed() > LOOK_AHEAD_TIME) {
                            break;
                        }
                        let (Ok(mut file), Ok(mut result)) = (files[at].lock(), results[at].lock()) else {
                            break;
                        };
                        if at > 0 && !ready::still_waits(self.pg_wal, file.name) {
                            continue;
                        }
                        *result = Some(self.archive_one(&mut file));
                    }
                });
            }
        });
        results.into_iter().map(|result| result.into_inner().ok().flatten()).collect()
    }

    fn archive_one(&self, file: &mut WalFile) -> Result<Done> {
        let name = file.name;
        self.compare_history(name)?;
        let content = file.read()?;
        let crc = crc32fast::hash(&content);
        let summary = read_records(name, &content);
        let mut holding = Vec::new();
        let mut lacking = Vec::new();
        for target in &self.targets.ready {
            self.refuse_other_content(target, name, crc, target.contents(name))?;
            match target.contents(name).iter().find(|held| held.crc == crc) {
                Some(held) => match self.confirm(target, held) {
                    Ok(()) => holding.push(target),
                    Err(error) => tracing::warn!("{error}"),
                },
                None => lacking.push(target),
            }
        }
        let mut done = Done {
            crc,
            fingerprint: file.fingerprint,
            stored: false,
            stored_size: None,
            copies: holding.iter().map(|target| target.stamp()).collect(),
            summary,
        };
        let mut failed = Vec::new();
        if !lacking.is_empty() {
            let object = Bytes::from(self.sealer.seal(&content)?);
            drop(content);
            if !file.is_unchanged() {
                return Err(Error::other("the file changed while it was archived"));
            }
            let key = self.keys.wal_object(name, crc, self.sealer.ending());
            let to: Vec<&Repository> = lacking.iter().map(|target| target.repository).collect();
            let enough = self.options.acknowledge.saturating_sub(holding.len());
            let outcome = ship(&to, &key, &object, enough);
            let stored: Vec<&Target<'_>> = lacking
                .into_iter()
                .filter(|target| outcome.stored.iter().any(|(r, _)| r.name() == target.repository.name()))
                .collect();
            failed = outcome.failed;
            let verified = self.look_again(&stored, name, crc, &mut failed)?;
            done.stored = true;
            done.stored_size = Some(object.len() as u64);
            done.copies.extend(verified.iter().map(|target| target.stamp()));
        }
        if done.copies.len() < self.options.acknowledge {
            let error = failed.into_iter().map(|(_, error)| error).next();
            let error = error.unwrap_or_else(|| Error::new(Kind::Repository, "too few repositories hold it"));
            return Err(match done.copies.len() {
                0 => error,
                n => {
                    error.context(format!("{n} of {} needed repositories hold it", self.options.acknowledge))
                }
            });
        }
        for (_, error) in failed {
            tracing::warn!("WAL file \"{name}\" is not in every repository: {error}");
        }
        Ok(done)
    }

    /// Different content under a name that is taken is refused before anything is written. A partial segment of the
    /// same name may differ between two hosts, and recovery never asks for one: both are kept.
    fn refuse_other_content(
        &self,
        target: &Target<'_>,
        name: ArchiveFileName,
        crc: u32,
        held: &[WalObject],
    ) -> Result<()> {
        let Some(other) = held.iter().find(|held| held.crc != crc) else { return Ok(()) };
        let says = format!(
            "repository \"{}\" holds other content under this name: CRC-32 {:08x}, this file has {crc:08x}",
            target.repository.name(),
            other.crc
        );
        if matches!(name, ArchiveFileName::Partial(_)) {
            tracing::warn!("partial WAL segment \"{name}\": {says}; both are kept");
            return Ok(());
        }
        Err(Error::new(Kind::Conflict, says).with_hint(format!(
            "two servers archive as cluster \"{}\", or an old copy was started with archiving on; nothing was \
             overwritten",
            self.options.cluster
        )))
    }

    fn confirm(&self, target: &Target<'_>, held: &WalObject) -> Result<()> {
        let repository = target.repository;
        // A copy that ran out of space on its way to another disk; no object of ours is empty.
        if held.object.size == 0 {
            return Err(Error::corrupt(format!(
                "object \"{}\" in repository \"{}\" is empty and does not count",
                held.object.key,
                repository.name()
            ))
            .with_hint("remove it, and the next call stores it anew"));
        }
        let result = repository.storage().confirm(&held.object.key, &repository.deadline());
        result.map_err(|error| repository.error("make durable in", &error))
    }

    /// Of two hosts that store different content at the same moment neither saw the other's before; now at least
    /// one does. Returns the repositories that count: one that stored the file and does not answer now joins the
    /// failed ones, and the others are enough or not.
    fn look_again<'t, 'r>(
        &self,
        stored: &[&'t Target<'r>],
        name: ArchiveFileName,
        crc: u32,
        failed: &mut Vec<(&'r Repository, Error)>,
    ) -> Result<Vec<&'t Target<'r>>> {
        let repositories: Vec<&Repository> = stored.iter().map(|target| target.repository).collect();
        let answers = ask_all(
            &repositories,
            repositories.len(),
            |repository, deadline| find_contents(repository, &self.keys, name, deadline),
            |_| true,
        );
        let mut verified = Vec::new();
        for (target, answer) in stored.iter().copied().zip(answers) {
            match answer {
                Ok(held) => {
                    self.refuse_other_content(target, name, crc, &held)?;
                    verified.push(target);
                }
                Err(error) => failed.push((target.repository, target.repository.error("list", &error))),
            }
        }
        Ok(verified)
    }

    /// On timelines above 1 the repository's history must be the one in `pg_wal`: else two servers made a timeline of
    /// the same number, and their segments would be mixed.
    fn compare_history(&self, name: ArchiveFileName) -> Result<()> {
        let timeline = name.timeline();
        if timeline.0 <= 1 || matches!(name, ArchiveFileName::History(_)) {
            return Ok(());
        }
        let mut compared = self.histories.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = compared.iter().find(|(of, _)| *of == timeline).map(|(_, error)| error.clone());
        let error = known.unwrap_or_else(|| {
            let error = self.compare_history_of(timeline).err();
            compared.push((timeline, error.clone()));
            error
        });
        error.map_or(Ok(()), Err)
    }

    fn compare_history_of(&self, timeline: TimelineId) -> Result<()> {
        let history = ArchiveFileName::History(timeline);
        let Ok(local) = std::fs::read(self.pg_wal.join(history.to_string())) else { return Ok(()) };
        let crc = crc32fast::hash(&local);
        for target in &self.targets.ready {
            let repository = target.repository;
            let held = find_contents(repository, &self.keys, history, &repository.deadline())
                .map_err(|error| repository.error("list", &error))?;
            self.refuse_other_content(target, history, crc, &held).map_err(|error| {
                error.context(format!("timeline {} has another history", timeline.0)).with_hint(
                    "another server has promoted to the same timeline; promote this one once more to get a number of \
                     its own, or give it a cluster name of its own",
                )
            })?;
        }
        Ok(())
    }

    /// Says once a call what keeps repositories out, and why neighbours failed.
    fn warn_of_failed_repositories(&self, files: &[WalFile], outcomes: &[Option<Result<Done>>]) {
        for (_, error) in &self.targets.failed {
            tracing::warn!("WAL file \"{}\" is not in every repository: {error}", files[0].name);
        }
        for (file, outcome) in files.iter().zip(outcomes).skip(1) {
            if let Some(Err(error)) = outcome
                && ready::still_waits(self.pg_wal, file.name)
            {
                tracing::warn!("WAL file \"{}\" was not archived ahead of its turn: {error}", file.name);
            }
        }
    }
}

/// Reads a segment's records for the index. What is wrong with them is no reason not to archive it: the server has no
/// better bytes.
fn read_records(name: ArchiveFileName, content: &[u8]) -> Option<SegmentSummary> {
    let ArchiveFileName::Segment(_) = name else { return None };
    let summary = summarize(content, None).0;
    if summary.major_version.is_none() {
        tracing::warn!(
            "WAL segment \"{name}\" has the unknown page magic {:04X}; archived, but its commits are not known",
            summary.magic
        );
    } else if let Some(bad) = summary.bad_record.as_ref().filter(|bad| !bad.is_end_of_wal) {
        tracing::warn!(
            "WAL segment \"{name}\" has a bad record at {}: {}; archived as it is; hint: recovery cannot pass it, take a \
             base backup now",
            bad.lsn,
            bad.reason
        );
    }
    Some(summary)
}

/// Returns what the index keeps of the commits in a segment.
fn commits_of(summary: &SegmentSummary) -> Commits {
    let us = |time: PgTimestamp| jiff::Timestamp::from(time).as_microsecond();
    Commits {
        count: summary.commits,
        first: summary.min_commit_time.map(us),
        last: summary.max_commit_time.map(us),
        last_lsn: summary.last_commit.as_ref().map(|last| last.lsn.0),
    }
}

fn record(index: &IndexHandle, files: &[WalFile], outcomes: &[Option<Result<Done>>]) {
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
                commits: done
                    .summary
                    .as_ref()
                    .filter(|summary| summary.major_version.is_some())
                    .map(commits_of),
                copies: &done.copies,
            }),
            _ => None,
        })
        .collect();
    if !rows.is_empty() {
        index.run(|index| index.record_archived(&rows));
    }
}
