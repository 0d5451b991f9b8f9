//! The plan: for each repository by its own policy, which backups stay and why, and what goes.

use super::inventory::{self, Inventory, Leftover, is_aside};
use super::needs::{GRACE, Moment, Needs, Span};
use crate::kind::Error;
use crate::postgres::{ArchiveFileName, SystemIdentifier, TimelineId, WalSegmentName};
use crate::repository::{ClusterKeys, Repository, WalObject};
use crate::storage::Object;
use crate::upkeep::retention::{Candidate, Policy, Reason, decide, reference_time};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What is asked for.
#[derive(Debug)]
pub struct Request<'r> {
    /// The cluster's name.
    pub cluster: &'r str,
    /// Every repository of the configuration with its policy; without one nothing is removed from it.
    pub repositories: Vec<(&'r Repository, Option<Policy>)>,
    /// The only repository to remove from; none for all.
    pub only: Option<&'r str>,
    /// The time.
    pub now: Timestamp,
    /// Backups that are being taken, or may be continued, as far as this host knows.
    pub busy: BTreeSet<String>,
}

/// The plan for all repositories.
#[derive(Debug, Serialize)]
pub struct Plan<'r> {
    /// Those that something may be removed from.
    pub repositories: Vec<RepositoryPlan<'r>>,
    /// Those that are left alone because of a failure.
    pub skipped: Vec<Skipped>,
}

/// A repository that is left alone.
#[derive(Debug, Serialize)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why.
    #[serde(serialize_with = "as_text")]
    pub error: Error,
}

fn as_text<S: serde::Serializer>(error: &Error, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(error)
}

/// The plan for one repository.
#[derive(Debug, Serialize)]
pub struct RepositoryPlan<'r> {
    /// Its name.
    pub name: String,
    #[serde(skip)]
    pub(super) repository: &'r Repository,
    /// The policy, in words.
    pub policy: String,
    /// When the window ends.
    pub reference: Timestamp,
    /// When it begins; none without one.
    pub window_start: Option<Timestamp>,
    /// One for each system identifier.
    pub systems: Vec<SystemPlan>,
}

/// A number of objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    pub objects: usize,
    /// Their bytes, as stored.
    pub bytes: u64,
}

impl Amount {
    /// Adds one object.
    pub fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// The plan for one system identifier.
#[derive(Debug, Serialize)]
pub struct SystemPlan {
    /// The system identifier.
    pub system_identifier: SystemIdentifier,
    /// Every complete backup, oldest end first.
    pub backups: Vec<BackupPlan>,
    /// WAL that stays.
    pub wal_kept: Amount,
    /// WAL that goes.
    pub wal_removed: Amount,
    /// WAL that stays because another repository needs and lacks it.
    pub wal_kept_for: BTreeMap<String, usize>,
    /// What broken-off backups left, and goes.
    pub leftovers: Vec<Leftover>,
    /// Folders without `backup.json` that stay: they are young, or a backup is being taken.
    pub leftovers_kept: Vec<Leftover>,
    #[serde(skip)]
    pub(super) keys: ClusterKeys,
    #[serde(skip)]
    pub(super) wal: Vec<WalObject>,
    /// Folders of segments of which nothing stays.
    #[serde(skip)]
    pub(super) emptied: BTreeSet<String>,
    #[serde(skip)]
    pub(super) needs: Needs,
}

/// One backup.
#[derive(Debug, Serialize)]
pub struct BackupPlan {
    /// The id.
    pub id: String,
    /// When it ended.
    pub stop_time: Timestamp,
    /// The timeline.
    pub timeline: TimelineId,
    /// Why it stays; empty: it goes.
    #[serde(serialize_with = "reasons_as_text")]
    pub reasons: BTreeSet<Reason>,
    /// Why it is not usable, if so.
    pub problem: Option<String>,
    /// Its objects.
    pub stored: Amount,
    #[serde(skip)]
    pub(super) span: Span,
}

fn reasons_as_text<S: serde::Serializer>(
    reasons: &BTreeSet<Reason>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(reasons.iter().map(ToString::to_string))
}

impl BackupPlan {
    /// Returns whether the backup stays.
    pub fn stays(&self) -> bool {
        !self.reasons.is_empty()
    }
}

impl RepositoryPlan<'_> {
    /// Returns all that goes.
    pub fn removed(&self) -> Amount {
        let mut sum = Amount::default();
        let mut add = |objects: usize, bytes: u64| {
            sum.objects += objects;
            sum.bytes += bytes;
        };
        for system in &self.systems {
            add(system.wal_removed.objects, system.wal_removed.bytes);
            for backup in system.backups.iter().filter(|backup| !backup.stays()) {
                add(backup.stored.objects, backup.stored.bytes);
            }
            for leftover in &system.leftovers {
                add(leftover.objects, leftover.bytes);
            }
        }
        sum
    }
}

