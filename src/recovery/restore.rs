//! Putting a backup's files into place.
//!
//! The order is what keeps an interrupted restore from passing for a cluster: nothing is written before every
//! directory was found empty, or fit to be gone over; and `global/pg_control`, without which no server starts, is taken
//! away first and written when all else is durable. `layout` is the manifest in little memory, `places` the directories,
//! `delta` what they hold already, `pieces` the reading of objects, `restored_config` what configuration becomes in a copy.

use super::delta::{self, Differences};
use super::layout::{FileRecord, Layout, LayoutBuilder};
use super::pieces::{Pieces, with_copies};
use super::places::Places;
use super::restored_config;
use crate::codec::Opener;
use crate::durable::{self, at};
use crate::kind::{Context, Error, Result};
use crate::parallel::each_in_parallel;
use crate::postgres::{Tablespace, TablespaceMap};
use crate::progress::Progress;
use crate::repository::backup::{BACKUP_FORMAT, BackupSummary, ManifestLine, StoredObject};
use bytes::{Buf, Bytes};
use std::collections::BTreeMap;
use std::fs::{File, FileTimes, Metadata, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The largest object other than a piece, before compression: the manifest of some ten million files.
const LARGEST_CONFIG: u64 = 64 << 20;

/// Where and how to restore.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// The directory that becomes the data directory. It is created; if it exists, it must be empty, or hold a restore
    /// that broke off.
    pub data_dir: PathBuf,
    /// Whether it may be a data directory of the same cluster, over which only what differs is written.
    pub delta: bool,
    /// Where the WAL goes, with a link in its place.
    pub wal_dir: Option<PathBuf>,
    /// How many pieces are fetched and written at once.
    pub parallel: usize,
    /// Other directories for tablespaces, by OID.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// Where tablespaces go that have no directory of their own here: to `<root>/<oid>`. Without it, to where they
    /// were.
    pub tablespace_root: Option<PathBuf>,
    /// User and group of everything that is written; only root can give files away.
    pub owner: Option<(u32, u32)>,
}

/// What a restore did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Restored {
    /// Whether there was something in the directory already.
    pub over_existing: bool,
    /// How many files were written.
    pub files: usize,
    /// How many bytes of the backup were written.
    pub bytes: u64,
    /// How many files and directories were removed.
    pub removed: usize,
}

/// Where the objects of a backup come from.
pub trait Source: Sync {
    /// Returns the bytes of the object as copy number `copy` has them: 0 is the preferred copy, and further ones are
    /// asked for when those before were missing, could not be fetched, or turned out corrupt. None means that there
    /// is no copy of that number. Fails with [`crate::kind::Kind::Repository`] if this copy cannot be had. Called
    /// from several threads at once; what is returned is checked by the caller.
    fn get(&self, object: &StoredObject, copy: usize) -> Result<Option<Bytes>>;

    /// Returns what to call that copy in messages ("repository \"primary\"").
    fn name(&self, copy: usize) -> String {
        format!("copy {}", copy + 1)
    }
}

/// Restores all files of a backup, except those that say how to recover. Fails with
/// [`crate::kind::Kind::Server`] where a directory is in use, with [`crate::kind::Kind::Corrupt`] where no copy of an
/// object is what it was.
pub fn restore(
    summary: &BackupSummary,
    source: &dyn Source,
    opener: &Opener,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<()> {
    restore_then(summary, source, opener, options, progress, &|| Ok(())).map(|_| ())
}

/// Restores like [`restore`], and calls `then` before the directory becomes one that a server starts in: what is written
/// there is written before `global/pg_control`.
pub fn restore_then(
    summary: &BackupSummary,
    source: &dyn Source,
    opener: &Opener,
    options: &RestoreOptions,
    progress: &Progress,
    then: &dyn Fn() -> Result<()>,
) -> Result<Restored> {
    if summary.format > BACKUP_FORMAT {
        return Err(Error::corrupt(format!("backup {} has format {}", summary.id, summary.format))
            .with_hint(format!(
                "this version of Walden knows formats up to {BACKUP_FORMAT}: use a later one"
            )));
    }
    progress.set_total(summary.size);
    progress.set_phase("read the manifest");
    let places = Places::check(summary, options)?;
    let layout = read_manifest(summary, source, opener)?;
    let restore = Restore { summary, source, opener, options, progress, places, layout };
    restore.run(then)
}

fn read_manifest(summary: &BackupSummary, source: &dyn Source, opener: &Opener) -> Result<Layout> {
    let object = &summary.manifest;
    with_copies(source, object, |bytes| parse_manifest(summary, bytes, opener))
}

/// Returns the layout that the stored bytes of a backup's manifest tell. Fails with [`crate::kind::Kind::Corrupt`] where
/// they are not consistent.
pub fn parse_manifest(summary: &BackupSummary, stored: Bytes, opener: &Opener) -> Result<Layout> {
    let opened = opener.open(&summary.manifest.name, stored.reader())?;
    let mut builder = LayoutBuilder::new(summary);
    for line in BufReader::with_capacity(256 * 1024, opened).lines() {
        let line = line.map_err(|error| crate::codec::reading_failed(&error))?;
        let line: ManifestLine = serde_json::from_str(&line)
            .map_err(|error| Error::corrupt(format!("line of the manifest: {error}")))?;
        builder.add(&line)?;
    }
    builder.finish()
}

/// A restore under way.
struct Restore<'a> {
    summary: &'a BackupSummary,
    source: &'a dyn Source,
    opener: &'a Opener,
    options: &'a RestoreOptions,
    progress: &'a Progress,
    places: Places,
    layout: Layout,
}

