//! The plan of a recovery: which backup, which branch, how far the WAL goes, and what is written into the server's
//! settings. Made from listings and the summaries of a few backups, however many there are; a few segments are read to
//! know what can be reached (`reach`), many only where the target is a transaction or a restore point.

use super::catalog::{Catalog, HeldBackup, start_of_backup};
use super::path::{WalPath, stored_bytes, walk};
use super::reach::{OnTheWay, Reach};
use super::scan::{self, Around, LastCommit};
use super::target::{Target, TimelineChoice, utc};
use crate::codec::Opener;
use crate::index::IndexHandle;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{ArchiveFileName, Lsn, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName};
use crate::repository::backup::BackupSummary;
use crate::repository::{Repository, WalObject};
use std::collections::BTreeSet;

/// What to do first when the archive ends too early.
pub(super) const NOT_ARCHIVED_YET: &str =
    "if the server still runs, SELECT pg_switch_wal() there archives its newest WAL";

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The cluster's name.
    pub cluster: String,
    /// The target.
    pub target: Target,
    /// Whether to stop right before it.
    pub exclusive: bool,
    /// Which timeline to follow.
    pub timeline: TimelineChoice,
    /// The backup that the operator chose.
    pub backup: Option<String>,
    /// The segments beyond which nothing is needed, as the operator named them.
    pub through: Vec<WalSegmentName>,
}

/// A plan that can be carried out.
#[derive(Debug, serde::Serialize)]
pub struct Plan<'r> {
    /// The cluster's name.
    pub cluster: String,
    /// The system identifier.
    pub system_identifier: SystemIdentifier,
    /// The target, as UTC where it is a time.
    pub target: String,
    /// What the server is told to stop at.
    #[serde(skip)]
    pub stop: Target,
    /// Whether recovery stops right before the target.
    pub exclusive: bool,
    /// The backup's id.
    pub backup: String,
    /// Why it is this one.
    pub backup_reason: String,
    /// The backup.
    #[serde(skip)]
    pub summary: BackupSummary,
    /// The repositories that hold the backup.
    #[serde(skip)]
    pub backup_from: Vec<&'r Repository>,
    /// The names of the repositories that hold the backup.
    pub backup_repositories: Vec<String>,
    /// The timeline that is followed.
    pub timeline: TimelineId,
    /// The timelines on the way.
    pub timeline_path: Vec<TimelineId>,
    /// The first segment that is needed.
    pub first_segment: WalSegmentName,
    /// The last one that is archived without a hole.
    pub last_segment: WalSegmentName,
    /// How many segments are fetched, at most.
    pub segments: usize,
    /// Bytes of the backup to fetch.
    pub backup_bytes: u64,
    /// Bytes of WAL to fetch, at most.
    pub wal_bytes: u64,
    /// How many of those segments each repository holds, in the order of the configuration.
    pub wal_repositories: Vec<WalShare>,
    /// Where replay stops, as far as it was found out.
    pub stop_lsn: Option<Lsn>,
    /// The last commit that can be reached, where it was read.
    pub last_commit: Option<LastCommit>,
    /// The last commit that is kept and the first one that is lost, where they were read.
    pub around: Around,
    /// The segments beyond which recovery is told that nothing follows.
    pub through: Vec<WalSegmentName>,
    /// Histories that are missing and that recovery is told not to wonder about.
    pub missing_histories: Vec<TimelineId>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl Plan<'_> {
    /// Returns the size of the WAL that is replayed, at most, in bytes of content.
    pub fn wal_content_bytes(&self) -> u64 {
        self.segments as u64 * self.summary.wal_segment_size.bytes()
    }
}

/// What a repository holds of the WAL that is needed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WalShare {
    /// The repository.
    pub repository: String,
    /// How many of the segments.
    pub segments: usize,
}

/// How many backups are looked at before all of them are.
const NEWEST: usize = 3;

/// Makes the plan. Fails with [`Kind::Target`] when the target cannot be reached, [`Kind::Repository`] when a
/// repository cannot be asked, [`Kind::Config`] without the identity.
///
/// `known` are the system identifiers that the repositories know ([`super::catalog::system_identifiers`]). `index` saves reading
/// segments that hold no commit, where it knows them.
pub fn plan<'r>(
    request: &Request,
    repositories: &[&'r Repository],
    known: &BTreeSet<SystemIdentifier>,
    opener: &Opener,
    index: &IndexHandle,
) -> Result<Plan<'r>> {
    let chosen = |ids: &[String]| likely(request, ids);
    match plan_with(request, repositories, known, opener, index, &chosen) {
        // Why not, and what is nearest, needs all backups.
        Err(error) if error.kind() == Kind::Target => {
            plan_with(request, repositories, known, opener, index, &<[String]>::to_vec)
        }
        planned => planned,
    }
}

