//! Taking a base backup of a running server from its data directory.
//!
//! The flow is in this file. `preflight` says what must be true before; `files` and `names` which files belong into a
//! backup; `plan` cuts the tar stream (`tar_stream`) of them into pieces; `pieces` builds one, with `pages` checking
//! checksums and `throttle` holding it back; `copy` runs the threads; `record` keeps account; `manifest` writes
//! PostgreSQL's own manifest; `config_files` and `conf` take along configuration from outside the data directory;
//! `relations` finds out whose bad pages are.
//!
//! `archiving` finds out whether WAL is archived, and `histories` archives what was missed of them. `destinations` sends the objects to every repository, waits for the WAL that the backup needs and writes `backup.json`,
//! which makes the objects a backup; `space` asks beforehand whether they fit. What becomes of a backup that breaks off:
//! `journal` keeps what is stored of it, `resume` goes on with it, where `unchanged` finds its files as they were, and
//! `leftovers` removes it.

mod archiving;
pub mod conf;
mod config_files;
mod copy;
mod destinations;
mod files;
mod histories;
mod journal;
pub mod leftovers;
mod manifest;
mod names;
mod pages;
mod pieces;
mod plan;
mod preflight;
mod record;
mod relations;
mod resume;
mod space;
mod tar_stream;
mod throttle;
mod unchanged;

pub use archiving::{LastArchived, check_archiver, check_arrival};
pub use destinations::{Completed, Destinations};
pub use histories::fill_up as fill_up_histories;
pub use journal::{BrokenOff, Head, Journal, Journals};
pub use preflight::{Preflight, SUPPORTED, backup_functions, check_data_dir, preflight, read_control_file};
pub use space::check as check_space;

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
use record::{BadFile, Recorder, Spool};
use resume::{Kept, Paths};
use std::collections::HashMap;
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

    /// Returns the names of the objects that an earlier attempt stored, with their sizes.
    fn present(&self) -> Result<HashMap<String, u64>> {
        Ok(HashMap::new())
    }

    /// Makes `objects` the only ones of an earlier attempt, and each of them present everywhere.
    fn keep_only(&self, _objects: &[StoredObject]) -> Result<()> {
        Ok(())
    }
}

/// What connects a backup with others of the same id: earlier attempts, and later ones.
#[derive(Debug, Default)]
pub struct Attempt {
    /// The attempt that is continued.
    pub earlier: Option<BrokenOff>,
    /// Where this one is noted; left behind when it fails.
    pub journal: Option<Journal>,
}

/// A backup that is stored, but for `backup.json`.
#[derive(Debug)]
pub struct Taken {
    /// What `backup.json` is to say.
    pub summary: BackupSummary,
    /// Files with pages whose checksum is wrong.
    pub bad_files: Vec<BadPagesOf>,
    /// The bytes, as stored, that an earlier attempt had stored already.
    pub reused: u64,
}

/// Bad pages of one file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BadPagesOf {
    /// The file, relative to the data directory.
    pub path: String,
    /// Whose it is, as database, schema and relation, where that was found out.
    pub relation: Option<String>,
    /// How many pages are bad.
    pub pages: u64,
    /// The first of them, by their number in the relation.
    pub blocks: Vec<u32>,
}

impl std::fmt::Display for BadPagesOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(relation) = &self.relation {
            write!(f, "relation {relation}, ")?;
        }
        let blocks: Vec<String> = self.blocks.iter().take(10).map(ToString::to_string).collect();
        let more = if self.pages > blocks.len() as u64 { ", ..." } else { "" };
        write!(f, "file \"{}\", block {}{more}", self.path, blocks.join(", "))
    }
}

