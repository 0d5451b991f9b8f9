//! `walden archive-push %p`: PostgreSQL's archive_command.

use super::{Global, setup};
use crate::archive::{PushOptions, Pushed, push};
use crate::config::Config;
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use std::path::PathBuf;

/// Archive a WAL segment, a history or a backup history file (PostgreSQL's archive_command)
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, in postgresql.conf:\n  archive_command = 'walden archive-push %p'")]
pub struct Args {
    /// The file, as PostgreSQL gives it with %p
    path: PathBuf,
    /// The system identifier, where neither the file nor pg_control tells it
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let sealer = setup::sealer(&config)?;
    let index = setup::index(&config);
    let options = PushOptions {
        cluster: config.cluster.clone(),
        origin: setup::origin(&config, args.system_identifier),
        acknowledge: config.archive.acknowledge.count(repositories.len()),
        parallel: config.archive.parallel,
        look_ahead: config.archive.look_ahead,
        event_rows: config.archive.event_rows,
    };
    let name = args.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let pushed = push(&args.path, &options, &repositories, &sealer, &index)
        .map_err(|error| error.context(format!("could not archive \"{name}\"")))?;
    match pushed {
        Pushed::KnownByIndex => tracing::debug!("\"{name}\" was archived by an earlier call"),
        Pushed::HeldAlready => tracing::debug!("\"{name}\" with the same content is archived already"),
        Pushed::Stored => tracing::debug!("archived \"{name}\""),
    }
    Ok(())
}
