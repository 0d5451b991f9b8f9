//! Base backups of real servers, and the restore of their files: what the server, `pg_verifybackup`, amcheck and plain
//! `age | lz4 | tar` say of what they make. `Scene` drives the library; a `Site` drives the program.

mod broken;
mod bucket;
mod churn;
mod continued;
mod damage;
mod engine;
mod faults;
mod memory;
mod options;
mod preflight;
mod progress;
mod restore;
mod resume;
mod standby;
mod stored;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use walden::backup::{Attempt, BackupOptions, Sink};
use walden::codec::{Opener, Sealer, generate_identity};
use walden::kind::{Error, Kind, Result};
use walden::progress::Progress;
use walden::recovery::restore::{RestoreOptions, Source, restore};
use walden::repository::backup::{BackupSummary, StoredObject, new_backup_id};
use walden::server::Server;

use crate::support::{Cluster, ClusterOptions, Stop, live_test, run, tools, user};

/// A directory as the one repository.
struct Folder {
    dir: PathBuf,
    /// After so many objects the store is full.
    capacity: Mutex<usize>,
}

impl Folder {
    fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("data")).expect("create folder");
        Self { dir, capacity: Mutex::new(usize::MAX) }
    }
}

impl Sink for Folder {
    fn put(&self, name: &str, body: Bytes) -> Result<()> {
        let mut capacity = self.capacity.lock().expect("lock");
        if *capacity == 0 {
            return Err(Error::new(Kind::Repository, "no space left"));
        }
        *capacity -= 1;
        fs::File::create_new(self.dir.join(name))
            .and_then(|mut file| file.write_all(&body))
            .expect("write object");
        Ok(())
    }
}

/// Directories as repositories, the preferred one first.
struct Folders(Vec<PathBuf>);

impl Source for Folders {
    fn get(&self, object: &StoredObject, copy: usize) -> Result<Option<Bytes>> {
        let Some(dir) = self.0.get(copy) else { return Ok(None) };
        match fs::read(dir.join(&object.name)) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) => Err(Error::new(Kind::Repository, error.to_string())),
        }
    }
}

/// A cluster with all that a backup must get right, and a place to back it up to.
struct Scene {
    cluster: Cluster,
    folder: Folder,
    sealer: Sealer,
    identity: PathBuf,
}

impl Scene {
    fn new(pg: &crate::support::Installation, options: ClusterOptions) -> Self {
        let archive = tempfile::Builder::new().prefix("wt-archive-").tempdir().expect("archive").keep();
        user::give(&archive);
        let options = options
            .setting("archive_mode", "on")
            .setting("archive_command", format!("cp %p {}/%f", archive.display()))
            .setting("max_prepared_transactions", 3);
        let cluster = Cluster::start_new(pg, &options);
        let folder = Folder::new(cluster.work().create_dir("backup"));
        let (identity, recipient) = generate_identity();
        let identity = cluster.work().write("identity", identity);
        fs::rename(&archive, cluster.work().join("archive")).expect("move the archive");
        let archive = cluster.work().join("archive");
        cluster.set("archive_command", format!("cp %p {}/%f", archive.display()));
        Self { cluster, folder, sealer: Sealer::for_recipients(&[recipient]).expect("recipient"), identity }
    }

    fn fill(&self) {
        let space = self.cluster.work().create_dir("space");
        self.cluster.psql(&format!("create tablespace elsewhere location '{}'", space.display()));
        self.cluster.psql(
            "create table plain as select g, md5(g::text) from generate_series(1, 50000) g;
             create index on plain (md5);
             create unlogged table unlogged as select g from generate_series(1, 1000) g;
             create table moved tablespace elsewhere as select g from generate_series(1, 7000) g;
             select lo_from_bytea(0, decode(repeat('ab', 100000), 'hex'));",
        );
        let data = self.cluster.data_dir();
        fs::create_dir(data.join("log")).expect("log");
        user::give(&data.join("log"));
        for name in ["x".repeat(180), "umläut \"quoted\"".to_owned()] {
            fs::write(data.join("log").join(&name), "a log").expect("write a file with an odd name");
            user::give(&data.join("log").join(name));
        }
        self.cluster.psql("select pg_create_physical_replication_slot('old', true)");
        fs::write(data.join("base/pgsql_tmp_stray"), "x").expect("temporary file");
    }

