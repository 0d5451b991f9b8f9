//! Starting the restored server and following it to the target.
//!
//! `pg_ctl -w start` says 0 as soon as the server is consistent, before a later FATAL (facts: "Recovery
//! configuration"); so the truth is asked from the server itself, until it has done what the plan says or is gone.

use super::settings::Action;
use crate::durable;
use crate::kind::{Context, Error, Kind, Result};
use crate::server::Server;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How often the server is asked.
const POLL: Duration = Duration::from_millis(200);
/// How often progress is said.
const REPORT: Duration = Duration::from_secs(10);

/// How to start.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// The restored directory.
    pub data_dir: PathBuf,
    /// Where `pg_ctl` and `postgres` are.
    pub bin_dir: PathBuf,
    /// Who runs the server; none for this process's user.
    pub owner: Option<(u32, u32)>,
    /// The user to connect as.
    pub user: String,
    /// What the server does at the target.
    pub action: Action,
}

/// What the server says at the end.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Reached {
    /// The time of the last commit or abort that was replayed, as the server shows it in UTC.
    pub last_transaction: Option<String>,
    /// Where replay ended.
    pub lsn: Option<String>,
    /// How to connect.
    pub connection: Option<String>,
    /// The server's log.
    pub log: PathBuf,
}

/// Returns a command that runs as the directory's owner, in a directory that it can enter.
pub fn as_owner(program: &Path, owner: Option<(u32, u32)>) -> Command {
    let mut command = match owner {
        // With all groups of that user: a certificate's key may be readable by one of them only.
        Some((uid, gid)) => {
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={uid}"))
                .arg(format!("--regid={gid}"))
                .arg("--init-groups")
                .arg("--");
            command.arg(program);
            command
        }
        None => Command::new(program),
    };
    command.current_dir("/").stdin(std::process::Stdio::null());
    command
}