/// Makes the plan, by listings and the summaries of backups. A repository that cannot be read is skipped; what the others
/// may remove does not depend on it.
pub fn plan<'r>(request: &Request<'r>) -> Plan<'r> {
    let mut plan = Plan { repositories: Vec::new(), skipped: Vec::new() };
    let mut read: Vec<(&'r Repository, Option<Policy>, Vec<Inventory>)> = Vec::new();
    for (repository, policy) in &request.repositories {
        match inventory::read(repository, request.cluster) {
            Ok(inventories) => read.push((repository, *policy, inventories)),
            Err(error) if request.only.is_none_or(|only| only == repository.name()) => {
                plan.skipped.push(Skipped { name: repository.name().to_owned(), error });
            }
            Err(error) => tracing::warn!("{error}; what it lacks is not known"),
        }
    }
    // A pin in one repository protects the backup in all: to write the others may have failed.
    let pins: BTreeSet<String> =
        read.iter().flat_map(|(_, _, systems)| systems).flat_map(|s| s.pins.clone()).collect();
    let complete: BTreeMap<String, Candidate> = read
        .iter()
        .flat_map(|(_, _, systems)| systems)
        .flat_map(|system| &system.backups)
        .map(|backup| (backup.span.candidate.id.clone(), backup.span.candidate.clone()))
        .collect();
    let mut plans: Vec<(RepositoryPlan<'r>, Vec<Inventory>, bool)> = Vec::new();
    for (repository, policy, mut systems) in read {
        for backup in systems.iter_mut().flat_map(|system| &mut system.backups) {
            let candidate = &mut backup.span.candidate;
            candidate.pinned |= pins.contains(&candidate.id);
        }
        let made = of_repository(request, repository, policy, &systems, &complete);
        plans.push((made, systems, policy.is_some()));
    }
    for at in 0..plans.len() {
        let doomed = doomed_wal(&plans, at);
        let (made, systems, _) = &mut plans[at];
        for ((system, inventory), (wal, kept_for)) in made.systems.iter_mut().zip(systems).zip(doomed) {
            let mut kept = Amount::default();
            for object in &inventory.wal {
                kept.add(object.object.size);
            }
            for object in &wal {
                system.wal_removed.add(object.object.size);
            }
            system.wal_kept = Amount {
                objects: kept.objects - system.wal_removed.objects,
                bytes: kept.bytes - system.wal_removed.bytes,
            };
            system.emptied = emptied(inventory, &wal);
            system.wal = wal;
            system.wal_kept_for = kept_for;
        }
    }
    plan.repositories = plans
        .into_iter()
        .filter(|(made, _, has_policy)| *has_policy && request.only.is_none_or(|only| only == made.name))
        .map(|(made, _, _)| made)
        .collect();
    plan
}

/// Returns whether `to` would keep what it lacks, by its policy: `sync` copies nothing that the next `expire` removes. Asked
/// with the keys of objects. None where that cannot be said; then all is wanted.
pub fn wanted(
    cluster: &str,
    to: (&Repository, Policy),
    others: &[&Repository],
    now: Timestamp,
) -> Option<impl Fn(&str) -> bool + use<>> {
    let mut systems = inventory::read(to.0, cluster).ok()?;
    for other in others {
        for theirs in inventory::read(other, cluster).ok()? {
            match systems.iter_mut().find(|ours| ours.sysid == theirs.sysid) {
                Some(ours) => ours.merge(theirs),
                None => systems.push(theirs),
            }
        }
    }
    let request = Request { cluster, repositories: Vec::new(), only: None, now, busy: BTreeSet::new() };
    let made = of_repository(&request, to.0, Some(to.1), &systems, &BTreeMap::new());
    Some(move |key: &str| made.systems.iter().all(|system| system.wants(key)))
}

impl SystemPlan {
    fn wants(&self, key: &str) -> bool {
        if let Some(rest) = key.strip_prefix(&self.keys.backups()) {
            let id = rest.split('/').next().unwrap_or_default();
            return self.backups.iter().all(|backup| backup.id != id || backup.stays());
        }
        if !key.starts_with(&self.keys.wal()) {
            return true;
        }
        let object = Object { key: key.to_owned(), size: 0, modified: None, crc32: None };
        inventory::parse(object).is_none_or(|object| keeps(&self.needs, object.name))
    }
}

fn of_repository<'r>(
    request: &Request<'r>,
    repository: &'r Repository,
    policy: Option<Policy>,
    systems: &[Inventory],
    complete: &BTreeMap<String, Candidate>,
) -> RepositoryPlan<'r> {
    let policy_or_none = policy.unwrap_or_default();
    let stored = systems.iter().filter_map(|system| system.newest_stored).max();
    let evidence = stored.or_else(|| systems.iter().filter_map(|system| system.newest_backup).max());
    let reference = reference_time(request.now, evidence);
    let candidates: Vec<Candidate> = systems
        .iter()
        .flat_map(|system| system.backups.iter().map(|backup| backup.span.candidate.clone()))
        .collect();
    let mut reasons = match policy {
        Some(policy) => decide(&policy, &candidates, reference),
        None => vec![BTreeSet::from([Reason::Last]); candidates.len()],
    };
    // What another repository holds whole, and this one would keep, is for sync to complete.
    let mut busy = request.busy.clone();
    for leftover in systems.iter().flat_map(|system| &system.leftovers) {
        let Some(candidate) = complete.get(&leftover.id) else { continue };
        let with_it: Vec<Candidate> = candidates.iter().chain([candidate]).cloned().collect();
        let kept = decide(&policy_or_none, &with_it, reference);
        if kept.last().is_some_and(|reasons| !reasons.is_empty()) {
            busy.insert(leftover.id.clone());
        }
    }
    let newest_usable = candidates.iter().filter(|candidate| candidate.usable).max_by_key(|c| c.stop_time);
    let newest = |system: &Inventory| system.newest_stored.max(system.newest_backup);
    let last_active = systems.iter().max_by_key(|system| newest(system)).map(|system| system.sysid);
    let start = policy_or_none.window_start(reference);
    let mut made = Vec::new();
    for system in systems {
        let rest = reasons.split_off(system.backups.len());
        let of_system = std::mem::replace(&mut reasons, rest);
        let is_current = last_active == Some(system.sysid)
            || newest_usable.is_some_and(|newest| newest.branch.sysid == system.sysid);
        let moment = Moment { reference, start, is_current };
        made.push(of_system_plan(&busy, system, of_system, moment));
    }
    RepositoryPlan {
        name: repository.name().to_owned(),
        repository,
        policy: policy_or_none.to_string(),
        reference,
        window_start: start,
        systems: made,
    }
}

