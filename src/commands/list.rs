//! `walden list`: backups, or WAL by ranges.

use super::output::{Format, bytes, json, table, time};
use super::{Global, setup};
use crate::config::Config;
use crate::index::{HeldChunk, IndexHandle};
use crate::kind::Result;
use crate::postgres::{CHUNK, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use crate::recovery::catalog::Catalog;
use crate::repository::backup::BackupSummary;
use crate::repository::{ClusterKeys, Repository, ask_all, list_pins, list_wal_from};
use crate::upkeep::bad_pages::bad_pages;
use crate::upkeep::holdings::{Holdings, catalog, look};
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
    segments: u64,
    stored_bytes: u64,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let sysid = setup::cluster_identifier(&config, &repositories, args.system_identifier)?;
    let index = setup::index_or_memory(&config);
    let all: Vec<&Repository> = repositories.iter().collect();
    let looks = ask_all(
        &all,
        usize::MAX,
        |repository, deadline| (repository, look(repository, &config.cluster, sysid, &index, deadline)),
        |_| false,
    );
    let mut usable = Vec::new();
    for (repository, look) in &looks {
        match look {
            Ok(held) => usable.push((*repository, held)),
            Err(problem) => {
                tracing::warn!("repository \"{}\" is left out: {problem}", repository.name());
            }
        }
    }
    if usable.is_empty() {
        let error = crate::kind::Error::new(crate::kind::Kind::Repository, "no repository can be used");
        return Err(error.with_hint("see the warnings above"));
    }
    match args.what {
        What::Backups => backups(&catalog(&usable, &config.cluster, sysid, &index), &index, args.output),
        What::Wal => wal(&usable, &ClusterKeys::new(&config.cluster, sysid), args.output),
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

fn wal(holdings: &[(&Repository, &Holdings)], keys: &ClusterKeys, format: Format) -> Result<()> {
    let mut ranges = Vec::new();
    for (repository, held) in holdings {
        ranges.extend(ranges_of(repository, held, keys)?);
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

fn ranges_of(repository: &Repository, held: &Holdings, keys: &ClusterKeys) -> Result<Vec<Range>> {
    let size = held.file.wal_segment_size;
    let mut ranges: Vec<Range> = Vec::new();
    for chunk in &held.chunks {
        for (first, last, stored_bytes) in runs(repository, keys, chunk, size)? {
            let name = |number| WalSegmentName::from_number(chunk.timeline, number, size);
            match ranges.last_mut() {
                Some(range) if range.timeline == chunk.timeline && range.last.next(size) == name(first) => {
                    range.last = name(last);
                    range.segments += last - first + 1;
                    range.stored_bytes += stored_bytes;
                }
                _ => ranges.push(Range {
                    repository: repository.name().to_owned(),
                    timeline: chunk.timeline,
                    first: name(first),
                    last: name(last),
                    segments: last - first + 1,
                    stored_bytes,
                }),
            }
        }
    }
    Ok(ranges)
}

/// Returns first and last number of each run of segments in a chunk, and the bytes that it takes. Of a chunk with holes
/// these are told by the repository.
fn runs(
    repository: &Repository,
    keys: &ClusterKeys,
    chunk: &HeldChunk,
    size: WalSegmentSize,
) -> Result<Vec<(u64, u64, u64)>> {
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    for number in
        (chunk.chunk * CHUNK..(chunk.chunk + 1) * CHUNK).filter(|number| chunk.bits.contains(*number))
    {
        match runs.last_mut() {
            Some((_, last, _)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number, 0)),
        }
    }
    if let [only] = &mut runs[..] {
        only.2 = chunk.stored_bytes;
        return Ok(runs);
    }
    for run in &mut runs {
        let first = WalSegmentName::from_number(chunk.timeline, run.0, size);
        let limit = usize::try_from(run.1 - run.0 + 1).unwrap_or(usize::MAX);
        let listed = list_wal_from(repository, keys, first, limit, &repository.deadline())
            .map_err(|error| repository.error("list", &error))?;
        run.2 = listed.objects.iter().map(|object| object.object.size).sum();
    }
    Ok(runs)
}
