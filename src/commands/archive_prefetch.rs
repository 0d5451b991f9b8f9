//! The process that fetches segments ahead of the server. `archive-get` starts it; nobody else does.
//!
//! It outlives the call that started it, so it must hold nothing of the server's: not its working directory, not its
//! process group, no file. The server's log collector, for one, ends only when nobody has its pipe open any more, and
//! servers before 16 let their commands inherit more than the three standard files.

use super::{Global, setup};
use crate::archive::{PrefetchOptions, Spool, is_recovering, prefetch};
use crate::config::Config;
use crate::kind::{Context, Result};
use crate::postgres::SystemIdentifier;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long the server may ask for nothing.
const IDLE: Duration = Duration::from_secs(20);
/// Beyond this size, in bytes, the log is begun anew.
const LOG_BYTES: u64 = 1 << 20;

/// Fetch segments ahead of the server; archive-get starts this by itself
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's system identifier
    sysid: SystemIdentifier,
    /// Do not fetch from this repository
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// End when no server recovers in this directory any more
    #[arg(long, value_name = "DIR")]
    recovering: Option<PathBuf>,
}

/// Returns whether this process may leave files in `dir`, or where `dir` will be: as root not in what belongs to the
/// server's user, who could not remove them.
pub fn is_ours(dir: &Path) -> bool {
    let me = nix::unistd::geteuid();
    let owner = dir.ancestors().find_map(|dir| std::fs::metadata(dir).ok()).map(|meta| meta.uid());
    !me.is_root() || owner == Some(me.as_raw())
}

/// Starts the prefetcher. Without one recovery is slower, so a failure is told only to who asks for more.
pub fn start(config: &Config, sysid: SystemIdentifier, without: &[String]) {
    if let Err(error) = try_start(config, sysid, without) {
        tracing::debug!("start the prefetcher: {error}");
    }
}

fn try_start(config: &Config, sysid: SystemIdentifier, without: &[String]) -> Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&config.path).arg("archive-prefetch").arg(sysid.to_string());
    for name in without {
        command.arg("--without").arg(name);
    }
    // The server runs its commands in its data directory.
    if let Ok(data_dir) = std::env::current_dir()
        && is_recovering(&data_dir)
    {
        command.arg("--recovering").arg(data_dir);
    }
    let log = log_file(&config.cluster_state_dir().join("prefetch.log")).context("open the log")?;
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // Nobody waits for it: once this process has ended, it is the first process's child.
    command.spawn().context("start")?;
    Ok(())
}

fn log_file(path: &Path) -> std::io::Result<File> {
    let long = std::fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_BYTES);
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    if long {
        options.write(true).truncate(true)
    } else {
        options.append(true)
    };
    options.open(path)
}

/// Closes what was inherited from the server, then leaves its session: a prefetcher that leads a session holds nothing
/// of the server's. This comes first: until then the server's log collector cannot end.
fn detach() {
    let listed = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let mut inherited: Vec<i32> =
        listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    if inherited.is_empty() {
        inherited = (3..1024).collect(); // no /proc
    }
    for fd in inherited {
        // Nothing of this process's own is open yet; the directory that was just read is closed again.
        let _ = nix::unistd::close(fd);
    }
    // Fails only for the leader of a process group, which a child is not.
    let _ = nix::unistd::setsid();
}

/// Runs the command. Its outcome is never a failure: where the server is the first process of a container it inherits
/// this one, and takes an unknown child's crash for a backend's.
pub fn run(global: &Global, args: &Args) {
    detach();
    if let Err(error) = run_detached(global, args) {
        tracing::info!("prefetching for system identifier {} ended: {error}", args.sysid);
    }
}

fn run_detached(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories_without(&config, &args.without)?;
    let opener = setup::opener(&config)?;
    let spool = Spool::open(&config.spool_dir(), args.sysid).context("open the spool")?;
    let options = PrefetchOptions {
        cluster: config.cluster.clone(),
        sysid: args.sysid,
        ahead: config.archive.prefetch,
        parallel: config.archive.parallel,
        idle: IDLE,
        recovering: args.recovering.clone(),
    };
    prefetch(&spool, &options, &repositories, &opener)
}