fn of_system_plan(
    busy: &BTreeSet<String>,
    inventory: &Inventory,
    mut reasons: Vec<BTreeSet<Reason>>,
    moment: Moment,
) -> SystemPlan {
    let spans: Vec<Span> = inventory.backups.iter().map(|backup| backup.span.clone()).collect();
    let needs = Needs::new(inventory.size, &spans, &reasons, &inventory.timelines, moment);
    for (span, reasons) in spans.iter().zip(&mut reasons) {
        if needs.anchors.contains(&span.candidate.id) {
            reasons.insert(if moment.start.is_some() { Reason::Window } else { Reason::LastGood });
        }
    }
    let mut backups: Vec<BackupPlan> = inventory
        .backups
        .iter()
        .zip(reasons)
        .map(|(held, reasons)| BackupPlan {
            id: held.span.candidate.id.clone(),
            stop_time: held.span.candidate.stop_time,
            timeline: held.span.candidate.branch.timeline,
            reasons,
            problem: held.problem.clone(),
            stored: Amount { objects: held.objects, bytes: held.bytes },
            span: held.span.clone(),
        })
        .collect();
    backups.sort_by(|a, b| (a.stop_time, &a.id).cmp(&(b.stop_time, &b.id)));
    let quiet = moment.reference.checked_sub(GRACE).unwrap_or(Timestamp::MIN);
    let (leftovers, leftovers_kept) = inventory.leftovers.iter().cloned().partition(|leftover| {
        leftover.newest.is_some_and(|newest| newest <= quiet) && !busy.contains(&leftover.id)
    });
    SystemPlan {
        system_identifier: inventory.sysid,
        backups,
        wal_kept: Amount::default(),
        wal_removed: Amount::default(),
        wal_kept_for: BTreeMap::new(),
        leftovers,
        leftovers_kept,
        keys: inventory.keys.clone(),
        wal: Vec::new(),
        emptied: BTreeSet::new(),
        needs,
    }
}