impl Restore<'_> {
    fn run(&self, then: &dyn Fn() -> Result<()>) -> Result<Restored> {
        let data_dir = &self.options.data_dir;
        let differences = if self.places.are_reused() {
            self.progress.set_phase("compare files");
            let (links, replaced) = (self.places.present_links(), self.places.missing_links());
            let workers = self.options.parallel.clamp(1, 64);
            let pieces = self.summary.pieces.len();
            Some(delta::compare(&self.layout, data_dir, &links, &replaced, pieces, workers, self.progress)?)
        } else {
            None
        };
        self.progress.set_phase("restore files");
        if let Some(differences) = &differences {
            differences.warn(data_dir);
        }
        self.places.begin(self.options.owner, &self.summary.id)?;
        if let Some(differences) = &differences {
            delta::clear(&self.layout, data_dir, differences)?;
        }
        self.places.create(self.options.owner)?;
        self.create_directories()?;
        self.create_empty_files()?;
        let pieces = Pieces {
            summary: self.summary,
            source: self.source,
            opener: self.opener,
            layout: &self.layout,
            data_dir,
            progress: self.progress,
            wanted: differences.as_ref().map(|differences| differences.wanted.as_slice()),
        };
        let control_file = pieces.restore_all(self.options.parallel)?;
        self.progress.set_phase("make files durable");
        let written = self.rewrite_files()?;
        self.sync_files(&written, differences.as_ref())?;
        self.sync_directories()?;
        then()?;
        self.write_control_file(&control_file)?;
        self.places.finish()?;
        Ok(self.restored(differences.as_ref()))
    }

    fn restored(&self, differences: Option<&Differences>) -> Restored {
        match differences {
            None => Restored {
                over_existing: false,
                files: self.layout.file_count(),
                bytes: self.summary.size,
                removed: 0,
            },
            Some(differences) => Restored {
                over_existing: true,
                files: differences.changed.iter().filter(|changed| **changed).count(),
                bytes: differences.bytes(&self.layout),
                removed: differences.strangers.len() + differences.wal.len(),
            },
        }
    }

    /// Creates the directories, whose links into tablespaces are there already.
    fn create_directories(&self) -> Result<()> {
        for directory in self.layout.directories() {
            let path = self.options.data_dir.join(directory.path);
            match std::fs::create_dir(&path) {
                Ok(()) => {}
                // The data directory, tablespaces.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
                Err(error) => return Err(at(&path)(error)).context("create directory"),
            }
        }
        Ok(())
    }

    /// Creates the files that no piece has anything of.
    fn create_empty_files(&self) -> Result<()> {
        for file in self.layout.files().filter(|file| file.size == 0) {
            let path = self.options.data_dir.join(file.path);
            match File::create_new(&path) {
                Err(error)
                    if error.kind() == std::io::ErrorKind::AlreadyExists && self.places.are_reused() => {}
                created => drop(created.map_err(at(&path)).context("create file")?),
            }
        }
        Ok(())
    }

    /// Writes the files whose content in the copy differs from that in the backup, and returns their paths.
    fn rewrite_files(&self) -> Result<Vec<PathBuf>> {
        let mut written = restored_config::place(self.summary, self.options, self.read_config()?)?;
        if self.places.are_moved() {
            let entries = self.places.tablespaces().map(|(oid, dir)| {
                let path =
                    dir.to_str().ok_or_else(|| Error::usage("tablespace directories must be UTF-8"))?;
                Ok(Tablespace { oid, path: path.to_owned() })
            });
            let map = TablespaceMap { entries: entries.collect::<Result<_>>()? };
            let path = self.options.data_dir.join("tablespace_map");
            std::fs::write(&path, map.to_text()).map_err(at(&path)).context("write tablespace map")?;
            written.push(path);
        }
        Ok(written)
    }

    /// Returns the configuration files from outside the data directory, by their paths.
    fn read_config(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let Some(object) = &self.summary.config else { return Ok(BTreeMap::new()) };
        with_copies(self.source, object, |bytes| {
            restored_config::unpack(&self.opener.open_whole(&object.name, bytes.reader(), LARGEST_CONFIG)?)
        })
    }

    /// Gives every file its mode, owner and time, and makes it durable.
    fn sync_files(&self, written: &[PathBuf], differences: Option<&Differences>) -> Result<()> {
        // Writes out everything at once, also what a restore that broke off has left; what is left for each file is
        // little.
        self.places.sync_filesystems()?;
        let workers = self.options.parallel.clamp(1, 64);
        each_in_parallel(workers, self.layout.file_count(), |at| {
            let changed = differences.is_none_or(|differences| differences.changed[at]);
            self.layout.file(at).map_or(Ok(()), |record| self.sync_file(&record, changed))
        })?;
        for path in written {
            let file = File::open(path).map_err(at(path)).context("open file")?;
            self.give(&file, path)?;
            file.sync_all().map_err(at(path)).context("sync file")?;
        }
        Ok(())
    }

    fn sync_file(&self, record: &FileRecord<'_>, changed: bool) -> Result<()> {
        let path = self.options.data_dir.join(record.path);
        if !changed && self.has_attributes(&path, record) {
            return Ok(());
        }
        let apply = || {
            let file = File::open(&path)?;
            file.set_permissions(Permissions::from_mode(record.mode))?;
            file.set_times(FileTimes::new().set_modified(time(record.mtime)))?;
            Ok(file)
        };
        let file = apply().map_err(at(&path)).context("restore file")?;
        self.give(&file, &path)?;
        file.sync_all().map_err(at(&path)).context("sync file")
    }

    fn has_attributes(&self, path: &Path, record: &FileRecord<'_>) -> bool {
        let owner =
            |meta: &Metadata| self.options.owner.is_none_or(|owner| owner == (meta.uid(), meta.gid()));
        std::fs::symlink_metadata(path).is_ok_and(|meta| {
            meta.mode() & 0o7777 == record.mode && meta.mtime() == record.mtime && owner(&meta)
        })
    }

    fn sync_directories(&self) -> Result<()> {
        for directory in self.layout.directories() {
            let path = self.options.data_dir.join(directory.path);
            let is_root = directory.path == Path::new(".");
            // The server refuses a data directory with other rights than these.
            let mode = if is_root { directory.mode & 0o750 | 0o700 } else { directory.mode };
            let file = File::open(&path).map_err(at(&path)).context("open directory")?;
            file.set_permissions(Permissions::from_mode(mode))
                .map_err(at(&path))
                .context("restore directory")?;
            self.give(&file, &path)?;
            file.sync_all().map_err(at(&path)).context("sync directory")?;
        }
        self.places.sync_parents()
    }

    fn give(&self, file: &File, path: &Path) -> Result<()> {
        match self.options.owner {
            Some((uid, gid)) => fchown(file, Some(uid), Some(gid)).map_err(at(path)).context("change owner"),
            None => Ok(()),
        }
    }

    fn write_control_file(&self, content: &[u8]) -> Result<()> {
        let path = self.options.data_dir.join(super::layout::CONTROL_FILE);
        let (file, temp) = durable::temp_beside(&path, 0o600).context("write control file")?;
        std::io::Write::write_all(&mut &file, content).map_err(at(&path)).context("write control file")?;
        if let Some(record) = self.layout.control_file() {
            let permissions = Permissions::from_mode(record.mode);
            file.set_permissions(permissions).map_err(at(&path)).context("write control file")?;
        }
        self.give(&file, &path)?;
        file.sync_all().map_err(at(&path)).context("write control file")?;
        durable::publish_over(temp, &path).context("write control file")
    }
}

fn time(seconds: i64) -> SystemTime {
    let offset = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(offset)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(offset)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}
