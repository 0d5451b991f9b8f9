//! The repositories that a backup goes to.
//!
//! Each repository counts by itself: one that fails is left out from then on, and the backup is complete where
//! everything arrived. It goes on as long as one is left.

use super::Sink;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{ArchiveFileName, WalSegmentName};
use crate::repository::backup::{BackupSummary, SUMMARY_NAME, StoredObject};
use crate::repository::{
    ClusterKeys, Outcome, Repository, WalObject, ask_all, copy_object, find_contents, list_backup_objects,
    read_stored, remove_leftovers, ship, summary_text,
};
use crate::storage::Put;
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the WAL of a finished backup is looked for.
const POLL: Duration = Duration::from_millis(200);
/// How often it is said what is waited for.
const REPORT: Duration = Duration::from_secs(10);

/// Where a backup is complete.
#[derive(Debug)]
pub struct Completed<'r> {
    /// The repositories that hold it.
    pub repositories: Vec<&'r Repository>,
    /// The others, and why it is not complete there.
    pub failed: Vec<(&'r Repository, Error)>,
    /// How long its WAL was waited for.
    pub waited: Duration,
}

/// The repositories that a backup goes to.
#[derive(Debug)]
pub struct Destinations<'r> {
    keys: ClusterKeys,
    id: String,
    folder: String,
    /// Whether an earlier attempt stored objects here.
    continued: AtomicBool,
    left: Mutex<Vec<&'r Repository>>,
    failed: Mutex<Vec<(&'r Repository, Error)>>,
}

impl<'r> Destinations<'r> {
    /// Returns the destinations of the backup `id`: the `ready` repositories; `failed` cannot take part from the
    /// beginning.
    pub fn new(
        keys: ClusterKeys,
        id: &str,
        ready: Vec<&'r Repository>,
        failed: Vec<(&'r Repository, Error)>,
    ) -> Self {
        let folder = keys.backup(id);
        Self {
            keys,
            id: id.to_owned(),
            folder,
            continued: AtomicBool::new(false),
            left: Mutex::new(ready),
            failed: Mutex::new(failed),
        }
    }

    fn left(&self) -> Vec<&'r Repository> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn give_up(&self, repository: &'r Repository, error: Error) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if left.iter().any(|other| other.name() == repository.name()) {
            tracing::warn!("{error}; the backup goes on without repository \"{}\"", repository.name());
            left.retain(|other| other.name() != repository.name());
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).push((repository, error));
        }
    }

    fn first_failure(&self) -> Error {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.first().map_or_else(|| Error::other("no repository is left"), |(_, error)| error.clone())
    }

    /// Waits until the WAL that the backup needs is in each repository, copying what one has and another lacks, and
    /// then writes `backup.json` there. `limit` bounds the wait. Fails when the backup is complete nowhere.
    pub fn complete(&self, summary: &BackupSummary, limit: Duration) -> Result<Completed<'r>> {
        let began = Instant::now();
        self.wait_for_wal(summary, limit);
        let waited = began.elapsed();
        if self.continued.load(Ordering::Relaxed) {
            // What an earlier attempt had sent when it was killed may have arrived since.
            let keep = summary.objects().map(|object| object.name.as_str()).collect();
            for repository in self.left() {
                if let Err(error) = remove_leftovers(repository, &self.keys, &self.id, &keep) {
                    self.give_up(repository, error);
                }
            }
            if self.left().is_empty() {
                return Err(self.first_failure());
            }
        }
        let text = Bytes::from(summary_text(summary)?);
        self.ship(SUMMARY_NAME, &text);
        let repositories = self.left();
        if repositories.is_empty() {
            return Err(self.first_failure());
        }
        let failed = std::mem::take(&mut *self.failed.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Completed { repositories, failed, waited })
    }

    fn wait_for_wal(&self, summary: &BackupSummary, limit: Duration) {
        let segments: Vec<WalSegmentName> = summary.wal_segments().collect();
        let mut waiting = segments.clone();
        let began = Instant::now();
        let mut said = Instant::now();
        loop {
            let before = waiting.len();
            waiting.retain(|segment| !self.is_everywhere(*segment));
            let Some(first) = waiting.first() else { return };
            if waiting.len() < before {
                continue;
            }
            if began.elapsed() >= limit {
                break;
            }
            if said.elapsed() >= REPORT {
                said = Instant::now();
                tracing::info!("waiting for WAL segment {first} to be archived");
            }
            std::thread::sleep(POLL);
        }
        let missing: Vec<String> = waiting.iter().take(3).map(ToString::to_string).collect();
        for repository in self.left() {
            let lacks =
                waiting.iter().any(|segment| self.contents(repository, *segment).is_ok_and(|c| c.is_empty()));
            if lacks {
                let error = Error::new(
                    Kind::Server,
                    format!(
                        "WAL segment {} was not archived to repository \"{}\" within {}",
                        missing.join(", "),
                        repository.name(),
                        humantime::format_duration(limit)
                    ),
                )
                .with_hint(
                    "is archive_mode on (SHOW archive_mode; a change needs a restart)? See the server's log for what \
                     archive_command says; for a backup from an idle standby run pg_switch_wal() on its primary",
                );
                self.give_up(repository, error);
            }
        }
    }

    fn contents(
        &self,
        repository: &Repository,
        segment: WalSegmentName,
    ) -> crate::storage::Result<Vec<WalObject>> {
        find_contents(repository, &self.keys, ArchiveFileName::Segment(segment), &repository.deadline())
    }

    /// Returns whether every repository that is left holds the segment, after copying it to those that lack it.
    fn is_everywhere(&self, segment: WalSegmentName) -> bool {
        let left = self.left();
        let answers = ask_all(
            &left,
            usize::MAX,
            |repository, _| (repository, self.contents(repository, segment)),
            |_| false,
        );
        let mut holder = None;
        let mut lacking = Vec::new();
        for (repository, answer) in answers {
            match answer {
                Ok(contents) => match contents.into_iter().next() {
                    Some(object) => holder = Some((repository, object)),
                    None => lacking.push(repository),
                },
                Err(error) => self.give_up(repository, repository.error("list", &error)),
            }
        }
        let Some((holder, object)) = holder else { return left.is_empty() };
        for repository in lacking {
            // The archiver may be sending it at this moment; then both find it there.
            if let Err(error) = copy_object(holder, repository, &object.object.key) {
                self.give_up(repository, error);
            }
        }
        true
    }
}

