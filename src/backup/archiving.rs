//! Whether the server archives its WAL: without that of its time a backup is worth nothing.

use crate::kind::{Error, Kind, Result};
use crate::server::Server;

/// Checks that a primary archives, and that the last time was not a failure.
pub fn check(server: &mut Server) -> Result<()> {
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
    if let Some((segment, time)) = failing(server)? {
        return refuse(
            format!(
                "archiving fails: the server could not archive \"{segment}\" at {time}, and nothing since"
            ),
            "see the server's log for what archive_command says; the server tries again by itself, \
             a minute later at most",
        );
    }
    if !library.is_empty() {
        tracing::warn!("archive_library is \"{library}\": is it what brings WAL into the repositories?");
    } else if !command.contains("walden") {
        tracing::warn!(
            "archive_command is \"{command}\", without walden in it: does it bring WAL into the repositories?"
        );
    }
    Ok(())
}

/// Returns what the archiver failed at last, and when, unless it has succeeded since.
fn failing(server: &mut Server) -> Result<Option<(String, String)>> {
    let rows = server.rows(
        "select last_failed_wal, to_char(last_failed_time, 'YYYY-MM-DD HH24:MI:SS\"+00\"') from pg_stat_archiver \
         where last_failed_time > coalesce(last_archived_time, '-infinity')",
    )?;
    let row = rows.into_iter().next();
    Ok(row.and_then(|row| {
        let mut row = row.into_iter().flatten();
        Some((row.next()?, row.next()?))
    }))
}