/// Returns the backups among `ids` (oldest first) that are worth a look before all others.
fn likely(request: &Request, ids: &[String]) -> Vec<String> {
    if let Some(id) = &request.backup {
        return ids.iter().filter(|known| *known == id).cloned().collect();
    }
    let early_enough = |id: &&String| match request.target {
        Target::Time(time) => start_of_backup(id).is_none_or(|start| start <= time),
        _ => true,
    };
    match request.target {
        // The first of its name may be before any of them.
        Target::Name(_) => ids.to_vec(),
        _ => ids.iter().rev().filter(early_enough).take(NEWEST).cloned().collect(),
    }
}

fn plan_with<'r>(
    request: &Request,
    repositories: &[&'r Repository],
    known: &BTreeSet<SystemIdentifier>,
    opener: &Opener,
    index: &IndexHandle,
    choose: &dyn Fn(&[String]) -> Vec<String>,
) -> Result<Plan<'r>> {
    let mut catalogs = Vec::new();
    for sysid in known {
        let mut catalog = Catalog::read_some(repositories, &request.cluster, *sysid, choose)?;
        let idle = index.run(|index| index.without_commits(*sysid)).unwrap_or_default();
        catalog.idle = idle.into_iter().collect();
        catalogs.push(catalog);
    }
    let mut notes = Vec::new();
    if catalogs.len() > 1 {
        notes.push(format!("the cluster has {} system identifiers (pg_upgrade or initdb)", catalogs.len()));
    }
    // After pg_upgrade: the one with the newest backup before the target is tried first.
    let newest = |catalog: &Catalog<'_>| {
        let fitting = catalog.backups.iter().filter(|backup| ends_before(&backup.summary, &request.target));
        fitting.map(|backup| backup.summary.stop_time).max()
    };
    catalogs.sort_by_key(|catalog| std::cmp::Reverse(newest(catalog)));
    let mut first_error = None;
    for catalog in &catalogs {
        match plan_in(request, catalog, opener, notes.clone()) {
            Ok(plan) => return Ok(plan),
            Err(error) if error.kind() == Kind::Target => {
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first_error.unwrap_or_else(|| unreachable_target(request, "there is no backup")))
}

pub(super) fn unreachable_target(request: &Request, why: &str) -> Error {
    Error::new(Kind::Target, format!("target {} cannot be reached: {why}", request.target))
}

/// Returns whether a backup ended before the target. A backup that ended later would be accepted by the server, which
/// then brings up newer data than was asked for (facts: "Target before the end of the backup").
fn ends_before(backup: &BackupSummary, target: &Target) -> bool {
    match target {
        Target::Time(time) => backup.stop_time <= *time,
        Target::Lsn(lsn) => backup.stop_lsn <= *lsn,
        Target::Xid(xid) => backup.next_xid.is_none_or(|next| precedes_or_equals(next as u32, *xid)),
        Target::Latest | Target::Immediate | Target::Name(_) => true,
    }
}

/// Compares transaction ids modulo 2^32, as the server does (transam.c).
fn precedes_or_equals(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() <= 0
}

fn plan_in<'r>(
    request: &Request,
    catalog: &Catalog<'r>,
    opener: &Opener,
    mut notes: Vec<String>,
) -> Result<Plan<'r>> {
    let history = choose_branch(request, catalog, opener, &mut notes)?;
    let mut target = request.target.clone();
    let mut bound = None;
    if let Target::Name(name) = &target {
        let found = scan::restore_point(catalog, &history, name, opener)?;
        let Some(point) = found else {
            return Err(unreachable_target(request, "no such restore point is in the archived WAL")
                .with_hint(format!("look at the name and at --timeline; {NOT_ARCHIVED_YET}")));
        };
        notes.push(format!("restore point \"{name}\" was made at {} at LSN {}", utc(point.time), point.lsn));
        bound = Some(point.lsn);
    }
    let candidates = candidates(request, catalog, &history, bound)?;
    let mut rejected = Vec::new();
    for backup in candidates {
        let path = walk(catalog, &history, backup.summary.start_lsn)?;
        let needed = backup.summary.stop_segment();
        let size = catalog.segment_size;
        if path.last().is_none_or(|last| last.number(size) < needed.number(size)) {
            let missing = path
                .gap
                .or(path.last().map(|last| last.next(size)))
                .unwrap_or(backup.summary.start_segment());
            rejected.push(format!("backup {} lacks WAL segment {missing}", backup.summary.id));
            continue;
        }
        notes.append(&mut rejected);
        let on_the_way =
            OnTheWay { request, catalog, history: &history, backup: &backup.summary, path: &path, opener };
        let reach = on_the_way.reach(bound, &mut target, &mut notes)?;
        return finish(request, catalog, &history, backup, &path, target, reach, notes);
    }
    let error = unreachable_target(request, &rejected.join("; "));
    Err(error.with_hint("walden status says what is missing"))
}

