//! `walden sync`: copies what a repository lacks.

use super::output::{Format, bytes, count, json};
use super::{Global, operation, setup};
use crate::config::Config;
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::upkeep::expire::wanted;
use crate::upkeep::sync::{Outcome, Task, mend, plan, run as copy};

/// Copy what a repository lacks from one that has it
///
/// Copies objects as they are stored; no key is needed. Broken off, the next run goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walden sync --dry-run")]
pub struct Args {
    /// Only say what is lacking
    #[arg(long)]
    dry_run: bool,
    /// How many objects are copied at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
    /// The system identifier, where the data directory is not here
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let sysid = setup::cluster_identifier(&config, &repositories, args.system_identifier)?;
    let _lock = setup::upkeep_lock(&config);
    let index = setup::index(&config);
    if !args.dry_run {
        for key in mend(&repositories, &index)? {
            tracing::info!("mended {key}");
        }
    }
    let (mut tasks, stamps) = plan(&config.cluster, sysid, &repositories)?;
    leave_out_expired(&config, &repositories, &mut tasks);
    let total: u64 = tasks.iter().map(|task| task.object.size).sum();
    if args.dry_run {
        if args.output == Format::Json {
            let list: Vec<serde_json::Value> = tasks
                .iter()
                .map(|task| {
                    serde_json::json!({ "key": task.object.key, "bytes": task.object.size,
                                        "from": task.from.name(), "to": task.to.name() })
                })
                .collect();
            return json(&list);
        }
        for task in &tasks {
            println!("{} from {} to {}", task.object.key, task.from.name(), task.to.name());
        }
        println!("{} objects to copy, {}", tasks.len(), bytes(total));
        return Ok(());
    }
    operation::run(&config, &index, "sync", &count(tasks.len(), "object"), |details| {
        let progress = Progress::new();
        let outcome = super::progress::while_shown(&progress, "sync", || {
            copy(&tasks, &stamps, sysid, usize::from(args.parallel), &index, &progress)
        });
        details.note("copied", outcome.copied);
        details.note("bytes", outcome.bytes);
        details.note("failed", outcome.failed.len());
        report(args, &tasks, outcome)
    })
}

fn report(args: &Args, tasks: &[Task<'_>], outcome: Outcome) -> Result<()> {
    if args.output == Format::Json {
        json(&outcome)?;
    } else if tasks.is_empty() {
        println!("Every repository has everything.");
    } else {
        println!("Copied {} objects, {}", outcome.copied, bytes(outcome.bytes));
    }
    match outcome.failed.first().cloned() {
        Some(error) => Err(error.context(format!(
            "{} of {} objects could not be copied",
            outcome.failed.len(),
            tasks.len()
        ))),
        None => Ok(()),
    }
}

/// Takes out what the next expire would remove again.
fn leave_out_expired(config: &Config, repositories: &[Repository], tasks: &mut Vec<Task<'_>>) {
    for to in repositories {
        let Some(policy) = config.retention_of(to.name()) else { continue };
        if !tasks.iter().any(|task| task.to.name() == to.name()) {
            continue;
        }
        let others: Vec<&Repository> =
            repositories.iter().filter(|other| other.name() != to.name()).collect();
        let now = jiff::Timestamp::now();
        let Some(wanted) = wanted(&config.cluster, (to, policy), &others, now) else { continue };
        let before = tasks.len();
        tasks.retain(|task| task.to.name() != to.name() || wanted(&task.object.key));
        let left_out = before - tasks.len();
        if left_out > 0 {
            let objects = count(left_out, "object");
            tracing::info!(
                "{objects} that the retention of repository \"{}\" does not keep are not copied",
                to.name()
            );
        }
    }
}
