//! Whether the server archives its WAL into the repositories: without that of its time a backup is worth nothing.

use super::Preflight;
use crate::kind::{Error, Kind, Result};
use crate::postgres::ArchiveFileName;
use crate::repository::{ClusterKeys, Repository, ask_all, find_contents};
use crate::server::Server;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How long nothing may be archived while something waits. The archiver tries again every minute; even a large segment on
/// a slow line is through by then.
const PATIENCE: Duration = Duration::from_mins(15);

/// What the server archived last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastArchived {
    /// Its name.
    pub name: ArchiveFileName,
    /// When, for people.
    pub time: String,
}

/// Checks that a primary archives, that the last time was not a failure, and that it is not standing still. Returns what
/// was archived last, if that was under the present configuration.
pub fn check(server: &mut Server, data_dir: &Path) -> Result<Option<LastArchived>> {
    let settings = server.settings(&["archive_mode", "archive_command", "archive_library", "wal_level"])?;
    let value = |name: &str| settings.get(name).map_or("", String::as_str);
    let refuse = |message: String, hint: &str| Err(Error::new(Kind::Server, message).with_hint(hint));
    if value("wal_level") == "minimal" {
        return refuse(
            "wal_level is minimal: such WAL cannot be replayed over a backup".into(),
            "set wal_level = replica and restart the server",
        );
    }
    if value("archive_mode") == "off" {
        if !server.pending_restart(&["archive_mode"])?.is_empty() {
            return refuse(
                "archive_mode is off until the server is restarted: the WAL that the backup needs would not be archived"
                    .into(),
                "restart the server",
            );
        }
        return refuse(
            "archive_mode is off: the WAL that the backup needs would never be archived".into(),
            "walden init --apply sets it; then restart the server",
        );
    }
    let (command, library) = (value("archive_command"), value("archive_library"));
    if command.is_empty() && library.is_empty() {
        return refuse(
            "archive_command is empty: the WAL that the backup needs would never be archived".into(),
            "walden init --apply sets it, without a restart",
        );
    }
    let last = check_archiver(server, data_dir)?;
    if !library.is_empty() {
        tracing::warn!("archive_library is \"{library}\": is it what brings WAL into the repositories?");
    } else if !command.contains("walden") {
        tracing::warn!(
            "archive_command is \"{command}\", without walden in it: does it bring WAL into the repositories?"
        );
    }
    Ok(last)
}

/// Checks that the archiver's last attempt was not a failure, and that it is not standing still. Returns what was archived
/// last, if that was under the present configuration.
pub fn check_archiver(server: &mut Server, data_dir: &Path) -> Result<Option<LastArchived>> {
    let refuse = |message: String, hint: &str| Err(Error::new(Kind::Server, message).with_hint(hint));
    let archiver = Archiver::ask(server)?;
    if let Some((segment, time)) = archiver.failing {
        return refuse(
            format!(
                "archiving fails: the server could not archive \"{segment}\" at {time}, and nothing since"
            ),
            "see the server's log for what archive_command says; the server tries again by itself, \
             a minute later at most",
        );
    }
    if let Some((name, since)) = oldest_waiting(data_dir)
        && let Some(idle) = SystemTime::now().duration_since(since.max(archiver.last_sign)).ok()
        && idle > PATIENCE
    {
        return refuse(
            format!(
                "archiving stands still: \"{name}\" waits, and nothing was archived for {} minutes",
                idle.as_secs() / 60
            ),
            "archive_command hangs, or the server's archiver does not run: see its process and the server's log",
        );
    }
    Ok(archiver.last)
}

/// What the server says of its archiver.
struct Archiver {
    /// What it failed at last, and when, unless it has succeeded since.
    failing: Option<(String, String)>,
    /// What it archived last, if the configuration was not read again since.
    last: Option<LastArchived>,
    /// When it last archived something, or was given a reason to begin.
    last_sign: SystemTime,
}

impl Archiver {
    fn ask(server: &mut Server) -> Result<Self> {
        let rows = server.rows(
            "select case when failed then last_failed_wal end, case when failed then to_char(last_failed_time, form) end, \
                    case when last_archived_time > loaded then last_archived_wal end, to_char(last_archived_time, form), \
                    floor(extract(epoch from greatest(last_archived_time, loaded, pg_postmaster_start_time())))::bigint \
             from (select *, last_failed_time > coalesce(last_archived_time, '-infinity') as failed, \
                          'YYYY-MM-DD HH24:MI:SS\"+00\"' as form, pg_conf_load_time() as loaded \
                   from pg_stat_archiver) s",
        )?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut column = || row.next().flatten();
        let failing = column().zip(column());
        let last = column().zip(column());
        let last = last.and_then(|(name, time)| Some(LastArchived { name: name.parse().ok()?, time }));
        let seconds = column().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
        Ok(Self { failing, last, last_sign: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) })
    }
}

/// Returns what has been waiting longest to be archived, and since when. What cannot be looked at does not wait.
fn oldest_waiting(data_dir: &Path) -> Option<(String, SystemTime)> {
    let entries = std::fs::read_dir(data_dir.join("pg_wal/archive_status")).ok()?;
    let waiting = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?.strip_suffix(".ready")?.to_owned();
        Some((name, entry.metadata().ok()?.modified().ok()?))
    });
    waiting.min_by_key(|(_, since)| *since)
}

/// Fails if what the server archived last is in none of the repositories, which must be all that there are: then its
/// `archive_command` brings WAL to another place. A repository that does not answer leaves it open.
pub fn check_arrival(repositories: &[&Repository], keys: &ClusterKeys, found: &Preflight) -> Result<()> {
    let Some(LastArchived { name, time }) = &found.last_archived else { return Ok(()) };
    let answers = ask_all(
        repositories,
        1,
        |repository, deadline| find_contents(repository, keys, *name, deadline),
        |answer| answer.as_ref().is_ok_and(|contents| !contents.is_empty()),
    );
    if answers.iter().all(|answer| answer.as_ref().is_ok_and(Vec::is_empty)) {
        return Err(Error::new(
            Kind::Server,
            format!("the server archived \"{name}\" at {time}, and no repository holds it"),
        )
        .with_hint(
            "does archive_command bring WAL into these repositories (SHOW archive_command)? If they are new, run SELECT \
             pg_switch_wal() and then base-backup again",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_longest_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(oldest_waiting(dir.path()), None);
        let status = dir.path().join("pg_wal/archive_status");
        std::fs::create_dir_all(&status).unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (name, age) in [("1.ready", 5), ("2.ready", 9), ("3.done", 20)] {
            let file = std::fs::File::create(status.join(name)).unwrap();
            file.set_modified(old - Duration::from_secs(age)).unwrap();
        }
        assert_eq!(oldest_waiting(dir.path()), Some(("2".to_owned(), old - Duration::from_secs(9))));
    }
}
