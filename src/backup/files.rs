//! Which files of a data directory belong into a backup: the walk and what it leaves out (`basebackup.c`, `sendDir`).
//!
//! Two departures from the server's own base backup: links below the server's directories are followed instead of
//! skipped, and the signal files of a standby stay behind, since a restored copy must not be one by itself.

use super::names::{Fork, RelationFile, is_temporary_relation};
use super::tar_stream::Attributes;
use crate::durable::at;
use crate::kind::{Context, Result};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{FileType, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Directories right below the data directory that are kept without their contents (`excludeDirContents`).
const EMPTIED: [&str; 8] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
    "pg_stat_tmp",
];

/// Files that are left out wherever they are (`excludeFiles`), and the signal files.
const LEFT_OUT: [&str; 10] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
    "recovery.signal",
    "standby.signal",
    ".DS_Store",
];

/// What all names of temporary files and their directories begin with (`PG_TEMP_FILE_PREFIX`).
const TEMPORARY: &str = "pgsql_tmp";
/// Caches of system catalogs, rebuilt at will; copies in the making have a suffix (`RELCACHE_INIT_FILENAME`).
const CATALOG_CACHE: &str = "pg_internal.init";
/// The control file, which is read after all others.
pub const CONTROL_FILE: &str = "global/pg_control";

/// How deep directories may lie, so that links in a circle come to an end.
const DEEPEST: usize = 32;

/// What the walk finds.
#[derive(Debug)]
pub enum Entry {
    /// A directory.
    Directory {
        /// The path in the backup, relative to the data directory; `.` for that itself.
        path: PathBuf,
        /// Mode, time and owner.
        attributes: Attributes,
    },
    /// A regular file. It may be gone by the time somebody opens it.
    File {
        /// The path in the backup, relative to the data directory.
        path: PathBuf,
        /// Where it is.
        on_disk: PathBuf,
        /// What its name says, if it holds pages of a relation.
        relation: Option<RelationFile>,
    },
}

/// A data directory, as far as the walk must know it.
#[derive(Debug)]
pub struct Tree {
    data_dir: PathBuf,
    major: u32,
    /// The directory in a tablespace that is this server's (`TABLESPACE_VERSION_DIRECTORY`).
    version_dir: String,
    /// OID and directory of the tablespaces outside `pg_tblspc`.
    tablespaces: Vec<(u32, PathBuf)>,
    /// Device and inode of those directories: one may lie inside the data directory.
    tablespace_ids: HashSet<(u64, u64)>,
}

/// Where in the tree a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    /// `base`, or this server's directory of a tablespace: databases are below.
    Databases,
    /// The directory of a database.
    Database,
    /// `global`.
    Global,
    Elsewhere,
}

impl Tree {
    /// Reads which tablespaces there are now.
    pub fn open(data_dir: &Path, major: u32, catalog_version: u32) -> Result<Self> {
        let mut tablespaces = Vec::new();
        let dir = data_dir.join("pg_tblspc");
        for (name, kind) in list(&dir).context("list tablespaces")? {
            let oid = name.to_str().and_then(|name| name.parse::<u32>().ok());
            if let (Some(oid), true) = (oid, kind.is_symlink()) {
                let link = dir.join(name);
                let target = std::fs::read_link(&link).map_err(at(&link)).context("read tablespace link")?;
                tablespaces.push((oid, target));
            }
        }
        let ids =
            tablespaces.iter().filter_map(|(_, dir)| std::fs::metadata(dir).ok()).map(|m| (m.dev(), m.ino()));
        Ok(Self {
            data_dir: data_dir.to_owned(),
            major,
            version_dir: format!("PG_{major}_{catalog_version}"),
            tablespace_ids: ids.collect(),
            tablespaces,
        })
    }

    /// Returns the OIDs of the tablespaces outside `pg_tblspc`.
    pub fn tablespaces(&self) -> impl Iterator<Item = u32> {
        self.tablespaces.iter().map(|(oid, _)| *oid)
    }

    /// Calls `visit` with everything that belongs into a backup but the control file, directories before what is in
    /// them, in the order of names.
    pub fn walk(&self, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let root =
            std::fs::metadata(&self.data_dir).map_err(at(&self.data_dir)).context("read data directory")?;
        visit(directory(PathBuf::from("."), &root))?;
        self.walk_dir(Path::new(""), &self.data_dir, Place::Root, 0, visit)
    }

