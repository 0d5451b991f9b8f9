//! The directories that a restore writes to: which they are, that they may be written to, and that they last.

use super::delta::remove;
use super::restore::RestoreOptions;
use crate::durable::{self, at};
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::ControlFile;
use crate::repository::backup::BackupSummary;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

/// A file that is in a directory while it is being restored, and stays there when that breaks off.
pub const MARKER: &str = "WALDEN_RESTORE_INCOMPLETE";

/// The data directory, the tablespaces' directories, and that of the WAL.
#[derive(Debug)]
pub struct Places {
    data_dir: PathBuf,
    tablespaces: Vec<TablespacePlace>,
    /// Where `pg_wal` is, if that is a link.
    wal_dir: Option<PathBuf>,
    reused: bool,
}

#[derive(Debug)]
struct TablespacePlace {
    oid: u32,
    /// Its directory on the server.
    original: PathBuf,
    /// Its directory here.
    dir: PathBuf,
}

impl Places {
    /// Returns where things go, if they may go there. Writes nothing.
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
        let data_dir = options.data_dir.clone();
        refuse_running(&data_dir)?;
        let reused = may_be_reused(summary, options)?;
        if !reused {
            refuse_occupied(&data_dir, "data directory").map_err(|error| {
                if error.hint().is_none() { hint_for_occupied(error, &data_dir) } else { error }
            })?;
        }
        let mut places = Self { data_dir, tablespaces: Vec::new(), wal_dir: None, reused };
        // Those in pg_tblspc itself (allow_in_place_tablespaces) are directories like others.
        for tablespace in summary.tablespaces.iter().filter(|tablespace| tablespace.path.starts_with('/')) {
            let place = places.tablespace(summary, options, tablespace.oid, Path::new(&tablespace.path))?;
            places.tablespaces.push(place);
        }
        if let Some(dir) = &options.wal_dir {
            let dir = durable::absolute(dir).map_err(at(dir)).kind(Kind::Usage, "--wal-dir")?;
            if dir.starts_with(&places.data_dir) || places.tablespaces.iter().any(|place| place.dir == dir) {
                return Err(Error::usage(format!(
                    "\"{}\" cannot be the directory of the WAL",
                    dir.display()
                ))
                .with_hint("it lies outside the data directory and holds nothing else"));
            }
            if !places.leads_to("pg_wal", &dir) {
                refuse_occupied(&dir, "directory of the WAL")
                    .map_err(|error| error.with_hint("nothing was written; give an empty or missing one"))?;
            }
            places.wal_dir = Some(dir);
        }
        Ok(places)
    }

    fn tablespace(
        &self,
        summary: &BackupSummary,
        options: &RestoreOptions,
        oid: u32,
        original: &Path,
    ) -> Result<TablespacePlace> {
        let root = options.tablespace_root.as_ref().map(|root| root.join(oid.to_string()));
        let chosen = options.tablespaces.get(&oid).cloned().or(root);
        let dir = chosen.as_deref().unwrap_or(original);
        let dir = durable::absolute(dir).map_err(at(dir)).kind(Kind::Usage, "tablespace directory")?;
        if let Some(other) = self.tablespaces.iter().find(|other| other.dir == dir) {
            return Err(Error::usage(format!(
                "tablespaces {} and {oid} cannot both go to \"{}\"",
                other.oid,
                dir.display()
            )));
        }
        if dir == self.data_dir {
            return Err(Error::usage(format!("tablespace {oid} cannot go to the data directory itself")));
        }
        // A copy of a data directory has links to the original's tablespaces.
        let may_be_original = chosen.is_none() && self.data_dir != Path::new(&summary.data_dir);
        if may_be_original || !self.leads_to(&format!("pg_tblspc/{oid}"), &dir) {
            refuse_occupied(&dir, &format!("directory of tablespace {oid}")).map_err(|error| {
                error.with_hint("give it another one: --tablespace OID=DIR or --tablespace-root DIR")
            })?;
        }
        Ok(TablespacePlace { oid, original: original.to_path_buf(), dir })
    }

    /// Returns whether a directory that is reused has a link of that name to `dir`.
    fn leads_to(&self, link: &str, dir: &Path) -> bool {
        self.reused && std::fs::read_link(self.data_dir.join(link)).is_ok_and(|to| to == dir)
    }

    /// Returns whether the data directory holds something that a restore begins with.
    pub fn are_reused(&self) -> bool {
        self.reused
    }

    /// Returns OID and directory of each tablespace.
    pub fn tablespaces(&self) -> impl Iterator<Item = (u32, &Path)> {
        self.tablespaces.iter().map(|place| (place.oid, place.dir.as_path()))
    }

    /// Returns whether a tablespace goes to another directory than it was in.
    pub fn are_moved(&self) -> bool {
        self.tablespaces.iter().any(|place| place.original != place.dir)
    }

    /// Returns the symbolic links that lead from the data directory to the other directories, with where they lead.
    fn links(&self) -> Vec<(PathBuf, &Path)> {
        let tablespaces = self
            .tablespaces
            .iter()
            .map(|place| (self.data_dir.join("pg_tblspc").join(place.oid.to_string()), place.dir.as_path()));
        let wal = self.wal_dir.iter().map(|dir| (self.data_dir.join("pg_wal"), dir.as_path()));
        tablespaces.chain(wal).collect()
    }

    /// Returns the links that are not there yet, or lead elsewhere.
    pub fn missing_links(&self) -> Vec<PathBuf> {
        let present = self.present_links();
        self.links().into_iter().map(|(link, _)| link).filter(|link| !present.contains(link)).collect()
    }

    /// Returns those links that are there already and lead to where they shall.
    pub fn present_links(&self) -> Vec<PathBuf> {
        let links = self.links().into_iter();
        links
            .filter(|(link, dir)| std::fs::read_link(link).is_ok_and(|to| to == *dir))
            .map(|(link, _)| link)
            .collect()
    }

    /// Makes sure that no server starts here until the end: takes `global/pg_control` away, and leaves the marker.
    pub fn begin(&self, owner: Option<(u32, u32)>, backup: &str) -> Result<()> {
        create_dir(&self.data_dir, owner)?;
        let control_file = self.data_dir.join(super::layout::CONTROL_FILE);
        remove(&control_file)?;
        if let Some(dir) = control_file.parent().filter(|dir| dir.is_dir()) {
            durable::sync_dir(dir).context("sync directory")?;
        }
        let marker = self.data_dir.join(MARKER);
        let text = format!(
            "A restore of backup {backup} into this directory is under way, or broke off.\n\
             No server starts here: global/pg_control comes last. The same walden recover command goes on.\n"
        );
        std::fs::write(&marker, text).map_err(at(&marker)).context("write marker")?;
        durable::sync_dir(&self.data_dir).context("sync directory")?;
        match owner {
            Some((uid, gid)) => {
                chown(&marker, Some(uid), Some(gid)).map_err(at(&marker)).context("change owner")
            }
            None => Ok(()),
        }
    }

    /// Takes the marker away.
    pub fn finish(&self) -> Result<()> {
        remove(&self.data_dir.join(MARKER))?;
        durable::sync_dir(&self.data_dir).context("sync directory")
    }

    /// Creates the directories, and the links to them.
    pub fn create(&self, owner: Option<(u32, u32)>) -> Result<()> {
        create_dir(&self.data_dir.join("pg_tblspc"), owner)?;
        let present = self.present_links();
        for (link, dir) in self.links() {
            create_dir(dir, owner)?;
            if present.contains(&link) {
                continue;
            }
            remove(&link)?;
            symlink(dir, &link).map_err(at(&link)).context("create link")?;
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
        let others = self.tablespaces().map(|(_, dir)| dir).chain(self.wal_dir.as_deref());
        std::iter::once(self.data_dir.as_path()).chain(others)
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

/// Returns whether a restore may begin with what is in the data directory: a restore that broke off there, or, with
/// `--delta`, a data directory of the same cluster.
fn may_be_reused(summary: &BackupSummary, options: &RestoreOptions) -> Result<bool> {
    let dir = &options.data_dir;
    let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
    let has_control_file = has(super::layout::CONTROL_FILE);
    if has(MARKER) && !has_control_file {
        tracing::warn!("a restore into \"{}\" broke off; going on with what it left", dir.display());
        return Ok(true);
    }
    let empty = std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !options.delta || empty {
        return Ok(false);
    }
    if has_control_file {
        let bytes = std::fs::read(dir.join(super::layout::CONTROL_FILE)).unwrap_or_default();
        // One that is torn says nothing; the server would not start by it either.
        if let Ok(control) = ControlFile::parse(&bytes)
            && control.system_identifier != summary.system_identifier
        {
            return Err(Error::new(
                Kind::Server,
                format!(
                    "\"{}\" holds another cluster, with system identifier {}, expected {}",
                    dir.display(),
                    control.system_identifier,
                    summary.system_identifier
                ),
            )
            .with_hint("nothing was written; restore to another directory"));
        }
    } else if !has("PG_VERSION") {
        return Err(Error::new(Kind::Server, format!("\"{}\" is not a data directory", dir.display()))
            .with_hint("--delta goes over a data directory or into an empty one; nothing was written"));
    }
    Ok(true)
}

/// Returns the process of the server that runs in a data directory, if there is one that is alive, or whose children
/// are. What the control file says is no sign: after a crash it says "in production".
pub fn running_server(dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(dir.join("postmaster.pid")).ok()?;
    // A standalone backend writes its number with a minus (miscinit.c).
    let pid = text.lines().next()?.trim().trim_start_matches('-').parse::<i32>().ok()?;
    // One that has ended and that nobody waited for is still there by name.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let ended = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    let alive = !matches!(
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None),
        Err(nix::errno::Errno::ESRCH)
    );
    // LOCK_FILE_LINE_SHMEM_KEY (pidfile.h): key and id of the shared memory, which children hold until they end.
    let memory = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
    (alive && !ended || memory.is_some_and(is_attached)).then_some(pid)
}

/// Returns whether a process is attached to the System V shared memory of that id.
fn is_attached(id: u32) -> bool {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1).and_then(|field| field.parse().ok()) == Some(id)
            && fields.get(6).is_some_and(|attached| *attached != "0")
    })
}

/// Refuses a directory whose server is alive.
fn refuse_running(dir: &Path) -> Result<()> {
    match running_server(dir) {
        None => Ok(()),
        Some(pid) => {
            Err(Error::new(Kind::Server, format!("a server runs in \"{}\" (process {pid})", dir.display()))
                .with_hint("stop it, or restore to another directory; the running cluster is not touched"))
        }
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
                [first, ..] => refuse(format!("is not empty: \"{first}\" is in it")),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => refuse(format!("cannot be used: {error}"))
            .map_err(|error| error.with_hint("nothing was written; name one that this user may write to")),
    }
}

fn hint_for_occupied(error: Error, dir: &Path) -> Error {
    error.with_hint(if dir.join("PG_VERSION").exists() {
        "nothing was written; --delta restores over it, writes what differs and removes what does not belong"
    } else {
        "nothing was written; move away what is there, or empty it"
    })
}
