//! The connection to PostgreSQL: one session, blocking, plain text in and out.
//!
//! Lives here: connecting, asking, and the functions that a backup needs. Does not live here: what the answers mean.
//! Only this file and `storage/s3` know tokio; the runtime is made when a connection is.

mod catalog;

pub use catalog::CatalogPart;

use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::{Lsn, SystemIdentifier};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_postgres::config::{Config, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long connecting may take, name look-up and authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a session may take to notice that the configuration was read again.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(3);

/// Where servers put their sockets: Debian's and Red Hat's choice, then PostgreSQL's own.
const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// One session on a server.
#[derive(Debug)]
pub struct Server {
    /// None once the session was closed.
    session: Option<Session>,
    version: (u32, String),
    config: Config,
}

#[derive(Debug)]
struct Session {
    client: Client,
    connection: tokio::task::JoinHandle<()>,
    runtime: tokio::runtime::Runtime,
}

/// What ending a backup returns (`pg_backup_stop`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStop {
    /// Recovery must replay up to here before the backup is consistent.
    pub lsn: Lsn,
    /// What belongs into the file `backup_label`, byte for byte.
    pub label_file: Vec<u8>,
    /// What belongs into the file `tablespace_map`; empty if there is to be none.
    pub tablespace_map: Vec<u8>,
}

impl Server {
    /// Connects by a libpq connection string or URL. What it leaves out comes from `PGHOST`, `PGPORT`, `PGUSER`,
    /// `PGPASSWORD` and `PGDATABASE`, then from the usual defaults (local socket, user of this process, database
    /// `postgres`).
    pub fn connect(connection: &str) -> Result<Self> {
        Self::open(parse_connection(connection)?)
    }

    /// Connects to another database of the same server, as the same role.
    pub fn in_database(&self, name: &str) -> Result<Self> {
        let mut config = self.config.clone();
        config.dbname(name);
        Self::open(config)
    }

    /// Opens another session like this one.
    pub fn again(&self) -> Result<Self> {
        Self::open(self.config.clone())
    }