/// Returns the folders of segments that `going` leaves empty. Nobody writes there any more: the newest segments stay.
fn emptied(inventory: &Inventory, going: &[WalObject]) -> BTreeSet<String> {
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    for segment in &inventory.segments {
        *left.entry(inventory.keys.wal_folder(*segment)).or_default() += 1;
    }
    let gone: BTreeSet<WalSegmentName> =
        going.iter().filter(|o| !is_aside(&inventory.keys, o)).filter_map(WalObject::segment).collect();
    for segment in gone {
        if let Some(left) = left.get_mut(&inventory.keys.wal_folder(segment)) {
            *left = left.saturating_sub(1);
        }
    }
    left.into_iter().filter(|(_, left)| *left == 0).map(|(folder, _)| folder).collect()
}

type Doomed = (Vec<WalObject>, BTreeMap<String, usize>);

/// Returns the WAL that goes from repository `at`, for each of its system identifiers, and how much stays for others.
fn doomed_wal(plans: &[(RepositoryPlan<'_>, Vec<Inventory>, bool)], at: usize) -> Vec<Doomed> {
    let (made, inventories, _) = &plans[at];
    let one = |(system, inventory): (&SystemPlan, &Inventory)| {
        let others: Vec<(&RepositoryPlan<'_>, &SystemPlan, &Inventory)> = plans
            .iter()
            .filter(|(other, _, _)| other.name != made.name)
            .flat_map(|(other, held, _)| {
                let same = other.systems.iter().zip(held);
                same.filter(|(s, _)| s.system_identifier == system.system_identifier)
                    .map(move |(s, held)| (other, s, held))
            })
            .collect();
        let mut kept_for: BTreeMap<String, usize> = BTreeMap::new();
        let wal = inventory.wal.iter().filter(|object| {
            if keeps(&system.needs, object.name) {
                return false;
            }
            let Some(segment) = object.segment() else { return true };
            let lacking = others
                .iter()
                .find(|(_, other, held)| other.needs.claims(segment) && !held.segments.contains(&segment));
            if let Some((other, _, _)) = lacking {
                *kept_for.entry(other.name.clone()).or_default() += 1;
            }
            lacking.is_none()
        });
        let wal = wal.cloned().collect();
        (wal, kept_for)
    };
    made.systems.iter().zip(inventories).map(one).collect()
}

/// Returns whether an archived file stays. What belongs to a segment stays and goes with it.
pub(super) fn keeps(needs: &Needs, name: ArchiveFileName) -> bool {
    let by_segment = |segment: WalSegmentName| needs.keeps(segment);
    match name {
        ArchiveFileName::Segment(segment)
        | ArchiveFileName::Partial(segment)
        | ArchiveFileName::BackupHistory { segment, .. } => by_segment(segment),
        ArchiveFileName::History(_) => !needs.is_nothing(),
    }
}
