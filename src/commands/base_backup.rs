//! `walden base-backup`: a base backup of the local data directory into every repository.

use super::output::{Format, bytes, json};
use super::{Global, setup};
use crate::backup::{BackupOptions, Destinations, run as run_backup};
use crate::config::Config;
use crate::kind::{Error, Kind, Result};
use crate::progress::Progress;
use crate::repository::backup::{BackupSummary, new_backup_id};
use crate::repository::{ClusterKeys, ClusterState, Repository, ask_all};
use crate::server::Server;
use jiff::Timestamp;
use std::time::{Duration, Instant};

/// Take a base backup of the local data directory
///
/// Reads the files while the server runs, compresses and encrypts them, and sends them to every repository. The backup
/// counts, in each repository by itself, once the WAL that it needs is archived there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walden base-backup --fast --note 'before the migration'")]
pub struct Args {
    /// The label that the server notes for the backup
    #[arg(long, default_value = "walden")]
    label: String,
    /// A remark, shown by list
    #[arg(long)]
    note: Option<String>,
    /// Make the checkpoint at the start at once instead of spreading it
    #[arg(long)]
    fast: bool,
    /// Pin the backup: no retention removes it, until unpin
    #[arg(long)]
    keep: bool,
    /// How many pieces are built and sent at once [default: the number of processors, at least 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: Option<u16>,
    /// Read at most this many bytes per second; k, M and G are understood
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    max_rate: Option<u64>,
    /// How long to wait for the WAL of the backup to be archived
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_wait)]
    wait: Duration,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write it as 30s, 10m or 2h".to_owned())
}

fn parse_rate(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" => 1,
        "k" | "kB" => 1 << 10,
        "M" | "MB" => 1 << 20,
        "G" | "GB" => 1 << 30,
        _ => return Err("write it as 500k, 50M or 1G".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .filter(|rate| *rate > 0)
        .ok_or_else(|| "write it as 500k, 50M or 1G".to_owned())
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let sealer = setup::sealer(&config)?;
    let index = setup::index(&config);
    let control = setup::control_file(&config.data_dir)?;
    let sysid = control.system_identifier;
    let (ready, failed) = ready(&repositories, &config, sysid)?;
    let mut server = Server::connect(&config.server.connection)?;
    check_archiving(&mut server)?;
    let id = new_backup_id(Timestamp::now(), control.timeline);
    let keys = ClusterKeys::new(&config.cluster, sysid);
    let destinations = Destinations::new(keys.clone(), &id, ready, failed);
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let options = BackupOptions {
        id: id.clone(),
        cluster: config.cluster.clone(),
        data_dir: config.data_dir.clone(),
        label: args.label.clone(),
        note: args.note.clone(),
        fast: args.fast,
        parallel: args.parallel.map_or(processors.max(4), usize::from),
        max_rate: args.max_rate,
        temp_dir: temp_dir(&config),
    };
    let operation = index.log_start("base-backup", &id);
    let began = Instant::now();
    let progress = Progress::new();
    let result = super::progress::while_shown(&progress, "base backup", || {
        let summary = run_backup(&options, &mut server, &sealer, &destinations, &progress)?;
        progress.set_phase("wait for WAL");
        let (complete, failed) = destinations.complete(&summary, args.wait)?;
        Ok((summary, complete, failed))
    });
    index.log_end(operation, &result);
    let (summary, complete, failed) = result?;
    let pinned = if args.keep { super::pin::pin(&repositories, &keys, &id).map(drop) } else { Ok(()) };
    report(args, &summary, &complete, began.elapsed())?;
    if let Some((repository, error)) = failed.into_iter().next() {
        return Err(error
            .context(format!("backup {id} is complete, but not in repository \"{}\"", repository.name()))
            .with_hint("the next backup goes there again"));
    }
    pinned.map_err(|error| error.context(format!("backup {id} is complete, but not pinned everywhere")))?;
    if summary.bad_pages > 0 {
        return Err(Error::corrupt(format!("{} pages have wrong checksums", summary.bad_pages)).with_hint(
            "the backup is kept; the damage is in the database itself: look at it with pg_amcheck before older backups \
             expire",
        ));
    }
    Ok(())
}

/// Returns where the accounts of very many files are kept meanwhile: the system's directory may be in memory.
fn temp_dir(config: &Config) -> std::path::PathBuf {
    let state = config.cluster_state_dir();
    if state.is_dir() { state } else { std::env::temp_dir() }
}

/// Without the WAL of its time a backup is worth nothing, and a server that does not archive will never send it. A standby
/// leaves that to its primary.
fn check_archiving(server: &mut Server) -> Result<()> {
    if server.is_in_recovery()? || server.setting("archive_mode")? != "off" {
        return Ok(());
    }
    Err(Error::new(
        Kind::Server,
        "archive_mode is off: the WAL that the backup needs would never be archived",
    )
    .with_hint("walden init --apply sets it; then restart the server"))
}

type Failed<'r> = Vec<(&'r Repository, Error)>;

/// Returns the repositories that know the cluster, and why the others cannot take part. Fails when none does.
fn ready<'r>(
    repositories: &'r [Repository],
    config: &Config,
    sysid: crate::postgres::SystemIdentifier,
) -> Result<(Vec<&'r Repository>, Failed<'r>)> {
    let all: Vec<&Repository> = repositories.iter().collect();
    let answers = ask_all(
        &all,
        usize::MAX,
        |repository, deadline| (repository, ClusterState::ask(repository, &config.cluster, sysid, deadline)),
        |_| false,
    );
    let (mut ready, mut failed) = (Vec::new(), Vec::new());
    for (repository, answer) in answers {
        let error = match answer {
            Ok(ClusterState::Known(_)) => {
                ready.push(repository);
                continue;
            }
            Ok(ClusterState::OtherOnly(_)) => Error::corrupt(format!(
                "repository \"{}\" is not initialised for system identifier {sysid}",
                repository.name()
            ))
            .with_hint("run walden init again"),
            Ok(ClusterState::Nothing) => Error::new(
                Kind::Repository,
                format!("repository \"{}\" holds no cluster \"{}\"", repository.name(), config.cluster),
            )
            .with_hint("not mounted, a wrong prefix, or not initialised: walden init"),
            Err(error) => repository.error("look into", &error),
        };
        failed.push((repository, error));
    }
    match failed.first() {
        Some((_, error)) if ready.is_empty() => Err(error.clone()),
        _ => {
            for (_, error) in &failed {
                tracing::warn!("{error}; the backup goes to the other repositories");
            }
            Ok((ready, failed))
        }
    }
}

fn report(args: &Args, summary: &BackupSummary, complete: &[&Repository], elapsed: Duration) -> Result<()> {
    let names: Vec<&str> = complete.iter().map(|repository| repository.name()).collect();
    if args.output == Format::Json {
        let mut value = serde_json::to_value(summary).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.remove("pieces");
            object.insert("repositories".into(), names.into());
        }
        return json(&value);
    }
    println!(
        "Backup {} is complete in {}: {} files, {} (stored {}), {} to {}, in {:.1} s",
        summary.id,
        names.join(", "),
        summary.files,
        bytes(summary.size),
        bytes(summary.stored_size),
        summary.start_lsn,
        summary.stop_lsn,
        elapsed.as_secs_f64()
    );
    println!(
        "From now on the cluster can be recovered to any moment after {}",
        crate::recovery::target::utc(summary.stop_time)
    );
    Ok(())
}
