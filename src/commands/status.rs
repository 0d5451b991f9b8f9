//! `walden status`: repositories, backups, and what can be recovered.

use super::output::{Format, bytes, count, json, table, time};
use super::{Global, judge, setup};
use crate::config::Config;
use crate::kind::{Error, Kind, Result};
use crate::postgres::SystemIdentifier;
use crate::recovery::target::utc;
use crate::upkeep::bad_pages::BadPagesFound;
use crate::upkeep::status::{RepositoryStatus, Status, Window};
use crate::upkeep::verdict::{Thresholds, Verdict, age, oldest_unarchived};
use jiff::{SignedDuration, Timestamp};

/// How many backups the screen shows.
const SHOWN: usize = 10;
/// What monitoring takes for "cannot be said".
const UNKNOWN: u8 = 3;

/// Show the repositories, the backups and what can be recovered, and whether all is well
///
/// Ends in a verdict: OK, WARNING or CRITICAL with its reasons. Thresholds are in [status] of the configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  walden status --output json\n  walden status --monitor")]
pub struct Args {
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
    /// For monitoring: the verdict first, and the exit code 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN
    #[arg(long)]
    monitor: bool,
    /// The system identifier, where the data directory is not here
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
    /// Take this for the present time
    #[arg(long, value_name = "TIME", hide = true)]
    now: Option<Timestamp>,
}

/// Runs the command and returns its exit code.
pub fn run(global: &Global, args: &Args) -> Result<u8> {
    let result = report(global, args);
    match result {
        Err(error) if args.monitor => {
            println!("UNKNOWN: {error}");
            Ok(UNKNOWN)
        }
        result => result,
    }
}

fn report(global: &Global, args: &Args) -> Result<u8> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let index = setup::index_or_memory(&config);
    let now = args.now.unwrap_or_else(Timestamp::now);
    let judged = judge::look(&config, &repositories, args.system_identifier, &index, now)?;
    let (found, verdict) = (&judged.status, &judged.verdict);
    match args.output {
        Format::Json => json(&judged)?,
        Format::Text if args.monitor => {
            let acknowledge = judge::acknowledge(&config);
            println!("{verdict} | {}", performance(found, acknowledge, &config.status, now));
            print!("{}{}", reasons(verdict), text(found));
        }
        Format::Text => print!("{}\n{}{verdict}\n", text(found), reasons(verdict)),
    }
    if args.monitor {
        judge::tell(&config, &index, &judged);
        return Ok(verdict.verdict.exit_code());
    }
    if found.repositories.iter().all(|repository| repository.problem.is_some()) {
        return Err(
            Error::new(Kind::Repository, "no repository can be used").with_hint("the reasons stand above")
        );
    }
    Ok(0)
}

/// Returns a line for each reason, with what to do.
fn reasons(verdict: &Verdict) -> String {
    let line = |reason: &crate::upkeep::verdict::Reason| {
        let page =
            crate::manual::of_rule(reason.rule).map(|page| format!("; see {page}")).unwrap_or_default();
        format!("{} {}: {}; hint: {}{page}\n", reason.level.word(), reason.rule, reason.text, reason.hint)
    };
    verdict.reasons.iter().map(line).collect()
}

/// Returns what Nagios calls performance data: `label=value;warning;critical`.
fn performance(status: &Status, acknowledge: usize, thresholds: &Thresholds, now: Timestamp) -> String {
    let mut data = Vec::new();
    if let Some(newest) = status.backups.first() {
        let seconds = age(now, newest.stop_time).as_secs();
        data.push(format!("backup_age={seconds}s;;{}", thresholds.backup_age.as_secs()));
    }
    if status.pg_wal_read {
        let seconds = oldest_unarchived(status, acknowledge).map_or(0, |oldest| age(now, oldest).as_secs());
        let (warning, critical) = (thresholds.unarchived_warning, thresholds.unarchived_critical);
        data.push(format!("unarchived={seconds}s;{};{}", warning.as_secs(), critical.as_secs()));
    }
    let down = status.repositories.iter().filter(|repository| repository.problem.is_some()).count();
    data.push(format!("repositories_down={down};0"));
    data.push(format!("backups={}", status.backups.len()));
    data.join(" ")
}

/// Returns what there is to say of a repository beside its row: why it cannot be used, and what it lacks.
fn more_of(repository: &RepositoryStatus) -> String {
    let mut out = String::new();
    let name = &repository.name;
    if let Some(problem) = &repository.problem {
        out += &format!("  {name} is UNUSABLE: {problem}\n");
        if repository.behind > 0 {
            out += &format!(
                "  {name} lacks {} that others hold\n",
                count(repository.behind as usize, "segment")
            );
        }
    }
    if let Some(oldest) = repository.oldest_unarchived_commit {
        out += &format!("  {name}: the oldest commit that is not archived there is of {}\n", time(oldest));
    }
    if let Some(breaker) = &repository.breaker {
        let failed = count(breaker.failures as usize, "call");
        let since = breaker.since.map_or(String::new(), |since| format!(" since {}", time(since)));
        let until = match breaker.until {
            Some(until) if breaker.open => format!("archive-push leaves it alone until {}", time(until)),
            _ => "the next archive-push tries it again".to_owned(),
        };
        out += &format!("  {name}: {failed} failed{since}; {until}; {}\n", breaker.last_error);
    }
    out
}

