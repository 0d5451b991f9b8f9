//! Taking a base backup of a running server from its data directory.
//!
//! The flow is in this file. `preflight` says what must be true before; `files` and `names` which files belong into a
//! backup; `plan` cuts the tar stream (`tar_stream`) of them into pieces; `pieces` builds one, with `pages` checking
//! checksums and `throttle` holding it back; `copy` runs the threads; `record` keeps account; `manifest` writes
//! PostgreSQL's own manifest; `config_files` and `conf` take along configuration from outside the data directory.
//!
//! `destinations` sends the objects to every repository, waits for the WAL that the backup needs and writes `backup.json`,
//! which makes the objects a backup.

pub mod conf;
mod config_files;
mod copy;
mod destinations;
mod files;
mod manifest;
mod names;
mod pages;
mod pieces;
mod plan;
mod preflight;
mod record;
mod tar_stream;
mod throttle;

pub use destinations::Destinations;
pub use preflight::{Preflight, preflight, read_control_file};

use crate::codec::Sealer;
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::{BackupLabel, Lsn, TablespaceMap};
use crate::progress::Progress;
use crate::repository::backup::{
    BACKUP_FORMAT, BackupSummary, BackupTablespace, ExternalConfig, StoredObject, config_name, manifest_name,
};
use crate::server::{BackupStop, Server};
use bytes::Bytes;
use copy::Copy;
use files::{CONTROL_FILE, Tree};
use jiff::Timestamp;
use manifest::ManifestHead;
use pages::PageChecks;
use pieces::Builder;
use plan::Content;
use record::{Recorder, Spool};
use std::path::PathBuf;
use std::sync::Mutex;
use tar_stream::Attributes;
use throttle::Throttle;

/// What a backup is to be.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// The id ([`crate::repository::backup::new_backup_id`]).
    pub id: String,
    /// The cluster's name.
    pub cluster: String,
    /// The server's data directory.
    pub data_dir: PathBuf,
    /// The label for the server's own records.
    pub label: String,
    /// A remark of the user.
    pub note: Option<String>,
    /// Whether the checkpoint at the start is made at once instead of spread.
    pub fast: bool,
    /// How many pieces are built and sent at once.
    pub parallel: usize,
    /// How many bytes are read per second at most.
    pub max_rate: Option<u64>,
    /// Where the accounts of very many files are kept meanwhile, in unnamed files.
    pub temp_dir: PathBuf,
}

/// Where the objects of a backup go.
pub trait Sink: Sync {
    /// Stores an object under `name`, relative to the backup's folder; returns once it is durable. Called from several
    /// threads at once, once for each name.
    fn put(&self, name: &str, body: Bytes) -> Result<()>;
}

/// Takes a backup: begins it on the server, stores everything but `backup.json`, and returns what that is to say. The
/// WAL from `start_segment` to `stop_segment` may not be archived yet. After a failure the session is closed, which
/// ends the backup on the server; what was stored is useless.
pub fn run(
    options: &BackupOptions,
    server: &mut Server,
    sealer: &Sealer,
    sink: &dyn Sink,
    progress: &Progress,
) -> Result<BackupSummary> {
    let result = preflight(options, server)
        .and_then(|preflight| Backup { options, preflight, sealer, sink, progress }.take(server));
    if result.is_err() {
        server.close();
    }
    result
}

/// A backup that is being taken.
struct Backup<'a> {
    options: &'a BackupOptions,
    preflight: Preflight,
    sealer: &'a Sealer,
    sink: &'a dyn Sink,
    progress: &'a Progress,
}

/// Where and when the backup began.
struct Start {
    time: Timestamp,
    lsn: Lsn,
}

