//! `walden list`: backups, or WAL by ranges.

use super::output::{Format, bytes, json, table, time};
use super::{Global, setup};
use crate::config::Config;
use crate::index::IndexHandle;
use crate::kind::Result;
use crate::postgres::{SystemIdentifier, TimelineId, WalSegmentName};
use crate::recovery::catalog::Catalog;
use crate::repository::backup::BackupSummary;
use crate::repository::{Repository, list_pins, list_wal_timeline, timelines};
use crate::upkeep::bad_pages::bad_pages;
use serde::Serialize;
use std::collections::BTreeSet;

/// List the backups, or the archived WAL by ranges
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  walden list\n  walden list wal")]
pub struct Args {
    /// What to list
    #[arg(value_enum, default_value = "backups")]
    what: What,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
    /// The system identifier, where the data directory is not here
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    Backups,
    Wal,
}

/// Segments that follow each other without a hole, in one repository.
#[derive(Debug, Serialize)]
struct Range {
    repository: String,
    timeline: TimelineId,
    first: WalSegmentName,
    last: WalSegmentName,
    segments: usize,
    stored_bytes: u64,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let sysid = setup::cluster_identifier(&config, &repositories, args.system_identifier)?;
    let mut usable = Vec::new();
    for repository in &repositories {
        match repository.storage().probe(&repository.deadline()) {
            Ok(()) => usable.push(repository),
            Err(error) => tracing::warn!("{}; it is left out", repository.error("look into", &error)),
        }
    }
    if usable.is_empty() {
        let error = crate::kind::Error::new(crate::kind::Kind::Repository, "no repository can be reached");
        return Err(error.with_hint("see the warnings above"));
    }
    let catalog = Catalog::read(&usable, &config.cluster, sysid)?;
    match args.what {
        What::Backups => backups(&catalog, &setup::index(&config), args.output),
        What::Wal => wal(&catalog, args.output),
    }
}

/// Returns the ids of the backups that are pinned in any repository.
fn pins(catalog: &Catalog<'_>) -> Result<BTreeSet<String>> {
    let mut pins = BTreeSet::new();
    for repository in &catalog.repositories {
        pins.extend(list_pins(repository, &catalog.keys).map_err(|error| repository.error("list", &error))?);
    }
    Ok(pins)
}

fn backups(catalog: &Catalog<'_>, index: &IndexHandle, format: Format) -> Result<()> {
    let pins = pins(catalog)?;
    if format == Format::Json {
        let list: Vec<serde_json::Value> = catalog
            .backups
            .iter()
            .map(|backup| {
                let names: Vec<&str> = backup.held_by.iter().map(|repository| repository.name()).collect();
                let mut value = serde_json::to_value(&backup.summary).unwrap_or_default();
                if let Some(object) = value.as_object_mut() {
                    // The pieces are the reader's matter and would bury the rest.
                    object.remove("pieces");
                    object.insert("repositories".into(), names.into());
                    object.insert("pinned".into(), pins.contains(&backup.summary.id).into());
                }
                value
            })
            .collect();
        return json(&list);
    }
    if catalog.backups.is_empty() {
        println!("There is no backup. Take one with walden base-backup.");
        return Ok(());
    }
    let header = ["ID", "ENDED", "TIMELINE", "SIZE", "STORED", "REPOSITORIES", "LABEL", "NOTE"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for backup in &catalog.backups {
        let summary = &backup.summary;
        let names: Vec<&str> = backup.held_by.iter().map(|repository| repository.name()).collect();
        rows.push(vec![
            format!("{}{}", summary.id, if pins.contains(&summary.id) { " (pinned)" } else { "" }),
            time(summary.stop_time),
            summary.timeline.0.to_string(),
            bytes(summary.size),
            bytes(summary.stored_size),
            names.join(","),
            summary.label.clone(),
            remark(summary),
        ]);
    }
    print!("{}", table(&rows));
    let summaries = catalog.backups.iter().map(|backup| &backup.summary);
    if let Some(found) = bad_pages(summaries, index) {
        print!("{}", found.text());
    }
    Ok(())
}

/// Returns the user's remark, after what is to be said of the backup itself.
fn remark(summary: &BackupSummary) -> String {
    let bad = (summary.bad_pages > 0).then(|| format!("{} BAD PAGES", summary.bad_pages));
    bad.into_iter().chain(summary.note.clone()).collect::<Vec<_>>().join("; ")
}

fn wal(catalog: &Catalog<'_>, format: Format) -> Result<()> {
    let mut ranges = Vec::new();
    for repository in &catalog.repositories {
        let failed = |error| repository.error("list", &error);
        for timeline in timelines(repository, &catalog.keys).map_err(failed)? {
            ranges.extend(ranges_of(catalog, repository, timeline)?);
        }
    }
    if format == Format::Json {
        return json(&ranges);
    }
    if ranges.is_empty() {
        println!("No WAL is archived yet.");
        return Ok(());
    }
    let header = ["REPOSITORY", "TIMELINE", "FIRST", "LAST", "SEGMENTS", "STORED"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for range in &ranges {
        rows.push(vec![
            range.repository.clone(),
            range.timeline.0.to_string(),
            range.first.to_string(),
            range.last.to_string(),
            range.segments.to_string(),
            bytes(range.stored_bytes),
        ]);
    }
    print!("{}", table(&rows));
    Ok(())
}

fn ranges_of(catalog: &Catalog<'_>, repository: &Repository, timeline: TimelineId) -> Result<Vec<Range>> {
    let size = catalog.segment_size;
    let objects = list_wal_timeline(repository, &catalog.keys, timeline, &repository.deadline())
        .map_err(|error| repository.error("list", &error))?;
    let mut ranges: Vec<Range> = Vec::new();
    for object in objects {
        let Some(segment) = object.segment() else { continue };
        match ranges.last_mut() {
            Some(range) if range.last == segment || range.last.next(size) == segment => {
                range.segments += usize::from(range.last != segment);
                range.last = segment;
                range.stored_bytes += object.object.size;
            }
            _ => ranges.push(Range {
                repository: repository.name().to_owned(),
                timeline,
                first: segment,
                last: segment,
                segments: 1,
                stored_bytes: object.object.size,
            }),
        }
    }
    Ok(ranges)
}
