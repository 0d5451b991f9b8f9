//! `walden expire`: applies the retention.

use super::output::{Format, bytes, count, json, table, time};
use super::{Global, operation, setup};
use crate::config::Config;
use crate::index::IndexHandle;
use crate::kind::{Error, Kind, Result};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::upkeep::expire::{Outcome, Plan, Request, SystemPlan, carry_out, plan};
use jiff::Timestamp;
use std::fmt::Write as _;

/// Remove the backups and the WAL that the retention does not keep
///
/// Shows the plan, then carries it out. Broken off at any point, only whole backups are left, and the next run goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  walden expire --dry-run\n  walden expire --repository replica")]
pub struct Args {
    /// Only show the plan
    #[arg(long)]
    dry_run: bool,
    /// Remove from this repository only
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
    /// Take this for the present time
    #[arg(long, value_name = "TIME", hide = true)]
    now: Option<Timestamp>,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    check(&config, args.repository.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let _lock = setup::upkeep_lock(&config);
    let index = setup::index(&config);
    let request = Request {
        cluster: &config.cluster,
        repositories: repositories.iter().map(|r| (r, config.retention_of(r.name()))).collect(),
        only: args.repository.as_deref(),
        now: args.now.unwrap_or_else(Timestamp::now),
        busy: setup::backups_in_progress(&config),
    };
    let plan = plan(&request);
    if args.output == Format::Text {
        print!("{}", text(&plan));
        for repository in without_retention(&config, &repositories) {
            println!("Repository \"{repository}\" has no retention: nothing is removed from it.");
        }
    }
    if args.dry_run {
        if args.output == Format::Json {
            json(&plan)?;
        }
        return skipped(&plan);
    }
    if plan.skipped.is_empty() && plan.repositories.iter().all(|repository| repository.removed().objects == 0)
    {
        operation::deliver(&config, &index);
        return finish(args, &plan, vec![]);
    }
    operation::run(&config, &index, "expire", "", |details| {
        let outcomes = remove(&plan, &index);
        let removed = |outcome: &Outcome| {
            serde_json::json!({ "repository": outcome.name, "objects": outcome.objects, "bytes": outcome.bytes,
                                "refused": outcome.refused })
        };
        details.subject(&subject(&outcomes));
        details.note("removed", outcomes.iter().map(removed).collect::<Vec<_>>());
        finish(args, &plan, outcomes)
    })
}

/// Returns what was removed, in a few words.
fn subject(outcomes: &[Outcome]) -> String {
    let part = |outcome: &Outcome| {
        format!("{} of {} from {}", count(outcome.objects, "object"), bytes(outcome.bytes), outcome.name)
    };
    outcomes.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn finish(args: &Args, plan: &Plan<'_>, outcomes: Vec<Outcome>) -> Result<()> {
    if args.output == Format::Json {
        json(&serde_json::json!({ "plan": plan, "outcome": outcomes }))?;
    }
    for outcome in &outcomes {
        report(outcome, args.output);
    }
    match outcomes.into_iter().find_map(|outcome| outcome.failed) {
        Some(error) => Err(error.with_hint("only whole backups are left; the next walden expire goes on")),
        None => skipped(plan),
    }
}

/// Refuses where nothing could be removed at all.
fn check(config: &Config, only: Option<&str>) -> Result<()> {
    if let Some(name) = only
        && !config.repositories.iter().any(|repository| repository.name == name)
    {
        let known: Vec<&str> = config.repositories.iter().map(|r| r.name.as_str()).collect();
        return Err(Error::usage(format!("--repository {name}: no repository has that name"))
            .with_hint(format!("configured are {}", known.join(", "))));
    }
    let mut named = config.repositories.iter().map(|repository| repository.name.as_str());
    if named.any(|name| only.is_none_or(|only| only == name) && config.retention_of(name).is_some()) {
        return Ok(());
    }
    Err(Error::config("no retention is configured: nothing is removed").with_hint(
        "say what is to be kept in [retention], or in the retention of a [[repository]]: keep_daily = 30, window = \"7d\"",
    ))
}

fn without_retention<'r>(config: &Config, repositories: &'r [Repository]) -> Vec<&'r str> {
    let names = repositories.iter().map(Repository::name);
    names.filter(|name| config.retention_of(name).is_none()).collect()
}

