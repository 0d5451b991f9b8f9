//! `walden metrics`: what status knows, for Prometheus.

use super::{Global, judge, setup};
use crate::config::Config;
use crate::durable;
use crate::kind::{Context, Result};
use crate::postgres::SystemIdentifier;
use crate::upkeep::metrics::{render, unknown};
use jiff::Timestamp;
use std::path::PathBuf;

/// Print metrics in the text format of Prometheus
///
/// Everything that status judges, for node_exporter's textfile collector or any other. Exits with 0 once metrics are
/// written, also of repositories that cannot be reached: walden_up, walden_repository_up and walden_verdict say so.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walden metrics --textfile /var/lib/prometheus/node-exporter/walden.prom")]
pub struct Args {
    /// Write to this file in one step instead of printing
    #[arg(long, value_name = "PATH")]
    textfile: Option<PathBuf>,
    /// The system identifier, where the data directory is not here
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let index = setup::index_or_memory(&config);
    let now = Timestamp::now();
    let judged = judge::look(&config, &repositories, args.system_identifier, &index, now);
    let text = match &judged {
        Ok(judged) => {
            let acknowledge = judge::acknowledge(&config);
            render(&judged.status, &judged.circumstances, &judged.verdict, acknowledge, now)
        }
        Err(error) => {
            tracing::warn!("{error}");
            unknown(&config.cluster, now)
        }
    };
    match &args.textfile {
        Some(path) => {
            let path = durable::absolute(path).context("--textfile")?;
            write(&path, &text).context("write metrics")?;
        }
        None => print!("{text}"),
    }
    if let Ok(judged) = &judged {
        judge::tell(&config, &index, judged);
    }
    Ok(())
}

/// Whoever collects them runs as another user, whatever this one's umask is.
fn write(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let (mut file, temp) = durable::temp_beside(path, 0o644)?;
    file.write_all(text.as_bytes()).map_err(durable::at(temp.path()))?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(durable::at(temp.path()))?;
    std::fs::rename(temp.path(), path).map_err(durable::at(path))?;
    temp.forget();
    Ok(())
}
