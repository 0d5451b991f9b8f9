//! `walden events`: when did it happen, and which `--until` brings it back?

use super::output::{Format, json, table};
use super::{Global, setup};
use crate::config::Config;
use crate::index::{EventFilter, EventKind, EventRow, Index};
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::{SystemIdentifier, TimelineId};
use crate::progress::Progress;
use crate::recovery::catalog::Catalog;
use crate::recovery::target::{Target, utc};
use crate::repository::Repository;
use crate::upkeep::deep::{Span, read_deep};
use crate::upkeep::events::{EventReport, Query, events};
use jiff::Timestamp;

/// From how many rows on a DELETE or an UPDATE is shown.
const MANY_ROWS: u64 = 1000;
/// How many tables of an event the screen names.
const NAMED: usize = 5;

/// Show what was dropped, emptied or changed in masses, and the command that brings it back
///
/// Tells from the WAL that was archived: DROP TABLE, TRUNCATE, DROP DATABASE, transactions that deleted or updated many
/// rows, and restore points; each with its time, and the recovery that stops right before it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  walden events --since '2 hours ago'\n  \
    walden events --kind drop,truncate --table public.orders\n  walden events --kind delete --min-rows 50000 --output json")]
pub struct Args {
    /// Not before this time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only these kinds: drop, truncate, delete, update, drop-database, restore-point
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<EventKind>,
    /// Only those of this table: its name, with or without schema and database, or its OID
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// DELETE and UPDATE of so many rows at least, in one transaction
    #[arg(long, value_name = "N", default_value_t = MANY_ROWS)]
    min_rows: u64,
    /// Fetch and read archived segments that the index has not read (needs the identity)
    #[arg(long)]
    deep: bool,
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
    let now = jiff::Zoned::now();
    let time = |option: &str, text: &Option<String>| {
        text.as_deref().map(|text| moment(option, text, &now)).transpose()
    };
    let query = Query {
        filter: EventFilter {
            since: time("--since", &args.since)?,
            until: time("--until", &args.until)?,
            kinds: args.kind.clone(),
            min_rows: args.min_rows,
        },
        table: args.table.clone(),
    };
    let path = config.index_path();
    if !path.exists() && !args.deep {
        return Err(Error::new(Kind::Other, format!("there is no index at \"{}\"", path.display()))
            .with_hint(
                "archive-push makes it, on the host that archives; here walden index rebuild or --deep does, with the identity",
            ));
    }
    let index = open_index(&config)?;
    let sysid = match (args.system_identifier, index.system_identifiers()?.as_slice()) {
        (Some(given), _) => given,
        (None, [only]) => *only,
        (None, _) => setup::cluster_identifier(&config, &setup::repositories(&config)?, None)?,
    };
    if args.deep {
        deep(&config, sysid, &query, &index)?;
    }
    let newest = index.newest_timeline(sysid)?;
    let is_later = |event: &EventRow| {
        event.kind == EventKind::RestorePoint
            && index.has_earlier_restore_point(sysid, &event.name, event.lsn).unwrap_or(true)
    };
    let command = |event: &EventRow| command(global, &config, event, is_later(event), newest);
    let found = events(&index, sysid, &query, command)?;
    match args.output {
        Format::Json => json(&found),
        Format::Text => {
            print!(
                "{}",
                if found.is_empty() {
                    none_known(index.wal_totals(sysid)?.newest_commit)
                } else {
                    text(&found)
                }
            );
            Ok(())
        }
    }
}

fn open_index(config: &Config) -> Result<Index> {
    let path = config.index_path();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).context("create the directory of the index")?;
    }
    let index = Index::open(&path)?;
    setup::give_to(&config.cluster_state_dir(), setup::owner_for(&config.data_dir))?;
    Ok(index)
}

