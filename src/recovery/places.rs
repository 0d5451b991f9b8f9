//! The directories that a restore writes to: which they are, that they are empty, and that they last.

use super::restore::RestoreOptions;
use crate::durable::{self, at};
use crate::kind::{Context, Error, Kind, Result};
use crate::repository::backup::BackupSummary;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

/// The data directory and the tablespaces' directories.
#[derive(Debug)]
pub struct Places {
    data_dir: PathBuf,
    /// OID, directory on the server, directory here.
    tablespaces: Vec<(u32, PathBuf, PathBuf)>,
}

impl Places {
    /// Returns where things go, if there is room for them. Writes nothing.
    pub fn check(summary: &BackupSummary, options: &RestoreOptions) -> Result<Self> {
        let known = |oid: &u32| summary.tablespaces.iter().any(|tablespace| tablespace.oid == *oid);
        if let Some(oid) = options.tablespaces.keys().find(|oid| !known(oid)) {
            let oids: Vec<String> = summary.tablespaces.iter().map(|t| t.oid.to_string()).collect();
            return Err(Error::usage(format!("the backup has no tablespace {oid}")).with_hint(
                if oids.is_empty() {
                    "it has none".to_owned()
                } else {
                    format!("it has {}", oids.join(", "))
                },
            ));
        }
        refuse_running(&options.data_dir)?;
        refuse_occupied(&options.data_dir, "data directory")?;
        let mut tablespaces: Vec<(u32, PathBuf, PathBuf)> = Vec::new();
        // Those in pg_tblspc itself (allow_in_place_tablespaces) are directories like others.
        for tablespace in summary.tablespaces.iter().filter(|tablespace| tablespace.path.starts_with('/')) {
            let (oid, original) = (tablespace.oid, PathBuf::from(&tablespace.path));
            let root = options.tablespace_root.as_ref().map(|root| root.join(oid.to_string()));
            let dir = options.tablespaces.get(&oid).cloned().or(root).unwrap_or_else(|| original.clone());
            let dir = durable::absolute(&dir).map_err(at(&dir)).kind(Kind::Usage, "tablespace directory")?;
            if let Some((other, ..)) = tablespaces.iter().find(|(_, _, taken)| *taken == dir) {
                return Err(Error::usage(format!(
                    "tablespaces {other} and {oid} cannot both go to \"{}\"",
                    dir.display()
                )));
            }
            if dir == options.data_dir {
                return Err(Error::usage(format!("tablespace {oid} cannot go to the data directory itself")));
            }
            refuse_occupied(&dir, &format!("directory of tablespace {oid}")).map_err(|error| {
                error.with_hint("give it another one: --tablespace OID=DIR or --tablespace-root DIR")
            })?;
            tablespaces.push((oid, original, dir));
        }
        Ok(Self { data_dir: options.data_dir.clone(), tablespaces })
    }

    /// Returns OID and directory of each tablespace.
    pub fn tablespaces(&self) -> impl Iterator<Item = (u32, &Path)> {
        self.tablespaces.iter().map(|(oid, _, dir)| (*oid, dir.as_path()))
    }

    /// Returns whether a tablespace goes to another directory than it was in.
    pub fn are_moved(&self) -> bool {
        self.tablespaces.iter().any(|(_, original, dir)| original != dir)
    }

    /// Creates the directories, and the links in `pg_tblspc`.
    pub fn create(&self, owner: Option<(u32, u32)>) -> Result<()> {
        create_dir(&self.data_dir, owner)?;
        let links = self.data_dir.join("pg_tblspc");
        create_dir(&links, owner)?;
        for (oid, _, dir) in &self.tablespaces {
            create_dir(dir, owner)?;
            let link = links.join(oid.to_string());
            symlink(dir, &link).map_err(at(&link)).context("create tablespace link")?;
            if let Some((uid, gid)) = owner {
                std::os::unix::fs::lchown(&link, Some(uid), Some(gid))
                    .map_err(at(&link))
                    .context("change owner")?;
            }
        }
        Ok(())
    }

    /// Writes out whatever the filesystems of these directories have in memory (`syncfs(2)`).
    pub fn sync_filesystems(&self) -> Result<()> {
        let mut seen = Vec::new();
        for dir in self.all() {
            let file = File::open(dir).map_err(at(dir)).context("sync filesystem")?;
            let device = file.metadata().map_err(at(dir)).context("sync filesystem")?.dev();
            if !seen.contains(&device) {
                seen.push(device);
                nix::unistd::syncfs(&file)
                    .map_err(|error| at(dir)(error.into()))
                    .context("sync filesystem")?;
            }
        }
        Ok(())
    }

    /// Makes the directories' own names durable.
    pub fn sync_parents(&self) -> Result<()> {
        self.all()
            .filter_map(Path::parent)
            .try_for_each(|dir| durable::sync_dir(dir).context("sync directory"))
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.data_dir.as_path()).chain(self.tablespaces().map(|(_, dir)| dir))
    }
}

/// Creates a directory, and those above it that are missing, for its owner alone.
fn create_dir(dir: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent()
        && !parent.exists()
    {
        std::fs::create_dir_all(parent).map_err(at(parent)).context("create directory")?;
    }
    DirBuilder::new().mode(0o700).create(dir).map_err(at(dir)).context("create directory")?;
    match owner {
        Some((uid, gid)) => chown(dir, Some(uid), Some(gid)).map_err(at(dir)).context("change owner"),
        None => Ok(()),
    }
}

/// Refuses a directory whose server is alive.
fn refuse_running(dir: &Path) -> Result<()> {
    let pid = std::fs::read_to_string(dir.join("postmaster.pid")).ok();
    let Some(pid) = pid.and_then(|text| text.lines().next()?.trim().parse::<i32>().ok()) else {
        return Ok(());
    };
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) {
        Err(nix::errno::Errno::ESRCH) => Ok(()),
        _ => Err(Error::new(Kind::Server, format!("a server runs in \"{}\" (process {pid})", dir.display()))
            .with_hint("restore to another directory; the running cluster is not touched")),
    }
}

/// Refuses a directory in which something is, and a name that is not a directory.
fn refuse_occupied(dir: &Path, what: &str) -> Result<()> {
    let refuse = |why: String| Err(Error::new(Kind::Server, format!("{what} \"{}\" {why}", dir.display())));
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            let names: Vec<String> = entries
                .take(2)
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            match names.as_slice() {
                [] => Ok(()),
                [only] if only == "lost+found" => refuse("is a mount point".into())
                    .map_err(|error| error.with_hint("restore to a directory in it")),
                [first, ..] => refuse(format!("is not empty: \"{first}\" is in it")).map_err(|error| {
                    error.with_hint("nothing was written; move away what is there, or empty it")
                }),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => refuse(format!("cannot be used: {error}")),
    }
}