    fn open(config: Config) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime of the connection")?;
        let (client, connection) = runtime.block_on(async {
            match tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await {
                Ok(Ok((client, connection))) => {
                    // Failures of the connection show up in the queries.
                    Ok((client, tokio::spawn(async move { drop(connection.await) })))
                }
                Ok(Err(error)) => Err(connect_error(&error, &config)),
                Err(_) => Err(no_answer(&config)),
            }
        })?;
        let session = Session { client, connection, runtime };
        let mut server = Self { session: Some(session), version: (0, String::new()), config };
        server.prepare_session()?;
        Ok(server)
    }

    /// Makes the session independent of what roles, databases and the server have configured for sessions.
    fn prepare_session(&mut self) -> Result<()> {
        self.rows(
            // A server that waits for a checkpoint must notice that its client was killed.
            "set client_connection_check_interval = '2s'; set search_path = pg_catalog; set statement_timeout = 0; set lock_timeout = 0; \
             set standard_conforming_strings = on; set timezone = 'UTC'; set datestyle = 'ISO'; \
             set bytea_output = 'hex'; \
             select set_config(name, '0', false) from pg_settings \
             where name in ('idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')",
        )
        .map_err(|error| error.context("prepare the session"))?;
        let number = self.query_one_text("show server_version_num")?;
        let number = number.parse().kind(Kind::Server, "version of the server")?;
        self.version = (number, self.query_one_text("show server_version")?);
        Ok(())
    }

    /// Ends the session, and with it a backup that is under way. Later calls fail.
    pub fn close(&mut self) {
        if let Some(Session { client, connection, runtime }) = self.session.take() {
            drop(client);
            // Lets the farewell go out, so that the server does not log a lost connection.
            let _ =
                runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), connection).await });
            runtime.shutdown_background();
        }
    }

    fn session(&self) -> Result<&Session> {
        self.session.as_ref().ok_or_else(|| Error::new(Kind::Server, "the session was closed"))
    }

    /// Returns the rows of the last of the statements in `sql` that returned any, as the server prints values.
    pub fn rows(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let session = self.session()?;
        let messages =
            session.runtime.block_on(session.client.simple_query(sql)).map_err(|e| query_error(&e))?;
        let mut rows = Vec::new();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(_) => rows.clear(),
                SimpleQueryMessage::Row(row) => {
                    rows.push((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect());
                }
                _ => {}
            }
        }
        Ok(rows)
    }

    /// Returns the one value that `sql` yields; no row, or null, is an error.
    pub fn query_one_text(&mut self, sql: &str) -> Result<String> {
        let value = self.rows(sql)?.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        value.ok_or_else(|| Error::new(Kind::Server, format!("the server returned nothing for: {sql}")))
    }

    /// Runs statements whose results do not matter.
    pub fn execute(&mut self, sql: &str) -> Result<()> {
        self.rows(sql).map(drop)
    }

    /// Returns the version as a number (150018) and as text.
    pub fn version(&self) -> (u32, &str) {
        (self.version.0, &self.version.1)
    }

    /// Returns the major version.
    pub fn major_version(&self) -> u32 {
        self.version.0 / 10_000
    }

    /// Returns a setting as `show` prints it, units included.
    pub fn setting(&mut self, name: &str) -> Result<String> {
        self.query_one_text(&format!("select current_setting({})", quote_literal(name)))
            .map_err(|error| error.context(format!("read setting \"{name}\"")))
    }

    /// Returns those of the settings that exist and that the role may see, without units (`pg_settings.setting`).
    pub fn settings(&mut self, names: &[&str]) -> Result<BTreeMap<String, String>> {
        let list = names.iter().map(|name| quote_literal(name)).collect::<Vec<_>>().join(", ");
        let rows = self.rows(&format!("select name, setting from pg_settings where name in ({list})"))?;
        Ok(rows.into_iter().filter_map(pair).collect())
    }

    /// Returns whether the role may execute a function, given with the types of its arguments.
    pub fn may_execute(&mut self, function: &str) -> Result<bool> {
        let sql = format!("select has_function_privilege({}, 'execute')", quote_literal(function));
        Ok(self.query_one_text(&sql)? == "t")
    }

    /// Returns whether the server is a standby, or still in recovery for another reason.
    pub fn is_in_recovery(&mut self) -> Result<bool> {
        Ok(self.query_one_text("select pg_is_in_recovery()")? == "t")
    }

    /// Returns how far WAL has come: on a primary where the next record goes, on a standby how far it is replayed. No page on
    /// disk is newer.
    pub fn wal_position(&mut self) -> Result<Lsn> {
        let text = self.query_one_text(
            "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end",
        )?;
        text.parse().kind(Kind::Server, "WAL position of the server")
    }

    /// Returns the cluster's system identifier.
    pub fn system_identifier(&mut self) -> Result<SystemIdentifier> {
        // The column is a signed bigint: identifiers from 2038 onward come out negative.
        let text = self.query_one_text("select system_identifier from pg_control_system()")?;
        let signed: i64 = text.parse().kind(Kind::Server, "system identifier of the server")?;
        Ok(SystemIdentifier(signed.cast_unsigned()))
    }

    /// Returns the server's clock (`clock_timestamp()`).
    pub fn clock(&mut self) -> Result<jiff::Timestamp> {
        let text =
            self.query_one_text("select to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")?;
        text.parse().kind(Kind::Server, "clock of the server")
    }

    /// Begins a backup and returns the position from which its recovery will replay. Waits for a checkpoint, which
    /// is made at once if `fast`, else spread over half of `checkpoint_timeout` or so. The backup lasts as long as
    /// the session (`pg_backup_start`; up to 14 `pg_start_backup`, which is exclusive unless told otherwise).
    pub fn backup_start(&mut self, label: &str, fast: bool) -> Result<Lsn> {
        let (label, fast) = (quote_literal(label), if fast { "true" } else { "false" });
        let call = if self.version.0 >= 150_000 {
            format!("pg_backup_start({label}, {fast})")
        } else {
            format!("pg_start_backup({label}, {fast}, false)")
        };
        let lsn =
            self.query_one_text(&format!("select {call}")).map_err(|error| error.context("start backup"))?;
        lsn.parse().kind(Kind::Server, "start of the backup")
    }

    /// Ends the backup. With `wait_for_archive` the server returns only once the WAL is archived.
    pub fn backup_stop(&mut self, wait_for_archive: bool) -> Result<BackupStop> {
        let function = if self.version.0 >= 150_000 { "pg_backup_stop" } else { "pg_stop_backup" };
        let arguments = match (self.version.0 >= 150_000, wait_for_archive) {
            (true, wait) => wait.to_string(),
            (false, wait) => format!("false, {wait}"),
        };
        // Tablespace paths may be in any encoding: as bytes they come unchanged.
        let rows = self
            .rows(&format!(
                "select lsn, encode(convert_to(labelfile, getdatabaseencoding()), 'hex'), \
                 encode(convert_to(spcmapfile, getdatabaseencoding()), 'hex') from {function}({arguments})"
            ))
            .map_err(|error| error.context("stop backup"))?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut column = || row.next().flatten().unwrap_or_default();
        Ok(BackupStop {
            lsn: column().parse().kind(Kind::Server, "stop of the backup")?,
            label_file: unhex(&column())?,
            tablespace_map: unhex(&column())?,
        })
    }

    /// Sets a setting for the whole cluster (`ALTER SYSTEM`); [`Server::reload`] makes it count.
    pub fn alter_system(&mut self, name: &str, value: &str) -> Result<()> {
        self.execute(&format!("alter system set {} = {}", quote_identifier(name), quote_literal(value)))
            .map_err(|error| error.context(format!("set \"{name}\"")))
    }

    /// Makes the server read its configuration again, and waits a little until this session has noticed.
    pub fn reload(&mut self) -> Result<()> {
        let failed = |error: Error| error.context("reload the configuration");
        let loaded = self.query_one_text("select pg_conf_load_time()").map_err(failed)?;
        self.execute("select pg_reload_conf()").map_err(failed)?;
        let start = Instant::now();
        while start.elapsed() < RELOAD_TIMEOUT
            && self.query_one_text("select pg_conf_load_time()").map_err(failed)? == loaded
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Returns those of the settings that have a new value which counts only after a restart.
    pub fn pending_restart(&mut self, names: &[&str]) -> Result<Vec<String>> {
        let list = names.iter().map(|name| quote_literal(name)).collect::<Vec<_>>().join(", ");
        let rows = self.rows(&format!(
            "select name from pg_settings where pending_restart and name in ({list}) order by name"
        ))?;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

fn pair(row: Vec<Option<String>>) -> Option<(String, String)> {
    let mut row = row.into_iter();
    Some((row.next()??, row.next()??))
}

/// Returns `text` as an SQL literal; `standard_conforming_strings` must be on.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Returns `name` as an SQL identifier. Each part of a qualified setting (`walden.x`) is quoted by itself.
pub fn quote_identifier(name: &str) -> String {
    name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect::<Vec<_>>().join(".")
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect::<Option<_>>();
    bytes
        .filter(|_| rest.is_empty())
        .ok_or_else(|| Error::new(Kind::Server, "the server returned bad hexadecimal"))
}

fn parse_connection(connection: &str) -> Result<Config> {
    let mut config: Config = connection.parse().map_err(|error: tokio_postgres::Error| {
        // Not the string itself: it may hold a password.
        Error::config(format!("server.connection: {}", chain(&error))).with_hint(
            "a connection string as libpq takes it, such as \"host=/var/run/postgresql user=postgres\"",
        )
    })?;
    let from_env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        for host in from_env("PGHOST").unwrap_or_else(default_host).split(',') {
            config.host(host);
        }
    }
    if config.get_ports().is_empty()
        && let Some(port) = from_env("PGPORT")
    {
        config.port(port.parse().map_err(|_| Error::config(format!("PGPORT is \"{port}\", not a port")))?);
    }
    if config.get_user().is_none()
        && let Some(user) = from_env("PGUSER")
    {
        config.user(user);
    }
    if config.get_password().is_none()
        && let Some(password) = from_env("PGPASSWORD")
    {
        config.password(password);
    }
    if config.get_dbname().is_none() {
        config.dbname(from_env("PGDATABASE").unwrap_or_else(|| "postgres".into()));
    }
    if config.get_application_name().is_none() {
        config.application_name("walden");
    }
    if config.get_ssl_mode() == SslMode::Require {
        return Err(Error::config("server.connection asks for TLS, which Walden does not speak")
            .with_hint("Walden runs beside the server: connect through its local socket"));
    }
    config.ssl_mode(SslMode::Disable).connect_timeout(CONNECT_TIMEOUT);
    Ok(config)
}

fn default_host() -> String {
    let found = SOCKET_DIRS.into_iter().find(|dir| Path::new(dir).is_dir());
    found.unwrap_or(SOCKET_DIRS[1]).to_owned()
}

fn address(config: &Config) -> String {
    use tokio_postgres::config::Host;
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(dir) => dir.display().to_string(),
    });
    let addresses = config.get_hostaddrs().iter().map(ToString::to_string);
    let hosts: Vec<String> = hosts.chain(addresses).collect();
    let ports: Vec<String> = config.get_ports().iter().map(ToString::to_string).collect();
    format!("{}:{}", hosts.join(","), if ports.is_empty() { "5432".to_owned() } else { ports.join(",") })
}