impl Destinations<'_> {
    /// Sends an object to every repository that is left. One that holds another content under its name fails.
    fn ship(&self, name: &str, body: &Bytes) {
        let left = self.left();
        let key = format!("{}{name}", self.folder);
        let Outcome { stored, failed } = ship(&left, &key, body, usize::MAX);
        for (repository, put) in stored {
            // The answer to the first of several tries may have been lost.
            if put == Put::Existed
                && let Err(error) = is_stored(repository, &key, body)
            {
                self.give_up(repository, error);
            }
        }
        for (repository, error) in failed {
            self.give_up(repository, error);
        }
    }
}

fn is_stored(repository: &Repository, key: &str, body: &Bytes) -> Result<()> {
    if read_stored(repository, key, body.len() as u64)? == body[..] {
        return Ok(());
    }
    Err(Error::new(
        Kind::Conflict,
        format!("repository \"{}\" holds other content under \"{key}\"", repository.name()),
    ))
}

impl Sink for Destinations<'_> {
    fn put(&self, name: &str, body: Bytes) -> Result<()> {
        self.ship(name, &body);
        if self.left().is_empty() { Err(self.first_failure()) } else { Ok(()) }
    }

    fn present(&self) -> Result<HashMap<String, u64>> {
        let mut present: HashMap<String, u64> = HashMap::new();
        let mut differ = Vec::new();
        for repository in self.left() {
            let objects = list_backup_objects(repository, &self.keys, &self.id)
                .map_err(|error| repository.error("list", &error))?;
            for object in objects {
                let Some(name) = object.key.strip_prefix(&self.folder) else { continue };
                if *present.entry(name.to_owned()).or_insert(object.size) != object.size {
                    differ.push(name.to_owned());
                }
            }
        }
        present.retain(|name, _| !differ.contains(name));
        Ok(present)
    }

    fn keep_only(&self, objects: &[StoredObject]) -> Result<()> {
        self.continued.store(true, Ordering::Relaxed);
        let keep: BTreeSet<&str> = objects.iter().map(|object| object.name.as_str()).collect();
        let left = self.left();
        let mut held = Vec::new();
        for repository in &left {
            // Where the rest cannot be removed, restoring by hand would take it along.
            remove_leftovers(repository, &self.keys, &self.id, &keep)
                .map_err(|error| error.with_hint("without --resume a backup begins anew"))?;
            let found = list_backup_objects(repository, &self.keys, &self.id)
                .map_err(|error| repository.error("list", &error))?;
            held.push(found.into_iter().map(|object| object.key).collect::<BTreeSet<String>>());
        }
        for object in objects {
            let key = format!("{}{}", self.folder, object.name);
            let Some(holder) = held.iter().position(|held| held.contains(&key)) else {
                return Err(Error::new(Kind::Repository, format!("object \"{key}\" is gone")));
            };
            for (repository, held) in left.iter().zip(&held) {
                if !held.contains(&key)
                    && let Err(error) = copy_object(left[holder], repository, &key)
                {
                    self.give_up(repository, error);
                }
            }
        }
        if self.left().is_empty() { Err(self.first_failure()) } else { Ok(()) }
    }
}
