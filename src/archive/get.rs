//! `archive-get`: one file from the repositories to where the server wants it.

use super::absence::{self, Answer, Verdict, View};
use super::source::Origin;
use crate::codec::Opener;
use crate::durable;
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::{
    ArchiveFileName, ControlFile, SegmentHeader, SystemIdentifier, TimelineId, WalSegmentName,
};
use crate::repository::{
    ClusterKeys, ClusterState, Repository, WalListing, WalObject, ask_all, find_contents, list_histories,
    list_wal_from, read_wal_object,
};
use crate::storage::Deadline;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many objects from the wanted one onward a call looks at.
const LISTING: usize = 100;
/// How often a segment in flight is looked for.
const POLL: Duration = Duration::from_millis(500);

/// How to fetch.
#[derive(Debug, Clone)]
pub struct GetOptions {
    /// The cluster's name in the repositories.
    pub cluster: String,
    /// Where the system identifier comes from.
    pub origin: Origin,
    /// How long a segment may be in flight (`archive.deadline`).
    pub deadline: Duration,
    /// Whether every repository had to have a segment before it counted as archived.
    pub acknowledged_by_all: bool,
    /// The repositories that the operator left out, by name.
    pub without: Vec<String>,
    /// The last segments of their timelines that recovery needs: what follows is absent without asking.
    pub through: Vec<WalSegmentName>,
    /// Histories that the plan found missing and named.
    pub missing_histories: Vec<TimelineId>,
}

/// Fetches `name` to `path`, verified to the end, by an atomic rename. Errors: [`Kind::Absent`] only when that is
/// proven; [`Kind::Doubt`], [`Kind::Repository`], [`Kind::Corrupt`], [`Kind::Config`] when recovery must not go on
/// as if it were; [`Kind::Usage`] for a name that is none.
pub fn get(
    name: &str,
    path: &Path,
    options: &GetOptions,
    repositories: &[Repository],
    opener: &Opener,
) -> Result<()> {
    let name: ArchiveFileName = name.parse().map_err(|_| {
        Error::usage(format!("\"{name}\" is not the name of a WAL file"))
            .with_hint("restore_command is 'walden archive-get %f %p'")
    })?;
    if let ArchiveFileName::History(TimelineId(1)) = name {
        return Err(absent(name)); // the first timeline has no parents
    }
    if let ArchiveFileName::Segment(segment) = name
        && options.through.iter().any(|last| last.timeline == segment.timeline && segment > *last)
    {
        return Err(absent(name));
    }
    let sysid = super::system_identifier_beside(path, &options.origin)?;
    let asked: Vec<&Repository> = repositories
        .iter()
        .filter(|repository| !options.without.iter().any(|out| out == repository.name()))
        .collect();
    if asked.is_empty() {
        return Err(Error::usage("--without leaves no repository"));
    }
    let request = Request { name, path, options, sysid, keys: ClusterKeys::new(&options.cluster, sysid) };
    let began = Instant::now();
    loop {
        let views = request.ask(&asked);
        if let Some(outcome) = request.answer(&views, opener, began) {
            return outcome;
        }
        std::thread::sleep(POLL);
    }
}

fn absent(name: ArchiveFileName) -> Error {
    Error::new(Kind::Absent, format!("\"{name}\" is not in the archive"))
}

struct Request<'a> {
    name: ArchiveFileName,
    path: &'a Path,
    options: &'a GetOptions,
    sysid: SystemIdentifier,
    keys: ClusterKeys,
}

