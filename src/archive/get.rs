//! `archive-get`: one file from the repositories to where the server wants it.

use super::absence::{self, Answer, Verdict, View};
use super::content::{Expected, copy_checked};
use super::doubt::{DoubtNotes, ServerRun};
use super::fork::{Fork, ParentsWal};
use super::source::Origin;
use super::spool::{KnownRepository, Spool, hand_over, place};
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
use std::path::{Path, PathBuf};
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
    /// The directory of spools in `state_dir`; none where it is not this user's to write to.
    pub spools: Option<PathBuf>,
    /// How many segments are kept ready beyond the one asked for; 0 for none.
    pub prefetch: usize,
    /// The index, in which damage is noted.
    pub index: Option<PathBuf>,
}

/// What a fetch found out besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// For which system identifier a prefetcher should be started: none lives, and segments are asked for
    /// in a row.
    pub start_prefetcher: Option<SystemIdentifier>,
}

/// Fetches `name` to `path`, verified to the end, by an atomic rename. Errors: [`Kind::Absent`] only when that is
/// proven; [`Kind::Doubt`], [`Kind::Repository`], [`Kind::Corrupt`], [`Kind::Config`] when recovery must not go on
/// as if it were; [`Kind::MustStop`] when not even a standby may; [`Kind::Usage`] for a name that is none.
pub fn get(
    name: &str,
    path: &Path,
    options: &GetOptions,
    repositories: &[Repository],
    opener: &Opener,
) -> Result<Fetched> {
    let name: ArchiveFileName = name.parse().map_err(|_| {
        Error::usage(format!("\"{name}\" is not the name of a WAL file"))
            .with_hint("restore_command is 'walden archive-get %f %p'")
    })?;
    if let ArchiveFileName::History(TimelineId(1)) = name {
        return Err(absent(name)); // the first timeline has no parents
    }
    let sysid = super::system_identifier_beside(path, &options.origin)
        .map_err(|error| if may_fall_back(name) { not_noted(&error) } else { error })?;
    let asked: Vec<&Repository> = repositories
        .iter()
        .filter(|repository| !options.without.iter().any(|out| out == repository.name()))
        .collect();
    let spool = open_spool(name, sysid, options);
    let keys = ClusterKeys::new(&options.cluster, sysid);
    let request = Request { name, path, options, sysid, keys, asked: &asked, opener, spool: spool.as_ref() };
    let ArchiveFileName::Segment(segment) = name else {
        request.fetch()?;
        return Ok(Fetched { start_prefetcher: None });
    };
    let notes = spool.as_ref().map(|spool| DoubtNotes::new(spool.dir(), ServerRun::of(path)));
    if let Some(notes) = &notes {
        request.heed(segment, notes)?;
    }
    let outcome = request.fetch_segment(segment);
    match &outcome {
        Err(error) if error.kind() != Kind::Absent => {
            let written = notes.as_ref().is_some_and(|notes| notes.write(segment).is_ok());
            if may_fall_back(name) && !written {
                return Err(not_noted(error));
            }
        }
        _ => notes.iter().for_each(|notes| notes.settle(segment)),
    }
    outcome?;
    let start = spool
        .as_ref()
        .filter(|_| options.prefetch > 0)
        .is_some_and(|spool| spool.note_wanted(segment).unwrap_or(false) && !spool.is_watched());
    Ok(Fetched { start_prefetcher: start.then_some(sysid) })
}

fn absent(name: ArchiveFileName) -> Error {
    Error::new(Kind::Absent, format!("\"{name}\" is not in the archive"))
}

/// Returns whether the server, refused this file, asks for the same of a parent timeline.
fn may_fall_back(name: ArchiveFileName) -> bool {
    matches!(name, ArchiveFileName::Segment(segment) if segment.timeline > TimelineId(1))
}

/// Turns a refusal into one that ends recovery: without a note the server would be given the parent timeline's copy.
fn not_noted(error: &Error) -> Error {
    error.clone().with_kind(Kind::MustStop).with_hint("the doubt could not be noted down in state_dir")
}

fn open_spool(name: ArchiveFileName, sysid: SystemIdentifier, options: &GetOptions) -> Option<Spool> {
    match Spool::open(options.spools.as_deref()?, sysid) {
        Ok(spool) => Some(spool),
        Err(error) => {
            // A recovery asks for a history once and for segments thousands of times.
            if options.prefetch > 0 && matches!(name, ArchiveFileName::History(_)) {
                tracing::warn!("nothing is prefetched: {error}; hint: state_dir must be writable");
            }
            None
        }
    }
}

/// What can be said of a file.
enum Finding<'v> {
    /// It is there.
    Held(Vec<Held<'v>>),
    /// It is proven absent.
    Absent,
    /// A later segment is there; this one may be on its way.
    InFlight(WalSegmentName),
}

