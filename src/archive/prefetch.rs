//! The prefetcher: keeps the segments after the last one that the server got ready in the spool.
//!
//! It decides nothing. What it cannot fetch for whatever reason is left to `archive-get`, which asks and judges for
//! itself; at the first failure the prefetcher ends. It follows what `archive-get` notes down, along the timeline that
//! was asked for, and ends when nothing was asked for a while.

use super::content::{Expected, copy_checked};
use super::spool::{Spool, goes_forward};
use crate::codec::Opener;
use crate::kind::{Context, Error, Result};
use crate::postgres::{SystemIdentifier, WalSegmentName, WalSegmentSize};
use crate::repository::{
    ClusterKeys, ClusterState, Repository, WalListing, WalObject, ask_all, list_wal_from,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many objects one listing brings.
const LISTING: usize = 100;
/// How much the spool may hold, in bytes.
const SPOOL_BYTES: u64 = 256 << 20;
/// How often the demand is looked at.
const POLL: Duration = Duration::from_millis(5);
/// How long a listing that did not show the next segment holds at first; then twice as long each time.
const RELIST: Duration = Duration::from_secs(1);

/// How to prefetch.
#[derive(Debug, Clone)]
pub struct PrefetchOptions {
    /// The cluster's name in the repositories.
    pub cluster: String,
    /// Its system identifier.
    pub sysid: SystemIdentifier,
    /// How many segments are kept ready.
    pub ahead: usize,
    /// How many are fetched at once.
    pub parallel: usize,
    /// How long the server may ask for nothing before the prefetcher ends.
    pub idle: Duration,
    /// The data directory of the server that recovers; none where no recovery was seen to run.
    pub recovering: Option<PathBuf>,
}

/// Returns whether a server recovers in `data_dir`: it runs, and has not removed the file that asked for recovery.
pub fn is_recovering(data_dir: &Path) -> bool {
    let there = |name: &str| data_dir.join(name).exists();
    there("postmaster.pid") && (there("recovery.signal") || there("standby.signal"))
}

/// Keeps segments ready until the server has asked for nothing for a while; leaves the spool empty. Returns at once
/// where another prefetcher lives. An error says why it ended early, which is nobody's misfortune.
pub fn prefetch(
    spool: &Spool,
    options: &PrefetchOptions,
    repositories: &[Repository],
    opener: &Opener,
) -> Result<()> {
    let Some(lock) = spool.lock().context("lock the spool")? else { return Ok(()) };
    let Some(known) = spool.known().into_iter().next() else { return Ok(()) };
    let room = (SPOOL_BYTES / known.size.bytes()) as usize;
    let ahead = options.ahead.min(room);
    spool.clear();
    if ahead == 0 {
        return Ok(());
    }
    let prefetcher = Prefetcher {
        spool,
        options,
        repositories: repositories.iter().collect(),
        opener,
        keys: ClusterKeys::new(&options.cluster, options.sysid),
        size: known.size,
        ahead,
        shared: Mutex::default(),
        changed: Condvar::new(),
    };
    let outcome = std::thread::scope(|scope| {
        for _ in 0..options.parallel.clamp(1, ahead) {
            scope.spawn(|| prefetcher.work());
        }
        let outcome = prefetcher.follow();
        prefetcher.shared().over = true;
        prefetcher.changed.notify_all();
        outcome
    });
    spool.clear();
    drop(lock);
    outcome
}

/// A segment to fetch, and where it is.
#[derive(Debug, Clone)]
struct Job<'r> {
    segment: WalSegmentName,
    copies: Vec<Held<'r>>,
}

/// One repository's copy.
#[derive(Debug, Clone)]
struct Held<'r> {
    repository: &'r Repository,
    id: String,
    object: WalObject,
}

#[derive(Debug, Default)]
struct Shared<'r> {
    jobs: VecDeque<Job<'r>>,
    busy: BTreeSet<WalSegmentName>,
    failure: Option<Error>,
    over: bool,
    /// Whether a job ended since the planner looked.
    progress: bool,
}

/// What the repositories hold from some segment onward.
#[derive(Debug, Default)]
struct Shown<'r> {
    held: BTreeMap<WalSegmentName, Vec<Held<'r>>>,
    /// When to look again for what was not shown, and how long that look will hold.
    again: Option<(Instant, Duration)>,
}

struct Prefetcher<'a> {
    spool: &'a Spool,
    options: &'a PrefetchOptions,
    repositories: Vec<&'a Repository>,
    opener: &'a Opener,
    keys: ClusterKeys,
    size: WalSegmentSize,
    ahead: usize,
    shared: Mutex<Shared<'a>>,
    changed: Condvar,
}