fn window_text(window: &Window) -> String {
    let to = match (window.to, window.to_is_commit) {
        (Some(to), true) => format!("the last archived commit at {}", utc(to)),
        (Some(to), false) => format!("the WAL stored at {}", time(to)),
        (None, _) => format!("LSN {}", window.end_lsn),
    };
    let mut out =
        format!("  timeline {}: any moment from {} to {to}\n", window.timeline.0, time(window.from));
    let until = window
        .resumes
        .map_or(String::new(), |next| format!("; no moment between that and {} can be reached", time(next)));
    if let Some(gap) = window.gap {
        out += &format!("    GAP: WAL segment {gap} is missing, later ones exist{until}\n");
    } else if let Some(bad) = &window.bad_wal {
        out += &format!(
            "    BAD WAL: the record at {} in segment {} cannot be read{until}\n",
            bad.lsn, bad.segment
        );
    }
    out
}

/// Returns what the server writes, and how far the archive is behind.
fn wal_text(status: &Status) -> String {
    let mut out = String::new();
    if let Some(newest) = status.newest_commit {
        let age = SignedDuration::from_secs(Timestamp::now().duration_since(newest).as_secs());
        out += &format!("  newest archived commit: {} ({age:#} ago)\n", utc(newest));
    }
    if let Some(wal) = status.wal {
        out += &format!("  {}/s of WAL over the last hour", bytes(wal.bytes_per_second));
        match (wal.free_bytes, wal.full_after_seconds) {
            (Some(free), Some(seconds)) => {
                let after = SignedDuration::from_secs(seconds.cast_signed());
                out += &format!(
                    "; if archiving stood still, the disk of pg_wal ({} free) would be full after {after:#}",
                    bytes(free)
                );
            }
            (Some(free), None) => out += &format!("; {} free on the disk of pg_wal", bytes(free)),
            (None, _) => {}
        }
        out += "\n";
    }
    if out.is_empty() { out } else { format!("\nWAL\n{out}") }
}

fn text(status: &Status) -> String {
    let mut out = format!("Cluster \"{}\", system identifier {}\n", status.cluster, status.system_identifier);
    out += "\nRepositories\n";
    let mut rows = vec![];
    for repository in &status.repositories {
        let state = match &repository.problem {
            Some(_) => vec!["UNUSABLE".to_owned()],
            None => vec![
                match repository.behind {
                    0 => "ok".to_owned(),
                    n => format!("{} behind", count(n as usize, "segment")),
                },
                format!(
                    "{}, {}",
                    count(repository.segments as usize, "segment"),
                    bytes(repository.stored_bytes)
                ),
                match (repository.newest_segment, repository.newest_stored) {
                    (Some(name), Some(stored)) => format!("newest {name} at {}", time(stored)),
                    (Some(name), None) => format!("newest {name}"),
                    _ => "no WAL yet".to_owned(),
                },
                count(repository.backups, "backup"),
            ],
        };
        rows.push([vec![repository.name.clone(), repository.url.clone()], state].concat());
    }
    out += &table(&rows);
    for repository in &status.repositories {
        out += &more_of(repository);
    }
    if !status.pg_wal_read {
        out += "  what is not archived yet is not known: the server's pg_wal is not on this machine\n";
    }
    for bad in &status.bad_wal {
        out += &format!(
            "  CRITICAL: WAL segment {} has a bad record at {}: {}; no recovery can pass it: take a base backup now\n",
            bad.segment, bad.lsn, bad.reason
        );
    }
    for damage in &status.damage {
        out +=
            &format!("  DAMAGED: {} in {}: {}; walden sync mends it\n", damage.key, damage.url, damage.what);
    }
    out += &status.bad_pages.as_ref().map(BadPagesFound::text).unwrap_or_default();
    out += &wal_text(status);
    out += "\nBackups\n";
    let unknown = status.repositories.iter().all(|repository| repository.problem.is_some());
    if unknown {
        out += "  unknown: no repository can be asked\n";
    } else if status.backups.is_empty() {
        out += "  none: take one with walden base-backup\n";
    }
    let rows: Vec<Vec<String>> = status
        .backups
        .iter()
        .take(SHOWN)
        .map(|backup| {
            let mut row = vec![
                backup.id.clone(),
                format!("ended {}", time(backup.stop_time)),
                format!("{} (stored {})", bytes(backup.size), bytes(backup.stored_size)),
                format!("in {}", backup.repositories.join(", ")),
            ];
            if backup.bad_pages > 0 {
                row.push(format!("{} BAD PAGES", backup.bad_pages));
            }
            row
        })
        .collect();
    out += &table(&rows);
    if status.backups.len() > SHOWN {
        out += &format!("  and {} older ones: walden list\n", status.backups.len() - SHOWN);
    }
    out += "\nCan be recovered\n";
    if unknown {
        out += "  unknown: no repository can be asked\n";
    } else if status.windows.is_empty() {
        out += "  nothing yet\n";
    }
    for window in &status.windows {
        out += &window_text(window);
    }
    out
}