fn no_answer(config: &Config) -> Error {
    let seconds = CONNECT_TIMEOUT.as_secs();
    Error::new(
        Kind::Server,
        format!("connect to server at {}: no answer within {seconds} s", address(config)),
    )
    .with_hint("see whether the server runs and server.connection names it")
}

fn connect_error(error: &tokio_postgres::Error, config: &Config) -> Error {
    let base =
        Error::new(Kind::Server, format!("connect to server at {}: {}", address(config), describe(error)));
    let hint = match error.code() {
        Some(code)
            if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                && error.as_db_error().is_some_and(|db| db.message().contains("eer authentication")) =>
        {
            "this user of the system may not be that role: run as the server's user (sudo -u postgres walden …), or name \
             another role in server.connection"
        }
        Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "the server has no rule in pg_hba.conf for this role and address without TLS; connect through its local \
             socket, or add one"
        }
        Some(code) if *code == SqlState::INVALID_PASSWORD => {
            "give the password in server.connection or PGPASSWORD"
        }
        Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => {
            "the server is starting, stopping, or in recovery without hot_standby; try again later"
        }
        Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => {
            "use a superuser, which has reserved connections"
        }
        Some(_) => "see server.connection",
        None => "see whether the server runs and server.connection names it",
    };
    base.with_hint(hint)
}