/// Returns the value of a setting that the stopped server would use.
pub fn setting_of_stopped(options: &StartOptions, name: &str) -> Result<String> {
    let output = as_owner(&options.bin_dir.join("postgres"), options.owner)
        .arg("-D")
        .arg(&options.data_dir)
        .args(["-C", name])
        .output()
        .kind(Kind::Server, "run postgres -C")?;
    if !output.status.success() {
        return Err(Error::new(
            Kind::Server,
            format!("postgres -C {name}: {}", String::from_utf8_lossy(&output.stderr)),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Starts the server and waits until it has reached the target. Fails with [`Kind::Target`] when the server says that
/// it did not, [`Kind::Server`] when it ended otherwise.
pub fn start_and_follow(options: &StartOptions) -> Result<Reached> {
    let log = options.data_dir.join("walden-recover.log");
    let port = setting_of_stopped(options, "port")?;
    let sockets = setting_of_stopped(options, "unix_socket_directories")?;
    let host = sockets.split(',').next().map(str::trim).filter(|dir| !dir.is_empty()).unwrap_or("127.0.0.1");
    let connection = format!("host='{host}' port={port} user='{}' dbname=postgres", options.user);
    // From here on the log tells what happened; an older one must not be read for it.
    let began_at = std::fs::metadata(&log).map_or(0, |meta| meta.len());

    let output = as_owner(&options.bin_dir.join("pg_ctl"), options.owner)
        .args(["--no-wait", "--silent", "-D"])
        .arg(&options.data_dir)
        .arg("-l")
        .arg(&log)
        .arg("start")
        .output()
        .kind(Kind::Server, "run pg_ctl")?;
    if !output.status.success() {
        let says =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        return Err(Error::new(Kind::Server, format!("pg_ctl start failed: {says}")));
    }
    follow(options, &connection, &log, began_at)
}

fn follow(options: &StartOptions, connection: &str, log: &Path, began_at: u64) -> Result<Reached> {
    let mut said = Instant::now();
    let began = Instant::now();
    let mut reached = Reached { last_transaction: None, lsn: None, connection: None, log: log.to_path_buf() };
    let mut server: Option<Server> = None;
    loop {
        std::thread::sleep(POLL);
        if !is_running(&options.data_dir) && began.elapsed() > Duration::from_secs(2) {
            return ended(options, reached, log, began_at);
        }
        if server.is_none() {
            server = Server::connect(connection).ok().filter(|_| is_running(&options.data_dir));
        }
        let Some(connected) = &mut server else { continue };
        if !is_ours(connected, &options.data_dir) {
            // Another server at that port: what it says is not about this recovery.
            server = None;
            continue;
        }
        let Ok(state) = look(connected) else {
            server = None;
            continue;
        };
        if state.last_transaction.is_some() {
            reached.last_transaction.clone_from(&state.last_transaction);
        }
        reached.lsn.clone_from(&state.lsn);
        let done = match options.action {
            Action::Promote => !state.in_recovery,
            Action::Pause => state.paused || !state.in_recovery,
            Action::Shutdown => false,
        };
        if done {
            reached.connection = Some(connection.to_owned());
            return Ok(reached);
        }
        if said.elapsed() >= REPORT {
            said = Instant::now();
            tracing::info!(
                "replayed to LSN {}, last transaction of {}",
                reached.lsn.as_deref().unwrap_or("unknown"),
                reached.last_transaction.as_deref().unwrap_or("unknown time")
            );
        }
    }
}

struct State {
    in_recovery: bool,
    paused: bool,
    lsn: Option<String>,
    last_transaction: Option<String>,
}

fn look(server: &mut Server) -> Result<State> {
    let rows = server.rows(
        "SELECT pg_is_in_recovery()::text,
                CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() ELSE '' END,
                pg_last_wal_replay_lsn()::text,
                to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00')",
    )?;
    let row = rows.into_iter().next().ok_or_else(|| Error::other("no row"))?;
    let mut row = row.into_iter();
    let mut next = || row.next().flatten();
    Ok(State {
        in_recovery: next().is_some_and(|text| text == "true" || text == "t"),
        paused: next().is_some_and(|text| text == "paused"),
        lsn: next(),
        last_transaction: next(),
    })
}

/// Returns whether the server runs on `data_dir`. One that does not say where it runs is taken for it: its process was
/// seen there.
fn is_ours(server: &mut Server, data_dir: &Path) -> bool {
    let Ok(says) = server.query_one_text("SELECT coalesce(current_setting('data_directory', true), '')")
    else {
        return true;
    };
    let resolved = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    says.is_empty() || resolved(Path::new(&says)) == resolved(data_dir)
}

/// Returns whether the postmaster of `data_dir` is alive.
pub fn is_running(data_dir: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(data_dir.join("postmaster.pid")) else { return false };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else {
        return false;
    };
    let alive = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
    !matches!(alive, Err(nix::errno::Errno::ESRCH))
}

/// The server is gone: by the plan, or by a failure that its log tells.
fn ended(options: &StartOptions, mut reached: Reached, log: &Path, began_at: u64) -> Result<Reached> {
    let text = std::fs::read(log).map_err(durable::at(log)).context("read the server's log")?;
    let text = String::from_utf8_lossy(text.get(began_at as usize..).unwrap_or_default()).into_owned();
    if options.action == Action::Shutdown && text.contains("shutdown at recovery target") {
        let last =
            text.lines().rev().find(|line| line.contains("last completed transaction was at log time"));
        if let Some(time) = last.and_then(|line| line.split("log time ").nth(1)) {
            reached.last_transaction = Some(time.trim().to_owned());
        }
        return Ok(reached);
    }
    let fatal: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("FATAL:") || line.contains("PANIC:") || line.starts_with("ERROR:"))
        // What the server told this process while it was asked too early.
        .filter(|line| !line.contains("FATAL:  the database system is "))
        .collect();
    let last = fatal.last().copied().unwrap_or("the server ended without an error in its log");
    let kind = if last.contains("before configured recovery target was reached") {
        Kind::Target
    } else {
        Kind::Server
    };
    let first = fatal.first().copied().filter(|first| *first != last);
    let says = first.map_or_else(|| last.to_owned(), |first| format!("{first}; {last}"));
    Err(Error::new(kind, format!("the server did not reach the target: {says}"))
        .with_hint(format!("its log is {}", log.display())))
}

/// Returns where the programs of PostgreSQL `major` are: the directory given, else the usual places, else the path.
pub fn find_bin_dir(given: Option<&Path>, major: u32) -> Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = given.map(Path::to_path_buf).into_iter().collect();
    if given.is_none() {
        candidates.push(format!("/usr/lib/postgresql/{major}/bin").into());
        candidates.push(format!("/usr/pgsql-{major}/bin").into());
        let path = std::env::var_os("PATH").unwrap_or_default();
        candidates.extend(std::env::split_paths(&path));
    }
    let fits = |dir: &Path| {
        let output = Command::new(dir.join("postgres")).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().nth(2)?;
        let number: String = version.chars().take_while(char::is_ascii_digit).collect();
        Some(number.parse::<u32>().ok()? == major)
    };
    candidates.into_iter().find(|dir| dir.join("pg_ctl").exists() && fits(dir) == Some(true)).ok_or_else(
        || {
            Error::new(Kind::Server, format!("the programs of PostgreSQL {major} are not found"))
                .with_hint("set server.bin_dir in the configuration, or start the server yourself")
        },
    )
}
