//! What the repositories say of one file: asking them, judging their answers, reading from one after the other.

use super::absence::{self, Answer, Verdict, View};
use super::content::{Expected, copy_checked};
use super::fork::{Fork, ParentsWal};
use super::get::GetOptions;
use super::spool::Spool;
use super::witness;
use crate::codec::Opener;
use crate::index::IndexHandle;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{
    ArchiveFileName, ControlFile, SystemIdentifier, TimelineHistory, TimelineId, WalSegmentName,
    WalSegmentSize,
};
use crate::repository::{
    ClusterKeys, ClusterState, Repository, WalListing, WalObject, ask_all, find_contents, list_histories,
    list_wal_from,
};
use crate::storage::Deadline;
use std::io::Write;
use std::path::Path;

/// How many objects from the wanted one onward a call looks at.
const LISTING: usize = 100;

/// Returns the error for a file that is proven absent.
pub fn absent(name: ArchiveFileName) -> Error {
    Error::new(Kind::Absent, format!("\"{name}\" is not in the archive"))
}

/// What can be said of a file.
pub enum Finding<'v> {
    /// It is there.
    Held(Vec<Held<'v>>),
    /// It is proven absent.
    Absent,
    /// A later segment is there; this one may be on its way.
    InFlight(WalSegmentName),
}

/// One repository's copy.
#[derive(Clone, Copy)]
pub struct Held<'v> {
    pub repository: &'v Repository,
    pub object: &'v WalObject,
    pub size: WalSegmentSize,
}

#[derive(Clone)]
pub struct Request<'a> {
    pub name: ArchiveFileName,
    pub path: &'a Path,
    pub options: &'a GetOptions,
    pub sysid: SystemIdentifier,
    pub keys: ClusterKeys,
    pub asked: &'a [&'a Repository],
    pub opener: &'a Opener,
    pub spool: Option<&'a Spool>,
}

