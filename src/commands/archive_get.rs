//! `walden archive-get %f %p`: PostgreSQL's restore_command.

use super::{Global, archive_prefetch, setup};
use crate::archive::{GetOptions, get};
use crate::config::{Acknowledge, Config};
use crate::error::archive_get_code;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{SystemIdentifier, TimelineId, WalSegmentName};
use std::path::{Path, PathBuf};

/// What makes a server a standby, in its data directory.
const STANDBY_SIGNAL: &str = "standby.signal";

/// Fetch a file from the archive (PostgreSQL's restore_command)
///
/// Exits with 1 only when the file is proven absent. Every doubt is 200, which stops recovery instead of ending it
/// early; on a standby the ordinary code, so that it goes on trying.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, in postgresql.conf:\n  restore_command = 'walden archive-get %f %p'")]
pub struct Args {
    /// The name, as PostgreSQL gives it with %f
    name: String,
    /// Where to put it, as PostgreSQL gives it with %p
    path: PathBuf,
    /// Do not ask this repository, and recover without what only it holds (may be given several times)
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// What follows this segment on its timeline is absent (may be given several times)
    #[arg(long, value_name = "SEGMENT")]
    through: Vec<WalSegmentName>,
    /// The history of this timeline is known to be missing (may be given several times)
    #[arg(long, value_name = "TIMELINE")]
    missing_history: Vec<TimelineId>,
    /// What to do in doubt: stop recovery, or let the standby retry [default: retry where standby.signal stands]
    #[arg(long, value_name = "POLICY", value_parser = ["stop", "retry"])]
    on_error: Option<String>,
    /// The system identifier, where no pg_control tells it
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
}

/// Returns whether a failure lets the server try again: by the flag, else because this is a standby.
pub fn retries(on_error: Option<&str>) -> bool {
    match on_error {
        Some(policy) => policy == "retry",
        // The server runs the command in the data directory (facts: visible in the cwd).
        None => Path::new(STANDBY_SIGNAL).exists(),
    }
}

/// Runs the command; the error comes with the exit code, which is this command's own.
pub fn run(global: &Global, args: &Args) -> Result<(), (Error, u8)> {
    fetch(global, args).map_err(|error| {
        let code = archive_get_code(error.kind(), retries(args.on_error.as_deref()));
        let error = match error.kind() {
            Kind::Absent => error,
            _ => error.context(format!("could not fetch \"{}\"", args.name)),
        };
        (error, code)
    })
}

fn fetch(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    setup::repositories_without(&config, &args.without)?;
    let opener = setup::opener(&config)?;
    let options = GetOptions {
        cluster: config.cluster.clone(),
        origin: setup::origin(&config, args.system_identifier),
        deadline: config.archive.deadline,
        acknowledged_by_all: config.archive.acknowledge == Acknowledge::All,
        standby: Path::new(STANDBY_SIGNAL).exists() && retries(args.on_error.as_deref()),
        without: args.without.clone(),
        through: args.through.clone(),
        missing_histories: args.missing_history.clone(),
        spools: archive_prefetch::is_ours(&config.cluster_state_dir()).then(|| config.spool_dir()),
        prefetch: config.archive.prefetch,
        index: Some(config.index_path()),
    };
    let fetched = get(&args.name, &args.path, &options, &repositories, &opener)?;
    if let Some(sysid) = fetched.start_prefetcher {
        archive_prefetch::start(&config, sysid, &args.without);
    }
    Ok(())
}