/// Takes a backup: begins it on the server, stores everything but `backup.json`, and returns what that is to say. The
/// WAL from `start_segment` to `stop_segment` may not be archived yet. After a failure the session is closed, which
/// ends the backup on the server; what was stored is useless but for a later attempt.
pub fn run(
    options: &BackupOptions,
    preflight: Preflight,
    server: &mut Server,
    sealer: &Sealer,
    sink: &dyn Sink,
    progress: &Progress,
    attempt: &mut Attempt,
) -> Result<Taken> {
    let result = Backup { options, preflight, sealer, sink, progress }.take(server, attempt);
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
    fn take(&self, server: &mut Server, attempt: &mut Attempt) -> Result<Taken> {
        let workers = self.options.parallel.clamp(1, copy::MOST_WORKERS);
        let config = if attempt.earlier.is_none() { self.store_config()? } else { None };
        let start = self.start(server)?;
        // Right after the start: what is created later is not in the server's tablespace map.
        let tree = self.tree()?;
        let mut recorder = Recorder::new(&self.options.temp_dir);
        let (kept, present) = match &attempt.earlier {
            Some(earlier) => self.go_on(earlier, attempt.journal.as_mut(), &mut recorder)?,
            None => (Kept::default(), Paths::default()),
        };
        // What an earlier attempt stored of it is removed by now.
        let config = if attempt.earlier.is_some() { self.store_config()? } else { config };
        let throttle = Throttle::new(self.options.max_rate);
        let checks = self.preflight.control.data_checksums.then_some(PageChecks {
            start_lsn: start.lsn,
            blocks_per_segment: self.preflight.control.relation_segment_blocks,
        });
        let names_ahead = kept.first_free.saturating_sub(kept.objects.len() as u32);
        let builder = Builder {
            sealer: self.sealer,
            checks,
            progress: self.progress,
            throttle: &throttle,
            names_ahead,
        };
        let reused = kept.objects.iter().map(|object| object.size).sum();
        let (limits, journal) = (copy::limits(workers), attempt.journal.as_mut());
        let mut copy = Copy::new(builder, self.sink, limits, recorder, journal, kept.objects);

        self.progress.set_phase("copy files");
        copy.files(&tree, workers, &present, kept.first_item, &mut || self.check_alive(server))?;
        self.progress.set_phase("end the backup");
        let control_file = read_control_file(&self.preflight.data_dir)?.0;
        let stop = server.backup_stop(false)?;
        let stop_time = server.clock()?;
        let next_xid =
            server.query_one_text("select pg_snapshot_xmax(pg_current_snapshot())::text")?.parse().ok();
        let tablespaces = check_tablespaces(&tree, &stop)?;
        let label = BackupLabel::parse(&stop.label_file).kind(Kind::Server, "backup label")?;
        self.preflight.check_after(&label, server)?;

        let attributes = self.attributes_of_control_file()?;
        let bad_files = store_tail(&mut copy, &stop, control_file, attributes)?;
        let bad_files = self.report_bad(server, copy.recorder(), bad_files)?;
        self.store_postgresql_manifest(&mut copy, &label, &stop, attributes)?;
        let pieces = copy.pieces()?;
        let recorder = copy.recorder();
        let manifest = self.store_manifest(recorder)?;
        self.progress.set_total(self.progress.done());

        let (external_config, config) = config.unzip();
        let stored = pieces.iter().chain(&config).map(|object| object.size).sum::<u64>() + manifest.size;
        let summary = BackupSummary {
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
            size: recorder.size,
            stored_size: stored,
            files: recorder.files,
            bad_pages: recorder.bad_pages,
            manifest,
            config,
            pieces,
        };
        Ok(Taken { summary, bad_files, reused })
    }

    /// Takes over what is good of an earlier attempt, and removes the rest of it. Returns the pieces and the paths that
    /// are in them.
    fn go_on(
        &self,
        earlier: &BrokenOff,
        journal: Option<&mut Journal>,
        recorder: &mut Recorder,
    ) -> Result<(Kept, Paths)> {
        self.progress.set_phase("compare files");
        let kept = resume::choose(earlier, &self.preflight.data_dir, &self.sink.present()?)?;
        self.sink.keep_only(&kept.objects)?;
        let mut journal = journal;
        let paths = kept.carry_over(earlier, recorder, journal.as_deref_mut())?;
        if let Some(journal) = journal {
            journal.publish()?;
        }
        self.progress.set_total(self.preflight.size.saturating_sub(recorder.size));
        tracing::info!(
            "{} of {} stored pieces are good, with {} bytes of files that are not read again",
            kept.objects.len(),
            kept.known,
            recorder.size
        );
        Ok((kept, paths))
    }

    /// Looks whether the server is still there, and still what it was. Returns how far its WAL has come.
    fn check_alive(&self, server: &mut Server) -> Result<Lsn> {
        let in_recovery = server.is_in_recovery()?;
        if self.preflight.from_standby && !in_recovery {
            Err(preflight::promoted())
        } else {
            server.wal_position()
        }
    }

    /// Finds out whose bad pages are, warns of them, and writes them into the manifest.
    fn report_bad(
        &self,
        server: &Server,
        recorder: &mut Recorder,
        mut bad_files: Vec<BadFile>,
    ) -> Result<Vec<BadPagesOf>> {
        relations::name(server, &mut bad_files);
        recorder.write_bad(&bad_files)?;
        let blocks_per_segment = self.preflight.control.relation_segment_blocks;
        let found = bad_files.into_iter().map(|bad| {
            let pages = bad.line.bad_pages.unwrap_or_default();
            let segment = bad.relation.map_or(0, |relation| relation.segment);
            let first = segment.wrapping_mul(blocks_per_segment);
            BadPagesOf {
                path: bad.line.path.display().to_string(),
                relation: pages.relation,
                pages: pages.count,
                blocks: pages.blocks.into_iter().map(|block| first.wrapping_add(block)).collect(),
            }
        });
        let found: Vec<BadPagesOf> = found.collect();
        for bad in &found {
            tracing::warn!("wrong page checksum: {bad}");
        }
        Ok(found)
    }

    /// Begins the backup on the server.
    fn start(&self, server: &mut Server) -> Result<Start> {
        self.progress.set_total(self.preflight.size);
        self.progress.set_phase(if self.options.fast {
            "wait for a checkpoint"
        } else {
            "wait for a spread checkpoint"
        });
        let time = server.clock()?;
        let lsn = server.backup_start(&self.options.label, self.options.fast)?;
        Ok(Start { time, lsn })
    }

    fn tree(&self) -> Result<Tree> {
        self.preflight.tree()
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
        manifest::write(head, copy.recorder().lines()?, &mut text)?;
        let size = text.len();
        let content = Content::Stream(Mutex::new(Box::new(text.into_reader()?)));
        copy.tail(|layout| {
            layout.file(PathBuf::from("backup_manifest"), attributes, size, None, None, content)?;
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
/// end. Returns the files with bad pages.
fn store_tail(
    copy: &mut Copy<'_>,
    stop: &BackupStop,
    control_file: Vec<u8>,
    attributes: Attributes,
) -> Result<Vec<BadFile>> {
    copy.tail(|layout| {
        let mut add = |path: &str, content: Vec<u8>| {
            let size = content.len() as u64;
            layout.file(PathBuf::from(path), attributes, size, None, None, Content::Memory(content.into()))
        };
        add(CONTROL_FILE, control_file)?;
        add("backup_label", stop.label_file.clone())?;
        if !stop.tablespace_map.is_empty() {
            add("tablespace_map", stop.tablespace_map.clone())?;
        }
        Ok(())
    })?;
    copy.recorder().settle(stop.lsn)
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
