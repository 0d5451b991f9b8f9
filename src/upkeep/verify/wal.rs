//! The WAL of a repository: segments by timeline, histories and what else was archived.

use super::Contents;
use super::content::WalContent;
use super::objects::{Content, Target};
use super::report::{Subject, Wrong};
use super::visit::Visit;
use crate::index::HeldChunk;
use crate::kind::Result;
use crate::postgres::{ArchiveFileName, SegmentSet, TimelineId, WalSegmentName};
use crate::repository::backup::BackupSummary;
use crate::repository::{WalObject, list_histories, timelines};
use crate::upkeep::expire::list_timeline;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The segments that are there, and when each was stored.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// By timeline and by their numbers.
    pub(super) segments: BTreeMap<TimelineId, BTreeMap<u64, Option<Timestamp>>>,
    /// The same as a set.
    pub(super) set: SegmentSet,
    /// The timelines whose history is there.
    pub(super) histories: BTreeSet<TimelineId>,
}

/// Looks at all WAL and returns what is there.
pub(super) fn look(visit: &Visit<'_>, backups: &[BackupSummary], contents: &mut Contents) -> Result<Held> {
    let failed = |error| visit.repository.error("list", &error);
    let mut held = Held::default();
    histories(visit, &mut held)?;
    let before = visit.index.run(|index| index.held_wal(visit.sysid, &visit.stamp)).unwrap_or_default();
    let mut listed = Vec::new();
    for timeline in timelines(visit.repository, &visit.keys).map_err(failed)? {
        let found = list_timeline(visit.repository, &visit.keys, timeline).map_err(failed)?;
        let objects: Vec<WalObject> = found.into_iter().filter_map(WalObject::parse).collect();
        conflicts(visit, &objects, contents);
        let folder = visit.keys.wal_timeline(timeline);
        objects_of(visit, &folder, &objects, backups)?;
        let vanished = visit.vanished();
        let there = objects.iter().filter(|object| !vanished.contains(&object.object.key));
        let segments = held.segments.entry(timeline).or_default();
        for (object, segment) in there.filter_map(|object| Some((&object.object, object.segment()?))) {
            let number = segment.number(visit.size);
            held.set.insert(timeline, number);
            segments.insert(number, object.modified);
            let stored = object.modified.map(Timestamp::as_microsecond);
            listed.push((timeline, number, object.size, stored));
        }
    }
    // What status tells goes by what is known here.
    let chunks = HeldChunk::of(listed);
    visit.index.run(|index| index.replace_held_wal(visit.sysid, &visit.stamp, &before, &chunks));
    Ok(held)
}

fn histories(visit: &Visit<'_>, held: &mut Held) -> Result<()> {
    let objects = list_histories(visit.repository, &visit.keys, &visit.repository.deadline())
        .map_err(|error| visit.repository.error("list", &error))?;
    let mut before: Option<&WalObject> = None;
    for object in &objects {
        if let ArchiveFileName::History(timeline) = object.name {
            held.histories.insert(timeline);
            if before.is_some_and(|before| before.name == object.name) {
                let text = format!("two contents are stored as \"{}\"", object.name);
                visit.wrong(Wrong::Conflict, Subject::History(timeline), Some(&object.object.key), &text);
            }
        }
        before = Some(object);
    }
    objects_of(visit, &visit.keys.histories(), &objects, &[])?;
    let vanished = visit.vanished();
    for object in objects.iter().filter(|object| vanished.contains(&object.object.key)) {
        if let ArchiveFileName::History(timeline) = object.name {
            held.histories.remove(&timeline);
        }
    }
    Ok(())
}

/// Looks at the objects of a folder, as far as they are asked for.
fn objects_of(
    visit: &Visit<'_>,
    folder: &str,
    objects: &[WalObject],
    backups: &[BackupSummary],
) -> Result<()> {
    let request = visit.request;
    let needed: BTreeSet<WalSegmentName> = request
        .backup
        .map(|_| backups.iter().flat_map(BackupSummary::wal_segments).collect())
        .unwrap_or_default();
    let is_asked_for = |object: &&WalObject| {
        let is_late = request.since.is_none_or(|since| object.object.modified.is_none_or(|at| at >= since));
        is_late
            && (request.backup.is_none() || object.segment().is_none_or(|segment| needed.contains(&segment)))
    };
    let asked: Vec<WalObject> = objects.iter().filter(is_asked_for).cloned().collect();
    let names = || asked.iter().filter_map(WalObject::segment).map(|segment| segment.to_string());
    let sizes = names()
        .min()
        .zip(names().max())
        .and_then(|(first, last)| visit.index.run(|index| index.stored_sizes(visit.sysid, &first, &last)));
    let target = |object: &WalObject| Target {
        object: object.object.clone(),
        expected: None,
        stored_size: sizes
            .as_ref()
            .and_then(|sizes| sizes.get(&(object.name.to_string(), object.crc)).copied()),
        subject: match object.name {
            ArchiveFileName::Segment(segment) => Subject::Segment(segment),
            ArchiveFileName::History(timeline) => Subject::History(timeline),
            _ => Subject::Other,
        },
    };
    let targets: Vec<Target> = asked.iter().map(target).collect();
    visit.count(|report| report.wal += targets.len());
    let some = targets.len() < objects.len();
    if request.deep {
        let content = WalContent::new(visit, asked);
        return visit.look(folder, &targets, some, Some(&content as &dyn Content));
    }
    drop(asked);
    visit.look(folder, &targets, some, None)
}

/// Finds names under which two contents are stored: here, or here and in a repository that was looked at before.
fn conflicts(visit: &Visit<'_>, objects: &[WalObject], contents: &mut Contents) {
    let several = visit.request.repositories.len() > 1;
    let name: Arc<str> = visit.repository.name().into();
    for (at, object) in objects.iter().enumerate() {
        let Some(segment) = object.segment() else { continue };
        let subject = Subject::Segment(segment);
        if at > 0 && objects[at - 1].segment() == Some(segment) {
            let text = format!(
                "two contents are stored as \"{segment}\", with CRC-32 {:08x} and {:08x}",
                objects[at - 1].crc,
                object.crc
            );
            visit.wrong(Wrong::Conflict, subject, Some(&object.object.key), &text);
            continue;
        }
        if !several {
            continue;
        }
        let ours = || (object.crc, Arc::clone(&name));
        let (crc, first) = contents.0.entry((visit.sysid, segment)).or_insert_with(ours);
        if *crc != object.crc && *first != name {
            let text = format!(
                "\"{segment}\" has the CRC-32 {:08x} here and {crc:08x} in repository \"{first}\"",
                object.crc
            );
            visit.wrong(Wrong::Conflict, subject, Some(&object.object.key), &text);
        }
    }
}