/// One repository's copy.
#[derive(Clone, Copy)]
struct Held<'v> {
    repository: &'v Repository,
    object: &'v WalObject,
    size: WalSegmentSize,
}

#[derive(Clone)]
struct Request<'a> {
    name: ArchiveFileName,
    path: &'a Path,
    options: &'a GetOptions,
    sysid: SystemIdentifier,
    keys: ClusterKeys,
    asked: &'a [&'a Repository],
    opener: &'a Opener,
    spool: Option<&'a Spool>,
}

impl<'a> Request<'a> {
    /// Fails while the same segment is in doubt on a higher timeline.
    fn heed(&self, segment: WalSegmentName, notes: &DoubtNotes) -> Result<()> {
        let above = notes.above(segment).map_err(|error| {
            Error::new(
                Kind::MustStop,
                format!("whether a higher timeline is in doubt cannot be read: {error}"),
            )
        })?;
        for note in above {
            let doubted = note.segment;
            let refused = |why: String| {
                Error::new(
                    Kind::Doubt,
                    format!(
                        "\"{segment}\" is refused while \"{doubted}\" of the newer timeline is in doubt: {why}"
                    ),
                )
            };
            let request = Self { name: ArchiveFileName::Segment(doubted), ..self.clone() };
            match request.find(&request.ask()) {
                // The server was told otherwise a moment ago, and would go on along the older timeline.
                Ok(Finding::Held(_)) if note.same_run => {
                    return Err(refused("it is there now and must be asked for first".to_owned()));
                }
                Ok(Finding::Absent | Finding::Held(_)) => notes.settle(doubted),
                Ok(Finding::InFlight(later)) => {
                    return Err(refused(format!("it may be on its way, since \"{later}\" is archived")));
                }
                Err(error) => return Err(refused(error.to_string())),
            }
        }
        Ok(())
    }

    fn fetch_segment(&self, segment: WalSegmentName) -> Result<()> {
        if self.options.through.iter().any(|last| last.timeline == segment.timeline && segment > *last) {
            return Err(absent(self.name));
        }
        if let Some(spool) = self.spool.filter(|_| self.options.prefetch > 0) {
            let urls = self.asked.iter().map(|repository| repository.url()).collect();
            if let Some(taken) = spool.take(segment, self.sysid, &urls) {
                return hand_over(taken, self.path);
            }
        }
        self.fetch()
    }

    /// Fetches the file from the repositories.
    fn fetch(&self) -> Result<()> {
        if self.asked.is_empty() {
            return Err(Error::usage("--without leaves no repository"));
        }
        let began = Instant::now();
        loop {
            let views = self.ask();
            match self.find(&views)? {
                Finding::Held(held) => {
                    self.note_known(&views);
                    return self.first_good(&held, |held, expected| {
                        place(self.path, |file| {
                            copy_checked(held.repository, held.object, expected, self.opener, file)
                        })
                    });
                }
                Finding::Absent => return Err(absent(self.name)),
                Finding::InFlight(later) => {
                    if let ArchiveFileName::Segment(segment) = self.name
                        && began.elapsed() > self.options.deadline * 2
                    {
                        return Err(absence::gap(segment, later));
                    }
                }
            }
            std::thread::sleep(POLL);
        }
    }

    /// Notes what the repositories said of themselves, by which entries of the spool are known later.
    fn note_known(&self, views: &[View<'_>]) {
        let Some(spool) = self.spool.filter(|_| self.options.prefetch > 0) else { return };
        let known = views.iter().filter_map(|view| {
            let cluster = &view.answer.as_ref().ok()?.cluster;
            Some(KnownRepository {
                id: cluster.id.clone(),
                size: cluster.wal_segment_size,
                url: view.repository.url().to_owned(),
            })
        });
        if let Err(error) = spool.note_known(&known.collect::<Vec<_>>()) {
            tracing::debug!("note the repositories: {error}");
        }
    }

    fn ask(&self) -> Vec<View<'a>> {
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
    fn find<'v>(&self, views: &'v [View<'_>]) -> Result<Finding<'v>> {
        let held = held(views);
        self.refuse_two_contents(&held)?;
        if !held.is_empty() {
            return Ok(Finding::Held(held));
        }
        if let Some(error) = absence::unproven(views, self.options.acknowledged_by_all) {
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
            return absence::unproven(&views, self.options.acknowledged_by_all).map_or(Ok(None), Err);
        }
        let read = |held: &Held<'_>, expected| {
            let mut content = W::default();
            copy_checked(held.repository, held.object, expected, self.opener, &mut content)?;
            Ok(content)
        };
        request.first_good(&held, read).map(Some)
    }

    /// Tries one copy after the other. Damage is noted in the index.
    fn first_good<T>(
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
        let data_dir = self.path.parent()?.parent().unwrap_or(Path::new(""));
        let control = std::fs::read(data_dir.join("global/pg_control")).ok()?;
        ControlFile::parse(&control).ok().map(|control| control.timeline)
    }
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