fn remove(plan: &Plan<'_>, index: &IndexHandle) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for repository in plan.repositories.iter().filter(|repository| repository.removed().objects > 0) {
        let removed = repository.removed();
        let progress = Progress::new();
        progress.set_total(removed.bytes);
        let outcome =
            super::progress::while_shown(&progress, "expire", || carry_out(repository, index, &progress));
        outcomes.push(outcome);
    }
    outcomes
}

fn report(outcome: &Outcome, format: Format) {
    let name = &outcome.name;
    if format == Format::Text {
        println!(
            "Repository \"{name}\": removed {}, {}",
            count(outcome.objects, "object"),
            bytes(outcome.bytes)
        );
    }
    if outcome.refused > 0 {
        for refusal in &outcome.refusals {
            tracing::warn!("repository \"{name}\" does not let go of {refusal}");
        }
        let error = Error::new(
            Kind::Repository,
            format!("repository \"{name}\": {} could not be removed", count(outcome.refused, "object")),
        );
        tracing::warn!(
            "{}",
            error.with_hint(
                "the store refuses (no right to delete, Object Lock): it keeps them, and a later walden expire tries again"
            )
        );
    }
}

/// Fails where repositories were left out.
fn skipped(plan: &Plan<'_>) -> Result<()> {
    match plan.skipped.first() {
        Some(skipped) => {
            for other in &plan.skipped[1..] {
                tracing::warn!("{}", other.error);
            }
            let context = format!("repository \"{}\" was left alone", skipped.name);
            Err(skipped.error.clone().context(context))
        }
        None => Ok(()),
    }
}

fn text(plan: &Plan<'_>) -> String {
    let mut out = String::new();
    for repository in &plan.repositories {
        let _ = write!(out, "Repository \"{}\" keeps {}", repository.name, repository.policy);
        if let Some(start) = repository.window_start {
            let _ = write!(out, " (from {} to {})", time(start), time(repository.reference));
        }
        out += "\n";
        let several = repository.systems.len() > 1;
        for system in &repository.systems {
            if several {
                let _ = writeln!(out, "  System identifier {}", system.system_identifier);
            }
            out += &system_text(system);
        }
    }
    for skipped in &plan.skipped {
        let _ = writeln!(out, "Repository \"{}\" is left alone: {}", skipped.name, skipped.error);
    }
    out
}

fn system_text(system: &SystemPlan) -> String {
    let row =
        |word: &str, what: String, stored: u64, why: String| vec![word.to_owned(), what, bytes(stored), why];
    let mut rows = Vec::new();
    for backup in &system.backups {
        let reasons: Vec<String> = backup.reasons.iter().map(ToString::to_string).collect();
        let word = if backup.stays() { "keep" } else { "REMOVE" };
        let problem = backup.problem.iter().map(|problem| format!("NOT USABLE: {problem}"));
        let why = reasons.into_iter().chain(problem).collect::<Vec<_>>().join(", ");
        let what = format!("backup {} ended {}", backup.id, time(backup.stop_time));
        rows.push(row(word, what, backup.stored.bytes, why));
    }
    for leftover in &system.leftovers {
        let what = format!("leftovers of backup {}", leftover.id);
        rows.push(row("REMOVE", what, leftover.bytes, "broken off".to_owned()));
    }
    for leftover in &system.leftovers_kept {
        let what = format!("unfinished backup {}", leftover.id);
        rows.push(row("keep", what, leftover.bytes, "it may still be running".to_owned()));
    }
    let wal = |n: usize| count(n, "WAL object");
    rows.push(row("keep", wal(system.wal_kept.objects), system.wal_kept.bytes, String::new()));
    if system.wal_removed.objects > 0 {
        rows.push(row("REMOVE", wal(system.wal_removed.objects), system.wal_removed.bytes, String::new()));
    }
    let mut out = table(&rows);
    for (other, segments) in &system.wal_kept_for {
        let _ = writeln!(
            out,
            "  {} of these stay because repository \"{other}\" needs and lacks them: walden sync copies them",
            count(*segments, "segment")
        );
    }
    out
}