    fn options(&self) -> BackupOptions {
        BackupOptions {
            id: new_backup_id(jiff::Timestamp::now(), walden::postgres::TimelineId(1)),
            cluster: "main".into(),
            data_dir: self.cluster.data_dir().into(),
            label: "it's a label".into(),
            note: None,
            fast: true,
            parallel: 3,
            max_rate: None,
            temp_dir: std::env::temp_dir(),
        }
    }

    fn back_up(&self) -> Result<BackupSummary> {
        let mut server = Server::connect(&self.cluster.connection_string())?;
        let progress = Progress::new();
        let summary = take(&mut server, &self.options(), &self.sealer, &self.folder, &progress);
        if summary.is_err() {
            assert_eq!(
                server.query_one_text("select 1").unwrap_err().kind(),
                Kind::Server,
                "the session is closed"
            );
        } else {
            assert_eq!(progress.done(), progress.total());
        }
        summary
    }

    fn source(&self) -> Folders {
        Folders(vec![self.folder.dir.clone()])
    }

    fn restore_options(&self, name: &str) -> RestoreOptions {
        RestoreOptions {
            data_dir: self.cluster.work().join(name),
            parallel: 2,
            tablespaces: BTreeMap::new(),
            tablespace_root: Some(self.cluster.work().join(format!("{name}-spaces"))),
            owner: user::unprivileged().map(|user| (user.uid.as_raw(), user.gid.as_raw())),
            ..RestoreOptions::default()
        }
    }

    fn restore(&self, summary: &BackupSummary, source: &Folders, options: &RestoreOptions) -> Result<()> {
        let opener = Opener::from_identity_file(&self.identity)?;
        restore(summary, source, &opener, options, &Progress::new())
    }

    /// Starts a restored directory as a copy that replays everything archived.
    fn start_copy(&self, data_dir: &Path) -> Cluster {
        let archive = self.cluster.work().join("archive");
        let mut copy = Cluster::open(&self.cluster.installation, data_dir);
        copy.append_config(&format!(
            "archive_mode = off\nrestore_command = 'cp {}/%f %p'\n",
            archive.display()
        ));
        fs::write(data_dir.join("recovery.signal"), "").expect("write recovery.signal");
        user::give(&data_dir.join("recovery.signal"));
        copy.start();
        copy.wait_until("the copy is promoted", || copy.psql("select pg_is_in_recovery()") == "f");
        copy
    }
}

/// Takes a backup by the library, without a journal.
fn take(
    server: &mut Server,
    options: &BackupOptions,
    sealer: &Sealer,
    sink: &dyn Sink,
    progress: &Progress,
) -> Result<BackupSummary> {
    let found = walden::backup::preflight(options, server)?;
    let taken = walden::backup::run(options, found, server, sealer, sink, progress, &mut Attempt::default())?;
    Ok(taken.summary)
}

/// Path, mode and content of all files below a directory, as a hash.
fn contents(dir: &Path) -> HashMap<PathBuf, (u32, u64)> {
    fn walk(root: &Path, dir: &Path, found: &mut HashMap<PathBuf, (u32, u64)>) {
        for entry in fs::read_dir(dir).expect("read directory") {
            let path = entry.expect("entry").path();
            let meta = fs::metadata(&path).expect("metadata");
            let hash = if meta.is_dir() {
                walk(root, &path, found);
                0
            } else {
                u64::from(crc32fast::hash(&fs::read(&path).expect("read file"))) << 32 | meta.len()
            };
            found.insert(path.strip_prefix(root).expect("below").to_owned(), (meta.mode() & 0o7777, hash));
        }
    }
    let mut found = HashMap::new();
    walk(dir, dir, &mut found);
    found
}
