//! Is a file that no repository has proven absent?
//!
//! To PostgreSQL "not there" means "the archive ends here": it promotes. So absence needs proof: every repository
//! answered and knows the cluster (or one of them is a `witness`), no later segment of the timeline exists (or it is in
//! flight, which is waited for), and no later timeline's history says that this one must have existed.

use crate::kind::{Error, Kind, Result};
use crate::postgres::{ArchiveFileName, TimelineId, WalSegmentName};
use crate::repository::{ClusterFile, Repository, WalListing, WalObject};
use crate::storage;
use std::time::Duration;

/// What one repository says of the wanted file.
#[derive(Debug)]
pub struct View<'r> {
    /// The repository.
    pub repository: &'r Repository,
    /// Its answer; an error leaves everything open.
    pub answer: Result<Answer>,
}

/// A repository's answer.
#[derive(Debug)]
pub struct Answer {
    /// Its `cluster.json`.
    pub cluster: ClusterFile,
    /// The contents archived under the wanted name.
    pub contents: Vec<WalObject>,
    /// For a segment: what follows on its timeline.
    pub later: WalListing,
    /// For a history: the timelines above it that have one.
    pub later_histories: Vec<TimelineId>,
}

/// Returns every repository's problem as one error, if there is one: absence is unproven.
pub fn unproven(views: &[View<'_>]) -> Option<Error> {
    let first = views.iter().find_map(|view| view.answer.as_ref().err())?;
    let hint = "recovery stops here because the file may exist there; if that repository is lost, recover with \
                --without and its name";
    Some(first.clone().context("absence is not proven").with_hint(hint))
}

/// What a wanted segment's absence is, when every repository answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing of the timeline follows: the archive ends here.
    End,
    /// A later segment is there, younger than the deadline: this one may be on its way.
    InFlight(WalSegmentName),
    /// A later segment is there and is old: this one is missing.
    Gap(WalSegmentName),
}

/// Judges a segment's absence. `now` is this machine's clock; a store's clock that runs ahead makes a segment look
/// young, which only makes the wait longer, and [`Verdict::InFlight`] is waited for no longer than twice `deadline`.
pub fn judge(
    views: &[View<'_>],
    wanted: WalSegmentName,
    now: jiff::Timestamp,
    deadline: Duration,
) -> Verdict {
    let mut oldest: Option<(WalSegmentName, Option<jiff::Timestamp>)> = None;
    for answer in views.iter().filter_map(|view| view.answer.as_ref().ok()) {
        for object in &answer.later.objects {
            let Some(segment) = object.segment().filter(|segment| *segment > wanted) else { continue };
            let time = object.object.modified;
            let older = match oldest {
                None => true,
                Some((_, best)) => {
                    time.is_none() || best.is_some_and(|best| time.is_some_and(|time| time < best))
                }
            };
            if older {
                oldest = Some((segment, time));
            }
        }
    }
    match oldest {
        None => Verdict::End,
        Some((segment, Some(time)))
            if now.duration_since(time).unsigned_abs() < deadline
                && now.duration_since(time).is_positive() =>
        {
            Verdict::InFlight(segment)
        }
        Some((segment, Some(time))) if time >= now => Verdict::InFlight(segment),
        Some((segment, _)) => Verdict::Gap(segment),
    }
}

/// Returns the error for a segment that is not waited for.
pub fn in_flight(wanted: WalSegmentName, later: WalSegmentName) -> Error {
    Error::new(
        Kind::Doubt,
        format!("WAL segment \"{wanted}\" may be on its way, since \"{later}\" was archived a moment ago"),
    )
}

/// Returns the error for a gap.
pub fn gap(wanted: WalSegmentName, later: WalSegmentName) -> Error {
    Error::new(
        Kind::Doubt,
        format!("WAL segment \"{wanted}\" is missing from every repository, although \"{later}\" is archived"),
    )
    .with_hint(format!(
        "if a server's pg_wal still has it, archive it: walden archive-push /path/to/pg_wal/{wanted}; else recover to \
         a moment before it, or name the loss with --through"
    ))
}

/// Judges a missing history: it is a gap while a later timeline's history exists and its timeline lies above the
/// restored cluster's, for then the server would take this timeline's id for a free one (facts: a timeline id used
/// twice).
pub fn history_gap(views: &[View<'_>], wanted: TimelineId, restored: Option<TimelineId>) -> Option<Error> {
    let later = views
        .iter()
        .filter_map(|view| view.answer.as_ref().ok())
        .flat_map(|answer| answer.later_histories.iter().copied())
        .filter(|timeline| *timeline > wanted)
        .min()?;
    if restored.is_some_and(|restored| wanted <= restored) {
        return None;
    }
    let name = ArchiveFileName::History(wanted);
    Some(
        Error::new(
            Kind::Doubt,
            format!(
                "timeline history \"{name}\" is missing from every repository, although timeline {} has one",
                later.0
            ),
        )
        .with_hint("if a server's pg_wal still has it, archive it with walden archive-push; recover --plan says more"),
    )
}

/// Turns a store's failure into the answer of a view.
pub fn failed(repository: &Repository, error: &storage::Error) -> Error {
    repository.error("look into", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{SystemIdentifier, WalSegmentSize};
    use crate::storage::{FsStorage, Object};
    use std::sync::Arc;

    fn answer(later: &[(&str, i64)]) -> Answer {
        let objects = later
            .iter()
            .map(|(name, age)| WalObject {
                name: ArchiveFileName::Segment(name.parse().unwrap()),
                crc: 1,
                object: Object {
                    key: (*name).to_owned(),
                    size: 1,
                    modified: Some(jiff::Timestamp::from_second(10_000 - age).unwrap()),
                    crc32: None,
                },
            })
            .collect();
        Answer {
            cluster: ClusterFile::new("main", SystemIdentifier(1), WalSegmentSize::DEFAULT, 15),
            contents: Vec::new(),
            later: WalListing { objects, cut: false },
            later_histories: Vec::new(),
        }
    }

    fn judged(answers: Vec<Answer>) -> Verdict {
        let storage = Arc::new(FsStorage::new("/nonexistent".into()));
        let repository = Repository::new("r", storage, Duration::from_secs(1));
        let views: Vec<View<'_>> =
            answers.into_iter().map(|answer| View { repository: &repository, answer: Ok(answer) }).collect();
        let now = jiff::Timestamp::from_second(10_000).unwrap();
        judge(&views, "000000010000000000000005".parse().unwrap(), now, Duration::from_secs(120))
    }

    #[test]
    fn nothing_later_is_the_end_and_something_later_is_in_flight_until_it_is_old() {
        let later: WalSegmentName = "000000010000000000000007".parse().unwrap();
        assert_eq!(judged(vec![answer(&[]), answer(&[])]), Verdict::End);
        assert_eq!(judged(vec![answer(&[("000000010000000000000007", 5)])]), Verdict::InFlight(later));
        assert_eq!(
            judged(vec![answer(&[("000000010000000000000007", 500)]), answer(&[])]),
            Verdict::Gap(later)
        );
        assert_eq!(
            judged(vec![answer(&[("000000010000000000000007", 500), ("000000010000000000000008", 5)])]),
            Verdict::Gap(later),
            "the oldest later one decides"
        );
        assert_eq!(judged(vec![answer(&[("000000010000000000000007", 0)])]), Verdict::InFlight(later));
        assert_eq!(judged(vec![answer(&[("000000010000000000000007", -50)])]), Verdict::InFlight(later));
    }
}