/// Chooses the branch to follow.
fn choose_branch(
    request: &Request,
    catalog: &Catalog<'_>,
    opener: &Opener,
    notes: &mut Vec<String>,
) -> Result<TimelineHistory> {
    let known = catalog.timelines();
    let Some(latest) = known.last().copied() else {
        return Err(unreachable_target(request, "there is no backup")
            .with_hint("a base backup comes first: walden base-backup"));
    };
    let of_backup = || {
        let chosen = match &request.backup {
            Some(id) => catalog.backups.iter().find(|backup| backup.summary.id == *id),
            None => catalog.backups.iter().rev().find(|backup| ends_before(&backup.summary, &request.target)),
        };
        chosen.map(|backup| backup.summary.timeline)
    };
    let timeline = match (request.timeline, &request.target) {
        (TimelineChoice::Number(timeline), _) => {
            if !known.contains(&timeline) {
                let known: Vec<String> = known.iter().map(|timeline| timeline.0.to_string()).collect();
                return Err(unreachable_target(request, &format!("timeline {} is not archived", timeline.0))
                    .with_hint(format!(
                        "the archive knows timeline{} {}",
                        if known.len() == 1 { "" } else { "s" },
                        known.join(", ")
                    )));
            }
            timeline
        }
        (TimelineChoice::Current, _) | (TimelineChoice::Fitting, Target::Immediate) => {
            of_backup().unwrap_or(latest)
        }
        (TimelineChoice::Fitting, Target::Time(time)) => {
            let live = scan::live_timeline(catalog, *time, opener)?;
            if live != latest {
                notes.push(format!(
                    "timeline {} was live at the target; timeline {} was made later (--timeline latest follows it)",
                    live.0, latest.0
                ));
            }
            live
        }
        _ => latest,
    };
    catalog.history(timeline, opener)
}

/// Returns the backups from which the target can be reached along `history`, the best first.
fn candidates<'c, 'r>(
    request: &Request,
    catalog: &'c Catalog<'r>,
    history: &TimelineHistory,
    bound: Option<Lsn>,
) -> Result<Vec<&'c HeldBackup<'r>>> {
    if let Some(id) = &request.backup
        && !catalog.backups.iter().any(|backup| backup.summary.id == *id)
    {
        return Err(Error::new(Kind::Target, format!("there is no backup \"{id}\""))
            .with_hint("walden list shows them"));
    }
    let mut list: Vec<&HeldBackup<'r>> = catalog
        .backups
        .iter()
        .rev()
        .filter(|backup| request.backup.as_ref().is_none_or(|id| *id == backup.summary.id))
        .collect();
    let all = list.len();
    list.retain(|backup| {
        let summary = &backup.summary;
        history.contains(summary.timeline, summary.start_lsn)
            && history.contains(summary.timeline, Lsn(summary.stop_lsn.0.saturating_sub(1)))
    });
    let on_branch = list.len();
    list.retain(|backup| {
        ends_before(&backup.summary, &request.target)
            && bound.is_none_or(|lsn| backup.summary.stop_lsn <= lsn)
    });
    if !list.is_empty() {
        return Ok(list);
    }
    Err(if all == 0 {
        unreachable_target(request, "there is no backup")
            .with_hint("a base backup comes first: walden base-backup")
    } else if on_branch == 0 {
        unreachable_target(
            request,
            &format!("no backup belongs to timeline {} or its parents", history.timeline.0),
        )
        .with_hint("choose another --timeline")
    } else {
        let first =
            catalog.backups.iter().map(|backup| &backup.summary).min_by_key(|summary| summary.stop_time);
        let error = unreachable_target(request, "no backup ended before it");
        match first {
            Some(first) => error.with_hint(format!(
                "the earliest moment that can be reached is {} (lsn:{}), the end of backup {}",
                utc(first.stop_time),
                first.stop_lsn,
                first.id
            )),
            None => error,
        }
    })
}

