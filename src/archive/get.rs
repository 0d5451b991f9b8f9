//! `archive-get`: one file from the repositories to where the server wants it.

use super::absence;
use super::content::copy_checked;
use super::doubt::{DoubtNotes, ServerRun, asked_before};
use super::request::{Finding, Request, absent};
use super::source::Origin;
use super::spool::{KnownRepository, Spool, hand_over, place};
use crate::codec::Opener;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{ArchiveFileName, SystemIdentifier, TimelineId, WalSegmentName};
use crate::repository::{ClusterKeys, Repository};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
    /// Whether a standby asks, which asks again after any refusal: it is not kept waiting for a segment in flight, since a
    /// promotion would wait along.
    pub standby: bool,
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
    request.heed(segment, notes.as_ref())?;
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

impl Request<'_> {
    /// Fails while the same segment is in doubt on a higher timeline: by a note, or because a standby that follows that
    /// timeline comes with the lower one although the higher one is there, so that a call before must have failed before
    /// it could note anything.
    fn heed(&self, segment: WalSegmentName, notes: Option<&DoubtNotes>) -> Result<()> {
        let above = notes.map_or(Ok(Vec::new()), |notes| notes.above(segment)).map_err(|error| {
            Error::new(
                Kind::MustStop,
                format!("whether a higher timeline is in doubt cannot be read: {error}"),
            )
        })?;
        let mut doubted: Vec<(WalSegmentName, bool)> =
            above.into_iter().map(|note| (note.segment, note.same_run)).collect();
        if self.options.standby && !self.options.through.iter().any(|last| last.timeline > segment.timeline) {
            doubted.extend(asked_before(self.path, segment).into_iter().map(|segment| (segment, true)));
        }
        for (doubted, same_run) in doubted {
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
                Ok(Finding::Held(_)) if same_run => {
                    return Err(refused("it is there now and must be asked for first".to_owned()));
                }
                Ok(Finding::Absent | Finding::Held(_)) => {
                    if let Some(notes) = notes {
                        notes.settle(doubted);
                    }
                }
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
                    if let ArchiveFileName::Segment(segment) = self.name {
                        if self.options.standby {
                            return Err(absence::in_flight(segment, later));
                        }
                        if began.elapsed() > self.options.deadline * 2 {
                            return Err(absence::gap(segment, later));
                        }
                    }
                }
            }
            std::thread::sleep(POLL);
        }
    }

    /// Notes what the repositories said of themselves, by which entries of the spool are known later.
    fn note_known(&self, views: &[absence::View<'_>]) {
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
}