fn query_error(error: &tokio_postgres::Error) -> Error {
    let base = Error::new(Kind::Server, describe(error));
    match error.as_db_error() {
        Some(db) if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE => base.with_hint(
            "the role needs pg_read_all_settings (or pg_monitor), and EXECUTE on the functions that begin and end a \
             backup: see the documentation on privileges",
        ),
        Some(db) => match db.hint() {
            Some(hint) => base.with_hint(hint),
            None => base,
        },
        None if error.is_closed() => base.with_hint("the server was stopped or ended the session; see its log"),
        None => base,
    }
}

/// Returns the server's words with the SQLSTATE, or what went wrong on the way to it.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let detail = db.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
            format!("{}{detail} (SQLSTATE {})", db.message(), db.code().code())
        }
        None => chain(error),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_identifiers_are_quoted() {
        assert_eq!(quote_literal("it's %p"), "'it''s %p'");
        assert_eq!(quote_identifier("archive_command"), "\"archive_command\"");
        assert_eq!(quote_identifier("a\"b.c"), "\"a\"\"b\".\"c\"");
    }

    #[test]
    fn hexadecimal_is_read() {
        assert_eq!(unhex("00ff7A").unwrap(), [0, 255, 0x7a]);
        assert!(unhex("0").is_err() && unhex("0g").is_err());
    }

    #[test]
    fn a_bad_connection_string_is_a_matter_of_configuration_and_is_not_shown() {
        for bad in ["host=", "nonsense=1 password=secret", "password", "sslmode=require host=/tmp"] {
            match parse_connection(bad) {
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Config, "{bad}");
                    assert!(!error.to_string().contains("secret"), "{error}");
                }
                Ok(_) => assert_eq!(bad, "host="),
            }
        }
    }

    #[test]
    fn nobody_listening_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let error = Server::connect(&format!("host={} user=x", dir.path().display())).unwrap_err();
        assert_eq!(error.kind(), Kind::Server);
        assert!(error.hint().is_some() && !error.to_string().contains('\n'), "{error}");
    }
}
