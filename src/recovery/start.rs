//! Starting the restored server, to be followed to its target (`follow`).

use super::follow::{Follower, ServerLog};
use super::plan::Plan;
use super::settings::Action;
use super::target::Target;
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::{Lsn, WalSegmentSize};
use crate::progress::Progress;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use super::follow::Reached;

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
    /// The WAL that is ahead of it.
    pub way: Way,
}

/// The WAL that is ahead of a server, for saying how far it has come, and whether it came to the end.
#[derive(Debug, Clone)]
pub struct Way {
    /// Where the first segment begins.
    pub begin: Lsn,
    /// How many segments there are, at most.
    pub segments: usize,
    /// The size of a segment.
    pub segment_size: WalSegmentSize,
    /// The target, in words.
    pub target: String,
    /// How far the server must come where it has no target of its own: into the last archived segment.
    pub must_reach: Option<Lsn>,
}

impl Way {
    /// Returns the way that a plan goes.
    pub fn of(plan: &Plan<'_>) -> Self {
        let segment_size = plan.summary.wal_segment_size;
        Self {
            begin: plan.first_segment.start(segment_size),
            segments: plan.segments,
            segment_size,
            target: plan.target.clone(),
            must_reach: (plan.stop == Target::Latest).then(|| plan.last_segment.start(segment_size)),
        }
    }
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

/// Starts the server and waits until it has reached the target, which `progress` counts in bytes of WAL. Fails with
/// [`Kind::Target`] when the server says that it did not, [`Kind::Server`] when it ended otherwise.
pub fn start_and_follow(options: &StartOptions, progress: &Progress) -> Result<Reached> {
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
    Follower::new(options, connection, ServerLog::new(&options.data_dir, log, began_at), progress).follow()
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
