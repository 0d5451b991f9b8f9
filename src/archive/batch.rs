//! The files of one push call: each is read and checked, compared with what the repositories hold under its name,
//! stored durably, and looked for once more.

use super::memory::Memory;
use super::outgoing::{Outgoing, memory_for};
use super::push::PushOptions;
use super::ready;
use super::source::WalFile;
use super::targets::{Target, Targets};
use super::whole;
use crate::codec::Sealer;
use crate::index::{Fingerprint, IndexHandle, RepositoryStamp, SegmentFacts};
use crate::kind::{Error, Kind, Result};
use crate::postgres::wal::events::{Contribution, EventOptions};
use crate::postgres::{ArchiveFileName, TimelineId};
use crate::repository::{ClusterKeys, Repository, WalObject, ask_all, find_contents};
use crate::storage::Put;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// After this long a call begins no further segment.
const LOOK_AHEAD_TIME: Duration = Duration::from_secs(10);

/// A file that is archived.
#[derive(Debug)]
pub struct Done {
    /// The CRC-32 of its content.
    pub crc: u32,
    /// What the file was.
    pub fingerprint: Fingerprint,
    /// Whether this call stored it, in at least one repository.
    pub stored: bool,
    /// The size as stored.
    pub stored_size: Option<u64>,
    /// The object that this call made; none where it did not, or did not have it in memory.
    pub written: Option<Written>,
    /// The repositories that hold it.
    pub copies: Vec<RepositoryStamp>,
    /// The repositories that failed, by their URL, and why.
    pub failed: Vec<(String, Error)>,
    /// What its records tell; none where they were not read.
    pub facts: Option<SegmentFacts>,
    /// What happened to the data, as far as the file alone tells.
    pub contribution: Option<Contribution>,
}

/// An object that a call made.
#[derive(Debug)]
pub struct Written {
    /// Its key.
    pub key: String,
    /// The CRC-32 of its bytes as stored.
    pub crc: u32,
    /// Their number.
    pub size: u64,
    /// The URLs of the repositories in which this very object is.
    pub urls: Vec<String>,
}

/// What all files of one call share.
pub struct Batch<'a> {
    /// The keys of the cluster.
    pub keys: ClusterKeys,
    /// The directory of the files.
    pub pg_wal: &'a Path,
    /// How to archive.
    pub options: &'a PushOptions,
    /// What compresses and encrypts.
    pub sealer: &'a Sealer,
    /// The repositories that take part.
    pub targets: &'a Targets<'a>,
    /// The index.
    pub index: &'a IndexHandle,
    /// Which events are looked for.
    pub events: &'a EventOptions,
    /// What the files that are archived at once may take.
    pub memory: Memory,
    /// Timelines whose history was compared, and the outcome.
    pub histories: Mutex<Vec<(TimelineId, Option<Error>)>>,
}

impl Batch<'_> {
    /// Archives the files, several at once, the first one first. None: the call had no time for it.
    pub fn archive_all(&self, files: &mut [WalFile]) -> Vec<Option<Result<Done>>> {
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
        let mut memory = self.memory.take(memory_for(file));
        // What may be archived already is read first, and sealed only if it turns out that it is not.
        let at_once = self.targets.ready.iter().all(|target| target.contents(name).is_empty());
        let mut outgoing = Outgoing::read(file, self.sealer, at_once, self.events, &mut memory)?;
        let crc = outgoing.crc;
        let mut holding = Vec::new();
        let mut lacking = Vec::new();
        for target in &self.targets.ready {
            self.refuse_other_content(target, name, crc, target.contents(name))?;
            match target.contents(name).iter().find(|held| held.crc == crc) {
                Some(held) => match self.confirm(target, held, file) {
                    Ok(()) => holding.push(target),
                    Err(error) => tracing::warn!("{error}"),
                },
                None => lacking.push(target),
            }
        }
        let records = outgoing.records.take().filter(|records| records.summary.major_version.is_some());
        let mut done = Done {
            crc,
            fingerprint: file.fingerprint,
            stored: false,
            stored_size: None,
            written: None,
            copies: holding.iter().map(|target| target.stamp()).collect(),
            failed: Vec::new(),
            facts: records.as_ref().and_then(|records| SegmentFacts::of(&name.to_string(), &records.summary)),
            contribution: records.map(|records| records.contribution),
        };
        let mut failed = Vec::new();
        if !lacking.is_empty() {
            let key = self.keys.wal_object(name, crc, self.sealer.ending());
            let to: Vec<&Repository> = lacking.iter().map(|target| target.repository).collect();
            let enough = self.options.acknowledge.saturating_sub(holding.len());
            let (outcome, length, stored_crc) = outgoing.ship(file, self.sealer, &to, &key, enough)?;
            let stored: Vec<&Target<'_>> = lacking
                .into_iter()
                .filter(|target| outcome.stored.iter().any(|(r, _)| r.name() == target.repository.name()))
                .collect();
            let created = outcome.stored.iter().filter(|(_, put)| *put == Put::Created);
            let urls = created.map(|(repository, _)| repository.url().to_owned()).collect();
            done.written = stored_crc.map(|crc| Written { key, crc, size: length, urls });
            failed = outcome.failed;
            let verified = self.look_again(&stored, name, crc, &mut failed)?;
            done.stored = true;
            done.stored_size = Some(length);
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
        for (repository, error) in failed {
            tracing::warn!("WAL file \"{name}\" is not in every repository: {error}");
            done.failed.push((repository.url().to_owned(), error));
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

    /// Makes sure that an object that is there already is whole and durable.
    fn confirm(&self, target: &Target<'_>, held: &WalObject, file: &mut WalFile) -> Result<()> {
        whole::check(target, held, file, self.index)?;
        let repository = target.repository;
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
        let mut unasked = Vec::new();
        for target in &self.targets.ready {
            let repository = target.repository;
            let held = match find_contents(repository, &self.keys, history, &repository.deadline()) {
                Ok(held) => held,
                Err(error) => {
                    unasked.push(repository.error("list", &error));
                    continue;
                }
            };
            self.refuse_other_content(target, history, crc, &held).map_err(|error| {
                error.context(format!("timeline {} has another history", timeline.0)).with_hint(
                    "another server has promoted to the same timeline; promote this one once more to get a number of \
                     its own, or give it a cluster name of its own",
                )
            })?;
        }
        // The others were compared, and one that cannot be asked now will hardly take the file.
        match unasked.into_iter().next() {
            Some(error) if self.targets.ready.len() == 1 => Err(error),
            _ => Ok(()),
        }
    }

    /// Says once a call what keeps repositories out, and why neighbours failed.
    pub fn warn_of_failed_repositories(&self, files: &[WalFile], outcomes: &[Option<Result<Done>>]) {
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