impl Request<'_> {
    fn ask<'r>(&self, repositories: &[&'r Repository]) -> Vec<View<'r>> {
        let ask = |repository: &'r Repository, deadline: &Deadline| View {
            repository,
            answer: self.ask_one(repository, deadline),
        };
        // With the content at hand there is no need to wait long for a repository that is down.
        ask_all(repositories, 1, ask, |view| {
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

    /// Returns the outcome, or none to look again.
    fn answer(&self, views: &[View<'_>], opener: &Opener, began: Instant) -> Option<Result<()>> {
        let held: Vec<(&Repository, &WalObject, &Answer)> = views
            .iter()
            .filter_map(|view| view.answer.as_ref().ok().map(|answer| (view.repository, answer)))
            .flat_map(|(repository, answer)| {
                answer.contents.iter().map(move |object| (repository, object, answer))
            })
            .collect();
        if let Some((first, other)) =
            held.iter().find_map(|a| held.iter().find(|b| a.1.crc != b.1.crc).map(|b| (a, b)))
            && !matches!(self.name, ArchiveFileName::Partial(_))
        {
            return Some(Err(Error::new(
                Kind::Corrupt,
                format!(
                    "\"{}\" is archived with two contents: CRC-32 {:08x} in repository \"{}\", {:08x} in \"{}\"",
                    self.name,
                    first.1.crc,
                    first.0.name(),
                    other.1.crc,
                    other.0.name()
                ),
            )
            .with_hint(format!("walden resolve {} --keep CRC settles which one is right", self.name))));
        }
        if !held.is_empty() {
            return Some(self.fetch(&held, opener));
        }
        if let Some(error) = absence::unproven(views, self.options.acknowledged_by_all) {
            return Some(Err(error));
        }
        match self.name {
            ArchiveFileName::Segment(segment) => {
                match absence::judge(views, segment, jiff::Timestamp::now(), self.options.deadline) {
                    Verdict::End => Some(Err(absent(self.name))),
                    Verdict::Gap(later) => Some(Err(absence::gap(segment, later))),
                    Verdict::InFlight(later) if began.elapsed() > self.options.deadline * 2 => {
                        Some(Err(absence::gap(segment, later)))
                    }
                    Verdict::InFlight(_) => None,
                }
            }
            ArchiveFileName::History(timeline) => {
                let allowed = self.options.missing_histories.contains(&timeline);
                let gap = absence::history_gap(views, timeline, self.restored_timeline());
                Some(Err(gap.filter(|_| !allowed).unwrap_or_else(|| absent(self.name))))
            }
            _ => Some(Err(absent(self.name))),
        }
    }

    /// Takes the first good copy.
    fn fetch(&self, held: &[(&Repository, &WalObject, &Answer)], opener: &Opener) -> Result<()> {
        let mut first_error = None;
        for (repository, object, answer) in held {
            match self.read_checked(repository, object, answer, opener) {
                Ok(content) => return self.write(&content),
                Err(error) => {
                    if held.len() > 1 {
                        tracing::warn!("{error}; the next repository is tried");
                    }
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| absent(self.name)))
    }

    fn read_checked(
        &self,
        repository: &Repository,
        object: &WalObject,
        answer: &Answer,
        opener: &Opener,
    ) -> Result<Vec<u8>> {
        let (ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment)) = self.name else {
            return read_wal_object(repository, object, None, opener);
        };
        let size = answer.cluster.wal_segment_size;
        let content = read_wal_object(repository, object, Some(size.bytes()), opener)?;
        let checked = SegmentHeader::parse(&content).and_then(|header| {
            header.check(segment, content.len() as u64)?;
            Ok(header.system_identifier)
        });
        match checked {
            Ok(sysid) if sysid == self.sysid => Ok(content),
            Ok(sysid) => Err(Error::corrupt(format!(
                "object \"{}\" in repository \"{}\" belongs to system identifier {sysid}, wanted {}",
                object.object.key,
                repository.name(),
                self.sysid
            ))),
            Err(error) => Err(Error::corrupt(format!(
                "object \"{}\" in repository \"{}\": {error}",
                object.object.key,
                repository.name()
            ))),
        }
    }

    fn write(&self, content: &[u8]) -> Result<()> {
        let shown = self.path.display();
        let (mut file, temp) =
            durable::temp_beside(self.path, 0o600).context(format!("write \"{shown}\""))?;
        file.write_all(content)
            .and_then(|()| file.sync_data())
            .map_err(durable::at(temp.path()))
            .context(format!("write \"{shown}\""))?;
        drop(file);
        std::fs::rename(temp.path(), self.path).context(format!("rename onto \"{shown}\""))?;
        temp.forget();
        Ok(())
    }

    /// Returns the timeline of the cluster that is being recovered.
    fn restored_timeline(&self) -> Option<TimelineId> {
        let data_dir = self.path.parent()?.parent().unwrap_or(Path::new(""));
        let control = std::fs::read(data_dir.join("global/pg_control")).ok()?;
        ControlFile::parse(&control).ok().map(|control| control.timeline)
    }
}