fn deep(config: &Config, sysid: SystemIdentifier, query: &Query, index: &Index) -> Result<()> {
    let repositories = setup::repositories(config)?;
    let opener = setup::opener(config)?;
    let repositories: Vec<&Repository> = repositories.iter().collect();
    let catalog = Catalog::read_some(&repositories, &config.cluster, sysid, &|_| Vec::new())?;
    let time = |us: Option<i64>| us.and_then(|us| Timestamp::from_microsecond(us).ok());
    let span = Span { since: time(query.filter.since), until: time(query.filter.until) };
    let progress = Progress::new();
    let count = super::progress::while_shown(&progress, "read WAL", || {
        read_deep(&catalog, span, config.archive.event_rows, &opener, index, &progress)
    })?;
    tracing::info!("{count} segments were read that the index did not cover");
    Ok(())
}

/// Returns the time that was given with `option`, in µs since 1970.
pub(super) fn moment(option: &str, text: &str, now: &jiff::Zoned) -> Result<i64> {
    match Target::parse(text, now) {
        Ok(Target::Time(time)) => Ok(time.as_microsecond()),
        _ => Err(Error::usage(format!("{option} \"{text}\" is no time"))
            .with_hint("times are '2026-11-20 14:30:00+01', '2026-11-20 14:30' or '10 minutes ago'")),
    }
}

/// Returns the command that restores a copy beside the original, up to right before the event, or to the restore point:
/// by its position where it `is_later` than another of its name.
fn command(
    global: &Global,
    config: &Config,
    event: &EventRow,
    is_later: bool,
    newest: Option<TimelineId>,
) -> String {
    let mut words = vec!["walden".to_owned()];
    if let Some(path) = &global.config {
        words.extend(["--config".to_owned(), setup::shell_word(&path.to_string_lossy())]);
    }
    words.extend(["recover".to_owned(), "--until".to_owned()]);
    if is_later {
        words.push(format!("lsn:{}", event.lsn));
    } else if event.kind == EventKind::RestorePoint {
        words.push(setup::shell_word(&format!("name:{}", event.name)));
    } else {
        words.extend([format!("lsn:{}", event.lsn), "--exclusive".to_owned()]);
    }
    if newest.is_some_and(|newest| newest > event.timeline) {
        words.push(format!("--timeline {}", event.timeline.0));
    }
    let copy = format!("{}.recovered", config.data_dir.display());
    words.extend([format!("--data-dir {}", setup::shell_word(&copy)), "--start".to_owned()]);
    words.join(" ")
}

/// Returns what is said where nothing was found: what happened since the last archived commit nobody has read.
fn none_known(newest: Option<i64>) -> String {
    match newest.and_then(|us| Timestamp::from_microsecond(us).ok()) {
        Some(time) => format!(
            "No such event is known up to {}, the last archived commit. If the server runs, SELECT pg_switch_wal() there \
             archives what is newer.\n",
            super::output::time(time)
        ),
        None => "No such event is known: no commit is archived that the index knows.\n".to_owned(),
    }
}

fn text(found: &[EventReport]) -> String {
    let mut out = String::new();
    for event in found {
        let mut row = vec![utc(event.time), event.kind.to_string(), what(event)];
        if event.xid != 0 {
            row.push(format!("xid {}", event.xid));
        }
        row.push(format!("lsn {}", event.lsn));
        if event.uncertain {
            row.push("(a part of the transaction was not read: there may be more)".to_owned());
        }
        out += table(&[row]).trim_start();
        out += &format!("    {}\n", event.recover);
    }
    out
}

fn what(event: &EventReport) -> String {
    if let Some(name) = &event.restore_point {
        return format!("\"{name}\"");
    }
    let database = match (&event.database, event.database_oid) {
        (Some(name), _) => format!("database {name}"),
        (None, oid) => format!("database with OID {oid}"),
    };
    if event.kind == EventKind::DropDatabase {
        return database;
    }
    let more = event.tables.len().saturating_sub(NAMED);
    let named = event.tables.iter().take(NAMED).map(|table| match table.rows {
        0 => table.label(),
        rows => format!("{} ({rows} rows)", table.label()),
    });
    let mut tables = named.collect::<Vec<_>>().join(", ");
    if more > 0 {
        tables += &format!(" and {more} more");
    }
    format!("{tables} in {database}")
}