impl<'a> Request<'a> {
    /// Asks every repository at once.
    pub fn ask(&self) -> Vec<View<'a>> {
        let ask = |repository: &'a Repository, deadline: &Deadline| View {
            repository,
            answer: self.ask_one(repository, deadline),
        };
        // With the content at hand there is no need to wait long for a repository that is down.
        ask_all(self.asked, 1, ask, |view| {
            view.answer.as_ref().is_ok_and(|answer| !answer.contents.is_empty())
        })
    }

    fn ask_one(&self, repository: &Repository, deadline: &Deadline) -> Result<Answer> {
        let failed = |error| absence::failed(repository, &error);
        let cluster = match ClusterState::ask(repository, &self.options.cluster, self.sysid, deadline)
            .map_err(failed)?
        {
            ClusterState::Known(file) => file,
            ClusterState::OtherOnly(_) => {
                return Err(Error::corrupt(format!(
                    "repository \"{}\" does not know system identifier {}",
                    repository.name(),
                    self.sysid
                ))
                .with_hint("this data directory belongs to another cluster than the configuration"));
            }
            ClusterState::Nothing => {
                return Err(Error::new(
                    Kind::Repository,
                    format!(
                        "repository \"{}\" holds no cluster \"{}\"",
                        repository.name(),
                        self.options.cluster
                    ),
                )
                .with_hint("not mounted, or a wrong prefix"));
            }
        };
        let mut answer = Answer {
            cluster,
            contents: Vec::new(),
            later: WalListing::default(),
            later_histories: Vec::new(),
        };
        match self.name {
            ArchiveFileName::Segment(segment) => {
                answer.later =
                    list_wal_from(repository, &self.keys, segment, LISTING, deadline).map_err(failed)?;
                answer.contents = answer.later.contents(segment).into_iter().cloned().collect();
            }
            ArchiveFileName::History(_) => {
                let all = list_histories(repository, &self.keys, deadline).map_err(failed)?;
                answer.contents = all.iter().filter(|object| object.name == self.name).cloned().collect();
                answer.later_histories = all
                    .iter()
                    .filter_map(|object| match object.name {
                        ArchiveFileName::History(timeline) => Some(timeline),
                        _ => None,
                    })
                    .collect();
            }
            _ => {
                answer.contents =
                    find_contents(repository, &self.keys, self.name, deadline).map_err(failed)?;
            }
        }
        Ok(answer)
    }

    /// Judges what the repositories say.
    pub fn find<'v>(&self, views: &'v [View<'_>]) -> Result<Finding<'v>> {
        let held = held(views);
        self.refuse_two_contents(&held)?;
        if !held.is_empty() {
            return Ok(Finding::Held(held));
        }
        if let Some(error) = self.unproven(views) {
            return Err(error);
        }
        match self.name {
            ArchiveFileName::Segment(segment) => {
                match absence::judge(views, segment, jiff::Timestamp::now(), self.options.deadline) {
                    Verdict::End => {
                        self.refuse_abandoned_branch(segment, views)?;
                        Ok(Finding::Absent)
                    }
                    Verdict::Gap(later) => Err(absence::gap(segment, later)),
                    Verdict::InFlight(later) => Ok(Finding::InFlight(later)),
                }
            }
            ArchiveFileName::History(timeline) => {
                let allowed = self.options.missing_histories.contains(&timeline);
                match absence::history_gap(views, timeline, self.restored_timeline()) {
                    Some(gap) if !allowed => Err(gap),
                    _ => Ok(Finding::Absent),
                }
            }
            _ => Ok(Finding::Absent),
        }
    }

    /// Returns why the file's absence is not proven, if a repository did not answer and no other one knows of all files.
    fn unproven(&self, views: &[View<'_>]) -> Option<Error> {
        let error = absence::unproven(views)?;
        let index = self.options.index.as_deref();
        let mut answered = views.iter().filter(|view| view.answer.is_ok()).map(|view| view.repository);
        let proven = self.options.acknowledged_by_all
            && answered.any(|repository| witness::knows_of_all(repository, &self.keys, self.name, index));
        (!proven).then_some(error)
    }

    fn refuse_two_contents(&self, held: &[Held<'_>]) -> Result<()> {
        let Some(first) = held.first() else { return Ok(()) };
        let Some(other) = held.iter().find(|other| other.object.crc != first.object.crc) else {
            return Ok(());
        };
        if matches!(self.name, ArchiveFileName::Partial(_)) {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "\"{}\" is archived with two contents: CRC-32 {:08x} in repository \"{}\", {:08x} in \"{}\"",
            self.name,
            first.object.crc,
            first.repository.name(),
            other.object.crc,
            other.repository.name()
        ))
        .with_hint(format!("walden resolve {} --keep CRC settles which one is right", self.name)))
    }

    /// Fails where the server, told that `segment` is absent, would replay a branch that its timeline had left.
    fn refuse_abandoned_branch(&self, segment: WalSegmentName, views: &[View<'_>]) -> Result<()> {
        let Some(size) =
            views.iter().find_map(|view| view.answer.as_ref().ok()).map(|a| a.cluster.wal_segment_size)
        else {
            return Ok(());
        };
        if segment.timeline == TimelineId(1) {
            return Ok(());
        }
        let why =
            |error: Error| error.context(format!("whether \"{segment}\" is rightly absent cannot be told"));
        let timeline = segment.timeline;
        let Some(text) = self.read_other::<Vec<u8>>(ArchiveFileName::History(timeline)).map_err(why)? else {
            return Ok(());
        };
        let history = TimelineHistory::parse(timeline, &text)
            .map_err(|error| why(Error::corrupt(format!("history of timeline {}: {error}", timeline.0))))?;
        let Some(fork) = Fork::inside(&history, segment, size) else { return Ok(()) };
        let parents = ArchiveFileName::Segment(fork.parents(segment));
        match self.read_other::<ParentsWal>(parents).map_err(why)? {
            None => Ok(()),
            Some(wal) => fork.judge(segment, wal).map_or(Ok(()), Err),
        }
    }

    /// Reads another file into a fresh `W`; returns none if no repository has it.
    fn read_other<W: Write + Default>(&self, name: ArchiveFileName) -> Result<Option<W>> {
        let request = Self { name, ..self.clone() };
        let views = request.ask();
        let held = held(&views);
        request.refuse_two_contents(&held)?;
        if held.is_empty() {
            return request.unproven(&views).map_or(Ok(None), Err);
        }
        let read = |held: &Held<'_>, expected| {
            let mut content = W::default();
            copy_checked(held.repository, held.object, expected, self.opener, &mut content)?;
            Ok(content)
        };
        request.first_good(&held, read).map(Some)
    }

    /// Tries one copy after the other. Damage is noted in the index.
    pub fn first_good<T>(
        &self,
        held: &[Held<'_>],
        attempt: impl Fn(&Held<'_>, Option<Expected>) -> Result<T>,
    ) -> Result<T> {
        let mut first_error = None;
        for copy in held {
            let expected = match self.name {
                ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment) => {
                    Some(Expected { segment, size: copy.size, sysid: self.sysid })
                }
                _ => None,
            };
            match attempt(copy, expected) {
                Ok(done) => return Ok(done),
                Err(error) => {
                    if held.len() > 1 {
                        tracing::warn!("{error}; the next repository is tried");
                    }
                    if error.kind() == Kind::Corrupt {
                        self.note_damage(copy, &error);
                    }
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| absent(self.name)))
    }

    fn note_damage(&self, copy: &Held<'_>, error: &Error) {
        let Some(path) = &self.options.index else { return };
        let (url, key) = (copy.repository.url(), &copy.object.object.key);
        IndexHandle::open(path).run(|index| index.note_damage(url, key, error.message()));
    }

    /// Returns the timeline of the cluster that is being recovered.
    fn restored_timeline(&self) -> Option<TimelineId> {
        control_beside(self.path).map(|control| control.timeline)
    }
}

/// Returns the control file of the data directory in whose `pg_wal` the file is wanted at `path`.
pub fn control_beside(path: &Path) -> Option<ControlFile> {
    let data_dir = path.parent()?.parent().unwrap_or(Path::new(""));
    ControlFile::parse(&std::fs::read(data_dir.join("global/pg_control")).ok()?).ok()
}

/// Returns every copy that the repositories showed.
fn held<'v>(views: &'v [View<'_>]) -> Vec<Held<'v>> {
    let answered = views.iter().filter_map(|view| Some((view.repository, view.answer.as_ref().ok()?)));
    answered
        .flat_map(|(repository, answer)| {
            let size = answer.cluster.wal_segment_size;
            answer.contents.iter().map(move |object| Held { repository, object, size })
        })
        .collect()
}
