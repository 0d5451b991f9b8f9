//! One repository under verification: what is found, what is remembered.

use super::Request;
use super::report::{NAMED, Problem, RepositoryReport, Subject, Wrong};
use crate::index::{IndexHandle, RepositoryStamp, Seen, below_cluster};
use crate::kind::{Error, Result};
use crate::parallel::lock;
use crate::postgres::{SystemIdentifier, WalSegmentSize};
use crate::progress::Progress;
use crate::repository::{ClusterKeys, Repository};
use crate::storage::{self, Object};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// After so many objects, or so long, what was seen is written down: a run that is broken off is not lost.
const REMEMBERED: usize = 200;
const REMEMBER_EVERY: Duration = Duration::from_secs(2);

/// Says of a key whether the repository's retention keeps it.
type Wanted = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// The verification of one system identifier in one repository.
pub(super) struct Visit<'v> {
    pub(super) request: &'v Request<'v>,
    pub(super) repository: &'v Repository,
    pub(super) sysid: SystemIdentifier,
    pub(super) keys: ClusterKeys,
    pub(super) size: WalSegmentSize,
    pub(super) stamp: RepositoryStamp,
    pub(super) index: &'v IndexHandle,
    pub(super) progress: &'v Progress,
    /// What is known to be damaged, by key.
    pub(super) damaged: HashMap<String, String>,
    /// Keys of damage that was neither found again nor taken back yet.
    pub(super) stale: Mutex<BTreeSet<String>>,
    report: Mutex<RepositoryReport>,
    pub(super) vanished: Mutex<BTreeSet<String>>,
    seen: Mutex<(Vec<(String, Seen)>, Instant)>,
    pub(super) total: AtomicU64,
    wanted: OnceLock<Option<Wanted>>,
}

impl<'v> Visit<'v> {
    pub(super) fn new(
        request: &'v Request<'v>,
        repository: &'v Repository,
        (sysid, keys, size): (SystemIdentifier, ClusterKeys, WalSegmentSize),
        stamp: RepositoryStamp,
        (index, progress): (&'v IndexHandle, &'v Progress),
    ) -> Self {
        let known = index.run(crate::index::Index::damages).unwrap_or_default();
        let here = known.into_iter().filter(|damage| damage.url == stamp.url);
        let damaged: HashMap<String, String> = here
            .filter(|damage| damage.key.starts_with(keys.root()))
            .map(|damage| (damage.key, damage.what))
            .collect();
        Self {
            request,
            repository,
            sysid,
            keys,
            size,
            stamp,
            index,
            progress,
            stale: Mutex::new(damaged.keys().cloned().collect()),
            damaged,
            report: Mutex::new(RepositoryReport::new(repository, Some(sysid))),
            vanished: Mutex::default(),
            seen: Mutex::new((Vec::new(), Instant::now())),
            total: AtomicU64::new(0),
            wanted: OnceLock::new(),
        }
    }

    /// Returns whether there is an object of that key; one that is not there is looked for only once.
    pub(super) fn is_there(&self, key: &str) -> Result<bool> {
        match self.repository.storage().head(key, &self.repository.deadline()) {
            Ok(_) => Ok(true),
            Err(storage::Error::NotFound(_)) => Ok(false),
            Err(error) => Err(self.repository.error("look into", &error)),
        }
    }

    /// Returns whether the repository's retention keeps an object of that key: what it does not keep is missed by nobody.
    pub(super) fn is_wanted(&self, key: &str) -> bool {
        let wanted = self.wanted.get_or_init(|| {
            let (mut ours, mut others) = (None, Vec::new());
            for (repository, policy) in &self.request.repositories {
                if repository.url() == self.repository.url() {
                    ours = *policy;
                } else {
                    others.push(*repository);
                }
            }
            let now = Timestamp::now();
            let wanted =
                crate::upkeep::expire::wanted(self.request.cluster, (self.repository, ours?), &others, now)?;
            Some(Box::new(wanted) as Wanted)
        });
        wanted.as_ref().is_none_or(|wanted| wanted(key))
    }

    /// Returns the keys that were listed and then gone.
    pub(super) fn vanished(&self) -> BTreeSet<String> {
        lock(&self.vanished).clone()
    }

    /// Notes something that is wrong.
    pub(super) fn wrong(&self, wrong: Wrong, subject: Subject, key: Option<&str>, text: &str) {
        if let Some(key) = key {
            lock(&self.stale).remove(key);
        }
        let mut report = lock(&self.report);
        report.problem_count += 1;
        if report.problems.len() < NAMED {
            report.problems.push(Problem {
                wrong,
                subject,
                key: key.map(str::to_owned),
                text: text.to_owned(),
                consequence: String::new(),
                good_in: None,
                remedy: String::new(),
            });
        }
    }

    /// Notes something that is wrong, with what it means.
    pub(super) fn gap(&self, subject: Subject, text: &str, consequence: String) {
        self.wrong(Wrong::Gap, subject, None, text);
        if let Some(problem) = lock(&self.report).problems.last_mut() {
            problem.consequence = consequence;
        }
    }

    /// Notes that something could not be looked at; returns how often that happened.
    pub(super) fn failed(&self, error: &Error) -> usize {
        let mut report = lock(&self.report);
        report.failures.push(error.to_string());
        report.failures.len()
    }

    /// Changes the counters.
    pub(super) fn count(&self, change: impl FnOnce(&mut RepositoryReport)) {
        change(&mut lock(&self.report));
    }

    /// Remembers what was seen of the object of that key.
    pub(super) fn remember(&self, key: &str, seen: Seen) {
        let mut list = lock(&self.seen);
        list.0.push((below_cluster(key).to_owned(), seen));
        if list.0.len() >= REMEMBERED || list.1.elapsed() > REMEMBER_EVERY {
            self.write(&mut list);
        }
    }

    /// Writes down what was seen.
    pub(super) fn flush(&self) {
        self.write(&mut lock(&self.seen));
    }

    fn write(&self, list: &mut (Vec<(String, Seen)>, Instant)) {
        if !list.0.is_empty() {
            self.index.run(|index| index.record_seen(&self.stamp.url, self.sysid, &list.0));
            list.0.clear();
        }
        list.1 = Instant::now();
    }

    /// Returns whether all was looked at.
    pub(super) fn may_forget(&self) -> bool {
        self.request.is_whole() && lock(&self.report).failures.is_empty()
    }

    /// Forgets damage of objects that are gone and missed by nothing.
    pub(super) fn forget_stale_damage(&self) {
        for key in &*lock(&self.stale) {
            self.index.run(|index| index.forget_damage(&self.stamp.url, key));
        }
    }

    pub(super) fn into_report(self) -> RepositoryReport {
        let mut report = self.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.problems.sort_by(|a, b| (a.wrong, &a.key).cmp(&(b.wrong, &b.key)));
        report
    }

    /// Returns objects as a map by the rest of their keys behind `folder`.
    pub(super) fn by_name(folder: &str, objects: Vec<Object>) -> BTreeMap<String, Object> {
        objects.into_iter().map(|object| (object.key[folder.len()..].to_owned(), object)).collect()
    }
}
