//! The server: is it the right one, and what does it say of itself?

use super::item::grouped;
use super::{Item, Shared, clock, privileges, settings};
use crate::backup::{SUPPORTED, check_archiver, check_data_dir};
use crate::kind::{Error, Kind, Result};
use crate::server::Server;
use crate::upkeep::names::try_take_names;
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// How long a statement may take.
const STATEMENT_TIMEOUT: &str = "10s";

/// What later groups must know of the server.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Whether it is a standby.
    pub standby: bool,
    /// Whether it archives what it writes.
    pub archives: bool,
    /// Whether the role may make a restore point and switch to another segment.
    pub may_switch: bool,
}

type Say<'a> = &'a mut dyn FnMut(Item);

/// Checks everything about the server, and leaves the session for those that follow.
pub(super) fn check(shared: &Shared, say: Say<'_>) {
    let mut server = match connect(shared) {
        Ok(server) => server,
        Err(error) => return say(Item::failed("server", &error)),
    };
    match right_server(shared, &mut server) {
        Ok(found) => say(Item::ok("server", found)),
        Err(error) => return say(Item::failed("server", &error)),
    }
    if let Err(error) = judge(shared, &mut server, say) {
        say(Item::failed("server", &error));
    }
    *shared.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
}

fn connect(shared: &Shared) -> Result<Server> {
    let mut server = Server::connect(&shared.subject.connection)?;
    server.execute(&format!("set statement_timeout = '{STATEMENT_TIMEOUT}'"))?;
    Ok(server)
}

/// Fails unless the server is the one whose data directory is configured, in a version that is known.
fn right_server(shared: &Shared, server: &mut Server) -> Result<String> {
    let version = server.version().1.to_owned();
    if !SUPPORTED.contains(&server.major_version()) {
        let message = format!("PostgreSQL {version} is not supported");
        let hint = format!("Walden knows PostgreSQL {} to {}", SUPPORTED.start(), SUPPORTED.end());
        return Err(Error::new(Kind::Server, message).with_hint(hint));
    }
    let settings = server.settings(&["data_directory"])?;
    // Who may not see the setting has that said among the privileges; the system identifier tells as much.
    if settings.contains_key("data_directory") {
        check_data_dir(&shared.subject.data_dir, settings.get("data_directory"))?;
    }
    let sysid = server.system_identifier()?;
    if let Some(control) = shared.control.get()
        && control.system_identifier != sysid
    {
        return Err(Error::corrupt(format!(
            "data_dir belongs to system identifier {}, but the server at server.connection has {sysid}",
            control.system_identifier
        ))
        .with_hint("make data_dir and server.connection name the same cluster"));
    }
    let role = if server.is_in_recovery()? { "a standby" } else { "a primary" };
    Ok(format!("PostgreSQL {version}, {role}, runs in data_dir"))
}

fn judge(shared: &Shared, server: &mut Server, say: Say<'_>) -> Result<()> {
    let standby = server.is_in_recovery()?;
    let archives = settings::check(&shared.subject, server, standby, say)?;
    if archives {
        say(archiver(server, &shared.subject.data_dir));
    }
    let may_switch = privileges::check(server, say)?;
    let from = Timestamp::now();
    let theirs = server.clock()?;
    say(clock::item("clock", "the server's clock", theirs, (from, Timestamp::now()), 0.0));
    let _ = shared.facts.set(Facts { standby, archives, may_switch });
    Ok(())
}

/// Whether the last attempt to archive succeeded.
fn archiver(server: &mut Server, data_dir: &Path) -> Item {
    match check_archiver(server, data_dir) {
        Ok(Some(last)) => Item::ok("archiver", format!("\"{}\" was archived at {}", last.name, last.time)),
        Ok(None) => {
            Item::ok("archiver", "nothing has failed; nothing was archived since the configuration was read")
        }
        Err(error) => {
            let log = server_log(server, data_dir);
            Item::failed("archiver", &error.with_hint(format!("the server's log: {log}")))
        }
    }
}

/// Returns where the server's log is, as far as the role may know.
pub(super) fn server_log(server: &mut Server, data_dir: &Path) -> String {
    let unknown = "where it was told to write at its start (stderr, journalctl, or /var/log/postgresql)";
    // Only members of pg_monitor may ask for the file.
    if let Ok(file) = server.query_one_text("select pg_current_logfile()") {
        return join(data_dir, &file).display().to_string();
    }
    let settings = server.settings(&["logging_collector", "log_directory"]).unwrap_or_default();
    match (settings.get("logging_collector").map(String::as_str), settings.get("log_directory")) {
        (Some("on"), Some(directory)) => join(data_dir, directory).display().to_string(),
        _ => unknown.to_owned(),
    }
}

fn join(data_dir: &Path, path: &str) -> PathBuf {
    data_dir.join(path)
}

/// Takes the names of relations into the index, as a base backup does.
pub(super) fn names(shared: &Shared, say: Say<'_>) {
    const NAME: &str = "names";
    let Some(control) = shared.control.get() else {
        return say(Item::skipped(NAME, "data_dir cannot be read"));
    };
    let Some(index) = shared.index() else {
        return say(Item::skipped(NAME, "there is no index to keep them"));
    };
    let taken = shared.with_session(|server| try_take_names(server, control.system_identifier, index));
    say(match taken {
        None => Item::skipped(NAME, "the server cannot be asked"),
        Some(Ok(names)) => Item::ok(
            NAME,
            format!(
                "{} relations in {} databases, for walden events",
                grouped(names.relations),
                grouped(names.databases)
            ),
        ),
        Some(Err(error)) => Item::warning(
            NAME,
            error.message(),
            error.hint().unwrap_or(
                "walden events shows numbers where it has no names; the next base backup tries again",
            ),
        ),
    });
}
