//! `check`: is everything as it must be for archiving, backups and recovery?
//!
//! What can be judged on this host alone comes first (`host`: configuration, keys, data directory, state directory, index),
//! then the server (`server`, `privileges`), then each repository by itself (`probe`, and `place` for directories), the names
//! of relations, and last a round trip of a real segment (`round_trip`). `groups` runs them, each in a thread of its own
//! with a limit, so that one that hangs or fails hides no other.

mod clock;
mod groups;
mod host;
mod item;
mod place;
mod privileges;
mod probe;
mod round_trip;
mod server;
mod settings;

pub use item::{Item, State};

use crate::index::IndexHandle;
use crate::kind::{Error, Kind, Result};
use crate::postgres::ControlFile;
use crate::repository::{ClusterKeys, Repository};
use crate::server::Server;
use groups::{Group, run_together};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long what is quick may take: a directory on a disk that answers, a session with a server.
const QUICK: Duration = Duration::from_secs(30);
/// How long the probe of a repository may take.
const PROBE: Duration = Duration::from_mins(1);
/// How long taking the names of relations may take.
const NAMES: Duration = Duration::from_mins(5);
/// How much longer than [`Subject::deadline`] a round trip may take: to read the segments back.
const READ_BACK: Duration = Duration::from_mins(5);

/// What is checked.
pub struct Subject {
    /// The configuration file.
    pub config_path: PathBuf,
    /// Where it is looked for when nothing names it.
    pub default_config_path: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The directory of state, of all clusters.
    pub state_dir: PathBuf,
    /// That of this cluster.
    pub cluster_state_dir: PathBuf,
    /// The index.
    pub index_path: PathBuf,
    /// How to reach the server.
    pub connection: String,
    /// Whom objects are encrypted to; empty for nobody: they are not encrypted.
    pub recipients: Vec<String>,
    /// What decrypts, if it is here.
    pub identity_file: Option<PathBuf>,
    /// The repositories.
    pub targets: Vec<Target>,
    /// How long a segment may be in flight.
    pub deadline: Duration,
    /// Whether a segment is sent around: that writes into the server.
    pub round_trip: bool,
    /// Opens the index; not called where the state directory is not as it must be.
    pub open_index: Box<dyn Fn() -> IndexHandle + Send + Sync>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("config_path", &self.config_path).finish_non_exhaustive()
    }
}

/// A repository and what is known of its kind.
#[derive(Debug)]
pub struct Target {
    /// The repository.
    pub repository: Repository,
    /// Its directory, if it is one.
    pub directory: Option<PathBuf>,
    /// Its bucket and prefix (`bucket/prefix`), if it is in S3.
    pub bucket: Option<String>,
    /// Whether the configuration lets writes ask the store to refuse an existing key.
    pub conditional_writes: bool,
}

/// What groups hand to those that follow.
struct Shared {
    subject: Subject,
    control: OnceLock<ControlFile>,
    index: OnceLock<IndexHandle>,
    /// The session; none before it is opened, while somebody uses it, or where it failed.
    session: Mutex<Option<Server>>,
    /// What the server was found to be.
    facts: OnceLock<server::Facts>,
    /// The repositories that can be used, by name.
    usable: Mutex<BTreeSet<String>>,
    /// Those whose clock was looked at.
    timed: Mutex<BTreeSet<String>>,
}

impl Shared {
    fn new(subject: Subject) -> Self {
        Self {
            subject,
            control: OnceLock::new(),
            index: OnceLock::new(),
            session: Mutex::new(None),
            facts: OnceLock::new(),
            usable: Mutex::default(),
            timed: Mutex::default(),
        }
    }

    fn keys(&self) -> Option<ClusterKeys> {
        let control = self.control.get()?;
        Some(ClusterKeys::new(&self.subject.cluster, control.system_identifier))
    }

    /// Runs `work` with the session. None where there is none.
    fn with_session<T>(&self, work: impl FnOnce(&mut Server) -> T) -> Option<T> {
        let lock = || self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut server = lock().take()?;
        let result = work(&mut server);
        *lock() = Some(server);
        Some(result)
    }

    fn is_usable(&self, repository: &str) -> bool {
        self.usable.lock().unwrap_or_else(PoisonError::into_inner).contains(repository)
    }

    fn is_timed(&self, repository: &str) -> bool {
        self.timed.lock().unwrap_or_else(PoisonError::into_inner).contains(repository)
    }

    fn index(&self) -> Option<&IndexHandle> {
        self.index.get().filter(|index| index.is_present())
    }
}

/// Checks everything, one thing after the other, and hands each item to `show` as soon as its turn has come. Returns all of
/// them.
pub fn check(subject: Subject, show: &mut dyn FnMut(&Item)) -> Vec<Item> {
    let shared = Arc::new(Shared::new(subject));
    let mut items = Vec::new();
    let group =
        |name: &str, limit, kind, work: groups::Work| Group { name: name.to_owned(), limit, kind, work };
    let quick = |name: &str, work: groups::Work| group(name, QUICK, Kind::Other, work);
    run_together(
        &shared,
        vec![
            quick("config", Box::new(host::config)),
            quick("keys", Box::new(host::keys)),
            quick("data_dir", Box::new(host::data_dir)),
            quick("state_dir", Box::new(host::state_dir)),
        ],
        show,
        &mut items,
    );
    let state_is_good = !items.iter().any(|item| item.name == "state_dir" && item.state == State::Failed);
    run_together(
        &shared,
        vec![quick("index", Box::new(move |shared, say| host::index(shared, state_is_good, say)))],
        show,
        &mut items,
    );
    run_together(
        &shared,
        vec![group("server", QUICK, Kind::Server, Box::new(server::check))],
        show,
        &mut items,
    );
    let targets = shared.subject.targets.iter().enumerate();
    let probes = targets.map(|(at, target)| {
        let work: groups::Work = Box::new(move |shared, say| {
            let target = &shared.subject.targets[at];
            probe::check(shared, target, &mut |item| say(item.of(target.repository.name())));
        });
        group(&format!("repository {}", target.repository.name()), PROBE, Kind::Repository, work)
    });
    run_together(&shared, probes.collect(), show, &mut items);
    let names = group("names", NAMES, Kind::Server, Box::new(server::names));
    run_together(&shared, vec![names], show, &mut items);
    let limit = shared.subject.deadline + READ_BACK;
    let round_trip = group("round trip", limit, Kind::Repository, Box::new(round_trip::check));
    run_together(&shared, vec![round_trip], show, &mut items);
    items
}

/// Returns what came of it as a whole: the first failure, if there is one.
pub fn outcome(items: &[Item]) -> Result<()> {
    let failed: Vec<&Item> = items.iter().filter(|item| item.state == State::Failed).collect();
    let Some(first) = failed.first() else { return Ok(()) };
    let name = match &first.repository {
        Some(repository) => format!("{repository} {}", first.name),
        None => first.name.clone(),
    };
    let message =
        format!("{} of {} checks failed, the first: {name}: {}", failed.len(), items.len(), first.found);
    Err(Error::new(first.kind.unwrap_or(Kind::Other), message)
        .with_hint("what to do stands below each FAILED; see docs/check.md#what-is-looked-at"))
}