impl Backup<'_> {
    fn take(&self, server: &mut Server) -> Result<BackupSummary> {
        let workers = self.options.parallel.clamp(1, copy::MOST_WORKERS);
        let config = self.store_config()?;
        let start = self.start(server)?;
        // Right after the start: what is created later is not in the server's tablespace map.
        let tree = self.tree()?;
        let throttle = Throttle::new(self.options.max_rate);
        let checks = self.preflight.control.data_checksums.then_some(PageChecks {
            start_lsn: start.lsn,
            blocks_per_segment: self.preflight.control.relation_segment_blocks,
        });
        let builder = Builder { sealer: self.sealer, checks, progress: self.progress, throttle: &throttle };
        let recorder = Recorder::new(&self.options.temp_dir);
        let mut copy = Copy::new(builder, self.sink, copy::limits(workers), recorder);

        self.progress.set_phase("copy files");
        copy.files(&tree, workers, &mut || server.query_one_text("select 1").map(drop))?;
        self.progress.set_phase("end the backup");
        let control_file = read_control_file(&self.preflight.data_dir)?.0;
        let stop = server.backup_stop(false)?;
        let stop_time = server.clock()?;
        let next_xid =
            server.query_one_text("select pg_snapshot_xmax(pg_current_snapshot())::text")?.parse().ok();
        let tablespaces = check_tablespaces(&tree, &stop)?;
        let label = BackupLabel::parse(&stop.label_file).kind(Kind::Server, "backup label")?;

        let attributes = self.attributes_of_control_file()?;
        store_tail(&mut copy, &stop, control_file, attributes)?;
        self.store_postgresql_manifest(&mut copy, &label, &stop, attributes)?;
        let pieces = copy.pieces()?;
        let manifest = self.store_manifest(&mut copy.recorder)?;
        self.progress.set_total(self.progress.done());

        let (external_config, config) = config.unzip();
        let stored = pieces.iter().chain(&config).map(|object| object.size).sum::<u64>() + manifest.size;
        Ok(BackupSummary {
            format: BACKUP_FORMAT,
            id: self.options.id.clone(),
            cluster: self.options.cluster.clone(),
            system_identifier: self.preflight.control.system_identifier,
            major_version: self.preflight.major_version,
            server_version: self.preflight.server_version.clone(),
            walden_version: env!("CARGO_PKG_VERSION").to_owned(),
            label: self.options.label.clone(),
            note: self.options.note.clone(),
            from_standby: label.from_standby,
            timeline: label.timeline,
            start_lsn: label.start,
            stop_lsn: stop.lsn,
            checkpoint_lsn: label.checkpoint,
            start_time: start.time,
            stop_time,
            next_xid,
            wal_segment_size: self.preflight.control.wal_segment_size,
            data_checksums: self.preflight.control.data_checksums,
            encrypted: self.sealer.encrypts(),
            ending: self.sealer.ending().to_owned(),
            data_dir: self.preflight.data_dir.display().to_string(),
            tablespaces,
            external_config,
            size: copy.recorder.size,
            stored_size: stored,
            files: copy.recorder.files,
            bad_pages: copy.recorder.bad_pages,
            manifest,
            config,
            pieces,
        })
    }

    /// Begins the backup on the server. Meanwhile the files are counted.
    fn start(&self, server: &mut Server) -> Result<Start> {
        self.progress.set_phase(if self.options.fast {
            "wait for a checkpoint"
        } else {
            "wait for a spread checkpoint"
        });
        let time = server.clock()?;
        let lsn = std::thread::scope(|scope| {
            scope.spawn(|| {
                if let Ok(bytes) = self.tree().and_then(|tree| tree.estimate()) {
                    self.progress.set_total(bytes);
                }
            });
            server.backup_start(&self.options.label, self.options.fast)
        })?;
        Ok(Start { time, lsn })
    }

    fn tree(&self) -> Result<Tree> {
        let Preflight { data_dir, control, major_version, .. } = &self.preflight;
        Tree::open(data_dir, *major_version, control.catalog_version)
    }

    fn store_config(&self) -> Result<Option<(ExternalConfig, StoredObject)>> {
        let Some((external, stream)) = config_files::collect(&self.preflight) else { return Ok(None) };
        let body = Bytes::from(self.sealer.seal(&stream)?);
        let object = StoredObject::of(config_name(self.sealer.ending()), &body);
        self.sink.put(&object.name, body)?;
        Ok(Some((external, object)))
    }

    fn attributes_of_control_file(&self) -> Result<Attributes> {
        let path = self.preflight.data_dir.join(CONTROL_FILE);
        let meta = std::fs::metadata(&path).map_err(crate::durable::at(&path)).context("control file")?;
        Ok(Attributes::of(&meta))
    }

    /// Stores `backup_manifest`, which lists all files before it, and the end of the tar stream.
    fn store_postgresql_manifest(
        &self,
        copy: &mut Copy<'_>,
        label: &BackupLabel,
        stop: &BackupStop,
        attributes: Attributes,
    ) -> Result<()> {
        let head = ManifestHead {
            major: self.preflight.major_version,
            system_identifier: self.preflight.control.system_identifier,
            timeline: label.timeline,
            start: label.start,
            stop: stop.lsn,
        };
        let mut text = Spool::new(&self.options.temp_dir);
        manifest::write(head, copy.recorder.lines()?, &mut text)?;
        let size = text.len();
        let content = Content::Stream(Mutex::new(Box::new(text.into_reader()?)));
        copy.tail(|layout| {
            layout.file(PathBuf::from("backup_manifest"), attributes, size, None, content)?;
            layout.end_of_stream()
        })
    }

    /// Stores our own manifest.
    fn store_manifest(&self, recorder: &mut Recorder) -> Result<StoredObject> {
        let mut writer = self.sealer.writer(0)?;
        std::io::copy(&mut recorder.text()?, &mut writer).context("compress manifest")?;
        let body = Bytes::from(writer.finish()?);
        let object = StoredObject::of(manifest_name(self.sealer.ending()), &body);
        self.sink.put(&object.name, body)?;
        Ok(object)
    }
}

/// Stores what is known only once all other files were read: the control file, and what the server gave at the
/// end.
fn store_tail(
    copy: &mut Copy<'_>,
    stop: &BackupStop,
    control_file: Vec<u8>,
    attributes: Attributes,
) -> Result<()> {
    copy.tail(|layout| {
        let mut add = |path: &str, content: Vec<u8>| {
            let size = content.len() as u64;
            layout.file(PathBuf::from(path), attributes, size, None, Content::Memory(content.into()))
        };
        add(CONTROL_FILE, control_file)?;
        add("backup_label", stop.label_file.clone())?;
        if !stop.tablespace_map.is_empty() {
            add("tablespace_map", stop.tablespace_map.clone())?;
        }
        Ok(())
    })?;
    copy.recorder.settle(stop.lsn)
}

/// Returns the tablespaces that the server's map names. One that was read and is not in the map was created just when
/// the backup began; replay would create it again, over the files that are in the backup.
fn check_tablespaces(tree: &Tree, stop: &BackupStop) -> Result<Vec<BackupTablespace>> {
    let map = TablespaceMap::parse(&stop.tablespace_map).kind(Kind::Server, "tablespace map")?;
    if let Some(oid) = tree.tablespaces().find(|oid| map.entries.iter().all(|known| known.oid != *oid)) {
        return Err(Error::new(Kind::Server, format!("tablespace {oid} was created while the backup began"))
            .with_hint("run base-backup again"));
    }
    Ok(map.entries.into_iter().map(|entry| BackupTablespace { oid: entry.oid, path: entry.path }).collect())
}
