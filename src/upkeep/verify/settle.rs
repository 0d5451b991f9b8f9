//! What each problem means and what mends it: another repository may have a good copy, which `sync` copies.

use super::Request;
use super::report::{Problem, Report, Subject, Wrong};
use crate::index::{Index, IndexHandle};
use crate::postgres::ArchiveFileName;
use crate::repository::{ClusterFile, ClusterKeys, Repository, find_contents, list_wal_from};
use crate::storage;
use std::collections::{BTreeSet, HashSet};

/// For each problem finds a repository with a good copy, and notes the damage, so that `status` shows it and `sync`
/// mends it.
pub(super) fn settle(request: &Request<'_>, report: &mut Report, index: &IndexHandle) {
    let damages = index.run(Index::damages).unwrap_or_default();
    let known = damages.into_iter().map(|damage| (damage.url, damage.key));
    let found = report.repositories.iter().flat_map(|made| {
        made.problems.iter().filter_map(|problem| Some((made.url.clone(), problem.key.clone()?)))
    });
    let bad: HashSet<(String, String)> = known.chain(found).collect();
    let mut silent: HashSet<String> = HashSet::new();
    for made in &mut report.repositories {
        let Some(sysid) = made.system_identifier else { continue };
        let others: Vec<&Repository> = request
            .repositories
            .iter()
            .map(|(repository, _)| *repository)
            .filter(|repository| repository.url() != made.url)
            .collect();
        for problem in &mut made.problems {
            if is_mendable(problem) {
                let keys = ClusterKeys::new(request.cluster, sysid);
                let good = others.iter().find(|other| {
                    // One that cannot be asked is not waited for again and again.
                    if silent.contains(other.url()) {
                        return false;
                    }
                    has_good(other, &keys, problem, &bad).unwrap_or_else(|_| {
                        silent.insert(other.url().to_owned());
                        false
                    })
                });
                problem.good_in = good.map(|good| good.name().to_owned());
            }
            explain(problem);
            if let Some(key) = problem.key.as_ref().filter(|_| is_damage(problem)) {
                index.run(|index| index.note_damage(&made.url, key, &problem.text));
            }
        }
    }
}

fn is_mendable(problem: &Problem) -> bool {
    !matches!(problem.subject, Subject::Cluster)
        && !matches!(problem.wrong, Wrong::Conflict | Wrong::Undecryptable)
}

/// Returns whether it is an object that is not what it should be.
fn is_damage(problem: &Problem) -> bool {
    let is_object = matches!(problem.wrong, Wrong::Missing | Wrong::Size | Wrong::Checksum | Wrong::Content);
    is_object && problem.subject != Subject::Cluster
}

/// Returns whether the repository has a good copy. Fails where it cannot be asked.
fn has_good(
    other: &Repository,
    keys: &ClusterKeys,
    problem: &Problem,
    bad: &HashSet<(String, String)>,
) -> storage::Result<bool> {
    let is_bad = |key: &String| bad.contains(&(other.url().to_owned(), key.clone()));
    if let Some(key) = &problem.key {
        return match other.storage().head(key, &other.deadline()) {
            Ok(object) => Ok(object.size > 0 && !is_bad(key)),
            Err(storage::Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        };
    }
    match &problem.subject {
        Subject::History(timeline) => {
            let name = ArchiveFileName::History(*timeline);
            Ok(!find_contents(other, keys, name, &other.deadline())?.is_empty())
        }
        Subject::Segments(from, to) => {
            let size = ClusterFile::read(other, keys, &other.deadline())?.wal_segment_size;
            let count = (to.number(size) + 1).saturating_sub(from.number(size)) as usize;
            let listing = list_wal_from(other, keys, *from, count.saturating_mul(2), &other.deadline())?;
            let good = listing.objects.iter().filter(|object| !is_bad(&object.object.key));
            let there: BTreeSet<u64> =
                good.filter_map(|object| Some(object.segment()?.number(size))).collect();
            Ok(there.range(from.number(size)..=to.number(size)).count() == count)
        }
        _ => Ok(false),
    }
}

/// Says what the problem means and what is to be done.
fn explain(problem: &mut Problem) {
    if problem.consequence.is_empty() {
        problem.consequence = match &problem.subject {
            Subject::Cluster => "nothing in the repository can be used as it is".to_owned(),
            Subject::Backup(id) => format!("no recovery from backup {id} with this copy"),
            Subject::Segment(segment) => format!("no recovery gets past segment {segment} with this copy"),
            Subject::History(timeline) => {
                format!("timeline {} cannot be followed from the one before it", timeline.0)
            }
            Subject::Segments(..) | Subject::Other => String::new(),
        };
        if problem.key.as_ref().is_some_and(|key| key.ends_with("RECOVERY.md")) {
            "whoever restores by hand has no instructions".clone_into(&mut problem.consequence);
        }
    }
    problem.remedy = match (problem.wrong, &problem.subject, &problem.good_in) {
        (_, Subject::Cluster, _) => "walden init writes it anew".to_owned(),
        (Wrong::Conflict, Subject::Segment(segment), _) => {
            format!("walden resolve {segment} --keep CRC settles which one is right")
        }
        (Wrong::Conflict, Subject::History(timeline), _) => {
            format!("walden resolve {timeline}.history --keep CRC settles which one is right")
        }
        (Wrong::Undecryptable, ..) => {
            "give the identity of one of the recipients it was encrypted to as encryption.identity_file"
                .to_owned()
        }
        (_, _, Some(good)) => format!("walden sync mends it from repository \"{good}\""),
        (_, Subject::Backup(_), None) => {
            "no other repository has a good copy: take a base backup now".to_owned()
        }
        (_, Subject::Segment(_) | Subject::Segments(..), None) => {
            "no other repository has it: take a base backup now, recovery goes on from there".to_owned()
        }
        _ => "no other repository has a good copy".to_owned(),
    };
}
