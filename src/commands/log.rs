//! `walden log`: who did what when, with which outcome.

use super::events::moment;
use super::output::{Format, json, table, time};
use super::{Global, setup};
use crate::config::Config;
use crate::index::{Operation, OperationFilter, host};
use crate::kind::{Error, Kind, Result};
use jiff::Timestamp;

/// Show who did what when, and how it ended
///
/// From this machine's index: recoveries, backups, expiry, and everything else that changes something. Newest last.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  walden log --since '7 days ago'\n  walden log --kind recover --kind restore --output json"
)]
pub struct Args {
    /// Only what began then or later: a time as recover takes it
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what began before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only this command, as base-backup, recover, expire, sync, "index rebuild" (may be given several times)
    #[arg(long, value_name = "COMMAND")]
    kind: Vec<String>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let now = jiff::Zoned::now();
    let time_of = |option: &str, text: &Option<String>| -> Result<Option<Timestamp>> {
        let us = text.as_deref().map(|text| moment(option, text, &now)).transpose()?;
        Ok(us.and_then(|us| Timestamp::from_microsecond(us).ok()))
    };
    let filter = OperationFilter {
        since: time_of("--since", &args.since)?,
        until: time_of("--until", &args.until)?,
        commands: args.kind.clone(),
    };
    let index = setup::index(&config);
    let mut log = index.run(|index| index.operations_of(&filter, args.limit)).ok_or_else(|| {
        Error::new(Kind::Other, "there is no index on this machine, and the log is kept in it")
            .with_hint("it begins with the first command that writes one")
    })?;
    log.reverse();
    match args.output {
        Format::Json => json(&log.iter().map(entry).collect::<Vec<_>>()),
        Format::Text => {
            if log.is_empty() {
                println!("The log has nothing of that.");
            }
            print!("{}", table(&log.iter().map(row).collect::<Vec<_>>()));
            Ok(())
        }
    }
}

/// Returns whether the process that began it still runs, as far as this machine can tell.
fn is_running(operation: &Operation) -> bool {
    let name = |process: &str| std::fs::read_to_string(format!("/proc/{process}/comm")).ok();
    operation.finished.is_none()
        && operation.host.as_deref() == Some(host().as_str())
        && name(&operation.process.to_string()).is_some_and(|of| Some(of) == name("self"))
}

fn outcome(operation: &Operation) -> String {
    match &operation.outcome {
        Some(outcome) if outcome == "done" => "done".to_owned(),
        Some(error) => {
            let code = operation.exit_code.map_or(String::new(), |code| format!(" ({code})"));
            format!("FAILED{code}: {error}")
        }
        None if is_running(operation) => "runs".to_owned(),
        None => "did not end".to_owned(),
    }
}

fn entry(operation: &Operation) -> serde_json::Value {
    let details = operation.details.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let state = match operation.outcome.as_deref() {
        Some("done") => "done",
        Some(_) => "failed",
        None if is_running(operation) => "runs",
        None => "did not end",
    };
    serde_json::json!({
        "kind": operation.command,
        "detail": operation.detail,
        "user": operation.user,
        "host": operation.host,
        "process": operation.process,
        "started": operation.started,
        "finished": operation.finished,
        "state": state,
        "exit_code": operation.exit_code,
        "error": operation.outcome.as_ref().filter(|outcome| *outcome != "done"),
        "details": details.unwrap_or(serde_json::Value::Null),
    })
}

fn row(operation: &Operation) -> Vec<String> {
    let seconds = operation.finished.map(|finished| finished.duration_since(operation.started).as_secs_f64());
    let who =
        format!("{}@{}", operation.user.as_deref().unwrap_or("?"), operation.host.as_deref().unwrap_or("?"));
    vec![
        time(operation.started),
        seconds.map_or(String::new(), |seconds| format!("{seconds:.1} s")),
        who,
        format!("{} {}", operation.command, operation.detail).trim_end().to_owned(),
        outcome(operation),
    ]
}
