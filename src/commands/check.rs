//! `walden check`: whether archiving, backups and recovery have what they need.

use super::output::{Format, json};
use super::{Global, operation, setup};
use crate::config::{self, Config, Encryption, Location};
use crate::error::exit_code;
use crate::kind::{Error, Result};
use crate::manual;
use crate::upkeep::check::{Item, State, Subject, Target, check, outcome};
use std::path::Path;
use std::time::Duration;

/// How long a store may stand still: a check says soon what is wrong.
const STALL: Duration = Duration::from_secs(10);

/// Check that archiving, backups and recovery have what they need
///
/// Configuration, keys, directories, the server, each repository, and a round trip: a restore point is made, the server
/// switches to another WAL segment, and the finished one must arrive in each repository and read back. One line for each
/// thing; the exit code is 0 unless one FAILED, else that of the first that did.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  walden check\n  walden check --no-round-trip --repository replica --output json"
)]
pub struct Args {
    /// Write nothing into the server: no restore point, no switch to another segment
    #[arg(long)]
    no_round_trip: bool,
    /// Look at this repository only
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let subject = Config::load(global.config.as_deref()).and_then(|config| subject(config, args));
    let mut show = |item: &Item| {
        if args.output == Format::Text {
            print!("{}", text(item));
        }
    };
    let items = match subject {
        Ok(subject) => check(subject, &mut show),
        Err(error) if error.kind() == crate::kind::Kind::Usage => return Err(error),
        // Nothing else can be looked at without it.
        Err(error) => {
            let item = Item::failed("config", &error);
            show(&item);
            vec![item]
        }
    };
    let result = outcome(&items);
    match args.output {
        Format::Text => println!("{}", summary(&items)),
        Format::Json => {
            let count = |state| items.iter().filter(|item| item.state == state).count();
            json(&serde_json::json!({
                "items": items.iter().map(|item| Told { item, page: page(item) }).collect::<Vec<_>>(),
                "verdict": if result.is_ok() { "OK" } else { "FAILED" },
                "exit_code": result.as_ref().map_or_else(|error| exit_code(error.kind()), |()| 0),
                "ok": count(State::Ok),
                "warning": count(State::Warning),
                "risk": count(State::Risk),
                "skipped": count(State::Skipped),
                "failed": count(State::Failed),
            }))?;
        }
    }
    // Into the log, if there is one, and what waits to be told goes out.
    match Config::load(global.config.as_deref()) {
        Ok(config) if config.index_path().exists() => {
            let index = setup::index(&config);
            operation::run(&config, &index, "check", "", |_| result)
        }
        _ => result,
    }
}

/// Returns what is to be checked.
fn subject(config: Config, args: &Args) -> Result<Subject> {
    if let Some(name) = &args.repository
        && !config.repositories.iter().any(|repository| repository.name == *name)
    {
        let known: Vec<&str> = config.repositories.iter().map(|r| r.name.as_str()).collect();
        return Err(Error::usage(format!("--repository {name}: no repository has that name"))
            .with_hint(format!("configured are {}", known.join(", "))));
    }
    let deadline = config.archive.deadline;
    let mut hasty = config.clone();
    hasty.archive.deadline = STALL;
    let mut targets = Vec::new();
    for (entry, repository) in config.repositories.iter().zip(setup::repositories(&hasty)?) {
        if args.repository.as_ref().is_some_and(|name| *name != entry.name) {
            continue;
        }
        let (directory, bucket) = match entry.location()? {
            Location::Directory(root) => (Some(root), None),
            Location::S3 { bucket, prefix } if prefix.is_empty() => (None, Some(bucket)),
            Location::S3 { bucket, prefix } => (None, Some(format!("{bucket}/{prefix}"))),
        };
        let conditional_writes = entry.conditional_writes.unwrap_or(true);
        targets.push(Target { repository, directory, bucket, conditional_writes });
    }
    let (recipients, identity_file) = match &config.encryption {
        Encryption::None => (Vec::new(), None),
        Encryption::Age { recipients, identity_file } => (recipients.clone(), identity_file.clone()),
    };
    Ok(Subject {
        config_path: config.path.clone(),
        default_config_path: Path::new(config::DEFAULT_PATH).to_path_buf(),
        cluster: config.cluster.clone(),
        data_dir: config.data_dir.clone(),
        state_dir: config.state_dir.clone(),
        cluster_state_dir: config.cluster_state_dir(),
        index_path: config.index_path(),
        connection: config.server.connection.clone(),
        recipients,
        identity_file,
        targets,
        deadline,
        round_trip: !args.no_round_trip,
        open_index: Box::new(move || setup::index(&config)),
    })
}

/// An item, as programs are told of it.
#[derive(serde::Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    item: &'a Item,
    page: Option<&'static str>,
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "OK",
        State::Warning => "WARNING",
        State::Risk => "RISK",
        State::Skipped => "SKIPPED",
        State::Failed => "FAILED",
    }
}

/// Returns the lines of an item.
fn text(item: &Item) -> String {
    let name = match &item.repository {
        Some(repository) => format!("{repository} {}", item.name),
        None => item.name.clone(),
    };
    let mut text = format!("{:7} {name}: {}\n", word(item.state), item.found);
    let mut hint: Vec<String> = item.hint.iter().flat_map(|hint| hint.lines()).map(str::to_owned).collect();
    match (page(item), hint.as_mut_slice()) {
        (None, _) => {}
        (Some(page), [line]) => *line += &format!("; see {page}"),
        // What has several lines is a policy or statements, to be copied.
        (Some(page), _) => hint.push(format!("see {page}")),
    }
    for (at, line) in hint.iter().enumerate() {
        text += &format!("        {}{line}\n", if at == 0 { "hint: " } else { "      " });
    }
    text
}

/// Returns the page of the manual that helps with what is not as it must be.
fn page(item: &Item) -> Option<&'static str> {
    match item.state {
        State::Ok | State::Skipped => None,
        State::Failed | State::Risk | State::Warning => manual::of_check(&item.name),
    }
}

/// Returns the line that everything ends in.
fn summary(items: &[Item]) -> String {
    let count = |state| items.iter().filter(|item| item.state == state).count();
    let states = [State::Ok, State::Warning, State::Risk, State::Skipped];
    let counted = states.into_iter().filter(|state| count(*state) > 0);
    let rest: Vec<String> = counted.map(|state| format!("{} {}", count(state), word(state))).collect();
    let failed = format!("{} FAILED", count(State::Failed));
    format!("{} checked: {}", items.len(), rest.into_iter().chain([failed]).collect::<Vec<_>>().join(", "))
}
