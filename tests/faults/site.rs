//! A host that archives into two directories whose stores fail on demand, and an independent look at what they hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use walden::archive::{GetOptions, Origin, PushOptions, Pushed};
use walden::codec::{Opener, Sealer, generate_identity};
use walden::index::IndexHandle;
use walden::kind::Result;
use walden::repository::{ClusterFile, ClusterKeys, Repository, find_contents};
use walden::storage::faulty::{Faults, Faulty};
use walden::storage::{FsStorage, Retry, Storage};

use crate::segment::{SIZE, SYSID, segment, segment_size};

pub const CLUSTER: &str = "main";
const STALL: Duration = Duration::from_secs(20);

/// One key pair for the whole run.
struct Keys {
    identity: String,
    recipient: String,
}

fn key_pair() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let (identity, recipient) = generate_identity();
        Keys { identity, recipient }
    })
}

pub fn sealer() -> Sealer {
    Sealer::for_recipients(&[key_pair().recipient.clone()]).unwrap()
}

pub fn opener() -> Opener {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &key_pair().identity).unwrap();
    Opener::from_identity_file(file.path()).unwrap()
}

pub fn keys() -> ClusterKeys {
    ClusterKeys::new(CLUSTER, SYSID)
}

/// Which stores faults are set in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    First,
    Second,
    Both,
}

pub const EVERYWHERE: [Where; 3] = [Where::First, Where::Second, Where::Both];

/// A host with its `pg_wal`, its index, and two repositories.
pub struct Site {
    dir: tempfile::TempDir,
    pub acknowledge: usize,
    pub faults: [Faults; 2],
    attempts: u32,
}

impl Site {
    /// Returns a host whose two repositories are initialised. Each call to a store is tried `attempts` times.
    pub fn new(acknowledge: usize, attempts: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pg_wal/archive_status")).unwrap();
        let site = Self { dir, acknowledge, faults: [Faults::default(), Faults::default()], attempts };
        for root in site.roots() {
            fs::create_dir(root).unwrap();
        }
        for repository in site.healthy() {
            let file = ClusterFile::new(CLUSTER, SYSID, segment_size(), 15);
            file.write(&repository, &keys()).unwrap();
        }
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn pg_wal(&self) -> PathBuf {
        self.path("pg_wal")
    }

    pub fn roots(&self) -> [PathBuf; 2] {
        ["a", "b"].map(|name| self.path(name))
    }

    /// Returns the repositories over stores that fail on demand.
    pub fn repositories(&self) -> Vec<Repository> {
        let store = |root: PathBuf, faults: &Faults| -> Arc<dyn Storage> {
            Arc::new(Retry::new(Faulty::with(FsStorage::new(root), faults.clone()), self.attempts))
        };
        let stores = self.roots().into_iter().zip(&self.faults);
        let stores = stores.map(|(root, faults)| store(root, faults));
        ["a", "b"].into_iter().zip(stores).map(|(name, store)| Repository::new(name, store, STALL)).collect()
    }

    /// Returns the repositories as somebody else sees them, without faults.
    pub fn healthy(&self) -> Vec<Repository> {
        let store = |root| Arc::new(FsStorage::new(root));
        ["a", "b"]
            .into_iter()
            .zip(self.roots())
            .map(|(name, root)| Repository::new(name, store(root), STALL))
            .collect()
    }

    /// Returns the handles of the stores that `place` names.
    pub fn faults_in(&self, place: Where) -> Vec<Faults> {
        let [first, second] = self.faults.clone();
        match place {
            Where::First => vec![first],
            Where::Second => vec![second],
            Where::Both => vec![first, second],
        }
    }

    pub fn reset_faults(&self) {
        self.faults.iter().for_each(Faults::reset);
    }

    /// Writes a file into `pg_wal`, with a `.ready` beside it.
    pub fn add(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.pg_wal().join(name);
        fs::write(&path, content).unwrap();
        fs::write(self.pg_wal().join(format!("archive_status/{name}.ready")), "").unwrap();
        path
    }

    /// Writes a made-up segment into `pg_wal`.
    pub fn add_segment(&self, name: &str, seed: u64) -> PathBuf {
        self.add(name, &segment(name, seed))
    }

    pub fn push_options(&self) -> PushOptions {
        PushOptions {
            cluster: CLUSTER.to_owned(),
            origin: origin(),
            acknowledge: self.acknowledge,
            parallel: 2,
            look_ahead: 8,
            event_rows: 1000,
        }
    }

    /// Archives a file of `pg_wal` as a call of its own would, index included.
    pub fn push(&self, name: &str) -> Result<Pushed> {
        let index = IndexHandle::open(&self.path("state/index.sqlite"));
        let path = self.pg_wal().join(name);
        walden::archive::push(&path, &self.push_options(), &self.repositories(), &sealer(), &index)
    }

    pub fn get_options(&self) -> GetOptions {
        GetOptions {
            cluster: CLUSTER.to_owned(),
            origin: origin(),
            deadline: Duration::from_secs(1),
            acknowledged_by_all: false,
            standby: false,
            without: Vec::new(),
            through: Vec::new(),
            missing_histories: Vec::new(),
            spools: None,
            prefetch: 0,
            index: None,
        }
    }

    /// Returns the plaintexts that the repositories hold under `name`, each read anew, by repository.
    pub fn held(&self, name: &str) -> Vec<Vec<Vec<u8>>> {
        let opener = opener();
        let contents = |repository: &Repository| {
            let found =
                find_contents(repository, &keys(), name.parse().unwrap(), &repository.deadline()).unwrap();
            let read = |key: &str| {
                let stored = repository.storage().get(key, None, &repository.deadline()).unwrap();
                opener.open_whole(key, stored, SIZE as u64 + 1).unwrap()
            };
            found.iter().map(|object| read(&object.object.key)).collect()
        };
        self.healthy().iter().map(contents).collect()
    }

    /// Panics unless as many repositories as must acknowledge hold `name` with this content and no other.
    #[track_caller]
    pub fn assert_archived(&self, name: &str, content: &[u8], when: &str) {
        let held = self.held(name);
        let good = held.iter().filter(|contents| matches!(&contents[..], [only] if only == content)).count();
        assert!(good >= self.acknowledge, "{when}: {name} is whole in {good} repositories");
        assert!(held.iter().flatten().all(|other| other == content), "{when}: {name} has other content");
    }

    /// Returns every file in both repositories with its bytes.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        self.roots().iter().for_each(|root| collect(root, &mut found));
        found
    }

