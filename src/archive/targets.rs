//! Which repositories can take part in a push, and what they hold already of the names in question.

use crate::index::RepositoryStamp;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{ArchiveFileName, SystemIdentifier, WalSegmentName};
use crate::repository::{
    ClusterFile, ClusterKeys, ClusterState, Repository, WalObject, ask_all, find_contents, list_wal_from,
};
use crate::storage::{self, Deadline};
use std::collections::HashMap;

/// How many objects one listing may bring.
const LISTING: usize = 1000;

/// A repository that answered and was initialised for the cluster.
#[derive(Debug)]
pub struct Target<'r> {
    /// The repository.
    pub repository: &'r Repository,
    /// Its `cluster.json`.
    pub cluster: ClusterFile,
    /// What it holds under the names that were asked about.
    pub held: HashMap<ArchiveFileName, Vec<WalObject>>,
}

impl Target<'_> {
    /// Returns how the index knows this repository.
    pub fn stamp(&self) -> RepositoryStamp {
        RepositoryStamp { url: self.repository.url().to_owned(), cluster_id: self.cluster.id.clone() }
    }

    /// Returns the contents held under `name`.
    pub fn contents(&self, name: ArchiveFileName) -> &[WalObject] {
        self.held.get(&name).map_or(&[], Vec::as_slice)
    }
}

/// The repositories that can take part, and why the others cannot.
#[derive(Debug, Default)]
pub struct Targets<'r> {
    /// Those that can.
    pub ready: Vec<Target<'r>>,
    /// Why the others cannot.
    pub failed: Vec<(&'r Repository, Error)>,
}

/// Asks every repository whether it knows the cluster, and what it holds under `names`, at once. Once `enough` can take
/// part the others get a little longer.
pub fn open<'r>(
    repositories: &[&'r Repository],
    cluster: &str,
    sysid: SystemIdentifier,
    names: &[ArchiveFileName],
    enough: usize,
) -> Targets<'r> {
    let keys = ClusterKeys::new(cluster, sysid);
    let ask = |repository: &'r Repository, deadline: &Deadline| {
        (repository, open_one(repository, cluster, sysid, &keys, names, deadline))
    };
    let answers = ask_all(repositories, enough, ask, |(_, answer)| answer.is_ok());
    let mut targets = Targets { ready: Vec::new(), failed: Vec::new() };
    for (repository, answer) in answers {
        match answer {
            Ok(target) => targets.ready.push(target),
            Err(error) => targets.failed.push((repository, error)),
        }
    }
    targets
}

impl Targets<'_> {
    /// Fails when fewer than `enough` repositories can take part: with [`Kind::Corrupt`] when the cluster is there but
    /// was never initialised for this system identifier, else with the first failure.
    pub fn check(&self, enough: usize) -> Result<()> {
        if self.ready.len() >= enough {
            return Ok(());
        }
        // What says most: another cluster, then the first that could not be reached.
        let worst =
            self.failed.iter().find(|(_, error)| error.kind() == Kind::Corrupt).or(self.failed.first());
        match worst {
            Some((_, error)) if self.ready.is_empty() => Err(error.clone()),
            Some((_, error)) => Err(error
                .clone()
                .context(format!("{} of {enough} needed repositories are ready", self.ready.len()))),
            None => {
                Err(Error::config(format!("{enough} repositories must acknowledge and none is configured")))
            }
        }
    }
}

fn open_one<'r>(
    repository: &'r Repository,
    cluster: &str,
    sysid: SystemIdentifier,
    keys: &ClusterKeys,
    names: &[ArchiveFileName],
    deadline: &Deadline,
) -> Result<Target<'r>> {
    let state = ClusterState::ask(repository, cluster, sysid, deadline)
        .map_err(|error| repository.error("look into", &error))?;
    match state {
        ClusterState::Known(file) => {
            let held =
                held(repository, keys, names, deadline).map_err(|error| repository.error("list", &error))?;
            Ok(Target { repository, cluster: file, held })
        }
        ClusterState::OtherOnly(others) => {
            let others: Vec<String> = others.iter().map(ToString::to_string).collect();
            Err(Error::corrupt(format!(
                "system identifier {sysid} is not initialised in repository \"{}\", which knows cluster \"{cluster}\" \
                 as {}",
                repository.name(),
                others.join(", ")
            ))
            .with_hint("after pg_upgrade or initdb run walden init again; else this is another cluster's file"))
        }
        ClusterState::Nothing => Err(Error::new(
            Kind::Repository,
            format!("repository \"{}\" holds no cluster \"{cluster}\"", repository.name()),
        )
        .with_hint("not mounted, a wrong prefix, or not initialised: walden init creates what is missing")),
    }
}

/// Returns what the repository holds under `names`: one listing for all segments of a timeline, unless the names are
/// too far apart for that.
fn held(
    repository: &Repository,
    keys: &ClusterKeys,
    names: &[ArchiveFileName],
    deadline: &Deadline,
) -> storage::Result<HashMap<ArchiveFileName, Vec<WalObject>>> {
    let mut held: HashMap<ArchiveFileName, Vec<WalObject>> = HashMap::new();
    let mut segments: Vec<WalSegmentName> = Vec::new();
    for name in names {
        match name {
            ArchiveFileName::Segment(segment) => segments.push(*segment),
            other => {
                held.insert(*other, find_contents(repository, keys, *other, deadline)?);
            }
        }
    }
    segments.sort();
    for same_timeline in segments.chunk_by(|a, b| a.timeline == b.timeline) {
        let listing = list_wal_from(repository, keys, same_timeline[0], LISTING, deadline)?;
        let seen_up_to = listing.objects.last().and_then(WalObject::segment).filter(|_| listing.cut);
        for segment in same_timeline {
            let name = ArchiveFileName::Segment(*segment);
            // The last name of a listing that was cut may have more contents than were shown.
            let contents = if seen_up_to.is_some_and(|last| *segment >= last) {
                find_contents(repository, keys, name, deadline)?
            } else {
                listing.contents(*segment).into_iter().cloned().collect()
            };
            held.insert(name, contents);
        }
    }
    Ok(held)
}