impl<'a> Prefetcher<'a> {
    fn shared(&self) -> MutexGuard<'_, Shared<'a>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the demand until there is none.
    fn follow(&self) -> Result<()> {
        let mut wanted = None;
        let mut forward = false;
        let mut since = Instant::now();
        let mut shown = Shown::default();
        loop {
            let now = self.spool.wanted();
            let moved = now != wanted;
            if moved {
                forward = now.is_some_and(|now| goes_forward(wanted, now));
                wanted = now;
                since = Instant::now();
                shown.again = None;
            }
            let recovered = self.options.recovering.as_ref().is_some_and(|data_dir| !is_recovering(data_dir));
            if recovered || since.elapsed() > self.options.idle {
                return Ok(());
            }
            let progress = std::mem::take(&mut self.shared().progress);
            let relist = shown.again.is_some_and(|(at, _)| at <= Instant::now());
            if let Some(wanted) = wanted.filter(|_| forward && (moved || progress || relist)) {
                self.refill(wanted, &mut shown)?;
            }
            let guard = self.shared();
            if let Some(failure) = &guard.failure {
                return Err(failure.clone());
            }
            let rest = if since.elapsed() > RELIST { POLL * 10 } else { POLL };
            drop(self.changed.wait_timeout(guard, rest).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Gives the workers what is missing of the segments after `wanted`, the nearest first, and drops what is no
    /// longer wanted.
    fn refill(&self, wanted: WalSegmentName, shown: &mut Shown<'a>) -> Result<()> {
        let ready = self.spool.ready();
        let window: Vec<WalSegmentName> =
            std::iter::successors(Some(wanted.next(self.size)), |last| Some(last.next(self.size)))
                .take(self.ahead)
                .collect();
        self.spool.retain(|segment| window.contains(&segment));
        let mut jobs = VecDeque::new();
        let busy = self.shared().busy.clone();
        for segment in window {
            if ready.contains(&segment) || busy.contains(&segment) {
                continue;
            }
            if !shown.held.contains_key(&segment) && shown.again.is_none_or(|(at, _)| at <= Instant::now()) {
                shown.held = self.list(segment)?;
                if !shown.held.contains_key(&segment) {
                    let rest = shown.again.map_or(RELIST, |(_, rest)| rest * 2);
                    shown.again = Some((Instant::now() + rest, rest));
                }
            }
            let Some(copies) = shown.held.get(&segment) else { break };
            // Two contents of one name are for archive-get to refuse.
            if copies.iter().any(|copy| copy.object.crc != copies[0].object.crc) {
                break;
            }
            jobs.push_back(Job { segment, copies: copies.clone() });
        }
        self.shared().jobs = jobs;
        self.changed.notify_all();
        Ok(())
    }

    /// Asks every repository once what it holds from `segment` onward. Those that do not answer are left out, as
    /// long as one does.
    fn list(&self, segment: WalSegmentName) -> Result<BTreeMap<WalSegmentName, Vec<Held<'a>>>> {
        let ask = |repository: &'a Repository, deadline: &crate::storage::Deadline| {
            let failed = |error| repository.error("look into", &error);
            let state = ClusterState::ask(repository, &self.options.cluster, self.options.sysid, deadline)
                .map_err(failed)?;
            let ClusterState::Known(cluster) = state else {
                return Err(Error::other(format!("repository \"{}\" does not know it", repository.name())));
            };
            let listing: WalListing =
                list_wal_from(repository, &self.keys, segment, LISTING, deadline).map_err(failed)?;
            Ok((repository, cluster.id, listing))
        };
        let answers = ask_all(&self.repositories, 1, ask, Result::is_ok);
        let mut held: BTreeMap<WalSegmentName, Vec<Held<'a>>> = BTreeMap::new();
        // Beyond where one listing was cut, another content might not be shown.
        let mut seen_up_to: Option<WalSegmentName> = None;
        let mut problem = None;
        let mut answered = false;
        for answer in answers {
            match answer {
                Ok((repository, id, listing)) => {
                    answered = true;
                    if let Some(last) =
                        listing.objects.last().and_then(WalObject::segment).filter(|_| listing.cut)
                    {
                        seen_up_to = Some(seen_up_to.map_or(last, |seen| seen.min(last)));
                    }
                    for object in listing.objects {
                        let Some(segment) = object.segment() else { continue };
                        held.entry(segment).or_default().push(Held { repository, id: id.clone(), object });
                    }
                }
                Err(error) => problem = Some(error),
            }
        }
        if let (false, Some(error)) = (answered, problem) {
            return Err(error);
        }
        if let Some(last) = seen_up_to {
            held.retain(|segment, _| *segment < last);
        }
        Ok(held)
    }

    fn work(&self) {
        while let Some(job) = self.next_job() {
            let outcome = self.fetch(&job);
            let mut shared = self.shared();
            shared.busy.remove(&job.segment);
            shared.progress = true;
            if let Err(error) = outcome {
                shared.failure = Some(error);
            }
            drop(shared);
            self.changed.notify_all();
        }
    }

    fn next_job(&self) -> Option<Job<'a>> {
        let mut shared = self.shared();
        loop {
            if shared.over || shared.failure.is_some() {
                return None;
            }
            if let Some(job) = shared.jobs.pop_front() {
                if shared.busy.insert(job.segment) {
                    return Some(job);
                }
                continue;
            }
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Fetches the first good copy.
    fn fetch(&self, job: &Job<'_>) -> Result<()> {
        let expected = Expected { segment: job.segment, size: self.size, sysid: self.options.sysid };
        let mut problem = None;
        for copy in &job.copies {
            let put = self.spool.put(job.segment, copy.object.crc, &copy.id, |file| {
                copy_checked(copy.repository, &copy.object, Some(expected), self.opener, file)
            });
            match put {
                Ok(()) => return Ok(()),
                Err(error) => problem = Some(error),
            }
        }
        Err(problem.unwrap_or_else(|| Error::other("no copy")))
    }
}
