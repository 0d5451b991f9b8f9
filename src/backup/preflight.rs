//! What must be true before a backup begins: the right server, a version that is known, rights, a directory that can
//! be read, WAL that is archived. And what must still be true when it has ended.

use super::BackupOptions;
use super::archiving::{self, LastArchived};
use super::files::{CONTROL_FILE, Tree};
use crate::durable::at;
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::{BackupLabel, ControlFile, ParseError};
use crate::server::Server;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The major versions that Walden knows.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 14..=18;

/// How often a control file is read whose checksum is wrong, and the pause between: the server may be writing it
/// (`get_controlfile`, `sendFile` of `pg_control`).
const CONTROL_FILE_ATTEMPTS: u32 = 10;
const CONTROL_FILE_PAUSE: Duration = Duration::from_millis(10);

/// What was found out beforehand.
#[derive(Debug, Clone)]
pub struct Preflight {
    /// The data directory, without links.
    pub data_dir: PathBuf,
    /// The control file.
    pub control: ControlFile,
    /// The server's version as it calls itself.
    pub server_version: String,
    /// The server's major version.
    pub major_version: u32,
    /// Whether the server is a standby.
    pub from_standby: bool,
    /// `data_directory`, `config_file`, `hba_file` and `ident_file`, as far as the role may see them.
    pub settings: BTreeMap<String, String>,
    /// About how many bytes of files there are.
    pub size: u64,
    /// What the server archived last, if that was under its present configuration.
    pub last_archived: Option<LastArchived>,
}

impl Preflight {
    /// Returns the data directory as the walk sees it, with the tablespaces that there are now.
    pub(super) fn tree(&self) -> Result<Tree> {
        Tree::open(&self.data_dir, self.major_version, self.control.catalog_version)
    }

    /// Checks, when the backup has ended on the server, that it is what it was when it began.
    pub(super) fn check_after(&self, label: &BackupLabel, server: &mut Server) -> Result<()> {
        if !self.from_standby {
            return Ok(());
        }
        if !label.from_standby || !server.is_in_recovery()? {
            return Err(promoted());
        }
        let now = read_control_file(&self.data_dir)?.1.min_recovery_point_timeline;
        match now {
            Some(now) if now != label.timeline => Err(Error::new(
                Kind::Server,
                format!(
                    "the standby followed its primary from timeline {} to {} during the backup",
                    label.timeline.0, now.0
                ),
            )
            .with_hint("run base-backup again")),
            _ => Ok(()),
        }
    }
}

/// Returns what is said of a standby that is none any more.
pub(super) fn promoted() -> Error {
    Error::new(Kind::Server, "the standby was promoted during the backup")
        .with_hint("what was copied is of no use; run base-backup again")
}

/// Checks that a backup can begin. Changes nothing, and reads nothing but the control file and the names of files.
pub fn preflight(options: &BackupOptions, server: &mut Server) -> Result<Preflight> {
    if options.label.contains(['\n', '\r']) {
        return Err(Error::usage("the label of a backup cannot contain a line feed"));
    }
    let (number, text) = server.version();
    let (major_version, server_version) = (number / 10_000, text.to_owned());
    if !SUPPORTED.contains(&major_version) {
        let (first, last) = (SUPPORTED.start(), SUPPORTED.end());
        return Err(Error::new(Kind::Server, format!("PostgreSQL {server_version} is not supported"))
            .with_hint(format!("Walden backs up PostgreSQL {first} to {last}")));
    }
    let settings = server.settings(&["data_directory", "config_file", "hba_file", "ident_file"])?;
    let data_dir = check_data_dir(&options.data_dir, settings.get("data_directory"))?;
    let (_, control) = read_control_file(&data_dir)?;
    let system_identifier = server.system_identifier()?;
    if control.system_identifier != system_identifier {
        return Err(Error::corrupt(format!(
            "\"{}\" belongs to system identifier {}, but the server at server.connection has {system_identifier}",
            data_dir.display(),
            control.system_identifier
        ))
        .with_hint("make data_dir and server.connection name the same cluster"));
    }
    if control.major_version().is_some_and(|major| major != major_version) {
        return Err(Error::new(
            Kind::Server,
            format!("the control file is not that of PostgreSQL {major_version}"),
        ));
    }
    check_privileges(server, major_version)?;
    let from_standby = server.is_in_recovery()?;
    // A standby leaves archiving to its primary, and the server itself sees to the rest: it refuses to begin or end a
    // backup over WAL that was written with full_page_writes off (`do_pg_backup_start`, `do_pg_backup_stop`).
    let last_archived = if from_standby { None } else { archiving::check(server, &data_dir)? };
    let mut preflight = Preflight {
        data_dir,
        control,
        server_version,
        major_version,
        from_standby,
        settings,
        size: 0,
        last_archived,
    };
    preflight.size = preflight.tree()?.estimate()?;
    Ok(preflight)
}

/// Returns the data directory without links, once it is certain that it is the server's.
pub fn check_data_dir(configured: &Path, server: Option<&String>) -> Result<PathBuf> {
    let Some(server) = server else {
        return Err(Error::new(Kind::Server, "the role may not read the setting data_directory")
            .with_hint("grant pg_read_all_settings to the role, or connect as a superuser"));
    };
    let identity = |dir: &Path| {
        let meta = std::fs::metadata(dir).map_err(at(dir))?;
        std::io::Result::Ok((meta.dev(), meta.ino()))
    };
    let here = identity(configured).kind(Kind::Config, "data_dir")?;
    let there =
        identity(Path::new(server)).kind(Kind::Server, "the server's data directory").map_err(|error| {
            error
                .with_hint("base-backup runs on the machine of the server, as a user that may read its files")
        })?;
    if here != there {
        return Err(Error::config(format!(
            "data_dir is \"{}\", but the data directory of the server at server.connection is \"{server}\"",
            configured.display()
        ))
        .with_hint("make data_dir and server.connection name the same cluster"));
    }
    std::fs::canonicalize(configured).map_err(at(configured)).context("data_dir")
}

/// Returns the functions with which a backup begins and ends, with their arguments.
pub fn backup_functions(major: u32) -> [&'static str; 2] {
    if major >= 15 {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    } else {
        ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"]
    }
}

fn check_privileges(server: &mut Server, major: u32) -> Result<()> {
    for function in backup_functions(major) {
        if !server.may_execute(function)? {
            let role = server.query_one_text("select current_user")?;
            return Err(Error::new(Kind::Server, format!("role \"{role}\" may not execute {function}"))
                .with_hint(format!("GRANT EXECUTE ON FUNCTION {function} TO \"{role}\", in this database")));
        }
    }
    Ok(())
}

/// Returns the control file's bytes and what they say. Tries again while the checksum is wrong.
pub fn read_control_file(data_dir: &Path) -> Result<(Vec<u8>, ControlFile)> {
    let path = data_dir.join(CONTROL_FILE);
    let mut attempt = 1;
    loop {
        let bytes = std::fs::read(&path).map_err(at(&path)).kind(Kind::Server, "read control file").map_err(
            |error| {
                error.with_hint(
                    "run as the user that the server runs as; data_dir must be the cluster's data directory",
                )
            },
        )?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(ParseError::ControlFileChecksum { .. }) if attempt < CONTROL_FILE_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(CONTROL_FILE_PAUSE);
            }
            Err(error) => return Err(Error::corrupt(format!("\"{}\": {error}", path.display()))),
        }
    }
}