    /// Panics when an earlier file is gone or differs, or a temporary one is left.
    #[track_caller]
    pub fn assert_only_added(&self, before: &BTreeMap<PathBuf, Vec<u8>>, when: &str) {
        let after = self.snapshot();
        for (path, content) in before {
            assert!(after.get(path) == Some(content), "{when}: {} was changed or lost", path.display());
        }
        for path in after.keys() {
            assert!(!is_temporary(path), "{when}: {} is left", path.display());
        }
    }

    /// Writes a configuration for the program, with a state directory of its own; returns its path.
    pub fn config(&self, host: &str) -> PathBuf {
        let [a, b] = self.roots();
        let identity = self.path("identity.txt");
        fs::write(&identity, &key_pair().identity).unwrap();
        let text = format!(
            "cluster = \"{CLUSTER}\"\ndata_dir = \"{}\"\nstate_dir = \"{}\"\n\n[archive]\nacknowledge = {}\n\n\
             [encryption]\nrecipients = [{:?}]\nidentity_file = \"{}\"\n\n\
             [[repository]]\nname = \"a\"\nurl = \"file://{}\"\n\n\
             [[repository]]\nname = \"b\"\nurl = \"file://{}\"\n",
            self.path(host).display(),
            self.path(&format!("{host}-state")).display(),
            self.acknowledge,
            key_pair().recipient,
            identity.display(),
            a.display(),
            b.display(),
        );
        let path = self.path(&format!("{host}.toml"));
        fs::write(&path, text).unwrap();
        path
    }
}

pub fn origin() -> Origin {
    Origin { data_dir: PathBuf::from("/nonexistent"), system_identifier: Some(SYSID) }
}

/// Returns a command of the program, with what a server would give it.
pub fn walden(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walden"));
    command.arg("--config").arg(config).args(arguments).args(["--system-identifier", &SYSID.to_string()]);
    command.env_remove("WALDEN_CONFIG").stdin(std::process::Stdio::null());
    command
}

pub fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Collects every file below `dir`, hidden ones too.
pub fn collect(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else {
            // Another process may have removed its temporary file meanwhile.
            found.extend(fs::read(&path).ok().map(|content| (path, content)));
        }
    }
}