#[allow(clippy::too_many_arguments, reason = "everything that the steps before found out")]
fn finish<'r>(
    request: &Request,
    catalog: &Catalog<'r>,
    history: &TimelineHistory,
    backup: &HeldBackup<'r>,
    path: &WalPath<'r>,
    target: Target,
    reach: Reach,
    notes: Vec<String>,
) -> Result<Plan<'r>> {
    let summary = backup.summary.clone();
    let (Some((first_segment, _)), Some(last_segment)) = (path.segments.first(), path.last()) else {
        return Err(unreachable_target(request, "no WAL is archived"));
    };
    let mut through = request.through.clone();
    if path.gap.is_some() && request.target != Target::Latest && !through.contains(&last_segment) {
        through.push(last_segment);
    }
    let mut timeline_path: Vec<TimelineId> = path.segments.iter().map(|(name, _)| name.timeline).collect();
    timeline_path.dedup();
    let known = catalog.timelines();
    // The server probes the histories above its timeline too, when it chooses the id of the next one at promotion.
    let newest = known.iter().copied().max().unwrap_or(history.timeline).max(history.timeline);
    let missing_histories = (2..newest.0)
        .map(TimelineId)
        .filter(|timeline| !known.contains(timeline) && *timeline > summary.timeline)
        .collect();
    let needed = match reach.stop {
        Some(stop) => {
            path.segments.iter().take_while(|(name, _)| name.start(catalog.segment_size) <= stop).count()
        }
        None => path.segments.len(),
    };
    let needed_path = &path.segments[..needed.max(1)];
    let wal_repositories = catalog.repositories.iter().map(|repository| {
        let held =
            |copies: &[(&Repository, WalObject)]| copies.iter().any(|(by, _)| by.name() == repository.name());
        let segments = needed_path.iter().filter(|(_, copies)| held(copies)).count();
        WalShare { repository: repository.name().to_owned(), segments }
    });
    Ok(Plan {
        cluster: request.cluster.clone(),
        system_identifier: catalog.sysid,
        target: request.target.to_string(),
        stop: target.clone(),
        // A pinned target is the last commit itself, which is wanted.
        exclusive: request.exclusive && target == request.target,
        backup: summary.id.clone(),
        backup_reason: reason(request, history, known.len(), path),
        backup_from: backup.held_by.clone(),
        backup_repositories: backup.held_by.iter().map(|repository| repository.name().to_owned()).collect(),
        timeline: history.timeline,
        timeline_path,
        first_segment: *first_segment,
        last_segment,
        segments: needed_path.len(),
        wal_repositories: wal_repositories.collect(),
        stop_lsn: reach.stop,
        backup_bytes: summary.stored_size,
        wal_bytes: stored_bytes(needed_path),
        last_commit: reach.last_commit,
        around: reach.around,
        through,
        missing_histories,
        notes,
        summary,
    })
}

/// Returns why a backup was chosen, in words.
fn reason(request: &Request, history: &TimelineHistory, timelines: usize, path: &WalPath<'_>) -> String {
    if request.backup.is_some() {
        return "by --backup".to_owned();
    }
    let ended = match request.target {
        Target::Latest | Target::Immediate => "the newest",
        Target::Time(_) | Target::Lsn(_) | Target::Xid(_) | Target::Name(_) => {
            "the newest that ended before the target"
        }
    };
    let branch = match timelines {
        0 | 1 => String::new(),
        _ => format!(", on the way to timeline {}", history.timeline.0),
    };
    let wal = if path.gap.is_some() { ", and whose WAL is archived" } else { "" };
    format!("{ended}{branch}{wal}")
}

/// Returns the name under which a timeline's history is archived.
pub fn history_name(timeline: TimelineId) -> String {
    ArchiveFileName::History(timeline).to_string()
}