    /// Returns about how many bytes a walk will meet.
    pub fn estimate(&self) -> Result<u64> {
        let mut bytes = 0;
        self.walk(&mut |entry| {
            if let Entry::File { on_disk, .. } = entry {
                bytes += std::fs::metadata(on_disk).map_or(0, |meta| meta.len());
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    fn walk_dir(
        &self,
        path: &Path,
        disk: &Path,
        place: Place,
        depth: usize,
        visit: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        if depth > DEEPEST {
            tracing::warn!("left out \"{}\": directories lie too deep (links in a circle?)", disk.display());
            return Ok(());
        }
        let names = match list(disk) {
            Ok(names) => names,
            // Dropped meanwhile: replay drops it again.
            Err(error) if error.kind() == io::ErrorKind::NotFound && place != Place::Root => return Ok(()),
            Err(error) => return Err(error).context("list directory"),
        };
        let unlogged = if place == Place::Database { unlogged_relations(&names) } else { HashSet::new() };
        for (name, kind) in names {
            if is_left_out(&name) {
                continue;
            }
            let (path, disk) = (path.join(&name), disk.join(&name));
            match resolve(&disk, kind)? {
                Resolved::Nothing => {}
                Resolved::File => {
                    if path == Path::new(CONTROL_FILE) {
                        continue;
                    }
                    let relation = match place {
                        Place::Database | Place::Global => RelationFile::parse(&name),
                        _ => None,
                    };
                    if place == Place::Database
                        && (is_temporary_relation(&name)
                            || relation.is_some_and(|r| r.fork != Fork::Init && unlogged.contains(&r.number)))
                    {
                        continue;
                    }
                    visit(Entry::File { path, on_disk: disk, relation })?;
                }
                Resolved::Directory(meta) => {
                    visit(directory(path.clone(), &meta))?;
                    self.descend(&path, &disk, place, kind.is_symlink(), &meta, depth, visit)?;
                }
            }
        }
        Ok(())
    }

    /// Goes into a directory that was visited, unless its contents stay out.
    #[allow(clippy::too_many_arguments)]
    fn descend(
        &self,
        path: &Path,
        disk: &Path,
        place: Place,
        linked: bool,
        meta: &Metadata,
        depth: usize,
        visit: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if place == Place::Root && EMPTIED.contains(&name) {
            if name == "pg_wal" {
                visit(directory(path.join("archive_status"), meta))?;
                if self.major >= 17 {
                    visit(directory(path.join("summaries"), meta))?;
                }
            }
            return Ok(());
        }
        if place == Place::Root && name == "pg_tblspc" {
            return self.walk_tablespaces(path, disk, depth, visit);
        }
        if self.tablespace_ids.contains(&(meta.dev(), meta.ino())) {
            return Ok(()); // its contents come under pg_tblspc
        }
        if linked && place == Place::Root && !(name.starts_with("pg_") || name == "base" || name == "global")
        {
            tracing::warn!(
                "the contents of \"{}\", a link to elsewhere, are not in the backup",
                disk.display()
            );
            return Ok(());
        }
        let below = match (place, name) {
            (Place::Root, "base") => Place::Databases,
            (Place::Root, "global") => Place::Global,
            (Place::Databases, _) => Place::Database,
            _ => Place::Elsewhere,
        };
        self.walk_dir(path, disk, below, depth + 1, visit)
    }

    /// Walks the tablespaces, as if they were directories in `pg_tblspc`. Each may hold the directories of several
    /// servers (after `pg_upgrade`); only this server's belongs to the backup.
    fn walk_tablespaces(
        &self,
        path: &Path,
        disk: &Path,
        depth: usize,
        visit: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        for (name, kind) in list(disk).context("list tablespaces")? {
            let Some(oid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                tracing::warn!("left out \"{}\": not a tablespace", disk.join(&name).display());
                continue;
            };
            // One that was created meanwhile is not in the server's tablespace map: replay creates it.
            let known = self.tablespaces.iter().find(|(known, _)| *known == oid);
            let source = match known {
                Some((_, target)) => target.clone(),
                None if kind.is_dir() => disk.join(&name), // in place (allow_in_place_tablespaces)
                None => continue,
            };
            let Ok(meta) = std::fs::metadata(&source) else { continue };
            let path = path.join(&name);
            visit(directory(path.clone(), &meta))?;
            let (path, source) = (path.join(&self.version_dir), source.join(&self.version_dir));
            let Ok(meta) = std::fs::metadata(&source) else { continue };
            visit(directory(path.clone(), &meta))?;
            self.walk_dir(&path, &source, Place::Databases, depth + 2, visit)?;
        }
        Ok(())
    }
}

enum Resolved {
    /// Gone, or nothing that belongs into a backup.
    Nothing,
    File,
    Directory(Metadata),
}

/// Returns what the name leads to. Files are not looked at: whoever opens one learns the rest.
fn resolve(disk: &Path, kind: FileType) -> Result<Resolved> {
    if kind.is_file() {
        return Ok(Resolved::File);
    }
    let meta = match std::fs::metadata(disk) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if kind.is_symlink() {
                tracing::warn!("left out \"{}\": a link that leads nowhere", disk.display());
            }
            return Ok(Resolved::Nothing);
        }
        Err(error) => return Err(at(disk)(error)).context("read data directory"),
    };
    if meta.is_file() {
        Ok(Resolved::File)
    } else if meta.is_dir() {
        Ok(Resolved::Directory(meta))
    } else {
        tracing::warn!("left out \"{}\": neither a file nor a directory", disk.display());
        Ok(Resolved::Nothing)
    }
}

fn directory(path: PathBuf, meta: &Metadata) -> Entry {
    Entry::Directory { path, attributes: Attributes::of(meta) }
}

/// Returns the names in a directory with what they are, sorted.
fn list(dir: &Path) -> io::Result<Vec<(OsString, FileType)>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        match entry.file_type() {
            Ok(kind) => names.push((entry.file_name(), kind)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(&entry.path())(error)),
        }
    }
    names.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

fn is_left_out(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    LEFT_OUT.contains(&name.as_ref()) || name.starts_with(TEMPORARY) || name.starts_with(CATALOG_CACHE)
}

/// Returns the relations of a database's directory that have an init fork: of these only that fork is kept, because
/// recovery makes the others from it (`ResetUnloggedRelations`).
fn unlogged_relations(names: &[(OsString, FileType)]) -> HashSet<u32> {
    let relations = names.iter().filter_map(|(name, _)| RelationFile::parse(name));
    relations.filter(|relation| relation.fork == Fork::Init).map(|relation| relation.number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    fn paths(tree: &Tree) -> Vec<String> {
        let mut found = Vec::new();
        tree.walk(&mut |entry| {
            found.push(match entry {
                Entry::Directory { path, .. } => format!("{}/", path.display()),
                Entry::File { path, relation, .. } => {
                    format!("{}{}", path.display(), if relation.is_some() { " *" } else { "" })
                }
            });
            Ok(())
        })
        .unwrap();
        found
    }

    fn touch(dir: &Path, names: &[&str]) {
        for name in names {
            create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            write(dir.join(name), "x").unwrap();
        }
    }

    #[test]
    fn the_walk_keeps_what_belongs_into_a_backup() {
        let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (data, other) = (data.path(), other.path());
        touch(
            data,
            &[
                "PG_VERSION",
                "postmaster.pid",
                "standby.signal",
                "backup_label",
                "base/5/1259",
                "base/5/1259.1",
                "base/5/1259_vm",
                "base/5/16400",
                "base/5/16400.1",
                "base/5/16400_fsm",
                "base/5/16400_init",
                "base/5/t3_16401",
                "base/5/t3_16401_fsm.1",
                "base/5/pg_internal.init.123",
                "base/5/pg_filenode.map",
                "base/pgsql_tmp/x",
                "global/1260",
                "global/pg_control",
                "pg_wal/000000010000000000000001",
                "pg_wal/archive_status/x.ready",
                "pg_replslot/s/state",
                "pg_xact/0000",
                "postgresql.auto.conf.tmp",
                "log/a.log",
            ],
        );
        touch(other, &["PG_15_7/5/16500", "PG_15_7/5/16500_init", "PG_14_6/5/1", "loose"]);
        create_dir_all(data.join("pg_tblspc")).unwrap();
        symlink(other, data.join("pg_tblspc/16384")).unwrap();
        symlink(data.join("PG_VERSION"), data.join("linked")).unwrap();
        symlink("/nowhere/at/all", data.join("dangling")).unwrap();
        symlink(other, data.join("outside")).unwrap();
        let tree = Tree::open(data, 15, 7).unwrap();
        assert_eq!(
            paths(&tree),
            [
                "./",
                "PG_VERSION",
                "base/",
                "base/5/",
                "base/5/1259 *",
                "base/5/1259.1 *",
                "base/5/1259_vm *",
                "base/5/16400_init *",
                "base/5/pg_filenode.map",
                "global/",
                "global/1260 *",
                "linked",
                "log/",
                "log/a.log",
                "outside/",
                "pg_replslot/",
                "pg_tblspc/",
                "pg_tblspc/16384/",
                "pg_tblspc/16384/PG_15_7/",
                "pg_tblspc/16384/PG_15_7/5/",
                "pg_tblspc/16384/PG_15_7/5/16500_init *",
                "pg_wal/",
                "pg_wal/archive_status/",
                "pg_xact/",
                "pg_xact/0000",
            ]
        );
        assert_eq!(tree.tablespaces().collect::<Vec<_>>(), [16384]);
        assert_eq!(tree.estimate().unwrap(), 11);
    }

    #[test]
    fn a_tablespace_inside_the_data_directory_is_stored_once() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path();
        touch(data, &["ts/PG_18_7/5/1", "pg_wal/x"]);
        create_dir_all(data.join("pg_tblspc")).unwrap();
        symlink(data.join("ts"), data.join("pg_tblspc/9")).unwrap();
        let tree = Tree::open(data, 18, 7).unwrap();
        let found = paths(&tree);
        assert_eq!(found.iter().filter(|path| path.contains("5/1")).count(), 1, "{found:?}");
        assert!(found.contains(&"ts/".to_owned()) && found.contains(&"pg_wal/summaries/".to_owned()));
    }

    #[test]
    fn links_in_a_circle_come_to_an_end() {
        let data = tempfile::tempdir().unwrap();
        create_dir_all(data.path().join("base")).unwrap();
        create_dir_all(data.path().join("pg_tblspc")).unwrap();
        symlink("..", data.path().join("base/up")).unwrap();
        let tree = Tree::open(data.path(), 15, 7).unwrap();
        assert!(paths(&tree).len() < 1000);
    }
}
